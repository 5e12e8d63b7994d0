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
from pyhtpw.data.hrv import NETWORKS, for_network, sample
from pyhtpw.errors import ConfigError, HtpwError
from pyhtpw.experiment.plan import EXTERNAL, Model, Plan, load_plan
from pyhtpw.experiment.runner import Folders, done, load_dataset, run_one

_THREADS = "NUMBA_NUM_THREADS"
_SAMPLED = 256  # windows of each split of which a dry run makes features


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


def table(plan: Plan, folders: Folders, only: list[str] | None, data: Dataset | None,
          cache_dir: Path | None = None) -> list[dict[str, Any]]:
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
                # features of every window take longer than the training: those of some do
                seen = for_network(model.net, sample(data, _SAMPLED) if model.net in NETWORKS else data, cache_dir)
                costs[model.name] = estimate(_without_teacher(plan, model), seen, seed=seed)
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

    Raises what the first run that failed raised, after all others but those that need it.
    """
    plan = load_plan(path)
    runs = chosen(plan, only)
    options = {"validation_only": validation_only, "command": command, "compiler": compiler, "cache_dir": source.cache_dir}
    ended = Ended(plan, say)
    if jobs == 1:
        data = load_dataset(plan, source.data_dir, source.cache_dir)
        for model, seed in runs:
            if not ended.waits_in_vain(model, seed):
                try:
                    ended.results[model.name, seed] = run_one(plan, model, seed, data, folders, say=say, **options)
                except HtpwError as error:
                    ended.failed(model, seed, error)
    else:
        _in_processes(path, source, folders, plan, runs, options, jobs, ended)
    if ended.failures:
        raise next(iter(ended.failures.values()))
    return [ended.results[model.name, seed] for model, seed in runs]


class Ended:
    """Results and failures so far. A run that fails does not end the others: only those that need it are left out."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan, self.say = plan, say
        self.results: dict[tuple[str, int], dict[str, Any]] = {}
        self.failures: dict[tuple[str, int], HtpwError] = {}

    def failed(self, model: Model, seed: int, error: HtpwError) -> None:
        """Notes a failure and says it."""
        self.failures[model.name, seed] = error
        self.say(f"FAILED {model.name}, seed {seed}: {error}")

    def waits_in_vain(self, model: Model, seed: int) -> bool:
        """Whether a run needs one that failed; noted then, too."""
        lost = [need for need in self.plan.needs(model, seed) if need in self.failures]
        if lost:
            self.failed(model, seed, ConfigError(f"{model.name}, seed {seed}: needs {lost[0][0]}, seed {lost[0][1]}, which failed"))
        return bool(lost)


def _in_processes(path: Path, source: Source, folders: Folders, plan: Plan, runs: list[tuple[Model, int]], options: dict[str, Any],
                  jobs: int, ended: Ended) -> None:
    left, running = list(runs), {}
    threads = os.environ.get(_THREADS)
    # Numba reads it when it is imported, which is before anything of ours runs in a process: so it is set around their start.
    os.environ[_THREADS] = str(max(1, (os.cpu_count() or 1) // jobs))
    try:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            while left or running:
                for run in list(left):
                    model, seed = run
                    if ended.waits_in_vain(model, seed):
                        left.remove(run)
                    elif len(running) < jobs and set(plan.needs(model, seed)) <= set(ended.results):
                        ended.say(f"{model.name}, seed {seed}: begins")
                        running[pool.submit(_run, path, source, model.name, seed, folders, options)] = run
                        left.remove(run)
                done_now, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done_now:
                    model, seed = running.pop(future)
                    try:
                        ended.results[model.name, seed] = future.result()
                        ended.say(f"{model.name}, seed {seed}: done")
                    except HtpwError as error:
                        ended.failed(model, seed, error)
    finally:
        os.environ.pop(_THREADS)
        if threads is not None:
            os.environ[_THREADS] = threads


def _run(path: Path, source: Source, model: str, seed: int, folders: Folders, options: dict[str, Any]) -> dict[str, Any]:
    plan = load_plan(path)
    try:
        return run_one(plan, plan.model(model), seed, load_dataset(plan, source.data_dir, source.cache_dir), folders, **options)
    except HtpwError as error:  # some take more than a message, and then do not survive the way between processes
        raise HtpwError(str(error)) from error
