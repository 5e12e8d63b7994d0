"""Every figure of a report by its name: drawn, as SVG elements of a page, and as PNG or SVG files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyhtpw.errors import ConfigError
from pyhtpw.report import compare, curve_plots, image_plots, plots
from pyhtpw.report.plots import Plot
from pyhtpw.report.sources import Source

REPORT = {"learning": plots.learning, **curve_plots.FIGURES, "layers": plots.layers, "image": plots.image}
"""Those that need nothing but the report's dict."""
FILES = {"png": plots.picture, "svg": lambda plot: plots.document(plot, title=True)}


def of_report(report: Mapping[str, Any]) -> Source:
    """A report without its image, as a source."""
    return Source(str(report.get("image") or "report"), "demo", Path(), report)


def drawn(source: Source) -> Iterator[tuple[str, Plot]]:
    """Name and figure of everything that a source has data for; within `plots.style`."""
    for name, draw in REPORT.items():
        plot = draw(source.report)
        if plot:
            yield name, plot
    if source.image is not None:
        plot = image_plots.architecture(source)
        if plot:
            yield "architecture", plot
        yield from image_plots.kernels(source).items()


def svg(source: Source, prefix: str = "") -> dict[str, str]:
    """Every figure of a source as an SVG element; `prefix` keeps the ids of several sources apart."""
    with plots.style():
        return {name: plots.inline(plot, prefix + name) for name, plot in drawn(source)}


def together(sources: Sequence[Source]) -> dict[str, str]:
    """Figures of all sources together as SVG elements."""
    with plots.style():
        plot = compare.pareto(sources)
        return {"pareto": plots.inline(plot, "pareto")} if plot else {}


def files(sources: Sequence[Source], kinds: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """File name -> contents of every figure; of several sources each in a folder of its label.

    Raises ConfigError for an unknown kind of file.
    """
    unknown = [kind for kind in kinds if kind not in FILES]
    if unknown:
        raise ConfigError(f"a figure is a .png or an .svg file, not .{unknown[0]}")
    out = {}
    with plots.style():
        for i, source in enumerate(sources):
            folder = f"{i + 1}-{_plain(source.label)}/" if len(sources) > 1 else ""
            for name, plot in drawn(source):
                out |= {f"{folder}{name}.{kind}": FILES[kind](plot) for kind in kinds}
        plot = compare.pareto(sources)
        if plot:
            out |= {f"pareto.{kind}": FILES[kind](plot) for kind in kinds}
    return out


def _plain(label: str) -> str:
    """A label as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in label).strip(".") or "source"
