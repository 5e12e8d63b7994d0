"""GroupNorm(1) with its statistics frozen: the line per channel that comes nearest to it on calibration windows.

GroupNorm takes mean and variance of every window, which no chain of integer operators does.  What is deployed is one gain
and one shift per channel.  Those that make the least squared error against the normalisation itself are found layer by
layer, each behind the ones frozen before it, so that a layer makes up for what freezing has done to its input.  That is
still another network, which can be several points of macro-F1 worse; some training of the frozen one wins them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pyhtpw.nets.graph import INPUT, Graph, Node
from pyhtpw.train.kernels import single_blas
from pyhtpw.train.layers import EPSILON as EPS
from pyhtpw.train.layers import Arrays, chain
from pyhtpw.train.model import Model
from pyhtpw.train.workspace import Workspace

_BATCH = 64  # windows of one forward pass: the scratch of a wide convolution is several times its output


def with_frozen_norms(graph: Graph) -> Graph:
    """The network with norm "frozen" wherever it has norm "group"."""
    nodes = (replace(node, norm="frozen") if node.norm == "group" else node for node in graph.nodes)
    return replace(graph, nodes=tuple(nodes))


def freeze(
    graph: Graph, params: Mapping[str, np.ndarray], calibration: np.ndarray
) -> tuple[Graph, dict[str, np.ndarray]]:
    """`with_frozen_norms`, and its parameters.

    Gain and shift (gamma, beta) stay as they were trained; only running statistics are added.  They are not statistics
    of anything, but what makes ``gamma * (x - mean) / sqrt(var + EPSILON) + beta`` the best line for the channel.

    Parameters
    ----------
    graph, params
        A trained float network; without a GroupNorm it comes back as it is.
    calibration : float32 (N, T, C)
        Windows of the training split.
    """
    params = dict(params)
    if not any(node.norm == "group" for node in graph.nodes):
        return graph, params
    frozen = with_frozen_norms(graph)
    values = dict(Model(graph, params).expand())  # kernels that are generated, too
    last = {source: node.name for node in graph.nodes for source in node.inputs}
    exact = {INPUT: np.ascontiguousarray(calibration, np.float32)}
    found = dict(exact)
    with single_blas():
        for node, _ in zip(graph.nodes, frozen.nodes, strict=True):
            # Behind a shared prefix without GroupNorm both are the same arrays, and are made once.
            same = all(exact[source] is found[source] for source in node.inputs)
            plain = replace(node, norm="", relu=False) if node.norm == "group" else node
            before = _forward(plain, [exact[source] for source in node.inputs], values)
            after = before if same else _forward(plain, [found[source] for source in node.inputs], values)
            if node.norm == "group":
                wanted = _group_norm(before, values[f"{node.name}.gamma"], values[f"{node.name}.beta"])
                mean, var = _line(after, wanted, values[f"{node.name}.gamma"], values[f"{node.name}.beta"])
                params[f"{node.name}.mean"], params[f"{node.name}.var"] = mean, var
                scale = values[f"{node.name}.gamma"] / np.sqrt(var + EPS)
                after = after * scale + (values[f"{node.name}.beta"] - mean * scale)
                before = wanted
                if node.relu:
                    before, after = np.maximum(before, 0), np.maximum(after, 0)
            exact[node.name], found[node.name] = before, after.astype(np.float32, copy=False)
            for source in node.inputs:
                if last[source] == node.name:  # all windows are held at once, so that nothing is held for longer
                    exact.pop(source, None), found.pop(source, None)
    return frozen, {name: np.asarray(params[name], np.float32) for name in frozen.parameter_shapes()}


def _forward(node: Node, inputs: list[np.ndarray], values: Arrays) -> np.ndarray:
    """What a node makes of whole inputs, some windows at a time; a copy."""
    layers, parts = chain(node, Workspace(np.float32)), []
    for start in range(0, len(inputs[0]), _BATCH):
        passed = [x[start : start + _BATCH] for x in inputs]
        for layer in layers:
            passed = [layer.forward(passed, values, False)]
        parts.append(passed[0].copy())
    return np.concatenate(parts)


def _group_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """GroupNorm with one group, without ReLU."""
    mean = x.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    var = x.var(axis=(1, 2), keepdims=True, dtype=np.float64)
    inverse = 1 / np.sqrt(var + EPS)
    return (x * inverse.astype(np.float32) - (mean * inverse).astype(np.float32)) * gamma + beta


def _line(x: np.ndarray, y: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Running mean and variance (channels,) for which the normalisation of x is nearest to y."""
    rows, wanted = x.reshape(-1, x.shape[2]), y.reshape(-1, y.shape[2])
    mean, target = rows.mean(0, dtype=np.float64), wanted.mean(0, dtype=np.float64)
    var = rows.var(0, dtype=np.float64)
    slope = np.mean((rows - mean) * (wanted - target), axis=0, dtype=np.float64) / np.maximum(var, 1e-30)
    # A channel that is constant on these windows, or that the layers before have turned round, has no line of its own:
    # it takes the spread of all channels, as GroupNorm does.
    usual = gamma / np.sqrt(rows.var(dtype=np.float64) + EPS)
    slope = np.where((var > 1e-12) & (slope > 0), slope, usual)
    variance = np.maximum((gamma / slope) ** 2 - EPS, 0)
    slope = gamma / np.sqrt(variance + EPS)
    return (mean - (target - beta) / slope).astype(np.float32), variance.astype(np.float32)
