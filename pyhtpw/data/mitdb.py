"""The MIT-BIH Arrhythmia Database: 48 half-hour ambulatory ECG records with a label on every beat.

Source: Moody GB, Mark RG, "The impact of the MIT-BIH Arrhythmia Database", IEEE Eng in Med and Biol 20(3):45-50, 2001;
PhysioNet, doi:10.13026/C2F305. Not part of this package: the user has a copy, in any WFDB signal format that the
`wfdb` package reads (as published: 212; also 516, which is FLAC).

The task is ventricular beat or not. Two protocols:

``paper``
    Every annotation is a window, rhythm and noise marks included; V and E against all others; 1800 samples (5 s),
    signal 0; the 48 records in sorted order, first 38 train, next 5 validation, last 5 test. This is the split of the
    HyperTinyPW paper (arXiv:2603.24916). Its weakness is worth knowing: of the 837 ventricular beats of test 831 are
    of record 233, so a test figure is nearly one person's.
``aami``
    Beats only, 512 samples (1.4 s), lead MLII, the records divided as in de Chazal, O'Dwyer, Reilly, "Automatic
    classification of heartbeats using ECG morphology and heartbeat interval features", IEEE Trans Biomed Eng
    51(7):1196-1206, 2004 (DS1 to train, DS2 to test), without the paced records 102, 104, 107 and 217. Validation is
    five records of DS1, see `AAMI_VAL`. Fusion beats (F) and unclassifiable ones (Q) are left out of training; in
    validation and test they are inferred but not scored, as ANSI/AAMI EC57 asks for the ventricular class.

Records 201 (DS1) and 202 (DS2) are of one person. The ``aami`` protocol therefore leaves 201 out of training;
``aami_strict=True`` keeps it, to compare with figures published on the full lists, and says so in
``description["warnings"]``.

Windows are cut, scaled and padded as `pyhtpw.data.windows` says.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from . import cache
from .checks import Problems, check_sums
from .dataset import SPLITS, Dataset, describe
from .records import lacking, read_annotations, read_signal
from .windows import cut_windows

FS = 360.0
ENDINGS = ("hea", "dat", "atr")
CLASSES = ("other", "ventricular")
SOURCE = "MIT-BIH Arrhythmia Database 1.0.0, PhysioNet, doi:10.13026/C2F305"
LICENCE = "ODC-By 1.0"
PART = "the MIT-BIH Arrhythmia Database"

RECORDS = tuple("""100 101 102 103 104 105 106 107 108 109 111 112 113 114 115 116 117 118 119 121 122 123 124
200 201 202 203 205 207 208 209 210 212 213 214 215 217 219 220 221 222 223 228 230 231 232 233 234""".split())

# de Chazal et al. 2004, table I.
DS1 = tuple("101 106 108 109 112 114 115 116 118 119 122 124 201 203 205 207 208 209 215 220 223 230".split())
DS2 = tuple("100 103 105 111 113 117 121 123 200 202 210 212 213 214 219 221 222 228 231 232 233 234".split())

# Validation records of DS1, chosen from label counts and nothing else: of the eleven records (201 aside) with at least
# 40 ventricular beats, ordered by falling count (208 106 223 119 203 207 215 116 205 124 114), every third - 223, 207,
# 205 - and of the five without any (101 112 115 122 220) the first and the last. About a fifth of DS1's beats and of
# its ventricular beats.
AAMI_VAL = ("101", "205", "207", "220", "223")

# Records of one person under several names: record -> person.
SAME_PERSON = {"202": "201"}

# AAMI class of each beat annotation. The published records use N L R e j a A J S V E F / f Q; r, B, n and ? stand here
# for other databases in this format. Everything else (rhythm, noise, flutter waves, ...) is no beat.
AAMI_CLASS = {**dict.fromkeys("NLRBejn", "N"), **dict.fromkeys("aAJS", "S"), **dict.fromkeys("VEr", "V"), "F": "F",
              **dict.fromkeys("/fQ?", "Q")}
# Protocol "paper" knows no classes but these two symbols.
PAPER_VENTRICULAR = ("V", "E")

# Part of the cache key: raise it whenever the windows made from the same files and options change.
_CACHE_VERSION = 1
_CHUNK = 512  # windows made together: 7 MB of float64 at 1800 samples


@dataclass(frozen=True)
class _Plan:
    """What a protocol does: the records of each split, and its defaults."""

    records: dict[str, tuple[str, ...]]
    beats_only: bool
    window: int
    lead: int | str


def _plan(protocol: str, aami_strict: bool) -> _Plan:
    if protocol == "paper":
        if aami_strict:
            raise ConfigError("mitdb: aami_strict belongs to protocol 'aami': leave it out, or choose that protocol")
        first, second = len(RECORDS) * 8 // 10, len(RECORDS) * 9 // 10
        return _Plan({"train": RECORDS[:first], "val": RECORDS[first:second], "test": RECORDS[second:]}, False, 1800, 0)
    if protocol == "aami":
        train = tuple(r for r in DS1 if r not in AAMI_VAL and (aami_strict or r != "201"))
        return _Plan({"train": train, "val": AAMI_VAL, "test": DS2}, True, 512, "MLII")
    raise ConfigError(f"mitdb has no protocol {protocol!r}: choose 'paper' or 'aami'")


def read(*, data_dir: str | os.PathLike[str], protocol: str = "paper",
         cache_dir: str | os.PathLike[str] | None = None, window: int | None = None, lead: int | str | None = None,
         aami_strict: bool = False, progress: Callable[[int, int, str], None] | None = None) -> Dataset:
    """Read the database from a folder; see the module for the protocols.

    Parameters
    ----------
    data_dir : path
        Folder of the records, or one that has them in its subfolder ``mitdb``.
    protocol : {'paper', 'aami'}
    cache_dir : path, optional
        See `pyhtpw.data.cache.cache_root`. With protocol ``paper`` an entry takes 811 MB.
    window : int, optional
        T, 16 <= T <= 21600 samples (a minute); default 1800 (``paper``) or 512 (``aami``).
    lead : int or str, optional
        Signal index, or signal name, as in the header; default 0 (``paper``) or 'MLII' (``aami``). The two differ
        where MLII is not first: 114 has it second; 102 and 104, which only ``paper`` uses, do not have it.
    aami_strict : bool
        ``aami`` only: keep record 201 in training though 202, of the same person, is in test.
    progress : callable, optional
        ``progress(done, total, what)``, called after each record that is cut into windows; never on a cache hit.

    Returns
    -------
    Dataset
        fs 360 Hz, two classes. Windows of a split are in the order of its records, then of position.

    Raises
    ------
    ConfigError
        An option out of range.
    DataError
        A file is missing, unreadable, of another sampling rate, or contradicts its header; or the cache cannot be
        written.
    """
    plan = _plan(protocol, aami_strict)
    window = plan.window if window is None else window
    lead = plan.lead if lead is None else lead
    if isinstance(window, bool) or not isinstance(window, int) or not 16 <= window <= 21600:
        raise ConfigError(f"mitdb: window {window!r} is out of range: give an integer from 16 to 21600 samples")
    if isinstance(lead, bool) or not isinstance(lead, (int, str)) or (isinstance(lead, int) and lead < 0):
        raise ConfigError(f"mitdb: lead {lead!r} is neither a signal index from 0 nor a signal name")
    names = [name for part in SPLITS for name in plan.records[part]]
    folder = _folder(Path(data_dir), names)
    options: dict[str, Any] = {"window": window, "lead": lead, "aami_strict": aami_strict}

    source, key = _hashes(folder, names, {"version": _CACHE_VERSION, "protocol": protocol, **options})
    entry = cache.cache_root(cache_dir) / f"mitdb-{protocol}-{key[:32]}"
    splits = cache.opened(entry, lambda: _build(entry, folder, plan, window, lead, progress))

    warnings = []
    if aami_strict:
        warnings.append("aami_strict: record 201 (train) and record 202 (test) are of the same person, so train and "
                        "test are disjoint by record but not by person")
    description = describe(CLASSES, splits, protocol=protocol, options=options, source_sha256=source, warnings=warnings,
                           same_person={} if aami_strict else SAME_PERSON, part=PART, source=SOURCE, licence=LICENCE)
    return Dataset("mitdb", False, FS, CLASSES, splits["train"], splits["val"], splits["test"], description)


def check(data_dir: str | os.PathLike[str], progress: Callable[[int, int, str], None] | None = None) -> list[str]:
    """Every problem of the 48 records, for ``pyhtpw data check``."""
    folder = _inner(Path(data_dir))
    problems = Problems()
    check_sums(folder, problems, progress)
    absent = lacking(folder, RECORDS, ENDINGS)
    for file in absent:
        problems.add(f"mitdb record {file[:3]}: {file} is missing: copy it there")
    marks: dict[str, _Marks] = {}
    for done, name in enumerate(RECORDS, 1):
        size = None
        if not {f"{name}.hea", f"{name}.dat"} & set(absent):
            # As the protocols read it: signal 0 (paper), MLII (aami).
            for lead in (0, "MLII") if name in DS1 + DS2 else (0,):
                signal = problems.attempt(_signal, folder, name, lead)
                size = size if signal is None else signal.size
        if f"{name}.atr" not in absent:
            found = problems.attempt(_annotations, folder, name, False, True)
            if found is not None:
                marks[name] = found
                if size is not None and found.sample[-1] >= size:
                    problems.add(_outside(name, int(found.sample[-1]), size))
        if progress is not None:
            progress(done, len(RECORDS), f"record {name}")
    for protocol in ("paper", "aami"):
        for part, names in _plan(protocol, False).records.items():
            labels = [marks[name].label for name in names if name in marks]
            for k, title in enumerate(CLASSES):
                if labels and not any((label == k).any() for label in labels):
                    problems.add(f"mitdb, {protocol}: the {part} records have no annotation of class {title}: check that the "
                                 ".atr files are the reference annotations")
    return problems


def _outside(name: str, sample: int, size: int) -> str:
    return (f"mitdb record {name}: an annotation at sample {sample} lies beyond the {size} samples of the signal: .atr and .dat "
            "are not of one record, copy both anew")


def _inner(given: Path) -> Path:
    """The folder itself, or its subfolder ``mitdb``."""
    if not given.is_dir():
        raise DataError(f"mitdb: there is no folder {given}: pass data_dir (--data-dir) or set HTPW_DATA to the folder "
                        "that holds 100.hea, 100.dat, 100.atr, ...")
    inner = given / "mitdb"
    return inner if inner.is_dir() and not (given / "100.hea").exists() else given


def _folder(given: Path, names: list[str]) -> Path:
    """The folder with the records; every missing file is named at once."""
    folder = _inner(given)
    missing = lacking(folder, sorted(names), ENDINGS)
    if missing:
        raise DataError(f"mitdb: {folder} lacks {len(missing)} of {3 * len(names)} files ({' '.join(missing)}): copy "
                        "them there from PhysioNet, mitdb 1.0.0 (`pyhtpw data fetch mitdb` does)")
    return folder


def _hashes(folder: Path, names: list[str], options: dict[str, Any]) -> tuple[str, str]:
    """SHA-256 of the source files, and of them with the options (the cache key)."""
    source = hashlib.sha256()
    for name in names:
        for ending in ENDINGS:
            try:
                content = (folder / f"{name}.{ending}").read_bytes()
            except OSError as error:
                raise DataError(f"mitdb: {name}.{ending} cannot be read ({error.strerror}): correct its permissions or "
                                "copy it anew") from error
            # The length keeps two neighbouring files from being confused with the same bytes cut elsewhere.
            source.update(f"{name}.{ending} {len(content)}\n".encode())
            source.update(content)
    key = hashlib.sha256(source.digest() + json.dumps(options, sort_keys=True).encode())
    return source.hexdigest(), key.hexdigest()


def _build(entry: Path, folder: Path, plan: _Plan, window: int, lead: int | str,
           progress: Callable[[int, int, str], None] | None) -> None:
    """Cut all records into windows and store them as a cache entry."""
    marks = {part: [_annotations(folder, name, plan.beats_only, part != "train") for name in plan.records[part]]
             for part in SPLITS}
    labels = {}
    for part in SPLITS:
        counts = [m.sample.size for m in marks[part]]
        labels[part] = {
            "y": np.concatenate([m.label for m in marks[part]]),
            "group": np.repeat(np.array(plan.records[part]), counts),
            "position": np.concatenate([m.sample for m in marks[part]]),
            "score_mask": np.concatenate([m.scored for m in marks[part]]),
        }
        if not sum(counts):
            raise DataError(f"mitdb: the {part} records ({' '.join(plan.records[part])}) have no beats between them: "
                            "check that the .atr files are the reference annotations")

    def chunks() -> Iterator[tuple[str, np.ndarray]]:
        done, total = 0, sum(len(plan.records[part]) for part in SPLITS)
        for part in SPLITS:
            for name, mark in zip(plan.records[part], marks[part], strict=True):
                signal = _signal(folder, name, lead)
                outside = mark.sample[mark.sample >= signal.size]
                if outside.size:
                    raise DataError(_outside(name, int(outside[0]), signal.size))
                for start in range(0, mark.sample.size, _CHUNK):
                    yield part, cut_windows(signal, mark.sample[start:start + _CHUNK], window)
                done += 1
                if progress is not None:
                    progress(done, total, f"record {name}")

    cache.store(entry, (window, 1), labels, chunks())


@dataclass(frozen=True)
class _Marks:
    """Annotations of one record, in time order: (n,) int64 samples, (n,) int64 classes, (n,) bool."""

    sample: np.ndarray
    label: np.ndarray
    scored: np.ndarray


def _annotations(folder: Path, name: str, beats_only: bool, keep_unscored: bool) -> _Marks:
    """Read ``name.atr``. With `beats_only`, drop what is no beat, and F and Q unless `keep_unscored`."""
    sample, symbol = read_annotations(folder, name, "atr", "mitdb")
    if not beats_only:
        return _Marks(sample, np.isin(symbol, PAPER_VENTRICULAR).astype(np.int64), np.ones(sample.size, bool))
    aami = np.array([AAMI_CLASS.get(s, "") for s in symbol.tolist()], dtype="U1")
    scored = np.isin(aami, ["N", "S", "V"])
    keep = (aami != "") & (scored | keep_unscored)
    return _Marks(sample[keep], (aami == "V").astype(np.int64)[keep], scored[keep])


def _signal(folder: Path, name: str, lead: int | str) -> np.ndarray:
    """Read one lead of a record: (samples,) float64, in mV."""
    return read_signal(folder, name, lead, FS, "mitdb")
