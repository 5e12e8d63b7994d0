"""The report as one HTML file that needs no script and no network, and its plots as PNG files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pyhtpw.report import plots, tables
from pyhtpw.report.files import missing, write_atomically

_TEMPLATE = "report.html.j2"


def write_html(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the report as one self-contained HTML file; the same report gives the same bytes.

    Parameters
    ----------
    report : dict
        What is in ``report.json``. A key that is missing or None is shown as not run.
    path : path
        Its folder is made if need be. The file is replaced in one step.

    Raises
    ------
    ConfigError
        The file cannot be written.
    ToolError
        jinja2 or matplotlib is not installed.
    """
    write_atomically(path, render(report).encode())


def write_png(report: Mapping[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Writes the report's plots as ``learning.png``, ``roc.png``, ``layers.png`` and ``image.png``.

    Parameters
    ----------
    report, folder
        As `write_html`; the folder is made if need be. A plot without data is left out.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ConfigError
        A file cannot be written.
    ToolError
        matplotlib is not installed.
    """
    files = {Path(folder) / f"{name}.png": data for name, data in plots.png(report).items()}
    for path, data in files.items():
        write_atomically(path, data)
    return list(files)


def render(report: Mapping[str, Any]) -> str:
    """The page as text."""
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise missing("jinja2", error) from error
    source = resources.files("pyhtpw.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    figures = {name: markupsafe.Markup(svg) for name, svg in plots.svg(report).items()}
    return environment.from_string(source).render(figures=figures, **_view(report))


def _view(report: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template shows, as finished text and tables."""
    names = (
        "result",
        "confusion",
        "per_class",
        "sections",
        "generated",
        "whole_image",
        "layers",
        "pairs",
        "cortex",
        "splits",
        "nodes",
    )
    network = report.get("network") or {}
    training = {k: v for k, v in (report.get("training") or {}).items() if k not in ("curves", "config")}
    machine = report.get("machine") or {}
    size = tables.get(network, "input")
    about = {
        "command": report.get("command"),
        "version": report.get("version"),
        "created": report.get("created"),
        "image": report.get("image"),
        "data": report.get("data"),
        "protocol": report.get("protocol"),
        "seed": tables.clean(report["seed"]) if report.get("seed") is not None else None,
        "classes": report.get("classes"),
    }
    return {
        "table": {name: getattr(tables, name)(report) for name in names},
        "title": tables.text(network.get("name"), "unnamed network"),
        "synthetic": tables.is_synthetic(report),
        "cards": _cards(report),
        "notes": tables.lines(report.get("test_notes")),
        "about": tables.pairs_of(about),
        "machine": tables.pairs_of(machine),
        "network": tables.pairs_of({
            "parameters": network.get("parameters"), "multiply-accumulates": network.get("macs"),
            "input": " x ".join(map(tables.whole, size)) if isinstance(size, (list, tuple)) else size,
        }) if network else [],
        "generator": tables.pairs_of(network.get("generator")),
        "training": tables.pairs_of(training),
        "config": tables.pairs_of(tables.get(report, "training", "config")),
        "plan": [(key, f"{value} bytes") for key, value in tables.pairs_of(report.get("plan"))],
        "verdict": tables.verdict(report)[0],
        "nothing_generated": report.get("generated") == {},
        "not_run": None if report.get("not_run") is None else tables.lines(report["not_run"]),
        "absent": tables.NOT_RUN,
    }  # fmt: skip


def _cards(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The four figures at the top of the page: label, value, what to read it with, and tone."""
    test, m4 = report.get("test") or {}, report.get("cortex_m4") or {}
    score = f"ROC-AUC {tables.decimal(test.get('auc'))}, {tables.operating_point(report)}" if test else ""
    stored = report.get("whole_image_if_stored")
    if stored and report.get("generated"):
        size = ", ".join(f"{tables.whole(stored.get(b))} at {b} bits" for b in tables.BITS) + " if kernels were stored"
    else:
        size = "no kernel is generated" if report.get("generated") == {} else ""
    sentence, good = tables.verdict(report)
    compared = tables.integer(report.get("bytes_compared"))
    equal = sentence.partition("compared, ")[2] or (sentence if compared is not None else "")
    boot = f"instructions; synthesis once {tables.whole(m4.get('synthesis_instructions'))}" if m4 else ""
    return [
        {"label": "Macro-F1 on test", "value": tables.decimal(test.get("macro_f1")), "more": score, "tone": ""},
        {"label": "Image, bytes", "value": tables.whole(report.get("image_bytes")), "more": size, "tone": ""},
        {
            "label": "Bytes compared",
            "value": tables.whole(compared),
            "more": equal,
            "tone": {True: "good", False: "bad"}.get(good, ""),
        },
        {
            "label": "Inference on Cortex-M4",
            "value": tables.whole(m4.get("inference_instructions")),
            "more": boot,
            "tone": "",
        },
    ]
