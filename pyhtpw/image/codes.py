"""Code packs (docs/SPEC.md section 10): new codes and requantisation for operators of an image that is already out there."""

import hashlib
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from pyhtpw.errors import ImageError
from pyhtpw.image.fields import pack_bits, signed_width, whole
from pyhtpw.image.reader import Parsed, ParsedOp, code_values, parse, read_model, requant_values
from pyhtpw.image.writer import PACK_MULTIPLIERS, assemble, multiplier_form

MAGIC = b"HTPC"
VERSION = 1
HEADER = 52
PARTS = ("CODE", "QUAN")  # by the number of the part in an entry
_SHA = 32


@dataclass(frozen=True)
class Entry:
    """New bytes for part "CODE" or "QUAN" of one operator."""

    op: int
    part: str
    data: bytes


@dataclass(frozen=True)
class Pack:
    """A code pack taken apart; `base` is the SHA-256 of the image that it belongs to."""

    number: int
    base: bytes
    entries: tuple[Entry, ...]


def make_pack(base: bytes, changed: bytes, number: int) -> bytes:
    """A code pack that turns image `base` into `changed`, holding only the parts that differ.

    The images are compared by their values: where `changed` was written with narrower fields than `base`, its values are
    written in those of `base`, whose records say how to read them.

    Parameters
    ----------
    base, changed : bytes
        Two images of one network.
    number : int
        Packs are ordered by it; a device refuses a pack whose number is lower than that of the one before.

    Raises
    ------
    ImageError
        Naming what else differs, or the field of `base` that a new value does not fit.
    """
    number = whole("code pack", "number", number, 0, (1 << 32) - 1)
    old, new = parse(base, "base image"), parse(changed, "changed image")
    read_model(base, "base image"), read_model(changed, "changed image")  # every value is in its range, or ImageError
    _same_but_parts(old, new)
    entries: list[Entry] = []
    for a, b in zip(old.ops, new.ops, strict=True):
        if a.generated:
            _differing(entries, old, a, "CODE", _codes(a, code_values(new, b)))
        if a.quan:
            _differing(entries, old, a, "QUAN", _quan(new, a, b))
    if not entries:
        raise ImageError("code pack: no codes and no requantisation differ between the two images")
    return _assemble(number, hashlib.sha256(base).digest(), entries)


def _differing(entries: list[Entry], old: Parsed, op: ParsedOp, part: str, data: bytes) -> None:
    offset, length = op.places[part]
    if len(data) != length:
        raise AssertionError(f"operator {op.index}: {part} was written as {len(data)} bytes, the base has {length}")
    if data != old.data[offset : offset + length]:
        entries.append(Entry(op.index, part, data))


def _codes(op: ParsedOp, values: np.ndarray) -> bytes:
    """Codes or ids in the width of the base image."""
    need = signed_width(values)
    if op.code_bits and need > op.code_width:
        raise ImageError(f"operator {op.index}: code width differs: the base has {op.code_width} bits, the new codes need {need}")
    return pack_bits(values, op.code_width)


def _quan(new: Parsed, a: ParsedOp, b: ParsedOp) -> bytes:
    """Requantisation of `b`, an operator of `new`, in the fields of `a`."""
    where, form, values = f"operator {a.index}", a.form, requant_values(new, b)
    if form.count != b.form.count:
        raise ImageError(
            f"{where}: per-tensor requantisation differs: {form.count} multipliers in the base, {b.form.count} in the other"
        )
    least = multiplier_form(values.multipliers)
    if form.form != least and form.form != 2 and not (form.form == 0 and least == 1):
        raise ImageError(f"{where}: multiplier form differs: the new multipliers are not exact in the base's form {form.form}")
    shifts = values.shifts - form.shift_base
    if shifts.min() < 0 or int(shifts.max()).bit_length() > form.shift_bits:
        raise ImageError(
            f"{where}: shift width differs: the base holds shifts from {form.shift_base} in {form.shift_bits} bits, "
            f"the new ones are {values.shifts.min()}..{values.shifts.max()}"
        )
    if signed_width(values.biases) > form.bias_bits:
        raise ImageError(
            f"{where}: bias width differs: the base has {form.bias_bits} bits, the new biases need {signed_width(values.biases)}"
        )
    return (
        PACK_MULTIPLIERS[form.form](values.multipliers)
        + pack_bits(shifts, form.shift_bits)
        + pack_bits(values.biases, form.bias_bits)
    )


_FIELDS = {
    "kind": "kind", "reads": "inputs", "out": "shape or zero point of the output", "act_min": "act_min", "act_max": "act_max",
    "window": "window", "add": "scalars of the add", "mul": "scalars of the mul",
    "attend": "scalars of the attend", "source": "weight source", "head": "head", "narrow": "narrow",
    "weight_shape": "shape of the weights",
}  # fmt: skip


def _same_but_parts(old: Parsed, new: Parsed) -> None:
    """Raises ImageError for the first thing that differs and that a code pack cannot change."""
    if old.input != new.input:
        raise ImageError("code pack: the input tensor differs")
    if len(old.ops) != len(new.ops):
        raise ImageError(f"code pack: the number of operators differs ({len(old.ops)} and {len(new.ops)})")
    for a, b in zip(old.ops, new.ops, strict=True):
        for field, name in _FIELDS.items():
            if getattr(a, field) != getattr(b, field):
                raise ImageError(f"operator {a.index}: {name} differs")
    for tag in ("INFO", "GENR", "HEAD", "WGHT"):
        (at, n), (to, m) = (p.sections.get(tag, (0, 0)) for p in (old, new))
        if old.data[at : at + n] != new.data[to : to + m]:
            raise ImageError(f"code pack: section {tag} differs, and a pack holds codes and requantisation alone")


def _assemble(number: int, base: bytes, entries: list[Entry]) -> bytes:
    body = b""
    for entry in entries:
        body += struct.pack("<BBHI", entry.op, PARTS.index(entry.part), 0, len(entry.data))
        body += entry.data + bytes(-len(entry.data) % 4)
    head = struct.pack("<4sBBHII", MAGIC, VERSION, 0, len(entries), HEADER + len(body), number) + base
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


def parse_pack(data: bytes, name: str = "code pack") -> Pack:
    """Takes a code pack apart. Raises ImageError, naming `name`, unless it is whole and well-formed."""
    data = bytes(data)
    if len(data) < HEADER:
        raise ImageError(f"{name}: {len(data)} bytes are too few for a code pack")
    magic, version, zero, count, total, number = struct.unpack_from("<4sBBHII", data)
    if magic != MAGIC or version != VERSION or zero:
        raise ImageError(f"{name}: is not a code pack of version {VERSION}")
    if total != len(data) or total % 4:
        raise ImageError(f"{name}: total length is {total}, there are {len(data)} bytes")
    if zlib.crc32(data[: HEADER - 4] + data[HEADER:]) != struct.unpack_from("<I", data, HEADER - 4)[0]:
        raise ImageError(f"{name}: the checksum is wrong")
    entries, at, last = [], HEADER, (-1, -1)
    for i in range(count):
        if at + 8 > total:
            raise ImageError(f"{name}: entry {i} ends after the file")
        op, part, zero, length = struct.unpack_from("<BBHI", data, at)
        end = at + 8 + length
        if part >= len(PARTS) or zero or (op, part) <= last:
            raise ImageError(f"{name}: entry {i} names operator {op}, part {part}: unknown, twice or out of order")
        if end + -length % 4 > total or any(data[end : end + -length % 4]):
            raise ImageError(f"{name}: entry {i} ends after the file, or what pads it is not 0")
        entries.append(Entry(op, PARTS[part], data[at + 8 : end]))
        at, last = end + -length % 4, (op, part)
    if not entries or at != total:
        raise ImageError(f"{name}: {total - at} bytes are left over after {len(entries)} entries")
    return Pack(number, data[16 : 16 + _SHA], tuple(entries))


def apply_pack(base: bytes, pack: bytes, name: str = "code pack") -> bytes:
    """The image that a device runs after it has applied `pack`: `base` with the pack's parts in place of its own.

    Raises ImageError if the pack belongs to another image, or breaks a rule of SPEC 4.3 or 4.7. The C library checks the
    rest (SPEC section 7) when it opens the result.
    """
    parsed, taken = parse(base, "base image"), parse_pack(pack, name)
    if hashlib.sha256(base).digest() != taken.base:
        raise ImageError(f"{name}: belongs to another base image")
    out = bytearray(base)
    for entry in taken.entries:
        where = f"{name}: operator {entry.op}"
        if entry.op >= len(parsed.ops) or entry.part not in parsed.ops[entry.op].places:
            raise ImageError(f"{where} has no {entry.part} in the base image")
        offset, length = parsed.ops[entry.op].places[entry.part]
        if len(entry.data) != length:
            raise ImageError(f"{where}: {entry.part} has {len(entry.data)} bytes, the base image's has {length}")
        out[offset : offset + length] = entry.data
    result = assemble({tag: bytes(out[at : at + n]) for tag, (at, n) in parsed.sections.items()})
    read_model(result, name)
    return result
