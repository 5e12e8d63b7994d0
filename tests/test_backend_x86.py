"""The x86 backends' kernel tables, called directly: equal to the reference and to the portable C, within their memory.

Every array lies at a drawn address between guard bytes, scratch has exactly the size that the backend's rule says, and weights
in the cache layout are only 4-byte aligned. Random images on every backend: test_image.py.
"""

import itertools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strategies as own
import test_kernels_memory
import vectors_io
from hypothesis import given
from hypothesis import strategies as st

import reference.kernels
from pyhtpw import _native
from pyhtpw._native import ffi, lib

ROOT = Path(__file__).parent.parent
BACKENDS = ("x86_avx2", "x86_avx512vnni", "x86_amx")
GUARD, PATTERN = 96, 0xA5
LINEAR = {"conv_s8": "conv", "conv1x1_s8": "conv1x1", "fully_connected_s8": "conv1x1", "depthwise_s8": "depthwise"}
OTHERS = {"avgpool_s8": "avgpool", "maxpool_s8": "maxpool", "add_s8": "add"}
VECTORS = [k for k, name in vectors_io.FUNCTIONS.items() if name.split()[0] in LINEAR | OTHERS]

shifts = st.sampled_from((0, 1, 3, 8, 31, 63))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> int:
    """Id of a backend that runs here."""
    if request.param not in _native.available_backends():
        pytest.skip(f"NOT RUN: {request.param}: this CPU or this build does not have it")
    return _native.BACKENDS[request.param]


class Memory:
    """Copies of arrays between guard bytes, at addresses `shift` past a multiple of 64."""

    def __init__(self, shift: int) -> None:
        self.shift = shift
        self.kept: list[tuple[np.ndarray, slice, bytes | None]] = []

    def place(self, array: np.ndarray, shift: int | None = None, written: bool = False) -> np.ndarray:
        raw = np.full(array.nbytes + 2 * GUARD + 64, PATTERN, np.uint8)
        start = GUARD + ((self.shift if shift is None else shift) - raw.ctypes.data - GUARD) % 64
        inside = slice(start, start + array.nbytes)
        raw[inside] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.kept.append((raw, inside, None if written else raw[inside].tobytes()))
        return raw[inside].view(array.dtype).reshape(array.shape)

    def check(self) -> None:
        for raw, inside, content in self.kept:
            assert content is None or raw[inside].tobytes() == content, "an input was written"
            around = np.delete(raw, np.arange(inside.start, inside.stop))
            assert (around == PATTERN).all(), "bytes outside a buffer were written"


class Pages(Memory):
    """Copies against a page that cannot be read: behind them, or in front of them if `shift` is odd."""

    def place(self, array: np.ndarray, shift: int | None = None, written: bool = False) -> np.ndarray:
        place = test_kernels_memory.Guarded(array.nbytes)
        self.kept.append((place, slice(0), None))
        return place.copy(np.ascontiguousarray(array), self.shift % 2 == 0)

    def check(self) -> None:
        """A read or write outside has ended the process."""


MEMORY = Memory


def pointer(array: np.ndarray | None) -> Any:
    return ffi.NULL if array is None else ffi.cast("void *", array.ctypes.data)


def packed_weights(backend: int, w: np.ndarray) -> np.ndarray:
    """w (Cout, Cin) as the backend caches it."""
    layout = ffi.addressof(lib.htpw_backend_rule(backend), "layout")
    packed = np.zeros(lib.htpw_layout_bytes(layout, *w.shape) // 4, np.int32)
    lib.htpw_layout_clear(layout, *w.shape, pointer(packed))
    lib.htpw_layout_put(layout, w.shape[1], 0, w.size, ffi.from_buffer("int8_t[]", np.ascontiguousarray(w)), pointer(packed))
    lib.htpw_layout_finish(layout, *w.shape, pointer(packed))
    return packed


def window(x: np.ndarray, out_c: int, groups: int, kernel: Any, keywords: dict[str, Any]) -> tuple[Any, tuple[int, ...]]:
    """struct htpw_window and the shape of the output."""
    stride, padding = keywords.get("stride", (1, 1)), keywords.get("padding", (0, 0))
    dilation, size = keywords.get("dilation", (1, 1)), keywords.get("output_size")
    if size is None:
        axes = zip(x.shape[1:3], kernel, stride, padding, dilation, strict=True)
        size = [(n + p - (k - 1) * d - 1) // s + 1 for n, k, s, p, d in axes]
    shape = (len(x), *(int(n) for n in size), out_c)
    values = [*x.shape, *shape[1:], *kernel, *stride, *padding, *dilation, groups]
    return ffi.new("struct htpw_window *", [int(v) for v in values]), shape


def run(backend: int, call: own.Call, shift: int = 1, cached: bool = False) -> np.ndarray:
    """A call by the backend's table; `cached` takes the weights of a pointwise layer in the cache layout."""
    table, rule, memory = lib.htpw_backend_get(backend), lib.htpw_backend_rule(backend), MEMORY(shift)
    x, *rest = call.args
    keywords, limits = call.kwargs, [call.kwargs.get("act_min", -128), call.kwargs.get("act_max", 127)]
    xs = memory.place(x)
    if call.name == "add_s8":
        names = ("input1_offset", "input1_mult", "input1_shift", "input2_offset", "input2_mult", "input2_shift")
        values = [keywords[n] for n in (*names, "left_shift", "out_offset", "out_mult", "out_shift")]
        y = memory.place(np.zeros(x.shape, np.int8), written=True)
        p = ffi.new("struct htpw_elementwise *", values + limits)
        table.add(x.size, p, pointer(xs), pointer(memory.place(rest[0])), pointer(y))
    elif call.name in OTHERS:
        g, shape = window(x, x.shape[3], 1, keywords["kernel"], keywords)
        y = memory.place(np.zeros(shape, np.int8), written=True)
        getattr(table, OTHERS[call.name])(g, *limits, pointer(xs), pointer(y))
    else:
        w, bias, multiplier, right = rest
        scale = [memory.place(np.atleast_1d(np.array(v, np.int32)), 4) for v in (multiplier, right)]
        q = ffi.new("struct htpw_requant *", [ffi.cast("int32_t *", v.ctypes.data) for v in scale]
                    + [int(isinstance(multiplier, np.ndarray)), keywords["output_offset"], *limits])
        bias = None if bias is None else memory.place(bias, 4)
        if call.name in ("conv1x1_s8", "fully_connected_s8"):
            sizes, shape = (x.size // w.shape[1], w.shape[1], len(w)), (*x.shape[:-1], len(w))
            size = lib.htpw_backend_scratch(rule, w.shape[1])
        elif call.name == "conv_s8":
            g, shape = window(x, len(w), x.shape[3] // w.shape[3], w.shape[1:3], keywords)
            sizes, size = (g,), lib.htpw_backend_scratch(rule, w[0].size)
        else:
            g, shape = window(x, w.shape[3], 1, w.shape[1:3], keywords)
            sizes, size = (g,), lib.htpw_backend_depthwise_scratch(rule, w.shape[1] * w.shape[2], w.shape[3])
        ws = memory.place(packed_weights(backend, w), 4) if cached else memory.place(w)
        y = memory.place(np.zeros(shape, np.int8), written=True)
        scratch = memory.place(np.full(size, PATTERN, np.uint8), 4, written=True)
        function = table.packed if cached else getattr(table, LINEAR[call.name])
        arrays = (pointer(a) for a in (xs, ws, bias, scratch, y))
        function(*sizes, q, keywords["input_offset"], *arrays)
    memory.check()
    return y.copy()


def variants(call: own.Call) -> tuple[bool, ...]:
    return (False, True) if call.name in ("conv1x1_s8", "fully_connected_s8") else (False,)


def assert_equal(backend: int, call: own.Call, expected: np.ndarray, shift: int = 1) -> None:
    for cached in variants(call):
        got = run(backend, call, shift, cached)
        assert got.shape == expected.shape
        assert got.tobytes() == expected.tobytes(), f"{(got != expected).sum()} of {got.size} differ, cached {cached}: {call}"


# Golden vectors and generated calls.


@pytest.mark.parametrize("kernel", VECTORS)
def test_golden_vectors(backend: int, kernel: str) -> None:
    """All tiers: what leaves SPEC section 7's range wraps as in the portable code, and that as in the vectors."""
    ran = 0
    for case in vectors_io.cases(kernel):
        call = own.Call(*vectors_io.arguments(case))
        if call.name in LINEAR | OTHERS and call.kwargs.get("filter_offset", 0) == 0:
            assert_equal(backend, call, case.expected, case.id % 64)
            ran += 1
    assert ran


CALLS = {
    "conv": own.conv_calls(),
    "conv1x1": own.conv1x1_calls(),
    "depthwise": own.depthwise_calls(),
    "fully_connected": own.fully_connected_calls(),
    "avgpool": own.pool_calls("avgpool_s8"),
    "maxpool": own.pool_calls("maxpool_s8"),
    "add": own.elementwise_calls("add_s8"),
}


@pytest.mark.parametrize("name", CALLS)
def test_equals_reference(backend: int, name: str) -> None:
    @given(call=CALLS[name], shift=shifts)
    def check(call: own.Call, shift: int) -> None:
        if "filter_offset" in call.kwargs:
            call = call._replace(kwargs={**call.kwargs, "filter_offset": 0})
        assert_equal(backend, call, call.run(reference.kernels), shift)

    check()


# Shapes around every tile, block and step, against the portable C.

PORTABLE = _native.BACKENDS["portable"]
ROWS, INPUTS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 25, 35), (1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 130)
OUTPUTS = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 80, 81, 112, 130)


def pointwise(rng: np.random.Generator, rows: int, in_c: int, out_c: int, narrow: bool) -> own.Call:
    """A pointwise layer whose outputs spread over int8; `narrow` multipliers are those of images."""
    x = rng.integers(-128, 128, (rows, in_c), np.int8)
    w = rng.integers(-128, 128, (out_c, in_c), np.int8)
    multiplier = rng.integers(2**30, 2**31, out_c).astype(np.int32)
    multiplier = multiplier >> 16 << 16 if narrow else multiplier
    shift = (-8 - int(np.log2(in_c) / 2) + rng.integers(-1, 2, out_c)).astype(np.int32)
    bias = None if rng.random() < 0.2 else rng.integers(-9999, 9999, out_c).astype(np.int32)
    keywords = {"input_offset": int(rng.integers(-127, 129)), "output_offset": int(rng.integers(-20, 20))}
    return own.Call("conv1x1_s8", (x, w, bias, multiplier, shift), keywords)


def shapes() -> Iterator[tuple[int, int, int]]:
    """Every edge of each size with a changing choice of the two others."""
    longest = max(len(ROWS), len(INPUTS), len(OUTPUTS))
    for step, i in itertools.product((1, 3, 7), range(longest)):
        yield ROWS[i % len(ROWS)], INPUTS[i * step % len(INPUTS)], OUTPUTS[(i * step + step) % len(OUTPUTS)]


@pytest.mark.parametrize("narrow", (True, False))
def test_tile_edges(backend: int, narrow: bool) -> None:
    rng = np.random.default_rng(5)
    for rows, in_c, out_c in shapes():
        call = pointwise(rng, rows, in_c, out_c, narrow)
        assert_equal(backend, call, run(PORTABLE, call), int(rng.integers(64)))


def test_extreme_products(backend: int) -> None:
    """The largest sums of either sign: no product or pair of products saturates."""
    for x, w, in_offset in itertools.product((-128, 127), (-128, 127), (-127, 0, 128)):
        rows, in_c, out_c = 17, 260, 70
        arrays = np.full((rows, in_c), x, np.int8), np.full((out_c, in_c), w, np.int8)
        scale = np.zeros(out_c, np.int32), np.full(out_c, 0x7FFF << 16, np.int32), np.full(out_c, -16, np.int32)
        call = own.Call("conv1x1_s8", (*arrays, *scale), {"input_offset": in_offset, "output_offset": 0})
        exact = in_c * (x + in_offset) * w
        want = reference.kernels.requantise(*(np.array([v], np.int32) for v in (exact, 0x7FFF << 16, -16)))[0]
        expected = np.full((rows, out_c), np.clip(want, -128, 127), np.int8)
        assert_equal(backend, call, expected)
        patch = own.Call("conv_s8", (arrays[0].reshape(1, 1, rows, in_c), arrays[1][:, None, None], *scale), call.kwargs)
        assert_equal(backend, patch, expected.reshape(1, 1, rows, out_c))


def stray(backend: int) -> int:
    """Calls that end the process if a kernel reads or writes outside its arrays; returns how many ran."""
    global MEMORY
    MEMORY, rng, count = Pages, np.random.default_rng(6), 0
    calls = [pointwise(rng, *sizes, True) for sizes in shapes() if sizes[0]]
    for kernel in VECTORS:
        calls += [own.Call(*vectors_io.arguments(case)) for case in vectors_io.cases(kernel)]
    for call, side in itertools.product(calls, (0, 1)):
        if call.kwargs.get("filter_offset", 0) == 0:
            for cached in variants(call):
                run(backend, call, side, cached)
                count += 1
    return count


@test_kernels_memory.posix
def test_nothing_outside_is_touched(backend: int) -> None:
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    command, env = [sys.executable, __file__, str(backend)], {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-2000:]}"
    assert int(done.stdout) > 1000


# Requantisation by itself: one product of 0, so that the sum is the bias.


def scaled(backend: int, v: np.ndarray, multiplier: np.ndarray, shift: np.ndarray, rows: int) -> None:
    x, w = np.zeros((rows, 1), np.int8), np.zeros((len(v), 1), np.int8)
    arrays = [np.ascontiguousarray(a, np.int32) for a in (v, multiplier, shift)]
    call = own.Call("conv1x1_s8", (x, w, *arrays), {"input_offset": 3, "output_offset": -5})
    assert_equal(backend, call, run(PORTABLE, call))


@pytest.mark.parametrize("narrow", (True, False))
@pytest.mark.parametrize("right", range(32))
def test_rounding_near_ties(backend: int, right: int, narrow: bool) -> None:
    """Sums on both sides of the tie between two outputs, and on it, where the two roundings tell."""
    rng = np.random.default_rng(right)
    multiplier = rng.integers(1, 2**15, 4096) << 16
    multiplier = multiplier if narrow else multiplier + rng.integers(0, 2**16, 4096)
    tie = (2 * rng.integers(-140, 140, 4096) + 1) * 2.0 ** (30 + right) / multiplier
    v = np.rint(tie) + rng.integers(-2, 3, 4096)
    good = np.abs(v) < 2**29 - 40000
    good[:64] |= not good.any()
    v = np.where(np.abs(v) < 2**31, v, 0)
    scaled(backend, v[good], multiplier[good], np.full(good.sum(), -right), 4)


@pytest.mark.parametrize("narrow", (True, False))
@pytest.mark.parametrize("shift", (*range(-31, -26), *range(0, 31, 2)))
def test_limits_of_the_vector_code(backend: int, shift: int, narrow: bool) -> None:
    """Sums up to the limit of the vector code and beyond, where whole groups go one by one; multipliers from 0 up."""
    rng = np.random.default_rng(shift + 31)
    limit = max(2**29 >> max(shift, 0), 1)
    near = limit - 32640 + rng.integers(-3, 4, 256)
    v = np.concatenate((near, -near, rng.integers(-limit, limit, 256), rng.integers(-(2**30), 2**30, 256) >> max(shift, 0)))
    multiplier = rng.choice(np.array([0, 1, 2, 0x4000, 0x7FFF]), len(v)) << 16
    multiplier = multiplier if narrow else multiplier | rng.choice(np.array([0, 1, 0xFFFF]), len(v))
    scaled(backend, v, multiplier, np.full(len(v), shift), 5)


# Larger layers than Hypothesis draws.


@pytest.mark.parametrize("channels", (1, 7, 8, 15, 16, 17, 24, 33, 64, 72))
@pytest.mark.parametrize("kernel", ((1, 1), (1, 5), (3, 3), (1, 31), (11, 12)))
def test_windows(backend: int, kernel: tuple[int, int], channels: int) -> None:
    """Convolution, depthwise convolution (the last kernel has too many taps for the vector code) and pools."""
    rng = np.random.default_rng(channels)
    x = rng.integers(-128, 128, (2, 13, 20, channels), np.int8)
    keywords = {"padding": (kernel[0] // 2, kernel[1] // 2), "output_size": (13, 10), "stride": (1, 2)}
    offsets = {"input_offset": 77, "output_offset": -4}
    m, s = (rng.integers(2**14, 2**15, channels) << 16).astype(np.int32), np.full(channels, -10, np.int32)
    bias = rng.integers(-5000, 5000, channels).astype(np.int32)
    w = rng.integers(-128, 128, (1, *kernel, channels), np.int8)
    calls = [own.Call("depthwise_s8", (x, w, bias, m, s), keywords | offsets)]
    pool = keywords | {"kernel": kernel, "act_min": -100, "act_max": 99}
    calls += [own.Call(name, (x,), pool) for name in ("avgpool_s8", "maxpool_s8")]
    w = rng.integers(-128, 128, (channels, *kernel, channels), np.int8)
    if w.size < 60000:
        calls.append(own.Call("conv_s8", (x, w, bias, m, s - 3), keywords | offsets))
    for call in calls:
        assert_equal(backend, call, run(PORTABLE, call))


@pytest.mark.parametrize("narrow", (True, False))
@pytest.mark.parametrize("left", range(16, 23))
def test_add_in_place(backend: int, left: int, narrow: bool) -> None:
    """y may be a or b; every length around a register; the largest terms of either sign."""
    rng = np.random.default_rng(0)
    first, second, last = ((m << 16) + (0 if narrow else 77) for m in (0x5000, 0x7000, 0x4100))
    for n, offset in itertools.product((0, 1, 31, 32, 33, 63, 64, 65, 200), (-127, -4, 128)):
        a, b = rng.integers(-128, 128, (2, n), np.int8)
        values = [offset, first, -1, offset, second, 0, left, 5, last, -left, -90, 90]
        p = ffi.new("struct htpw_elementwise *", values)
        expected = np.zeros(n, np.int8)
        lib.htpw_add_s8_ref(n, p, pointer(a), pointer(b), pointer(expected))
        for in_first in (True, False):
            pair = a.copy(), b.copy()
            y = pair[0 if in_first else 1]
            lib.htpw_backend_get(backend).add(n, p, pointer(pair[0]), pointer(pair[1]), pointer(y))
            assert y.tobytes() == expected.tobytes()


# Choice and build.


def test_choice() -> None:
    """The best backend is the last of the x86 ones that run here."""
    here = [name for name in BACKENDS if name in _native.available_backends()]
    if platform.machine() not in ("x86_64", "AMD64"):
        assert not here
        pytest.skip("NOT RUN: not an x86-64 machine")
    assert ffi.string(lib.htpw_backend_name(0)).decode() == (here[-1] if here else "portable")


REFUSED = """
import ctypes, sys
small = ctypes.create_string_buffer(2048)
class Stack(ctypes.Structure):
    _fields_ = [("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
stack = Stack(ctypes.addressof(small), 0, 2048)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
from pyhtpw import _native
print(*_native.available_backends())
"""


def test_amx_needs_the_permission_of_the_system() -> None:
    """Linux refuses tiles to a process whose signal stack cannot hold them; then the next best backend runs."""
    if "x86_amx" not in _native.available_backends():
        pytest.skip("NOT RUN: x86_amx: this CPU or this build does not have it")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, env=env, check=True)
    assert "x86_avx512vnni" in done.stdout.split() and "x86_amx" not in done.stdout.split()


def test_threads(backend: int) -> None:
    """Calls of different shapes on several threads at once: tile shapes and sums are each thread's own."""
    rng = np.random.default_rng(8)
    calls = [pointwise(rng, rows, in_c, 70, True) for rows, in_c in ((9, 64), (16, 24), (25, 130), (40, 65))]
    expected = [run(PORTABLE, call) for call in calls]

    def work(i: int) -> bool:
        return all(run(backend, calls[i], 0, True).tobytes() == expected[i].tobytes() for _ in range(100))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@pytest.mark.parametrize("off", (("X86_AVX2",), ("X86_AVX512VNNI",), ("X86_AMX",), ("X86_AVX2", "X86_AVX512VNNI", "X86_AMX")))
def test_switched_off(off: tuple[str, ...], tmp_path: Path) -> None:
    """With HTPW_CONFIG_NO_<BACKEND> the library builds without a warning and without a trace of the backend."""
    compiler, nm = shutil.which("cc"), shutil.which("nm")
    if not (compiler and nm):
        pytest.skip("NOT RUN: no cc or nm")
    for source in (ROOT / "csrc" / "htpw_backend.c", *sorted((ROOT / "csrc" / "backends").glob("x86_*/*.c"))):
        target = tmp_path / f"{source.stem}.o"
        flags = ["-std=c99", "-O0", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
        flags += [f"-DHTPW_CONFIG_NO_{name}" for name in off]
        subprocess.run([compiler, *flags, "-c", source, "-o", target], check=True)
        symbols = subprocess.run([nm, target], capture_output=True, text=True, check=True).stdout
        assert not [name for name in off if f"htpw_backend_{name.lower()}" in symbols]


if __name__ == "__main__":
    print(stray(int(sys.argv[1])))
