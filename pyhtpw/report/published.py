"""Published figures of HyperTinyPW and its baselines, to stand beside our own in one plot.

From "Once-for-All Channel Mixers (HyperTinyPW): Generative Compression for TinyML", MLSys 2026, arXiv:2603.24916. Flash is theirs: a sum
over weight tensors, without biases, multipliers, headers and padding, in kB of 1,024 bytes; ours is the whole image file.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "arXiv:2603.24916"
KILO = 1024


@dataclass(frozen=True)
class Point:
    """A published model: name, flash in kB, macro-F1 and ROC-AUC on test."""

    name: str
    kilobytes: float
    macro_f1: float
    auc: float

    @property
    def bytes(self) -> int:
        """Flash in bytes."""
        return round(self.kilobytes * KILO)


PROTOCOLS = {"mitdb": "paper", "apnea-ecg": "records", "ptb-xl": "norm"}
"""Our protocol that follows the published one."""

POINTS = {
    "mitdb": (Point("HyperTinyPW", 225.5, 0.567, 0.962),),
    "apnea-ecg": (
        Point("RegularCNN", 1422, 0.752, 0.842), Point("HyperTinyPW", 225.5, 0.717, 0.832), Point("ResNet1D small", 62.5, 0.658, 0.666),
        Point("TinySeparableCNN", 14.5, 0.666, 0.650), Point("TinyVAE-Head", 10.2, 0.644, 0.736), Point("HRVFeatNet", 0.5, 0.500, 0.490),
    ),
    "ptb-xl": (
        Point("RegularCNN", 1422, 0.629, 0.881), Point("HyperTinyPW", 225.5, 0.629, 0.876), Point("ResNet1D small", 62.5, 0.623, 0.877),
        Point("TinySeparableCNN", 14.5, 0.617, 0.868), Point("TinyVAE-Head", 10.2, 0.594, 0.807), Point("HRVFeatNet", 0.5, 0.534, 0.717),
    ),
}  # fmt: skip
"""Data set -> published models."""
