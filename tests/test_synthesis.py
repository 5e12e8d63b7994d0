"""Synthesis of the backends under emulation: generated kernels against the host's, byte for byte, in memory of the planned size.

Shapes go around the widths that the fast routines take (16 columns, 8 codes, pairs and fours of tiles, groups of 4 and 16
weights), scales from those that spread the weights over int8 to those that saturate, vanish, or need the general path.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyhtpw.errors import MissingToolError
from pyhtpw.image.integer import Generated, Generator, IntegerModel, Matrix, Op, Requant, Stored, Tensor, Tiled, Window
from pyhtpw.image.writer import write
from pyhtpw.model import Image
from pyhtpw.target import qemu, toolchain
from pyhtpw.target.board_kernels import tables
from pyhtpw.target.emulator import Emulator

ROOM = (1 << 30) - 1  # |sum| << left shift, docs/SPEC.md 7
DSP = ("armv7em_dsp", "armv7em_dsp_wide")
BUILDS = (("cortex-m4", "-O3"), ("cortex-m4", "-O0"), ("cortex-m7", "-Os"), ("cortex-m33", "-O2"))


def integers(rng: np.random.Generator, shape, low: int, high: int) -> np.ndarray:
    """Of a kind: uniform, only the ends, mostly small."""
    kind = rng.integers(4)
    if kind == 0:
        return rng.choice([low, high], shape)
    if kind == 1:
        return np.clip(rng.normal(0, (high - low) / 16, shape).round(), low, high).astype(np.int64)
    return rng.integers(low, high + 1, shape)


@st.composite
def layers(draw, rng: np.random.Generator, rows: int, cols: int, x_max: int, is_head: bool) -> Matrix:
    """Scales near what makes use of int8, now and then any."""
    bits = draw(st.sampled_from((8, 8, 6, 4)))
    weights = integers(rng, (rows, cols), -(1 << bits - 1), (1 << bits - 1) - 1)
    usual = round(np.log2(max(1, np.abs(weights).mean()) * np.sqrt(cols) * x_max / 200))
    shift = -usual + draw(st.sampled_from((-2, -1, 0, 0, 0, 1, 2))) if draw(st.integers(0, 9)) else draw(st.integers(-31, 3))
    shift = max(-31, min(shift, 3))
    multiplier = draw(st.sampled_from((16384, 32767, 23170, 18147, 16385, 30001, 16383, 1, 0)))
    bias = np.zeros(rows, np.int64)
    if not is_head and draw(st.booleans()):
        room = (ROOM >> max(shift, 0)) - cols * 128 * 128
        limit = min(room, draw(st.sampled_from((100, 3000, 30000, ROOM))))
        bias = integers(rng, rows, -limit, limit)
    return Matrix(weights, bias, multiplier << 16, shift, bits)


@st.composite
def models(draw) -> IntegerModel:
    """A network with one generated kernel, and one of another shape or kind with the same head."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    code_bits, dz = draw(st.sampled_from((4, 4, 4, 6, 8))), draw(st.sampled_from((1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 15, 16, 17)))
    generator, cols, x_max, narrow = [], dz, 1 << code_bits - 1, draw(st.integers(0, 5)) == 0
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        rows = draw(st.sampled_from((1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 12, 15, 16, 16, 17)))
        generator.append(draw(layers(rng, rows, cols, x_max, False)))
        cols, x_max = rows, 64
    tile = draw(st.sampled_from((1, 3, 4, 5, 8, 16, 16, 20, 32, 32, 48, 64)))
    head = draw(layers(rng, tile, cols, x_max, True))
    in_c = tile * draw(st.integers(1, 3)) if draw(st.booleans()) else draw(st.sampled_from((1, 4, 7, 16, 33, 40, 64)))
    out_c = draw(st.sampled_from((1, 2, 3, 4, 5, 7, 8, 11)))

    def tiled(*shape: int) -> Generated:
        tiles = -(-int(np.prod(shape)) // tile)
        codes = integers(rng, (tiles, dz), -(1 << code_bits - 1), (1 << code_bits - 1) - 1)
        return Generated(codes, shape, bits=code_bits, narrow=narrow)

    def requant(channels: int) -> Requant:
        return Requant(np.full(1, 20000 << 16), np.full(1, -9), np.zeros(channels, np.int64))

    ops = (
        Op("pointwise", "conv1x1", (0,), Tensor(1, 1, out_c, 0), weights=tiled(out_c, in_c), requant=requant(out_c)),
        Op("depthwise", "depthwise", (0,), Tensor(1, 1, in_c, 0), weights=tiled(1, 4, in_c), requant=requant(in_c), window=Window((1, 4), padding=(0, 1))),
        Op("fc", "fc", (1,), Tensor(1, 1, 1, 0), weights=Stored(np.ones((1, out_c), np.int8)), requant=requant(1)),
    )
    return IntegerModel(Tensor(1, 1, in_c, 0), ops, generators=(Generator(dz, tuple(generator)),), heads=(Tiled(head),))


def edges() -> list[IntegerModel]:
    """Sums at the ends of what the fast routines take, beyond them, at ties and beside them."""
    made = []
    for k, (bias, right) in enumerate((b, r) for r in (2, 8, 11, 12, 14, 18, 20) for b in (0, 24575, 24576, 30000, 32767, 1 << 20, (41 << r) - 2, 41 << r)):
        codes = np.array([[-8] * 8, [7] * 8, [-8, 7] * 4, [1, 0] * 4] * 16, np.int64)
        w = np.repeat(np.array([[-128], [127], [-1], [64], [1], [2], [-2], [0]]), 8, 1)
        sign = np.array([1, -1, 1, 1, -1, 1, 1, 1])
        hidden = Matrix(w, sign * bias, (16384, 32767)[k % 2] << 16, -right)
        rows = np.repeat(np.array([-128, 127, -127, 1, -1, 3, -3, 64] * 2)[:, None], 8, 1)
        head = Tiled(Matrix(rows, np.zeros(16, np.int64), (16384, 32767, 20000)[k % 3] << 16, -(1 + k % 13)))
        requant = Requant(np.full(1, 20000), np.full(1, -9), np.zeros(64, np.int64))
        pointwise = Op("pointwise", "conv1x1", (0,), Tensor(1, 1, 64, 0), weights=Generated(codes, (64, 16), narrow=k % 4 == 3), requant=requant)
        fc = Op("fc", "fc", (1,), Tensor(1, 1, 1, 0), weights=Stored(np.ones((1, 64), np.int8)), requant=Requant(*(a[:1] for a in (requant.multipliers, requant.shifts, requant.biases))))
        made.append(IntegerModel(Tensor(1, 1, 16, 0), (pointwise, fc), generators=(Generator(8, (hidden,)),), heads=(head,)))
    return made


@pytest.fixture(scope="module")
def build():
    """Makes the emulator of a core and optimisation, each once."""
    made = {}

    def get(cpu: str, opt: str) -> Emulator:
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


def assert_dsp(emulator: Emulator, model: IntegerModel) -> None:
    """Both backends make the kernels of the host."""
    image = write(model)
    expected = Image(image).kernels()
    for backend in DSP:
        with emulator.open(image, backend=backend, count=False) as target:
            found = target.kernels()
            for op in expected:
                got, want = found[op], np.asarray(expected[op]).reshape(-1)
                assert got.tobytes() == want.tobytes(), f"{backend} {op}: {np.flatnonzero(got != want)[:9]} of {want.size}"


def test_dsp_edges(build):
    for model in edges():
        assert_dsp(build("cortex-m4", "-O3"), model)


@pytest.mark.parametrize("cpu, opt", BUILDS)
def test_dsp_equals_the_host(build, cpu, opt):
    @settings(max_examples=120 if (cpu, opt) == BUILDS[0] else 30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(model=models())
    def run(model: IntegerModel) -> None:
        assert_dsp(build(cpu, opt), model)

    run()


@pytest.fixture(scope="module")
def m55():
    """The library for Cortex-M55."""
    try:
        qemu.find_qemu()
        return qemu.build("cortex-m55", compiler="gcc", roots=(*toolchain.LIBRARY, "memcpy"))
    except MissingToolError as error:
        pytest.skip(f"NOT RUN: {error}")


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(group=st.lists(models(), min_size=15, max_size=25))
def test_mve_equals_the_host(m55, group):
    assert_mve(m55, group)


def test_mve_edges(m55):
    assert_mve(m55, edges())


def assert_mve(m55: toolchain.Elf, group: list[IntegerModel]) -> None:
    """The kernels of all models on one board, in arenas and caches of exactly the planned size."""
    batch, expected = qemu.Batch(m55), []
    number = tables(m55)["armv81m_mve"].id
    for model in group:
        host = Image(write(model))
        plan = host.plan("armv81m_mve")
        opened, context = batch.buffer(4096, "model"), batch.buffer(512, "context")
        arena, cache = (batch.buffer(size, name, shift=4) for size, name in ((plan.arena, "arena"), (plan.cache, "cache")))
        batch.call("htpw_model_open", opened, batch.buffer(host.data, "image", align=4), len(host.data))
        batch.call("htpw_bind", context, opened, number, arena, plan.arena, cache, plan.cache, 0)
        for i, want in enumerate(host.kernels().values()):
            expected.append((batch.buffer(np.asarray(want).size, "kernel"), np.asarray(want)))
            batch.call("htpw_kernel_read", context, i, expected[-1][0], expected[-1][1].size)
    assert {outcome.result for outcome in batch.run()} == {0}
    for address, want in expected:
        assert batch.read(address) == want.tobytes()
