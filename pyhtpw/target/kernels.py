"""The kernels of the library on an emulated core, by the signatures of `pyhtpw.kernels`: the third home of each kernel.

    with Emulator("cortex-m4") as emulator:
        y = emulator.kernels.conv1x1_s8(x, w, bias, multiplier, shift)

Arguments are checked by `pyhtpw.kernels` itself; only the call goes elsewhere. Every array lies in a guarded buffer of its own.
"""

import struct
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pyhtpw import kernels
from pyhtpw._native import BACKENDS, backend_id
from pyhtpw.errors import KernelError
from pyhtpw.executor import Executor, Struct, lower, portable_symbol

if TYPE_CHECKING:
    from pyhtpw.target.emulator import Emulator

_TABLE = ("id", "conv", "depthwise", "conv1x1", "packed", "add", "avgpool", "maxpool", "conv1x1_s4")  # struct htpw_backend, words


class Target:
    """Runs kernel calls on an emulated core (`pyhtpw.executor.Executor`).

    `backend` is a name, or None for the best of the program. `shift` moves every byte array that the contract does not align to an
    address that many bytes past a multiple of 16. With `count`, `instructions` is the exact count of the last kernel.
    """

    def __init__(self, emulator: "Emulator", backend: str | None = None, *, shift: int = 0, count: bool = False) -> None:
        self.emulator, self.shift, self.count = emulator, shift, count
        self.instructions: int | None = None
        self._tables: dict[int, dict] = {}
        self.backend = self._table(backend_id(backend))["id"]
        self._buffers: list[int] = []

    def _table(self, backend: int) -> dict:
        """The kernel table of a backend in the program: its id, and the names of its functions."""
        if backend not in self._tables:
            address = self.emulator.call("htpw_backend_get", backend) & 0xFFFFFFFF
            elf = self.emulator.elf
            if not address:
                raise KernelError(f"the program for {elf.cpu.name} has no backend {backend}")
            words = struct.unpack(f"<{len(_TABLE)}I", self.emulator.read(address, 4 * len(_TABLE)))
            names = (elf.place(word).split("+")[0] for word in words[1:])
            self._tables[backend] = dict(zip(_TABLE, (words[0], *names), strict=True))
        return self._tables[backend]

    @property
    def name(self) -> str:
        """Name of the backend."""
        return next(name for name, number in BACKENDS.items() if number == self.backend)

    def run(self, kernel: str, *args: Any) -> None:
        """Runs a kernel; the last argument receives the output."""
        field, backend, args = lower(kernel, args, self.backend)
        symbol = portable_symbol(kernel) if field is None else self._table(backend)[field]
        try:
            *_, (y, shift) = placed = [self._place(arg) for arg in args]
            self.emulator.call(symbol, *(address for address, _ in placed), count=self.count)
            self.instructions = self.emulator.instructions
            out = args[-1]
            data = self.emulator.read(y - shift, out.nbytes + shift)[shift:]
            out.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)
        finally:
            while self._buffers and self.emulator.ended is None:
                self.emulator.free(self._buffers.pop())

    def scalars(self, function: str, *columns: list[int]) -> list[int]:
        """function(a, b, ...) for every row of the columns, one call each."""
        return [self.emulator.call(function, *row) for row in zip(*columns, strict=True)]

    def _place(self, arg: Any) -> tuple[int, int]:
        """A word for an argument, and how far into its buffer an array begins."""
        if arg is None:
            return 0, 0
        if isinstance(arg, Struct):
            fields = [self._place(value)[0] & 0xFFFFFFFF for value in arg.fields]
            return self._buffer(arg.name, struct.pack(f"<{len(fields)}I", *fields)), 0
        if isinstance(arg, np.ndarray):
            # arrays of words are aligned by contract, and so are scratch and cache, which come as uint8 from `lower`
            shift = self.shift if arg.dtype == np.int8 else 0
            return self._buffer("array", bytes(shift) + arg.tobytes()) + shift, shift
        return int(arg), 0

    def _buffer(self, name: str, data: bytes) -> int:
        address = self.emulator.alloc(max(len(data), 1), 16, name=name)
        self._buffers.append(address)
        self.emulator.write(address, data)
        return address


class TargetKernels:
    """The functions of `pyhtpw.kernels`, run on an emulated core."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def __getattr__(self, name: str) -> Any:
        function = getattr(kernels, name)
        return function if name in ("pack_bits", "backends") else partial(function, backend=self.executor)
