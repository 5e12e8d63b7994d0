"""Curves over the operating point, with intervals, and the windows that were decided wrong: the figures behind the plots.

The bands are pointwise percentiles of the cluster bootstrap of `pyhtpw.evaluate.bootstrap`: whole people are drawn, so a curve whose
positives come from one person has no band but the words that say so. Everything here is computed from scored windows alone.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from pyhtpw.errors import DataError
from pyhtpw.evaluate import THRESHOLDS, decide, probabilities, smoothed
from pyhtpw.evaluate.bootstrap import LEVEL, RESAMPLES, draw, people

if TYPE_CHECKING:
    from pyhtpw.data import Dataset, Split
    from pyhtpw.model import Image

GRID = np.linspace(0, 1, 101)  # of false positive rate and of recall
FINE = 400  # score steps that curves are read from
WRONG = 6  # windows drawn
RARE = 2  # people that must have a class for a band to mean anything


def curves(y: np.ndarray, p: np.ndarray, cluster: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any] | None:
    """ROC, precision over recall, and macro-F1 over the threshold, of two classes.

    Parameters
    ----------
    y : (N,) int
        Classes, 0 or 1, scored windows only.
    p : (N, 2) float
        Probabilities.
    cluster : (N,) str
        Person of each window.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    dict or None
        Lists of numbers, ready for JSON: ``roc`` (x false positive rate, y sensitivity), ``pr`` (x recall, y precision), ``threshold``
        (x threshold, y macro-F1), each with ``low`` and ``high`` or None; ``n``, ``positives``, ``clusters``, ``resamples``, and
        ``no_band``: why there is none, or "". None with more than two classes.

    Raises
    ------
    DataError
        A class has no window.
    """
    y, p = np.asarray(y), np.asarray(p, np.float64)
    if p.ndim != 2 or p.shape[1] != 2:
        return None
    positives = int((y == 1).sum())
    if not 0 < positives < len(y):
        raise DataError(f"{positives} of {len(y)} windows are positive: a curve needs both classes")
    names, index = np.unique(cluster, return_inverse=True)
    score = p[:, 1]
    # steps between the scores that occur, so that a rare class is not passed over; the thresholds of the protocol are among them
    steps = np.unique(
        np.concatenate([THRESHOLDS, np.quantile(score, np.linspace(0, 1, FINE)), np.quantile(score[y == 1], np.linspace(0, 1, FINE))])
    )
    bins = np.searchsorted(steps, score, "right")  # decided positive at steps[i] if bins > i
    counts = np.zeros((2, len(names), len(steps) + 1))
    np.add.at(counts, (y, index, bins), 1)
    above = counts[:, :, ::-1].cumsum(axis=2)[:, :, ::-1][:, :, 1:]  # (class, cluster, step): windows at or above it
    support = counts.sum(axis=2)  # (class, cluster)
    told = _bands(above, support, np.ones((1, len(names))), steps)
    out: dict[str, Any] = {"n": len(y), "positives": positives, "clusters": len(names), "resamples": 0, "no_band": ""}
    people_of = (support > 0).sum(axis=1)
    low = high = None
    if people_of.min() < RARE:
        rare = int(people_of.argmin())
        out["no_band"] = f"no intervals: class {rare} is of {people_of[rare]} person alone, and people are what is resampled"
    else:
        drawn = draw(support.T.astype(np.int64), 1, resamples=resamples, seed=seed)
        low, high = np.quantile(
            _bands(above, support, drawn.clusters.astype(np.float64), steps), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0
        )
        out["resamples"] = resamples
        largest = support[1].max() / support[1].sum()
        if largest > 0.5:
            out["no_band"] = f"intervals are not meaningful: {largest:.0%} of the positive windows are of one person"
    width = len(GRID)
    for name, part, x in (
        ("roc", slice(0, width), GRID),
        ("pr", slice(width, 2 * width), GRID),
        ("threshold", slice(2 * width, None), THRESHOLDS),
    ):
        rows = {"x": x, "y": told[0, part], "low": None if low is None else low[part], "high": None if high is None else high[part]}
        out[name] = {key: None if value is None else np.round(value, 5).tolist() for key, value in rows.items()}
    return out


def _bands(above: np.ndarray, support: np.ndarray, weights: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(R, 101 + 101 + 19): sensitivity, precision and macro-F1 for rows of weights (R, G) of the clusters."""
    fp, tp = (weights @ side for side in above)  # (R, T), falling
    negatives, positives = (weights @ side for side in support)
    fpr, tpr = fp / negatives[:, None], tp / positives[:, None]
    out = np.empty((len(weights), 2 * len(GRID) + len(THRESHOLDS)))
    for r in range(len(weights)):
        x, up = np.concatenate([[0.0], fpr[r, ::-1], [1.0]]), np.concatenate([[0.0], tpr[r, ::-1], [1.0]])
        out[r, : len(GRID)] = np.interp(GRID, x, up)  # of equal x the last counts: the top of a vertical rise
        # precision at the strictest step that reaches a recall, as it can be decided; linear between would be too kind
        at = np.searchsorted(tpr[r, ::-1], GRID - 1e-12).clip(0, len(steps) - 1)
        right, wrong = tp[r, ::-1][at], fp[r, ::-1][at]
        out[r, len(GRID) : 2 * len(GRID)] = right / np.maximum(right + wrong, 1e-12)
    at = np.searchsorted(steps, THRESHOLDS)
    tp, fp = tp[:, at], fp[:, at]
    fn, tn = positives[:, None] - tp, negatives[:, None] - fp
    f1 = 2 * tp / np.maximum(2 * tp + fp + fn, 1), 2 * tn / np.maximum(2 * tn + fp + fn, 1)
    out[:, 2 * len(GRID) :] = (f1[0] + f1[1]) / 2
    return out


def of_split(p: np.ndarray, split: Split, same_person: dict[str, str] | None = None) -> dict[str, Any] | None:
    """`curves` of a split's scored windows; p (N, C) after any filter."""
    keep = split.score_mask
    return curves(split.y[keep], p[keep], people(split.group[keep], same_person or {}))


def validation(image: Image, data: Dataset, threshold: float | None, median: int = 1) -> dict[str, Any]:
    """An image on the validation windows of a data set: figures, curves and wrong windows. Test is not touched.

    Returns
    -------
    dict
        ``validation`` as `pyhtpw.evaluate.score` gives it, ``curves`` ({"validation": ...} or {}), ``wrong`` as `wrong`.
    """
    from pyhtpw.evaluate import score
    from pyhtpw.pipeline import infer

    if image.parsed.info is None:
        raise DataError(f"{image.name}: has no INFO section, so the scale of its logits is unknown")
    p = smoothed(probabilities(infer(image, data.val.x), image.parsed.info.logit_scale), data.val, median)
    if p.shape[1] != len(data.classes):
        raise DataError(f"{image.name}: tells {p.shape[1]} classes apart, {data.name} has {len(data.classes)}")
    figures = score(p, data.val, threshold, name="validation", protocol=data.description["protocol"])
    found = of_split(p, data.val, data.description.get("same_person", {}))
    return {"validation": figures, "curves": {"validation": found} if found else {}, "wrong": wrong(image, p, data, threshold)}


def wrong(image: Image, p: np.ndarray, data: Dataset, threshold: float | None, n: int = WRONG) -> dict[str, Any]:
    """The validation windows that were decided wrong with the most confidence.

    Parameters
    ----------
    p : (N, C)
        Probabilities of the validation windows, after any filter.
    threshold : float or None
        t* of two classes.
    n : int
        Windows kept, from each true class in turn.

    Returns
    -------
    dict
        ``split``, ``wrong`` of ``scored`` windows, ``fs`` (Hz), and ``windows``: each with record, sample, truth, decided, p of what was
        decided, shape (T, C) and the int8 bytes that the network saw, base64.
    """
    split = data.val
    decided = decide(p, threshold)
    bad = np.flatnonzero((decided != split.y) & split.score_mask)
    sure = p[bad, decided[bad]] - p[bad, split.y[bad]]
    queues = [list(bad[split.y[bad] == k][np.argsort(-sure[split.y[bad] == k], kind="stable")]) for k in range(p.shape[1])]
    rows: list[int] = []
    while len(rows) < n and any(queues):
        rows += [int(queue.pop(0)) for queue in queues if queue]
    rows = rows[:n]
    windows = []
    for i in rows:
        x = image.quantise(np.asarray(split.x[i : i + 1], np.float32))[0]
        windows.append({"record": str(split.group[i]), "sample": int(split.position[i]), "truth": str(data.classes[split.y[i]]),
                        "decided": str(data.classes[decided[i]]), "p": round(float(p[i, decided[i]]), 4), "shape": list(split.x.shape[1:]),
                        "int8": base64.b64encode(x.tobytes()).decode()})  # fmt: skip
    return {"split": "validation", "wrong": len(bad), "scored": int(split.score_mask.sum()), "fs": float(data.fs), "windows": windows}


def window(row: dict[str, Any]) -> np.ndarray | None:
    """The int8 window (T, C) of a row of `wrong`; None if the row is malformed."""
    try:
        x = np.frombuffer(base64.b64decode(row["int8"], validate=True), np.int8)
        return x.reshape(tuple(row["shape"]))
    except (KeyError, TypeError, ValueError):
        return None
