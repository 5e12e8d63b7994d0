"""`pyhtpw export`: the group that commands for other formats join."""

import typer

from pyhtpw.cli.common import app

export_app = typer.Typer(help="Write a model in other formats.", no_args_is_help=True)
app.add_typer(export_app, name="export")
