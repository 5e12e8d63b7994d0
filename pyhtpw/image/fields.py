"""What all records are made of: packed bit fields (docs/SPEC.md section 3), checked fields, and a bounded cursor to read them."""

import struct
from typing import Any

import numpy as np

from pyhtpw.errors import ImageError
from pyhtpw.image.integer import bits_bytes

SHIFTS = (-31, 30)
_CHUNK = 1 << 18  # values unpacked at a time: a multiple of 8, so that chunks start on a byte at every width


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """Packs integers into fields of `bits` bits, least significant first; raises ImageError if one does not fit."""
    values = np.asarray(values, np.int64).ravel()
    if bits == 0:
        if values.any():
            raise ImageError("values that are not 0 cannot be packed into 0 bits")
        return b""
    if values.size and (values.min() < -(1 << (bits - 1)) or values.max() >= (1 << bits)):
        raise ImageError(f"values {values.min()}..{values.max()} do not fit fields of {bits} bits")
    planes = (values[:, None] >> np.arange(bits)) & 1
    return np.packbits(planes.astype(np.uint8).ravel(), bitorder="little").tobytes()


def unpack_bits(data: bytes, count: int, bits: int, *, signed: bool = True, dtype: type = np.int64) -> np.ndarray:
    """The `count` values of a packed array (count,); `data` holds exactly its bytes. ImageError if unused bits are set."""
    if len(data) != bits_bytes(count, bits):
        raise ImageError(f"{count} values of {bits} bits take {bits_bytes(count, bits)} bytes, not {len(data)}")
    out: np.ndarray = np.zeros(count, dtype)
    if bits == 0:
        return out
    if data and data[-1] >> ((count * bits - 1) % 8 + 1):
        raise ImageError(f"unused bits after {count} values of {bits} bits are not 0")
    stream = np.frombuffer(data, np.uint8)
    for first in range(0, count, _CHUNK):
        n = min(_CHUNK, count - first)
        start = first * bits // 8
        planes = np.unpackbits(stream[start : start + bits_bytes(n, bits)], count=n * bits, bitorder="little").reshape(n, bits)
        wide = np.zeros(n, np.int64)
        for bit in range(bits):
            wide |= planes[:, bit].astype(np.int64) << bit
        if signed:
            wide -= planes[:, -1].astype(np.int64) << bits
        out[first : first + n] = wide
    return out


def signed_width(values: np.ndarray) -> int:
    """Least width in bits that holds all signed values; 0 if all are 0."""
    values = np.asarray(values, np.int64).ravel()
    if not values.any():
        return 0
    return max(int(v if v >= 0 else ~v).bit_length() + 1 for v in (values.min(), values.max()))


_RANGES = {"B": (0, 255), "b": (-128, 127), "H": (0, 65535), "I": (0, (1 << 32) - 1)}


def whole(where: str, name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int; ImageError naming it if it is no integer or not in [low, high]."""
    try:
        number = int(value)
        good = number == value and low <= number <= high
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise ImageError(f"{where}: {name} is {value}, which is not an integer in {low}..{high}")
    return number


def put(where: str, *fields: tuple[Any, ...]) -> bytes:
    """Fields in order, each (struct code, name, value) or (struct code, name, value, low, high)."""
    return b"".join(
        struct.pack("<" + code, whole(where, name, value, *(limits or _RANGES[code]))) for code, name, value, *limits in fields
    )


def integers(where: str, name: str, values: object, shape: tuple[int | None, ...], low: int, high: int) -> np.ndarray:
    """`values` as an int64 array; ImageError naming the first thing wrong with dtype, shape (None: any) or range."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ImageError(f"{where}: {name} are {array.dtype}, not integers")
    if array.ndim != len(shape) or any(want not in (None, n) for n, want in zip(array.shape, shape, strict=True)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ImageError(f"{where}: {name} have shape {array.shape}, not ({wanted})")
    if not array.size:
        raise ImageError(f"{where}: there are no {name}")
    for value in (int(array.min()), int(array.max())):
        if not low <= value <= high:
            raise ImageError(f"{where}: {name} hold {value}, which is not in {low}..{high}")
    return array.astype(np.int64)


def signed_range(bits: int) -> tuple[int, int]:
    """Least and largest value of a signed field."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


class Cursor:
    """Reads one payload front to back. Every read is checked against what is left before anything is allocated."""

    def __init__(self, name: str, data: bytes, offset: int = 0) -> None:
        self.name, self._data, self._base, self._at = name, data, offset, 0

    @property
    def place(self) -> int:
        """Where the cursor stands, in the file."""
        return self._base + self._at

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes."""
        left = len(self._data) - self._at
        if count > left:
            raise ImageError(f"{self.name}: {what} takes {count} bytes, {left} are left")
        self._at += count
        return self._data[self._at - count : self._at]

    def fields(self, layout: str, what: str) -> tuple[Any, ...]:
        """Little-endian fields of a struct layout."""
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout), what))

    def bits(self, count: int, width: int, what: str) -> np.ndarray:
        """A packed signed array, int64 (count,)."""
        data = self.take(bits_bytes(count, width), what)
        try:
            return unpack_bits(data, count, width)
        except ImageError as error:
            raise ImageError(f"{self.name}: {what}: {error}") from None

    def align(self, multiple: int) -> int:
        """Skips zeros up to a multiple, counted from the start of the payload; returns how many."""
        gap = -self._at % multiple
        if any(self.take(gap, "alignment")):
            raise ImageError(f"{self.name}: alignment bytes must be 0")
        return gap

    def finish(self) -> None:
        """Raises ImageError if bytes are left over."""
        if self._at != len(self._data):
            raise ImageError(f"{self.name}: {len(self._data) - self._at} bytes are left over")
