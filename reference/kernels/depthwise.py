"""Depthwise convolution: every output channel looks at one input channel.

Source: section 6 of the specification; behaviour of CMSIS-NN arm_depthwise_conv_wrapper_s8 and
_s4 (for int4 with odd Cin and a channel multiplier CMSIS-NN has a defect that is not followed).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import checks
from .bits import unpack_s4
from .requantise import requantise_to_s8
from .windows import DIMENSION_MAX, windows


def depthwise_s8(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray,
    shift: np.ndarray,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    output_size: Sequence[int] | None = None,
    input_offset: int = 0,
    output_offset: int = 0,
    act_min: int = -128,
    act_max: int = 127,
) -> np.ndarray:
    """Convolve each channel: ``out(bias[o] + sum (x[..., o/mult] + input_offset) * w[0, ky, kx, o])``.

    Parameters
    ----------
    x : ndarray of int8, shape (N, H, W, Cin)
    w : ndarray of int8, shape (1, Kh, Kw, Cout)
        Cout = Cin * mult; output channel o reads input channel ``o / mult``, floored.
    bias : ndarray of int32, shape (Cout,), or None for zeros
    multiplier, shift : ndarray of int32, shape (Cout,)
    stride, padding, dilation, output_size, input_offset, output_offset, act_min, act_max
        As ``conv_s8``.

    Returns
    -------
    ndarray of int8, shape (N, Hout, Wout, Cout)

    Notes
    -----
    Rounding: ``requantise``, once per output. Aliasing: the arguments are never written.

    Raises
    ------
    KernelArgumentError
        Wrong dtype, shape or range.
    KernelOverflowError
        A finished sum, or its left shift, leaves int32.
    """
    checks.int8_array("x", x, 4)
    checks.int8_array("w", w, 4)
    checks.non_empty("x", x)
    checks.non_empty("w", w)
    batch, height, width, cin = x.shape
    cout = w.shape[3]
    channel_multiplier, rest = divmod(cout, cin)
    if w.shape[0] != 1 or rest:
        raise checks.KernelArgumentError(f"w {w.shape} does not fit {cin} input channels")
    bias = checks.bias(bias, cout)
    checks.per_channel("multiplier", multiplier, cout)
    checks.per_channel("shift", shift, cout)
    input_offset = checks.input_offset("input_offset", input_offset)
    output_offset = checks.output_offset("output_offset", output_offset)
    act_min, act_max = checks.activation_range(act_min, act_max)
    geometry = windows((height, width), w.shape[1:3], stride, padding, dilation, output_size)

    # No inner product over channels here, so nothing for BLAS: plain int64 multiply and add.
    values = x.astype(np.int64) + input_offset
    if channel_multiplier > 1:
        values = np.repeat(values, channel_multiplier, axis=3)
    taps = w[0].astype(np.int64)
    acc = np.zeros((batch, *geometry.output, cout), np.int64)
    for (ky, kx), out, src in geometry.taps():
        acc[out] += values[src] * taps[ky, kx]
    sums = checks.sum_in_int32("a depthwise sum", acc + bias)
    return requantise_to_s8(sums, multiplier, shift, output_offset, act_min, act_max)


def depthwise_s4(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray,
    shift: np.ndarray,
    *,
    kernel: Sequence[int],
    **keywords,
) -> np.ndarray:
    """Convolve each channel with packed int4 weights.

    Parameters
    ----------
    x : ndarray of int8, shape (N, H, W, Cin)
    w : ndarray of uint8 or int8, shape (ceil(Kh*Kw*Cout / 2),)
        Weights in [-8, 7] in the order (Kh, Kw, Cout), even index in the low nibble; Cout is the
        length of ``multiplier``.
    kernel : (Kh, Kw)
    bias, multiplier, shift, keywords
        As ``depthwise_s8``.

    Returns
    -------
    ndarray of int8, shape (N, Hout, Wout, Cout)

    Raises
    ------
    KernelArgumentError, KernelOverflowError
        As ``depthwise_s8``, and for packed weights of a wrong length.
    """
    kernel = checks.pair("kernel", kernel, 1, DIMENSION_MAX)
    w = unpack_s4(w, (1, *kernel, np.size(multiplier)))
    return depthwise_s8(x, w, bias, multiplier, shift, **keywords)
