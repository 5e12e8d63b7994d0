"""Scoring: the same metrics, the same threshold rule and the same filter for every model.

`pyhtpw.evaluate.metrics` has the figures, `pyhtpw.evaluate.protocol` the order in which they may be taken: the
threshold is chosen on validation, then applied to test, and nothing that test says is used again. Beside them
`pyhtpw.evaluate.choices` freezes what a run has chosen before test labels open, `pyhtpw.evaluate.bootstrap` has confidence
intervals, and `pyhtpw.evaluate.calibration` ablations of the operating point.
"""

from __future__ import annotations

from .metrics import (
                      accuracy,
                      balanced_accuracy,
                      brier,
                      brier_classes,
                      calibration_error,
                      confusion,
                      macro_auc,
                      macro_f1,
                      per_class,
                      roc_auc,
                      roc_curve,
)
from .protocol import THRESHOLDS, decide, evaluate_binary, median_filter, probabilities, score, smoothed, tune, tune_threshold

__all__ = ["THRESHOLDS", "accuracy", "balanced_accuracy", "brier", "brier_classes", "calibration_error", "confusion", "decide",
           "evaluate_binary", "macro_auc", "macro_f1", "median_filter", "per_class", "probabilities", "roc_auc", "roc_curve",
           "score", "smoothed", "tune", "tune_threshold"]
