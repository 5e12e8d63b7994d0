"""Writer and reader in pure Python: inverses of each other, least forms, refusals by name, hostile bytes."""

import struct
import tracemalloc
import zlib
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import random_images
import strategies  # noqa: F401 - registers the Hypothesis profiles
from hypothesis import given

from pyhtpw.errors import ImageError
from pyhtpw.image import integer as model_of
from pyhtpw.image import parse, read_model, write
from pyhtpw.image.fields import pack_bits, signed_width, unpack_bits
from pyhtpw.image.heads import KINDS, matrix_bytes
from pyhtpw.image.integer import HEADS, LINEAR, OPERATORS, SOURCES, bits_bytes
from pyhtpw.image.writer import TAGS, assemble, multiplier_form

EXAMPLE = random_images.example()


@pytest.fixture(scope="module")
def example() -> bytes:
    return write(EXAMPLE)


def same(a, b) -> bool:
    """Equal, arrays by value."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(same(getattr(a, f), getattr(b, f)) for f in a.__dataclass_fields__ if f != "name")
    return a == b


@given(random_images.models())
def test_reading_is_the_inverse_of_writing(model):
    data = write(model)
    again = read_model(data)
    assert write(again) == data
    assert same(again.ops, model.ops) and same(again.generators, model.generators) and same(again.heads, model.heads)
    assert again.input == model.input and (again.info is None) == (model.info is None)
    assert [op.name for op in again.ops] == [f"{op.kind}{i}" for i, op in enumerate(model.ops)]


def test_example_has_everything(example):
    parsed = parse(example)
    assert set(parsed.sections) == set(TAGS)
    assert {op.kind for op in parsed.ops} == set(OPERATORS)
    assert {op.source for op in parsed.ops} - {None} | {"stored8"} == set(SOURCES)
    assert {op.quan.form for op in parsed.ops if op.quan} == {0, 1, 2}
    assert {op.narrow for op in parsed.ops if op.generated} == {op.narrow for op in parsed.ops if op.stored_bits == 4} | {
        True,
        False,
    }
    assert {len(g.layers) for g in parsed.generators} == {0, 1, 2}
    assert read_model(example).info.name == "example"


@given(random_images.models())
def test_places_cover_their_sections(model):
    """Every part is where the parser says, and together they are the whole of each section but for alignment zeros."""
    data = write(model)
    parsed = parse(data)
    for tag in ("QUAN", "WGHT", "CODE", "OPS "):
        offset, length = parsed.sections.get(tag, (0, 0))
        at = offset + (8 if tag == "OPS " else 0)
        for op in parsed.ops:
            if tag in op.places:
                start, size = op.places[tag]
                assert start + size - at == op.bytes[tag] and not any(data[at:start])
                at = start + size
        assert at == offset + length
    assert sum(parsed.generator_bytes) + bool(parsed.generators) == parsed.sections.get("GENR", (0, 0))[1]
    assert sum(parsed.head_bytes) + bool(parsed.heads) == parsed.sections.get("HEAD", (0, 0))[1]


def test_tables_name_every_head():
    assert {kind.name for kind in KINDS.values()} == set(HEADS)
    assert set(KINDS) == {model_of.Dense, model_of.Factorised, model_of.Tiled, model_of.Seeded, model_of.Codebook}
    matrix = EXAMPLE.heads[0].matrix
    assert matrix_bytes(matrix) == parse(write(EXAMPLE)).head_bytes[0] - 2


@pytest.mark.parametrize(
    ("multipliers", "form"),
    [
        ([1 << 30, 511 << 22], 1),
        ([1 << 30, 0], 0),
        ([32767 << 16], 0),
        ([(1 << 30) + (1 << 21)], 0),
        ([(1 << 30) + 1], 2),
        ([(1 << 31) - 1, 1 << 30], 2),
    ],
)
def test_multipliers_take_the_least_form(multipliers, form):
    assert multiplier_form(np.array(multipliers)) == form
    op = next(op for op in EXAMPLE.ops if op.kind == "fc")
    channels = op.out.c
    m = np.resize(multipliers, channels).astype(np.int64)
    shifts = np.full(channels, -9)
    changed = replace(op, requant=model_of.Requant(m, shifts, np.zeros(channels, np.int64)))
    parsed = parse(write(replace(EXAMPLE, ops=(*EXAMPLE.ops[:-1], changed))))
    assert parsed.ops[-1].quan.form == form and parsed.ops[-1].quan.shift_bits == 0 == parsed.ops[-1].quan.bias_bits
    assert parsed.ops[-1].bytes["QUAN"] == {0: 2, 1: 1, 2: 4}[form] * channels


@given(st.integers(0, 32), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_packing_is_reversible(bits, n, seed):
    x = random_images.values(np.random.default_rng(seed), n, bits) if bits else np.zeros(n, int)
    data = pack_bits(x, bits)
    assert len(data) == bits_bytes(n, bits) and signed_width(x) <= bits
    assert np.array_equal(unpack_bits(data, n, bits), x)
    if bits * n % 8:
        with pytest.raises(ImageError, match="unused bits"):
            unpack_bits(data[:-1] + bytes([data[-1] | 0x80]), n, bits)


def test_long_arrays_are_unpacked_whole():
    x = np.random.default_rng(0).integers(-32, 32, (1 << 19) + 13)
    assert np.array_equal(unpack_bits(pack_bits(x, 6), x.size, 6), x)


def op_changed(kind, /, **changes):
    """The example with the first operator of a kind changed."""
    i = next(i for i, op in enumerate(EXAMPLE.ops) if op.kind == kind)
    return replace(EXAMPLE, ops=(*EXAMPLE.ops[:i], replace(EXAMPLE.ops[i], **changes), *EXAMPLE.ops[i + 1 :]))


def requant_changed(**changes):
    op = EXAMPLE.ops[-1]
    return op_changed("fc", requant=replace(op.requant, **changes))


def head_changed(i, **changes):
    head = replace(EXAMPLE.heads[i], **changes)
    return replace(EXAMPLE, heads=(*EXAMPLE.heads[:i], head, *EXAMPLE.heads[i + 1 :]))


def weights_changed(i, **changes):
    op = EXAMPLE.ops[i]
    return replace(EXAMPLE, ops=(*EXAMPLE.ops[:i], replace(op, weights=replace(op.weights, **changes)), *EXAMPLE.ops[i + 1 :]))


def too_long():
    """A network that attends to 512 positions."""
    x, y = model_of.Tensor(1, 512, 1, 0), model_of.Tensor(1, 1, 1, 0)
    return model_of.IntegerModel(x, (model_of.Op("attend", "attend", (0, 0), y, attend=ATTEND),))


ATTEND = EXAMPLE.ops[17].attend
FC, MATRIX = EXAMPLE.ops[-1], EXAMPLE.heads[0].matrix


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (requant_changed(multipliers=np.array([1 << 31] * 3)), r"operator 18 \(fc18\): multipliers hold 2147483648"),
        (requant_changed(multipliers=np.array([0.5] * 3)), "multipliers are float64"),
        (requant_changed(multipliers=np.array([1, 2])), "2 multipliers for 3 channels"),
        (requant_changed(shifts=np.array([-31, 1, 0])), "shifts -31..1 are more than 31 apart"),
        (requant_changed(shifts=np.array([-32, 1, 0])), "shifts hold -32"),
        (requant_changed(shifts=np.array([-3])), r"shifts have shape \(1,\), not \(3\)"),
        (requant_changed(biases=np.array([1 << 31, 0, 0])), "biases hold 2147483648"),
        (op_changed("fc", requant=None), "no requantisation"),
        (op_changed("fc", weights=None), "neither Stored nor Generated"),
        (op_changed("fc", out=replace(FC.out, zero_point=128)), "zero point is 128"),
        (op_changed("fc", act_max=128), "act_max is 128"),
        (op_changed("fc", act_min=5, act_max=4), "act_min is 5"),
        (op_changed("fc", inputs=(19,)), "reads tensor 19"),
        (op_changed("fc", inputs=(1, 2)), "reads 2 tensors"),
        (op_changed("fc", kind="rnn"), "kind 'rnn'"),
        (op_changed("conv", window=None), "no window"),
        (op_changed("conv", window=replace(EXAMPLE.ops[0].window, stride=(1, 256))), r"stride \(1, 256\) is 256"),
        (op_changed("conv", window=replace(EXAMPLE.ops[0].window, groups=3)), "groups are 3"),
        (op_changed("avgpool", out=replace(EXAMPLE.ops[13].out, c=4)), "must be"),
        (op_changed("add", add=None), "no scalars"),
        (op_changed("add", add=replace(EXAMPLE.ops[3].add, left_shift=23)), "left_shift is 23"),
        (op_changed("add", add=replace(EXAMPLE.ops[3].add, shifts=(0, 1, 0))), "shift of an add is 1"),
        (op_changed("add", add=replace(EXAMPLE.ops[3].add, multipliers=(0, -1, 0))), "multiplier of an add is -1"),
        (op_changed("table", table=None), "has no table"),
        (op_changed("table", table=np.zeros(255, np.int8)), r"table have shape|table has shape|\(256,\)"),
        (op_changed("table", table=np.full(256, 128)), "table hold"),
        (op_changed("table", out=replace(EXAMPLE.ops[14].out, c=10)), "must be"),
        (op_changed("mul", mul=None), "no scalars"),
        (op_changed("mul", mul=replace(EXAMPLE.ops[15].mul, shift=15)), "shift of a mul is 15"),
        (op_changed("mul", mul=replace(EXAMPLE.ops[15].mul, multiplier=1 << 31)), "multiplier of a mul is"),
        (op_changed("mul", inputs=(13, 12)), r"second input has shape .* must be \(1, 6, 11\) or \(1, 1, 11\)"),
        (op_changed("mul", inputs=(13,)), "reads 1 tensors"),
        (op_changed("attend", attend=None), "no scalars"),
        (op_changed("attend", attend=replace(ATTEND, shift=6)), "shift of an attend is 6"),
        (op_changed("attend", attend=replace(ATTEND, multiplier=-1)), "multiplier of an attend is -1"),
        (op_changed("attend", attend=replace(ATTEND, softmax_multiplier=1 << 31)), "softmax_multiplier is"),
        (op_changed("attend", attend=replace(ATTEND, softmax_shift=31)), "softmax_shift is 31"),
        (op_changed("attend", attend=replace(ATTEND, softmax_range=256)), "softmax_range is 256"),
        (op_changed("attend", attend=replace(ATTEND, softmax_shift=23, softmax_range=256)), r"not an integer in 0\.\.255"),
        (op_changed("attend", attend=replace(ATTEND, softmax_shift=24, softmax_range=128)), r"not an integer in 0\.\.127"),
        (op_changed("attend", inputs=(16, 16)), r"must be \(1, 6, 1\)"),
        (op_changed("attend", out=replace(EXAMPLE.ops[17].out, w=6)), "must be"),
        (too_long(), "512 positions are more than 511"),
        (weights_changed(18, narrow=True), "8 bits cannot be narrow"),
        (weights_changed(18, bits=4), r"operator 18 \(fc18\): weights hold -?\d+, which is not in -8..7"),
        (weights_changed(18, bits=3), "bits of the stored weights is 3"),
        (weights_changed(18, values=np.zeros((3, 12), np.int8)), "weights have shape"),
        (weights_changed(0, head=99), "head is 99"),
        (weights_changed(0, bits=5), "bits of the codes is 5"),
        (weights_changed(0, codes=np.full((5, 3), 8)), "codes hold 8"),
        (weights_changed(0, codes=np.zeros((4, 3), int)), "codes have shape"),
        (weights_changed(0, shape=(8, 1, 5, 3)), "shape"),
        (weights_changed(0, head=1), "the head makes 55 weights, the kernel has 80"),
        (weights_changed(2, bits=4), "ids are 4, must be 0"),
        (weights_changed(2, codes=np.full(4, 5)), "ids hold 5"),
        (head_changed(0, generator=3), r"head 0 \(tiled\): generator is 3"),
        (head_changed(0, matrix=replace(MATRIX, multiplier=(1 << 30) + 1)), "low 16 bits"),
        (head_changed(0, matrix=replace(MATRIX, shift=31)), "shift is 31"),
        (head_changed(0, matrix=replace(MATRIX, bits=5)), "bits is 5"),
        (head_changed(0, matrix=replace(MATRIX, bits=4)), "weights hold"),
        (head_changed(0, matrix=replace(MATRIX, biases=np.zeros(3, int))), "biases have shape"),
        (head_changed(0, generator=2), "weights have shape"),
        (head_changed(3, b=4), r"head 3 \(factorised\): b_of is 4"),
        (head_changed(3, b=0), "b_of is head 0, a Tiled"),
        (head_changed(3, generator=0), "b_of is head 2, whose generator is another"),
        (head_changed(7, a=3), "A has 4 columns|shape|makes"),
        (head_changed(7, b=3), "no B of its own"),
        (head_changed(4, seed=0), "seed is 0"),
        (head_changed(4, tile=0), "tile is 0"),
        (head_changed(5, bits=6), "bits of the table is 6"),
        (head_changed(5, bits=8), "cannot be narrow, the codebook's table has 8 bits"),
        (head_changed(6, of=1), "of is head 1, a Dense"),
        (head_changed(6, of=6), "of is 6"),
        (head_changed(6, entries=np.zeros((257, 3), int)), "number of entries is 257"),
        (replace(EXAMPLE, generators=()), "there are 0"),
        (replace(EXAMPLE, generators=EXAMPLE.generators * 3), "number of generators is 9"),
        (replace(EXAMPLE, generators=(replace(EXAMPLE.generators[0], dz=1025),)), "dz is 1025"),
        (replace(EXAMPLE, heads=EXAMPLE.heads + EXAMPLE.heads[:1] * 60), "number of heads is 68"),
        (replace(EXAMPLE, heads=(*EXAMPLE.heads, None)), "NoneType is not a head"),
        (replace(EXAMPLE, ops=()), "number of operators is 0"),
        (replace(EXAMPLE, input=replace(EXAMPLE.input, h=0)), "height is 0"),
        (replace(EXAMPLE, info=replace(EXAMPLE.info, name="a\nb")), "line feed"),
        (replace(EXAMPLE, info=replace(EXAMPLE.info, name="\ud800")), "INFO"),
        (replace(EXAMPLE, info=replace(EXAMPLE.info, threshold=1e300)), "INFO"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(model, words):
    with pytest.raises(ImageError, match=words):
        write(model)


def repair(data: bytes | bytearray) -> bytes:
    """Makes all checksums right again, as an attacker would."""
    data = bytearray(data)
    for i in range(data[6]):
        at = 16 + 16 * i
        offset, length = struct.unpack_from("<II", data, at + 4)
        struct.pack_into("<I", data, at + 12, zlib.crc32(data[offset : offset + length]))
    struct.pack_into("<I", data, 12, zlib.crc32(data[:12] + data[16 : 16 + 16 * data[6]]))
    return bytes(data)


def read(data: bytes) -> bool:
    """Whether the reader takes it; anything but ImageError is a failure."""
    try:
        model = read_model(data, "some.htpw")
    except ImageError as error:
        assert str(error).startswith("some.htpw: ")
        return False
    assert len(model.ops) >= 1
    return True


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data):
    assert not read(data) and not read(b"HTPW\2\1" + data)


@given(st.data())
def test_hostile_sections_raise_nothing_else(data):
    """Sections cut, changed and grown behind right checksums."""
    original = write(data.draw(st.one_of(st.just(EXAMPLE), random_images.models())))
    parsed = parse(original)
    payload = {tag: bytearray(original[at : at + n]) for tag, (at, n) in parsed.sections.items()}
    for _ in range(data.draw(st.integers(1, 4))):
        section = payload[data.draw(st.sampled_from(sorted(payload)))]
        at = data.draw(st.integers(0, max(len(section) - 1, 0)))
        what = data.draw(st.sampled_from(("set", "cut", "grow")))
        if what == "set" and section:
            section[at] = data.draw(st.integers(0, 255))
        elif what == "cut":
            del section[at : at + data.draw(st.integers(1, 40))]
        else:
            section[at:at] = data.draw(st.binary(min_size=1, max_size=40))
    read(assemble({tag: bytes(part) for tag, part in payload.items()}))


def test_every_bit_flip_is_an_image_error_or_an_image(example):
    """Unrepaired flips are all refused; repaired ones raise nothing but ImageError, and some are images again."""
    accepted = 0
    for bit in range(0, 8 * len(example), 3):
        damaged = bytearray(example)
        damaged[bit // 8] ^= 1 << bit % 8
        assert not read(bytes(damaged))
        try:
            repaired = repair(damaged)
        except (struct.error, IndexError):  # the section table itself points nowhere
            continue
        accepted += read(repaired)
    assert accepted > 100
    assert not any(read(example[:n]) for n in range(0, len(example), 7))


def test_hostile_counts_allocate_nothing(example):
    """A head that claims 65535 rows in an image of a few bytes is refused before it gets memory."""
    parsed = parse(example)
    payload = {tag: bytearray(example[at : at + n]) for tag, (at, n) in parsed.sections.items()}
    struct.pack_into("<H", payload["HEAD"], 3, 65535)
    data = assemble({tag: bytes(part) for tag, part in payload.items()})
    tracemalloc.start()
    assert not read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_other_versions_say_what_to_do(example):
    with pytest.raises(ImageError, match="format version 1 is not 2: pack the model again"):
        parse(example[:4] + b"\1" + example[5:])


def test_linear_operators_have_weights_and_others_none(example):
    model = read_model(example)
    assert all((op.weights is not None) == (op.kind in LINEAR) == (op.requant is not None) for op in model.ops)
