"""The walk over a float network that turns every node into an integer operator."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import numpy as np

from pyhtpw.errors import QuantiseError
from pyhtpw.image.integer import AddScalars, AttendScalars, Info, IntegerModel, MulScalars, Op, Stored, Tensor, Window
from pyhtpw.nets.graph import INPUT, Graph, Node, same_padding
from pyhtpw.quant.freeze import freeze
from pyhtpw.quant.heads import IntegerHeads, image_shape, quantise_heads
from pyhtpw.quant.lower import FUNCTIONS, inner, lowered, spread, table
from pyhtpw.quant.scales import COMPACT, HALF, Scale, factors, fit_range, multiplier, requant
from pyhtpw.quant.statistics import EPS, statistics
from pyhtpw.quant.stored import nearest, quantise_stored
from pyhtpw.train.model import Model

ADD_LEFT_SHIFT = 20  # TensorFlow Lite's choice for int8

INTEGER_OPS = (
    "conv", "depthwise", "pointwise", "add", "avgpool", "maxpool", "silu", "squeeze_excite", "attention", "dropout", "fc"
)  # fmt: skip
"""Ops of `pyhtpw.nets` that `_op` turns into operators, or that `pyhtpw.quant.lower` takes apart into such. Any other is
refused by name."""
_POOLS = ("avgpool", "maxpool")
_LINEAR = ("conv", "depthwise", "pointwise", "fc")
_MUL_SHIFTS, _ATTEND_SHIFTS = (-31, 14), (-31, 5)  # docs/SPEC.md section 6
_SOFTMAX_BITS = 26  # fraction bits of a difference of scores


def quantise(
    graph: Graph,
    params: Mapping[str, np.ndarray],
    calibration: np.ndarray,
    *,
    classes: tuple[str, ...],
    sample_rate: float,
    recalibrate: bool = True,
    compact: bool = True,
) -> IntegerModel:
    """Post-training quantisation.

    Parameters
    ----------
    graph, params
        A trained float network (`pyhtpw.train`).
    calibration : float32 (N, T, C)
        Windows of the *training* split: activation ranges come from them, and so do the normalisation statistics if
        `recalibrate`.
    classes
        Names, one per logit.
    sample_rate
        Hz, for the image's INFO.
    recalibrate : bool
        Correct the statistics of every normalisation that follows a generated kernel, or one of less than 8 bits, by
        what the integer kernels in place of the float ones change on the calibration windows, so that their rounding
        shifts no mean and no variance.
    compact : bool
        Multipliers of one byte (form 1 of docs/SPEC.md 4.3) instead of two. Stored kernels are quantised with the
        scales that these exactly stand for, so that it costs them nothing; the gain behind a generated kernel is
        rounded (relative error at most 2^-9), and its bias set so that the mean of the output stays where it was.

    Norm "group" is deployed with statistics frozen on the calibration windows (`pyhtpw.quant.freeze`).

    Returns
    -------
    IntegerModel
        Operators are called as the nodes that they stand for; those of a node that became several have its name before a
        dot, the last one the name itself. INFO's threshold is 0.5; `with_threshold` sets the one that validation chose.

    Raises
    ------
    QuantiseError
        Naming the node: if a value leaves the format's range, or if an operator has no integer form.
    """
    _check_operators(graph)
    calibration = np.ascontiguousarray(calibration, np.float32)
    if not np.isfinite(calibration).all():
        raise QuantiseError("calibration windows hold NaN or infinity: clean the data first")
    graph, params = freeze(graph, params, calibration)
    heads = quantise_heads(graph, params)
    network, values, rounded = _with_kernels(graph, params, heads)
    if recalibrate:
        values = _corrected(network, values, rounded, Model(graph, params).kernels(), calibration)
    acts = Model(network, values).activations(calibration)
    for node in graph.nodes:
        acts.update(inner(node, acts[node.inputs[0]], values))
    nodes, shapes = lowered(graph)
    params = spread(graph, params)
    made = {INPUT, *(node.name for node in nodes)}
    last = nodes[-1].name
    scales = {name: fit_range(x, clip=name != last) for name, x in acts.items() if name in made}
    index, ops = {INPUT: 0}, []
    for node in nodes:
        if node.op in _POOLS:  # no rescaling in a pool: its output has the scale of its input
            scales[node.name] = scales[node.inputs[0]]
        try:
            ops.append(_op(node, params, values, scales, shapes, index, heads, COMPACT if compact else HALF))
        except QuantiseError as error:
            raise QuantiseError(f"node {node.name}: {error}") from error
        index[node.name] = len(ops)
    scale = scales[INPUT]
    t, c = graph.input_shape
    info = Info(
        float(np.float32(scale.scale)),
        float(np.float32(scales[graph.nodes[-1].name].scale)),
        0.5,
        float(sample_rate),
        graph.name,
        tuple(classes),
    )
    return IntegerModel(
        Tensor(1, t, c, scale.zero_point),
        tuple(ops),
        info,
        heads.generators,
        heads.heads,
        {"scales": {name: (s.scale, s.zero_point) for name, s in scales.items()}},
    )


def recalibrated(graph: Graph, params: Mapping[str, np.ndarray], calibration: np.ndarray) -> dict[str, np.ndarray]:
    """The parameters, their normalisation statistics corrected as by `quantise`: where training on rounded kernels begins."""
    network, values, rounded = _with_kernels(graph, params, quantise_heads(graph, params))
    values = _corrected(network, values, rounded, Model(graph, params).kernels(), np.ascontiguousarray(calibration, np.float32))
    running = [f"{name}.{part}" for name in rounded for part in ("mean", "var") if f"{name}.{part}" in params]
    return {**params, **{name: values[name] for name in running}}


def _corrected(network: Graph, values: dict, rounded: set[str], exact: Mapping[str, np.ndarray], calibration: np.ndarray) -> dict:
    """The values, running statistics moved by what rounded kernels change in place of exact ones."""
    if not rounded:
        return values
    plain = {**values, **{f"{name}.weight": kernel for name, kernel in exact.items()}}
    before, _ = statistics(network, plain, calibration, None, rounded)
    return statistics(network, values, calibration, before, rounded)[1]


def with_threshold(model: IntegerModel, threshold: float) -> IntegerModel:
    """The model with the decision threshold t* (probability of the last class) in its INFO."""
    return replace(model, info=replace(model.info, threshold=float(np.float32(threshold))))


def _check_operators(graph: Graph) -> None:
    """Raise QuantiseError for a node that no integer operator stands for."""
    for node in graph.nodes:
        if node.op not in INTEGER_OPS:
            raise QuantiseError(f"node {node.name}: {node.op} has no integer form: train with one of {', '.join(INTEGER_OPS)}")


def _with_kernels(graph: Graph, params: Mapping[str, np.ndarray], heads: IntegerHeads):
    """The same network with all kernels stored, as the reals that integers stand for; and the nodes that this changes
    noticeably."""
    network = graph.stored()
    values = {name: np.asarray(params[name], np.float32) for name in network.parameter_shapes() if name in params}
    rounded = set(heads.kernels)
    for name, kernel in heads.kernels.items():
        values[f"{name}.weight"] = (kernel * heads.scales[name]).astype(np.float32)
    for node in graph.nodes:
        if node.head.kind == "stored" and (node.head.bits < 8 or node.head.per_tensor):
            try:
                kernel, gain = _with_gain(node, params, _folded(node, params)[0] if node.head.per_tensor else np.ones(node.cout))
                kernel = nearest(kernel, node.head.bits, _channel_axis(node), node.head.per_tensor, node.head.rule)
            except QuantiseError as error:
                raise QuantiseError(f"node {node.name}: {error}") from error
            values[f"{node.name}.weight"] = np.ascontiguousarray(kernel / gain, np.float32)
            rounded.add(node.name)
    return network, values, rounded


def _channel_axis(node: Node) -> int:
    """Axis of the output channel in the logical shape of a kernel."""
    return 1 if node.op == "depthwise" else 0


def _with_gain(node: Node, params: Mapping[str, np.ndarray], gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A stored kernel with the gain of its normalisation in it, and that gain in a shape that goes with the
    kernel's."""
    kernel = np.asarray(params[f"{node.name}.weight"], np.float64)
    shape = [1] * kernel.ndim
    shape[_channel_axis(node)] = -1
    gain = gain.reshape(shape)
    return kernel * gain, gain


def _folded(node: Node, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per channel, what follows the kernel: y = gain * (W x - mean) + offset."""
    bias = np.asarray(values.get(f"{node.name}.bias", np.zeros(node.cout)), np.float64)
    if not node.norm:
        return np.ones(node.cout), np.zeros(node.cout), bias
    gamma, beta, mean, var = (
        np.asarray(values[f"{node.name}.{part}"], np.float64) for part in ("gamma", "beta", "mean", "var")
    )
    gain = gamma / np.sqrt(var + EPS)
    if (gain <= 0).any():
        raise QuantiseError("a normalisation gain is not positive, which an integer kernel cannot absorb")
    return gain, mean - bias, beta


def _linear(node: Node, params, values, scales: dict[str, Scale], heads: IntegerHeads, bits: int) -> dict:
    """Weights and requantisation of a conv, depthwise, pointwise or fc node; may widen the output's scale."""
    gain, mean, offset = _folded(node, values)
    x, y = scales[node.inputs[0]], scales[node.name]
    if node.name in heads.sources:
        weights, step = heads.sources[node.name], heads.scales[node.name]
        if node.op == "fc":
            # the logits' own scale is free: take the next wider one that the multiplier exactly stands for
            wished = x.scale * step / y.scale
            found = factors(np.array([wished]), bits).real[0]
            if found > wished:
                found = factors(np.array([wished * (1 - 2.0 ** (1 - bits))]), bits).real[0]
            y = scales[node.name] = Scale(x.scale * step / found, y.zero_point)
        scaling = factors(x.scale * step * gain / y.scale, bits)
        gain = scaling.real * y.scale / (x.scale * step)  # what is really applied
        w_scale = gain * step
    else:
        head, unit = node.head, y.scale / x.scale
        q, scaling = quantise_stored(
            params[f"{node.name}.weight"], unit, head.bits, bits, _channel_axis(node), head.per_tensor, head.rule, gain
        )
        weights = Stored(q.reshape(image_shape(node.op, q.shape)), head.bits, head.narrow)
        w_scale = scaling.real * y.scale / x.scale
    shape = weights.shape if node.name in heads.sources else weights.values.shape
    products = prod(shape[:-1]) if node.op == "depthwise" else prod(shape[1:])
    return {"weights": weights, "requant": requant(scaling, (offset - mean * gain) / (x.scale * w_scale), products)}


def _op(node: Node, params, values, scales: dict[str, Scale], shapes, index, heads: IntegerHeads, bits: int) -> Op:
    t_in, _ = shapes[node.inputs[0]]
    t_out, c_out = shapes[node.name]
    linear = _linear(node, params, values, scales, heads, bits) if node.op in _LINEAR else {}
    x, y = scales[node.inputs[0]], scales[node.name]
    common = {
        "name": node.name,
        "inputs": tuple(index[name] for name in node.inputs),
        "out": Tensor(1, t_out, c_out, y.zero_point),
        "act_min": max(-128, y.zero_point) if node.relu else -128,
    }
    if node.op == "add":
        b = scales[node.inputs[1]]
        twice = 2 * max(x.scale, b.scale)
        factors = (x.scale / twice, b.scale / twice, twice / ((1 << ADD_LEFT_SHIFT) * y.scale))
        pairs = [multiplier(f) for f in factors]
        add = AddScalars(ADD_LEFT_SHIFT, tuple(p[0] for p in pairs), tuple(p[1] for p in pairs))
        return Op(kind="add", add=add, **common)
    if node.op in _POOLS:
        window = Window((1, t_in)) if node.pools_all else Window((1, node.kernel), (1, node.stride))
        return Op(kind=node.op, window=window, **common)
    if node.op in FUNCTIONS:
        return Op(kind="table", table=table(node.op, x, y), **common)
    if node.op == "mul":
        m, shift = multiplier(x.scale * scales[node.inputs[1]].scale / y.scale)
        if not _MUL_SHIFTS[0] <= shift <= _MUL_SHIFTS[1]:
            raise QuantiseError(f"the factor of a product leaves the format's range: 2^{shift}")
        return Op(kind="mul", mul=MulScalars(m, shift), **common)
    if node.op == "attend":
        return Op(kind="attend", attend=_attend(scales[node.inputs[1]].scale, x.scale / y.scale), **common)
    if node.op in ("pointwise", "fc"):
        return Op(kind="conv1x1" if node.op == "pointwise" else "fc", **linear, **common)
    _, left = same_padding(t_in, node.kernel, node.stride)
    window = Window((1, node.kernel), (1, node.stride), (0, left))
    return Op(kind=node.op, window=window, **linear, **common)


def _attend(score: float, ratio: float) -> AttendScalars:
    """Of scores in steps of ``score``, and ``ratio`` of the input's step to the output's; the softmax's own is 1/256."""
    softmax, shift = multiplier(score * 2.0**_SOFTMAX_BITS)
    if not 0 <= shift <= 30:
        raise QuantiseError(f"the step of the scores of an attention is {score}, which its softmax cannot tell from 0")
    # beyond 31 e^-x is nothing, and a shifted difference must stay below 2^31
    span = min(255, int(31 / score), ((1 << 31) - 1) >> shift)
    m, out = multiplier(ratio / 256)
    if not _ATTEND_SHIFTS[0] <= out <= _ATTEND_SHIFTS[1]:
        raise QuantiseError(f"the factor of an attention leaves the format's range: 2^{out}")
    return AttendScalars(softmax, shift, span, m, out)
