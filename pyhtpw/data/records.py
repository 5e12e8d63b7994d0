"""WFDB records (PhysioNet): one signal, or the annotations, with every contradiction named.

The package `wfdb` reads the formats; what it would let pass in silence (a file shorter than its header states, gaps, a
checksum that does not agree) is an error here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError


def wfdb(title: str) -> Any:
    """The package; DataError if it is not installed."""
    try:
        import wfdb
    except ImportError as error:
        raise DataError(f"{title}: the package wfdb, which reads the records, is not installed: pip install "
                        "'pyhtpw[data]'") from error
    return wfdb


def lacking(folder: Path, names: Iterable[str], endings: Sequence[str]) -> list[str]:
    """The files NAME.ENDING that are not there."""
    return [f"{name}.{ending}" for name in names for ending in endings if not (folder / f"{name}.{ending}").is_file()]


def read_annotations(folder: Path, name: str, ending: str, title: str) -> tuple[np.ndarray, np.ndarray]:
    """Read an annotation file.

    Parameters
    ----------
    folder : Path
    name, ending : str
        The file is ``name.ending``.
    title : str
        The data set, for errors.

    Returns
    -------
    (n,) int64, (n,) str
        Samples in rising order, all >= 0, and the symbol of each; n >= 1.

    Raises
    ------
    DataError
        The file is unreadable, empty, or has a negative sample.
    """
    library = wfdb(title)
    try:
        annotation = library.rdann(str(folder / name), ending)
        sample = np.asarray(annotation.sample, np.int64)
        symbol = np.asarray(annotation.symbol, dtype="U1")
    except Exception as error:  # wfdb lets whatever its parser trips over escape
        raise DataError(f"{title} record {name}: {name}.{ending} cannot be read ({one_line(error)}): copy it anew") from error
    if sample.size == 0:
        raise DataError(f"{title} record {name}: {name}.{ending} has no annotations: copy it anew")
    if sample.min() < 0:
        raise DataError(f"{title} record {name}: {name}.{ending} has an annotation at sample {sample.min()}: copy it anew")
    order = np.argsort(sample, kind="stable")
    return sample[order], symbol[order]


def read_header(folder: Path, name: str, fs: float, title: str) -> Any:
    """Read ``name.hea`` and compare the sampling rate.

    Returns
    -------
    wfdb.Record
        Without signals.

    Raises
    ------
    DataError
        Unreadable, of several segments, or of another rate than `fs`.
    """
    library = wfdb(title)
    try:
        header = library.rdheader(str(folder / name))
    except Exception as error:  # as above
        raise DataError(f"{title} record {name}: {name}.hea cannot be read ({one_line(error)}): copy it anew") from error
    if not isinstance(header, library.Record):
        raise DataError(f"{title} record {name}: {name}.hea describes a record of several segments, which the published "
                        "record is not: copy it anew")
    if header.fs != fs:
        raise DataError(f"{title} record {name}: sampled at {header.fs} Hz, not {fs:.0f}: this is not the published "
                        "record, copy it anew (do not resample)")
    return header


def read_signal(folder: Path, name: str, lead: int | str, fs: float, title: str) -> np.ndarray:
    """Read one signal of a record.

    Parameters
    ----------
    folder : Path
    name : str
        Record; its header is ``name.hea``.
    lead : int or str
        Signal index, or signal name as in the header.
    fs : float
        The sampling rate it must have, Hz.
    title : str
        The data set, for errors.

    Returns
    -------
    (samples,) float64
        In the unit of the header, mV.

    Raises
    ------
    DataError
        Unreadable, another rate, no such signal, another length than stated, a checksum that does not agree, or gaps.
    """
    library = wfdb(title)
    header = read_header(folder, name, fs, title)
    channel = _channel(name, header.sig_name or [], lead, title)
    _check_length(folder, name, header, title)
    try:
        record = library.rdrecord(str(folder / name), physical=False, channels=[channel])
        digital = np.asarray(record.d_signal)[:, 0]
        gain, zero, stated, fmt = record.adc_gain[0], record.baseline[0], record.checksum[0], record.fmt[0]
    except Exception as error:  # as above
        raise DataError(f"{title} record {name}: {name}.dat cannot be read ({one_line(error)}): copy it anew; FLAC "
                        "(format 516) also needs the package soundfile") from error
    if digital.size != header.sig_len:
        raise _length_error(name, header.sig_len, digital.size, title)
    if stated is not None and (int(digital.sum()) - stated) % 65536:
        raise DataError(f"{title} record {name}: signal {channel} of {name}.dat contradicts the checksum in {name}.hea: "
                        "copy both anew")
    # The most negative code of a format means "no sample here".
    gap = np.flatnonzero(digital == (-2048 if fmt == "212" else -32768))
    if gap.size:
        raise DataError(f"{title} record {name}: signal {channel} has no value at sample {gap[0]}: this is not the "
                        "published record, which has no gaps, copy it anew")
    if not gain:
        raise DataError(f"{title} record {name}: {name}.hea states a gain of 0 per mV: copy it anew")
    return (digital - zero) / gain


def _channel(name: str, names: list[str], lead: int | str, title: str) -> int:
    if isinstance(lead, str) and lead in names:
        return names.index(lead)
    if isinstance(lead, int) and lead < len(names):
        return lead
    raise DataError(f"{title} record {name}: has no lead {lead!r}, it has {', '.join(names) or 'none'}: choose one of "
                    f"these, or an index below {len(names)}")


def _check_length(folder: Path, name: str, header: Any, title: str) -> None:
    """Compare ``name.dat`` with the length its header states, where wfdb would read the part that fits in silence."""
    formats = set(header.fmt or ())
    samples = header.n_sig * header.sig_len
    path = folder / f"{name}.dat"
    if not path.is_file():
        raise DataError(f"{title} record {name}: {name}.dat, the signal, is missing: copy it there")
    if formats == {"212"}:
        # Two samples in three bytes, the signals interleaved; an odd one out still takes two bytes.
        size, want = path.stat().st_size, samples // 2 * 3 + samples % 2 * 2
        # Some writers pad an odd sample to a full group of three bytes.
        if size not in (want, want + samples % 2):
            raise _length_error(name, header.sig_len, size * 2 // 3 // header.n_sig, title)
    elif formats == {"16"}:
        if path.stat().st_size != 2 * samples:
            raise _length_error(name, header.sig_len, path.stat().st_size // 2 // header.n_sig, title)
    elif formats == {"516"}:
        try:
            import soundfile
            frames = soundfile.info(str(path)).frames
        except Exception as error:  # not installed, no sound library, or no FLAC: one remedy each, in one message
            raise DataError(f"{title} record {name}: {name}.dat cannot be read as FLAC ({one_line(error)}): install the "
                            "package soundfile, or copy the file anew") from error
        if frames != header.sig_len:
            raise _length_error(name, header.sig_len, frames, title)


def _length_error(name: str, stated: int, found: int, title: str) -> DataError:
    return DataError(f"{title} record {name}: {name}.hea states {stated} samples per signal, {name}.dat holds {found}: "
                     "copy both anew")


def one_line(error: Exception) -> str:
    """An error of another package, for a message of one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
