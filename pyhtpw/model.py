"""`Image`: an opened .htpw image, run by the C library on this machine."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyhtpw import _native
from pyhtpw._native import ffi, lib
from pyhtpw.errors import ConfigError, ImageError
from pyhtpw.flash import Flash
from pyhtpw.image.bill import bill
from pyhtpw.image.integer import IntegerModel
from pyhtpw.image.reader import Parsed, kernel_values, parse
from pyhtpw.image.writer import save, write

if TYPE_CHECKING:
    from pyhtpw.compare import Diff

Int8 = npt.NDArray[np.int8]
SCHEDULES = {"boot": 0, "lazy": 1}  # enum htpw_schedule: kernels in SRAM
FLASH_SCHEDULES = {"streamed": 2, "installed": 3}  # kernels in flash
_PARTS = 8  # of a batch for each thread, so that one that is slower takes fewer


_workers: ThreadPoolExecutor


def _new_workers() -> None:
    """One pool for all batches of this process; its threads are started when they are first needed."""
    global _workers
    _workers = ThreadPoolExecutor(64, "pyhtpw")


_new_workers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_workers)  # threads do not survive a fork


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


@dataclass(frozen=True)
class Layer:
    """One operator of an image, as it runs.

    Attributes
    ----------
    index : int
        Its number in the image, from 0.
    name : str
        Kind and number, since an image stores no names.
    kind : str
        conv, depthwise, conv1x1, fc, add, avgpool, maxpool, table, mul or attend.
    reads : tuple of int
        Numbers of the tensors that it reads: 0 is the input, n is what operator n - 1 writes.
    output_shape : (int, int, int)
        (H, W, C) of what it writes.
    kernel_shape : tuple of int
        Of its int8 kernel, row-major; () without one.
    source : str or None
        stored8, stored4, stored2 or the kind of head that makes the kernel; None without one.
    is_generated, is_cached : bool
        Whether a head makes the kernel; whether it is made or unpacked once and kept in memory.
    bytes : int
        Of the image, that are this operator's alone.
    macs : int
        Multiply-accumulates of one inference, padding counted.
    """

    index: int
    name: str
    kind: str
    reads: tuple[int, ...]
    output_shape: tuple[int, int, int]
    kernel_shape: tuple[int, ...]
    source: str | None
    is_generated: bool
    is_cached: bool
    bytes: int
    macs: int


class Image:
    """A validated image: what a device boots from, opened by the C library that the device runs.

    Thread-safe: every run borrows a context (arena and cache) that no other run has, and the C code runs without the GIL.

    Parameters
    ----------
    data : bytes
        The image. It is copied once, to an aligned buffer.
    name : str
        What to call it in error messages.
    codes : bytes, optional
        A code pack to apply (docs/SPEC.md section 10).

    Attributes
    ----------
    data : bytes
        The image.
    parsed : Parsed
        The image taken apart (`pyhtpw.image.parse`).

    Raises
    ------
    ImageError
        Of the subclass that belongs to the C library's error code.

    Examples
    --------
    >>> image = Image.open("model.htpw")                               # doctest: +SKIP
    >>> logits = image.run_batch(image.quantise(windows), threads=2)   # doctest: +SKIP
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
        self.parsed: Parsed = parse(self.data, name)
        self._input_bytes, self._output_bytes = int(self._model.input_bytes), int(self._model.output_bytes)
        self._plans: dict[int, Plan] = {}
        self._forget_contexts()
        self._flash: Flash | None = None  # a code pack in its slots is read in place

    @classmethod
    def open(cls, path: str | os.PathLike[str], codes: bytes | None = None) -> Image:
        """Reads and validates a file. Raises ImageError if it is unreadable or not a valid image."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ImageError(f"{path}: cannot read the image: {error.strerror}") from error
        return cls(data, str(path), codes)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "image", codes: bytes | None = None) -> Image:
        """Validates an image in memory. Raises ImageError if it is none; `name` is what its message begins with."""
        return cls(data, name, codes)

    def __repr__(self) -> str:
        return f"<pyhtpw.Image {self.name!r}: {len(self.data):,} bytes, {len(self.parsed.ops)} layers, input {self.input_shape}>"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of a window."""
        return self.parsed.input.h, self.parsed.input.w, self.parsed.input.c

    @property
    def classes(self) -> int:
        """Logits of a window."""
        return self._output_bytes

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The operators, in the order in which they run."""
        return tuple(
            Layer(op.index, op.name, op.kind, tuple(op.reads), (op.out.h, op.out.w, op.out.c), tuple(op.weight_shape),
                  op.source, op.generated, op.cached, sum(op.bytes.values()), op.macs)
            for op in self.parsed.ops
        )  # fmt: skip

    def layer(self, which: int | str | Layer) -> Layer:
        """The layer of an index, a name or of itself. Raises ConfigError if there is none."""
        layers = self.layers
        if isinstance(which, Layer):
            which = which.index
        for found in layers:
            if which in (found.index, found.name):
                return found
        raise ConfigError(f"{self.name}: no layer {which!r}: use 0 to {len(layers) - 1} or one of {', '.join(x.name for x in layers)}")

    def bill(self, backend: str | None = None) -> dict[str, Any]:
        """What every byte of the file is for, beside what the same kernels cost stored: `pyhtpw.image.bill`.

        With a backend, "sram" says what it needs of memory, bytes, beside the published claim.
        """
        if backend is None:
            return bill(self.parsed)
        plan = self.plan(backend)
        return bill(self.parsed, {"backend": backend, "arena": plan.arena, "cache": plan.cache})

    def plan(self, backend: str | None = None) -> Plan:
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
        return int(self._model.pack_number)

    @property
    def cached(self) -> list[Kernel]:
        """The cached kernels (generated ones, and those unpacked from 4 or 2 bits), in operator order."""
        info, out = ffi.new("struct htpw_kernel_info *"), []
        for layer in range(self._model.cached_count):
            _native.check(lib.htpw_kernel_info(self._model, layer, info), self.name)
            out.append(Kernel(info.op, info.bytes))
        return out

    def bind(self, schedule: str = "boot", backend: str | None = None) -> Context:
        """A context with memory of its own. `schedule` is "boot" or "lazy", `backend` a name or None for the best here."""
        return Context(self, schedule, backend)

    def bind_flash(self, flash: Flash, schedule: str = "streamed", backend: str | None = None) -> Context:
        """A context whose kernels are in `flash`: "streamed" writes what is not there, "installed" only verifies.

        Raises the ImageError of htpw_bind_flash: no room, a failing flash, or (installed) a store that is not right.
        """
        return Context(self, schedule, backend, flash)

    def _forget_contexts(self) -> None:
        """The next run binds anew."""
        self._idle: dict[int, deque[Context]] = {number: deque() for number in (_native.BEST, *_native.BACKENDS.values())}

    @contextmanager
    def _context(self, backend: str | None) -> Iterator[Context]:
        """A context that nobody else uses, made when all others are in use."""
        idle = self._idle[_native.backend_id(backend)]
        try:
            context = idle.pop()
        except IndexError:
            context = self.bind(backend=backend)
        try:
            yield context
        finally:
            idle.append(context)

    def kernels(self, backend: str | None = None) -> dict[int, Int8]:
        """Operator index -> int8 bytes (row-major) of every cached kernel, synthesised by the C library."""
        return self.bind(backend=backend).kernels()

    def synthesise(self, layer: int | str | Layer, backend: str | None = None) -> Int8:
        """The kernel of one layer as it runs: generated or unpacked by the C library, or as it is stored.

        Parameters
        ----------
        layer : int, str or Layer
            Index, name, or one of `layers`.
        backend : str, optional
            Whose kernels make it; the bytes do not depend on it.

        Returns
        -------
        int8 ndarray of the layer's `kernel_shape`

        Raises
        ------
        ConfigError
            If there is no such layer, or it has no kernel.
        """
        found = self.layer(layer)
        if not found.kernel_shape:
            raise ConfigError(f"{self.name}: layer {found.name} has no kernel: it is of kind {found.kind}")
        if not found.is_cached:
            return kernel_values(self.parsed, self.parsed.ops[found.index])
        number = next(i for i, kernel in enumerate(self.cached) if kernel.op == found.index)
        return self.bind("lazy", backend).kernel(number).reshape(found.kernel_shape)

    def quantise(self, windows: npt.ArrayLike) -> Int8:
        """Real windows (N, H*W*C in any shape) to the input's int8, `clip(rint(x / scale) + zp)` in binary32."""
        info, op = self.parsed.info, self.parsed.input
        if info is None:
            raise ImageError(f"{self.name}: has no INFO section, so the scale of its input is unknown: pass int8 windows")
        x = np.asarray(windows, np.float32)
        if x.ndim < 2 or x.size != len(x) * self._input_bytes:
            raise ImageError(f"{self.name}: windows have shape {x.shape}, the network takes (N, {', '.join(map(str, self.input_shape))})")
        q = np.rint(x / np.float32(info.input_scale)) + np.float32(op.zero_point)
        return np.clip(q, -128, 127).astype(np.int8).reshape(len(x), op.h, op.w, op.c)

    def run(self, window: npt.ArrayLike, backend: str | None = None) -> Int8:
        """Logits (classes,) int8 of one int8 window of shape (H, W, C) or any shape of as many elements."""
        with self._context(backend) as context:
            return context.run(window)

    def run_batch(self, windows: npt.ArrayLike, threads: int = 1, backend: str | None = None) -> Int8:
        """Logits of many windows.

        Parameters
        ----------
        windows : int8 (N, ...)
            N windows of (H, W, C) or any shape of as many elements; N may be 0.
        threads : int
            Threads that run them, at least 1. Order and bytes do not depend on it.
        backend : str, optional
            Name of a backend; None is the best here.

        Returns
        -------
        int8 ndarray (N, classes)

        Raises
        ------
        ConfigError
            If `threads` is less than 1.
        ImageError
            If the windows are not int8 or of another size.
        """
        if threads < 1:
            raise ConfigError(f"threads is {threads}: it must be at least 1")
        x = self._windows(windows)
        out = np.empty((len(x), self.classes), np.int8)
        if threads == 1:
            with self._context(backend) as context:
                context._run_many(x, out)
            return out
        size = max(1, -(-len(x) // (threads * _PARTS)))
        parts = deque(range(0, len(x), size))

        def work() -> None:
            with self._context(backend) as context:
                while True:
                    try:
                        first = parts.popleft()
                    except IndexError:
                        return
                    context._run_many(x[first : first + size], out[first : first + size])

        others = [_workers.submit(work) for _ in range(min(threads, len(parts)) - 1)]
        try:
            work()
        finally:
            for other in others:
                other.result()
        return out

    def _windows(self, windows: npt.ArrayLike) -> Int8:
        """Checked windows as (N, samples), C-contiguous."""
        x = np.ascontiguousarray(windows)
        if x.dtype != np.int8:
            raise ImageError(f"{self.name}: windows must be int8, not {x.dtype}: use Image.quantise first")
        if x.ndim < 2 or x.size != len(x) * self._input_bytes:
            raise ImageError(
                f"{self.name}: windows have shape {x.shape}, which is not (N, ...) of {self._input_bytes} samples each, "
                f"(N, {', '.join(map(str, self.input_shape))})"
            )
        return x.reshape(len(x), self._input_bytes)

    def diff(self, other: Image, windows: npt.ArrayLike | None = None) -> Diff:
        """How another image differs: its structure, its kernels and, on windows, the first tensor that is not the same.

        `windows` is int8 (N, ...); None compares no tensors. See `pyhtpw.compare.diff`.
        """
        from pyhtpw.compare import diff

        return diff(self, other, None if windows is None else self._windows(windows))


def pack(model: IntegerModel, path: str | os.PathLike[str] | None = None) -> Image:
    """Writes an integer model as an image, after the C library has opened it.

    Parameters
    ----------
    model : IntegerModel
        What `pyhtpw.quant` makes, or `pyhtpw.image.read_model` of an image.
    path : path, optional
        File to write, all at once; None writes none.

    Raises
    ------
    QuantiseError, ImageError
        If the model cannot be expressed in the format.
    """
    image = Image(write(model), "image" if path is None else str(path))
    if path is not None:
        save(image.data, Path(path))
    return image


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
        self.image, self.plan, self.flash = image, image.plan(backend), flash
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

    def synthesise(self, layer: int) -> Int8:
        """Synthesises cached kernel `layer` again and returns its row-major int8 bytes."""
        _native.check(lib.htpw_synth_layer(self._context, layer), f"{self.image.name}: cached kernel {layer}")
        return self.kernel(layer)

    def kernel(self, layer: int) -> Int8:
        """Row-major int8 bytes of cached kernel `layer`, out of the cache (synthesised first if it is not there)."""
        what = f"{self.image.name}: cached kernel {layer}"
        info = ffi.new("struct htpw_kernel_info *")
        _native.check(lib.htpw_kernel_info(self.image._model, layer, info), what)
        out = np.empty(info.bytes, np.int8)
        _native.check(lib.htpw_kernel_read(self._context, layer, _native.int8_pointer(out), out.size), what)
        return out

    def kernels(self) -> dict[int, Int8]:
        """Operator index -> row-major int8 bytes of every cached kernel."""
        return {k.op: self.kernel(layer) for layer, k in enumerate(self.image.cached)}

    def _window(self, window: npt.ArrayLike) -> Int8:
        """The same window, contiguous; raises ImageError if its type or size is wrong."""
        x = np.ascontiguousarray(window)
        if x.dtype != np.int8:
            raise ImageError(f"{self.image.name}: windows must be int8, not {x.dtype}: use Image.quantise first")
        if x.size != self.plan.input:
            raise ImageError(f"{self.image.name}: a window has {x.size} samples, the network takes {self.plan.input}")
        return x

    def run(self, window: npt.ArrayLike, out: Int8 | None = None) -> Int8:
        """Logits (classes,) int8 of one int8 window; raises ImageError if its size is wrong, or a run by parts is under way."""
        x = self._window(window)
        out = np.empty(self.plan.output, np.int8) if out is None else out
        code = lib.htpw_run(self._context, _native.int8_pointer(x), x.size, _native.int8_pointer(out), out.size)
        _native.check(code, self.image.name)
        return out

    def _run_many(self, x: Int8, out: Int8) -> None:
        """Windows (N, samples) one after another, without coming back to Python in between."""
        memory = _native.int8_pointer(x), self.plan.input, _native.int8_pointer(out), self.plan.output
        _native.check(lib.pyhtpw_run_many(self._context, len(x), *memory), self.image.name)

    def run_partial(self, window: Int8, out: Int8, layers: int = 1) -> int:
        """Runs at most `layers` further operators of a window; returns how many are left.

        `window`, int8 and contiguous, and `out`, int8 (classes,), are the same arrays in all calls for one window. At 0 the logits are
        in `out`, and the next call begins a new window.

        Raises
        ------
        ImageError
            If a size is wrong, or (ImageResumeError) an array is another than the window began with; it can still be gone on with.
        """
        x = self._window(window)
        buffers = _native.int8_pointer(x), x.size, _native.int8_pointer(out), out.size
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
