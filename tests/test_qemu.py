"""QEMU boards: results equal the host's, instruction counts known by hand, and what is said when something goes wrong."""

import re
import struct
import zlib

import numpy as np
import pytest

from pyhtpw import _native
from pyhtpw.errors import ConfigError, MissingToolError
from pyhtpw.target import qemu, toolchain

TOOLS = toolchain.tools()
try:
    qemu.find_qemu()
except MissingToolError as error:
    pytest.skip(f"NOT RUN: {error}", allow_module_level=True)
if TOOLS["pyelftools"] is None or TOOLS["gcc"] is None:
    pytest.skip("NOT RUN: pyelftools or arm-none-eabi-gcc missing", allow_module_level=True)

# Functions whose behaviour is known to the instruction. Not in the library, so their names don't begin with htpw_.
PROBES = """
#include <stdint.h>
#define PROBE(name, code) \\
    void name(void); \\
    __attribute__((naked)) void name(void) { __asm__ volatile(".syntax unified\\n" code); }
PROBE(probe_loop, "1: subs r0, r0, #1\\n nop\\n bne 1b\\n bx lr")
PROBE(probe_forever, "1: b 1b")
PROBE(probe_load, "ldr r0, [r0]\\n bx lr")
PROBE(probe_store, "str r1, [r0]\\n bx lr")
#if __ARM_ARCH >= 7
PROBE(probe_predicated, "cmp r0, r0\\n itt ne\\n movne r0, #1\\n ldrne r0, [r0]\\n bx lr")
PROBE(probe_mixed, "push {r4, r5, lr}\\n ldrd r2, r3, [r0]\\n ldr r4, [r0]\\n ldr r5, [r0]\\n udiv r2, r2, r3\\n"
      "mul r0, r4, r5\\n pop {r4, r5, pc}")
#endif
#ifdef __ARM_FEATURE_MVE
PROBE(probe_vectors, "push {r4, lr}\\n dls lr, r1\\n 1: vldrb.8 q0, [r0], #16\\n vmladava.s8 r2, q0, q0\\n"
      "le lr, 1b\\n pop {r4, pc}")
PROBE(probe_masked, "movs r2, #3\\n vctp.8 r2\\n vpst\\n vldrbt.8 q0, [r0]\\n vaddv.s8 r0, q0\\n bx lr")
#endif
uint32_t probe_weigh(uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t);
uint32_t probe_weigh(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e, uint32_t f, uint32_t g) {
    return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g;
}
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Builds the library and the probes for a board."""
    probes = tmp_path_factory.mktemp("probes") / "probes.c"
    probes.write_text(PROBES)
    return lambda cpu: qemu.build(cpu, compiler="gcc", extra=[probes], roots=(*toolchain.LIBRARY, "probe_*"))


@pytest.fixture
def m4(build):
    """A batch for a Cortex-M4."""
    return qemu.Batch(build("cortex-m4"))


@pytest.mark.parametrize("cpu", qemu.BOARDS)
def test_every_board_gives_the_hosts_results(build, cpu):
    batch, rng = qemu.Batch(build(cpu)), np.random.default_rng(1)
    data = rng.integers(0, 256, 777).astype(np.uint8)
    address = batch.buffer(data, "data", shift=3)
    assert address % 16 == 3
    expected = [zlib.crc32(data)]
    batch.call("htpw_crc32", 0, address, data.size)
    args = [3, 1 << 31, -1, 5, 70000, 11, 13]
    expected.append(sum((i + 1) * value for i, value in enumerate(args)) & 0xFFFFFFFF)
    batch.call("probe_weigh", *args)
    for row in rng.integers(-(2**31), 2**31, (50, 2)):
        value, multiplier, shift = int(row[0]), int(row[1]), int(row[0] % 62) - 31
        expected.append(_native.lib.htpw_requantise(value, multiplier, shift) & 0xFFFFFFFF)
        batch.call("htpw_requantise", value, multiplier, shift)
    assert [outcome.result & 0xFFFFFFFF for outcome in batch.run()] == expected
    assert batch.read(address) == data.tobytes()


def test_later_calls_see_what_earlier_ones_wrote(m4):
    word = m4.buffer(4, "word")
    m4.call("probe_store", word, 1234567)
    m4.call("probe_load", word)
    assert m4.run()[1].result == 1234567
    assert struct.unpack("<I", m4.read(word)) == (1234567,)


# Counts

@pytest.mark.parametrize("cpu", qemu.BOARDS)
def test_counts_are_exact(build, cpu):
    batch = qemu.Batch(build(cpu))
    for n in (1, 2, 1000, 100000):
        batch.call("probe_loop", n)
    found = batch.run("log")
    assert [outcome.instructions for outcome in found] == [3 * n + 1 for n in (1, 2, 1000, 100000)]
    assert found[2].classes == {"other": 2000, "branch": 1001}
    assert found[2].cycles == 3001 + 2 * (999 + 1), "a taken branch costs 2 more, the last one is not taken"


def test_an_instruction_whose_condition_fails_counts(m4):
    m4.call("probe_predicated", 7)
    (outcome,) = m4.run("log")
    assert outcome.result == 7 and outcome.instructions == 5
    assert outcome.classes == {"other": 2, "it": 1, "load": 1, "branch": 1}


def test_classes_and_cycles(m4):
    m4.call("probe_mixed", m4.buffer(struct.pack("<2I", 42, 6), "pair"))
    (outcome,) = m4.run("log")
    assert outcome.result == 42 * 42
    assert outcome.classes == {"store": 1, "load": 4, "div": 1, "mac": 1}
    # push of three 4, ldrd 3, two neighbouring loads 2 + 1, division 6, multiplication 1, pop of three and its branch 4 + 2
    assert outcome.cycles == 4 + 3 + 3 + 6 + 1 + 4 + 2


def test_helium_is_counted_and_works(build):
    batch = qemu.Batch(build("cortex-m55"))
    data = batch.buffer(np.arange(64, dtype=np.int8), "data")
    batch.call("probe_vectors", data, 4)
    batch.call("probe_masked", data + 5)
    loop, masked = batch.run("log")
    assert loop.instructions == 2 + 4 * 3 + 1
    assert loop.classes == {"loop_start": 1, "store": 1, "mve_load": 4, "mve_mac": 4, "loop_end": 4, "load": 1}
    assert masked.result == 5 + 6 + 7 and masked.classes["mve_pred"] == 2


@pytest.mark.parametrize("cpu", ["cortex-m0", "cortex-m4", "cortex-m55"])
def test_the_clock_agrees_with_the_log(build, cpu):
    counts = {}
    for way in ("log", "clock"):
        batch = qemu.Batch(build(cpu))
        batch.call("htpw_crc32", 0, batch.buffer(bytes(range(256)) * 40), 10240)
        batch.call("probe_loop", 5)
        counts[way] = [outcome.instructions for outcome in batch.run(way)]
    tick = 1000 / qemu.BOARDS[cpu].mhz
    assert all(abs(exact - coarse) <= 2 * tick for exact, coarse in zip(counts["log"], counts["clock"], strict=True)), counts


def test_counts_equal_those_of_the_other_emulator(build):
    if TOOLS["unicorn"] is None:
        pytest.skip("NOT RUN: unicorn is missing")
    from pyhtpw.target.emulator import Emulator

    data = bytes(range(200))
    batch = qemu.Batch(build("cortex-m3"))
    batch.call("htpw_crc32", 0, batch.buffer(data), len(data))
    with Emulator("cortex-m3", compiler="gcc") as emulator:
        address = emulator.alloc(len(data))
        emulator.write(address, data)
        emulator.call("htpw_crc32", 0, address, len(data), count=True)
        assert batch.run("log")[0].instructions == emulator.instructions


@pytest.mark.parametrize(
    "mnemonic, kind",
    [("ldrb.w", "load"), ("bic.w", "other"), ("bls.n", "branch"), ("ldmia.w", "load"), ("smlad", "mac"), ("lsls", "other"),
     ("sxtb16", "simd_unpack"), ("cbnz", "branch"), ("ittt", "it"), ("letp", "loop_end"), ("vctp.32", "mve_pred"),
     ("vstrbt.8", "mve_store"), ("vqrdmulh.s32", "mve_mac"), ("vshl.s32", "mve_other"), ("vpush", "store"), ("bfi", "other")],
)
def test_classes_of_instructions(mnemonic, kind):
    assert qemu.classify(mnemonic) == kind


# What goes wrong

def test_a_fault_is_reported_with_its_place(build):
    for cpu in ("cortex-m3", "cortex-m33", "cortex-m55"):
        batch = qemu.Batch(build(cpu))
        batch.call("htpw_requantise", 1, 1, 0)
        batch.call("probe_load", 0xF0000000)
        with pytest.raises(qemu.BoardError, match=r"probe_load \(call 1\): HardFault at pc .*probe_load\+0x0.*") as error:
            batch.run()
        assert error.value.kind == "fault" and re.search(r"bfar 0xf0000000", str(error.value))


def test_unaligned_words_fault_where_the_core_has_none(build):
    batch = qemu.Batch(build("cortex-m0"))
    batch.call("probe_load", batch.buffer(8, "word") + 1)
    with pytest.raises(qemu.BoardError, match="probe_load"):
        batch.run()


@pytest.mark.parametrize("offset, side", [(-4, "before"), (8, "after")])
def test_a_changed_guard_names_its_buffer(m4, offset, side):
    m4.call("probe_store", m4.buffer(8, "victim") + offset, 1)
    with pytest.raises(qemu.BoardError, match=f"wrote {side} buffer victim") as error:
        m4.run()
    assert error.value.kind == "guard"


def test_a_batch_that_does_not_end_is_stopped(m4):
    m4.call("probe_forever")
    with pytest.raises(qemu.BoardError, match="has not ended after 1 seconds") as error:
        m4.run(seconds=1)
    assert error.value.kind == "limit"


def test_wrong_arguments(m4, build):
    with pytest.raises(ConfigError, match="no symbol 'nothing'"):
        m4.call("nothing")
    with pytest.raises(ConfigError, match="does not fit 32 bits"):
        m4.call("probe_loop", 1 << 32)
    with pytest.raises(ConfigError, match="at most 14"):
        m4.call("probe_loop", *range(15))
    with pytest.raises(ConfigError, match="more batches"):
        m4.buffer(9 << 20)
    with pytest.raises(ConfigError, match="unknown way of counting"):
        m4.run("guess")
    with pytest.raises(ConfigError, match="no board"):
        qemu.build("cortex-a9")
    m4.run()
    with pytest.raises(ConfigError, match="runs once"):
        m4.run()


def test_missing_qemu_says_what_to_type(m4, monkeypatch):
    monkeypatch.setenv("HTPW_QEMU", "no-such-emulator")
    m4.call("probe_loop", 1)
    with pytest.raises(MissingToolError, match="apt-get install qemu-system-arm"):
        m4.run()


@pytest.mark.parametrize(("cpu", "backend"), [("cortex-m55", "armv81m_mve"), ("cortex-m55-nomve", "armv7em_dsp")])
def test_cortex_m55_has_the_home_of_the_other_cores(cpu, backend):
    """`pyhtpw.target.Emulator` takes the ids that only QEMU has; kernels and scalars equal the host's."""
    from pyhtpw import kernels
    from pyhtpw.target import Emulator

    rng = np.random.default_rng(7)
    x, w = rng.integers(-128, 128, (1, 1, 5, 19), np.int8), rng.integers(-127, 128, (7, 19), np.int8)
    bias, scale = np.arange(-3, 4, dtype=np.int32) * 500, (np.full(7, 1 << 30, np.int32), np.full(7, -8, np.int32))
    with Emulator(cpu) as board:
        assert board.kernels.executor.table.name == backend
        expected = kernels.conv1x1_s8(x, w, bias, *scale, input_offset=9, backend="portable")
        for function in (board.kernels.conv1x1_s8, board.kernels.conv1x1_cached_s8):
            assert np.array_equal(function(x, w, bias, *scale, input_offset=9), expected)
        values = np.array([-5, 0, 77, 2**20], np.int32)
        assert np.array_equal(board.kernels.requantise(values, 1 << 30, -3), kernels.requantise(values, 1 << 30, -3))
