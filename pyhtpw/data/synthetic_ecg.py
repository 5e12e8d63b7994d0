"""A synthetic single-lead ECG with ventricular premature beats: the embedded default data set.

It exists so that everything in this package can be run, and tested, on a machine that has no medical data. It is made
at run time from a seed. **No figure measured on it says anything about patients.**

Each "patient" is a record of its own: a heart rhythm, a beat shape, one or two shapes of ventricular premature beat
(PVC), a recorder with its noise. Beats are sums of Gaussian waves, the idea of McSharry, Clifford, Tarassenko, Smith,
"A dynamical model for generating synthetic electrocardiogram signals", IEEE Trans Biomed Eng 50(3):289-294, 2003, here
without its differential equation: every beat is drawn at its own time with its own parameters.

What makes the task more than a threshold:

- PVC shapes are drawn from a population of six, perturbed per patient, so that test patients show shapes that training
  only resembles; one of the six is hardly wider than a normal beat.
- Some PVCs are fusions with the normal beat, some come hardly early, some have no compensatory pause.
- Supraventricular premature beats are early too, but narrow, and one in four of them is conducted aberrantly and is
  wide; they are negative. So are the wide normal beats of patients with bundle-branch block, and the irregular rhythm
  of patients in atrial fibrillation.
- Baseline wander, powerline hum, muscle noise in bursts, amplitude that breathes and drifts, and electrode motion.

As a guide, on the default sizes and four seeds a linear rule on the samples reached a test macro-F1 of 0.81 to 0.90,
and convolutional networks of four layers with 6 or 16 channels 0.93 to 0.98.

The random streams belong to (seed, split, patient): another number of patients leaves the others as they were. The
same seed gives the same bytes with the same versions of numpy on the same type of CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .dataset import SPLITS, Dataset, Split, describe
from .windows import cut_windows

FS = 360.0
CLASSES = ("other", "ventricular")
NORMAL, PVC, SVPB = 0, 1, 2

_BURDEN = 0.11  # share of PVCs among beats, mean over the patients of a split
_STEP_MV = 0.005  # the recorder's resolution
_BEFORE_S, _AFTER_S = 0.35, 0.75  # how far around its R peak a beat is drawn

# Waves of a normal beat, in the columns time (s from the R peak), width (s, standard deviation), amplitude (mV), and
# how much each varies between patients (standard deviations). The rows are P Q R S R' ST T.
_WAVES = np.array([[-0.170, 0.022, 0.12], [-0.028, 0.009, -0.10], [0.0, 0.011, 1.00], [0.028, 0.011, -0.22],
                   [0.055, 0.014, 0.0], [0.110, 0.040, 0.02], [0.270, 0.045, 0.28]])
_SPREAD = np.array([[0.018, 0.004, 0.05], [0.003, 0.002, 0.07], [0.0, 0.002, 0.28], [0.003, 0.002, 0.16],
                    [0.006, 0.002, 0.0], [0.010, 0.006, 0.04], [0.025, 0.008, 0.13]])
_P, _Q, _R, _S, _RPRIME, _ST, _T = range(7)
_QRS = slice(1, 5)

# PVC shapes, in the same columns, amplitudes relative to the patient's R wave; each ends with its T wave, which points
# away from the main deflection.
_PVC_SHAPES = np.array([
    [[0.000, 0.030, 1.40], [0.075, 0.030, -0.35], [0.120, 0.045, -0.10], [0.300, 0.060, -0.50]],  # tall, upright
    [[-0.020, 0.024, 0.25], [0.035, 0.035, -1.40], [0.120, 0.045, 0.10], [0.310, 0.060, 0.50]],  # deep, negative
    [[-0.045, 0.020, -0.50], [0.010, 0.030, 1.20], [0.110, 0.040, -0.05], [0.300, 0.055, -0.40]],  # qR
    [[-0.030, 0.022, 0.90], [0.040, 0.028, -1.10], [0.110, 0.040, 0.05], [0.290, 0.055, 0.35]],  # RS
    [[-0.025, 0.020, 0.80], [0.038, 0.022, 0.85], [0.110, 0.040, -0.05], [0.310, 0.055, -0.45]],  # notched
    [[0.000, 0.016, 1.00], [0.042, 0.019, -0.60], [0.100, 0.035, 0.00], [0.280, 0.050, -0.15]],  # hardly wide
])
_SHAPE_CHANCE = np.array([0.22, 0.20, 0.16, 0.16, 0.14, 0.12])


@dataclass(frozen=True)
class _Patient:
    """What one patient keeps for the whole record."""

    rr: float  # mean interval between beats, s
    respiration: float  # Hz
    sinus_arrhythmia: float  # relative change of the interval with respiration
    irregularity: float  # relative standard deviation of the interval
    fibrillating: bool  # no P waves, irregular intervals
    waves: np.ndarray  # (7, 3), as _WAVES
    pvc: np.ndarray  # (m, 4, 3), as _PVC_SHAPES, in mV
    coupling: float  # PVC interval / rr
    runs: bool  # PVCs may follow each other


def make(*, seed: int = 0, window: int = 720, patients: tuple[int, int, int] = (40, 8, 12),
         beats: tuple[int, int, int] = (150, 188, 167),
         progress: Callable[[int, int, str], None] | None = None) -> Dataset:
    """Make the data set.

    Parameters
    ----------
    seed : int
        0 <= seed < 2**63.
    window : int
        T, 16 <= T <= 3600 samples at 360 Hz, centred on the beat.
    patients : three ints
        Patients in train, validation and test, 1 to 1000 each.
    beats : three ints
        Beats, and so windows, per patient in train, validation and test, 20 to 10000.
    progress : callable, optional
        ``progress(done, total, what)``, called after each patient.

    Returns
    -------
    Dataset
        synthetic, fs 360 Hz, two classes; by default 6000, 1504 and 2004 windows of which about 11 % are PVCs. Groups
        are patients, such as 'test-03'; positions are samples in the patient's record.

    Raises
    ------
    ConfigError
        An option out of range.
    """
    _check(seed, window, patients, beats)
    splits = {}
    done = 0
    for number, part in enumerate(SPLITS):
        burden = _burdens(_stream(seed, number), patients[number])
        pieces = []
        for index in range(patients[number]):
            rng = _stream(seed, number, index)
            signal, position, kind = _record(rng, beats[number], burden[index], window)
            pieces.append((cut_windows(signal, position, window)[:, :, None], (kind == PVC).astype(np.int64), position))
            done += 1
            if progress is not None:
                progress(done, sum(patients), f"patient {part}-{index:02d}")
        x, y, position = (np.concatenate(column) for column in zip(*pieces, strict=True))
        group = np.repeat(np.array([f"{part}-{index:02d}" for index in range(patients[number])]), beats[number])
        splits[part] = Split(x, y, group, position, np.ones(len(y), bool))

    digest = hashlib.sha256()
    for split in splits.values():
        for array in (split.x, split.y, split.position):
            digest.update(memoryview(np.ascontiguousarray(array)).cast("B"))
    description = describe(
        CLASSES, splits, protocol="synthetic", source_sha256=digest.hexdigest(), same_person={},
        options={"seed": seed, "window": window, "patients": list(patients), "beats": list(beats)},
        warnings=["synthetic: made by a program from a seed; no figure on it says anything about patients"])
    return Dataset("synthetic-ecg", True, FS, CLASSES, splits["train"], splits["val"], splits["test"], description)


def _check(seed: int, window: int, patients: tuple[int, int, int], beats: tuple[int, int, int]) -> None:
    def inside(value: object, low: int, high: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    if not inside(seed, 0, 2**63 - 1):
        raise ConfigError(f"synthetic-ecg: seed {seed!r} is out of range: give an integer from 0 to 2**63 - 1")
    if not inside(window, 16, 3600):
        raise ConfigError(f"synthetic-ecg: window {window!r} is out of range: give an integer from 16 to 3600 samples")
    for name, value, low, high in (("patients", patients, 1, 1000), ("beats", beats, 20, 10000)):
        if not isinstance(value, (tuple, list)) or len(value) != 3 or not all(inside(v, low, high) for v in value):
            raise ConfigError(f"synthetic-ecg: {name} {value!r} is out of range: give three integers (train, val, "
                              f"test) from {low} to {high}")


def _stream(seed: int, *key: int) -> np.random.Generator:
    """The random stream of a split or a patient; as a spawn key, because a list of numbers ignores zeros at its end."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _burdens(rng: np.random.Generator, count: int) -> np.ndarray:
    """PVC share of each patient, (count,), mean `_BURDEN`: most have few, some have many.

    Quantiles of an exponential distribution in random order, and not draws from it: a split of eight patients then has
    the same mix as one of forty.
    """
    share = np.minimum(-np.log1p(-(np.arange(count) + 0.5) / count), 3.2)
    return rng.permutation(share * (_BURDEN / share.mean()))


def _draw_patient(rng: np.random.Generator) -> _Patient:
    waves = _WAVES + _SPREAD * rng.normal(size=_WAVES.shape).clip(-2.2, 2.2)
    waves[:, 1] = waves[:, 1].clip(0.006)
    waves[_R, 2] = max(waves[_R, 2], 0.35)
    # Q and S are parts of R's complex and scale with it: what is larger than its R would be another shape altogether.
    waves[[_Q, _S], 2] *= waves[_R, 2]
    waves[_P, 2] = max(waves[_P, 2], 0.02)
    style = rng.random()
    if style < 0.22:
        # Bundle-branch block: every beat wide, with a second R or a notch, T opposed. Wide is then no sign of a PVC.
        waves[_QRS, 0] *= 1.5
        waves[_QRS, 1] *= rng.uniform(1.4, 2.1)
        waves[_RPRIME, 2] = waves[_R, 2] * rng.uniform(0.25, 0.75)
        waves[_T, 2] = -abs(waves[_T, 2])
    elif style < 0.34:
        waves[_T, 2] *= -0.6
    fibrillating = bool(rng.random() < 0.12)
    if fibrillating:
        waves[_P, 2] = 0.0

    kinds = rng.choice(len(_PVC_SHAPES), size=1 + int(rng.random() < 0.35), replace=False, p=_SHAPE_CHANCE)
    pvc = _PVC_SHAPES[kinds].copy()
    pvc[:, :, 0] += rng.normal(0.0, 0.006, pvc.shape[:2])
    pvc[:, :, 1] *= np.exp(rng.normal(-0.12, 0.18, pvc.shape[:2]))
    pvc[:, :, 2] *= np.exp(rng.normal(0.0, 0.25, pvc.shape[:2])) * waves[_R, 2] * rng.uniform(0.6, 1.25)
    return _Patient(
        rr=60.0 / rng.uniform(54.0, 104.0), respiration=rng.uniform(0.15, 0.35),
        sinus_arrhythmia=rng.uniform(0.0, 0.07), irregularity=0.16 if fibrillating else rng.uniform(0.01, 0.05),
        fibrillating=fibrillating, waves=waves, pvc=pvc, coupling=rng.uniform(0.52, 0.84),
        runs=bool(rng.random() < 0.4))


def _kinds(rng: np.random.Generator, patient: _Patient, count: int, burden: float) -> np.ndarray:
    """Kind of each beat, (count,), with the PVC share asked for."""
    kind = np.zeros(count, np.int64)
    many = round(burden * count)
    if patient.runs:
        at = rng.choice(count, size=many, replace=False)
    else:
        # Chosen so that no two are neighbours: draw from the shorter row without gaps, then put the gaps in.
        many = min(many, (count + 1) // 2)
        at = np.sort(rng.choice(count - many + 1, size=many, replace=False)) + np.arange(many)
    kind[at] = PVC
    kind[(kind == NORMAL) & (rng.random(count) < rng.choice([0.02, 0.06, 0.15]))] = SVPB
    return kind


def _intervals(rng: np.random.Generator, patient: _Patient, kind: np.ndarray, late: np.ndarray) -> np.ndarray:
    """Interval before each beat, (B,), s."""
    count = kind.size
    phase = 2 * np.pi * patient.respiration * patient.rr * np.arange(count) + rng.uniform(0, 2 * np.pi)
    drift = 0.06 * np.sin(np.linspace(0.0, rng.uniform(2.0, 9.0), count) + rng.uniform(0, 2 * np.pi))
    relative = 1 + patient.sinus_arrhythmia * np.sin(phase) + drift
    relative += rng.normal(0.0, patient.irregularity, count)

    early = patient.coupling + rng.normal(0.0, 0.03, count)
    early[late] = rng.uniform(0.86, 1.0, np.count_nonzero(late))
    pause = np.where(rng.random(count) < 0.6, 2.0 - early, rng.uniform(0.9, 1.1, count))
    atrial = rng.uniform(0.6, 0.88, count)
    relative = np.where(kind == PVC, early, np.where(kind == SVPB, atrial, relative))
    # The pause belongs to the beat after a PVC, unless that is premature itself.
    after = np.flatnonzero((kind[:-1] == PVC) & (kind[1:] == NORMAL))
    relative[after + 1] = pause[after]
    return patient.rr * relative.clip(0.45, 1.8)


def _beats(rng: np.random.Generator, patient: _Patient, kind: np.ndarray, late: np.ndarray,
           interval: np.ndarray) -> np.ndarray:
    """Parameters of all waves of all beats, (B, 11, 3): seven of the normal beat, four of a PVC, either may be 0 mV."""
    count = kind.size
    own = np.repeat(patient.waves[None], count, axis=0)
    own[:, :, 2] *= 1 + rng.normal(0.0, 0.05, own.shape[:2])
    # Repolarisation shortens with the interval (Bazett).
    own[:, [_ST, _T], 0] *= np.sqrt(interval / 0.85).clip(0.75, 1.2)[:, None]

    atrial = kind == SVPB
    # An ectopic P wave has another shape, or is hidden.
    own[atrial, _P, 2] *= rng.uniform(-1.0, 0.6, np.count_nonzero(atrial))
    aberrant = np.flatnonzero(atrial & (rng.random(count) < 1 / 4))
    own[aberrant, _QRS, 1] *= rng.uniform(1.4, 2.0, (aberrant.size, 1))
    own[aberrant, _RPRIME, 2] += patient.waves[_R, 2] * rng.uniform(0.2, 0.6, aberrant.size)
    own[aberrant, _T, 2] *= rng.uniform(-0.8, 0.4, aberrant.size)

    shape = rng.integers(len(patient.pvc), size=count)
    ectopic = patient.pvc[shape].copy()
    ectopic[:, :, 1] *= 1 + rng.normal(0.0, 0.04, ectopic.shape[:2])
    ectopic[:, :, 2] *= 1 + rng.normal(0.0, 0.08, ectopic.shape[:2])
    # A late PVC meets the normal beat on its way: a fusion of both, P wave included.
    part = np.where(kind == PVC, np.where(late & (rng.random(count) < 0.7), rng.uniform(0.35, 0.8, count), 1.0), 0.0)
    own[:, :, 2] *= (1 - part)[:, None]
    ectopic[:, :, 2] *= part[:, None]
    return np.concatenate([own, ectopic], axis=1)


def _draw(length: int, time: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """Sum of all waves, (length,) mV, of beats at `time` (B,) s with parameters `waves` (B, W, 3)."""
    first = np.floor((time - _BEFORE_S) * FS).astype(np.int64)
    index = first[:, None] + np.arange(int((_BEFORE_S + _AFTER_S) * FS))
    local = index / FS - time[:, None]
    beat = np.zeros(index.shape)
    for wave in range(waves.shape[1]):
        centre, width, height = (waves[:, wave, column, None] for column in range(3))
        beat += height * np.exp(-0.5 * ((local - centre) / width) ** 2)
    return np.bincount(index.ravel(), beat.ravel(), minlength=length)[:length]


def _nuisance(rng: np.random.Generator, ecg: np.ndarray, respiration: float) -> np.ndarray:
    """The same lead as a recorder sees it, (S,) mV: gain that moves, wander, hum, muscle, electrode motion."""
    size = ecg.size
    t = np.arange(size) / FS
    minutes = t[-1] / 60
    breath = np.sin(2 * np.pi * respiration * t + rng.uniform(0, 2 * np.pi))
    gain = (1 + rng.uniform(0.0, 0.10) * breath) * (1 + rng.uniform(-0.2, 0.2) * np.linspace(-1, 1, size))
    out = ecg * gain + rng.uniform(0.0, 0.10) * breath

    for frequency in rng.uniform(0.05, 0.6, 4):
        out += 0.10 * rng.lognormal(0.0, 0.7) * np.sin(2 * np.pi * frequency * t + rng.uniform(0, 2 * np.pi))

    hum = np.sin(2 * np.pi * rng.choice([50.0, 60.0]) * t + rng.uniform(0, 2 * np.pi))
    out += rng.exponential(0.015) * hum * (1 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.02, 0.1) * t))

    level = np.full(size, 0.012 * rng.lognormal(0.0, 0.5))
    for _ in range(rng.poisson(3.0 * minutes)):
        start, length = rng.uniform(0, size), rng.uniform(1.0, 6.0) * FS
        level[int(start):int(start + length)] += rng.uniform(0.03, 0.30)
    # Muscle noise is broad, but electrodes and amplifier take its highest frequencies.
    out += level * np.convolve(rng.normal(size=size), [0.35, 0.75, 0.35], mode="same")

    for _ in range(rng.poisson(rng.choice([0.3, 1.0, 3.0]) * minutes)):
        start, height = int(rng.uniform(0, size)), rng.uniform(0.3, 1.4) * rng.choice([-1, 1])
        after = t[:size - start]
        if rng.random() < 0.5:
            # The electrode slips: a jump that the amplifier lets fade.
            out[start:] += height * np.exp(-after / rng.uniform(0.05, 0.6))
        else:
            # It is tapped: a bump about as wide as a PVC.
            out += height * np.exp(-0.5 * ((t - t[start]) / rng.uniform(0.02, 0.09)) ** 2)
    return np.round(out / _STEP_MV) * _STEP_MV


def _record(rng: np.random.Generator, count: int, burden: float, window: int) -> tuple[np.ndarray, np.ndarray,
                                                                                     np.ndarray]:
    """One patient's record.

    Returns
    -------
    signal : (S,) float64
        mV.
    position : (count,) int64
        The annotated beats, a few samples from the R peak, as annotations are.
    kind : (count,) int64
    """
    patient = _draw_patient(rng)
    # Beats before and after those annotated, so that every window is full of signal.
    extra = int(np.ceil((window / 2 / FS + _AFTER_S) / (0.45 * patient.rr))) + 1
    kind = np.concatenate([np.zeros(extra, np.int64), _kinds(rng, patient, count, burden), np.zeros(extra, np.int64)])
    late = rng.random(kind.size) < 0.25
    interval = _intervals(rng, patient, kind, late)
    time = 0.5 + np.cumsum(interval)
    length = int((time[-1] + 1.0) * FS)
    ecg = _draw(length, time, _beats(rng, patient, kind, late, interval))
    signal = _nuisance(rng, ecg, patient.respiration)
    mark = np.rint(time * FS + rng.normal(0.0, 3.0, time.size)).astype(np.int64)
    return signal, mark[extra:-extra], kind[extra:-extra]
