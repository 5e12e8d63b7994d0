"""The report and the bill of an image as tables in a terminal.

Colour only underlines what the words say; rich leaves it out where NO_COLOR is set or the output is no terminal. Where a
table is too wide its spare columns go first; then every row becomes a small list, so that no figure is ever cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from pyhtpw.report import architecture, compare, tables
from pyhtpw.report import bill as own
from pyhtpw.report.sources import Source
from pyhtpw.report.tables import Table

_RULES = Box("    \n    \n ── \n    \n ── \n    \n    \n    \n")  # a rule under the headings and above a sum
_GAP = 3  # cells between two columns of this box
_TEXT = 20  # a column of text is not made narrower than this, unless all of it is
_STYLES = {"": "", "total": "bold", "warn": "yellow", "total warn": "bold yellow"}


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints what a run found.

    Parameters
    ----------
    report : dict
        What is in ``report.json``. A key that is missing or None is shown as not run.
    console : Console, optional
        Where to; the standard output if not given.
    """
    console = console or Console()
    name, data = tables.text(tables.get(report, "network", "name")), tables.text(report.get("data"))
    _line(console, f"Network: {name}. Data: {data}.", "bold")
    _synthetic(report, console)
    _section(console, "Result", tables.result(report))
    if tables.confusion(report):
        _table(console, tables.confusion(report))
    for line in tables.lines(report.get("test_notes")):
        _line(console, f"Note: {line}")
    _synthetic(report, console)
    _section(console, "Bytes by section", tables.sections(report))
    if report.get("generated") == {}:
        _heading(console, "Generated kernels")
        _line(console, "No kernel of this image is generated.")
    else:
        _section(console, "Generated kernels", tables.generated(report))
    _section(console, "Equality", tables.pairs(report), tables.verdict(report)[0])
    _section(console, "Cortex-M4", tables.cortex(report))
    _heading(console, "Not run")
    left_out = report.get("not_run")
    if left_out is None:
        _line(console, "The report does not state what was left out.")
    for line in tables.lines(left_out) or ([] if left_out is None else ["Nothing was left out."]):
        _line(console, f"- {line}" if left_out else line)


def print_sources(sources: Sequence[Source], console: Console | None = None) -> None:
    """Prints sources: of several first what they have in common, side by side; of each its report and its layers."""
    console = console or Console()
    if len(sources) > 1:
        _table(console, compare.table(sources))
    for source in sources:
        if len(sources) > 1:
            console.print()
            _line(console, f"== {tables.clean(source.label)} ==", "bold")
        print_report(source.report, console)
        layers = architecture.table(source)
        if layers is not None:
            _table(console, layers)


def print_bill(bill: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints what every byte of an image is for.

    Parameters
    ----------
    bill : dict
        As `pyhtpw.image.bill.bill` makes it.
    console : Console, optional
        Where to; the standard output if not given.
    """
    console = console or Console()
    _section(console, "Bytes by section", tables.stored_sections(bill))
    _section(console, "Bytes by layer", tables.layers(bill, total=True))
    if bill.get("generated") == {}:
        _line(console, "No kernel of this image is generated.")
    else:
        _section(console, "Generated kernels", tables.generated(bill))
        _section(console, "Whole image", tables.whole_image(bill))
    for table in (own.eq6(bill), own.sram(bill)):
        if table is not None:
            _table(console, table)


def _line(console: Console, line: str, style: str = "") -> None:
    console.print(_text(console, line), style=style, highlight=False)


def _text(console: Console, value: str) -> Text:
    """Text that the terminal can show, with no meaning given to brackets."""
    return Text(value.encode(console.encoding, "replace").decode(console.encoding))


def _synthetic(report: Mapping[str, Any], console: Console) -> None:
    if tables.is_synthetic(report):
        _line(
            console, "SYNTHETIC DATA: the signals are made up; the figures say nothing about real ones.", "bold yellow"
        )


def _heading(console: Console, caption: str) -> None:
    console.print()
    _line(console, caption, "bold")


def _section(console: Console, caption: str, table: Table | None, absent: str = tables.NOT_RUN) -> None:
    """The table, or its caption and what to say without one."""
    if table is None:
        _heading(console, caption)
        _line(console, absent)
    else:
        _table(console, table)


def _table(console: Console, table: Table) -> None:
    _heading(console, table.caption)
    shown = list(range(len(table.columns)))
    widths = _widths(console.width, table, shown)
    if widths is None:
        shown = [i for i in shown if not table.columns[i].spare]
        widths = _widths(console.width, table, shown)
    if widths is None:
        _as_lists(console, table, shown)
    else:
        grid = Grid(box=_RULES, pad_edge=False, show_edge=False, padding=(0, 1))
        for i, width in zip(shown, widths, strict=True):
            column = table.columns[i]
            grid.add_column(
                _text(console, column.label), justify="right" if column.number else "left", width=width, overflow="fold"
            )
        for row in table.rows:
            if row.kind.startswith("total"):
                grid.add_section()
            grid.add_row(*(_text(console, row.cells[i]) for i in shown), style=_STYLES[row.kind])
        console.print(grid)
    if table.warning:
        _line(console, table.warning, "bold yellow")
    if table.note:
        _line(console, table.note, "dim")


def _widths(room: int, table: Table, shown: list[int]) -> list[int] | None:
    """Widths of the columns shown, None if there is no room. Figures are never broken; headings and text may be."""
    least, full = [], []
    for i in shown:
        column = table.columns[i]
        cell = max((cell_len(row.cells[i]) for row in table.rows), default=0)
        full.append(max(cell, cell_len(column.label)))
        word = max(map(cell_len, column.label.split()), default=0)
        least.append(max(cell, word) if column.number else min(full[-1], _TEXT))
    left = room - sum(least) - _GAP * (len(shown) - 1)
    if left < 0:
        return None
    for i in range(len(shown)):
        if not table.columns[shown[i]].number:
            more = min(left, full[i] - least[i])
            least[i], left = least[i] + more, left - more
    while left and least != full:  # what remains goes to the headings of figures, a cell to each in turn
        for i in range(len(shown)):
            if left and least[i] < full[i]:
                least[i], left = least[i] + 1, left - 1
    return least


def _as_lists(console: Console, table: Table, shown: list[int]) -> None:
    """Every row as its first cell and, indented, what the other columns say."""
    for row in table.rows:
        _line(console, row.cells[shown[0]], f"bold {_STYLES[row.kind]}")
        for i in shown[1:]:
            if row.cells[i]:
                _line(console, f"  {table.columns[i].label}: {row.cells[i]}", _STYLES[row.kind])
