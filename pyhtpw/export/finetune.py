"""A compressed image trained on: its float network is rebuilt from the integers, and distilled from what the original image says.

`float_network` turns 1-D images (height 1) of conv, depthwise, conv1x1, add, pools and a classifier into a graph of the trainer: reals are
the integers times multipliers, so that its logits are the image's but for rounding and for limits at the upper end. `finetune` fits heads
to it, trains on the kernels that the image will hold (`pyhtpw.quant.aware`), with the original's integer logits as the teacher's, and
quantises.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import numpy as np

from pyhtpw.errors import ConfigError
from pyhtpw.export.scales import real
from pyhtpw.image.integer import POOLS, IntegerModel, Op, Stored, Tensor
from pyhtpw.nets.graph import Graph, Node, pool_windows, same_padding
from pyhtpw.quant import quantise
from pyhtpw.quant.aware import AwareModel
from pyhtpw.quant.fit import fit_network
from pyhtpw.quant.quantise import recalibrated
from pyhtpw.quant.scales import HALF, Factors, factors, requant
from pyhtpw.quant.statistics import EPS
from pyhtpw.train.kernels import single_blas
from pyhtpw.train.losses import distillation
from pyhtpw.train.optim import AdamW, clip_gradient, learning_rate

BATCH, RATE, WARMUP, TEMPERATURE = 32, 1e-3, 20, 2.0
_USUAL = 1 / 32  # scale of activations that nothing fixes: they are numbers of about 1 then


def float_network(model: IntegerModel) -> tuple[Graph, dict[str, np.ndarray]]:
    """Graph and parameters of an integer model with stored kernels.

    Raises ConfigError naming the operator that the trainer has no counterpart for.
    """
    return _Rebuild(model).made()


class _Rebuild:
    def __init__(self, model: IntegerModel) -> None:
        self.model = model
        self.shapes = (model.input, *(op.out for op in model.ops))
        if model.input.h != 1:
            raise ConfigError(f"the input has {model.input.h} rows: the trainer knows networks over time alone (height 1)")
        self.params: dict[str, np.ndarray] = {}
        self.scales = self._scales()

    def _scales(self) -> list[float]:
        """Real value of one step of each tensor: pools keep it, an addition ties three together, all else is free."""
        parent = list(range(len(self.shapes)))
        ratio = [1.0] * len(parent)  # scale of a tensor over that of its root

        def root(t: int) -> tuple[int, float]:
            found = 1.0
            while parent[t] != t:
                found, t = found * ratio[t], parent[t]
            return t, found

        for i, op in enumerate(self.model.ops):
            ties = [(op.inputs[0], 1.0)] if op.kind in POOLS else []
            if op.kind == "add":
                s = op.add
                out = real(s.multipliers[2], s.shifts[2]) * (1 << s.left_shift)
                ties = [(t, real(s.multipliers[k], s.shifts[k]) * out) for k, t in enumerate(op.inputs)]
            for t, factor in ties:  # scale[t] = factor * scale[i + 1]
                (a, of_a), (b, of_b) = root(t), root(i + 1)
                wanted = factor * of_b / of_a if factor > 0 else 0.0
                if wanted <= 0 or (a == b and abs(wanted - 1) > 1e-3):
                    raise ConfigError(f"{op.name}: its inputs are in units that no one scale explains")
                if a != b:
                    parent[a], ratio[a] = b, wanted
        info, fixed = self.model.info, {}
        if info is not None:
            ends = ((len(parent) - 1, info.logit_scale), (0, info.input_scale))
            fixed = {root(t)[0]: scale / root(t)[1] for t, scale in ends if scale > 0}
        return [fixed.get(root(t)[0], _USUAL) * root(t)[1] for t in range(len(parent))]

    def made(self) -> tuple[Graph, dict[str, np.ndarray]]:
        names, nodes = ["input"], []
        last = len(self.model.ops) - 1
        for i, op in enumerate(self.model.ops):
            node = self._node(i, op, tuple(names[t] for t in op.inputs), i == last)
            nodes.append(node)
            names.append(node.name)
        t = self.model.input
        return Graph("rebuilt", (t.w, t.c), self.model.ops[-1].out.c, tuple(nodes)), self.params

    def _node(self, i: int, op: Op, inputs: tuple[str, ...], last: bool) -> Node:
        x, y = self.shapes[op.inputs[0]], op.out
        relu = op.act_min == y.zero_point or y.zero_point == -128 == op.act_min
        if op.act_min not in (-128, y.zero_point):
            raise ConfigError(f"{op.name}: results from {op.act_min} up are no ReLU")
        if op.kind in POOLS:
            w = op.window
            everything = op.kind == "avgpool" and w.kernel[1] == x.w and y.w == 1
            if not everything and (w.padding[1] or y.w != pool_windows(x.w, w.kernel[1], w.stride[1])):
                raise ConfigError(f"{op.name}: pads, which the trainer's pools do not")
            kernel, stride = (1, 1) if everything else (w.kernel[1], w.stride[1])
            return Node(op.name, op.kind, inputs, y.c, kernel, stride)
        if op.kind == "add":
            return Node(op.name, "add", inputs, y.c, relu=relu)
        if last and op.kind in ("fc", "conv1x1") and (x.h, x.w) == (1, 1):
            weight, bias = self._reals(i, op)
            self.params |= {"fc.weight": weight, "fc.bias": bias}
            return Node("fc", "fc", inputs, y.c, head=_stored(op))
        kinds = {"conv": "conv", "depthwise": "depthwise", "conv1x1": "pointwise"}
        if op.kind not in kinds or (op.kind == "depthwise" and x.c != y.c):
            raise ConfigError(f"{op.name} ({op.kind}): the trainer has no counterpart")
        w = op.window
        if w is not None and (w.groups, w.dilation[1]) != (1, 1):
            raise ConfigError(f"{op.name}: groups and dilation have no counterpart in the trainer")
        if w is not None and (y.w, w.padding[1]) != same_padding(x.w, w.kernel[1], w.stride[1]):
            raise ConfigError(f"{op.name}: padding {w.padding[1]} is not SAME, which the trainer's convolutions have")
        weight, bias = self._reals(i, op)
        axis = 1 if op.kind == "depthwise" else 0
        rest = tuple(a for a in range(weight.ndim) if a != axis)
        # kernels of the size that they start training with; the normalisation has the rest
        size = np.maximum(np.sqrt(np.mean(weight.astype(np.float64) ** 2, axis=rest) * weight.size / y.c / 2), 1e-9)
        shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
        parts = {"weight": weight / size.reshape(shape), "gamma": size, "beta": bias, "mean": np.zeros(y.c), "var": np.full(y.c, 1 - EPS)}
        self.params |= {f"{op.name}.{part}": value.astype(np.float32) for part, value in parts.items()}
        kernel, stride = (1, 1) if w is None else (w.kernel[1], w.stride[1])
        return Node(op.name, kinds[op.kind], inputs, y.c, kernel, stride, norm="frozen", relu=relu, head=_stored(op))

    def _reals(self, i: int, op: Op) -> tuple[np.ndarray, np.ndarray]:
        """Kernel in the trainer's shape and bias, in real units."""
        q, into, out = op.requant, self.scales[op.inputs[0]], self.scales[i + 1]
        unit = np.array([real(int(m), int(s)) for m, s in zip(*np.broadcast_arrays(q.multipliers, q.shifts), strict=True)])
        unit = np.broadcast_to(unit, op.out.c) * out
        kernel = op.weights.values.astype(np.float64)
        if op.kind == "conv":
            kernel = kernel[:, 0]
        elif op.kind == "depthwise":
            kernel = kernel[0]
        shape = (1, -1) if op.kind == "depthwise" else (-1, *[1] * (kernel.ndim - 1))
        return (kernel * (unit / into).reshape(shape)).astype(np.float32), (np.asarray(q.biases) * unit).astype(np.float32)


def _stored(op: Op) -> str:
    assert isinstance(op.weights, Stored)
    return "stored" if op.weights.bits == 8 else f"stored:bits={op.weights.bits}"


def finetune(
    model: IntegerModel, heads: Mapping[str, str], windows: np.ndarray, teacher: np.ndarray, *, steps: int, seed: int = 0
) -> IntegerModel:
    """An image's integer model with other heads, distilled from its own logits.

    Parameters
    ----------
    model
        The original, kernels stored.
    heads
        Specification by operator, as `pyhtpw.export.compress` has chosen them.
    windows : int8 (N, 1, T, C)
        Training windows.
    teacher : int8 (N, classes)
        What the original image says of them.
    steps
        Updates, of 32 windows each.

    The input keeps scale and zero point; all else is calibrated anew.

    Raises
    ------
    ConfigError
        If the float network cannot be rebuilt.
    """
    graph, params = float_network(model)
    info, t = model.info, model.input
    step = info.input_scale if info is not None and info.input_scale > 0 else _USUAL
    x = ((windows.astype(np.float32) - t.zero_point) * step).reshape(len(windows), t.w, t.c)
    out = model.ops[-1].out
    wanted = (teacher.astype(np.float32) - out.zero_point) * (info.logit_scale if info is not None and info.logit_scale > 0 else _USUAL)
    calibration = x[:256]
    graph, params, _ = fit_network(graph, params, heads, calibration=calibration, seed=seed)
    params = recalibrated(graph, params, calibration)
    net, rng = AwareModel(graph, params, seed), np.random.default_rng([seed, 0x46494E])
    optimiser = AdamW(net, 0.0)
    with single_blas():
        for i in range(steps):
            rows = rng.choice(len(x), min(BATCH, len(x)), replace=False)
            _, grad = distillation(net.forward(x[rows], training=True), wanted[rows], TEMPERATURE)
            net.backward(grad)
            clip_gradient(net.gradient, 1.0)
            optimiser.step(i + 1, learning_rate(i, steps, RATE, min(WARMUP, steps // 2)))
    classes = info.classes if info is not None else tuple(f"class {i}" for i in range(out.c))
    # what rounding does was corrected where training began, and trained on since: to correct it once more would spoil that
    made = quantise(graph, net.state(), calibration, classes=classes, sample_rate=info.sample_rate if info is not None else 0.0,
                    recalibrate=False)
    made = _with_input(made, t, made.info.input_scale / step)
    return replace(made, info=None if info is None else replace(made.info, name=info.name, threshold=info.threshold, input_scale=step))


def _with_input(model: IntegerModel, wanted: Tensor, ratio: float) -> IntegerModel:
    """The same function of windows quantised as before: `ratio` is the new step of the input over the old one.

    What reads the input takes the old zero point, and has the ratio in its multipliers. Raises ConfigError if that is not a convolution.
    """
    ops = list(model.ops)
    for i, op in enumerate(ops):
        if 0 in op.inputs:
            if op.requant is None:
                raise ConfigError(f"{op.name}: reads the input without multipliers, so that the input cannot keep its scale")
            old = np.broadcast_to(Factors(op.requant.multipliers, op.requant.shifts).real, op.out.c)
            new = factors(old / ratio, HALF)
            biases = np.divide(op.requant.biases * old, new.real, out=np.zeros(op.out.c), where=new.real > 0)
            shape = op.weights.shape if not isinstance(op.weights, Stored) else op.weights.values.shape
            products = prod(shape[:-1]) if op.kind == "depthwise" else prod(shape[1:])
            ops[i] = replace(op, requant=requant(new, biases, products))
    return replace(model, input=wanted, ops=tuple(ops))
