"""Commands: one page, plots and tables of runs and images, side by side, and a telling in the browser."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pyhtpw.cli.common import CacheDir, DataDir, Json, Protocol, Seed, Strict, app, emit, load_data, say
from pyhtpw.cli.running import read_windows
from pyhtpw.errors import ConfigError, MissingToolError


@app.command()
def report(
    sources: Annotated[list[Path], typer.Argument(metavar="RUN|IMAGE...", help="Folder of a demo or a training, JSON result of an "
        "experiment's run, or image; several stand side by side.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file. Default: report.html in the folder of the first, or "
        "beside it under its name; of several, report.html here.")] = None,
    interactive: Annotated[bool, typer.Option("--interactive", help="Embed the library as WebAssembly: the page makes the kernels, runs "
        "windows in the browser and compares every byte with the host's.")] = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for every figure as PNG and SVG.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set whose validation windows are scored, drawn where wrong, and embedded "
        "(--interactive): `pyhtpw data list`. Test is never opened.")] = None,
    data_dir: DataDir = None,
    protocol: Protocol = None,
    source: Annotated[Path | None, typer.Option("--input", help="Windows for --interactive from a .npy file: int8 as they are, floats "
        "quantised.")] = None,
    windows: Annotated[int, typer.Option(help="Windows that --interactive embeds.", min=1, max=1000)] = 16,
    board: Annotated[list[Path] | None, typer.Option(help="JSON of 'pyhtpw target report' with instructions by layer; repeatable, each "
        "goes to the source whose image it is of.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Count instructions by layer on an emulated board (mps2-an386).")] = False,
    ema: Annotated[bool, typer.Option("--ema", help="Of a training's folder the image of the averaged weights.")] = False,
    aami_strict: Strict = False,
    cache_dir: CacheDir = None,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Write one self-contained HTML page of runs and images, print their tables, and write plots.

    What a source does not know is left out, and said. --seed is of windows and of synthetic data.
    """
    from pyhtpw.report import sources as reading
    from pyhtpw.report.html import write_page, write_plots

    if source is not None and not interactive:
        raise ConfigError("--input gives the windows that --interactive embeds: add --interactive")
    if source is not None and data is not None:
        raise ConfigError("--input and --data are two ways to give windows: give one of them")
    found = reading.several(sources, ema=ema)
    dataset = None if data is None else load_data(data, data_dir, protocol, seed, cache_dir, aami_strict)
    if dataset is not None:
        found = [_scored(each, dataset, as_json, alone=len(found) == 1) for each in found]
    found = _counted(found, board or [], measure, as_json)
    target = output or _beside(found)
    told = None
    if interactive:
        found, told = _told(found, dataset, source, windows, seed)
    if not as_json:
        say("drawing", False)
    write_page(found, target, told)
    drawn = [] if plots is None else write_plots(found, plots)
    if as_json:
        emit(_facts(found, target, drawn, told))
        return
    from pyhtpw.report.terminal import print_sources

    print_sources(found)
    print(f"file: {target}")
    if drawn:
        print(f"plots: {len(drawn)} files in {plots}")


def _beside(found: list[Any]) -> Path:
    """Where the page goes when nobody says."""
    if len(found) > 1:
        return Path("report.html")
    path = found[0].path
    return path / "report.html" if path.is_dir() else path.with_suffix(".html")


def _add(source: Any, *lines: str) -> Any:
    """The source with more that was not run."""
    return replace(source, report={**source.report, "not_run": [*(source.report.get("not_run") or []), *lines]})


def _unfit(source: Any, dataset: Any) -> str:
    """Why a data set is not a source's; "" if it may be."""
    named, protocol = source.report.get("data"), source.report.get("protocol")
    if named not in (None, dataset.name):
        return f"was made of {named}, not of {dataset.name}: give --data {named}"
    if named is not None and protocol not in (None, dataset.description["protocol"]):
        return f"was made by protocol {protocol}, whose validation is another: give --protocol {protocol}"
    if source.image is None:
        return f"has no image, so that {dataset.name} cannot be run"
    have, takes = int(dataset.val.x[0].size), source.image.plan().input
    if have != takes:
        return f"takes {takes} samples, windows of {dataset.name} have {have}: give its own data and protocol"
    return ""


def _scored(source: Any, dataset: Any, quiet: bool, alone: bool) -> Any:
    """The source with what its image makes of the validation windows. Of several, one that the data do not fit says so."""
    from pyhtpw.report import curves, tables

    unfit = _unfit(source, dataset)
    if unfit and alone:
        raise ConfigError(f"{source.label}: {unfit}")
    if unfit:
        return _add(source, f"validation windows of {dataset.name}: it {unfit}")
    threshold = tables.number(tables.get(source.report, "validation", "threshold")) if len(dataset.classes) == 2 else None
    if threshold is None and len(dataset.classes) == 2:
        raise ConfigError(f"{source.label}: has no threshold t*: an image of two classes keeps it in INFO")
    say(f"{source.label}: scoring {len(dataset.val):,} validation windows", quiet)
    made = curves.validation(source.image, dataset, threshold, int(source.report.get("median_filter") or 1))
    known = source.report.get("curves") or {}
    before, now = tables.number(tables.get(source.report, "validation", "macro_f1")), made["validation"]["macro_f1"]
    if before is not None and abs(before - now) > 1e-9:
        told = f"validation macro-F1 is {now:.6f} here and {before:.6f} as the run wrote it down: other data, or another image"
        source = replace(source, report={**source.report, "test_notes": [*tables.lines(source.report.get("test_notes")), told]})
    own = {"data": dataset.name, "protocol": dataset.description["protocol"], "synthetic": dataset.synthetic}
    return replace(source, report={**source.report, **own, **made, "curves": {**known, **made["curves"]}})


def _counted(found: list[Any], boards: list[Path], measure: bool, quiet: bool) -> list[Any]:
    """Sources with instructions by layer, as far as they are known."""
    import json

    from pyhtpw.report import architecture

    read = []
    for path in boards:
        try:
            read.append((path, json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot read a board's report ({error}): make one with 'pyhtpw target report --json'") from error
    out, used = [], set()
    for each in found:
        row = None
        for path, value in read if each.image is not None else ():
            try:
                row = architecture.board(value, each.image)
                used.add(path)
                break
            except ConfigError:
                continue
        if row is None and measure and each.image is not None:
            say(f"{each.label}: counting instructions on an emulated board", quiet)
            try:
                row = architecture.measure(each.image)
            except MissingToolError as error:
                each = _add(each, f"instructions by layer: {error}")
        out.append(each if row is None else replace(each, report={**each.report, "board": row}))
    left = [str(path) for path, _ in read if path not in used]
    if left:
        raise ConfigError(f"{left[0]}: is of none of these images: make it with 'pyhtpw target report IMAGE --json'")
    return out


def _told(found: list[Any], dataset: Any, file: Path | None, n: int, seed: int) -> tuple[list[Any], list[Any]]:
    """Sources, and what the page runs of those that have an image."""
    import numpy as np

    from pyhtpw.report import browser
    from pyhtpw.report.html import section_ids

    browser.wasm()  # first, so that a missing compiler is said before any work
    out, told = [], []
    for each, section in zip(found, section_ids(found), strict=True):
        if each.image is None:
            out.append(_add(each, "telling in the browser: the source has no image"))
            continue
        if dataset is not None and not _unfit(each, dataset):
            rows = np.unique(np.linspace(0, len(dataset.val.x) - 1, min(n, len(dataset.val.x))).astype(int))
            x, origin = each.image.quantise(np.asarray(dataset.val.x[rows], np.float32)), f"validation windows of {dataset.name}"
        elif file is not None:
            x, origin = read_windows(each.image, file, n, seed)[:n], f"windows of {file.name}"
        else:
            x, origin = read_windows(each.image, None, n, seed), "seeded synthetic windows, not signals"
        told.append(browser.host(each, section, x, origin))
        out.append(each)
    if not told:
        raise ConfigError("--interactive: none of the sources has an image: give a .htpw file, or a folder with one")
    return out, told


def _facts(found: list[Any], target: Path, drawn: list[Path], told: list[Any] | None) -> dict[str, Any]:
    """The command as one JSON object; of one source its report's keys stand at the top, as they always did."""
    rows = [{"section": t.data["section"], "kernels": len(t.kernels), "windows": len(t.windows)} for t in told or ()]
    facts = {"file": str(target), "plots": [str(path) for path in drawn], "browser": None if told is None else rows}
    if len(found) == 1:
        return {**found[0].report, **facts}
    return {**facts, "sources": [{"label": each.label, "kind": each.kind, "path": str(each.path), **each.report} for each in found]}
