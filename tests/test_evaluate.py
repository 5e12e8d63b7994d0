"""Metrics against hand-computed values and brute force; the protocol against its rules."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhtpw.data import Split
from pyhtpw.errors import ConfigError, DataError
from pyhtpw.evaluate import (
    THRESHOLDS,
    accuracy,
    balanced_accuracy,
    brier,
    confusion,
    evaluate_binary,
    macro_f1,
    median_filter,
    per_class,
    probabilities,
    roc_auc,
    roc_curve,
    tune_threshold,
)

Y = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
D = np.array([1, 1, 1, 0, 1, 0, 0, 0, 0, 0])  # TP 3, FN 1, FP 1, TN 5


def split(y, group=None, position=None, mask=None) -> Split:
    n = len(y)
    return Split(np.zeros((n, 2, 1), np.float32), np.asarray(y, np.int64),
                 np.array(["r"] * n if group is None else group),
                 np.arange(n, dtype=np.int64) if position is None else np.asarray(position, np.int64),
                 np.ones(n, bool) if mask is None else np.asarray(mask, bool))


# --- metrics ------------------------------------------------------------------------------------------------------


def test_hand_computed() -> None:
    assert confusion(Y, D).tolist() == [[5, 1], [1, 3]]
    assert accuracy(Y, D) == 0.8
    assert balanced_accuracy(Y, D) == pytest.approx((5 / 6 + 3 / 4) / 2)
    assert macro_f1(Y, D) == pytest.approx((10 / 12 + 6 / 8) / 2)
    other, positive = per_class(Y, D)
    assert positive == {"precision": 0.75, "recall": 0.75, "f1": 0.75, "support": 4}
    assert other == {"precision": pytest.approx(5 / 6), "recall": pytest.approx(5 / 6), "f1": pytest.approx(5 / 6),
                     "support": 6}
    assert brier(np.array([1, 0]), np.array([0.8, 0.4])) == pytest.approx((0.04 + 0.16) / 2)


def test_three_classes() -> None:
    y, d = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0])
    assert confusion(y, d, classes=3).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 1]]
    assert macro_f1(y, d, classes=3) == pytest.approx((0.5 + 0.8 + 2 / 3) / 3)
    assert balanced_accuracy(y, d, classes=3) == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_mask_is_the_same_as_leaving_out() -> None:
    rng = np.random.default_rng(0)
    y, p, mask = rng.integers(0, 2, 60), rng.random(60), rng.random(60) < 0.6
    d = (p > 0.5).astype(int)
    for figure in (accuracy, balanced_accuracy, macro_f1):
        assert figure(y, d, mask=mask) == figure(y[mask], d[mask])
    for figure in (roc_auc, brier):
        assert figure(y, p, mask=mask) == figure(y[mask], p[mask])
    assert confusion(y, d, mask=mask).tolist() == confusion(y[mask], d[mask]).tolist()
    assert per_class(y, d, mask=mask) == per_class(y[mask], d[mask])
    for one, two in zip(roc_curve(y, p, mask=mask), roc_curve(y[mask], p[mask])):
        assert np.array_equal(one, two)


def test_never_deciding_for_a_class_scores_zero() -> None:
    none = np.zeros_like(Y)
    assert per_class(Y, none)[1] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 4}
    assert macro_f1(Y, none) == pytest.approx((12 / 16) / 2)


scored = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=2, max_size=40).filter(
    lambda rows: 0 < sum(y for y, _ in rows) < len(rows))


@settings(max_examples=200, deadline=None)
@given(scored)
def test_auc_is_the_share_of_ordered_pairs(rows: list[tuple[int, int]]) -> None:
    """Brute force over all pairs; scores from seven values, so ties are common."""
    y, p = np.array([r[0] for r in rows]), np.array([r[1] / 6 for r in rows])
    pairs = [(a > b) + 0.5 * (a == b) for a in p[y == 1] for b in p[y == 0]]
    assert roc_auc(y, p) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    fpr, tpr, threshold = roc_curve(y, p)
    assert roc_auc(y, p) == pytest.approx(float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2)), abs=1e-12)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    for f, t, at in zip(fpr, tpr, threshold):
        assert f == pytest.approx(np.mean(p[y == 0] >= at)) and t == pytest.approx(np.mean(p[y == 1] >= at))


@settings(max_examples=100, deadline=None)
@given(scored)
def test_confusion_counts_one_by_one(rows: list[tuple[int, int]]) -> None:
    y, d = np.array([r[0] for r in rows]), np.array([r[1] % 2 for r in rows])
    want = [[sum(1 for a, b in zip(y, d) if (a, b) == (i, j)) for j in (0, 1)] for i in (0, 1)]
    assert confusion(y, d).tolist() == want


@pytest.mark.parametrize("points", [2, 3, 50, 200])
def test_decimated_curve_keeps_its_ends(points: int) -> None:
    rng = np.random.default_rng(1)
    y = (np.arange(5000) % 50 == 0).astype(int)
    p = rng.random(5000) + 0.5 * y
    whole = set(zip(*(v.tolist() for v in roc_curve(y, p)[:2])))
    fpr, tpr, threshold = roc_curve(y, p, points=points)
    assert 2 <= fpr.size <= points and fpr.size == tpr.size == threshold.size
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all()
    assert set(zip(fpr.tolist(), tpr.tolist())) <= whole


@pytest.mark.parametrize("call, words", [
    (lambda: confusion(Y, D[:3]), "shapes"),
    (lambda: confusion(Y, D + 1), "0 to 1"),
    (lambda: confusion(Y, D - 1), "0 to 1"),
    (lambda: confusion(Y, D * 0.5), "integer class"),
    (lambda: confusion(Y, D, mask=np.ones(3, bool)), "mask"),
    (lambda: confusion(Y, D, mask=np.ones(10, int)), "mask"),
    (lambda: accuracy(Y, D, mask=np.zeros(10, bool)), "no sample is left"),
    (lambda: macro_f1(Y[:4], D[:4]), "class 0 has no scored sample"),
    (lambda: balanced_accuracy(Y, D, mask=Y == 0), "class 1 has no scored sample"),
    (lambda: roc_auc(Y[:4], D[:4]), "of 4 scored samples 4 are positive"),
    (lambda: roc_curve(Y[4:], D[4:]), "of 6 scored samples 0 are positive"),
    (lambda: roc_curve(Y, D, points=1), "two ends"),
    (lambda: roc_auc(Y, np.where(Y == 1, np.nan, 0.0)), "finite"),
    (lambda: brier(Y, D * 2), "from 0 to 1"),
])
def test_bad_input_to_metrics(call, words: str) -> None:
    with pytest.raises(DataError, match=words):
        call()


# --- protocol -----------------------------------------------------------------------------------------------------


def test_probabilities() -> None:
    logits = np.array([[-128, 127], [3, 3], [10, 0]], np.int8)
    p = probabilities(logits, 0.1)
    assert p.dtype == np.float64 and np.allclose(p.sum(axis=1), 1)
    assert p[0, 1] == pytest.approx(1 / (1 + math.exp(-25.5))) and p[1].tolist() == [0.5, 0.5]
    # A zero point moves all logits of a sample alike.
    np.testing.assert_array_equal(p, probabilities(logits.astype(np.int32) - 17, 0.1))
    # Huge scales saturate and do not overflow.
    assert probabilities(logits, 1e6)[0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("logits, scale", [(np.zeros((2, 2)), 0.1), (np.zeros(2, np.int8), 0.1),
                                           (np.zeros((2, 1), np.int8), 0.1), (np.zeros((2, 2), np.int8), 0.0),
                                           (np.zeros((2, 2), np.int8), float("nan"))])
def test_bad_logits(logits: np.ndarray, scale: float) -> None:
    with pytest.raises(DataError):
        probabilities(logits, scale)


def test_median_filter_by_hand() -> None:
    # Record a in time order: .9 .1 .2 ; record b: .5 .0
    p = np.array([0.2, 0.5, 0.9, 0.0, 0.1])
    group, position = np.array(["a", "b", "a", "b", "a"]), np.array([30, 5, 10, 6, 20])
    assert median_filter(p, group, position, 3).tolist() == [0.2, 0.5, 0.9, 0.0, 0.2]
    assert median_filter(p, group, position, 1).tolist() == p.tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.integers(0, 9)), min_size=1, max_size=30),
       st.sampled_from([1, 3, 5, 9]))
def test_median_filter_against_the_definition(rows: list[tuple[str, int, int]], width: int) -> None:
    group, position = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    p = np.array([r[2] / 9 for r in rows])
    got = median_filter(p, group, position, width)
    for name in set(group.tolist()):
        member = sorted((i for i in range(len(rows)) if group[i] == name), key=lambda i: (position[i], i))
        for rank, i in enumerate(member):
            near = [p[member[min(max(k, 0), len(member) - 1)]] for k in range(rank - width // 2, rank + width // 2 + 1)]
            assert got[i] == sorted(near)[width // 2]


@pytest.mark.parametrize("width", [0, -1, 2, 4, 1.0, True])
def test_bad_median_width(width) -> None:
    with pytest.raises(ConfigError, match="median width"):
        median_filter(np.zeros(3), np.array(["a"] * 3), np.arange(3), width)


def test_median_filter_shapes() -> None:
    with pytest.raises(DataError, match="shapes"):
        median_filter(np.zeros(3), np.array(["a"] * 2), np.arange(3), 3)


def test_grid() -> None:
    np.testing.assert_allclose(THRESHOLDS, [k / 20 for k in range(1, 20)])
    with pytest.raises(ValueError):
        THRESHOLDS[0] = 0.5


def test_threshold_ties_go_to_the_middle() -> None:
    # Separable between .2 and .9: every threshold from .25 to .9 is perfect.
    assert tune_threshold(np.array([0.2, 0.9]), np.array([0, 1])) == (pytest.approx(0.5), 1.0)
    # Only .65 ... .9 are.
    assert tune_threshold(np.array([0.62, 0.9]), np.array([0, 1]))[0] == pytest.approx(0.65)
    # Best at .3 and below, and again at .7: equally near, so the lower.
    p, y = np.array([0.32, 0.68, 0.32, 0.68]), np.array([1, 1, 0, 0])
    reached = [macro_f1(y, p >= t) for t in THRESHOLDS]
    assert tune_threshold(p, y)[1] == max(reached)


@settings(max_examples=100, deadline=None)
@given(scored)
def test_threshold_is_the_best_of_the_grid(rows: list[tuple[int, int]]) -> None:
    y, p = np.array([r[0] for r in rows]), np.array([r[1] / 6 for r in rows])
    t, value = tune_threshold(p, y)
    reached = {float(h): macro_f1(y, p >= h) for h in THRESHOLDS}
    assert value == reached[t] == max(reached.values())
    assert all(abs(h - 0.5) >= abs(t - 0.5) - 1e-9 for h in reached if reached[h] == value)


def test_evaluate_binary_by_hand() -> None:
    val = split([0, 0, 1, 1])
    test = split([0, 0, 0, 1, 1], mask=[True, True, False, True, True])
    p_test = np.array([0.1, 0.8, 0.9, 0.7, 0.95])
    out = evaluate_binary(np.array([0.1, 0.3, 0.64, 0.9]), val, p_test, test, protocol="aami")
    assert out["threshold"] == pytest.approx(0.5) and out["val"]["macro_f1"] == 1.0
    got = out["test"]
    assert (got["n"], got["positives"], got["confusion"]) == (4, 2, [[1, 1], [0, 2]])
    assert got["accuracy"] == 0.75 and got["auc"] == 0.75 and got["threshold"] == out["threshold"]
    assert got["veb"] == {"sensitivity": 1.0, "ppv": pytest.approx(2 / 3), "f1": pytest.approx(0.8)}
    assert got["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    assert got["brier"] == pytest.approx((0.01 + 0.64 + 0.09 + 0.0025) / 4)
    assert len(got["roc"]["fpr"]) == len(got["roc"]["tpr"]) <= 200
    assert json.loads(json.dumps(out)) == out
    assert "veb" not in evaluate_binary(np.array([0.1, 0.3, 0.64, 0.9]), val, p_test, test)["test"]


def test_test_data_have_no_part_in_tuning() -> None:
    rng = np.random.default_rng(5)
    y_val, y_test = rng.integers(0, 2, 80), rng.integers(0, 2, 80)
    p_val = (0.3 * y_val + 0.5 * rng.random(80)).clip(0, 1)
    one = evaluate_binary(p_val, split(y_val), rng.random(80), split(y_test))
    two = evaluate_binary(p_val, split(y_val), rng.random(80), split(1 - y_test))
    assert one["threshold"] == two["threshold"] and one["val"] == two["val"]


def test_median_filter_covers_both_sides_and_unscored_windows() -> None:
    val = split([0, 0, 0, 1, 1, 1])
    test = split([0, 0, 0, 1, 1, 1], mask=[True, True, True, True, False, True])
    p = np.array([0.1, 0.9, 0.1, 0.8, 0.9, 0.8])
    out = evaluate_binary(p, val, p, test, median=3)
    # The filter, over all six windows, gives .1 .1 .8 .8 .8 .8.
    assert out["median"] == 3
    assert out["val"]["confusion"] == [[2, 1], [0, 3]] and out["test"]["confusion"] == [[2, 1], [0, 2]]


@pytest.mark.parametrize("y_val, y_test, p_test, words", [
    ([0, 1], [0, 0], [0.1, 0.2], "the test split has 0 positive and 2 negative"),
    ([1, 1], [0, 1], [0.1, 0.2], "the validation split has 2 positive and 0 negative"),
    ([0, 1], [0, 1], [0.1, np.nan], "test: p is nan at record r, sample 1"),
    ([0, 1], [0, 1], [0.1, 1.1], "test: p is 1.1"),
    ([0, 1], [0, 1], [0.1], "one probability each"),
])
def test_bad_evaluations(y_val, y_test, p_test, words: str) -> None:
    with pytest.raises(DataError, match=words):
        evaluate_binary(np.array([0.2, 0.8]), split(y_val), np.array(p_test), split(y_test))
