"""Argument checks shared by all kernels: no silent casts, one clear line per error.

Every kernel of this package refuses an argument it cannot compute exactly. The functions here
return the checked value in the form the arithmetic uses (int64 arrays, Python ints) and raise
otherwise. They look at types, shapes and ranges only; they never change a value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

INT8_MIN, INT8_MAX = -128, 127
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


class KernelArgumentError(ValueError):
    """An argument of a kernel has a wrong dtype, shape or range."""


class KernelOverflowError(KernelArgumentError):
    """A sum or a shifted sum would leave int32, where a C kernel would wrap."""


def int8_array(name: str, value: np.ndarray, ndim: int) -> np.ndarray:
    """Return ``value`` if it is an int8 array of ``ndim`` dimensions.

    Errors
        KernelArgumentError for anything else; an int8-valued array of another dtype counts as
        wrong, because a cast would hide a mistake of the caller.
    """
    if not isinstance(value, np.ndarray) or value.dtype != np.int8:
        raise KernelArgumentError(f"{name} must be an int8 array, not {_describe(value)}")
    if value.ndim != ndim:
        raise KernelArgumentError(f"{name} must have {ndim} dimensions, not shape {value.shape}")
    return value


def non_empty(name: str, value: np.ndarray) -> None:
    """Require every dimension but the first (the batch, which may be 0) to be at least 1."""
    if 0 in value.shape[1:]:
        raise KernelArgumentError(f"{name} has an empty dimension: shape {value.shape}")


def integer(name: str, value: int, low: int, high: int) -> int:
    """Return ``value`` as a Python int if it is an integer in [low, high].

    Errors
        KernelArgumentError for floats, bools, arrays and values outside the range.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise KernelArgumentError(f"{name} must be an integer, not {_describe(value)}")
    if not low <= value <= high:
        raise KernelArgumentError(f"{name} must be in [{low}, {high}], not {value}")
    return int(value)


def pair(name: str, value: Sequence[int], low: int, high: int) -> tuple[int, int]:
    """Return ``value`` as a tuple of two Python ints (vertical, horizontal) in [low, high]."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise KernelArgumentError(f"{name} must be a pair (vertical, horizontal), not {value!r}")
    return integer(f"{name}[0]", value[0], low, high), integer(f"{name}[1]", value[1], low, high)


def activation_range(act_min: int, act_max: int) -> tuple[int, int]:
    """Return the clamp bounds, both in int8 and ordered."""
    low = integer("act_min", act_min, INT8_MIN, INT8_MAX)
    high = integer("act_max", act_max, INT8_MIN, INT8_MAX)
    if low > high:
        raise KernelArgumentError(f"act_min {low} is above act_max {high}")
    return low, high


def input_offset(name: str, value: int) -> int:
    """Return an offset that is *added* to an int8 operand: minus its zero point, [-127, 128]."""
    return integer(name, value, -INT8_MAX, -INT8_MIN)


def output_offset(name: str, value: int) -> int:
    """Return an offset added after requantisation: the output zero point, [-128, 127]."""
    return integer(name, value, INT8_MIN, INT8_MAX)


def per_channel(name: str, value: np.ndarray, channels: int) -> np.ndarray:
    """Return an int32 array (channels,) widened to int64."""
    if not isinstance(value, np.ndarray) or value.dtype != np.int32:
        raise KernelArgumentError(f"{name} must be an int32 array, not {_describe(value)}")
    if value.shape != (channels,):
        raise KernelArgumentError(f"{name} must have shape ({channels},), not {value.shape}")
    return value.astype(np.int64)


def bias(value: np.ndarray | None, channels: int) -> np.ndarray:
    """Return the bias as int64 (channels,); None stands for zeros."""
    if value is None:
        return np.zeros(channels, np.int64)
    return per_channel("bias", value, channels)


def sum_in_int32(what: str, values: np.ndarray) -> np.ndarray:
    """Return ``values`` (int64) if all of them fit int32.

    Only the finished sum is looked at. Partial sums of a C kernel may leave int32 and come back:
    modulo 2^32 the order does not matter, so the byte that is stored is the same.

    Errors
        KernelOverflowError naming the first of the two extremes that does not fit.
    """
    if values.size:
        for extreme in (int(values.min()), int(values.max())):
            if not INT32_MIN <= extreme <= INT32_MAX:
                raise KernelOverflowError(f"{what} leaves int32: {extreme}")
    return values


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return type(value).__name__
