"""Fully connected layer: one vector-matrix product per row of the batch.

Source: section 6 of the specification; behaviour of CMSIS-NN arm_fully_connected_s8,
arm_fully_connected_per_channel_s8 and arm_fully_connected_s4.
"""

from __future__ import annotations

import numpy as np

from . import checks
from .bits import unpack_s4
from .requantise import requantise_to_s8
from .windows import DIMENSION_MAX


def fully_connected_s8(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray | int,
    shift: np.ndarray | int,
    *,
    input_offset: int = 0,
    filter_offset: int = 0,
    output_offset: int = 0,
    act_min: int = -128,
    act_max: int = 127,
) -> np.ndarray:
    """Compute ``out(bias[o] + sum_i (x[b, i] + input_offset) * (w[o, i] + filter_offset))``.

    Parameters
    ----------
    x : ndarray of int8, shape (B, Cin)
    w : ndarray of int8, shape (Cout, Cin)
    bias : ndarray of int32, shape (Cout,), or None for zeros
    multiplier, shift : int (per tensor) or ndarray of int32, shape (Cout,) (per channel)
        shift in [-31, 30].
    input_offset, filter_offset : int in [-127, 128]
        Minus the zero points of x and w.
    output_offset : int in [-128, 127]
        Zero point of the result.
    act_min, act_max : int in [-128, 127], act_min <= act_max

    Returns
    -------
    ndarray of int8, shape (B, Cout)

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
    checks.int8_array("x", x, 2)
    checks.int8_array("w", w, 2)
    checks.non_empty("x", x)
    cout, cin = w.shape
    if cout == 0 or cin != x.shape[1]:
        raise checks.KernelArgumentError(f"w {w.shape} does not fit x {x.shape}")
    bias = checks.bias(bias, cout)
    for name, value in (("multiplier", multiplier), ("shift", shift)):
        if isinstance(value, np.ndarray):
            checks.per_channel(name, value, cout)
    input_offset = checks.input_offset("input_offset", input_offset)
    filter_offset = checks.input_offset("filter_offset", filter_offset)
    output_offset = checks.output_offset("output_offset", output_offset)
    act_min, act_max = checks.activation_range(act_min, act_max)

    # float64 for BLAS, exact as in conv.py: |product| <= 255*255 < 2^16, so 2^37 terms fit 2^53.
    products = (x.astype(np.float64) + input_offset) @ (w.astype(np.float64) + filter_offset).T
    sums = checks.sum_in_int32("a fully connected sum", products.astype(np.int64) + bias)
    return requantise_to_s8(sums, multiplier, shift, output_offset, act_min, act_max)


def fully_connected_s4(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray | int,
    shift: np.ndarray | int,
    *,
    rows: int,
    **keywords,
) -> np.ndarray:
    """Fully connected layer with packed int4 weights.

    Parameters
    ----------
    x : ndarray of int8, shape (B, Cin)
    w : ndarray of uint8 or int8, shape (ceil(rows*Cin / 2),)
        Weights in [-8, 7] in the order (rows, Cin), even index in the low nibble.
    rows : int
        Cout; it cannot be read off a scalar multiplier.
    bias, multiplier, shift, keywords
        As ``fully_connected_s8``.

    Returns
    -------
    ndarray of int8, shape (B, rows)

    Raises
    ------
    KernelArgumentError, KernelOverflowError
        As ``fully_connected_s8``, and for packed weights of a wrong length.
    """
    checks.int8_array("x", x, 2)
    rows = checks.integer("rows", rows, 1, DIMENSION_MAX)
    w = unpack_s4(w, (rows, x.shape[1]))
    return fully_connected_s8(x, w, bias, multiplier, shift, **keywords)
