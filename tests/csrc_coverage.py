"""Lines and branches of csrc/ that the suite's tests on this machine reach (`make coverage`).

    python tests/csrc_coverage.py [--json results/coverage.json] [--missing] [--keep folder] [pytest arguments]

The library is built with gcov's counters in a copy of the tree, so that the working build stays. Files for Arm, which a host compiles to
nothing, and functions that work only with a backend that no host has, are left out and listed; kernels of this machine's own instruction
sets count. The exit status is 1 below --least per cent of all branches.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What calls the C library on this machine; a file that a checkout does not have is left out.
TESTS = (
    "image", "image_writer", "kernels_native", "kernels_equal", "kernels_memory", "backend_x86", "verify", "flash", "codes", "codes_device",
    "sign", "golden_images", "fuzz",
)  # fmt: skip
# Functions that are made once for every constant argument count once: as what they are in the source.
FLAGS = "-O0 --coverage -fprofile-abs-path -Dalways_inline=unused"
ELSEWHERE = ("armv7em_dsp", "armv81m_mve", "cmsis_nn", "thumb")  # backends that no host compiles
# They return at once unless the backend fuses synthesis, which only those of Arm do; the emulated tests run them.
ELSEWHERE_FUNCTIONS = ("htpw_synth_direct", "htpw_synth_through")


@dataclass
class Counts:
    """One file: line -> times it ran; (line, number of the branch at it) -> times it was taken."""

    lines: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    branches: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))

    @property
    def missing(self) -> list[int]:
        """Lines with a branch that was never taken."""
        return sorted({line for (line, _), count in self.branches.items() if count == 0})

    def row(self) -> dict[str, int]:
        """For JSON."""
        return {
            "lines": len(self.lines),
            "lines_run": sum(count > 0 for count in self.lines.values()),
            "branches": len(self.branches),
            "branches_taken": sum(count > 0 for count in self.branches.values()),
        }


def command(*words: str, cwd: Path = ROOT, **env: str) -> str:
    """Output of a program; SystemExit with its last lines if it fails."""
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"coverage: {words[0]} failed:\n" + "\n".join((done.stdout + done.stderr).splitlines()[-30:]))
    return done.stdout


def copy_tree(folder: Path) -> None:
    """The files of the checkout, as they are now."""
    for name in filter(None, command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def run_tests(folder: Path, extra: list[str]) -> str:
    """Builds with counters, runs the tests, returns pytest's last line."""
    compiler = {"CC": "gcc", "LDSHARED": "gcc -shared", "HTPW_CFLAGS": FLAGS, "LDFLAGS": "--coverage"}
    command(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=folder, **compiler)
    for counters in folder.rglob("*.gcda"):  # of the build's own imports
        counters.unlink()
    tests = [f"tests/test_{name}.py" for name in TESTS]
    tests += [path.relative_to(folder).as_posix() for path in sorted((folder / "tests").glob("test_c_*.py"))]
    tests = [name for name in tests if (folder / name).exists()]
    words = [sys.executable, "-m", "pytest", "-q", "-k", "not smoke and not sanitizers", *tests, *extra]  # not the fuzzers' own builds
    out = command(*words, cwd=folder, PYTHONPATH=str(folder))
    return out.strip().splitlines()[-1]


def collect(folder: Path) -> dict[str, Counts]:
    """File, relative to the root, to its counts. Functions in headers are summed over the files that include them."""
    out: dict[str, Counts] = defaultdict(Counts)
    with tempfile.TemporaryDirectory() as reports:
        # Also sources that no test entered count, with zeros: they have no .gcda, so the notes are asked.
        notes = [str(path) for path in sorted(folder.rglob("*.gcno")) if "csrc" in path.parts]
        for i, note in enumerate(notes):
            place = Path(reports) / str(i)
            place.mkdir()
            command("gcov", "--json-format", "--branch-probabilities", note, cwd=place)
            for report in place.glob("*.gcov.json.gz"):
                for entry in json.loads(gzip.decompress(report.read_bytes()))["files"]:
                    path = Path(entry["file"])
                    if folder / "csrc" in path.parents:
                        lines = [line for line in entry["lines"] if line.get("function_name") not in ELSEWHERE_FUNCTIONS]
                        add(out[path.relative_to(folder).as_posix()], lines)
    return dict(out)


def add(counts: Counts, lines: list[dict]) -> None:
    """Sums one report of a file."""
    at: dict[int, int] = defaultdict(int)  # a line may come once per function that it is in
    for line in lines:
        number = line["line_number"]
        counts.lines[number] += line["count"]
        for branch in line["branches"]:
            if not branch["throw"]:
                counts.branches[number, at[number]] += branch["count"]
                at[number] += 1


def percent(part: int, whole: int) -> str:
    """For the table."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def table(files: dict[str, Counts], total: dict[str, int], missing: bool) -> str:
    """For people."""
    lines = [f"{'file':48} {'lines':>14} {'':>8} {'branches':>14}"]
    for name, row in [*((name, counts.row()) for name, counts in sorted(files.items())), ("total", total)]:
        ran, taken = f"{row['lines_run']}/{row['lines']}", f"{row['branches_taken']}/{row['branches']}"
        percents = percent(row["lines_run"], row["lines"]), percent(row["branches_taken"], row["branches"])
        lines.append(f"{name:48} {ran:>14} {percents[0]:>8} {taken:>14} {percents[1]:>8}")
        if missing and name in files and files[name].missing:
            lines.append("    lines with a branch never taken: " + " ".join(map(str, files[name].missing)))
    return "\n".join(lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--missing", action="store_true", help="list lines with a branch that was never taken")
    parser.add_argument("--keep", type=Path, help="folder for the copy of the tree, which stays")
    parser.add_argument("--least", type=float, default=95.0, help="per cent of branches")
    options, extra = parser.parse_known_args()
    for program in ("gcc", "gcov"):
        if shutil.which(program) is None:
            print(f"NOT RUN coverage: {program} is not installed: apt-get install gcc")
            return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary) / "tree").resolve()
        copy_tree(folder)
        tests = run_tests(folder, extra)
        files = collect(folder)
    total: dict[str, int] = defaultdict(int)
    for counts in files.values():
        for key, value in counts.row().items():
            total[key] += value
    left_out = sorted(p.relative_to(ROOT).as_posix() for name in ELSEWHERE for p in (ROOT / "csrc" / "backends" / name).glob("*.c"))
    print(table(files, total, options.missing))
    left_out += [f"{name}()" for name in ELSEWHERE_FUNCTIONS]
    print(f"left out, for Arm only: {', '.join(left_out)}\ntests: {tests}")
    if options.json:
        report = {
            "command": "python tests/csrc_coverage.py",
            "commit": command("git", "rev-parse", "HEAD").strip(),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": {"system": platform.system(), "machine": platform.machine(), "python": platform.python_version()},
            "tests": tests,
            "total": dict(total),
            "files": {name: counts.row() | {"missing": counts.missing} for name, counts in sorted(files.items())},
            "left_out": left_out,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if 100 * total["branches_taken"] < options.least * total["branches"] else 0


if __name__ == "__main__":
    sys.exit(main())
