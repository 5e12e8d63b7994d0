"""Pointwise convolution: one matrix product for all cells.

Source: section 6 of the specification; behaviour of CMSIS-NN arm_convolve_1x1_s8_fast (stride 1),
arm_convolve_1x1_s8 (any stride) and their int4 forms.
"""

from __future__ import annotations

import numpy as np

from . import checks
from .bits import unpack_s4
from .conv import conv_s8


def conv1x1_s8(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray,
    shift: np.ndarray,
    **keywords,
) -> np.ndarray:
    """Mix the channels of each cell: ``out(bias[o] + sum_i (x[..., i] + input_offset) * w[o, i])``.

    Parameters
    ----------
    x : ndarray of int8, shape (N, H, W, Cin)
    w : ndarray of int8, shape (Cout, Cin)
    bias : ndarray of int32, shape (Cout,), or None for zeros
    multiplier, shift : ndarray of int32, shape (Cout,)
    keywords
        Those of ``conv_s8``: stride, padding, dilation, output_size, input_offset,
        output_offset, act_min, act_max. The specification uses stride 1 and no padding only.

    Returns
    -------
    ndarray of int8, shape (N, Hout, Wout, Cout)

    Notes
    -----
    A convolution with a 1x1 kernel by definition, and computed as one: a single tap, hence a
    single matrix product. Rounding and aliasing as ``conv_s8``.

    Raises
    ------
    KernelArgumentError, KernelOverflowError
        As ``conv_s8``.
    """
    checks.int8_array("w", w, 2)
    return conv_s8(x, w[:, None, None, :], bias, multiplier, shift, **keywords)


def conv1x1_s4(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray,
    shift: np.ndarray,
    **keywords,
) -> np.ndarray:
    """Mix channels with packed int4 weights.

    Parameters
    ----------
    x : ndarray of int8, shape (N, H, W, Cin)
    w : ndarray of uint8 or int8, shape (ceil(Cout*Cin / 2),)
        Weights in [-8, 7] in the order (Cout, Cin), even index in the low nibble; Cout is the
        length of ``multiplier``.
    bias, multiplier, shift, keywords
        As ``conv1x1_s8``.

    Returns
    -------
    ndarray of int8, shape (N, Hout, Wout, Cout)

    Raises
    ------
    KernelArgumentError, KernelOverflowError
        As ``conv_s8``, and for packed weights of a wrong length.
    """
    checks.int8_array("x", x, 4)
    w = unpack_s4(w, (np.size(multiplier), x.shape[3]))
    return conv1x1_s8(x, w, bias, multiplier, shift, **keywords)
