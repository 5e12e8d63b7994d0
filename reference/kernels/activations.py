"""Activations on raw int8 values: no scale and no zero point is involved.

Source: behaviour of CMSIS-NN arm_relu_q7 and arm_relu6_s8; the table is a plain lookup.
"""

from __future__ import annotations

import numpy as np

from . import checks


def relu_s8(x: np.ndarray) -> np.ndarray:
    """Return max(x, 0).

    Shapes   x int8, any; the result has its shape and dtype
    Range    the zero point is NOT considered: 0 is the raw value 0, as in arm_relu_q7
    Errors   KernelArgumentError for a wrong dtype
    """
    return np.maximum(_int8("x", x), np.int8(0))


def relu6_s8(x: np.ndarray) -> np.ndarray:
    """Return x clamped to the raw values 0..6.

    Shapes   x int8, any; the result has its shape and dtype
    Errors   KernelArgumentError for a wrong dtype
    """
    return clamp_s8(x, act_min=0, act_max=6)


def clamp_s8(x: np.ndarray, *, act_min: int, act_max: int) -> np.ndarray:
    """Return x clamped to [act_min, act_max]: a fused ReLU with act_min = zero point.

    Shapes   x int8, any; the result has its shape and dtype
    Range    act_min <= act_max in [-128, 127]
    Errors   KernelArgumentError
    """
    act_min, act_max = checks.activation_range(act_min, act_max)
    return np.minimum(np.maximum(_int8("x", x), np.int8(act_min)), np.int8(act_max))


def table_s8(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Look every value up: ``table[x + 128]``.

    Shapes   x int8, any; table int8 (256,); the result has the shape of x
    Range    entry 0 serves x = -128, entry 255 serves x = 127
    Errors   KernelArgumentError for a wrong dtype or table length
    """
    _int8("x", x)
    if _int8("table", table).shape != (256,):
        raise checks.KernelArgumentError(f"table must have shape (256,), not {table.shape}")
    return table[x.astype(np.int64) + 128]


def _int8(name: str, value: np.ndarray) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype != np.int8:
        raise checks.KernelArgumentError(f"{name} must be an int8 array")
    return value
