"""PTB-XL: ten-second 12-lead ECGs with a cardiologist's statements; here one lead at 100 Hz.

Source: Wagner P, Strodthoff N, Bousseljot R-D, et al., "PTB-XL, a large publicly available electrocardiography
dataset", Scientific Data 7:154, 2020; PhysioNet, doi:10.13026/kfzx-aw45; licence CC BY 4.0. Not part of this package.
Two folders are understood:

the published tree
    ``ptbxl_database.csv``, ``scp_statements.csv`` and the WFDB records ``records100/00000/00001_lr`` and so on.
a part as one array
    ``ptbxl_100hz_*.npz`` (arrays ``signals_uV`` (n, 1000, 12) int16, ``leads``, ``ecg_id``, ``patient_id``,
    ``strat_fold``, ``scp_codes``, ``fs``) beside ``scp_statements.csv``. Its results are named after the part, "the
    first 500 records of PTB-XL", and never as PTB-XL.

A record's superclasses (NORM, MI, STTC, CD, HYP) are those of its diagnostic statements, with whatever likelihood, as
in the example code published with the data set. Folds 1 to 8 train, 9 validate, 10 test; no patient is in two folds.
Protocols:

``norm``
    Normal against diagnostic: NORM alone is class 0, any of the other four (also together with NORM) class 1.
``superclass``
    Five classes: records with exactly one superclass. The data set has several labels per record and a classifier here
    gives one, so the others are left out.

Records left out for having no superclass, or several, are counted in ``description["left_out"]``. A window is the
whole record, scaled as `pyhtpw.data.windows` says. Groups are patients.
"""

from __future__ import annotations

import ast
import csv
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
from .checks import Problems, check_sums, two_sides
from .dataset import SPLITS, Dataset, describe
from .records import read_signal
from .windows import cut_windows

FS = 100.0
LENGTH = 1000  # samples of a record
SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
CLASSES = {"norm": ("normal", "diagnostic"), "superclass": SUPERCLASSES}
SOURCE = "PTB-XL, PhysioNet, doi:10.13026/kfzx-aw45"
LICENCE = "CC BY 4.0"
TABLE, STATEMENTS = "ptbxl_database.csv", "scp_statements.csv"
WHOLE = 21799  # records of version 1.0.3; earlier versions have 21837
FOLDS = {**dict.fromkeys(range(1, 9), "train"), 9: "val", 10: "test"}
FEW = 200  # test records; below it the data set says that no claim can rest on them

_CACHE_VERSION = 1
_ARRAYS = ("signals_uV", "leads", "ecg_id", "patient_id", "strat_fold", "scp_codes", "fs")


@dataclass(frozen=True)
class Row:
    """A record: its number, patient, fold, statements as text, and WFDB name relative to the folder (tree) or ''."""

    ecg_id: int
    patient: str
    fold: int
    codes: str
    name: str


def read(*, data_dir: str | os.PathLike[str], protocol: str = "norm",
         cache_dir: str | os.PathLike[str] | None = None, lead: str = "II",
         progress: Callable[[int, int, str], None] | None = None) -> Dataset:
    """Read the data set from a folder; see the module for folders and protocols.

    Parameters
    ----------
    data_dir : path
        The folder, or one that has it as its subfolder ``ptb-xl``.
    protocol : {'norm', 'superclass'}
    cache_dir : path, optional
        See `pyhtpw.data.cache.cache_root`. A record takes 4 kB.
    lead : str
        Name of the lead; AVR and aVR are the same.
    progress : callable, optional
        ``progress(done, total, what)``; never called on a cache hit.

    Returns
    -------
    Dataset
        fs 100 Hz, x (N, 1000, 1). ``description["part"]`` names what was read.

    Raises
    ------
    ConfigError
        An option out of range.
    DataError
        A file is missing, unreadable, of another sampling rate or length, or contradicts its header; there is no such
        lead; a patient is in two splits; a class is empty; or the cache cannot be written.
    """
    if protocol not in CLASSES:
        raise ConfigError(f"ptb-xl has no protocol {protocol!r}: choose {', '.join(CLASSES)}")
    if not isinstance(lead, str):
        raise ConfigError(f"ptb-xl: lead {lead!r} is no name: give 'II' or another of the twelve")
    folder, array = find(data_dir)
    rows = read_array_rows(array) if array else read_table(folder)
    classes_of = superclasses(folder)
    chosen, labels, left_out = divide(rows, classes_of, protocol)
    options = {"lead": lead}
    source, key = _hashes(folder, array, [row for part in SPLITS for row in chosen[part]],
                          {"version": _CACHE_VERSION, "protocol": protocol, **options})

    entry = cache.cache_root(cache_dir) / f"ptb-xl-{protocol}-{key[:32]}"
    splits = cache.opened(entry, lambda: _build(entry, folder, array, rows, chosen, labels, lead, progress))
    warnings = []
    if len(splits["test"]) < FEW:
        warnings.append(f"{len(splits['test'])} test records are too few for any claim")
    description = describe(CLASSES[protocol], splits, protocol=protocol, options=options, source_sha256=source,
                           warnings=warnings, same_person={}, part=part_name(rows), source=SOURCE, licence=LICENCE,
                           left_out=left_out)
    return Dataset("ptb-xl", False, FS, CLASSES[protocol], splits["train"], splits["val"], splits["test"], description)


def find(data_dir: str | os.PathLike[str]) -> tuple[Path, Path | None]:
    """The folder, and the file of arrays if it is a part; DataError if there is neither that nor the table."""
    given = Path(data_dir)
    for folder in (given / "ptb-xl", given):
        if (folder / TABLE).is_file():
            return folder, None
        arrays = sorted(folder.glob("ptbxl_100hz_*.npz"))
        if len(arrays) > 1:
            raise DataError(f"ptb-xl: {folder} has {len(arrays)} files ptbxl_100hz_*.npz: leave one")
        if arrays:
            return folder, arrays[0]
    raise DataError(f"ptb-xl: {given} has neither {TABLE} nor ptbxl_100hz_*.npz: give the folder of the data set, or download it "
                    "with `pyhtpw data fetch ptb-xl`")


def part_name(rows: list[Row]) -> str:
    """What results on these records are called."""
    if len(rows) >= WHOLE:
        return "PTB-XL"
    in_row = sorted(row.ecg_id for row in rows) == list(range(1, len(rows) + 1))
    return f"the first {len(rows)} records of PTB-XL" if in_row else f"{len(rows)} records of PTB-XL"


def read_table(folder: Path) -> list[Row]:
    """The rows of ``ptbxl_database.csv``; DataError names the first that is malformed."""
    rows = []
    for at, row in enumerate(_table(folder / TABLE), 2):
        try:
            name = row["filename_lr"]
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"filename_lr {name!r} leaves the folder")
            rows.append(Row(int(row["ecg_id"]), str(int(float(row["patient_id"]))), int(row["strat_fold"]), row["scp_codes"], name))
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"ptb-xl: {TABLE} line {at} is malformed ({' '.join(str(error).split())}): copy it anew") from error
    return rows


def read_array_rows(path: Path) -> list[Row]:
    """The rows of a file of arrays, checked against each other; DataError if they do not fit."""
    arrays = open_arrays(path)
    return [Row(int(e), str(int(p)), int(f), str(c), "") for e, p, f, c in zip(
        arrays["ecg_id"], arrays["patient_id"], arrays["strat_fold"], arrays["scp_codes"], strict=True)]


def open_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a part; DataError if one is absent or does not fit the others."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
    except Exception as error:  # not a zip, an array absent, cut short, a wrong CRC: each its own exception
        raise DataError(f"ptb-xl: {path.name} cannot be read ({type(error).__name__}: {' '.join(str(error).split())}): copy it "
                        "anew") from error
    signals = arrays["signals_uV"]
    n = len(arrays["ecg_id"])
    if signals.dtype != np.int16 or signals.shape != (n, LENGTH, len(arrays["leads"])):
        raise DataError(f"ptb-xl: {path.name}: signals_uV has shape {signals.shape} and type {signals.dtype} for {n} records and "
                        f"{len(arrays['leads'])} leads, not ({n}, {LENGTH}, {len(arrays['leads'])}) int16: copy it anew")
    for name in ("patient_id", "strat_fold", "scp_codes"):
        if len(arrays[name]) != n:
            raise DataError(f"ptb-xl: {path.name}: {name} has {len(arrays[name])} entries for {n} records: copy it anew")
    if float(arrays["fs"]) != FS:
        raise DataError(f"ptb-xl: {path.name}: sampled at {float(arrays['fs'])} Hz, not {FS:.0f}: copy it anew (do not resample)")
    return arrays


def superclasses(folder: Path) -> dict[str, str]:
    """Superclass of each diagnostic statement, from ``scp_statements.csv``."""
    out = {}
    for at, row in enumerate(_table(folder / STATEMENTS), 2):
        code = row.get("") or row.get("Unnamed: 0")
        if code is None or "diagnostic" not in row or "diagnostic_class" not in row:
            raise DataError(f"ptb-xl: {STATEMENTS} line {at} lacks the statement's name, diagnostic or diagnostic_class: copy it anew")
        if row["diagnostic"] and float(row["diagnostic"]) == 1:
            if row["diagnostic_class"] not in SUPERCLASSES:
                raise DataError(f"ptb-xl: {STATEMENTS} line {at}: diagnostic_class {row['diagnostic_class']!r} is none of "
                                f"{', '.join(SUPERCLASSES)}: copy it anew")
            out[code] = row["diagnostic_class"]
    if set(out.values()) != set(SUPERCLASSES):
        raise DataError(f"ptb-xl: {STATEMENTS} lacks diagnostic statements of some superclass: copy it anew")
    return out


def classes_of_record(row: Row, table: dict[str, str]) -> set[str]:
    """The superclasses of a record; DataError if its statements are no dictionary or its fold is none."""
    try:
        codes = ast.literal_eval(row.codes)
        if not isinstance(codes, dict):
            raise ValueError("no dictionary")
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"ptb-xl record {row.ecg_id}: scp_codes {row.codes[:40]!r} is no dictionary of statements: copy the "
                        "table anew") from error
    if row.fold not in FOLDS:
        raise DataError(f"ptb-xl record {row.ecg_id}: strat_fold {row.fold} is not 1 to 10: copy the table anew")
    return {table[code] for code in codes if code in table}


def divide(rows: list[Row], table: dict[str, str], protocol: str) -> tuple[dict[str, list[Row]], dict[str, list[int]],
                                                                          dict[str, dict[str, int]]]:
    """Rows and labels of each split in the order of `rows`, and how many were left out for which reason.

    Raises
    ------
    DataError
        A class is empty in a split, or a patient is in two.
    """
    chosen: dict[str, list[Row]] = {part: [] for part in SPLITS}
    labels: dict[str, list[int]] = {part: [] for part in SPLITS}
    left_out = {part: {"no superclass": 0, "several superclasses": 0} for part in SPLITS}
    for row in rows:
        found = classes_of_record(row, table)
        part = FOLDS[row.fold]
        if not found:
            left_out[part]["no superclass"] += 1
        elif protocol == "superclass" and len(found) > 1:
            left_out[part]["several superclasses"] += 1
        else:
            chosen[part].append(row)
            labels[part].append(int(found != {"NORM"}) if protocol == "norm" else SUPERCLASSES.index(*found))
    for part in SPLITS:
        empty = [name for k, name in enumerate(CLASSES[protocol]) if k not in labels[part]]
        if empty:
            raise DataError(f"ptb-xl: {part} has no record of {', '.join(empty)} ({len(rows)} records in the table): use more of "
                            "the data set" + (", or protocol 'norm'" if protocol == "superclass" else ""))
    shared = two_sides({part: {row.patient for row in chosen[part]} for part in SPLITS}, "ptb-xl", "patient")
    if shared:
        raise DataError(shared[0] + (f" ({len(shared)} such patients)" if len(shared) > 1 else ""))
    return chosen, labels, left_out


def lead_index(leads: list[str], lead: str, where: str) -> int:
    """Position of a lead; DataError if there is none of this name."""
    names = [name.upper() for name in leads]
    if lead.upper() not in names:
        raise DataError(f"{where}: has no lead {lead!r}, it has {', '.join(leads)}: choose one of these")
    return names.index(lead.upper())


def record_signal(folder: Path, row: Row, lead: str) -> np.ndarray:
    """One lead of a record of the tree, (1000,) mV."""
    from .records import read_header

    title, name = "ptb-xl", row.name
    if not (folder / f"{name}.hea").is_file():
        raise DataError(f"ptb-xl record {row.ecg_id}: {name}.hea is missing: copy it there")
    names = read_header(folder, name, FS, title).sig_name or []
    signal = read_signal(folder, name, lead_index(names, lead, f"ptb-xl record {row.ecg_id}"), FS, title)
    if signal.size != LENGTH:
        raise DataError(f"ptb-xl record {row.ecg_id}: {name} has {signal.size} samples, not {LENGTH}: copy it anew")
    return signal


def check(data_dir: str | os.PathLike[str], progress: Callable[[int, int, str], None] | None = None) -> list[str]:
    """Every problem, for ``pyhtpw data check``."""
    folder, array = find(data_dir)
    problems = Problems()
    check_sums(folder, problems, progress)
    rows = problems.attempt(read_array_rows, array) if array else problems.attempt(read_table, folder)
    table = problems.attempt(superclasses, folder)
    if rows is None or table is None:
        return problems
    sides: dict[str, set[str]] = {part: set() for part in SPLITS}
    held = {part: set() for part in SPLITS}
    for done, row in enumerate(rows, 1):
        found = problems.attempt(classes_of_record, row, table)
        if found is not None:
            sides[FOLDS[row.fold]].add(row.patient)
            held[FOLDS[row.fold]] |= found
        if not array:
            problems.attempt(record_signal, folder, row, "II")
        if progress is not None:
            progress(done, len(rows), f"record {row.ecg_id}")
    if array:
        arrays = open_arrays(array)
        problems.attempt(lead_index, arrays["leads"].tolist(), "II", f"ptb-xl: {array.name}")
        if "superclass" in np.load(array, allow_pickle=False).files:
            stated = np.load(array, allow_pickle=False)["superclass"]
            for row, flags in zip(rows, stated, strict=False):
                found = problems.attempt(classes_of_record, row, table)
                if found is not None and found != {name for name, flag in zip(SUPERCLASSES, flags, strict=True) if flag}:
                    problems.add(f"ptb-xl record {row.ecg_id}: the array superclass contradicts its scp_codes: copy the file anew")
    for message in two_sides(sides, "ptb-xl", "patient"):
        problems.add(message)
    for part in SPLITS:
        empty = [name for name in SUPERCLASSES if name not in held[part]]
        if empty:
            problems.add(f"ptb-xl: {part} has no record of {', '.join(empty)}: use more of the data set")
    return problems


def _table(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"ptb-xl: {path.name} cannot be read ({' '.join(str(error).split())}): copy it anew") from error
    if not rows:
        raise DataError(f"ptb-xl: {path.name} has no rows: copy it anew")
    return rows


def _hashes(folder: Path, array: Path | None, rows: list[Row], options: dict[str, Any]) -> tuple[str, str]:
    """SHA-256 of the source files, and of them with the options (the cache key)."""
    source = hashlib.sha256()
    names = [array.name] if array else [TABLE, *(f"{row.name}.{ending}" for row in rows for ending in ("hea", "dat"))]
    for name in [STATEMENTS, *names]:
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"ptb-xl: {name} cannot be read ({error.strerror}): copy it there (`pyhtpw data check ptb-xl` names "
                            "all that is missing)") from error
        source.update(f"{name} {len(content)}\n".encode())
        source.update(content)
    key = hashlib.sha256(source.digest() + json.dumps(options, sort_keys=True).encode())
    return source.hexdigest(), key.hexdigest()


def _build(entry: Path, folder: Path, array: Path | None, rows: list[Row], chosen: dict[str, list[Row]],
           labels: dict[str, list[int]], lead: str, progress: Callable[[int, int, str], None] | None) -> None:
    arrays = {part: {
        "y": np.array(labels[part], np.int64),
        "group": np.array([row.patient for row in chosen[part]]),
        "position": np.full(len(labels[part]), LENGTH // 2, np.int64),
        "score_mask": np.ones(len(labels[part]), bool),
    } for part in SPLITS}
    centre = np.array([LENGTH // 2])
    signals: dict[int, np.ndarray] = {}
    if array:
        held = open_arrays(array)
        channel = lead_index(held["leads"].tolist(), lead, f"ptb-xl: {array.name}")
        signals = {row.ecg_id: held["signals_uV"][k, :, channel] / 1000.0 for k, row in enumerate(rows)}

    def chunks() -> Iterator[tuple[str, np.ndarray]]:
        done, total = 0, sum(map(len, chosen.values()))
        for part in SPLITS:
            for row in chosen[part]:
                signal = signals[row.ecg_id] if array else record_signal(folder, row, lead)
                yield part, cut_windows(signal, centre, LENGTH)
                done += 1
                if progress is not None:
                    progress(done, total, f"record {row.ecg_id}")

    cache.store(entry, (LENGTH, 1), arrays, chunks())
