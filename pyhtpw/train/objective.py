"""Losses, and the scores by which validation chooses a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

THRESHOLDS = np.linspace(0.05, 0.95, 19)
"""Decision thresholds tried on validation data; the same grid for every model."""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the class probabilities (N,classes), shifted first so that nothing overflows."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean cross-entropy in nats of logits (N,classes) against labels (N,), and its gradient (N,classes)."""
    rows = np.arange(len(labels))
    log_p = log_softmax(logits)
    loss = -float(log_p[rows, labels].mean(dtype=np.float64))
    grad = np.exp(log_p)
    grad[rows, labels] -= 1
    grad /= len(labels)
    return loss, grad


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
