"""Images: random models equal in numpy and C, damage refused, memory respected, the bill exact."""

import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import random_images
import strategies  # noqa: F401 - registers the Hypothesis profiles
from hypothesis import given

import reference
from pyhtpw import _native
from pyhtpw._native import ffi, lib
from pyhtpw.errors import ImageError
from pyhtpw.image import bill, write
from pyhtpw.image.integer import OPERATORS, SOURCES, bits_bytes
from pyhtpw.image.writer import pack_bits, save, signed_width
from pyhtpw.model import Image
from reference import synthesis

ROOT = Path(__file__).parent.parent
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def image_bytes() -> bytes:
    """A small image with every section."""
    return write(random_images.example())


def test_example_is_alive(image_bytes):
    """The image that the tests below damage is not degenerate: its kernels and logits vary."""
    image = Image(image_bytes)
    for i, kernel in image.kernels().items():
        op = image.parsed.ops[i]
        bits = op.stored_bits or (4 if op.narrow else 8)
        assert len(np.unique(kernel)) > {8: 20, 4: 10, 2: 3}[bits], op.name
    x = random_images.values(np.random.default_rng(0), (50, image.plan().input)).astype(np.int8)
    assert (np.ptp(image.run_batch(x).astype(int), axis=0) > 10).all()


@given(random_images.models(), seeds)
def test_numpy_and_c_agree(model, seed):
    data = write(model)
    image, told = Image(data), reference.read(data)
    x = random_images.inputs(model, 3, seed)
    kernels, again = image.kernels(), synthesis.kernels(told)
    assert kernels.keys() == again.keys()
    for op in kernels:
        assert np.array_equal(kernels[op], np.ravel(again[op]))
    assert np.array_equal(image.run_batch(x), reference.run(told, x))


@given(random_images.models(), seeds, st.sampled_from(_native.available_backends()))
def test_schedules_agree_and_memory_is_respected(model, seed, backend):
    """Boot, lazy and single-layer synthesis give the same bytes, in buffers of exactly the planned size, on every backend."""
    image = Image(write(model))
    plan = image.plan(backend)
    x = random_images.inputs(model, 1, seed)[0]
    kernels = image.kernels("portable")
    guard = 64
    logits = [image.run(x, "portable")]
    for schedule in (0, 1):
        sizes = {"arena": plan.arena, "cache": plan.cache, "out": plan.output}
        buffers = {}
        for name, size in sizes.items():
            buffers[name] = _native.aligned(size + 2 * guard)
            buffers[name][:] = 0xA5
        start = {name: ffi.cast("uint8_t *", b.ctypes.data) + guard for name, b in buffers.items()}
        context = ffi.new("struct htpw_context *")
        memory = (start["arena"], sizes["arena"], start["cache"], sizes["cache"])
        assert lib.htpw_bind(context, image._model, _native.backend_id(backend), *memory, schedule) == 0
        out = ffi.cast("int8_t *", start["out"])
        assert lib.htpw_run(context, _native.int8_pointer(x), x.size, out, sizes["out"]) == 0
        for layer, k in enumerate(image.cached):
            assert lib.htpw_synth_layer(context, layer) == 0
            made = np.empty(k.bytes, np.int8)
            assert lib.htpw_kernel_read(context, layer, _native.int8_pointer(made), made.size) == 0
            assert np.array_equal(made, kernels[k.op])
        for name, b in buffers.items():
            used = sizes[name]
            assert (b[:guard] == 0xA5).all() and (b[guard + used :] == 0xA5).all(), f"{name} overrun"
        logits.append(buffers["out"][guard : guard + sizes["out"]].view(np.int8).copy())
    assert all(np.array_equal(logits[0], other) for other in logits[1:])


@given(st.integers(1, 70), st.integers(1, 70), seeds)
def test_layouts_are_one_to_one(rows, cols, seed):
    """Every backend's layout, written in pieces, gives the row-major weights back and keeps to its size."""
    w = random_images.values(np.random.default_rng(seed), (rows, cols)).astype(np.int8)
    for backend in _native.BACKENDS.values():
        layout = ffi.addressof(lib.htpw_backend_rule(backend), "layout")
        size = lib.htpw_layout_bytes(layout, rows, cols)
        packed = _native.aligned(size + 64)
        packed[:] = 0xA5
        at = ffi.cast("void *", packed.ctypes.data)
        lib.htpw_layout_clear(layout, rows, cols, at)
        for first in range(0, w.size, 37):
            part = w.ravel()[first : first + 37].copy()
            lib.htpw_layout_put(layout, cols, first, part.size, _native.int8_pointer(part), at)
        lib.htpw_layout_finish(layout, rows, cols, at)
        back = np.empty_like(w)
        lib.htpw_layout_get(layout, rows, cols, at, _native.int8_pointer(back))
        assert np.array_equal(back, w) and (packed[size:] == 0xA5).all()
        if layout.sums:
            padded = -(-rows // layout.out_block) * layout.out_block
            sums = packed[size - 4 * padded : size].view(np.int32)
            assert np.array_equal(sums[:rows], w.sum(1, dtype=np.int32)) and not sums[rows:].any()


def test_stored_alternative_is_a_real_image():
    """`whole_image_if_stored` at 8 bits is the size of the image that results when the kernels are really stored."""
    model = random_images.example()
    image = Image(write(model))
    kernels = image.kernels()
    ops = tuple(
        replace(op, weights=random_images.Stored(kernels[i].reshape(op.weights.shape)))
        if isinstance(op.weights, random_images.Generated)
        else op
        for i, op in enumerate(model.ops)
    )
    plain = write(replace(model, ops=ops, generators=(), heads=()))
    assert bill(image.parsed)["whole_image_if_stored"]["8"] == len(plain)
    x = random_images.inputs(model, 4, 1)
    assert np.array_equal(Image(plain).run_batch(x), image.run_batch(x))


def test_after_boot_no_generator_byte_is_read(image_bytes):
    """Poisoning generators, heads and codes after synthesis changes nothing; with lazy synthesis other codes do."""
    for schedule, tags in (("boot", ("GENR", "HEAD", "CODE")), ("lazy", ("CODE",))):
        image = Image(image_bytes)
        x = random_images.values(np.random.default_rng(3), image.plan().input).astype(np.int8)
        before, kernels = image.run(x), image.kernels()
        context = image.bind(schedule)
        for tag in tags:
            offset, length = image.parsed.sections[tag]
            image._buffer[offset : offset + length] = 0 if schedule == "lazy" else 0x5A
        again = context.run(x)
        same = all(np.array_equal(context.kernels()[op], k) for op, k in kernels.items())
        assert same == (schedule == "boot")
        assert np.array_equal(again, before) or schedule == "lazy"


GOLDEN = [ROOT / "tests" / "vectors" / "images" / f"{name}.htpw" for name in ("tiled_1d", "factorised_shared_a_2d")]


@pytest.mark.parametrize("path", [None, *GOLDEN], ids=lambda p: p.stem if p else "example")
def test_every_truncation_and_bit_flip_is_refused(path, image_bytes):
    """With checksums as they are, any single flipped bit and any missing end is found; two golden images and the example."""
    whole = image_bytes if path is None else path.read_bytes()
    for n in range(len(whole)):
        with pytest.raises(ImageError):
            Image(whole[:n])
        with pytest.raises(reference.ImageError):
            reference.read(whole[:n])
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ImageError):
            Image(bytes(damaged))


def repair(data: bytearray) -> bytes:
    """Makes all checksums right again, as an attacker would."""
    for i in range(data[6]):
        at = 16 + 16 * i
        offset, length = struct.unpack_from("<II", data, at + 4)
        struct.pack_into("<I", data, at + 12, zlib.crc32(data[offset : offset + length]))
    struct.pack_into("<I", data, 12, zlib.crc32(data[:12] + data[16 : 16 + 16 * data[6]]))
    return bytes(data)


@pytest.mark.parametrize("path", [None, *GOLDEN], ids=lambda p: p.stem if p else "example")
def test_bit_flips_with_repaired_checksums_agree(path, image_bytes):
    """Behind right checksums C and numpy accept the same images and give the same logits for them."""
    whole = image_bytes if path is None else path.read_bytes()
    sections = Image(whole).parsed.sections
    accepted = refused = 0
    for tag, (offset, length) in sections.items():
        for bit in range(8 * offset, 8 * (offset + length)):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            data = repair(damaged)
            try:
                told = reference.read(data)
            except reference.ImageError:
                told = None
            try:
                image = Image(data)
            except ImageError:
                image = None
            assert (told is None) == (image is None), f"{tag} bit {bit - 8 * offset}"
            if image is None:
                refused += 1
                continue
            accepted += 1
            if bit % 7 == 0 and image.parsed.macs < 10**6:
                x = random_images.values(np.random.default_rng(bit), (1, *told.input_shape)).astype(np.int8)
                assert np.array_equal(image.run_batch(x), reference.run(told, x))
    assert accepted > 100 and refused > 100


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d[: len(d) // 2], "ImageTruncatedError"),
        (lambda d: b"HTPX" + d[4:], "ImageMagicError"),
        (lambda d: d[:4] + b"\x09" + d[5:], "ImageVersionError"),
        (lambda d: d[:9] + bytes([d[9] ^ 1]) + d[10:], "ImageHeaderCrcError"),
        (lambda d: d[:170] + bytes([d[170] ^ 1]) + d[171:], "ImageSectionCrcError"),
    ],
)
def test_errors_are_named(image_bytes, change, error):
    with pytest.raises(ImageError, match="^some.htpw: ") as caught:
        Image(bytes(change(image_bytes)), "some.htpw")
    assert type(caught.value).__name__ == error and caught.value.code < 0


@pytest.mark.parametrize(("count", "valid"), [(64, True), (65, False)])
def test_at_most_64_kernels_are_cached(count, valid):
    base = random_images.example()
    t = random_images.Tensor(1, 4, 4, 0)
    requant = random_images.Requant(np.full(1, 20000 << 16), np.full(1, -9), np.zeros(t.c, np.int64))
    weights = random_images.Stored(np.ones((t.c, t.c), np.int8), 2)
    ops = [random_images.Op(f"pw{i}", "conv1x1", (i,), t, weights=weights, requant=requant) for i in range(count)]
    last = random_images.Requant(np.full(1, 20000 << 16), np.full(1, -9), np.zeros(3, np.int64))
    fc = random_images.Stored(np.ones((3, t.size), np.int8))
    ops.append(random_images.Op("fc", "fc", (count,), random_images.Tensor(1, 1, 3, 0), weights=fc, requant=last))
    data = write(replace(base, input=t, ops=tuple(ops), generators=(), heads=()))
    if valid:
        assert len(Image(data).cached) == count == len(synthesis.kernels(reference.read(data)))
        return
    with pytest.raises(ImageError):
        Image(data)
    with pytest.raises(reference.ImageError, match="more than 64"):
        reference.read(data)


def test_misuse_is_refused(image_bytes):
    image = Image(image_bytes)
    with pytest.raises(ImageError, match="must be int8"):
        image.run(np.zeros(image.plan().input, np.float32))
    with pytest.raises(ImageError, match="samples"):
        image.run(np.zeros(image.plan().input + 1, np.int8))
    context = ffi.new("struct htpw_context *")
    memory = _native.aligned(image.plan().arena + image.plan().cache + 32)
    at = ffi.cast("uint8_t *", memory.ctypes.data)
    arena, cache = image.plan().arena, image.plan().cache
    codes = {
        "ARENA": (0, at, arena - 1, at + arena, cache, 0),
        "CACHE": (0, at, arena, at + arena, cache - 1, 0),
        "ALIGNMENT": (0, at + 1, arena, at + arena, cache, 0),
        "ARGUMENT": (0, at, arena, at + arena, cache, 7),
        "BACKEND": (99, at, arena, at + arena, cache, 0),
    }
    for name, arguments in codes.items():
        code = lib.htpw_bind(context, image._model, *arguments)
        assert ffi.string(lib.htpw_error_name(code)).decode() == name
    model = ffi.new("struct htpw_model *")
    assert lib.htpw_model_open(model, ffi.cast("void *", image._buffer.ctypes.data + 1), 64) == -14


def test_batches_do_not_depend_on_threads(image_bytes):
    image = Image(image_bytes)
    x = random_images.values(np.random.default_rng(0), (33, image.plan().input)).astype(np.int8)
    assert np.array_equal(image.run_batch(x), image.run_batch(x, threads=3))


def test_tables_match_the_c_header():
    """The Python tables of operators and sources are those of the X-macro lists."""
    text = (ROOT / "csrc/htpw_internal.h").read_text()
    rows = dict(re.findall(r"define HTPW_(OPERATORS|STORED|HEADS)\(X\)((?:.*\\\n)+.*)", text))
    operators = {n.lower(): (int(i), int(b)) for n, i, b in re.findall(r"X\((\w+), (\d+), (\d+)\)", rows["OPERATORS"])}
    sources = {n.lower(): int(i) for n, i in re.findall(r"X\((\w+), (\d+), \w+\)", rows["STORED"] + rows["HEADS"])}
    assert operators == OPERATORS and sources == SOURCES


@given(st.integers(0, 32), st.integers(0, 40), seeds)
def test_packing_matches_c(bits, n, seed):
    x = random_images.values(np.random.default_rng(seed), n, bits) if bits else np.zeros(n, int)
    stream = np.frombuffer(pack_bits(x, bits) + b"\0", np.uint8)
    assert len(stream) == bits_bytes(n, bits) + 1
    pointer = ffi.cast("uint8_t *", stream.ctypes.data)
    assert [lib.htpw_bits_signed(pointer, i, bits) for i in range(n)] == list(x)
    assert signed_width(x) <= bits


def test_packing_refuses_what_does_not_fit():
    with pytest.raises(ImageError, match="do not fit"):
        pack_bits(np.array([200]), 7)


def test_half_written_images_do_not_appear(tmp_path, image_bytes):
    save(image_bytes, tmp_path / "new" / "model.htpw")
    assert (tmp_path / "new" / "model.htpw").read_bytes() == image_bytes
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["model.htpw"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageError, match="cannot write"):
        save(image_bytes, tmp_path / "file" / "model.htpw")
