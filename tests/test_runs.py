"""What a run folder holds: description, picture, images; teachers of `pyhtpw train`; how a diverging run ends."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from pyhtpw import pipeline, runs, training
from pyhtpw.data import load
from pyhtpw.errors import ConfigError, TrainError
from pyhtpw.model import Image
from pyhtpw.quant.store import load_model
from pyhtpw.recipes import Recipe
from pyhtpw.train import Model, TrainConfig, train
from pyhtpw.train.checkpoint import load_checkpoint

NET = {"widths": (8, 12, 12), "strides": (2, 2, 1), "stem": 6}
RECIPE = Recipe(net_options=NET, train={"steps": 6, "eval_every": 3, "batch": 8})
TEACHER = {"net": "separable", "steps": 3, "options": {"widths": (8, 8), "strides": (2, 2), "stem": 6}}


@pytest.fixture(scope="module")
def data():
    return load("synthetic-ecg", seed=0)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """Folder and summary of a run that learnt from a teacher, on the kernels of its image."""
    out = tmp_path_factory.mktemp("run")
    recipe = training.changed(RECIPE, teacher=TEACHER, objective={"feature": 0.1, "kd": 1.0}, aware=True)
    teacher, told = training.distil(recipe, data, out)
    graph, config = pipeline.network(recipe, data), pipeline.configuration(recipe, seed=0)
    runs.begin(runs.describe(recipe, graph, config, data, {"sha256": teacher.key}), out)
    graph, _, result = pipeline.train_stage(recipe, data, out, seed=0, teacher=told)
    return out, runs.finish(graph, result, data, out, seed=0, median=3), result


def test_a_run_folder_says_where_it_comes_from(finished, data):
    described = json.loads((finished[0] / runs.RUN_FILE).read_text())
    assert described["seed"] == 0 and described["recipe"]["teacher"]["net"] == "separable"
    assert described["config"]["objective"]["kd_temperature"] == 2.0 and described["config"]["weight_decay"] == 0.01  # defaults too
    assert described["machine"]["cpu"] and described["versions"]["numba"] != "not installed"
    assert described["teacher"]["sha256"] == load_checkpoint(finished[0] / "teacher.safetensors")[1]["teacher"]
    x = np.ascontiguousarray(data.val.x, "<f4")
    wanted = hashlib.sha256(f"{x.shape}".encode() + x.tobytes() + np.asarray(data.val.y, "<i8").tobytes()).hexdigest()
    assert described["data"]["fingerprint"]["val"] == wanted != described["data"]["fingerprint"]["train"]


def test_final_images_have_thresholds_of_their_own(finished, data):
    out, summary, result = finished
    assert json.loads((out / runs.SUMMARY).read_text()) == summary and summary["not_run"] == []
    assert (out / runs.CURVES_PNG).read_bytes().startswith(b"\x89PNG")
    for name, params in (("raw", result.params), ("ema", result.ema_params)):
        row = summary["images"][name]
        image, model = Image.open(out / row["image"]), load_model(out / name / pipeline.INTEGER)
        assert len(image.data) == row["bytes"] and hashlib.sha256(image.data).hexdigest() == row["sha256"]
        again = pipeline.quantise_stage(pipeline.network(RECIPE, data), params, data, seed=0, median=3)
        assert again.threshold == row["threshold"] and again.macro_f1 == row["val_macro_f1_integer"]
        assert again.image.data == image.data and runs.write(model) == image.data


def test_a_new_run_removes_what_an_older_one_left(tmp_path):
    for name in ("raw/model.htpw", "ema/model.npz", "summary.json", "curves.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"old")
    runs.begin({"seed": 1}, tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [runs.RUN_FILE]


def test_a_missing_matplotlib_is_said(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pyhtpw[report]" in runs.draw_curves(finished[2], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_more_classes_have_no_threshold(data, tmp_path):
    rng = np.random.default_rng(0)
    three = replace(
        data,
        classes=("a", "b", "c"),
        **{name: replace(getattr(data, name), y=rng.integers(0, 3, len(getattr(data, name).y))) for name in ("train", "val")},
    )
    graph, _, result = pipeline.train_stage(RECIPE, three, tmp_path, seed=0)
    found, missing = runs.final_images(graph, result, three, tmp_path, seed=0, median=1)
    assert not missing and all(row["threshold"] is None and 0 < row["val_macro_f1_integer"] < 1 for row in found.values())
    assert Image.open(tmp_path / "raw" / "model.htpw").parsed.info.classes == ("a", "b", "c")


def test_git_revision(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=t", "-c", "user.email=t@t", *arguments], check=True, capture_output=True)

    (tmp_path / "__init__.py").write_text("a = 1\n")
    assert runs.git_revision(tmp_path)["revision"] == "unknown" and runs.git_revision(tmp_path)["reason"]
    try:
        git("init")
    except FileNotFoundError:
        pytest.skip("NOT RUN: git is not installed")
    assert runs.git_revision(tmp_path)["revision"] == "unknown", "a repository that does not hold the package is not its own"
    git("add", ".")
    git("commit", "-m", "x")
    clean = runs.git_revision(tmp_path)
    assert len(clean["revision"]) == 40 and clean["dirty"] is False
    (tmp_path / "__init__.py").write_text("a = 2\n")
    assert runs.git_revision(tmp_path) == {**clean, "dirty": True}


# -- teachers ----------------------------------------------------------------------------------------------------------


def test_a_teacher_is_trained_once_with_a_budget_of_its_own(finished, data, monkeypatch):
    out, recipe = finished[0], training.changed(RECIPE, teacher=TEACHER)
    described = load_checkpoint(out / "teacher" / "last.safetensors")[1]
    assert described["step"] == 3 and described["config"]["objective"]["kd"] == 0 and described["config"]["aware"] is False
    assert recipe.train["objective"] == {"kd": 1.0}, "a teacher counts unless something else is said"
    monkeypatch.setattr(Model, "backward", None)  # nothing is trained again, and the outputs come from their file
    before = (out / "teacher.safetensors").stat().st_mtime_ns
    teacher, told = training.distil(recipe, data, out)
    assert (out / "teacher.safetensors").stat().st_mtime_ns == before and told.logits.shape == (len(data.train.x), 2)
    same = training.distil(training.changed(RECIPE, teacher={"run": str(out / "teacher")}), data, out)
    assert same[0].key == teacher.key and same[1].key == told.key


@pytest.mark.skipif(sys.version_info < (3, 11), reason="NOT RUN: TOML takes Python 3.11")
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('[train]\nteacher = "a"\n', {"run": "a"}),
        ('[teacher]\nnet = "separable"\nsteps = 5\n', {"net": "separable", "steps": 5}),
    ],
)
def test_teachers_in_a_file(tmp_path, text, wanted):
    path = tmp_path / "run.toml"
    path.write_text(text + ("objective = {feature = 0.5, kd_alpha = 0.6}\n" if "[train]" in text else ""))
    found = training.changed(RECIPE, config=path)
    assert found.teacher == wanted and "teacher" not in found.train
    assert found.train["objective"] == ({"feature": 0.5, "kd_alpha": 0.6} if "[train]" in text else {"kd": 1.0})
    over = training.changed(RECIPE, config=path, teacher={"run": "b"}, objective={"kd": 2.0})
    assert over.teacher == {"run": "b"} and over.train["objective"]["kd"] == 2.0


@pytest.mark.skipif(sys.version_info < (3, 11), reason="NOT RUN: TOML takes Python 3.11")
@pytest.mark.parametrize(
    ("text", "said"),
    [("[teacher]\nnets = 'x'\n", "unknown entry 'nets'"), ("[train]\nteacher = 'a'\n[teacher]\nnet = 'b'\n", "both name a teacher")],
)
def test_bad_teachers_in_a_file_are_named(tmp_path, text, said):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        training.changed(RECIPE, config=path)


def test_teachers_that_cannot_teach(data, tmp_path):
    with pytest.raises(ConfigError, match="one of run and net"):
        training.distil(replace(RECIPE, teacher={"steps": 3}), data, tmp_path)
    with pytest.raises(TrainError, match="no checkpoint"):
        training.distil(replace(RECIPE, teacher={"run": str(tmp_path)}), data, tmp_path)
    short = {**RECIPE.train, "steps": 1, "eval_every": 1, "warmup": 0}
    graph = pipeline.build("separable", t=90, **NET)
    cut = replace(data.train, x=data.train.x[:, :90])
    train(graph, cut, cut, TrainConfig(**short), tmp_path / "other")
    with pytest.raises(ConfigError, match="train one on the same data"):
        training.distil(replace(RECIPE, teacher={"run": str(tmp_path / "other")}), data, tmp_path)


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 11), reason="NOT RUN: TOML takes Python 3.11")
def test_a_diverging_run_ends_with_one_line(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[net]\nwidths = [8]\nstrides = [2]\nstem = 4\n[train]\nlr = 1e30\nwarmup = 0\nclip = 0\nbatch = 8\n")
    done = subprocess.run(
        [sys.executable, "-m", "pyhtpw", "train", "--config", path, "--steps", "30", "--out", tmp_path / "run", "--json"],
        capture_output=True, text=True,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if line.startswith("pyhtpw:")]
    assert done.returncode == 2 and not done.stdout and "Traceback" not in done.stderr
    assert len(said) == 1 and "step" in said[0] and "first not finite: " in said[0] and "last.safetensors (step 0)" in said[0]
