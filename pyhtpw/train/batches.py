"""Which windows a step sees and how they are changed: checks of a data split, sampling, augmentation.

The batch of step i is a pure function of (seed, i): that is what makes a resumed run equal to an unbroken one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from pyhtpw.errors import ConfigError, DataError
from pyhtpw.nets.graph import Graph

AUGMENTATIONS = ("amplitude", "noise", "shift", "stretch", "time_mask", "feature_mask", "masks")
"""Options of `augment`: most relative change of a window's gain, standard deviation of added white (Gaussian) noise
in units of the data, most steps of shift either way, most relative change of speed, most steps and most channels under
one mask, masks of each kind per window (1 if nothing is said)."""

_WHOLE = ("shift", "time_mask", "feature_mask", "masks")


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


def check_augment(options: Mapping[str, float], shape: tuple[int, int] | None = None) -> None:
    """Raise ConfigError unless ``options`` are what `augment` takes, for windows of ``shape`` (T,C) if given."""
    for name, value in options.items():
        if name not in AUGMENTATIONS:
            raise ConfigError(f"augment has the unknown option {name!r}; choose among {', '.join(AUGMENTATIONS)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ConfigError(f"augment {name} is {value!r}; give a magnitude of at least 0")
    if options.get("amplitude", 0) >= 1:
        raise ConfigError(f"augment amplitude is {options['amplitude']!r}; keep it below 1, or gains turn negative")
    if options.get("stretch", 0) >= 1:
        raise ConfigError(f"augment stretch is {options['stretch']!r}; keep it below 1, or time stands still")
    for name in _WHOLE:
        if options.get(name, 0) != int(options.get(name, 0)):
            raise ConfigError(f"augment {name} is {options[name]!r}; give a whole number")
    if "masks" in options and not (options.get("time_mask") or options.get("feature_mask")):
        raise ConfigError("augment masks says how many but not how large; give time_mask or feature_mask too")
    if shape is not None:
        for name, size, what in (
            ("shift", shape[0], "steps"),
            ("time_mask", shape[0], "steps"),
            ("feature_mask", shape[1], "channels"),
        ):
            if options.get(name, 0) >= size:
                raise ConfigError(f"augment {name} is {options[name]!r} but windows have {size} {what}; give fewer")


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

    In order: stretch in time about the middle (linear interpolation), shift in time (both repeat the edge value),
    gain, noise, masks over time and over channels (SpecAugment, arXiv:1904.08779, for inputs like MFCC; what is hidden
    takes the mean of its channel in the batch).  An option that is off draws no random number.
    """
    windows, steps, channels = x.shape
    stretch = options.get("stretch", 0)
    if stretch:
        x = _at_speed(x, 1 + stretch * rng.uniform(-1, 1, windows))
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
    time, features = int(options.get("time_mask", 0)), int(options.get("feature_mask", 0))
    if time or features:
        hidden = np.zeros(x.shape, bool)
        for _ in range(int(options.get("masks", 1))):
            hidden |= _spans(rng, windows, steps, time)[:, :, None]
            hidden |= _spans(rng, windows, channels, features)[:, None, :]
        x = np.where(hidden, x.mean(axis=(0, 1), dtype=np.float64).astype(x.dtype), x)
    return x


def _at_speed(x: np.ndarray, speeds: np.ndarray) -> np.ndarray:
    """Windows x (N,T,C) run through at ``speeds`` (N,): above 1 more of the surroundings comes in, as edge values."""
    last = x.shape[1] - 1
    middle = last / 2
    source = np.clip(middle + (np.arange(last + 1) - middle) * speeds[:, None], 0, last)
    before = np.minimum(source.astype(np.int64), max(last - 1, 0))
    part = (source - before).astype(x.dtype)[:, :, None]
    low = np.take_along_axis(x, before[:, :, None], axis=1)
    high = np.take_along_axis(x, np.minimum(before + 1, last)[:, :, None], axis=1)
    return low + part * (high - low)


def _spans(rng: np.random.Generator, windows: int, size: int, most: int) -> np.ndarray:
    """One span per window, of 0 to ``most`` of ``size`` places, anywhere: True inside, (windows,size)."""
    if not most:
        return np.zeros((windows, size), bool)
    width = rng.integers(0, most + 1, windows)[:, None]
    start = rng.integers(0, size - width + 1)
    place = np.arange(size)
    return (place >= start) & (place < start + width)


def load_batch(
    split: Split, sampler: Sampler, seed: int, step: int, batch: int, options: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows (batch,T,C) float32, labels and indices (batch,) of step ``step``: a pure function of the arguments."""
    rng = np.random.default_rng([seed, step])
    chosen = sampler.draw(rng, batch)
    x = np.asarray(split.x[chosen], dtype=np.float32)
    return augment(x, rng, options), sampler.labels[chosen], chosen
