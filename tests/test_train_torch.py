"""The trainer against PyTorch: one forward and backward pass from the same weights, in float32."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="NOT RUN: torch is missing")

from test_train_model import branching, every_op  # noqa: E402
from torch_network import logits, tensors  # noqa: E402

from pyhtpw import nets  # noqa: E402
from pyhtpw.train import Model  # noqa: E402
from pyhtpw.train.kernels import single_blas  # noqa: E402
from pyhtpw.train.losses import cross_entropy  # noqa: E402

TOLERANCE = 1e-5


def without_chance(graph):
    """Dropout draws other numbers in PyTorch."""
    return replace(graph, nodes=tuple(replace(node, rate=0.0) for node in graph.nodes))


GRAPHS = [
    nets.build("separable", t=180),
    nets.build("hypertinypw", t=180),
    nets.build("hypertinypw", t=90, heads={"pw": "tiled", "depthwise": "tiled:dz=2,hidden=0", "conv": "tiled:tile=9"}),
    branching(),
    without_chance(every_op()),
]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("graph", GRAPHS, ids=["separable", "hypertinypw", "throughout", "branching", "every_op"])
def test_one_pass_agrees(graph, smoothing):
    rng = np.random.default_rng(0)
    model = Model(graph, seed=1)
    twin = tensors(model.params)
    x = rng.standard_normal((33, *graph.input_shape)).astype(np.float32)
    labels = rng.integers(0, graph.classes, 33)
    weights = rng.uniform(0.5, 2, graph.classes) if smoothing else None
    with single_blas():
        found = model.forward(x, training=True).copy()
        loss, dlogits = cross_entropy(found, labels, smoothing, weights)
        grads = {name: grad.copy() for name, grad in model.backward(dlogits).items()}
    wanted = logits(graph, twin, torch.from_numpy(x))
    theirs = torch.nn.functional.cross_entropy(
        wanted,
        torch.from_numpy(labels),
        None if weights is None else torch.from_numpy(weights.astype(np.float32)),
        label_smoothing=smoothing,
    )
    theirs.backward()
    expected = wanted.detach().numpy()
    assert np.linalg.norm(found - expected) <= TOLERANCE * np.linalg.norm(expected)
    assert loss == pytest.approx(theirs.item(), rel=TOLERANCE)
    whole = np.linalg.norm(model.gradient)
    for name, grad in grads.items():
        # Parameters that hardly count have little but rounding for a gradient: measure those against the whole.
        scale = max(np.linalg.norm(twin[name].grad), 0.01 * whole)
        assert np.linalg.norm(grad - twin[name].grad.numpy()) <= TOLERANCE * scale, name
    for name, value in model.params.items():
        if name.endswith((".mean", ".var")):
            np.testing.assert_allclose(value, twin[name].numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


def test_use_agrees():
    graph = every_op()
    model = Model(graph, seed=2)
    x = np.random.default_rng(1).standard_normal((9, *graph.input_shape)).astype(np.float32)
    with torch.no_grad():
        expected = logits(graph, tensors(model.params), torch.from_numpy(x), training=False).numpy()
    np.testing.assert_allclose(model.infer(x), expected, rtol=1e-5, atol=1e-6)
