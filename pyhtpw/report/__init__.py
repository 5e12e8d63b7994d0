"""What a run found, for people: one self-contained HTML file, terminal tables, and the plots as PNG.

Both tellings print the same `pyhtpw.report.tables`, so they cannot disagree. What was not run is said to be not run.
"""

from pyhtpw.report.html import write_html, write_png
from pyhtpw.report.terminal import print_bill, print_report

__all__ = ["print_bill", "print_report", "write_html", "write_png"]
