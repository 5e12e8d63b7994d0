"""`TargetModel`: an image, run by the library as it was compiled for Cortex-M."""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pyhtpw._native import backend_id, check, ffi
from pyhtpw.errors import ConfigError, ImageError, ToolError
from pyhtpw.image.reader import parse
from pyhtpw.model import SCHEDULES, Kernel, Plan

if TYPE_CHECKING:
    from pyhtpw.target.emulator import Emulator


def _offsets_on_target() -> tuple[dict[str, int], int]:
    """Where the fields of struct htpw_model lie on a 32-bit core (pointers of 4 bytes, everything at its own alignment), and
    its size."""

    def measure(kind) -> tuple[int, int, dict[str, int]]:
        if kind.kind == "pointer":
            return 4, 4, {}
        if kind.kind == "array":
            size, align, _ = measure(kind.item)
            return size * kind.length, align, {}
        if kind.kind != "struct":
            return ffi.sizeof(kind), ffi.sizeof(kind), {}
        at, largest, places = 0, 1, {}
        for name, field in kind.fields:
            size, align, _ = measure(field.type)
            at += -at % align
            places[name], at, largest = at, at + size, max(largest, align)
        return at + -at % largest, largest, places

    size, _, places = measure(ffi.typeof("struct htpw_model"))
    return places, size


class TargetModel:
    """An image in the flash of an emulated core, bound to memory of its own.

    The image, which the core can read but not write, and all memory that a caller of the library owns are separate
    guarded buffers. Sizes of structs are asked of the program, since they differ from the host's.

    Attributes
    ----------
    plan : Plan
        Memory needs as the core reports them.
    open_instructions : int or None
        Executed instructions of htpw_model_open, None if not counted.
    synthesis_instructions : int or None
        Those of htpw_bind: all kernels with the schedule "boot", none with "lazy".
    inference_instructions : int or None
        Those of one htpw_run that synthesises nothing: the first such `run`, or the last `count_inference`.
    stack_bytes : int
        Most stack that any call of the library took so far.
    image_address, arena_address, cache_address : int
        Where the buffers lie (cache: 0 if nothing is generated), for tests that look or interfere.

    Raises
    ------
    ImageError
        Of the subclass that belongs to the library's error code.
    """

    def __init__(
        self,
        emulator: "Emulator",
        image: bytes,
        name: str,
        schedule: str,
        *,
        backend: str | None = None,
        count: bool = True,
    ) -> None:
        if schedule not in SCHEDULES:
            raise ConfigError(f"unknown schedule {schedule!r}: use one of {', '.join(SCHEDULES)}")
        self.emulator, self.name, self.schedule = emulator, name, schedule
        self._backend = backend_id(backend)
        self.stack_bytes = 0
        self.inference_instructions: int | None = None
        self._count = count
        self._warm = schedule == "boot"
        self._buffers: list[int] = []
        try:
            self._open(bytes(image))
        except BaseException:
            self.close()
            raise

    def _open(self, image: bytes) -> None:
        emulator = self.emulator
        self._image = image
        # a C caller of an empty image has an address too, so it gets one byte that it doesn't own up to
        self.image_address = self._alloc("image", max(len(image), 1), read_only=True)
        emulator.write(self.image_address, image)
        self._model = self._alloc("model", emulator.call("htpw_sizeof_model"), 8)
        self._context = self._alloc("context", emulator.call("htpw_sizeof_context"), 8)
        self._words = self._alloc("plan", 24, 4)  # struct htpw_plan: 6 u32, struct htpw_kernel_info: 2
        self._call("htpw_model_open", self._model, self.image_address, len(image), count=self._count)
        self.open_instructions = emulator.instructions
        self._call("htpw_plan_memory", self._model, self._backend, self._words)
        self.plan = Plan(*struct.unpack("<6I", emulator.read(self._words, 24)))
        self.arena_address = self._alloc("arena", max(self.plan.arena, 1), 4)
        self.cache_address = self._alloc("cache", self.plan.cache, 4) if self.plan.cache else 0
        self._input = self._alloc("input", self.plan.input, 1)
        self._output = self._alloc("logits", self.plan.output, 1)
        arena, cache = (self.arena_address, self.plan.arena), (self.cache_address, self.plan.cache)
        memory = (self._backend, *arena, *cache, SCHEDULES[self.schedule])
        self._call("htpw_bind", self._context, self._model, *memory, count=self._count)
        self.synthesis_instructions = emulator.instructions

    def close(self) -> None:
        """Gives the emulated memory back. The emulator stays."""
        while self._buffers and self.emulator.ended is None:
            self.emulator.free(self._buffers.pop())

    def __enter__(self) -> "TargetModel":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _alloc(self, what: str, size: int, align: int = 16, read_only: bool = False) -> int:
        address = self.emulator.alloc(size, align, name=f"{what} of {self.name}", read_only=read_only)
        self._buffers.append(address)
        return address

    def _call(self, symbol: str, *args: int, count: bool = False) -> int:
        """Calls, raises the exception of an error code, and keeps account of the stack."""
        code = self.emulator.call(symbol, *args, count=count)
        self.stack_bytes = max(self.stack_bytes, self.emulator.stack_bytes)
        return check(code, self.name)

    @property
    def backend(self) -> str:
        """Name of the backend that the program runs the image with."""
        address = self.emulator.call("htpw_backend_name", self._backend) & 0xFFFFFFFF
        return self.emulator.read(address, 24).split(b"\0")[0].decode()

    @property
    def cached(self) -> list[Kernel]:
        """The cached kernels, in operator order, as the core reports them."""
        found: list[Kernel] = []
        while True:
            try:
                self._call("htpw_kernel_info", self._model, len(found), self._words)
            except ImageError:  # the number past the last is refused, and nothing else can be
                return found
            found.append(Kernel(*struct.unpack("<2I", self.emulator.read(self._words, 8))))

    def kernels(self) -> dict[int, np.ndarray]:
        """Operator index -> row-major int8 bytes of the generated kernels, read out of the emulated cache by the library."""
        found = {}
        for layer, kernel in enumerate(self.cached):
            address = self._alloc("kernel", kernel.bytes, 1)
            self._call("htpw_kernel_read", self._context, layer, address, kernel.bytes)
            found[kernel.op] = np.frombuffer(self.emulator.read(address, kernel.bytes), np.int8)
            self.emulator.free(self._buffers.pop())
        return found

    def run(self, window: np.ndarray) -> np.ndarray:
        """Logits (classes,) int8 of one int8 window of shape (H, W, C) or any shape of as many elements.

        The first run that synthesises nothing is counted.
        """
        return self._run(window, self._count and self._warm and self.inference_instructions is None)

    def run_batch(self, windows: np.ndarray) -> np.ndarray:
        """Logits (N, classes) int8 of int8 windows (N, ...)."""
        out = np.empty((len(windows), self.plan.output), np.int8)
        for i, window in enumerate(windows):
            out[i] = self.run(window)
        return out

    def count_inference(self, window: np.ndarray) -> int:
        """Executed instructions of one inference of this window, every kernel being in the cache."""
        if not self._warm:
            self._run(window, False)
        self._run(window, True)
        return self.inference_instructions

    def trace(self, windows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the index of every operator and what it writes, int8 (N, H, W, C), for int8 windows (N, ...).

        The library runs the first operator alone, then the first two, and so on: the core's `struct htpw_model` is told, while
        this goes on, that the image ends there. Nothing is counted.
        """
        offsets, size = _offsets_on_target()
        if self.emulator.call("htpw_sizeof_model") != size:
            raise ToolError(f"{self.name}: struct htpw_model has another layout on the core than pyhtpw thinks: a trace is impossible")
        count, output = self._model + offsets["operator_count"], self._model + offsets["output_bytes"]
        whole = self.emulator.read(count, 1), self.emulator.read(output, 4)
        x = np.ascontiguousarray(windows).reshape(len(windows), -1)
        try:
            for op in parse(self._image, self.name).ops:
                self.emulator.write(count, struct.pack("<B", op.index + 1))
                self.emulator.write(output, struct.pack("<I", op.out.size))
                address = self._alloc("output of an operator", op.out.size, 1)
                out = np.empty((len(x), op.out.h, op.out.w, op.out.c), np.int8)
                for i, window in enumerate(x):
                    self.emulator.write(self._input, window.tobytes())
                    self._call("htpw_run", self._context, self._input, self.plan.input, address, op.out.size)
                    out[i] = np.frombuffer(self.emulator.read(address, op.out.size), np.int8).reshape(out[i].shape)
                self.emulator.free(self._buffers.pop())
                yield op.index, out
        finally:
            self.emulator.write(count, whole[0])
            self.emulator.write(output, whole[1])

    def _run(self, window: np.ndarray, count: bool) -> np.ndarray:
        window = np.ascontiguousarray(window)
        if window.dtype != np.int8:
            raise ImageError(f"{self.name}: windows must be int8, not {window.dtype}: use Image.quantise first")
        if window.size != self.plan.input:
            raise ImageError(f"{self.name}: a window has {window.size} samples, the network takes {self.plan.input}")
        self.emulator.write(self._input, window.tobytes())
        buffers = (self._input, self.plan.input, self._output, self.plan.output)
        self._call("htpw_run", self._context, *buffers, count=count)
        self._warm = True
        if count:
            self.inference_instructions = self.emulator.instructions
        return np.frombuffer(self.emulator.read(self._output, self.plan.output), np.int8)
