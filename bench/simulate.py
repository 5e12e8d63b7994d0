"""Windows per second on the host: `Image.run_batch` beside its own kernels, and beside LiteRT with XNNPACK on the exported network.

    .venv/bin/python bench/simulate.py --litert-python VENV/bin/python --json results/simulate.json

Everything takes turns, round after round, so that what else the machine does falls on all alike; a figure is the least of the
rounds, a ratio the median of the rounds' own ratios. LiteRT gets its best way of using as many threads: one interpreter with so
many, or as many interpreters with one each, and batches of 1, 16 or 64 windows. Wall-clock: a quiet machine, or nothing.
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
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import x86  # noqa: E402
from cffi import FFI  # noqa: E402

from pyhtpw import _native, _native_build  # noqa: E402
from pyhtpw.model import Image  # noqa: E402
from pyhtpw.verify import sample_windows  # noqa: E402

ROOT = Path(__file__).parent.parent
IMAGES = [ROOT / "results" / "mitdb-first.htpw"]
THREADS = (1, 2)
ffi = FFI()
SIMULATE = "double simulate(struct htpw_context *, size_t, const int8_t *, size_t, int8_t *, size_t, double *);"
ffi.cdef(_native_build.declarations() + SIMULATE)


class Kernels:
    """htpw_run in a C loop, and the part of it that is spent in the backend's kernels."""

    def __init__(self, folder: Path, image: Image, windows: np.ndarray) -> None:
        sources = [ROOT / name for name in _native_build.sources()] + [ROOT / "bench" / "simulate_loop.c"]
        flags = ["-O3", "-std=gnu99", "-fno-strict-aliasing", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}"]
        subprocess.run([*_native_build.compiler(), *flags, "-o", folder / "simulate.so", *sources], check=True)
        self.lib = ffi.dlopen(str(folder / "simulate.so"))
        plan = image.plan()
        self.kept = [_native.aligned(n) for n in (len(image.data), plan.arena, plan.cache)]
        self.kept[0][:] = np.frombuffer(image.data, np.uint8)
        data, arena, cache = (ffi.cast("void *", a.ctypes.data) for a in self.kept)
        self.model, self.context = ffi.new("struct htpw_model *"), ffi.new("struct htpw_context *")
        if self.lib.htpw_model_open(self.model, data, len(image.data)) or self.lib.htpw_bind(
            self.context, self.model, 0, arena, plan.arena, cache, plan.cache, 0
        ):
            raise SystemExit(f"{image.name}: cannot be bound")
        self.x = np.ascontiguousarray(windows)
        self.y = np.zeros((len(windows), plan.output), np.int8)
        self.sizes = plan.input, plan.output

    def seconds(self, timed: bool) -> float:
        """Per window: all of it, or with `timed` what is spent in kernels."""
        kernels = ffi.new("double *")
        x, y = (ffi.cast("int8_t *", a.ctypes.data) for a in (self.x, self.y))
        taken = self.lib.simulate(self.context, len(self.x), x, self.sizes[0], y, self.sizes[1], kernels if timed else ffi.NULL)
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
    ours: dict[int, list[float]] = {n: [] for n in THREADS}
    theirs: dict[str, list[float]] = {mode: [] for mode in (peer.modes if peer else ())}
    loop, inside = [], []
    expected = image.run_batch(windows)
    for _ in range(options.rounds):
        for threads in THREADS:
            start = time.perf_counter()
            found = image.run_batch(windows, threads=threads)
            ours[threads].append((time.perf_counter() - start) / len(windows))
            if not np.array_equal(found, expected):
                raise SystemExit(f"{path}: {threads} threads give other logits")
        loop.append(kernels.seconds(False))
        inside.append(kernels.seconds(True))
        for mode in theirs:
            theirs[mode].append(peer.run(mode)["seconds"])
    if not np.array_equal(kernels.y, expected):
        raise SystemExit(f"{path}: the C loop gives other logits")
    row: dict[str, Any] = {
        "image": path.name,
        "image_bytes": len(image.data),
        "macs": image.parsed.macs,
        "windows": len(windows),
        "backend": _native.backend_name(),
        "kernels_us": min(inside) * 1e6,
        "c_loop_us": min(loop) * 1e6,
        "kernel_speed_kept": min(inside) / min(ours[1]),
        "second_thread": statistics.median(a / b for a, b in zip(ours[1], ours[2], strict=True)),
        "run_batch": {str(n): figures(t) | {"per_s": 1 / min(t)} for n, t in ours.items()},
    }
    if peer:
        row["litert"] = {mode: figures(t) for mode, t in theirs.items()}
        one = [mode for mode in theirs if mode.startswith("1 x 1 ")]
        two = [mode for mode in theirs if not mode.startswith("1 x 1 ")]
        row["times_litert"] = {}
        for threads, modes in ((1, one), (2, one + two)):
            best = min(modes, key=lambda mode: min(theirs[mode]))
            ratio = statistics.median(t / o for t, o in zip(theirs[best], ours[threads], strict=True))
            row["times_litert"][str(threads)] = {"ratio": ratio, "litert": best}
        whole = next(mode for mode in one if mode.endswith("batch 1"))
        logits = np.array(peer.run(whole, logits=True)["logits"], np.int8)
        row["litert_bytes_differ"] = int(np.count_nonzero(logits != expected))  # XNNPACK rounds in its own way
        row["litert_bytes"] = int(logits.size)
        row["litert_largest_difference"] = int(np.abs(logits.astype(int) - expected).max())
        peer.close()
    return row


def text(row: dict[str, Any]) -> str:
    """A few lines about one image."""
    lines = [f"{row['image']}: {row['macs']:,} MACs, {row['backend']}, batches of {row['windows']} windows",
             f"  kernels {row['kernels_us']:.2f} us, C loop {row['c_loop_us']:.2f} us a window"]
    for threads, t in row["run_batch"].items():
        lines.append(f"  run_batch, {threads} threads: {t['min_us']:.2f} us (median {t['median_us']:.2f}), {t['per_s']:,.0f} windows/s")
    lines.append(f"  kernel speed kept: {row['kernel_speed_kept']:.1%}; second thread: x{row['second_thread']:.2f}")
    for mode, t in row.get("litert", {}).items():
        lines.append(f"  LiteRT, {mode}: {t['min_us']:.2f} us (median {t['median_us']:.2f})")
    for threads, found in row.get("times_litert", {}).items():
        lines.append(f"  {threads} threads: x{found['ratio']:.2f} the windows per second of LiteRT ({found['litert']})")
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
