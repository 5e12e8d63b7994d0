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

    Clipping a few outliers buys resolution for all others; `clip=False` keeps the full range (logits, whose order matters).
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


def multiplier(real: float) -> tuple[int, int]:
    """(m, shift) with real ~ m * 2^(shift - 15) and m in [2^14, 2^15): the 16-bit multiplier of docs/SPEC.md section 2.

    The relative error is below 2^-15. Too small a factor becomes (0, 0). Raises QuantiseError for a negative or too large one.
    """
    if not np.isfinite(real) or real < 0:
        raise QuantiseError(f"a requantisation factor is {real}: it must be finite and not negative")
    fraction, exponent = np.frexp(real)
    m = int(np.rint(fraction * (1 << 15)))
    if m == 1 << 15:
        m, exponent = 1 << 14, exponent + 1
    if m == 0 or exponent < -31:
        return 0, 0
    if exponent > 30:
        raise QuantiseError(f"a requantisation factor is {real}: larger than 2^30")
    return m, int(exponent)


def requant(factors: np.ndarray, biases: np.ndarray) -> Requant:
    """Metadata of one operator from real factors (channels,) and biases in units of the accumulator."""
    pairs = np.array([multiplier(f) for f in factors], np.int64)
    live = pairs[:, 0] > 0
    if live.any():  # a dead channel takes any shift: one that is there already costs no bits
        pairs[~live, 1] = pairs[live, 1].max()
    biases = np.rint(biases)
    if np.abs(biases).max(initial=0) >= 1 << 30:
        raise QuantiseError("a bias leaves the range of the accumulator: a weight scale is close to zero")
    return Requant(pairs[:, 0], pairs[:, 1], biases.astype(np.int64))
