"""Stored kernels in 8, 4 or 2 bits with one scale per output channel, or per tensor."""

from __future__ import annotations

import numpy as np
from numba import njit

from pyhtpw.errors import QuantiseError
from pyhtpw.quant.scales import Factors, factors

LIMITS = {8: (-127, 127), 4: (-8, 7), 2: (-2, 1)}
"""Least and largest integer by bits. {-2..1} holds {-1, 0, 1}: the better of the two scales is the best one of the
former."""
_FRACTIONS = {
    8: np.ones(1),  # nothing to gain from clipping
    4: np.linspace(0.5, 1.15, 40),  # above 1: -8 reaches further than 7
    2: np.linspace(0.15, 1.2, 64),
}


def _rows(kernel: np.ndarray, axis: int, per_tensor: bool) -> np.ndarray:
    """The kernel as float64 (channels, weights of one), or (1, weights)."""
    rows = np.moveaxis(np.asarray(kernel, np.float64), axis, 0)
    return rows.reshape(1 if per_tensor else len(rows), -1)


THRESHOLD = 0.7
"""Of the largest or the mean |w| of a filter: what is above becomes 1 or -1 by the rules "max" and "mean"."""


def _ternary(rows: np.ndarray, rule: str, on_grid) -> tuple[np.ndarray, np.ndarray]:
    """Scale and integers of every row by a threshold; the scale has the least squared error for these integers."""
    size = np.abs(rows)
    threshold = THRESHOLD * (size.max(axis=1) if rule == "max" else size.mean(axis=1))
    q = np.sign(rows) * (size > threshold[:, None])
    counts = (q != 0).sum(axis=1)
    wished = (rows * q).sum(axis=1) / np.maximum(counts, 1)
    usual = max(wished.max(), 1e-6)  # for a filter of zeros, whose bias must be expressed in something
    return on_grid(np.where(counts > 0, np.maximum(wished, 1e-12), usual)), q


def _best(rows: np.ndarray, bits: int, on_grid, rule: str = "best") -> tuple[np.ndarray, np.ndarray]:
    """Scale and integers of every row with the least squared error, or by a ternary rule; `on_grid` maps wished scales to
    possible ones, none smaller."""
    if rule != "best":
        return _ternary(rows, rule, on_grid)
    largest = np.abs(rows).max(axis=1)
    # a channel of zeros has no scale of its own; give it one that its bias can be expressed in
    largest = np.where(largest > 1e-12, largest, max(largest.max(), 1e-6))
    tried = on_grid((np.outer(_FRACTIONS[bits], largest) / LIMITS[bits][1]).ravel()).reshape(-1, len(rows))
    low, high = LIMITS[bits]
    return _least_error(np.ascontiguousarray(rows), tried, float(low), float(high))


# Training on rounded kernels asks for every kernel in every step. No sum is reordered and no product contracted, as these
# integers go into images: the same kernel must give the same ones on every machine.
@njit(cache=True, nogil=True, error_model="numpy")
def _least_error(rows: np.ndarray, tried: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Of the scales `tried` (fractions, rows) of every row the first with the least squared error, and its integers."""
    best, chosen = np.zeros(len(rows)), np.zeros_like(rows)
    q, squared = np.empty(rows.shape[1]), np.empty(rows.shape[1])
    for r in range(len(rows)):
        least = np.inf
        for scale in tried[:, r]:
            for i in range(q.size):  # apart from the sum, so that it runs in vectors
                q[i] = min(max(np.rint(rows[r, i] / scale), low), high)
                error = q[i] * scale - rows[r, i]
                squared[i] = error * error
            total = 0.0
            for i in range(q.size):
                total += squared[i]
            if total < least:
                least, best[r] = total, scale
                chosen[r] = q
    return best, chosen


def nearest(kernel: np.ndarray, bits: int, axis: int = 0, per_tensor: bool = False, rule: str = "best") -> np.ndarray:
    """The reals that a stored kernel of `bits` stands for, whatever its multipliers; `axis` is that of the output
    channels, `rule` that of `pyhtpw.nets.heads`."""
    rows = _rows(kernel, axis, per_tensor)
    if not np.isfinite(rows).all():
        raise QuantiseError("weights are not finite: the float model has diverged")
    scales, q = _best(rows, bits, lambda wished: wished, rule)
    moved = np.moveaxis(kernel, axis, 0).shape
    return np.moveaxis((q * scales[:, None]).reshape(moved), 0, axis)


def quantise_stored(
    kernel: np.ndarray,
    unit: float,
    bits: int,
    multiplier_bits: int,
    axis: int = 0,
    per_tensor: bool = False,
    rule: str = "best",
    gain: np.ndarray | None = None,
) -> tuple[np.ndarray, Factors]:
    """Integers of a stored kernel and its requantisation.

    In 8 bits, and per tensor, the multiplier comes first: only scales that a multiplier of so few bits exactly stands for are
    tried, so that it costs no accuracy. In 4 and 2 bits per channel the integers come first, and are those of `nearest` whatever
    the multiplier: a network that was trained on them (`pyhtpw.quant.aware`) finds them in its image. Their scale moves to the
    nearest that a multiplier stands for.

    Parameters
    ----------
    kernel
        Float, any shape, without `gain`.
    unit
        Scale of the output over scale of the input: a weight's scale is factor * unit.
    bits
        8, 4 or 2.
    multiplier_bits
        See `pyhtpw.quant.scales.multiplier`.
    axis
        That of the output channels.
    per_tensor
        One scale for all channels.
    rule
        "best", or "max" or "mean" for ternary kernels by a threshold (`pyhtpw.nets.heads`).
    gain
        (channels,) Positive factors of a normalisation behind the kernel; ones if not given.

    Returns
    -------
    int8 array of the kernel's shape, and factors of all channels.
    """
    plain = _rows(kernel, axis, False)
    gain = np.ones(len(plain)) if gain is None else np.asarray(gain, np.float64)
    if not np.isfinite(plain).all():
        raise QuantiseError("weights are not finite: the float model has diverged")
    moved = np.moveaxis(kernel, axis, 0).shape
    if bits < 8 and not per_tensor:
        scales, q = _best(plain, bits, lambda wished: wished, rule)
        return np.moveaxis(q.reshape(moved), 0, axis).astype(np.int8), factors(scales * gain / unit, multiplier_bits)
    rows = (plain * gain[:, None]).reshape(1 if per_tensor else len(plain), -1)

    def on_grid(wished: np.ndarray) -> np.ndarray:
        found = factors(wished / unit, multiplier_bits).real * unit
        short = found < wished * (1 - 1e-12)  # the next one up, so that nothing is clipped that need not be
        up = (
            factors(np.where(short, wished * (1 + 2.0 ** (1 - multiplier_bits)), wished) / unit, multiplier_bits).real
            * unit
        )
        return np.where(short, up, found)

    scales, q = _best(rows, bits, on_grid, rule)
    scaling = factors(scales / unit, multiplier_bits)
    if per_tensor:
        scaling = Factors(np.repeat(scaling.multipliers, moved[0]), np.repeat(scaling.shifts, moved[0]))
    return np.moveaxis(q.reshape(moved), 0, axis).astype(np.int8), scaling
