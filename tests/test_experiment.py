"""Declared experiments, on a small synthetic set: order, resuming, the log of looks at test, tables that come from files alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pyhtpw.errors import ConfigError, HtpwError
from pyhtpw.evaluate.bootstrap import intervals
from pyhtpw.experiment import runner, schedule, tables
from pyhtpw.experiment.plan import load_plan
from pyhtpw.experiment.runner import Decisions, Folders

PLAN = """
title = "A small synthetic experiment"
data = "synthetic-ecg"
protocol = "synthetic"
data_options = {patients = [8, 6, 8], beats = [40, 60, 60], window = 64}
seeds = [0, 1, 2]
steps = 12
median = 3
budgets = [64, 1000000]

[train]
eval_every = 6
batch = 32
augment = {}

[[model]]
name = "teacher"
net = "separable"
options = {stem = 4, widths = [8, 8], strides = [2, 2], stem_kernel = 5, kernel = 3}
seeds = [0]

[[model]]
name = "small"
net = "hypertinypw"
options = {stem = 4, widths = [8, 8], strides = [2, 2], stem_kernel = 5, kernel = 3}
heads = {pw = "tiled:tile=8,dz=2,hidden=0"}
train = {objective = {kd = 1.0}}
teacher = "teacher"
budget = 4096
ema = true
calibrate = true
published = "F1 .5"

[[model]]
name = "plain"
net = "separable"
options = {stem = 4, widths = [6], strides = [2], stem_kernel = 5, kernel = 3}

[[model]]
name = "large"
net = "separable"
options = {stem = 4, widths = [16, 16], strides = [2, 2], stem_kernel = 5, kernel = 3}
budget = 500

[[model]]
name = "pruned"
net = "separable"
options = {stem = 4, widths = [16, 16], strides = [2, 2], stem_kernel = 5, kernel = 3}
start = "large"
prune = 0.75
ema = true
seeds = [0]

[[model]]
name = "elsewhere"
net = "external"
options = {slope = 2.0}

[[compare]]
name = "against another framework"
first = "small"
second = "elsewhere"
figure = "accuracy"

[[compare]]
name = "small against stored"
first = "small"
second = ["plain", "large"]
primary = true

[[compare]]
name = "the other way"
first = "plain"
second = "small"
figure = "auc"
primary = true
"""


def folders(base: Path) -> Folders:
    return Folders(base / "work", base / "results", base / "results" / "test-log.jsonl")


def written(base: Path, text: str = PLAN) -> Path:
    path = base / "tiny.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """All runs, after a pilot of one that does not look at test."""
    base = tmp_path_factory.mktemp("experiment")
    path, where = written(base), folders(base)
    pilot = schedule.run_all(path, schedule.Source(), where, only=["plain-s1"], validation_only=True)
    assert [run["test"] for run in pilot] == [None] and not where.log.exists()
    assert not where.result("tiny", "plain", 1).with_suffix(".npz").exists()
    schedule.run_all(path, schedule.Source(), where, command="pyhtpw results run tiny.toml")
    return base


def test_every_run_is_whole(ran):
    for name, seeds in (("teacher", [0]), ("small", [0, 1, 2]), ("plain", [0, 1, 2]), ("large", [0, 1, 2]), ("pruned", [0])):
        for seed in seeds:
            run = json.loads(folders(ran).result("tiny", name, seed).read_text())
            image = ran / "work" / "tiny" / f"{name}-s{seed}" / "model.htpw"
            assert run["image_bytes"] == image.stat().st_size == sum(run["sections"].values())
            assert run["deflate_bytes"] > 0 and run["plan_m4"]["arena"] > 0 and run["synthetic"] is True
            assert run["test"]["threshold"] == run["threshold"] == run["validation"]["threshold"]
            assert run["training"]["steps"] == 12 and run["training"]["seconds"] > 0
            if run["cortex_m4"] is None:
                assert run["not_run"]
            else:
                counts = run["cortex_m4"]
                assert counts["generating_every_time"] == counts["synthesis"] + counts["inference"] > counts["inference"] > 0
    small = json.loads(folders(ran).result("tiny", "small", 0).read_text())
    assert small["ema"]["test"]["n"] == small["test"]["n"] and small["calibration_test"]["ece_temperature"] >= 0
    large = json.loads(folders(ran).result("tiny", "large", 0).read_text())
    assert large["over_budget"] and not small["over_budget"]


def test_pruned_weights_stay_zero_to_the_image(ran):
    """In the checkpoint, in its average and in the integer kernels; DEFLATE is what sees them."""
    from pyhtpw.quant.store import load_model
    from pyhtpw.train.checkpoint import load_checkpoint

    work = ran / "work" / "tiny" / "pruned-s0"
    for name in ("best.safetensors", "best_ema.safetensors"):
        params, _ = load_checkpoint(work / "run" / name)
        assert {round(float((params[f"{k}.weight"] == 0).mean()), 2) for k in ("pw1", "pw2", "stem")} == {0.75}
        assert (params["dw1.weight"] != 0).all()
    kernels = {op.name: op.weights.values for op in load_model(work / "model.npz").ops if op.weights is not None}
    assert (kernels["pw2"] == 0).mean() >= 0.75
    runs = [json.loads(folders(ran).result("tiny", name, 0).read_text()) for name in ("large", "pruned")]
    assert runs[1]["deflate_bytes"] < runs[0]["deflate_bytes"]


def test_each_run_looks_at_test_once(ran):
    lines = [json.loads(line) for line in folders(ran).log.read_text().splitlines()]
    runs = [line["run"] for line in lines]
    assert len(runs) == len(set(runs)) == 11 + 4  # runs, and averaged weights
    assert "tiny/small-s0 (ema)" in runs and lines[0]["figures"]["macro_f1"] <= 1 and lines[0]["config_sha256"]
    before = folders(ran).log.read_text()
    schedule.run_all(ran / "tiny.toml", schedule.Source(), folders(ran))
    assert folders(ran).log.read_text() == before, "a run that is done is not done again"


def test_a_result_made_anew_is_the_same(ran, tmp_path):
    """Checkpoints and results lost: the same bytes come back, and the second look at test is on record."""
    shutil.copytree(ran, tmp_path / "again")
    where = folders(tmp_path / "again")
    path = where.result("tiny", "plain", 0)
    before = json.loads(path.read_text())
    path.unlink()
    shutil.rmtree(where.run("tiny", "plain", 0))
    schedule.run_all(tmp_path / "again" / "tiny.toml", schedule.Source(), where, only=["plain-s0"])
    after = json.loads(path.read_text())
    for key in ("image_sha256", "threshold", "validation", "test", "config_sha256"):
        assert after[key] == before[key], key
    assert sum("plain-s0" in line for line in where.log.read_text().splitlines()) == 2


def test_a_declaration_does_not_change_behind_its_results(ran, tmp_path):
    shutil.copytree(ran, tmp_path / "changed")
    path = written(tmp_path / "changed", PLAN.replace("widths = [6]", "widths = [7]"))
    with pytest.raises(ConfigError, match="another configuration of plain"):
        schedule.run_all(path, schedule.Source(), folders(tmp_path / "changed"), only=["plain"])
    with pytest.raises(ConfigError, match="another configuration of plain"):
        tables.build(load_plan(path), folders(tmp_path / "changed"))


def test_tables_come_from_the_files(ran, tmp_path):
    shutil.copytree(ran / "results", tmp_path / "results")  # no checkpoint, no image
    where = Folders(tmp_path / "none", tmp_path / "results", tmp_path / "results" / "test-log.jsonl")
    plan = load_plan(ran / "tiny.toml")
    files = tables.write(plan, where)
    drawn = {f"tiny-{figure}.{ending}" for figure in ("macro_f1", "budgets") for ending in ("svg", "png")}
    assert {path.name for path in files} == {"tiny.json", "tiny.md", *drawn}
    found = json.loads(files[0].read_text())
    assert found["test_evaluations"] == 15 and found["not_run"] == ["elsewhere"]
    rows = {row["model"]: row for row in found["models"]}
    seeds = [json.loads(where.result("tiny", "plain", s).read_text()) for s in (0, 1, 2)]
    assert rows["plain"]["test"]["macro_f1"] == pytest.approx(np.mean([run["test"]["macro_f1"] for run in seeds]))
    scored = [Decisions.load(where.result("tiny", "plain", s).with_suffix(".npz")).scored() for s in (0, 1, 2)]
    if not isinstance(rows["plain"]["interval"], str):
        assert rows["plain"]["interval"] == intervals(scored).to_dict()
        assert rows["plain"]["interval"]["figures"]["macro_f1"]["estimate"] == pytest.approx(rows["plain"]["test"]["macro_f1"])
        assert rows["plain"]["interval"]["figures"]["auc"]["estimate"] == pytest.approx(rows["plain"]["test"]["auc"], abs=1e-6)
    assert found["comparisons"][0]["not_run"] and "elsewhere" in found["not_run"], "named, with its reason"
    first, second = found["comparisons"][1:]
    assert first["second"] == "plain", "large is over its budget"
    assert first["difference"]["estimate"] == pytest.approx(rows["small"]["test"]["macro_f1"] - rows["plain"]["test"]["macro_f1"])
    assert second["difference"]["estimate"] == pytest.approx(rows["plain"]["test"]["auc"] - rows["small"]["test"]["auc"], abs=1e-6)
    if "holm" in first:
        assert first["holm"]["p_holm"] >= first["holm"]["p"]
        rejected = min(first["holm"]["p_holm"], second["holm"]["p_holm"]) <= 0.05
        assert {first["holm"]["level"], second["holm"]["level"]} == ({0.975, 0.95} if rejected else {0.975})
    none, widest = found["best_under"]
    assert none["model"] is None
    best = max((row for row in found["models"] if row["test"] and row["image_bytes"]), key=lambda row: row["validation"]["macro_f1"])
    assert widest["validation"] == best["validation"]["macro_f1"] and widest["test"] == rows[widest["model"]]["test"]["macro_f1"]
    assert any(path.name == "tiny-budgets.svg" for path in files)
    text = files[1].read_text()
    assert "| F1 .5 |" in text and "| 64 | none fits |" in text
    assert "Synthetic data" in text and "OVER BUDGET" in text and "small against stored (primary)" in text
    assert "Evaluations of test for this plan, all told: 15; of the same test set in all plans: 15." in text
    assert "- small, averaged weights with their own t*" in text and "- small, calibrated on validation" in text
    again = tables.write(plan, where)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files]


def test_decisions_of_another_run_are_noticed(ran, tmp_path):
    shutil.copytree(ran / "results", tmp_path / "results")
    where = Folders(tmp_path / "none", tmp_path / "results", tmp_path / "log")
    path = where.result("tiny", "plain", 0).with_suffix(".npz")
    found = Decisions.load(path)
    path.write_bytes(Decisions(found.y, 1 - found.decided, found.p, found.cluster).to_bytes())
    with pytest.raises(ConfigError, match="not of one run"):
        tables.build(load_plan(ran / "tiny.toml"), where)


def test_damaged_files_are_named(ran, tmp_path):
    shutil.copytree(ran / "results", tmp_path / "results")
    where, plan = folders(tmp_path), load_plan(ran / "tiny.toml")
    where.log.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folders(ran).log, where.log)
    with open(where.log, "a") as file:
        file.write('{"run": "tiny/pl')
    with pytest.raises(ConfigError, match=r"line 16 is no evaluation"):
        tables.build(plan, where)
    path = where.result("tiny", "plain", 1)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"plain-s1.json: is no whole result"):
        tables.build(plan, where)


def test_a_run_is_held_by_one_process(ran, tmp_path):
    where, path = folders(tmp_path), ran / "tiny.toml"
    folder = where.run("tiny", "teacher", 0)
    with runner.held(folder), pytest.raises(ConfigError, match="another process is at this run"):
        schedule.run_all(path, schedule.Source(), where, only=["teacher"], validation_only=True)
    assert not folder.exists() and not where.result("tiny", "teacher", 0).exists(), "nothing was begun"


def test_what_was_declared_late_says_so(ran, tmp_path):
    text = PLAN.replace('published = "F1 .5"', 'published = "F1 .5"\ndeclared_after = "the others"')
    text = text.replace('figure = "auc"', 'figure = "auc"\ndeclared_after = "the first"')
    found = tables.markdown(tables.build(load_plan(written(tmp_path, text)), folders(ran)))
    assert "| small, declared after the others |" in found and ", declared after the first |" in found


def test_a_dry_run_counts_what_is_left(ran, tmp_path):
    plan = load_plan(ran / "tiny.toml")
    rows = schedule.table(plan, folders(ran), None, None)
    assert len(rows) == 11 and {row["state"] for row in rows} == {"tested"}
    fresh = schedule.table(plan, folders(tmp_path), ["small-s1"], None)
    assert [(row["model"], row["seed"], row["state"]) for row in fresh] == [("teacher", 0, "to do"), ("small", 1, "to do")]


@pytest.mark.parametrize("old, new, words", [
    ('start = "large"\n', "", "prune takes a trained network"),
    ("steps = 12", "stepz = 12", "unknown entry 'stepz'"),
    ("budgets = [64, 1000000]", "budgets = [0]", "budgets has 0"),
    ('teacher = "teacher"', 'teacher = "nobody"', "which never comes"),
    ('second = ["plain", "large"]', 'second = ["plain", "huge"]', "no model 'huge'"),
    ("seeds = [0, 1, 2]", "seeds = [0, 1]", "at least 3"),
    ('name = "large"', 'name = "plain"', "given twice"),
    ('first = "plain"', 'first = "teacher"', "at least 3"),
    ('figure = "auc"', 'figure = "veb_f1"', "not one that this protocol compares"),
    ("budget = 4096", 'budget = "4096"', "give a value of type int"),
    ('[[model]]\nname = "plain"\nnet = "separable"', '[[model]]\nname = "plain"', "net is not given"),
    ('title = "A small synthetic experiment"', "", "title is not given"),
    ('teacher = "teacher"', 'teacher = "elsewhere"', "made elsewhere and leaves no run folder"),
    ("train = {", "train = {learnrate = 0.1, ", "train has the unknown entry 'learnrate'"),
])
def test_a_declaration_that_makes_no_sense(tmp_path, old, new, words):
    assert old in PLAN
    with pytest.raises(ConfigError, match=words):
        load_plan(written(tmp_path, PLAN.replace(old, new, 1)))


def test_a_model_made_elsewhere_follows_the_same_protocol(ran, tmp_path):
    """A logistic rule on two numbers of a window stands for another framework."""
    from pyhtpw.experiment.external import score_external
    from pyhtpw.experiment.runner import load_dataset

    shutil.copytree(ran, tmp_path / "copy")
    plan, where = load_plan(ran / "tiny.toml"), folders(tmp_path / "copy")
    with pytest.raises(ConfigError, match="made elsewhere"):
        schedule.chosen(plan, ["elsewhere"])
    data = load_dataset(plan, None, None)

    def chances(x, seed):
        rate = 1 / (1 + np.exp(-plan.model("elsewhere").options["slope"] * (x.std(axis=(1, 2)) - 1 + 0.1 * seed)))
        return np.stack([1 - rate, rate], axis=1)

    for seed in plan.seeds:
        p_val, p_test = (chances(part.x, seed) for part in (data.val, data.test))
        made = {"checkpoint": b"weights %d" % seed, "p_val": p_val, "p_test": p_test, "parameters": 2, "training": {"steps": 0}}
        result = score_external(plan, "elsewhere", seed, data, where, **made)
        assert result["threshold"] == result["test"]["threshold"]
        assert score_external(plan, "elsewhere", seed, data, where, **made) == json.loads(json.dumps(result)), "test is scored once"
    assert sum("elsewhere" in line for line in where.log.read_text().splitlines()) == 3
    with pytest.raises(ConfigError, match="made by pyhtpw"):
        score_external(plan, "plain", 0, data, where, **made)
    row = tables.build(plan, where)["comparisons"][0]
    assert row["second"] == "elsewhere" and row["seeds"] == 3 and row["difference"]["low"] <= row["difference"]["estimate"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_does_not_end_the_others(tmp_path, jobs):
    """A learning rate that diverges, a model that needs it, and one that does not."""
    text = PLAN[:PLAN.index("[[compare]]")].replace("seeds = [0, 1, 2]", "seeds = [0]")
    head, *models = text.split("[[model]]")
    models = [m for m in models if any(f'name = "{n}"' in m for n in ("plain", "large", "pruned"))]
    models = [m + 'train = {lr = 1e30, clip = 0.0}\n' if 'name = "large"' in m else m for m in models]
    path, said = written(tmp_path, "[[model]]".join([head, *models[1:], models[0]])), []
    with pytest.raises(HtpwError, match="the last good checkpoint|not finite|overflow"):
        schedule.run_all(path, schedule.Source(), folders(tmp_path), jobs=jobs, validation_only=True, say=said.append)
    assert folders(tmp_path).result("tiny", "plain", 0).is_file()
    assert sum(line.startswith("FAILED large") for line in said) == 1
    assert any(line.startswith("FAILED pruned") and "needs large" in line for line in said)


def test_front():
    assert tables.front([(100, 0.5), (50, 0.6), (200, 0.7), (50, 0.4), (300, 0.7)]) == [1, 2]
