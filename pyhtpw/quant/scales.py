"""Scales: the range of an activation, the multiplier and shift of a real factor."""

from dataclasses import dataclass

import numpy as np

from pyhtpw.errors import QuantiseError
from pyhtpw.image.integer import Requant

CLIP_GRID = np.linspace(0.3, 1.0, 15)  # fractions of the full range tried by `fit_range`
_SAMPLE = 200_000  # values of one activation that `fit_range` looks at


@dataclass(frozen=True)
class Scale:
    """real = scale * (q - zero_point), q int8."""

    scale: float
    zero_point: int

    def quantise(self, x: np.ndarray) -> np.ndarray:
        """Nearest int8, ties to even, saturating."""
        return np.clip(np.rint(np.asarray(x, np.float64) / self.scale) + self.zero_point, -128, 127).astype(np.int8)

    def dequantise(self, q: np.ndarray) -> np.ndarray:
        """Real values of int8 ones."""
        return self.scale * (np.asarray(q, np.float64) - self.zero_point)


def affine(low: float, high: float) -> Scale:
    """The int8 scale of [low, high], widened to hold 0, which is then represented exactly."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if not np.isfinite(high - low):
        raise QuantiseError("an activation is not finite: the float model has diverged")
    if high - low < 1e-12:
        return Scale(1.0, 0)
    scale = (high - low) / 255.0
    return Scale(scale, int(np.clip(round(-128 - low / scale), -128, 127)))


def fit_range(values: np.ndarray, clip: bool = True) -> Scale:
    """The scale with the least mean squared error over calibration values.

    Clipping a few outliers buys resolution for all others; `clip=False` keeps the full range (logits, whose order
    matters).
    """
    values = np.asarray(values, np.float64).ravel()
    low, high = values.min(), values.max()
    full = affine(low, high)
    if not clip:
        return full
    sample = values[:: max(1, len(values) // _SAMPLE)]
    best, least = full, np.inf
    for fraction in CLIP_GRID:
        candidate = affine(low * fraction, high * fraction)
        error = np.mean((candidate.dequantise(candidate.quantise(sample)) - sample) ** 2)
        if error < least:
            best, least = candidate, error
    return best


FULL, HALF, COMPACT = 31, 15, 9
"""Bits of a multiplier that may be set: the forms 2 (u32), 0 (u16) and 1 (u8) of docs/SPEC.md 4.3."""


def multiplier(real: float, bits: int = FULL) -> tuple[int, int]:
    """(M, shift) with real ~ M * 2^(shift - 31), M in [2^30, 2^31) and a multiple of 2^(31 - bits).

    The relative error is at most 2^-bits. Too small a factor becomes (0, 0), with `bits` COMPACT, which has no 0,
    (2^30, -31): 0 all the same for every sum that docs/SPEC.md section 7 allows. Raises QuantiseError for a negative
    or too large one.
    """
    if not np.isfinite(real) or real < 0:
        raise QuantiseError(f"a requantisation factor is {real}: it must be finite and not negative")
    fraction, exponent = np.frexp(real)
    m = int(np.rint(fraction * (1 << bits)))
    if m == 1 << bits:
        m, exponent = m >> 1, exponent + 1
    if m == 0 or exponent < -31:
        return (1 << 30, -31) if bits == COMPACT else (0, 0)
    if exponent > 30:
        raise QuantiseError(f"a requantisation factor is {real}: larger than 2^30")
    return m << (31 - bits), int(exponent)


@dataclass(frozen=True)
class Factors:
    """Multipliers and shifts, (channels,) int64 each, and the reals that they exactly stand for."""

    multipliers: np.ndarray
    shifts: np.ndarray

    @property
    def real(self) -> np.ndarray:
        """float64 (channels,)."""
        return np.ldexp(self.multipliers.astype(np.float64), (self.shifts - 31).astype(int))


def factors(reals: np.ndarray, bits: int) -> Factors:
    """`multiplier` of every channel. A channel whose factor is 0 takes a shift that is there already, which costs no
    bits."""
    reals = np.atleast_1d(reals)
    pairs = np.array([multiplier(r, bits) for r in reals], np.int64).reshape(-1, 2)
    live = reals > 0
    if live.any():
        pairs[~live, 1] = pairs[live, 1].max()
    return Factors(pairs[:, 0], pairs[:, 1])


def requant(scaling: Factors, biases: np.ndarray, products: int) -> Requant:
    """Metadata of one operator, per tensor where all channels agree.

    Parameters
    ----------
    scaling
        Of all channels.
    biases
        (channels,) in units of the accumulator; rounded here.
    products
        Number of products in one sum, for the bound of docs/SPEC.md section 7.

    Raises
    ------
    QuantiseError
        If a sum could leave that bound.
    """
    biases = np.rint(biases)
    left = max(int(scaling.shifts.max()), 0)
    if (products * 255 * 128 + np.abs(biases).max(initial=0)) * 2.0**left >= 1 << 30:
        raise QuantiseError("a bias leaves the range of the accumulator: a weight scale is close to zero")
    m, shifts = scaling.multipliers, scaling.shifts
    if (m == m[0]).all() and (shifts == shifts[0]).all():
        m, shifts = m[:1], shifts[:1]
    return Requant(m, shifts, biases.astype(np.int64))
