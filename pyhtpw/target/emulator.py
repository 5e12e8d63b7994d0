"""`Emulator`: functions of the cross-compiled library, called from Python.

The core runs in a process of its own (see `worker` for why); this is the end that the rest of pyhtpw uses.
"""

import functools
import operator
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyhtpw.errors import ConfigError, MissingToolError, ToolError
from pyhtpw.target import toolchain
from pyhtpw.target.worker import receive, send

if TYPE_CHECKING:
    from pyhtpw.target.kernels import TargetKernels
    from pyhtpw.target.model import TargetModel

# Where buffers lie: read-only ones in the address range of flash, the rest where Cortex-M has external RAM.
READ_ONLY = (0x10000000, 0x20000000)
READ_WRITE = (0x60000000, 0xA0000000)
SECONDS = 600.0  # bound of one call


class EmulationError(ToolError):
    """Emulated code did what it must not, or the emulator failed. `kind` is one word: fault, limit, guard, registers, memory
    or died."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Emulator:
    """A Cortex-M with the library in its flash.

    The compiler and the emulator start when they are first needed, so that making an object costs nothing and cannot fail
    for lack of a tool. Use it in a `with` statement, or call `close`. One thread at a time.

    Parameters
    ----------
    cpu, compiler, opt, extra, roots, defines
        As `toolchain.build` takes them.

    Attributes
    ----------
    instructions : int or None
        Executed instructions of the last call, if it was counted (`worker` says what that means).
    stack_bytes : int
        Most stack that the last call used, arguments on the stack included.
    ended : str or None
        Why it cannot be used any more; None while it can.
    """

    def __init__(
        self,
        cpu: str = "cortex-m4",
        *,
        compiler: str = "auto",
        opt: str = "-O3",
        extra: Sequence[str | os.PathLike] = (),
        roots: Sequence[str] = toolchain.LIBRARY,
        defines: Sequence[str] = (),
    ) -> None:
        core = toolchain.cpu_named(cpu)
        if core.unicorn is None:
            raise ConfigError(f"unicorn has no {cpu}: run it on a QEMU board (pyhtpw.target.qemu)")
        self._build = {"cpu": core, "compiler": compiler, "opt": opt, "extra": extra, "roots": roots, "defines": defines}
        self._elf: toolchain.Elf | None = None
        self._worker: subprocess.Popen | None = None
        self._errors: Any = None
        self._sizes: dict[int, int] = {}
        self.ended: str | None = None
        self.instructions: int | None = None
        self.stack_bytes = 0

    def __enter__(self) -> "Emulator":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker, and with it all buffers. The object cannot be used any more."""
        self.ended = self.ended or "the emulator was closed"
        if self._worker is not None:
            self._worker.kill()  # it holds nothing that is worth an orderly end
            self._worker.wait()
            for stream in (self._worker.stdin, self._worker.stdout, self._errors):
                try:
                    stream.close()
                except BrokenPipeError:
                    pass  # it died before it had read everything
            self._worker = None

    @property
    def elf(self) -> toolchain.Elf:
        """The program, built when first asked for."""
        if self._elf is None:
            self._elf = toolchain.build(**self._build)
        return self._elf

    # Messages

    def _start(self) -> None:
        elf = self.elf
        package = str(Path(toolchain.__file__).resolve().parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._errors = tempfile.TemporaryFile()
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "pyhtpw.target.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        try:
            self._ask(
                "start",
                model=elf.cpu.unicorn,
                stack_low=elf.address("htpw_target_stack_low"),
                stack_top=elf.address("htpw_target_stack_top"),
                stop=elf.address("htpw_target_return"),
            )
            for segment in elf.segments:
                protection = "rw" if segment.writable else "rx"
                self._ask("segment", segment.data, address=segment.address, size=segment.size, protection=protection)
        except ToolError:
            self.close()
            raise

    def _request(self, op: str, data: bytes = b"", what: str = "", **arguments: Any) -> tuple[dict, bytes]:
        """Sends a request, starting the worker if need be, and returns its reply."""
        if self.ended is not None:
            raise EmulationError(self.ended, "died")
        if self._worker is None:
            self._start()
        return self._ask(op, data, what, **arguments)

    def _ask(self, op: str, data: bytes = b"", what: str = "", **arguments: Any) -> tuple[dict, bytes]:
        try:
            send(self._worker.stdin, {"op": op, **arguments}, data)
            reply, payload = receive(self._worker.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise self._death(op) from error
        except BaseException:  # an interrupt: the reply that is still to come would answer the next request
            self.close()
            raise
        if "error" in reply:
            raise self._exception(reply, what)
        return reply, payload

    def _death(self, op: str) -> EmulationError:
        """What to say about a worker that has gone. It is not replaced: addresses that callers hold were of its memory."""
        status = self._worker.wait()
        self._errors.seek(0)
        last = (self._errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        self.ended = f"the emulator's process ended with status {status} during {op!r}: {last}"
        self.close()
        return EmulationError(self.ended, "died")

    def _exception(self, reply: dict[str, Any], what: str) -> Exception:
        kind, text = reply["error"], reply["text"]
        if kind == "tool":
            return MissingToolError(text)
        if kind == "argument":
            return ConfigError(text)
        parts = [f"{self.elf.cpu.name}: {what or kind}: {text}"]
        if "address" in reply:
            parts.append(f"at address {reply['address']:#x}")
        for name in ("pc", "lr"):
            if name in reply:
                parts.append(f"{name} {reply[name]:#x} ({self.elf.place(reply[name])})")
        return EmulationError(", ".join(parts), kind)

    # Memory

    def alloc(self, size: int, align: int = 16, *, name: str = "buffer", read_only: bool = False) -> int:
        """Address of a new zeroed buffer of `size` >= 1 bytes, a multiple of `align` (a power of two up to 4096).

        Bytes of 0xA5 stand around it; a call that changes one raises EmulationError with the buffer's name. Beyond
        them nothing is mapped. Writes of emulated code to a read-only buffer fault; `write` may.
        """
        if size < 1 or align < 1 or align > 4096 or align & (align - 1):
            raise ConfigError(f"{name}: {size} bytes aligned to {align}: need a size >= 1, a power of two up to 4096")
        low, high = READ_ONLY if read_only else READ_WRITE
        protection = "r" if read_only else "rw"
        where = {"low": low, "high": high, "protection": protection}
        reply, _ = self._request("alloc", what="alloc", name=name, size=size, align=align, **where)
        self._sizes[reply["address"]] = size
        return reply["address"]

    def free(self, address: int) -> None:
        """Unmaps a buffer: code that still uses it faults."""
        self._request("free", address=address)
        del self._sizes[address]

    def write(self, address: int, data: bytes) -> None:
        """Writes anything that has a buffer (bytes, numpy arrays) to memory. Refuses to leave an allocated buffer."""
        data = bytes(memoryview(data).cast("B")) if not isinstance(data, bytes) else data
        if address in self._sizes and len(data) > self._sizes[address]:
            raise ConfigError(f"{len(data)} bytes do not fit the buffer of {self._sizes[address]} at {address:#x}")
        if data:
            self._request("write", data, address=address)

    def read(self, address: int, size: int) -> bytes:
        """Reads `size` bytes of memory."""
        return self._request("read", address=address, size=size)[1]

    # Calls

    def call(
        self, symbol: str, *args: int, count: bool = False, seconds: float = SECONDS, limit: int | None = None
    ) -> int:
        """Calls a function of the program.

        Parameters
        ----------
        symbol : str
            Its name; static functions can be called too.
        args : int
            Its arguments in C's order, at most 32 bits each: integers in [-2^31, 2^32) or addresses.
        count : bool
            Whether to count instructions; that takes about ten times as long.
        seconds : float
            Bound on the time of the call.
        limit : int, optional
            Bound on its instructions.

        Returns
        -------
        int
            r0 as a signed number; meaningless for a function that returns nothing.

        Raises
        ------
        EmulationError
            If it faults, runs on beyond a bound, damages a guard or a register that it must preserve; the emulator can be
            used again after that. If the emulator dies, it cannot.
        """
        entry = self.elf.symbols.get(symbol)
        if entry is None or not entry.is_function:
            raise ConfigError(f"{self.elf.path.name} has no function {symbol!r}")
        words = []
        for i, value in enumerate(args):
            try:
                word = operator.index(value)
            except TypeError:
                raise ConfigError(f"{symbol}: argument {i} is {value!r}: pass integers or addresses") from None
            if not -(1 << 31) <= word < 1 << 32:
                raise ConfigError(f"{symbol}: argument {i} is {word}: it does not fit 32 bits")
            words.append(word & 0xFFFFFFFF)
        if len(words) > 64:
            raise ConfigError(f"{symbol}: {len(words)} arguments: at most 64 are passed")
        self.instructions = None
        bounds = {"seconds": seconds, "limit": limit or 0}
        reply, _ = self._request("call", what=symbol, address=entry.address, args=words, count=count, **bounds)
        self.instructions, self.stack_bytes = reply["instructions"], reply["stack"]
        return reply["r0"] - (1 << 32) if reply["r0"] >> 31 else reply["r0"]

    @functools.cached_property
    def kernels(self) -> "TargetKernels":
        """The functions of `pyhtpw.kernels`, run on the emulated core with the best backend of the program."""
        return self.kernels_of(None)

    def kernels_of(self, backend: str | None, **options: Any) -> "TargetKernels":
        """The same with a backend of a name; options as of `pyhtpw.target.kernels.Target`."""
        from pyhtpw.target.kernels import Target, TargetKernels

        return TargetKernels(Target(self, backend, **options))

    def open(
        self,
        image: bytes,
        name: str = "image",
        schedule: str = "boot",
        *,
        backend: str | None = None,
        count: bool = True,
    ) -> "TargetModel":
        """Opens and binds an image on the emulated core: see `pyhtpw.target.model.TargetModel`.

        Raises
        ------
        ImageError
            Of the same subclass as on the host.
        """
        from pyhtpw.target.model import TargetModel

        return TargetModel(self, image, name, schedule, backend=backend, count=count)
