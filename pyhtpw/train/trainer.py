"""Training of a graph on the CPU, repeatable to the byte.

Same graph, data, config, CPU type and library versions give the same bytes, with any number of threads, and whether
the run was interrupted and resumed or not.  A run directory holds

====================  =============================================================================================
``last.safetensors``  the whole state, from which ``resume`` goes on: written at the start, at every validation, and
                      when the run is stopped
``best.safetensors``  the raw weights with the best validation macro-F1, under the graph's parameter names
``best_ema.safe...``  the same for the moving average of the weights
``curves.csv``        one line per validation
====================  =============================================================================================
"""

from __future__ import annotations

import csv
import io
import math
import signal
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np

from pyhtpw.errors import ConfigError, TrainError
from pyhtpw.nets.graph import Graph
from pyhtpw.train.batches import Sampler, Split, check_augment, check_balance, check_split, load_batch
from pyhtpw.train.checkpoint import environment, load_checkpoint, save_checkpoint, write_atomically
from pyhtpw.train.kernels import single_blas
from pyhtpw.train.model import Model, check_params
from pyhtpw.train.objective import Criterion, Objective, Score, Signals, score
from pyhtpw.train.optim import AdamW, Ema, clip_gradient, learning_rate
from pyhtpw.train.sparse import sparse

LAST, BEST, BEST_EMA, CURVES = "last.safetensors", "best.safetensors", "best_ema.safetensors", "curves.csv"
CURVE_COLUMNS = ("step", "loss", "val_loss", "val_macro_f1", "ema_val_loss", "ema_val_macro_f1", "lr")

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainConfig:
    """How to train; ConfigError from the constructor names the field that makes no sense.

    ``lr`` is the peak rate, reached after ``warmup`` steps.  ``clip`` is the largest gradient norm, 0 for no limit.
    ``ema`` is the decay of the moving average.  ``balance`` and ``augment`` are explained in
    `pyhtpw.train.batches`, ``objective`` (also a mapping) in `pyhtpw.train.objective`.  Validation runs every
    ``eval_every`` steps and after the last one; after ``patience`` validations in a row in which neither the raw nor
    the averaged weights got better than ever before, the run ends (0: never).  ``aware`` trains, validates and averages
    on the kernels that the image will hold (`pyhtpw.quant.aware`) instead of their float ancestors.  ``sparse`` keeps weights
    of stored kernels at 0 that are 0 at the start (`pyhtpw.train.sparse`).
    """

    steps: int
    batch: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.01
    warmup: int = 100
    clip: float = 1.0
    ema: float = 0.999
    balance: float | str = "none"
    eval_every: int = 100
    patience: int = 0
    seed: int = 0
    augment: Mapping[str, float] = field(default_factory=dict)
    objective: Objective = Objective()  # noqa: RUF009  frozen
    aware: bool = False
    sparse: bool = False

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("warmup", 0), ("eval_every", 1), ("patience", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} is {value!r}; give a whole number of at least {least}")
        for name in ("lr", "weight_decay", "clip", "ema"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ConfigError(f"{name} is {value!r}; give a number of at least 0")
        if self.lr == 0:
            raise ConfigError("lr is 0; give a positive learning rate")
        for name in ("aware", "sparse"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; give true or false")
        if self.ema >= 1:
            raise ConfigError(f"ema is {self.ema!r}; give a decay below 1")
        check_balance(self.balance)
        object.__setattr__(self, "augment", dict(self.augment))
        check_augment(self.augment)
        object.__setattr__(self, "objective", Objective.parse(self.objective))


@dataclass(frozen=True)
class Best:
    """The checkpoint that validation chose: after ``step`` updates, with its score."""

    step: int
    score: Score
    params: dict[str, np.ndarray]


@dataclass(frozen=True)
class TrainResult:
    """What a run gave.

    ``params`` and ``ema_params`` are the best raw and the best averaged weights, each with the step it was reached
    at, its validation macro-F1 and the threshold that belongs to it (None with more than two classes).  If the run
    was stopped before its first validation they are the weights as they stand, and the scores are None. ``curves``
    has one dict per validation with the keys `CURVE_COLUMNS`; its loss is the mean since the last one.  ``steps``
    counts the updates done, ``stopped`` says whether a stop event cut the run short, ``seconds`` is the wall time of
    this call, ``waited`` those of it in which a step waited for its windows, ``early`` says whether the run ended because
    patience did.
    """

    params: dict[str, np.ndarray]
    ema_params: dict[str, np.ndarray]
    curves: list[dict[str, float]]
    best_step: int
    ema_best_step: int
    val_macro_f1: float | None
    ema_val_macro_f1: float | None
    threshold: float | None
    ema_threshold: float | None
    steps: int
    stopped: bool
    seconds: float
    early: bool = False
    waited: float = 0.0


class _Interrupt:
    """Turns Ctrl-C into a flag inside the block, so that a step is done or not begun when the state is saved.

    A second Ctrl-C acts at once, as usual.  Outside the main thread, where no Ctrl-C arrives, and where signals are
    ignored, nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
            self._previous = signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()


class _Batches:
    """Batches loaded one step ahead by a thread, so that a step need not wait for the disk; the block ends the thread.

    A batch is a pure function of its step: who loads it, and when, changes nothing.  ``waited`` are the seconds spent in
    `take`.
    """

    def __init__(self, load: Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]], steps: int) -> None:
        self._load, self._steps = load, steps
        self._thread = ThreadPoolExecutor(1, "batches")
        self._coming: tuple[int, Future] | None = None
        self.waited = 0.0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The batch of ``step``; the next one is begun."""
        began = time.perf_counter()
        if self._coming is None or self._coming[0] != step:
            self._coming = step, self._thread.submit(self._load, step)
        batch = self._coming[1].result()
        self.waited += time.perf_counter() - began
        self._coming = (step + 1, self._thread.submit(self._load, step + 1)) if step + 1 < self._steps else None
        return batch


class _Run:
    """The state of a run between two steps, and its way to and from the run directory."""

    def __init__(
        self,
        graph: Graph,
        config: TrainConfig,
        directory: Path,
        data: dict[str, Any],
        start: Mapping[str, np.ndarray] | None,
        criterion: Criterion,
    ) -> None:
        self.graph, self.config, self.directory = graph, config, directory
        self.criterion = criterion
        kind = Model
        if config.aware:  # the quantiser stands on the trainer's layers, so it is asked for only here
            from pyhtpw.quant.aware import AwareModel as kind
        if config.sparse:
            kind = sparse(kind)
        self.model = kind(graph, start, seed=config.seed)
        self.ema = Ema(self.model, config.ema)
        self.optimiser = AdamW(self.model, config.weight_decay)
        self.step = 0
        self.saved_step = 0
        self.losses: list[float] = []  # of the steps since the last validation
        self.best: Best | None = None
        self.best_ema: Best | None = None
        self.curves: list[dict[str, float]] = []
        self._identity = {"graph": graph.to_dict(), "config": asdict(config), "data": data}

    def advance(self, x: np.ndarray, labels: np.ndarray, index: np.ndarray) -> float:
        """One update from windows x (batch,T,C) with labels and indices (batch,); its loss.

        TrainError, before any weight moved, if anything is not finite.
        """
        self.model.reseed(self.config.seed, self.step)
        logits = self.model.forward(x, training=True)
        loss, dlogits, dfeatures = self.criterion.on_batch(logits, labels, self.model.features, index)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}", f"at step {self.step + 1}", self.model)
        if not np.isfinite(self.model.running).all():  # an overflowing variance mutes its channel: the loss is fine
            raise self._diverged("a normalisation overflows", f"at step {self.step + 1}", self.model)
        self.model.backward(dlogits, dfeatures)
        loss += self.criterion.on_parameters(self.model.params, self.model.grads)
        if not math.isfinite(clip_gradient(self.model.gradient, self.config.clip)):
            raise self._diverged("the gradient is not finite", f"at step {self.step + 1}", self.model)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss on parameters is {loss}", f"at step {self.step + 1}", self.model)
        self.optimiser.step(self.step + 1, self.rate(self.step))
        self.ema.update(self.model, self.step + 1)
        self.losses.append(loss)
        self.step += 1
        return loss

    def rate(self, step: int) -> float:
        """Learning rate of step ``step``, counted from 0."""
        return learning_rate(step, self.config.steps, self.config.lr, self.config.warmup)

    def _diverged(self, what: str, when: str, model: Model) -> TrainError:
        place, where = model.first_not_finite(), self.directory / LAST
        if place:
            what += f" (first not finite: {place})"
        return TrainError(
            f"{what} {when}; the last good checkpoint is {where} (step {self.saved_step}): lower lr or clip"
        )

    def validate(self, x: np.ndarray, labels: np.ndarray) -> Score:
        """Score raw and averaged weights, keep what is best, and save all; the raw weights' score."""
        found = []
        for model in (self.model, self.ema.model):
            logits = model.infer(x, self.config.batch)  # no more memory than a step
            found.append(score(logits, labels))
            if not math.isfinite(found[-1].loss):
                bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))[:1]
                if len(bad):
                    model.forward(x[bad])  # again, to see where
                raise self._diverged("the validation loss is not finite", f"after step {self.step}", model)
        raw, averaged = found
        self.best = self._better(self.best, raw, self.model, BEST)
        self.best_ema = self._better(self.best_ema, averaged, self.ema.model, BEST_EMA)
        loss = math.fsum(self.losses) / len(self.losses)
        row = (self.step, loss, raw.loss, raw.macro_f1, averaged.loss, averaged.macro_f1, self.rate(self.step - 1))
        self.curves.append(dict(zip(CURVE_COLUMNS, row, strict=True)))
        self.losses = []
        self.save()
        return raw

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out: a function of the saved state, so that resuming comes to the same end."""
        if not self.config.patience or self.best is None or self.best_ema is None:
            return False
        since = max(self.best.step, self.best_ema.step)
        return sum(row["step"] > since for row in self.curves) >= self.config.patience

    def _better(self, best: Best | None, found: Score, model: Model, file: str) -> Best:
        """The better of ``best`` and ``model`` with the score ``found``; of equals the earlier one."""
        if best is not None and found.macro_f1 <= best.score.macro_f1:
            return best
        best = Best(self.step, found, model.state())
        save_checkpoint(self.directory / file, best.params, self._describe(step=self.step, score=asdict(found)))
        return best

    def _describe(self, **more: Any) -> dict[str, Any]:
        return {**self._identity, "seed": self.config.seed, "environment": environment(), **more}

    def save(self) -> None:
        """Write the whole state to the run directory."""
        arrays = {"adam/first": self.optimiser.first, "adam/second": self.optimiser.second}
        arrays.update({f"raw/{name}": value for name, value in self.model.params.items()})
        arrays.update({f"ema/{name}": value for name, value in self.ema.model.params.items()})
        marks = {}
        for key, best in (("best", self.best), ("best_ema", self.best_ema)):
            if best is not None:
                arrays.update({f"{key}/{name}": value for name, value in best.params.items()})
                marks[key] = {"step": best.step, "score": asdict(best.score)}
        description = self._describe(step=self.step, losses=self.losses, curves=self.curves, **marks)
        save_checkpoint(self.directory / LAST, arrays, description)
        self.saved_step = self.step
        if self.curves:
            text = io.StringIO()
            writer = csv.DictWriter(text, CURVE_COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.curves)
            write_atomically(self.directory / CURVES, text.getvalue().encode())

    def load(self) -> None:
        """Take the state up from the run directory; TrainError if it belongs to another run."""
        path = self.directory / LAST
        arrays, description = load_checkpoint(path)
        try:  # through the constructors: a checkpoint may be older than a field, which then had its default
            description["graph"] = Graph.from_dict(description["graph"]).to_dict()
            description["config"] = asdict(TrainConfig(**description["config"]))
        except (ConfigError, TypeError, KeyError):
            pass  # described as made with another one, below
        for key, mine in self._identity.items():
            if description.get(key) != mine:
                raise TrainError(
                    f"checkpoint {path} was made with another {key}{_first_difference(description.get(key), mine)}; "
                    "resume with the same, or start anew in another directory"
                )
        if description["environment"] != environment():
            warnings.warn(
                f"checkpoint {path} comes from another CPU or other versions: the bytes of the result may differ",
                stacklevel=3,
            )

        def part(key: str) -> dict[str, np.ndarray]:
            params = {name.partition("/")[2]: a for name, a in arrays.items() if name.startswith(f"{key}/")}
            check_params(self.graph, params)
            return params

        for model, key in ((self.model, "raw"), (self.ema.model, "ema")):
            for name, value in part(key).items():
                model.params[name][...] = value
        self.optimiser.first[:] = arrays["adam/first"]
        self.optimiser.second[:] = arrays["adam/second"]
        for key in ("best", "best_ema"):
            if key in description:
                mark = description[key]
                setattr(self, key, Best(mark["step"], Score(**mark["score"]), part(key)))
        self.step = self.saved_step = description["step"]
        self.losses, self.curves = description["losses"], description["curves"]

    def result(self, stopped: bool, seconds: float, waited: float) -> TrainResult:
        """The run's result as of now."""
        raw = self.best or Best(self.step, Score(math.nan, math.nan, None), self.model.state())
        averaged = self.best_ema or Best(self.step, Score(math.nan, math.nan, None), self.ema.model.state())
        return TrainResult(
            params=raw.params,
            ema_params=averaged.params,
            curves=self.curves,
            best_step=raw.step,
            ema_best_step=averaged.step,
            val_macro_f1=None if self.best is None else raw.score.macro_f1,
            ema_val_macro_f1=None if self.best_ema is None else averaged.score.macro_f1,
            threshold=raw.score.threshold,
            ema_threshold=averaged.score.threshold,
            steps=self.step,
            stopped=stopped,
            seconds=seconds,
            early=self.exhausted and self.step < self.config.steps,
            waited=waited,
        )


def _first_difference(theirs: object, mine: object) -> str:
    """Where two descriptions first differ, as " (key: theirs, now mine)"; "" if one is no mapping."""
    if not isinstance(theirs, Mapping) or not isinstance(mine, Mapping):
        return ""
    for key in mine:
        if theirs.get(key) != mine[key]:
            old, new = str(theirs.get(key)), str(mine[key])
            return f" ({key}: {old}, now {new})" if len(old) + len(new) < 80 else f" ({key})"
    return ""


def train(
    graph: Graph,
    train_split: Split,
    val_split: Split,
    config: TrainConfig,
    run_dir: str | Path,
    *,
    start: Mapping[str, np.ndarray] | None = None,
    teacher: Signals | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> TrainResult:
    """Train ``graph`` and choose checkpoints by validation macro-F1.

    Training begins at the parameters ``start`` (of an earlier run, or fitted to one by `pyhtpw.quant.fit`) instead of
    fresh ones.  ``teacher`` has the outputs of a teacher for the windows of ``train_split``, for the terms of the
    objective that compare with one.

    With ``resume`` the run in ``run_dir`` goes on where it was saved; otherwise a new run starts there and replaces
    the files of an older one.  ``progress`` is called after every step with a dict: step (updates done), steps, loss
    (this step's), val_macro_f1 (raw weights; None unless this step was validated), eta_s (None until it can be told).

    Setting ``stop`` ends the run after the step in progress: the state is saved and the result has ``stopped``.
    Ctrl-C (or KeyboardInterrupt from ``progress``) saves the same way and then raises KeyboardInterrupt.

    Raises DataError for unusable splits, ConfigError for a config, start or teacher that does not fit the graph, and
    TrainError for a directory that cannot be written, a checkpoint of another run, and a loss that is not finite.
    """
    began = time.monotonic()
    check_augment(config.augment, graph.input_shape)
    labels = check_split(train_split, graph, "training", every_class=True)
    val_labels = check_split(val_split, graph, "validation", every_class=False)
    data = {
        "train_shape": list(train_split.x.shape),
        "val_shape": list(val_split.x.shape),
        "labels_crc32": zlib.crc32(val_labels.tobytes(), zlib.crc32(labels.tobytes())),
    }
    if start is not None:  # a resumed run must have the same
        check_params(graph, start)
        data["start_crc32"] = 0
        for name in sorted(start):
            data["start_crc32"] = zlib.crc32(
                np.ascontiguousarray(start[name], np.float32).tobytes(), data["start_crc32"]
            )
    criterion = Criterion(config.objective, graph, labels, teacher)
    if teacher is not None:
        data["teacher"] = teacher.key
    run = _Run(graph, config, Path(run_dir), data, start, criterion)
    if resume:
        run.load()
    else:
        _prepare(run.directory)
        run.save()
    sampler = Sampler(labels, graph.classes, config.balance)
    interrupt = _Interrupt()
    batches = _Batches(lambda step: load_batch(train_split, sampler, config.seed, step, config.batch, config.augment), config.steps)
    with single_blas(), interrupt, batches:
        timed_from: tuple[int, float] | None = None
        while run.step < config.steps and not run.exhausted:
            if interrupt.requested or (stop is not None and stop.is_set()):
                break
            x, y, index = batches.take(run.step)
            loss = run.advance(x, y, index)
            found = None
            if run.step % config.eval_every == 0 or run.step == config.steps:
                found = run.validate(val_split.x, val_labels)
            now = time.monotonic()
            if timed_from is None:
                timed_from = (run.step, now)  # the first step is left out: it may have compiled the kernels
            if progress is not None:
                done = run.step - timed_from[0]
                eta = (now - timed_from[1]) / done * (config.steps - run.step) if done else None
                report = {
                    "step": run.step,
                    "steps": config.steps,
                    "loss": loss,
                    "val_macro_f1": None if found is None else found.macro_f1,
                    "eta_s": eta,
                }
                try:
                    progress(report)
                except KeyboardInterrupt:
                    interrupt.requested = True
        stopped = run.step < config.steps and not run.exhausted
        if stopped:
            run.save()
    if interrupt.requested:
        raise KeyboardInterrupt(f"training stopped after step {run.step}; resume it from {run.directory}")
    return run.result(stopped, time.monotonic() - began, batches.waited)


def _prepare(directory: Path) -> None:
    """Make ``directory`` ready for a new run; TrainError if that cannot be done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in (LAST, BEST, BEST_EMA, CURVES):
            (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise TrainError(f"cannot use {directory} as run directory: {error.strerror}; choose a writable one") from error
