"""What freezing the statistics of GroupNorm does to a trained network, and what tuning makes of it, on validation windows.

`pyhtpw train --init-from RUN --freeze` measures the network as it was trained and as it is frozen, before it tunes, and records
all three figures in its run folder.  They are the trainer's own: validation macro-F1 of float logits, at the best threshold.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pyhtpw.data import Dataset
from pyhtpw.image.writer import save
from pyhtpw.nets import Graph
from pyhtpw.pipeline import calibration_windows
from pyhtpw.quant.freeze import freeze
from pyhtpw.train import Model
from pyhtpw.train.checkpoint import load_checkpoint
from pyhtpw.train.objective import score
from pyhtpw.train.trainer import BEST

FILE = "group_norm.json"


@dataclass(frozen=True)
class Frozen:
    """Validation macro-F1 of a network with GroupNorm: as it was trained, with its statistics frozen, and after tuning (None before
    it is tuned); ``nodes`` are those whose statistics were frozen."""

    as_trained: float
    frozen: float
    nodes: tuple[str, ...]
    tuned: float | None = None

    @property
    def change(self) -> float | None:
        """What deployment costs: tuned less as trained."""
        return None if self.tuned is None else self.tuned - self.as_trained

    def to_dict(self) -> dict:
        """Ready for JSON."""
        return {**asdict(self), "nodes": list(self.nodes), "change": self.change}

    def text(self) -> str:
        """One line."""
        tuned = "" if self.tuned is None else f", {self.tuned:.4f} tuned ({self.change:+.4f})"
        return f"GroupNorm: validation macro-F1 {self.as_trained:.4f} as trained, {self.frozen:.4f} frozen{tuned}"


def measure(run: Path, data: Dataset, seed: int) -> Frozen | None:
    """Scores the best checkpoint of a run before and after `pyhtpw.quant.freeze`; None if it has no GroupNorm.

    The calibration windows are those that `pyhtpw.training.initial` freezes with, for the same seed.
    """
    params, description = load_checkpoint(run / BEST if run.is_dir() else run)
    graph = Graph.from_dict(description["graph"])
    nodes = tuple(node.name for node in graph.nodes if node.norm == "group")
    if not nodes:
        return None
    labels = np.asarray(data.val.y, np.int64)

    def macro_f1(network: Graph, values: dict) -> float:
        return float(score(Model(network, values).infer(data.val.x), labels).macro_f1)

    return Frozen(macro_f1(graph, params), macro_f1(*freeze(graph, params, calibration_windows(data, seed))), nodes)


def record(measured: Frozen, folder: Path) -> None:
    """Writes ``group_norm.json`` into a run folder."""
    save((json.dumps(measured.to_dict(), indent=1) + "\n").encode(), folder / FILE)
