"""Builds and runs the fuzz targets; the table says how far each came.

    python tests/fuzz/run.py [--seconds 600] [--jobs 2] [--json results/fuzz.json] [target ...]

What this machine lacks is a row NOT RUN with the command that installs it. Inputs that end in a finding stay in build/fuzz/crashes; then
the exit status is 1. `run.py --replay FILE ...` shows single inputs to the target that their names begin with.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent)]

BUILD = ROOT / "build" / "fuzz"
CRASHES = BUILD / "crashes"
SEEDS = BUILD / "seeds"
# Comparisons are not traced: the mutators know the format, and the traces took most of the time.
SANITIZE = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize-coverage=trace-cmp,trace-div,trace-gep"]
FLAGS = ["-std=c99", "-g", "-O2", "-Wall", "-Wextra", "-Werror", *SANITIZE]
LIBRARY_FLAGS = ["-std=c99", "-g", "-O2", "-fPIC"]
TARGETS = {"image": 8192, "codes": 2048, "reader": 8192}  # longest input
LIMITS = ["-timeout=20", "-rss_limit_mb=2048"]  # a hang or a huge allocation is a finding
CLANG = "apt-get install clang libclang-rt-14-dev"
ATHERIS = "pip install -e '.[fuzz]'"


class NotRun(Exception):
    """What this machine lacks, and how to get it."""


@dataclass
class Row:
    """One target's run; `coverage` counts edges (of C: of `edges`), `corpus` inputs."""

    target: str
    status: str = "PASS"
    detail: str = ""
    executions: int = 0
    per_second: int = 0
    coverage: int = 0
    edges: int = 0
    features: int = 0
    corpus: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)


def command(words: list[str], **options) -> str:
    """Output of a program; SystemExit with its last lines if it fails."""
    done = subprocess.run(words, capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"fuzz: {words[0]} failed:\n" + "\n".join((done.stdout + done.stderr).splitlines()[-12:]))
    return done.stdout


def need(target: str) -> None:
    """Raises NotRun for what the target needs and is not here."""
    clang = shutil.which("clang")
    if clang is None:
        raise NotRun(f"clang is not installed: {CLANG}")
    if target == "reader":
        if importlib.util.find_spec("atheris") is None:
            raise NotRun(f"atheris is not installed: {ATHERIS}")
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "x.c"
        source.write_text("int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return d && n ? 0 : 0; }\n")
        if subprocess.run([clang, *SANITIZE, source, "-o", source.with_suffix("")], capture_output=True).returncode:
            raise NotRun(f"clang has no libFuzzer runtime: {CLANG}")


def _compile(source: Path, flags: list[str], folder: Path) -> Path:
    """The object of a source; made again if the source or any header is younger."""
    out = folder / (source.relative_to(ROOT).as_posix().replace("/", "-")[:-2] + ".o")
    headers = [*(ROOT / "csrc").rglob("*.h"), Path(__file__).parent / "fuzz.h", SEEDS / "base.h", Path(__file__)]
    newest = max(path.stat().st_mtime for path in (source, *headers))
    if not out.exists() or out.stat().st_mtime < newest:
        includes = [f"-I{path}" for path in (ROOT / "csrc", Path(__file__).parent, SEEDS)]
        command(["clang", *flags, *includes, "-c", str(source), "-o", str(out)])
    return out


def build(target: str, jobs: int) -> Path:
    """The program of a target; for the reader the shared library with the repairs."""
    import make_seeds

    make_seeds.write_all(SEEDS)
    is_library = target == "reader"
    flags, folder = (LIBRARY_FLAGS, BUILD / "obj-library") if is_library else (FLAGS, BUILD / "obj")
    folder.mkdir(parents=True, exist_ok=True)
    csrc = ROOT / "csrc"
    sources = [csrc / name for name in (csrc / "sources.txt").read_text().split()]
    sources.append(Path(__file__).parent / "repair.c")
    if not is_library:
        sources.append(Path(__file__).parent / f"fuzz_{target}.c")
    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(lambda source: _compile(source, flags, folder), sources))
    out = BUILD / ("librepair.so" if is_library else f"fuzz_{target}")
    link = ["-shared"] if is_library else FLAGS
    command(["clang", *link, *map(str, objects), "-o", str(out)])
    return out


def program(target: str) -> list[str]:
    """How a built target is started."""
    return [sys.executable, str(Path(__file__).parent / "fuzz_reader.py")] if target == "reader" else [str(BUILD / f"fuzz_{target}")]


def fuzz(target: str, seconds: int, runs: int = -1, corpus: Path | None = None) -> Row:
    """Runs a built target for `seconds`, or `runs` inputs if they are fewer."""
    corpus = corpus or BUILD / "corpus" / target
    folders = [corpus, SEEDS / target]
    if target == "reader" and runs < 0:  # what the C targets have found, for the difference between the languages
        folders += [path for path in (BUILD / "corpus" / "image", BUILD / "corpus" / "codes") if path.exists()]
    for path in (CRASHES, corpus):
        path.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-runs={runs}", f"-max_len={TARGETS[target]}", "-print_final_stats=1", *LIMITS]
    words = [*program(target), *options, f"-artifact_prefix={CRASHES}/{target}-", *map(str, folders)]
    before, began = set(CRASHES.glob(f"{target}-*")), time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run(words, capture_output=True, env=environment, cwd=ROOT)
    text = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
    row = Row(target, seconds=round(time.monotonic() - began, 1), corpus=len(list(corpus.iterdir())))
    if found := re.findall(r"cov: (\d+) ft: (\d+)", text):
        row.coverage, row.features = map(int, found[-1])
    if tables := re.search(r"PC tables \((\d+) PCs\)", text):
        row.edges = int(tables[1])
    for pattern in (r"^#(\d+)", r"Done (\d+) runs", r"number_of_executed_units: (\d+)"):  # the last that is there
        if ran := re.findall(pattern, text, re.M):
            row.executions = int(ran[-1])
    row.per_second = round(row.executions / max(row.seconds, 0.1))
    row.findings = sorted(path.name for path in set(CRASHES.glob(f"{target}-*")) - before)
    if done.returncode or row.findings:
        why = re.findall(r"(?:does not hold: .*|AssertionError: .*|SUMMARY: .*|^\w*Error: .*)", text, re.M)
        row.status, row.detail = "FAIL", (why or text.strip().splitlines()[-1:] or ["it ended without a word"])[0]
    return row


def one(target: str, seconds: int) -> Row:
    """Runs one target that has been built, if this machine can."""
    try:
        need(target)
    except NotRun as reason:
        return Row(target, "NOT RUN", str(reason))
    return fuzz(target, seconds)


def replay(files: list[Path]) -> int:
    """Shows inputs to their targets; 0 if nothing is found."""
    status = 0
    for path in files:
        target = path.name.split("-")[0]
        need(target)
        build(target, 2)
        status |= subprocess.run([*program(target), str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode
    return status


def table(rows: list[Row]) -> str:
    """For people."""
    numbers = f"{'executions':>10} {'per s':>6} {'edges':>12} {'features':>8} {'corpus':>6} {'seconds':>8}"
    lines = [f"{'target':8} {'status':8} {numbers}  findings"]
    for row in rows:
        edges = f"{row.coverage}/{row.edges}" if row.edges else str(row.coverage)
        numbers = f"{row.executions:10} {row.per_second:6} {edges:>12} {row.features:8} {row.corpus:6} {row.seconds:8}"
        lines.append(f"{row.target:8} {row.status:8} {numbers}  {', '.join(row.findings) or row.detail or 'none'}")
    return "\n".join(lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all if none is given")
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args()
    if options.replay:
        return 1 if replay(options.replay) else 0
    targets = options.targets or list(TARGETS)
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    commit = command(["git", "rev-parse", "HEAD"], cwd=ROOT).strip()
    for target in targets:
        try:
            need(target)
            build(target, options.jobs)
        except NotRun:
            continue  # its row says so
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda target: one(target, options.seconds), targets))
    print(table(rows))
    if options.json:
        report = {
            "command": "python tests/fuzz/run.py " + " ".join(sys.argv[1:]),
            "commit": commit,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": {"system": platform.system(), "machine": platform.machine(), "python": platform.python_version()},
            "rows": [asdict(row) for row in rows],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if any(row.status == "FAIL" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
