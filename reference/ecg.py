"""From samples of an ECG to windows and quality flags: the front end of a monitor, one second after the other.

Source: section 12 of the specification.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LEAD_OFF, RAILS, NOISE = 1, 2, 4


@dataclass(frozen=True)
class Due:
    """A decision that is due: its second, the quality of the window's seconds (0: good), the window (T,) int8."""

    second: int
    quality: int
    window: np.ndarray


def high_pass(x: np.ndarray) -> np.ndarray:
    """Samples (n,) of a converter without their slow baseline: (n,) int64, within int16."""
    out = np.empty(len(x), np.int64)
    baseline = int(x[0]) << 8 if len(x) else 0
    for i, sample in enumerate(x.tolist()):
        h = sample - (baseline >> 8)
        baseline += h
        out[i] = min(max(h, -32768), 32767)
    return out


def quality(x: np.ndarray, before: int) -> int:
    """Flags of one second of samples (rate,); `before` is the sample in front of it."""
    steps = np.abs(np.diff(np.concatenate([[before], x]).astype(np.int64)))
    flat = x.max() - x.min() < 4
    rails = 10 * np.count_nonzero((x <= 0) | (x >= 2047)) >= len(x)
    return LEAD_OFF * bool(flat) | RAILS * bool(rails) | NOISE * bool(steps.sum() > 40 * len(x))


def normalise(h: np.ndarray, gain: int, zero_point: int) -> np.ndarray:
    """A window (T,) at mean 0 and standard deviation 1, in steps of the network's input: (T,) int8."""
    n, total, squares = len(h), int(h.sum()), int((h * h).sum())
    deviation = max(math.isqrt(n * squares - total * total), 2 * n)
    shift = max((s for s in range(32) if s == 0 or gain << s < deviation << 31), default=0)
    multiplier = (gain << shift) // deviation
    z = [((n * int(v) - total) * multiplier + (1 << (19 + shift))) >> (20 + shift) for v in h]
    return np.array([min(max(v + zero_point, -128), 127) for v in z], np.int8)


def decisions(x: np.ndarray, window: int, rate: int, gain: int, zero_point: int) -> Iterator[Due]:
    """What falls due while samples (n,) arrive.

    Parameters
    ----------
    x : int16 (n,)
        Codes of the converter, `rate` per second.
    window : int
        T <= 4096 samples of a window, which reaches into at most eight seconds.
    gain, zero_point : int
        2^20 over the scale of the network's input, and its zero point.
    """
    x = np.asarray(x, np.int64)
    h, flags = high_pass(x), []
    for second in range(1, len(x) // rate + 1):
        end = second * rate
        flags.append(quality(x[end - rate : end], int(x[max(end - rate - 1, 0)])))
        if end >= window:
            joined = 0
            for flag in flags[-window // rate :]:
                joined |= flag
            yield Due(second, joined, normalise(h[end - window : end], gain, zero_point))
