"""`Split`, `Dataset` and `load`: what every data set looks like to the rest of the package.

A `Dataset` checks itself when it is made, so whoever holds one may rely on shapes, on finite samples, on labels in
range and on splits that share no person.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError

PROTOCOLS = {
    "synthetic-ecg": ("synthetic",),
    "mitdb": ("paper", "aami"),
    "apnea-ecg": ("records", "challenge", "beats"),
    "ptb-xl": ("norm", "superclass"),
    "speech-commands": ("official6", "split10", "official12"),
}
"""The protocols of each data set, the default first."""
NAMES = tuple(PROTOCOLS)
SPLITS = ("train", "val", "test")

# Samples looked at together when x is scanned for NaN: 16 MiB of float32, so a memory-mapped x of many gigabytes is
# read through without ever being held.
_SCAN_SAMPLES = 1 << 22


@dataclass(frozen=True)
class Split:
    """One side of a data set: N windows.

    Attributes
    ----------
    x : (N, T, C) float32
        The windows, time first: C = 1 signal, or C features per frame. May be a read-only memory map.
    y : (N,) int64
        Class index, 0 <= y < len(classes).
    group : (N,) str
        Record, patient or speaker of each window. Post-processing in time order and cluster bootstraps work per group.
    position : (N,) int64
        Sample index of the window's centre in its record, >= 0.
    score_mask : (N,) bool
        False: inferred like any other window, but counted in neither class when scored (see `mitdb`, protocol
        ``aami``: EC57 counts fusion and unclassifiable beats neither way).

    Raises
    ------
    DataError
        A shape, a type or a value is not as above.
    """

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray
    position: np.ndarray
    score_mask: np.ndarray

    def __post_init__(self) -> None:
        if self.x.ndim != 3 or self.x.dtype != np.float32:
            raise DataError(f"split x has shape {self.x.shape} and type {self.x.dtype}: give (N, T, C) float32")
        n = self.x.shape[0]
        if 0 in self.x.shape:
            raise DataError(f"split x has shape {self.x.shape}: every split needs at least one window of one sample")
        for name, kind in (("y", "i8"), ("position", "i8"), ("score_mask", "?"), ("group", "U")):
            value = getattr(self, name)
            right = value.dtype.kind == "U" if kind == "U" else value.dtype == np.dtype(kind)
            if value.shape != (n,) or not right:
                want = {"i8": "int64", "?": "bool", "U": "str"}[kind]
                raise DataError(f"split {name} has shape {value.shape} and type {value.dtype}: give ({n},) {want}")
        if self.position.min() < 0:
            at = int(np.argmin(self.position))
            raise DataError(f"split position {self.position[at]} of group {self.group[at]} is negative: positions "
                            "are sample indices from the start of the record")

    def __len__(self) -> int:
        return self.x.shape[0]

    def taken(self, at: np.ndarray) -> Split:
        """The windows at the indices `at`."""
        return replace(self, **{f.name: getattr(self, f.name)[at] for f in fields(self)})


@dataclass(frozen=True)
class Dataset:
    """Three splits, what they mean, and where they come from.

    Attributes
    ----------
    name : str
        One of `NAMES`.
    synthetic : bool
        True: made by a program; no result on it is a result on people.
    fs : float
        Sampling rate of x in Hz, > 0: of the signal, or of the frames where x holds features.
    classes : tuple of str
        Class names; the index is the label. Of two, index 1 is the positive class.
    train, val, test : Split
    description : dict
        ``protocol``, ``options``, ``records`` (per split), ``counts`` (per split and class, with ``unscored``),
        ``test_counts`` (the same per record of test), ``source_sha256``, ``warnings`` (list of str),
        ``same_person``: group -> person, for groups whose person also has another group; and of real data ``part``
        (how to name what was read, so that a figure on a part is not taken for one on the whole), ``source`` and
        ``licence``. A loader may add more.

    Raises
    ------
    DataError
        A person is in two splits, a label is out of range, a sample is NaN or infinite, or windows differ in length.
    """

    name: str
    synthetic: bool
    fs: float
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    description: dict[str, Any]

    def __post_init__(self) -> None:
        if not self.fs > 0:
            raise DataError(f"data set {self.name}: sampling rate {self.fs} is not above 0 Hz: give the recording's")
        lengths = {part: getattr(self, part).x.shape[1:] for part in SPLITS}
        if len(set(lengths.values())) != 1:
            raise DataError(f"data set {self.name}: window lengths differ between splits ({lengths}): cut all alike")
        self._check_disjoint()
        for part in SPLITS:
            split = getattr(self, part)
            bad = np.flatnonzero((split.y < 0) | (split.y >= len(self.classes)))
            if bad.size:
                raise DataError(f"data set {self.name}, {part}, record {split.group[bad[0]]}: label "
                                f"{split.y[bad[0]]} is not one of the {len(self.classes)} classes: correct the labels")
            check_finite(split, f"data set {self.name}, {part}")

    def _check_disjoint(self) -> None:
        same = self.description.get("same_person", {})
        people = {part: {same.get(g, g) for g in np.unique(getattr(self, part).group).tolist()} for part in SPLITS}
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            both = sorted(people[one] & people[other])
            if both:
                raise DataError(f"data set {self.name}: {one} and {other} share {', '.join(both)}: "
                                "move every window of a person to one side")


def check_finite(split: Split, where: str) -> None:
    """Refuse NaN and infinity in `split.x`.

    Parameters
    ----------
    split : Split
    where : str
        Begins the message.

    Raises
    ------
    DataError
        Names the first record and position that hold one.
    """
    step = max(1, _SCAN_SAMPLES // (split.x.shape[1] * split.x.shape[2]))
    for start in range(0, len(split), step):
        good = np.isfinite(split.x[start:start + step]).all(axis=(1, 2))
        if not good.all():
            at = start + int(np.argmin(good))
            raise DataError(f"{where}: the window at record {split.group[at]}, sample {split.position[at]} holds NaN "
                            "or infinity: repair or leave out that stretch of the record")


def describe(classes: tuple[str, ...], splits: Mapping[str, Split], *, protocol: str, options: Mapping[str, Any],
             source_sha256: str, warnings: list[str], same_person: Mapping[str, str],
             **more: Any) -> dict[str, Any]:
    """Make the `Dataset.description` of three splits; everything in it can be written as JSON.

    Parameters
    ----------
    classes : tuple of str
    splits : mapping of 'train', 'val', 'test' to Split
    protocol, options, source_sha256, warnings, same_person
        As in `Dataset`.
    **more
        Further entries.

    Returns
    -------
    dict
    """
    def count(split: Split, chosen: np.ndarray) -> dict[str, int]:
        scored = split.y[chosen & split.score_mask]
        out = {name: int(np.count_nonzero(scored == k)) for k, name in enumerate(classes)}
        out["unscored"] = int(np.count_nonzero(chosen & ~split.score_mask))
        return out

    everything = {part: np.ones(len(split), bool) for part, split in splits.items()}
    test = splits["test"]
    return {
        "protocol": protocol,
        "options": dict(options),
        "records": {part: np.unique(split.group).tolist() for part, split in splits.items()},
        "counts": {part: count(split, everything[part]) for part, split in splits.items()},
        "test_counts": {str(g): count(test, test.group == g) for g in np.unique(test.group)},
        "source_sha256": source_sha256,
        "warnings": list(warnings),
        "same_person": dict(same_person),
        **more,
    }


def load(name: str, *, data_dir: str | os.PathLike[str] | None = None, protocol: str | None = None, seed: int = 0,
         cache_dir: str | os.PathLike[str] | None = None, **options: Any) -> Dataset:
    """Load a data set by name.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    data_dir : path, optional
        Folder of the source files, or one that has them in a subfolder of the data set's name. Falls back to the
        environment variable ``HTPW_DATA``. ``synthetic-ecg`` needs none and ignores both.
    protocol : str, optional
        One of `PROTOCOLS`; by default its first. Options may follow it, as text: ``"official6:copies=2,lossy=false"``
        is ``protocol="official6", copies=2, lossy=False``, so that a command line or a configuration can give them.
    seed : int
        Only ``synthetic-ecg`` draws with it; 0 <= seed < 2**63. What other loaders draw belongs to their own option,
        so that runs of several seeds see the same data.
    cache_dir : path, optional
        Where real data sets keep their windows; see `pyhtpw.data.cache`.
    **options
        Those of the data set's module: `synthetic_ecg.make`, or `read` of the others.

    Returns
    -------
    Dataset

    Raises
    ------
    ConfigError
        Unknown name, protocol or option, or an option out of range.
    DataError
        The source is missing, partial or malformed.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"unknown data set {name!r}: choose one of {', '.join(NAMES)}")
    protocol, said = _spoken(name, protocol or PROTOCOLS[name][0])
    twice = sorted(set(said) & set(options))
    if twice:
        raise ConfigError(f"{name}: option {', '.join(twice)} is given twice, with the protocol and by itself")
    options = {**said, **options}
    if protocol not in PROTOCOLS[name]:
        raise ConfigError(f"{name} has no protocol {protocol!r}: choose {' or '.join(map(repr, PROTOCOLS[name]))}")
    # Imported here so that the synthetic default works where wfdb and soundfile are not installed, and because the
    # modules build on this one.
    module = importlib.import_module("." + name.replace("-", "_"), __package__)
    if name == "synthetic-ecg":
        return _call(module.make, name, {"seed": seed}, options)
    fixed = {"data_dir": source_folder(name, data_dir), "protocol": protocol, "cache_dir": cache_dir}
    return _call(module.read, name, fixed, options)


def source_folder(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder given, or that of ``HTPW_DATA``; DataError if there is neither."""
    folder = data_dir if data_dir is not None else os.environ.get("HTPW_DATA") or None
    if folder is None:
        raise DataError(f"{name}: no folder given: pass data_dir (--data-dir) or set HTPW_DATA to the folder that holds "
                        f"its files (`pyhtpw data fetch {name}` downloads them)")
    return Path(folder)


def _spoken(name: str, protocol: str) -> tuple[str, dict[str, Any]]:
    """A protocol and the options behind its colon: true, false and numbers are these, anything else is text."""
    protocol, _, rest = protocol.partition(":")
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"{name}: {item!r} behind the protocol is no option: write {protocol}:name=value,name=value")
        try:
            options[key] = {"true": True, "false": False}[value] if value in ("true", "false") else int(value)
        except ValueError:
            options[key] = value
    return protocol, options


def _call(function: Callable[..., Dataset], name: str, fixed: dict[str, Any], options: dict[str, Any]) -> Dataset:
    """Call a loader, naming its options when one is not known."""
    known = set(inspect.signature(function).parameters) - set(fixed)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(f"{name} has no option {', '.join(unknown)}: it has {', '.join(sorted(known))}")
    return function(**fixed, **options)
