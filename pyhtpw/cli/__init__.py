"""The command line. Commands live in the modules imported below, one for each part of the work.

Exit status: 0 done; 1 the tellings differ (`verify`, `demo`); 2 bad input, one line on stderr that names it and the remedy; 130
stopped by Ctrl-C. With `--json` stdout carries one JSON object and nothing else.
"""

import sys

from rich.console import Console

from pyhtpw.cli import training, packing, codes, running, reporting, export, export_models  # noqa: F401, I001  (the order of --help)
from pyhtpw.cli.common import Stopped, app
from pyhtpw.errors import HtpwError

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: runs the command and turns known errors into one line and their status."""
    try:
        app()
    except (HtpwError, Stopped) as error:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"pyhtpw: {error}")
        sys.exit(130 if isinstance(error, Stopped) else 2)
