"""Documents agree with results and code."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_readme_figures_come_from_results():
    done = subprocess.run([sys.executable, "bench/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_first_real_run_met_its_goals():
    """What the README claims for the first run on real ECG, and the goals it was run for."""
    run = json.loads((ROOT / "results/mitdb-first.json").read_text())
    assert run["data"] == "mitdb" and run["protocol"] == "paper" and run["synthetic"] is False
    assert run["image_bytes"] <= 12288 and run["bytes_differ"] == 0
    assert run["test"]["macro_f1"] >= 0.80 and run["test"]["auc"] >= 0.96


def test_readme_links_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_reference_knows_nothing_of_the_package():
    for path in (ROOT / "reference").rglob("*.py"):
        assert not re.search(r"^\s*(from|import)\s+pyhtpw", path.read_text(), re.M), path


def test_every_public_function_is_bound_and_documented():
    """Each function of htpw.h is callable from Python, and stands behind a comment."""
    from pyhtpw._native import lib

    text = (ROOT / "csrc/htpw.h").read_text()
    names = re.findall(r"^(?:int|uint32_t|size_t|const char \*)\s*(htpw_\w+)\(", text, re.M)
    assert len(names) > 12
    for name in names:
        assert hasattr(lib, name), name


def test_versions_agree():
    """Package and library are one number, each written once: in pyhtpw/__init__.py and htpw.h; what else says it reads it there."""
    import pyhtpw
    from pyhtpw import _native
    from pyhtpw.image.writer import FORMAT_VERSION

    cited = re.search(r"^version: (.+)", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    assert pyhtpw.__version__ == _native.version() == cited
    assert re.fullmatch(r"\d+\.\d+\.\d+", pyhtpw.__version__)
    project = (ROOT / "pyproject.toml").read_text()
    assert 'version = { attr = "pyhtpw.__version__" }' in project and not re.search(r'^version = "', project, re.M)
    header = (ROOT / "csrc/htpw.h").read_text()
    format_version = int(re.search(r"^#define HTPW_FORMAT_VERSION (\d+)", header, re.M)[1])
    changes = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (\S+).*, image format (\d+)", changes, re.M)
    assert (newest[1], int(newest[2])) == (pyhtpw.__version__, format_version)
    assert format_version == FORMAT_VERSION
    assert _native.version() not in (ROOT / "CMakeLists.txt").read_text()


def test_errors_have_exceptions():
    from pyhtpw import _native

    assert len(_native.ERRORS) >= 18 and all(issubclass(c, ValueError) for c in _native.ERRORS.values())
    assert _native.text(0) == "ok" and _native.text(-999) == "unknown error code"
