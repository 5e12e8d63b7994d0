"""Sweeps: a real local cluster of two workers of which one is killed, a study that goes on, workers that are refused."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna")
pytest.importorskip("distributed")

from pyhtpw.errors import ConfigError, ToolError
from pyhtpw.experiment import sweep as module
from pyhtpw.experiment.sweep import evaluate, load_sweep, open_study, run_sweep, summary

SWEEP = """
data = "synthetic-ecg"
protocol = "synthetic"
data_options = {patients = [4, 4, 2], beats = [30, 30, 20], window = 64}
trials = 3
steps = 3
[base]
net = "separable"
options = {widths = [6], strides = [2], stem_kernel = 5, kernel = 3}
train = {augment = {}}
[space]
"options.stem" = {int = [2, 6], step = 2}
"heads.pw1" = {choice = ["stored:bits=8", "stored:bits=4"]}
"train.lr" = {float = [1e-3, 1e-2], log = true}
"""


def declared(folder: Path, text: str = SWEEP):
    path = folder / "tiny.toml"
    path.write_text(text)
    return load_sweep(path)


def in_the_shade_of_a_killer(sweep, params, data_dir, cache_dir):
    """A trial as it is, but the first worker to take one says who it is and waits to be killed. `cache_dir` is where they meet."""
    meeting = Path(cache_dir)
    try:
        with open(meeting / "victim", "x") as file:
            file.write(f"{os.getpid()} {json.dumps(params)}")
    except FileExistsError:
        with open(meeting / "pids", "a") as file:
            file.write(f"{os.getpid()} {json.dumps(params)}\n")
        return evaluate(sweep, params, data_dir, "")
    time.sleep(60)
    raise AssertionError("nobody came")


def test_a_killed_workers_trial_is_done_by_another(tmp_path):
    sweep, killed = declared(tmp_path), []

    def killer():
        victim = tmp_path / "victim"
        while not (victim.exists() and len(victim.read_text().split(" ", 1)) == 2):
            time.sleep(0.05)
        killed.extend(victim.read_text().split(" ", 1))
        os.kill(int(killed[0]), signal.SIGKILL)

    thread = threading.Thread(target=killer, daemon=True)
    thread.start()
    seen = []
    found = run_sweep(sweep, tmp_path / "out", workers=2, cache_dir=tmp_path, evaluate_=in_the_shade_of_a_killer,
                      progress=lambda each: seen.append((len(each["trials"]), (tmp_path / "out" / "pareto.svg").stat().st_size)))
    thread.join(1)
    assert killed, "no worker was killed"
    assert [row["state"] for row in found["trials"]] == ["complete"] * 3
    done = (tmp_path / "pids").read_text().splitlines()
    again = [line.split(" ", 1)[0] for line in done if line.split(" ", 1)[1] == killed[1]]
    assert again and killed[0] not in again, "the victim's trial was done by another process"
    assert [n for n, _ in seen] == [1, 2, 3] and all(size for _, size in seen), "progress after every trial"
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == json.loads(json.dumps(found))
    for row in found["trials"]:
        assert (tmp_path / "out" / "images" / f"trial-{row['trial']:05d}.htpw").stat().st_size == row["image_bytes"]
        assert row["m4_instructions"] > 0 and 0 <= row["val_macro_f1"] <= 1
    assert any(row["pareto"] for row in found["trials"])
    # The same trial here, in this process: the same bytes.
    row = found["trials"][0]
    assert evaluate(sweep, row["params"], "", "")["image_sha256"] == row["image_sha256"]
    # The study goes on: nothing is done again, and a stopped trial comes back with its values.
    study = open_study(sweep, f"sqlite:///{tmp_path / 'out' / 'study.db'}")
    left = study.ask(module.distributions(sweep)).params
    study = open_study(sweep, f"sqlite:///{tmp_path / 'out' / 'study.db'}")
    assert study.ask(module.distributions(sweep)).params == left
    states = [row["state"] for row in summary(study)["trials"]]
    assert states == ["complete"] * 3 + ["fail"] and module._ended(study) == 3
    with pytest.raises(ConfigError, match="another declaration"):
        open_study(declared(tmp_path, SWEEP.replace("steps = 3", "steps = 4")), f"sqlite:///{tmp_path / 'out' / 'study.db'}")


class Workers:
    """A client as far as `_one_kind` knows it."""

    def __init__(self, *found: dict) -> None:
        self.found = {f"tcp://{i}": each for i, each in enumerate(found)}

    def wait_for_workers(self, n, timeout):
        assert n <= len(self.found)

    def run(self, function):
        return self.found


def test_workers_of_another_kind_are_refused(tmp_path):
    sweep = declared(tmp_path)
    study = open_study(sweep, f"sqlite:///{tmp_path / 's.db'}")
    here = module.worker_environment()
    assert module._one_kind(Workers(here, here), study) == here
    other = {**here, "cpu": "another"}
    with pytest.raises(ConfigError, match="1 of 2 workers differ .*cpu another instead of"):
        module._one_kind(Workers(here, other), study)
    with pytest.raises(ConfigError, match="1 of 1 workers differ"):
        module._one_kind(Workers(other), study)  # all alike, but not like the study's first
    late = module._task(evaluate, sweep, {}, "", "", other)
    assert set(late) == {"refused"} and "instead of another" in late["refused"]


def test_a_trial_that_cannot_be_is_a_result(tmp_path):
    sweep = declared(tmp_path, SWEEP.replace('"stored:bits=4"', '"stored:bits=3"'))
    found = module._task(evaluate, sweep, {"options.stem": 2, "heads.pw1": '"stored:bits=3"', "train.lr": 0.01}, "", "", None)
    assert found["error"].startswith("ConfigError")


@pytest.mark.parametrize("old, new, words", [
    ("steps = 3", "stepz = 3", "unknown entry 'stepz'"),
    ("{int = [2, 6], step = 2}", "{int = [6, 2]}", "options.stem"),
    ("{int = [2, 6], step = 2}", "[2, 6]", "give {choice"),
    ("{int = [2, 6], step = 2}", "{int = [2, 6], stride = 2}", "unknown option"),
    ("trials = 3", "trials = 0", "at least 1"),
    ('protocol = "synthetic"', "", "protocol is not given"),
    ("steps = 3", 'steps = "3"', "steps is '3': give a value of type int"),
    ("trials = 3", 'trials = 3\nmedian = "5"', "median is '5': give a value of type int"),
])
def test_a_declaration_that_makes_no_sense(tmp_path, old, new, words):
    with pytest.raises(ConfigError, match=words):
        declared(tmp_path, SWEEP.replace(old, new))


def test_no_scheduler_there(tmp_path):
    import distributed

    with pytest.raises((ConfigError, ToolError), match="no Dask scheduler answers"):
        module._connect(type("quick", (), {"Client": lambda address, timeout: distributed.Client(address, timeout=0.3)}),
                        "tcp://127.0.0.1:9", 1)
