"""Clips of audio: reading them, cutting silence from recordings of noise, and changing copies for training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError

RATE = 16000
CLIP = 16000  # samples of a clip, one second


def soundfile() -> Any:
    """The package; DataError if it is not installed."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package without its C library
        raise DataError(f"the package soundfile, which reads audio, cannot be used ({' '.join(str(error).split())}): "
                        "pip install 'pyhtpw[data]'") from error
    return soundfile


def read_audio(path: Path, name: str, *, pcm: str | None = None) -> np.ndarray:
    """Read a mono recording at 16 kHz: wav, FLAC or Ogg/Opus.

    Parameters
    ----------
    path : Path
    name : str
        What errors call it.
    pcm : str, optional
        First hexadecimal digits of the SHA-256 of its samples as little-endian int16, which are then compared.

    Returns
    -------
    (samples,) float32
        Full scale 1. An int16 sample v is v / 32768 exactly.

    Raises
    ------
    DataError
        Not there, unreadable, another rate, more than one channel, empty, or not the samples of `pcm`.
    """
    library = soundfile()
    try:
        audio, rate = library.read(str(path), dtype="float32", always_2d=True)
    except Exception as error:  # soundfile's own, and what its library lets through
        if not path.is_file():
            raise DataError(f"{name} is missing: copy it there anew") from error
        raise DataError(f"{name} cannot be read as audio ({' '.join(str(error).split())}): copy it anew") from error
    if rate != RATE:
        raise DataError(f"{name} is sampled at {rate} Hz, not {RATE}: this is not the published clip, copy it anew (do "
                        "not resample)")
    if audio.shape[1] != 1:
        raise DataError(f"{name} has {audio.shape[1]} channels, not one: this is not the published clip, copy it anew")
    if not len(audio):
        raise DataError(f"{name} holds no samples: copy it anew")
    audio = audio[:, 0]
    if pcm is not None:
        found = hashlib.sha256(np.rint(audio * 32768).astype("<i2").tobytes()).hexdigest()[:len(pcm)]
        if found != pcm:
            raise DataError(f"{name} holds other samples than the index states (SHA-256 {found}, not {pcm}): copy it "
                            "anew")
    return audio


def fit(audio: np.ndarray, name: str) -> np.ndarray:
    """Zeros behind a short clip, as in the official test set: (CLIP,) float32; DataError for a longer one."""
    if audio.size > CLIP:
        raise DataError(f"{name} has {audio.size} samples, more than the {CLIP} of one second: this is not a published "
                        "clip, copy it anew")
    return np.pad(audio, (0, CLIP - audio.size))


@dataclass(frozen=True)
class Cut:
    """One second of a noise recording: its number, first sample, and the factor it is multiplied with."""

    recording: int
    start: int
    volume: float


class Noise:
    """Recordings of background noise, a stretch of each.

    Parameters
    ----------
    recordings : sequence of (samples,) float32
    names : sequence of str
    span : (float, float)
        Which part of every recording belongs here, as fractions of its length; so that training and validation
        do not cut the same samples.

    Raises
    ------
    DataError
        There is no recording, or a stretch is shorter than a clip.
    """

    def __init__(self, recordings: Sequence[np.ndarray], names: Sequence[str], span: tuple[float, float]) -> None:
        if not recordings:
            raise DataError("speech-commands: there are no recordings of background noise, from which silence is cut: "
                            "copy the folder of the six recordings")
        self.names = list(names)
        self._recordings = list(recordings)
        self._limits = [(int(len(r) * span[0]), int(len(r) * span[1]) - CLIP) for r in recordings]
        for name, (low, high) in zip(names, self._limits, strict=True):
            if high < low:
                raise DataError(f"{name} is too short to cut a second from the part {span[0]:.0%} to {span[1]:.0%} of "
                                "it: this is not the published recording, copy it anew")

    def draw(self, rng: np.random.Generator, volume: float) -> Cut:
        """A cut at a random place, its volume uniform from 0 to `volume`."""
        recording = int(rng.integers(len(self._recordings)))
        low, high = self._limits[recording]
        return Cut(recording, int(rng.integers(low, high + 1)), float(rng.uniform(0, volume)))

    def cut(self, cut: Cut) -> np.ndarray:
        """Its samples, (CLIP,) float32."""
        return self._recordings[cut.recording][cut.start:cut.start + CLIP] * np.float32(cut.volume)


def changed(audio: np.ndarray, noise: Noise, rng: np.random.Generator) -> np.ndarray:
    """A copy for training: shifted by up to 100 ms either way, and four times out of five with noise in the background.

    Parameters
    ----------
    audio : (CLIP,) float32
    noise : Noise
        Of the training part.
    rng : Generator

    Returns
    -------
    (CLIP,) float32
        Zeros where the clip moved away; the noise at a factor of up to 0.1; limited to full scale.

    Notes
    -----
    The figures are the defaults of the training script published with this data set.
    """
    move = int(rng.integers(-RATE // 10, RATE // 10 + 1))
    out = np.zeros_like(audio)
    out[max(move, 0):CLIP + min(move, 0)] = audio[max(-move, 0):CLIP - max(move, 0)]
    if rng.random() < 0.8:
        out = out + noise.cut(noise.draw(rng, 0.1))
    return np.clip(out, -1, 1).astype(np.float32)
