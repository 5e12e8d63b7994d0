"""`python -m pyhtpw` and the script `pyhtpw`: the command line, or one line that says how to install it."""

import sys

from pyhtpw.extras import remedy


def main() -> None:
    """Entry point. Exit status 2 if the command line's packages are not installed."""
    try:
        from pyhtpw.cli import main as command_line
    except ModuleNotFoundError as error:
        message = remedy(error)
        if message is None:
            raise
        print(f"pyhtpw: {message}", file=sys.stderr)
        sys.exit(2)
    command_line()


if __name__ == "__main__":
    main()
