"""Windows per second on the host: `Image.run_batch` beside its own kernels, and beside LiteRT with XNNPACK on the exported network.

    .venv/bin/python bench/simulate.py --litert-python VENV/bin/python --json results/simulate.json

Everything takes turns, round after round and every other round backwards, each after a run that is not timed, so that what else the
machine does falls on all alike. A figure is the least of the rounds beside their median, a ratio that of the least beside the median
of the rounds' own ratios. Beside wall-clock stands CPU time, which waiting for other programs is no part of, and how many CPUs a
batch had: two threads cannot be twice as fast where they had one. LiteRT gets its best way of using as many threads: one interpreter
with so many, or as many interpreters with one each, and batches of 1, 16 or 64 windows. A quiet machine, or nothing.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import x86  # noqa: E402
from cffi import FFI  # noqa: E402

from pyhtpw import _native, _native_build  # noqa: E402
from pyhtpw.model import _WINDOWS, Image  # noqa: E402
from pyhtpw.verify import sample_windows  # noqa: E402

ROOT = Path(__file__).parent.parent
IMAGES = [ROOT / "results" / "mitdb-first.htpw"]
THREADS = (1, 2)
ffi = FFI()
QUIET = 1.8  # CPUs that two threads had at least, and one half as many, in a round that says something about a second thread
SIMULATE = "double simulate(struct htpw_context *, void *, size_t, size_t, const int8_t *, size_t, int8_t *, size_t, double *);"
ffi.cdef(_native_build.declarations() + SIMULATE)


class Kernels:
    """Windows in a C loop, some at a time, and the part of it that is spent in the backend's kernels."""

    def __init__(self, folder: Path, image: Image, windows: np.ndarray) -> None:
        sources = [ROOT / name for name in _native_build.sources()] + [ROOT / "bench" / "simulate_loop.c"]
        flags = ["-O3", "-std=gnu99", "-fno-strict-aliasing", "-shared", "-fPIC", "-DHTPW_CONFIG_BATCH", f"-I{ROOT / 'csrc'}"]
        subprocess.run([*_native_build.compiler(), *flags, "-o", folder / "simulate.so", *sources], check=True)
        self.lib = ffi.dlopen(str(folder / "simulate.so"))
        plan = image.plan()
        self.kept = [_native.aligned(n) for n in (len(image.data), _WINDOWS * plan.arena, plan.cache)]
        self.kept[0][:] = np.frombuffer(image.data, np.uint8)
        data, self.arena, cache = (ffi.cast("void *", a.ctypes.data) for a in self.kept)
        self.model, self.context = ffi.new("struct htpw_model *"), ffi.new("struct htpw_context *")
        if self.lib.htpw_model_open(self.model, data, len(image.data)) or self.lib.htpw_bind(
            self.context, self.model, 0, self.arena, plan.arena, cache, plan.cache, 0
        ):
            raise SystemExit(f"{image.name}: cannot be bound")
        self.x = np.ascontiguousarray(windows)
        self.y = np.zeros((len(windows), plan.output), np.int8)
        self.sizes = plan.input, plan.output

    def seconds(self, most: int, timed: bool = False) -> float:
        """Per window, `most` at a time: all of it, or with `timed` what is spent in kernels."""
        kernels = ffi.new("double *")
        x, y = (ffi.cast("int8_t *", a.ctypes.data) for a in (self.x, self.y))
        memory = x, self.sizes[0], y, self.sizes[1], kernels if timed else ffi.NULL
        taken = self.lib.simulate(self.context, self.arena, most, len(self.x), *memory)
        if taken < 0:
            raise SystemExit(f"the C loop fails: {_native.text(int(taken))}")
        return (kernels[0] if timed else taken) / len(self.x)


class LiteRt:
    """The peer in a process of its own."""

    def __init__(self, python: str, model: Path, windows: Path) -> None:
        script = str(ROOT / "bench" / "simulate_litert.py")
        command = [python, script, str(model), str(windows)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = self.process.stdout.readline()
        if not ready:
            raise SystemExit(f"{python} {script} did not start: give a Python with ai-edge-litert by --litert-python")
        self.modes = json.loads(ready)["ready"]

    def run(self, mode: str, logits: bool = False) -> dict[str, Any]:
        self.process.stdin.write(json.dumps({"run": mode, "logits": logits}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def exported(image: Image, folder: Path) -> Path:
    """The network as .tflite, by pyhtpw's own exporter."""
    try:
        from pyhtpw.export.tflite import to_tflite
    except ImportError as error:
        raise SystemExit(f"no exporter ({error}): pip install 'pyhtpw[export]', or give the file by --tflite") from error
    path = folder / "model.tflite"
    path.write_bytes(to_tflite(image))
    return path


def figures(seconds: list[float]) -> dict[str, float]:
    """Microseconds per window, of the rounds."""
    return {"min_us": min(seconds) * 1e6, "median_us": statistics.median(seconds) * 1e6}


def ratio(a: list[float], b: list[float]) -> dict[str, float]:
    """How many times `a` takes as long as `b`: of the least, and the median of the rounds."""
    return {"of_least": min(a) / min(b), "median": statistics.median(x / y for x, y in zip(a, b, strict=True))}


class Batches:
    """`Image.run_batch` by a number of threads and a backend."""

    def __init__(self, image: Image, windows: np.ndarray, expected: np.ndarray, threads: int, backend: str | None) -> None:
        self.image, self.windows, self.expected, self.threads, self.backend = image, windows, expected, threads, backend
        self.cpu: list[float] = []  # seconds of CPU time per window, of every round
        self.cpus: list[float] = []

    def seconds(self) -> float:
        """Per window."""
        cpu, start = time.process_time(), time.perf_counter()
        found = self.image.run_batch(self.windows, threads=self.threads, backend=self.backend)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        if not np.array_equal(found, self.expected):
            raise SystemExit(f"{self.image.name}: {self.threads} threads with {self.backend} give other logits")
        self.cpu.append(cpu / len(self.windows))
        self.cpus.append(cpu / wall)
        return wall / len(self.windows)


def measure(path: Path, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One image."""
    image = Image.open(path)
    windows = sample_windows(image, options.windows)
    np.save(folder / "windows.npy", windows)
    kernels = Kernels(folder, image, windows)
    peer = None
    if options.litert_python:
        model = Path(options.tflite) if options.tflite else exported(image, folder)
        peer = LiteRt(options.litert_python, model, folder / "windows.npy")
    expected = image.run_batch(windows)
    best = _native.backend_name()
    ours = {n: Batches(image, windows, expected, n, best) for n in THREADS}
    others = {name: Batches(image, windows, expected, 1, name) for name in _native.available_backends() if name not in (best, "portable")}
    turns: dict[Any, Callable[[], float]] = {n: batches.seconds for n, batches in ours.items()}
    turns |= {name: batches.seconds for name, batches in others.items()}
    turns |= {(most, timed): partial(kernels.seconds, most, timed) for most in (1, _WINDOWS) for timed in (False, True)}
    theirs = list(peer.modes) if peer else []
    turns |= {mode: partial(lambda mode: peer.run(mode)["seconds"], mode) for mode in theirs}
    taken: dict[Any, list[float]] = {what: [] for what in turns}
    load = os.getloadavg()
    for i in range(options.rounds):
        for what in (list(turns), list(reversed(turns)))[i % 2]:
            turns[what]()
            taken[what].append(turns[what]())
    if not np.array_equal(kernels.y, expected):
        raise SystemExit(f"{path}: the C loop gives other logits")
    for batches in (*ours.values(), *others.values()):
        del batches.cpu[::2], batches.cpus[::2]  # of the runs that are not timed
    had = zip(ours[1].cpus, ours[2].cpus, strict=True)
    quiet = [a / b for a, b, (one, two) in zip(taken[1], taken[2], had, strict=True) if 2 * one >= QUIET and two >= QUIET]
    row: dict[str, Any] = {
        "image": path.name,
        "image_bytes": len(image.data),
        "macs": image.parsed.macs,
        "windows": len(windows),
        "windows_at_a_time": _WINDOWS,
        "backend": best,
        "load_average": {"before": load, "after": os.getloadavg()},
        "kernels": {str(most): figures(taken[most, True]) for most in (1, _WINDOWS)},
        "c_loop": {str(most): figures(taken[most, False]) for most in (1, _WINDOWS)},
        "run_batch": {
            str(n): figures(taken[n]) | {"per_s": 1 / min(taken[n]), "cpu_us": min(b.cpu) * 1e6, "cpus_median": statistics.median(b.cpus)}
            for n, b in ours.items()
        },
        "other_backends": {name: figures(taken[name]) for name in others},
        "kernel_speed_kept": ratio(taken[_WINDOWS, True], taken[1]),
        "kernel_speed_kept_of_one_window": ratio(taken[1, True], taken[1]),
        "second_thread": ratio(taken[1], taken[2]) | {"quiet_rounds": len(quiet), "quiet": statistics.median(quiet) if quiet else None},
    }
    if peer:
        row["litert"] = {mode: figures(taken[mode]) for mode in theirs}
        one = [mode for mode in theirs if mode.startswith("1 x 1 ")]
        two = [mode for mode in theirs if not mode.startswith("1 x 1 ")]
        row["times_litert"] = {}
        for threads, modes in ((1, one), (2, one + two)):
            least = min(modes, key=lambda mode: min(taken[mode]))
            row["times_litert"][str(threads)] = ratio(taken[least], taken[threads]) | {"litert": least}
        whole = next(mode for mode in one if mode.endswith("batch 1"))
        logits = np.array(peer.run(whole, logits=True)["logits"], np.int8)
        row["litert_bytes_differ"] = int(np.count_nonzero(logits != expected))  # XNNPACK rounds in its own way
        row["litert_bytes"] = int(logits.size)
        row["litert_largest_difference"] = int(np.abs(logits.astype(int) - expected).max())
        peer.close()
    return row


def both(found: dict[str, Any], form: str = "x{:.2f}") -> str:
    """A ratio in words."""
    return f"{form.format(found['of_least'])} of the least, {form.format(found['median'])} median"


def text(row: dict[str, Any]) -> str:
    """A few lines about one image."""
    load = row["load_average"]
    lines = [f"{row['image']}: {row['macs']:,} MACs, {row['backend']}, batches of {row['windows']} windows",
             "  load average before {:.2f}, after {:.2f}".format(load["before"][0], load["after"][0])]
    for most, t in row["kernels"].items():
        lines.append(f"  {most} at a time: kernels {t['min_us']:.2f} us (median {t['median_us']:.2f}), "
                     f"C loop {row['c_loop'][most]['min_us']:.2f} us a window")
    for threads, t in row["run_batch"].items():
        lines.append(f"  run_batch, {threads} threads: {t['min_us']:.2f} us (median {t['median_us']:.2f}), {t['per_s']:,.0f} windows/s; "
                     f"CPU time {t['cpu_us']:.2f} us, had {t['cpus_median']:.2f} CPUs (median)")
    for name, t in row["other_backends"].items():
        lines.append(f"  run_batch, 1 thread, {name}: {t['min_us']:.2f} us (median {t['median_us']:.2f})")
    lines.append(f"  kernel speed kept: {both(row['kernel_speed_kept'], '{:.1%}')} "
                 f"(of kernels of one window: {both(row['kernel_speed_kept_of_one_window'], '{:.1%}')})")
    second = row["second_thread"]
    quiet = f"x{second['quiet']:.2f} in" if second["quiet"] else "no figure:"
    lines.append(f"  second thread: {both(second)}; {quiet} {second['quiet_rounds']} rounds in which two threads had {QUIET} CPUs")
    for mode, t in row.get("litert", {}).items():
        lines.append(f"  LiteRT, {mode}: {t['min_us']:.2f} us (median {t['median_us']:.2f})")
    for threads, found in row.get("times_litert", {}).items():
        lines.append(f"  {threads} threads: {both(found)}, the windows per second of LiteRT ({found['litert']})")
    if "litert_bytes_differ" in row:
        lines.append(f"  {row['litert_bytes_differ']} of {row['litert_bytes']} logit bytes of XNNPACK differ, by at most {row['litert_largest_difference']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="*", type=Path, default=IMAGES, help="images; default: the first on real ECG")
    parser.add_argument("--tflite", help="exported network, of one image; without it pyhtpw exports it")
    parser.add_argument("--litert-python", help="Python with ai-edge-litert; without it LiteRT is listed as NOT RUN")
    parser.add_argument("--windows", type=int, default=256, help="windows of a batch (seeded, synthetic)")
    parser.add_argument("--rounds", type=int, default=60, help="rounds of measurement")
    parser.add_argument("--json", nargs="?", const="-", help="file to write; without one, standard output")
    options = parser.parse_args()
    if options.tflite and len(options.images) != 1:
        parser.error("--tflite belongs to one image")
    rows = []
    for path in options.images:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(path, options, Path(folder)))
        if options.json != "-":
            print(text(rows[-1]), flush=True)
    command = [*_native_build.compiler(), "--version"]
    compiler = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    found = {"what": "wall-clock of whole windows on a host, seeded synthetic windows", "machine": platform.machine(),
             "cores": os.cpu_count(),
             "cpu_flags": x86.flags(), "compiler": compiler, "rounds": options.rounds, "rows": rows,
             "not_run": [] if options.litert_python else ["LiteRT: no --litert-python"]}
    if options.json == "-":
        print(json.dumps(found, indent=1))
    elif options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
