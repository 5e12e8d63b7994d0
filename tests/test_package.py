"""The package: what the core needs, what extras bring, and what a source distribution and a wheel hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyhtpw.extras import MODULES, remedy

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text()
PACKAGES = {"jinja2": "jinja2", "pynacl": "nacl", "pyelftools": "elftools"}  # distribution -> module, where they differ

SAME = {"distributed": "dask"}  # module -> distribution that brings it, under an extra of its own


def _requirements(text: str) -> list[str]:
    return [re.split(r"[\[<>=! ;]", item)[0].lower() for item in ast.literal_eval(text)]


def extras() -> dict[str, list[str]]:
    table = PROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return {name: _requirements(value) for name, value in re.findall(r"^(\w+) = (\[.*?\])$", table, re.M | re.S)}


def test_the_core_needs_numpy_and_cffi_alone():
    assert _requirements(re.search(r"^dependencies = (\[.*\])", PROJECT, re.M)[1]) == ["numpy", "cffi"]


def test_extras_are_known_by_their_modules():
    """Whatever an extra brings, an import that fails leads to that extra."""
    found = extras()
    assert {"cli", "train", "data", "target", "report", "sign", "test"} <= found.keys()
    for module, extra in MODULES.items():
        distributions = [d for d, m in PACKAGES.items() if m == module] or [SAME.get(module, module)]
        assert any(d in found[extra] for d in distributions), (module, extra)
    for extra in ("cli", "train", "data", "target", "report", "sign", "sweep", "export"):
        for distribution in set(found[extra]) - {"pyhtpw"}:
            assert PACKAGES.get(distribution, distribution) in MODULES, distribution
    assert remedy(ModuleNotFoundError(name="scipy.stats")) == "this needs scipy, which is not installed: pip install 'pyhtpw[train]'"
    assert remedy(ModuleNotFoundError(name="nothing")) is None and remedy(ModuleNotFoundError()) is None


def _without(modules: str, *arguments: str) -> subprocess.CompletedProcess:
    """`pyhtpw ...` in a Python that cannot import some modules."""
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules.split()!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
sys.argv = ["pyhtpw", *{list(arguments)!r}]
from pyhtpw.__main__ import main
main()
"""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_without_the_command_line_one_line_says_what_to_type():
    done = _without("typer rich", "--help")
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"pyhtpw: this needs (rich|typer), which is not installed: pip install 'pyhtpw\[cli\]'\n", done.stderr)


def test_a_command_whose_extra_is_missing_says_so():
    done = _without("numba scipy safetensors", "train", "--dry-run")
    assert done.returncode == 2 and "pip install 'pyhtpw[train]'" in done.stderr and len(done.stderr.splitlines()) == 1


def test_images_run_without_any_extra():
    extras = " ".join(set(MODULES) - {"typer", "rich"})
    done = _without(extras, "run", "results/mitdb-first.htpw")
    assert done.returncode == 0 and "logits" in done.stdout, done.stderr


@pytest.mark.parametrize("command", ["diff", "trace", "verify", "run", "bill", "pack"])
def test_help_is_there_and_status_is_documented(command):
    done = subprocess.run([sys.executable, "-m", "pyhtpw", command, "--help"], cwd=ROOT, capture_output=True, text=True, env=_plain())
    assert done.returncode == 0 and "--json" in done.stdout
    if command == "diff":
        whole = subprocess.run([sys.executable, "-m", "pyhtpw", "--help"], cwd=ROOT, capture_output=True, text=True, env=_plain()).stdout
        text = " ".join(re.sub(r"[^\w:;(),.-]", " ", whole).split())
        assert "Exit status: 0 done; 1 tellings or images differ" in text and "130 stopped by Ctrl-C" in text
        assert "\x1b" not in whole


def _plain() -> dict[str, str]:
    import os

    return {**os.environ, "NO_COLOR": "1", "COLUMNS": "160", "FORCE_COLOR": ""}
