"""Every layer against a plain definition, and its gradients against central differences in float64."""

from itertools import pairwise

import numpy as np
import pytest

from pyhtpw.nets import Node, same_padding
from pyhtpw.train.kernels import chunk_count, merge_moments
from pyhtpw.train.layers import EPSILON, MOMENTUM, chain
from pyhtpw.train.workspace import Workspace

TOLERANCE = 1e-6
# (windows, steps, channels in, taps, stride): one step, more taps than steps, strides beyond the taps, uneven runs
SHAPES = [(3, 11, 3, 5, 2), (1, 1, 1, 3, 1), (9, 7, 2, 4, 3), (5, 2, 5, 7, 4), (17, 6, 1, 1, 1), (2, 9, 4, 1, 2)]


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
    if node.op == "fc":
        params[f"{node.name}.bias"] = rng.standard_normal(node.cout)
    if node.norm:
        params[f"{node.name}.gamma"] = rng.uniform(0.5, 1.5, node.cout)
        params[f"{node.name}.beta"] = rng.standard_normal(node.cout)
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
            assert_same_gradient(grads[name], central_difference(loss, value), name)


# One value has no variance: its normalised value is constant and its gradient noise, so such a shape goes without.
@pytest.mark.parametrize(
    ("norm", "shape"), [(norm, s) for norm in (False, True) for s in SHAPES if not norm or s[0] * s[1] > 1]
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
        (Node("n", "add", ("a", "b"), 3), [(4, 5, 3), (4, 5, 3)]),
        (Node("n", "add", ("a", "b"), 3, relu=True), [(4, 5, 3), (4, 5, 3)]),
        (Node("n", "avgpool", ("a",), 3), [(4, 7, 3)]),
        (Node("n", "fc", ("a",), 4), [(5, 1, 3)]),
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
