"""From logits to the figures in a report, in one way for all models.

1. `probabilities`: integer logits to the probability of each class.
2. `smoothed` (`median_filter`): optional smoothing within each record, in time order.
3. `tune_threshold`: of two classes, the threshold t* with the best macro-F1 **on validation**, from one fixed grid. With
   more than two the largest logit decides and there is nothing to tune.
4. `score`: figures of one split at a t* that is already fixed. `pyhtpw.evaluate.choices` sees to it that the labels of
   test cannot be read before.
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


def smoothed(p: np.ndarray, split: Split, width: int) -> np.ndarray:
    """`median_filter` over the probabilities (N, C) of a split's windows.

    Of two classes the filter runs over the second and the first is what is missing to 1; of more it runs over each, and
    rows are scaled to sum to 1 again. Returns (N, C) float64; errors as `median_filter`.
    """
    if width == 1:
        median_filter(p[:, 0], split.group, split.position, 1)  # for its checks
        return np.asarray(p, np.float64)
    if p.shape[1] == 2:
        positive = median_filter(p[:, 1], split.group, split.position, width)
        return np.stack([1 - positive, positive], axis=1)
    columns = [median_filter(column, split.group, split.position, width) for column in p.T]
    out = np.stack(columns, axis=1)
    total = out.sum(axis=1, keepdims=True)
    return np.where(total > 0, out / np.where(total > 0, total, 1), p)  # all medians 0: nothing to decide by but the row itself


def decide(p: np.ndarray, threshold: float | None) -> np.ndarray:
    """Class (N,) int64 of probabilities (N, C): of two, class 1 at p >= t*; without t*, the most probable, the first of equals.

    Softmax keeps order, so the most probable class is that of the largest integer logit.
    """
    if threshold is None:
        return p.argmax(axis=1).astype(np.int64)
    return (p[:, 1] >= threshold).astype(np.int64)


def tune(p_val: np.ndarray, val: Split) -> tuple[float | None, float]:
    """What validation chooses for probabilities (N, C), already filtered: t* (None with more than two classes), and its macro-F1.

    Raises DataError where a class has no scored window, or p is not one probability per window and class.
    """
    p_val = _checked("validation", p_val, val)
    if p_val.shape[1] == 2:
        return tune_threshold(p_val[:, 1], val.y, val.score_mask)
    return None, metrics.macro_f1(val.y, decide(p_val, None), classes=p_val.shape[1], mask=val.score_mask)


def score(p: np.ndarray, split: Split, threshold: float | None, *, name: str = "test", protocol: str | None = None,
          roc: bool = False) -> dict[str, Any]:
    """Figures of a split at a fixed operating point.

    Parameters
    ----------
    p : (N, C) float
        Probabilities of every window of the split, filtered (`smoothed`) if a filter is used; also of those that are not
        scored.
    split : Split
    threshold : float or None
        t* of two classes; None: the most probable class decides.
    name : str
        Of the split, for errors.
    protocol : str, optional
        The data set's; ``"aami"`` adds ``veb``.
    roc : bool
        Add the ROC curve (two classes).

    Returns
    -------
    dict
        Everything in it can be written as JSON: ``n``, ``threshold``, ``macro_f1``, ``balanced_accuracy``, ``accuracy``,
        ``auc`` (of more than two classes the mean of each against the rest), ``brier`` (two classes: of the positive one,
        0 to 1; more: summed over classes, 0 to 2), ``ece`` (`metrics.calibration_error`), ``priors`` (share of each class),
        ``confusion`` (rows: true class) and ``per_class``; of two classes ``positives`` too; if asked for, ``roc`` (``fpr``,
        ``tpr``, at most `ROC_POINTS` points), and ``veb`` (``sensitivity``, ``ppv``, ``f1`` of the ventricular class, EC57's
        figures).

    Raises
    ------
    DataError
        A class has no scored window, or p is not one probability per window and class.
    """
    p = _checked(name, p, split)
    y, mask, classes = split.y, split.score_mask, p.shape[1]
    decided = decide(p, threshold)
    support = np.bincount(y[mask], minlength=classes)
    out: dict[str, Any] = {"n": int(np.count_nonzero(mask))}
    if classes == 2:
        out["positives"] = int(support[1])
    out |= {
        "threshold": threshold,
        "macro_f1": metrics.macro_f1(y, decided, classes=classes, mask=mask),
        "balanced_accuracy": metrics.balanced_accuracy(y, decided, classes=classes, mask=mask),
        "accuracy": metrics.accuracy(y, decided, classes=classes, mask=mask),
        "auc": metrics.roc_auc(y, p[:, 1], mask=mask) if classes == 2 else metrics.macro_auc(y, p, mask=mask),
        "brier": metrics.brier(y, p[:, 1], mask=mask) if classes == 2 else metrics.brier_classes(y, p, mask=mask),
        "ece": metrics.calibration_error(y, p, mask=mask),
        "priors": (support / support.sum()).tolist(),
        "confusion": metrics.confusion(y, decided, classes=classes, mask=mask).tolist(),
        "per_class": metrics.per_class(y, decided, classes=classes, mask=mask),
    }
    if roc and classes == 2:
        fpr, tpr, _ = metrics.roc_curve(y, p[:, 1], mask=mask, points=ROC_POINTS)
        out["roc"] = {"fpr": fpr.tolist(), "tpr": tpr.tolist()}
    if protocol == "aami":
        ventricular = out["per_class"][1]
        out["veb"] = {"sensitivity": ventricular["recall"], "ppv": ventricular["precision"], "f1": ventricular["f1"]}
    return out


def evaluate_binary(p_val: np.ndarray, val: Split, p_test: np.ndarray, test: Split, *, median: int = 1,
                    protocol: str | None = None) -> dict[str, Any]:
    """Tune on validation, score on test: the protocol in one call, for two classes and labels that lie open.

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
        ``threshold``, ``median``, and ``val`` and ``test`` as `score` gives them; ``test`` with ``roc``.

    Raises
    ------
    DataError
        A split has no scored window of one class, or p is not one probability per window.
    ConfigError
        `median` is even or below 1.
    """
    pairs = {}
    for name, p, split in (("validation", p_val, val), ("test", p_test, test)):
        p = np.asarray(p, np.float64)
        pairs[name] = smoothed(_checked(name, np.stack([1 - p, p], axis=1), split), split, median)
    threshold, _ = tune(pairs["validation"], val)
    return {"threshold": threshold, "median": int(median),
            "val": score(pairs["validation"], val, threshold, name="validation"),
            "test": score(pairs["test"], test, threshold, protocol=protocol, roc=True)}


def _checked(name: str, p: np.ndarray, split: Split) -> np.ndarray:
    p = np.asarray(p, np.float64)
    if p.ndim != 2 or p.shape[0] != len(split):
        raise DataError(f"{name}: p has shape {p.shape}, the split {len(split)} windows: give one probability each, (N, C)")
    bad = np.flatnonzero(~((p >= 0) & (p <= 1)).all(axis=1))
    if bad.size:
        raise DataError(f"{name}: p is {p[bad[0]][-1]} at record {split.group[bad[0]]}, sample {split.position[bad[0]]}: "
                        "give probabilities, from 0 to 1 (did the model diverge?)")
    counts = np.bincount(split.y[split.score_mask], minlength=p.shape[1]).tolist()
    if 0 in counts:
        if len(counts) == 2:
            told = f"{counts[1]} positive and {counts[0]} negative scored windows: choose a split that has both classes"
        else:
            told = f"{', '.join(map(str, counts))} scored windows per class: choose a split that has every class"
        raise DataError(f"the {name} split has {told}")
    return p
