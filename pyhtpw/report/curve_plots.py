"""Curves over the operating point with their intervals, the confusion matrix, and windows that were decided wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyhtpw.report import plots, tables
from pyhtpw.report.curves import window
from pyhtpw.report.plots import BLUE, INK, MUTED, VERMILLION, Plot

LOOKS = {"test": (BLUE, "-"), "validation": (VERMILLION, "--")}
SPLITS = tuple(LOOKS)


def numbers(value: object) -> list[float] | None:
    """A list of finite numbers; None if it is no such thing."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return None
    found = [tables.number(each) for each in value]
    return None if None in found else found  # type: ignore[return-value]


def _lines(report: Mapping[str, Any], name: str) -> dict[str, dict[str, list[float] | None]]:
    """Split -> x, y, low and high of a curve, for the splits that have it."""
    found = {}
    for split in SPLITS:
        row = tables.get(report, "curves", split, name)
        x, y, low, high = (numbers(tables.get(row, key)) for key in ("x", "y", "low", "high"))
        if x and y and len(x) == len(y):
            good = low is not None and high is not None and len(low) == len(high) == len(x)
            found[split] = {"x": x, "y": y, "low": low if good else None, "high": high if good else None}
    return found


def _draw(axes: Any, report: Mapping[str, Any], lines: Mapping[str, Any], label: str = "{split}") -> list[str]:
    """Curves with bands; what they are called."""
    said = []
    for split, row in lines.items():
        colour, dash = LOOKS[split]
        name = label.format(split=split)
        axes.plot(row["x"], row["y"], dash, color=colour, label=name)
        told = tables.get(report, "curves", split) or {}
        if row["low"]:
            axes.fill_between(row["x"], row["low"], row["high"], color=colour, alpha=0.16, linewidth=0, label=f"{split}, 95 % interval")
            said.append(f"{name}, with a 95 % interval from {tables.whole(told.get('clusters'))} people or records")
        else:
            said.append(f"{name}")
        if told.get("no_band"):
            said[-1] += f" ({tables.clean(told['no_band'])})"
    return said


def _square(title: str, x: str, y: str) -> tuple[Any, Any]:
    figure, (axes,) = plots._figure(5.0, 4.6)
    axes.set(xlim=(0, 1), ylim=(0, 1.005), aspect="equal", title=title, xlabel=x, ylabel=y)
    return figure, axes


def roc(report: Mapping[str, Any]) -> Plot | None:
    """ROC of test and validation, whichever are known, with intervals and the operating point of test."""
    lines = _lines(report, "roc")
    exact = {key: numbers(tables.get(report, "test", "roc", key)) for key in ("fpr", "tpr")}
    if exact["fpr"] and exact["tpr"] and len(exact["fpr"]) == len(exact["tpr"]):  # the curve itself, rather than on a grid
        band = lines.pop("test", {})
        if band.get("low"):
            grid = {key: np.interp(exact["fpr"], band["x"], band[key]).tolist() for key in ("low", "high")}
        else:
            grid = {"low": None, "high": None}
        lines = {"test": {"x": exact["fpr"], "y": exact["tpr"], **grid}, **lines}
    if not lines:
        return None
    where = "test" if "test" in lines else "validation"
    figure, axes = _square(f"ROC on {where}", "false positive rate", "sensitivity")
    axes.plot([0, 1], [0, 1], ":", color=MUTED, linewidth=1, label="chance")
    auc = tables.number(tables.get(report, where, "auc"))
    said = _draw(axes, report, lines)
    if auc is not None:
        _rename(axes, where, f"{where}, area {auc:.3f}")
        said[0] = said[0].replace(where, f"{where}, area {auc:.3f}", 1)
    alt = f"ROC curve, {'; '.join(said)}"
    point = plots._operating_point(report)
    if point is not None:
        label = f"t* = {tables.threshold(report)}: sensitivity {point[1]:.3f},\nfalse positive rate {point[0]:.3f}"
        axes.plot(*point, "D", color=VERMILLION, markeredgecolor="white", markersize=8, label=label, clip_on=False, zorder=5)
        alt += "; operating point " + label.replace("\n", " ")
    plots._mark(axes, report)
    axes.legend(loc="lower right")
    return Plot(figure, alt + ".")


def _rename(axes: Any, old: str, new: str) -> None:
    for line in axes.get_lines():
        if line.get_label() == old:
            line.set_label(new)


def precision_recall(report: Mapping[str, Any]) -> Plot | None:
    """Precision over recall."""
    lines = _lines(report, "pr")
    if not lines:
        return None
    figure, axes = _square("Precision and recall", "recall (sensitivity)", "precision")
    said = _draw(axes, report, lines)
    told = tables.get(report, "curves", next(iter(lines))) or {}
    n, positives = (tables.integer(told.get(key)) for key in ("n", "positives"))
    if n and positives:
        axes.axhline(positives / n, color=MUTED, linestyle=":", linewidth=1, label=f"chance, {positives / n:.3f}")
    plots._mark(axes, report)
    axes.legend(loc="lower left")
    return Plot(figure, f"Precision over recall: {'; '.join(said)}.")


def threshold(report: Mapping[str, Any]) -> Plot | None:
    """Macro-F1 over the threshold, and where validation put t*."""
    lines = _lines(report, "threshold")
    if not lines:
        return None
    figure, (axes,) = plots._figure(5.0, 4.6)
    said = _draw(axes, report, lines)
    at = tables.threshold(report)
    if at != tables.NOT_RUN:
        axes.axvline(float(at), color=INK, linestyle=":", linewidth=1, label=f"t* = {at}, from validation")
        said.append(f"t* is {at}")
    axes.set(xlim=(0, 1), title="Macro-F1 over the threshold", xlabel="threshold", ylabel="macro-F1")
    plots._mark(axes, report)
    axes.legend(loc="best")
    return Plot(figure, f"Macro-F1 over the threshold: {'; '.join(said)}.")


def confusion(report: Mapping[str, Any]) -> Plot | None:
    """Confusion matrix, shaded by the share of each true class; counts are written into it."""
    where = next((s for s in SPLITS if tables.get(report, s, "confusion")), None)
    matrix = tables.get(report, where, "confusion") if where else None
    if not matrix or any(len(row) != len(matrix) or numbers(row) is None for row in matrix):
        return None
    counts = np.array(matrix, np.float64)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names, size = [tables._class_name(report, i) for i in range(len(matrix))], len(matrix)
    figure, (axes,) = plots._figure(5.0 if size < 6 else 7.5, 4.2 if size < 6 else 6.6)
    from matplotlib.colors import LinearSegmentedColormap

    axes.pcolormesh(share, cmap=LinearSegmentedColormap.from_list("share", ["white", BLUE]), vmin=0, vmax=1, edgecolor="white", linewidth=1)
    for i in range(size):
        for j in range(size):
            words = f"{counts[i, j]:,.0f}" + (f"\n{share[i, j]:.1%}" if size < 6 else "")
            axes.text(
                j + 0.5,
                i + 0.5,
                words,
                ha="center",
                va="center",
                fontsize=9 if size < 6 else 7,
                color="white" if share[i, j] > 0.6 else INK,
            )
    short = [name if len(name) < 20 else name[:19] + "." for name in names]
    axes.set_xticks(np.arange(size) + 0.5, short, rotation=0 if size < 6 else 60)
    axes.set_yticks(np.arange(size) + 0.5, short)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(title=f"Confusion on {where}, windows", xlabel="decided", ylabel="true class")
    plots._mark(axes, report)
    said = "; ".join(f"{name}: {counts[i, i]:,.0f} of {counts[i].sum():,.0f} right" for i, name in enumerate(names))
    return Plot(figure, f"Confusion matrix on {where}. {said}.")


def wrong(report: Mapping[str, Any]) -> Plot | None:
    """The validation windows that were decided wrong with the most confidence, as signals over seconds (or as images, with channels)."""
    found = report.get("wrong") or {}
    rows = [(row, x) for row in tables.get(found, "windows") or () if (x := window(row)) is not None]
    if not rows:
        return None
    fs = tables.number(found.get("fs")) or 1.0
    figure, axes = plots._figure(11.5, 0.5 + 1.25 * len(rows), rows=len(rows))
    said = []
    for axis, (row, x) in zip(axes, rows, strict=True):
        words = (
            f"record {tables.clean(row.get('record'))}, sample {tables.whole(row.get('sample'))}: is {tables.clean(row.get('truth'))}, "
            f"decided {tables.clean(row.get('decided'))}, p {tables.decimal(row.get('p'))}"
        )
        if x.shape[1] == 1:
            axis.plot(np.arange(len(x)) / fs, x[:, 0], color=INK, linewidth=0.8)
            axis.set_xlim(0, (len(x) - 1) / fs)
        else:
            axis.imshow(x.T, cmap="cividis", aspect="auto", interpolation="none", origin="lower", extent=(0, len(x) / fs, 0, x.shape[1]))
        axis.set_title(words, fontsize=8.5)
        axis.set_yticks([])
        said.append(words)
    axes[-1].set_xlabel("seconds" if fs != 1.0 else "samples")
    return Plot(figure, f"Windows decided wrong, of validation: {'; '.join(said)}.")


FIGURES = {"roc": roc, "pr": precision_recall, "threshold": threshold, "confusion": confusion, "wrong": wrong}
