"""Mel-frequency cepstral coefficients (MFCC): the front end of keyword spotting, in plain numpy.

The chain is the usual one (Davis SB, Mermelstein P, "Comparison of parametric representations for monosyllabic word
recognition in continuously spoken sentences", IEEE Trans Acoust Speech Signal Process 28(4):357-366, 1980): frames of
30 ms every 10 ms, Hann window, power spectrum, triangular mel bands, logarithm, cosine transform. Every parameter is a
field of `Mfcc` and nothing is implied:

==================  ====================================================================================================
frames              centred: frame k is around sample k * hop, with zeros before and after the clip, so that S samples
                    give 1 + S // hop frames: 101 from one second at 16 kHz
window              periodic Hann of ``window`` samples, in the middle of ``fft`` samples
spectrum            |FFT|^2, bins 0 to fft/2
mel scale           2595 log10(1 + f / 700) (the HTK formula); ``mels`` triangles of height 1, not normalised by area,
                    corners equally spaced on that scale from ``low`` to ``high`` Hz
logarithm           natural, of power + ``floor``
transform           DCT-II, orthonormal; the first ``coefficients``
==================  ====================================================================================================

It is computed in double precision and returned in single. It runs on the host: there is no fixed-point version for the
device, and figures of keyword networks say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import ConfigError


@dataclass(frozen=True)
class Mfcc:
    """An MFCC front end.

    Attributes
    ----------
    rate : int
        Sampling rate, Hz.
    window, hop, fft : int
        Samples; window <= fft.
    mels, coefficients : int
        coefficients <= mels.
    low, high : float
        Edges of the mel bands, Hz, 0 <= low < high <= rate / 2.
    floor : float
        Added to the power of a band before the logarithm; samples are in [-1, 1].

    Raises
    ------
    ConfigError
        Sizes that make no front end.
    """

    rate: int = 16000
    window: int = 480
    hop: int = 160
    fft: int = 512
    mels: int = 40
    coefficients: int = 40
    low: float = 20.0
    high: float = 8000.0
    floor: float = 1e-6

    def __post_init__(self) -> None:
        if not (0 < self.window <= self.fft and self.hop > 0 and 0 < self.coefficients <= self.mels
                and 0 <= self.low < self.high <= self.rate / 2 and self.floor > 0):
            raise ConfigError(f"MFCC {self} makes no sense: give 0 < window <= fft, 0 < hop, 0 < coefficients <= mels, "
                              "0 <= low < high <= rate / 2 and a floor above 0")
        if not self.bands.any(axis=1).all():
            raise ConfigError(f"MFCC with {self.mels} mel bands on {self.fft} FFT points: a band falls between two "
                              "bins and is always empty; give fewer bands or more points")

    def frames(self, samples: int) -> int:
        """Frames of a clip of so many samples."""
        return 1 + samples // self.hop

    @cached_property
    def bands(self) -> np.ndarray:
        """(mels, fft // 2 + 1) weights of the triangles."""
        def mel(f: float) -> float:
            return 2595 * np.log10(1 + f / 700)

        corners = 700 * (10 ** (np.linspace(mel(self.low), mel(self.high), self.mels + 2) / 2595) - 1)
        bins = np.arange(self.fft // 2 + 1) * (self.rate / self.fft)
        left, middle, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
        return np.maximum(0, np.minimum((bins - left) / (middle - left), (right - bins) / (right - middle)))

    @cached_property
    def cosines(self) -> np.ndarray:
        """(coefficients, mels) orthonormal DCT-II."""
        k, n = np.arange(self.coefficients)[:, None], np.arange(self.mels)
        matrix = np.cos(np.pi * k * (2 * n + 1) / (2 * self.mels)) * np.sqrt(2 / self.mels)
        matrix[0] /= np.sqrt(2)
        return matrix

    @cached_property
    def taper(self) -> np.ndarray:
        """(fft,) Hann window with zeros around it."""
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        before = (self.fft - self.window) // 2
        return np.pad(hann, (before, self.fft - self.window - before))

    def log_mel(self, audio: np.ndarray) -> np.ndarray:
        """Logarithm of the power in each mel band.

        Parameters
        ----------
        audio : (n, S) float
            Clips, full scale 1.

        Returns
        -------
        (n, frames(S), mels) float64
        """
        padded = np.pad(np.asarray(audio, np.float64), ((0, 0), (self.fft // 2, self.fft // 2)))
        pieces = np.lib.stride_tricks.sliding_window_view(padded, self.fft, axis=1)[:, ::self.hop]
        spectrum = np.fft.rfft(pieces * self.taper)
        power = spectrum.real ** 2 + spectrum.imag ** 2
        # As one matrix: a product of a stack of matrices takes ten times as long.
        bands = power.reshape(-1, power.shape[-1]) @ np.ascontiguousarray(self.bands.T)
        return np.log(bands + self.floor).reshape(*power.shape[:-1], self.mels)

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Coefficients of clips.

        Parameters
        ----------
        audio : (n, S) float
            Clips, full scale 1.

        Returns
        -------
        (n, frames(S), coefficients) float32
        """
        return (self.log_mel(audio) @ self.cosines.T).astype(np.float32)
