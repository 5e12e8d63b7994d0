"""The integer model: what the quantiser makes and the image writer stores. Nothing in it is a float but `Info`."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# operator -> (id in the image, bytes of its record): docs/SPEC.md 4.2
OPERATORS = {
    "conv": (1, 26),
    "depthwise": (2, 24),
    "conv1x1": (3, 12),
    "fc": (4, 12),
    "add": (5, 22),
    "avgpool": (6, 18),
    "maxpool": (7, 18),
    "table": (8, 5),
    "mul": (9, 11),
    "attend": (10, 17),
}
LINEAR = ("conv", "depthwise", "conv1x1", "fc")
SPATIAL = ("conv", "depthwise")
POOLS = ("avgpool", "maxpool")
PAIRS = ("add", "mul", "attend")  # read two tensors
TABLE = 256  # entries of a table, one for each int8
ATTEND_MAX = 511  # positions, as softmax sums them
# weight source -> id in the image: docs/SPEC.md 5
STORED = {"stored8": 0, "stored4": 1, "stored2": 2}
HEADS = {"dense": 3, "factorised": 4, "tiled": 5, "seeded": 6, "codebook": 7}
SOURCES = STORED | HEADS


@dataclass(frozen=True)
class Tensor:
    """Shape (h, w, c) and zero point of an activation."""

    h: int
    w: int
    c: int
    zero_point: int

    @property
    def size(self) -> int:
        """Elements, which are bytes."""
        return self.h * self.w * self.c


@dataclass(frozen=True)
class Window:
    """Kernel or pooling window; (rows, columns) each. Padding is top and left."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class Requant:
    """Q31 multipliers and shifts, (channels,) or (1,) for per-tensor, and biases (channels,), all int64 arrays.

    The writer stores multipliers in the least of the three forms of SPEC 4.3 that holds all of them exactly.
    """

    multipliers: np.ndarray
    shifts: np.ndarray
    biases: np.ndarray


@dataclass(frozen=True)
class Stored:
    """A kernel kept as it is: int8 `values` in the shape of SPEC section 1, in the range of `bits` (8, 4 or 2).

    `narrow`: run as packed 4-bit weights; 4-bit kernels then need no cache.
    """

    values: np.ndarray
    bits: int = 8
    narrow: bool = False


@dataclass(frozen=True)
class Generated:
    """A kernel of `shape` made by head number `head`.

    `codes` are integers (tiles, dz) of `bits` (4, 6 or 8) each; of a codebook the ids (tiles,), with bits 0. Tiles follow the
    generation order of SPEC section 1. `narrow`: made in [-7, 7], cached and run as packed 4-bit weights.
    """

    codes: np.ndarray
    shape: tuple[int, ...]
    head: int = 0
    bits: int = 4
    narrow: bool = False


@dataclass(frozen=True)
class AddScalars:
    """Q31 multipliers and shifts of an element-wise add: first input, second input, output."""

    left_shift: int
    multipliers: tuple[int, int, int]
    shifts: tuple[int, int, int]


@dataclass(frozen=True)
class MulScalars:
    """Q31 multiplier and shift (-31..14) of an element-wise product."""

    multiplier: int
    shift: int


@dataclass(frozen=True)
class AttendScalars:
    """Softmax of the scores, then requantisation of the weighted sum.

    `softmax_multiplier` (Q31) and `softmax_shift` (0..30) bring a difference of scores to 26 fraction bits; scores more than
    `softmax_range` (0..255) below the greatest weigh nothing. Weights have the scale 1/256. `shift` is -31..5.
    """

    softmax_multiplier: int
    softmax_shift: int
    softmax_range: int
    multiplier: int
    shift: int


@dataclass(frozen=True)
class Op:
    """One operator. `inputs` number tensors: 0 is the model's input, i the output of operator i - 1.

    `table` is int8 (256,): entry x + 128 is the result for x.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    out: Tensor
    act_min: int = -128
    act_max: int = 127
    weights: Stored | Generated | None = None
    requant: Requant | None = None
    window: Window | None = None
    add: AddScalars | None = None
    table: np.ndarray | None = None
    mul: MulScalars | None = None
    attend: AttendScalars | None = None


@dataclass(frozen=True)
class Matrix:
    """A layer of a generator or a part of a head: weights (rows, cols) stored at `bits`, biases (rows,).

    The multiplier is Q31 with its low 16 bits 0, as everywhere in the generator.
    """

    weights: np.ndarray
    biases: np.ndarray
    multiplier: int
    shift: int
    bits: int = 8


@dataclass(frozen=True)
class Generator:
    """The micro-MLP g: codes (dz,) through up to three layers with ReLU; without a layer it is the identity."""

    dz: int
    layers: tuple[Matrix, ...] = ()

    @property
    def width(self) -> int:
        """d: elements of what it makes."""
        return len(self.layers[-1].weights) if self.layers else self.dz


@dataclass(frozen=True)
class Dense:
    """Eq. 2: matrix (n, d), one code for the whole kernel."""

    matrix: Matrix
    generator: int = 0


@dataclass(frozen=True)
class Factorised:
    """Eq. 3: B (r, d), then A (n, r); an int is the index of the earlier factorised head whose matrix is shared."""

    b: Matrix | int
    a: Matrix | int
    generator: int = 0


@dataclass(frozen=True)
class Tiled:
    """Matrix (tile, d), a code per tile, shared by all tiles of all kernels that name it."""

    matrix: Matrix
    generator: int = 0


@dataclass(frozen=True)
class Seeded:
    """Tiled with a matrix drawn from `seed` (SPEC section 5)."""

    tile: int
    seed: int
    multiplier: int
    shift: int
    generator: int = 0


@dataclass(frozen=True)
class Codebook:
    """A table that tiles pick from: stored, `entries` (entries, tile) at `bits` 8, 4 or 2 with `of` None; or made by the earlier tiled or
    seeded head `of` from `entries` = codes (entries, dz) at `bits` 4, 6 or 8."""

    entries: np.ndarray
    bits: int
    of: int | None = None


Head = Dense | Factorised | Tiled | Seeded | Codebook


@dataclass(frozen=True)
class Info:
    """What a host needs and a device does not: scales (float32 values), threshold t*, sampling rate in Hz, names."""

    input_scale: float
    logit_scale: float
    threshold: float
    sample_rate: float
    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class IntegerModel:
    """Everything that an image holds."""

    input: Tensor
    ops: tuple[Op, ...]
    info: Info | None = None
    generators: tuple[Generator, ...] = ()
    heads: tuple[Head, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict, compare=False)  # notes of the quantiser for reports; not stored


def bits_bytes(count: int, bits: int) -> int:
    """Bytes of `count` packed fields of `bits` bits (SPEC section 3)."""
    return (count * bits + 7) // 8
