"""Ablations of the operating point: temperature, a threshold per class, a threshold per subject.

None of them is part of the protocol. Temperature and class thresholds are fitted on validation and could be deployed;
thresholds per subject take labels of the very person and are an upper bound that no result may rest on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from ..data.dataset import Split
from ..errors import DataError
from . import metrics
from .protocol import THRESHOLDS, tune_threshold

TEMPERATURES = (0.05, 20.0)  # where the best one is looked for
_ROUNDS = 4  # passes over the classes of `class_thresholds`


def warmed(p: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (N, C) as a softmax of the same logits divided by `temperature` would give them: p^(1/T), rows scaled to 1."""
    log = np.log(np.maximum(np.asarray(p, np.float64), 1e-300)) / temperature
    e = np.exp(log - log.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def fit_temperature(p_val: np.ndarray, y_val: np.ndarray, mask: np.ndarray | None = None) -> float:
    """The temperature with the least negative log-likelihood on **validation** (Guo et al., arXiv:1706.04599).

    Parameters
    ----------
    p_val : (N, C) float
        Probabilities before any filter.
    y_val : (N,) int
    mask : (N,) bool, optional
        Windows that are scored.

    Returns
    -------
    float
        Within `TEMPERATURES`. Above 1 the model was too sure of itself.

    Raises
    ------
    DataError
        Shapes differ, or no window is left.
    """
    p_val, y_val = np.asarray(p_val, np.float64), np.asarray(y_val)
    if p_val.ndim != 2 or y_val.shape != p_val.shape[:1]:
        raise DataError(f"p_val and y_val have shapes {p_val.shape} and {y_val.shape}: give (N, C) and (N,)")
    keep = np.ones(len(y_val), bool) if mask is None else np.asarray(mask)
    if not keep.any():
        raise DataError("no validation window is left to fit a temperature to")
    log, y = np.log(np.maximum(p_val[keep], 1e-300)), y_val[keep]

    def cost(log_temperature: float) -> float:
        z = log / np.exp(log_temperature)
        top = z.max(axis=1, keepdims=True)
        return float(np.mean(np.log(np.exp(z - top).sum(axis=1)) + top[:, 0] - z[np.arange(len(y)), y]))

    return float(np.exp(minimize_scalar(cost, bounds=np.log(TEMPERATURES), method="bounded").x))


def decide_by_class(p: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Class (N,) int64 with the largest p / threshold, of probabilities (N, C) and thresholds (C,) above 0."""
    return np.argmax(np.asarray(p) / thresholds, axis=1).astype(np.int64)


def class_thresholds(p_val: np.ndarray, y_val: np.ndarray, mask: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """A threshold for each class that together give the best macro-F1 on **validation**, found one class after the other.

    Parameters
    ----------
    p_val : (N, C) float
    y_val : (N,) int
    mask : (N,) bool, optional

    Returns
    -------
    thresholds : (C,) float64
        Values of `THRESHOLDS`, beginning at 0.5 for all (where `decide_by_class` is the largest probability); a class moves
        only where that is strictly better.
    macro_f1 : float

    Raises
    ------
    DataError
        A class has no scored window, or shapes differ.
    """
    p_val = np.asarray(p_val, np.float64)
    classes = p_val.shape[1]

    def reached(thresholds: np.ndarray) -> float:
        return metrics.macro_f1(y_val, decide_by_class(p_val, thresholds), classes=classes, mask=mask)

    chosen = np.full(classes, 0.5)
    best = reached(chosen)
    for _ in range(_ROUNDS):
        before = best
        for k in range(classes):
            for t in THRESHOLDS:
                tried = chosen.copy()
                tried[k] = t
                value = reached(tried)
                if value > best:
                    chosen, best = tried, value
        if best == before:
            break
    return chosen, best


def subject_thresholds(p: np.ndarray, y: np.ndarray, group: np.ndarray, position: np.ndarray, mask: np.ndarray, *,
                       before: int, otherwise: float) -> tuple[np.ndarray, np.ndarray]:
    """A threshold for each subject from the labels of the beginning of its own record: an ablation, never a result.

    AAMI EC57 lets an algorithm adapt to the first five minutes of a record; what is adapted with is not scored.

    Parameters
    ----------
    p, y : (N,)
        Probability of the positive class, and 0 or 1.
    group, position : (N,)
        Subject, and time in its record.
    mask : (N,) bool
        Windows that are scored.
    before : int
        Windows at a position below it are adapted with, those from there on are scored.
    otherwise : float
        t* of a subject whose beginning lacks a class.

    Returns
    -------
    threshold : (N,) float64
        Of each window's subject.
    mask : (N,) bool
        Windows that remain to be scored.
    """
    p, y, early = np.asarray(p, np.float64), np.asarray(y), np.asarray(position) < before
    threshold = np.full(len(p), float(otherwise))
    for name in np.unique(group):
        own = np.asarray(group) == name
        known = own & early & mask
        if 0 < y[known].sum() < known.sum():
            threshold[own] = tune_threshold(p[known], y[known])[0]
    return threshold, np.asarray(mask) & ~early


ADAPTATION_S = 300
"""Seconds of a record that AAMI EC57 lets an algorithm adapt to."""


def adapted_to_subjects(p: np.ndarray, split: Split, threshold: float, fs: float) -> dict[str, Any] | None:
    """`subject_thresholds` of the first five minutes beside t*, both on what was not adapted with: an ablation, never a result.

    Parameters
    ----------
    p : (N, 2) float
        Probabilities of the windows of `split`, after any filter.
    split : Split
        Two classes; positions in samples.
    threshold : float
        t*, which validation gave.
    fs : float
        Samples per second.

    Returns
    -------
    dict or None
        ``adapted_s``, scored ``windows`` and ``records``, ``records_with_another_threshold``, and for ``t_star`` and ``subject``
        ``macro_f1`` and ``f1`` of the second class. None if the records are too short for it, or a class is not left.
    """
    y, mask = split.y, split.score_mask
    own, left = subject_thresholds(p[:, 1], y, split.group, split.position, mask, before=round(ADAPTATION_S * fs), otherwise=threshold)
    if not 0 < left.sum() < mask.sum() or not 0 < y[left].sum() < left.sum():
        return None
    found: dict[str, Any] = {
        "adapted_s": ADAPTATION_S, "windows": int(left.sum()), "records": len(np.unique(split.group[left])),
        "records_with_another_threshold": len(np.unique(split.group[left & (own != threshold)])),
    }  # fmt: skip
    for name, at in (("t_star", np.full(len(p), threshold)), ("subject", own)):
        decided = (p[:, 1] >= at).astype(np.int64)
        found[name] = {"macro_f1": metrics.macro_f1(y, decided, mask=left), "f1": metrics.per_class(y, decided, mask=left)[1]["f1"]}
    return found
