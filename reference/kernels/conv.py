"""Convolution, int8 activations, int8 or int4 weights, grouped, strided, dilated, padded.

A 1-D convolution is the same with H = Kh = 1.

Source: section 6 of the specification; behaviour of CMSIS-NN arm_convolve_s8 and arm_convolve_s4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import checks
from .bits import unpack_s4
from .requantise import requantise_to_s8
from .windows import DIMENSION_MAX, windows


def conv_s8(
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
    """Convolve: ``out(bias[o] + sum (x[...] + input_offset) * w[o, ky, kx, i])``.

    Parameters
    ----------
    x : ndarray of int8, shape (N, H, W, Cin)
    w : ndarray of int8, shape (Cout, Kh, Kw, Cin/groups)
        Symmetric weights. The number of groups follows from the shapes; output channel o reads
        the input channels of group ``o / (Cout/groups)``.
    bias : ndarray of int32, shape (Cout,), or None for zeros
    multiplier, shift : ndarray of int32, shape (Cout,)
        Requantisation per output channel; shift in [-31, 30].
    stride, dilation : (vertical, horizontal)
    padding : (top, left)
    output_size : (Hout, Wout) or None
        None: ``floor((in + pad - (K-1)*dilation - 1)/stride) + 1`` per axis, that is no padding at
        the bottom and right. Otherwise the size that is computed; windows may then reach beyond
        the bottom and right, or lie outside altogether.
    input_offset : int in [-127, 128]
        Minus the zero point of x; added to every element that is read. A padded position
        contributes exactly 0.
    output_offset : int in [-128, 127]
        Zero point of the result.
    act_min, act_max : int in [-128, 127], act_min <= act_max

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
    if 0 in w.shape:
        raise checks.KernelArgumentError(f"w has an empty dimension: shape {w.shape}")
    batch, height, width, cin = x.shape
    cout, _, _, group_in = w.shape
    groups, rest = divmod(cin, group_in)
    if rest or cout % groups:
        raise checks.KernelArgumentError(f"w {w.shape} does not divide {cin} input channels into groups")
    bias = checks.bias(bias, cout)
    checks.per_channel("multiplier", multiplier, cout)
    checks.per_channel("shift", shift, cout)
    input_offset = checks.input_offset("input_offset", input_offset)
    output_offset = checks.output_offset("output_offset", output_offset)
    act_min, act_max = checks.activation_range(act_min, act_max)
    geometry = windows((height, width), w.shape[1:3], stride, padding, dilation, output_size)

    # Inner products run in float64 because that is the type BLAS multiplies fast, and it is exact
    # here: a product is at most 255*128 < 2^15 in magnitude and 2^37 of them would be needed to
    # reach 2^53, below which every integer is a float64. No partial sum in any order is rounded.
    values = x.astype(np.float64) + input_offset
    # (Kh, Kw, groups, Cin/groups, Cout/groups): one matrix per tap and group.
    taps = w.reshape(groups, cout // groups, *w.shape[1:]).transpose(2, 3, 0, 4, 1)
    taps = np.ascontiguousarray(taps, np.float64)
    acc = np.zeros((batch, *geometry.output, cout), np.float64)
    for (ky, kx), out, src in geometry.taps():
        seen = values[src]
        if groups == 1:
            products = seen.reshape(-1, cin) @ taps[ky, kx, 0]
        else:
            by_group = seen.reshape(-1, groups, group_in).transpose(1, 0, 2)
            products = (by_group @ taps[ky, kx]).transpose(1, 0, 2)
        acc[out] += products.reshape(*seen.shape[:3], cout)
    sums = checks.sum_in_int32("a convolution sum", acc.astype(np.int64) + bias)
    return requantise_to_s8(sums, multiplier, shift, output_offset, act_min, act_max)


def conv_s4(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray,
    shift: np.ndarray,
    *,
    kernel: Sequence[int],
    **keywords,
) -> np.ndarray:
    """Convolve with packed int4 weights; no groups.

    Parameters
    ----------
    x : ndarray of int8, shape (N, H, W, Cin)
    w : ndarray of uint8 or int8, shape (ceil(Cout*Kh*Kw*Cin / 2),)
        Weights in [-8, 7] in the order (Cout, Kh, Kw, Cin), even index in the low nibble, rows
        not padded; Cout is the length of ``multiplier``.
    kernel : (Kh, Kw)
    bias, multiplier, shift, keywords
        As ``conv_s8``.

    Returns
    -------
    ndarray of int8, shape (N, Hout, Wout, Cout)

    Raises
    ------
    KernelArgumentError, KernelOverflowError
        As ``conv_s8``, and for packed weights of a wrong length.
    """
    checks.int8_array("x", x, 4)
    kernel = checks.pair("kernel", kernel, 1, DIMENSION_MAX)
    w = unpack_s4(w, (np.size(multiplier), *kernel, x.shape[3]))
    return conv_s8(x, w, bias, multiplier, shift, **keywords)
