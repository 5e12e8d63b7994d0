"""Search over configurations, on one machine or many: validation macro-F1 up, image bytes and Cortex-M4 instructions down.

::

    data = "mitdb"
    protocol = "aami"
    trials = 60
    seed = 0                            # of training and of the sampler
    steps = 1500

    [base]                              # what every trial has; entries of a plan's [[model]]
    net = "hypertinypw"
    options = {kernel = 9}

    [space]                             # what differs: path -> choice, int or float
    "options.stem" = {int = [8, 32], step = 8}
    "options.widths" = {choice = [[32, 64], [64, 64, 64]]}
    "heads.pw" = {choice = ["tiled:tile=32", "stored:bits=4"]}
    "train.lr" = {float = [1e-3, 1e-2], log = true}

An Optuna study in an RDB (SQLite by default) keeps every trial; the process that began the sweep asks it for the next ones and
hands them to Dask workers, who know nothing of it. A worker that dies is noticed by the Dask scheduler, which gives its trial to
another; a sweep that is stopped goes on where it was, with the trials that were under way first.

The same trial gives the same bytes on workers of the same CPU type and versions. Others are refused, because their results
would not repeat, unless mixing is allowed; then every trial says where it ran. Test is never touched.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pyhtpw.errors import ConfigError, HtpwError, ToolError
from pyhtpw.evaluate.choices import fingerprint
from pyhtpw.experiment.plan import Model, Plan, check_training, made
from pyhtpw.nets.toml import load_toml

OBJECTIVES = ("val_macro_f1", "image_bytes", "m4_instructions")
DIRECTIONS = ("maximize", "minimize", "minimize")
_THREADS = "NUMBA_NUM_THREADS"
_ATTEMPTS = 3  # workers that may die under a trial before it counts as failed
_UNDER_WAY = "under way when the sweep was stopped; queued again"
_STUDY, _TABLE, _PLOT = "study.db", "sweep.json", "pareto.svg"

Evaluate = Callable[["Sweep", dict[str, Any], str, str], dict[str, Any]]


@dataclass(frozen=True)
class Sweep:
    """A sweep as its TOML file declares it."""

    name: str
    data: str
    protocol: str
    space: dict[str, dict[str, Any]]
    base: dict[str, Any] = field(default_factory=dict)
    data_options: dict[str, Any] = field(default_factory=dict)
    data_seed: int = 0
    trials: int = 50
    seed: int = 0
    steps: int | None = None
    median: int = 1
    train: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Hash of what its trials depend on: of everything but their number."""
        return fingerprint({f.name: getattr(self, f.name) for f in fields(self) if f.name != "trials"})

    def plan(self, params: Mapping[str, Any]) -> Plan:
        """One trial as a plan of one model; ConfigError if the values make none."""
        table: dict[str, Any] = json.loads(json.dumps(self.base))
        for path, value in params.items():
            *folders, last = path.split(".", 1) if path.startswith("heads.") else path.split(".")
            at = table
            for name in folders:
                at = at.setdefault(name, {})
            at[last] = _parsed(self.space[path], value)
        if any(table.get(name) for name in ("teacher", "start")):
            raise ConfigError(f"{self.name}: trials stand alone: teacher and start belong to a plan")
        model = made(Model, {"name": "trial", **table}, f"{self.name}: a trial")
        check_training(model.train, f"{self.name}: a trial")
        return Plan(self.name, self.name, self.data, self.protocol, (self.seed,), (model,), data_options=self.data_options,
                    data_seed=self.data_seed, steps=self.steps, median=self.median, train=self.train)


def _parsed(space: Mapping[str, Any], value: Any) -> Any:
    """A suggested value as the plan has it: choices that are no plain values travel as JSON."""
    return json.loads(value) if "choice" in space else value


def load_sweep(path: Path) -> Sweep:
    """Read a declaration; ConfigError naming file and entry if it makes no sense."""
    table = dict(load_toml(path))
    for name in ("data", "protocol", "space"):
        if not table.get(name):
            raise ConfigError(f"{path}: {name} is not given")
    sweep = made(Sweep, {**table, "name": Path(path).stem}, str(path))
    check_training(sweep.train, str(path))
    if sweep.trials < 1:
        raise ConfigError(f"{path}: trials is {sweep.trials!r}: give a whole number of at least 1")
    distributions(sweep)
    return sweep


def distributions(sweep: Sweep) -> dict[str, Any]:
    """The space as Optuna has it; ConfigError for an entry that is none of choice, int and float."""
    optuna = _optuna()
    found = {}
    for path, given in sweep.space.items():
        where = f"{sweep.name}: space {path!r}"
        if not isinstance(given, Mapping) or len({"choice", "int", "float"} & set(given)) != 1:
            raise ConfigError(f"{where} is {given!r}: give {{choice = [...]}}, {{int = [low, high]}} or {{float = [low, high]}}")
        options = {k: v for k, v in given.items() if k in ("step", "log")}
        if set(given) - {"choice", "int", "float", "step", "log"}:
            raise ConfigError(f"{where}: has an unknown option: step and log are all there are")
        try:
            if "choice" in given:
                found[path] = optuna.distributions.CategoricalDistribution([json.dumps(v) for v in given["choice"]])
            elif "int" in given:
                found[path] = optuna.distributions.IntDistribution(*given["int"], **options)
            else:
                found[path] = optuna.distributions.FloatDistribution(*given["float"], **options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {error}") from error
    return found


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ToolError(f"sweeps need optuna, which cannot be imported ({error}): pip install 'pyhtpw[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


# -- on a worker -------------------------------------------------------------------------------------------------------


def worker_environment() -> dict[str, str]:
    """What the bytes of a trial depend on besides its declaration: CPU type and versions."""
    import scipy

    from pyhtpw import _native
    from pyhtpw.train.checkpoint import environment

    return {**environment(), "scipy": scipy.__version__, "pyhtpw": _native.version()}


@functools.lru_cache(maxsize=2)
def _dataset(plan_text: str, data_dir: str, cache_dir: str) -> Any:
    from pyhtpw.experiment.runner import load_dataset

    plan = Plan(models=(), seeds=(0,), title="", name="", **json.loads(plan_text))
    return load_dataset(plan, Path(data_dir) if data_dir else None, Path(cache_dir) if cache_dir else None)


def evaluate(sweep: Sweep, params: dict[str, Any], data_dir: str, cache_dir: str) -> dict[str, Any]:
    """Train, pack and validate one trial; the objectives, the image, and where it ran. Nothing of test is looked at."""
    from pyhtpw import pipeline
    from pyhtpw.errors import MissingToolError
    from pyhtpw.experiment.runner import instructions
    from pyhtpw.packing import pack_network

    plan = sweep.plan(params)
    model = plan.models[0]
    recipe = plan.recipe(model)
    text = json.dumps({"data": plan.data, "protocol": plan.protocol, "data_options": plan.data_options, "data_seed": plan.data_seed})
    data = _dataset(text, data_dir, cache_dir)
    with tempfile.TemporaryDirectory(prefix="htpw-sweep-") as folder:
        graph, _, trained = pipeline.train_stage(recipe, data, Path(folder), seed=sweep.seed)
    packed = pack_network(graph, trained.params, data, model.pack, seed=sweep.seed, median=sweep.median,
                          aware=bool(recipe.train.get("aware"))).quantised
    counts, not_run = instructions(packed.image, "auto")
    if counts is None:
        raise MissingToolError(f"a sweep counts Cortex-M4 instructions: {not_run[0]}")
    return {
        "val_macro_f1": packed.macro_f1, "image_bytes": len(packed.image.data), "m4_instructions": counts["inference"],
        "synthesis_instructions": counts["synthesis"], "image": packed.image.data,
        "image_sha256": hashlib.sha256(packed.image.data).hexdigest(), "environment": worker_environment(),
    }  # fmt: skip


def _task(evaluate_: Evaluate, sweep: Sweep, params: dict[str, Any], data_dir: str, cache_dir: str,
          expected: dict[str, str] | None) -> dict[str, Any]:
    """What a worker does. A worker that joined late is checked here, too; errors in the trial itself are a result."""
    if expected is not None and worker_environment() != expected:
        return {"refused": _differences(expected, worker_environment())}
    try:
        return evaluate_(sweep, params, data_dir, cache_dir)
    except ToolError:
        raise  # of the machine, not of the trial
    except HtpwError as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _differences(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    return ", ".join(f"{k} {found.get(k)} instead of {v}" for k, v in expected.items() if found.get(k) != v)


# -- the process that began it -----------------------------------------------------------------------------------------


def open_study(sweep: Sweep, storage: str) -> Any:
    """The sweep's study, new or as it was left; ConfigError if it belongs to another declaration.

    Trials that were under way when a sweep ended are queued again, with the same values.
    """
    optuna = _optuna()
    try:
        study = optuna.create_study(storage=storage, study_name=sweep.name, load_if_exists=True, directions=DIRECTIONS)
    except Exception as error:  # whatever the database's driver raises
        raise ConfigError(f"{storage}: cannot be opened as a study ({str(error).splitlines()[0]}): give another --storage") from error
    # Another seed each time it is taken up: the same one would draw the first trials again.
    study.sampler = optuna.samplers.TPESampler(seed=sweep.seed + len(study.get_trials(deepcopy=False)), constant_liar=True)
    if study.user_attrs.get("sweep", sweep.key) != sweep.key:
        raise ConfigError(f"{storage}: holds a sweep {sweep.name!r} with another declaration: rename one of them")
    study.set_user_attr("sweep", sweep.key)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        _note(study, trial.number, {"error": _UNDER_WAY})
    return study


def _note(study: Any, number: int, values: Mapping[str, Any]) -> None:
    trial = study.get_trials(deepcopy=False)[number]
    for name, value in values.items():
        # Optuna closes a finished trial's own attributes, so what is known of trials lies with the study.
        study.set_user_attr(f"trial-{trial.number}-{name}", value)


def summary(study: Any) -> dict[str, Any]:
    """The study as JSON: every trial that ended, and which of them nothing else beats in all objectives."""
    attributes = study.user_attrs
    best = {trial.number for trial in study.best_trials}
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            continue
        prefix = f"trial-{trial.number}-"
        row = {"trial": trial.number, "state": trial.state.name.lower(), "pareto": trial.number in best, "params": trial.params,
               **dict(zip(OBJECTIVES, trial.values or [None] * 3, strict=True))}
        rows.append(row | {k.removeprefix(prefix): v for k, v in attributes.items() if k.startswith(prefix)})
    return {"study": study.study_name, "sweep_sha256": attributes.get("sweep"), "trials": rows}


def run_sweep(sweep: Sweep, out: Path, *, storage: str | None = None, scheduler: str | None = None, workers: int = 2,
              allow_mixed: bool = False, data_dir: Path | None = None, cache_dir: Path | None = None,
              evaluate_: Evaluate = evaluate, progress: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Run trials until as many as declared have ended; the `summary`, which is also in `out`.

    Parameters
    ----------
    sweep : Sweep
    out : Path
        Folder of the study (unless `storage` says otherwise), images of trials, summary and Pareto plot; the last two are written
        anew after every trial.
    storage : str, optional
        Of the study, as Optuna takes it: ``sqlite:///...``, ``postgresql://...``.
    scheduler : str, optional
        Address of a Dask scheduler with workers. Without it a local cluster is started.
    workers : int
        Processes of the local cluster.
    allow_mixed : bool
        Take workers of other CPU types and versions than the first trial's.
    data_dir, cache_dir : Path, optional
        As the workers see them.
    evaluate_ : callable
        What a trial is; for tests.
    progress : callable, optional
        Called with the summary after every trial.

    Raises
    ------
    ConfigError
        The study belongs to another declaration; the scheduler cannot be reached; a worker is of another kind.
    ToolError
        A package or tool is missing, or workers died under a trial again and again.
    """
    try:
        import distributed
    except ImportError as error:
        raise ToolError(f"sweeps need dask[distributed] ({error}): pip install 'pyhtpw[sweep]'") from error
    out.mkdir(parents=True, exist_ok=True)
    study = open_study(sweep, storage or f"sqlite:///{(out / _STUDY).resolve()}")
    space = distributions(sweep)
    threads = os.environ.get(_THREADS)
    client, cluster = _connect(distributed, scheduler, workers)
    try:
        expected = None if allow_mixed else _one_kind(client, study)
        arguments = (str(data_dir or ""), str(cache_dir or ""), expected)
        running: dict[Any, int] = {}
        waiting = distributed.as_completed()
        while True:
            slots = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
            while len(running) < slots and _ended(study) + len(running) < sweep.trials:
                trial = study.ask(space)
                future = client.submit(_task, evaluate_, sweep, trial.params, *arguments, pure=False, retries=0,
                                       key=f"{sweep.name}-{trial.number}-{sweep.key[:8]}")
                running[future.key] = trial.number
                waiting.add(future)
            if not running:
                break
            future = next(waiting)
            _tell(study, running.pop(future.key), future, out)
            found = summary(study)
            _publish(found, out)
            if progress is not None:
                progress(found)
        found = summary(study)
        _publish(found, out)
        return found
    finally:
        client.close()
        if cluster is not None:
            cluster.close()
        os.environ.pop(_THREADS, None)  # Dask leaves what it set for its workers
        if threads is not None:
            os.environ[_THREADS] = threads


def _connect(distributed: Any, scheduler: str | None, workers: int) -> tuple[Any, Any]:
    import dask

    if scheduler:
        try:
            return distributed.Client(scheduler, timeout=10), None
        except (OSError, ValueError) as error:
            raise ConfigError(f"--scheduler {scheduler}: no Dask scheduler answers there ({error}): start one with "
                              "'dask scheduler'") from error
    threads = max(1, (os.cpu_count() or 1) // workers)
    dask.config.set({"distributed.scheduler.allowed-failures": _ATTEMPTS - 1,
                     f"distributed.nanny.pre-spawn-environ.{_THREADS}": threads})
    cluster = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None)
    return distributed.Client(cluster), cluster


def _one_kind(client: Any, study: Any) -> dict[str, str]:
    """The environment that all trials of the study share: that of its first worker ever; ConfigError if a worker has another."""
    client.wait_for_workers(1, timeout=60)
    found = client.run(worker_environment)
    expected = study.user_attrs.get("environment") or next(iter(found.values()))
    wrong = {address: _differences(expected, each) for address, each in found.items() if each != expected}
    if wrong:
        address, difference = next(iter(wrong.items()))
        raise ConfigError(f"{len(wrong)} of {len(found)} workers differ from the study's ({address}: {difference}): their trials would not "
                          "give the same bytes. Leave them out, or allow it with --allow-mixed")
    study.set_user_attr("environment", expected)
    return expected


def _ended(study: Any) -> int:
    """Trials that count: scored, or failed by themselves. Those that were queued again do not."""
    found = summary(study)["trials"]
    return sum(row["state"] == "complete" or not str(row.get("error", "")).startswith(_UNDER_WAY) for row in found)


def _tell(study: Any, number: int, future: Any, out: Path) -> None:
    """A trial's end to the study; its image to `out`."""
    from distributed.scheduler import KilledWorker

    from pyhtpw.image.writer import save

    fail = _optuna().trial.TrialState.FAIL
    try:
        found = future.result()
    except KilledWorker as error:
        study.tell(number, state=fail)
        _note(study, number, {"error": f"{_ATTEMPTS} workers died under it"})
        raise ToolError(f"trial {number}: {_ATTEMPTS} workers died under it, the last was {error.last_worker}: look at their "
                        "memory") from error
    except Exception:
        study.tell(number, state=fail)
        _note(study, number, {"error": _UNDER_WAY})
        raise
    if "refused" in found:
        study.tell(number, state=fail)
        _note(study, number, {"error": _UNDER_WAY})
        raise ConfigError(f"a worker that joined differs from the study's ({found['refused']}): leave it out, or allow it with "
                          "--allow-mixed")
    if "error" in found:
        study.tell(number, state=fail)
        _note(study, number, {"error": found["error"]})
        return
    image = found.pop("image", None)
    if image is not None:
        (out / "images").mkdir(exist_ok=True)
        save(image, out / "images" / f"trial-{number:05d}.htpw")
    study.tell(number, [found[name] for name in OBJECTIVES])
    _note(study, number, {k: v for k, v in found.items() if k not in OBJECTIVES})


def _publish(found: dict[str, Any], out: Path) -> None:
    """Summary and Pareto plot on disk, each whole or not at all."""
    from pyhtpw.report.files import write_atomically

    write_atomically(out / _TABLE, (json.dumps(found, indent=1) + "\n").encode())
    plot = draw(found)
    if plot is not None:
        import io

        data = io.BytesIO()
        plot.savefig(data, format="svg", metadata={"Date": None})
        write_atomically(out / _PLOT, data.getvalue())


def draw(found: dict[str, Any]) -> Any:
    """Macro-F1 against bytes, instructions as the size of a point, the Pareto set filled; None before the first trial."""
    from matplotlib.figure import Figure

    from pyhtpw.report.plots import BLUE, VERMILLION, style

    rows = [row for row in found["trials"] if row["state"] == "complete"]
    if not rows:
        return None
    most = max(row["m4_instructions"] for row in rows)
    with style():
        plot = Figure(figsize=(7.6, 5.0), layout="constrained")
        axes = plot.add_subplot()
        for best, colour, label in ((False, BLUE, "trials"), (True, VERMILLION, "not beaten in all three")):
            mine = [row for row in rows if row["pareto"] is best]
            if mine:
                axes.scatter([r["image_bytes"] for r in mine], [r["val_macro_f1"] for r in mine], label=label, edgecolors=colour,
                             s=[15 + 150 * r["m4_instructions"] / most for r in mine], facecolors=colour if best else "none")
        axes.set(xlabel="whole image, bytes", ylabel="macro-F1 on validation",
                 title=f"{found['study']}: {len(rows)} trials; area of a point: Cortex-M4 instructions, at most {most:,.0f}")
        axes.legend(loc="lower right")
    return plot
