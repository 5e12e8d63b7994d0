"""Which windows a step sees and how they are changed: checks of a data split, sampling, augmentation.

The batch of step i is a pure function of (seed, i): that is what makes a resumed run equal to an unbroken one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from pyhtpw.errors import ConfigError, DataError
from pyhtpw.nets.graph import Graph

AUGMENTATIONS = ("amplitude", "noise", "shift")
"""Options of `augment`: most relative change of a window's gain, standard deviation of added white noise in units of
the data, most steps of shift either way."""


class Split(Protocol):
    """Windows with labels: ``x`` (N,T,C) float32, possibly a memory map, and ``y`` (N,) whole numbers from 0."""

    x: np.ndarray
    y: np.ndarray


def check_split(split: Split, graph: Graph, what: str, every_class: bool) -> np.ndarray:
    """The labels as int64, after checking that ``graph`` can learn from (or be scored on) ``split``.

    ``what`` names the split in errors.  Raises DataError for wrong shapes or types, labels out of range, windows that
    are not finite, and, with ``every_class``, a class without examples.
    """
    x, y = split.x, np.asarray(split.y)
    if np.ndim(x) != 3 or x.shape[1:] != graph.input_shape:
        steps, channels = graph.input_shape
        raise DataError(f"{what} x has shape {np.shape(x)}; {graph.name!r} wants (N, {steps}, {channels})")
    if not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"{what} x has type {x.dtype}; convert it to float32")
    if y.shape != (len(x),):
        raise DataError(f"{what} y has shape {y.shape} for {len(x)} windows; give one label per window")
    if len(x) == 0:
        raise DataError(f"{what} split is empty; give at least one window")
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{what} y has type {y.dtype}; give whole numbers")
    if y.min() < 0 or y.max() >= graph.classes:
        bad = int(np.flatnonzero((y < 0) | (y >= graph.classes))[0])
        raise DataError(f"{what} y[{bad}] is {y[bad]}; labels must be 0 to {graph.classes - 1}")
    counts = np.bincount(y, minlength=graph.classes)
    if every_class and not counts.all():
        missing = int(np.flatnonzero(counts == 0)[0])
        raise DataError(f"{what} split has no example of class {missing}; add some or leave the class out")
    for start in range(0, len(x), 1024):  # in pieces: x may be larger than memory
        finite = np.isfinite(x[start : start + 1024]).all(axis=(1, 2))
        if not finite.all():
            bad = start + int(np.flatnonzero(~finite)[0])
            raise DataError(f"{what} x[{bad}] holds values that are not finite; drop or repair that window")
    return y.astype(np.int64)


def check_balance(balance: object) -> None:
    """Raise ConfigError unless ``balance`` is "none" or a fraction that `Sampler` takes."""
    if balance == "none":
        return
    if isinstance(balance, bool) or not isinstance(balance, (int, float)) or not 0 < balance < 1:
        raise ConfigError(f"balance is {balance!r}; give 'none' or a fraction between 0 and 1")


def check_augment(options: Mapping[str, float], steps: int | None = None) -> None:
    """Raise ConfigError unless ``options`` are what `augment` takes, for windows of ``steps`` steps if given."""
    for name, value in options.items():
        if name not in AUGMENTATIONS:
            raise ConfigError(f"augment has the unknown option {name!r}; choose among {', '.join(AUGMENTATIONS)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ConfigError(f"augment {name} is {value!r}; give a magnitude of at least 0")
    if options.get("amplitude", 0) >= 1:
        raise ConfigError(f"augment amplitude is {options['amplitude']!r}; keep it below 1, or gains turn negative")
    shift = options.get("shift", 0)
    if shift != int(shift):
        raise ConfigError(f"augment shift is {shift!r}; give whole steps")
    if steps is not None and shift >= steps:
        raise ConfigError(f"augment shift is {shift!r} but windows have {steps} steps; give fewer")


class Sampler:
    """Draws the windows of a step, with replacement.

    ``balance`` "none" draws from all windows alike.  A fraction f draws round(f*batch) windows from the classes other
    than the largest, each of them equally often (what does not divide goes to classes drawn anew per step), and the
    rest from the largest class.
    """

    def __init__(self, labels: np.ndarray, classes: int, balance: float | str) -> None:
        self.labels = labels
        self.balance = balance
        self._members = [np.flatnonzero(labels == c) for c in range(classes)]
        sizes = [len(members) for members in self._members]
        self._largest = int(np.argmax(sizes))
        self._others = [c for c in range(classes) if c != self._largest]

    def draw(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Sorted indices (batch,) of windows: sorted, since a memory map reads fastest in order."""
        if self.balance == "none":
            return np.sort(rng.integers(0, len(self.labels), batch))
        minor = round(self.balance * batch)
        shares = np.full(len(self._others), minor // len(self._others))
        shares[rng.permutation(len(self._others))[: minor % len(self._others)]] += 1
        counts = dict(zip(self._others, shares, strict=True))
        counts[self._largest] = batch - minor
        picks = [self._members[c][rng.integers(0, len(self._members[c]), count)] for c, count in counts.items()]
        return np.sort(np.concatenate(picks))


def augment(x: np.ndarray, rng: np.random.Generator, options: Mapping[str, float]) -> np.ndarray:
    """Changed copies of windows x (N,T,C); ``options`` as in `AUGMENTATIONS`, what is absent or 0 changes nothing.

    In order: shift in time (the edge value is repeated), gain, noise.
    """
    windows, steps, _ = x.shape
    shift = int(options.get("shift", 0))
    if shift:
        moves = rng.integers(-shift, shift + 1, windows)
        source = np.clip(np.arange(steps) - moves[:, None], 0, steps - 1)
        x = np.take_along_axis(x, source[:, :, None], axis=1)
    amplitude = options.get("amplitude", 0)
    if amplitude:
        x = x * (1 + amplitude * rng.uniform(-1, 1, (windows, 1, 1))).astype(x.dtype)
    noise = options.get("noise", 0)
    if noise:
        x = x + x.dtype.type(noise) * rng.standard_normal(x.shape, dtype=x.dtype)
    return x


def load_batch(
    split: Split, sampler: Sampler, seed: int, step: int, batch: int, options: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows (batch,T,C) float32, labels and indices (batch,) of step ``step``: a pure function of the arguments."""
    rng = np.random.default_rng([seed, step])
    chosen = sampler.draw(rng, batch)
    x = np.asarray(split.x[chosen], dtype=np.float32)
    return augment(x, rng, options), sampler.labels[chosen], chosen
