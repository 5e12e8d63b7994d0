"""LayerNorm and tanh of a published generator, folded into matrices that an image can hold.

With one code everything that a generator makes is a constant.  So are mean and variance in its LayerNorms, which leaves an
affine map of what their layer makes; and so is the ratio of tanh(w) to w for every weight of the kernel, which is a factor of
one row of the head's matrix.  Both are exact: the folded generator makes the same kernel, from matrices of the same size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pyhtpw.errors import QuantiseError
from pyhtpw.nets.graph import Graph
from pyhtpw.nets.heads import BOUND, GeneratorPlan
from pyhtpw.train.heads import LAYER_EPSILON, code_scale


def fold(graph: Graph, params: Mapping[str, np.ndarray]) -> tuple[Graph, dict[str, np.ndarray]]:
    """The graph with a plain dense head for every published one, and its parameters (float64 where they are new).

    A graph without such a head comes back as it is.  Raises QuantiseError naming the nodes if a published generator has
    several codes: then its LayerNorm is no constant, and has no integer form.
    """
    params = dict(params)
    published = {at: plan for at, plan in enumerate(graph.plan.generators) if plan.published}
    if not published:
        return graph, params
    groups: dict[str, str] = {}
    for at, plan in published.items():
        nodes = [source.rpartition(".")[0] for source, _ in plan.sources]
        if len(nodes) > 1:
            raise QuantiseError(
                f"nodes {', '.join(nodes)}: the LayerNorm of a generator of several codes has no integer form; give each kernel "
                "a group of its own"
            )
        h = _fold_generator(plan, params)
        head = graph.plan.heads[graph.plan.head_of[nodes[0]]]
        matrix = np.asarray(params[f"{head.name}.weight"], np.float64)
        made = matrix @ h
        # tanh(w) / w is 1 at 0
        ratio = np.divide(np.tanh(made), made, out=np.ones_like(made), where=np.abs(made) > 1e-9)
        params[f"{head.name}.weight"] = matrix * (BOUND * ratio)[:, None]
        groups[nodes[0]] = f"folded-{at}"
    nodes = (
        replace(node, head=replace(node.head, published=False, group=groups[node.name])) if node.name in groups else node
        for node in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes)), params


def _fold_generator(plan: GeneratorPlan, params: dict[str, np.ndarray]) -> np.ndarray:
    """Puts the folded layers of a generator of one code into ``params``; what it makes, (d,)."""
    code = np.asarray(params[plan.sources[0][0]], np.float64)[0]
    step = code_scale([code], plan.code_bits)
    h = np.rint(code / step) * step
    for i in range(len(plan.hidden)):
        name = f"{plan.name}.{i}"
        weight = np.asarray(params[f"{name}.weight"], np.float64)
        if plan.is_plain(i):
            bias = np.zeros(len(weight))
        else:
            gamma, beta, bias = (np.asarray(params.pop(f"{name}.{part}"), np.float64) for part in ("gamma", "beta", "bias"))
            made = weight @ h + bias
            gain = gamma / np.sqrt(made.var() + LAYER_EPSILON)
            weight, bias = weight * gain[:, None], (bias - made.mean()) * gain + beta
        params[f"{name}.weight"], params[f"{name}.bias"] = weight, bias
        h = np.maximum(weight @ h + bias, 0)
    return h
