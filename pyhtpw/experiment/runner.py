"""One run of an experiment: train or resume, pack, tune on validation, freeze the choices, look at test once.

A run has a work folder (checkpoints, image, choices; large, not committed) and leaves two small files in the results folder:
``MODEL-sSEED.json`` with every figure, and ``MODEL-sSEED.npz`` with what each scored test window was decided as, from which
confidence intervals and paired differences are computed without running anything again. A stage that is done is not done
again; test is scored only when no result of it is on disk.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import io
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from pyhtpw import pipeline
from pyhtpw.data import Dataset
from pyhtpw.data.hrv import for_network
from pyhtpw.data.seal import seal
from pyhtpw.errors import ConfigError, MissingToolError
from pyhtpw.evaluate import decide, metrics, score, smoothed
from pyhtpw.evaluate.bootstrap import Scored, people
from pyhtpw.evaluate.calibration import adapted_to_subjects, class_thresholds, decide_by_class, fit_temperature, warmed
from pyhtpw.evaluate.choices import data_identity
from pyhtpw.evaluate.choices import load as load_choices
from pyhtpw.experiment.plan import Model, Plan
from pyhtpw.image.writer import save
from pyhtpw.model import Image
from pyhtpw.nets import Graph
from pyhtpw.packing import pack_network
from pyhtpw.quant.store import load_model, save_model
from pyhtpw.train.checkpoint import environment, load_checkpoint
from pyhtpw.train.sparse import prune
from pyhtpw.train.teacher import load_teacher, signals
from pyhtpw.train.trainer import BEST, BEST_EMA, LAST
from pyhtpw.verify import sample_windows

Say = Callable[[str], None]


@dataclass(frozen=True)
class Folders:
    """Where runs work, where results go, and the log of looks at test."""

    work: Path
    results: Path
    log: Path

    def run(self, plan: str, model: str, seed: int) -> Path:
        """Work folder of a run."""
        return self.work / plan / f"{model}-s{seed}"

    def result(self, plan: str, model: str, seed: int) -> Path:
        """Result of a run."""
        return self.results / "runs" / plan / f"{model}-s{seed}.json"

    def reference(self, plan: str, name: str, seed: int) -> Path:
        """Run folder of another model, of this plan or "PLAN:MODEL"; ConfigError if it is not finished."""
        other, colon, model = name.partition(":")
        found = self.run(other, model, seed) if colon else self.run(plan, name, seed)
        if not (found / "trained.json").is_file():
            raise ConfigError(f"{plan}: model {name}, seed {seed}, is not trained yet ({found}): run it first")
        return found / pipeline.RUN


def read_result(path: Path) -> dict[str, Any]:
    """The result in a file; ConfigError if it is damaged."""
    try:
        found = json.loads(path.read_text())
        found["config_sha256"], found["seed"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is no whole result ({error}): restore it, or remove it and its work folder and run it again") from error
    return found


def done(plan: Plan, model: Model, seed: int, folders: Folders) -> str:
    """How far a run has come: "", "validated" or "tested".

    Raises ConfigError if its result was made with another configuration: a declaration does not change behind a result.
    """
    path = folders.result(plan.name, model.name, seed)
    if not path.is_file():
        return ""
    found = read_result(path)
    if found["config_sha256"] != plan.config_sha256(model, seed):
        raise ConfigError(f"{path}: was made with another configuration of {model.name}: give the changed model another name, or "
                          "remove the result and its work folder by hand (its lines stay in the test log)")
    return "tested" if found.get("test") else "validated"


def load_dataset(plan: Plan, data_dir: Path | None, cache_dir: Path | None) -> Dataset:
    """The plan's data, test sealed."""
    from pyhtpw.data import load

    return seal(load(plan.data, data_dir=data_dir, protocol=plan.protocol, seed=plan.data_seed, cache_dir=cache_dir,
                     **plan.data_options))


def _by_tenths(name: str, say: Say) -> Callable[[int, int, str], None]:
    told = -1

    def progress(done: int, total: int, what: str) -> None:
        nonlocal told
        if done * 10 // total > told:
            told = done * 10 // total
            say(f"{name}: {what}, {done:,} of {total:,}")

    return progress


def run_one(plan: Plan, model: Model, seed: int, data: Dataset, folders: Folders, *, validation_only: bool = False,
            command: str = "", compiler: str = "auto", cache_dir: Path | None = None, say: Say = lambda text: None) -> dict[str, Any]:
    """Bring a run to its end, or to validation, from wherever it is; the result, which is also on disk.

    Raises ConfigError for a configuration that cannot be, and whatever training, packing and scoring raise. Ctrl-C leaves a run
    that the next call takes up.
    """
    result_path = folders.result(plan.name, model.name, seed)
    with held(folders.run(plan.name, model.name, seed)):
        return _run_alone(plan, model, seed, data, folders, result_path, validation_only, command, compiler, cache_dir, say)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a run, so that no second process trains in its folder or scores it: ConfigError if another one does."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{folder}: another process is at this run: wait for it, or give another --work and --out") from error
        yield


def _run_alone(plan: Plan, model: Model, seed: int, data: Dataset, folders: Folders, result_path: Path, validation_only: bool,
               command: str, compiler: str, cache_dir: Path | None, say: Say) -> dict[str, Any]:
    state = done(plan, model, seed, folders)
    if state == "tested" or (state and validation_only):
        return read_result(result_path)
    data = for_network(model.net, data, cache_dir, jobs=os.cpu_count() or 1, progress=_by_tenths(model.name, say))
    pipeline.prepare_folder(folders.run(plan.name, model.name, seed))
    result_path.parent.mkdir(parents=True, exist_ok=True)
    if state:
        result = read_result(result_path)
    else:
        result = _to_validation(plan, model, seed, data, folders, command, compiler, say)
        _write(result_path, result)
    if validation_only:
        return result
    say(f"{model.name}, seed {seed}: scoring test")
    return _test(plan, model, seed, data, folders, result, result_path)


def _write(path: Path, result: dict[str, Any]) -> None:
    save((json.dumps(result, indent=1) + "\n").encode(), path)


def _to_validation(plan: Plan, model: Model, seed: int, data: Dataset, folders: Folders, command: str, compiler: str,
                   say: Say) -> dict[str, Any]:
    folder, recipe = folders.run(plan.name, model.name, seed), plan.recipe(model)
    began = time.monotonic()
    graph, trained = _train(plan, model, seed, data, folders, say)
    blocks = {}
    for kind in ("raw", "ema") if model.ema else ("raw",):
        say(f"{model.name}, seed {seed}: packing ({kind})")
        params, _ = load_checkpoint(folder / pipeline.RUN / (BEST if kind == "raw" else BEST_EMA))
        blocks[kind] = _pack(plan, model, seed, data, folder, graph, params, kind, recipe.median)
    image = Image.open(folder / _name("raw", "htpw"))
    m4, not_run = instructions(image, compiler)
    raw = blocks.pop("raw")
    return {
        "plan": plan.name, "model": model.name, "seed": seed, "command": command,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config_sha256": plan.config_sha256(model, seed), "configuration": plan.configuration(model, seed),
        "data": data_identity(data), "synthetic": data.synthetic, "part": data.description.get("part"),
        "counts": data.description.get("counts"), "classes": list(data.classes),
        "note": model.note, "machine": {**pipeline.machine(), **environment()},
        "network": {"name": graph.name, "parameters": graph.parameter_count(), "macs": sum(graph.macs().values()),
                    "generated_weights": sum(int(np.prod(graph.kernel_shapes()[n.name])) for n in graph.generated_nodes())},
        "training": trained, "seconds_to_validation": round(time.monotonic() - began, 1),
        "budget": model.budget, "over_budget": model.budget is not None and raw["image_bytes"] > model.budget,
        **raw,
        "plan_m4": asdict(image.plan(pipeline.TARGET_BACKEND)), "cortex_m4": m4, "not_run": not_run,
        "ema": blocks.get("ema"), "test": None,
    }  # fmt: skip


def _train(plan: Plan, model: Model, seed: int, data: Dataset, folders: Folders, say: Say) -> tuple[Graph, dict[str, Any]]:
    """Trains or resumes; the network and the facts of its training, which are kept so that time counts every session."""
    folder, recipe = folders.run(plan.name, model.name, seed), plan.recipe(model)
    run_dir, mark = folder / pipeline.RUN, folder / "trained.json"
    sha = plan.config_sha256(model, seed)
    if mark.is_file():
        facts = json.loads(mark.read_text())
        if facts.pop("config_sha256") != sha:
            raise ConfigError(f"{folder}: was trained with another configuration: give the model another name, or remove the folder")
        _, description = load_checkpoint(run_dir / BEST)
        return Graph.from_dict(description["graph"]), facts
    teacher = None
    if model.teacher:
        source = folders.reference(plan.name, model.teacher, model.teacher_seed)
        teacher = signals(load_teacher(source), data.train.x, source / "signals.safetensors")
    start = None
    if model.start:
        from pyhtpw.training import initial

        graph, params, _ = initial(pipeline.network(recipe, data), folders.reference(plan.name, model.start, seed), data, seed,
                                   frozen=model.freeze)
        start = (graph, prune(graph, params, model.prune) if model.prune else params)
    resume = (run_dir / LAST).is_file()
    say(f"{model.name}, seed {seed}: {'resuming' if resume else 'training'}, {recipe.train['steps']} steps")
    began = time.monotonic()
    try:
        graph, config, result = pipeline.train_stage(recipe, data, run_dir, seed=seed, resume=resume, start=start, teacher=teacher)
    finally:
        _clock(folder / "seconds.json", time.monotonic() - began)
    facts = {
        "config": asdict(config), "steps": result.steps, "best_step": result.best_step, "val_macro_f1_float": result.val_macro_f1,
        "ema_best_step": result.ema_best_step, "ema_val_macro_f1_float": result.ema_val_macro_f1,
        "seconds": round(json.loads((folder / "seconds.json").read_text()), 3),
    }  # fmt: skip
    _write(mark, {**facts, "config_sha256": sha})
    return graph, facts


def _clock(path: Path, seconds: float) -> None:
    """Adds to the training time of all sessions."""
    before = json.loads(path.read_text()) if path.is_file() else 0.0
    save(json.dumps(before + seconds).encode(), path)


def _name(kind: str, ending: str) -> str:
    return f"model.{ending}" if kind == "raw" else f"model-ema.{ending}"


def _choices_name(kind: str) -> str:
    return "choices.json" if kind == "raw" else "choices-ema.json"


def _pack(plan: Plan, model: Model, seed: int, data: Dataset, folder: Path, graph: Graph, params: dict, kind: str,
          median: int) -> dict[str, Any]:
    """Quantise (with heads fitted, if asked for), tune, freeze; the figures that validation gives.

    Choices that are frozen already stand: the model on disk is the one that was frozen.
    """
    path = folder / _choices_name(kind)
    if path.is_file() and (folder / _name(kind, "npz")).is_file():
        quantised = pipeline.tune_stage(load_model(folder / _name(kind, "npz")), data, median)
        errors = {}
    else:
        packed = pack_network(graph, params, data, model.pack, seed=seed, median=median,
                              aware=bool(plan.recipe(model).train.get("aware")))
        quantised, errors = packed.quantised, packed.errors
        save_model(quantised.model, folder / _name(kind, "npz"))
        save(quantised.image.data, folder / _name(kind, "htpw"))
    p = smoothed(quantised.p_val, data.val, median)
    calibration = _calibration(p, data) if model.calibrate else None
    config = {**plan.configuration(model, seed), "calibration": calibration and calibration["chosen"]}
    pipeline.freeze_stage(path, quantised, data, config, median, checkpoint=kind)
    image, account = quantised.image.data, pipeline.bill(quantised.image.parsed)
    return {
        "image_bytes": len(image), "image_sha256": hashlib.sha256(image).hexdigest(),
        "deflate_bytes": len(zlib.compress(image, 9)), "sections": account["sections"],
        "if_stored": account["whole_image_if_stored"],
        "threshold": quantised.threshold, "median_filter": median,
        "kernel_errors": {name: round(float(e), 6) for name, e in errors.items()},
        "validation": score(p, data.val, quantised.threshold, name="validation", protocol=plan.protocol.partition(":")[0]),
        "calibration": calibration,
    }  # fmt: skip


def _calibration(p: np.ndarray, data: Dataset) -> dict[str, Any]:
    """Temperature and thresholds per class from validation, and what they give there."""
    y, mask, classes = data.val.y, data.val.score_mask, p.shape[1]
    temperature = fit_temperature(p, y, mask)
    thresholds, reached = class_thresholds(p, y, mask)
    return {
        "chosen": {"temperature": temperature, "class_thresholds": thresholds.tolist()},
        "validation": {"ece": metrics.calibration_error(y, p, mask=mask),
                       "ece_temperature": metrics.calibration_error(y, warmed(p, temperature), mask=mask),
                       "macro_f1_class_thresholds": reached, "classes": classes},
    }  # fmt: skip


_EMULATORS: dict[str, Any] = {}  # compiler -> one emulated Cortex-M4 for all runs of this process: starting it takes longer than a model


def _emulator(compiler: str) -> Any:
    from pyhtpw.target.emulator import Emulator

    found = _EMULATORS.get(compiler)
    if found is None or found.ended is not None:
        found = _EMULATORS[compiler] = Emulator("cortex-m4", compiler=compiler)
        atexit.register(found.close)
    return found


def instructions(image: Image, compiler: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Counts of the emulated Cortex-M4 for one window, or why there are none."""
    from pyhtpw.target.emulator import EmulationError

    try:
        with _emulator(compiler).open(image.data, image.name) as model:
            inference = model.count_inference(sample_windows(image, 1, 0)[0])
            synthesis = model.synthesis_instructions
            return {"open": model.open_instructions, "synthesis": synthesis, "inference": inference,
                    "generating_every_time": synthesis + inference, "backend": model.backend}, []
    except MissingToolError as error:
        return None, [f"Cortex-M4 emulation: {error}"]
    except EmulationError as error:
        if error.kind not in ("memory", "limit"):  # a fault is no excuse
            raise
        return None, [f"Cortex-M4 emulation: more than the emulated machine has ({error})"]


def _test(plan: Plan, model: Model, seed: int, data: Dataset, folders: Folders, result: dict[str, Any],
          path: Path) -> dict[str, Any]:
    folder, name = folders.run(plan.name, model.name, seed), f"{plan.name}/{model.name}-s{seed}"
    found: dict[str, Any] = {}
    for kind in ("raw", "ema") if model.ema else ("raw",):
        image = Image.open(folder / _name(kind, "htpw"))
        choices = folder / _choices_name(kind)
        run = name if kind == "raw" else f"{name} (ema)"
        tested = pipeline.test_stage(image, data, choices, run=run, log=folders.log)
        threshold = load_choices(choices).threshold
        decisions = Decisions.of(tested, threshold, data)
        block = {"test": tested.figures, "test_notes": tested.notes, "test_evaluations": tested.evaluations}
        if result["calibration"] and kind == "raw":
            block["calibration_test"] = _calibration_test(result["calibration"]["chosen"], tested, threshold, data.fs)
        if kind == "raw":
            save(decisions.to_bytes(), path.with_suffix(".npz"))
            found |= block
        else:
            found["ema"] = {**result["ema"], **block}
    result = {**result, **found}
    _write(path, result)
    return result


def _calibration_test(chosen: dict[str, Any], tested: pipeline.Tested, threshold: float | None, fs: float) -> dict[str, Any]:
    """What the ablations that validation fitted give on test, and thresholds from the first five minutes of each test record."""
    y, mask, p = tested.split.y, tested.split.score_mask, tested.p
    decided = decide_by_class(p, np.array(chosen["class_thresholds"]))
    subjects = None if threshold is None else adapted_to_subjects(p, tested.split, threshold, fs)
    return {
        **({"subjects": subjects} if subjects else {}),
        "ece": metrics.calibration_error(y, p, mask=mask),
        "ece_temperature": metrics.calibration_error(y, warmed(p, chosen["temperature"]), mask=mask),
        "macro_f1_class_thresholds": metrics.macro_f1(y, decided, classes=p.shape[1], mask=mask),
    }


@dataclass(frozen=True)
class Decisions:
    """What a model made of each scored test window: (N,) `y`, `decided` and `cluster`, and (N, C) float32 `p`; a file of few kB."""

    y: np.ndarray
    decided: np.ndarray
    p: np.ndarray
    cluster: np.ndarray

    @classmethod
    def of(cls, tested: pipeline.Tested, threshold: float | None, data: Dataset) -> Decisions:
        """Of a look at test; clusters are people."""
        keep = tested.split.score_mask
        who = people(tested.split.group, data.description.get("same_person", {}))
        return cls(tested.split.y[keep], decide(tested.p, threshold)[keep], tested.p[keep].astype(np.float32), who[keep])

    def to_bytes(self) -> bytes:
        """As compressed npz. Of two classes the second probability is kept alone."""
        names, index = np.unique(self.cluster, return_inverse=True)
        p = self.p[:, 1] if self.p.shape[1] == 2 else self.p
        out = io.BytesIO()
        np.savez_compressed(out, y=self.y.astype(np.uint8), decided=self.decided.astype(np.uint8), p=p, names=names,
                            cluster=index.astype(np.uint16))
        return out.getvalue()

    @classmethod
    def load(cls, path: Path) -> Decisions:
        """From a file; ConfigError if it cannot be read."""
        try:
            with np.load(path, allow_pickle=False) as file:
                p = file["p"]
                p = np.stack([1 - p, p], axis=1) if p.ndim == 1 else p
                return cls(file["y"].astype(np.int64), file["decided"].astype(np.int64), p, file["names"][file["cluster"]])
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{path}: holds no decisions ({error}): make the run again") from error

    def scored(self) -> Scored:
        """For the bootstrap."""
        return Scored(self.y, np.clip(self.p.astype(np.float64), 0, 1), self.decided, self.cluster)
