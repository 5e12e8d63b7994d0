"""`Image`: an opened .htpw image, run by the C library on this machine."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyhtpw import _native
from pyhtpw._native import ffi, lib
from pyhtpw.errors import ConfigError, ImageError
from pyhtpw.flash import Flash
from pyhtpw.image.reader import Parsed, parse

SCHEDULES = {"boot": 0, "lazy": 1}  # enum htpw_schedule: kernels in SRAM
FLASH_SCHEDULES = {"streamed": 2, "installed": 3}  # kernels in flash


@dataclass(frozen=True)
class Plan:
    """Memory that a device needs for a model, bytes, exact (struct htpw_plan).

    `arena` and `cache` with the kernels in SRAM; with the kernels in flash, where they take `cache` bytes, `streamed_arena` or
    `installed_arena` alone.
    """

    arena: int
    cache: int
    input: int
    output: int
    streamed_arena: int
    installed_arena: int


@dataclass(frozen=True)
class Kernel:
    """A cached kernel: index of its operator, bytes of its row-major int8 weights."""

    op: int
    bytes: int


class Image:
    """A validated image.

    Thread-safe: every thread that runs gets a context (arena and cache) of its own, and the C code runs without the GIL.

    Parameters
    ----------
    data : bytes
        The image. It is copied once, to an aligned buffer.
    name : str
        What to call it in error messages.
    codes : bytes, optional
        A code pack to apply (docs/SPEC.md section 10).

    Raises
    ------
    ImageError
        Of the subclass that belongs to the C library's error code.
    """

    def __init__(self, data: bytes, name: str = "image", codes: bytes | None = None) -> None:
        self.name = name
        self.data = bytes(data)
        self._buffer = _native.aligned(len(data))
        self._buffer[: len(data)] = np.frombuffer(self.data, np.uint8)
        self._model = ffi.new("struct htpw_model *")
        _native.check(
            lib.htpw_model_open(self._model, ffi.cast("void *", self._buffer.ctypes.data), len(data)), name
        )
        if codes is not None:
            self._codes = _native.aligned(len(codes))
            self._codes[: len(codes)] = np.frombuffer(codes, np.uint8)
            pack = ffi.cast("void *", self._codes.ctypes.data)
            _native.check(lib.htpw_codes_apply(self._model, pack, len(codes)), f"{name}: code pack")
        self._plans: dict[int, Plan] = {}
        self.plan = self.plan_for()
        self.parsed: Parsed = parse(self.data, name)
        self._local = threading.local()

    @classmethod
    def open(cls, path: str | os.PathLike) -> "Image":
        """Reads and validates a file. Raises ImageError if it is unreadable or not a valid image."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ImageError(f"{path}: cannot read the image: {error.strerror}") from error
        return cls(data, str(path))

    def plan_for(self, backend: str | None = None) -> Plan:
        """Memory needs with a backend, which need not be one of this machine: "armv7em_dsp" plans for a Cortex-M4."""
        number = _native.backend_id(backend)
        if number in self._plans:
            return self._plans[number]
        plan = ffi.new("struct htpw_plan *")
        _native.check(lib.htpw_plan_memory(self._model, number, plan), self.name)
        self._plans[number] = Plan(
            plan.arena_bytes,
            plan.cache_bytes,
            plan.input_bytes,
            plan.output_bytes,
            plan.streamed_arena_bytes,
            plan.installed_arena_bytes,
        )
        return self._plans[number]

    @property
    def codes_number(self) -> int:
        """Number of the applied code pack, 0 if none is."""
        return self._model.pack_number

    @property
    def cached(self) -> list[Kernel]:
        """The cached kernels (generated ones, and those unpacked from 4 or 2 bits), in operator order."""
        info, out = ffi.new("struct htpw_kernel_info *"), []
        for layer in range(self._model.cached_count):
            _native.check(lib.htpw_kernel_info(self._model, layer, info), self.name)
            out.append(Kernel(info.op, info.bytes))
        return out

    def bind(self, schedule: str = "boot", backend: str | None = None) -> "Context":
        """A context with memory of its own. `schedule` is "boot" or "lazy", `backend` a name or None for the best here."""
        return Context(self, schedule, backend)

    def bind_flash(self, flash: Flash, schedule: str = "streamed", backend: str | None = None) -> "Context":
        """A context whose kernels are in `flash`: "streamed" writes what is not there, "installed" only verifies.

        Raises the ImageError of htpw_bind_flash: no room, a failing flash, or (installed) a store that is not right.
        """
        return Context(self, schedule, backend, flash)

    def _context(self, backend: str | None) -> "Context":
        contexts = self._local.__dict__.setdefault("contexts", {})
        if backend not in contexts:
            contexts[backend] = self.bind(backend=backend)
        return contexts[backend]

    def kernels(self, backend: str | None = None) -> dict[int, np.ndarray]:
        """Operator index -> int8 bytes (row-major) of every cached kernel, synthesised by the C library."""
        return self.bind(backend=backend).kernels()

    def quantise(self, windows: np.ndarray) -> np.ndarray:
        """Real windows (N, H*W*C in any shape) to the input's int8, `clip(rint(x / scale) + zp)` in binary32."""
        info, op = self.parsed.info, self.parsed.input
        if info is None:
            raise ImageError(f"{self.name}: has no INFO section, so the scale of its input is unknown: pass int8 windows")
        q = np.rint(np.asarray(windows, np.float32) / np.float32(info.input_scale)) + np.float32(op.zero_point)
        return np.clip(q, -128, 127).astype(np.int8).reshape(len(windows), op.h, op.w, op.c)

    def run(self, window: np.ndarray, backend: str | None = None) -> np.ndarray:
        """Logits (classes,) int8 of one int8 window of shape (H, W, C) or any shape of as many elements."""
        return self._context(backend).run(window)

    def run_batch(self, windows: np.ndarray, threads: int = 1, backend: str | None = None) -> np.ndarray:
        """Logits (N, classes) int8 of int8 windows (N, ...), on `threads` threads (order and bytes don't depend on it)."""
        if threads < 1:
            raise ConfigError(f"threads is {threads}: it must be at least 1")
        windows = np.ascontiguousarray(windows)
        if threads == 1:
            return self._run_part(windows, backend)
        with ThreadPoolExecutor(threads) as pool:
            parts = pool.map(self._run_part, np.array_split(windows, threads), [backend] * threads)
            return np.concatenate(list(parts))

    def _run_part(self, windows: np.ndarray, backend: str | None) -> np.ndarray:
        context = self._context(backend)
        out = np.empty((len(windows), self.plan.output), np.int8)
        for i, window in enumerate(windows):
            context.run(window, out[i])
        return out


class Context:
    """An image bound to memory of its own and a backend; one thread at a time (struct htpw_context).

    `arena` and `cache` are uint8 buffers of exactly `plan`'s size; the cache is in the backend's layout. With kernels in flash
    `cache` is None.
    """

    def __init__(
        self, image: Image, schedule: str = "boot", backend: str | None = None, flash: Flash | None = None
    ) -> None:
        known = SCHEDULES if flash is None else FLASH_SCHEDULES
        if schedule not in known:
            raise ConfigError(f"unknown schedule {schedule!r}: use one of {', '.join(known)}")
        self.image, self.plan, self.flash = image, image.plan_for(backend), flash
        self._context = ffi.new("struct htpw_context *")
        common = self._context, image._model, _native.backend_id(backend)
        arena = self.plan.arena if flash is None else getattr(self.plan, f"{schedule}_arena")
        self.arena = _native.aligned(arena)
        memory = ffi.cast("void *", self.arena.ctypes.data), arena
        self.cache = None
        if flash is None:
            self.cache = _native.aligned(self.plan.cache)
            cache = ffi.cast("void *", self.cache.ctypes.data), self.plan.cache
            code = lib.htpw_bind(*common, *memory, *cache, known[schedule])
        else:
            code = lib.htpw_bind_flash(*common, *memory, flash.c, known[schedule])
        _native.check(code, f"{image.name}: backend {backend or 'best'}")

    def synthesise(self, layer: int) -> np.ndarray:
        """Synthesises cached kernel `layer` again and returns its row-major int8 bytes."""
        _native.check(lib.htpw_synth_layer(self._context, layer), f"{self.image.name}: cached kernel {layer}")
        return self.kernel(layer)

    def kernel(self, layer: int) -> np.ndarray:
        """Row-major int8 bytes of cached kernel `layer`, out of the cache (synthesised first if it is not there)."""
        what = f"{self.image.name}: cached kernel {layer}"
        info = ffi.new("struct htpw_kernel_info *")
        _native.check(lib.htpw_kernel_info(self.image._model, layer, info), what)
        out = np.empty(info.bytes, np.int8)
        _native.check(lib.htpw_kernel_read(self._context, layer, _native.int8_pointer(out), out.size), what)
        return out

    def kernels(self) -> dict[int, np.ndarray]:
        """Operator index -> row-major int8 bytes of every cached kernel."""
        return {k.op: self.kernel(layer) for layer, k in enumerate(self.image.cached)}

    def _window(self, window: np.ndarray) -> np.ndarray:
        """The same window, contiguous; raises ImageError if its type or size is wrong."""
        window = np.ascontiguousarray(window)
        if window.dtype != np.int8:
            raise ImageError(f"{self.image.name}: windows must be int8, not {window.dtype}: use Image.quantise first")
        if window.size != self.image.plan.input:
            raise ImageError(
                f"{self.image.name}: a window has {window.size} samples, the network takes {self.image.plan.input}"
            )
        return window

    def run(self, window: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Logits (classes,) int8 of one int8 window; raises ImageError if its size is wrong, or a run by parts is under way."""
        window = self._window(window)
        out = np.empty(self.image.plan.output, np.int8) if out is None else out
        code = lib.htpw_run(
            self._context, _native.int8_pointer(window), window.size, _native.int8_pointer(out), out.size
        )
        _native.check(code, self.image.name)
        return out

    def run_partial(self, window: np.ndarray, out: np.ndarray, layers: int = 1) -> int:
        """Runs at most `layers` further operators of a window; returns how many are left.

        `window`, int8 and contiguous, and `out`, int8 (classes,), are the same arrays in all calls for one window. At 0 the logits are
        in `out`, and the next call begins a new window.

        Raises
        ------
        ImageError
            If a size is wrong, or (ImageResumeError) an array is another than the window began with; it can still be gone on with.
        """
        buffers = _native.int8_pointer(self._window(window)), window.size, _native.int8_pointer(out), out.size
        return _native.check(lib.htpw_run_partial(self._context, *buffers, layers), self.image.name)

    def cancel(self) -> None:
        """Forgets a run by parts that is under way, if there is one."""
        _native.check(lib.htpw_run_cancel(self._context), self.image.name)

    def set_hook(self, hook: Callable[[int, bool], None] | None) -> None:
        """Sets what is called with (index, is done) before and after every operator; None for nothing. It must not raise."""

        def call(user: object, op: int, is_done: int) -> None:
            hook(op, bool(is_done))

        self._hook = ffi.NULL if hook is None else ffi.callback("void(void *, uint32_t, int)", call)
        _native.check(lib.htpw_set_hook(self._context, self._hook, ffi.NULL), self.image.name)
