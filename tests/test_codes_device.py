"""Code packs on the device: C applies what the host made, refuses everything else whole, and keeps two slots through power cuts."""

import hashlib
import struct
import zlib
from dataclasses import replace

import hypothesis.strategies as st
import make_selftest
import numpy as np
import pytest
import random_images
import strategies  # noqa: F401 - registers the Hypothesis profiles
from hypothesis import assume, given

import reference
from pyhtpw import _native
from pyhtpw._native import ffi, lib
from pyhtpw.errors import ImageError
from pyhtpw.flash import Flash
from pyhtpw.image import write
from pyhtpw.image.codes import apply_pack, make_pack
from pyhtpw.image.integer import Generated
from pyhtpw.model import Image

EXAMPLE = random_images.example()
BASE = write(EXAMPLE)


def personalised(seed: int, model=EXAMPLE):
    """The model with other codes in about half of its operators, and smaller biases."""
    rng, ops = np.random.default_rng(seed), []
    for op in model.ops:
        if isinstance(op.weights, Generated) and rng.random() < 0.6:
            codes = rng.permutation(op.weights.codes.ravel()).reshape(op.weights.codes.shape)
            op = replace(op, weights=replace(op.weights, codes=codes))
        if op.requant is not None and rng.random() < 0.6:
            op = replace(op, requant=replace(op.requant, biases=op.requant.biases // 2))
        ops.append(op)
    return replace(model, ops=tuple(ops))


def pack_of(seed: int, number: int) -> bytes:
    return make_pack(BASE, write(personalised(seed)), number)


PACKS = {n: pack_of(n, n) for n in (1, 2, 3)}
WINDOW = random_images.values(np.random.default_rng(5), Image(BASE).plan().input).astype(np.int8)
EXPECTED = {0: Image(BASE).run(WINDOW)} | {n: Image(apply_pack(BASE, p)).run(WINDOW) for n, p in PACKS.items()}


def refix(data: bytes) -> bytes:
    """The pack with its checksum right again."""
    return data[:48] + struct.pack("<I", zlib.crc32(data[52:], zlib.crc32(data[:48]))) + data[52:]


def test_the_packs_below_differ():
    assert len({v.tobytes() for v in EXPECTED.values()}) == 4


@given(random_images.models(), st.integers(0, 2**32 - 1))
def test_a_pack_gives_the_personalised_model(model, seed):
    base, changed = write(model), write(personalised(seed, model))
    assume(base != changed)
    try:
        pack = make_pack(base, changed, seed)
    except ImageError:  # widths that the base's fields do not have
        assume(False)
    image, whole = Image(base, codes=pack), Image(apply_pack(base, pack))
    x = random_images.inputs(model, 2, seed)
    assert np.array_equal(image.run_batch(x), whole.run_batch(x)) and image.codes_number == seed
    assert np.array_equal(image.run_batch(x), reference.run(reference.read(whole.data), x))
    kernels = whole.kernels()
    assert all(np.array_equal(k, kernels[op]) for op, k in image.kernels().items())


def apply(image: Image, pack: bytes) -> str:
    """Name of what htpw_codes_apply says; the model must be as it was if it is an error."""
    before = bytes(ffi.buffer(image._model))
    image._pack = ffi.from_buffer(pack)  # read in place
    code = lib.htpw_codes_apply(image._model, image._pack, len(pack))
    if code:
        assert bytes(ffi.buffer(image._model)) == before
    return ffi.string(lib.htpw_error_name(code)).decode() if code else "OK"


def test_every_bit_flip_and_truncation_is_refused():
    image = Image(BASE)
    pack = PACKS[1]
    for bit in range(8 * len(pack)):
        damaged = bytearray(pack)
        damaged[bit // 8] ^= 1 << bit % 8
        assert apply(image, bytes(damaged)) != "OK"
    for n in range(len(pack)):
        assert apply(image, pack[:n]) == "PACK"
    assert apply(image, pack + bytes(4)) == "PACK"
    assert np.array_equal(image.run(WINDOW), EXPECTED[0])
    assert apply(image, pack) == "OK"


def test_flips_behind_a_right_checksum_agree_with_numpy_or_run_in_bounds():
    """An attacker's pack: C takes it exactly if the reference does, and then gives the same logits."""
    pack, taken = PACKS[2], 0
    for bit in range(8 * 48, 8 * len(pack)):
        damaged = bytearray(pack)
        damaged[bit // 8] ^= 1 << bit % 8
        data = refix(bytes(damaged))
        image = Image(BASE)
        try:
            told = reference.apply_pack(BASE, data)
        except (reference.ImageError, reference.PackError):
            told = None
        assert (apply(image, data) == "OK") == (told is not None), f"bit {bit}"
        if told is not None:
            taken += 1
            if bit % 5 == 0:
                x = WINDOW.reshape(1, *told.input_shape)
                assert np.array_equal(image.run(WINDOW), reference.run(told, x)[0])
    assert taken > 100


def test_wrong_base_and_lower_number_are_named():
    image = Image(BASE)
    other = bytearray(PACKS[1])
    other[20] ^= 1
    assert apply(image, refix(bytes(other))) == "BASE"
    assert apply(image, PACKS[2]) == "OK" and apply(image, PACKS[1]) == "NUMBER"
    assert np.array_equal(image.bind().run(WINDOW), EXPECTED[2])
    assert apply(image, PACKS[2]) == "OK" and apply(image, PACKS[3]) == "OK"
    assert np.array_equal(image.bind().run(WINDOW), EXPECTED[3])
    assert lib.htpw_codes_apply(ffi.NULL, ffi.from_buffer(PACKS[1]), 60) == -18
    assert lib.htpw_codes_apply(image._model, ffi.NULL, 60) == -18
    with pytest.raises(ImageError, match="code pack: "):
        Image(BASE, codes=b"HTPC")


def test_entries_out_of_order_or_twice_are_refused():
    pack = PACKS[1]
    entries, at = [], 52
    while at < len(pack):
        size = 8 + (struct.unpack_from("<I", pack, at + 4)[0] + 3 & ~3)
        entries.append(pack[at : at + size])
        at += size
    assert len(entries) > 2

    def made(parts: list[bytes], count: int | None = None) -> bytes:
        body = b"".join(parts)
        number = len(parts) if count is None else count
        return refix(pack[:6] + struct.pack("<HI", number, 52 + len(body)) + pack[12:52] + body)

    image = Image(BASE)
    assert apply(image, made(entries)) == "OK"
    for parts, count in [(entries[::-1], None), ([entries[0], *entries], None), ([], None), (entries, len(entries) - 1),
                         (entries, 0), ([entries[0][:8]], None), ([*entries, b"\xff" + entries[-1][1:]], None),
                         ([entries[0][:1] + b"\x02" + entries[0][2:]], None), ([entries[0][:2] + b"\x01" + entries[0][3:]], None)]:
        assert apply(Image(BASE), made(parts, count)) == "PACK"


def slots(page: int = 64, erase: int = 256) -> Flash:
    size = -(-max(map(len, PACKS.values())) // erase) * erase
    return Flash(2 * size, page, erase)


def boot(flash: Flash) -> np.ndarray:
    """Logits of a device that starts with what is in its slots."""
    image = Image(BASE)
    flash.boot_codes(image)
    return image.bind().run(WINDOW)


def test_updates_alternate_and_roll_back():
    flash, image = slots(), Image(BASE)
    assert np.array_equal(boot(flash), EXPECTED[0])
    for n in (1, 2, 3):
        flash.store_codes(image, PACKS[n])
        assert np.array_equal(boot(flash), EXPECTED[n])
    with pytest.raises(ImageError, match="lower number"):
        flash.store_codes(image, PACKS[2])
    for n in (2, 0):
        flash.rollback_codes(image)
        assert np.array_equal(boot(flash), EXPECTED[n])
    with pytest.raises(ImageError, match="does not hold"):
        flash.rollback_codes(image)
    flash.store_codes(image, PACKS[1])
    assert np.array_equal(boot(flash), EXPECTED[1]) and not flash.violations


@pytest.mark.parametrize("page", [16, 256])
def test_a_cut_at_every_operation_of_an_update(page):
    """After a cut anywhere the old pack runs, or the new one if it is complete; the update can then be done again."""
    for cut in range(1000):
        flash, image = slots(page), Image(BASE)
        flash.store_codes(image, PACKS[1])
        flash.store_codes(image, PACKS[2])
        flash.power(cut)
        try:
            flash.store_codes(image, PACKS[3])
        except ImageError:
            assert flash.is_off
        else:
            break
        flash.power()
        now = boot(flash)
        assert np.array_equal(now, EXPECTED[2]) or np.array_equal(now, EXPECTED[3]), f"cut in operation {cut}"
        if np.array_equal(now, EXPECTED[3]):  # complete: the same number again is refused
            with pytest.raises(ImageError, match="not a higher one"):
                flash.store_codes(image, PACKS[3])
        else:
            flash.store_codes(image, PACKS[3])
        assert np.array_equal(boot(flash), EXPECTED[3]) and not flash.violations
    assert cut == flash.operations > 2


def test_a_cut_while_rolling_back():
    for cut in range(100):
        flash, image = slots(), Image(BASE)
        flash.store_codes(image, PACKS[1])
        flash.store_codes(image, PACKS[2])
        flash.power(cut)
        try:
            flash.rollback_codes(image)
        except ImageError:
            assert flash.is_off
        else:
            break
        flash.power()
        assert any(np.array_equal(boot(flash), EXPECTED[n]) for n in (1, 2))
    assert cut > 1


def test_a_newest_pack_that_is_broken_gives_way_to_the_other():
    flash, image = slots(), Image(BASE)
    flash.store_codes(image, PACKS[1])
    flash.store_codes(image, PACKS[2])
    half = flash.memory.size // 2
    flash.memory[half + 60] ^= 1
    assert np.array_equal(boot(flash), EXPECTED[1])


def test_slots_that_cannot_be_are_refused():
    image = Image(BASE)
    with pytest.raises(ImageError, match="too small"):
        Flash(256, 64, 256).store_codes(image, PACKS[1])  # one erase block makes no two slots
    with pytest.raises(ImageError, match="too small"):
        Flash(32, 16, 16).store_codes(image, PACKS[1])
    for call in (lib.htpw_codes_boot, lib.htpw_codes_rollback):
        assert call(ffi.NULL, slots().c) == -18 and call(image._model, ffi.NULL) == -20
    assert lib.htpw_codes_store(image._model, ffi.NULL, ffi.from_buffer(PACKS[1]), len(PACKS[1])) == -20


@given(st.binary(max_size=300))
def test_sha256_is_that_of_the_standard_library(data):
    digest = ffi.new("uint8_t[32]")
    lib.htpw_sha256(ffi.from_buffer(data), len(data), digest)
    assert bytes(digest) == hashlib.sha256(data).digest()


def test_the_verify_callback_sees_the_digest_and_decides():
    seen = []

    @ffi.callback("int(void *, const uint8_t *, const uint8_t *, size_t)")
    def verify(user, digest, signature, size):
        seen.append((bytes(ffi.buffer(digest, 32)), bytes(ffi.buffer(signature, size))))
        return 0 if ffi.buffer(signature, size)[:] == b"right" else 1

    data = ffi.from_buffer(BASE)
    for signature, code in ((b"right", 0), (b"wrong", -24)):
        assert lib.htpw_verify(data, len(BASE), ffi.from_buffer(signature), 5, verify, ffi.NULL) == code
        assert seen[-1] == (hashlib.sha256(BASE).digest(), signature)
    assert lib.htpw_verify(ffi.NULL, 0, data, 5, verify, ffi.NULL) == -18
    assert lib.htpw_verify(data, len(BASE), ffi.NULL, 5, verify, ffi.NULL) == -18
    assert lib.htpw_verify(data, len(BASE), data, 5, ffi.NULL, ffi.NULL) == -18


@pytest.mark.parametrize("backend", _native.available_backends())
def test_self_test(backend):
    """It passes here with every backend, fits its memory, and would notice a wrong image."""
    memory = _native.aligned(8192)
    at = ffi.cast("void *", memory.ctypes.data)
    number = _native.backend_id(backend)
    assert lib.htpw_selftest(number, at, 8192) == 0
    assert lib.htpw_selftest(number, at, 2000) == -15 and lib.htpw_selftest(number, ffi.NULL, 8192) == -18
    assert lib.htpw_selftest(99, at, 8192) == -17


def test_self_test_memory_holds_for_every_target():
    """HTPW_SELFTEST_BYTES is enough for the backends of every CPU, also those that do not run here."""
    image = Image(BASE)
    kernel = max(k.bytes for k in image.cached)
    for backend in _native.BACKENDS:
        plan = image.plan(backend)
        assert plan.arena + plan.cache + kernel <= 8192, backend


def test_the_embedded_image_is_current():
    """csrc/htpw_selftest_image.h is what tests/make_selftest.py makes today."""
    assert make_selftest.HEADER.read_text() == make_selftest.header(), "type 'python tests/make_selftest.py'"
