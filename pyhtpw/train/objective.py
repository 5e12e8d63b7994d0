"""The training objective, Eq. 5, and the scores by which validation chooses a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pyhtpw.errors import ConfigError
from pyhtpw.nets.graph import Graph
from pyhtpw.train.losses import (
    absolute,
    cross_entropy,
    distillation,
    feature_matching,
    focal,
    log_softmax,
    soft_f1,
    spectral,
)

__all__ = ["THRESHOLDS", "Criterion", "Objective", "Score", "cross_entropy", "log_softmax", "macro_f1", "score"]

THRESHOLDS = np.linspace(0.05, 0.95, 19)
"""Decision thresholds tried on validation data; the same grid for every model."""

_WEIGHTS = ("ce", "focal", "kd", "feature", "soft_f1", "spectral", "l1")


# -- the objective -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """Which terms a training run minimises, and how much each counts; ConfigError names the field that is wrong.

    Eq. 5 of arXiv:2603.24916: ce*CE + focal*focal_gamma + kd*KL_T + feature*match + soft_f1*(1-F1) + spectral*sum
    of squared spectral norms of the generators' layers + l1*sum of absolute values of heads and codes.  Only the
    cross-entropy is on unless a weight says otherwise.

    ``label_smoothing`` belongs to the cross-entropy.  ``class_weights``, for it and the focal term, is one number
    per class, "balanced" for the inverse of the classes' shares, or () for none.

    With ``kd`` on, the distillation term counts kd*kd_alpha and the cross-entropy ce*(1 - kd_alpha): kd = 1 is the
    published recipe.  ``kd`` and ``feature`` take a teacher's outputs (`pyhtpw.train.teacher`).
    """

    ce: float = 1.0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | str = ()
    focal: float = 0.0
    focal_gamma: float = 2.0
    kd: float = 0.0
    kd_alpha: float = 0.7
    kd_temperature: float = 2.0
    feature: float = 0.0
    soft_f1: float = 0.0
    spectral: float = 0.0
    l1: float = 0.0

    def __post_init__(self) -> None:
        for name in (*_WEIGHTS, "focal_gamma"):
            if not _number(getattr(self, name)) or not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"objective {name} is {getattr(self, name)!r}; give a number of at least 0")
        if not any(getattr(self, name) for name in _WEIGHTS[:5]):
            raise ConfigError(
                "objective has no term that looks at data; give ce, focal, kd, feature or soft_f1 a weight"
            )
        if not _number(self.label_smoothing) or not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"objective label_smoothing is {self.label_smoothing!r}; give a number from 0 to below 1")
        if not _number(self.kd_alpha) or not 0 <= self.kd_alpha <= 1:
            raise ConfigError(f"objective kd_alpha is {self.kd_alpha!r}; give a number from 0 to 1")
        if not _number(self.kd_temperature) or not 0 < self.kd_temperature < math.inf:
            raise ConfigError(f"objective kd_temperature is {self.kd_temperature!r}; give a number above 0")
        weights = self.class_weights
        if isinstance(weights, str):
            good = weights == "balanced"
        else:
            try:
                weights = tuple(weights)
            except TypeError:
                weights = (None,)
            good = all(_number(w) and 0 < w < math.inf for w in weights)
        if not good:
            raise ConfigError(
                f"objective class_weights is {self.class_weights!r}; give one number above 0 per class, or 'balanced'"
            )
        object.__setattr__(self, "class_weights", weights)

    @staticmethod
    def parse(value: object) -> Objective:
        """The objective, or that of a mapping from field names to values; ConfigError for anything else."""
        if isinstance(value, Objective):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"objective is {value!r}; give a mapping from terms to weights")
        names = list(Objective.__dataclass_fields__)
        for name in value:
            if name not in names:
                raise ConfigError(f"objective has the unknown entry {name!r}; choose among {', '.join(names)}")
        return Objective(**value)

    @property
    def needs_teacher(self) -> bool:
        """Whether a term compares with a teacher."""
        return self.kd > 0 or self.feature > 0


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Signals(Protocol):
    """A teacher's outputs for the training windows, in their order (`pyhtpw.train.teacher.Signals`)."""

    logits: np.ndarray
    features: np.ndarray
    key: str


class Criterion:
    """An `Objective` for one network and one set of training windows."""

    def __init__(self, objective: Objective, graph: Graph, labels: np.ndarray, teacher: Signals | None = None) -> None:
        """``labels`` (windows,) are those of the training data.

        Raises ConfigError where the objective, the graph and the teacher do not go together.
        """
        self.objective = objective
        self._weights = _class_weights(objective.class_weights, labels, graph.classes)
        layers = [name for plan in graph.plan.generators for name in plan.shapes() if name.endswith(".weight")]
        self._spectral = layers if objective.spectral else []
        sparse = [name for name in graph.parameter_shapes() if name.endswith(".codes")]
        sparse += [name for plan in graph.plan.heads for name in plan.shapes() if name.endswith(".weight")]
        self._sparse = sparse if objective.l1 else []
        for term, found, what in (("spectral", layers, "generator layer"), ("l1", sparse, "head and no code")):
            if getattr(objective, term) and not found:
                raise ConfigError(f"objective {term} has nothing to act on: {graph.name!r} has no {what}; set it to 0")
        if teacher is None and objective.needs_teacher:
            term = "kd" if objective.kd else "feature"
            raise ConfigError(f"objective {term} compares with a teacher; give one, or set {term} to 0")
        if teacher is not None and not objective.needs_teacher:
            raise ConfigError("a teacher is given but objective kd and feature are 0; give one of them a weight")
        self._logits = self._targets = None
        if objective.kd:
            self._logits = _checked(teacher.logits, "logits", len(labels))
            if self._logits.shape[1] != graph.classes:
                raise ConfigError(
                    f"the teacher tells {self._logits.shape[1]} classes apart but {graph.name!r} has {graph.classes}"
                    "; train a teacher on the same classes"
                )
        if objective.feature:
            width = graph.shapes()[graph.nodes[-1].inputs[0]][1]
            self._targets = feature_targets(_checked(teacher.features, "features", len(labels)), width)

    def on_batch(
        self, logits: np.ndarray, labels: np.ndarray, features: np.ndarray, index: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray | None]:
        """Loss of a batch, its gradient (N,classes) and that of ``features`` (N,d), None if nothing looks at them.

        ``index`` (N,) says which training windows the batch is made of.
        """
        goal = self.objective
        hard = goal.ce * (1 - goal.kd_alpha if goal.kd else 1)
        found = []
        if hard:
            found.append((hard, cross_entropy(logits, labels, goal.label_smoothing, self._weights)))
        if goal.focal:
            found.append((goal.focal, focal(logits, labels, goal.focal_gamma, self._weights)))
        if goal.kd:
            found.append((goal.kd * goal.kd_alpha, distillation(logits, self._logits[index], goal.kd_temperature)))
        if goal.soft_f1:
            found.append((goal.soft_f1, soft_f1(logits, labels)))
        loss, dlogits = _weighted(found, logits)
        if not goal.feature:
            return loss, dlogits, None
        more, dfeatures = _weighted([(goal.feature, feature_matching(features, self._targets[index]))], features)
        return loss + more, dlogits, dfeatures

    def on_parameters(self, params: Mapping[str, np.ndarray], grads: Mapping[str, np.ndarray]) -> float:
        """Loss of the terms on parameters; adds their gradients to ``grads``."""
        loss = 0.0
        for names, term, weight in (
            (self._spectral, spectral, self.objective.spectral),
            (self._sparse, absolute, self.objective.l1),
        ):
            for name in names:
                value, grad = term(params[name])
                loss += weight * value
                grads[name][...] += grad.dtype.type(weight) * grad
        return loss


def _weighted(found: list[tuple[float, tuple[float, np.ndarray]]], like: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum of weighted terms, and of their gradients; a lone term of weight 1 is passed on as it is."""
    if len(found) == 1 and found[0][0] == 1:
        return found[0][1]
    grad = np.zeros_like(like)
    for weight, (_, each) in found:
        grad += like.dtype.type(weight) * each
    return math.fsum(weight * value for weight, (value, _) in found), grad


def _class_weights(wanted: tuple[float, ...] | str, labels: np.ndarray, classes: int) -> np.ndarray | None:
    if wanted == "balanced":
        counts = np.bincount(labels, minlength=classes)
        return len(labels) / (classes * np.maximum(counts, 1))
    if not wanted:
        return None
    if len(wanted) != classes:
        raise ConfigError(
            f"objective class_weights has {len(wanted)} numbers for {classes} classes; give one per class"
        )
    return np.array(wanted, np.float64)


def _checked(values: np.ndarray, what: str, windows: int) -> np.ndarray:
    if np.ndim(values) != 2 or len(values) != windows:
        raise ConfigError(
            f"the teacher's {what} have shape {np.shape(values)} for {windows} training windows; compute them anew"
        )
    return values


def feature_targets(features: np.ndarray, width: int) -> np.ndarray:
    """What the first channels of a student's pooled features (N,width) are to equal: (N, min(width, F)) float32.

    Of a wider teacher's features (N,F) those ``width`` channels are taken that vary most over the training windows.
    This is a linear projection, and the simplest that a student can follow: features behind a ReLU are not negative,
    so that the mixed signs of a random projection would ask for values that it cannot have; a learned one would be
    one more set of weights to train, clip, save and resume, only to be thrown away.  All is scaled to a mean square
    of 1, so that a weight of the term means the same for every teacher.
    """
    values = features.astype(np.float64)
    if width < values.shape[1]:
        order = np.argsort(-values.var(axis=0), kind="stable")[:width]
        values = values[:, np.sort(order)]
    size = np.sqrt(np.mean(values**2))
    return (values / (size or 1.0)).astype(np.float32)


# -- scores ------------------------------------------------------------------------------------------------------------


def macro_f1(labels: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Mean of the per-class F1 over all ``classes``; a class neither present nor predicted counts 0."""
    confusion = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes * classes)
    confusion = confusion.reshape(classes, classes)
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float(np.mean(2 * np.diag(confusion) / np.maximum(total, 1)))


@dataclass(frozen=True)
class Score:
    """How a parameter set does on validation data.

    ``threshold`` is the one that gave ``macro_f1`` (the lowest, of equals); None with more than two classes, where
    the largest logit decides.
    """

    loss: float
    macro_f1: float
    threshold: float | None


def score(logits: np.ndarray, labels: np.ndarray) -> Score:
    """Score logits (N,classes): binary at the best of `THRESHOLDS` on softmax[:,1], else by the largest logit."""
    classes = logits.shape[1]
    loss, _ = cross_entropy(logits.astype(np.float64), labels)
    if classes > 2:
        return Score(loss, macro_f1(labels, logits.argmax(axis=1), classes), None)
    positive = np.exp(log_softmax(logits.astype(np.float64))[:, 1])
    found = [macro_f1(labels, (positive >= t).astype(np.int64), 2) for t in THRESHOLDS]
    best = int(np.argmax(found))
    return Score(loss, found[best], float(THRESHOLDS[best]))
