"""The MFCC front end against librosa, and against a telling of its own that uses only scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhtpw.data.mfcc import Mfcc
from pyhtpw.errors import ConfigError

CLIPS = ["chirp", "noise", "clicks", "quiet", "silence"]


def clip(kind: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    t = np.arange(16000) / 16000
    return {"chirp": 0.7 * np.sin(2 * np.pi * (100 + 3000 * t) * t), "noise": rng.normal(0, 0.1, 16000).clip(-1, 1),
            "clicks": (np.arange(16000) % 1777 == 5).astype(float), "quiet": rng.normal(0, 1e-4, 16000),
            "silence": np.zeros(16000)}[kind].astype(np.float32)


def with_scipy(audio: np.ndarray, front: Mfcc) -> np.ndarray:
    """The definition, one frame and one band at a time."""
    fft = pytest.importorskip("scipy.fft", reason="NOT RUN: the package scipy is not installed")
    signal = pytest.importorskip("scipy.signal")
    hann = np.zeros(front.fft)
    before = (front.fft - front.window) // 2
    hann[before:before + front.window] = signal.get_window("hann", front.window)
    top, bottom = (2595 * np.log10(1 + f / 700) for f in (front.high, front.low))
    corner = [700 * (10 ** ((bottom + (top - bottom) * k / (front.mels + 1)) / 2595) - 1) for k in range(front.mels + 2)]
    out = []
    for frame in range(1 + audio.size // front.hop):
        middle = frame * front.hop
        piece = np.array([audio[k] if 0 <= k < audio.size else 0.0 for k in range(middle - front.fft // 2, middle + front.fft // 2)])
        power = np.abs(fft.fft(piece * hann)[:front.fft // 2 + 1]) ** 2
        hertz = np.arange(power.size) * front.rate / front.fft
        mel = [np.interp(hertz, corner[k:k + 3], [0, 1, 0], left=0, right=0) @ power for k in range(front.mels)]
        out.append(fft.dct(np.log(np.array(mel) + front.floor), type=2, norm="ortho")[:front.coefficients])
    return np.array(out)


@pytest.mark.parametrize("kind", CLIPS)
def test_against_scipy(kind: str) -> None:
    front, audio = Mfcc(), clip(kind)
    got = front(audio[None])
    assert got.shape == (1, 101, 40) and got.dtype == np.float32
    np.testing.assert_allclose(got[0], with_scipy(audio, front), atol=2e-5)


@pytest.mark.parametrize("front", [Mfcc(window=400, coefficients=13), Mfcc(hop=320, fft=1024, mels=32, coefficients=10, low=0, high=7600),
                                   Mfcc(rate=8000, window=200, hop=80, fft=256, mels=20, coefficients=20, high=4000, floor=1e-3)])
def test_other_parameters_against_scipy(front: Mfcc) -> None:
    audio = clip("chirp")[:4001]
    got = front(audio[None])[0]
    assert got.shape == (front.frames(4001), front.coefficients)
    np.testing.assert_allclose(got, with_scipy(audio, front), atol=2e-5)


@pytest.mark.parametrize("kind", CLIPS)
def test_against_librosa(kind: str) -> None:
    librosa = pytest.importorskip("librosa", reason="NOT RUN: the package librosa is not installed (pip install 'pyhtpw[audio-test]')")
    front, audio = Mfcc(), clip(kind).astype(np.float64)
    mel = librosa.feature.melspectrogram(y=audio, sr=16000, n_fft=512, win_length=480, hop_length=160, window="hann", center=True,
                                         pad_mode="constant", power=2.0, n_mels=40, fmin=20, fmax=8000, htk=True, norm=None)
    want = librosa.feature.mfcc(S=np.log(mel + front.floor), n_mfcc=40, dct_type=2, norm="ortho").T
    np.testing.assert_allclose(front(audio[None])[0], want, atol=5e-5)


def test_a_batch_is_its_clips() -> None:
    front = Mfcc()
    clips = np.stack([clip(kind) for kind in CLIPS])
    together = front(clips)
    for k, one in enumerate(clips):
        np.testing.assert_allclose(together[k], front(one[None])[0], atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(1, 3000), gain=st.floats(0.1, 8.0), seed=st.integers(0, 99))
def test_frames_and_gain(samples: int, gain: float, seed: int) -> None:
    """S samples give 1 + S // hop frames; a gain moves only the first coefficient, by sqrt(mels) * 2 ln(gain)."""
    front = Mfcc(floor=1e-30)
    audio = np.random.default_rng(seed).normal(0, 0.3, (1, samples))
    one, other = front(audio).astype(np.float64), front(gain * audio).astype(np.float64)
    assert one.shape == (1, 1 + samples // 160, 40)
    np.testing.assert_allclose((other - one)[0, :, 0], np.sqrt(40) * 2 * np.log(gain), atol=1e-3)
    np.testing.assert_allclose((other - one)[0, :, 1:], 0, atol=1e-3)


@pytest.mark.parametrize("options", [{"window": 600}, {"hop": 0}, {"coefficients": 41}, {"high": 9000}, {"low": 8000}, {"floor": 0},
                                     {"mels": 200, "coefficients": 40}])
def test_sizes_that_make_no_front_end(options: dict) -> None:
    with pytest.raises(ConfigError, match="MFCC"):
        Mfcc(**options)
