"""Speed of the x86 backends on one core: pointwise layers by cached weights, and the other kernels, beside the portable C.

    python bench/x86.py [--repeats 60] [--json results/x86.json]

All columns of a row are measured in turns in one process: after each round of short loops comes the next, so that a change of
the machine's clock meets every column. Reported are the minimum and the median of the rounds. `peak` is the rate of VPDPBUSD
on registers alone. LiteRT's operators are timed by the difference of two models, so that its cost of a call is left out; that of
a one-operator model is reported too; where the CPU has AMX, both use it. Outputs are compared with the portable C before anything is timed.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cffi import FFI

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyhtpw import _native, _native_build

ROOT = Path(__file__).parent.parent
POINTWISE = ((16, 64, 64), (100, 16, 32), (100, 32, 64), (50, 64, 128), (25, 128, 128), (225, 24, 48))
ROUND_SECONDS = 4e-4  # of one column in one round
LOOPS = """
double bench_packed(const struct htpw_backend *, int, int, int, int, const struct htpw_requant *, int, const int8_t *,
                    const void *, const int32_t *, void *, int8_t *);
double bench_conv1x1(const struct htpw_backend *, int, int, int, int, const struct htpw_requant *, int, const int8_t *,
                     const int8_t *, const int32_t *, void *, int8_t *);
double bench_window(const struct htpw_backend *, int, int, const struct htpw_window *, const struct htpw_requant *, int,
                    const int8_t *, const int8_t *, const int32_t *, void *, int8_t *);
double bench_add(const struct htpw_backend *, int, size_t, const struct htpw_elementwise *, const int8_t *, const int8_t *,
                 int8_t *);
double bench_avgpool(const struct htpw_backend *, int, const struct htpw_window *, const int8_t *, int8_t *);
double bench_peak(int);
"""

ffi = FFI()
ffi.cdef(_native_build.declarations() + LOOPS)


def library(folder: Path) -> Any:
    """csrc/ and the timing loops, compiled as setup.py compiles csrc/."""
    sources = [ROOT / name for name in _native_build.sources()] + [ROOT / "bench" / "x86_loop.c"]
    target = folder / "x86.so"
    flags = ["-O3", "-std=gnu99", "-fno-strict-aliasing", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*_native_build.compiler(), *flags, "-o", target, *sources], check=True)
    return ffi.dlopen(str(target))


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins on a cache line."""
    raw = np.zeros(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def pointer(array: np.ndarray) -> Any:
    return ffi.cast("void *", array.ctypes.data)


Timed = Callable[[int], float]  # seconds per call, of so many calls


class Case:
    """Operands of one layer. `columns` gives, for each backend, a loop and the output that it fills."""

    def __init__(self, lib: Any, kind: str, shape: tuple[int, ...]) -> None:
        self.lib, self.kind, self.shape = lib, kind, shape
        self.kept: list[Any] = []
        rng = np.random.default_rng(sum(shape))
        if kind in ("packed", "conv1x1"):
            rows, in_c, out_c = shape
            products, sizes, weights = in_c, (rows * in_c, rows * out_c), (out_c, in_c)
            self.macs = rows * in_c * out_c
        else:
            cells, in_c, out_c, taps = shape
            products, sizes = taps * (1 if kind == "depthwise" else in_c), (cells * in_c, cells * out_c)
            weights = (taps, out_c) if kind == "depthwise" else (out_c, taps * in_c)
            self.macs = cells * out_c * products if kind in ("conv", "depthwise") else cells * in_c
            values = [1, 1, cells, in_c, 1, cells, out_c, 1, taps, 1, 1, 0, taps // 2, 1, 1, 1]
            if kind == "avgpool":
                values[5], values[8], values[12] = 1, cells, 0
            self.window = ffi.new("struct htpw_window *", values)
        self.products, self.out_c = products, out_c
        self.x, self.other = (aligned(rng.integers(-128, 128, sizes[0], np.int8)) for _ in range(2))
        self.y_size = sizes[1]
        self.w = aligned(rng.integers(-128, 128, weights, np.int8))
        self.bias = aligned(rng.integers(-3000, 3000, out_c).astype(np.int32))
        self.scale = (rng.integers(2**14, 2**15, out_c) << 16).astype(np.int32)
        self.shift = np.full(out_c, -7 - int(np.log2(products) / 2), np.int32)
        fields = [ffi.cast("int32_t *", a.ctypes.data) for a in (self.scale, self.shift)]
        self.q = ffi.new("struct htpw_requant *", [*fields, 1, -3, -128, 127])

    def column(self, backend: int) -> tuple[Timed, np.ndarray]:
        lib, table, rule = self.lib, self.lib.htpw_backend_get(backend), self.lib.htpw_backend_rule(backend)
        x, w, bias, y = self.x, self.w, pointer(self.bias), aligned(np.zeros(self.y_size, np.int8))
        size = lib.htpw_backend_scratch(rule, self.products)
        if self.kind == "depthwise":
            size = lib.htpw_backend_depthwise_scratch(rule, self.shape[3], self.out_c)
        scratch = aligned(np.zeros(size, np.uint8))
        self.kept += [y, scratch]
        tail = (self.q, 17, pointer(x))
        if self.kind == "packed":
            layout = ffi.addressof(rule, "layout")
            packed = aligned(np.zeros(lib.htpw_layout_bytes(layout, *w.shape), np.uint8))
            self.kept.append(packed)
            lib.htpw_layout_clear(layout, *w.shape, pointer(packed))
            lib.htpw_layout_put(layout, w.shape[1], 0, w.size, pointer(w), pointer(packed))
            lib.htpw_layout_finish(layout, *w.shape, pointer(packed))
            args = (*self.shape, *tail, pointer(packed), bias, pointer(scratch), pointer(y))
            return lambda calls: lib.bench_packed(table, calls, *args), y
        if self.kind == "conv1x1":
            args = (*self.shape, *tail, pointer(w), bias, pointer(scratch), pointer(y))
            return lambda calls: lib.bench_conv1x1(table, calls, *args), y
        if self.kind in ("conv", "depthwise"):
            args = (self.window, *tail, pointer(w), bias, pointer(scratch), pointer(y))
            return lambda calls: lib.bench_window(table, self.kind == "depthwise", calls, *args), y
        if self.kind == "add":
            values = [3, 0x5000 << 16, -1, -4, 0x7000 << 16, 0, 20, 5, 0x4100 << 16, -19, -128, 127]
            p = ffi.new("struct htpw_elementwise *", values)
            self.kept.append(p)
            return lambda calls: lib.bench_add(table, calls, x.size, p, pointer(x), pointer(self.other), pointer(y)), y
        return lambda calls: lib.bench_avgpool(table, calls, self.window, pointer(x), pointer(y)), y


def flags() -> list[str]:
    """What of the CPU matters here: its vector and matrix instructions, where Linux tells."""
    try:
        words = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n")[0].split()
    except (OSError, IndexError):
        return []
    return [word for word in words if word.startswith(("avx", "amx"))]


def litert(shape: tuple[int, ...]) -> Any:
    """The peer on a pointwise layer, or why it does not run."""
    for module, package in (("ai_edge_litert", "ai-edge-litert"), ("tflite", "tflite")):
        if importlib.util.find_spec(module) is None:
            return f"not run: {package} is not installed"
    import x86_litert

    return x86_litert.Pointwise(*shape)


def measure(case: Case, names: list[str], repeats: int, peak: float) -> dict[str, Any]:
    """One row of the table: seconds of every column, in turns."""
    columns = {name: case.column(_native.BACKENDS[name]) for name in names}
    peer = litert(case.shape) if case.kind == "packed" else "-"
    calls = {name: max(1, int(ROUND_SECONDS / loop(3))) for name, (loop, _) in columns.items()}
    for name, (_, y) in columns.items():
        if not np.array_equal(y, columns["portable"][1]):
            raise SystemExit(f"{name} differs from the portable kernel on {case.kind} {case.shape}")
    times: dict[str, list[float]] = {name: [] for name in names}
    single, many = [], []
    for _ in range(repeats):
        for name, (loop, _) in columns.items():
            times[name].append(loop(calls[name]))
        if not isinstance(peer, str):
            one, nine = peer.seconds(100)
            single.append(one)
            many.append(nine)
    row: dict[str, Any] = {"kernel": case.kind, "shape": case.shape, "macs": case.macs, "backends": {}}
    for name, values in times.items():
        best = min(values)
        row["backends"][name] = {
            "min_us": best * 1e6,
            "median_us": statistics.median(values) * 1e6,
            "times_portable": min(times["portable"]) / best,
            "gmac_per_s": case.macs / best / 1e9,
            "of_peak": case.macs / best / peak if peak else None,
        }
    if not isinstance(peer, str):
        further = sys.modules["x86_litert"].COPIES - 1
        operator = (min(many) - min(single)) / further
        row["litert"] = {
            "min_us": operator * 1e6,
            "median_us": (statistics.median(many) - statistics.median(single)) / further * 1e6,
            "one_operator_model_us": min(single) * 1e6,
            "times_best_backend": operator / min(times[names[-1]]),
        }
    elif case.kind == "packed":
        row["litert"] = peer
    return row


def text(row: dict[str, Any]) -> str:
    parts = [f"{row['kernel']:9} {'x'.join(map(str, row['shape'])):14}"]
    for name, c in row["backends"].items():
        share = f" {c['of_peak']:4.0%} of peak" if c["of_peak"] and row["kernel"] in ("packed", "conv1x1", "conv") else ""
        parts.append(f"{name} {c['min_us']:.3f} us (median {c['median_us']:.3f}, x{c['times_portable']:.1f}{share})")
    peer = row.get("litert")
    if isinstance(peer, dict):
        one = peer["one_operator_model_us"]
        parts.append(f"litert {peer['min_us']:.3f} us (x{peer['times_best_backend']:.2f} of ours; model of one {one:.2f} us)")
    elif peer:
        parts.append(f"litert {peer}")
    return "  ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=60, help="rounds of measurement")
    parser.add_argument("--json", nargs="?", const="-", help="file to write; without one, standard output")
    options = parser.parse_args()
    quiet = options.json == "-"
    names = [n for n in _native.available_backends() if n == "portable" or n.startswith("x86")]
    cases = [(kind, shape) for kind in ("packed", "conv1x1") for shape in POINTWISE]
    # cells, input channels, output channels, taps of a 1-D window
    cases += [("conv", (250, 1, 16, 7)), ("conv", (100, 16, 32, 5))]
    cases += [("depthwise", (100, 32, 32, 5)), ("depthwise", (50, 64, 64, 9)), ("add", (100, 64, 64, 1)), ("avgpool", (25, 128, 128, 1))]
    with tempfile.TemporaryDirectory() as folder:
        lib = library(Path(folder))
        peak = max(lib.bench_peak(100000) for _ in range(30))
        if not quiet:
            print(f"peak {peak / 1e9:.0f} GMAC/s (VPDPBUSD on registers)" if peak else "peak not run: this CPU has no AVX-512 VNNI")
        rows = []
        for kind, shape in cases:
            rows.append(measure(Case(lib, kind, shape), names, options.repeats, peak))
            if not quiet:
                print(text(rows[-1]), flush=True)
    if options.json:
        command = [*_native_build.compiler(), "--version"]
        compiler = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
        head = {"what": "wall-clock on one core of a host", "machine": platform.machine(), "cpu_flags": flags()}
        head |= {"compiler": compiler, "repeats": options.repeats, "peak_gmac_per_s": peak / 1e9}
        found = json.dumps({**head, "rows": rows}, indent=1)
        if quiet:
            print(found)
        else:
            Path(options.json).write_text(found + "\n")


if __name__ == "__main__":
    main()
