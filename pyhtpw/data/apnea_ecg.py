"""The Apnea-ECG Database: 70 nights of single-lead ECG with an expert's label on every minute.

Source: Penzel T, Moody GB, Mark RG, Goldberger AL, Peter JH, "The Apnea-ECG Database", Computers in Cardiology
27:255-258, 2000; PhysioNet, doi:10.13026/C23W2R; licence ODC-By 1.0. Not part of this package. The folder has the
layout as published: ``RRR.hea``, ``RRR.dat`` (ECG, 100 Hz), ``RRR.apn`` (labels), ``RRR.qrs`` (beat times made by a
program, unaudited), and ``event-2-answers.txt``, the labels of the 35 records x01 to x35 of the challenge, which are
read from there where ``x01.apn`` and so on do not exist.

The task is apnea (or hypopnea) in a minute or not. Protocols:

``records``
    The ECG, in windows of 18 s; the 35 records of the learning set (a01-a20, b01-b05, c01-c10) divided 80/10/10 by
    record, apart for records with and without an apnea minute. Which records is drawn once, with `_DRAW`.
``challenge``
    The same windows in the division of the challenge of the year 2000: learning set to train and validate, x01-x35
    to test. Validation is every fifth record of each of a, b and c: a05 a10 a15 a20 b05 c05 c10.
``beats``
    No ECG: eight figures of heart-rate variability per minute from ``RRR.qrs`` (`pyhtpw.data.hrv.beat_features`), in the division of
    ``challenge``. A window is a minute with `context` minutes on either side, T = 2 * context + 1, C = 8.

A minute's label holds for all its windows of the ECG: three, from second 3 to second 57. A label without a whole
minute of signal is left out and counted (``description["left_out"]``). Windows of the ECG are cut and scaled as
`pyhtpw.data.windows` says. Features have mean 0 and standard deviation 1 over the training minutes; a minute with too
few beats for them has 0, the mean, and is counted (``description["minutes_without_features"]``).

The records come from fewer people than there are records, and the files do not say which: record-wise division, and
the published one too, may have a person on two sides. ``description["warnings"]`` says so.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from . import cache
from .checks import Problems, check_sums
from .dataset import SPLITS, Dataset, describe
from .hrv import BEAT_FEATURES, beat_features
from .records import lacking, read_annotations, read_header, read_signal
from .windows import cut_windows

FS = 100.0
MINUTE = 6000  # samples
CLASSES = ("normal", "apnea")
SOURCE = "Apnea-ECG Database 1.0.0, PhysioNet, doi:10.13026/C23W2R"
LICENCE = "ODC-By 1.0"
PART = {
    "records": "the learning set of the Apnea-ECG Database",
    "challenge": "the Apnea-ECG Database, published division",
    "beats": "the Apnea-ECG Database, published division; machine-made beat times only, no ECG",
}
LEARNING = tuple([f"a{k:02d}" for k in range(1, 21)] + [f"b{k:02d}" for k in range(1, 6)] + [f"c{k:02d}" for k in range(1, 11)])
WITHHELD = tuple(f"x{k:02d}" for k in range(1, 36))
ANSWERS = "event-2-answers.txt"
LEAST_INTERVALS = 10
"""Intervals below which a minute has no figures."""
PER_MINUTE = 3  # windows of the ECG

_DRAW = 2000  # seed of the division of `records`
_CACHE_VERSION = 1
_WARNING = ("the records come from fewer people than there are records and the files do not say which: a person may be on "
            "two sides of the division")


def read(*, data_dir: str | os.PathLike[str], protocol: str = "records",
         cache_dir: str | os.PathLike[str] | None = None, window: int = 1800, context: int = 2,
         progress: Callable[[int, int, str], None] | None = None) -> Dataset:
    """Read the database from a folder; see the module for the protocols.

    Parameters
    ----------
    data_dir : path
        Folder of the records, or one that has them in its subfolder ``apnea-ecg``.
    protocol : {'records', 'challenge', 'beats'}
    cache_dir : path, optional
        See `pyhtpw.data.cache.cache_root`.
    window : int
        T of the ECG, 100 to 2000 samples (three fit into a minute); ``beats`` has no use for it.
    context : int
        ``beats`` only: minutes on either side, 0 to 10.
    progress : callable, optional
        ``progress(done, total, what)``, after each record; never on a cache hit.

    Returns
    -------
    Dataset
        Two classes, index 1 is apnea; groups are records. fs 100 Hz, or one minute (1/60 Hz) for ``beats``. Positions
        are samples of the record at 100 Hz.

    Raises
    ------
    ConfigError
        An option out of range.
    DataError
        A file is missing, unreadable, of another sampling rate, or contradicts its header; or the cache cannot be
        written. Where the signal files are missing altogether, as in a folder of beats and labels, it says so.
    """
    if protocol not in PART:
        raise ConfigError(f"apnea-ecg has no protocol {protocol!r}: choose {', '.join(PART)}")
    for name, value, low, high in (("window", window, 100, 2000), ("context", context, 0, 10)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"apnea-ecg: {name} {value!r} is out of range: give an integer from {low} to {high}")
    beats = protocol == "beats"
    names = LEARNING if protocol == "records" else LEARNING + WITHHELD
    folder = find(data_dir)
    ending = "qrs" if beats else "dat"
    _complete(folder, names, ending)
    options = {"context": context} if beats else {"window": window}
    source, key = _hashes(folder, names, ending, {"version": _CACHE_VERSION, "protocol": protocol, **options})

    entry = cache.cache_root(cache_dir) / f"apnea-ecg-{protocol}-{key[:32]}"
    splits = cache.opened(entry, lambda: _build(entry, folder, protocol, window, context, progress))
    notes = cache.notes(entry)
    description = describe(CLASSES, splits, protocol=protocol, options=options, source_sha256=source, warnings=[_WARNING],
                           same_person={}, part=PART[protocol], source=SOURCE, licence=LICENCE, **notes)
    return Dataset("apnea-ecg", False, 1 / 60 if beats else FS, CLASSES, splits["train"], splits["val"], splits["test"],
                   description)


def find(data_dir: str | os.PathLike[str]) -> Path:
    """The folder with ``a01.hea``; DataError if there is none."""
    given = Path(data_dir)
    for folder in (given / "apnea-ecg", given):
        if (folder / "a01.hea").is_file():
            return folder
    raise DataError(f"apnea-ecg: {given} has no a01.hea: give the folder of the records, or download them with `pyhtpw data "
                    "fetch apnea-ecg`")


def division(protocol: str, labels: dict[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    """The records of each split, sorted.

    Parameters
    ----------
    protocol : str
    labels : mapping of record to (minutes,) int64
        Only ``records`` looks at them, and only whether a record has an apnea minute.
    """
    if protocol != "records":
        val = tuple(name for name in LEARNING if int(name[1:]) % 5 == 0)
        return {"train": tuple(name for name in LEARNING if name not in val), "val": val, "test": WITHHELD}
    rng = np.random.default_rng(_DRAW)
    out: dict[str, list[str]] = {part: [] for part in SPLITS}
    for has in (True, False):
        stratum = [name for name in LEARNING if bool(labels[name].any()) is has]
        order = [stratum[k] for k in rng.permutation(len(stratum))]
        tenth = max(1, round(len(stratum) / 10)) if stratum else 0
        out["val"] += order[:tenth]
        out["test"] += order[tenth:2 * tenth]
        out["train"] += order[2 * tenth:]
    return {part: tuple(sorted(chosen)) for part, chosen in out.items()}


def minute_labels(folder: Path, name: str) -> np.ndarray:
    """Label of each minute from the start of the record: (minutes,) int64, 1 is apnea.

    Raises
    ------
    DataError
        Unreadable, a symbol other than A and N, or not one label per minute.
    """
    if not (folder / f"{name}.apn").is_file() and name in WITHHELD:
        return answers(folder)[name]
    sample, symbol = read_annotations(folder, name, "apn", "apnea-ecg")
    other = np.flatnonzero(~np.isin(symbol, ["A", "N"]))
    if other.size:
        raise DataError(f"apnea-ecg record {name}: {name}.apn has the symbol {str(symbol[other[0]])!r} at sample "
                        f"{sample[other[0]]}, which is neither A nor N: copy it anew")
    wrong = np.flatnonzero(sample != MINUTE * np.arange(sample.size))
    if wrong.size:
        raise DataError(f"apnea-ecg record {name}: label {wrong[0]} of {name}.apn is at sample {sample[wrong[0]]}, not "
                        f"{MINUTE * wrong[0]}: labels must be one per minute, copy it anew")
    return (symbol == "A").astype(np.int64)


def whole_minutes(folder: Path, name: str, labels: int) -> int:
    """Whole minutes of signal, by the header; DataError if so many labels cannot be of this record.

    The published records have up to 1 label more and 23 fewer than whole minutes.
    """
    minutes = read_header(folder, name, FS, "apnea-ecg").sig_len // MINUTE
    if not -30 <= labels - minutes <= 2:
        raise DataError(f"apnea-ecg record {name}: {labels} labels for {minutes} whole minutes of signal: labels and header are not "
                        "of one record, copy both anew")
    return minutes


def answers(folder: Path) -> dict[str, np.ndarray]:
    """The published labels of x01 to x35: lines of an hour's number and up to 60 letters under each record's name."""
    try:
        text = (folder / ANSWERS).read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"apnea-ecg: {ANSWERS} cannot be read ({' '.join(str(error).split())}): copy it anew") from error
    letters: dict[str, str] = {}
    name = None
    for at, line in enumerate(text.splitlines(), 1):
        if re.fullmatch(r"\s*x\d\d\s*", line):
            name = line.strip()
            letters[name] = ""
        elif match := re.fullmatch(r"\s*(\d+)\s+([AN]+)\s*", line):
            if name is None or int(match[1]) * 60 != len(letters[name]):
                raise DataError(f"apnea-ecg: {ANSWERS} line {at}: hour {match[1]} does not follow the {len(letters.get(name, ''))} "
                                "minutes before it: copy it anew")
            letters[name] += match[2]
    lacking_names = [name for name in WITHHELD if not letters.get(name)]
    if lacking_names:
        raise DataError(f"apnea-ecg: {ANSWERS} has no labels of {', '.join(lacking_names)}: copy it anew")
    return {name: (np.array(list(row)) == "A").astype(np.int64) for name, row in letters.items()}


def beat_times(folder: Path, name: str) -> np.ndarray:
    """Times of the beats of ``name.qrs``, (B,) s; marks of artifacts are left out.

    Raises
    ------
    DataError
        Unreadable, or a beat lies beyond the signal.
    """
    sample, symbol = read_annotations(folder, name, "qrs", "apnea-ecg")
    length = read_header(folder, name, FS, "apnea-ecg").sig_len
    if sample[-1] >= length:
        raise DataError(f"apnea-ecg record {name}: {name}.qrs has a beat at sample {sample[-1]}, the signal has {length}: they are "
                        "not of one record, copy both anew")
    return sample[symbol == "N"] / FS


def check(data_dir: str | os.PathLike[str], progress: Callable[[int, int, str], None] | None = None) -> list[str]:
    """Every problem of the files that are there, for ``pyhtpw data check``; signals only where there are any."""
    folder = find(data_dir)
    names = LEARNING + WITHHELD
    problems = Problems()
    check_sums(folder, problems, progress)
    signals = bool(list(folder.glob("[abcx]??.dat")))
    endings = ("hea", "qrs", "dat") if signals else ("hea", "qrs")
    answered = (folder / ANSWERS).is_file()
    usable = answered and problems.attempt(answers, folder) is not None
    absent = lacking(folder, names, endings) + lacking(folder, LEARNING if answered else names, ("apn",))
    for file in absent:
        problems.add(f"apnea-ecg record {file[:3]}: {file} is missing: copy it there")
    known: dict[str, np.ndarray] = {}
    for done, name in enumerate(names, 1):
        headed = f"{name}.hea" not in absent and problems.attempt(read_header, folder, name, FS, "apnea-ecg") is not None
        if headed and signals and f"{name}.dat" not in absent:
            problems.attempt(read_signal, folder, name, 0, FS, "apnea-ecg")
        if headed and f"{name}.qrs" not in absent:
            problems.attempt(beat_times, folder, name)
        if (folder / f"{name}.apn").is_file() or (name in WITHHELD and usable):
            labels = problems.attempt(minute_labels, folder, name)
            if headed and labels is not None:
                problems.attempt(whole_minutes, folder, name, labels.size)
            if labels is not None:
                known[name] = labels
        if progress is not None:
            progress(done, len(names), f"record {name}")
    for part, chosen in division("challenge", known).items():
        held = [known[name] for name in chosen if name in known]
        for k, title in enumerate(CLASSES):
            if held and not any((labels == k).any() for labels in held):
                problems.add(f"apnea-ecg, challenge: {part} has no minute labelled {title}: check the labels")
    return problems


def _complete(folder: Path, names: tuple[str, ...], ending: str) -> None:
    """Every missing file at once."""
    if ending == "dat":
        absent = lacking(folder, names, ("dat",))
        if len(absent) == len(names):
            raise DataError(f"apnea-ecg: {folder} has no signal files ({absent[0]}, ...), only what is beside them. not run: data "
                            "not at hand. Download them with `pyhtpw data fetch apnea-ecg`, or use protocol 'beats'")
    endings = ("hea", ending)
    missing = lacking(folder, names, endings) + lacking(folder, [n for n in names if n not in WITHHELD], ("apn",))
    if any(n in WITHHELD for n in names) and not (folder / ANSWERS).is_file():
        missing += lacking(folder, WITHHELD, ("apn",))
    if missing:
        raise DataError(f"apnea-ecg: {folder} lacks {len(missing)} files ({' '.join(missing)}): copy them there from PhysioNet, "
                        "apnea-ecg 1.0.0")


def _hashes(folder: Path, names: tuple[str, ...], ending: str, options: dict[str, Any]) -> tuple[str, str]:
    """SHA-256 of the source files, and of them with the options (the cache key)."""
    source = hashlib.sha256()
    files = [f"{name}.{kind}" for name in names for kind in ("hea", ending, "apn")] + [ANSWERS]
    for file in files:
        path = folder / file
        if not path.is_file():  # labels of x01 to x35 may be in either place; what must be there was looked at before
            continue
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"apnea-ecg: {file} cannot be read ({error.strerror}): correct its permissions or copy it "
                            "anew") from error
        source.update(f"{file} {len(content)}\n".encode())
        source.update(content)
    key = hashlib.sha256(source.digest() + json.dumps(options, sort_keys=True).encode())
    return source.hexdigest(), key.hexdigest()


def _build(entry: Path, folder: Path, protocol: str, window: int, context: int,
           progress: Callable[[int, int, str], None] | None) -> None:
    names = LEARNING if protocol == "records" else LEARNING + WITHHELD
    labels = {name: minute_labels(folder, name) for name in names}
    # As many minutes as have both a label and a whole minute of signal.
    kept = {name: labels[name][:whole_minutes(folder, name, labels[name].size)] for name in names}
    parts = division(protocol, labels)
    each = 1 if protocol == "beats" else PER_MINUTE
    offset = MINUTE // 2 + window * (np.arange(each) - (each - 1) // 2)
    arrays = {}
    for part in SPLITS:
        minutes = [kept[name].size for name in parts[part]]
        arrays[part] = {
            "y": np.concatenate([np.repeat(kept[name], each) for name in parts[part]]),
            "group": np.repeat(np.array(parts[part]), np.array(minutes) * each),
            "position": np.concatenate([(np.arange(n)[:, None] * MINUTE + offset).ravel() for n in minutes]).astype(np.int64),
        }
        arrays[part]["score_mask"] = np.ones(arrays[part]["y"].size, bool)
        for k, title in enumerate(CLASSES):
            if not (arrays[part]["y"] == k).any():
                raise DataError(f"apnea-ecg: {part} ({' '.join(parts[part])}) has no minute labelled {title}: check the .apn "
                                "files")
    notes: dict[str, Any] = {"left_out": {
        part: sum(labels[name].size - kept[name].size for name in parts[part]) for part in SPLITS}}
    done, total = 0, len(names)

    def told(name: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, f"record {name}")

    def signals() -> Iterator[tuple[str, np.ndarray]]:
        for part in SPLITS:
            for name in parts[part]:
                signal = read_signal(folder, name, 0, FS, "apnea-ecg")
                centre = (np.arange(kept[name].size)[:, None] * MINUTE + offset).ravel()
                for start in range(0, centre.size, 512):
                    yield part, cut_windows(signal, centre[start:start + 512], window)
                told(name)

    def features() -> Iterator[tuple[str, np.ndarray]]:
        rows = {}
        for name in names:
            beats = beat_times(folder, name)
            edges = np.searchsorted(beats, np.arange(kept[name].size + 1) * 60.0)
            rows[name] = np.array([beat_features(beats[a:b], LEAST_INTERVALS) for a, b in itertools.pairwise(edges)])
            told(name)
        train = np.concatenate([rows[name] for name in parts["train"]])
        if np.isnan(train).all():
            raise DataError("apnea-ecg: no minute of the training records has beats enough for its features: copy the .qrs "
                            "files anew")
        mean, deviation = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
        deviation = np.where(deviation > 1e-9, deviation, 1.0)
        notes["features"] = {"names": list(BEAT_FEATURES), "mean": mean.tolist(), "deviation": deviation.tolist()}
        notes["minutes_without_features"] = {
            part: sum(int(np.isnan(rows[name][:, 0]).sum()) for name in parts[part]) for part in SPLITS}
        for part in SPLITS:
            for name in parts[part]:
                scaled = np.nan_to_num((rows[name] - mean) / deviation, nan=0.0)
                padded = np.pad(scaled, ((context, context), (0, 0)))
                x = np.lib.stride_tricks.sliding_window_view(padded, 2 * context + 1, axis=0)
                yield part, np.ascontiguousarray(x.transpose(0, 2, 1), dtype=np.float32)

    if protocol == "beats":
        cache.store(entry, (2 * context + 1, len(BEAT_FEATURES)), arrays, features(), notes)
    else:
        cache.store(entry, (window, 1), arrays, signals(), notes)
