"""Matrices of generators and heads that are too large for a copy in scratch: made a few rows at a time, in every combination."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from reference_images import CODEBOOK, DENSE, FACTORISED, SEEDED, TILED, image, matrix, plain, single

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

import fuzz_reader
import test_fuzz

from pyhtpw.model import Image

CONTROL = bytes((0, 0, 0, 27, 1, 5, 3, 0))  # of test_fuzz.every_schedule


def noise(r: random.Random, rows: int, cols: int, bits: int = 8, bias: bool = True) -> dict:
    """A matrix whose results neither vanish nor saturate all."""
    top = 1 << (bits - 1)
    w = [r.randrange(-top, top) for _ in range(rows * cols)]
    shift = -(cols.bit_length() // 2) - bits + 3
    biases = [r.randrange(-1000, 1000) for _ in range(rows)] if bias else None
    return matrix(rows, w, biases, shift=shift, m=20000, weight_bits=bits)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("kind", [DENSE, FACTORISED, TILED, SEEDED, CODEBOOK])
def test_large_layers_and_heads(kind, bits, bias, narrow):
    r = random.Random(f"{kind} {bits} {bias}")
    dz, hidden, d = 70, 90, 101
    generator = {"dz": dz, "layers": [noise(r, hidden, dz, bits, bias), noise(r, d, hidden, bits, bias)]}  # more than 4096 weights each
    cin, cout = 24, 10
    n, tile = cin * cout, {DENSE: cin * cout, FACTORISED: cin * cout, TILED: 53, SEEDED: 71, CODEBOOK: 53}[kind]
    tiles = -(-n // tile)
    tiled = {"kind": TILED, "generator": 0, "h": noise(r, 53, d, bits, bias)}
    heads = {
        DENSE: [{"kind": DENSE, "generator": 0, "h": noise(r, n, d, bits, bias)}],
        FACTORISED: [
            {
                "kind": FACTORISED, "generator": 0, "b_of": 255, "a_of": 255, "r": 60,
                "b": noise(r, 60, d, bits, bias), "a": noise(r, n, 60, bits),
            }
        ],
        TILED: [tiled],
        SEEDED: [{"kind": SEEDED, "generator": 0, "tile": tile, "shift": -8, "m": 20000, "seed": 7}],
        CODEBOOK: [
            tiled,
            {"kind": CODEBOOK, "generator": 0, "of": 0, "entries": 3, "width": bits, "codes": [r.randrange(-8, 8) for _ in range(3 * dz)]},
        ],
    }[kind]  # fmt: skip
    codes, width = ([r.randrange(3) for _ in range(tiles)], 2) if kind == CODEBOOK else ([r.randrange(-8, 8) for _ in range(tiles * dz)], 4)
    op = plain(
        "fc", cin, cout, source=kind, width=0 if kind == CODEBOOK else 1, codes=codes, code_bits=width, head=len(heads) - 1, narrow=narrow,
        shift_base=-8,
    )  # fmt: skip
    data = image(single(op, (1, 1, cin), [generator], heads))
    assert fuzz_reader.check(data) == "run"
    (kernel,) = Image(data).kernels().values()
    assert np.unique(kernel).size > (4 if narrow else 12)  # or any arithmetic would pass
    test_fuzz.every_schedule(data, CONTROL)
