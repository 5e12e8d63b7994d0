"""Classification metrics on numpy arrays, each with a mask.

Throughout, `y` is the true class and `predicted` the class decided, both (N,) integers from 0; `p` is the score of the
positive class 1, (N,), larger meaning more positive. `mask`, (N,) bool, says which samples count; without it all do.

A figure that is not defined for the samples given (the recall of a class that has none, say) is an error, because a 0
or a NaN in its place would pass for a result. The one convention is that F1 and precision are 0 for a class that was
never decided: they are measures of decisions, and a model that never decides for a class deserves no better.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import DataError


def _select(mask: np.ndarray | None, **arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays as numpy, of one length, without what the mask leaves out; at least one sample remains."""
    values = [np.asarray(a) for a in arrays.values()]
    names = " and ".join(arrays)
    n = values[0].shape
    if len(n) != 1 or any(v.shape != n for v in values):
        raise DataError(f"{names} have shapes {', '.join(str(v.shape) for v in values)}: give one number per sample")
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != n or mask.dtype != np.bool_:
            raise DataError(f"mask has shape {mask.shape} and type {mask.dtype}: give {n} bool")
        values = [v[mask] for v in values]
    if values[0].size == 0:
        raise DataError(f"{names}: no sample is left to score: give at least one that the mask keeps")
    return values


def _labels(name: str, values: np.ndarray, classes: int) -> np.ndarray:
    if values.dtype.kind not in "iub":
        raise DataError(f"{name} has type {values.dtype}: give integer class indices")
    if int(values.min()) < 0 or int(values.max()) >= classes:
        raise DataError(f"{name} goes from {values.min()} to {values.max()}: give class indices from 0 to "
                        f"{classes - 1}")
    return values.astype(np.int64)


def _scores(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"p holds {values[~np.isfinite(values)][0]}: give finite scores (did the model diverge?)")
    return values


def confusion(y: np.ndarray, predicted: np.ndarray, *, classes: int = 2, mask: np.ndarray | None = None) -> np.ndarray:
    """Confusion matrix.

    Parameters
    ----------
    y, predicted : (N,) int
        0 <= class < `classes`.
    classes : int
        C >= 2.
    mask : (N,) bool, optional

    Returns
    -------
    (C, C) int64
        Entry [i, j]: samples of class i decided as j.

    Raises
    ------
    DataError
        Shapes differ, a class is out of range, or no sample is left.
    """
    y, predicted = _select(mask, y=y, predicted=predicted)
    y, predicted = _labels("y", y, classes), _labels("predicted", predicted, classes)
    return np.bincount(y * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def _support(matrix: np.ndarray, figure: str) -> np.ndarray:
    """Samples per true class; every class must have one."""
    support = matrix.sum(axis=1)
    if (support == 0).any():
        raise DataError(f"{figure} is not defined: class {int(np.argmin(support))} has no scored sample (per class: "
                        f"{', '.join(map(str, support.tolist()))}): choose records that have every class")
    return support


def _f1(matrix: np.ndarray) -> np.ndarray:
    """F1 of each class, (C,), 2 TP / (2 TP + FP + FN); a class has support, so no division by 0."""
    return 2 * np.diag(matrix) / (matrix.sum(axis=0) + matrix.sum(axis=1))


def accuracy(y: np.ndarray, predicted: np.ndarray, *, classes: int = 2, mask: np.ndarray | None = None) -> float:
    """Share of samples decided right, 0 to 1; parameters and errors as `confusion`."""
    matrix = confusion(y, predicted, classes=classes, mask=mask)
    return float(np.trace(matrix) / matrix.sum())


def balanced_accuracy(y: np.ndarray, predicted: np.ndarray, *, classes: int = 2,
                      mask: np.ndarray | None = None) -> float:
    """Mean of the classes' recalls, 0 to 1.

    Parameters as `confusion`; a class without scored samples also raises `DataError`.
    """
    matrix = confusion(y, predicted, classes=classes, mask=mask)
    return float(np.mean(np.diag(matrix) / _support(matrix, "balanced accuracy")))


def macro_f1(y: np.ndarray, predicted: np.ndarray, *, classes: int = 2, mask: np.ndarray | None = None) -> float:
    """Mean of the classes' F1, 0 to 1.

    Parameters as `confusion`; a class without scored samples also raises `DataError`.
    """
    matrix = confusion(y, predicted, classes=classes, mask=mask)
    _support(matrix, "macro-F1")
    return float(np.mean(_f1(matrix)))


def per_class(y: np.ndarray, predicted: np.ndarray, *, classes: int = 2,
              mask: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class.

    Parameters as `confusion`; a class without scored samples also raises `DataError`.

    Returns
    -------
    list of dict
        One per class: ``precision``, ``recall``, ``f1`` (0 to 1) and ``support`` (samples).
    """
    matrix = confusion(y, predicted, classes=classes, mask=mask)
    support, right = _support(matrix, "recall"), np.diag(matrix)
    precision = right / np.maximum(matrix.sum(axis=0), 1)
    columns = zip(precision.tolist(), (right / support).tolist(), _f1(matrix).tolist(), support.tolist(), strict=True)
    return [dict(zip(("precision", "recall", "f1", "support"), row, strict=True)) for row in columns]


def _binary(y: np.ndarray, p: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    y, p = _select(mask, y=y, p=p)
    return _labels("y", y, 2), _scores(p)


def _both(y: np.ndarray, figure: str) -> tuple[int, int]:
    """Numbers of positives and negatives, neither 0."""
    positives = int(y.sum())
    if positives in (0, y.size):
        raise DataError(f"{figure} is not defined: of {y.size} scored samples {positives} are positive: choose records "
                        "that have both classes")
    return positives, y.size - positives


def roc_auc(y: np.ndarray, p: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Area under the ROC curve: the chance that a positive scores higher than a negative, ties counting half.

    Parameters
    ----------
    y : (N,) int
        0 or 1.
    p : (N,) float
        Finite; any monotone function of the probability gives the same area.
    mask : (N,) bool, optional

    Returns
    -------
    float
        0 to 1. Computed from mid-ranks (Mann and Whitney 1947), so exact with ties.

    Raises
    ------
    DataError
        Shapes differ, a value is not finite, or a class is missing.
    """
    y, p = _binary(y, p, mask)
    positives, negatives = _both(y, "ROC-AUC")
    from scipy.stats import rankdata  # here, so that probabilities need no SciPy

    ranks = rankdata(p)[y == 1].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def roc_curve(y: np.ndarray, p: np.ndarray, *, mask: np.ndarray | None = None,
              points: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of the ROC curve, from the strictest threshold to the loosest.

    Parameters
    ----------
    y, p, mask
        As `roc_auc`.
    points : int, optional
        Keep at most this many, >= 2, spread evenly over the curve; the two ends always stay.

    Returns
    -------
    fpr, tpr, threshold : (M,) float64
        Deciding positive at p >= threshold[i] gives the rates fpr[i], tpr[i], both non-decreasing from (0, 0), where
        threshold is infinite, to (1, 1). Equal scores make one point, not several.

    Raises
    ------
    DataError
        As `roc_auc`, or `points` below 2.
    """
    y, p = _binary(y, p, mask)
    positives, negatives = _both(y, "the ROC curve")
    if points is not None and points < 2:
        raise DataError(f"points {points} is too few: a curve has two ends")
    order = np.argsort(-p, kind="stable")
    y, p = y[order], p[order]
    last = np.append(np.flatnonzero(np.diff(p)), p.size - 1)
    true = np.cumsum(y)[last]
    tpr = np.concatenate([[0.0], true / positives])
    fpr = np.concatenate([[0.0], (last + 1 - true) / negatives])
    threshold = np.concatenate([[np.inf], p[last]])
    if points is not None and tpr.size > points:
        # Even along the curve's own length: even in index, a rare positive class would get hardly a point of its rise.
        along = (fpr + tpr) / 2
        keep = np.unique(np.searchsorted(along, np.linspace(0.0, 1.0, points)).clip(0, tpr.size - 1))
        keep[-1] = tpr.size - 1
        fpr, tpr, threshold = fpr[keep], tpr[keep], threshold[keep]
    return fpr, tpr, threshold


def brier(y: np.ndarray, p: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Brier score, the mean squared difference of probability and outcome: 0 is perfect, 0.25 is p = 0.5 throughout.

    Parameters
    ----------
    y : (N,) int
        0 or 1.
    p : (N,) float
        0 to 1.
    mask : (N,) bool, optional

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    DataError
        Shapes differ, no sample is left, or p is not a probability.
    """
    y, p = _binary(y, p, mask)
    _check_chances(p)
    return float(np.mean((p - y) ** 2))


def _check_chances(p: np.ndarray) -> None:
    if p.min() < 0 or p.max() > 1:
        raise DataError(f"p goes from {p.min():g} to {p.max():g}: give probabilities, from 0 to 1")


def _chances(y: np.ndarray, p: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and probabilities (N, C) of what the mask keeps; p of one dimension is that of class 1 of two."""
    y, p = np.asarray(y), np.asarray(p)
    if p.ndim == 1:
        p = np.stack([1 - p, p], axis=1)
    if p.ndim != 2 or p.shape[1] < 2 or y.shape != p.shape[:1]:
        raise DataError(f"y and p have shapes {y.shape} and {p.shape}: give (N,) classes and (N, C >= 2) probabilities")
    y, row = _select(mask, y=y, row=np.arange(len(y)))
    p = _scores(p[row])
    _check_chances(p)
    return _labels("y", y, p.shape[1]), p


def macro_auc(y: np.ndarray, p: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Mean over classes of the area under the ROC curve of that class against all others (`roc_auc`).

    Parameters
    ----------
    y : (N,) int
        0 <= class < C.
    p : (N, C) float
        Probabilities, 0 to 1.
    mask : (N,) bool, optional

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    DataError
        Shapes differ, p is not a probability, or a class has no scored sample.
    """
    y, p = _chances(y, p, mask)
    return float(np.mean([roc_auc((y == k).astype(np.int64), p[:, k]) for k in range(p.shape[1])]))


def brier_classes(y: np.ndarray, p: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Brier score of C classes, the mean over samples of the sum over classes of (p - outcome)^2: 0 is perfect, 2 the worst.

    Parameters and errors as `macro_auc`. For two classes it is twice `brier`, which counts the positive class alone.
    """
    y, p = _chances(y, p, mask)
    return float(np.mean(np.sum((p - (y[:, None] == np.arange(p.shape[1]))) ** 2, axis=1)))


CALIBRATION_BINS = 15


def calibration_error(y: np.ndarray, p: np.ndarray, *, mask: np.ndarray | None = None,
                      bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error of the most probable class.

    Samples are put into `bins` bins of equal width by the probability of their most probable class; the error is the mean
    over bins, weighted by samples, of ``|mean probability - share right|`` (Guo et al., arXiv:1706.04599, Eq. 3).

    Parameters
    ----------
    y : (N,) int
    p : (N,) or (N, C) float
        Probability of class 1 of two, or of every class, 0 to 1.
    mask : (N,) bool, optional
    bins : int
        >= 1.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    DataError
        As `macro_auc`, except that a class may be absent.
    """
    y, p = _chances(y, p, mask)
    if bins < 1:
        raise DataError(f"bins {bins} is too few: give at least 1")
    count, right, chance = calibration_sums(y, p, np.zeros(len(y), np.int64), 1, bins)
    return float(np.abs(chance - right).sum() / count.sum())


def calibration_sums(y: np.ndarray, p: np.ndarray, cluster: np.ndarray, clusters: int,
                     bins: int = CALIBRATION_BINS) -> np.ndarray:
    """What `calibration_error` adds up, per cluster: (3, clusters, bins) samples, samples right, and summed probability.

    `y` (N,), `p` (N, C) as there; `cluster` (N,) int from 0 to `clusters` - 1.
    """
    best, top = p.argmax(axis=1), p.max(axis=1)
    at = cluster * bins + np.minimum((top * bins).astype(np.int64), bins - 1)
    sums = [np.bincount(at, weights, clusters * bins) for weights in (np.ones(len(y)), best == y, top)]
    return np.stack(sums).reshape(3, clusters, bins)
