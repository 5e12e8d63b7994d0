"""What a run folder holds beside checkpoints and curves: how the run came to be, the curves as a picture, and the final images.

==================  ====================================================================================================
``run.json``        written before the first step: command, recipe, network, data set and its fingerprint, seed, git revision, CPU
                    type and versions
``curves.png``      loss and validation macro-F1 over the steps
``raw/``, ``ema/``  ``model.htpw`` and its integer model ``model.npz`` of the best raw and the best averaged weights, each with a
                    threshold t* of its own
``summary.json``    what came out, and what was not run and why
==================  ====================================================================================================
"""

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from pyhtpw import _native
from pyhtpw.data import Dataset
from pyhtpw.errors import QuantiseError
from pyhtpw.image import write
from pyhtpw.image.writer import save
from pyhtpw.model import Image
from pyhtpw.nets import Graph
from pyhtpw.pipeline import INTEGER, MODEL, calibration_windows, infer, machine, quantise_stage
from pyhtpw.quant import quantise
from pyhtpw.quant.store import save_model
from pyhtpw.recipes import Recipe
from pyhtpw.train import TrainConfig, TrainResult
from pyhtpw.train.objective import macro_f1

RUN_FILE, SUMMARY, CURVES_PNG = "run.json", "summary.json", "curves.png"
RAW, EMA = "raw", "ema"
PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "safetensors", "threadpoolctl", "cffi")
"""Whose versions a result may depend on."""


def git_revision(folder: Path | None = None) -> dict[str, Any]:
    """Revision of the sources that run, and whether files under version control were changed: {"revision", "dirty"}.

    {"revision": "unknown", "reason"} where the package was installed without its history, or without git. A repository that the
    package happens to lie in, untracked, is not its own.
    """
    folder = Path(__file__).resolve().parent if folder is None else folder

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise OSError((done.stderr.strip().splitlines() or [f"git {arguments[0]} failed"])[0])
        return done.stdout

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--untracked-files=no", ".").strip()
        return {"revision": git("rev-parse", "HEAD").strip(), "dirty": bool(changed)}
    except FileNotFoundError:
        reason = "git is not installed"
    except subprocess.TimeoutExpired:
        reason = "git did not answer"
    except OSError as error:
        reason = f"not the package's own repository: {error}"
    return {"revision": "unknown", "reason": reason}


def fingerprint(data: Dataset) -> dict[str, str]:
    """SHA-256 of windows (as little-endian float32) and labels of each split, read in pieces; of test the windows alone, as its labels
    are sealed while a run trains."""
    found = {}
    for name in ("train", "val", "test"):
        split = getattr(data, name)
        digest = hashlib.sha256(f"{split.x.shape}".encode())
        for start in range(0, len(split.x), 4096):
            digest.update(np.ascontiguousarray(split.x[start : start + 4096], "<f4"))
        if name != "test":
            digest.update(np.ascontiguousarray(split.y, "<i8"))
        found[name] = digest.hexdigest()
    return found


def versions() -> dict[str, str]:
    """Of the library and of the packages that the bytes of a result depend on."""
    found = {"pyhtpw": _native.version(), "python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe(
    recipe: Recipe, graph: Graph, config: TrainConfig, data: Dataset, teacher: dict[str, Any] | None = None
) -> dict[str, Any]:
    """All that a run follows from; `begin` writes it as `RUN_FILE`."""
    return {
        "command": ["pyhtpw", *sys.argv[1:]],
        "seed": config.seed,
        "git": git_revision(),
        "machine": machine(),
        "versions": versions(),
        "data": {
            "name": data.name,
            "synthetic": data.synthetic,
            "protocol": data.description["protocol"],
            "options": data.description.get("options"),
            "source_sha256": data.description.get("source_sha256"),
            "fingerprint": fingerprint(data),
        },
        "recipe": asdict(recipe),
        "config": asdict(config),
        "teacher": teacher,
        "network": graph.to_dict(),
    }


def begin(description: dict[str, Any], out: Path) -> None:
    """Writes the description of a new run, after removing what an older one left behind."""
    for name in (SUMMARY, CURVES_PNG, *(f"{kind}/{file}" for kind in (RAW, EMA) for file in (MODEL, INTEGER))):
        (out / name).unlink(missing_ok=True)
    save_json(description, out / RUN_FILE)


def save_json(value: Any, path: Path) -> None:
    """One JSON file, whole or not at all; ImageError if it cannot be written."""
    save((json.dumps(value, indent=1, default=str) + "\n").encode(), path)


def draw_curves(result: TrainResult, path: Path) -> str:
    """Loss and validation macro-F1 over the steps as PNG; "", or why there is none."""
    if not result.curves:
        return "curves.png: the run ended before its first validation"
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "curves.png: matplotlib is missing; pip install 'pyhtpw[report]'"
    steps = [row["step"] for row in result.curves]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for axis, names in (
        (losses, {"loss": "training", "val_loss": "validation", "ema_val_loss": "validation, averaged weights"}),
        (scores, {"val_macro_f1": "raw weights", "ema_val_macro_f1": "averaged weights"}),
    ):
        for column, label in names.items():
            axis.plot(steps, [row[column] for row in result.curves], marker=".", label=label)
        axis.set_xlabel("step")
        axis.legend()
    losses.set_ylabel("loss")
    scores.set_ylabel("validation macro-F1")
    for step, colour in ((result.best_step, "C0"), (result.ema_best_step, "C1")):
        scores.axvline(step, color=colour, linestyle=":", linewidth=1)
    temporary = path.with_name(path.name + ".partial")
    figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
    temporary.replace(path)
    return ""


def final_images(
    graph: Graph, result: TrainResult, data: Dataset, out: Path, *, seed: int, median: int, aware: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Image and integer model of the best raw and averaged weights, in folders of `out`; figures of each, and what was not run.

    With two classes each has a threshold t* of its own, tuned on validation with the integer logits of the C library. A network that
    integers cannot express is reported by name and has none.
    """
    found: dict[str, Any] = {}
    for name, params in ((RAW, result.params), (EMA, result.ema_params)):
        try:
            if len(data.classes) == 2:
                done = quantise_stage(graph, params, data, seed=seed, median=median, aware=aware)
                model, image, threshold, score = done.model, done.image, done.threshold, done.macro_f1
            else:
                windows = calibration_windows(data, seed)
                model = quantise(
                    graph, params, windows, classes=data.classes, sample_rate=data.fs, recalibrate=not aware
                )
                image, threshold = Image(write(model)), None
                score = macro_f1(data.val.y, infer(image, data.val.x).argmax(axis=1), len(data.classes))
        except QuantiseError as error:
            return found, [f"images: {error}"]
        save(image.data, out / name / MODEL)
        save_model(model, out / name / INTEGER)
        found[name] = {
            "image": f"{name}/{MODEL}",
            "bytes": len(image.data),
            "sha256": hashlib.sha256(image.data).hexdigest(),
            "threshold": threshold,
            "val_macro_f1_integer": score,
        }
    return found, []


def finish(
    graph: Graph, result: TrainResult, data: Dataset, out: Path, *, seed: int, median: int, images: bool = True, aware: bool = False
) -> dict[str, Any]:
    """Picture, images (unless told not to) and summary of a finished run; the summary."""
    missing = [line for line in [draw_curves(result, out / CURVES_PNG)] if line]
    made, more = {}, ["images: not asked for"]
    if images:
        made, more = final_images(graph, result, data, out, seed=seed, median=median, aware=aware)
    summary = {
        "run": str(out),
        "network": graph.name,
        "steps": result.steps,
        "best_step": result.best_step,
        "val_macro_f1": result.val_macro_f1,
        "ema_best_step": result.ema_best_step,
        "ema_val_macro_f1": result.ema_val_macro_f1,
        "seconds": round(result.seconds, 1),
        "seconds_waiting_for_windows": round(result.waited, 3),
        "images": made,
        "synthetic": data.synthetic,
        "not_run": missing + more,
    }
    save_json(summary, out / SUMMARY)
    return summary
