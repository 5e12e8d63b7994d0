"""Integer multipliers from float scales as TensorFlow Lite derives them, and float32 scales from which it derives given multipliers.

A .tflite file has no multipliers: the interpreter makes them, in double, from float32 scales. A multiplier of up to 24 significant
bits is a float32 itself; a wider one is found, where it can be, by trying the other scales of the same operator.
"""

import math

import numpy as np

TRIES = 1 << 20  # mantissas of a free scale that a search goes through
ONE_HALF = (1 << 30, 0)
TOLERANCE = 2.0**-6 * 1.01  # of a mantissa, from the rounding of two multipliers of 31 bits


def quantize_multiplier(scale: float) -> tuple[int, int]:
    """(Q31 multiplier, shift) of a scale: QuantizeMultiplier of TensorFlow Lite, which all its integer kernels use."""
    if scale == 0 or not math.isfinite(scale):
        return 0, 0
    fraction, shift = math.frexp(scale)
    multiplier = math.floor(abs(fraction) * 2**31 + 0.5)  # round half away from zero; the sum is exact
    if multiplier == 1 << 31:
        multiplier, shift = 1 << 30, shift + 1
    if shift < -31:
        return 0, 0
    return (multiplier if fraction > 0 else -multiplier), shift


def real(multiplier: int, shift: int) -> float:
    """What a multiplier stands for, exact."""
    return math.ldexp(float(multiplier), shift - 31)


def mean_multiplier(scale: float, count: int) -> tuple[int, int]:
    """That of a MEAN over `count` elements, which requantises their sum: 1/count goes into the multiplier, cut and not rounded."""
    multiplier, shift = quantize_multiplier(scale)
    more = min(count.bit_length() - 1, 32, 31 + shift)
    return (multiplier << more) // count, shift - more


def mean_scales(multiplier: int, shift: int, count: int) -> tuple[float, float] | None:
    """float32 scales (input, output) of a MEAN over `count` elements that derives this multiplier, or None."""
    more = count.bit_length() - 1
    for whole in range((multiplier * count) >> more, (((multiplier + 1) * count) >> more) + 1):
        target = real(whole, shift + more)
        if not 1 << 30 <= whole < 1 << 31:
            continue
        for pair in _pairs_between(target * (1 - 2.0**-32), target * (1 + 2.0**-32)):
            if mean_multiplier(pair[0] / pair[1], count) == (multiplier, shift):
                return pair
    return None


def _mantissas(values: np.ndarray) -> np.ndarray:
    """Q31 multipliers of positive values; the exponents are known to whoever asks."""
    return np.floor(np.frexp(values)[0] * 2.0**31 + 0.5).astype(np.int64)


def _units():
    """float32 scales in [1, 2), as double, in parts that grow: most searches end early."""
    start, count = 0, 1 << 12
    while start < TRIES:
        yield 1 + np.arange(start, start + count, dtype=np.float64) * 2.0**-23
        start, count = start + count, min(4 * count, TRIES - start - count)


def linear_scales(multipliers: np.ndarray, shifts: np.ndarray) -> tuple[float, float, np.ndarray] | None:
    """float32 scales (input, output, weights (channels,)) from which a convolution derives these multipliers >= 2^30, or None.

    Multipliers of up to 24 significant bits need no search. Wider ones come from a float network's scales, m_c = r * w_c to the nearest
    integer with one ratio r = input / output for all channels and w_c of 24 bits. So r is one of the 2^23 ratios of the first multiplier
    to a float32 mantissa: each further channel leaves one in 32 of them.
    """
    reals = np.ldexp(multipliers.astype(np.float64), shifts.astype(int) - 31)
    for pair in _ratios(np.unique(multipliers)):
        weights = (reals * (pair[1] / pair[0])).astype(np.float32)
        if all(quantize_multiplier(pair[0] * float(w) / pair[1]) == (m, s)
               for w, m, s in zip(weights, multipliers.tolist(), shifts.tolist(), strict=True)):
            return *pair, weights
    return None


def _ratios(multipliers: np.ndarray):
    """Pairs of float32 scales whose ratio may give all of these Q31 multipliers; (1, 1) first."""
    yield 1.0, 1.0
    m = multipliers[::-1] * 2.0**-30  # mantissas in [1, 2), the most exact one first
    for start in range(0, 1 << 23, TRIES):
        ratio = m[0] / (1 + np.arange(start, start + TRIES) * 2.0**-23)
        ratio = np.where(ratio < 1, 2 * ratio, ratio)
        for other in m[1:]:
            u = _mantissa(other / ratio)
            ratio = ratio[np.abs(u - np.rint(u)) < TOLERANCE]
        for r in ratio[:16]:
            u = np.rint(_mantissa(m / r)) * 2.0**-23
            wide = m / u / r  # 1 or so, or half, where the product of mantissas has a digit more
            parts = np.where(wide < 0.75, 2.0, 1.0) * m / u
            low, high = np.max(parts * (1 - 2.0**-31 / m)), np.min(parts * (1 + 2.0**-31 / m))
            if low < high:
                yield from _pairs_between(low, high)


def _mantissa(u: np.ndarray) -> np.ndarray:
    """Mantissas of numbers in (1/2, 2), in units of the last bit of a float32."""
    return np.where(u < 1, 2 * u, u) * 2.0**23


def _pairs_between(low: float, high: float):
    """A few pairs of float32 scales with a ratio in an interval."""
    for ins in _units():
        outs = (ins / ((low + high) / 2)).astype(np.float32).astype(np.float64)
        ratio = ins / outs
        found = np.flatnonzero((ratio > low) & (ratio < high))[:4]
        yield from ((float(ins[i]), float(outs[i])) for i in found)
        if found.size:
            return


def add_multipliers(first: float, second: float, out: float) -> tuple[tuple[int, int], ...]:
    """What TensorFlow Lite's int8 ADD derives from its three scales (left shift 20)."""
    twice = 2 * max(first, second)
    return tuple(map(quantize_multiplier, (first / twice, second / twice, twice / ((1 << 20) * out))))


def add_scales(multipliers: tuple[int, int, int], shifts: tuple[int, int, int]) -> tuple[float, float, float] | None:
    """float32 scales of both inputs and the output of an ADD that derives these multipliers, or None.

    One input's must be exactly 1/2, which is what TensorFlow Lite gives the larger scale.
    """
    wanted = tuple(zip(multipliers, shifts, strict=True))
    if ONE_HALF not in wanted[:2] or 0 in multipliers:
        return None
    big = wanted[:2].index(ONE_HALF)
    for larger in _units():
        other = (2 * larger * real(*wanted[1 - big])).astype(np.float32).astype(np.float64)
        out = (2 * larger / (real(*wanted[2]) * (1 << 20))).astype(np.float32).astype(np.float64)
        good = (_mantissas(other / (2 * larger)) == multipliers[1 - big]) & (_mantissas(2 * larger / ((1 << 20) * out)) == multipliers[2])
        for i in np.flatnonzero(good)[:8]:
            pair = (larger[i], other[i]) if big == 0 else (other[i], larger[i])
            if add_multipliers(*pair, out[i]) == wanted:
                return float(pair[0]), float(pair[1]), float(out[i])
    return None


def softmax_scale(multiplier: int, shift: int, span: int) -> float | None:
    """float32 scale of the scores from which an int8 SOFTMAX of beta 1 derives these, or None; it takes factors above 1 alone."""
    if real(multiplier, shift) <= 1:
        return None
    scale = float(np.float32(math.ldexp(real(multiplier, shift), -26)))
    found = softmax_multiplier(scale)
    far = min(found[2], 255) == min(span, 255)  # scores are never further apart
    return scale if scale > 0 and found[:2] == (multiplier, shift) and far else None


def softmax_multiplier(scale: float, beta: float = 1.0) -> tuple[int, int, int]:
    """(multiplier, shift, range) that an int8 SOFTMAX derives: 5 integer bits."""
    multiplier, shift = quantize_multiplier(min(beta * scale * (1 << 26), 2.0**31 - 1))
    return multiplier, shift, math.floor(31 * (1 << 26) / 2.0**shift)
