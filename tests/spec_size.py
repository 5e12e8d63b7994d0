"""Bytes of an image by the arithmetic of docs/SPEC.md section 4, without writing it."""

import numpy as np

from pyhtpw.image import integer
from pyhtpw.image.integer import OPERATORS, Generated, bits_bytes


def signed_bits(values):
    """Least width that holds all values, 0 for nothing but zeros."""
    values = np.asarray(values).ravel()
    if not values.any():
        return 0
    return max(int(v if v >= 0 else ~v).bit_length() + 1 for v in values.tolist())


def _matrix(matrix):
    if isinstance(matrix, int):
        return 0
    rows, cols = matrix.weights.shape
    return 7 + bits_bytes(rows * cols, matrix.bits) + bits_bytes(rows, signed_bits(matrix.biases))


def _head(head, model):
    if isinstance(head, integer.Factorised):
        return 6 + _matrix(head.b) + _matrix(head.a)
    if isinstance(head, integer.Seeded):
        return 2 + 2 + 1 + 2 + 4
    if isinstance(head, integer.Codebook):
        fields = 3 if head.of is None else 1  # tile and bits, or width
        return 2 + 3 + fields + bits_bytes(head.entries.size, head.bits)
    return 2 + _matrix(head.matrix)


def sections(model):
    """Section -> bytes."""
    found = {"OPS ": 8, "QUAN": 0, "WGHT": 0, "GENR": 0, "HEAD": 0, "CODE": 0}
    for op in model.ops:
        found["OPS "] += OPERATORS[op.kind][1]
        if op.requant is not None:
            r = op.requant
            m = r.multipliers
            each = 1 if (m % (1 << 22) == 0).all() and (m >= 1 << 30).all() else 2 if (m % (1 << 16) == 0).all() else 4
            found["QUAN"] += len(m) * each
            found["QUAN"] += bits_bytes(len(r.shifts), int(r.shifts.max() - r.shifts.min()).bit_length())
            found["QUAN"] += bits_bytes(len(r.biases), signed_bits(r.biases))
        if op.table is not None:
            found["WGHT"] += -found["WGHT"] % 4 + 256
        w = op.weights
        if isinstance(w, Generated):
            head = model.heads[w.head]
            if isinstance(head, integer.Codebook):
                found["CODE"] += bits_bytes(len(w.codes), (len(head.entries) - 1).bit_length())
            else:
                found["CODE"] += bits_bytes(w.codes.size, w.bits)
        elif w is not None:
            if w.bits == 8:
                found["WGHT"] += -found["WGHT"] % 4
            found["WGHT"] += bits_bytes(w.values.size, w.bits)
    if model.generators:
        found["GENR"] = 1 + sum(3 + sum(_matrix(layer) for layer in g.layers) for g in model.generators)
    if model.heads:
        found["HEAD"] = 1 + sum(_head(head, model) for head in model.heads)
    info = model.info
    found["INFO"] = 16 + len("\n".join((info.name, *info.classes)).encode())
    return {tag: size for tag, size in found.items() if size}


def image_bytes(model):
    """Length of the file."""
    parts = sections(model)
    return 16 + 16 * len(parts) + sum(-(-size // 16) * 16 for size in parts.values())
