"""All runs of a plan, each after those it needs, in one process or several; and what they would cost, before any."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyhtpw.data import Dataset
from pyhtpw.errors import ConfigError
from pyhtpw.experiment.plan import EXTERNAL, Model, Plan, load_plan
from pyhtpw.experiment.runner import Folders, done, load_dataset, run_one


@dataclass(frozen=True)
class Source:
    """Where data are read from."""

    data_dir: Path | None = None
    cache_dir: Path | None = None


def chosen(plan: Plan, only: list[str] | None) -> list[tuple[Model, int]]:
    """Runs of the models named in `only` ("MODEL" or "MODEL-sSEED"), or all, with those they need, in order; never of external ones.

    Raises ConfigError for a name that the plan does not have.
    """
    runs = plan.ordered()
    if not only:
        return [run for run in runs if run[0].net != EXTERNAL]
    names = {f"{m.name}-s{s}": (m, s) for m, s in runs}
    wanted: set[tuple[str, int]] = set()
    for text in only:
        found = [(m.name, s) for m, s in runs if text == m.name] or ([(names[text][0].name, names[text][1])] if text in names else [])
        if not found:
            raise ConfigError(f"{plan.name}: has no model or run {text!r}: name a model, or MODEL-sSEED")
        wanted.update(found)
    for model, seed in reversed(runs):
        if (model.name, seed) in wanted:
            wanted.update(plan.needs(model, seed))
    made = [(m, s) for m, s in runs if (m.name, s) in wanted]
    elsewhere = [m.name for m, _ in made if m.net == EXTERNAL]
    if elsewhere:
        raise ConfigError(f"{plan.name}: model {elsewhere[0]} is made elsewhere, and its maker writes the result: leave it out here")
    return made


def table(plan: Plan, folders: Folders, only: list[str] | None, data: Dataset | None) -> list[dict[str, Any]]:
    """A dry run: a row per run with its state and, if `data` are given, image bytes as the network starts and hours of training,
    from a few timed steps of each model. The hours of runs that are trained are 0."""
    from pyhtpw.training import estimate

    rows, costs = [], {}
    for model, seed in chosen(plan, only):
        state = done(plan, model, seed, folders)
        trained = state or ("trained" if (folders.run(plan.name, model.name, seed) / "trained.json").is_file() else "")
        row = {"model": model.name, "seed": seed, "state": trained or "to do", "steps": plan.recipe(model).train["steps"],
               "budget": model.budget, "image_bytes": None, "hours": None}
        if data is not None:
            if model.name not in costs:
                costs[model.name] = estimate(_without_teacher(plan, model), data, seed=seed)
            row["image_bytes"] = costs[model.name].image_bytes
            row["hours"] = 0.0 if trained else round(costs[model.name].hours, 3)
        rows.append(row)
    return rows


def _without_teacher(plan: Plan, model: Model):
    from dataclasses import replace

    recipe = plan.recipe(model)
    return replace(recipe, train={k: v for k, v in recipe.train.items() if k != "objective"})


def run_all(path: Path, source: Source, folders: Folders, *, only: list[str] | None = None, jobs: int = 1,
            validation_only: bool = False, command: str = "", compiler: str = "auto",
            say: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """Every run of a plan that is not done; their results in order.

    Parameters
    ----------
    path : Path
        The declaration. Every process reads it for itself.
    source, folders
        Where data come from and results go.
    only : list of str, optional
        See `chosen`.
    jobs : int
        Runs at a time, each in a process with its share of the cores. Results do not depend on it.
    validation_only : bool
        Pilots: nothing is scored on test, and nothing is written to the test log.
    command, compiler, say
        What is recorded; the emulator's compiler; progress.

    Raises what the first run that fails raises, after those in progress have ended.
    """
    plan = load_plan(path)
    runs = chosen(plan, only)
    options = {"validation_only": validation_only, "command": command, "compiler": compiler}
    if jobs == 1:
        data = load_dataset(plan, source.data_dir, source.cache_dir)
        return [run_one(plan, model, seed, data, folders, say=say, **options) for model, seed in runs]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    results: dict[tuple[str, int], dict[str, Any]] = {}
    left, running = list(runs), {}
    with ProcessPoolExecutor(jobs, context, initializer=_limit, initargs=(threads,)) as pool:
        while left or running:
            for run in list(left):
                model, seed = run
                if len(running) < jobs and set(plan.needs(model, seed)) <= set(results):
                    say(f"{model.name}, seed {seed}: begins")
                    running[pool.submit(_run, path, source, model.name, seed, folders, options)] = run
                    left.remove(run)
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                model, seed = running.pop(future)
                results[model.name, seed] = future.result()
                say(f"{model.name}, seed {seed}: done")
    return [results[model.name, seed] for model, seed in runs]


def _limit(threads: int) -> None:
    """Worker processes share the cores."""
    os.environ["NUMBA_NUM_THREADS"] = str(threads)


def _run(path: Path, source: Source, model: str, seed: int, folders: Folders, options: dict[str, Any]) -> dict[str, Any]:
    plan = load_plan(path)
    return run_one(plan, plan.model(model), seed, load_dataset(plan, source.data_dir, source.cache_dir), folders, **options)
