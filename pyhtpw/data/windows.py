"""Cutting a record into scaled windows: one rule for real and synthetic records.

A window of T samples around an annotation at p is [p - T//2, p - T//2 + T). It is scaled to mean 0 and standard
deviation 1 over those of its samples that exist, and only then padded with 0 at the ends of the record: padding is
thus at the window's mean and changes nothing else. The standard deviation is taken as at least `STD_FLOOR_MV`, so
that a flat stretch stays flat and is not blown up into quantisation noise.
"""

from __future__ import annotations

import numpy as np

STD_FLOOR_MV = 0.01  # two steps of a recorder with 200 per mV


def cut_windows(signal: np.ndarray, centre: np.ndarray, window: int) -> np.ndarray:
    """Cut, scale and pad windows; see the module for the rule.

    Parameters
    ----------
    signal : (S,) float64
        In mV.
    centre : (n,) int64
        Sample indices, 0 <= centre < S.
    window : int
        T >= 1.

    Returns
    -------
    (n, T) float32
        Mean 0 and standard deviation 1 (less where `STD_FLOOR_MV` holds) over the samples inside the record, 0 outside.
    """
    index = centre[:, None] - window // 2 + np.arange(window)
    inside = (index >= 0) & (index < signal.size)
    x = np.where(inside, signal[np.clip(index, 0, signal.size - 1)], 0.0)
    count = inside.sum(axis=1, keepdims=True)
    x -= x.sum(axis=1, keepdims=True) / count
    x *= inside
    x /= np.maximum(np.sqrt((x * x).sum(axis=1, keepdims=True) / count), STD_FLOOR_MV)
    return x.astype(np.float32)
