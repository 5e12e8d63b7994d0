"""Commands: write the report of a run again."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pyhtpw.cli.common import Json, Seed, app, emit
from pyhtpw.errors import ConfigError


@app.command()
def report(
    source: Annotated[Path, typer.Argument(help="report.json, or the folder of a demo that holds it.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file; default: beside the JSON.")] = None,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Write the HTML report of a run again and print its tables. --seed changes nothing."""
    from pyhtpw.report import print_report, write_html

    path = source / "report.json" if source.is_dir() else source
    try:
        figures = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot read a report ({error}): make one with 'pyhtpw demo'") from error
    if not isinstance(figures, dict) or "image_bytes" not in figures:
        raise ConfigError(f"{path}: is not a report of 'pyhtpw demo': it has no image_bytes")
    target = output or path.with_suffix(".html")
    write_html(figures, target)
    if as_json:
        emit(figures)
    else:
        print_report(figures)
        print(f"file: {target}")
