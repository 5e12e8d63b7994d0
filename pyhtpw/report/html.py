"""The report as one HTML file that needs no network, and no script for anything but the browser's telling; its plots as files."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyhtpw.report import architecture, compare, figures, tables
from pyhtpw.report.files import missing, write_atomically
from pyhtpw.report.sources import Source

if TYPE_CHECKING:
    from pyhtpw.model import Image
    from pyhtpw.report.browser import Told


def write_html(report: Mapping[str, Any], path: str | os.PathLike[str], image: Image | None = None) -> None:
    """Writes the report as one self-contained HTML file; the same report gives the same bytes.

    Parameters
    ----------
    report : dict
        What is in ``report.json``. A key that is missing or None is shown as not run.
    path : path
        Its folder is made if need be. The file is replaced in one step.
    image : Image, optional
        The report's image: its layers and kernels are then drawn too.

    Raises
    ------
    ConfigError
        The file cannot be written.
    ToolError
        jinja2 or matplotlib is not installed.
    """
    source = figures.of_report(report)
    write_page([Source(source.label, source.kind, source.path, report, image)], path)


def write_page(sources: Sequence[Source], path: str | os.PathLike[str], told: Sequence[Told] | None = None) -> None:
    """Writes one page of one or several sources side by side.

    Parameters
    ----------
    sources : one or more
    path : path
        As `write_html`.
    told : sequence of Told, optional
        What the page's script runs and compares (`pyhtpw.report.browser.host`, with ids of `section_ids`); without it there is no script.

    Raises
    ------
    ConfigError, ToolError
        As `write_html`; with `told` also if the library cannot be compiled to WebAssembly.
    """
    write_atomically(path, render(sources, told).encode())


def write_png(report: Mapping[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Writes the report's plots as ``learning.png``, ``roc.png``, ``layers.png`` and so on.

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
    return write_plots([figures.of_report(report)], folder, ("png",))


def write_plots(sources: Sequence[Source], folder: str | os.PathLike[str], kinds: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Writes every figure of sources into a folder, of several each into a folder of its own; the files. Errors as `write_png`."""
    written = []
    for name, data in figures.files(sources, kinds).items():
        written.append(Path(folder) / name)
        write_atomically(written[-1], data)
    return written


def section_ids(sources: Sequence[Source]) -> list[str]:
    """Id of each source's section for the browser's telling."""
    return [f"{prefix}browser" for prefix in _prefixes(sources)]


def _prefixes(sources: Sequence[Source]) -> list[str]:
    return [""] if len(sources) == 1 else [f"s{i}-" for i in range(1, len(sources) + 1)]


def _text(name: str) -> str:
    return resources.files("pyhtpw.report").joinpath(name).read_text(encoding="utf-8")


def render(sources: Sequence[Source], told: Sequence[Told] | None = None) -> str:
    """The page as text."""
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise missing("jinja2", error) from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=jinja2.FunctionLoader(_text)
    )
    raw = markupsafe.Markup
    script, data, policy = "", "", "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    if told:
        from pyhtpw.report import browser

        script = browser.script()
        data = json.dumps(browser.embed(told)).replace("<", "\\u003c")  # so that no name ends the element
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}' 'wasm-unsafe-eval'"
    by_section = {each.data["section"]: each for each in told or ()}
    views = []
    for source, prefix in zip(sources, _prefixes(sources), strict=True):
        svg = {name: raw(text) for name, text in figures.svg(source, prefix).items()}
        kernels = [name for name in svg if name.startswith("kernel-")]
        made = sum(op.generated for op in source.image.parsed.ops) if source.image is not None else 0
        own = {"figures": svg, "kernels": kernels, "undrawn": made - len(kernels), "id": prefix}
        views.append({**_view(source), **own, "told": by_section.get(f"{prefix}browser")})
    several = len(sources) > 1
    return environment.get_template("report.html.j2").render(
        views=views, several=several, style=raw(_text("report.css")), script=raw(script), data=raw(data), policy=raw(policy),
        title=f"{len(sources)} sources side by side" if several else views[0]["title"], synthetic=any(view["synthetic"] for view in views),
        side_by_side=compare.table(sources) if several else None,
        shared={name: raw(text) for name, text in figures.together(sources).items()},
        pareto_note=compare.pareto_note(sources),
    )  # fmt: skip


def _view(source: Source) -> dict[str, Any]:
    """Everything that the template shows of a source, as finished text and tables."""
    report = source.report
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
        "table": {**{name: getattr(tables, name)(report) for name in names}, "architecture": architecture.table(source)},
        "label": tables.clean(source.label),
        "kind": source.kind,
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
        "wrong": _wrong_words(report),
        "bands": _bands(report),
    }  # fmt: skip


def _wrong_words(report: Mapping[str, Any]) -> str:
    """How many validation windows were decided wrong."""
    found = report.get("wrong") or {}
    if tables.integer(found.get("wrong")) is None:
        return ""
    return (f"{tables.whole(found['wrong'])} of {tables.whole(found.get('scored'))} scored validation windows were decided wrong; the most "
            "confident of each class are drawn, as the int8 samples that the network saw. Windows of test are not shown: nobody is to "
            "learn from them.")  # fmt: skip


def _bands(report: Mapping[str, Any]) -> list[str]:
    """How the intervals of the curves were made, or why there are none."""
    out = []
    for split, row in (report.get("curves") or {}).items():
        if not isinstance(row, Mapping):
            continue
        n, positives, clusters = (tables.whole(row.get(key)) for key in ("n", "positives", "clusters"))
        words = f"{tables.clean(split)}: {n} windows, {positives} positive, {clusters} people or records"
        if row.get("resamples"):
            words += f"; 95 % intervals, pointwise, from {tables.whole(row['resamples'])} resamples of whole people or records"
        out.append(words + (f"; {tables.clean(row['no_band'])}" if row.get("no_band") else "") + ".")
    return out


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
