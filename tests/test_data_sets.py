"""`Split`, `Dataset` and `load`, and the synthetic data set."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from pyhtpw.data import NAMES, PROTOCOLS, Dataset, Split, cache, load
from pyhtpw.data.dataset import describe
from pyhtpw.errors import ConfigError, DataError
from pyhtpw.evaluate import evaluate_binary
from pyhtpw.nets import build
from pyhtpw.recipes import recipe

SMALL = {"patients": (4, 2, 3), "beats": (30, 25, 20)}


def split(groups: str, **changes) -> Split:
    n = len(groups)
    fields = {"x": np.ones((n, 4, 1), np.float32), "y": np.zeros(n, np.int64), "group": np.array(list(groups)),
              "position": np.arange(n, dtype=np.int64), "score_mask": np.ones(n, bool)}
    return Split(**{**fields, **changes})


def dataset(train: Split, val: Split, test: Split, **changes) -> Dataset:
    fields = {"name": "synthetic-ecg", "synthetic": True, "fs": 360.0, "classes": ("other", "ventricular"),
              "description": {}}
    return Dataset(train=train, val=val, test=test, **{**fields, **changes})


def test_disjoint_groups_pass() -> None:
    assert len(dataset(split("aab"), split("c"), split("dd")).train) == 3


@pytest.mark.parametrize("groups, words", [(("abc", "cba", "d"), "train and val share a, b, c"),
                                           (("ab", "c", "xb"), "train and test share b"),
                                           (("ab", "c", "c"), "val and test share c")])
def test_shared_groups_are_named(groups: tuple[str, str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        dataset(*map(split, groups))


def test_one_person_under_two_names() -> None:
    with pytest.raises(DataError, match="train and test share P"):
        dataset(split("a"), split("b"), split("c"), description={"same_person": {"a": "P", "c": "P"}})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_is_located(value: float) -> None:
    x = np.ones((3, 4, 1), np.float32)
    x[2, 1] = value
    with pytest.raises(DataError, match="val: the window at record e, sample 2 holds NaN or infinity"):
        dataset(split("a"), split("cde", x=x), split("f"))


def test_nan_is_found_beyond_the_first_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyhtpw.data.dataset._SCAN_SAMPLES", 8)
    x = np.ones((5, 4, 1), np.float32)
    x[4, 3] = np.nan
    with pytest.raises(DataError, match="record e, sample 4"):
        dataset(split("abcde", x=x), split("f"), split("g"))


@pytest.mark.parametrize("changes, words", [
    ({"x": np.ones((2, 4), np.float32)}, r"split x has shape \(2, 4\)"),
    ({"x": np.ones((2, 4, 1))}, "float64: give"),
    ({"x": np.ones((0, 4, 1), np.float32)}, "at least one window"),
    ({"y": np.zeros(3, np.int64)}, r"split y has shape \(3,\)"),
    ({"y": np.zeros(2, np.int32)}, "split y .*int32"),
    ({"group": np.zeros(2, np.int64)}, "split group"),
    ({"score_mask": np.ones(2, np.int64)}, "split score_mask"),
    ({"position": np.array([3, -1])}, "position -1 of group b"),
])
def test_bad_splits(changes: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        split("ab", **changes)


def test_bad_datasets() -> None:
    good = split("a"), split("b"), split("c")
    with pytest.raises(DataError, match="test, record c: label 2"):
        dataset(*good[:2], split("c", y=np.array([2])))
    with pytest.raises(DataError, match="0 Hz"):
        dataset(*good, fs=0.0)
    with pytest.raises(DataError, match="window lengths differ"):
        dataset(*good[:2], split("c", x=np.ones((1, 5, 1), np.float32)))


def test_describe_counts() -> None:
    parts = {"train": split("ab"), "val": split("c", y=np.array([1])),
             "test": split("dde", y=np.array([1, 0, 1]), score_mask=np.array([True, False, True]))}
    out = describe(("other", "ventricular"), parts, protocol="p", options={"window": 4}, source_sha256="00",
                   warnings=["w"], same_person={})
    assert out["counts"] == {"train": {"other": 2, "ventricular": 0, "unscored": 0},
                             "val": {"other": 0, "ventricular": 1, "unscored": 0},
                             "test": {"other": 0, "ventricular": 2, "unscored": 1}}
    assert out["test_counts"] == {"d": {"other": 0, "ventricular": 1, "unscored": 1},
                                  "e": {"other": 0, "ventricular": 1, "unscored": 0}}
    assert out["records"] == {"train": ["a", "b"], "val": ["c"], "test": ["d", "e"]}


def test_load_refuses_what_it_does_not_know() -> None:
    assert NAMES == ("synthetic-ecg", "mitdb", "apnea-ecg", "ptb-xl", "speech-commands")
    with pytest.raises(ConfigError, match="choose one of synthetic-ecg, mitdb, apnea-ecg, ptb-xl, speech-commands"):
        load("ptb")
    with pytest.raises(ConfigError, match="no protocol 'aami'"):
        load("synthetic-ecg", protocol="aami")
    with pytest.raises(ConfigError, match="no option lead: it has beats, patients, progress, window"):
        load("synthetic-ecg", lead=1)
    with pytest.raises(ConfigError, match="choose 'paper' or 'aami'"):
        load("mitdb", data_dir="nowhere", protocol="ds1:window=64")


def test_options_may_follow_the_protocol() -> None:
    data = load("synthetic-ecg", protocol="synthetic:window=64", **SMALL)
    assert data.train.x.shape[1:] == (64, 1) and data.description["protocol"] == "synthetic"
    for text, words in (("synthetic:window", "'window' behind the protocol is no option"), ("synthetic:=3", "no option"),
                        ("synthetic:window=true", "16 to 3600"), ("synthetic:lead=II", "no option lead")):
        with pytest.raises(ConfigError, match=words):
            load("synthetic-ecg", protocol=text, **SMALL)


def test_every_protocol_has_a_recipe_whose_network_can_be_built() -> None:
    shapes = {"speech-commands": (101, 40), "apnea-ecg": (1800, 1), "ptb-xl": (1000, 1)}
    for name, protocols in PROTOCOLS.items():
        for protocol in protocols:
            chosen = recipe(name, protocol)
            steps, channels = (5, 8) if protocol == "beats" else shapes.get(name, (720, 1))
            graph = build(chosen.net, t=steps, channels_in=channels, classes=6, **chosen.net_options)
            assert graph.input_shape == (steps, channels)


def test_features_and_many_classes() -> None:
    """Windows of several channels, and labels of more than two classes."""
    def of(groups: str, label: int) -> Split:
        return split(groups, x=np.ones((len(groups), 4, 3), np.float32), y=np.full(len(groups), label))

    parts = {"train": of("ab", 4), "val": of("c", 0), "test": of("d", 2)}
    assert dataset(*parts.values(), classes=tuple("vwxyz")).test.y.tolist() == [2]
    with pytest.raises(DataError, match="train, record a: label 4 is not one of the 4 classes"):
        dataset(*parts.values(), classes=tuple("vwxy"))
    with pytest.raises(DataError, match="window lengths differ"):
        dataset(parts["train"], parts["val"], split("d"), classes=tuple("vwxyz"))
    out = describe(tuple("vwxyz"), parts, protocol="p", options={}, source_sha256="", warnings=[], same_person={}, part="half")
    assert out["counts"]["train"] == {"v": 0, "w": 0, "x": 0, "y": 0, "z": 2, "unscored": 0} and out["part"] == "half"


def test_cache_entries_with_notes(tmp_path) -> None:
    labels = {part: {"y": np.zeros(1, np.int64), "group": np.array([part]), "position": np.zeros(1, np.int64),
                     "score_mask": np.ones(1, bool)} for part in ("train", "val", "test")}
    notes: dict = {}

    def chunks():
        for part in labels:
            notes[part] = 1.5
            yield part, np.full((1, 3, 2), 7, np.float32)

    entry = tmp_path / "some-key"
    splits = cache.opened(entry, lambda: cache.store(entry, (3, 2), labels, chunks(), notes))
    assert splits["val"].x.tolist() == [[[7, 7]] * 3] and cache.notes(entry) == {"train": 1.5, "val": 1.5, "test": 1.5}
    (entry / "notes.json").write_text(json.dumps({"train": 2.5, "val": 1.5, "test": 1.5}))
    assert cache.fetch(entry) is None  # the manifest has its sum too
    with pytest.raises(DataError, match="reads back other than it was written"):
        cache.opened(entry, lambda: None)


# --- synthetic ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default() -> Dataset:
    return load("synthetic-ecg", seed=0)


def test_default_sizes_and_balance(default: Dataset) -> None:
    assert default.synthetic and default.fs == 360.0 and default.classes == ("other", "ventricular")
    assert [len(s) for s in (default.train, default.val, default.test)] == [6000, 1504, 2004]
    assert [len(default.description["records"][part]) for part in ("train", "val", "test")] == [40, 8, 12]
    for part in (default.train, default.val, default.test):
        assert part.x.shape[1:] == (720, 1) and part.score_mask.all()
        assert 0.10 <= part.y.mean() <= 0.12
        np.testing.assert_allclose(part.x.mean(axis=1), 0, atol=1e-5)
        np.testing.assert_allclose(part.x.std(axis=1), 1, atol=1e-4)
        for name in np.unique(part.group):
            assert (np.diff(part.position[part.group == name]) > 0).all()
    assert "synthetic" in default.description["warnings"][0]
    assert json.loads(json.dumps(default.description)) == default.description


def test_windows_are_centred_on_beats(default: Dataset) -> None:
    """The QRS complex, where the signal is steepest, lies in the middle more often than chance would have it."""
    steep = np.abs(np.diff(default.train.x[:, :, 0], axis=1))
    near = steep[:, 335:385].max(axis=1)
    far = np.median(steep, axis=1)
    assert (near > 4 * far).mean() > 0.8


def test_task_is_neither_trivial_nor_hopeless(default: Dataset) -> None:
    """A linear rule on the samples, each the mean of eight, finds PVCs of unseen patients, but leaves much to do."""
    def features(part: Split) -> np.ndarray:
        x = part.x[:, :, 0].reshape(len(part), 90, 8).mean(axis=2)
        return np.concatenate([x, np.ones((len(part), 1))], axis=1).astype(np.float64)

    a = features(default.train)
    weight = np.linalg.solve(a.T @ a + 10 * np.eye(a.shape[1]), a.T @ default.train.y)
    p_val, p_test = ((features(part) @ weight).clip(0, 1) for part in (default.val, default.test))
    test = evaluate_binary(p_val, default.val, p_test, default.test)["test"]
    assert 0.75 < test["macro_f1"] < 0.92 and 0.90 < test["auc"] < 0.99


def test_same_seed_same_bytes() -> None:
    one, two = load("synthetic-ecg", seed=7, **SMALL), load("synthetic-ecg", seed=7, **SMALL)
    other = load("synthetic-ecg", seed=8, **SMALL)
    assert one.description == two.description
    for part in ("train", "val", "test"):
        for field in dataclasses.fields(Split):
            a, b = (getattr(getattr(data, part), field.name) for data in (one, two))
            assert a.tobytes() == b.tobytes()
        assert getattr(one, part).x.tobytes() != getattr(other, part).x.tobytes()
    assert one.description["source_sha256"] != other.description["source_sha256"]


def test_no_patient_is_a_copy_of_another() -> None:
    data = load("synthetic-ecg", seed=3, patients=(3, 3, 3), beats=(20, 20, 20))
    starts = np.concatenate([s.x[:, :8, 0] for s in (data.train, data.val, data.test)])
    assert len(np.unique(starts, axis=0)) == 180


def test_options_and_progress() -> None:
    calls = []
    data = load("synthetic-ecg", window=1800, progress=lambda *a: calls.append(a), **SMALL)
    assert data.train.x.shape == (120, 1800, 1) and len(data.val) == 50 and len(data.test) == 60
    assert calls[0] == (1, 9, "patient train-00") and calls[-1] == (9, 9, "patient test-02")
    # Signal all through: the margins of a record are long enough, nothing is padded.
    assert (np.abs(data.train.x[:, :20]).max(axis=(1, 2)) > 0).all()


@pytest.mark.parametrize("options, words", [
    ({"seed": -1}, "seed -1"), ({"seed": 1.5}, "seed 1.5"), ({"window": 3601}, "16 to 3600"),
    ({"window": True}, "16 to 3600"), ({"patients": (1, 2)}, "three integers"), ({"patients": (1, 0, 1)}, "1 to 1000"),
    ({"beats": (19, 20, 20)}, "20 to 10000"), ({"beats": 20}, "three integers"),
])
def test_bad_options(options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load("synthetic-ecg", **options)
