"""Cluster bootstrap: confidence intervals of figures, and of paired differences between two models.

Windows of one person are alike, so whole clusters (records, patients, speakers) are resampled, with replacement; and where a
configuration was trained with several seeds, these are resampled jointly with the clusters: a replicate draws clusters and
seeds and takes the mean of the figure over the seeds drawn. Of two models the same clusters and the same seeds are drawn, so
what both find hard, and a seed that is lucky for both (order of batches, for example), cancels in the difference.

Nothing is chosen anew in a replicate: decisions were made at the t* that validation fixed. Intervals are percentiles
(Efron and Tibshirani 1993, chapter 13; for clusters Field and Welsh 2007).

Every figure here is a function of sums over clusters (`Sums`), made once: a replicate is then a product with the number of
times each cluster was drawn, and 1000 of them take moments. The area under the ROC curve is such a function too: of the pairs
of clusters, U[g, h] counting the pairs with a positive of g above a negative of h.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError
from .metrics import CALIBRATION_BINS, calibration_sums

RESAMPLES = 1000
LEVEL = 0.95
_REDRAWS = 1000  # times as many as resamples: beyond it a class is so rare that no interval has a meaning


@dataclass(frozen=True)
class Scored:
    """What one trained model decided on a split, scored windows only.

    Attributes
    ----------
    y : (N,) int64
        True classes.
    p : (N, C) float
        Probabilities, after any filter.
    decided : (N,) int64
        Decisions at the fixed operating point.
    cluster : (N,) str
        Who must stay together: the person.
    """

    y: np.ndarray
    p: np.ndarray
    decided: np.ndarray
    cluster: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.y)
        if self.p.ndim != 2 or len(self.p) != n or len(self.decided) != n or len(self.cluster) != n or not n:
            raise DataError(f"y, p, decided and cluster have shapes {self.y.shape}, {self.p.shape}, {self.decided.shape}, "
                            f"{self.cluster.shape}: give one row per scored window, and p a column per class")

    @property
    def classes(self) -> int:
        """C."""
        return self.p.shape[1]


def people(group: np.ndarray, same_person: Mapping[str, str]) -> np.ndarray:
    """Person of each window, (N,) str: its group, unless `same_person` (of `Dataset.description`) says whose it is."""
    names, index = np.unique(group, return_inverse=True)
    return np.array([same_person.get(str(name), str(name)) for name in names])[index]


@dataclass(frozen=True)
class Sums:
    """Sufficient statistics of one `Scored`, per cluster.

    ``confusion`` (G, C, C); ``brier`` (G,); ``calibration`` (3, G, bins); ``above`` for each class that has
    an area (the second of two, or all) the (G, G) pairs of `_above`; ``veb``: whether the second class has figures of its own.
    """

    confusion: np.ndarray
    brier: np.ndarray
    calibration: np.ndarray
    above: tuple[np.ndarray, ...]
    veb: bool

    @classmethod
    def of(cls, scored: Scored, names: np.ndarray, *, veb: bool = False) -> Sums:
        """Sums of `scored` over the clusters `names` (sorted); `veb`: of two classes, also the figures of the second."""
        g, classes = len(names), scored.classes
        cluster = np.searchsorted(names, scored.cluster)
        flat = (cluster * classes + scored.y) * classes + scored.decided
        confusion = np.bincount(flat, minlength=g * classes * classes).reshape(g, classes, classes).astype(np.float64)
        if classes == 2:
            squares = (scored.p[:, 1] - scored.y) ** 2
        else:
            squares = np.sum((scored.p - (scored.y[:, None] == np.arange(classes))) ** 2, axis=1)
        ranked = (1,) if classes == 2 else tuple(range(classes))
        return cls(
            confusion,
            np.bincount(cluster, squares, g),
            calibration_sums(scored.y, scored.p, cluster, g, CALIBRATION_BINS),
            tuple(_above(scored.y == k, scored.p[:, k], cluster, g) for k in ranked),
            veb,
        )

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Each figure, (R,), for every row of `weights` (R, G), how often each cluster counts; every class must be there."""
        classes = self.confusion.shape[1]
        matrix = np.einsum("rg,gij->rij", weights, self.confusion)
        support, right = matrix.sum(axis=2), np.einsum("rii->ri", matrix)
        total, recall = support.sum(axis=1), right / support
        f1 = 2 * right / (support + matrix.sum(axis=1))
        count, good, chance = np.einsum("rg,sgb->srb", weights, self.calibration)
        areas = []
        for k, above in zip((1,) if classes == 2 else range(classes), self.above, strict=True):
            pairs = support[:, k] * (total - support[:, k])
            areas.append(np.einsum("rg,rg->r", weights @ above, weights) / pairs)
        out = {
            "accuracy": right.sum(axis=1) / total,
            "balanced_accuracy": recall.mean(axis=1),
            "macro_f1": f1.mean(axis=1),
            "auc": np.mean(areas, axis=0),
            "brier": weights @ self.brier / total,
            "ece": np.abs(chance - good).sum(axis=1) / count.sum(axis=1),
        }
        out |= {f"recall_{k}": recall[:, k] for k in range(classes)}
        if self.veb:
            decided = matrix[:, :, 1].sum(axis=1)
            out |= {"veb_sensitivity": recall[:, 1], "veb_ppv": right[:, 1] / np.maximum(decided, 1), "veb_f1": f1[:, 1]}
        return out


def _above(positive: np.ndarray, p: np.ndarray, cluster: np.ndarray, clusters: int) -> np.ndarray:
    """(G, G) float64: pairs of a positive of cluster g and a negative of cluster h of which the positive scores higher, ties half."""
    out = np.zeros((clusters, clusters))
    scores, owner = p[positive], cluster[positive]
    order = np.argsort(cluster[~positive], kind="stable")
    negatives, whose = p[~positive][order], cluster[~positive][order]
    starts = np.searchsorted(whose, np.arange(clusters + 1))
    for h in range(clusters):
        below = np.sort(negatives[starts[h]:starts[h + 1]])
        if below.size:
            wins = np.searchsorted(below, scores, "left") + np.searchsorted(below, scores, "right")
            out[:, h] = np.bincount(owner, wins, clusters) / 2
    return out


@dataclass(frozen=True)
class Draws:
    """Resamples: how often each cluster (R, G) and each seed (R, S) was drawn; ``redrawn`` lacked a class and were drawn anew."""

    clusters: np.ndarray
    seeds: np.ndarray
    redrawn: int


def draw(support: np.ndarray, seeds: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Draws:
    """Draw clusters and seeds.

    Parameters
    ----------
    support : (G, C) int
        Scored windows of each class in each cluster.
    seeds : int
        S >= 1 trained seeds.
    resamples, seed : int
        R >= 1, and the seed of the draw.

    Raises
    ------
    DataError
        Fewer than two clusters, or a class so rare that hardly any resample has it.
    """
    clusters = len(support)
    if clusters < 2:
        raise DataError(f"{clusters} cluster is too few to resample: a confidence interval needs at least two people")
    if not support.any(axis=0).all():
        raise DataError(f"class {int(np.argmin(support.any(axis=0)))} has no scored window in any cluster: nothing to resample")
    rng = np.random.default_rng([seed, 0x424F4F54])
    kept, redrawn = np.empty((0, clusters), np.int64), 0
    while len(kept) < resamples:
        more = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples - len(kept))
        good = (more @ support > 0).all(axis=1)
        redrawn += int((~good).sum())
        kept = np.concatenate([kept, more[good]])
        if redrawn > _REDRAWS * resamples:
            raise DataError(f"of {redrawn + len(kept)} resamples {len(kept)} have every class: a class lives in too few clusters "
                            "for a confidence interval")
    return Draws(kept, rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples), redrawn)


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile interval; ``draws`` (R,) are the replicates it is made from."""

    estimate: float
    low: float
    high: float
    draws: np.ndarray

    @classmethod
    def of(cls, estimate: float, draws: np.ndarray, level: float = LEVEL) -> Interval:
        """The percentile interval of confidence `level`."""
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        return cls(float(estimate), float(low), float(high), draws)

    @property
    def p_value(self) -> float:
        """Two-sided p of "the difference is 0" from the replicates; at least 2 / (R + 1), as R replicates cannot say less."""
        beyond = min(int((self.draws <= 0).sum()), int((self.draws >= 0).sum()))
        return min(1.0, 2 * (beyond + 1) / (len(self.draws) + 1))

    def to_dict(self) -> dict[str, float]:
        return {"estimate": self.estimate, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Bootstrap:
    """Intervals by figure, and what they were drawn from."""

    figures: dict[str, Interval]
    clusters: int
    seeds: int
    resamples: int
    redrawn: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"figures": {name: each.to_dict() for name, each in self.figures.items()}, "clusters": self.clusters,
                "seeds": self.seeds, "resamples": self.resamples, "redrawn": self.redrawn}


def intervals(runs: Sequence[Scored], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0,
              veb: bool = False) -> Bootstrap:
    """Confidence intervals of the mean over seeds of every figure.

    Parameters
    ----------
    runs : sequence of Scored
        One per trained seed, all of the same windows.
    resamples : int
    level : float
        Between 0 and 1.
    seed : int
        Of the resampling: the same for all models, so that they see the same people.
    veb : bool
        Add sensitivity, +P and F1 of the second class.

    Returns
    -------
    Bootstrap
        Figures ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``auc``, ``brier``, ``ece``, ``recall_0`` ..., as
        `pyhtpw.evaluate.protocol.score` defines them.

    Raises
    ------
    DataError
        The runs are of different windows, there are fewer than two clusters, or a class lives in too few of them.
    """
    return _bootstrap([runs], resamples, level, seed, veb)


def paired(first: Sequence[Scored], second: Sequence[Scored], *, resamples: int = RESAMPLES, level: float = LEVEL,
           seed: int = 0, veb: bool = False) -> Bootstrap:
    """Confidence intervals of the differences first - second, people and seeds drawn jointly for both.

    Run i of both must be of the same training seed. Parameters, result and errors as `intervals`.
    """
    if len(first) != len(second):
        raise DataError(f"{len(first)} and {len(second)} seeds: a paired difference needs the same seeds of both models")
    return _bootstrap([first, second], resamples, level, seed, veb)


def _bootstrap(models: list[Sequence[Scored]], resamples: int, level: float, seed: int, veb: bool) -> Bootstrap:
    every = [run for runs in models for run in runs]
    if not every:
        raise DataError("no run to resample: give at least one")
    like = every[0]
    for run in every[1:]:
        if not np.array_equal(run.y, like.y) or not np.array_equal(run.cluster, like.cluster) or run.classes != like.classes:
            raise DataError("the runs were scored on different windows: evaluate them on the same split")
    names, index = np.unique(like.cluster, return_inverse=True)
    support = np.zeros((len(names), like.classes), np.int64)
    np.add.at(support, (index, like.y), 1)
    seeds = len(models[0])
    drawn = draw(support, seeds, resamples=resamples, seed=seed)
    weights = np.concatenate([np.ones((1, len(names))), drawn.clusters]).astype(np.float64)  # row 0: the data as they are
    share = np.concatenate([np.ones((1, seeds)), drawn.seeds]) / seeds
    means: list[dict[str, np.ndarray]] = []
    for runs in models:
        mean: dict[str, np.ndarray] = {}
        for s, run in enumerate(runs):
            for name, values in Sums.of(run, names, veb=veb).figures(weights).items():
                mean[name] = mean.get(name, 0) + share[:, s] * values
        means.append(mean)
    total = means[0] if len(means) == 1 else {name: values - means[1][name] for name, values in means[0].items()}
    figures = {name: Interval.of(values[0], values[1:], level) for name, values in total.items()}
    return Bootstrap(figures, len(names), seeds, resamples, drawn.redrawn)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values of several comparisons (Holm 1979), each at most 1 and in the order of the raw ones."""
    adjusted, running = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: (item[1], item[0]))):
        running = max(running, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


def holm_intervals(differences: Mapping[str, Interval], level: float = LEVEL) -> dict[str, dict[str, float]]:
    """Differences with intervals that go with Holm's procedure.

    The comparison with the k-th smallest p of m (k from 0) gets confidence 1 - (1 - level) / (m - k), and from the first whose
    adjusted p is above 1 - level on all get that one's: the procedure stops there, and no later interval may exclude 0 by being narrower.

    Returns
    -------
    dict
        name -> ``estimate``, ``low``, ``high`` (corrected), ``level``, ``p`` and ``p_holm``.
    """
    raw = {name: each.p_value for name, each in differences.items()}
    corrected, out = holm(raw), {}
    order = sorted(raw, key=lambda name: (raw[name], name))
    last = next((k for k, name in enumerate(order) if corrected[name] > 1 - level), len(order) - 1)
    for name, each in differences.items():
        own = 1 - (1 - level) / (len(order) - min(order.index(name), last))
        wide = Interval.of(each.estimate, each.draws, own)
        out[name] = {**wide.to_dict(), "level": own, "p": raw[name], "p_holm": corrected[name]}
    return out
