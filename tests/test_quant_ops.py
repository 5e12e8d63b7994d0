"""Nodes that are not convolutions, in integers: beside their float networks, and numpy beside C to the byte."""

from dataclasses import replace
from importlib import import_module

import integer_plain
import numpy as np
import pytest

from pyhtpw.errors import QuantiseError
from pyhtpw.image import write
from pyhtpw.model import Image
from pyhtpw.nets import Graph, Node
from pyhtpw.quant import quantise
from pyhtpw.quant.freeze import freeze
from pyhtpw.quant.lower import table
from pyhtpw.quant.scales import affine
from pyhtpw.quant.store import load_model, save_model
from pyhtpw.train import Model
from pyhtpw.verify import Native, Numpy, compare, sample_windows

T = 64
STEM = Node("stem", "conv", ("input",), 8, 5, 2, norm=True, relu=True)
PLAIN = replace(STEM, relu=False)
GROUP = replace(STEM, norm="group")
NODES = {
    "maxpool": (STEM, Node("n", "maxpool", ("stem",), 8, 3, 2)),
    "avgpool": (STEM, Node("n", "avgpool", ("stem",), 8, 4, 3)),
    "silu": (PLAIN, Node("n", "silu", ("stem",), 8)),
    "squeeze_excite": (STEM, Node("n", "squeeze_excite", ("stem",), 8, hidden=4, bias=True)),
    "squeeze_excite of signed": (PLAIN, Node("n", "squeeze_excite", ("stem",), 8, hidden=4, bias=True)),
    "squeeze_excite without bias": (PLAIN, Node("n", "squeeze_excite", ("stem",), 8, hidden=4, relu=True)),
    "branches": (Node("n", "conv", ("input",), 8, 7, norm=True, relu=True, branches=(3, 5, 7)),),
    "attention over few": (STEM, Node("n", "attention", ("stem",), 8, hidden=4)),
    "attention over many": (Node("stem", "conv", ("input",), 8, 5, norm=True, relu=True), Node("n", "attention", ("stem",), 8, hidden=4)),
    "attention of signed": (PLAIN, Node("n", "attention", ("stem",), 8, hidden=4)),
    "dropout": (STEM, Node("a", "maxpool", ("stem",), 8, 2, 2), Node("n", "dropout", ("a",), 8, rate=0.5)),
    "group": (GROUP, Node("n", "pointwise", ("stem",), 8, norm="group", relu=True)),
    "group and silu": (
        replace(GROUP, relu=False),
        Node("a", "silu", ("stem",), 8),
        Node("b", "conv", ("a",), 8, 3, norm="group"),
        Node("n", "add", ("a", "b"), 8),
    ),
    "bias": (Node("stem", "conv", ("input",), 8, 5, bias=True, relu=True), Node("n", "depthwise", ("stem",), 8, 3, bias=True)),
    "bias and norm": (replace(STEM, bias=True), Node("n", "pointwise", ("stem",), 8, bias=True, norm="group")),
    "everything": (
        GROUP,
        Node("top", "maxpool", ("stem",), 8, 2, 2),
        Node("se", "squeeze_excite", ("top",), 8, hidden=3, bias=True),
        Node("drop", "dropout", ("se",), 8, rate=0.1),
        Node("pw", "pointwise", ("drop",), 8, norm="group", bias=True),
        Node("act", "silu", ("pw",), 8),
        Node("n", "add", ("drop", "act"), 8),
    ),
}


def network(nodes) -> Graph:
    ends = (Node("pool", "avgpool", ("n",), 8), Node("fc", "fc", ("pool",), 2))
    return Graph("ops", (T, 2), 2, (*nodes, *ends))


def settled(graph: Graph) -> tuple[Model, np.ndarray]:
    """A network whose statistics have settled, and windows that differ in level, pace and noise: what means over time see.

    (An integer mean over time has the step of its input, so that among windows that are all alike it says nothing.)
    """
    rng = np.random.default_rng(11)
    level, pace, phase = (rng.uniform(low, high, (96, 1, 2)) for low, high in ((-1.5, 1.5), (1, 9), (0, 7)))
    x = level + np.sin(phase + pace * np.linspace(0, 2 * np.pi, T)[None, :, None]) + 0.3 * rng.standard_normal((96, T, 2))
    x = x.astype(np.float32)
    model = Model(graph, seed=4)
    for name, value in model.params.items():
        if name.endswith((".bias", ".beta")):
            value[...] = 0.3 * rng.standard_normal(value.shape)
        elif name.endswith(".gamma"):
            value[...] = rng.uniform(0.6, 1.4, value.shape)
    for _ in range(30):
        model.forward(x, training=True)
    return model, x


def integers(graph, model, x):
    return quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=100.0)


def agreement(integer, model, x) -> float:
    """Correlation of integer with float logits, the least over classes.

    A GroupNorm's float network is the one with frozen statistics: what freezing changes no rounding has to answer for.
    """
    model = Model(*freeze(model.graph, model.state(), x))
    real = integer_plain.run(integer, integer_plain.quantise_input(integer, x)).astype(float)
    wanted = model.infer(x)
    return min(np.corrcoef(real[:, c], wanted[:, c])[0, 1] for c in range(2))


def assert_c_is_numpy(integer, x=None) -> Image:
    """The image opens in C, and C and the reference agree on windows of the data and on ones that saturate."""
    image = Image(write(integer))
    windows = [sample_windows(image, 8)]
    if x is not None:
        windows.append(image.quantise(x[:8]))
    for rows in windows:
        pairs = compare(image, rows, [Numpy(image), Native(image), Native(image, backend="portable")])
        assert all(pair.differ == 0 and pair.logit_bytes > 0 for pair in pairs), [pair.first for pair in pairs]
    return image


@pytest.mark.parametrize("name", NODES)
def test_integer_logits_follow_float_logits(name):
    graph = network(NODES[name])
    model, x = settled(graph)
    integer = integers(graph, model, x)
    assert agreement(integer, model, x) > 0.99
    image = assert_c_is_numpy(integer, x)
    np.testing.assert_array_equal(
        image.run_batch(image.quantise(x)).reshape(len(x), -1), integer_plain.run(integer, integer_plain.quantise_input(integer, x))
    )


def test_operators_are_called_after_their_nodes(tmp_path):
    model, x = settled(network(NODES["everything"]))
    integer = integers(model.graph, model, x)
    assert [(op.name, op.kind) for op in integer.ops] == [
        ("stem", "conv"), ("top", "maxpool"), ("se.pool", "avgpool"), ("se.reduce", "conv1x1"), ("se.expand", "conv1x1"),
        ("se.gate", "table"), ("se", "mul"), ("pw", "conv1x1"), ("act", "table"), ("n", "add"), ("pool", "avgpool"), ("fc", "fc"),
    ]  # fmt: skip
    assert integer.ops[6].inputs == (2, 6), "the product reads what the pool read, and the gate"
    assert integer.ops[9].inputs == (7, 9), "behind a dropout its input is read"
    assert integer.ops[3].act_min == integer.ops[3].out.zero_point
    assert set(integer.extra["scales"]) == {"input", *(op.name for op in integer.ops)}
    save_model(integer, tmp_path / "m.npz")
    assert write(load_model(tmp_path / "m.npz")) == write(integer)


@pytest.mark.parametrize(("op", "function"), [("sigmoid", lambda v: 1 / (1 + np.exp(-v))), ("silu", lambda v: v / (1 + np.exp(-v)))])
def test_tables_are_the_functions_to_half_a_step(op, function):
    x, y = affine(-7, 9), affine(-0.3, 9) if op == "silu" else affine(0, 1)
    found, steps = table(op, x, y), np.arange(-128, 128)
    assert found.dtype == np.int8
    assert np.abs(y.dequantise(found) - function(x.dequantise(steps))).max() <= 0.51 * y.scale


def test_frozen_statistics_are_the_best_line():
    graph = network((replace(GROUP, relu=False), Node("n", "silu", ("stem",), 8)))
    model, x = settled(graph)
    x *= np.random.default_rng(0).uniform(0.5, 2, (len(x), 1, 1)).astype(np.float32)
    frozen, params = freeze(graph, model.state(), x)
    assert [node.norm for node in frozen.nodes] == ["frozen", "", "", ""]
    for part in ("weight", "gamma", "beta"):
        np.testing.assert_array_equal(params[f"stem.{part}"], model.params[f"stem.{part}"])
    wanted = model.activations(x)["stem"].reshape(-1, 8).astype(float)
    found = Model(frozen, params).activations(x)["stem"].reshape(-1, 8).astype(float)
    for channel in range(8):  # a residual of least squares has mean 0 and no part of what it was made from
        rest = wanted[:, channel] - found[:, channel]
        assert abs(rest.mean()) < 1e-4
        assert abs(np.corrcoef(rest, found[:, channel])[0, 1]) < 1e-3
        assert rest.std() < wanted[:, channel].std()
    same, kept = freeze(frozen, params, x)
    assert same == frozen
    assert set(kept) == set(params)


def test_a_channel_without_a_line_takes_the_spread_of_all():
    graph = network((GROUP, Node("n", "silu", ("stem",), 8)))
    model, x = settled(graph)
    model.params["stem.weight"][2] = 0  # constant whatever the window
    _, params = freeze(graph, model.state(), x)
    assert all(np.isfinite(value).all() for value in params.values())
    assert_c_is_numpy(integers(graph, model, x), x)


@pytest.mark.parametrize("head", ["tiled:hidden=0,dz=6,code_bits=8", "stored:bits=4"])
def test_recalibration_behind_frozen_statistics(head):
    """Rounding of a kernel moves no mean behind a normalisation that was GroupNorm."""
    graph = network(NODES["group"]).with_heads({"n": head})
    model, x = settled(graph)
    integer = integers(graph, model, x)
    assert agreement(integer, model, x) > 0.95
    assert_c_is_numpy(integer, x)


def test_ops_without_an_integer_form_are_named(monkeypatch):
    module = import_module("pyhtpw.quant.quantise")  # the package's attribute of this name is the function
    monkeypatch.setattr(module, "INTEGER_OPS", tuple(op for op in module.INTEGER_OPS if op != "silu"))
    model, x = settled(network(NODES["silu"]))
    with pytest.raises(QuantiseError, match="node n: silu has no integer form") as caught:
        integers(model.graph, model, x)
    assert "\n" not in str(caught.value)
