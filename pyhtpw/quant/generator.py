"""Synthesis in integers: the kernels that generators and heads make, from the definition in docs/SPEC.md section 5.

The layers that use generated kernels need their real scale and their rounding error, so the quantiser makes them as
the device will. `pyhtpw.verify` proves them equal to what the device caches.
"""

from __future__ import annotations

from math import prod

import numpy as np

from pyhtpw.image import integer
from pyhtpw.image.integer import Generated, Generator, IntegerModel, Matrix, Op
from pyhtpw.train.heads import seeded_matrix

WIDE, NARROW = 127, 7
"""Largest weight of a generated kernel."""


def _requantise(acc: np.ndarray, m: int, shift: int) -> np.ndarray:
    """`rq` of docs/SPEC.md section 2 on int64 arrays."""
    right = max(-shift, 0)
    high = ((acc << max(shift, 0)) * m + (1 << 30)) >> 31
    mask = (1 << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


def run_matrix(matrix: Matrix, x: np.ndarray, low: int, high: int = WIDE) -> np.ndarray:
    """One integer layer on rows of `x` (rows, cols): int64 results clamped to [low, high]."""
    acc = x @ matrix.weights.astype(np.int64).T + matrix.biases.astype(np.int64)
    return np.clip(_requantise(acc, matrix.multiplier, matrix.shift), low, high)


def run_generator(generator: Generator, codes: np.ndarray) -> np.ndarray:
    """Codes (rows, dz) -> h (rows, d), int64."""
    x = codes.astype(np.int64)
    for layer in generator.layers:
        x = run_matrix(layer, x, 0)
    return x


def seeded_layer(head: integer.Seeded, cols: int) -> Matrix:
    """The matrix of a seeded head as a layer."""
    weights = seeded_matrix(head.seed, head.tile, cols).astype(np.int64)
    return Matrix(weights, np.zeros(head.tile, np.int64), head.multiplier, head.shift)


def run_head(model: IntegerModel, at: int, codes: np.ndarray, high: int = WIDE) -> np.ndarray:
    """What head number `at` makes of `codes` (rows, dz), or a codebook of ids (rows,): int64 (rows, tile or n)."""
    head = model.heads[at]
    if isinstance(head, integer.Codebook):
        if head.of is None:
            return head.entries.astype(np.int64)[codes]
        return run_head(model, head.of, head.entries, high)[codes]
    generator = model.generators[head.generator]
    h = run_generator(generator, codes)
    if isinstance(head, integer.Factorised):
        b = model.heads[head.b].b if isinstance(head.b, int) else head.b
        a = model.heads[head.a].a if isinstance(head.a, int) else head.a
        return run_matrix(a, run_matrix(b, h, -WIDE), -high, high)
    matrix = seeded_layer(head, generator.width) if isinstance(head, integer.Seeded) else head.matrix
    return run_matrix(matrix, h, -high, high)


def kernel_of(model: IntegerModel, op: Op) -> np.ndarray:
    """The int8 kernel of an operator, in the shape of docs/SPEC.md section 1, stored or made."""
    weights = op.weights
    if not isinstance(weights, Generated):
        return weights.values
    made = run_head(model, weights.head, weights.codes, NARROW if weights.narrow else WIDE)
    flat = made.reshape(-1)[: prod(weights.shape)].astype(np.int8)
    if op.kind == "depthwise":  # made filter by filter
        rows, columns, channels = weights.shape
        return np.ascontiguousarray(flat.reshape(channels, rows, columns).transpose(1, 2, 0))
    return flat.reshape(weights.shape)
