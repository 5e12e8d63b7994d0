"""Nodes that are more than one integer operator, as a chain of simpler nodes.

A squeeze_excite ``se`` becomes ``se.pool`` (mean over time), ``se.reduce`` and ``se.expand`` (pointwise, of the node's
own parameters), ``se.gate`` (sigmoid, a table) and ``se`` (product with the input).  "sigmoid" and "mul" are operators of
an image that no graph has; they exist between this module and the quantiser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from pyhtpw.nets.graph import Graph, Node
from pyhtpw.quant.scales import Scale


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without an exponential that could overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64)))


FUNCTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"sigmoid": sigmoid, "silu": lambda x: x * sigmoid(x)}
"""Functions of one value that are looked up in a table."""


def table(op: str, x: Scale, y: Scale) -> np.ndarray:
    """int8 (256,): entry q + 128 is the function of q, to the nearest step of the output."""
    return y.quantise(FUNCTIONS[op](x.dequantise(np.arange(-128, 128))))


def primitives(node: Node) -> tuple[Node, ...]:
    """The nodes that ``node`` becomes; the last has its name."""
    if node.op != "squeeze_excite":
        return (node,)
    name, (source,) = node.name, node.inputs
    return (
        Node(f"{name}.pool", "avgpool", (source,), node.cout),
        Node(f"{name}.reduce", "pointwise", (f"{name}.pool",), node.hidden, relu=True, bias=True),
        Node(f"{name}.expand", "pointwise", (f"{name}.reduce",), node.cout, bias=True),
        Node(f"{name}.gate", "sigmoid", (f"{name}.expand",), node.cout),
        Node(name, "mul", (source, f"{name}.gate"), node.cout),
    )


def inner(node: Node, x: np.ndarray, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Activations (N, 1, C) of what `primitives` puts in between, for the node's input x (N, T, C)."""
    if node.op != "squeeze_excite":
        return {}
    name = node.name
    mean = x.mean(axis=1, keepdims=True)
    reduced = np.maximum(mean @ values[f"{name}.reduce.weight"].T + values[f"{name}.reduce.bias"], 0)
    expanded = reduced @ values[f"{name}.expand.weight"].T + values[f"{name}.expand.bias"]
    return {f"{name}.pool": mean, f"{name}.reduce": reduced, f"{name}.expand": expanded, f"{name}.gate": sigmoid(expanded)}


def lowered(graph: Graph) -> tuple[tuple[Node, ...], dict[str, tuple[int, int]]]:
    """All nodes that integer operators stand for, in running order, and the shapes (T, C) of what they make.

    A dropout is nothing in use: who reads it reads its input.
    """
    shapes, instead, nodes = graph.shapes(), {}, []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(instead.get(source, source) for source in node.inputs))
        if node.op == "dropout":
            instead[node.name] = node.inputs[0]
            continue
        parts = primitives(node)
        shapes.update({part.name: (1, part.cout) for part in parts[:-1]})
        nodes.extend(parts)
    return tuple(nodes), shapes
