"""Statistics in front of normalisations, and their correction when kernels change."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from pyhtpw.nets.graph import INPUT, Graph
from pyhtpw.train.kernels import single_blas
from pyhtpw.train.layers import EPSILON as EPS
from pyhtpw.train.layers import chain
from pyhtpw.train.workspace import Workspace

Statistics = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Mean and variance (channels,) by node."""


def statistics(
    graph: Graph,
    values: Mapping[str, np.ndarray],
    x: np.ndarray,
    before: Statistics | None,
    nodes: Collection[str],
    frozen: Collection[str] = (),
) -> tuple[Statistics, dict[str, np.ndarray]]:
    """Mean and variance of what reaches the given normalisations, in network order, each corrected before the next is
    looked at.

    Parameters
    ----------
    graph, values
        A network whose kernels are all stored, and its parameters (float32).
    x : float32 (N, T, C)
        Windows.
    before
        What the statistics were when the running ones were right. Then the running ones are corrected by what has
        changed since; None corrects nothing.
    nodes
        Names of the normalised nodes in question.
    frozen
        Those whose running statistics are none of their input (`pyhtpw.quant.freeze`).

    Returns
    -------
    The statistics, and the parameters with the corrected running ones.
    """
    values, found, outputs = dict(values), {}, {INPUT: x}
    work = Workspace(np.float32)
    with single_blas():
        for node in graph.nodes:
            passed = [outputs[source] for source in node.inputs]
            for i, layer in enumerate(chain(node, work)):
                if i == 1 and node.norm == "batch" and node.name in nodes:
                    reached = passed[0].reshape(-1, node.cout)
                    mean, var = reached.mean(0, dtype=np.float64), reached.var(0, dtype=np.float64)
                    found[node.name] = mean, var
                    if before is not None:
                        was_mean, was_var = before[node.name]
                        ratio = (var + EPS) / (was_var + EPS)
                        running = values[f"{node.name}.mean"]
                        if node.name in frozen:  # the mean of the output is not beta and must stay what it was
                            running = mean - (was_mean - running) * np.sqrt(ratio)
                        else:
                            running = running + mean - was_mean
                        values[f"{node.name}.mean"] = running.astype(np.float32)
                        corrected = (values[f"{node.name}.var"] + EPS) * ratio - EPS
                        values[f"{node.name}.var"] = np.maximum(corrected, 0).astype(np.float32)
                passed = [layer.forward(passed, values, False)]
            outputs[node.name] = passed[0]
    return found, values
