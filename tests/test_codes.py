"""Code packs on the host: they turn one image into another, hold no more than differs, and name what they cannot change."""

import hashlib
import struct
import zlib
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import random_images
import strategies  # noqa: F401 - registers the Hypothesis profiles
from hypothesis import assume, given

from pyhtpw.errors import ImageError
from pyhtpw.image import read_model, write
from pyhtpw.image.codes import Entry, apply_pack, make_pack, parse_pack
from pyhtpw.image.integer import Generated

EXAMPLE = random_images.example()
BASE = write(EXAMPLE)


def with_op(model, i, **changes):
    return replace(model, ops=(*model.ops[:i], replace(model.ops[i], **changes), *model.ops[i + 1 :]))


def with_codes(model, i, codes):
    return with_op(model, i, weights=replace(model.ops[i].weights, codes=codes))


def with_requant(model, i, **changes):
    return with_op(model, i, requant=replace(model.ops[i].requant, **changes))


@given(random_images.models(), st.integers(0, 2**32 - 1))
def test_packs_turn_one_image_into_another(model, number):
    """New codes and shrunken requantisation, which takes narrower fields: the pack writes it in the base's."""
    rng, changed, expected = np.random.default_rng(number), model, set()
    for i, op in enumerate(model.ops):
        if isinstance(op.weights, Generated) and rng.random() < 0.7:
            codes = rng.permutation(op.weights.codes.ravel()).reshape(op.weights.codes.shape)
            if (codes != op.weights.codes).any():
                changed, expected = with_codes(changed, i, codes), expected | {(i, "CODE")}
        if op.requant is not None and rng.random() < 0.5 and (op.requant.biases // 2 != op.requant.biases).any():
            changed, expected = with_requant(changed, i, biases=op.requant.biases // 2), expected | {(i, "QUAN")}
    assume(expected)
    base = write(model)
    data = make_pack(base, write(changed), number)
    pack = parse_pack(data)
    assert pack.number == number and pack.base == hashlib.sha256(base).digest()
    assert {(e.op, e.part) for e in pack.entries} == expected and len(data) % 4 == 0
    result = apply_pack(base, data)
    assert write(read_model(result)) == write(changed) and len(result) == len(base)


def test_the_bytes_are_those_of_the_specification():
    codes = EXAMPLE.ops[0].weights.codes.copy()
    codes[0, 0] += 1 if codes[0, 0] < 7 else -1
    data = make_pack(BASE, write(with_codes(EXAMPLE, 0, codes)), 7)
    assert data[:16] == b"HTPC\1\0\1\0" + struct.pack("<II", len(data), 7)
    assert data[16:48] == hashlib.sha256(BASE).digest()
    assert struct.unpack_from("<I", data, 48)[0] == zlib.crc32(data[:48] + data[52:])
    (entry,) = parse_pack(data).entries
    assert (entry.op, entry.part, len(entry.data)) == (0, "CODE", 8)  # 5 tiles of 3 codes of 4 bits
    assert data[52:60] == bytes([0, 0, 0, 0, 8, 0, 0, 0]) and len(data) == 60 + 8


def requant_of(i):
    return EXAMPLE.ops[i].requant


CODES = EXAMPLE.ops[0].weights
WIDER = replace(CODES, bits=6, codes=CODES.codes * 4)
HALVED = replace(EXAMPLE.ops[18].weights, values=EXAMPLE.ops[18].weights.values // 2)
HEAD = replace(EXAMPLE.heads[0], matrix=replace(EXAMPLE.heads[0].matrix, shift=3))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (EXAMPLE, "no codes and no requantisation differ"),
        (with_requant(EXAMPLE, 0, biases=requant_of(0).biases << 9), "operator 0: bias width differs"),
        (with_requant(EXAMPLE, 0, shifts=requant_of(0).shifts - 1), "operator 0: shift width differs"),
        (with_requant(EXAMPLE, 0, shifts=requant_of(0).shifts + 2), "operator 0: shift width differs"),
        (with_requant(EXAMPLE, 0, multipliers=requant_of(0).multipliers >> 1), "operator 0: multiplier form differs"),
        (with_requant(EXAMPLE, 0, multipliers=np.array([1 << 30]), shifts=np.array([-9])), "operator 0: per-tensor"),
        (with_op(EXAMPLE, 0, weights=WIDER), "0: code width"),
        (with_op(EXAMPLE, 0, weights=replace(EXAMPLE.ops[0].weights, narrow=True)), "operator 0: narrow differs"),
        (with_op(EXAMPLE, 2, act_min=-5), "operator 2: act_min differs"),
        (with_op(EXAMPLE, 2, out=replace(EXAMPLE.ops[2].out, zero_point=5)), "operator 2: shape or zero point"),
        (with_op(EXAMPLE, 3, add=replace(EXAMPLE.ops[3].add, left_shift=19)), "operator 3: scalars of the add"),
        (with_op(EXAMPLE, 15, mul=replace(EXAMPLE.ops[15].mul, shift=-9)), "operator 15: scalars of the mul"),
        (with_op(EXAMPLE, 17, attend=replace(EXAMPLE.ops[17].attend, softmax_range=9)), "operator 17: scalars of the attend"),
        (with_op(EXAMPLE, 14, table=-1 - EXAMPLE.ops[14].table), "WGHT differs"),
        (with_op(EXAMPLE, 18, weights=HALVED), "WGHT differs"),
        (replace(EXAMPLE, heads=(HEAD, *EXAMPLE.heads[1:])), "HEAD differs"),
        (replace(EXAMPLE, info=replace(EXAMPLE.info, threshold=0.25)), "INFO differs"),
        (replace(EXAMPLE, input=replace(EXAMPLE.input, zero_point=3)), "input tensor differs"),
        (replace(EXAMPLE, ops=EXAMPLE.ops[:-1] + EXAMPLE.ops[-2:-1] + EXAMPLE.ops[-1:]), "number of operators differs"),
    ],
)  # fmt: skip
def test_what_a_pack_cannot_change_is_named(changed, words):
    with pytest.raises(ImageError, match=words):
        make_pack(BASE, write(changed), 1)


def test_numbers_and_images_are_checked():
    changed = write(with_requant(EXAMPLE, 0, biases=requant_of(0).biases // 2))
    with pytest.raises(ImageError, match="number is 4294967296"):
        make_pack(BASE, changed, 1 << 32)
    with pytest.raises(ImageError, match="^base image: "):
        make_pack(b"", changed, 1)
    with pytest.raises(ImageError, match="^changed image: "):
        make_pack(BASE, changed[:-16], 1)


def packed(entries: list[Entry], **header) -> bytes:
    """A code pack with right checksums, whatever is in it."""
    body = b""
    for e in entries:
        body += struct.pack("<BBHI", e.op, int(e.part), 0, len(e.data)) + e.data + bytes(-len(e.data) % 4)
    fields = {"magic": b"HTPC", "version": 1, "zero": 0, "count": len(entries), "total": 52 + len(body), "number": 1} | header
    head = struct.pack("<4sBBHII", *fields.values()) + hashlib.sha256(BASE).digest()
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


GOOD = Entry(0, "0", bytes(8))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (packed([GOOD], magic=b"HTPW"), "not a code pack"),
        (packed([GOOD], version=2), "not a code pack"),
        (packed([GOOD], zero=1), "not a code pack"),
        (packed([GOOD], total=64), "total length"),
        (packed([GOOD], count=2), "entry 1 ends after"),
        (packed([]), "0 entries"),
        (packed([GOOD, GOOD]), "twice"),
        (packed([Entry(1, "0", b""), GOOD]), "out of order"),
        (packed([Entry(0, "2", b"")]), "part 2"),
        (packed([GOOD])[:-1] + b"\1", "checksum"),
        (packed([GOOD])[:40], "too few"),
    ],
)
def test_malformed_packs_are_refused(data, words):
    with pytest.raises(ImageError, match=f"^p.htpc: .*{words}"):
        parse_pack(data, "p.htpc")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (Entry(0, "0", bytes(9)), "CODE has 9 bytes, the base image's has 8"),
        (Entry(3, "1", b""), "operator 3 has no QUAN"),
        (Entry(14, "1", b""), "operator 14 has no QUAN"),
        (Entry(18, "0", b""), "operator 18 has no CODE"),
        (Entry(99, "0", b""), "operator 99 has no CODE"),
        (Entry(2, "0", b"\xff\xff"), "unused bits|id 7"),
    ],
)
def test_packs_that_do_not_fit_are_refused(entry, words):
    with pytest.raises(ImageError, match=words):
        apply_pack(BASE, packed([entry]))
    assert apply_pack(BASE, packed([GOOD])) != BASE
    other = write(replace(EXAMPLE, info=None))
    with pytest.raises(ImageError, match="another base image"):
        apply_pack(other, packed([GOOD]))


@given(st.data())
def test_hostile_packs_raise_nothing_else(data):
    good = bytearray(packed([GOOD, Entry(0, "1", bytes(9)), Entry(2, "0", bytes(2))]))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    del good[data.draw(st.integers(0, len(good))) :]
    if len(good) >= 52:
        struct.pack_into("<I", good, 48, zlib.crc32(good[:48] + good[52:]))
    try:
        parse_pack(bytes(good))
        apply_pack(BASE, bytes(good))
    except ImageError:
        pass
