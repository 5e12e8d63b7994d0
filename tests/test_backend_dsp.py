"""The Armv7E-M backend under emulation: generated calls against the numpy reference, whole images against the host."""

import itertools
import subprocess

import numpy as np
import pytest
import random_images
import strategies as own
from hypothesis import given, settings
from hypothesis import strategies as st

import reference.kernels
from pyhtpw.errors import MissingToolError
from pyhtpw.image.writer import write
from pyhtpw.model import Image
from pyhtpw.target import toolchain
from pyhtpw.target.emulator import Emulator

NARROW, WIDE = "armv7em_dsp", "armv7em_dsp_wide"
SHIFTS = (0, 1, 2, 3)
BUILDS = (("cortex-m4", "-O3"), ("cortex-m4", "-O0"), ("cortex-m7", "-Os"), ("cortex-m33", "-O2"))


@pytest.fixture(scope="module")
def build():
    """Makes the emulator of a core and optimisation, each once."""
    made = {}

    def get(cpu: str = "cortex-m4", opt: str = "-O3") -> Emulator:
        if (cpu, opt) not in made:
            made[cpu, opt] = Emulator(cpu, opt=opt)
            try:
                made[cpu, opt].call("htpw_sizeof_model")
            except MissingToolError as error:
                pytest.skip(f"NOT RUN: {error}")
        return made[cpu, opt]

    yield get
    for emulator in made.values():
        emulator.close()


def filterless(call: own.Call) -> own.Call:
    """A backend has no zero point for weights."""
    return call._replace(kwargs={**call.kwargs, "filter_offset": 0})


@st.composite
def cached(draw) -> own.Call:
    """A pointwise call whose kernel is in the cache layout."""
    return draw(own.conv1x1_calls())._replace(name="conv1x1_cached_s8")


def plain(call: own.Call) -> own.Call:
    """The same numbers by the name that the reference knows."""
    return call._replace(name=call.name.replace("_cached", ""))


CALLS = {
    "conv1x1_s8": own.conv1x1_calls(),
    "conv1x1_cached_s8": cached(),
    "fully_connected_s8": own.fully_connected_calls().map(filterless),
    "conv1x1_s4": own.conv1x1_calls(bits=4),
    "fully_connected_s4": own.fully_connected_calls(bits=4),
    "conv_s8": own.conv_calls(),
    "depthwise_s8": own.depthwise_calls(),
    "add_s8": own.elementwise_calls("add_s8"),
    "avgpool_s8": own.pool_calls("avgpool_s8"),
    "maxpool_s8": own.pool_calls("maxpool_s8"),
}


def assert_equal(emulator: Emulator, backend: str, call: own.Call, shift: int = 0) -> None:
    expected = plain(call).run(reference.kernels)
    got = getattr(emulator.kernels_of(backend, shift=shift), call.name)(*call.args, **call.kwargs)
    assert got.tobytes() == expected.tobytes(), f"{(got != expected).sum()} of {got.size} values differ for {call}"


@pytest.mark.parametrize("cpu, opt", BUILDS)
@pytest.mark.parametrize("name", CALLS)
def test_equals_reference(build, name, cpu, opt):
    """Every kernel, every address modulo 4; what the wide backend shares with the other is run by one of them only."""
    emulator = build(cpu, opt)
    backends = (NARROW, WIDE) if name == "conv1x1_cached_s8" else (NARROW,)

    @settings(max_examples=50 if (cpu, opt) == BUILDS[0] else 10)
    @given(call=CALLS[name], shift=st.sampled_from(SHIFTS))
    def run(call: own.Call, shift: int) -> None:
        for backend in backends:
            assert_equal(emulator, backend, call, shift)

    run()


@pytest.mark.parametrize("rows", (1, 2, 3))
@pytest.mark.parametrize("in_c", (1, 3, 4, 5, 6, 7, 8, 9, 31, 64))
def test_sizes(build, rows, in_c):
    """Every remainder of columns and outputs, one, two and three rows, both caches and stored weights."""
    rng = np.random.default_rng(in_c)
    for out_c in (1, 2, 3, 4, 5, 7, 8, 13):
        x, w = rng.integers(-128, 128, (1, 1, rows, in_c), np.int8), rng.integers(-128, 128, (out_c, in_c), np.int8)
        scale = (rng.integers(-999, 999, out_c, np.int32), rng.integers(2**30, 2**31, out_c).astype(np.int32))
        shift = np.full(out_c, -7 - in_c.bit_length() // 2, np.int32)
        keywords = {"input_offset": 128, "output_offset": -7, "act_min": -100, "act_max": 90 + 37 * (out_c % 2)}
        for name, backend in (("conv1x1_s8", NARROW), ("conv1x1_cached_s8", NARROW), ("conv1x1_cached_s8", WIDE)):
            assert_equal(build(), backend, own.Call(name, (x, w, *scale, shift), keywords), 1)


@pytest.mark.parametrize("per_channel", (False, True))
@pytest.mark.parametrize("in_c", (*range(4, 37), 63, 64, 65, 66, 67, 71, 72, 129))
def test_one_row_of_stored_weights(build, in_c, per_channel):
    """Every way into the unrolled steps, and around them; each clamp; with and without biases."""
    rng = np.random.default_rng(in_c)
    for out_c, limits, biased in ((12, (-128, 127), True), (9, (0, 127), True), (8, (-127, 99), False), (4, (-128, 5), True)):
        x, w = rng.integers(-128, 128, (1, in_c), np.int8), rng.integers(-128, 128, (out_c, in_c), np.int8)
        bias = rng.integers(-999, 999, out_c, np.int32) if biased else None
        multiplier, shift = rng.integers(2**30, 2**31, out_c).astype(np.int32), np.full(out_c, -7 - in_c.bit_length() // 2, np.int32)
        scale = (multiplier, shift) if per_channel else (int(multiplier[0]), int(shift[0]))
        keywords = {"input_offset": 128, "output_offset": -7, "act_min": limits[0], "act_max": limits[1]}
        assert_equal(build(), NARROW, own.Call("fully_connected_s8", (x, w, bias, *scale), keywords), 1 + out_c % 3)


@pytest.mark.parametrize("rows", (1, 2, 3))
@pytest.mark.parametrize("in_c", (1, 6, 7, *range(8, 43, 2), 9, 64, 128, 254, 256, 258))
def test_s4_sizes(build, in_c, rows):
    """Rows of 4-bit weights that the backend takes, and those that the portable kernel does, at any address."""
    rng = np.random.default_rng(in_c)
    for out_c, limits, biased in ((4, (-128, 127), True), (7, (0, 127), False), (13, (-100, 90), True)):
        x, w = rng.integers(-128, 128, (rows, in_c), np.int8), rng.integers(-8, 8, out_c * in_c)
        bias = rng.integers(-99, 99, out_c, np.int32) if biased else None
        multiplier, shift = rng.integers(2**30, 2**31, out_c).astype(np.int32), np.full(out_c, -3 - in_c.bit_length() // 2, np.int32)
        for scale in ((multiplier, shift), (int(multiplier[0]), int(shift[0]))):
            keywords = {"input_offset": 128, "output_offset": -7, "act_min": limits[0], "act_max": limits[1], "rows": out_c}
            assert_equal(build(), NARROW, own.Call("fully_connected_s4", (x, own.pack_s4(w), bias, *scale), keywords), out_c % 4)


@pytest.mark.parametrize("value, offset", ((127, 128), (-128, -127)))
def test_s4_largest_sums(build, value, offset):
    """The longest rows at the ends of the range: sums of 4096 times the weights stay inside a word."""
    for in_c, weight, rows in itertools.product((128, 254, 256), (-8, 7), (1, 2)):
        x, w = np.full((rows, in_c), value, np.int8), own.pack_s4(np.full(8 * in_c, weight))
        bias, keywords = np.array([0, 1, -1, 2**29, -(2**29), 5, 6, 7], np.int32), {"input_offset": offset, "output_offset": 3, "rows": 8}
        assert_equal(build(), NARROW, own.Call("fully_connected_s4", (x, w, bias, 2**31 - 1, -13), keywords))


def test_no_rows(build):
    """The contract allows a product without rows: nothing is written, nothing is read."""
    emulator = build()
    requant = emulator.alloc(24)
    scale = emulator.alloc(8)
    emulator.write(requant, np.array([scale, scale + 4, 0, 0, -128, 127], np.int32).tobytes())
    for name in ("htpw_conv1x1_s8_dsp", "htpw_conv1x1_s4_dsp", "htpw_packed_s8_dsp", "htpw_packed_wide_s8_dsp"):
        emulator.call(name, 0, 8, 4, requant, 0, 0, 0, 0, 0, 0)


def requantised(emulator: Emulator, v: np.ndarray, multiplier, shift, **keywords) -> None:
    """Every v through every path: a layer whose weights are 0, so that its sums are its biases."""
    n = len(v)
    multiplier, shift = np.broadcast_to(multiplier, n).astype(np.int32), np.broadcast_to(shift, n).astype(np.int32)
    scale = (v.astype(np.int32), multiplier, shift)
    for rows in (1, 2):
        x = np.zeros((1, 1, rows, 4), np.int8)
        for name, backend in (("conv1x1_s8", NARROW), ("conv1x1_cached_s8", WIDE)):
            assert_equal(emulator, backend, own.Call(name, (x, np.zeros((n, 4), np.int8), *scale), keywords))
    x = np.zeros((1, 1, 4, n), np.int8)
    windows = {"padding": (0, 1), "output_size": (1, 4)}
    assert_equal(emulator, NARROW, own.Call("depthwise_s8", (x, np.zeros((1, 1, 3, n), np.int8), *scale), keywords | windows))
    if len(set(multiplier)) == len(set(shift)) == 1:
        scale = (scale[0], int(multiplier[0]), int(shift[0]))
        for rows in (1, 2):
            call = own.Call("fully_connected_s8", (np.zeros((rows, 4), np.int8), np.zeros((n, 4), np.int8), *scale), keywords)
            assert_equal(emulator, NARROW, call)


ROOM = 2**30 - 1 - 4 * 255 * 128  # what SPEC section 7 leaves for a bias


@pytest.mark.parametrize("right", range(32))
def test_ties_and_ends(build, right):
    """Ties of either sign, their neighbours, and the largest sums, for every right shift; all offsets and clamps."""
    rng = np.random.default_rng(right)
    half = 1 << right  # with multiplier 2^30 and R = right, odd multiples of it are ties
    ties = (2 * np.arange(-130, 130) + 1) * half
    v = np.concatenate([ties, ties + 1, ties - 1, rng.integers(-ROOM, ROOM + 1, 100), [ROOM, -ROOM, 0, 1, -1]])
    v = v[np.abs(v) <= ROOM]
    for multiplier in (2**30, 2**31 - 1, 0x7FFF << 16, 1, 0):
        zero = int(rng.integers(-128, 128))
        requantised(build(), v, multiplier, -right, output_offset=zero)
        requantised(build(), v, multiplier, -right, output_offset=-128, act_min=-128, act_max=0)


def test_left_shifts(build):
    rng = np.random.default_rng(1)
    for left in range(11):
        room = (2**30 - 1 >> left) - 4 * 255 * 128
        v = np.concatenate([rng.integers(-room, room + 1, 60), rng.integers(-200, 200, 60), [room, -room]])
        requantised(build(), v, rng.integers(0, 2**31, len(v)), left)


def test_mixed_channels(build):
    """Channels that the quick requantisation does not cover take the others along."""
    rng = np.random.default_rng(2)
    v = rng.integers(-(10**6), 10**6, 40)
    for odd in (0, 1, -23, -31):
        shift = np.full(40, -8)
        shift[17] = odd
        requantised(build(), v // 8, rng.integers(2**30, 2**31, 40), shift, output_offset=5, act_min=-3, act_max=100)


@pytest.mark.parametrize("a_shift", (0, -1, -31))
@pytest.mark.parametrize("b_shift", (0, -1))
def test_add_of_all_pairs(build, a_shift, b_shift):
    a, b = (np.ascontiguousarray(g.ravel()) for g in np.meshgrid(*2 * [np.arange(-128, 128, dtype=np.int8)]))
    for left_shift, multiplier in ((16, 2**30), (20, 1700000001), (21, 2**31 - 1), (22, 2**31 - 1)):
        keywords = {"input1_offset": 128, "input1_mult": multiplier, "input1_shift": a_shift, "left_shift": left_shift}
        keywords |= {"input2_offset": 128 if a_shift == 0 else -127, "input2_mult": 1518500250, "input2_shift": b_shift}
        keywords |= {"out_offset": -20, "out_mult": 2**31 - 1, "out_shift": -left_shift, "act_min": -127}
        assert_equal(build(), NARROW, own.Call("add_s8", (a, b), keywords), left_shift % 4)


@pytest.mark.parametrize("n", (1, 3, 4, 5, 255, 256, 1021))
def test_long_pools(build, n):
    """More cells than half words hold the sum of, at the ends of the range."""
    for value in (-128, 127, None):
        x = np.random.default_rng(n).integers(-128, 128, (1, 1, n, 7), np.int8)
        x = x if value is None else np.full_like(x, value)
        for name in ("avgpool_s8", "maxpool_s8"):
            assert_equal(build(), NARROW, own.Call(name, (x,), {"kernel": (1, n)}), 1)


def test_generated_images(build):
    """Random networks on both caches: kernels and logits of the host, to the byte."""

    @settings(max_examples=25)
    @given(model=random_images.models(), seed=own.seeds)
    def run(model, seed: int) -> None:
        image = write(model)
        windows = random_images.inputs(model, 2, seed)
        host = Image(image)
        logits, kernels = host.run_batch(windows), host.kernels()
        for backend in (NARROW, WIDE):
            with build().open(image, backend=backend, count=False) as target:
                assert target.backend == backend
                assert target.run_batch(windows).tobytes() == logits.tobytes()
                found = target.kernels()
                assert found.keys() == kernels.keys()
                assert all(found[op].tobytes() == np.asarray(kernels[op]).tobytes() for op in kernels)

    run()


@pytest.mark.parametrize(
    "define, built", ((None, True), ("HTPW_CONFIG_NO_ARMV7EM_DSP", False), ("HTPW_CONFIG_CACHE_WIDE", True))
)
def test_switches(tmp_path, define, built):
    """HTPW_CONFIG_NO_ARMV7EM_DSP takes the backend out of the program; every setting compiles without a warning."""
    try:
        compiler = toolchain.find_compiler()
    except MissingToolError as error:
        pytest.skip(f"NOT RUN: {error}")
    flags = [*compiler.target(toolchain.cpu_named("cortex-m4")), *toolchain.COMPILE, "-O2", f"-I{toolchain.CSRC}"]
    flags += [f"-D{define}"] if define else []
    names = [str(source) for source in toolchain.sources()]
    assert subprocess.run([*compiler.command, *flags, "-fsyntax-only", *names], capture_output=True, text=True).stderr == ""
    table = tmp_path / "table.o"
    subprocess.run([*compiler.command, *flags, "-c", str(toolchain.CSRC / "htpw_backend.c"), "-o", str(table)], check=True)
    assert (b"htpw_backend_armv7em_dsp" in table.read_bytes()) == built
