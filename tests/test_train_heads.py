"""Heads in training: kernels by their definition, gradients, the variance they start with, and that every kind
learns."""

import integer_plain
import numpy as np
import pytest
from test_train_layers import assert_same_gradient, central_difference

from pyhtpw import nets
from pyhtpw.nets import Graph, Node
from pyhtpw.train.heads import Expander, code_scale, seeded_matrix
from pyhtpw.train.kernels import single_blas
from pyhtpw.train.model import MIN_GAMMA, Model
from pyhtpw.train.objective import cross_entropy
from pyhtpw.train.optim import AdamW, clip_gradient, decays, learning_rate
from pyhtpw.train.workspace import Workspace

SPECS = [
    "tiled:tile=7,dz=3,hidden=6",
    "tiled:tile=1,dz=3,hidden=5+4",
    "tiled:tile=64,dz=2,hidden=3+4+5",
    "tiled:tile=4,hidden=0",
    "seeded:tile=5,dz=3",
    "seeded:tile=8,dz=2,hidden=6,seed=99",
    "dense:dz=3,hidden=5",
    "dense:hidden=0",
    "factorised:rank=2,dz=3,hidden=5",
    "factorised:rank=3,share=a,hidden=0",
    "factorised:rank=2,share=none,hidden=4",
    "codebook:entries=5,tile=4",
    "codebook:entries=4,tile=6,of=generated,dz=2,hidden=5",
]


def everything(spec, depthwise=None):
    """Every op that has a kernel, generated; p1 and p2 have as many weights."""
    nodes = (
        Node("c", "conv", ("input",), 4, 3, head=spec),
        Node("d", "depthwise", ("c",), 4, 5, head=depthwise or spec),
        Node("p1", "pointwise", ("d",), 3, head=spec),
        Node("p2", "pointwise", ("p1",), 4, head=spec),
        Node("pool", "avgpool", ("p2",), 4),
        Node("fc", "fc", ("pool",), 2, head=spec),
    )
    return Graph("everything", (9, 2), 2, nodes)


def random_params(graph, seed):
    rng = np.random.default_rng(seed)
    shapes = graph.parameter_shapes()
    params = {name: rng.standard_normal(shapes[name]) for name in graph.trained_names()}
    for name in params:
        if name.endswith("bias") and name.startswith("generator"):
            params[name] += 1  # most units fire
    for head in graph.plan.heads:
        if head.spec.kind == "codebook":
            params.update({f"{n}.ids": rng.integers(0, head.spec.entries, shapes[f"{n}.ids"]) for n in head.nodes})
    return params


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("depthwise", [None, "tiled:dz=2,hidden=0"])
def test_gradients(spec, depthwise):
    graph = everything(spec, depthwise)
    expander = Expander(graph, Workspace(np.float64))
    params = random_params(graph, 5)
    rng = np.random.default_rng(6)
    weights = {name: rng.standard_normal(kernel.shape) for name, kernel in expander.forward(params, False).items()}
    assert {name: w.shape for name, w in weights.items()} == graph.kernel_shapes()
    for name, grad in expander.kernel_grads().items():
        grad[:] = weights[name]
    names = [name for name in graph.trained_names() if name != "fc.bias"]
    grads = {name: np.full_like(params[name], np.nan) for name in names}
    expander.backward(params, grads)

    def loss():
        return sum(float(np.sum(kernel * weights[name])) for name, kernel in expander.forward(params, False).items())

    for name in names:
        assert_same_gradient(grads[name], central_difference(loss, params[name]), name)


def test_one_generator_behind_two_heads_collects_both_gradients():
    graph = nets.build("hypertinypw", t=40, stem=4, widths=(4, 5, 5), strides=(1, 1, 1), heads={
        "pw": "tiled:tile=6,dz=3,hidden=5,group=g", "depthwise": "tiled:dz=3,hidden=5,group=g", "pw1": "seeded:tile=9,dz=3,hidden=5,group=g",
    })  # fmt: skip
    assert len(graph.plan.generators) == 1
    assert [head.rows for head in graph.plan.heads] == [5, 9, 6]
    model = Model(graph, seed=1, dtype=np.float64)
    model.quantise_codes = False
    rng = np.random.default_rng(2)
    model.trained += 0.1 * rng.standard_normal(model.trained.size)
    x, labels = rng.standard_normal((5, 40, 1)), np.array([0, 1, 1, 0, 1])

    def loss():
        return cross_entropy(model.forward(x, training=True), labels)[0]

    _, dlogits = cross_entropy(model.forward(x, training=True), labels)
    grads = {name: value.copy() for name, value in model.backward(dlogits).items()}
    whole = np.linalg.norm(model.gradient)
    for name in (
        "generator.0.weight",
        "generator.0.bias",
        "head.weight",
        "head-2.gain",
        "head-3.weight",
        "dw2.codes",
        "pw2.codes",
    ):
        expected = central_difference(loss, model.params[name])
        scale = max(np.linalg.norm(expected), 1e-3 * whole)
        assert np.linalg.norm(grads[name] - expected) <= 1e-6 * scale, name


def mlp(params, name, z):
    for i in range(4):
        if f"{name}.{i}.weight" in params:
            z = np.maximum(params[f"{name}.{i}.weight"] @ z + params[f"{name}.{i}.bias"], 0)
    return z


@pytest.mark.parametrize("spec", SPECS)
def test_kernels_match_their_definition(spec):
    graph = everything(spec)
    params = random_params(graph, 7)
    made = Expander(graph, Workspace(np.float64)).forward(params)
    plan = graph.plan
    step = None
    if plan.generators:
        codes = [params[source] for source, _ in plan.generators[0].sources]
        step = code_scale(codes, 4)
        assert step == max(np.abs(z).max() for z in codes) / 7
    for name, shape in graph.kernel_shapes().items():
        head = plan.heads[plan.head_of[name]]
        kind, weights = head.spec.kind, []
        rows = range(len(params[f"{name}.{'ids' if kind == 'codebook' else 'codes'}"]))
        for row in rows:
            if kind == "codebook" and not head.codes:
                weights.extend(params["head.table.weight"][params[f"{name}.ids"][row]])
                continue
            z = params["head.codes"][params[f"{name}.ids"][row]] if kind == "codebook" else params[f"{name}.codes"][row]
            h = mlp(params, "generator", np.round(z / step) * step)
            if kind == "seeded":
                drawn = np.reshape(
                    integer_plain.xorshift_bytes(head.spec.seed, head.rows * len(h)), (head.rows, len(h))
                )
                weights.extend(params["head.gain"] * drawn / 128 @ h)
            elif kind == "factorised":
                owners = {
                    m: head.name if of is None else plan.heads[of].name
                    for m, of in (("a", head.a_of), ("b", head.b_of))
                }
                weights.extend(params[f"{owners['a']}.a.weight"] @ (params[f"{owners['b']}.b.weight"] @ h))
            else:
                weights.extend(params[f"{head.name}.weight"] @ h)
        weights = np.array(weights[: int(np.prod(shape))])
        expected = weights.reshape(shape[::-1]).T if name == "d" else weights.reshape(shape)
        np.testing.assert_allclose(made[name], expected, rtol=1e-12, atol=1e-12, err_msg=name)


def test_seeded_matrix_is_the_specified_one():
    for seed, rows, cols in ((1, 3, 5), (0xDEADBEEF, 32, 8), (2**32 - 1, 1, 1)):
        assert seeded_matrix(seed, rows, cols).ravel().tolist() == integer_plain.xorshift_bytes(seed, rows * cols)
    # by hand from s = 1: 1 ^ 1<<13 = 0x2001; >>17 changes nothing; ^ 0x2001<<5 = 0x42021
    assert seeded_matrix(1, 1, 4).ravel().tolist() == [0x21, 0x20, 0x04, 0x00]
    spread = seeded_matrix(1, 64, 64)
    assert abs(spread.mean()) < 4
    assert 70 < spread.std() < 78
    assert len(np.unique(spread)) == 256


def test_scale_of_no_codes_at_all_is_one():
    assert code_scale([np.zeros((2, 3))], 4) == 1.0


KINDS = ["tiled", "tiled:hidden=0", "seeded", "seeded:hidden=12", "dense", "dense:hidden=0", "factorised", "factorised:share=a",
         "factorised:share=none,hidden=0", "codebook", "codebook:of=generated,entries=200"]  # fmt: skip


@pytest.mark.parametrize("spec", KINDS)
def test_kernels_start_with_the_variance_of_their_fan_in(spec):
    """He-normal: 2 / fan-in. Heads of their own kernels make it exact; over seeds, shared ones are right on average."""
    ratios = {}
    for seed in range(12):
        heads = {"pw": spec, "pw1": f"{spec}{',' if ':' in spec else ':'}group=x", "depthwise": spec}
        graph = nets.build("hypertinypw", t=60, stem=16, widths=(32, 32, 32), strides=(2, 1, 1), heads=heads)
        model = Model(graph, seed=seed)
        for name, kernel in model.kernels().items():
            assert np.isfinite(kernel).all()
            assert kernel.any(), f"{name} of seed {seed} is dead"
            if graph.node(name).head.generated:
                fan_in = kernel.shape[0] if graph.node(name).op == "depthwise" else kernel.shape[1]
                ratios.setdefault(graph.node(name).op, []).append(np.mean(kernel**2) * fan_in / 2)
                ratios.setdefault(name, []).append(ratios[graph.node(name).op][-1])
        codes = [value for name, value in model.params.items() if name.endswith(".codes")]
        assert all(len(np.unique(z, axis=0)) == len(z) for z in codes)
    assert {"pointwise", "depthwise"} <= set(ratios)
    for name, found in ratios.items():
        assert 0.75 < np.mean(found) < 1.33, (name, found)


def windows(rng, count=64, steps=48):
    """Noise with a bump whose place tells the class."""
    labels = np.arange(count) % 2
    x = rng.standard_normal((count, steps, 1)).astype(np.float32)
    for window, label in zip(x, labels, strict=True):
        window[8 + 20 * label : 14 + 20 * label] += 1.5
    return x, labels


@pytest.mark.parametrize("spec", [*KINDS, "tiled:narrow,code_bits=8", "stored"])
@pytest.mark.parametrize("where", ["pw", "throughout"])
def test_overfits_64_windows(spec, where):
    heads = {"pw": spec} if where == "pw" else dict.fromkeys(("pw", "pw1", "depthwise", "conv", "fc"), spec)
    graph = nets.build("hypertinypw", t=48, stem=12, widths=(16, 24, 24), strides=(2, 1, 1), stem_stride=2, heads=heads)
    model = Model(graph, seed=0)
    optimiser = AdamW(model, weight_decay=0.0)
    x, labels = windows(np.random.default_rng(1))
    with single_blas():
        for step in range(200):
            if step % 10 == 9 and (model.infer(x).argmax(axis=1) == labels).all():
                break
            _, dlogits = cross_entropy(model.forward(x, training=True), labels)
            model.backward(dlogits)
            clip_gradient(model.gradient, 1.0)
            optimiser.step(step + 1, learning_rate(step, 200, 0.02, 10))
    assert (model.infer(x).argmax(axis=1) == labels).all()


def test_gains_and_ids_under_the_optimiser():
    graph = nets.build("hypertinypw", t=48, heads={"pw": "seeded", "depthwise": "codebook"})
    model = Model(graph)
    ids = {name: value.copy() for name, value in model.params.items() if name.endswith(".ids")}
    assert ids
    assert not any(name in model.grads for name in ids)
    model.gradient[:] = 1
    AdamW(model, weight_decay=0).step(1, 50.0)
    assert model.params["head-2.gain"] == np.float32(MIN_GAMMA)
    for name, value in ids.items():
        np.testing.assert_array_equal(model.params[name], value)
        assert set(value.astype(int)) == set(range(64)) or len(value) < 64
    assert not decays("head.gain")
    assert decays("head.table.weight")
    assert decays("head.a.weight")
