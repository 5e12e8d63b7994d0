"""Softmax of int8 rows in fixed point: Q5.26 differences, Q0.31 exponentials, Q0.31 reciprocal.

Source: behaviour of CMSIS-NN arm_softmax_s8 (which follows gemmlowp).
"""

from __future__ import annotations

import numpy as np

from . import checks
from .requantise import divide_by_power_of_two, doubling_high_multiply

# exp(-1/8) and 1/3 in Q0.31.
EXP_OF_MINUS_EIGHTH = 1895147668
ONE_THIRD = 715827883
# exp(-2^k) in Q0.31 for k = -2..4: one factor per bit of the multiple of 1/4 split off below.
EXP_OF_MINUS_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
# 48/17 and -32/17 in Q2.29: the straight line Newton's iteration starts from.
NEWTON_48_17 = 1515870810
NEWTON_32_17 = -1010580540
# The exponentials are summed as Q12.19; with 2^28 or more the final shift would exceed 31, and
# CMSIS-NN builds disagree from there on.
SUM_FRACTION_DROP = 12
SUM_LIMIT = 1 << 28


def softmax_s8(x: np.ndarray, *, mult: int, shift: int, diff_min: int) -> np.ndarray:
    """Softmax of each row; result scale 1/256, zero point -128.

    Parameters
    ----------
    x : ndarray of int8, shape (rows, n)
    mult : int in [0, 2^31 - 1]
        Q31 multiplier of ``beta * input scale * 2^26``.
    shift : int in [0, 31]
        Its power of two.
    diff_min : int in [-2^31, 0]
        Differences to the row maximum below this give -128 and are not summed.

    Returns
    -------
    ndarray of int8, shape (rows, n)

    Notes
    -----
    Rounding: the high multiply with ties up, divisions by powers of two with ties away from
    zero, in the order of the code.

    Raises
    ------
    KernelArgumentError
        Wrong dtype, shape or range.
    KernelOverflowError
        A shifted difference leaves int32, or the sum of a row reaches 2^28 (512 or more
        elements equal to the maximum).
    """
    checks.int8_array("x", x, 2)
    checks.non_empty("x", x)
    mult = checks.integer("mult", mult, 0, checks.INT32_MAX)
    shift = checks.integer("shift", shift, 0, 31)
    diff_min = checks.integer("diff_min", diff_min, checks.INT32_MIN, 0)

    values = x.astype(np.int64)
    diff = values - values.max(axis=1, keepdims=True)
    kept = diff >= diff_min
    scaled = checks.sum_in_int32("a shifted difference", np.where(kept, diff, 0) << shift)
    exps = _exp(_saturating_doubling_high_multiply(scaled, np.int64(mult)))
    total = np.where(kept, divide_by_power_of_two(exps, SUM_FRACTION_DROP), 0).sum(axis=1)
    if total.size and total.max() >= SUM_LIMIT:
        raise checks.KernelOverflowError(f"a sum of exponentials reaches 2^28: {int(total.max())}")

    # total >= 2^19, the exponential of the maximum itself, so the reciprocal is well defined.
    headroom = 32 - _bit_length(total)
    reciprocal = _reciprocal((total << headroom) - (1 << 31))[:, None]
    places = (35 - headroom)[:, None]
    quotient = divide_by_power_of_two(_saturating_doubling_high_multiply(reciprocal, exps), places)
    result = np.minimum(np.maximum(quotient - 128, checks.INT8_MIN), checks.INT8_MAX)
    return np.where(kept, result, checks.INT8_MIN).astype(np.int8)


def _saturating_doubling_high_multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As ``doubling_high_multiply``, with -2^31 * -2^31 giving 2^31 - 1."""
    return np.minimum(doubling_high_multiply(a, b), checks.INT32_MAX)


def _exp(v: np.ndarray) -> np.ndarray:
    """Return exp(v) in Q0.31 for v <= 0 in Q5.26, as int64.

    v is split into a multiple of 1/4 and a rest in [-1/4, 0). The rest is expanded around its
    middle, -1/8, to fourth order; each bit of the multiple contributes a stored factor.
    """
    rest = (v & ((1 << 24) - 1)) - (1 << 24)
    quarters = rest - v
    x = (rest << 5) + (1 << 28)
    x2 = _saturating_doubling_high_multiply(x, x)
    x3 = _saturating_doubling_high_multiply(x2, x)
    x4_quarter = divide_by_power_of_two(_saturating_doubling_high_multiply(x2, x2), 2)
    # x + (x^2 + (x^3 + x^4/4)/3)/2
    third = _saturating_doubling_high_multiply(x4_quarter + x3, np.int64(ONE_THIRD))
    series = x + divide_by_power_of_two(third + x2, 1)
    scale = np.int64(EXP_OF_MINUS_EIGHTH)
    result = scale + _saturating_doubling_high_multiply(series, scale)
    for bit, factor in enumerate(EXP_OF_MINUS_POWERS):
        scaled = _saturating_doubling_high_multiply(result, np.int64(factor))
        result = np.where(quarters & (1 << (24 + bit)), scaled, result)
    # The split gives a quarter too much for v = 0, and exp(0) = 1 is not a Q0.31 number anyway.
    return np.where(v == 0, checks.INT32_MAX, result)


def _reciprocal(v: np.ndarray) -> np.ndarray:
    """Return 1/(1 + v) in Q0.31 for v in [0, 1) as Q0.31, by three Newton steps."""
    half = (v + (1 << 31)) >> 1  # (1 + v)/2
    x = NEWTON_48_17 + _saturating_doubling_high_multiply(half, np.int64(NEWTON_32_17))
    for _ in range(3):
        error = (1 << 29) - _saturating_doubling_high_multiply(half, x)
        x = x + _saturating_shift(_saturating_doubling_high_multiply(x, error), 2)
    return _saturating_shift(x, 1)


def _saturating_shift(value: np.ndarray, places: int) -> np.ndarray:
    return np.minimum(np.maximum(value << places, checks.INT32_MIN), checks.INT32_MAX)


def _bit_length(value: np.ndarray) -> np.ndarray:
    """Return the number of significant bits of positive int64 values below 2^32."""
    powers = np.int64(1) << np.arange(32, dtype=np.int64)
    return (value[:, None] >= powers).sum(axis=1)
