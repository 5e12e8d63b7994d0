"""Code packs: new codes and requantisation for some operators of an image that is already there.

A pack names its base image by SHA-256. It brings whole parts of CODE and QUAN, each as long as
the one it replaces, so that it is applied by exchanging bytes of the payloads and reading the
operators again: every rule that the old bytes obeyed is asked of the new ones.

Source: section 10 of the specification.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass

from .image import ImageError, Model, read_payloads
from .sections import sections

MAGIC = b"HTPC"
VERSION = 1
HEADER = "<4sBBHII32sI"
HEADER_BYTES = struct.calcsize(HEADER)
CRC_OFFSET = HEADER_BYTES - 4
ENTRY = "<BBHI"
ENTRY_BYTES = struct.calcsize(ENTRY)
PARTS = {0: b"CODE", 1: b"QUAN"}


class PackError(ValueError):
    """The bytes are not a valid code pack, or not one for this image."""


@dataclass(frozen=True)
class Pack:
    """A pack on its own: ``entries`` maps (operator, part) to the new bytes, part as in PARTS."""

    number: int
    base: bytes
    entries: dict[tuple[int, int], bytes]


def apply_pack(base: bytes, data: bytes, applied: int = 0) -> Model:
    """Read an image with a code pack applied to it.

    Parameters
    ----------
    base : bytes
        The base image, the whole file.
    data : bytes
        The pack, nothing after it.
    applied : int
        Number of the pack that was applied before; a lower one is refused. 0 refuses none.

    Returns
    -------
    Model
        As ``image.read`` returns it, with the codes and the requantisation of the pack.

    Raises
    ------
    ImageError
        ``base`` is not a valid image.
    PackError
        The pack is malformed, made for another image, older than the one applied before, or
        brings values that would make the image invalid.
    """
    base = bytes(memoryview(base))
    payloads = sections(base)
    model = read_payloads(payloads)
    pack = read_pack(data)
    _require(pack.base == hashlib.sha256(base).digest(), "it is for another base image")
    _require(pack.number >= applied, f"number {pack.number} is lower than {applied}, which was applied before")

    changed = {tag: bytearray(payload) for tag, payload in payloads.items()}
    for (index, part), new in pack.entries.items():
        where = f"operator {index} {PARTS[part].decode()}"
        place = _place(model, index, part)
        _require(place is not None, f"{where}: the base image has no such part")
        length = place.stop - place.start
        _require(len(new) == length, f"{where}: {len(new)} bytes, the base image has {length}")
        changed[PARTS[part]][place] = new
    try:
        return read_payloads({tag: bytes(payload) for tag, payload in changed.items()})
    except ImageError as error:
        raise PackError(f"code pack: with its values, {error}") from None


def read_pack(data: bytes) -> Pack:
    """Parse a pack and check all of it that can be checked without its base image.

    Parameters
    ----------
    data : bytes
        The pack, nothing after it.

    Returns
    -------
    Pack

    Raises
    ------
    PackError
        The first broken rule.
    """
    data = bytes(memoryview(data))
    _require(len(data) >= HEADER_BYTES, f"{len(data)} bytes are too few for a header")
    magic, version, zero, count, total, number, base, checksum = struct.unpack_from(HEADER, data)
    _require(magic == MAGIC, f"magic is {magic!r}")
    _require(version == VERSION, f"version {version} is unknown")
    _require(zero == 0, "header byte 5 must be 0")
    _require(count >= 1, "there are no entries")
    _require(total % 4 == 0, f"total length {total} is not a multiple of 4")
    _require(total == len(data), f"total length is {total}, there are {len(data)} bytes")
    _require(zlib.crc32(data[:CRC_OFFSET] + data[HEADER_BYTES:]) == checksum, "CRC is wrong")

    entries: dict[tuple[int, int], bytes] = {}
    position = HEADER_BYTES
    for index in range(count):
        _require(position + ENTRY_BYTES <= total, f"entry {index} does not fit")
        operator, part, zero, length = struct.unpack_from(ENTRY, data, position)
        _require(part in PARTS, f"entry {index}: part {part} is unknown")
        _require(zero == 0, f"entry {index}: bytes 2 and 3 must be 0")
        _require(not entries or (operator, part) > max(entries), f"entry {index} is out of order or there twice")
        start = position + ENTRY_BYTES
        end = start + length
        position = end + -end % 4
        _require(position <= total, f"entry {index} does not fit")
        _require(not any(data[end:position]), f"entry {index}: padding must be 0")
        entries[operator, part] = data[start:end]
    _require(position == total, f"{total - position} bytes are left over")
    return Pack(number, base, entries)


def _place(model: Model, index: int, part: int) -> slice | None:
    """Return where an operator's part lies in its section, None if it has none."""
    linear = model.operators[index].linear if index < len(model.operators) else None
    if linear is None:
        return None
    return linear.code_part if PARTS[part] == b"CODE" else linear.quan_part


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PackError(f"code pack: {message}")
