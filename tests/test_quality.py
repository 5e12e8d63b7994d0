"""The linters of the extra `lint`, at the versions that pyproject.toml names: what they say is an error."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
IGNORED = (ROOT / ".clang-format-ignore").read_text().split("\n")


def c_files() -> list[str]:
    """The project's C, without the files of hand-laid assembly and generated tables that are formatted by themselves."""
    found = sorted(path.relative_to(ROOT).as_posix() for folder in ("csrc", "examples") for path in (ROOT / folder).rglob("*.[ch]"))
    return [name for name in found if name not in IGNORED]


def host_files() -> list[str]:
    """What clang-tidy can read here: C for this machine."""
    return [name for name in c_files() if name.endswith(".c") and not re.search("armv|cmsis|examples", name)]


CHECKS = {
    "ruff": lambda: ("check", "--quiet", "."),
    "mypy": lambda: ("--python-executable", sys.executable, "--no-error-summary"),
    "clang-format": lambda: ("--dry-run", "-Werror", *c_files()),
    "clang-tidy": lambda: ("-quiet", *host_files(), "--", "-Icsrc", "-std=c99"),
}


@pytest.mark.parametrize("tool", CHECKS)
def test_linter_is_content(tool):
    beside = Path(sys.executable).parent / tool
    program = str(beside) if beside.exists() else shutil.which(tool)
    if program is None:
        pytest.skip(f"NOT RUN: {tool} is not installed: pip install 'pyhtpw[lint]'")
    assert c_files() and host_files()
    done = subprocess.run([program, *CHECKS[tool]()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_no_file_is_long():
    """800 lines is where a file should have been two; generated files and the tables of instructions are exempt by name."""
    long = []
    for folder, pattern in (("csrc", "*.[ch]"), ("pyhtpw", "*.py"), ("reference", "*.py"), ("bench", "*.py"), ("tests", "*.py")):
        for path in (ROOT / folder).rglob(pattern):
            if len(path.read_text().splitlines()) > 800:
                long.append(path.relative_to(ROOT).as_posix())
    assert long == []
