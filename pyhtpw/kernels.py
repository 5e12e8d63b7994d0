"""The integer kernels of the C library on numpy arrays: NHWC, int8 in, int8 out, equal to the bit on every backend.

Common to all functions:

* dtypes are exact and never cast: int8 tensors, int32 biases, multipliers and shifts, uint8 for packed bytes. Arrays of
  any strides or alignment are accepted; inputs are never written and results are new C-contiguous arrays.
* `multiplier` is Q0.31 in [0, 2^31 - 1], `shift` in [-31, 30] (positive shifts left), real scale
  `multiplier * 2^(shift - 31)`; arrays have one entry per output channel, Python integers serve all of them.
* `input_offset` is minus the zero point of the input, [-127, 128]; `output_offset` is the zero point of the output,
  [-128, 127]. Padding contributes 0.
* Rounding is CMSIS-NN's default (double rounding), once per output, then offset, then clamp (docs/SPEC.md section 2).
* Overflow: a layer is refused if, for its weights and biases and some input between the smallest and the largest value
  of `x`, a partial sum in some order leaves int32. What passes can't overflow; the left shift of the requantisation
  wraps modulo 2^32, as CMSIS-NN's does.
* `backend` is a name of `backends()`, None for the best one, or an executor (`pyhtpw.executor`). A backend that lacks a kernel
  uses the portable one.
* Anything else raises `pyhtpw.errors.KernelError`.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyhtpw import _native
from pyhtpw.errors import KernelError
from pyhtpw.executor import Executor, Struct, executor

_INT32 = (-(2**31), 2**31 - 1)
_ELEMENTWISE = (  # struct htpw_elementwise, without the clamp at its end
    *(f"{operand}_{field}" for operand in "ab" for field in ("offset", "multiplier", "shift")),
    "left_shift",
    *(f"out_{field}" for field in ("offset", "multiplier", "shift")),
)
_SOFTMAX_ROW_MAX = 511  # 512 maxima in one row fill the fixed-point sum

Array = np.ndarray
Pair = Sequence[int]
Scale = np.ndarray | int
Bias = np.ndarray | None
Backend = str | Executor | None


def backends() -> list[str]:
    """Names of the implementations that run on this machine, the portable one first and the best one last."""
    return _native.available_backends()


# Validation: every argument of every kernel goes through these.


def _integer(name: str, value: Any, low: int, high: int) -> int:
    """`value` as a Python integer of [low, high]."""
    try:
        number = operator.index(value)
    except TypeError:
        raise KernelError(f"{name} must be an integer, not {type(value).__name__}") from None
    if not low <= number <= high:
        raise KernelError(f"{name} = {number} is outside [{low}, {high}]")
    return number


def _pair(name: str, value: Pair, low: int) -> tuple[int, int]:
    """(height, width), both >= low."""
    try:
        height, width = value
    except (TypeError, ValueError):
        raise KernelError(f"{name} must be two integers (height, width), not {value!r}") from None
    return _integer(f"{name}[0]", height, low, _INT32[1]), _integer(f"{name}[1]", width, low, _INT32[1])


def _array(
    name: str, value: Any, dtype: type, shape: tuple[int | None, ...] | None = None, empty: bool = False
) -> Array:
    """`value` as a C-contiguous array of exactly this dtype; None in `shape` stands for any size >= 1."""
    if not isinstance(value, Array) or value.dtype != dtype:
        found = getattr(value, "dtype", type(value).__name__)
        raise KernelError(f"{name} must be an array of {np.dtype(dtype)}, not {found}")
    wanted = value.shape if shape is None else shape
    if len(wanted) != value.ndim or any(want not in (None, have) for want, have in zip(wanted, value.shape, strict=True)):
        raise KernelError(f"{name} has shape {value.shape}, not {str(wanted).replace('None', 'any')}")
    if not (empty or value.size):
        raise KernelError(f"{name} is empty")
    if value.size > _INT32[1]:
        raise KernelError(f"{name} has {value.size} elements, more than {_INT32[1]}")
    return np.require(value, requirements=["C", "A"])


def _scale(name: str, value: Any, channels: int, low: int, high: int) -> Array:
    """Multipliers or shifts as int32 of shape (1,), from a Python integer, or (channels,)."""
    if not isinstance(value, Array):
        return np.array([_integer(name, value, low, high)], np.int32)
    array = _array(name, value, np.int32, (channels,))
    if array.min() < low or array.max() > high:
        raise KernelError(f"{name} has values outside [{low}, {high}]")
    return array


def _clamp(act_min: int, act_max: int) -> tuple[int, int]:
    act_min, act_max = _integer("act_min", act_min, -128, 127), _integer("act_max", act_max, -128, 127)
    if act_min > act_max:
        raise KernelError(f"act_min = {act_min} is above act_max = {act_max}")
    return act_min, act_max


def _window(
    x: Array, out_c: int, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, size: Pair | None, groups: int = 1
) -> Struct:
    """`struct htpw_window` of one call; without a size, nothing is padded at the bottom and right."""
    kernel, stride, dilation = _pair("kernel", kernel, 1), _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    padding = _pair("padding", padding, 0)
    axes = list(zip(x.shape[1:3], kernel, stride, padding, dilation, strict=True))
    if size is None:
        size = [(n + p - (k - 1) * d - 1) // s + 1 for n, k, s, p, d in axes]
        if min(size) < 1:
            raise KernelError(f"the padded input of {x.shape[1:3]} is smaller than the kernel {kernel} * {dilation}")
    size = _pair("output_size", size, 1)
    reach = max(o * s + k * d + p for o, (_, k, s, p, d) in zip(size, axes, strict=True))
    if max(reach, len(x) * size[0] * size[1] * out_c) > _INT32[1]:
        raise KernelError(f"an output of {(len(x), *size, out_c)} is too large for 32-bit sizes")
    values = [*x.shape, *size, out_c, *kernel, *stride, *padding, *dilation, groups]
    return Struct("htpw_window", tuple(values))


@dataclass
class _Weights:
    """Weights of a linear layer as the C code reads them, and what the overflow check asks of them."""

    array: Array
    channels: int
    products: int  # per sum
    largest: int  # bound of their magnitude, offset included
    rows: Callable[[], Array]  # (channels, products), offset included


class _Layer:
    """Checked requantisation, bias and input offset of a linear layer; refuses sums that can leave int32."""

    def __init__(
        self,
        x: Array,
        w: _Weights,
        bias: Bias,
        multiplier: Any,
        shift: Any,
        input_offset: int = 0,
        output_offset: int = 0,
        act_min: int = -128,
        act_max: int = 127,
    ) -> None:
        multiplier = _scale("multiplier", multiplier, w.channels, 0, _INT32[1])
        shift = _scale("shift", shift, w.channels, -31, 30)
        if len(multiplier) != len(shift):
            raise KernelError("multiplier and shift must both be integers or both be arrays")
        offset = _integer("output_offset", output_offset, -128, 127)
        self.input_offset = _integer("input_offset", input_offset, -127, 128)
        values = multiplier, shift, int(len(shift) > 1), offset, *_clamp(act_min, act_max)
        self.q = Struct("htpw_requant", values)
        self.bias = bias = None if bias is None else _array("bias", bias, np.int32, (w.channels,))
        self._refuse_overflow(x, w, np.int64(0) if bias is None else bias.astype(np.int64))

    def _refuse_overflow(self, x: Array, w: _Weights, bias: Array) -> None:
        if w.products * 255 * w.largest + int(np.abs(bias).max()) <= _INT32[1]:
            return
        rows = w.rows().astype(np.int64)
        positive, negative = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
        low, high = min(int(x.min()) + self.input_offset, 0), max(int(x.max()) + self.input_offset, 0)
        top = bias + high * positive + low * negative
        bottom = bias + low * positive + high * negative
        bad = np.flatnonzero((top > _INT32[1]) | (bottom < _INT32[0]))
        if len(bad):
            raise KernelError(f"the sum of channel {bad[0]} can leave int32: use a smaller bias or fewer products")


def _packed(w: Array, channels: int, products: int, transposed: bool = False) -> _Weights:
    """4-bit weights, row-major (channels, products), or (products, channels) if transposed."""
    if isinstance(w, Array) and w.dtype == np.int8:
        w = w.view(np.uint8)  # bytes either way: the signs are those of the nibbles
    w = _array("w", w, np.uint8, ((channels * products + 1) // 2,))

    def rows() -> Array:
        flat = unpack_bits(w, channels * products, 4)
        return flat.reshape(products, channels).T if transposed else flat.reshape(channels, products)

    return _Weights(w, channels, products, 8, rows)


def _channels(multiplier: Any) -> int:
    """Output channels of a layer whose packed weights do not tell."""
    if not isinstance(multiplier, Array) or multiplier.ndim != 1:
        raise KernelError("multiplier must be an array with one entry per output channel")
    return len(multiplier)


def _divisor(name: str, part: int, *wholes: int) -> int:
    """`part`, which divides all of `wholes`."""
    if any(whole % part for whole in wholes):
        raise KernelError(f"{part} {name} do not divide {' and '.join(map(str, wholes))} channels")
    return part


def _windowed(
    name: str,
    x: Array,
    w: _Weights,
    kernel: Pair,
    groups: int,
    scale: tuple[Any, ...],
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    output_size: Pair | None = None,
    backend: Backend = None,
    **offsets: Any,
) -> Array:
    """Runs a convolution or depthwise convolution; `scale` is (bias, multiplier, shift)."""
    g = _window(x, w.channels, kernel, stride, padding, dilation, output_size, groups)
    layer = _Layer(x, w, *scale, **offsets)
    y = np.empty((len(x), *g.fields[4:7]), np.int8)
    executor(backend).run(name, g, layer.q, layer.input_offset, x, w.array, layer.bias, y)
    return y


def _dense(
    name: str, x: Array, w: _Weights, scale: tuple[Any, ...], w_offset: Pair = (), backend: Backend = None, **offsets: Any
) -> Array:
    """Runs a pointwise or fully connected layer over the last axis of x; `scale` is (bias, multiplier, shift)."""
    layer = _Layer(x, w, *scale, **offsets)
    y = np.empty((*x.shape[:-1], w.channels), np.int8)
    sizes = x.size // w.products, w.products, w.channels
    executor(backend).run(name, *sizes, layer.q, layer.input_offset, *w_offset, x, w.array, layer.bias, y)
    return y


# Linear layers.


def conv_s8(
    x: Array,
    w: Array,
    bias: Bias,
    multiplier: Scale,
    shift: Scale,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    output_size: Pair | None = None,
    input_offset: int = 0,
    output_offset: int = 0,
    act_min: int = -128,
    act_max: int = 127,
    backend: Backend = None,
) -> Array:
    """Convolution, grouped if the kernel has fewer channels than the input.

    Shapes   x (N, H, W, Cin), w (Cout, Kh, Kw, Cin/groups), bias (Cout,) or None, result (N, *output_size, Cout)
    Range    padding is (top, left); bottom and right follow from `output_size`, None adds none there
    Source   arm_convolve_s8
    """
    x, w = _array("x", x, np.int8, (None,) * 4), _array("w", w, np.int8, (None,) * 4)
    out_c, *kernel, in_g = w.shape
    groups = _divisor("groups", x.shape[3] // _divisor("channels of w", in_g, x.shape[3]), out_c)
    weights = _Weights(w, out_c, w[0].size, 128, lambda: w.reshape(out_c, -1))
    keywords: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "output_size": output_size}
    keywords |= {"input_offset": input_offset, "output_offset": output_offset, "act_min": act_min, "act_max": act_max}
    return _windowed("conv_s8", x, weights, kernel, groups, (bias, multiplier, shift), backend=backend, **keywords)


def conv_s4(
    x: Array, w: Array, bias: Bias, multiplier: Scale, shift: Scale, *, kernel: Pair, groups: int = 1, **keywords: Any
) -> Array:
    """`conv_s8` with 4-bit weights and the same keywords.

    Shapes   w (ceil(Cout * Kh * Kw * Cin/groups / 2),) uint8 or int8, even weights in the low nibble; kernel (Kh, Kw)
    Source   arm_convolve_s4
    """
    x, out_c = _array("x", x, np.int8, (None,) * 4), _channels(multiplier)
    groups = _divisor("groups", _integer("groups", groups, 1, _INT32[1]), x.shape[3], out_c)
    k_h, k_w = _pair("kernel", kernel, 1)
    weights = _packed(w, out_c, k_h * k_w * (x.shape[3] // groups))
    return _windowed("conv_s4", x, weights, (k_h, k_w), groups, (bias, multiplier, shift), **keywords)


def conv1x1_s8(
    x: Array, w: Array, bias: Bias, multiplier: Scale, shift: Scale, *, stride: Pair = (1, 1), **keywords: Any
) -> Array:
    """Pointwise convolution, with the other keywords of `conv_s8` but padding, dilation and output_size.

    Shapes   x (N, H, W, Cin), w (Cout, Cin), bias (Cout,) or None, result (N, ceil(H/stride), ceil(W/stride), Cout)
    Source   arm_convolve_1x1_s8_fast, with a stride arm_convolve_1x1_s8
    """
    w = _array("w", w, np.int8, (None, None))
    out_c, in_c = w.shape
    x = _array("x", x, np.int8, (None, None, None, in_c))
    if _pair("stride", stride, 1) != (1, 1):
        return conv_s8(x, w.reshape(out_c, 1, 1, in_c), bias, multiplier, shift, stride=stride, **keywords)
    weights = _Weights(w, out_c, in_c, 128, lambda: w)
    return _dense("conv1x1_s8", x, weights, (bias, multiplier, shift), **keywords)


def conv1x1_cached_s8(x: Array, w: Array, bias: Bias, multiplier: Scale, shift: Scale, **keywords: Any) -> Array:
    """`conv1x1_s8` without stride, by the routine that runs generated kernels: w is first put into the backend's cache layout.

    Shapes   as `conv1x1_s8`; w is row-major here as everywhere
    Source   csrc/backends/htpw_backend.h, `packed`
    """
    w = _array("w", w, np.int8, (None, None))
    x = _array("x", x, np.int8, (None, None, None, w.shape[1]))
    weights = _Weights(w, w.shape[0], w.shape[1], 128, lambda: w)
    return _dense("conv1x1_cached_s8", x, weights, (bias, multiplier, shift), **keywords)


def conv1x1_s4(
    x: Array, w: Array, bias: Bias, multiplier: Scale, shift: Scale, *, stride: Pair = (1, 1), **keywords: Any
) -> Array:
    """`conv1x1_s8` with 4-bit weights and the same keywords.

    Shapes   w (ceil(Cout * Cin / 2),) uint8 or int8, even weights in the low nibble
    Source   arm_convolve_1x1_s4_fast, with a stride arm_convolve_1x1_s4
    """
    x, out_c = _array("x", x, np.int8, (None,) * 4), _channels(multiplier)
    if _pair("stride", stride, 1) != (1, 1):
        return conv_s4(x, w, bias, multiplier, shift, kernel=(1, 1), stride=stride, **keywords)
    return _dense("conv1x1_s4", x, _packed(w, out_c, x.shape[3]), (bias, multiplier, shift), **keywords)


def depthwise_s8(x: Array, w: Array, bias: Bias, multiplier: Scale, shift: Scale, **keywords: Any) -> Array:
    """Depthwise convolution, with the keywords of `conv_s8`; output channel o reads input channel o // (Cout / Cin).

    Shapes   x (N, H, W, Cin), w (1, Kh, Kw, Cout), Cout a multiple of Cin, bias (Cout,) or None, result
             (N, *output_size, Cout)
    Source   arm_depthwise_conv_wrapper_s8
    """
    x, w = _array("x", x, np.int8, (None,) * 4), _array("w", w, np.int8, (1, None, None, None))
    _, *kernel, out_c = w.shape
    _divisor("channels of x", x.shape[3], out_c)
    weights = _Weights(w, out_c, w.size // out_c, 128, lambda: w.reshape(-1, out_c).T)
    return _windowed("depthwise_s8", x, weights, kernel, 1, (bias, multiplier, shift), **keywords)


def depthwise_s4(
    x: Array, w: Array, bias: Bias, multiplier: Scale, shift: Scale, *, kernel: Pair, **keywords: Any
) -> Array:
    """`depthwise_s8` with 4-bit weights and the same keywords.

    Shapes   w (ceil(Kh * Kw * Cout / 2),) uint8 or int8, even weights in the low nibble; kernel (Kh, Kw)
    Source   arm_depthwise_conv_wrapper_s4, but right for every shape (CMSIS-NN picks wrong nibbles for some odd Cin)
    """
    x, out_c = _array("x", x, np.int8, (None,) * 4), _channels(multiplier)
    _divisor("channels of x", x.shape[3], out_c)
    k_h, k_w = _pair("kernel", kernel, 1)
    weights = _packed(w, out_c, k_h * k_w, transposed=True)
    return _windowed("depthwise_s4", x, weights, (k_h, k_w), 1, (bias, multiplier, shift), **keywords)


def fully_connected_s8(
    x: Array, w: Array, bias: Bias, multiplier: Scale, shift: Scale, *, filter_offset: int = 0, **keywords: Any
) -> Array:
    """Dense layer, with the keywords of `conv1x1_s8` but stride.

    Shapes   x (B, Cin), w (Cout, Cin), bias (Cout,) or None, result (B, Cout)
    Range    filter_offset is minus the zero point of w, [-127, 128]
    Source   arm_fully_connected_s8; with arrays of multipliers and shifts arm_fully_connected_per_channel_s8
    """
    w, w_offset = _array("w", w, np.int8, (None, None)), _integer("filter_offset", filter_offset, -127, 128)
    x = _array("x", x, np.int8, (None, w.shape[1]))
    weights = _Weights(w, w.shape[0], w.shape[1], 128 + abs(w_offset), lambda: w.astype(np.int64) + w_offset)
    return _dense("fully_connected_s8", x, weights, (bias, multiplier, shift), (w_offset,), **keywords)


def fully_connected_s4(
    x: Array, w: Array, bias: Bias, multiplier: Scale, shift: Scale, *, rows: int, **keywords: Any
) -> Array:
    """`fully_connected_s8` with 4-bit weights and the same keywords but filter_offset.

    Shapes   x (B, Cin), w (ceil(rows * Cin / 2),) uint8 or int8, even weights in the low nibble, result (B, rows)
    Source   arm_fully_connected_s4
    """
    x = _array("x", x, np.int8, (None, None))
    weights = _packed(w, _integer("rows", rows, 1, _INT32[1]), x.shape[1])
    return _dense("fully_connected_s4", x, weights, (bias, multiplier, shift), **keywords)


# Pools, element-wise operators, softmax, activations.


def _pool(
    name: str,
    x: Array,
    *,
    kernel: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    output_size: Pair | None = None,
    act_min: int = -128,
    act_max: int = 127,
    backend: Backend = None,
) -> Array:
    x, clamp = _array("x", x, np.int8, (None,) * 4), _clamp(act_min, act_max)
    g = _window(x, x.shape[3], kernel, stride, padding, (1, 1), output_size)
    _, in_h, in_w, _, out_h, out_w, _, k_h, k_w, stride_h, stride_w, pad_top, pad_left, *_ = g.fields
    axes = (in_h, out_h, k_h, stride_h, pad_top), (in_w, out_w, k_w, stride_w, pad_left)
    if any(pad >= taps or (out - 1) * step - pad >= size for size, out, taps, step, pad in axes):
        raise KernelError("a pooling window lies in the padding alone: use less padding or a smaller output_size")
    if min(in_h, k_h) * min(in_w, k_w) >= 1 << 23:
        raise KernelError(f"the sum of a pooling window of {k_h} x {k_w} cells can leave int32")
    y = np.empty((len(x), *g.fields[4:7]), np.int8)
    executor(backend).run(name, g, *clamp, x, y)
    return y


def avgpool_s8(x: Array, **keywords: Any) -> Array:
    """Mean of the cells of each window that lie inside the input, to nearest, ties away from zero.

    Shapes   x (N, H, W, C), result (N, *output_size, C)
    Range    kernel (height, width); stride, padding, output_size, act_min, act_max and backend as in `conv_s8`
    Errors   also a window without a cell
    Source   arm_avgpool_s8
    """
    return _pool("avgpool_s8", x, **keywords)


def maxpool_s8(x: Array, **keywords: Any) -> Array:
    """Maximum of the same cells as `avgpool_s8`, with the same keywords. Source arm_max_pool_s8."""
    return _pool("maxpool_s8", x, **keywords)


def _elementwise(name: str, a: Array, b: Array, scalars: dict[str, int], clamp: Pair, backend: Backend) -> Array:
    """Runs add or mul; `scalars` by their C names, whose last part tells the range."""
    a = _array("a", a, np.int8, empty=True)
    b = _array("b", b, np.int8, a.shape, empty=True)
    ranges = {"multiplier": (0, _INT32[1]), "shift": (-31, 30), "offset": (-127, 128)}
    ranges |= {"left_shift": (16, 22), "out_offset": (-128, 127)}
    values = {
        key: _integer(key, value, *ranges.get(key) or ranges[key.split("_")[1]]) for key, value in scalars.items()
    }
    p = Struct("htpw_elementwise", (*(values.get(field, 0) for field in _ELEMENTWISE), *clamp))
    y = np.empty(a.shape, np.int8)
    executor(backend).run(name, a.size, p, a, b, y)
    return y


def add_s8(
    a: Array,
    b: Array,
    *,
    input1_offset: int,
    input1_mult: int,
    input1_shift: int,
    input2_offset: int,
    input2_mult: int,
    input2_shift: int,
    left_shift: int,
    out_offset: int,
    out_mult: int,
    out_shift: int,
    act_min: int = -128,
    act_max: int = 127,
    backend: Backend = None,
) -> Array:
    """Sum of two tensors of equal shape, each first rescaled from `(value + offset) << left_shift`.

    Range    left_shift [16, 22]; the sum of the two rescaled terms wraps modulo 2^32, as CMSIS-NN's does
    Source   arm_elementwise_add_s8
    """
    scalars = {"a_offset": input1_offset, "a_multiplier": input1_mult, "a_shift": input1_shift}
    scalars |= {"b_offset": input2_offset, "b_multiplier": input2_mult, "b_shift": input2_shift}
    scalars |= {"out_offset": out_offset, "out_multiplier": out_mult, "out_shift": out_shift, "left_shift": left_shift}
    return _elementwise("add_s8", a, b, scalars, _clamp(act_min, act_max), backend)


def mul_s8(
    a: Array,
    b: Array,
    *,
    input1_offset: int,
    input2_offset: int,
    out_offset: int,
    out_mult: int,
    out_shift: int,
    act_min: int = -128,
    act_max: int = 127,
    backend: Backend = None,
) -> Array:
    """Product of two tensors of equal shape. Source arm_elementwise_mul_s8."""
    scalars = {"a_offset": input1_offset, "b_offset": input2_offset}
    scalars |= {"out_offset": out_offset, "out_multiplier": out_mult, "out_shift": out_shift}
    return _elementwise("mul_s8", a, b, scalars, _clamp(act_min, act_max), backend)


def softmax_s8(x: Array, *, mult: int, shift: int, diff_min: int, backend: Backend = None) -> Array:
    """Softmax of each row; the result has scale 1/256 and zero point -128.

    Shapes   x (rows, n), n <= 511
    Range    (mult, shift) from the scale of x with 5 integer bits, mult Q0.31 >= 0, shift [0, 30]; diff_min <= 0 in LSB
             of x: values further below the maximum of their row give -128
    Source   arm_softmax_s8
    """
    x = _array("x", x, np.int8, (None, None))
    if x.shape[1] > _SOFTMAX_ROW_MAX:
        raise KernelError(f"softmax rows of {x.shape[1]} values can overflow; at most {_SOFTMAX_ROW_MAX}")
    scale = _integer("mult", mult, 0, _INT32[1]), _integer("shift", shift, 0, 30)
    limit = _integer("diff_min", diff_min, _INT32[0], 0)
    y = np.empty(x.shape, np.int8)
    executor(backend).run("softmax_s8", *x.shape, *scale, limit, x, y)
    return y


def clamp_s8(x: Array, *, act_min: int, act_max: int, backend: Backend = None) -> Array:
    """x limited to [act_min, act_max], any shape."""
    x, limits = _array("x", x, np.int8, empty=True), _clamp(act_min, act_max)
    y = np.empty(x.shape, np.int8)
    executor(backend).run("clamp_s8", x.size, *limits, x, y)
    return y


def relu_s8(x: Array, *, backend: Backend = None) -> Array:
    """max(x, 0), in LSB: right for a zero point of 0. Source arm_relu_q7."""
    return clamp_s8(x, act_min=0, act_max=127, backend=backend)


def relu6_s8(x: Array, *, backend: Backend = None) -> Array:
    """x limited to [0, 6], in LSB. Source arm_relu6_s8."""
    return clamp_s8(x, act_min=0, act_max=6, backend=backend)


def table_s8(x: Array, table: Array, *, backend: Backend = None) -> Array:
    """table[x + 128] for int8 x of any shape; table (256,) int8."""
    x, table = _array("x", x, np.int8, empty=True), _array("table", table, np.int8, (256,))
    y = np.empty(x.shape, np.int8)
    executor(backend).run("table_s8", x.size, table, x, y)
    return y


# Scalars and bit fields.


def requantise(acc: Array | int, multiplier: Scale, shift: Scale, *, backend: Backend = None) -> Array:
    """round(acc * multiplier * 2^(shift - 31)) in CMSIS-NN's two rounding steps, int32.

    Shapes   int32 arrays that broadcast together, or integers
    Range    any int32 multiplier, shift [-31, 30]; the left shift wraps modulo 2^32
    Source   arm_nn_requantize
    """
    ranges = {"acc": (acc, *_INT32), "multiplier": (multiplier, *_INT32), "shift": (shift, -31, 30)}
    parts = []
    for name, (value, low, high) in ranges.items():
        part = value if isinstance(value, Array) else np.array(_integer(name, value, low, high), np.int32)
        part = _array(name, part, np.int32, empty=True)
        if part.size and (part.min() < low or part.max() > high):
            raise KernelError(f"{name} has values outside [{low}, {high}]")
        parts.append(part)
    try:
        parts = list(np.broadcast_arrays(*parts))
    except ValueError as error:
        raise KernelError(f"shapes of acc, multiplier and shift do not fit: {error}") from None
    values = executor(backend).scalars("htpw_requantise", *(part.ravel().tolist() for part in parts))
    return np.array(values, np.int32).reshape(parts[0].shape)


def pack_bits(values: Array, bits: int, *, signed: bool = True) -> Array:
    """Fields of `bits` bits, least significant bit first, unused bits of the last byte 0 (docs/SPEC.md section 3).

    Shapes   values of any integer dtype, flattened; result (ceil(n * bits / 8),) uint8
    Range    bits [0, 32]; values must fit
    """
    bits = _integer("bits", bits, 0, 32)
    if not isinstance(values, Array) or values.dtype.kind not in "iu":
        raise KernelError(f"values must be an integer array, not {getattr(values, 'dtype', type(values).__name__)}")
    high = (1 << bits >> signed) - 1 if bits else 0
    low = -high - 1 if signed and bits else 0
    if values.size and (values.min() < low or values.max() > high):
        raise KernelError(f"values do not fit {bits} bits: [{low}, {high}]")
    planes = (values.reshape(-1, 1).astype(np.int64) >> np.arange(bits)) & 1
    return np.packbits(planes.astype(np.uint8).ravel(), bitorder="little")


def unpack_bits(stream: Array, n: int, bits: int, *, signed: bool = True, backend: Backend = None) -> Array:
    """The first n fields of a stream: the inverse of `pack_bits`; int32, or uint32 if not signed."""
    bits, n = _integer("bits", bits, 0, 32), _integer("n", n, 0, _INT32[1])
    stream = _array("stream", stream, np.uint8, empty=True)
    if stream.ndim != 1 or stream.size < (n * bits + 7) // 8:
        raise KernelError(f"stream has shape {stream.shape}, not ({(n * bits + 7) // 8},) or more")
    y = np.empty(n, np.int32 if signed else np.uint32)
    executor(backend).run(f"bits_unpack_{'signed' if signed else 'unsigned'}", stream, n, bits, y)
    return y
