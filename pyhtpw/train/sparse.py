"""Pruned kernels: by magnitude, and training that keeps them so.

The image format stores kernels densely, so pruning saves nothing of an image as it lies in flash; results say beside it what
DEFLATE makes of the zeros. It is a control, not a way to deploy.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from pyhtpw.errors import ConfigError
from pyhtpw.nets.graph import Graph
from pyhtpw.train.model import Model


def prunable(graph: Graph) -> list[str]:
    """Parameters that `prune` looks at: stored kernels other than depthwise ones, which are too small to spare any."""
    shapes = graph.kernel_shapes()
    return [f"{n.name}.weight" for n in graph.nodes if n.name in shapes and n.op != "depthwise" and not n.head.generated]


def prune(graph: Graph, params: Mapping[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
    """The parameters with the smallest weights of every prunable kernel set to 0.

    Parameters
    ----------
    graph, params
        A trained network.
    share : float
        Of each kernel's weights, 0 < share < 1; of equal magnitudes the first go.

    Returns
    -------
    dict
        Copies; what is not pruned is as it was.

    Raises
    ------
    ConfigError
        A share out of range, or a network without such a kernel.
    """
    if not 0 < share < 1:
        raise ConfigError(f"prune is {share!r}; give the share of weights that become 0, between 0 and 1")
    found = prunable(graph)
    if not found:
        raise ConfigError(f"{graph.name!r} has no stored kernel to prune")
    out = dict(params)
    for name in found:
        kernel = np.array(params[name])
        flat = kernel.reshape(-1)
        flat[np.argsort(np.abs(flat), kind="stable")[: round(share * flat.size)]] = 0
        out[name] = kernel
    return out


@functools.cache
def sparse(kind: type[Model]) -> type[Model]:
    """The class of model ``kind`` whose prunable weights stay 0 where they are 0 when it is made: their gradient is 0, so that Adam's
    moments, weight decay and moving averages leave them."""

    class SparseModel(kind):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            self._kept = {name: self.params[name] != 0 for name in prunable(self.graph)}

        def backward(self, dlogits: np.ndarray, dfeatures: np.ndarray | None = None) -> dict[str, np.ndarray]:
            grads = super().backward(dlogits, dfeatures)
            for name, kept in self._kept.items():
                grads[name] *= kept
            return grads

    return SparseModel
