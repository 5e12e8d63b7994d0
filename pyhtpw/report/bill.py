"""What the bill alone shows: Eq. 6 and the published SRAM claim beside the file, and the bill as one figure."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyhtpw.errors import ConfigError
from pyhtpw.report import plots, tables
from pyhtpw.report.files import write_atomically
from pyhtpw.report.tables import Column, Row, Table, get, integer, text, whole

TARGET_BACKEND = "armv7em_dsp"  # whose memory plan stands beside the published claim
_EQ6 = {
    "generator": "generator",
    "heads": "heads",
    "codes": "codes",
    "pw1": "PW1, the first pointwise layer",
    "backbone": "backbone",
}
_OMITS = {
    "biases": "biases",
    "multipliers_and_shifts": "multipliers and shifts",
    "operator_records": "operator records",
    "header_and_section_table": "header and section table",
    "info": "INFO: names, scales, threshold",
    "tables": "tables of functions",
    "padding": "padding",
    "generator_and_head_scales": "scales, biases and sizes of generators and heads",
}
_EQ6_COLOURS = {
    "generator": plots.YELLOW, "heads": plots.ORANGE, "codes": plots.VERMILLION, "pw1": plots.BLUE, "backbone": plots.SKY,
}  # fmt: skip


def eq6(bill: Mapping[str, Any]) -> Table | None:
    """Eq. 6's sum over weight tensors, what it leaves out, and the file."""
    size, total = integer(bill.get("image_bytes")), integer(bill.get("eq6_bytes"))
    if size is None or total is None:
        return None
    rows = [Row((label, whole(get(bill, "eq6", key)))) for key, label in _EQ6.items()]
    rows.append(Row(("Eq. 6", whole(total)), "total"))
    rows += [Row((label, whole(get(bill, "eq6_omits", key)))) for key, label in _OMITS.items()]
    rows.append(Row(("this image", whole(size)), "total"))
    note = (
        "Eq. 6 of the paper sums the weight tensors alone, each by Eq. 4: values times bits, in whole bytes. "
        f"It leaves out {size - total:,} of the {size:,} bytes of this image."
    )
    return Table("Eq. 6 beside the file", (Column("Part", False), Column("Bytes")), tuple(rows), note)


def sram(bill: Mapping[str, Any]) -> Table | None:
    """The memory plan of a backend beside the published max(activation, workspace)."""
    found = bill.get("sram")
    if not found:
        return None
    labels = (
        ("published: max(activation, workspace)", "published", ""),
        ("  activation: inputs and output of one operator", "activation", ""),
        ("  workspace: the largest kernel made", "workspace", ""),
        (f"planned for {text(get(found, 'backend'))}", "total", "total"),
        ("  arena", "arena", ""),
        ("  cache: kernels made or unpacked once", "cache", ""),
    )
    rows = tuple(Row((label, whole(get(found, key))), kind) for label, key, kind in labels)
    note = "The published figure is the greater of two needs; a device has both at once, and keeps every kernel that it made."
    return Table("SRAM", (Column("Part", False), Column("Bytes")), rows, note)


def draw(bill: Mapping[str, Any]) -> plots.Plot:
    """Above, bytes by section of this image beside Eq. 6 and the image with stored kernels; below, each generated layer."""
    from matplotlib.figure import Figure

    columns = {name: c for name, c in tables.breakdown(bill).items() if None not in c.values()}
    layers = plots.layer_rows(bill)
    if not columns:
        raise ConfigError("the bill has no sections to draw")
    heights = [1.0 + 0.5 * (len(columns) + 1)] + ([1.0 + 0.92 * len(layers)] if layers else [])
    figure = Figure(figsize=(11.5, sum(heights)))
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    said = [plots.draw_image(axes[0], bill, columns, extra=_eq6_bar(bill)).rstrip(".")]
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=7, columnspacing=1.2, handlelength=1.2)
    if layers:
        said.append(plots.draw_layers(axes[1], bill, layers).rstrip("."))
        axes[1].legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=5)
    return plots.Plot(figure, ". ".join(said) + ".")


def _eq6_bar(bill: Mapping[str, Any]) -> tuple[str, list[tuple[str, int, str]]] | None:
    parts = [(f"Eq. 6: {key}", integer(get(bill, "eq6", key)) or 0, colour) for key, colour in _EQ6_COLOURS.items()]
    return ("Eq. 6:\nweight tensors", parts) if integer(bill.get("eq6_bytes")) is not None else None


def write_plot(bill: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the bill's figure as PNG or SVG, by the name's ending; whole or not at all.

    Raises
    ------
    ConfigError
        If the name ends in neither, or cannot be written.
    ToolError
        If matplotlib is missing.
    """
    kind = Path(path).suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise ConfigError(f"{path}: a figure is a .png or an .svg file")
    with plots.style():
        plot, out = draw(bill), io.BytesIO()
        metadata = {"Software": None, "Description": plot.alt} if kind == "png" else {"Date": None, "Description": plot.alt}
        plot.figure.savefig(out, format=kind, dpi=plots.DPI, metadata=metadata)
    write_atomically(path, out.getvalue())
