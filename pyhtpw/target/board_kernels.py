"""The kernels of the library on a QEMU board, by the signatures of `pyhtpw.kernels`.

    batch = qemu.Batch(qemu.build("cortex-m55"))
    board = BoardTarget(batch, tables(batch.elf)["armv81m_mve"])
    y = kernels.conv1x1_s8(x, w, bias, multiplier, shift, backend=board)
    batch.run()
    board.collect()  # now y is there

Calls are collected and performed together, since starting a board takes longer than most calls: the array that a kernel returns is
filled by `collect`. The functions are those of the table that `htpw_backend_get` returns, so what is measured or tested is what
`htpw_run` uses.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pyhtpw._native import BACKENDS, BEST
from pyhtpw.errors import KernelError
from pyhtpw.executor import Struct, lower, portable_symbol
from pyhtpw.target import qemu, toolchain
from pyhtpw.target.kernels import TargetKernels

FIELDS = ("conv", "depthwise", "conv1x1", "packed", "add", "avgpool", "maxpool", "conv1x1_s4")  # struct htpw_backend after its id


@dataclass(frozen=True)
class Table:
    """A backend of a program: its name, its id, and the addresses of its kernels."""

    name: str
    id: int
    functions: dict[str, int]


def tables(elf: toolchain.Elf) -> dict[str, Table]:
    """The backends that a program has, by name, the portable one first."""
    return {table.name: table for table in _tables(elf, *BACKENDS.values()) if table is not None}


def best(elf: toolchain.Elf) -> Table:
    """The backend that the program itself would choose."""
    return _tables(elf, BEST)[0]


def _tables(elf: toolchain.Elf, *numbers: int) -> list[Table | None]:
    """What htpw_backend_get returns for each number, read out of the program."""
    batch = qemu.Batch(elf)
    for number in numbers:
        batch.call("htpw_backend_get", number)
    found: list[Table | None] = []
    for outcome in batch.run():
        address = outcome.result & 0xFFFFFFFF
        if not address:
            found.append(None)
            continue
        number, *functions = struct.unpack(f"<{1 + len(FIELDS)}I", qemu.memory(elf, address, 4 + 4 * len(FIELDS)))
        name = next(name for name, known in BACKENDS.items() if known == number)
        found.append(Table(name, number, dict(zip(FIELDS, functions, strict=True))))
    return found


class BoardTarget:
    """Adds kernel calls to a batch (`pyhtpw.executor.Executor`).

    Parameters
    ----------
    batch : qemu.Batch
    table : Table
        The backend.
    shift : int
        Bytes by which arrays that the contract does not align lie beyond a multiple of 16.

    Attributes
    ----------
    calls : list of int
        Numbers of the kernels' calls in the batch.
    """

    def __init__(self, batch: qemu.Batch, table: Table, *, shift: int = 0) -> None:
        self.batch, self.table, self.shift = batch, table, shift
        self.calls: list[int] = []
        self._outputs: list[tuple[np.ndarray, int]] = []

    def run(self, kernel: str, *args: Any) -> None:
        """Adds a call of a kernel; `collect` fills its last argument."""
        field, _, args = lower(kernel, args, self.table.id)
        function: str | int = portable_symbol(kernel) if field is None else self.table.functions[field]
        addresses = [self.place(arg) for arg in args]
        self.calls.append(self.batch.call(function, *addresses))
        self._outputs.append((args[-1], addresses[-1]))

    def scalars(self, function: str, *columns: list[int]) -> list[int]:
        """function(a, b, ...) for every row of the columns, at once, in a batch of their own."""
        batch = qemu.Batch(self.batch.elf)
        for row in zip(*columns, strict=True):
            batch.call(function, *row)
        return [outcome.result for outcome in batch.run()]

    def collect(self) -> None:
        """Fills the outputs, once the batch has run."""
        for array, address in self._outputs:
            array.reshape(-1).view(np.uint8)[:] = np.frombuffer(self.batch.read(address), np.uint8)

    def place(self, arg: Any) -> int:
        """A word for an argument: an integer, or the address of a new buffer with what it points to."""
        if arg is None:
            return 0
        if isinstance(arg, Struct):
            fields = [self.place(value) & 0xFFFFFFFF for value in arg.fields]
            return self.batch.buffer(struct.pack(f"<{len(fields)}I", *fields), arg.name, align=4)
        if isinstance(arg, np.ndarray):
            if arg.dtype == np.int8:
                return self.batch.buffer(arg, "int8", shift=self.shift)
            # words, scratch and cached kernels are aligned to 4 bytes and no more, by contract
            return self.batch.buffer(arg, str(arg.dtype), shift=4)
        return int(arg)


class BoardEmulator:
    """A core that only QEMU has (Cortex-M55, with and without Helium), with the kernels of `pyhtpw.target.emulator.Emulator`.

    Every call starts a board, which takes a fraction of a second; `BoardTarget` performs many at once.
    """

    def __init__(self, cpu: str = "cortex-m55", *, compiler: str = "auto", opt: str = "-O3", defines: Sequence[str] = ()) -> None:
        self._build = {"cpu": cpu, "compiler": compiler, "opt": opt, "defines": defines}

    def __enter__(self) -> "BoardEmulator":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing stays running between calls."""

    @cached_property
    def elf(self) -> toolchain.Elf:
        """The program, built when it is first needed."""
        return qemu.build(**self._build)

    @cached_property
    def kernels(self) -> TargetKernels:
        """The functions of `pyhtpw.kernels`, with the best backend of the program."""
        return self.kernels_of(None)

    def kernels_of(self, backend: str | None, *, shift: int = 0) -> TargetKernels:
        """The same with a backend of a name. Raises KernelError if the program has it not."""
        if backend is None:
            return TargetKernels(_AtOnce(self.elf, best(self.elf), shift))
        found = tables(self.elf)
        if backend not in found:
            raise KernelError(f"the program for {self.elf.cpu.name} has no backend {backend!r}; it has {', '.join(found)}")
        return TargetKernels(_AtOnce(self.elf, found[backend], shift))


@dataclass(frozen=True)
class _AtOnce:
    """Performs every call in a batch of its own (`pyhtpw.executor.Executor`)."""

    elf: toolchain.Elf
    table: Table
    shift: int

    def run(self, kernel: str, *args: Any) -> None:
        """Runs a kernel; the last argument receives the output."""
        batch = qemu.Batch(self.elf)
        target = BoardTarget(batch, self.table, shift=self.shift)
        target.run(kernel, *args)
        batch.run()
        target.collect()

    def scalars(self, function: str, *columns: list[int]) -> list[int]:
        """function(a, b, ...) for every row of the columns, in one batch."""
        return BoardTarget(qemu.Batch(self.elf), self.table).scalars(function, *columns)
