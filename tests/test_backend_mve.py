"""The Helium backend on a QEMU Cortex-M55: golden vectors, random calls against the portable kernels, memory, networks."""

import numpy as np
import pytest
import random_images
import strategies
import vectors_io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyhtpw import _native, kernels
from pyhtpw.errors import MissingToolError
from pyhtpw.executor import FIELDS
from pyhtpw.image.writer import write
from pyhtpw.model import Image
from pyhtpw.target import qemu, toolchain
from pyhtpw.target.board_kernels import BoardTarget, tables

TOOLS = toolchain.tools()
try:
    qemu.find_qemu()
except MissingToolError as error:
    pytest.skip(f"NOT RUN: {error}", allow_module_level=True)
if TOOLS["pyelftools"] is None or TOOLS["gcc"] is None:
    pytest.skip("NOT RUN: pyelftools or arm-none-eabi-gcc missing", allow_module_level=True)

NAME = "armv81m_mve"
END_OF_RAM = 0x20080000  # of the board's tightly coupled memory; nothing answers behind it


@pytest.fixture(scope="module")
def elf():
    """The library for Cortex-M55."""
    return qemu.build("cortex-m55", compiler="gcc", roots=(*toolchain.LIBRARY, "memcpy"))


@pytest.fixture(scope="module")
def table(elf):
    """The Helium backend of the program."""
    return tables(elf)[NAME]


class Together:
    """Kernel calls on one board, compared with what they should give once all have run."""

    def __init__(self, elf, table, board=BoardTarget, **more):
        self.batch, self.table, self.board, self.more = qemu.Batch(elf), table, board, more
        self.boards, self.expected = [], []

    def add(self, name, args, keywords, expected, shift=0):
        board = self.board(self.batch, self.table, shift=shift, **self.more)
        got = getattr(kernels, name)(*args, **keywords, backend=board)
        self.boards.append(board)
        self.expected.append((got, expected, f"{name} {keywords} {[getattr(a, 'shape', a) for a in args]}"))

    def check(self):
        self.batch.run()
        for board, (got, expected, what) in zip(self.boards, self.expected, strict=True):
            board.collect()
            assert got.tobytes() == expected.tobytes(), what
        return len(self.expected)


def with_cached(name, args, keywords):
    """A call, and if it is a pointwise or dense one, the same through the cache layout."""
    yield name, args, keywords
    if name == "conv1x1_s8" and keywords.get("stride", (1, 1)) == (1, 1):
        yield "conv1x1_cached_s8", args, {key: value for key, value in keywords.items() if key != "stride"}
    if name == "fully_connected_s8" and keywords.get("filter_offset", 0) == 0:
        rest = {key: value for key, value in keywords.items() if key != "filter_offset"}
        yield "conv1x1_cached_s8", (args[0][None, None], *args[1:]), rest


def test_is_the_best_of_its_core_and_of_no_other(elf, table):
    batch = qemu.Batch(elf)
    for number in (0, table.id):
        batch.call("htpw_backend_get", number)
    best, helium = batch.run()
    assert best.result == helium.result != 0
    assert NAME not in tables(qemu.build("cortex-m55-nomve", compiler="gcc"))


@pytest.mark.parametrize("routine", [name for name in vectors_io.KERNELS if vectors_io.FUNCTIONS[name].split()[0] in FIELDS])
def test_golden_vectors(elf, table, routine):
    together = Together(elf, table)
    for case in vectors_io.cases(routine):
        if case.tier == "wrap":
            continue  # outside of what a backend answers for
        for name, args, keywords in with_cached(*vectors_io.arguments(case)):
            together.add(name, args, keywords, case.expected, shift=case.id % 16)
    assert together.check() >= 40


calls = st.one_of(
    strategies.conv_calls(),
    strategies.conv1x1_calls(),
    strategies.depthwise_calls(),
    strategies.fully_connected_calls(),
    strategies.pool_calls("avgpool_s8"),
    strategies.pool_calls("maxpool_s8"),
    strategies.elementwise_calls("add_s8"),
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(group=st.lists(st.tuples(calls, st.integers(0, 15)), min_size=30, max_size=40))
def test_random_calls_equal_the_portable_kernels(elf, table, group):
    together = Together(elf, table)
    for call, shift in group:
        for name, args, keywords in with_cached(*call):
            together.add(name, args, keywords, getattr(kernels, name)(*args, **keywords, backend="portable"), shift)
    together.check()


def scales(rng, channels, shift=-9):
    """Multipliers and shifts that keep results inside int8."""
    multiplier = rng.integers(1 << 30, (1 << 31) - 1, channels).astype(np.int32)
    return multiplier, (shift - rng.integers(0, 3, channels)).astype(np.int32)


def test_ties_round_away_from_zero(elf, table):
    """A multiplier of 1/2 and biases of odd multiples of 2^right, and their neighbours: every tie of the last shift."""
    together = Together(elf, table)
    for right in range(29):
        odd = np.arange(-9, 10, 2)
        bias = ((odd[:, None] << right) + np.array([-2, -1, 0, 1, 2])).ravel().astype(np.int32)
        bias = bias[np.abs(bias.astype(np.int64)) < 1 << 29]
        args = (
            np.ones((1, 1, 3, 1), np.int8), np.zeros((len(bias), 1), np.int8), bias,
            np.full(len(bias), 1 << 30, np.int32), np.full(len(bias), -right, np.int32),
        )
        deep = (args[0].repeat(len(bias), 3), np.zeros((1, 1, 1, len(bias)), np.int8), *args[2:])
        for name, operands in (("conv1x1_s8", args), ("conv1x1_cached_s8", args), ("depthwise_s8", deep)):
            together.add(name, operands, {}, getattr(kernels, name)(*operands, backend="portable"))
    together.check()


def test_depthwise_pairs_of_taps_cannot_overflow(elf, table):
    """-128 * -128 twice leaves 16 bits: blocks with and without weights of -128, one row of taps and several."""
    rng, together = np.random.default_rng(5), Together(elf, table)
    for taps in [(1, 2), (1, 3), (1, 9), (3, 3), (2, 4), (5, 7)]:
        for channels in (16, 33, 48):
            for lowest in (-128, -127):
                w = np.where(rng.random((1, *taps, channels)) < 0.5, lowest, rng.integers(-127, 128, (1, *taps, channels)))
                x = np.where(rng.random((2, 9, 20, channels)) < 0.8, -128, 127).astype(np.int8)
                args = (x, w.astype(np.int8), rng.integers(-999, 999, channels).astype(np.int32), *scales(rng, channels, -11))
                window = {"padding": (taps[0] // 2, taps[1] // 2), "stride": (1, 1 + channels % 2), "input_offset": 128 - channels}
                together.add("depthwise_s8", args, window, kernels.depthwise_s8(*args, **window, backend="portable"), 5)
    together.check()


def test_means_of_any_number_of_cells(elf, table):
    """1 to 300 cells: both widths of sums, their extremes, every remainder of the division."""
    rng, together = np.random.default_rng(6), Together(elf, table)
    for cells in [*range(1, 40), 255, 256, 257, 300]:
        x = rng.integers(-128, 128, (1, 1, cells, 27)).astype(np.int8)
        x[..., 0], x[..., 1], x[..., 2] = -128, 127, rng.integers(-1, 2, cells)
        window = {"kernel": (1, cells), "act_min": -128 + cells % 3}
        for name in ("avgpool_s8", "maxpool_s8"):
            together.add(name, (x,), window, getattr(kernels, name)(x, **window, backend="portable"), 1)
    together.check()


class AtTheEnd(BoardTarget):
    """Places one array so that it ends where RAM ends: a read beyond it is a fault."""

    def __init__(self, batch, table, *, shift=0, array=None):
        super().__init__(batch, table, shift=shift)
        self.array, self.moved = array, 0

    def place(self, arg):
        wanted = isinstance(arg, np.ndarray) and arg.size and (
            arg.dtype == np.uint8 if self.array is None else np.shares_memory(arg, self.array)
        )
        if not wanted:
            return super().place(arg)
        self.moved += 1
        self.batch.call("memcpy", END_OF_RAM - arg.nbytes, self.batch.buffer(arg), arg.nbytes)
        return END_OF_RAM - arg.nbytes


@pytest.mark.parametrize("channels", [1, 5, 16, 19, 24, 33])
def test_reads_nothing_behind_its_arguments(elf, table, channels):
    rng, outputs = np.random.default_rng(channels), channels + 2
    x = rng.integers(-128, 128, (1, 1, 6, channels)).astype(np.int8)
    dense = (x, rng.integers(-128, 128, (outputs, channels)).astype(np.int8),
             rng.integers(-99, 99, outputs).astype(np.int32), *scales(rng, outputs))
    conv = (x, rng.integers(-128, 128, (outputs, 1, 3, channels)).astype(np.int8), *dense[2:])
    deep = (x, rng.integers(-128, 128, (1, 1, 3, channels)).astype(np.int8),
            rng.integers(-99, 99, channels).astype(np.int32), *scales(rng, channels))
    offset = {"input_offset": 7}
    jobs = [("conv1x1_s8", dense, offset), ("conv1x1_cached_s8", dense, offset), ("depthwise_s8", deep, offset)]
    jobs += [("conv_s8", conv, offset), ("avgpool_s8", (x,), {"kernel": (1, 3)}), ("maxpool_s8", (x,), {"kernel": (1, 3)})]
    for name, args, keywords in jobs:
        expected = getattr(kernels, name)(*args, **keywords, backend="portable")
        for array in args if name != "conv1x1_cached_s8" else (args[0], None, *args[2:]):
            together = Together(elf, table, AtTheEnd, array=array)
            together.add(name, args, keywords, expected)
            assert together.boards[0].moved >= 1
            together.check()


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=random_images.models(), seed=st.integers(0, 99))
def test_networks_equal_the_host(elf, table, model, seed):
    """Open, plan, bind and run an image on the board, in memory of exactly the planned size."""
    host, windows = Image(write(model)), random_images.inputs(model, 2, seed)
    plan, batch = host.plan(NAME), qemu.Batch(elf)
    image = batch.buffer(host.data, "image", align=4)
    opened, context, words = batch.buffer(2048, "model"), batch.buffer(512, "context"), batch.buffer(24, "plan", align=4)
    arena, cache = (batch.buffer(size, name, shift=4) for size, name in ((plan.arena, "arena"), (plan.cache, "cache")))
    batch.call("htpw_model_open", opened, image, len(host.data))
    batch.call("htpw_plan_memory", opened, 0, words)
    batch.call("htpw_bind", context, opened, table.id, arena, plan.arena, cache if plan.cache else 0, plan.cache, 0)
    logits = []
    for window in windows:
        logits.append(batch.buffer(plan.output, "logits"))
        batch.call("htpw_run", context, batch.buffer(window, "window"), plan.input, logits[-1], plan.output)
    assert [outcome.result for outcome in batch.run()] == [0] * (3 + len(windows))
    assert tuple(np.frombuffer(batch.read(words), np.uint32)) == tuple(vars(plan).values())
    assert b"".join(map(batch.read, logits)) == host.run_batch(windows).tobytes()
    assert _native.BACKENDS[NAME] == table.id
