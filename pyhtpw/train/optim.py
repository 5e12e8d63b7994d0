"""AdamW, its learning-rate schedule, gradient clipping and the moving average of the weights."""

from __future__ import annotations

import math

import numpy as np

from pyhtpw.train.elementwise import adamw
from pyhtpw.train.model import Model

BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Rate of step ``step`` (from 0) of ``steps``: up linearly over ``warmup`` steps, then down a half cosine to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def clip_gradient(gradient: np.ndarray, limit: float) -> float:
    """Scale ``gradient`` in place to a Euclidean norm of at most ``limit`` (0: no limit); its norm before.

    A norm that is not finite is returned as it is, and the vector is left alone: the caller must not use it.
    """
    # Not BLAS: its dot product may sum in another order for another alignment.
    norm = math.sqrt(float(np.sum(np.square(gradient, dtype=np.float64))))
    if 0 < limit < norm < math.inf:
        gradient *= gradient.dtype.type(limit / norm)
    return norm


def decays(name: str) -> bool:
    """Whether weight decay applies: to kernels, codes, generator and head, not to biases and normalisation."""
    return name.rpartition(".")[2] in ("weight", "codes")


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101) over a model's flat vectors."""

    def __init__(self, model: Model, weight_decay: float) -> None:
        self.model = model
        self.first = np.zeros_like(model.trained)
        self.second = np.zeros_like(model.trained)
        self.weight_decay = weight_decay
        self._decays = np.concatenate([np.full(view.size, decays(name)) for name, view in model.grads.items()])

    def step(self, count: int, rate: float) -> None:
        """Apply ``model.gradient`` as update number ``count`` (from 1) with learning rate ``rate``."""
        beta1, beta2 = BETAS
        numbers = (
            beta1, beta2, rate * self.weight_decay, rate / (1 - beta1**count), 1 / (1 - beta2**count), ADAM_EPSILON,
        )  # fmt: skip
        adamw(
            self.model.trained, self.model.gradient, self.first, self.second, self._decays,
            *(self.model.dtype.type(number) for number in numbers),
        )  # fmt: skip
        self.model.project()


class Ema:
    """Exponential moving average of a model's weights *and* running statistics, kept in a model of its own.

    The decay starts small, min(decay, (1 + count)/(10 + count)), so that the average forgets its start.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.decay = decay
        self.model = type(model)(model.graph, model.params, dtype=model.dtype)
        self.model.share(model)

    def update(self, source: Model, count: int) -> None:
        """Move towards ``source`` after update number ``count`` (from 1)."""
        part = 1 - min(self.decay, (1 + count) / (10 + count))
        self.model.trained += part * (source.trained - self.model.trained)
        self.model.running += part * (source.running - self.model.running)
