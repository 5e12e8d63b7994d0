"""What `pyhtpw train` is told: TOML files, options, parameters to begin with, dry runs."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pyhtpw import pipeline, training
from pyhtpw.data import load
from pyhtpw.errors import ConfigError
from pyhtpw.nets import build
from pyhtpw.recipes import Recipe
from pyhtpw.train import Model

RECIPE = Recipe(net_options={"widths": (8, 12, 12), "strides": (2, 2, 1), "stem": 6}, train={"steps": 4, "eval_every": 4, "batch": 8})


@pytest.fixture(scope="module")
def data():
    return load("synthetic-ecg", seed=0)


def toml(tmp_path, text: str):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


@pytest.mark.skipif(sys.version_info < (3, 11), reason="NOT RUN: TOML takes Python 3.11")
def test_a_file_changes_the_recipe_and_options_change_the_file(tmp_path):
    path = toml(tmp_path, '[net]\nname = "separable"\nstem = 4\n[train]\nsteps = 9\nobjective = {focal = 0.5}\n[heads]\npw = "seeded"\n[evaluate]\nmedian = 5\n')
    found = training.changed(RECIPE, config=path)
    assert (found.net, found.median, found.train["steps"], found.train["batch"]) == ("separable", 5, 9, 8)
    assert found.net_options["stem"] == 4 and found.net_options["heads"] == {"pw": "seeded"}
    over = training.changed(RECIPE, config=path, net="hypertinypw", heads={"pw": "tiled"}, aware=True)
    assert over.net == "hypertinypw" and over.net_options["heads"] == {"pw": "tiled"} and over.train["aware"] is True
    assert training.changed(RECIPE) == RECIPE


@pytest.mark.skipif(sys.version_info < (3, 11), reason="NOT RUN: TOML takes Python 3.11")
@pytest.mark.parametrize(
    ("text", "said"),
    [("[nets]\n", "unknown table or entry 'nets'"), ("[train]\nstep = 3\n", "unknown entry 'step'"), ("steps =", "not a TOML file"),
     ("[heads]\npw = 'tild'\n", "tild")],
)
def test_bad_files_are_named(tmp_path, text, said):
    with pytest.raises(ConfigError, match="run.toml.*" + said):
        training.changed(RECIPE, config=toml(tmp_path, text))


def test_a_run_begins_with_another_ones_kernels(tmp_path, data):
    """The same heads: the same parameters. Others: fitted, with their errors. Another network: refused by name."""
    stored = training.changed(RECIPE, heads={"pw": "stored"})
    graph, _, result = pipeline.train_stage(stored, data, tmp_path / "a", seed=0)
    same, params, errors = training.initial(graph, tmp_path / "a", data, 0)
    assert same == graph and not errors and all(np.array_equal(params[k], v) for k, v in result.params.items())

    wanted = pipeline.network(training.changed(RECIPE, heads={"pw": "tiled:tile=4,dz=4,hidden=0,code_bits=8"}), data)
    fitted, found, errors = training.initial(wanted, tmp_path / "a", data, 0)
    assert set(errors) >= {"pw2", "pw3"} and all(0 <= e < 0.2 for e in errors.values()), "four numbers for four weights fit well"
    made = Model(fitted, found).kernels()
    for name in ("pw2", "pw3"):
        flat = [np.ravel(k).astype(float) for k in (made[name], result.params[f"{name}.weight"])]
        assert np.corrcoef(*flat)[0, 1] > 0.9
    recipe = training.changed(RECIPE, heads={"pw": "tiled:tile=4,dz=4,hidden=0,code_bits=8"}, aware=True)
    tuned = pipeline.train_stage(recipe, data, tmp_path / "b", seed=0, start=(fitted, found))[2]
    assert tuned.steps == 4

    other = build("hypertinypw", t=data.train.x.shape[1], widths=(8, 12), strides=(2, 2), stem=6)
    with pytest.raises(ConfigError, match="other layers"):
        training.initial(other, tmp_path / "a", data, 0)


def test_a_dry_run_costs_nothing_and_says_what_a_run_would(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pyhtpw", "train", "--dry-run", "--json", "--out", str(tmp_path / "run"), "--head", "tiled:hidden=0"],
        capture_output=True, text=True, check=True,
    )
    found = json.loads(done.stdout)
    assert found["network"] == "hypertinypw" and found["generated_weights"] == 14336 and 5000 < found["image_bytes"] < 8000
    assert found["hours"] > 0 and not (tmp_path / "run").exists()
