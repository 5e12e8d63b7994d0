"""Bit fields: arrays of narrow integers packed without gaps, least significant bit first.

Value i of width w occupies bits ``i*w .. i*w + w - 1`` of a stream whose bit k is bit ``k mod 8``
of byte ``k / 8``. With w = 4 the even value is in the low nibble, which is also the packing of
CMSIS-NN's int4 weights.

Source: section 3 of the specification; CMSIS-NN arm_convolve_s4 and its siblings.
"""

from __future__ import annotations

import numpy as np

from . import checks

WIDTH_MAX = 32


def packed_length(count: int, width: int) -> int:
    """Return the bytes that ``count`` values of ``width`` bits take: ceil(count*width / 8)."""
    return -(-count * width // 8)


def pack(values: np.ndarray, width: int, *, signed: bool) -> np.ndarray:
    """Pack integers into bit fields.

    Parameters
    ----------
    values : ndarray of any integer dtype, any shape
        Read in row-major order. Range 0..2^width - 1, or -2^(width-1)..2^(width-1) - 1 if signed.
    width : int
        Bits per value, 0..32. Width 0 stores nothing and accepts only zeros.
    signed : bool
        Two's complement if true.

    Returns
    -------
    ndarray of uint8, shape (ceil(values.size * width / 8),)
        Unused high bits of the last byte are 0.

    Raises
    ------
    KernelArgumentError
        A value that the field cannot hold, a wrong dtype or width.
    """
    width = checks.integer("width", width, 0, WIDTH_MAX)
    if not isinstance(values, np.ndarray) or not np.issubdtype(values.dtype, np.integer):
        raise checks.KernelArgumentError("values must be an integer array")
    low, high = field_range(width, signed)
    if values.size and not (low <= int(values.min()) and int(values.max()) <= high):
        raise checks.KernelArgumentError(f"values must be in [{low}, {high}] to fit {width} bits")
    flat = values.astype(np.int64).reshape(-1, 1)
    # An arithmetic shift of the int64 value yields the two's complement bits of any width.
    stream = ((flat >> np.arange(width)) & 1).astype(np.uint8)
    return np.packbits(stream.reshape(-1), bitorder="little")


def unpack(data: np.ndarray, count: int, width: int, *, signed: bool) -> np.ndarray:
    """Read ``count`` values of ``width`` bits.

    Parameters
    ----------
    data : ndarray of uint8, shape (ceil(count * width / 8),)
    count : int
        Number of values.
    width : int
        Bits per value, 0..32; width 0 takes no bytes and gives zeros.
    signed : bool
        Two's complement if true.

    Returns
    -------
    ndarray of int64, shape (count,)

    Raises
    ------
    KernelArgumentError
        A wrong length, or a bit after the last value that is not 0.
    """
    width = checks.integer("width", width, 0, WIDTH_MAX)
    count = checks.integer("count", count, 0, checks.INT32_MAX)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 1:
        raise checks.KernelArgumentError("packed data must be a one-dimensional uint8 array")
    if data.size != packed_length(count, width):
        raise checks.KernelArgumentError(
            f"{count} values of {width} bits take {packed_length(count, width)} bytes, not {data.size}"
        )
    if width == 0:
        return np.zeros(count, np.int64)
    stream = np.unpackbits(data, bitorder="little")
    if stream[count * width :].any():
        raise checks.KernelArgumentError("unused bits of the last byte must be 0")
    places = np.int64(1) << np.arange(width, dtype=np.int64)
    if signed:
        places[-1] = -places[-1]  # the top bit of two's complement weighs -2^(width-1)
    return stream[: count * width].reshape(count, width) @ places


def field_range(width: int, signed: bool) -> tuple[int, int]:
    """Return the least and the greatest value of a field; a field of width 0 holds only 0."""
    if width == 0:
        return 0, 0
    if signed:
        return -(1 << (width - 1)), (1 << (width - 1)) - 1
    return 0, (1 << width) - 1


def pack_s4(weights: np.ndarray) -> np.ndarray:
    """Pack int4 weights the CMSIS-NN way: flattened, two per byte, even index in the low nibble.

    Shapes   weights of any shape, n values; returns uint8 (ceil(n/2),)
    Range    int8 array with values in [-8, 7]
    Errors   KernelArgumentError
    Source   CMSIS-NN int4 weights; rows are not padded, so a row may start in mid-byte
    """
    if not isinstance(weights, np.ndarray) or weights.dtype != np.int8:
        raise checks.KernelArgumentError("int4 weights must come in an int8 array")
    return pack(weights, 4, signed=True)


def unpack_s4(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Unpack CMSIS-NN int4 weights.

    Shapes   packed uint8 or int8 (ceil(n/2),); returns int8 of ``shape``, n its product
    Range    results in [-8, 7]; for odd n the last high nibble is not read (CMSIS-NN ignores it)
    Errors   KernelArgumentError for a wrong dtype or length
    Source   as ``pack_s4``
    """
    if not isinstance(packed, np.ndarray) or packed.dtype not in (np.uint8, np.int8):
        raise checks.KernelArgumentError("packed int4 weights must be a uint8 or int8 array")
    count = int(np.prod(shape, dtype=np.int64))
    if packed.shape != ((count + 1) // 2,):
        raise checks.KernelArgumentError(f"{count} int4 weights take shape ({(count + 1) // 2},), not {packed.shape}")
    data = packed.view(np.uint8)
    nibbles = np.stack([data & 15, data >> 4], axis=1).reshape(-1)[:count].astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8).reshape(shape)
