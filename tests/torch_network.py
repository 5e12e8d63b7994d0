"""Any graph of `pyhtpw.nets` in PyTorch, from the trainer's own parameters: for comparison, in tests and in bench/."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from torch.nn import functional as F

from pyhtpw.nets.graph import INPUT, Graph, Node, is_running, same_padding
from pyhtpw.train.layers import EPSILON, MOMENTUM

Tensors = Mapping[str, torch.Tensor]


def tensors(params: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Copies of the parameters; what is trained asks for gradients."""
    found = {name: torch.from_numpy(np.array(value)) for name, value in params.items()}
    for name, value in found.items():
        value.requires_grad_(not is_running(name))
    return found


def logits(graph: Graph, params: Tensors, x: torch.Tensor, training: bool = True) -> torch.Tensor:
    """Logits (N,classes) of windows x (N,T,C); inside, values are (N,C,T) as PyTorch wants them."""
    made = _expanded(graph, params)
    outputs = {INPUT: x.transpose(1, 2).contiguous()}
    for node in graph.nodes:
        y = _node(node, [outputs[name] for name in node.inputs], {**params, **made}, training)
        if node.norm == "batch":
            mean, var, gamma, beta = (params[f"{node.name}.{part}"] for part in ("mean", "var", "gamma", "beta"))
            y = F.batch_norm(y, mean, var, gamma, beta, training, MOMENTUM, EPSILON)
        elif node.norm == "group":
            y = F.group_norm(y, 1, params[f"{node.name}.gamma"], params[f"{node.name}.beta"], EPSILON)
        outputs[node.name] = torch.relu(y) if node.relu else y
    return outputs[graph.nodes[-1].name][:, :, 0]


def _node(node: Node, inputs: list[torch.Tensor], params: Tensors, training: bool) -> torch.Tensor:
    x = inputs[0]
    if node.op in ("conv", "depthwise"):
        out, left = same_padding(x.shape[2], node.kernel, node.stride)
        right = max((out - 1) * node.stride + node.kernel - x.shape[2], 0) - left
        weight, groups = params[f"{node.name}.weight"], 1
        if node.op == "conv":
            weight = weight.transpose(1, 2)
        else:
            weight, groups = weight.t()[:, None], x.shape[1]
        if left == right:  # the fast way, which a network written for PyTorch would take
            return F.conv1d(x, weight, stride=node.stride, padding=left, groups=groups)
        return F.conv1d(F.pad(x, (left, right)), weight, stride=node.stride, groups=groups)
    if node.op == "pointwise":
        return F.conv1d(x, params[f"{node.name}.weight"][:, :, None])
    if node.op == "fc":
        return F.linear(x[:, :, 0], params[f"{node.name}.weight"], params[f"{node.name}.bias"])[:, :, None]
    if node.op == "add":
        return x + inputs[1]
    if node.op == "avgpool":
        return x.mean(dim=2, keepdim=True) if node.pools_all else F.avg_pool1d(x, node.kernel, node.stride)
    if node.op == "maxpool":
        return F.max_pool1d(x, node.kernel, node.stride)
    if node.op == "silu":
        return F.silu(x)
    if node.op == "squeeze_excite":
        inner = torch.relu(
            F.linear(x.mean(dim=2), params[f"{node.name}.reduce.weight"], params.get(f"{node.name}.reduce.bias"))
        )
        gate = F.linear(inner, params[f"{node.name}.expand.weight"], params.get(f"{node.name}.expand.bias"))
        return x * torch.sigmoid(gate)[:, :, None]
    if node.op == "attention":
        steps = x.transpose(1, 2)
        inner = torch.relu(F.linear(steps, params[f"{node.name}.reduce.weight"], params[f"{node.name}.reduce.bias"]))
        weight = torch.sigmoid(F.linear(inner, params[f"{node.name}.score.weight"], params[f"{node.name}.score.bias"]))
        return ((steps * weight).sum(dim=1) / weight.sum(dim=1))[:, :, None]
    assert node.op == "dropout", node.op
    return F.dropout(x, node.rate, training)


def _expanded(graph: Graph, params: Tensors) -> dict[str, torch.Tensor]:
    """Kernels of tiled heads, codes through their grid with straight-through gradients."""
    made: dict[str, torch.Tensor] = {}
    shapes = graph.kernel_shapes()
    for head in graph.plan.heads:
        assert head.spec.kind == "tiled", f"no PyTorch twin of {head.spec.kind} heads"
        plan = graph.plan.generators[head.generator]
        largest = max(float(params[source].detach().abs().max()) for source, _ in plan.sources)
        step = largest / (2 ** (plan.code_bits - 1) - 1)
        for name in head.nodes:
            codes = params[f"{name}.codes"]
            h = codes + (torch.round(codes / step) * step - codes).detach()
            for i in range(len(plan.hidden)):
                h = torch.relu(F.linear(h, params[f"{plan.name}.{i}.weight"], params[f"{plan.name}.{i}.bias"]))
            flat = F.linear(h, params[f"{head.name}.weight"]).reshape(-1)[: prod(shapes[name])]
            if graph.node(name).op == "depthwise":
                made[f"{name}.weight"] = flat.reshape(shapes[name][::-1]).t()
            else:
                made[f"{name}.weight"] = flat.reshape(shapes[name])
    return made
