"""Features of heart-rate variability, and the linear networks that read them."""

import builtins
import json
from dataclasses import replace

import numpy as np
import pytest
from test_quant_ops import assert_c_is_numpy
from typer.testing import CliRunner

from pyhtpw import nets, training
from pyhtpw.cli import app
from pyhtpw.cli import packing as cli_packing
from pyhtpw.cli import training as cli_training
from pyhtpw.data import Dataset, Split, hrv
from pyhtpw.data.dataset import describe
from pyhtpw.data.seal import seal
from pyhtpw.errors import ConfigError, DataError, SealedError
from pyhtpw.quant import quantise
from pyhtpw.recipes import RECIPES
from pyhtpw.train import Model, TrainConfig, train

FS = 200.0


def ecg(beats_s, seconds, fs=FS, noise=0.02, seed=0):
    """A narrow wave and a broad one at every beat."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * fs)) / fs
    x = noise * rng.standard_normal(t.size)
    for beat in beats_s:
        x += np.exp(-0.5 * ((t - beat) / 0.012) ** 2) + 0.2 * np.exp(-0.5 * ((t - beat - 0.25) / 0.04) ** 2)
    return x


def test_figures_of_variability_by_hand():
    beats = np.cumsum([0.5, 0.8, 0.9, 0.8, 0.88])
    found = dict(zip(hrv.BEAT_FEATURES, hrv.beat_features(beats), strict=True))
    rr = np.array([800, 900, 800, 880.0])
    assert found["mean RR (ms)"] == pytest.approx(845)
    assert found["SDNN (ms)"] == pytest.approx(rr.std())
    assert found["RMSSD (ms)"] == pytest.approx(np.sqrt((100**2 + 100**2 + 80**2) / 3))
    assert found["pNN50"] == pytest.approx(1)
    assert found["mean rate (1/min)"] == pytest.approx(np.mean(60000 / rr))
    assert found["SD of rate (1/min)"] == pytest.approx(np.std(60000 / rr))


@pytest.mark.parametrize(("frequency", "band"), [(0.1, 6), (0.25, 7)])
def test_a_rhythm_is_in_its_band(frequency, band):
    """RR of 800 ms + 40 ms * sin: a power of 40^2 / 2 ms^2 at one frequency, less what straight lines between beats take off."""
    beats = [0.0]
    while beats[-1] < 300:
        beats.append(beats[-1] + 0.8 + 0.04 * np.sin(2 * np.pi * frequency * beats[-1]))
    found = hrv.beat_features(np.array(beats))
    assert np.expm1(found[band]) == pytest.approx(800 * np.sinc(0.8 * frequency) ** 4, rel=0.05)
    assert found[13 - band] < found[band] - 3


def test_missed_and_doubled_beats_are_left_out():
    beats = np.arange(20) * 0.8
    wrong = np.sort(np.append(np.delete(beats, [7, 8]), 2.5))
    np.testing.assert_allclose(hrv.beat_features(wrong)[:3], [800, 0, 0], atol=150)
    assert hrv.beat_features(np.delete(beats, [7, 8]))[0] == pytest.approx(800)
    assert np.isnan(hrv.beat_features(beats[:2])).all()
    assert np.isnan(hrv.beat_features(beats[:9], least=10)).all()
    assert np.isnan(hrv.beat_features(np.empty(0))).all()
    with pytest.raises(DataError, match="do not rise"):
        hrv.beat_features(np.array([0, 1, 0.5]))


def test_figures_of_the_signal():
    t = np.arange(2000) / FS
    found = dict(zip(hrv.SIGNAL_FEATURES, hrv.signal_features(3 + 2 * np.sin(2 * np.pi * 2.5 * t + 0.1), FS), strict=True))
    assert found["mean"] == pytest.approx(3)
    assert found["SD"] == pytest.approx(np.sqrt(2))
    assert found["skew"] == pytest.approx(0, abs=1e-9)
    assert found["excess kurtosis"] == pytest.approx(-1.5, rel=1e-3)
    assert found["peak to peak"] == pytest.approx(4, rel=1e-3)
    assert found["zero crossings"] == 49 + 1
    assert np.expm1(found["log 0.5-5 Hz power"]) == pytest.approx(2, rel=0.01)
    assert found["spectral centroid (Hz)"] == pytest.approx(2.5, rel=1e-6)
    assert hrv.signal_features(np.full(100, 7.0), FS).tolist() == [7, 0, 0, 0, 0, 0, 0, 0]
    above = dict(zip(hrv.SIGNAL_FEATURES, hrv.signal_features(np.sin(2 * np.pi * 20 * t), FS), strict=True))
    assert above["log 0.5-5 Hz power"] < 1e-3


def test_beats_are_found_where_they_are():
    pytest.importorskip("wfdb", reason="NOT RUN: the package wfdb is not installed")
    beats = np.cumsum(np.full(12, 0.85)) - 0.4
    found = hrv.detect_beats(ecg(beats, 11), FS)
    assert len(found) >= len(beats) - 2
    nearest = np.abs(found[:, None] - beats).min(axis=1)
    assert nearest.max() < 0.05
    assert hrv.detect_beats(np.zeros(2000), FS).size == 0
    assert hrv.detect_beats(ecg(beats[:1], 1), FS).size == 0


def test_without_wfdb_the_error_names_it(monkeypatch):
    kept = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("wfdb"):
            raise ImportError(name)
        return kept(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match="package wfdb"):
        hrv.detect_beats(ecg([1, 2, 3], 4), FS)


def small() -> Dataset:
    """Fast and slow hearts, ten windows each side; one flat window without beats."""
    splits = {}
    for at, part in enumerate(("train", "val", "test")):
        y = np.arange(20) % 2
        rng = np.random.default_rng(at)
        rr = np.where(y, 0.55, 0.95) + rng.uniform(-0.03, 0.03, 20)
        x = np.stack([ecg(np.arange(0.4, 7.5, step), 8, seed=[at, i]) for i, step in enumerate(rr)])
        x[3] = 0.0
        group = np.array([f"{part}{i}" for i in range(20)])
        splits[part] = Split(x[:, :, None].astype(np.float32), y.astype(np.int64), group, np.arange(20), np.ones(20, bool))
    note = describe(("slow", "fast"), splits, protocol="test", options={}, source_sha256="", warnings=[], same_person={})
    return Dataset("synthetic-ecg", True, FS, ("slow", "fast"), **splits, description=note)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def features(folder) -> Dataset:
    pytest.importorskip("wfdb", reason="NOT RUN: the package wfdb is not installed")
    return hrv.featured(small(), folder)


def test_features_are_found_once(features, folder, monkeypatch):
    (file,) = folder.glob("features-*.npz")
    made, plain = [], hrv.window_features
    monkeypatch.setattr(hrv, "window_features", lambda x, fs: made.append(len(x)) or plain(x, fs))
    again = hrv.featured(small(), folder)
    assert not made
    np.testing.assert_array_equal(again.test.x, features.test.x)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    np.testing.assert_array_equal(hrv.featured(small(), folder).test.x, features.test.x)
    assert made == [20, 20, 20], "a damaged file is not used"
    other = small()
    moved = replace(other.val, x=other.val.x + np.float32(1))
    hrv.featured(replace(other, val=moved), folder)
    assert len(list(folder.glob("features-*.npz"))) == 2


def test_processes_share_the_windows(features, tmp_path, monkeypatch):
    monkeypatch.setattr(hrv, "_CHUNK", 7)
    told = []
    found = hrv.featured(small(), tmp_path, jobs=2, progress=lambda *state: told.append(state))
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(found, part).x, getattr(features, part).x)
    assert [done for done, _, _ in told] == [7, 14, 20, 27, 34, 40, 47, 54, 60] and {total for _, total, _ in told} == {60}


def test_a_sample_is_windows_of_the_whole_split():
    data = small()
    few = hrv.sample(data, 5)
    assert few.val.x.shape == (5, *data.val.x.shape[1:]) and few.val.group.tolist() == ["val0", "val4", "val9", "val14", "val19"]
    np.testing.assert_array_equal(few.val.x, data.val.x[[0, 4, 9, 14, 19]])
    assert hrv.sample(data, 50).test.x.shape == data.test.x.shape
    hidden = hrv.sample(seal(data), 5).test
    with pytest.raises(SealedError):
        hidden.y  # noqa: B018
    assert len(hidden) == 5 and hidden.opened().y.tolist() == data.test.y[[0, 4, 9, 14, 19]].tolist()


def test_features_are_scaled_on_training_windows_alone(features):
    assert features.train.x.shape == (20, 1, 16)
    note = features.description["features"]
    assert note["names"] == list(hrv.FEATURES)
    assert note["without_beats"] == {"train": 1, "val": 1, "test": 1}
    assert (features.train.x[3, 0, :8] == 0).all()
    known = np.delete(features.train.x[:, 0], 3, axis=0)
    np.testing.assert_allclose(known[:, :6].mean(axis=0), 0, atol=1e-5)
    moved = [abs(features.val.x[:, 0, i].mean()) for i in range(6)]
    assert max(moved) > 1e-3, "validation is scaled with the figures of training"
    again = hrv.for_network("hrv_featnet", features)
    assert again is features
    assert hrv.for_network("separable", features) is features


def test_the_linear_network_trains_and_runs_in_c(features, tmp_path):
    graph = nets.build("hrv_featnet", t=1, channels_in=16)
    assert graph.parameter_count() == 34
    assert nets.build("hrv_beats", t=1, channels_in=8).parameter_count() == 18
    result = train(graph, features.train, features.val, TrainConfig(steps=60, eval_every=20, batch=20, lr=0.05, warmup=5), tmp_path / "run")
    assert result.val_macro_f1 > 0.85
    x = features.train.x
    integer = quantise(graph, result.params, x, classes=features.classes, sample_rate=FS)
    image = assert_c_is_numpy(integer, x)
    logits = image.run_batch(image.quantise(x)).reshape(len(x), 2)
    wanted = Model(graph, result.params).infer(x)
    assert np.mean(logits.argmax(axis=1) == wanted.argmax(axis=1)) > 0.9
    assert len(image.data) < 256


def test_augmentations_of_signals_are_not_for_features():
    usual = RECIPES["synthetic-ecg", "synthetic"]
    assert training.on_features(usual, usual) == usual
    assert "augment" not in training.on_features(replace(usual, net="hrv_featnet"), usual).train
    asked = replace(usual, net="hrv_featnet", train={**usual.train, "augment": {"noise": 0.1}})
    assert training.on_features(asked, usual) == asked


def test_the_command_line_makes_the_features(tmp_path, monkeypatch):
    pytest.importorskip("wfdb", reason="NOT RUN: the package wfdb is not installed")
    for module in (cli_training, cli_packing):
        monkeypatch.setattr(module, "load_data", lambda *_: replace(small(), description={**small().description, "protocol": "synthetic"}))
    common = ["--json", "--cache-dir", str(tmp_path / "cache")]
    run = str(tmp_path / "run")
    done = CliRunner().invoke(app, ["train", "--net", "hrv_featnet", "--steps", "60", "--out", run, *common])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["pack", run, "-o", str(tmp_path / "m.htpw"), *common])
    assert done.exit_code == 0, done.output
    packed = json.loads(done.stdout)
    assert packed["image_bytes"] < 256
    assert packed["val_macro_f1_integer"] > 0.8


@pytest.mark.parametrize(("name", "t", "channels"), [("hrv_featnet", 1800, 1), ("hrv_featnet", 1, 8), ("hrv_beats", 1, 16)])
def test_signals_are_refused_by_name(name, t, channels):
    with pytest.raises(ConfigError, match=f"{name}: .*feature extraction is not part of a network, nor of an image"):
        nets.build(name, t=t, channels_in=channels)


def test_data_without_beats_are_refused(features, folder):
    flat = small()
    dead = replace(flat.train, x=np.zeros_like(flat.train.x))
    with pytest.raises(DataError, match="no training window has beats"):
        hrv.featured(replace(flat, train=dead), folder)
    with pytest.raises(DataError, match="one signal"):
        hrv.window_features(np.zeros((2, 10, 3)), FS)
