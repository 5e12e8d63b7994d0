"""What all figures share, and those of bytes and of the training: learning curve, bytes per generated layer, bytes of the whole image.

Drawn with matplotlib's Agg and SVG canvases; pyplot is never loaded and the caller's matplotlib settings neither matter nor
change. The same report gives the same bytes. Colours are those of Okabe and Ito, which the colour-blind can tell apart, and
no fact is told by colour alone.
"""

from __future__ import annotations

import contextlib
import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyhtpw.report import tables
from pyhtpw.report.files import missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, SKY, GREEN, ORANGE, VERMILLION, PURPLE, YELLOW = (
    "#0072B2",
    "#56B4E9",
    "#009E73",
    "#E69F00",
    "#D55E00",
    "#CC79A7",
    "#F0E442",
)
INK, MUTED, RULE = "#1b1f24", "#57606a", "#d0d7de"
WIDTHS = {"8": BLUE, "4": SKY, "2": "#B9DDF5"}  # plain storage: one hue, paler with fewer bits
SECTIONS = {
    "INFO": "#999999",
    "OPS": GREEN,
    "QUAN": PURPLE,
    "WGHT": SKY,
    tables.KERNELS: BLUE,
    "GENR": YELLOW,
    "HEAD": ORANGE,
    "CODE": VERMILLION,
    tables.REST: RULE,
}
SYNTHETIC = "synthetic data"
_FONT = "DejaVu Sans"  # comes with matplotlib, so the layout is the same everywhere
DPI = 160


@dataclass(frozen=True)
class Plot:
    """A drawn figure and what it says in words, for those who cannot see it."""

    figure: Figure
    alt: str


@contextlib.contextmanager
def style() -> Iterator[None]:
    """matplotlib's own defaults and this module's, for as long as it draws and saves."""
    try:
        import matplotlib
    except ImportError as error:
        raise missing("matplotlib", error) from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({
            "font.family": [_FONT], "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "legend.fontsize": 8.5,
            "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
            "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.linewidth": 0.8, "axes.titlelocation": "left",
            "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
            "grid.color": RULE, "grid.linewidth": 0.6, "legend.frameon": False, "lines.linewidth": 1.7,
            "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "pyhtpw", "figure.constrained_layout.use": True,
        })  # fmt: skip
        yield


def _figure(width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    return figure, list(axes)


def _mark(axes: Axes, report: Mapping[str, Any]) -> None:
    """Says in the figure itself that its data are synthetic: a PNG travels without its page."""
    if tables.is_synthetic(report):
        axes.set_title(SYNTHETIC.upper(), loc="right", color="#8a4b00", fontweight="bold")


def _series(rows: list[Any], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of those rows that have both."""
    points = [(tables.number(tables.get(row, "step")), tables.number(tables.get(row, key))) for row in rows]
    points = [(x, y) for x, y in points if x is not None and y is not None]
    return [x for x, _ in points], [y for _, y in points]


def learning(report: Mapping[str, Any]) -> Plot | None:
    """Loss, and macro-F1 on validation, against the step."""
    rows = tables.get(report, "training", "curves") or []
    lines = {key: _series(rows, key) for key in ("loss", "val_loss", "val_macro_f1", "ema_val_macro_f1")}
    if not any(x for x, _ in lines.values()):
        return None
    figure, (top, bottom) = _figure(6.2, 4.6, rows=2)
    named = {
        "loss": (top, "train", SKY, "-"),
        "val_loss": (top, "validation", BLUE, "--"),
        "val_macro_f1": (bottom, "validation, raw weights", VERMILLION, "-"),
        "ema_val_macro_f1": (bottom, "validation, averaged weights", ORANGE, "--"),
    }
    said = []
    for key, (axes, label, colour, dash) in named.items():
        x, y = lines[key]
        if x:
            axes.plot(x, y, dash, color=colour, label=label, marker="o" if len(x) < 16 else None, markersize=3.5)
            said.append(f"{'macro-F1' if 'f1' in key else 'loss'}, {label}, from {y[0]:.3g} to {y[-1]:.3g}")
    best = tables.number(tables.get(report, "training", "best_step"))
    if best is not None:
        for axes in (top, bottom):
            axes.axvline(best, color=INK, linewidth=0.9, linestyle=":", label="best step" if axes is bottom else None)
    top.set(title="Loss")
    bottom.set(title="Macro-F1", xlabel="step")
    _mark(top, report)
    for axes in (top, bottom):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    bottom.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    last = max(x[-1] for x, _ in lines.values() if x)
    end = f"; best step {best:,.0f}" if best is not None else ""
    return Plot(figure, f"Learning curve to step {last:,.0f}: {'; '.join(said)}{end}.")


def _operating_point(report: Mapping[str, Any]) -> tuple[float, float] | None:
    """False positive rate and sensitivity at t*, from the confusion matrix of test."""
    matrix = tables.get(report, "test", "confusion")
    if (
        not matrix
        or [len(row) for row in matrix] != [2, 2]
        or any(tables.number(n) is None for row in matrix for n in row)
    ):
        return None
    (tn, fp), (fn, tp) = matrix
    return (fp / (tn + fp), tp / (fn + tp)) if tn + fp and fn + tp else None


def layer_rows(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The generated layers that have figures."""
    return {
        tables.clean(name): row
        for name, row in (report.get("generated") or {}).items()
        if tables.integer(tables.get(row, "stored_bytes")) is not None
    }


def layers(report: Mapping[str, Any]) -> Plot | None:
    """For each generated kernel, the bytes that make it beside its bytes stored at 8, 4 and 2 bits."""
    found = layer_rows(report)
    if not found:
        return None
    figure, (axes,) = _figure(11.5, 1.1 + 0.92 * len(found))
    alt = draw_layers(axes, report, found)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=5)
    return Plot(figure, alt)


def draw_layers(axes: Axes, report: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> str:
    """Draws `layers` into axes, without a legend; returns what it says."""
    widest = max(
        max([row["stored_bytes"], *(tables.get(row, "stored_at", b) or 0 for b in WIDTHS)]) for row in found.values()
    )
    height, said = 0.2, []
    for i, (name, row) in enumerate(found.items()):
        codes = tables.integer(row.get("codes_bytes")) or 0
        y = i - 1.5 * height
        parts = (
            (codes, 0, VERMILLION, "generated: codes"),
            (row["stored_bytes"] - codes, codes, ORANGE, "generated: share of the rest"),
        )
        for width, left, colour, label in parts:
            axes.barh(y, width, height * 0.9, left=left, color=colour, label=None if i else label)
        more = tables.get(row, "costs_more_than_storing") or ()
        flag = f"  costs more than storing at {tables.bits_words(more)}" if more else ""
        axes.text(
            row["stored_bytes"] + widest * 0.006,
            y,
            f"{row['stored_bytes']:,}{flag}",
            va="center",
            fontsize=8,
            fontweight="bold",
        )
        said.append(f"{name} {row['stored_bytes']:,} bytes generated{',' + flag.replace('  ', ' ') if flag else ''}")
        for j, (bits, colour) in enumerate(WIDTHS.items(), start=1):
            size = tables.integer(tables.get(row, "stored_at", bits))
            if size is not None:
                axes.barh(
                    y + j * height, size, height * 0.9, color=colour, label=None if i else f"stored at {bits} bits"
                )
                axes.text(size + widest * 0.006, y + j * height, f"{size:,}", va="center", fontsize=8)
                said[-1] += f", {size:,} stored at {bits} bits"
    axes.set_yticks(range(len(found)), list(found))
    axes.tick_params(axis="y", length=0)
    _mark(axes, report)
    _bytes_axis(axes, widest * 1.12, len(found))
    return f"Bytes per generated layer: {'; '.join(said)}."


def _bytes_axis(axes: Axes, end: float, rows: int) -> None:
    """Horizontal bars from 0 to `end` bytes, the first row on top."""
    axes.set(xlim=(0, max(end, 1)), ylim=(rows - 0.45, -0.55), xlabel="bytes")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def image(report: Mapping[str, Any]) -> Plot | None:
    """Bytes by section of this image and of the same image with its generated kernels stored."""
    columns = {name: column for name, column in tables.breakdown(report).items() if None not in column.values()}
    if not columns:
        return None
    figure, (axes,) = _figure(11.5, 1.25 + 0.5 * len(columns))
    alt = draw_image(axes, report, columns)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper left", ncols=9, columnspacing=1.2, handlelength=1.2
    )
    return Plot(figure, alt)


def draw_image(
    axes: Axes,
    report: Mapping[str, Any],
    columns: Mapping[str, Mapping[str, int]],
    extra: tuple[str, list[tuple[str, int, str]]] | None = None,
) -> str:
    """Draws `image` into axes, without a legend; returns what it says. `extra`: a last bar, (label, bytes, colour) of its parts."""
    totals = [sum(column.values()) for column in columns.values()]
    order = [name for name in SECTIONS if any(column.get(name) for column in columns.values())]
    other = [name for name in columns[tables.THIS] if name not in SECTIONS]
    left = [0] * len(columns)
    for name in order + other:
        sizes = [column[name] for column in columns.values()]
        bars = axes.barh(
            range(len(columns)),
            sizes,
            0.62,
            left=left,
            color=SECTIONS.get(name, MUTED),
            label=name,
            edgecolor="white",
            linewidth=0.6,
        )
        wide = [f"{n:,}" if n > 0.045 * max(totals) else "" for n in sizes]
        dark = SECTIONS.get(name) in (BLUE, GREEN, VERMILLION, None)
        axes.bar_label(bars, wide, label_type="center", fontsize=8, color="white" if dark else INK)
        left = [a + n for a, n in zip(left, sizes, strict=True)]
    names = ["this image" if name == tables.THIS else f"kernels stored\nat {name} bits" for name in columns]
    if extra is not None:
        names.append(extra[0])
        totals.append(0)
        for label, size, colour in extra[1]:
            # hatched: these are weight tensors alone, not sections
            look = {"color": colour, "edgecolor": "white", "hatch": "///", "linewidth": 0.6}
            axes.barh(len(names) - 1, size, 0.62, left=totals[-1], label=label, **look)
            totals[-1] += size
    for i, total in enumerate(totals):
        axes.text(total + max(totals) * 0.006, i, f"{total:,}", va="center", fontweight="bold")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    _mark(axes, report)
    _bytes_axis(axes, max(totals) * 1.09, len(names))
    said = [f"{name.replace(chr(10), ' ')} {total:,}" for name, total in zip(names, totals, strict=True)]
    parts = [f"{name} {columns[tables.THIS][name]:,}" for name in order + other if columns[tables.THIS].get(name)]
    return f"Bytes of the whole image: {'; '.join(said)}. Sections of this image: {', '.join(parts)}."


def document(plot: Plot, title: bool = False) -> bytes:
    """A figure as an SVG file; the same figure gives the same bytes. With `title` it says in words what it shows."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = io.BytesIO()
    said = {"Title": plot.alt} if title else {}
    FigureCanvasSVG(plot.figure).print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None, **said})
    return out.getvalue()


def picture(plot: Plot) -> bytes:
    """A figure as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    out, canvas = io.BytesIO(), FigureCanvasAgg(plot.figure)
    plot.figure.set_dpi(DPI)
    canvas.print_png(out, metadata={"Software": None, "Description": plot.alt})
    return out.getvalue()


def inline(plot: Plot, name: str) -> str:
    """matplotlib's SVG document as an element of a page: no prolog, metadata, style sheet, namespaces or clashing ids."""
    root = ElementTree.fromstring(document(plot))
    for parent in root.iter():
        for child in [c for c in parent if c.tag.rpartition("}")[2] in ("metadata", "style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        if element.tag in ("g", "text") and "id" in attributes:
            del attributes["id"]  # nothing refers to groups, and every figure has the same
        if "id" in attributes:
            attributes["id"] = f"{name}-{attributes['id']}"
        if attributes.get("href", "").startswith("#"):  # others are pictures in the figure, as data
            attributes["href"] = "#" + name + "-" + attributes["href"].lstrip("#")
        if "clip-path" in attributes:
            attributes["clip-path"] = attributes["clip-path"].replace("url(#", f"url(#{name}-")
        if "style" in attributes:
            attributes["style"] = (
                attributes["style"].replace(f"; font-family: '{_FONT}'", "").replace(f" '{_FONT}'", " inherit")
            )
        element.attrib.update(attributes)
    root.attrib.pop("version", None)
    for side in ("width", "height"):
        root.set(side, str(round(float(root.get(side).removesuffix("pt")) * 4 / 3)))
    root.attrib.update({"role": "img", "aria-label": plot.alt})
    return ElementTree.tostring(root, encoding="unicode")
