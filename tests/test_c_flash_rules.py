"""What a flash must be, and what the fake one refuses: the reference that driver writers have."""

from __future__ import annotations

import numpy as np
import pytest
import random_images

from pyhtpw import _native
from pyhtpw._native import ffi, lib
from pyhtpw.flash import Flash
from pyhtpw.image import write
from pyhtpw.model import Image

PAGE, ERASE, SIZE = 8, 32, 128


@pytest.fixture
def flash() -> Flash:
    return Flash(SIZE, PAGE, ERASE)


def program(flash: Flash, offset: int, byte: int) -> int:
    """Programs a page full of one byte."""
    page = np.full(PAGE, byte, np.uint8)
    return flash.c.program(flash.c.user, offset, ffi.cast("uint8_t *", page.ctypes.data))


def erase(flash: Flash, offset: int) -> int:
    return flash.c.erase(flash.c.user, offset)


def test_a_page_is_programmed_once_between_two_erasures(flash):
    assert program(flash, 16, 0x5A) == 0 and flash.memory[16:24].tolist() == [0x5A] * PAGE
    assert program(flash, 16, 0x5A) != 0 and flash.violations == 1
    assert program(flash, 16, 0x00) != 0 and flash.memory[16] == 0x5A
    assert program(flash, 24, 0x11) == 0
    assert erase(flash, 0) == 0 and (flash.memory == 0xFF).all()
    assert program(flash, 16, 0x00) == 0
    assert flash.operations == 4 and flash.violations == 2


PLACES = [(program, 4), (program, SIZE), (program, 1 << 30), (erase, 8), (erase, SIZE), (erase, 1 << 31)]


@pytest.mark.parametrize(("what", "offset"), PLACES)
def test_places_that_are_none_are_refused(flash, what, offset):
    before = flash.memory.copy()
    assert (what(flash, offset, 0) if what is program else what(flash, offset)) != 0
    assert flash.violations == 1 and flash.operations == 0 and np.array_equal(flash.memory, before)


def test_a_power_cut_leaves_half_a_page_and_nothing_works_until_power_is_back(flash):
    flash.power(cut_at=1)
    assert program(flash, 0, 0) == 0
    assert program(flash, 8, 0) != 0 and flash.is_off
    assert flash.memory[8:16].tolist() == [0, 0, 0, 0, 0x55, 0xFF, 0xFF, 0xFF]
    assert program(flash, 16, 0) != 0 and erase(flash, 0) != 0
    assert flash.memory[0] == 0 and flash.memory[16] == 0xFF and flash.violations == 0
    flash.power(cut_at=0)
    assert erase(flash, 0) != 0 and flash.memory[0] == 0xFF and flash.is_off
    flash.power()
    assert erase(flash, 0) == 0 and program(flash, 8, 1) == 0


@pytest.mark.parametrize(
    ("page", "erase_bytes", "is_possible"),
    [
        (4, 4, True), (4, 8, True), (256, 4096, True), (1 << 24, 1 << 24, True), (0, 4, False), (2, 4, False), (6, 12, False),
        (8, 4, False), (8, 12, False), (1 << 25, 1 << 25, False), (4, 1 << 25, False), (8, 0, False),
    ],
)  # fmt: skip
def test_geometries(page, erase_bytes, is_possible):
    plan = ffi.new("struct htpw_plan *", {"cache_bytes": 100})
    made = lib.htpw_flash_bytes(plan, ffi.new("struct htpw_flash *", {"page_bytes": page, "erase_bytes": erase_bytes}))
    assert (made != 0) == is_possible
    if is_possible:
        assert made % erase_bytes == 0 and made >= 132 and made < 100 + 2 * erase_bytes + 32 + page


def test_a_plan_and_a_flash_are_needed(flash):
    assert lib.htpw_flash_bytes(ffi.NULL, flash.c) == 0
    assert lib.htpw_flash_bytes(ffi.new("struct htpw_plan *"), ffi.NULL) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base", ffi.NULL), ("page", ffi.NULL), ("erase", ffi.NULL), ("program", ffi.NULL), ("page_bytes", 0), ("page_bytes", 6),
        ("erase_bytes", 0), ("erase_bytes", 12), ("bytes", 0), ("bytes", SIZE + 4), ("base", 1), ("page", 2),
    ],
)  # fmt: skip
def test_a_flash_without_one_of_its_parts_is_refused(flash, field, value):
    image = Image(write(random_images.example()))
    broken = ffi.new("struct htpw_flash *", flash.c[0])
    setattr(broken, field, getattr(broken, field) + value if field in ("base", "page") and value else value)
    arena = _native.aligned(image.plan().streamed_arena)
    at = ffi.cast("void *", arena.ctypes.data)
    context = ffi.new("struct htpw_context *")
    assert lib.htpw_bind_flash(context, image._model, 1, at, arena.size, broken, 2) == -20
    assert lib.htpw_codes_boot(image._model, broken) == -20
    assert flash.operations == 0


def test_blocks_that_an_erasure_does_not_erase_are_noticed():
    image = Image(write(random_images.example()))
    flash = Flash(8192, 64, 256)
    flash.memory[:] = 0x5A
    calls = []

    @ffi.callback("int(void *, uint32_t)")
    def stuck(user, offset):
        calls.append(offset)
        return 0

    flash.c.erase = stuck
    with pytest.raises(Exception, match="erasing or programming it failed"):
        image.bind_flash(flash)
    assert calls == [0]
