"""Committed results of declared experiments: they belong to their declarations, tables to their runs, and every look at test is logged."""

import hashlib
import json
from pathlib import Path

import pytest

from pyhtpw.experiment import tables
from pyhtpw.experiment.plan import load_plan
from pyhtpw.experiment.runner import Decisions

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PLANS = sorted((RESULTS / "plan").glob("*.toml"))
RUNS = sorted((RESULTS / "runs").glob("*/*.json"))


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_declarations_load_and_own_their_runs(path):
    plan = load_plan(path)
    for file in sorted((RESULTS / "runs" / plan.name).glob("*.json")):
        run = json.loads(file.read_text())
        assert file.stem == f"{run['model']}-s{run['seed']}"
        assert run["config_sha256"] == plan.config_sha256(plan.model(run["model"]), run["seed"]), file.name
        assert run["seed"] in plan.seeds_of(plan.model(run["model"])) and not run["synthetic"]


@pytest.mark.parametrize("path", [p for p in PLANS if (RESULTS / f"{p.stem}.json").is_file()], ids=lambda p: p.stem)
def test_tables_are_of_the_committed_runs(path):
    found = json.loads((RESULTS / f"{path.stem}.json").read_text())
    files = sorted((RESULTS / "runs" / path.stem).glob("*.json"))
    assert found["sources"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert (RESULTS / f"{path.stem}.md").read_text() == tables.markdown(found)
    primary = [row for row in found["comparisons"] if row["primary"]]
    if not any("not_run" in row for row in primary):
        assert all(row["holm"]["p_holm"] >= row["holm"]["p"] for row in primary)


def test_every_look_at_test_is_logged_once():
    assert RUNS
    lines = [json.loads(line) for line in (RESULTS / "test-log.jsonl").read_text().splitlines()]
    logged = [line["run"] for line in lines]
    for file in RUNS:
        run = json.loads(file.read_text())
        if run["test"]:
            name = f"{file.parent.name}/{file.stem}"
            assert logged.count(name) == 1, f"{name} was scored {logged.count(name)} times"
            assert Decisions.load(file.with_suffix(".npz")).y.size == run["test"]["n"]
        assert not any(word.startswith("/") for word in run["command"].split()), f"{file.name}: its command names a folder of one machine"
