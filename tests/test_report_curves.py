"""Curves with intervals and wrong windows, against brute force."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import random_images
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhtpw.data import Split
from pyhtpw.errors import DataError
from pyhtpw.evaluate import THRESHOLDS, metrics
from pyhtpw.evaluate.bootstrap import draw
from pyhtpw.image import write
from pyhtpw.model import Image
from pyhtpw.report import curves


def scored(seed: int, n: int = 160, people: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and people; every person has both classes."""
    rng = np.random.default_rng(seed)
    cluster = np.array([f"r{i % people}" for i in range(n)])
    y = (np.arange(n) // people % 4 == 0).astype(np.int64)
    p1 = np.clip(np.round(0.3 * y + rng.normal(0.35, 0.2, n), 2), 0, 1)
    return y, np.stack([1 - p1, p1], axis=1), cluster


def precision_at(y: np.ndarray, p: np.ndarray, recall: float) -> float:
    """Precision at the strictest threshold of those that occur, or of the protocol, that reaches a recall."""
    for t in sorted({*p.tolist(), *THRESHOLDS.tolist()}, reverse=True):
        if (p[y == 1] >= t).mean() >= recall - 1e-12:
            return float(y[p >= t].mean()) if (p >= t).any() else 0.0
    raise AssertionError


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_curves_are_those_of_the_metrics(seed):
    y, p, cluster = scored(seed)
    found = curves.curves(y, p, cluster, resamples=4)
    fpr, tpr, _ = metrics.roc_curve(y, p[:, 1])
    top = {x: max(tpr[fpr == x]) for x in fpr}
    for x, value in zip(found["roc"]["x"], found["roc"]["y"]):
        expected = top[x] if x in top else np.interp(x, fpr, tpr)
        assert value == pytest.approx(expected, abs=1e-5)
    for t, value in zip(THRESHOLDS, found["threshold"]["y"]):
        assert value == pytest.approx(metrics.macro_f1(y, (p[:, 1] >= t).astype(int)), abs=1e-5)
    for r, value in list(zip(found["pr"]["x"], found["pr"]["y"]))[10::10]:
        assert value == pytest.approx(precision_at(y, p[:, 1], r), abs=1e-5)
    assert (found["n"], found["positives"], found["clusters"]) == (len(y), int(y.sum()), 8)


def test_bands_are_percentiles_of_resampled_people():
    """Whole people are repeated as often as the bootstrap drew them, and the figure is taken anew."""
    y, p, cluster = scored(1)
    found = curves.curves(y, p, cluster, resamples=60, seed=5)
    names = np.unique(cluster)
    support = np.array([[(y[cluster == n] == k).sum() for k in (0, 1)] for n in names])
    drawn = draw(support, 1, resamples=60, seed=5).clusters
    f1, tpr = [], []
    for weights in drawn:
        rows = np.concatenate([np.repeat(np.flatnonzero(cluster == n), w) for n, w in zip(names, weights)])
        f1.append([metrics.macro_f1(y[rows], (p[rows, 1] >= t).astype(int)) for t in THRESHOLDS])
        x, up, _ = metrics.roc_curve(y[rows], p[rows, 1])
        tpr.append([max(up[x <= 0.5])] if 0.5 in x else [np.interp(0.5, x, up)])
    low, high = np.quantile(f1, [0.025, 0.975], axis=0)
    assert np.allclose(found["threshold"]["low"], low, atol=1e-5) and np.allclose(found["threshold"]["high"], high, atol=1e-5)
    at = found["roc"]["x"].index(0.5)
    low, high = np.quantile(tpr, [0.025, 0.975])
    assert found["roc"]["low"][at] == pytest.approx(low, abs=1e-5) and found["roc"]["high"][at] == pytest.approx(high, abs=1e-5)
    assert len(found["pr"]["low"]) == len(found["pr"]["x"]) == 101 and found["resamples"] == 60 and found["no_band"] == ""


def test_positives_of_one_person_have_no_interval():
    y, p, cluster = scored(2)
    y = ((cluster == "r3") & (np.arange(len(y)) % 3 == 0)).astype(np.int64)
    found = curves.curves(y, p, cluster)
    assert found["roc"]["low"] is None and found["resamples"] == 0 and "1 person alone" in found["no_band"]
    most = y.copy()
    most[np.flatnonzero(cluster == "r4")[:1]] = 1
    assert "of one person" in curves.curves(most, p, cluster, resamples=20)["no_band"]
    assert curves.curves(y, np.ones((len(y), 3)) / 3, cluster) is None
    with pytest.raises(DataError, match="both classes"):
        curves.curves(np.zeros_like(y), p, cluster)


class NoTest:
    """A data set whose test must not be touched."""

    def __init__(self, **fields) -> None:
        self.__dict__.update(fields)

    @property
    def test(self):
        raise AssertionError("test was opened")


def test_wrong_windows_are_the_most_confident_of_validation():
    image = Image(write(random_images.example()))
    h, w, c = image.input_shape
    classes = image.classes
    rng = np.random.default_rng(0)
    n = 40
    x = rng.normal(0, 1, (n, h * w, c)).astype(np.float32)
    y = rng.integers(0, classes, n)
    p = rng.dirichlet(np.ones(classes), n)
    split = Split(x, y.astype(np.int64), np.array([f"r{i}" for i in range(n)]), np.arange(n), np.arange(n) != 7)
    data = NoTest(val=split, classes=tuple(f"c{k}" for k in range(classes)), fs=250.0)
    seen = SimpleNamespace(quantise=lambda z: np.clip(np.rint(np.asarray(z) * 32), -128, 127).astype(np.int8))
    found = curves.wrong(seen, p, data, None, 5)
    bad = [i for i in range(n) if p[i].argmax() != y[i] and i != 7]
    assert found["wrong"] == len(bad) and found["scored"] == n - 1 and found["fs"] == 250.0 and len(found["windows"]) == min(5, len(bad))
    for row in found["windows"]:
        i = int(row["record"][1:])
        assert i in bad and row["truth"] == f"c{y[i]}" and row["decided"] == f"c{p[i].argmax()}"
        better = [j for j in bad if y[j] == y[i] and p[j].max() - p[j, y[j]] > p[i].max() - p[i, y[i]]]
        assert len(better) < sum(r["truth"] == row["truth"] for r in found["windows"])
        assert np.array_equal(curves.window(row), seen.quantise(x[i]))
    assert curves.window({"int8": "?", "shape": [1, 1]}) is None and curves.window({}) is None
