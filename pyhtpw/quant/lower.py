"""Nodes that are more than one integer operator, as a chain of simpler nodes.

A squeeze_excite ``se`` becomes ``se.pool`` (mean over time), ``se.reduce`` and ``se.expand`` (pointwise, of the node's
own parameters), ``se.gate`` (sigmoid, a table) and ``se`` (product with the input).

An attention ``att`` begins with ``att.reduce`` and ``att.score`` (pointwise).  Over few steps ``att.log`` follows, a table of the
sigmoid's logarithm, whose softmax is just the attention's weights, and ``att`` itself, the operator "attend".  Its weights are
multiples of 1/256, too coarse where more than `ATTEND_STEPS` share the whole: there the scores are made once for every
channel (the same row again), ``att.gate`` is their sigmoid, ``att.product`` the input times it, ``att.mean`` and
``att.weight`` are the means of both over time, and ``att`` is their quotient, by ``att.inverse``, a table.

"sigmoid", "log_sigmoid", "inverse", "mul" and "attend" are operators of an image that no graph has; they exist between this
module and the quantiser.
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


ATTEND_STEPS = 32
"""Most steps of an attention that becomes an attend; each of them then weighs 8 units on average, or more."""

FUNCTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "log_sigmoid": lambda x: -np.logaddexp(0, -np.asarray(x, np.float64)),
    "inverse": lambda x: 1 / np.maximum(x, 1e-6),  # of a mean of sigmoids, which is more than 0; the rest saturates
}
"""Functions of one value that are looked up in a table."""


def table(op: str, x: Scale, y: Scale) -> np.ndarray:
    """int8 (256,): entry q + 128 is the function of q, to the nearest step of the output."""
    return y.quantise(FUNCTIONS[op](x.dequantise(np.arange(-128, 128))))


def primitives(node: Node, steps: int) -> tuple[Node, ...]:
    """The nodes that ``node`` becomes for an input of so many steps; the last has its name."""
    if node.op == "attention":
        return _attention(node, steps)
    if node.op != "squeeze_excite":
        return (node,)
    name, (source,) = node.name, node.inputs
    return (
        Node(f"{name}.pool", "avgpool", (source,), node.cout),
        Node(f"{name}.reduce", "pointwise", (f"{name}.pool",), node.hidden, relu=True, bias=node.bias),
        Node(f"{name}.expand", "pointwise", (f"{name}.reduce",), node.cout, bias=node.bias),
        Node(f"{name}.gate", "sigmoid", (f"{name}.expand",), node.cout),
        Node(name, "mul", (source, f"{name}.gate"), node.cout, relu=node.relu),
    )


def _attention(node: Node, steps: int) -> tuple[Node, ...]:
    name, (source,), few = node.name, node.inputs, steps <= ATTEND_STEPS
    score = (
        Node(f"{name}.reduce", "pointwise", (source,), node.hidden, relu=True, bias=True),
        Node(f"{name}.score", "pointwise", (f"{name}.reduce",), 1 if few else node.cout, bias=True),
    )
    if few:
        log = Node(f"{name}.log", "log_sigmoid", (f"{name}.score",), 1)
        return (*score, log, Node(name, "attend", (source, log.name), node.cout))
    return (
        *score,
        Node(f"{name}.gate", "sigmoid", (f"{name}.score",), node.cout),
        Node(f"{name}.product", "mul", (source, f"{name}.gate"), node.cout),
        Node(f"{name}.mean", "avgpool", (f"{name}.product",), node.cout),
        Node(f"{name}.weight", "avgpool", (f"{name}.gate",), node.cout),
        Node(f"{name}.inverse", "inverse", (f"{name}.weight",), node.cout),
        Node(name, "mul", (f"{name}.mean", f"{name}.inverse"), node.cout),
    )


def _layer(x: np.ndarray, values: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return x @ values[f"{name}.weight"].T + values.get(f"{name}.bias", 0)


def inner(node: Node, x: np.ndarray, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Activations (N, T or 1, C) of what `primitives` puts in between, for the node's input x (N, T, C)."""
    name = node.name
    if node.op == "squeeze_excite":
        mean = x.mean(axis=1, keepdims=True)
        reduced = np.maximum(_layer(mean, values, f"{name}.reduce"), 0)
        expanded = _layer(reduced, values, f"{name}.expand")
        return {f"{name}.pool": mean, f"{name}.reduce": reduced, f"{name}.expand": expanded, f"{name}.gate": sigmoid(expanded)}
    if node.op != "attention":
        return {}
    reduced = np.maximum(_layer(x, values, f"{name}.reduce"), 0)
    score = _layer(reduced, values, f"{name}.score")
    found = {f"{name}.reduce": reduced, f"{name}.score": score}
    if x.shape[1] <= ATTEND_STEPS:
        return {**found, f"{name}.log": FUNCTIONS["log_sigmoid"](score)}
    gate = sigmoid(score)
    weight, product = gate.mean(axis=1, keepdims=True), x * gate
    found.update({f"{name}.gate": gate, f"{name}.product": product, f"{name}.mean": product.mean(axis=1, keepdims=True)})
    return {**found, f"{name}.weight": weight, f"{name}.inverse": 1 / weight}


def spread(graph: Graph, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters, with the score of every attention over many steps repeated for all channels."""
    params, shapes = dict(params), graph.shapes()
    for node in graph.nodes:
        if node.op == "attention" and shapes[node.inputs[0]][0] > ATTEND_STEPS:
            for part in ("weight", "bias"):
                name = f"{node.name}.score.{part}"
                params[name] = np.repeat(params[name], node.cout, axis=0)
    return params


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
        parts = primitives(node, shapes[node.inputs[0]][0])
        for part in parts[:-1]:
            steps = 1 if part.op == "avgpool" else shapes[part.inputs[0]][0]
            shapes[part.name] = (steps, part.cout)
        nodes.extend(parts)
    return tuple(nodes), shapes
