"""The command line. Commands live in the modules imported below, one for each part of the work.

Exit status: 0 done; 1 tellings or images differ (`verify`, `demo`, `trace`, `diff`); 2 bad input or a missing extra, one line on
stderr that names it and the remedy; 130 stopped by Ctrl-C. With `--json` stdout carries one JSON object and nothing else.
"""

import sys

from rich.console import Console

from pyhtpw.cli import training, packing, codes, running, inspect, reporting, data, results, sweep, export, export_models, target  # noqa: F401  isort: skip  (the order of --help)
from pyhtpw.cli.common import Stopped, app
from pyhtpw.cli.examples import add_examples
from pyhtpw.errors import HtpwError
from pyhtpw.extras import remedy

__all__ = ["app", "main"]

add_examples(app)


def main() -> None:
    """Entry point: runs the command and turns known errors into one line and their status."""
    message: object
    try:
        app()
        return
    except (HtpwError, Stopped) as error:
        message, status = error, 130 if isinstance(error, Stopped) else 2
    except ModuleNotFoundError as error:
        message, status = remedy(error), 2
        if message is None:
            raise
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"pyhtpw: {message}")
    sys.exit(status)
