"""The path from data to report, one function per stage: what the command line and `make demo` run.

    dataset -> train_stage -> quantise_stage -> pack -> (open in C) -> verify_stage -> freeze -> test_stage -> report

The labels of test are sealed (`pyhtpw.data.seal`) until `freeze_stage` has written what was chosen to disk; `test_stage` is the
only one that scores test, and writes every evaluation into a log.

Every figure in a report is computed here from what ran; what could not run is listed in `not_run` with its reason.
"""

import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from pyhtpw import _native
from pyhtpw.data import Dataset, Split
from pyhtpw.data.seal import seal
from pyhtpw.errors import ConfigError, MissingToolError
from pyhtpw.evaluate import probabilities, score, smoothed, tune
from pyhtpw.evaluate.choices import CHOICES, LOG, Choices, append, freeze, unseal
from pyhtpw.image import bill, write
from pyhtpw.image.integer import IntegerModel
from pyhtpw.image.writer import save
from pyhtpw.model import Image
from pyhtpw.nets import Graph, build
from pyhtpw.quant import quantise
from pyhtpw.quant.quantise import with_threshold
from pyhtpw.quant.store import save_model
from pyhtpw.recipes import Recipe
from pyhtpw.report.curves import of_split, wrong
from pyhtpw.train import TrainConfig, TrainResult, train
from pyhtpw.verify import TARGET_WINDOWS, X86_WINDOWS, Emulated, Native, Numpy, Pair, compare

CALIBRATION_WINDOWS = 512
THREADS = 2
TARGET_BACKEND = "armv7em_dsp"  # whose memory plan is shown: a Cortex-M4's
MODEL, REPORT, HTML, INTEGER = "model.htpw", "report.json", "report.html", "model.npz"
RUN = "run"  # folder of checkpoints and curves inside an output folder


@dataclass(frozen=True)
class Quantised:
    """An integer model, its image, its validation probabilities (N, classes) before any filter, and what validation chose: t*,
    which is also in INFO (None with more than two classes, where the largest logit decides), and the macro-F1 it reaches."""

    model: IntegerModel
    image: Image
    p_val: np.ndarray
    macro_f1: float
    threshold: float | None


def prepare_folder(path: str | os.PathLike) -> Path:
    """Makes an output folder and proves that it can be written, before any work is done. Raises ConfigError."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".htpw-write-test"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{path}: cannot write there ({error.strerror}): choose another folder with --out") from error
    return path


def network(recipe: Recipe, data: Dataset) -> Graph:
    """The recipe's network for the windows and classes of a data set."""
    _, t, c = data.train.x.shape
    return build(recipe.net, t=t, channels_in=c, classes=len(data.classes), **recipe.net_options)


def train_stage(
    recipe: Recipe,
    data: Dataset,
    run_dir: Path,
    *,
    seed: int,
    steps: int | None = None,
    resume: bool = False,
    start: tuple[Graph, dict[str, np.ndarray]] | None = None,
    teacher: Any = None,
    progress: Callable[[dict], None] | None = None,
) -> tuple[Graph, TrainConfig, TrainResult]:
    """Trains (or resumes) the recipe's network; the run folder holds checkpoints and curves. `start`: a network of the recipe's
    shape (`pyhtpw.training.initial`) and the parameters to begin with. `teacher`: its outputs for the training windows
    (`pyhtpw.training.distil`)."""
    config = configuration(recipe, seed=seed, steps=steps)
    graph, params = (network(recipe, data), None) if start is None else start
    return graph, config, train(
        graph, data.train, scored(data.val), config, run_dir, start=params, teacher=teacher, resume=resume, progress=progress
    )


def configuration(recipe: Recipe, *, seed: int, steps: int | None = None) -> TrainConfig:
    """The recipe's settings; fewer `steps` shorten warm-up and the distance of validations to no more than themselves."""
    options = {**recipe.train, "seed": seed}
    if steps is not None:
        options["steps"] = steps
        options["warmup"] = min(options.get("warmup", 100), steps)
        options["eval_every"] = min(options["eval_every"], steps)
    return TrainConfig(**options)


def scored(split: Split) -> Split:
    """The windows of a split that are scored: what a checkpoint may be chosen by."""
    if split.score_mask.all():
        return split
    rows = np.flatnonzero(split.score_mask)
    return Split(*(np.asarray(getattr(split, name)[rows]) for name in ("x", "y", "group", "position", "score_mask")))


def infer(image: Image, x: np.ndarray, threads: int = THREADS, chunk: int = 4096) -> np.ndarray:
    """Integer logits (N, classes) of the C library for real windows x (N, T, C), which may be a memory map."""
    parts = [image.run_batch(image.quantise(x[i : i + chunk]), threads) for i in range(0, len(x), chunk)]
    return np.concatenate(parts)


def class_probabilities(image: Image, x: np.ndarray) -> np.ndarray:
    """Probability (N, classes) of each class, from the integer logits."""
    return probabilities(infer(image, x), image.parsed.info.logit_scale)


def calibration_windows(data: Dataset, seed: int, n: int = CALIBRATION_WINDOWS) -> np.ndarray:
    """Seeded sample of training windows, float32 (n, T, C)."""
    rng = np.random.default_rng([seed, 0x43414C])
    rows = np.sort(rng.choice(len(data.train.x), min(n, len(data.train.x)), replace=False))
    return np.asarray(data.train.x[rows], np.float32)


def quantise_stage(
    graph: Graph, params: dict, data: Dataset, *, seed: int, median: int = 1, aware: bool = False
) -> Quantised:
    """Quantises with training windows and tunes on validation with the integer logits of the C library. `aware`: the network was
    trained on the image's kernels (`TrainConfig.aware`), so its normalisation statistics are theirs and stay as they are."""
    model = quantise(
        graph, params, calibration_windows(data, seed), classes=data.classes, sample_rate=data.fs, recalibrate=not aware
    )
    return tune_stage(model, data, median)


def tune_stage(model: IntegerModel, data: Dataset, median: int = 1) -> Quantised:
    """Tunes t* of an integer model on validation, with the integer logits of the C library; with more than two classes there is
    no t* and validation only scores."""
    p_val = class_probabilities(Image(write(model)), data.val.x)
    threshold, macro_f1 = tune(smoothed(p_val, data.val, median), data.val)
    if threshold is not None:
        model = with_threshold(model, threshold)
    return Quantised(model, Image(write(model)), p_val, macro_f1, threshold)


def freeze_stage(
    path: Path, quantised: Quantised, data: Dataset, config: dict[str, Any], median: int, *, checkpoint: str = "raw", replace: bool = False
) -> Choices:
    """Writes the run's choices to disk: after it nothing may be chosen any more. See `pyhtpw.evaluate.choices.freeze`."""
    choices = Choices.of(
        quantised.image.data, data, config, threshold=quantised.threshold, median=median, checkpoint=checkpoint
    )
    freeze(path, choices, replace=replace)
    return choices


@dataclass(frozen=True)
class Tested:
    """A look at test: figures, what a reader must know of them, the log's count of looks, and what the figures were made from
    (probabilities (N, classes), filtered, and the split with its labels)."""

    figures: dict[str, Any]
    notes: list[str]
    evaluations: int
    p: np.ndarray
    split: Split


def test_stage(image: Image, data: Dataset, choices_path: Path, *, run: str, log: Path) -> Tested:
    """Scores test with the integer logits of the C library, at the choices frozen in `choices_path`, and logs that it did.

    Raises SealedError if nothing is frozen there, or something else than this image and these data.
    """
    data = seal(data)
    p = class_probabilities(image, data.test.x)  # before the labels are read: it needs none
    threshold = image.parsed.info.threshold if p.shape[1] == 2 else None
    return score_test(p, image.data, threshold, data, choices_path, run=run, log=log)


def score_test(
    p: np.ndarray, artefact: bytes, threshold: float | None, data: Dataset, choices_path: Path, *, run: str, log: Path
) -> Tested:
    """Scores probabilities (N, classes), unfiltered, of the test windows at the choices frozen in `choices_path`, and logs it.

    `artefact` is what made them: the image, or the checkpoint of a model of another framework (`pyhtpw.experiment.external`); it and
    `threshold` must be the frozen ones.
    """
    split, choices = unseal(data, choices_path, artefact, threshold=threshold)
    p = smoothed(p, split, choices.median)
    figures = score(p, split, choices.threshold, protocol=choices.data["protocol"], roc=True)
    evaluations = append(log, run, choices, figures)
    return Tested(figures, test_notes(data, split), evaluations, p, split)


test_stage.__test__ = False  # pytest: this is no test


def spread_windows(image: Image, x: np.ndarray, n: int) -> np.ndarray:
    """n int8 windows spread evenly over x (all of it if it has fewer)."""
    rows = np.unique(np.linspace(0, len(x) - 1, min(n, len(x))).astype(int))
    return image.quantise(np.asarray(x[rows], np.float32))


@dataclass
class Verification:
    """Outcome of the comparison of tellings; `cortex_m4` is None if the emulator did not run, and `not_run` says why."""

    pairs: list[Pair]
    cortex_m4: dict[str, Any] | None
    not_run: list[str]

    @property
    def differ(self) -> int:
        """Differing bytes over all pairs."""
        return sum(p.differ for p in self.pairs)

    @property
    def compared(self) -> int:
        """Compared bytes over all pairs."""
        return sum(p.compared for p in self.pairs)


def verify_stage(
    image: Image,
    windows: np.ndarray,
    *,
    x86: int = X86_WINDOWS,
    target: int = TARGET_WINDOWS,
    compiler: str = "auto",
) -> Verification:
    """Compares numpy, C on this machine and C on an emulated Cortex-M4, and counts the latter's instructions."""
    here = dict.fromkeys(["portable", _native.backend_name()])  # the definition, and what runs fastest here
    tellings = [Numpy(image, x86), *(Native(image, x86, THREADS, name) for name in here)]
    from pyhtpw.target.emulator import Emulator

    try:
        with Emulator("cortex-m4", compiler=compiler) as emulator:
            model = emulator.open(image.data, image.name)
            pairs = compare(image, windows, [*tellings, Emulated(model, windows=target)])
            return Verification(pairs, _cortex(emulator, model), [])
    except MissingToolError as error:  # a fault or a failed build is no excuse, and is raised
        return Verification(compare(image, windows, tellings), None, [f"Cortex-M4 emulation: {error}"])


def _cortex(emulator, model) -> dict[str, Any]:
    elf = emulator.elf
    return {
        "open_instructions": model.open_instructions,
        "synthesis_instructions": model.synthesis_instructions,
        "inference_instructions": model.inference_instructions,
        "stack_bytes": model.stack_bytes,
        "text_bytes": elf.text_of_library,
        "compiler": elf.compiler.version,
        "flags": " ".join([*elf.compiler.target(elf.cpu), elf.opt]),
        "backend": model.backend,
        "plan": vars(model.plan),
        "how": f"instructions executed under the unicorn emulator, backend {model.backend}, one window; failed IT "
        "instructions not counted",
    }


def machine() -> dict[str, Any]:
    """What the figures were made on."""
    import numba

    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "library": _native.version(),
        "backend": _native.backend_name(),
    }


def _splits(data: Dataset, test: Split) -> dict[str, Any]:
    """Windows, groups and class priors of each split; `test` is the split with its labels."""
    rows = {}
    for name, split in (("train", data.train), ("val", data.val), ("test", test)):
        support = np.bincount(split.y[split.score_mask], minlength=len(data.classes))
        rows[name] = {
            "windows": len(split.y),
            **({"positives": int(support[1])} if len(support) == 2 else {}),
            "groups": len(np.unique(split.group)),
            "support": support.tolist(),
            "priors": (support / max(1, support.sum())).round(6).tolist(),
        }
    return rows


def test_notes(data: Dataset, split: Split) -> list[str]:
    """What a reader must know to read the test figures: a record that dominates the positives, warnings of the loader.

    `split` is test with its labels. Only of two classes is there a positive one that a record can dominate.
    """
    notes = list(data.description.get("warnings", []))
    if len(data.classes) != 2:
        return notes
    positive = split.group[(split.y == 1) & split.score_mask]
    groups, counts = np.unique(positive, return_counts=True)
    if len(groups) and counts.max() > 0.5 * counts.sum():
        top = groups[counts.argmax()]
        everyone = np.unique(split.group)
        each = ", ".join(f"{g} {n}" for g, n in zip(everyone, [int((positive == g).sum()) for g in everyone], strict=True))
        notes.append(f"{counts.max()} of the {counts.sum()} positive test windows are of record {top}: CI not meaningful "
                     f"(positives per test record: {each})")
    return notes


test_notes.__test__ = False


def _network(graph: Graph) -> dict[str, Any]:
    shapes = graph.shapes()
    return {
        "name": graph.name,
        "parameters": graph.parameter_count(),
        "macs": sum(graph.macs().values()),
        "input": list(graph.input_shape),
        "nodes": [
            {
                "name": node.name,
                "op": node.op,
                "cout": node.cout,
                "kernel": node.kernel,
                "stride": node.stride,
                "head": node.head.text(),
                "shape": list(shapes[node.name]),
            }
            for node in graph.nodes
        ],
        "generator": {head.name: f"{head.spec}, {', '.join(head.nodes)}" for head in graph.plan.heads} or None,
    }


def demo(
    data: Dataset,
    recipe: Recipe,
    out: Path,
    *,
    seed: int,
    steps: int | None = None,
    resume: bool = False,
    compiler: str = "auto",
    test_log: Path | None = None,
    progress: Callable[[dict], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The whole path; writes model.htpw, model.npz, choices.json, report.json and report.html into `out` and returns the report.

    `test_log`: where the look at test is logged; by default ``results/test-log.jsonl`` of the working directory for real data and
    a log of `out` itself for synthetic data, whose test can be made again.
    """
    out = prepare_folder(out)
    data = seal(data)
    say("training")
    graph, config, result = train_stage(
        recipe, data, out / RUN, seed=seed, steps=steps, resume=resume, progress=progress
    )
    say("quantising, tuning t* on validation")
    quantised = quantise_stage(graph, result.params, data, seed=seed, median=recipe.median, aware=config.aware)
    image = quantised.image
    say("comparing numpy, C and the emulated Cortex-M4")
    windows = spread_windows(image, data.test.x, X86_WINDOWS)
    verification = verify_stage(image, windows, compiler=compiler)
    say("freezing the choices, then scoring the test split with the integer logits")
    protocol = data.description["protocol"]
    run_config = {"network": graph.to_dict(), "train": asdict(config), "seed": seed}
    freeze_stage(out / CHOICES, quantised, data, run_config, recipe.median, replace=True)
    log = test_log or (out / LOG if data.synthetic else Path("results") / LOG)
    tested = test_stage(image, data, out / CHOICES, run=str(out), log=log)
    p_val = smoothed(quantised.p_val, data.val, recipe.median)
    account = name_layers(bill(image.parsed), quantised.model)
    report = {
        "command": " ".join(["pyhtpw", *sys.argv[1:]]),
        "version": _native.version(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "data": data.name,
        "protocol": protocol,
        "synthetic": data.synthetic,
        "seed": seed,
        "classes": list(data.classes),
        "splits": _splits(data, tested.split),
        "source_sha256": data.description.get("source_sha256"),
        "network": _network(graph),
        "training": {
            "config": asdict(config),
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "best_step": result.best_step,
            "val_macro_f1": result.val_macro_f1,
            "checkpoint": "raw",
            "curves": result.curves,
        },
        "image": MODEL,
        **account,
        "plan": vars(image.plan(TARGET_BACKEND)),
        "bytes_compared": verification.compared,
        "bytes_differ": verification.differ,
        "pairs": [p.to_dict() for p in verification.pairs],
        "validation": score(p_val, data.val, quantised.threshold, name="validation", protocol=protocol),
        "median_filter": recipe.median,
        "choices": CHOICES,
        "test": tested.figures,
        "test_notes": tested.notes,
        "test_evaluations": tested.evaluations,
        "test_log": str(log),
        "curves": _curves(p_val, data, tested),
        "wrong": wrong(image, p_val, data, quantised.threshold),
        "cortex_m4": verification.cortex_m4,
        "not_run": verification.not_run,
    }
    save(image.data, out / MODEL)
    save_model(quantised.model, out / INTEGER)
    write_report(report, out)
    return report


def _curves(p_val: np.ndarray, data: Dataset, tested: Tested) -> dict[str, Any]:
    """Curves of validation and test, with intervals, of two classes; {} with more."""
    same = data.description.get("same_person", {})
    found = {"validation": of_split(p_val, data.val, same), "test": of_split(tested.p, tested.split, same)}
    return {name: row for name, row in found.items() if row is not None}


def name_layers(account: dict, model: IntegerModel) -> dict:
    """The bill with the network's node names in place of the image's operator names (an image stores no names)."""
    names = [op.name for op in model.ops]
    known = {layer["name"]: name for layer, name in zip(account["layers"], names, strict=True)}
    return {
        **account,
        "layers": [{**layer, "name": known[layer["name"]]} for layer in account["layers"]],
        "generated": {known[name]: row for name, row in account["generated"].items()},
    }


def write_report(report: dict, out: Path) -> None:
    """report.json and report.html in `out`, each whole or not at all; the page is what `pyhtpw report OUT` writes again."""
    from pyhtpw.report.html import write_page
    from pyhtpw.report.sources import load

    save((json.dumps(report, indent=1) + "\n").encode(), out / REPORT)
    write_page([load(out)], out / HTML)


def repack(path: Path, model: IntegerModel) -> Image:
    """Writes an integer model as an image, after the C library has opened it."""
    image = Image(write(model), str(path))
    save(image.data, path)
    return image
