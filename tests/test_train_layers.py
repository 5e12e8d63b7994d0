"""Every layer against a plain definition, and its gradients against central differences in float64."""

from itertools import pairwise

import numpy as np
import pytest

from pyhtpw.nets import Node, same_padding
from pyhtpw.train.kernels import chunk_count, merge_moments
from pyhtpw.train.layers import EPSILON, MOMENTUM, branch_mask, chain
from pyhtpw.train.workspace import Workspace

TOLERANCE = 1e-6
# (windows, steps, channels in, taps, stride): one step, more taps than steps, strides beyond the taps, uneven runs
SHAPES = [(3, 11, 3, 5, 2), (1, 1, 1, 3, 1), (9, 7, 2, 4, 3), (5, 2, 5, 7, 4), (17, 6, 1, 1, 1), (2, 9, 4, 1, 2)]
POOLS = [(2, 2), (3, 1), (2, 3), (11, 1), (4, 3)]  # kernel, stride: overlapping, gaps, all at once, a rest at the end


def central_difference(function, array, step=1e-5):
    """Gradient of the scalar ``function()`` with respect to ``array``, which it reads, entry by entry."""
    out = np.empty_like(array)
    for i in np.ndindex(array.shape):
        kept = array[i]
        array[i] = kept + step
        up = function()
        array[i] = kept - step
        down = function()
        array[i] = kept
        out[i] = (up - down) / (2 * step)
    return out


def assert_same_gradient(found, expected, what):
    scale = max(np.linalg.norm(expected), 1e-6)
    assert np.linalg.norm(found - expected) <= TOLERANCE * scale, what


def params_of(node, channels, rng):
    """Random float64 parameters, gains well away from 0."""
    params = {}
    if node.op in ("conv", "depthwise", "pointwise", "fc"):
        params[f"{node.name}.weight"] = rng.standard_normal(node.weight_shape(channels))
    if node.op == "fc" or (node.bias and node.op != "squeeze_excite"):
        params[f"{node.name}.bias"] = rng.standard_normal(node.cout)
    if node.branches:
        params[f"{node.name}.weight"] *= branch_mask(node, channels)
    if node.op in ("squeeze_excite", "attention"):
        second, rows = ("expand", channels) if node.op == "squeeze_excite" else ("score", 1)
        for part, shape in (("reduce", (node.hidden, channels)), (second, (rows, node.hidden))):
            params[f"{node.name}.{part}.weight"] = rng.standard_normal(shape)
            if node.bias or node.op == "attention":
                params[f"{node.name}.{part}.bias"] = rng.standard_normal(shape[0])
    if node.norm:
        params[f"{node.name}.gamma"] = rng.uniform(0.5, 1.5, node.cout)
        params[f"{node.name}.beta"] = rng.standard_normal(node.cout)
    if node.norm in ("batch", "frozen"):
        params[f"{node.name}.mean"] = rng.standard_normal(node.cout)
        params[f"{node.name}.var"] = rng.uniform(0.5, 1.5, node.cout)
    return params


def run(layers, inputs, params, training=True):
    values = list(inputs)
    for layer in layers:
        values = [layer.forward(values, params, training)]
    return values[0]


def check_layer(node, shapes, seed):
    """Compare all gradients of the node's layers, for inputs of the given shapes, with central differences."""
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal(shape) for shape in shapes]
    params = params_of(node, shapes[0][2], rng)
    layers = chain(node, Workspace(np.float64))
    weights = rng.standard_normal(run(layers, inputs, params).shape)
    grads = {name: np.full_like(value, np.nan) for name, value in params.items()}
    passed = (weights,)
    for layer in reversed(layers):
        passed = layer.backward(passed[0], params, grads, True)
    passed = [value.copy() for value in passed]

    def loss():
        return float(np.sum(run(layers, inputs, params) * weights))

    for i, (x, found) in enumerate(zip(inputs, passed, strict=True)):
        assert_same_gradient(found, central_difference(loss, x), f"input {i}")
    for name, value in params.items():
        if name.rpartition(".")[2] not in ("mean", "var"):
            expected = central_difference(loss, value)
            if node.branches and name.endswith(".weight"):
                expected *= branch_mask(node, shapes[0][2])
            assert_same_gradient(grads[name], expected, name)


# One value has no variance: its normalised value is constant and its gradient noise, so such a shape goes without.
@pytest.mark.parametrize(
    ("norm", "shape"),
    [(norm, s) for norm in (False, True) for s in SHAPES if not norm or s[0] * s[1] > 1]
    + [("group", s) for s in SHAPES if s[1] * s[2] > 1]
    + [("frozen", s) for s in SHAPES],
)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("op", ["conv", "depthwise"])
def test_convolution_gradients(op, relu, norm, shape):
    windows, steps, channels, taps, stride = shape
    cout = channels if op == "depthwise" else 3
    check_layer(Node("n", op, ("input",), cout, taps, stride, norm, relu), [(windows, steps, channels)], 1)


@pytest.mark.parametrize(
    ("node", "shapes"),
    [
        (Node("n", "pointwise", ("a",), 5, norm=True, relu=True), [(9, 7, 3)]),
        (Node("n", "pointwise", ("a",), 1), [(2, 1, 4)]),
        (Node("n", "pointwise", ("a",), 5, norm="group", relu=True), [(9, 7, 3)]),
        (Node("n", "pointwise", ("a",), 3, norm="group"), [(17, 1, 4)]),
        (Node("n", "pointwise", ("a",), 5, bias=True, relu=True), [(9, 7, 3)]),
        (Node("n", "conv", ("a",), 5, 3, 2, bias=True), [(9, 7, 3)]),
        (Node("n", "conv", ("a",), 5, 3, bias=True, norm="group", relu=True), [(9, 7, 3)]),
        (Node("n", "depthwise", ("a",), 3, 5, bias=True), [(9, 7, 3)]),
        (Node("n", "add", ("a", "b"), 3), [(4, 5, 3), (4, 5, 3)]),
        (Node("n", "add", ("a", "b"), 3, relu=True), [(4, 5, 3), (4, 5, 3)]),
        (Node("n", "avgpool", ("a",), 3), [(4, 7, 3)]),
        (Node("n", "fc", ("a",), 4), [(5, 1, 3)]),
        *[(Node("n", op, ("a",), 3, k, s), [(9, 11, 3)]) for op in ("avgpool", "maxpool") for k, s in POOLS],
        (Node("n", "silu", ("a",), 3), [(9, 7, 3)]),
        (Node("n", "silu", ("a",), 1), [(1, 1, 1)]),
        (Node("n", "conv", ("a",), 7, 5, branches=(1, 3, 5)), [(9, 7, 3)]),
        (Node("n", "conv", ("a",), 5, 7, branches=(3, 7), norm="group", relu=True, bias=True), [(3, 2, 1)]),
        (Node("n", "squeeze_excite", ("a",), 5, hidden=3, bias=True), [(9, 7, 5)]),
        (Node("n", "squeeze_excite", ("a",), 5, hidden=3, relu=True), [(9, 7, 5)]),
        (Node("n", "squeeze_excite", ("a",), 1, hidden=1, bias=True), [(2, 1, 1)]),
        (Node("n", "attention", ("a",), 5, hidden=3), [(9, 7, 5)]),
        (Node("n", "attention", ("a",), 4, hidden=2), [(17, 3, 4)]),
        (Node("n", "attention", ("a",), 2, hidden=1), [(3, 1, 2)]),
        (Node("n", "dropout", ("a",), 3, rate=0.3), [(5, 7, 3)]),
        (Node("n", "dropout", ("a",), 3), [(5, 7, 3)]),
    ],
)
def test_other_gradients(node, shapes):
    check_layer(node, shapes, 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", ["conv", "depthwise"])
def test_convolution_matches_its_definition(op, shape):
    windows, steps, channels, taps, stride = shape
    rng = np.random.default_rng(3)
    x = rng.standard_normal((windows, steps, channels))
    node = Node("n", op, ("input",), channels if op == "depthwise" else 3, taps, stride)
    params = params_of(node, channels, rng)
    out, left = same_padding(steps, taps, stride)
    expected = np.zeros((windows, out, node.cout))
    for o in range(out):
        for k in range(taps):
            t = o * stride + k - left
            if 0 <= t < steps:
                weight = params["n.weight"]
                expected[:, o] += x[:, t] * weight[k] if op == "depthwise" else x[:, t] @ weight[:, k].T
    found = run(chain(node, Workspace(np.float64)), [x], params)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_normalisation_matches_its_definition():
    rng = np.random.default_rng(4)
    node = Node("n", "pointwise", ("input",), 3, norm=True)
    params = params_of(node, 3, rng)
    params["n.weight"] = np.eye(3)
    before = {name: value.copy() for name, value in params.items()}
    x = rng.standard_normal((11, 5, 3)) * 2 + 40  # a large mean: the variance must not cancel
    layers = chain(node, Workspace(np.float64))
    found = run(layers, [x], params)
    mean, variance = x.mean(axis=(0, 1)), x.var(axis=(0, 1))
    expected = (x - mean) / np.sqrt(variance + EPSILON) * params["n.gamma"] + params["n.beta"]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    rows = 55
    np.testing.assert_allclose(params["n.mean"], before["n.mean"] * (1 - MOMENTUM) + MOMENTUM * mean)
    np.testing.assert_allclose(params["n.var"], before["n.var"] * (1 - MOMENTUM) + MOMENTUM * variance * rows / 54)
    again = run(layers, [x], params, training=False)
    expected = (x - params["n.mean"]) / np.sqrt(params["n.var"] + EPSILON) * params["n.gamma"] + params["n.beta"]
    np.testing.assert_allclose(again, expected, atol=1e-9)


@pytest.mark.parametrize(("taps", "stride"), POOLS)
def test_pools_match_their_definition(taps, stride):
    x = np.random.default_rng(5).standard_normal((9, 11, 3))
    starts = range(0, 11 - taps + 1, stride)
    for op, reduce in (("avgpool", np.mean), ("maxpool", np.max)):
        found = run(chain(Node("n", op, ("a",), 3, taps, stride), Workspace(np.float64)), [x], {})
        expected = np.stack([reduce(x[:, t : t + taps], axis=1) for t in starts], axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_first_of_equal_values_has_the_gradient():
    (layer,) = chain(Node("n", "maxpool", ("a",), 1, 3, 2), Workspace(np.float64))
    layer.forward([np.array([[[2.0], [2.0], [1.0], [1.0], [1.0]]])], {}, True)
    (found,) = layer.backward(np.array([[[1.0], [10.0]]]), {}, {}, True)
    np.testing.assert_array_equal(found[0, :, 0], [1, 0, 10, 0, 0])


def test_group_normalisation_matches_its_definition():
    rng = np.random.default_rng(4)
    node = Node("n", "pointwise", ("input",), 3, norm="group")
    params = {**params_of(node, 3, rng), "n.weight": np.eye(3)}
    x = rng.standard_normal((11, 5, 3)) * 2 + 1e4  # a large mean: the variance must not cancel
    for training in (True, False):
        found = run(chain(node, Workspace(np.float64)), [x], params, training)
        mean, variance = x.mean(axis=(1, 2), keepdims=True), x.var(axis=(1, 2), keepdims=True)
        expected = (x - mean) / np.sqrt(variance + EPSILON) * params["n.gamma"] + params["n.beta"]
        np.testing.assert_allclose(found, expected, atol=1e-7)


def test_silu_and_squeeze_excite_match_their_definitions():
    rng = np.random.default_rng(6)
    x = rng.standard_normal((3, 4, 5)) * 3
    silu = Node("n", "silu", ("a",), 5)
    np.testing.assert_allclose(run(chain(silu, Workspace(np.float64)), [x], {}), x / (1 + np.exp(-x)), rtol=1e-12)
    node = Node("n", "squeeze_excite", ("a",), 5, hidden=2, bias=True)
    p = params_of(node, 5, rng)
    inner = np.maximum(x.mean(1) @ p["n.reduce.weight"].T + p["n.reduce.bias"], 0)
    gate = 1 / (1 + np.exp(-(inner @ p["n.expand.weight"].T + p["n.expand.bias"])))
    np.testing.assert_allclose(run(chain(node, Workspace(np.float64)), [x], p), x * gate[:, None], rtol=1e-12)
    big = np.array([-1e4, -90, 0, 90, 1e4], np.float32).reshape(1, 1, 5)
    found = run(chain(silu, Workspace(np.float32)), [big], {})
    np.testing.assert_allclose(found[0, 0], [0, 0, 0, 90, 1e4], atol=1e-30)


def test_dropout_depends_on_its_key_and_name_and_is_off_in_use():
    x = np.ones((40, 30, 3), np.float32)

    def out(key, name="n", training=True):
        (layer,) = chain(Node(name, "dropout", ("a",), 3, rate=0.25), Workspace(np.float32))
        layer.key = key
        return layer.forward([x], {}, training)

    found = out((7, 3))
    assert set(np.unique(found)) == {0, np.float32(1 / 0.75)}
    assert np.mean(found == 0) == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(found, out((7, 3)))
    assert not np.array_equal(found, out((7, 4)))
    assert not np.array_equal(found, out((7, 3), "m"))
    np.testing.assert_array_equal(out((7, 3), training=False), x)


@pytest.mark.parametrize("windows", [1, 2, 7, 8, 9, 64, 65])
def test_runs_cover_the_batch_and_their_moments_merge(windows):
    runs = chunk_count(windows)
    cuts = np.arange(runs + 1) * windows // runs
    assert cuts[0] == 0
    assert cuts[-1] == windows
    assert np.all(np.diff(cuts) > 0)
    values = np.random.default_rng(windows).standard_normal((windows, 2)) + 3
    parts = [values[a:b] for a, b in pairwise(cuts)]
    moments = np.array([(p.mean(axis=0), ((p - p.mean(axis=0)) ** 2).sum(axis=0)) for p in parts])
    mean, variance = merge_moments(moments, np.diff(cuts))
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose(variance, values.var(axis=0), atol=1e-12)
