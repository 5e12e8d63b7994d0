"""Teachers for distillation: trained or loaded once, their outputs cached per data split.

A cache is valid for one teacher and one set of windows.  Its key is a SHA-256 over the teacher's network and
parameters and over the windows' bytes, so that a teacher that was trained anew, or other data, are noticed and the
outputs computed again; a run that began with other outputs refuses to resume (`pyhtpw.train.train`).

The outputs are those for the windows as they are.  A student that sees augmented copies is told what its teacher says
of the originals.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pyhtpw.errors import TrainError
from pyhtpw.nets.graph import Graph
from pyhtpw.train.batches import Split
from pyhtpw.train.checkpoint import environment, load_checkpoint, save_checkpoint
from pyhtpw.train.kernels import single_blas
from pyhtpw.train.model import Model, check_params
from pyhtpw.train.trainer import BEST, LAST, Progress, TrainConfig, train

BATCH = 64
"""Windows per forward pass."""


@dataclass(frozen=True)
class Signals:
    """What a teacher says of the windows of a split, in their order: ``logits`` (N,classes) and ``features`` (N,d),
    what its classifier reads, float32; ``key`` tells them from those of any other teacher or data."""

    logits: np.ndarray
    features: np.ndarray
    key: str


@dataclass(frozen=True)
class Teacher:
    """A trained network; ConfigError if the parameters are not the graph's."""

    graph: Graph
    params: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        check_params(self.graph, self.params)

    @cached_property
    def key(self) -> str:
        """SHA-256 over the network's definition and its parameters, in hexadecimal."""
        digest = hashlib.sha256(json.dumps(self.graph.to_dict(), sort_keys=True).encode())
        for name in sorted(self.params):
            digest.update(name.encode() + b"\0")
            digest.update(np.ascontiguousarray(self.params[name], "<f4").tobytes())
        return digest.hexdigest()


def load_teacher(path: str | Path) -> Teacher:
    """The teacher in a checkpoint of chosen weights (``best.safetensors``), or in the run directory that holds one.

    Raises TrainError if there is none, or it is damaged, or is no such checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        path = path / BEST
    params, description = load_checkpoint(path)
    try:
        return Teacher(Graph.from_dict(description["graph"]), params)
    except (KeyError, ValueError) as error:  # ConfigError is a ValueError
        raise TrainError(f"checkpoint {path} holds no teacher ({error}); give the {BEST} of a finished run") from error


def train_teacher(
    graph: Graph,
    train_split: Split,
    val_split: Split,
    config: TrainConfig,
    run_dir: str | Path,
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Teacher:
    """Train ``graph``, or go on where an earlier call stopped, or just load what it finished.

    All of these are one: a finished run resumes to its result.  Raises what `pyhtpw.train.train` does, TrainError
    among it if ``run_dir`` holds a run on other data or with another config, and if ``stop`` cut the run short.
    """
    resume = (Path(run_dir) / LAST).is_file()
    result = train(graph, train_split, val_split, config, run_dir, resume=resume, progress=progress, stop=stop)
    if result.stopped:
        raise TrainError(f"the teacher in {run_dir} was stopped after step {result.steps}; train it to its end first")
    return Teacher(graph, result.params)


def signals(teacher: Teacher, x: np.ndarray, path: str | Path) -> Signals:
    """The teacher's outputs for windows x (N,T,C), from the cache file ``path`` if it has them.

    Otherwise they are computed and ``path`` is replaced: one file per split.  Raises DataError for windows that the
    teacher cannot read, and TrainError if the file cannot be written.
    """
    path = Path(path)
    key = _key(teacher, x)
    if path.is_file():
        try:
            arrays, description = load_checkpoint(path)
            if description.get("key") == key:
                return Signals(arrays["logits"], arrays["features"], key)
        except (TrainError, KeyError):
            pass  # damaged: it can be made again
    model = Model(teacher.graph, teacher.params)
    width = teacher.graph.shapes()[teacher.graph.nodes[-1].inputs[0]][1]
    arrays = {
        "logits": np.empty((len(x), teacher.graph.classes), np.float32),
        "features": np.empty((len(x), width), np.float32),
    }
    with single_blas():
        for start in range(0, len(x), BATCH):
            part = slice(start, start + BATCH)
            arrays["logits"][part] = model.forward(np.asarray(x[part], np.float32))
            arrays["features"][part] = model.features
    if not all(np.isfinite(value).all() for value in arrays.values()):
        raise TrainError(
            f"the teacher {teacher.graph.name!r} gives values that are not finite; take another checkpoint"
        )
    save_checkpoint(path, arrays, {"key": key, "teacher": teacher.key, "environment": environment()})
    return Signals(arrays["logits"], arrays["features"], key)


def _key(teacher: Teacher, x: np.ndarray) -> str:
    digest = hashlib.sha256(f"{teacher.key} {list(x.shape)}".encode())
    for start in range(0, len(x), 1024):  # in pieces: x may be larger than memory
        digest.update(np.ascontiguousarray(x[start : start + 1024], "<f4").tobytes())
    return digest.hexdigest()
