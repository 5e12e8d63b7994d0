"""Commands: which data sets there are, whether their files are right, and downloading them."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pyhtpw.cli.common import DataDir, Json, app, counter, emit

data_app = typer.Typer(no_args_is_help=True, help="Data sets: list, check, fetch.")
app.add_typer(data_app, name="data")

Name = Annotated[str, typer.Argument(help="Data set, as `pyhtpw data list` names it.")]


@data_app.command("list")
def list_sets(data_dir: DataDir = None, as_json: Json = False) -> None:
    """What each data set is, its licence, its protocols, and whether it is at hand."""
    from pyhtpw.data.catalogue import listing

    rows = listing(data_dir)
    if as_json:
        emit({"data_sets": rows})
        return
    table = Table(box=None)
    table.add_column("name", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    for title in ("download", "protocols", "at hand", "what"):
        table.add_column(title)
    for row in rows:
        table.add_row(row["name"], row["licence"], row["download"], ", ".join(row["protocols"]), row["at_hand"], row["title"])
    Console().print(table)


@data_app.command()
def check(name: Name, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Read every file and list all problems at once; status 2 if there is one."""
    from pyhtpw.data.catalogue import at_hand
    from pyhtpw.data.catalogue import check as check_files

    with counter(as_json) as bar:
        problems = check_files(name, data_dir, bar)
    if as_json:
        emit({"data": name, "at_hand": at_hand(name, data_dir), "problems": problems})
    else:
        for problem in problems:
            print(problem)
        print(f"{name}: {len(problems)} problem{'' if len(problems) == 1 else 's'}; at hand: {at_hand(name, data_dir)}")
    raise typer.Exit(2 if problems else 0)


@data_app.command()
def fetch(name: Name, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Download a data set into DATA_DIR/NAME, or go on with a download; every file is compared with its checksum."""
    from pyhtpw.data.fetch import fetch as fetch_files

    with counter(as_json) as bar:
        result = fetch_files(name, data_dir, bar)
    if as_json:
        emit({"data": name, **result})
    else:
        print(f"{name}: {result['files']} files in {result['folder']}, {result['downloaded']} downloaded now")
