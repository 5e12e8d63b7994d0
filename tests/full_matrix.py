"""The full matrix (`make test-all`): what CI's suite leaves out for time. Writes what ran, and what could not, to JSON.

A row is PASS, FAIL or NOT RUN with a reason; the exit status is 1 if any row failed.
"""

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
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wpedantic", "-Werror"]
SANITIZE = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
BUILT_TESTS = ["image", "golden_images", "flash", "codes_device", "kernels_native", "kernels_equal", "backend_x86", "verify"]


class NotRun(Exception):
    """A row that this machine cannot run, with the reason."""


class Failed(Exception):
    """A row that failed, with its first useful line."""


def command(*words: str, cwd: Path = ROOT, **env: str) -> str:
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    if done.returncode:
        tail = (done.stdout + done.stderr).strip().splitlines()[-8:]
        raise Failed(" | ".join(tail))
    return done.stdout


def sources() -> list[str]:
    return [str(ROOT / "csrc" / name) for name in (ROOT / "csrc" / "sources.txt").read_text().split()]


def need(program: str) -> None:
    if shutil.which(program) is None:
        raise NotRun(f"{program} is not installed")


def suite(*extra: str, **env: str) -> str:
    """The pytest suite; skipped tests are listed by name, since each is something that did not run."""
    out = command(sys.executable, "-m", "pytest", "-q", *extra, **env)
    skipped = [line for line in out.splitlines() if line.startswith("SKIPPED")]
    return " ; ".join([out.strip().splitlines()[-1], *skipped])


def warnings(compiler: str, opt: str, *defines: str) -> str:
    need(compiler)
    with tempfile.TemporaryDirectory() as folder:
        for source in sources():
            command(compiler, *WARNINGS, opt, *defines, "-c", source, "-o", str(Path(folder) / "x.o"))
    return f"{len(sources())} files"


def cxx_header() -> str:
    need("g++")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "x.cpp"
        program.write_text('#include "htpw.h"\nint main() { return htpw_version()[0] == 0; }\n')
        command("g++", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Icsrc", "-c", str(program), "-o", str(program) + ".o")
    return "htpw.h"


def cmake_example() -> str:
    need("cmake")
    import random_images

    from pyhtpw.image import write

    with tempfile.TemporaryDirectory() as folder:
        command("cmake", "-S", str(ROOT), "-B", folder, "-DCMAKE_BUILD_TYPE=Release")
        command("cmake", "--build", folder)
        image = Path(folder) / "x.htpw"
        image.write_bytes(write(random_images.example()))
        return command(f"{folder}/run_image", str(image)).strip()


def distributions() -> str:
    """A source distribution, a wheel of that alone, and an installation of the wheel beside nothing but NumPy and cffi."""
    import cffi
    import numpy

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command("git", "archive", "--format=tar", "-o", str(folder / "tree.tar"), command("git", "stash", "create").strip() or "HEAD")
        shutil.unpack_archive(folder / "tree.tar", folder / "tree")
        build = "from setuptools.build_meta import build_sdist; import sys; print(build_sdist(sys.argv[1]))"
        archive = command(sys.executable, "-c", build, name, cwd=folder / "tree").strip().splitlines()[-1]
        shutil.unpack_archive(folder / archive, folder / "source")
        (source,) = (folder / "source").iterdir()
        command(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", name, ".", cwd=source)
        (wheel,) = folder.glob("*.whl")
        if "-cp310-abi3-" not in wheel.name:
            raise Failed(f"{wheel.name} is no wheel of the stable ABI")
        command(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
        python = folder / "venv/bin/python"
        command(sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(wheel))
        (site,) = (folder / "venv/lib").glob("python*/site-packages")
        for package in (Path(numpy.__file__).parent, Path(cffi.__file__).parent):  # what pip would have brought
            for path in package.parent.glob(f"*{package.name}*"):
                (site / path.name).symlink_to(path)
        image = str(ROOT / "results/mitdb-first.htpw")
        check = (
            "import sys, pyhtpw; from pyhtpw.verify import sample_windows; from pyhtpw.target import toolchain;"
            "image = pyhtpw.Image.open(sys.argv[1]); x = sample_windows(image, 8);"
            "assert 'venv' in pyhtpw.__file__ and (toolchain.CSRC / 'htpw.h').exists();"
            "from pyhtpw.compare import trace, differences;"
            "assert not differences(image, trace(image, x, 'numpy'), trace(image, x)); image.run_batch(x, threads=2)"
        )
        command(str(python), "-c", check, image, cwd=folder, PYTHONPATH="")
        done = subprocess.run([folder / "venv/bin/pyhtpw"], capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": ""})
        if done.returncode != 2 or "pip install 'pyhtpw[cli]'" not in done.stderr:
            raise Failed(f"pyhtpw without its extra: {done.returncode} {done.stderr.strip()}")
        return f"{archive} ({(folder / archive).stat().st_size:,} B), {wheel.name} ({wheel.stat().st_size:,} B)"


def checked(tool: str, *arguments: str) -> str:
    """A linter of the extra `lint`, or one on the PATH."""
    beside = Path(sys.executable).parent / tool
    program = str(beside) if beside.exists() else shutil.which(tool)
    if program is None:
        raise NotRun(f"{tool} is not installed: pip install 'pyhtpw[lint]'")
    out = command(program, *arguments).strip().splitlines()
    return out[-1] if out else "clean"


def c_files() -> list[str]:
    ignored = (ROOT / ".clang-format-ignore").read_text().split("\n")
    return [name for name in command("git", "ls-files", "csrc/*.c", "csrc/*.h", "examples/*.c").split() if name not in ignored]


def built(cflags: str, compiler: str = "gcc", **env: str) -> str:
    """The C tests on a library built with these flags, in a copy of the tree so that the working build stays."""
    need(compiler)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        for name in filter(None, command("git", "ls-files", "-z").split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        flags = {"CC": compiler, "LDSHARED": f"{compiler} -shared", "HTPW_CFLAGS": cflags, "LDFLAGS": cflags}
        command(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=copy, **flags)
        tests = [f"tests/test_{name}.py" for name in BUILT_TESTS if (copy / f"tests/test_{name}.py").exists()]
        out = command(sys.executable, "-m", "pytest", "-q", *tests, cwd=copy, PYTHONPATH=str(copy), **env)
    return out.strip().splitlines()[-1]


def sanitized() -> str:
    """The C tests under ASan and UBSan."""
    need("gcc")
    runtime = command("gcc", "-print-file-name=libasan.so").strip()
    if not Path(runtime).exists():
        raise NotRun("libasan is not installed")
    return built(SANITIZE, LD_PRELOAD=runtime, ASAN_OPTIONS="detect_leaks=0", UBSAN_OPTIONS="print_stacktrace=1")


def emulated(cpu: str, compiler: str, opt: str) -> str:
    """Kernels and logits of an image with every operator, on an emulated core, against this machine."""
    import random_images

    from pyhtpw.errors import MissingToolError
    from pyhtpw.image import write
    from pyhtpw.model import Image
    from pyhtpw.target.emulator import Emulator
    from pyhtpw.verify import Emulated, Native, Numpy, compare, sample_windows

    image = Image(write(random_images.example()))
    try:
        with Emulator(cpu, compiler=compiler, opt=opt) as emulator:
            tellings = [Numpy(image), Native(image), Emulated(emulator.open(image.data), cpu)]
            pairs = compare(image, sample_windows(image, 64), tellings)
    except MissingToolError as error:
        raise NotRun(str(error)) from error
    differ = sum(p.differ for p in pairs)
    if differ:
        raise Failed(next(p.first for p in pairs if p.first))
    return f"{sum(p.compared for p in pairs)} bytes compared, 0 differ"


def on_board(cpu: str, opt: str) -> str:
    """The pointwise golden vectors, stored and cached, on every backend of the program for a QEMU board, in one batch each."""
    import vectors_io

    from pyhtpw import kernels
    from pyhtpw.errors import MissingToolError
    from pyhtpw.target import qemu
    from pyhtpw.target.board_kernels import BoardTarget, tables

    ran = []
    try:
        qemu.find_qemu()
        elf = qemu.build(cpu, opt=opt, compiler="gcc")
        for name, table in tables(elf).items():
            batch, waiting = qemu.Batch(elf), []
            for case in vectors_io.cases("conv_1x1_fast_s8"):
                if case.tier == "wrap":
                    continue
                function, args, keywords = vectors_io.arguments(case)
                for kernel in (getattr(kernels, function), kernels.conv1x1_cached_s8):
                    board = BoardTarget(batch, table)
                    waiting.append((board, kernel(*args, **keywords, backend=board), case))
            batch.run()
            for board, got, case in waiting:
                board.collect()
                if got.tobytes() != case.expected.tobytes():
                    raise Failed(f"{name}: {case}")
            ran.append(f"{name} {len(waiting)} calls")
    except MissingToolError as error:
        raise NotRun(str(error)) from error
    return ", ".join(ran) + ", 0 differ"


def backend_off(cpu: str) -> str:
    """Every golden vector on a program whose backend is switched off."""
    import test_backends_off

    from pyhtpw.errors import MissingToolError

    try:
        return f"{test_backends_off.check(cpu)} cases, 0 differ"
    except MissingToolError as error:
        raise NotRun(str(error)) from error


def firmware_on(board: str, compiler: str, opt: str, float_abi: str) -> str:
    """The example firmware by every schedule that fits, and a code pack through a power cut, against numpy and C here."""
    import test_codes_device as packs

    from pyhtpw.errors import MissingToolError
    from pyhtpw.model import Image
    from pyhtpw.target import boards, firmware
    from pyhtpw.verify import sample_windows

    settings = firmware.Settings(opt=opt, compiler=compiler, float_abi=float_abi)
    path = firmware.FOLDER / "ecg-small.htpw" if board == "microbit" else ROOT / "results" / "mitdb-first.htpw"
    image, base = Image.open(path), Image(packs.BASE, "every head kind")
    try:
        found = boards.matrix(image, sample_windows(image, 16), [board], boards.schedules("all"), settings)
        found += boards.matrix(base, sample_windows(base, 8), [board], boards.schedules("all"), settings, pack=packs.PACKS[2])
    except MissingToolError as error:
        raise NotRun(str(error)) from error
    ran = [row for row in found if row.refused is None]
    if bad := [row for row in ran if row.differ] or (not ran and found):
        raise Failed(bad[0].text())
    refused = {row.refused for row in found if row.refused is not None}
    return f"{len(ran)} schedules, {sum(row.compared for row in ran)} bytes compared, 0 differ" + "".join(f"; {r}" for r in sorted(refused))


def network_beside_cmsis_nn() -> str:
    """The ratios of a whole network, with the peer's recorded counts."""
    out = command(sys.executable, "bench/network.py", PYTHONPATH=str(ROOT))
    return "; ".join(line for line in out.splitlines() if line.startswith("cortex"))


def monitored(record: str) -> str:
    """A whole record through the ECG monitor on the emulated Cortex-M4, decision for decision."""
    from pyhtpw.errors import DataError, MissingToolError
    from pyhtpw.model import Image
    from pyhtpw.target import firmware, monitor

    if not os.environ.get("HTPW_DATA"):
        raise NotRun("HTPW_DATA is not set: set it to a folder with MIT-BIH records")
    try:
        x = monitor.record(Path(os.environ["HTPW_DATA"]), record)
        image = Image.open(ROOT / "results" / "mitdb-first.htpw")
        found = monitor.run(image, firmware.board_named("mps2-an386"), firmware.Settings(), x)
    except (MissingToolError, DataError) as error:
        raise NotRun(str(error)) from error
    if found["differ"]:
        raise Failed(found["first"] or "not as many decisions")
    return f"{found['decisions']} decisions, 0 differ"


def in_browser() -> str:
    """Every golden image, and one with all operators, as WebAssembly under node and in Chromium, against this machine."""
    need("node")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", os.environ.get("HTPW_CHROMIUM") or "chrome"))):
        raise NotRun("no Chromium is installed")
    if importlib.util.find_spec("ziglang") is None:
        raise NotRun("the ziglang wheel is not installed")
    return suite("tests/test_report_browser.py")


def rows(deep: bool):
    """(name, function) of every row."""
    data = os.environ.get("HTPW_DATA")
    yield "suite" + (" with real data" if data else ""), lambda: suite()
    if not data:
        yield "tests on real records", lambda: (_ for _ in ()).throw(NotRun("HTPW_DATA is not set: set it to a folder with MIT-BIH records"))
    vectors = os.environ.get("HTPW_VECTORS")
    if vectors:
        yield "full golden vectors", lambda: suite("tests/test_reference_kernels.py", "tests/test_kernels_native.py")
    else:
        yield "full golden vectors", lambda: (_ for _ in ()).throw(NotRun("HTPW_VECTORS is not set; the compact copy ran with the suite"))
    if deep:
        yield "Hypothesis, deep profile", lambda: suite("tests/test_image.py", "tests/test_kernels_equal.py", "--timeout=7200", HYPOTHESIS_PROFILE="deep")
    else:
        yield "Hypothesis, deep profile", lambda: (_ for _ in ()).throw(NotRun("asked for with --deep (hours)"))
    for compiler in ("gcc", "clang"):
        for opt in ("-O0", "-O2", "-O3", "-Os"):
            yield f"warnings {compiler} {opt}", lambda c=compiler, o=opt: warnings(c, o)
            yield f"C tests {compiler} {opt}", lambda c=compiler, o=opt: built(o, c)
    from pyhtpw import _native

    for name in _native.BACKENDS:
        if name != "portable":
            define = f"-DHTPW_CONFIG_NO_{name.upper()}"
            yield f"warnings gcc -O2 {define}", lambda d=define: warnings("gcc", "-O2", d)
            if name.startswith("x86"):
                yield f"C tests gcc -O2 {define}", lambda d=define: built(f"-O2 {d}")
    yield "telling in the browser (WebAssembly)", in_browser
    yield "header from C++", cxx_header
    yield "distributions", distributions
    yield "mypy", lambda: checked("mypy", "--python-executable", sys.executable)
    yield "ruff", lambda: checked("ruff", "check")
    yield "clang-format", lambda: checked("clang-format", "--dry-run", "-Werror", *c_files())
    host = [n for n in c_files() if n.endswith(".c") and not re.search("armv|cmsis|examples", n)]
    yield "clang-tidy", lambda: checked("clang-tidy", "-quiet", *host, "--", "-Icsrc", "-std=c99")
    yield "cmake and example", cmake_example
    yield "ASan and UBSan", sanitized
    from pyhtpw.target.toolchain import CPUS

    for cpu in (name for name, core in CPUS.items() if core.unicorn):
        for compiler in ("gcc", "clang"):
            for opt in ("-Os", "-O3"):
                yield f"emulated {cpu} {compiler} {opt}", lambda p=cpu, c=compiler, o=opt: emulated(p, c, o)
    from pyhtpw.target.qemu import BOARDS

    for cpu in BOARDS:
        for opt in ("-Os", "-O3"):
            yield f"QEMU board {cpu} gcc {opt}", lambda p=cpu, o=opt: on_board(p, o)
    from pyhtpw.target.firmware import FPU, boards

    for board, described in boards().items():
        abis = ["soft", "hard"] if described.cpu in FPU or described.cpu == "cortex-m55" else ["soft"]
        for compiler in ("gcc", "clang"):
            for opt in ("-Os", "-O3"):
                for abi in abis:
                    yield f"firmware {board} {compiler} {opt} {abi}", lambda b=board, c=compiler, o=opt, a=abi: firmware_on(b, c, o, a)
    yield "whole network beside CMSIS-NN", network_beside_cmsis_nn
    yield "ECG monitor, record 200 on cortex-m4", lambda: monitored("200")
    from test_backends_off import OFF

    for cpu, backend in OFF.items():
        yield f"golden vectors {cpu} -DHTPW_CONFIG_NO_{backend}", lambda p=cpu: backend_off(p)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="default: results/test-all.json")
    parser.add_argument("--deep", action="store_true", help="also Hypothesis with 100 times as many examples")
    parser.add_argument("--only", help="rows whose name contains this; JSON only with --out")
    parser.add_argument("--jobs", type=int, default=1, help="rows that run at one time (default 1)")
    options = parser.parse_args()

    def run(row: tuple) -> dict:
        name, function = row
        began = time.monotonic()
        try:
            status, detail = "PASS", function()
        except NotRun as reason:
            status, detail = "NOT RUN", str(reason)
        except Exception as error:  # any failure is a row, and the matrix goes on
            status, detail = "FAIL", f"{type(error).__name__}: {error}"
        detail = detail.replace(f"{ROOT}/", "")  # where the tree lies is nobody's business
        print(f"{status:8s} {name}: {detail}", flush=True)
        return {"name": name, "status": status, "detail": detail, "seconds": round(time.monotonic() - began, 1)}

    wanted = [row for row in rows(options.deep) if not options.only or options.only in row[0]]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(run, wanted))
    counts = {status: sum(r["status"] == status for r in results) for status in ("PASS", "FAIL", "NOT RUN")}
    print(", ".join(f"{n} {status}" for status, n in counts.items()))
    if options.out is None and not options.only:
        options.out = ROOT / "results" / "test-all.json"
    if options.out is not None:
        report = {
            "command": "python tests/full_matrix.py " + " ".join(sys.argv[1:]),
            "commit": command("git", "rev-parse", "HEAD").strip(),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": {"system": platform.system(), "machine": platform.machine(), "python": platform.python_version()},
            "counts": counts,
            "rows": results,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.out.with_suffix(".partial")
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(temporary, options.out)
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
