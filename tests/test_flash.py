"""Kernels in flash: filled page by page, resumed after a power cut at any operation, used only if right, and never made again."""

import hypothesis.strategies as st
import numpy as np
import pytest
import random_images
import strategies  # noqa: F401 - registers the Hypothesis profiles
from hypothesis import given

from pyhtpw import _native
from pyhtpw._native import lib
from pyhtpw.errors import ConfigError, ImageError
from pyhtpw.flash import Flash
from pyhtpw.image import write
from pyhtpw.model import Image

PAGE, ERASE = 64, 256


def flash_for(image: Image, page: int = PAGE, erase: int = ERASE, backend: str | None = None) -> Flash:
    """A flash just large enough for the image's kernels."""
    probe = Flash(erase, page, erase)
    plan = image.plan(backend)
    c_plan = _native.ffi.new("struct htpw_plan *", {"cache_bytes": plan.cache})
    return Flash(lib.htpw_flash_bytes(c_plan, probe.c), page, erase)


@pytest.fixture(scope="module")
def image() -> Image:
    return Image(write(random_images.example()))


@pytest.fixture(scope="module")
def window(image) -> np.ndarray:
    return random_images.values(np.random.default_rng(1), image.plan().input).astype(np.int8)


def poison(image: Image) -> None:
    """Spoils everything that only synthesis may read."""
    for tag in ("GENR", "HEAD", "CODE"):
        offset, length = image.parsed.sections[tag]
        image._buffer[offset : offset + length] ^= 0x5A


@given(random_images.models(), st.integers(0, 2**32 - 1), st.sampled_from(_native.available_backends()),
       st.sampled_from([(4, 4), (16, 64), (60, 240), (256, 4096)]))
def test_streamed_and_installed_equal_boot(model, seed, backend, geometry):
    """Any model, backend and flash geometry: the bytes of the cache, kernel for kernel, and the logits."""
    image = Image(write(model))
    if not image.cached:
        return
    x = random_images.inputs(model, 2, seed)
    flash = flash_for(image, *geometry, backend)
    boot = image.bind("boot", backend)
    for schedule in ("streamed", "installed"):
        context = image.bind_flash(flash, schedule, backend)
        for row in x:
            assert np.array_equal(context.run(row), boot.run(row))
        kernels = boot.kernels()
        assert all(np.array_equal(k, kernels[op]) for op, k in context.kernels().items())
    first = -(-32 // geometry[0]) * geometry[0]
    assert np.array_equal(flash.memory[first : first + boot.plan.cache], boot.cache[: boot.plan.cache])
    assert not flash.violations


def test_a_cut_at_every_operation(image, window):
    """The power fails in operation n, for every n, and again in the first operation afterwards: the next boot gives the same logits, and
    between the two, what is half-written is never used."""
    expected = image.run(window)
    right = flash_for(image)
    image.bind_flash(right)
    cuts = 0
    for cut in range(1000):
        flash = flash_for(image)
        flash.power(cut)
        try:
            image.bind_flash(flash)
        except ImageError as error:
            assert type(error).__name__ == "ImageFlashError" and flash.is_off
        else:
            break
        cuts += 1
        for again in (0, 1):
            flash.power(again)
            try:  # a cut behind the last byte of the record leaves a store that is right
                assert np.array_equal(image.bind_flash(flash, "installed").run(window), expected)
                used = 32, -(-32 // PAGE) * PAGE, image.plan().cache
                assert np.array_equal(flash.memory[: used[0]], right.memory[: used[0]])
                assert np.array_equal(flash.memory[used[1] : used[1] + used[2]], right.memory[used[1] : used[1] + used[2]])
            except ImageError as error:
                assert type(error).__name__ == "ImageStoreError"
            try:
                image.bind_flash(flash)
            except ImageError:
                assert flash.is_off
        flash.power()
        assert np.array_equal(image.bind_flash(flash).run(window), expected)
        assert np.array_equal(image.bind_flash(flash, "installed").run(window), expected)
        assert not flash.violations, f"after a cut in operation {cut}"
    assert cuts == flash.operations > len(image.cached)


def test_what_is_right_is_not_written_again(image):
    """A second start writes nothing; a start after a cut writes only what was missing."""
    whole = flash_for(image, PAGE, PAGE)  # one page a block: what is there stays
    image.bind_flash(whole)
    pages = whole.operations
    whole.power()
    image.bind_flash(whole)
    assert whole.operations == 0
    cut = flash_for(image, PAGE, PAGE)
    cut.power(pages // 2)
    with pytest.raises(ImageError):
        image.bind_flash(cut)
    cut.power()
    image.bind_flash(cut)
    assert pages // 2 <= cut.operations <= pages - pages // 2 + 2  # and the block that the cut spoilt was erased


def test_installed_reads_no_generator_byte(image, window):
    """With generator, heads and codes poisoned an installed model starts and runs as before."""
    expected = image.run(window)
    mine = Image(image.data)
    flash = flash_for(mine)
    mine.bind_flash(flash)
    poison(mine)
    assert np.array_equal(mine.bind_flash(flash, "installed").run(window), expected)
    plan = mine.plan()
    assert plan.installed_arena <= plan.arena and plan.installed_arena <= plan.streamed_arena


def test_every_damaged_byte_is_noticed(image, window):
    """One flipped bit anywhere in what counts: installed refuses, streamed repairs."""
    flash = flash_for(image)
    image.bind_flash(flash)
    whole = flash.memory.copy()
    used = -(-32 // PAGE) * PAGE + image.plan().cache
    rng = np.random.default_rng(0)
    for at in [*range(32), *range(PAGE, used, 7)]:
        flash.memory[:] = whole
        flash.memory[at] ^= 1 << rng.integers(8)
        with pytest.raises(ImageError, match="does not hold the kernels"):
            image.bind_flash(flash, "installed")
        if at % 5 == 0:
            assert np.array_equal(image.bind_flash(flash).run(window), image.run(window))
            assert np.array_equal(flash.memory[:used], whole[:used])
    assert not flash.violations


def test_a_store_of_another_image_or_backend_is_not_used(image):
    backends = _native.available_backends()
    flash = flash_for(image, backend="portable")
    flash = Flash(4 * flash.memory.size, PAGE, ERASE)
    image.bind_flash(flash, backend="portable")
    other = random_images.example()
    heads = [h for h in other.heads if isinstance(h, random_images.Tiled)]
    heads[0].matrix.weights[0, 0] ^= 1
    other = Image(write(other))
    with pytest.raises(ImageError, match="does not hold"):
        other.bind_flash(flash, "installed", "portable")
    for name in backends[1:]:
        with pytest.raises(ImageError, match="does not hold"):
            image.bind_flash(flash, "installed", name)
    assert image.bind_flash(flash, "installed", "portable").kernels().keys() == image.kernels().keys()


def test_misuse_is_refused(image):
    flash = flash_for(image)
    with pytest.raises(ConfigError, match="unknown schedule"):
        image.bind_flash(flash, "boot")
    with pytest.raises(ConfigError, match="can't be"):
        Flash(1000, 64, 256)
    small = Flash(flash.memory.size - ERASE, PAGE, ERASE)
    with pytest.raises(ImageError, match="too small"):
        image.bind_flash(small)
    plan, ffi = image.plan(), _native.ffi
    context = ffi.new("struct htpw_context *")
    arena = _native.aligned(plan.streamed_arena)
    at = ffi.cast("uint8_t *", arena.ctypes.data)
    cases = {
        "ARENA": (0, at, plan.streamed_arena - 1, flash.c, 2),
        "ALIGNMENT": (0, at + 1, plan.streamed_arena, flash.c, 2),
        "ARGUMENT": (0, at, plan.streamed_arena, flash.c, 0),
        "BACKEND": (99, at, plan.streamed_arena, flash.c, 2),
        "FLASH": (0, at, plan.streamed_arena, ffi.NULL, 2),
    }
    for name, arguments in cases.items():
        code = lib.htpw_bind_flash(context, image._model, *arguments)
        assert ffi.string(lib.htpw_error_name(code)).decode() == name
    assert lib.htpw_bind_flash(ffi.NULL, image._model, 0, at, plan.streamed_arena, flash.c, 2) == -18
    for field, value in [("base", flash.c.base + 1), ("page", ffi.NULL), ("erase", ffi.NULL), ("page_bytes", 6),
                         ("erase_bytes", 96), ("bytes", flash.c.bytes + 1), ("program", ffi.NULL), ("page_bytes", 0)]:
        broken = ffi.new("struct htpw_flash *", flash.c[0])
        setattr(broken, field, value)
        assert lib.htpw_bind_flash(context, image._model, 0, at, plan.streamed_arena, broken, 2) == -20, field
    context = image.bind_flash(flash)
    assert lib.htpw_synth_layer(context._context, 0) == -18  # its kernels are in flash


def test_a_flash_that_does_not_keep_what_it_is_given_is_noticed(image):
    """A worn-out cell: programming succeeds, and the byte is another."""
    flash = flash_for(image)
    ffi = _native.ffi
    program = flash.c.program

    @ffi.callback("int(void *, uint32_t, const uint8_t *)")
    def worn(user, offset, page):
        code = program(user, offset, page)
        flash.memory[offset + 3] ^= offset == 2 * PAGE
        return code

    flash.c.program = worn
    with pytest.raises(ImageError, match="programming it failed"):
        image.bind_flash(flash)


def test_lazy_synthesis_survives_an_interrupt(image, window):
    """A run that is abandoned inside a synthesis leaves its ready bit clear: the kernel is made again, whatever is in the cache."""
    expected = image.run(window)
    context = image.bind("lazy")
    context.cache[:] = 0xA5  # what an abandoned synthesis leaves
    assert np.array_equal(context.run(window), expected)
    context = image.bind("lazy")
    for layer in range(0, len(image.cached), 2):
        context.synthesise(layer)
    context.arena[:] = 0x5A
    assert np.array_equal(context.run(window), expected)
