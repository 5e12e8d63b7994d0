"""The site: `make docs` -> build/site. Sphinx with MyST (Markdown) and the furo theme; a warning is an error."""

import re
from pathlib import Path

import pyhtpw

ROOT = Path(__file__).resolve().parent.parent
project = "pyhtpw"
author = "The pyhtpw developers"
release = version = pyhtpw.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pyhtpw {release}"
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]  # excerpts of code need not be whole programs
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = False


def outside(text: str, here: Path) -> str:
    """Links to what is not a page become the path: the site has no copy of the repository."""
    def path(match: re.Match) -> str:
        title, target = match[1], match[2]
        file = (here / target.partition("#")[0]).resolve()
        if "://" in target or target.startswith("#") or file.is_relative_to(ROOT / "docs"):
            return match[0]
        name = file.relative_to(ROOT).as_posix()
        return title if title.strip("`") == name else f"{title} (`{name}`)"

    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", path, text)


def table(app, what, name, thing, options, lines: list[str]) -> None:
    """The lines Shapes, Range, Errors and Source of a kernel's docstring are a table as they stand."""
    start = next((i for i, line in enumerate(lines) if line.startswith("Shapes ")), None)
    if name.startswith("pyhtpw.kernels.") and start is not None:
        lines[start:] = ["::", "", *("    " + line for line in lines[start:]), ""]


def setup(app):
    app.connect("autodoc-process-docstring", table)
    app.connect("source-read", lambda app, name, source: source.__setitem__(0, outside(source[0], ROOT / "docs")))
    app.connect("include-read", lambda app, path, parent, source: source.__setitem__(0, outside(source[0], (ROOT / "docs" / path).parent)))
