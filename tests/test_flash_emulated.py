"""On emulated cores: kernels streamed to flash through a power cut and run from there, code packs in slots, and the self-test."""

import struct

import numpy as np
import pytest
import random_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_codes_device import BASE, EXPECTED, PACKS, WINDOW

from pyhtpw.errors import MissingToolError
from pyhtpw.image import write
from pyhtpw.model import Image
from pyhtpw.target import qemu, toolchain
from pyhtpw.target.emulator import Emulator

UNICORN = [name for name, cpu in toolchain.CPUS.items() if cpu.unicorn]
NO_CUT = 0xFFFFFFFF
PAGE, ERASE = 64, 512
STORE, FLASH = -19, -20


@pytest.fixture(scope="module")
def core():
    """Makes the emulator of a core, each once."""
    made: dict[str, Emulator] = {}

    def get(cpu: str) -> Emulator:
        if cpu not in made:
            try:
                made[cpu] = Emulator(cpu)
                made[cpu].call("htpw_sizeof_model")
            except MissingToolError as error:
                pytest.skip(f"NOT RUN: {error}")
        return made[cpu]

    yield get
    for emulator in made.values():
        emulator.close()


class Device:
    """A core with an image in place, a fake flash of its own, and the memory for both. Code packs lie in `pack`."""

    def __init__(self, emulator: Emulator, image: bytes, flash_bytes: int) -> None:
        self.e, self.kept = emulator, []
        self.image = self.alloc(len(image), "image", read_only=True)
        emulator.write(self.image, image)
        self.image_bytes = len(image)
        self.model = self.alloc(emulator.call("htpw_sizeof_model"), "model")
        self.context = self.alloc(emulator.call("htpw_sizeof_context"), "context")
        self.memory, self.page = self.alloc(flash_bytes, "flash"), self.alloc(PAGE, "page")
        self.fake, self.flash, self.plan = self.alloc(32, "fake"), self.alloc(32, "struct htpw_flash"), self.alloc(24, "plan")
        emulator.write(self.memory, b"\xff" * flash_bytes)
        emulator.call("htpw_fake_flash_open", self.fake, self.memory, flash_bytes, PAGE, ERASE, self.page, self.flash)
        self.reset()

    def alloc(self, size: int, name: str, read_only: bool = False) -> int:
        self.kept.append(self.e.alloc(size, 8, name=name, read_only=read_only))
        return self.kept[-1]

    def reset(self, cut: int = NO_CUT) -> None:
        """Power on, and the image opened afresh."""
        self.e.call("htpw_fake_flash_power", self.fake, cut)
        assert self.e.call("htpw_model_open", self.model, self.image, self.image_bytes) == 0
        assert self.e.call("htpw_plan_memory", self.model, 0, self.plan) == 0

    def bind(self, schedule: int) -> int:
        plan = struct.unpack("<6I", self.e.read(self.plan, 24))
        size = plan[4 if schedule == 2 else 5]
        self.arena = self.alloc(max(size, 4), "arena")
        return self.e.call("htpw_bind_flash", self.context, self.model, 0, self.arena, size, self.flash, schedule)

    def bind_boot(self) -> int:
        arena, cache = struct.unpack("<2I", self.e.read(self.plan, 8))
        self.arena, self.cache = self.alloc(max(arena, 4), "arena"), self.alloc(max(cache, 4), "cache")
        return self.e.call("htpw_bind", self.context, self.model, 0, self.arena, arena, self.cache, cache, 0)

    def run(self, window: np.ndarray, classes: int) -> np.ndarray:
        x, y = self.alloc(window.size, "window"), self.alloc(classes, "logits")
        self.e.write(x, window.tobytes())
        assert self.e.call("htpw_run", self.context, x, window.size, y, classes) == 0
        return np.frombuffer(self.e.read(y, classes), np.int8)

    def close(self) -> None:
        for address in reversed(self.kept):
            self.e.free(address)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=random_images.models(), cut=st.integers(0, 30), seed=st.integers(0, 99), cpu=st.sampled_from(("cortex-m0", "cortex-m4")))
def test_streamed_through_a_power_cut_equals_the_host(core, model, cut, seed, cpu):
    data = write(model)
    host = Image(data)
    x = random_images.inputs(model, 1, seed)[0]
    expected = host.run(x)
    cache = host.plan("armv7em_dsp").cache + host.plan("thumb").cache
    device = Device(core(cpu), data, -(-(PAGE + cache) // ERASE) * ERASE)
    try:
        device.reset(cut)
        assert device.bind(2) in (0, FLASH)
        device.reset()
        assert device.bind(2) == 0 and np.array_equal(device.run(x, expected.size), expected)
        device.reset()
        assert device.bind(3) == 0 and np.array_equal(device.run(x, expected.size), expected)
        assert struct.unpack("<I", device.e.read(device.fake + 24, 4)) == (0,)  # no rule of flash broken
    finally:
        device.close()


def test_an_empty_store_is_not_installed(core):
    device = Device(core("cortex-m4"), BASE, 16 * ERASE)
    assert device.bind(3) == STORE
    device.close()


@pytest.mark.parametrize("cpu", ("cortex-m0", "cortex-m4"))
def test_code_packs_in_slots(core, cpu):
    """An update, one that the power cuts short, one that completes, and a rollback; a reset between all of them."""
    slot = -(-max(map(len, PACKS.values())) // ERASE) * ERASE
    device = Device(core(cpu), BASE, 2 * slot)
    packs = {}
    for n, pack in PACKS.items():
        packs[n] = device.alloc(len(pack), "pack")
        device.e.write(packs[n], pack)

    def boot() -> np.ndarray:
        device.reset()
        assert device.e.call("htpw_codes_boot", device.model, device.flash) == 0 and device.bind_boot() == 0
        return device.run(WINDOW, EXPECTED[0].size)

    def store(n: int, cut: int = NO_CUT) -> int:
        device.reset(cut)
        return device.e.call("htpw_codes_store", device.model, device.flash, packs[n], len(PACKS[n]))

    assert np.array_equal(boot(), EXPECTED[0])
    assert store(1) == 0 and np.array_equal(boot(), EXPECTED[1])
    assert store(2, cut=1) == FLASH and np.array_equal(boot(), EXPECTED[1])
    assert store(2) == 0 and np.array_equal(boot(), EXPECTED[2])
    device.reset()
    assert device.e.call("htpw_codes_rollback", device.model, device.flash) == 0
    assert np.array_equal(boot(), EXPECTED[1])
    device.close()


@pytest.mark.parametrize("cpu", UNICORN)
def test_self_test_passes(core, cpu):
    emulator = core(cpu)
    memory = emulator.alloc(8192, 4, name="memory")
    assert emulator.call("htpw_selftest", 0, memory, 8192) == 0
    assert emulator.call("htpw_selftest", 1, memory, 8192) == 0  # portable
    emulator.free(memory)


@pytest.mark.parametrize("cpu", ("cortex-m55", "cortex-m55-nomve"))
def test_self_test_passes_on_boards(cpu):
    try:
        qemu.find_qemu()
        elf = qemu.build(cpu, compiler="gcc", roots=(*toolchain.LIBRARY, "memcpy"))
    except MissingToolError as error:
        pytest.skip(f"NOT RUN: {error}")
    batch = qemu.Batch(elf)
    memory = batch.buffer(8192, "memory", align=4)
    for backend in (0, 1):
        batch.call("htpw_selftest", backend, memory, 8192)
    assert [outcome.result for outcome in batch.run()] == [0, 0]

