"""The ECG monitor: numpy, C here and the emulated Cortex-M4 see the same windows and flags, and decide alike."""

import ctypes
import shutil
import subprocess

import hypothesis.strategies as st
import numpy as np
import pytest
import strategies  # noqa: F401 - registers the Hypothesis profiles
from hypothesis import given

from pyhtpw.errors import ConfigError, DataError
from pyhtpw.evaluate import probabilities
from pyhtpw.image import write
from pyhtpw.model import Image
from pyhtpw.target import boards, firmware, monitor
from pyhtpw.target.firmware import Settings
from reference import ecg

FOLDER = firmware.FOLDER / "ecg_monitor"
GCC = Settings(compiler="gcc")
RATE = 40  # of the host's tests, so that seconds are short


class Front(ctypes.Structure):
    """struct ecg_front."""

    _fields_ = [
        ("ring", ctypes.POINTER(ctypes.c_int16)), ("window", ctypes.c_uint32), ("rate", ctypes.c_uint32), ("at", ctypes.c_uint32),
        ("samples", ctypes.c_uint32), ("baseline", ctypes.c_int32), ("sum", ctypes.c_int32), ("squares", ctypes.c_uint64),
        ("quality", ctypes.c_uint32), ("low", ctypes.c_int32), ("high", ctypes.c_int32), ("last", ctypes.c_int32),
        ("rails", ctypes.c_uint32), ("travel", ctypes.c_uint32)]


class Scale(ctypes.Structure):
    """struct ecg_scale."""

    _fields_ = [("gain", ctypes.c_uint32), ("zero_point", ctypes.c_int32)]


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    """ecg_front.c on this machine, with undefined behaviour trapped."""
    if shutil.which("gcc") is None:
        pytest.skip("NOT RUN: gcc is missing")
    library = tmp_path_factory.mktemp("front") / "front.so"
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    subprocess.run(["gcc", *flags, "-shared", "-fPIC", str(FOLDER / "ecg_front.c"), "-o", str(library)], check=True)
    lib = ctypes.CDLL(str(library))
    lib.ecg_front_quality.restype = ctypes.c_uint32

    def run(x, window, rate, gain, zero_point):
        ring, to, state = (ctypes.c_int16 * window)(), (ctypes.c_int8 * window)(), Front()
        lib.ecg_front_open(ctypes.byref(state), ring, window, rate)
        found = []
        for sample in x.tolist():
            if lib.ecg_front_push(ctypes.byref(state), ctypes.c_int16(sample)):
                lib.ecg_front_window(ctypes.byref(state), ctypes.byref(Scale(gain, zero_point)), to)
                found.append((state.samples // rate, lib.ecg_front_quality(ctypes.byref(state)), bytes(to)))
        return found

    return run


def signals():
    """Codes that a converter could give, and all else that int16 can hold."""
    seed = st.integers(0, 2**32 - 1)
    kind = st.sampled_from(["walk", "extreme", "flat", "noise", "int16"])

    def make(seed, kind, n):
        rng = np.random.default_rng(seed)
        if kind == "walk":
            return np.clip(1024 + np.cumsum(rng.normal(0, 8, n)), 0, 2047).astype(np.int16)
        if kind == "extreme":
            return rng.choice(np.array([-32768, 32767], np.int16), n)
        if kind == "flat":
            return np.full(n, rng.integers(-32768, 32768), np.int16)
        return rng.integers(0, 2048, n).astype(np.int16) if kind == "noise" else rng.integers(-32768, 32768, n).astype(np.int16)

    return st.builds(make, seed, kind, st.integers(1, 12 * RATE))


@given(signals(), st.integers(1, 8 * RATE), st.integers(1, 2**31 - 1), st.integers(-128, 127))
def test_c_gives_what_numpy_gives(front, x, window, gain, zero_point):
    expected = [(d.second, d.quality, d.window.tobytes()) for d in ecg.decisions(x, window, RATE, gain, zero_point)]
    assert front(x, window, RATE, gain, zero_point) == expected


def test_the_largest_window_at_the_extremes_stays_in_its_words(front):
    """4096 samples of full swing: the largest squares, deviation and products that there can be."""
    x = np.where(np.arange(4096 + 512) % 1024 < 512, -32768, 32767).astype(np.int16)
    for gain in (1, 2**31 - 1):
        expected = [(d.second, d.quality, d.window.tobytes()) for d in ecg.decisions(x, 4096, 512, gain, -128)]
        assert len(expected) == 2 and front(x, 4096, 512, gain, -128) == expected


def test_windows_are_what_training_scaled(front):
    """Mean 0, standard deviation 1, in steps of the input: near the floats that the network was trained on."""
    x = monitor.synthetic(12)
    scale, zero_point = 0.05, -15
    (first, *_) = ecg.decisions(x, 1800, 360, round(2**20 / scale), zero_point)
    h = ecg.high_pass(x)[:1800].astype(float)
    exact = np.clip(np.rint((h - h.mean()) / h.std() / scale) + zero_point, -128, 127)
    assert np.abs(first.window - exact).max() <= 1 and np.mean(first.window == exact) > 0.99


@pytest.mark.parametrize(("make", "flag"), [
    (lambda x: np.full_like(x, 700), ecg.LEAD_OFF),
    (lambda x: np.full_like(x, 2047), ecg.LEAD_OFF | ecg.RAILS),
    (lambda x: np.where(np.arange(len(x)) % 10 == 0, 0, x).astype(np.int16), ecg.RAILS),
    (lambda x: (x + 90 * (np.arange(len(x)) % 2)).astype(np.int16), ecg.NOISE),
    (lambda x: x, 0)])
def test_bad_seconds_are_flagged_and_good_ones_not(make, flag):
    x = (1024 + 200 * np.sin(np.arange(360) / 20)).astype(np.int16)
    assert ecg.quality(make(x), int(make(x)[0])) & ~(ecg.NOISE if flag & ecg.RAILS else 0) == flag


def test_a_slow_baseline_goes_and_beats_stay():
    t = np.arange(3600)
    drift = ecg.high_pass((1024 + 300 * np.sin(t / 3000)).astype(np.int16))[720:]
    beats = ecg.high_pass((1024 + 300 * (t % 300 < 20)).astype(np.int16))[720:]
    assert np.abs(drift).max() < 40 and beats.max() > 250


def test_the_margin_is_the_images_threshold():
    image = Image.open(firmware.FOLDER / "ecg-small.htpw")
    known, info = monitor.Constants.of(image), image.parsed.info
    for difference in (known.margin - 1, known.margin):
        p = probabilities(np.array([[0, difference]]), info.logit_scale)[0, 1]
        assert (p >= info.threshold) == (difference >= known.margin)


def test_images_that_are_no_monitors_are_refused():
    import random_images

    with pytest.raises(ConfigError, match="one lead and two classes"):
        monitor.Constants.of(Image(write(random_images.example()), "x"))
    with pytest.raises(DataError, match="has no record 200"):
        monitor.record(firmware.FOLDER, "200")


@pytest.mark.skipif((reason := boards.find_tools(GCC)) is not None, reason=f"NOT RUN: {reason}")
def test_the_board_decides_as_the_host_does():
    image = Image.open(firmware.FOLDER / "ecg-small.htpw")
    x = monitor.synthetic(24)
    found = monitor.run(image, firmware.board_named("mps2-an386"), GCC, x)
    assert found["differ"] == 0 and found["decisions"] == found["expected"] == 23, found["first"]
    assert found["no_decision"] and found["other"], "bad seconds are gated, good ones decided"
    front_end = found["bill"]
    assert 0 < front_end["front_end_flash"] < 2048 and front_end["front_end_sram"] >= 2 * image.plan().input
    assert front_end["instructions_per_sample"] > 20
    parts = front_end["instructions_per_window"] + front_end["instructions_per_inference"]
    assert front_end["instructions_per_second"] == pytest.approx(360 * front_end["instructions_per_sample"] + parts, rel=0.01)


@pytest.mark.skipif((reason := boards.find_tools(GCC)) is not None, reason=f"NOT RUN: {reason}")
def test_a_decision_that_differs_is_found(monkeypatch):
    image = Image.open(firmware.FOLDER / "ecg-small.htpw")
    true = monitor.host

    def wrong(image, x):
        for i, row in enumerate(true(image, x)):
            yield (*row[:4], row[4] + 1) if i == 2 else row

    monkeypatch.setattr(monitor, "host", wrong)
    found = monitor.run(image, firmware.board_named("mps2-an386"), GCC, monitor.synthetic(6))
    assert found["differ"] == 1 and "host (4," in found["first"]
