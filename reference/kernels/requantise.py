"""Requantisation: from an int32 sum to the scale of the output, the one place that rounds.

Two roundings follow each other and both are observable in the result, so they must never be
merged into one (that would be the "single rounding" flavour, which differs by 1 in about one
output of a thousand).

Source: section 2 of the specification; behaviour of CMSIS-NN arm_nn_requantize.
"""

from __future__ import annotations

import numpy as np

from . import checks

SHIFT_MIN, SHIFT_MAX = -31, 30


def doubling_high_multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute ``(a*b + 2^30) >> 31``, the high half of twice the product.

    Shapes   a and b broadcast against each other; the result has the broadcast shape
    Range    int64 arrays holding int32 values; the result fits int32 except for
             a = b = -2^31, which gives 2^31
    Rounding to nearest, ties towards +infinity
    Errors   none; the callers check their ranges
    Source   behaviour of CMSIS-NN arm_nn_doubling_high_mult_no_sat
    """
    # |a*b| <= 2^62, so the int64 product and the added 2^30 are exact.
    return (a * b + (1 << 30)) >> 31


def divide_by_power_of_two(value: np.ndarray, exponent: np.ndarray | int) -> np.ndarray:
    """Divide by 2^exponent.

    Shapes   exponent broadcasts against value
    Range    value int64 holding int32 values, exponent in [0, 31]
    Rounding to nearest, ties away from zero
    Errors   none; the callers check their ranges
    Source   behaviour of CMSIS-NN arm_nn_divide_by_power_of_two
    """
    mask = (np.int64(1) << np.asarray(exponent, np.int64)) - 1
    remainder = value & mask
    # A negative value was floored away from zero already, hence its tie must not be raised back:
    # the threshold moves up by one. With exponent 0 remainder and mask are 0 and nothing is added.
    threshold = (mask >> 1) + (value < 0)
    return (value >> exponent) + (remainder > threshold)


def requantise(acc: np.ndarray, multiplier: np.ndarray | int, shift: np.ndarray | int) -> np.ndarray:
    """Scale sums by ``multiplier * 2^(shift - 31)``, exactly as CMSIS-NN does by default.

    Parameters
    ----------
    acc : ndarray of int32 or int64, any shape (..., C)
        Sums in units of (input scale * weight scale), all within int32.
    multiplier : int or ndarray of int32, shape (C,)
        Q31 multiplier, any int32 value; a specification multiplier m is ``m << 16`` here.
    shift : int or ndarray of int32, shape (C,)
        Power of two in [-31, 30]; positive is to the left and happens before the multiplication.

    Returns
    -------
    ndarray of int32, the shape of ``acc`` (broadcast with multiplier and shift)
        In output units, before the zero point.

    Notes
    -----
    Rounding: first ``(acc << max(shift, 0)) * multiplier`` to a high half with ties up, then the
    division by ``2^max(-shift, 0)`` with ties away from zero.
    Aliasing: the arguments are never written.

    Raises
    ------
    KernelArgumentError
        Wrong dtype or a shift out of range.
    KernelOverflowError
        ``acc``, ``acc << shift`` or the result does not fit int32. A C kernel would wrap there.
    """
    if not isinstance(acc, np.ndarray) or acc.dtype not in (np.int32, np.int64):
        raise checks.KernelArgumentError("acc must be an int32 or int64 array")
    wide = checks.sum_in_int32("a sum", acc.astype(np.int64, copy=False))
    multiplier = _int32_operand("multiplier", multiplier, checks.INT32_MIN, checks.INT32_MAX)
    shift = _int32_operand("shift", shift, SHIFT_MIN, SHIFT_MAX)
    try:
        np.broadcast_shapes(wide.shape, multiplier.shape, shift.shape)
    except ValueError:
        raise checks.KernelArgumentError(
            f"multiplier {multiplier.shape} and shift {shift.shape} do not fit sums {wide.shape}"
        ) from None
    left = np.maximum(shift, 0)
    right = np.maximum(-shift, 0)
    if left.any():
        # At most 2^31 * 2^30: the shift itself is exact in int64.
        wide = checks.sum_in_int32("a sum shifted left", wide << left)
    high = checks.sum_in_int32("a scaled sum", doubling_high_multiply(wide, multiplier))
    return divide_by_power_of_two(high, right).astype(np.int32)


def requantise_to_s8(
    acc: np.ndarray,
    multiplier: np.ndarray | int,
    shift: np.ndarray | int,
    output_offset: int,
    act_min: int,
    act_max: int,
) -> np.ndarray:
    """Requantise, add the output zero point, clamp: the ``out`` of the specification.

    Shapes   acc (..., C), multiplier and shift (C,) or scalar; the result has the shape of acc
    Range    as ``requantise``; act_min <= act_max in int8 are checked by the caller
    Rounding ``requantise``, once per output
    Errors   those of ``requantise``; KernelOverflowError if adding the zero point leaves int32
    Source   section 2 of the specification
    """
    scaled = requantise(acc, multiplier, shift).astype(np.int64)
    moved = checks.sum_in_int32("an output with its zero point", scaled + output_offset)
    return np.minimum(np.maximum(moved, act_min), act_max).astype(np.int8)


def _int32_operand(name: str, value: np.ndarray | int, low: int, high: int) -> np.ndarray:
    if isinstance(value, np.ndarray):
        if value.dtype != np.int32:
            raise checks.KernelArgumentError(f"{name} must be int32, not {value.dtype}")
        if value.size and not (low <= value.min() and value.max() <= high):
            raise checks.KernelArgumentError(f"{name} must be in [{low}, {high}]")
        return value.astype(np.int64)
    return np.asarray(checks.integer(name, value, low, high), np.int64)
