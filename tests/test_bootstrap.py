"""Cluster bootstrap against the plain metrics, brute force and scipy; Holm; calibration."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pyhtpw.data.dataset import Split
from pyhtpw.errors import DataError
from pyhtpw.evaluate import balanced_accuracy, macro_f1, metrics
from pyhtpw.evaluate.bootstrap import Interval, Scored, Sums, draw, holm, holm_intervals, intervals, paired, people
from pyhtpw.evaluate.calibration import (
    adapted_to_subjects,
    class_thresholds,
    decide_by_class,
    fit_temperature,
    subject_thresholds,
    warmed,
)


def scored(seed: int, *, n: int = 120, classes: int = 2, clusters: int = 8, skill: float = 1.0, noise: int | None = None) -> Scored:
    """Made-up decisions; `noise` seeds the model, `seed` the windows."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    cluster = np.array([f"c{i}" for i in rng.integers(0, clusters, n)])
    rng = np.random.default_rng([seed, 9 if noise is None else noise])
    z = np.round(rng.normal(size=(n, classes)) + skill * (y[:, None] == np.arange(classes)), 1)  # rounded: ties
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return Scored(y, p, p.argmax(axis=1), cluster)


def repeated(run: Scored, names: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rows of the resample, each cluster as often as it was drawn."""
    return np.concatenate([np.flatnonzero(run.cluster == name) for name, w in zip(names, weights, strict=True) for _ in range(int(w))])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4))
def test_sums_give_the_figures_of_the_repeated_windows(seed: int, classes: int) -> None:
    """The definition: repeat the windows of the clusters drawn and call the plain metrics."""
    run = scored(seed, classes=classes)
    names, index = np.unique(run.cluster, return_inverse=True)
    support = np.zeros((len(names), classes), int)
    np.add.at(support, (index, run.y), 1)
    weights = draw(support, 1, resamples=3, seed=seed).clusters
    got = Sums.of(run, names, veb=classes == 2).figures(weights.astype(float))
    for r, row in enumerate(weights):
        at = repeated(run, names, row)
        y, p, d = run.y[at], run.p[at], run.decided[at]
        options = {"classes": classes}
        want = {
            "accuracy": metrics.accuracy(y, d, **options), "balanced_accuracy": balanced_accuracy(y, d, **options),
            "macro_f1": macro_f1(y, d, **options), "ece": metrics.calibration_error(y, p),
            "auc": metrics.roc_auc(y, p[:, 1]) if classes == 2 else metrics.macro_auc(y, p),
            "brier": metrics.brier(y, p[:, 1]) if classes == 2 else metrics.brier_classes(y, p),
        }
        each = metrics.per_class(y, d, **options)
        want |= {f"recall_{k}": row["recall"] for k, row in enumerate(each)}
        if classes == 2:
            want |= {"veb_sensitivity": each[1]["recall"], "veb_ppv": each[1]["precision"], "veb_f1": each[1]["f1"]}
        assert set(want) == set(got)
        for name, value in want.items():
            assert got[name][r] == pytest.approx(value, abs=1e-9), name


def test_interval_agrees_with_scipy() -> None:
    """Accuracy of one seed, where clusters resample independently: scipy.stats.bootstrap over cluster indices."""
    run = scored(3, n=900, clusters=30)
    names, index = np.unique(run.cluster, return_inverse=True)
    right, size = np.bincount(index, run.decided == run.y), np.bincount(index)

    def accuracy(chosen):
        return right[chosen].sum(axis=-1) / size[chosen].sum(axis=-1)

    theirs = stats.bootstrap((np.arange(len(names)),), lambda c, axis: accuracy(c.astype(int)), n_resamples=20000, method="percentile",
                             rng=np.random.default_rng(1)).confidence_interval
    ours = intervals([run], resamples=20000, seed=1).figures["accuracy"]
    spread = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.05 * spread and abs(ours.high - theirs.high) < 0.05 * spread
    assert ours.estimate == metrics.accuracy(run.y, run.decided)


def test_a_paired_difference_is_narrower_than_an_unpaired_one_and_has_its_sign() -> None:
    good = [scored(5, n=2000, clusters=20, skill=1.6, noise=s) for s in range(3)]
    poor = [scored(5, n=2000, clusters=20, skill=1.0, noise=s) for s in range(3)]
    difference = paired(good, poor).figures["macro_f1"]
    assert difference.low > 0 and difference.p_value == pytest.approx(2 / 1001)
    back = paired(poor, good).figures["macro_f1"]
    assert back.estimate == pytest.approx(-difference.estimate) and back.high == pytest.approx(-difference.low)
    same = paired(good, good)
    assert all(each.low == each.high == 0 and each.p_value == 1 for each in same.figures.values())
    one, other = intervals(good).figures["macro_f1"], intervals(poor).figures["macro_f1"]
    assert difference.estimate == pytest.approx(one.estimate - other.estimate)
    # Model noise is shared in this made-up pair, so the difference varies less than either figure's own spread suggests.
    assert difference.high - difference.low < (one.high - one.low) + (other.high - other.low)


def test_seeds_are_resampled_too() -> None:
    """Identical people, seeds that differ: the interval spans the seeds, and one seed alone has none of it."""
    y = np.tile([0, 1], 50)
    cluster = np.repeat([f"c{i}" for i in range(10)], 10)
    seeds = []
    for share in (0.0, 0.2, 0.4):  # of each cluster's ten windows as many are wrong
        wrong = np.tile(np.arange(10) < 10 * share, 10)
        decided = np.where(wrong, 1 - y, y)
        seeds.append(Scored(y, np.stack([1 - decided, decided], axis=1) * 0.8 + 0.1, decided, cluster))
    whole = intervals(seeds).figures["accuracy"]
    assert whole.estimate == pytest.approx(0.8) and whole.low == pytest.approx(0.6, abs=0.08) and whole.high == pytest.approx(1, abs=0.08)
    alone = intervals(seeds[1:2]).figures["accuracy"]
    assert alone.low == pytest.approx(alone.high) == pytest.approx(0.8)


def test_a_resample_without_a_class_is_redrawn_and_counted() -> None:
    support = np.array([[5, 0], [5, 0], [5, 0], [3, 2]])
    drawn = draw(support, 2, resamples=500, seed=0)
    assert (drawn.clusters[:, 3] > 0).all() and len(drawn.clusters) == len(drawn.seeds) == 500
    chance = (3 / 4) ** 4
    assert drawn.redrawn == pytest.approx(500 * chance / (1 - chance), rel=0.3)
    assert (drawn.clusters.sum(axis=1) == 4).all() and (drawn.seeds.sum(axis=1) == 2).all()


@pytest.mark.parametrize("call, words", [
    (lambda: intervals([]), "no run"),
    (lambda: intervals([scored(0, clusters=1)]), "at least two people"),
    (lambda: intervals([scored(0), scored(1)]), "different windows"),
    (lambda: paired([scored(0)], [scored(0)] * 2), "same seeds"),
    (lambda: draw(np.array([[1, 0], [2, 0]]), 1), "class 1 has no scored window"),
    (lambda: Scored(np.zeros(3, int), np.zeros((2, 2)), np.zeros(3, int), np.array(["a"] * 3)), "one row per scored"),
])
def test_bad_input(call, words: str) -> None:
    with pytest.raises(DataError, match=words):
        call()


def test_records_of_one_person_are_one_cluster() -> None:
    assert people(np.array(["201", "202", "100"]), {"202": "201"}).tolist() == ["201", "201", "100"]


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": pytest.approx(0.03), "b": pytest.approx(0.06), "c": pytest.approx(0.06)}
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    draws = np.linspace(-1, 3, 1001)
    wide = holm_intervals({"near": Interval.of(1.0, draws), "far": Interval.of(5.0, draws + 4)})
    assert wide["far"]["level"] == pytest.approx(0.975) and wide["near"]["level"] == pytest.approx(0.95)
    assert wide["far"]["low"] == pytest.approx(3 + 0.0125 * 4) and wide["far"]["p_holm"] == pytest.approx(4 / 1002)
    assert wide["near"]["p"] > 0.05
    late = holm_intervals({"a": Interval.of(1.0, np.linspace(-0.04, 2, 1001)), "b": Interval.of(1.0, np.linspace(-0.045, 2, 1001))})
    assert max(each["p"] for each in late.values()) < 0.05 < min(each["p_holm"] for each in late.values())
    assert all(each["level"] == pytest.approx(0.975) and each["low"] < 0 for each in late.values()), "stopped at the first"


def test_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4000, 3))
    true = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    y = (rng.random(4000)[:, None] > true.cumsum(axis=1)).sum(axis=1)
    sure = warmed(true, 1 / 3)  # logits three times as large
    assert fit_temperature(sure, y) == pytest.approx(3, rel=0.1)
    assert metrics.calibration_error(y, warmed(sure, 3)) < 0.05 < metrics.calibration_error(y, sure)
    np.testing.assert_allclose(warmed(sure, 3), true, atol=1e-9)
    assert fit_temperature(sure, np.where(np.arange(4000) < 100, y, 0), np.arange(4000) < 100) == pytest.approx(
        fit_temperature(sure[:100], y[:100]))


def test_class_thresholds_beat_the_largest_probability_where_a_class_is_shy() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 600)
    z = rng.normal(size=(600, 3)) + 2.5 * (y[:, None] == np.arange(3)) - np.array([0, 0, 2.0])
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    chosen, reached = class_thresholds(p, y)
    assert reached == macro_f1(y, decide_by_class(p, chosen), classes=3) > macro_f1(y, p.argmax(axis=1), classes=3) + 0.05
    assert chosen[2] < chosen[0]


def test_subject_thresholds_adapt_to_the_beginning_alone() -> None:
    p = np.array([0.1, 0.3, 0.1, 0.3, 0.6, 0.9, 0.6, 0.9])
    y = np.array([0, 1, 0, 1, 0, 0, 1, 1])
    group, position = np.array(["a"] * 4 + ["b"] * 4), np.array([0, 1, 2, 3] * 2)
    at, left = subject_thresholds(p, y, group, position, np.ones(8, bool), before=2, otherwise=0.5)
    assert left.tolist() == [False, False, True, True] * 2
    assert np.allclose(at[:4], 0.3) and (at[4:] == 0.5).all()  # b's beginning has one class
    same, _ = subject_thresholds(p, np.where(left, 1 - y, y), group, position, np.ones(8, bool), before=2, otherwise=0.5)
    assert np.array_equal(at, same), "labels that are scored have no part in it"


def test_adaptation_to_subjects_is_scored_where_nothing_was_adapted_with() -> None:
    fs, rng = 10.0, np.random.default_rng(2)
    group, position = np.repeat(["a", "b"], 100), np.tile(np.arange(100) * 60, 2)  # a window every 6 s: 50 of 100 in five minutes
    y = np.tile([0, 0, 1, 0], 50).astype(np.int64)
    positive = np.where(y == 1, 0.8, 0.2) - np.where(group == "b", 0.5, 0) * (y == 1)  # b's beats score low: .3 against .2
    positive += rng.uniform(-0.04, 0.04, 200)
    split = Split(np.zeros((200, 1, 1), np.float32), y, group, position, np.ones(200, bool))
    p = np.stack([1 - positive, positive], axis=1)
    found = adapted_to_subjects(p, split, 0.5, fs)
    assert found is not None and found["windows"] == 100 and found["records"] == 2
    assert found["subject"]["f1"] == 1 > found["t_star"]["f1"] == pytest.approx(2 * 0.5 / 1.5)  # t* finds the half that is a's
    again = adapted_to_subjects(np.where((position < 3000)[:, None], p, p[::-1]), split, 0.5, fs)
    assert again is not None and again["records_with_another_threshold"] == found["records_with_another_threshold"]
    assert adapted_to_subjects(p, split, 0.5, 1000.0) is None, "records shorter than what is adapted with"
