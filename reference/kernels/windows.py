"""Geometry of sliding windows: which output cells see which input cells through a kernel tap.

Padding is never materialised. For each tap ``(ky, kx)`` the output cells whose tap lies inside
the input form a rectangle, and so do the input cells they read; all other output cells receive
nothing from this tap, which is the meaning of "positions outside the input contribute 0".

Source: section 6 of the specification.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from . import checks

DIMENSION_MAX = 65535


class Windows(NamedTuple):
    """Checked geometry; every field is (vertical, horizontal)."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    output: tuple[int, int]

    def taps(self) -> Iterator[tuple[tuple[int, int], tuple, tuple]]:
        """Yield ``((ky, kx), out, src)`` for each tap that touches the input.

        ``out`` and ``src`` index the axes (N, H, W) of an output and of an input array; the two
        selections have equal shapes, element by element the output cell and the input cell that
        it reads through this tap.
        """
        columns = list(self._hits(1))
        for ky, out_rows, src_rows in self._hits(0):
            for kx, out_columns, src_columns in columns:
                everything = slice(None)
                yield (
                    (ky, kx),
                    (everything, out_rows, out_columns),
                    (everything, src_rows, src_columns),
                )

    def cells(self) -> np.ndarray:
        """Return how many cells of each window lie in the input, int64 (Hout, Wout)."""
        counts = []
        for axis in (0, 1):
            count = np.zeros(self.output[axis], np.int64)
            for _, out, _ in self._hits(axis):
                count[out] += 1
            counts.append(count)
        return counts[0][:, None] * counts[1][None, :]

    def _hits(self, axis: int) -> Iterator[tuple[int, slice, slice]]:
        """Yield (tap, output slice, input slice) of every tap that hits the input on one axis."""
        stride = self.stride[axis]
        for k in range(self.kernel[axis]):
            start = k * self.dilation[axis] - self.padding[axis]  # input index read by output 0
            first = max(0, -(start // stride))  # least o with o*stride + start >= 0: a ceiling
            last = min(self.output[axis] - 1, (self.size[axis] - 1 - start) // stride)
            if first <= last:
                source = slice(first * stride + start, last * stride + start + 1, stride)
                yield k, slice(first, last + 1), source


def windows(
    size: tuple[int, int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_size: Sequence[int] | None,
) -> Windows:
    """Check a window geometry and work out its output size.

    Parameters
    ----------
    size : (H, W)
        Cells of the input.
    kernel, stride, dilation : (vertical, horizontal), each 1..65535
    padding : (top, left), each 0..65535
        Cells before the first row and column. What lies after the last row and column follows
        from ``output_size``: any window may reach beyond the input, there it reads nothing.
    output_size : (Hout, Wout) or None
        None means no padding at the bottom and right: along each axis
        ``floor((in + pad - (K - 1)*dilation - 1) / stride) + 1``, the number of windows that end
        inside the input. With explicit sizes the two sides may be padded differently.

    Raises
    ------
    KernelArgumentError
        A value out of range, or a default output that would be empty.
    """
    kernel = checks.pair("kernel", kernel, 1, DIMENSION_MAX)
    stride = checks.pair("stride", stride, 1, DIMENSION_MAX)
    padding = checks.pair("padding", padding, 0, DIMENSION_MAX)
    dilation = checks.pair("dilation", dilation, 1, DIMENSION_MAX)
    if output_size is None:
        output = tuple(
            (n + p - (k - 1) * d - 1) // s + 1
            for n, p, k, d, s in zip(size, padding, kernel, dilation, stride, strict=True)
        )
        if min(output) < 1:
            raise checks.KernelArgumentError(f"a kernel {kernel} does not fit an input {size}")
    else:
        output = checks.pair("output_size", output_size, 1, DIMENSION_MAX)
    return Windows(size, kernel, stride, padding, dilation, output)
