"""The third telling: the library as Cortex-M code, under emulation, against the same library on the host, to the byte."""

import struct
import zlib

import numpy as np
import pytest
import random_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyhtpw import _native
from pyhtpw.errors import ConfigError, ImageError, ToolError
from pyhtpw.image.integer import (
    AddScalars,
    Generated,
    Generator,
    IntegerModel,
    Matrix,
    Op,
    Requant,
    Stored,
    Tensor,
    Tiled,
    Window,
)
from pyhtpw.image.reader import parse
from pyhtpw.image.writer import write
from pyhtpw.model import Image
from pyhtpw.target import toolchain
from pyhtpw.target.emulator import EmulationError, Emulator

TOOLS = toolchain.tools()
if TOOLS["unicorn"] is None or TOOLS["pyelftools"] is None or not (TOOLS["gcc"] or TOOLS["clang"]):
    missing = [name for name, version in TOOLS.items() if version is None]
    pytest.skip(f"NOT RUN: {', '.join(missing)} missing", allow_module_level=True)

# Functions whose behaviour is known to the instruction. Not in the library, so their names don't begin with htpw_.
PROBES = """
#include <stdint.h>
#define PROBE(name, code) \\
    void name(void); \\
    __attribute__((naked)) void name(void) { __asm__ volatile(".syntax unified\\n" code); }
PROBE(probe_loop, "1: subs r0, r0, #1\\n nop\\n bne 1b\\n bx lr")
PROBE(probe_forever, "1: b 1b")
PROBE(probe_clobber, "movs r7, #0\\n bx lr")
PROBE(probe_load, "ldr r0, [r0]\\n bx lr")
PROBE(probe_stack, "sub sp, #400\\n str r0, [sp]\\n add sp, #400\\n bx lr")
PROBE(probe_push, "1: push {r0}\\n b 1b")
PROBE(probe_undefined, "udf #1")
#if __ARM_ARCH >= 7
PROBE(probe_predicated, "cmp r0, r0\\n it ne\\n movne r0, #1\\n bx lr")
PROBE(probe_wide, "1: add.w r1, r1, #1\\n subs r0, r0, #1\\n bne.w 1b\\n bx lr")
#endif
uint32_t probe_weigh(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e, uint32_t f, uint32_t g);
uint32_t probe_weigh(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e, uint32_t f, uint32_t g) {
    return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g;
}
"""

UNICORN = [name for name, cpu in toolchain.CPUS.items() if cpu.unicorn]  # the others run under QEMU (test_qemu.py)


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    """The C file of the functions above."""
    path = tmp_path_factory.mktemp("probes") / "probes.c"
    path.write_text(PROBES)
    return path


@pytest.fixture(scope="module")
def make(probes):
    """Makes the emulator of a core and compiler, each once."""
    made = {}

    def get(cpu: str = "cortex-m4", compiler: str = "auto") -> Emulator:
        if compiler != "auto" and TOOLS[compiler] is None:
            pytest.skip(f"NOT RUN: {compiler} is missing")
        if (cpu, compiler) not in made:
            roots = (*toolchain.LIBRARY, "probe_*", "memset")
            made[cpu, compiler] = Emulator(cpu, compiler=compiler, extra=[probes], roots=roots)
        return made[cpu, compiler]

    yield get
    for emulator in made.values():
        emulator.close()


@pytest.fixture
def m4(make):
    """A Cortex-M4."""
    return make()


def tiny_model(seed: int = 1) -> IntegerModel:
    """An image with every operator and two generated pointwise kernels whose last tile is cut off."""
    rng = np.random.default_rng(seed)

    def requant(channels: int, shift: int) -> Requant:
        shifts = rng.integers(shift, shift + 3, channels)
        return Requant(rng.integers(16384, 32768, channels) << 16, shifts, rng.integers(-900, 900, channels))

    def int8(*shape: int) -> np.ndarray:
        return rng.integers(-128, 128, shape).astype(np.int8)

    def tiled() -> Generated:
        return Generated(int8(3, 4) // 16, (7, 6))

    strided, kept = Window((1, 3), stride=(1, 2), padding=(0, 1)), Window((1, 3), padding=(0, 1))
    half, third = Window((1, 2), (1, 2)), Window((1, 3), (1, 2))
    add = AddScalars(20, (20000 << 16, 17000 << 16, 30000 << 16), (-1, -2, -19))
    ops = (
        Op("conv", "conv", (0,), Tensor(1, 10, 6, -3), -128, 127, Stored(int8(6, 1, 3, 3)), requant(6, -9), strided),
        Op("depthwise", "depthwise", (1,), Tensor(1, 10, 6, 5), -128, 127, Stored(int8(1, 3, 6)), requant(6, -9), kept),
        Op("pointwise", "conv1x1", (2,), Tensor(1, 10, 7, 2), 2, 127, tiled(), requant(7, -9)),
        Op("pointwise2", "conv1x1", (2,), Tensor(1, 10, 7, -1), -128, 127, tiled(), requant(7, -9)),
        Op("add", "add", (3, 4), Tensor(1, 10, 7, 0), add=add),
        Op("maxpool", "maxpool", (5,), Tensor(1, 5, 7, 0), window=half),
        Op("avgpool", "avgpool", (6,), Tensor(1, 2, 7, 0), window=third),
        Op("fc", "fc", (7,), Tensor(1, 1, 3, 4), weights=Stored(int8(3, 14)), requant=requant(3, -10)),
    )
    generator = Generator(4, (Matrix(int8(5, 4), rng.integers(-400, 400, 5), 30000 << 16, -7),))
    heads = (Tiled(Matrix(int8(16, 5), np.zeros(16, np.int64), 25000 << 16, -6)),)
    return IntegerModel(Tensor(1, 20, 3, 7), ops, generators=(generator,), heads=heads)


@pytest.fixture(scope="module")
def image() -> bytes:
    """A small valid image."""
    return write(tiny_model())


@pytest.fixture(scope="module")
def windows(image) -> np.ndarray:
    """Int8 windows for it, extremes among them."""
    size = Image(image).plan().input
    noise = np.random.default_rng(2).integers(-128, 128, (5, size)).astype(np.int8)
    return np.concatenate([noise, np.full((1, size), -128, np.int8), np.full((1, size), 127, np.int8)])


# Functions

EDGES = [0, 1, -1, 2, 127, -128, 32767, -32768, 1 << 22, (1 << 30) - 1, -(1 << 30), (1 << 31) - 1, -(1 << 31)]


@pytest.mark.parametrize("cpu", ["cortex-m0", "cortex-m4"])
def test_requantise_equals_the_host(make, cpu):
    emulator = make(cpu)
    for value in EDGES:
        for multiplier in (0, 1, 16384 << 16, 32767 << 16, (1 << 31) - 1, -(1 << 31)):
            for shift in (-31, -9, -1, 0, 5, 30):
                got = emulator.call("htpw_requantise", value, multiplier, shift)
                assert got == _native.lib.htpw_requantise(value, multiplier, shift), (value, multiplier, shift)


def test_arguments_go_to_registers_then_stack(make):
    for cpu in UNICORN:
        args = [3, 1 << 31, -1, 5, 70000, 11, 13]
        expected = sum((i + 1) * value for i, value in enumerate(args)) & 0xFFFFFFFF
        assert make(cpu).call("probe_weigh", *args) & 0xFFFFFFFF == expected


def test_memory_is_what_was_written(m4):
    data = np.random.default_rng(3).integers(0, 256, 5000).astype(np.uint8)
    address = m4.alloc(5000, align=64, name="data")
    assert address % 64 == 0 and m4.read(address, 5000) == bytes(5000)
    m4.write(address, data)
    assert m4.call("htpw_crc32", 0, address, 5000) & 0xFFFFFFFF == zlib.crc32(data)
    m4.free(address)
    with pytest.raises(EmulationError) as error:
        m4.call("htpw_crc32", 0, address, 5000)
    assert error.value.kind == "fault"


def test_freed_memory_is_used_again(m4):
    kept, freed = m4.alloc(100), m4.alloc(9000)
    m4.free(freed)
    assert m4.alloc(9000) == freed and m4.alloc(9000) > freed > kept


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda e: e.call("htpw_nothing"), "no function 'htpw_nothing'"),
        (lambda e: e.call("htpw_requantise", 1 << 32), "does not fit 32 bits"),
        (lambda e: e.call("htpw_requantise", 1.5), "argument 0 is 1.5"),
        (lambda e: e.call("htpw_requantise", *range(65)), "at most 64"),
        (lambda e: e.alloc(0), "need a size"),
        (lambda e: e.alloc(4, align=3), "a power of two"),
        (lambda e: e.write(e.alloc(4), bytes(5)), "do not fit the buffer"),
        (lambda e: e.write(0x50000000, b"x"), "not all in the emulated memory"),
        (lambda e: e.read(0x50000000, 1), "not all in the emulated memory"),
        (lambda e: e.free(0x50000000), "no buffer at 0x50000000"),
        (lambda e: e.open(b"", schedule="never"), "unknown schedule"),
        (lambda e: Emulator("cortex-m99"), "unknown core"),
    ],
)
def test_wrong_arguments(m4, call, message):
    with pytest.raises(ConfigError, match=message):
        call(m4)


# Counting and stack


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_instruction_counts_are_exact(make, compiler):
    emulator = make("cortex-m4", compiler)
    for n in (1, 2, 1000, 200_000):
        emulator.call("probe_loop", n, count=True)
        assert emulator.instructions == 3 * n + 1
        emulator.call("probe_wide", n, count=True)
        assert emulator.instructions == 3 * n + 1
    emulator.call("probe_loop", 5)
    assert emulator.instructions is None


@pytest.mark.skipif(TOOLS["numba"] is None, reason="NOT RUN: numba is missing")
def test_failed_predicates_are_not_counted(m4):
    assert m4.call("probe_predicated", 5, count=True) == 5
    assert m4.instructions == 3  # cmp, it, bx


def test_counts_without_numba(probes, tmp_path, monkeypatch):
    (tmp_path / "numba.py").write_text("raise ImportError('hidden by a test')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Emulator("cortex-m4", extra=[probes], roots=("probe_*", "htpw_crc32")) as emulator:
        for symbol in ("probe_loop", "probe_wide"):
            emulator.call(symbol, 500, count=True)
            assert emulator.instructions == 1501
        emulator.call("probe_predicated", 5, count=True)
        assert emulator.instructions == 4  # by block: the failed one too


def test_stack_use_is_exact(m4):
    m4.call("probe_stack", 1)
    assert m4.stack_bytes == 400
    m4.call("probe_loop", 1)
    assert m4.stack_bytes == 0


# Misbehaviour


def test_a_write_past_a_buffer_is_detected_and_named(m4):
    source, target = m4.alloc(40, name="source"), m4.alloc(33, align=1, name="victim")
    m4.write(source, bytes(range(40)))
    m4.call("htpw_clamp_s8_ref", 33, -128, 127, source, target)
    with pytest.raises(EmulationError, match=r"after buffer victim .* at address") as error:
        m4.call("htpw_clamp_s8_ref", 34, -128, 127, source, target)
    assert error.value.kind == "guard"
    with pytest.raises(EmulationError, match="before buffer victim"):
        m4.call("htpw_clamp_s8_ref", 5, -128, 127, source, target - 1)
    m4.call("htpw_clamp_s8_ref", 33, -128, 127, source, target)  # and the guards are whole again


@pytest.mark.parametrize("cpu", ["cortex-m0", "cortex-m4", "cortex-m33"])
def test_faults_name_the_place(make, cpu):
    emulator = make(cpu)
    with pytest.raises(EmulationError, match=r"htpw_crc32: .*address 0x0, pc 0x\w+ \(htpw_crc32\+0x\w+\), lr") as error:
        emulator.call("htpw_crc32", 0, 0, 4)
    assert error.value.kind == "fault"
    with pytest.raises(EmulationError, match=r"probe_undefined\+0x0"):
        emulator.call("probe_undefined")
    with pytest.raises(EmulationError, match=r"probe_push\+0x0"):
        emulator.call("probe_push")
    constant = emulator.alloc(16, read_only=True)
    for address in (constant, emulator.elf.symbols["htpw_run"].address):
        with pytest.raises(EmulationError, match=r"memset: .*address") as error:
            emulator.call("memset", address, 0, 4)
        assert error.value.kind == "fault"
    assert emulator.call("htpw_requantise", 1 << 20, 1 << 30, 0) == 1 << 19  # it goes on after faults


def test_calls_are_bounded(m4):
    with pytest.raises(EmulationError, match=r"after 1000 instructions, pc .*probe_forever") as error:
        m4.call("probe_forever", limit=1000)
    assert error.value.kind == "limit"
    with pytest.raises(EmulationError, match=r"after 0.2 seconds, pc .*probe_forever"):
        m4.call("probe_forever", seconds=0.2)
    m4.call("probe_loop", 300, limit=100_000)


def test_registers_that_a_callee_must_preserve(m4):
    with pytest.raises(EmulationError, match="did not preserve r7") as error:
        m4.call("probe_clobber")
    assert error.value.kind == "registers"


@pytest.mark.skipif(TOOLS["numba"] is None, reason="NOT RUN: numba is missing")
def test_misaligned_access_is_an_error_on_cortex_m0(make):
    for cpu in ("cortex-m0", "cortex-m4"):
        address = make(cpu).alloc(8)
        make(cpu).write(address, bytes(range(8)))
        assert make(cpu).call("probe_load", address) == 0x03020100
    assert make("cortex-m4").call("probe_load", address + 1) == 0x04030201
    with pytest.raises(EmulationError, match="probe_load: Unhandled CPU exception") as error:
        make("cortex-m0").call("probe_load", make("cortex-m0").alloc(8) + 1)
    assert error.value.kind == "fault"


def test_a_worker_that_dies_is_reported(image):
    emulator = Emulator("cortex-m4")
    target = emulator.open(image)
    emulator._worker.kill()
    for _ in range(2):
        with pytest.raises(EmulationError, match="process ended with status -9 during 'alloc'") as error:
            emulator.alloc(4)
        assert error.value.kind == "died"
    target.close()
    emulator.close()


def test_a_closed_emulator_says_so(image):
    with Emulator("cortex-m4") as emulator:
        emulator.open(image)
    with pytest.raises(EmulationError, match="was closed"):
        emulator.alloc(4)


def test_a_missing_emulator_says_what_to_type(probes, tmp_path, monkeypatch):
    (tmp_path / "unicorn.py").write_text("raise ImportError('hidden by a test')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Emulator("cortex-m4", extra=[probes]) as emulator, pytest.raises(ToolError, match="pip install unicorn"):
        emulator.call("htpw_requantise", 1, 1, 0)


# Images

BUILDS = [*((cpu, "gcc") for cpu in UNICORN), ("cortex-m0", "clang"), ("cortex-m4", "clang")]


@pytest.mark.parametrize("schedule", ["boot", "lazy"])
@pytest.mark.parametrize("cpu, compiler", BUILDS)
def test_kernels_and_logits_equal_the_host(make, image, windows, cpu, compiler, schedule):
    host = Image(image)
    expected = host.run_batch(windows)
    assert len(np.unique(expected)) > 5, "the test image says nothing"
    with make(cpu, compiler).open(image, "tiny", schedule) as target:
        assert target.plan == host.plan(target.backend)
        assert target.cached == host.cached
        assert target.run_batch(windows).tobytes() == expected.tobytes()
        kernels = host.kernels()
        assert len(kernels) == 2 and all(len(np.unique(kernel)) > 10 for kernel in kernels.values())
        assert {op: kernel.tobytes() for op, kernel in target.kernels().items()} == {
            op: kernel.tobytes() for op, kernel in kernels.items()
        }
        assert 0 < target.stack_bytes < 4096


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=random_images.models(), seed=st.integers(0, 99), cpu=st.sampled_from(("cortex-m0", "cortex-m4")))
def test_any_network_equals_the_host(make, model, seed, cpu):
    host, windows = Image(write(model)), random_images.inputs(model, 2, seed)
    with make(cpu).open(host.data, count=False) as target:
        assert target.plan == host.plan(target.backend) and target.cached == host.cached
        assert target.run_batch(windows).tobytes() == host.run_batch(windows).tobytes()
        kernels = target.kernels()
        assert all(kernels[op].tobytes() == kernel.tobytes() for op, kernel in host.kernels().items())


def test_what_is_counted(m4, image, windows):
    with m4.open(image) as boot, m4.open(image, schedule="lazy") as lazy:
        assert boot.open_instructions == lazy.open_instructions > 1000
        assert boot.synthesis_instructions > 3 * lazy.synthesis_instructions
        assert boot.inference_instructions is None
        boot.run_batch(windows)
        lazy.run(windows[1])
        assert lazy.inference_instructions is None, "the run that synthesises is not an inference"
        lazy.run(windows[0])
        assert lazy.inference_instructions == boot.inference_instructions > 1000
        assert boot.count_inference(windows[0]) == boot.inference_instructions
    with m4.open(image, schedule="lazy", count=False) as quiet:
        quiet.run(windows[0])
        quiet.run(windows[0])
        assert quiet.open_instructions is None and quiet.inference_instructions is None
        assert quiet.count_inference(windows[0]) == boot.inference_instructions


def test_nothing_of_the_generator_is_read_after_boot(m4, image, windows):
    expected = Image(image).run_batch(windows)
    sections = parse(image).sections
    with m4.open(image) as target:
        for tag in ("GENR", "HEAD", "CODE"):
            offset, length = sections[tag]
            m4.write(target.image_address + offset, b"\xff" * length)
        assert target.run_batch(windows).tobytes() == expected.tobytes()


def test_windows_are_checked(m4, image, windows):
    with m4.open(image, "tiny") as target:
        with pytest.raises(ImageError, match="tiny: windows must be int8, not float64"):
            target.run(windows[0].astype(float))
        with pytest.raises(ImageError, match="tiny: a window has 59 samples, the network takes 60"):
            target.run(windows[0][:-1])


def sealed(data: bytes) -> bytes:
    """The image with its CRCs made right, so that damage reaches the checks behind them."""
    out = bytearray(data)
    count = out[6]
    for i in range(count):
        entry = 16 + 16 * i
        offset, length = struct.unpack_from("<II", out, entry + 4)
        struct.pack_into("<I", out, entry + 12, zlib.crc32(out[offset : offset + length]))
    struct.pack_into("<I", out, 12, zlib.crc32(out[:12] + out[16 : 16 + 16 * count]))
    return bytes(out)


def test_damaged_images_raise_the_same_error_as_on_the_host(m4, image):
    rng = np.random.default_rng(4)
    damaged = [b"", image[:8], image[:-16], b"XXXX" + image[4:], image[:40] + b"\x01" + image[41:], image + bytes(16)]
    for _ in range(150):
        out = bytearray(image)
        out[int(rng.integers(16 + 16 * image[6], len(out)))] = int(rng.integers(0, 256))
        damaged.append(sealed(bytes(out)))
    seen = set()
    model = _native.ffi.new("struct htpw_model *")
    for data in damaged:
        buffer = _native.aligned(len(data))
        buffer[: len(data)] = np.frombuffer(data, np.uint8)
        code = _native.lib.htpw_model_open(model, _native.ffi.cast("void *", buffer.ctypes.data), len(data))
        seen.add(code)
        if code == 0:
            m4.open(data, count=False).close()
            continue
        with pytest.raises(ImageError) as error:
            m4.open(data, "bad", count=False)
        assert type(error.value) is _native.ERRORS[code] and error.value.code == code
        assert str(error.value) == f"bad: {_native.text(code)}"
    assert len(seen) > 6, seen
