"""TensorFlow Lite's reference kernels for int8, told in numpy: what LiteRT's BUILTIN_REF resolver computes, to the bit.

Written from the arithmetic, not from the exporter: it shares nothing with that but the records of files. Sums are taken in float64 by
BLAS, where they are exact (|sum| < 2^53). Double rounding everywhere but FULLY_CONNECTED, which LiteRT rounds once on x86.
"""

import math

import numpy as np

from pyhtpw.errors import ImageError
from pyhtpw.export.schema import ACTIVATIONS, Network, Operator, Tensor


def derived(scale: float) -> tuple[int, int]:
    """Q31 multiplier and shift that the kernels derive from a scale >= 0: its 31 leading bits, rounded half up; in whole numbers."""
    if scale == 0:
        return 0, 0
    top, bottom = scale.as_integer_ratio()
    shift = top.bit_length() - bottom.bit_length() + 1
    while shift >= -64 and top << max(1 - shift, 0) < bottom << max(shift - 1, 0):  # until scale >= 2^(shift - 1)
        shift -= 1
    left = 32 - shift  # one bit more than is kept, to round by
    doubled = (top << max(left, 0)) // (bottom << max(-left, 0))
    multiplier = (doubled + 1) >> 1
    if multiplier == 1 << 31:
        multiplier, shift = 1 << 30, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def high_multiply(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    """Saturating rounding doubling high multiply, int64 arrays of int32 values."""
    return np.minimum((np.asarray(a, np.int64) * b + (1 << 30)) >> 31, (1 << 31) - 1)


def divide(x: np.ndarray, power: np.ndarray | int) -> np.ndarray:
    """x / 2^power to nearest, ties away from zero."""
    mask = (np.int64(1) << np.asarray(power, np.int64)) - 1
    return (x >> power) + ((x & mask) > (mask >> 1) + (x < 0))


def requantised(acc: np.ndarray, multiplier: np.ndarray | int, shift: np.ndarray | int) -> np.ndarray:
    """MultiplyByQuantizedMultiplier with its two roundings."""
    left, right = np.maximum(shift, 0), np.maximum(np.negative(shift), 0)
    return divide(high_multiply(acc << left, multiplier), right)


def requantised_once(acc: np.ndarray, multiplier: np.ndarray | int, shift: np.ndarray | int) -> np.ndarray:
    """The same with a single rounding."""
    return (((acc * multiplier) >> (30 - np.asarray(shift))) + 1) >> 1


def _multipliers(values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array([derived(v) for v in values], np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def run(network: Network, x: np.ndarray, tensors: dict[int, np.ndarray] | None = None) -> np.ndarray:
    """First output of a network for int8 windows (N, ...), one batch; `tensors` receives every tensor by number.

    Raises ImageError for an operator that this telling has not.
    """
    values = {} if tensors is None else tensors
    for i, t in enumerate(network.tensors):
        if t.data is not None:
            values[i] = t.data
    values[network.inputs[0]] = x.reshape(-1, *network.tensors[network.inputs[0]].shape[1:])
    for op in network.operators:
        handler = HANDLERS.get(op.code)
        if handler is None:
            raise ImageError(f"the interpreter has no {op.code}")
        inputs = [None if i < 0 else values.get(i) for i in op.inputs]  # a RESHAPE does without its sizes
        infos = [None if i < 0 else network.tensors[i] for i in op.inputs]
        values[op.outputs[0]] = handler(op, inputs, infos, network.tensors[op.outputs[0]])
    return values[network.outputs[0]]


def limits(op: Operator, out: Tensor) -> tuple[int, int]:
    """Range of a fused activation, in the output's integers."""
    def quantised(value: float) -> int:
        return out.zero + math.floor(value / out.scale + 0.5)

    known = dict(zip(ACTIVATIONS, ((None, None), (0, None), (-1, 1), (0, 6)), strict=True))
    low, high = known[op.options["FusedActivationFunction"]]
    return (-128 if low is None else max(-128, quantised(low))), (127 if high is None else min(127, quantised(high)))


def _stored(op: Operator, y: np.ndarray, out: Tensor, dtype: type = np.int8) -> np.ndarray:
    return np.clip(y + out.zero, *limits(op, out)).astype(dtype)


def _taps(op: Operator, x: np.ndarray, kernel: tuple[int, int], fill: int):
    """(ky, kx, what every window reads there (N, out_h, out_w, C)) of all taps of a window; `fill` outside the input."""
    stride = op.options["StrideH"], op.options["StrideW"]
    dilation = op.options.get("DilationHFactor", 1), op.options.get("DilationWFactor", 1)
    pads, counts = [], []
    for size, k, d, s in zip(x.shape[1:3], kernel, dilation, stride, strict=True):
        reach = (k - 1) * d + 1
        out = -(-size // s) if op.options["Padding"] == "SAME" else (size - reach + s) // s
        before = max((out - 1) * s + reach - size, 0) // 2 if op.options["Padding"] == "SAME" else 0
        pads.append((before, max((out - 1) * s + reach - size - before, 0)))
        counts.append(out)
    wide = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    for ky in range(kernel[0]):
        rows = slice(ky * dilation[0], ky * dilation[0] + (counts[0] - 1) * stride[0] + 1, stride[0])
        for kx in range(kernel[1]):
            columns = slice(kx * dilation[1], kx * dilation[1] + (counts[1] - 1) * stride[1] + 1, stride[1])
            yield ky, kx, wide[:, rows, columns]


def _factors(x: Tensor, w: Tensor, out: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return _multipliers([x.scale * float(s) / out.scale for s in w.scales])


def _convolution(op, inputs, infos, out):
    x, w = inputs[0].astype(np.float64) - infos[0].zero, inputs[1].astype(np.float64)
    depthwise = op.code == "DEPTHWISE_CONV_2D"
    groups = 1 if depthwise else x.shape[3] // w.shape[3]
    acc = 0 if len(inputs) < 3 or inputs[2] is None else inputs[2].astype(np.int64)
    for ky, kx, part in _taps(op, x, w.shape[1:3], 0):
        if depthwise:
            products = np.repeat(part, w.shape[3] // x.shape[3], axis=-1) * w[0, ky, kx]
        else:
            pairs = zip(np.split(part, groups, axis=-1), np.split(w[:, ky, kx], groups), strict=True)
            products = np.concatenate([a @ b.T for a, b in pairs], axis=-1)
        acc = acc + products.astype(np.int64)
    return _stored(op, requantised(acc, *_factors(infos[0], infos[1], out)), out)


def _fully_connected(op, inputs, infos, out):
    w = inputs[1].astype(np.int64)
    x = inputs[0].astype(np.int64).reshape(-1, w.shape[1]) - infos[0].zero
    acc = (x.astype(np.float64) @ w.T.astype(np.float64)).astype(np.int64)
    if len(inputs) > 2 and inputs[2] is not None:
        acc = acc + inputs[2]
    y = _stored(op, requantised_once(acc, *_factors(infos[0], infos[1], out)), out)
    return y.reshape(len(inputs[0]), *out.shape[1:])


def _average(op, inputs, infos, out):
    kernel, x = (op.options["FilterHeight"], op.options["FilterWidth"]), inputs[0].astype(np.int64)
    total = sum(part for _, _, part in _taps(op, x, kernel, 0))
    n = sum(part for _, _, part in _taps(op, np.ones_like(x), kernel, 0))
    mean = np.where(total > 0, (total + n // 2) // n, -((-total + n // 2) // n))
    return np.clip(mean, *limits(op, out)).astype(np.int8)


def _maximum_pool(op, inputs, infos, out):
    parts = [part for _, _, part in _taps(op, inputs[0], (op.options["FilterHeight"], op.options["FilterWidth"]), -128)]
    return np.clip(np.max(parts, axis=0), *limits(op, out)).astype(np.int8)


def _add(op, inputs, infos, out):
    if inputs[0].dtype == np.int32:
        return inputs[0] + inputs[1]
    twice = 2 * max(t.scale for t in infos)
    total = 0
    for x, t in zip(inputs, infos, strict=True):
        total = total + requantised((x.astype(np.int64) - t.zero) << 20, *derived(t.scale / twice))
    return _stored(op, requantised(total, *derived(twice / ((1 << 20) * out.scale))), out)


def _mul(op, inputs, infos, out):
    product = (inputs[0].astype(np.int64) - infos[0].zero) * (inputs[1].astype(np.int64) - infos[1].zero)
    scale = np.float32(infos[0].scale) * np.float32(infos[1].scale) / np.float32(out.scale)
    return _stored(op, requantised(product, *derived(float(scale))), out)


def _mean(op, inputs, infos, out):
    """Over rows and columns."""
    x = inputs[0].astype(np.int64) - infos[0].zero
    count = x[0, ..., 0].size
    multiplier, shift = derived(infos[0].scale / out.scale)
    more = min(count.bit_length() - 1, 32, 31 + shift)  # 1/count goes into the multiplier
    y = requantised(x.sum(axis=tuple(range(1, x.ndim - 1))), (multiplier << more) // count, shift - more)
    return np.clip(y + out.zero, -128, 127).astype(np.int8).reshape(-1, *out.shape[1:])


def _reshape(op, inputs, infos, out):
    return inputs[0].reshape(-1, *out.shape[1:])


def _quantize(op, inputs, infos, out):
    """int8 to int8."""
    y = requantised(inputs[0].astype(np.int64) - infos[0].zero, *derived(infos[0].scale / out.scale))
    return np.clip(y + out.zero, -128, 127).astype(np.int8)


def _pad(op, inputs, infos, out):
    fill = infos[0].zero if op.code == "PAD" else int(inputs[2].reshape(-1)[0])
    return np.pad(inputs[0], inputs[1].tolist(), constant_values=fill)


def _slice(op, inputs, infos, out):
    begin, size = inputs[1].tolist(), inputs[2].tolist()
    return inputs[0][tuple(slice(b, None if s < 0 else b + s) for b, s in zip(begin, size, strict=True))]


def _extremum(op, inputs, infos, out):
    return (np.maximum if op.code == "MAXIMUM" else np.minimum)(inputs[0], inputs[1])


def _cast(op, inputs, infos, out):
    return inputs[0].astype(out.dtype)


def _gather(op, inputs, infos, out):
    return inputs[0][inputs[1]]


def _softmax(op, inputs, infos, out):
    multiplier, shift = derived(min(op.options["Beta"] * infos[0].scale * 2.0**26, 2.0**31 - 1))
    span = math.floor(31 * 2.0**26 / 2.0**shift)  # 5 integer bits
    x = inputs[0].astype(np.int64)
    below = x - x.max(axis=-1, keepdims=True)
    e = np.where(below >= -span, _exponential(high_multiply(np.maximum(below, -span) << shift, multiplier)), 0)
    total = divide(e, 12).sum(axis=-1, keepdims=True)
    headroom = 31 - np.floor(np.log2(total)).astype(np.int64)
    inverse = _reciprocal((total << headroom) - (1 << 31))
    y = divide(high_multiply(e, inverse), 35 - headroom) - 128
    return np.where(below >= -span, np.clip(y, -128, 127), -128).astype(np.int8)


def _exponential(v: np.ndarray) -> np.ndarray:
    """exp of Q5.26, v <= 0, as Q0.31."""
    quarter = 1 << 24
    q = (v & (quarter - 1)) - quarter
    x = (q << 5) + (1 << 28)
    x2 = high_multiply(x, x)
    x3, x4 = high_multiply(x2, x), high_multiply(x2, x2)
    y = 1895147668 + high_multiply(x + divide(high_multiply(divide(x4, 2) + x3, 715827883) + x2, 1), 1895147668)
    for bit, factor in enumerate((1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)):
        y = np.where((q - v) & (quarter << bit), high_multiply(y, factor), y)
    return np.where(v == 0, (1 << 31) - 1, y)


def _reciprocal(v: np.ndarray) -> np.ndarray:
    """1 / (1 + v) of Q0.31 in [0, 1), by three steps of Newton."""
    def saturated(x: np.ndarray) -> np.ndarray:
        return np.clip(x, -(1 << 31), (1 << 31) - 1)

    half = (v + (1 << 31)) >> 1
    x = 1515870810 + high_multiply(half, -1010580540)
    for _ in range(3):
        x = x + saturated(high_multiply(x, (1 << 29) - high_multiply(half, x)) * 4)
    return saturated(x * 2)


def _matmul(op, inputs, infos, out):
    acc = (inputs[0].astype(np.int64) - infos[0].zero) @ (inputs[1].astype(np.int64) - infos[1].zero)
    y = requantised(acc, *derived(infos[0].scale * infos[1].scale / out.scale))
    return np.clip(y + out.zero, -128, 127).astype(np.int8)


HANDLERS = {
    "CONV_2D": _convolution, "DEPTHWISE_CONV_2D": _convolution, "FULLY_CONNECTED": _fully_connected,
    "AVERAGE_POOL_2D": _average, "MAX_POOL_2D": _maximum_pool, "ADD": _add, "MUL": _mul, "MEAN": _mean,
    "RESHAPE": _reshape, "EXPAND_DIMS": _reshape, "SQUEEZE": _reshape, "QUANTIZE": _quantize,
    "PAD": _pad, "PADV2": _pad, "SLICE": _slice, "MAXIMUM": _extremum, "MINIMUM": _extremum,
    "CAST": _cast, "GATHER": _gather, "SOFTMAX": _softmax, "BATCH_MATMUL": _matmul,
}  # fmt: skip
