"""The walk over a float network that turns every node into an integer operator."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pyhtpw.errors import QuantiseError
from pyhtpw.image.integer import AddScalars, Info, IntegerModel, Op, Stored, Tensor, Window
from pyhtpw.nets.graph import INPUT, Graph, Node, same_padding
from pyhtpw.quant.generator import IntegerGenerator, quantise_generator
from pyhtpw.quant.scales import Scale, fit_range, multiplier, requant
from pyhtpw.train.model import Model

EPS = 1e-5  # of BatchNorm, as in pyhtpw.train
ADD_LEFT_SHIFT = 20  # TensorFlow Lite's choice for int8


def quantise(
    graph: Graph,
    params: Mapping[str, np.ndarray],
    calibration: np.ndarray,
    *,
    classes: tuple[str, ...],
    sample_rate: float,
    recalibrate: bool = True,
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
        Re-estimate the statistics of every normalisation that follows a generated kernel with the integer kernels in place
        of the float ones, so that their rounding shifts no mean and no variance.

    Returns
    -------
    IntegerModel
        INFO's threshold is 0.5; `with_threshold` sets the one that validation chose.

    Raises
    ------
    QuantiseError
        If a value leaves the format's range, naming the node.
    """
    calibration = np.ascontiguousarray(calibration, np.float32)
    if not np.isfinite(calibration).all():
        raise QuantiseError("calibration windows hold NaN or infinity: clean the data first")
    generator = quantise_generator(graph, dict(params)) if graph.generator else None
    if generator is None:
        network, values = graph, dict(params)
    else:
        network, values = _with_kernels(graph, params, generator)
        if recalibrate:
            values = _recalibrated(network, values, calibration, set(generator.kernels))
    acts = Model(network, values).activations(calibration)
    scales = {name: fit_range(x, clip=name != graph.nodes[-1].name) for name, x in acts.items()}

    shapes = graph.shapes()
    index, ops = {INPUT: 0}, []
    for node in graph.nodes:
        if node.op == "avgpool":  # no rescaling in a pool: its output has the scale of its input
            scales[node.name] = scales[node.inputs[0]]
        try:
            ops.append(_op(node, values, scales, shapes, index, generator))
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
        generator.layers if generator else (),
        generator.heads if generator else (),
        graph.generator.code_bits if generator else 4,
        {"scales": {name: (s.scale, s.zero_point) for name, s in scales.items()}},
    )


def with_threshold(model: IntegerModel, threshold: float) -> IntegerModel:
    """The model with the decision threshold t* (probability of the last class) in its INFO."""
    return replace(model, info=replace(model.info, threshold=float(np.float32(threshold))))


def _with_kernels(graph: Graph, params: Mapping[str, np.ndarray], generator: IntegerGenerator):
    """The same network with its generated kernels stored, as the reals that the integer kernels stand for."""
    nodes = tuple(replace(node, head="stored") for node in graph.nodes)
    network = replace(graph, nodes=nodes, generator=None)
    values = {name: params[name] for name in network.parameter_shapes() if name in params}
    for name, kernel in generator.kernels.items():
        values[f"{name}.weight"] = (kernel * generator.scale).astype(np.float32)
    return network, values


def _recalibrated(graph: Graph, values: dict, x: np.ndarray, nodes: set[str]) -> dict:
    """Statistics of the given normalisations re-estimated, in network order, each with the ones before it in place."""
    values = dict(values)
    for node in graph.nodes:
        if node.name not in nodes or not node.norm:
            continue
        acts = Model(graph, values).activations(x)
        source = acts[node.inputs[0]].reshape(-1, acts[node.inputs[0]].shape[-1]).astype(np.float64)
        kernel = values[f"{node.name}.weight"].astype(np.float64)
        mean, covariance = source.mean(0), np.cov(source, rowvar=False, bias=True).reshape(kernel.shape[1], -1)
        values[f"{node.name}.mean"] = (kernel @ mean).astype(np.float32)
        values[f"{node.name}.var"] = np.einsum("oi,ij,oj->o", kernel, covariance, kernel).astype(np.float32)
    return values


def _folded(node: Node, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Per-channel gain and offset that follow the convolution: y = gain * (W x) + offset."""
    if not node.norm:
        bias = values.get(f"{node.name}.bias", np.zeros(node.cout))
        return np.ones(node.cout), np.asarray(bias, np.float64)
    gamma, beta, mean, var = (
        np.asarray(values[f"{node.name}.{part}"], np.float64) for part in ("gamma", "beta", "mean", "var")
    )
    gain = gamma / np.sqrt(var + EPS)
    if (gain <= 0).any():
        raise QuantiseError("a normalisation gain is not positive, which an integer kernel cannot absorb")
    return gain, beta - mean * gain


def _linear(node: Node, values, x: Scale, y: Scale, generator: IntegerGenerator | None) -> dict:
    """Weights and requantisation of a conv, depthwise, pointwise or fc node."""
    gain, offset = _folded(node, values)
    if generator is not None and node.name in generator.sources:
        weights, w_scale = generator.sources[node.name], gain * generator.scale
    else:
        weight = np.asarray(values[f"{node.name}.weight"], np.float64)
        channel = 1 if node.op == "depthwise" else 0  # axis of the output channel
        weight = weight * (gain if channel == 1 else gain.reshape(-1, *[1] * (weight.ndim - 1)))
        w_scale = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != channel)) / 127
        # a channel of zeros has no scale of its own; give it one that its bias can be expressed in
        w_scale = np.where(w_scale > 1e-12, w_scale, max(w_scale.max(), 1e-6))
        q = np.rint(weight / (w_scale if channel == 1 else w_scale.reshape(-1, *[1] * (weight.ndim - 1))))
        q = np.clip(q, -127, 127).astype(np.int8)
        if node.op == "conv":
            q = q.reshape(q.shape[0], 1, q.shape[1], q.shape[2])
        elif node.op == "depthwise":
            q = q.reshape(1, *q.shape)
        weights = Stored(q)
    return {
        "weights": weights,
        "requant": requant(x.scale * w_scale / y.scale, offset / (x.scale * w_scale)),
    }


def _op(node: Node, values, scales: dict[str, Scale], shapes, index, generator) -> Op:
    t_in, _ = shapes[node.inputs[0]]
    t_out, c_out = shapes[node.name]
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
    if node.op == "avgpool":
        return Op(kind="avgpool", window=Window((1, t_in)), **common)
    linear = _linear(node, values, x, y, generator)
    if node.op in ("pointwise", "fc"):
        return Op(kind="conv1x1" if node.op == "pointwise" else "fc", **linear, **common)
    _, left = same_padding(t_in, node.kernel, node.stride)
    window = Window((1, node.kernel), (1, node.stride), (0, left))
    return Op(kind=node.op, window=window, **linear, **common)
