"""What the reader returns, and what it refuses.

Images come from the assembler of ``reference_images``. A test spoils one entry of a network,
or one byte of a payload with all checksums put right again, and expects the refusal that names it.
"""

from __future__ import annotations

import copy
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_reference_scalar as scalar
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_images import (
    TAGS,
    assemble,
    bits,
    first_multiplier,
    generator_bytes,
    head_bytes,
    image,
    network,
    op,
    parts_of,
    payloads,
    stored_network,
    top,
)

import reference
from reference import ImageError, synthesis


def test_what_the_reader_returns():
    net = network()
    model = reference.read(image(net))
    assert model.input_shape == (5, 6, 2) and model.input_zero_point == 3
    assert model.classes == 4 and model.info == net["info"]
    assert [op.kind for op in model.operators] == [op["kind"] for op in net["ops"]]
    conv = model.operators[0]
    assert conv.windows.padding == (1, 2) and conv.windows.dilation == (1, 2)
    assert conv.linear.weight_shape == (6, 3, 3, 1)
    assert conv.linear.bias.tolist() == net["ops"][0]["bias"]
    assert synthesis.weights(model, 0).reshape(-1).tolist() == net["ops"][0]["w"]
    assert sorted(synthesis.kernels(model)) == [1, 2, 3, 6, 8]
    assert model.operators[4].sources == (3, 4)
    with pytest.raises(ValueError, match="has no weights"):
        synthesis.weights(model, 4)
    with pytest.raises(IndexError):
        synthesis.weights(model, 10)


def test_absent_and_empty_sections_are_the_same():
    net = stored_network()
    parts = payloads(net)
    needed = [(tag, parts[tag]) for tag in ("OPS ", "QUAN", "WGHT")]
    x = np.array([[[[5], [-7], [100]]]], np.int8)
    # (5+14+300, -128*5 - 127*7) * 20000 * 2^16 * 2^(-7-31) = 1.52, -7.3
    for sections in (needed, list(parts.items()), [*needed, ("HEAD", b"")]):
        logits = reference.run(reference.read(assemble(sections)), x)
        assert logits.tolist() == [[2, -7]]


def test_quan_may_be_empty_or_absent():
    net = stored_network()
    net["input"] = (1, 1, 2)
    net["ops"] = [{"kind": "maxpool", "src": 0, "dst": 1, "zp": 0, "clamp": (0, 9)}]
    net["ops"][0] |= {"out": (1, 1), "kernel": (1, 1), "stride": (1, 1), "padding": (0, 0)}
    ops = ("OPS ", payloads(net)["OPS "])
    model = reference.read(assemble([ops, ("QUAN", b"")]))
    assert reference.run(model, np.array([[[[-1, 10]]]], np.int8)).tolist() == [[0, 9]]
    model = reference.read(assemble([ops]))
    assert reference.run(model, np.array([[[[-1, 10]]]], np.int8)).tolist() == [[0, 9]]
    with pytest.raises(ImageError, match="OPS is missing"):
        reference.read(assemble([("QUAN", b"")]))


def test_trailing_zeros_end_at_the_next_multiple_of_16():
    parts = list(payloads(stored_network()).items())
    good = assemble(parts)
    with pytest.raises(ImageError, match="beyond the next multiple"):
        reference.read(assemble(parts, total=len(good) + 32) + bytes(32))
    assert not good[-1]
    with pytest.raises(ImageError, match="padding (after|before)"):
        reference.read(good[:-1] + b"\1")


def test_run_refuses_a_wrong_input():
    model = reference.read(image(stored_network()))
    for x in (
        np.zeros((1, 1, 3, 1), np.float32),
        np.zeros((1, 3, 1), np.int8),
        np.zeros((1, 1, 4, 1), np.int8),
        [[[[0]]]],
    ):
        with pytest.raises(ValueError, match="x must"):
            reference.run(model, x)
    assert reference.run(model, np.zeros((0, 1, 3, 1), np.int8)).shape == (0, 2)


def test_command_line(tmp_path):
    net = network()
    x = scalar.tensor(0, 2, *net["input"])
    (tmp_path / "model.htpw").write_bytes(image(net))
    np.save(tmp_path / "x.npy", x)

    def run() -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "reference", tmp_path / "model.htpw", tmp_path / "x.npy"]
        root = Path(__file__).parents[1]
        return subprocess.run(command, capture_output=True, text=True, cwd=root)

    done = run()
    assert done.returncode == 0, done.stderr
    expected = reference.run(reference.read(image(net)), x)
    assert [[int(v) for v in line.split()] for line in done.stdout.splitlines()] == expected.tolist()
    np.save(tmp_path / "x.npy", x[:, :1])
    done = run()
    assert done.returncode == 1 and done.stderr.startswith("reference: x must have shape")


def test_any_flipped_bit_is_noticed():
    good = image(network())
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        with pytest.raises(ImageError):
            reference.read(bytes(bad))


def test_any_truncation_or_extension_is_noticed():
    good = image(network())
    for length in range(len(good)):
        with pytest.raises(ImageError):
            reference.read(good[:length])
    for extra in (1, 16):
        with pytest.raises(ImageError, match="total length"):
            reference.read(good + bytes(extra))


@pytest.mark.parametrize("tag", TAGS[1:])
def test_any_truncated_or_extended_payload_is_noticed(tag):
    parts = payloads(network())
    whole = parts[tag]
    for length in range(len(whole)):
        parts[tag] = whole[:length]
        with pytest.raises(ImageError):
            reference.read(assemble(list(parts.items())))
    for extra in (b"\0", b"\0\0\0\0"):
        parts[tag] = whole + extra
        with pytest.raises(ImageError, match="left over"):
            reference.read(assemble(list(parts.items())))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("magic", b"HTPV", "magic"),
        ("version", 1, "version"),
        ("version", 3, "version"),
        ("rounding", 0, "rounding"),
        ("section_count", 0, "sections"),
        ("section_count", 17, "sections"),
        ("zero", 1, "byte 7"),
        ("total", 1000, "multiple of 16"),
        ("total", 16, "total length"),
    ],
)
def test_header_fields(field, value, message):
    with pytest.raises(ImageError, match=message):
        reference.read(assemble(list(payloads(network()).items()), **{field: value}))


def test_each_checksum():
    parts = list(payloads(network()).items())
    good = assemble(parts)
    bad = bytearray(good)
    bad[12] ^= 0x80
    with pytest.raises(ImageError, match="header CRC"):
        reference.read(bytes(bad))
    for index, (tag, payload) in enumerate(parts):
        bad = bytearray(good)
        (offset,) = struct.unpack_from("<I", bad, 16 + 16 * index + 4)
        bad[offset + len(payload) - 1] ^= 1
        with pytest.raises(ImageError, match=f"{tag.strip()}: CRC"):
            reference.read(bytes(bad))


def test_section_table():
    parts = payloads(network())
    items = list(parts.items())
    for sections, message in [
        ([*items, ("MORE", b"")], "unknown section"),
        ([*items, ("CODE", b"")], "twice"),
        ([items[1], items[0], *items[2:]], "out of order"),
    ]:
        with pytest.raises(ImageError, match=message):
            reference.read(assemble(sections))
    good = assemble(items)
    table = bytearray(good[16 : 16 + 16 * len(items)])
    for entry, name in enumerate(tag.strip() for tag in parts):
        for position, delta, message in ((4, 16, "offset"), (8, 1 << 20, "ends after")):
            bad = bytearray(table)
            (value,) = struct.unpack_from("<I", bad, 16 * entry + position)
            struct.pack_into("<I", bad, 16 * entry + position, value + delta)
            with pytest.raises(ImageError, match=f"{name}: .*{message}"):
                reference.read(assemble(items, table=bytes(bad)))
    with pytest.raises(ImageError, match="table does not fit"):
        reference.read(assemble([], section_count=1, total=16))


def test_padding_between_payloads():
    parts = list(payloads(network()).items())
    good = assemble(parts)
    for index in range(1, len(parts)):
        offset, length = struct.unpack_from("<II", good, 16 + 16 * index - 16 + 4)
        (following,) = struct.unpack_from("<I", good, 16 + 16 * index + 4)
        if offset + length == following:
            continue
        bad = bytearray(good)
        bad[following - 1] = 1
        with pytest.raises(ImageError, match="padding before"):
            reference.read(bytes(bad))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (top(input=(0, 6, 2)), "shape"),
        (top(input=(5, 0, 2)), "shape"),
        (top(input=(5, 6, 0)), "shape"),
        (top(input=(2048, 2048, 2)), "shape"),
        (top(count=0), "no operators"),
        (top(count=9), "left over"),
        (top(count=11), "OPS: operator 10"),
        (op(0, code=0), "kind 0"),
        (op(0, code=11), "kind 11"),
        (op(0, src=5), "slot 5 is read before"),
        (op(0, src=8), "input slot 8"),
        (op(0, dst=0), "output slot 0"),
        (op(0, dst=8), "output slot 8"),
        (op(2, dst=2), "slot 2 is read and written"),
        (op(4, dst=4), "slot 4 is read and written"),
        (op(4, src2=6), "slot 6 is read before"),
        (op(4, src2=9), "input slot 9"),
        (op(4, src2=2), "differ"),
        (op(0, clamp=(5, 4)), "act_min"),
        (op(0, bit6=1), "bit 6"),
        (op(0, narrow=True), "stored8 cannot be narrow"),
        (op(0, width=1), "stored weights have no codes"),
        (op(0, head=1), "head must be 0"),
        *((op(0, source=source), f"weight source {source} is unknown") for source in range(8, 16)),
        (op(1, head=14), "head 14 does not exist"),
        *((op(1, source=source), "source is .*, head 6 is tiled") for source in (3, 4, 6, 7)),
        (op(2, source=3), "source is dense, head 2 is factorised"),
        (op(1, width=0), "width of the codes is missing"),
        (op(8, width=0), "width of the codes is missing"),
        (op(6, width=1), "must be 0 for a codebook"),
        (op(6, head=11, narrow=True), "head 11 cannot be narrow"),
        (op(8, head=0), "head 0 makes 72 weights, the kernel has 56"),
        (op(2, head=4), "head 4 makes 70 weights, the kernel has 60"),
        (op(0, form=3), "multiplier form 3"),
        (op(0, shift_bits=6, u=[0] * 6), "shift_bits 6"),
        (op(0, shift_bits=7, u=[0] * 6), "shift_bits 7"),
        (op(0, reserved=0x20), "reserved"),
        (op(0, reserved=0x40), "reserved"),
        (op(0, bias_bits=33), "bias_bits 33"),
        (op(0, cout=0), "Cout"),
        (op(8, cout=0), "Cout"),
        (op(0, kernel=(0, 3)), "kernel"),
        (op(0, kernel=(3, 0)), "kernel"),
        (op(0, stride=(0, 1)), "stride"),
        (op(0, stride=(1, 0)), "stride"),
        (op(0, dilation=(0, 1)), "dilation"),
        (op(0, dilation=(1, 0)), "dilation"),
        (op(0, groups=0), "groups"),
        (op(0, groups=3), "groups"),
        (op(6, groups=7), "groups"),
        (op(1, cout=13), "multiple of Cin"),
        (op(0, out=(0, 5)), "output: shape"),
        (op(0, out=(3, 0)), "output: shape"),
        (op(0, out=(65535, 65535)), "output: shape"),
        (op(5, out=(0, 2)), "output: shape"),
        (op(5, zero=1), "byte 5"),
        (op(5, kernel=(0, 3)), "kernel"),
        (op(5, stride=(2, 0)), "stride"),
        (op(5, padding=(2, 0)), "no cell"),
        (op(5, padding=(1, 3)), "no cell"),
        (op(5, out=(3, 2)), "no cell"),
        (op(5, out=(2, 3)), "no cell"),
        (op(5, zp=-3), "zero point"),
        (op(4, left_shift=15), "left_shift"),
        (op(4, left_shift=23), "left_shift"),
        (op(4, shifts=(1, 0, -19)), "shift 1"),
        (op(4, shifts=(0, 1, -19)), "shift 1"),
        (op(4, shifts=(0, 0, 1)), "shift 1"),
        (op(4, shifts=(-32, 0, 0)), "shift -32"),
        (op(4, multipliers=(1 << 31, 0, 0)), "multiplier 2147483648"),
        (op(4, multipliers=(0, 1 << 31, 0)), "multiplier 2147483648"),
        (op(4, multipliers=(0, 0, (1 << 32) - 1)), "multiplier 4294967295"),
        (first_multiplier(32768, 0), "multiplier 32768"),
        (first_multiplier(1 << 31, 2), "multiplier 2147483648"),
        (op(0, shift_base=-32, u=[0] * 6), "shift -32"),
        (op(0, shift_base=24, u=[7] * 6), "shift 31"),
    ],
)
def test_each_rule(change, message):
    net = network()
    change(net)
    with pytest.raises(ImageError, match=message) as caught:
        reference.read(image(net))
    assert "\n" not in str(caught.value)


def many(count: int, **changes) -> dict:
    """``count`` times the same fc, (1, 1, 2) to (1, 1, 2), between slots 0, 1 and 2."""
    net = stored_network()
    op = net["ops"][0] | {"w": [1, 0, 0, 1], "weight_bits": 4, "source": 1} | changes
    net["input"] = (1, 1, 2)
    net["ops"] = [op | {"src": 2 - i % 2 if i else 0, "dst": 1 + i % 2} for i in range(count)]
    return net


def test_at_most_64_operators_are_cached():
    assert len(synthesis.kernels(reference.read(image(many(64))))) == 64
    with pytest.raises(ImageError, match="operator 64 .* more than 64 cached"):
        reference.read(image(many(65)))
    # Narrow stored4 and stored8 run as they are stored.
    assert synthesis.kernels(reference.read(image(many(200, narrow=True)))) == {}
    assert synthesis.kernels(reference.read(image(many(200, source=0, weight_bits=8)))) == {}
    with pytest.raises(ImageError, match="more than 64 cached"):
        reference.read(image(many(65, source=2, weight_bits=2, narrow=True)))


def test_a_kernel_has_at_most_2_to_the_22_weights():
    net = many(1, cout=65535, w=[], per_tensor=True, bias=[0] * 65535)
    net["input"] = (1, 1, 65)
    with pytest.raises(ImageError, match="a kernel of 4259775 weights is above 2\\^22"):
        reference.read(image(net))


def test_the_logits_must_be_a_vector():
    net = network()
    net["ops"] = net["ops"][:1]
    with pytest.raises(ImageError, match="1, 1, classes"):
        reference.read(image(net))


def spoiled(net: dict, tag: str, before: bytes, width: int, count: int) -> bytes:
    """The image with the top bit of a packed array's last byte set, which must be unused.

    ``before`` is what precedes the array in its payload.
    """
    parts = payloads(net)
    assert parts[tag].startswith(before) and width * count % 8
    position = len(before) + width * count // 8
    assert parts[tag][position] < 0x80
    parts[tag][position] |= 0x80
    return assemble(list(parts.items()))


def test_unused_bits_of_packed_arrays_must_be_zero():
    net = network(seed=3, use=("stored2", 7, 2, 8, 9, "stored4"))
    op, g, heads = net["ops"][0], net["generators"][0], net["heads"]
    net["ops"][0] |= {"bias_bits": 11}
    net["ops"][1] |= {"width": 2, "code_bits": 6}  # 11 tiles of 5 codes
    heads[9] |= {"entries": 3, "codes": heads[9]["codes"][:6]}
    net["ops"][6]["codes"] = [0] * 5
    heads_before = [bytes([len(heads)]) + b"".join(map(head_bytes, heads[:i])) for i in range(len(heads))]
    shifts = struct.pack("<6H", *op["m"])
    cases = [
        ("QUAN", shifts, 3, 6, "shifts of .*operator 0"),
        ("QUAN", shifts + bits(op["u"], 3), 11, 6, "biases of .*operator 0"),
        ("WGHT", b"", 2, 54, "weights of .*operator 0"),
        ("GENR", b"\3\2\3\0" + struct.pack("<HBBbH", *(g["layers"][0][name] for name in MATRIX)), 6, 15, "weights"),
        ("GENR", b"\3" + generator_bytes(g | {"layers": g["layers"][:1], "count": 2})[:-6], 9, 5, "biases"),
        ("HEAD", heads_before[12] + head_bytes(heads[12])[:-1], 3, 1, "biases of HEAD 12"),
        ("HEAD", heads_before[8] + head_bytes(heads[8])[:8], 4, 25, "table of HEAD 8"),
        ("HEAD", heads_before[9] + head_bytes(heads[9])[:6], 6, 6, "codes of HEAD 9"),
        ("CODE", b"", 6, 55, "codes of .*operator 1"),
    ]
    for tag, before, width, count, message in cases:
        with pytest.raises(ImageError, match=f"{tag}: {message}.*: unused bits"):
            reference.read(spoiled(net, tag, bytes(before), width, count))
    # Ids: 12 of 3 bits, behind the codes of operators 1 and 2.
    before = b"".join(parts_of(net["ops"][i])[1] for i in (1, 2))
    with pytest.raises(ImageError, match="CODE: codes of .*operator 3 .*: unused bits"):
        reference.read(spoiled(net, "CODE", before, 3, 12))


MATRIX = ("rows", "weight_bits", "bias_bits", "shift", "m")


def test_skipped_bytes_of_stored_weights_must_be_zero():
    net = network(use=("stored8", 6, 2, "stored4", "stored8", 1))
    net["ops"][3] |= {"w": [-8, 7] * 30}
    parts = payloads(net)
    # 54 bytes, right behind them 30 of 4-bit weights, and 84 is a multiple of 4.
    assert parts["WGHT"][54] == 0x78 and len(parts["WGHT"]) == 84 + 70
    reference.read(image(net))
    net = network(use=("stored8", 6, "stored8", "stored4", "stored2", 1))
    parts = payloads(net)
    assert parts["WGHT"][54:56] == b"\0\0" and len(parts["WGHT"]) == 56 + 60 + 30 + 18
    parts["WGHT"][55] = 1
    with pytest.raises(ImageError, match="alignment"):
        reference.read(assemble(list(parts.items())))


@pytest.mark.parametrize(("left", "sign"), [(0, 1), (0, -1), (1, 1), (5, -1)])
def test_the_overflow_bound_is_exact(left, sign):
    net = stored_network()
    net["ops"][0] |= {"shift_base": left, "bias_bits": 32}
    limit = (1 << (30 - left)) - 3 * 255 * 128
    net["ops"][0]["bias"] = [0, sign * (limit - 1)]
    reference.read(image(net))
    net["ops"][0]["bias"] = [0, sign * limit]
    with pytest.raises(ImageError, match="limit is 2\\^30"):
        reference.read(image(net))


@given(st.sampled_from(TAGS[1:]), st.integers(0, 10**6), st.integers(0, 255))
@settings(deadline=None, max_examples=400)
def test_an_image_that_is_accepted_also_runs(tag, position, value):
    """Any payload byte changed, checksums right: refused, or no kernel has anything to refuse."""
    parts = copy.deepcopy(PARTS)
    parts[tag][position % len(parts[tag])] = value
    try:
        model = reference.read(assemble(list(parts.items())))
    except ImageError:
        return
    if all(np.prod(op.output_shape) < 1 << 16 for op in model.operators):
        x = scalar.tensor(value, 1, *model.input_shape)
        assert reference.run(model, x).shape == (1, model.classes)


PARTS = payloads(network(seed=1))
