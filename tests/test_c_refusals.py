"""What the numpy reader must refuse, the C library must refuse too: the spoiled images of its own tests, shown to every reader.

One network is spoiled in one place at a time, with all checksums right, so that the place is what is refused.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import test_reference_heads
import test_reference_image
import test_reference_packs
import test_reference_plain
from reference_images import (
    CODEBOOK,
    SEEDED,
    TAGS,
    assemble,
    head,
    image,
    network,
    op,
    payloads,
    plain,
    plain_network,
    single,
    stored_network,
    top,
)

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

import fuzz_reader
import test_fuzz

from pyhtpw import _native
from pyhtpw._native import ffi, lib
from pyhtpw.errors import ImageError
from pyhtpw.model import Image


def opened(data: bytes, length: int | None = None) -> str:
    """Name of what htpw_model_open says; a refused model is all zeros."""
    buffer = _native.aligned(len(data))
    buffer[: len(data)] = bytearray(data)
    model = ffi.new("struct htpw_model *")
    code = lib.htpw_model_open(model, ffi.cast("void *", buffer.ctypes.data), len(data) if length is None else length)
    if code:
        assert bytes(ffi.buffer(model)) == bytes(ffi.sizeof("struct htpw_model"))
    return ffi.string(lib.htpw_error_name(code)).decode()


def rules(test: Callable) -> list:
    """The (change, message) of a parametrised test."""
    return next(mark.args[1] for mark in test.pytestmark if mark.name == "parametrize")


ALL_RULES = [*rules(test_reference_image.test_each_rule), *rules(test_reference_heads.test_each_rule)]


@pytest.mark.parametrize(("change", "message"), ALL_RULES)
def test_every_rule_of_the_numpy_reader(change, message):
    net = network()
    change(net)
    assert fuzz_reader.check(image(net)) == "refused"


@pytest.mark.parametrize(("change", "message"), test_reference_plain.RULES)
def test_every_rule_of_operators_without_weights(change, message):
    net = test_reference_plain.spoiled(change)
    error = "SLOT" if "slot" in message else "SHAPE" if "shape" in message or "fit" in message or "positions" in message else "RANGE"
    assert opened(image(net)) == error and fuzz_reader.check(image(net)) == "refused"


@pytest.mark.parametrize("change", rules(test_reference_plain.test_the_last_value_that_is_allowed))
def test_the_last_value_of_operators_without_weights(change):
    assert fuzz_reader.check(image(test_reference_plain.spoiled(change))) == "run"


def test_tables_take_256_bytes_behind_zeros():
    net = plain_network()
    net["ops"] = [net["ops"][4] | {"src": 0, "dst": 7}, *net["ops"]]
    parts = payloads(net)
    assert opened(assemble(list(parts.items()))) == "OK"
    test_fuzz.every_schedule(assemble(list(parts.items())), bytes((0, 0, 0, 9, 1, 5, 1, 0)))
    for length in range(len(parts["WGHT"])):
        assert opened(assemble(list((parts | {"WGHT": parts["WGHT"][:length]}).items()))) == "DATA"
    for at in (1, 2, 3):
        spoiled = bytearray(parts["WGHT"])
        spoiled[at] = 1
        assert opened(assemble(list((parts | {"WGHT": spoiled}).items()))) == "DATA"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (top(input=(0, 6, 2)), "SHAPE"),
        (top(input=(5, 0, 2)), "SHAPE"),
        (top(input=(5, 6, 0)), "SHAPE"),
        (top(input=(2048, 2048, 2)), "SHAPE"),
        (op(0, form=3), "RANGE"),
        (op(0, shift_bits=6, u=[0] * 6), "RANGE"),
        (op(0, bias_bits=33), "RANGE"),
        (op(0, clamp=(5, 4)), "RANGE"),
        (op(0, out=(0, 5)), "SHAPE"),
        (op(0, out=(3, 0)), "SHAPE"),
        (op(0, out=(65535, 65535)), "SHAPE"),
        (op(5, out=(0, 2)), "SHAPE"),
        (op(5, out=(2, 0)), "SHAPE"),
        (op(5, kernel=(0, 3)), "SHAPE"),
        (op(5, kernel=(2, 0)), "SHAPE"),
        (op(5, stride=(0, 2)), "SHAPE"),
        (op(8, width=0), "SOURCE"),
        (head(7, tile=0), "SHAPE"),
        (head(7, seed=0), "RANGE"),
        (head(8, tile=0), "SHAPE"),
        (head(8, generator=1), "SOURCE"),
        (head(8, entries=257), "RANGE"),
        (head(2, r=0), "SHAPE"),
        (head(2, r=1025), "SHAPE"),
        (head(4, r=4), "SOURCE"),
        (head(9, of=60), "SOURCE"),
    ],
)
def test_the_error_says_what_kind_of_rule(change, error):
    net = network()
    change(net)
    assert opened(image(net)) == error


def test_at_most_64_operators_are_cached():
    many = test_reference_image.many
    assert opened(image(many(64))) == "OK" and opened(image(many(65))) == "SOURCE"
    assert opened(image(many(200, narrow=True))) == "OK"
    test_fuzz.every_schedule(image(many(64)), bytes((0, 0, 0, 9, 1, 5, 1, 0)))


def test_bytes_skipped_before_stored_weights_are_zero():
    net = network(use=("stored8", 6, "stored8", "stored4", "stored2", 1))
    parts = payloads(net)
    assert opened(assemble(list(parts.items()))) == "OK" and parts["WGHT"][54:56] == b"\0\0"
    for at in (54, 55):
        spoiled = parts | {"WGHT": parts["WGHT"][:at] + b"\1" + parts["WGHT"][at + 1 :]}
        assert opened(assemble(list(spoiled.items()))) == "DATA"


@pytest.mark.parametrize(("rows", "error"), [(1024, "OK"), (1025, "SHAPE")])
def test_layers_have_at_most_1024_rows(rows, error):
    layers = [{"rows": rows, "weight_bits": 4, "bias_bits": 0, "shift": 0, "m": 1, "w": [1] * rows, "bias": [0] * rows}]
    net = stored_network() | {"generators": [{"dz": 1, "layers": layers}]}
    assert opened(image(net)) == error


@pytest.mark.parametrize("tag", TAGS[1:])
def test_every_length_of_a_section(tag):
    parts = payloads(network())
    whole = parts[tag]
    for length in range(len(whole)):
        parts[tag] = whole[:length]
        assert opened(assemble(list(parts.items()))) != "OK", length
    parts[tag] = whole + b"\0"
    assert opened(assemble(list(parts.items()))) == "DATA"


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("magic", b"HTPV", "MAGIC"), ("magic", b"XTPW", "MAGIC"), ("version", 1, "VERSION"), ("rounding", 0, "VERSION"),
        ("section_count", 0, "SECTION"), ("section_count", 17, "SECTION"), ("zero", 1, "SECTION"), ("total", 1 << 20, "TRUNCATED"),
        ("total", 16, "SECTION"), ("section_count", 16, "HEADER_CRC"),
    ],
)  # fmt: skip
def test_header_fields(field, value, error):
    assert opened(assemble(list(payloads(network()).items()), **{field: value})) == error


def test_section_tables():
    items = list(payloads(network()).items())
    good = assemble(items)
    table = good[16 : 16 + 16 * len(items)]
    for tag in (b"OPSX", b"OPX ", b"OXS ", b"XPS ", b"HEAL", b"CODA"):
        assert opened(assemble(items, table=table[:16] + tag + table[20:])) == "SECTION"
    for entry in range(len(items)):
        for at, delta in ((4, 16), (4, 1 << 28), (8, 1 << 20)):
            bad = bytearray(table)
            (value,) = struct.unpack_from("<I", bad, 16 * entry + at)
            struct.pack_into("<I", bad, 16 * entry + at, value + delta)
            assert opened(assemble(items, table=bytes(bad))) == "SECTION"
    assert opened(assemble(items, table=table[:12] + bytes(4) + table[16:])) == "SECTION_CRC"
    assert opened(assemble([items[0], items[2], *items[1:2], *items[3:]])) == "SECTION"
    assert opened(assemble([item for item in items if item[0] != "OPS "])) == "DATA"
    assert opened(assemble([], section_count=4, total=16)) == "TRUNCATED"
    assert opened(good + bytes(16)) == "SECTION" and opened(good[:-16]) == "TRUNCATED" and opened(good[:15]) == "TRUNCATED"
    longer = assemble(items, total=len(good) + 16) + bytes(16)
    assert opened(longer) == "SECTION"  # zeros beyond the last padding
    unaligned = assemble(items, total=len(good) + 8) + bytes(8)
    assert opened(unaligned) == "SECTION"
    assert not good[-1] and opened(good[:-1] + b"\1") == "SECTION"
    for start in (struct.unpack_from("<I", good, 16 + 16 * i + 4)[0] for i in range(1, len(items))):
        if not good[start - 1]:
            spoiled = good[: start - 1] + b"\1" + good[start:]
            assert opened(spoiled) in ("SECTION", "SECTION_CRC")


def test_an_image_of_more_than_2_to_the_27_bytes():
    total = (1 << 27) + 16
    data = bytearray(assemble([("INFO", bytes(total - 32))]))
    assert len(data) == total and opened(bytes(data)) == "SECTION"


def test_the_logits_are_a_vector():
    for shape in ((3, 5), (1, 2)):
        net = network()
        net["ops"] = net["ops"][:1]
        net["ops"][0] |= {"out": shape}
        assert opened(image(net)) != "OK"
    net = stored_network()
    pool = {"kind": "maxpool", "src": 0, "dst": 1, "zp": 0, "clamp": (0, 9), "kernel": (1, 1), "stride": (1, 1), "padding": (0, 0)}
    for shape, error in (((1, 1), "OK"), ((1, 3), "SHAPE")):
        assert opened(image(net | {"ops": [pool | {"out": shape}]})) == error
    assert opened(image(net | {"input": (2, 1, 1), "ops": [pool | {"out": (2, 1)}]})) == "SHAPE"


def test_a_kernel_has_at_most_2_to_the_22_weights():
    net = stored_network()
    net["input"] = (1, 1, 65)
    net["ops"] = [net["ops"][0] | {"cout": 65535, "w": [], "bias": [0] * 65535}]
    assert opened(image(net)) == "SHAPE"


SUMS = [(0, 15, "OK"), (0, 16, "OVERFLOW"), (2**31 - 1, 0, "OVERFLOW"), (-(2**31), 0, "OVERFLOW")]


@pytest.mark.parametrize(("bias", "shift", "error"), SUMS)
def test_sums_stay_below_2_to_the_30(bias, shift, error):
    net = single(plain("fc", 1, 1, shift_base=shift, weight_bits=8, w=[1], bias_bits=32 * (bias != 0), bias=[bias]), (1, 1, 1), [], [])
    assert opened(image(net)) == error


def test_seeded_tiles_and_wide_layers_are_bounded():
    seeded = {"kind": SEEDED, "generator": 0, "tile": 4096, "shift": 0, "m": 1, "seed": 1}
    op = plain("fc", 3, 1, source=SEEDED, width=1, codes=[0] * 1024, code_bits=4)
    net = single(op, (1, 1, 3), [{"dz": 1024, "layers": []}], [seeded])
    assert opened(image(net)) == "OK"
    net["heads"] = [seeded | {"tile": 4097}]
    assert opened(image(net)) == "SHAPE"


def test_codebooks_of_one_entry_have_ids_without_bytes():
    book = {"kind": CODEBOOK, "generator": 0, "of": 255, "entries": 1, "bits": 2, "tile": 2, "table": [-2, 1]}
    net = single(plain("fc", 5, 1, source=CODEBOOK, codes=[0] * 3, code_bits=0), (1, 1, 5), [], [book])
    test_fuzz.every_schedule(image(net), bytes((0, 0, 0, 9, 1, 5, 1, 0)))
    assert Image(image(net)).kernels()[0].tolist() == [-2, 1, -2, 1, -2]


def applied(entries: list[tuple[int, int, bytes]], **header) -> str:
    """What the library says to a pack for the base image of test_reference_packs.py."""
    data = test_reference_packs.pack(test_reference_packs.DATA, entries, **header)
    try:
        Image(test_reference_packs.DATA, codes=data)
    except ImageError as error:
        return ffi.string(lib.htpw_error_name(error.code)).decode()
    return "OK"


@pytest.mark.parametrize(("header", "message"), rules(test_reference_packs.test_header_and_entry_fields))
def test_header_and_entries_of_packs(header, message):
    entry = (6, test_reference_packs.CODE, test_reference_packs.parts_of(test_reference_packs.BASE["ops"][6])[1])
    assert applied([entry]) == "OK"
    assert applied([entry], **header) == ("BASE" if "base image" in message else "PACK")


def test_entries_of_packs_ascend_and_name_parts_that_there_are():
    _, entries = test_reference_packs.varied(test_reference_packs.BASE)
    assert applied(entries) == "OK"
    for wrong in (entries[::-1], [entries[1], entries[0]], [entries[0], entries[0]], [entries[3], entries[2]], [(1, 2, bytes(4))]):
        assert applied(wrong) == "PACK"
    for index, part in ((0, 0), (4, 0), (4, 1), (5, 1), (10, 1), (255, 0)):
        assert applied([(index, part, bytes(8))]) == "PACK"
    for delta in (-1, 1):
        assert applied([(1, 0, bytes(len(entries[0][2]) + delta))]) == "PACK"
