"""Sixteen features of an ECG window: heart-rate variability from its beats, amplitude and spectrum from its samples.

`featured` makes them of every window of a data set; the network that reads them is ``hrv_featnet``, a linear layer.  Where only
beat times are known, `beat_features` are the first eight, for ``hrv_beats``.  This is float arithmetic on the host: nothing of
it goes into an image, which begins at the standardised features.

Beats are found by XQRS of the `wfdb` package.  Definitions of variability follow the Task Force of the ESC and NASPE, "Heart rate
variability", Circulation 93:1043-1065, 1996, who ask for five minutes; a window of some seconds holds few intervals and no period
of the low band, whose power is then 0.  The network is that of the public code of arXiv:2603.24916.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from zipfile import BadZipFile

import numpy as np

from ..errors import DataError
from ..image.writer import save
from . import cache
from .dataset import SPLITS, Dataset, Split

BEAT_FEATURES = ("mean RR (ms)", "SDNN (ms)", "RMSSD (ms)", "pNN50", "mean rate (1/min)", "SD of rate (1/min)",
                 "log LF power (ms^2)", "log HF power (ms^2)")
SIGNAL_FEATURES = ("mean", "SD", "skew", "excess kurtosis", "peak to peak", "zero crossings", "log 0.5-5 Hz power",
                   "spectral centroid (Hz)")
FEATURES = BEAT_FEATURES + SIGNAL_FEATURES
NETWORKS = ("hrv_featnet", "hrv_beats")
"""Networks that read features, by name (`pyhtpw.nets`)."""
LEAST_INTERVALS = 2
"""Intervals below which a window has no variability."""

VERSION = 1
"""Counts up when a feature changes, so that none is taken from a cache of before."""

Progress = Callable[[int, int, str], None]
"""Told how many windows of how many are done, and what is done with them."""

_HASHED, _CHUNK = 4096, 256  # windows at a time
_INTERVALS_S = (0.3, 2.0)  # outside: missed and doubled beats
_BANDS_HZ = ((0.04, 0.15), (0.15, 0.4))
_SIGNAL_BAND_HZ = (0.5, 5.0)
_RATE_HZ = 4.0  # of the interpolated intervals


def beat_features(beats_s: np.ndarray, least: int = LEAST_INTERVALS) -> np.ndarray:
    """The `BEAT_FEATURES` of a stretch of beats.

    Parameters
    ----------
    beats_s : (B,) float
        Times of the beats in seconds, rising.
    least : int
        Intervals (of 0.3 to 2 s; others are left out as missed or doubled beats) that must be there.

    Returns
    -------
    (8,) float64
        NaN throughout where fewer intervals are there, or no two of them follow each other. Powers are ln(1 + ms^2) of the
        periodogram (Hann) of intervals interpolated at 4 Hz, summed over 0.04 to 0.15 and 0.15 to 0.4 Hz.
    """
    beats_s = np.asarray(beats_s, np.float64)
    rr = np.diff(beats_s)
    if (rr < 0).any():
        raise DataError("beat times do not rise: sort them")
    good = (rr >= _INTERVALS_S[0]) & (rr <= _INTERVALS_S[1])
    steps = np.diff(rr)[good[1:] & good[:-1]] * 1000
    if good.sum() < max(least, 1) or steps.size == 0:
        return np.full(len(BEAT_FEATURES), np.nan)
    kept, time, rate = rr[good] * 1000, beats_s[1:][good], 60 / rr[good]
    wave = np.interp(np.arange(time[0], time[-1], 1 / _RATE_HZ), time, kept)
    powers = _band_powers(wave, _RATE_HZ, _BANDS_HZ)
    return np.array([kept.mean(), kept.std(), np.sqrt(np.mean(steps**2)), np.mean(np.abs(steps) > 50),
                     rate.mean(), rate.std(), *np.log1p(powers)])


def signal_features(x: np.ndarray, fs: float) -> np.ndarray:
    """The `SIGNAL_FEATURES` (8,) of one window x (T,) at fs Hz.

    Zero crossings are changes of sign of the window about its mean; a constant window has skew, kurtosis, crossings and
    centroid 0. Power is ln(1 + power) in the square of the samples' unit.
    """
    from scipy.stats import kurtosis, skew

    x = np.asarray(x, np.float64)
    around = x - x.mean()
    flat = around.std() < 1e-9
    signs = np.sign(around[around != 0])
    crossings = 0 if flat else np.count_nonzero(signs[1:] != signs[:-1])
    spectrum = np.abs(np.fft.rfft(around)) ** 2
    frequency = np.fft.rfftfreq(x.size, 1 / fs)
    centroid = 0.0 if flat else (frequency * spectrum).sum() / spectrum.sum()
    return np.array([x.mean(), x.std(), 0.0 if flat else skew(x), 0.0 if flat else kurtosis(x), np.ptp(x), crossings,
                     np.log1p(_band_powers(x, fs, (_SIGNAL_BAND_HZ,))[0]), centroid])


def _band_powers(x: np.ndarray, fs: float, bands: tuple[tuple[float, float], ...]) -> list[float]:
    """Power of x about its mean in each band (low <= f < high), by the periodogram with a Hann taper."""
    taper = np.hanning(x.size)
    scale = fs * (taper**2).sum()
    if x.size < 3 or scale <= 0:
        return [0.0] * len(bands)
    density = 2 * np.abs(np.fft.rfft((x - x.mean()) * taper)) ** 2 / scale
    frequency = np.fft.rfftfreq(x.size, 1 / fs)
    return [float(density[(frequency >= low) & (frequency < high)].sum() * fs / x.size) for low, high in bands]


def detect_beats(x: np.ndarray, fs: float) -> np.ndarray:
    """Times (B,) in seconds of the beats that XQRS of the `wfdb` package finds in x (T,) at fs Hz; none in a flat signal.

    Raises DataError if the package is missing.
    """
    try:
        from wfdb.processing import XQRS
    except ImportError as error:
        raise DataError("finding beats takes the package wfdb: pip install 'pyhtpw[data]'") from error
    x = np.asarray(x, np.float64)
    if x.std() < 1e-9 or x.size < 2 * fs:  # it filters and learns on more than a second
        return np.empty(0)
    finder = XQRS(x, fs)
    finder.detect(verbose=False)
    return np.asarray(finder.qrs_inds, np.float64) / fs


def _detector() -> str:
    try:
        return installed("wfdb")
    except PackageNotFoundError:
        return ""


def window_features(x: np.ndarray, fs: float) -> np.ndarray:
    """`FEATURES` (N, 16) float64 of windows x (N, T, 1) at fs Hz; the first eight are NaN where beats are too few."""
    if x.ndim != 3 or x.shape[2] != 1:
        raise DataError(f"windows have shape {x.shape}: features are those of one signal, (N, T, 1)")
    found = np.empty((len(x), len(FEATURES)))
    for row, window in zip(found, x[:, :, 0], strict=True):
        row[:8], row[8:] = beat_features(detect_beats(window, fs)), signal_features(window, fs)
    return found


def _all_features(data: Dataset, jobs: int, progress: Progress) -> dict[str, np.ndarray]:
    """`window_features` of every split, a chunk at a time, in `jobs` processes if that is more than one."""
    chunks = [(part, getattr(data, part).x[start : start + _CHUNK]) for part in SPLITS
              for start in range(0, len(getattr(data, part).x), _CHUNK)]
    total, rows = sum(len(x) for _, x in chunks), []
    jobs = min(jobs, len(chunks) // 4)  # to start a process takes as long as some hundred windows
    with ExitStack() as stack:
        if jobs > 1:  # spawned: threads of the trainer do not survive a fork
            pool = stack.enter_context(ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")))
            made = pool.map(window_features, [x for _, x in chunks], [data.fs] * len(chunks))
        else:
            made = map(window_features, [x for _, x in chunks], [data.fs] * len(chunks))
        for found in made:
            rows.append(found)
            progress(sum(map(len, rows)), total, "features of windows")
    return {part: np.concatenate([found for (owner, _), found in zip(chunks, rows, strict=True) if owner == part]) for part in SPLITS}


def _rows(data: Dataset, cache_dir: str | os.PathLike[str] | None, jobs: int, progress: Progress) -> dict[str, np.ndarray]:
    """`window_features` of every split, kept in the cache of the data sets: finding beats takes 5 to 20 ms a window.

    The file is named after all that decides its content: the windows, their rate, the detector's version and this module's.
    """
    digest = hashlib.sha256(repr((VERSION, data.fs, _detector(), *(getattr(data, part).x.shape for part in SPLITS))).encode())
    for part in SPLITS:
        x = getattr(data, part).x
        for start in range(0, len(x), _HASHED):
            digest.update(np.ascontiguousarray(x[start : start + _HASHED]).tobytes())
    path = cache.cache_root(cache_dir) / f"features-{digest.hexdigest()[:24]}.npz"
    try:
        with np.load(path) as found:
            return {part: found[part] for part in SPLITS}
    except (OSError, ValueError, KeyError, BadZipFile):  # not there, or damaged: the archive has checksums
        pass
    rows = _all_features(data, jobs, progress)
    archive = io.BytesIO()
    np.savez_compressed(archive, **rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(archive.getvalue(), path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}): name another folder with --cache-dir") from error
    return rows


def featured(data: Dataset, cache_dir: str | os.PathLike[str] | None = None, *, jobs: int = 1,
             progress: Progress = lambda done, total, what: None) -> Dataset:
    """The same windows as 16 features each: x (N, 1, 16) with mean 0 and standard deviation 1 over the training windows.

    A feature that a window does not have (too few beats) is 0, the mean. ``description["features"]`` holds names, means and
    deviations, which a host needs to feed the network, and how many windows of each split had too few beats. Raises DataError
    if no training window has any. What is found is kept in ``cache_dir`` (`pyhtpw.data.cache`). ``jobs`` processes share the
    windows; a script that asks for more than one guards its main module, as `multiprocessing` wants it.
    """
    rows = _rows(data, cache_dir, jobs, progress)
    known = np.isfinite(rows["train"])
    if not known.all(axis=1).any():
        raise DataError(f"data set {data.name}: no training window has beats enough for its features: take longer windows")
    mean, deviation = np.nanmean(rows["train"], axis=0), np.nanstd(rows["train"], axis=0)
    deviation = np.where(deviation > 1e-9, deviation, 1.0)
    splits: dict[str, Split] = {}
    for part in SPLITS:
        scaled = np.nan_to_num((rows[part] - mean) / deviation, nan=0.0)
        splits[part] = replace(getattr(data, part), x=np.ascontiguousarray(scaled[:, None], np.float32))
    note = {
        "names": list(FEATURES), "mean": mean.tolist(), "deviation": deviation.tolist(),
        "without_beats": {part: int(np.isnan(rows[part][:, 0]).sum()) for part in SPLITS},
    }  # fmt: skip
    return replace(data, **splits, description={**data.description, "features": note})


def for_network(name: str, data: Dataset, cache_dir: str | os.PathLike[str] | None = None, *, jobs: int = 1,
                progress: Progress = lambda done, total, what: None) -> Dataset:
    """What the network called ``name`` reads: `featured` windows for ``hrv_featnet`` where ``data`` still has signals, else
    ``data``."""
    if name != "hrv_featnet" or data.train.x.shape[1:] == (1, len(FEATURES)):
        return data
    return featured(data, cache_dir, jobs=jobs, progress=progress)


def sample(data: Dataset, windows: int) -> Dataset:
    """Every so many-th window of each split, at most `windows` of each: enough to tell how long something takes."""
    parts = {}
    for part in SPLITS:
        split = getattr(data, part)
        parts[part] = split.taken(np.unique(np.linspace(0, len(split.x) - 1, windows).astype(np.int64)))
    return replace(data, **parts)
