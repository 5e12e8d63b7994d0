"""Layer by layer: what every operator writes, in any telling, and the first byte in which two of them, or two images, differ.

`pyhtpw.verify` proves that tellings agree at the end; this says where they part. A *trace* is one int8 array (N, H, W, C) for
every operator, in the order in which they run. Traces of C come from the library itself: it runs the first operator alone, then
the first two, and so on, so nothing of it is told twice and nothing is added to what a device runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import reference
from pyhtpw import _native
from pyhtpw._native import ffi
from pyhtpw.errors import ConfigError
from pyhtpw.image.reader import requant_values
from pyhtpw.model import Image, Int8

Trace = dict[int, Int8]
NUMPY, C = "numpy", "c"
CORES = {"m0": "cortex-m0", "m3": "cortex-m3", "m4": "cortex-m4", "m7": "cortex-m7", "m33": "cortex-m33"}


def tellings() -> list[str]:
    """Names that `trace` takes: numpy, c (the best backend), every backend of this machine, and emulated cores."""
    return [NUMPY, C, *_native.available_backends(), *CORES]


def trace(image: Image, windows: npt.ArrayLike, telling: str = C, *, compiler: str = "auto") -> Trace:
    """What every operator writes.

    Parameters
    ----------
    image : Image
    windows : int8 (N, ...)
        Windows of (H, W, C) or any shape of as many elements, N >= 1.
    telling : str
        One of `tellings()`: "numpy" is `reference/`, "c" the library here, "m4" the library on an emulated Cortex-M4.
    compiler : str
        For emulated cores: auto, gcc or clang.

    Returns
    -------
    dict of int to int8 ndarray (N, H, W, C)
        Index of the operator and what it writes.

    Raises
    ------
    ConfigError
        If there is no such telling, or no window.
    MissingToolError
        If an emulated core lacks a compiler or the emulator.
    """
    x = image._windows(windows).reshape(-1, *image.input_shape)
    if not len(x):
        raise ConfigError("a trace needs at least one window")
    if image.codes_number and (telling == NUMPY or telling in CORES):
        raise ConfigError(f"{image.name}: has a code pack applied, which {telling} does not see: make an image of both first "
                          "(pyhtpw.image.codes.apply_pack)")  # fmt: skip
    if telling == NUMPY:
        return dict(reference.trace(reference.read(image.data), x))
    if telling in CORES:
        from pyhtpw.target.emulator import Emulator

        with Emulator(CORES[telling], compiler=compiler) as emulator:
            return dict(emulator.open(image.data, image.name, count=False).trace(x))
    if telling != C and telling not in _native.available_backends():
        raise ConfigError(f"unknown telling {telling!r}: use one of {', '.join(tellings())}")
    return dict(_native_trace(image, x, None if telling == C else telling))


def _native_trace(image: Image, x: Int8, backend: str | None) -> Iterator[tuple[int, Int8]]:
    """Runs ever longer beginnings of the image: a copy of the opened model says how many operators there are."""
    context, model = image.bind(backend=backend), ffi.new("struct htpw_model *", image._model[0])
    context._context.model = model
    for layer in image.layers:
        out = np.empty((len(x), *layer.output_shape), np.int8)
        model.operator_count, model.output_bytes = layer.index + 1, out[0].size
        context._run_many(ffi.new("size_t *"), x, out)
        yield layer.index, out


@dataclass(frozen=True)
class Difference:
    """Where two traces part: the first operator whose output differs, and the first byte of it in the first window.

    `at` is (h, w, c); `a` and `b` are the values there; `differ` of `of` bytes of this operator's output are not the same.
    """

    layer: int
    name: str
    window: int
    at: tuple[int, int, int]
    a: int
    b: int
    differ: int
    of: int

    def __str__(self) -> str:
        return (f"layer {self.layer} ({self.name}), window {self.window}, (h, w, c) = {self.at}: {self.a} and {self.b}; "
                f"{self.differ:,} of its {self.of:,} bytes differ")  # fmt: skip


def differences(image: Image, a: Mapping[int, Int8], b: Mapping[int, Int8]) -> list[Difference]:
    """Every operator, of those that both traces hold in the same shape, in which they differ; in order, so the first is first.

    `image` gives the operators' names.
    """
    found = []
    for index in sorted(a.keys() & b.keys()):
        u, v = a[index], b[index]
        if u.shape != v.shape:
            continue
        bad = np.argwhere(u != v)
        if len(bad):
            window, *at = (int(i) for i in bad[0])
            where = (window, *at)
            place = at[0], at[1], at[2]
            name = image.layers[index].name
            found.append(Difference(index, name, window, place, int(u[where]), int(v[where]), len(bad), u.size))
    return found


@dataclass(frozen=True)
class KernelDifference:
    """A kernel of which `differ` of `of` weights are not the same; `largest` is the largest absolute difference."""

    layer: int
    name: str
    differ: int
    of: int
    largest: int


@dataclass(frozen=True)
class Diff:
    """How two images differ.

    Attributes
    ----------
    bytes_a, bytes_b : int
        Of the files.
    structure : tuple of str
        What is not the same of operators, shapes and sources, in words.
    metadata : tuple of (str, str)
        Layer, and which of its multipliers, shifts, biases, clamps and zero points are not the same.
    kernels : tuple of KernelDifference
        Kernels of the same shape with other weights.
    tensors : tuple of Difference
        Operators whose outputs differ on the windows; empty also if none were given.
    windows : int
        Windows that were run.
    """

    bytes_a: int
    bytes_b: int
    structure: tuple[str, ...]
    metadata: tuple[tuple[str, str], ...]
    kernels: tuple[KernelDifference, ...]
    tensors: tuple[Difference, ...]
    windows: int

    @property
    def first(self) -> Difference | None:
        """The first tensor that differs."""
        return self.tensors[0] if self.tensors else None

    @property
    def is_same(self) -> bool:
        """Whether nothing that was looked at differs."""
        return not (self.structure or self.metadata or self.kernels or self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**asdict(self), "is_same": self.is_same}


def diff(a: Image, b: Image, windows: npt.ArrayLike | Sequence[Int8] | None = None) -> Diff:
    """Compares two images.

    Parameters
    ----------
    a, b : Image
    windows : int8 (N, ...), or a pair of them, optional
        Windows for both, or those of `a` and those of `b` (signals that each has quantised in its own way).

    Raises
    ------
    ImageError
        If the windows do not fit both.
    ConfigError
        If a pair is not of as many windows.
    """
    structure, metadata, kernels = [], [], []
    if a.input_shape != b.input_shape:
        structure.append(f"input: {a.input_shape} and {b.input_shape}")
    if len(a.layers) != len(b.layers):
        structure.append(f"{len(a.layers)} and {len(b.layers)} layers")
    for u, v in zip(a.layers, b.layers, strict=False):
        for what in ("kind", "reads", "output_shape", "kernel_shape", "source"):
            if getattr(u, what) != getattr(v, what):
                structure.append(f"layer {u.index} ({u.name}): {what} {getattr(u, what)} and {getattr(v, what)}")
        if u.kind != v.kind or u.kernel_shape != v.kernel_shape:
            continue
        if fields := _metadata(a, b, u.index):
            metadata.append((u.name, ", ".join(fields)))
        if u.kernel_shape:
            gap = np.abs(a.synthesise(u).astype(np.int16) - b.synthesise(v))
            if gap.any():
                kernels.append(KernelDifference(u.index, u.name, int(np.count_nonzero(gap)), gap.size, int(gap.max())))
    tensors: list[Difference] = []
    runs = 0
    if windows is not None:
        x, y = windows if isinstance(windows, (tuple, list)) and len(windows) == 2 else (windows, windows)
        of_a, of_b = a._windows(x), b._windows(y)
        if len(of_a) != len(of_b):
            raise ConfigError(f"{len(of_a)} windows for {a.name} and {len(of_b)} for {b.name}: give as many for both")
        runs = len(of_a)
        tensors = differences(a, trace(a, of_a), trace(b, of_b))
    return Diff(len(a.data), len(b.data), tuple(structure), tuple(metadata), tuple(kernels), tuple(tensors), runs)


def _metadata(a: Image, b: Image, index: int) -> list[str]:
    """Names of an operator's numbers beside its kernel that are not the same."""
    u, v = a.parsed.ops[index], b.parsed.ops[index]
    pairs: dict[str, tuple[Any, Any]] = {
        "zero point": (u.out.zero_point, v.out.zero_point),
        "clamp": ((u.act_min, u.act_max), (v.act_min, v.act_max)),
        "window": (u.window, v.window),
        "scalars": ((u.add, u.mul, u.attend), (v.add, v.mul, v.attend)),
    }
    found = [name for name, (one, other) in pairs.items() if one != other]
    if u.quan is not None and v.quan is not None:
        p, q = requant_values(a.parsed, u), requant_values(b.parsed, v)
        for name in ("multipliers", "shifts", "biases"):
            one, other = np.broadcast_arrays(getattr(p, name), getattr(q, name))
            if not np.array_equal(one, other):
                found.append(name)
    return found
