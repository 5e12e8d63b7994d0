"""The HTML page of a report of `pyhtpw.target.measure`: plain tables, no scripts, nothing loaded from elsewhere."""

from html import escape
from pathlib import Path
from typing import Any

from pyhtpw.image.writer import save
from pyhtpw.target.measure import headline, tables

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0 2rem}td,th{padding:.15rem .9rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}h2{font-size:1.05rem;margin-bottom:.2rem}.estimated{background:#fff6df}"""


def page(found: dict[str, Any]) -> str:
    """The page as text."""
    parts = ["<!doctype html><meta charset=utf-8>", f"<title>{escape(found['image']['name'])} on {escape(found['board'])}</title>"]
    parts += [f"<style>{STYLE}</style><h1>{escape(found['image']['name'])} on {escape(found['board'])}</h1>"]
    parts += [f"<p>{escape(line)}</p>" for line in headline(found)]
    for title, head, rows in tables(found):
        kind = " class=estimated" if title.startswith("ESTIMATED") else ""
        parts.append(f"<h2>{escape(title)}</h2><table{kind}><tr>{''.join(f'<th>{escape(h)}' for h in head)}")
        for row in rows:
            parts.append("<tr>" + "".join(f"<td>{f'{cell:,}' if isinstance(cell, int) else escape(str(cell))}" for cell in row))
        parts.append("</table>")
    return "\n".join(parts) + "\n"


def write_html(found: dict[str, Any], path: Path) -> None:
    """Writes the page, whole or not at all."""
    save(page(found).encode(), path)
