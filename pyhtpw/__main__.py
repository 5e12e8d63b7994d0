"""`python -m pyhtpw` is `pyhtpw`."""

from pyhtpw.cli import main

main()
