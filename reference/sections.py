"""The file around a model: header, section table, checksums; and the cursor that reads a payload.

Nothing here knows what a section means. ``sections`` turns a file into payloads, ``Cursor`` reads
a payload front to back; every length is checked before it is used, every error is one line.

Source: sections 3 and 4 of the specification.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from .kernels import KernelArgumentError, packed_length, unpack

MAGIC = b"HTPW"
VERSION = 2
ROUNDING = 1
ALIGNMENT = 16
HEADER_BYTES = 16
ENTRY_BYTES = 16
SECTIONS_MAX = 16
SECTION_ORDER = (b"INFO", b"OPS ", b"QUAN", b"WGHT", b"GENR", b"HEAD", b"CODE")
IMAGE_MAX = 1 << 27


class ImageError(ValueError):
    """The bytes are not a valid image."""


def require(condition: bool, message: str) -> None:
    """Raise ImageError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ImageError(message)


def require_in(where: str, name: str, value: int, low: int, high: int) -> None:
    """Raise ImageError unless ``low <= value <= high``."""
    require(low <= value <= high, f"{where}: {name} {value} is not in {low}..{high}")


class Cursor:
    """Reads a payload front to back; every read is bounded and named in its error."""

    def __init__(self, name: str, data: bytes):
        self.name = name
        self.position = 0
        self._data = data

    @property
    def empty(self) -> bool:
        """Whether the payload has no bytes at all, which is the same as an absent section."""
        return not self._data

    def take(self, count: int, what: str) -> bytes:
        """Return the next ``count`` bytes."""
        left = len(self._data) - self.position
        require(count <= left, f"{self.name}: {what} takes {count} bytes, {left} are left")
        self.position += count
        return self._data[self.position - count : self.position]

    def fields(self, layout: str, what: str) -> tuple:
        """Return the little-endian fields of a struct layout."""
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout), what))

    def array(self, count: int, dtype: str, what: str) -> np.ndarray:
        """Return ``count`` whole little-endian numbers as int64 (count,)."""
        data = self.take(count * np.dtype(dtype).itemsize, what)
        return np.frombuffer(data, dtype).astype(np.int64)

    def bits(self, count: int, width: int, signed: bool, what: str) -> np.ndarray:
        """Return a packed array as int64 (count,); the length is checked before it is read."""
        data = np.frombuffer(self.take(packed_length(count, width), what), np.uint8)
        try:
            return unpack(data, count, width, signed=signed)
        except KernelArgumentError as error:
            raise ImageError(f"{self.name}: {what}: {error}") from None

    def align(self, multiple: int) -> None:
        """Skip zeros up to a multiple, counted from the start of the payload."""
        skipped = self.take(-self.position % multiple, "alignment")
        require(not any(skipped), f"{self.name}: alignment bytes must be 0")

    def finish(self) -> None:
        """Require that nothing is left."""
        left = len(self._data) - self.position
        require(left == 0, f"{self.name}: {left} bytes are left over")


def sections(data: bytes) -> dict[bytes, bytes]:
    """Check header, table, checksums and padding of a file.

    Parameters
    ----------
    data : bytes
        The whole file, nothing after it.

    Returns
    -------
    dict of bytes to bytes
        Tag to payload, every tag of ``SECTION_ORDER``; absent sections are empty.

    Raises
    ------
    ImageError
        The first broken rule.
    """
    require(len(data) >= HEADER_BYTES, f"file: {len(data)} bytes are too few for a header")
    magic, version, rounding, count, zero, total, checksum = struct.unpack_from("<4sBBBBII", data)
    require(magic == MAGIC, f"file: magic is {magic!r}")
    require(version == VERSION, f"file: format version {version} is unknown")
    require(rounding == ROUNDING, f"file: rounding id {rounding} is unknown")
    require_in("file", "number of sections", count, 1, SECTIONS_MAX)
    require(zero == 0, "file: header byte 7 must be 0")
    require(total % ALIGNMENT == 0, f"file: total length {total} is not a multiple of 16")
    require(total == len(data), f"file: total length is {total}, there are {len(data)} bytes")
    require(total <= IMAGE_MAX, f"file: total length {total} is above 2^27")
    end = HEADER_BYTES + ENTRY_BYTES * count
    require(end <= total, "file: the section table does not fit")
    require(zlib.crc32(data[:12] + data[HEADER_BYTES:end]) == checksum, "file: header CRC is wrong")

    payloads = dict.fromkeys(SECTION_ORDER, b"")
    seen: list[bytes] = []
    for index in range(count):
        entry = HEADER_BYTES + ENTRY_BYTES * index
        tag, offset, length, checksum = struct.unpack_from("<4sIII", data, entry)
        name = tag.decode("ascii", "replace").strip()
        require(tag in SECTION_ORDER, f"file: unknown section {tag!r}")
        require(tag not in seen, f"file: section {name} appears twice")
        require(
            not seen or SECTION_ORDER.index(seen[-1]) < SECTION_ORDER.index(tag),
            f"file: section {name} is out of order",
        )
        start = end + -end % ALIGNMENT
        require(offset == start, f"{name}: offset is {offset}, must be {start}")
        require(offset + length <= total, f"{name}: payload ends after the file")
        require(not any(data[end:start]), f"{name}: padding before the payload must be 0")
        end = offset + length
        payloads[tag] = data[offset:end]
        require(zlib.crc32(payloads[tag]) == checksum, f"{name}: CRC is wrong")
        seen.append(tag)
    require(not any(data[end:]), "file: padding after the last payload must be 0")
    require(end + -end % ALIGNMENT == total, "file: zeros follow the last section beyond the next multiple of 16")
    require(b"OPS " in seen, "file: section OPS is missing")
    return payloads
