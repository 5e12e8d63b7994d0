"""Code packs put together by hand: what they change, and what is refused.

A pack that is applied must give the model of an image that had the new values from the start.
"""

from __future__ import annotations

import copy
import hashlib
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import test_reference_scalar as scalar
from reference_images import assemble, image, network, parts_of, payloads, stored_network

import reference
from reference import ImageError, PackError, apply_pack, synthesis
from reference.packs import read_pack

CODE, QUAN = 0, 1


def pack(base: bytes, entries: list[tuple[int, int, bytes]], **header) -> bytes:
    """Section 10; ``header`` overrides single fields, the CRC is put right afterwards."""
    body = b""
    for operator, part, data in entries:
        body += struct.pack("<BBHI", operator, part, header.get("entry_zero", 0), header.get("length", len(data)))
        body += data + header.get("padding", b"\0") * (-len(data) % 4)
    body += header.get("rest", b"")
    head = struct.pack(
        "<4sBBHII32s",
        header.get("magic", b"HTPC"),
        header.get("version", 1),
        header.get("zero", 0),
        header.get("count", len(entries)),
        header.get("total", 52 + len(body)),
        header.get("number", 1),
        header.get("sha", hashlib.sha256(base).digest()),
    )
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


def varied(net: dict) -> tuple[dict, list[tuple[int, int, bytes]]]:
    """Another choice of codes for operators 1 and 6 and of requantisation for 1 and 2."""
    new = copy.deepcopy(net)
    new["ops"][1]["codes"].reverse()
    new["ops"][6]["codes"] = [3 - i for i in net["ops"][6]["codes"]]
    new["ops"][1]["bias"].reverse()
    new["ops"][2]["u"] = [7 - u for u in net["ops"][2]["u"]]
    entries = [(1, CODE), (1, QUAN), (2, QUAN), (6, CODE)]
    return new, [(i, part, parts_of(new["ops"][i])[part == CODE]) for i, part in entries]


BASE = network()
DATA = image(BASE)


def test_a_pack_gives_the_model_that_has_its_values():
    new, entries = varied(BASE)
    expected, old = reference.read(image(new)), reference.read(DATA)
    model = apply_pack(DATA, pack(DATA, entries))
    kernels = synthesis.kernels(model)
    for index, w in synthesis.kernels(expected).items():
        assert np.array_equal(kernels[index], w)
        assert np.array_equal(w, synthesis.weights(old, index)) == (index not in (1, 6))
    x = scalar.tensor(5, 20, *BASE["input"])
    for (_, result), (_, wanted) in zip(reference.trace(model, x), reference.trace(expected, x), strict=True):
        assert np.array_equal(result, wanted)
    assert model.info == old.info
    # A pack of what is there already changes nothing.
    entries = [(i, part, parts_of(BASE["ops"][i])[part == CODE]) for i, part, _ in entries]
    assert np.array_equal(reference.run(apply_pack(DATA, pack(DATA, entries)), x), reference.run(old, x))


def test_any_flipped_bit_and_any_truncation_is_noticed():
    good = pack(DATA, varied(BASE)[1])
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        with pytest.raises(PackError):
            read_pack(bytes(bad))
        with pytest.raises(PackError):
            read_pack(good[:position])
    with pytest.raises(PackError, match="total length"):
        read_pack(good + bytes(4))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"magic": b"HTPW"}, "magic"),
        ({"version": 0}, "version 0"),
        ({"version": 2}, "version 2"),
        ({"zero": 1}, "byte 5"),
        ({"count": 0}, "no entries"),
        ({"count": 2}, "entry 1 does not fit"),
        ({"total": 53}, "multiple of 4"),
        ({"total": 56}, "total length"),
        ({"sha": bytes(32)}, "another base image"),
        ({"entry_zero": 1}, "bytes 2 and 3"),
        ({"padding": b"\1"}, "padding"),
        ({"length": 1 << 20}, "entry 0 does not fit"),
        ({"length": (1 << 32) - 1}, "entry 0 does not fit"),
        ({"rest": bytes(4)}, "left over"),
        ({"rest": bytes(8)}, "left over"),
    ],
)
def test_header_and_entry_fields(header, message):
    entry = (6, CODE, parts_of(BASE["ops"][6])[1])
    assert len(entry[2]) % 4
    apply_pack(DATA, pack(DATA, [entry]))
    with pytest.raises(PackError, match=message) as caught:
        apply_pack(DATA, pack(DATA, [entry], **header))
    assert "\n" not in str(caught.value)


def test_wrong_checksum():
    bad = bytearray(pack(DATA, varied(BASE)[1]))
    bad[48] ^= 1
    with pytest.raises(PackError, match="CRC"):
        read_pack(bytes(bad))


def test_order_of_entries():
    _, entries = varied(BASE)
    for wrong in (entries[::-1], [entries[1], entries[0]], [entries[0], entries[0]], [entries[3], entries[2]]):
        with pytest.raises(PackError, match="entry 1 is out of order or there twice"):
            read_pack(pack(DATA, wrong))
    with pytest.raises(PackError, match="part 2 is unknown"):
        read_pack(pack(DATA, [(1, 2, bytes(4))]))


def test_only_parts_that_the_base_has():
    for index, part in ((0, CODE), (4, CODE), (4, QUAN), (5, QUAN), (10, QUAN), (255, CODE)):
        with pytest.raises(PackError, match=f"operator {index} (CODE|QUAN): the base image has no such part"):
            apply_pack(DATA, pack(DATA, [(index, part, bytes(8))]))


def test_the_length_must_be_that_of_the_base():
    for delta in (-1, 1):
        right = len(parts_of(BASE["ops"][1])[1])
        new = bytes(right + delta)
        with pytest.raises(PackError, match=f"operator 1 CODE: {len(new)} bytes, the base image has {right}"):
            apply_pack(DATA, pack(DATA, [(1, CODE, new)]))


def test_a_lower_number_is_refused():
    good = pack(DATA, varied(BASE)[1], number=7)
    for applied in (0, 6, 7):
        apply_pack(DATA, good, applied)
    with pytest.raises(PackError, match="number 7 is lower than 8"):
        apply_pack(DATA, good, 8)
    apply_pack(DATA, pack(DATA, varied(BASE)[1], number=0))


def test_new_values_obey_the_rules_of_the_old():
    net = network(use=("stored8", 6, 2, 3, 10, 1))  # 9 entries: ids of 4 bits
    data = image(net)
    apply_pack(data, pack(data, [(6, CODE, bytes([0x88] * 5))]))
    with pytest.raises(PackError, match="id 9 of 9 entries"):
        apply_pack(data, pack(data, [(6, CODE, bytes([0x88, 0x98, 0, 0, 0]))]))
    op = net["ops"][0]
    assert (op["form"], op["bias_bits"]) == (0, 12)
    for changes, message in (
        ({"m": [32768] * 6}, "multiplier 32768"),
        ({"m": [65535] * 6}, "multiplier 65535"),
    ):
        with pytest.raises(PackError, match=f"with its values, OPS operator 0 .*{message}"):
            apply_pack(data, pack(data, [(0, QUAN, parts_of(op | changes)[0])]))
    # Section 7, and the unused bits of a last byte.
    net = stored_network()
    net["ops"][0] |= {"bias_bits": 31, "bias": [0, 0]}
    data = image(net)
    limit = (1 << 30) - 3 * 255 * 128
    for bias in (limit - 1, 1 - limit):
        apply_pack(data, pack(data, [(0, QUAN, parts_of(net["ops"][0] | {"bias": [0, bias]})[0])]))
    for bias in (limit, -limit):
        with pytest.raises(PackError, match=r"sums may reach .* limit is 2\^30"):
            apply_pack(data, pack(data, [(0, QUAN, parts_of(net["ops"][0] | {"bias": [0, bias]})[0])]))
    part = bytearray(parts_of(net["ops"][0])[0])
    part[-1] |= 0x80
    with pytest.raises(PackError, match="unused bits"):
        apply_pack(data, pack(data, [(0, QUAN, bytes(part))]))


def test_a_part_without_bytes():
    """A codebook of one entry takes no ids: a pack may name it, and brings nothing."""
    net = network(use=("stored8", 13, 2, 3, 9, 1))
    data = image(net)
    x = scalar.tensor(5, 2, *net["input"])
    model = apply_pack(data, pack(data, [(1, CODE, b"")]))
    assert np.array_equal(reference.run(model, x), reference.run(reference.read(data), x))


def test_an_invalid_base_is_an_image_error():
    parts = payloads(BASE)
    parts["CODE"] += b"\0"
    data = assemble(list(parts.items()))
    with pytest.raises(ImageError, match="CODE: 1 bytes are left over"):
        apply_pack(data, pack(data, varied(BASE)[1]))


def test_command_line(tmp_path):
    x = scalar.tensor(0, 4, *BASE["input"])
    good = pack(DATA, varied(BASE)[1])
    (tmp_path / "model.htpw").write_bytes(DATA)
    (tmp_path / "codes.htpc").write_bytes(good)
    np.save(tmp_path / "x.npy", x)

    def run() -> subprocess.CompletedProcess:
        files = [tmp_path / "model.htpw", tmp_path / "x.npy", "--pack", tmp_path / "codes.htpc"]
        root = Path(__file__).parents[1]
        return subprocess.run([sys.executable, "-m", "reference", *files], capture_output=True, text=True, cwd=root)

    done = run()
    assert done.returncode == 0, done.stderr
    expected = reference.run(apply_pack(DATA, good), x)
    assert [[int(v) for v in line.split()] for line in done.stdout.splitlines()] == expected.tolist()
    (tmp_path / "codes.htpc").write_bytes(good[:-4])
    done = run()
    assert done.returncode == 1
    assert done.stderr.startswith("reference: code pack: total length")
