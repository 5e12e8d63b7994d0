"""The published generator network: its count, its layers by their definition, and its two honest images."""

from math import prod

import integer_plain
import numpy as np
import pytest
import test_train_heads
from test_nets_baselines import trained
from test_quant_ops import agreement, assert_c_is_numpy
from test_train_heads import everything, random_params
from test_train_layers import assert_same_gradient, central_difference, params_of, run

from pyhtpw import nets
from pyhtpw.errors import ConfigError, QuantiseError
from pyhtpw.image import bill, write
from pyhtpw.image.integer import Dense
from pyhtpw.model import Image
from pyhtpw.nets import Graph, Node
from pyhtpw.nets.heads import BOUND, HeadSpec
from pyhtpw.pipeline import name_layers
from pyhtpw.quant import quantise
from pyhtpw.quant.aware import AwareModel
from pyhtpw.quant.fit import fit_network
from pyhtpw.quant.fold import fold
from pyhtpw.quant.generator import kernel_of
from pyhtpw.quant.stored import nearest
from pyhtpw.target import toolchain
from pyhtpw.target.emulator import Emulator
from pyhtpw.train import Model
from pyhtpw.train.heads import LAYER_EPSILON, Expander
from pyhtpw.train.kernels import single_blas
from pyhtpw.train.layers import chain
from pyhtpw.train.objective import cross_entropy
from pyhtpw.train.optim import AdamW, clip_gradient, learning_rate
from pyhtpw.train.workspace import Workspace
from pyhtpw.verify import Emulated, Native, Numpy, compare

TOOLS = toolchain.tools()
SPEC = "dense:dz=5,hidden=7+6+4,code_bits=8,published"


def groups(spec: str = SPEC) -> Graph:
    """A published head of its own for every kernel of a small network."""
    graph = everything("stored")
    return graph.with_heads({node: f"{spec},group=g{i}" for i, node in enumerate(("c", "d", "p1", "p2", "fc"))})


def by_definition(params, code, generator="generator", head="head", layers=3):
    """What the published module makes of a code (dz,), flat."""
    h = code
    for i in range(layers - 1):
        h = params[f"{generator}.{i}.weight"] @ h + params[f"{generator}.{i}.bias"]
        h = (h - h.mean()) / np.sqrt(h.var() + LAYER_EPSILON) * params[f"{generator}.{i}.gamma"] + params[f"{generator}.{i}.beta"]
        h = np.maximum(h, 0)
    h = np.maximum(params[f"{generator}.{layers - 1}.weight"] @ h, 0)
    return BOUND * np.tanh(params[f"{head}.weight"] @ h)


# -- the count ---------------------------------------------------------------------------------------------------------


def test_parameters_are_the_published_ones():
    """All of them, the kernel that the published code stores without using it being the only ones that no graph has."""
    graph = nets.build("published_generator", t=1800)
    shapes = graph.parameter_shapes()
    count = {name: prod(shape) for name, shape in shapes.items()}
    head = count["generator.2.weight"] + count["head.weight"]
    generator = sum(n for name, n in count.items() if name.startswith(("generator.0.", "generator.1."))) + count["pw3.codes"]
    assert (head, generator) == (205_824, 11_344)
    unused = prod(graph.kernel_shapes()["pw3"])
    assert (graph.parameter_count(), unused) == (229_277, 2_048)
    assert graph.parameter_count() + unused == 231_325
    stored = nets.build("published_generator", t=1800, heads={})
    assert stored.parameter_count() == 231_325 - head - generator == 14_157
    assert graph.shapes()["se3"] == (225, 64)


def test_branches_are_kernels_of_several_sizes():
    graph = nets.build("published_generator", t=64)
    model = Model(graph, seed=3)
    taps = [np.flatnonzero(kernel[:, 0]).tolist() for kernel in model.params["stem.weight"]]
    assert taps == [[2, 3, 4]] * 5 + [[1, 2, 3, 4, 5]] * 5 + [list(range(7))] * 6
    ratio = np.mean([np.mean(Model(graph, seed=s).params["stem.weight"][:5, 2:5] ** 2) * 3 / 2 for s in range(40)])
    assert 0.8 < ratio < 1.25, "the fan-in of a branch is its own"


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (Node("n", "conv", ("input",), 4, 5, branches=(3, 7)), "last and largest"),
        (Node("n", "conv", ("input",), 4, 4, branches=(2, 4)), "odd"),
        (Node("n", "conv", ("input",), 1, 5, branches=(3, 5)), "a channel to each"),
        (Node("n", "conv", ("input",), 4, 5, 2, branches=(3, 5)), "stride at 1"),
        (Node("n", "depthwise", ("input",), 2, 5, branches=(3, 5)), "cannot have branches"),
        (Node("n", "conv", ("input",), 4, 5, head="tiled", branches=(3, 5)), "no head makes"),
        (Node("n", "attention", ("input",), 2), "hidden is 0"),
    ],
)  # fmt: skip
def test_bad_nodes_are_named(node, said):
    with pytest.raises(ConfigError, match="node 'n'.*" + said):
        Graph("g", (9, 2), 2, (node, Node("pool", "avgpool", ("n",), node.cout), Node("fc", "fc", ("pool",), 2)))


@pytest.mark.parametrize(
    "text",
    ["dense:published", "dense:hidden=4,published", "tiled:published", "stored:rule=max", "stored:bits=4,rule=mean",
     "stored:bits=2,rule=no"],
)  # fmt: skip
def test_bad_heads_are_refused(text):
    with pytest.raises(ConfigError):
        HeadSpec.parse(text)


def test_heads_and_branches_survive_json_and_text():
    graph = nets.build("published_generator", t=64)
    assert Graph.from_dict(graph.to_dict()) == graph
    for text in (SPEC, "stored:bits=2,rule=max"):
        assert HeadSpec.parse(HeadSpec.parse(text).text()) == HeadSpec.parse(text)


# -- training ----------------------------------------------------------------------------------------------------------


def test_attention_matches_its_definition():
    rng = np.random.default_rng(6)
    x = rng.standard_normal((3, 4, 5))
    node = Node("n", "attention", ("a",), 5, hidden=2)
    p = params_of(node, 5, rng)
    inner = np.maximum(x @ p["n.reduce.weight"].T + p["n.reduce.bias"], 0)
    weight = 1 / (1 + np.exp(-(inner @ p["n.score.weight"].T + p["n.score.bias"])))
    expected = (x * weight).sum(axis=1, keepdims=True) / weight.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(run(chain(node, Workspace(np.float64)), [x], p), expected, rtol=1e-12)
    p["n.score.bias"][:] = -2000  # sigmoids that are all 0 in any float
    found = run(chain(node, Workspace(np.float64)), [x], p)
    assert np.isfinite(found).all()
    assert (x.min(axis=1) <= found[:, 0]).all()
    assert (found[:, 0] <= x.max(axis=1)).all()


@pytest.mark.parametrize("spec", [SPEC, "dense:dz=3,hidden=4+5,published"])
def test_gradients_of_a_published_generator(spec):
    """One generator behind many kernels, hence many codes: in training nothing speaks against it."""
    graph = everything(spec)
    expander = Expander(graph, Workspace(np.float64))
    params = random_params(graph, 5)
    rng = np.random.default_rng(6)
    weights = {name: rng.standard_normal(kernel.shape) for name, kernel in expander.forward(params, False).items()}
    for name, grad in expander.kernel_grads().items():
        grad[:] = weights[name]
    names = [name for name in graph.trained_names() if name != "fc.bias"]
    assert "generator.0.gamma" in names
    assert f"generator.{len(graph.plan.generators[0].hidden) - 1}.bias" not in names
    grads = {name: np.full_like(params[name], np.nan) for name in names}
    expander.backward(params, grads)

    def loss():
        return sum(float(np.sum(kernel * weights[name])) for name, kernel in expander.forward(params, False).items())

    for name in names:
        assert_same_gradient(grads[name], central_difference(loss, params[name]), name)


def test_kernels_match_their_definition():
    graph = everything(SPEC)
    params = random_params(graph, 7)
    made = Expander(graph, Workspace(np.float64)).forward(params, False)
    for name, shape in graph.kernel_shapes().items():
        head = graph.plan.heads[graph.plan.head_of[name]].name
        flat = by_definition(params, params[f"{name}.codes"][0], head=head)
        expected = flat.reshape(shape[::-1]).T if name == "d" else flat.reshape(shape)
        np.testing.assert_allclose(made[name], expected, rtol=1e-11, err_msg=name)


def test_bounded_kernels_start_away_from_their_bound():
    for seed in range(5):
        kernel = Model(nets.build("published_generator", t=64), seed=seed).kernels()["pw3"]
        before = np.arctanh(kernel.astype(float) / BOUND)
        assert np.sqrt(np.mean(before**2)) == pytest.approx(0.5, rel=1e-3)
        assert np.mean(np.abs(kernel) > 0.95 * BOUND) < 0.01


def test_a_published_head_overfits_64_windows():
    test_train_heads.test_overfits_64_windows("dense:dz=16,hidden=24+24+24,code_bits=8,published", "pw")


def test_the_published_network_overfits_64_windows():
    x, labels = test_train_heads.windows(np.random.default_rng(1))
    model = Model(nets.build("published_generator", t=48, dropout=0.0), seed=0)
    optimiser = AdamW(model, weight_decay=0.0)
    with single_blas():
        for step in range(200):
            if step % 10 == 9 and (model.infer(x).argmax(axis=1) == labels).all():
                break
            _, dlogits = cross_entropy(model.forward(x, training=True), labels)
            model.backward(dlogits)
            clip_gradient(model.gradient, 1.0)
            optimiser.step(step + 1, learning_rate(step, 200, 0.005, 10))
    assert (model.infer(x).argmax(axis=1) == labels).all()


def test_training_moves_the_whole_generator_and_keeps_zeros_zero():
    graph, model, _, losses = trained("published_generator", 12)
    assert losses[-1] < 0.7 * losses[0]
    start = Model(graph, seed=2)
    names = [name for name in graph.trained_names() if not name.endswith("bias")]
    assert all((model.params[name] != start.params[name]).any() for name in names)
    assert (model.params["stem.weight"] != 0).sum() == 82


# -- images ------------------------------------------------------------------------------------------------------------


def test_folding_changes_no_kernel():
    graph = groups()
    params = random_params(graph, 8)
    plain, folded = fold(graph, params)
    assert not any(node.head.published for node in plain.nodes)
    assert {n: folded[n].shape for n in plain.parameter_shapes()} == plain.parameter_shapes()
    wanted = Expander(graph, Workspace(np.float64)).forward(params)
    found = Expander(plain, Workspace(np.float64)).forward(folded)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-9, atol=1e-15)
    same = fold(plain, folded)
    assert same[0] == plain
    assert "generator.0.gamma" in params, "what was given is left alone"


def test_layernorm_of_several_codes_is_refused_by_name():
    graph = everything(SPEC)
    with pytest.raises(QuantiseError, match=r"nodes c, d, p1, p2, fc: the LayerNorm .* no integer form"):
        fold(graph, random_params(graph, 8))


def test_the_generator_is_in_the_image_and_on_the_bill():
    graph, model, x, _ = trained("published_generator", 6)
    integer = quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=100.0)
    (generator,), (head,) = integer.generators, integer.heads
    assert [layer.weights.shape for layer in generator.layers] == [(96, 16), (96, 96), (96, 96)]
    assert isinstance(head, Dense)
    assert head.matrix.weights.shape == (2048, 96)
    op = next(op for op in integer.ops if op.name == "pw3")
    made = kernel_of(integer, op).reshape(64, 32)
    assert np.corrcoef(made.ravel(), model.kernels()["pw3"].ravel())[0, 1] > 0.999
    np.testing.assert_array_equal(made, integer_plain.kernel(integer, op))
    image = assert_c_is_numpy(integer, x)
    assert agreement(integer, model, x) > 0.98
    stem = integer.ops[0].weights.values
    assert (stem[:5, 0, :2] == 0).all()
    assert (stem[:5, 0, 5:] == 0).all()

    plain = nets.build("published_generator", t=128, heads={})
    params = {name: value for name, value in model.state().items() if name in plain.parameter_shapes()}
    stored = Image(write(quantise(plain, {**params, "pw3.weight": model.kernels()["pw3"]}, x, classes=("a", "b"), sample_rate=100.0)))
    assert len(image.data) - len(stored.data) > 205_824 + 9_216 + 1_536 - 2_048
    assert 225 * 1024 < len(image.data) < 228 * 1024
    assert len(stored.data) < 17 * 1024
    account = name_layers(bill(image.parsed), integer)
    assert account["generated"]["pw3"]["stored_bytes"] > 205_824 + 9_216 + 1_536
    assert account["generated"]["pw3"]["costs_more_than_storing"] == ["8", "4", "2"]
    assert account["eq6"]["heads"] == 2048 * 96
    assert account["eq6"]["generator"] == 96 * (16 + 96 + 96)
    assert account["eq6"]["codes"] == 16


@pytest.mark.skipif(
    None in (TOOLS["unicorn"], TOOLS["pyelftools"]) or not (TOOLS["gcc"] or TOOLS["clang"]),
    reason="NOT RUN: unicorn, pyelftools or a compiler for Arm is missing",
)
@pytest.mark.parametrize("t", [96, 288])
def test_it_runs_on_an_emulated_cortex_m4(t):
    """96 samples make 12 positions, which an attend takes; 288 make 36, and a quotient of means."""
    graph = nets.build("published_generator", t=t)
    x = np.random.default_rng(5).standard_normal((8, t, 1)).astype(np.float32)
    model = Model(graph, seed=1)
    for _ in range(3):
        model.forward(x, training=True)
    integer = quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=100.0)
    assert ("attend" in {op.kind for op in integer.ops}) == (t == 96)
    image = Image(write(integer))
    with Emulator("cortex-m4") as emulator:
        told = Emulated(emulator.open(image.data), windows=2)
        pairs = compare(image, image.quantise(x[:2]), [Numpy(image), Native(image), told])
    assert {pair.b for pair in pairs} >= {told.name}
    assert all(pair.differ == 0 and pair.logit_bytes > 0 for pair in pairs)
    assert all(pair.kernel_bytes >= 2048 for pair in pairs)


def test_training_sees_the_kernel_of_the_image():
    graph, model, x, _ = trained("published_generator", 2)
    aware = AwareModel(graph, model.state())
    aware.forward(x, training=True)
    seen = aware.integer_kernels()["pw3"]
    integer = quantise(graph, aware.state(), x, classes=("a", "b"), sample_rate=100.0)
    op = next(op for op in integer.ops if op.name == "pw3")
    np.testing.assert_array_equal(seen, kernel_of(integer, op))


def test_a_published_head_is_fitted_to_a_trained_kernel():
    """Exactly, where a normalisation takes the scale of its channels; elsewhere a kernel beyond the bound is refused by name."""
    graph, model, x, _ = trained("published_generator", 3)
    plain = nets.build("published_generator", t=128, heads={})
    model = Model(plain, seed=4)
    for _ in range(3):
        model.forward(x, training=True)
    fitted, found, report = fit_network(plain, model.state(), {"pw3": graph.node("pw3").head})
    assert fitted.nodes == graph.nodes
    assert report.errors["pw3"] < 1e-5
    assert np.abs(Model(fitted, found).kernels()["pw3"]).max() <= 0.9 * BOUND + 1e-6
    np.testing.assert_allclose(Model(fitted, found).infer(x), model.infer(x), rtol=1e-3, atol=1e-3)
    loose = everything("stored")
    params = Model(loose, seed=1).state()
    with pytest.raises(ConfigError, match="node 'p1': its kernel has a weight of .* bounds to 0.05"):
        fit_network(loose, params, {"p1": SPEC})


# -- the published ternary rule ----------------------------------------------------------------------------------------


def test_ternary_by_the_threshold_of_the_largest_weight():
    rows = np.array([[1.0, 0.71, -0.8, 0.69, -0.1], [0.0, 0.0, 0.0, 0.0, 0.0], [2.0, -1.4, 1.5, 0.2, -2.0]])
    found = nearest(rows, 2, rule="max")
    scale = (1 + 0.71 + 0.8) / 3
    np.testing.assert_allclose(found[0], [scale, scale, -scale, 0, 0])
    assert not found[1].any()
    np.testing.assert_allclose(found[2], np.array([1, 0, 1, 0, -1]) * (2 + 1.5 + 2) / 3)
    by_mean = nearest(rows, 2, rule="mean")
    np.testing.assert_allclose(by_mean[0], np.array([1, 1, -1, 1, 0]) * (1 + 0.71 + 0.8 + 0.69) / 4)


@pytest.mark.parametrize("rule", ["max", "mean"])
def test_ternary_network_by_a_rule(rule):
    graph, model, x, _ = trained("ternary_separable", 1)
    graph = nets.build("ternary_separable", t=128, rule=rule)
    integer = quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=100.0)
    aware = AwareModel(graph, model.state()).expand()
    for op in integer.ops:
        if op.name.startswith("pw"):
            kernel, q = model.params[f"{op.name}.weight"].astype(float), op.weights.values.reshape(op.weights.values.shape[-2:])
            size = np.abs(kernel)
            threshold = 0.7 * (size.max(axis=1) if rule == "max" else size.mean(axis=1))
            np.testing.assert_array_equal(q, np.sign(kernel) * (size > threshold[:, None]))
            assert op.weights.bits == 2
            np.testing.assert_array_equal(np.sign(aware[f"{op.name}.weight"]), q)
    assert_c_is_numpy(integer, x)
