"""The terms of the training objective (Eq. 5), each alone: its value and its gradient.

Terms on a batch take logits (N,classes) and give the mean over its windows; terms on parameters take one array.
Nothing here knows weights of terms, networks or runs: `pyhtpw.train.objective` puts the terms together.

Values are summed in double precision; gradients have the type of what they belong to.
"""

from __future__ import annotations

import numpy as np

SQUARINGS = 12
"""Squarings of the Gram matrix in `spectral`: as much as 2^12 steps of power iteration."""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the class probabilities (N,classes), shifted first so that nothing overflows."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cross_entropy(
    logits: np.ndarray, labels: np.ndarray, smoothing: float = 0.0, weights: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Mean cross-entropy in nats of logits (N,classes) against labels (N,), and its gradient (N,classes).

    With ``smoothing`` s the target is (1-s) for the label plus s/classes for every class (Szegedy et al.,
    arXiv:1512.00567).  ``weights`` (classes,) multiply the logarithm of each class's probability; the sum is then
    divided by the weights of the labels rather than by N.  Both as PyTorch has them.
    """
    rows = np.arange(len(labels))
    log_p = log_softmax(logits)
    if not smoothing and weights is None:  # a path of its own: its bytes are what runs without the options had
        loss = -float(log_p[rows, labels].mean(dtype=np.float64))
        grad = np.exp(log_p)
        grad[rows, labels] -= 1
        grad /= len(labels)
        return loss, grad
    of_class = np.ones(logits.shape[1]) if weights is None else np.asarray(weights, np.float64)
    target = np.tile(smoothing / logits.shape[1] * of_class, (len(labels), 1))
    target[rows, labels] += (1 - smoothing) * of_class[labels]
    target /= of_class[labels].sum()
    loss = -float((target * log_p).sum(dtype=np.float64))
    grad = np.exp(log_p) * target.sum(axis=1, keepdims=True) - target
    return loss, grad.astype(logits.dtype)


def focal(
    logits: np.ndarray, labels: np.ndarray, gamma: float, weights: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Focal loss, mean of -(1-p)^gamma log p of the label's probability p (Lin et al., arXiv:1708.02002).

    ``weights`` (classes,) act as in `cross_entropy`.
    """
    rows = np.arange(len(labels))
    log_p = log_softmax(logits).astype(np.float64)
    share = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)[labels]
    share /= share.sum()
    own = log_p[rows, labels]
    # 1-p without cancellation; where p rounds to 1 both parts of the slope vanish, unless 0^(gamma-1) made them NaN
    rest = np.maximum(-np.expm1(own), np.finfo(np.float64).tiny)
    factor = rest**gamma
    slope = gamma * np.exp(own) * factor / rest * own - factor  # of the loss with respect to log p
    grad = -np.exp(log_p)
    grad[rows, labels] += 1
    grad *= (share * slope)[:, None]
    return -float((share * factor * own).sum()), grad.astype(logits.dtype)


def distillation(logits: np.ndarray, teacher: np.ndarray, temperature: float) -> tuple[float, np.ndarray]:
    """T^2 times the mean KL divergence from the teacher's to the student's softmax, both of logits / T.

    T^2 keeps the gradient's size independent of T (Hinton et al., arXiv:1503.02531).
    """
    wanted = log_softmax(teacher.astype(np.float64) / temperature)
    found = log_softmax(logits.astype(np.float64) / temperature)
    p = np.exp(wanted)
    loss = temperature**2 * float((p * (wanted - found)).sum() / len(logits))
    return loss, ((np.exp(found) - p) * (temperature / len(logits))).astype(logits.dtype)


def feature_matching(features: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean squared difference of the first channels of ``features`` (N,d) to ``target`` (N,k), k <= d.

    The gradient (N,d) is 0 for the other channels.
    """
    difference = features[:, : target.shape[1]].astype(np.float64) - target
    grad = np.zeros_like(features)
    grad[:, : target.shape[1]] = difference * (2 / difference.size)
    return float(np.mean(difference**2)), grad


def soft_f1(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """1 - macro F1 with probabilities in place of decisions: F1_c = 2 sum(p y) / (sum(p) + sum(y)) over the batch.

    The mean is over the classes that the batch has: the F1 of another is 0 whatever the network says, so that it
    would only add a constant.
    """
    p = np.exp(log_softmax(logits.astype(np.float64)))
    y = np.zeros_like(p)
    y[np.arange(len(labels)), labels] = 1
    present = y.any(axis=0)
    hits = (p * y).sum(axis=0)
    total = p.sum(axis=0) + y.sum(axis=0)
    total[~present] = 1.0
    f1 = 2 * hits / total
    share = present / present.sum()
    slope = -share * (2 * y * total - 2 * hits) / total**2
    slope[:, ~present] = 0
    grad = p * (slope - (slope * p).sum(axis=1, keepdims=True))
    return float(1 - (share * f1).sum()), grad.astype(logits.dtype)


def spectral(weight: np.ndarray) -> tuple[float, np.ndarray]:
    """Squared spectral norm of a matrix (rows,cols), and its gradient (Yoshida and Miyato, arXiv:1705.10941).

    Power iteration by squaring the smaller Gram matrix, from the same start every time: a vector carried from step
    to step would be one more state for a run to resume, and these matrices are small.
    """
    matrix = weight.astype(np.float64)
    wide = matrix.shape[0] < matrix.shape[1]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    power = gram
    for _ in range(SQUARINGS):
        largest = np.abs(power).max()
        if not 0 < largest < np.inf:
            return (0.0 if largest == 0 else float(largest)), np.zeros_like(weight)
        power = power / largest  # or it would overflow
        power = power @ power
    # The columns of the power are near multiples of the leading vector; the longest is no small one.
    vector = power[:, np.argmax(np.diag(power))]
    vector = vector / np.sqrt((vector**2).sum())
    image = matrix.T @ vector if wide else matrix @ vector  # sigma times the other vector
    outer = np.outer(vector, image) if wide else np.outer(image, vector)
    return float((image**2).sum()), (2 * outer).astype(weight.dtype)


def absolute(values: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum of the absolute values, and their signs; the gradient at 0 is 0."""
    return float(np.abs(values).sum(dtype=np.float64)), np.sign(values)
