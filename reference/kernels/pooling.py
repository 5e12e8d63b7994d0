"""Average and maximum pooling over the cells of each window that lie in the input.

Source: section 6 of the specification; behaviour of CMSIS-NN arm_avgpool_s8 and arm_max_pool_s8.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import checks
from .windows import Windows, windows


def avgpool_s8(
    x: np.ndarray,
    *,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    output_size: Sequence[int] | None = None,
    act_min: int = -128,
    act_max: int = 127,
) -> np.ndarray:
    """Average each window over the cells inside the input.

    Parameters
    ----------
    x : ndarray of int8, shape (N, H, W, C)
    kernel, stride : (vertical, horizontal)
    padding : (top, left)
    output_size : (Hout, Wout) or None
        None: as ``conv_s8``, no padding at the bottom and right.
    act_min, act_max : int in [-128, 127], act_min <= act_max

    Returns
    -------
    ndarray of int8, shape (N, Hout, Wout, C)
        Scale and zero point are those of the input: no offset is applied.

    Notes
    -----
    Rounding: with n cells of sum t, ``(|t| + n/2) / n`` with the sign of t, both divisions
    floored: to nearest, ties away from zero.

    Raises
    ------
    KernelArgumentError
        Wrong dtype, shape or range; a window without any cell in the input.
    KernelOverflowError
        A sum leaves int32.
    """
    geometry, count, act_min, act_max = _prepare(x, kernel, stride, padding, output_size, act_min, act_max)
    total = np.zeros((x.shape[0], *geometry.output, x.shape[3]), np.int64)
    values = x.astype(np.int64)
    for _, out, src in geometry.taps():
        total[out] += values[src]
    checks.sum_in_int32("a pooling sum", total)
    n = count[None, :, :, None]
    mean = np.sign(total) * ((np.abs(total) + n // 2) // n)
    return np.minimum(np.maximum(mean, act_min), act_max).astype(np.int8)


def maxpool_s8(
    x: np.ndarray,
    *,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    output_size: Sequence[int] | None = None,
    act_min: int = -128,
    act_max: int = 127,
) -> np.ndarray:
    """Take the maximum of each window over the cells inside the input.

    Parameters
    ----------
    x, kernel, stride, padding, output_size, act_min, act_max
        As ``avgpool_s8``.

    Returns
    -------
    ndarray of int8, shape (N, Hout, Wout, C)

    Raises
    ------
    KernelArgumentError
        As ``avgpool_s8``.
    """
    geometry, _, act_min, act_max = _prepare(x, kernel, stride, padding, output_size, act_min, act_max)
    # Starting from the least int8 is safe because every window holds at least one cell.
    best = np.full((x.shape[0], *geometry.output, x.shape[3]), checks.INT8_MIN, np.int8)
    for _, out, src in geometry.taps():
        best[out] = np.maximum(best[out], x[src])
    return np.minimum(np.maximum(best, act_min), act_max).astype(np.int8)


def _prepare(
    x: np.ndarray,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_size: Sequence[int] | None,
    act_min: int,
    act_max: int,
) -> tuple[Windows, np.ndarray, int, int]:
    """Check the arguments of a pool; return geometry, cells per window and the clamp."""
    checks.int8_array("x", x, 4)
    checks.non_empty("x", x)
    act_min, act_max = checks.activation_range(act_min, act_max)
    geometry = windows(x.shape[1:3], kernel, stride, padding, (1, 1), output_size)
    count = geometry.cells()
    if not count.all():
        raise checks.KernelArgumentError("a pooling window holds no cell of the input")
    return geometry, count, act_min, act_max
