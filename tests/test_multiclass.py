"""More than two classes, from data to report: the largest logit decides, and test labels stay sealed until choices are frozen."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pyhtpw import pipeline
from pyhtpw.data import Dataset, Split
from pyhtpw.data.dataset import describe
from pyhtpw.data.seal import SealedSplit, seal
from pyhtpw.errors import SealedError
from pyhtpw.evaluate import choices as frozen
from pyhtpw.evaluate import decide, score
from pyhtpw.recipes import Recipe

CLASSES = ("silence", "low", "middle", "high")
RECIPE = Recipe(
    net="separable",
    net_options={"stem": 4, "widths": (8,), "strides": (2,), "stem_kernel": 5, "stem_stride": 2, "kernel": 3},
    train={"steps": 60, "batch": 32, "eval_every": 30, "lr": 0.01},
)


def tones(seed: int = 0, t: int = 64) -> Dataset:
    """A synthetic set of four classes, tones of three pitches and noise, of ten speakers per split: for tests of the path alone."""
    rng = np.random.default_rng(seed)
    splits = {}
    for part, n in (("train", 400), ("val", 200), ("test", 240)):
        y = np.arange(n, dtype=np.int64) % 4
        phase = rng.uniform(0, 2 * np.pi, (n, 1)) + np.array([0, 0.2, 0.6, 1.2])[y][:, None] * np.arange(t)
        x = np.where((y == 0)[:, None], 0, np.sin(phase)) + 0.5 * rng.normal(size=(n, t))
        group = np.array([f"{part}-{i // 4 % 10}" for i in range(n)])
        splits[part] = Split(x[:, :, None].astype(np.float32), y, group, np.arange(n, dtype=np.int64), np.ones(n, bool))
    about = describe(CLASSES, splits, protocol="tones", source_sha256="0" * 64, same_person={}, options={}, warnings=[])
    return Dataset("tones", True, 100.0, CLASSES, splits["train"], splits["val"], splits["test"], about)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("tones")
    return out, pipeline.demo(tones(), RECIPE, out, seed=1)


def test_the_whole_path(run):
    out, report = run
    test = report["test"]
    assert test["threshold"] is None and "positives" not in test and "roc" not in test
    assert np.array(test["confusion"]).shape == (4, 4) and test["n"] == 240
    assert test["macro_f1"] > 0.5, "tones are easy: chance is .25"
    assert 0 <= test["ece"] <= 1 and 0 <= test["brier"] <= 2 and test["auc"] > 0.75
    assert test["priors"] == pytest.approx([0.25] * 4)
    assert report["splits"]["train"]["priors"] == pytest.approx([0.25] * 4)
    assert report["bytes_differ"] == 0
    page = (out / "report.html").read_text()
    assert "largest logit decides" in page and "t* =" not in page and "middle" in page
    line = json.loads((out / "test-log.jsonl").read_text())
    assert line["figures"]["macro_f1"] == test["macro_f1"] and line["run"] == str(out)
    assert line["config_sha256"] == json.loads((out / "choices.json").read_text())["config_sha256"]
    assert report["test_evaluations"] == 1


def test_terminal_and_stages(run, capsys):
    from pyhtpw.report import print_report

    print_report(run[1])
    text = capsys.readouterr().out
    assert "largest logit decides" in text and "of them positive" not in text


def test_decisions_are_those_of_the_largest_integer_logit(run):
    from pyhtpw.model import Image

    image = Image.open(run[0] / "model.htpw")
    x = tones().test.x
    logits = pipeline.infer(image, x)
    assert np.array_equal(decide(pipeline.class_probabilities(image, x), None), logits.argmax(axis=1))


def test_no_stage_before_freezing_can_read_test_labels(tmp_path):
    """Training, quantisation and tuning run on a sealed set; the labels open for the frozen image alone, and leave a line."""
    data = seal(tones(3))
    assert isinstance(data.test, SealedSplit) and seal(data) is data
    for name in ("y", "score_mask"):
        with pytest.raises(SealedError, match="sealed: freeze"):
            getattr(data.test, name)
        with pytest.raises(SealedError, match="sealed: freeze"):  # other windows of the same people, such as features
            getattr(replace(data, test=replace(data.test, x=2 * data.test.x)).test, name)
    graph, config, result = pipeline.train_stage(RECIPE, data, tmp_path / "run", seed=0, steps=4)
    quantised = pipeline.quantise_stage(graph, result.params, data, seed=0, median=3)
    path, log = tmp_path / "choices.json", tmp_path / "log.jsonl"
    with pytest.raises(SealedError, match="no choices are frozen"):
        pipeline.test_stage(quantised.image, data, path, run="r", log=log)
    assert not log.exists()
    pipeline.freeze_stage(path, quantised, data, {"train": config}, 3)
    other = pipeline.quantise_stage(graph, result.ema_params, data, seed=0)
    with pytest.raises(SealedError, match="another image"):
        pipeline.test_stage(other.image, data, path, run="r", log=log)
    with pytest.raises(SealedError, match="other data"):
        pipeline.test_stage(quantised.image, replace_description(data, source_sha256="1" * 64), path, run="r", log=log)
    assert not log.exists(), "what was refused was not a look at test"
    tested = pipeline.test_stage(quantised.image, data, path, run="r", log=log)
    assert tested.figures == score(tested.p, tones(3).test, None, protocol="tones", roc=True)
    again = pipeline.test_stage(quantised.image, data, path, run="r", log=log)
    assert (tested.evaluations, again.evaluations) == (1, 2) and len(log.read_text().splitlines()) == 2
    with pytest.raises(SealedError, match="chooses once"):
        pipeline.freeze_stage(path, other, data, {}, 3)
    changed = json.loads(path.read_text())
    changed["config"]["median"] = 99
    path.write_text(json.dumps(changed))
    with pytest.raises(SealedError, match="was changed"):
        frozen.unseal(data, path, quantised.image.data, threshold=None)
    path.write_text("{}")
    with pytest.raises(SealedError, match="holds no frozen choices"):
        frozen.load(path)


def replace_description(data: Dataset, **changes) -> Dataset:
    return seal(replace(tones(3), description={**data.description, **changes}))


def test_a_set_that_was_never_sealed_is_not_unsealed(tmp_path):
    with pytest.raises(SealedError, match="never sealed"):
        frozen.unseal(tones(), tmp_path / "choices.json", b"", threshold=None)


def test_train_looks_at_scored_windows_only():
    data = tones()
    mask = np.arange(len(data.val)) % 3 > 0
    part = pipeline.scored(replace(data.val, score_mask=mask))
    assert np.array_equal(part.x, data.val.x[mask]) and np.array_equal(part.y, data.val.y[mask]) and part.score_mask.all()
    assert pipeline.scored(data.val) is data.val


def test_a_record_that_holds_most_positives_is_named_with_all_counts():
    data = tones()
    y = np.zeros(len(data.test), np.int64)
    y[data.test.group == "test-3"] = 1
    y[0] = 1
    two = replace(data, classes=("other", "ventricular"), train=replace(data.train, y=data.train.y % 2),
                  val=replace(data.val, y=data.val.y % 2), test=replace(data.test, y=y))
    notes = pipeline.test_notes(two, two.test)
    assert len(notes) == 1 and "24 of the 25 positive test windows are of record test-3: CI not meaningful" in notes[0]
    assert "test-0 1, test-1 0, test-2 0, test-3 24" in notes[0]
    assert pipeline.test_notes(data, data.test) == []
