"""The integer model: what the quantiser makes and the image writer stores. Nothing in it is a float but `Info`."""

from dataclasses import dataclass, field

import numpy as np

# operator -> (id in the image, bytes of its record): docs/SPEC.md 4.2
OPERATORS = {
    "conv": (1, 26),
    "depthwise": (2, 24),
    "conv1x1": (3, 12),
    "fc": (4, 12),
    "add": (5, 16),
    "avgpool": (6, 18),
    "maxpool": (7, 18),
}
LINEAR = ("conv", "depthwise", "conv1x1", "fc")
SPATIAL = ("conv", "depthwise")
POOLS = ("avgpool", "maxpool")
# weight source -> id in the image: docs/SPEC.md 5
SOURCES = {"stored8": 0, "tiled": 5}


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
    """16-bit multipliers and shifts, (channels,) or (1,) for per-tensor, and biases (channels,), all int64 arrays."""

    multipliers: np.ndarray
    shifts: np.ndarray
    biases: np.ndarray


@dataclass(frozen=True)
class Stored:
    """An int8 kernel kept as it is, in the shape of SPEC section 1."""

    values: np.ndarray


@dataclass(frozen=True)
class Tiled:
    """A kernel of `shape` made by head number `head` from integer codes (tiles, dz)."""

    codes: np.ndarray
    shape: tuple[int, ...]
    head: int = 0


@dataclass(frozen=True)
class AddScalars:
    """Multipliers (16-bit) and shifts of an element-wise add."""

    left_shift: int
    multipliers: tuple[int, int, int]
    shifts: tuple[int, int, int]


@dataclass(frozen=True)
class Op:
    """One operator. `inputs` number tensors: 0 is the model's input, i the output of operator i - 1."""

    name: str
    kind: str
    inputs: tuple[int, ...]
    out: Tensor
    act_min: int = -128
    act_max: int = 127
    weights: Stored | Tiled | None = None
    requant: Requant | None = None
    window: Window | None = None
    add: AddScalars | None = None


@dataclass(frozen=True)
class Layer:
    """One generator layer or a head: int8 weights (rows, cols) stored at `bits`, biases (rows,), 16-bit multiplier."""

    weights: np.ndarray
    biases: np.ndarray
    multiplier: int
    shift: int
    bits: int = 8


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
    generator: tuple[Layer, ...] = ()
    heads: tuple[Layer, ...] = ()
    code_bits: int = 4
    extra: dict = field(default_factory=dict, compare=False)  # notes of the quantiser for reports; not stored


def bits_bytes(count: int, bits: int) -> int:
    """Bytes of `count` packed fields of `bits` bits (SPEC section 3)."""
    return (count * bits + 7) // 8
