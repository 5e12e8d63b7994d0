"""From logits to the figures in a report, in one way for all models.

1. `probabilities`: integer logits to the probability of each class.
2. `median_filter`: optional smoothing within each record, in time order.
3. `tune_threshold`: the threshold t* with the best macro-F1 **on validation**, from one fixed grid.
4. `evaluate_binary`: all of it; test is only ever read with t* already fixed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.dataset import Split
from ..errors import ConfigError, DataError
from . import metrics

# The grid of the HyperTinyPW paper (arXiv:2603.24916).
THRESHOLDS = np.linspace(0.05, 0.95, 19)
THRESHOLDS.setflags(write=False)

ROC_POINTS = 200  # as many as a report can draw; the area is computed from all samples


def probabilities(logits: np.ndarray, scale: float) -> np.ndarray:
    """Softmax of integer logits, in float64.

    Parameters
    ----------
    logits : (N, C) integer
        As the integer model gives them, C >= 2. Their zero point need not be known: it shifts all logits of a sample
        alike, and softmax does not see that.
    scale : float
        > 0; the logit is scale * (q - zero point).

    Returns
    -------
    (N, C) float64
        Rows sum to 1.

    Raises
    ------
    DataError
        Not integers, not two-dimensional, or a scale that is not a positive number.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or logits.shape[1] < 2 or logits.dtype.kind not in "iu":
        raise DataError(f"logits have shape {logits.shape} and type {logits.dtype}: give (N, C >= 2) integers")
    if not (np.isfinite(scale) and scale > 0):
        raise DataError(f"logit scale {scale} is not a positive number: take it from the image's output")
    q = logits.astype(np.float64)
    # Less than or equal to 0 before exp, so it cannot overflow.
    e = np.exp(scale * (q - q.max(axis=1, keepdims=True)))
    return e / e.sum(axis=1, keepdims=True)


def median_filter(p: np.ndarray, group: np.ndarray, position: np.ndarray, width: int) -> np.ndarray:
    """Sliding median within each record, in time order.

    Parameters
    ----------
    p : (N,) float
        One score per window, in any order.
    group : (N,) str
        Record of each window.
    position : (N,) int
        Time within the record; windows at the same position stay in the order given.
    width : int
        Odd, >= 1, in windows; 1 changes nothing. At a record's ends its first or last value is repeated.

    Returns
    -------
    (N,) float64
        In the order of `p`.

    Raises
    ------
    ConfigError
        A width that is even or below 1.
    DataError
        Shapes differ.
    """
    p, group, position = np.asarray(p, np.float64), np.asarray(group), np.asarray(position)
    if isinstance(width, bool) or not isinstance(width, (int, np.integer)) or width < 1 or width % 2 == 0:
        raise ConfigError(f"median width {width!r} is not an odd number from 1: an even one has no middle")
    if p.ndim != 1 or group.shape != p.shape or position.shape != p.shape:
        raise DataError(f"p, group and position have shapes {p.shape}, {group.shape}, {position.shape}: give one entry "
                        "per window")
    out = p.copy()
    if width > 1:
        from scipy.ndimage import median_filter  # here, so that probabilities need no SciPy

        for name in np.unique(group):
            member = np.flatnonzero(group == name)
            member = member[np.argsort(position[member], kind="stable")]
            out[member] = median_filter(p[member], size=int(width), mode="nearest")
    return out


def tune_threshold(p_val: np.ndarray, y_val: np.ndarray, mask: np.ndarray | None = None) -> tuple[float, float]:
    """The threshold of `THRESHOLDS` with the best macro-F1.

    Parameters
    ----------
    p_val : (N,) float
        Probability of the positive class on **validation**.
    y_val : (N,) int
        0 or 1.
    mask : (N,) bool, optional
        Windows that are scored.

    Returns
    -------
    threshold : float
        A window is positive at p >= threshold. Of several that are equally good, the one nearest to 0.5, and of two
        equally near the lower: a plateau is no evidence for its edge, which is where noise is nearest.
    macro_f1 : float
        What it reaches there.

    Raises
    ------
    DataError
        A class has no scored window, or shapes differ.
    """
    p_val = np.asarray(p_val)
    reached = [metrics.macro_f1(y_val, p_val >= t, mask=mask) for t in THRESHOLDS]
    best = max(reached)
    middle = (THRESHOLDS.size - 1) / 2
    at = min((i for i, value in enumerate(reached) if value == best), key=lambda i: (abs(i - middle), i))
    return float(THRESHOLDS[at]), best


def evaluate_binary(p_val: np.ndarray, val: Split, p_test: np.ndarray, test: Split, *, median: int = 1,
                    protocol: str | None = None) -> dict[str, Any]:
    """Tune on validation, score on test.

    Parameters
    ----------
    p_val, p_test : (N,) float
        Probability of the positive class for every window of `val` and `test`, 0 to 1; also for those that are not
        scored, because the median filter runs over them.
    val, test : Split
        Binary.
    median : int
        Width of `median_filter`, the same for both; 1 is none.
    protocol : str, optional
        The data set's ``description["protocol"]``; ``"aami"`` adds ``veb``.

    Returns
    -------
    dict
        Everything in it can be written as JSON. ``threshold``, ``median``, and ``val`` and ``test``, each with ``n``,
        ``positives``, ``threshold``, ``macro_f1``, ``balanced_accuracy``, ``accuracy``, ``auc``, ``brier``,
        ``confusion`` (rows: true class) and ``per_class``. ``test`` also has ``roc`` (``fpr``, ``tpr``, at most
        `ROC_POINTS` points) and, with protocol aami, ``veb`` (``sensitivity``, ``ppv``, ``f1`` of the ventricular
        class, EC57's figures).

    Raises
    ------
    DataError
        A split has no scored window of one class, or p is not one probability per window.
    ConfigError
        `median` is even or below 1.
    """
    p_val, p_test = _checked("validation", p_val, val), _checked("test", p_test, test)
    p_val = median_filter(p_val, val.group, val.position, median)
    p_test = median_filter(p_test, test.group, test.position, median)
    threshold, _ = tune_threshold(p_val, val.y, val.score_mask)
    result: dict[str, Any] = {"threshold": threshold, "median": int(median),
                              "val": _score(p_val, val, threshold), "test": _score(p_test, test, threshold)}
    fpr, tpr, _ = metrics.roc_curve(test.y, p_test, mask=test.score_mask, points=ROC_POINTS)
    result["test"]["roc"] = {"fpr": fpr.tolist(), "tpr": tpr.tolist()}
    if protocol == "aami":
        ventricular = result["test"]["per_class"][1]
        result["test"]["veb"] = {"sensitivity": ventricular["recall"], "ppv": ventricular["precision"],
                                 "f1": ventricular["f1"]}
    return result


def _checked(name: str, p: np.ndarray, split: Split) -> np.ndarray:
    p = np.asarray(p, np.float64)
    if p.shape != (len(split),):
        raise DataError(f"{name}: p has shape {p.shape}, the split {len(split)} windows: give one probability each")
    bad = np.flatnonzero(~((p >= 0) & (p <= 1)))
    if bad.size:
        raise DataError(f"{name}: p is {p[bad[0]]} at record {split.group[bad[0]]}, sample {split.position[bad[0]]}: "
                        "give probabilities, from 0 to 1 (did the model diverge?)")
    counts = [int(np.count_nonzero(split.y[split.score_mask] == k)) for k in (0, 1)]
    if 0 in counts:
        raise DataError(f"the {name} split has {counts[1]} positive and {counts[0]} negative scored windows: choose a "
                        "split that has both classes")
    return p


def _score(p: np.ndarray, split: Split, threshold: float) -> dict[str, Any]:
    y, mask = split.y, split.score_mask
    decided = (p >= threshold).astype(np.int64)
    return {
        "n": int(np.count_nonzero(mask)),
        "positives": int(y[mask].sum()),
        "threshold": threshold,
        "macro_f1": metrics.macro_f1(y, decided, mask=mask),
        "balanced_accuracy": metrics.balanced_accuracy(y, decided, mask=mask),
        "accuracy": metrics.accuracy(y, decided, mask=mask),
        "auc": metrics.roc_auc(y, p, mask=mask),
        "brier": metrics.brier(y, p, mask=mask),
        "confusion": metrics.confusion(y, decided, mask=mask).tolist(),
        "per_class": metrics.per_class(y, decided, mask=mask),
    }
