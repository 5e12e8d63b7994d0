"""Quantisation: factors, ranges, the integer generator, and integer networks beside their float ones."""

from dataclasses import replace

import hypothesis.strategies as st
import integer_plain
import numpy as np
import pytest
import strategies  # noqa: F401 - registers the Hypothesis profiles
from hypothesis import given

from pyhtpw.errors import ConfigError, QuantiseError
from pyhtpw.image.integer import Generated
from pyhtpw.nets import Graph, Node, build
from pyhtpw.quant import quantise
from pyhtpw.quant.generator import kernel_of
from pyhtpw.quant.heads import quantise_heads
from pyhtpw.quant.quantise import with_threshold
from pyhtpw.quant.scales import COMPACT, FULL, HALF, affine, factors, fit_range, multiplier, requant
from pyhtpw.quant.stored import nearest, quantise_stored
from pyhtpw.train import Model


@given(st.floats(2.0**-30, 2.0**29), st.sampled_from([FULL, HALF, COMPACT]))
def test_multiplier_is_within_half_a_unit(real, bits):
    m, shift = multiplier(real, bits)
    assert 1 << 30 <= m < 1 << 31
    assert m % (1 << 31 - bits) == 0
    assert -31 <= shift <= 30
    assert abs(m * 2.0 ** (shift - 31) - real) <= real * 2.0**-bits


@pytest.mark.parametrize("real", [-1.0, np.nan, np.inf, 2.0**31])
def test_multiplier_refuses(real):
    with pytest.raises(QuantiseError, match="factor"):
        multiplier(real)


def test_multiplier_of_nothing():
    assert multiplier(0.0) == multiplier(2.0**-40) == (0, 0)
    assert multiplier(0.0, COMPACT) == (1 << 30, -31)
    for sum_ in (-(1 << 30) + 1, (1 << 30) - 1):
        assert integer_plain.rq(sum_, 1 << 30, -31) == 0
    assert factors(np.array([0.0, 0.01]), HALF).shifts.tolist() == [-6, -6]


def test_requant_collapses_and_keeps_the_bound():
    found = requant(factors(np.array([0.25, 0.25]), COMPACT), np.array([1.4, -3.6]), 10)
    assert (found.multipliers.tolist(), found.shifts.tolist(), found.biases.tolist()) == ([1 << 30], [-1], [1, -4])
    requant(factors(np.array([0.25]), COMPACT), np.array([2.0**30 - 10 * 255 * 128 - 1]), 10)
    with pytest.raises(QuantiseError, match="accumulator"):
        requant(factors(np.array([0.25]), COMPACT), np.array([2.0**30 - 10 * 255 * 128]), 10)
    with pytest.raises(QuantiseError, match="accumulator"):
        requant(factors(np.array([1.0]), COMPACT), np.array([2.0**29]), 1)  # a left shift of 1


@given(st.floats(-1000, 0), st.floats(0, 1000))
def test_affine_represents_zero_and_its_ends(low, high):
    scale = affine(low, high)
    assert -128 <= scale.zero_point <= 127
    assert scale.dequantise(scale.quantise(np.zeros(1)))[0] == 0
    for end in (low, high):
        assert abs(scale.dequantise(scale.quantise(np.array([end])))[0] - end) <= 1.01 * scale.scale


def test_fit_range_clips_tails_only_if_asked():
    x = np.random.default_rng(0).normal(size=200_000)
    assert fit_range(x).scale < fit_range(x, clip=False).scale
    assert fit_range(x, clip=False).scale == affine(x.min(), x.max()).scale
    with pytest.raises(QuantiseError, match="not finite"):
        fit_range(np.array([1.0, np.inf]))


def trained(steps: int = 30, net: str = "hypertinypw", **options):
    """A small network whose statistics have settled on structured input, and that input."""
    graph = build(net, t=96, widths=(16, 24, 24), strides=(2, 2, 1), stem=8, **options)
    rng = np.random.default_rng(5)
    x = np.cumsum(rng.standard_normal((64, 96, 1)), axis=1).astype(np.float32)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    model = Model(graph, seed=3)
    for name in ("fc.weight", "head.gain"):  # logits with a spread worth comparing
        if name in model.params:
            model.params[name][...] *= 8
    for _ in range(steps):
        model.forward(x, training=True)
    return graph, model, x


def quantised(graph, model, x, **options):
    return quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=100.0, **options)


def agreement(integer, model, x):
    """Correlation of integer with float logits, the least over classes."""
    real = integer_plain.run(integer, integer_plain.quantise_input(integer, x)).astype(float)
    wanted = model.infer(x)
    return min(np.corrcoef(real[:, c], wanted[:, c])[0, 1] for c in range(2))


EVERYTHING = ("pw", "pw1", "depthwise", "conv", "fc")
HEADS = {
    "stored": {},
    "per_tensor": dict.fromkeys(EVERYTHING, "stored:per_tensor"),
    "stored4": dict.fromkeys(EVERYTHING, "stored:bits=4"),
    "tiled": {"pw": "tiled"},
    "tiled throughout": {"pw": "tiled:tile=8,group=a", "pw1": "tiled:tile=8,group=a", "depthwise": "tiled:group=a", "conv": "tiled:tile=9,dz=6,code_bits=8"},
    "two layers": {"pw": "tiled:tile=20,dz=3,hidden=8+12,code_bits=6,head_bits=6,generator_bits=6"},
    "linear": {"pw": "tiled:hidden=0,dz=6,code_bits=8", "fc": "tiled:hidden=0,dz=3"},
    "narrow": {"pw": "tiled:narrow,code_bits=8,dz=8"},
    "seeded": {"pw": "seeded:tile=16", "depthwise": "seeded:seed=77"},
    "dense": dict.fromkeys(EVERYTHING, "dense"),
    "factorised b": dict.fromkeys(EVERYTHING, "factorised"),
    "factorised a": dict.fromkeys(EVERYTHING, "factorised:share=a,hidden=0"),
    "factorised": {"pw": "factorised:share=none,rank=2,hidden=6"},
    "codebook": {"pw": "codebook:entries=200,tile=8", "depthwise": "codebook:bits=4,narrow"},
    "generated codebook": {"pw": "codebook:entries=40,tile=8,of=generated,code_bits=6"},
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_integer_logits_follow_float_logits(name):
    graph, model, x = trained(heads=HEADS[name])
    least = {"narrow": 0.9, "stored4": 0.85}.get(name, 0.96)
    assert agreement(quantised(graph, model, x), model, x) > least


@pytest.mark.parametrize("name", HEADS)
def test_kernels_are_those_of_the_definition(name):
    """The quantiser's kernels, those of its emulation, and those of plain Python integers."""
    graph, model, x = trained(steps=1, heads=HEADS[name])
    integer = quantised(graph, model, x)
    predicted = quantise_heads(graph, model.state())
    assert set(predicted.kernels) == {node.name for node in graph.generated_nodes()}
    for op in integer.ops:
        if op.weights is None:
            continue
        wanted = integer_plain.kernel(integer, op)
        np.testing.assert_array_equal(kernel_of(integer, op), wanted, err_msg=op.name)
        if op.name in predicted.kernels:
            assert isinstance(op.weights, Generated)
            np.testing.assert_array_equal(predicted.kernels[op.name].reshape(wanted.shape), wanted)
            assert np.abs(wanted.astype(int)).max() <= (7 if op.weights.narrow else 127)
        else:
            spec = graph.node(op.name).head
            low, high = {8: (-127, 127), 4: (-8, 7), 2: (-2, 1)}[spec.bits]
            assert op.weights.bits == spec.bits
            assert low <= wanted.min() <= wanted.max() <= high


@pytest.mark.parametrize("name", [n for n in HEADS if "stored" not in n and n != "per_tensor"])
def test_integer_kernels_are_close_to_the_float_ones(name):
    graph, model, _ = trained(steps=1, heads=HEADS[name])
    made = quantise_heads(graph, model.state())
    for node, kernel in model.kernels().items():
        if node in made.kernels:
            coarse = graph.node(node).head.narrow or graph.node(node).head.head_bits < 8
            error = made.kernels[node] * made.scales[node] - kernel
            assert np.linalg.norm(error) <= (0.2 if coarse else 0.04) * np.linalg.norm(kernel), node


def test_heads_of_the_integer_model():
    graph, model, x = trained(steps=1, heads=HEADS["tiled throughout"])
    integer = quantised(graph, model, x)
    assert [type(head).__name__ for head in integer.heads] == ["Tiled"] * 3
    assert [head.generator for head in integer.heads] == [0, 1, 1]
    assert [len(head.matrix.weights) for head in integer.heads] == [9, 5, 8]
    ops = {op.name: op.weights for op in integer.ops}
    assert ops["dw2"].shape == (1, 5, 16)
    assert ops["dw2"].codes.shape == (16, 4)
    assert ops["stem"].bits == 8
    assert ops["stem"].shape == (8, 1, 9, 1)
    book = quantised(*trained(steps=1, heads=HEADS["generated codebook"]))
    assert [type(head).__name__ for head in book.heads] == ["Tiled", "Codebook"]
    assert book.heads[1].of == 0
    assert book.heads[1].entries.shape == (40, 4)
    assert [g.width for g in quantised(*trained(steps=1, heads=HEADS["linear"])).generators] == [6, 3]


def test_identities_are_one_generator():
    heads = {"pw": "tiled:hidden=0", "depthwise": "tiled:hidden=0", "fc": "seeded:dz=4"}
    integer = quantised(*trained(steps=1, heads=heads))
    assert len(integer.heads) == 3
    assert [(g.dz, g.layers) for g in integer.generators] == [(4, ())]


def test_entries_that_nobody_picks_are_left_out():
    graph, model, x = trained(steps=1, heads={"pw": "codebook:entries=200,tile=64"})
    integer = quantised(graph, model, x)
    assert len(integer.heads[0].entries) < 6 + 9 + 1  # at most one per tile: 16*24 and 24*24 weights in tiles of 64
    picked = np.concatenate([op.weights.codes for op in integer.ops if op.name in ("pw2", "pw3")])
    assert set(picked.tolist()) == set(range(len(integer.heads[0].entries)))


@pytest.mark.parametrize("name", HEADS)
def test_compact_multipliers_cost_nothing(name):
    graph, model, x = trained(heads=HEADS[name])
    for compact, unit in ((True, 1 << 22), (False, 1 << 16)):
        integer = quantised(graph, model, x, compact=compact)
        for op in integer.ops:
            if op.requant is not None:
                assert not (op.requant.multipliers % unit).any()
                assert (op.requant.multipliers >= 1 << 30).all()
        found = agreement(integer, model, x)
        if compact:
            kept = found
    assert kept > found - 0.01


def test_one_multiplier_where_all_agree():
    integer = quantised(*trained(steps=1, heads=HEADS["per_tensor"]))
    assert all(len(op.requant.multipliers) == len(op.requant.shifts) == 1 for op in integer.ops if op.requant)
    integer = quantised(*trained(steps=1, heads=HEADS["linear"]))
    assert {op.name: len(op.requant.multipliers) for op in integer.ops if op.requant}["fc"] == 1
    assert len(integer.ops[0].requant.multipliers) == 8


def test_recalibration_keeps_mean_and_variance():
    """Behind coarse kernels, what reaches the add has the mean and the spread that the normalisation gives it."""
    for spec in ("tiled:narrow", "stored:bits=2", "stored:bits=4"):
        graph, model, x = trained(heads={"pw": spec})
        wanted = model.activations(x)["pw3"].reshape(-1, 24)
        off = []
        for recalibrate in (True, False):
            integer = quantised(graph, model, x, recalibrate=recalibrate)
            names = [op.name for op in integer.ops]
            head = replace(integer, ops=integer.ops[: names.index("pw3") + 1])
            scale, zero_point = integer.extra["scales"]["pw3"]
            found = scale * (integer_plain.run(head, integer_plain.quantise_input(integer, x), whole=True) - zero_point)
            found = found.reshape(-1, 24)
            off.append(np.linalg.norm(found.mean(0) - wanted.mean(0)) + np.linalg.norm(found.std(0) - wanted.std(0)))
        assert off[0] < 0.7 * off[1], spec


# -- stored kernels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_stored_kernels_have_scales_that_multipliers_stand_for(bits, per_tensor):
    rng = np.random.default_rng(bits)
    kernel = rng.standard_normal((7, 5, 6)) * rng.uniform(0.1, 3, 6)
    kernel[:, :, 2] = 0
    for multiplier_bits, unit in ((COMPACT, 0.037), (HALF, 41.0)):
        q, scaling = quantise_stored(kernel, unit, bits, multiplier_bits, axis=2, per_tensor=per_tensor)
        assert q.shape == kernel.shape
        assert not (scaling.multipliers % (1 << 31 - multiplier_bits)).any()
        error = q * (scaling.real * unit) - kernel
        plain = nearest(kernel, bits, axis=2, per_tensor=per_tensor) - kernel
        assert np.linalg.norm(error) <= 1.02 * np.linalg.norm(plain)
        assert np.linalg.norm(error) <= {8: 0.03, 4: 0.25, 2: 0.9}[bits] * np.linalg.norm(kernel)
        assert (len(set(scaling.real)) == 1) == per_tensor


def test_two_bits_find_the_best_scale():
    assert nearest(np.array([[-2.0, -1.0, 0.0, 1.0]]), 2) == pytest.approx(np.array([[-2.0, -1.0, 0.0, 1.0]]), abs=0.06)
    assert nearest(np.array([[-3.0, 3.0, 0.0]]), 2) == pytest.approx(np.array([[-3.0, 3.0, 0.0]]), abs=0.06)
    rows = np.random.default_rng(1).standard_normal((4, 300))
    ternary = np.inf
    for scale in np.linspace(0.1, 2, 400):
        ternary = np.minimum(ternary, ((np.clip(np.rint(rows / scale), -1, 1) * scale - rows) ** 2).sum(1))
    assert (((nearest(rows, 2) - rows) ** 2).sum(1) <= 1.01 * ternary).all()


def test_weights_that_are_not_finite_are_named():
    graph, model, x = trained(steps=1)
    params = model.state()
    params["dw2.weight"][0, 0] = np.nan
    with pytest.raises(ConfigError, match=r"dw2\.weight.*not finite"):
        quantise(graph, params, x, classes=("a", "b"), sample_rate=1.0)
    with pytest.raises(QuantiseError, match="not finite"):
        nearest(np.array([[1.0, np.nan]]), 4)
    params = model.state()
    params["head.weight"][0, 0] = np.inf
    with pytest.raises(QuantiseError, match=r"head\.weight.*not finite"):
        quantise(graph, params, x, classes=("a", "b"), sample_rate=1.0)
    params = model.state()
    params["generator.0.weight"][...] *= 1e-9
    params["generator.0.bias"][...] = 1
    with pytest.raises(QuantiseError, match="bias of the generator"):
        quantise(graph, params, x, classes=("a", "b"), sample_rate=1.0)


def test_quantisation_repeats():
    graph, model, x = trained(steps=1)
    first, again = (with_threshold(quantised(graph, model, x), 0.35) for _ in range(2))
    windows = integer_plain.quantise_input(first, x)
    assert integer_plain.run(first, windows).tobytes() == integer_plain.run(again, windows).tobytes()
    assert (first.info.threshold, first.info.classes, first.info.name) == (np.float32(0.35), ("a", "b"), "hypertinypw")


def test_bad_models_are_named():
    graph, model, x = trained(steps=1)
    params = model.state()
    params["dw2.gamma"] = -params["dw2.gamma"]
    with pytest.raises(QuantiseError, match="node dw2: a normalisation gain"):
        quantise(graph, params, x, classes=("a", "b"), sample_rate=1.0)
    x[3, 4] = np.nan
    with pytest.raises(QuantiseError, match="calibration"):
        quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=1.0)


def around(*nodes: Node) -> Graph:
    """A network of ``nodes``, the first of which reads the input and the last of which has 4 channels."""
    ends = (Node("pool", "avgpool", (nodes[-1].name,), 4), Node("fc", "fc", ("pool",), 2))
    return Graph("around", (24, 2), 2, (*nodes, *ends))


STEM = Node("stem", "conv", ("input",), 4, 3, norm=True, relu=True)


def test_pools_of_windows_and_dropout_are_integer_operators_or_nothing():
    graph = around(
        STEM,
        Node("mean", "avgpool", ("stem",), 4, 5, 3),
        Node("drop", "dropout", ("mean",), 4, rate=0.5),
        Node("pw", "pointwise", ("drop",), 4, norm=True, relu=True),
    )
    x = np.random.default_rng(1).standard_normal((50, 24, 2)).astype(np.float32)
    model = Model(graph, seed=1)
    for _ in range(20):
        model.forward(x, training=True)
    integer = quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=1.0)
    assert [op.name for op in integer.ops] == ["stem", "mean", "pw", "pool", "fc"]
    assert agreement(integer, model, x) > 0.99
