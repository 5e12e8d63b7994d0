"""Element by element sum and product of two int8 tensors of equal shape.

Parameter names follow CMSIS-NN: offsets of inputs are minus their zero points, ``out_offset`` is
the zero point of the result, multipliers are Q31, shifts are powers of two (positive = left).

Source: section 6 of the specification (add); behaviour of CMSIS-NN arm_elementwise_add_s8 and
arm_elementwise_mul_s8.
"""

from __future__ import annotations

import numpy as np

from . import checks
from .requantise import requantise, requantise_to_s8

# Below 16 the DSP build of CMSIS-NN computes something else, above 22 the sum could overflow.
LEFT_SHIFT_MIN, LEFT_SHIFT_MAX = 16, 22


def add_s8(
    a: np.ndarray,
    b: np.ndarray,
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
) -> np.ndarray:
    """Add: ``out(f(a) + f(b))`` with ``f(q) = requantise((q + offset) << left_shift, mult, shift)``.

    Parameters
    ----------
    a, b : ndarray of int8, equal shapes
    input1_offset, input2_offset : int in [-127, 128]
    input1_mult, input2_mult, out_mult : int32
    input1_shift, input2_shift, out_shift : int in [-31, 30]
    left_shift : int in [16, 22]
        Fraction bits of the common scale that both inputs are brought to.
    out_offset : int in [-128, 127]
    act_min, act_max : int in [-128, 127], act_min <= act_max

    Returns
    -------
    ndarray of int8, the shape of a

    Notes
    -----
    Rounding: ``requantise`` three times, for each input and for the result.

    Raises
    ------
    KernelArgumentError
        Wrong dtype, shape or range.
    KernelOverflowError
        A scaled input or their sum leaves int32.
    """
    _check_operands(a, b)
    left_shift = checks.integer("left_shift", left_shift, LEFT_SHIFT_MIN, LEFT_SHIFT_MAX)
    input1_offset = checks.input_offset("input1_offset", input1_offset)
    input2_offset = checks.input_offset("input2_offset", input2_offset)
    out_offset = checks.output_offset("out_offset", out_offset)
    act_min, act_max = checks.activation_range(act_min, act_max)
    scaled_a = requantise((a.astype(np.int64) + input1_offset) << left_shift, input1_mult, input1_shift)
    scaled_b = requantise((b.astype(np.int64) + input2_offset) << left_shift, input2_mult, input2_shift)
    total = scaled_a.astype(np.int64) + scaled_b
    return requantise_to_s8(total, out_mult, out_shift, out_offset, act_min, act_max)


def mul_s8(
    a: np.ndarray,
    b: np.ndarray,
    *,
    input1_offset: int,
    input2_offset: int,
    out_offset: int,
    out_mult: int,
    out_shift: int,
    act_min: int = -128,
    act_max: int = 127,
) -> np.ndarray:
    """Multiply: ``out((a + input1_offset) * (b + input2_offset))``.

    Parameters
    ----------
    a, b : ndarray of int8, equal shapes
    input1_offset, input2_offset : int in [-127, 128]
    out_offset : int in [-128, 127]
    out_mult : int32
    out_shift : int in [-31, 30]
    act_min, act_max : int in [-128, 127], act_min <= act_max

    Returns
    -------
    ndarray of int8, the shape of a

    Notes
    -----
    Rounding: ``requantise``, once per output; the product itself is exact (at most 2^16).

    Raises
    ------
    KernelArgumentError, KernelOverflowError
        As ``add_s8``.
    """
    _check_operands(a, b)
    input1_offset = checks.input_offset("input1_offset", input1_offset)
    input2_offset = checks.input_offset("input2_offset", input2_offset)
    out_offset = checks.output_offset("out_offset", out_offset)
    act_min, act_max = checks.activation_range(act_min, act_max)
    product = (a.astype(np.int64) + input1_offset) * (b.astype(np.int64) + input2_offset)
    return requantise_to_s8(product, out_mult, out_shift, out_offset, act_min, act_max)


def _check_operands(a: np.ndarray, b: np.ndarray) -> None:
    for name, value in (("a", a), ("b", b)):
        if not isinstance(value, np.ndarray) or value.dtype != np.int8:
            raise checks.KernelArgumentError(f"{name} must be an int8 array")
    if a.shape != b.shape:
        raise checks.KernelArgumentError(f"shapes differ: {a.shape} and {b.shape}")
