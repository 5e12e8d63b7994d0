"""Proof that the tellings agree: every generated kernel and every logit, byte for byte.

A *telling* is one implementation of docs/SPEC.md: numpy (`reference/`), C on this machine (`csrc/` through cffi), C built for
a Cortex-M and emulated. None is derived from another. Nothing here has a tolerance.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Protocol

import numpy as np

import reference
from pyhtpw import _native
from pyhtpw.errors import ConfigError, VerifyError
from pyhtpw.model import Image
from reference import synthesis

X86_WINDOWS, TARGET_WINDOWS = 256, 16  # windows compared when nobody says otherwise


class Telling(Protocol):
    """What `compare` needs of an implementation; `windows` is how many windows it is asked to run."""

    name: str
    windows: int

    def kernels(self) -> dict[int, np.ndarray]:
        """Operator index -> int8 kernel, any shape, row-major."""

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Logits (N, classes) int8 of int8 windows (N, H, W, C)."""


class Native:
    """C on this machine, with one backend (None: the best)."""

    def __init__(self, image: Image, windows: int = X86_WINDOWS, threads: int = 2, backend: str | None = None) -> None:
        self.name = f"C here ({backend or _native.backend_name()})"
        self.windows, self._image, self._threads, self._backend = windows, image, threads, backend

    def kernels(self) -> dict[int, np.ndarray]:
        return self._image.kernels(self._backend)

    def logits(self, x: np.ndarray) -> np.ndarray:
        return self._image.run_batch(x, self._threads, self._backend)


class Numpy:
    """The reference, reading the same bytes on its own."""

    def __init__(self, image: Image, windows: int = X86_WINDOWS) -> None:
        self.name, self.windows = "numpy", windows
        self._model = reference.read(image.data)

    def kernels(self) -> dict[int, np.ndarray]:
        return synthesis.kernels(self._model)

    def logits(self, x: np.ndarray) -> np.ndarray:
        return reference.run(self._model, x)


class Emulated:
    """C built for a Cortex-M, emulated; `model` is what `pyhtpw.target.Emulator.open` returns."""

    def __init__(self, model: Any, cpu: str = "cortex-m4", windows: int = TARGET_WINDOWS) -> None:
        self.name, self.windows, self._model = f"C on {cpu} ({model.backend}, emulated)", windows, model

    def kernels(self) -> dict[int, np.ndarray]:
        return self._model.kernels()

    def logits(self, x: np.ndarray) -> np.ndarray:
        return self._model.run_batch(x)


@dataclass(frozen=True)
class Pair:
    """Two tellings compared: bytes of kernels and logits looked at, how many differ, and the first that does."""

    a: str
    b: str
    kernel_bytes: int
    logit_bytes: int
    windows: int
    differ: int
    first: str | None

    @property
    def compared(self) -> int:
        """Bytes compared."""
        return self.kernel_bytes + self.logit_bytes

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


_Result = tuple[str, dict[int, np.ndarray], np.ndarray]  # name, kernels, logits


def sample_windows(image: Image, n: int, seed: int = 0) -> np.ndarray:
    """Seeded int8 windows (n, H, W, C) when no data are given: random walks, white noise at full range, and constants at the
    extremes, so that saturation and every clamp are visited."""
    rng = np.random.default_rng([seed, 0x57494E])
    shape = image.parsed.input
    walk = np.cumsum(rng.normal(0, 12, (n, shape.h, shape.w, shape.c)), axis=2)
    x = np.clip(np.rint(walk), -128, 127).astype(np.int8)
    noise = np.arange(n) % 3 == 1
    x[noise] = rng.integers(-128, 128, x[noise].shape, dtype=np.int8)
    for i, value in enumerate((-128, 127, shape.zero_point)):
        if i < n:
            x[i] = value
    return x


def compare(image: Image, windows: np.ndarray, tellings: Sequence[Telling]) -> list[Pair]:
    """Compares every pair of tellings on kernels and on as many of `windows` as both run.

    Parameters
    ----------
    image : Image
        Names the operators in messages.
    windows : int8 (N, H, W, C)
    tellings : two or more

    Raises
    ------
    ConfigError
        If there are fewer than two tellings or no windows.
    """
    if len(tellings) < 2 or not len(windows):
        raise ConfigError("verify needs at least two tellings and one window")
    names = {op.index: op.name for op in image.parsed.ops}
    results = []
    for telling in tellings:
        kernels = {i: np.asarray(k, np.int8).ravel() for i, k in telling.kernels().items()}
        logits = np.asarray(telling.logits(windows[: telling.windows]), np.int8)
        results.append((telling.name, kernels, logits))
    return [_pair(image, names, a, b) for a, b in combinations(results, 2)]


def _pair(image: Image, names: dict[int, str], a: _Result, b: _Result) -> Pair:
    (name_a, kernels_a, logits_a), (name_b, kernels_b, logits_b) = a, b
    differ, first, kernel_bytes = 0, None, 0
    for op in sorted(set(kernels_a) | set(kernels_b)):
        ka, kb = kernels_a.get(op), kernels_b.get(op)
        shape = image.parsed.ops[op].weight_shape
        if ka is None or kb is None or ka.shape != kb.shape or ka.size != np.prod(shape):
            raise VerifyError(f"kernel of {names[op]}: {name_a} and {name_b} do not give {shape} weights both")
        kernel_bytes += ka.size
        bad = np.flatnonzero(ka != kb)
        differ += len(bad)
        if first is None and len(bad):
            at = tuple(int(i) for i in np.unravel_index(bad[0], shape))
            first = f"kernel of {names[op]} (operator {op}) at {at}: {name_a} {ka[bad[0]]}, {name_b} {kb[bad[0]]}"
    n = min(len(logits_a), len(logits_b))
    wrong = np.argwhere(logits_a[:n] != logits_b[:n])
    differ += len(wrong)
    if first is None and len(wrong):
        window, c = (int(i) for i in wrong[0])
        last = image.parsed.ops[-1]
        values = f"{name_a} {logits_a[window, c]}, {name_b} {logits_b[window, c]}"
        first = f"logits of {last.name} (operator {last.index}), window {window}, class {c}: {values}"
    return Pair(name_a, name_b, kernel_bytes, logits_a[:n].size, n, differ, first)
