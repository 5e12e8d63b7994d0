"""Several sources side by side: one table, and accuracy against bytes beside published points."""

from __future__ import annotations

from collections.abc import Sequence

from pyhtpw.report import plots, tables
from pyhtpw.report.plots import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION, Plot
from pyhtpw.report.published import POINTS, PROTOCOLS, SOURCE
from pyhtpw.report.sources import Source
from pyhtpw.report.tables import Column, Row, Table, decimal, get, text, whole

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
MARKS = "osD^vP"  # with the colours, so that neither stands alone


def table(sources: Sequence[Source]) -> Table:
    """A row per figure, a column per source."""

    def row(label: str, *keys: str, form: str = "") -> Row:
        cells = [get(source.report, *keys) for source in sources]
        return Row(
            (label, *(decimal(c, form) if form else whole(c) if tables.number(c) is not None else text(c, tables.NOT_RUN) for c in cells))
        )

    def sum_of(source: Source) -> str:
        plan = source.report.get("plan") or {}
        both = [tables.integer(plan.get(key)) for key in ("arena", "cache")]
        return tables.NOT_RUN if None in both else whole(sum(both))  # type: ignore[arg-type]

    rows = [
        row("network", "network", "name"), row("data", "data"), row("protocol", "protocol"), row("image, bytes", "image_bytes"),
        *(row(f"with kernels stored at {b} bits", "whole_image_if_stored", b) for b in tables.BITS),
        row("generated kernels: bytes", "generated_total", "stored_bytes"),
        row("generated kernels: weights", "generated_total", "kernel_bytes"),
        Row(("SRAM on a Cortex-M4: arena and cache", *(sum_of(source) for source in sources))),
        row("macro-F1, validation", "validation", "macro_f1", form=".3f"), row("macro-F1, test", "test", "macro_f1", form=".3f"),
        row("ROC-AUC, test", "test", "auc", form=".3f"), row("instructions: synthesis, once", "cortex_m4", "synthesis_instructions"),
        row("instructions: one inference", "cortex_m4", "inference_instructions"), row("bytes compared between tellings", "bytes_compared"),
        row("of them different", "bytes_differ"),
    ]  # fmt: skip
    heads = (Column("", False), *(Column(source.label) for source in sources))
    synthetic = [source.label for source in sources if tables.is_synthetic(source.report)]
    note = f"Synthetic data: {', '.join(map(tables.clean, synthetic))}." if synthetic else ""
    return Table("Figures side by side", heads, tuple(rows), note)


def _score(source: Source, split: str) -> float | None:
    return tables.number(get(source.report, split, "macro_f1"))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of (bytes, score) that no other point beats in both, by bytes."""
    best, out = float("-inf"), []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            out.append(i)
    return out


def pareto(sources: Sequence[Source]) -> Plot | None:
    """Macro-F1 against bytes of every source with a score, one panel per data set; published points beside real data.

    None where there is nothing to stand beside: one source, and no published point."""
    groups: dict[str, list[int]] = {}
    for i, source in enumerate(sources):
        if tables.integer(source.report.get("image_bytes")) and any(_score(source, s) is not None for s in ("test", "validation")):
            groups.setdefault(str(source.report.get("data") or "data not stated"), []).append(i)
    published = any(data in POINTS and not tables.is_synthetic(sources[i].report) for data, members in groups.items() for i in members)
    if sum(map(len, groups.values())) < 2 and not published:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2 if len(groups) == 1 else 11.5, 4.6 * -(-len(groups) // 2)))
    grid = figure.subplots(-(-len(groups) // 2), min(2, len(groups)), squeeze=False).ravel()
    said = []
    for axes, (data, members) in zip(grid, groups.items(), strict=False):
        said.append(_panel(axes, data, [(i, sources[i]) for i in members]))
    for axes in grid[len(groups) :]:
        axes.set_visible(False)
    return Plot(figure, "Macro-F1 against bytes. " + " ".join(said))


def _panel(axes: plots.Axes, data: str, members: Sequence[tuple[int, Source]]) -> str:
    words, points = [], []
    for i, source in members:
        size, label = source.report["image_bytes"], tables.clean(source.label)
        test, validation = (_score(source, split) for split in ("test", "validation"))
        colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
        if test is not None:
            points.append((size, test))
            axes.plot(size, test, mark, color=colour, label=f"{label}, test")
            words.append(f"{label} {size:,} bytes, test {test:.3f}")
        if validation is not None:
            axes.plot(size, validation, mark, color=colour, markerfacecolor="white", label=f"{label}, validation")
            words.append(f"{label} {size:,} bytes, validation {validation:.3f}")
    real = [source for _, source in members if not tables.is_synthetic(source.report)]
    published = POINTS.get(data, ()) if real else ()
    for point in published:
        axes.plot(point.bytes, point.macro_f1, "*", color=INK, markersize=9, label=None if point is not published[0] else "published, test")
        axes.annotate(point.name, (point.bytes, point.macro_f1), xytext=(5, 4), textcoords="offset points", fontsize=7.5, color=MUTED)
        words.append(f"published {point.name} {point.bytes:,} bytes, {point.macro_f1:.3f}")
    everything = points + [(point.bytes, point.macro_f1) for point in published]
    line = [everything[i] for i in front(everything)]
    if len(line) > 1:
        axes.plot(*zip(*line, strict=True), "-", color=MUTED, linewidth=0.9, zorder=0, label="Pareto front of test")
    axes.set(
        xscale="log",
        xlabel="bytes (ours: the whole image; published: weight tensors)" if published else "whole image, bytes",
        ylabel="macro-F1",
        title=data,
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.margins(x=0.18, y=0.12)
    plots._mark(axes, members[0][1].report)
    axes.legend(loc="best", fontsize=7.5)
    return f"{data}: {'; '.join(words)}."


def pareto_note(sources: Sequence[Source]) -> str:
    """What must be known to read `pareto`."""
    notes = []
    for data in dict.fromkeys(str(source.report.get("data")) for source in sources):
        mine = [source for source in sources if str(source.report.get("data")) == data]
        if any(tables.is_synthetic(source.report) for source in mine):
            notes.append(f"{data} is synthetic: no published point stands beside it.")
        elif data in POINTS:
            other = sorted({str(s.report.get("protocol")) for s in mine} - {PROTOCOLS[data]})
            notes.append(
                f"Published points ({SOURCE}): their own sums over weight tensors, kB of 1,024 bytes; one split, as our protocol "
                f"{PROTOCOLS[data]} follows it."
            )
            if other:
                notes.append(
                    f"Protocol {', '.join(map(tables.clean, other))} of this report is another split than theirs: the points are not "
                    "strictly comparable."
                )
    return " ".join(notes)
