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
from .dataset import SPLITS, Dataset, describe
from .windows import cut_windows

FS = 360.0
CLASSES = ("other", "ventricular")

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
    splits = cache.fetch(entry)
    if splits is None:
        _build(entry, folder, plan, window, lead, progress)
        splits = cache.fetch(entry)
        if splits is None:
            raise DataError(f"the cache entry {entry} reads back other than it was written: check the disk, or choose "
                            "another folder with cache_dir or HTPW_CACHE")

    warnings = []
    if aami_strict:
        warnings.append("aami_strict: record 201 (train) and record 202 (test) are of the same person, so train and "
                        "test are disjoint by record but not by person")
    description = describe(CLASSES, splits, protocol=protocol, options=options, source_sha256=source, warnings=warnings,
                           same_person={} if aami_strict else SAME_PERSON)
    return Dataset("mitdb", False, FS, CLASSES, splits["train"], splits["val"], splits["test"], description)


def _folder(given: Path, names: list[str]) -> Path:
    """The folder with the records; every missing file is named at once."""
    if not given.is_dir():
        raise DataError(f"mitdb: there is no folder {given}: pass data_dir (--data-dir) or set HTPW_DATA to the folder "
                        "that holds 100.hea, 100.dat, 100.atr, ...")
    inner = given / "mitdb"
    folder = inner if inner.is_dir() and not (given / f"{names[0]}.hea").exists() else given
    missing = [f"{name}.{ending}" for name in sorted(names) for ending in ("hea", "dat", "atr")
               if not (folder / f"{name}.{ending}").is_file()]
    if missing:
        raise DataError(f"mitdb: {folder} lacks {len(missing)} of {3 * len(names)} files ({' '.join(missing)}): copy "
                        "them there from PhysioNet, mitdb 1.0.0 (wfdb.dl_database('mitdb', folder))")
    return folder


def _hashes(folder: Path, names: list[str], options: dict[str, Any]) -> tuple[str, str]:
    """SHA-256 of the source files, and of them with the options (the cache key)."""
    source = hashlib.sha256()
    for name in names:
        for ending in ("hea", "dat", "atr"):
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
            for name, mark in zip(plan.records[part], marks[part]):
                signal = _signal(folder, name, lead)
                outside = mark.sample[mark.sample >= signal.size]
                if outside.size:
                    raise DataError(f"mitdb record {name}: an annotation at sample {outside[0]} lies beyond the "
                                    f"{signal.size} samples of the signal: .atr and .dat are not of one record, copy "
                                    "both anew")
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


def _wfdb() -> Any:
    try:
        import wfdb
    except ImportError as error:
        raise DataError("mitdb: the package wfdb, which reads the records, is not installed: pip install "
                        "'pyhtpw[data]'") from error
    return wfdb


def _annotations(folder: Path, name: str, beats_only: bool, keep_unscored: bool) -> _Marks:
    """Read ``name.atr``. With `beats_only`, drop what is no beat, and F and Q unless `keep_unscored`."""
    wfdb = _wfdb()
    try:
        annotation = wfdb.rdann(str(folder / name), "atr")
        sample = np.asarray(annotation.sample, np.int64)
        symbol = np.asarray(annotation.symbol, dtype="U1")
    except Exception as error:  # wfdb lets whatever its parser trips over escape
        raise DataError(f"mitdb record {name}: {name}.atr cannot be read ({_one_line(error)}): copy it anew") from error
    if sample.size == 0:
        raise DataError(f"mitdb record {name}: {name}.atr has no annotations: copy it anew")
    if sample.min() < 0:
        raise DataError(f"mitdb record {name}: {name}.atr has an annotation at sample {sample.min()}: copy it anew")
    order = np.argsort(sample, kind="stable")
    sample, symbol = sample[order], symbol[order]
    if not beats_only:
        return _Marks(sample, np.isin(symbol, PAPER_VENTRICULAR).astype(np.int64), np.ones(sample.size, bool))
    aami = np.array([AAMI_CLASS.get(s, "") for s in symbol.tolist()], dtype="U1")
    scored = np.isin(aami, ["N", "S", "V"])
    keep = (aami != "") & (scored | keep_unscored)
    return _Marks(sample[keep], (aami == "V").astype(np.int64)[keep], scored[keep])


def _signal(folder: Path, name: str, lead: int | str) -> np.ndarray:
    """Read one lead of a record: (samples,) float64, in mV."""
    wfdb = _wfdb()
    try:
        header = wfdb.rdheader(str(folder / name))
    except Exception as error:  # as above
        raise DataError(f"mitdb record {name}: {name}.hea cannot be read ({_one_line(error)}): copy it anew") from error
    if not isinstance(header, wfdb.Record):
        raise DataError(f"mitdb record {name}: {name}.hea describes a record of several segments, which the published "
                        "record is not: copy it anew")
    if header.fs != FS:
        raise DataError(f"mitdb record {name}: sampled at {header.fs} Hz, not {FS:.0f}: this is not the published "
                        "record, copy it anew (do not resample)")
    channel = _channel(name, header.sig_name or [], lead)
    _check_length(folder, name, header)
    try:
        record = wfdb.rdrecord(str(folder / name), physical=False, channels=[channel])
        digital = np.asarray(record.d_signal)[:, 0]
        gain, zero, stated, fmt = record.adc_gain[0], record.baseline[0], record.checksum[0], record.fmt[0]
    except Exception as error:  # as above
        raise DataError(f"mitdb record {name}: {name}.dat cannot be read ({_one_line(error)}): copy it anew; FLAC "
                        "(format 516) also needs the package soundfile") from error
    if digital.size != header.sig_len:
        raise _length_error(name, header.sig_len, digital.size)
    if stated is not None and (int(digital.sum()) - stated) % 65536:
        raise DataError(f"mitdb record {name}: signal {channel} of {name}.dat contradicts the checksum in {name}.hea: "
                        "copy both anew")
    # The most negative code of a format means "no sample here".
    gap = np.flatnonzero(digital == (-2048 if fmt == "212" else -32768))
    if gap.size:
        raise DataError(f"mitdb record {name}: signal {channel} has no value at sample {gap[0]}: this is not the "
                        "published record, which has no gaps, copy it anew")
    if not gain:
        raise DataError(f"mitdb record {name}: {name}.hea states a gain of 0 per mV: copy it anew")
    return (digital - zero) / gain


def _channel(name: str, names: list[str], lead: int | str) -> int:
    if isinstance(lead, str) and lead in names:
        return names.index(lead)
    if isinstance(lead, int) and lead < len(names):
        return lead
    raise DataError(f"mitdb record {name}: has no lead {lead!r}, it has {', '.join(names) or 'none'}: choose one of "
                    f"these, or an index below {len(names)}")


def _check_length(folder: Path, name: str, header: Any) -> None:
    """Compare ``name.dat`` with the length its header states, where wfdb would read the part that fits in silence."""
    if header.fmt and set(header.fmt) == {"212"}:
        # Two samples in three bytes, the signals interleaved; an odd one out still takes two bytes.
        samples = header.n_sig * header.sig_len
        size, want = (folder / f"{name}.dat").stat().st_size, samples // 2 * 3 + samples % 2 * 2
        # Some writers pad an odd sample to a full group of three bytes.
        if size not in (want, want + samples % 2):
            raise _length_error(name, header.sig_len, size * 2 // 3 // header.n_sig)
    elif header.fmt and set(header.fmt) == {"516"}:
        try:
            import soundfile
            frames = soundfile.info(str(folder / f"{name}.dat")).frames
        except Exception as error:  # not installed, no sound library, or no FLAC: one remedy each, in one message
            raise DataError(f"mitdb record {name}: {name}.dat cannot be read as FLAC ({_one_line(error)}): install the "
                            "package soundfile, or copy the file anew") from error
        if frames != header.sig_len:
            raise _length_error(name, header.sig_len, frames)


def _length_error(name: str, stated: int, found: int) -> DataError:
    return DataError(f"mitdb record {name}: {name}.hea states {stated} samples per signal, {name}.dat holds {found}: "
                     "copy both anew")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
