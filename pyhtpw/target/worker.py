"""The process that holds the emulator: `python -m pyhtpw.target.worker`.

It is a process of its own because the emulator, unicorn, is GPL-2.0: nothing else of pyhtpw imports it or links it, and what
passes between the two are messages over pipes. It also keeps a crash of the emulator from taking the caller along.

A message is two little-endian u32 (bytes of header, bytes of data), a JSON header and the data. Requests have an "op"
(a method `do_<op>` of `Machine`) and its arguments; a reply has "ok", or "error" (a kind) and "text". One request
is answered before the next is read. `pyhtpw.target.emulator` is the other end.

Counts are executed instructions as the emulator sees them: an instruction of an IT block whose condition fails is not
counted, though a core spends a cycle on it. The hook that counts is machine code (compiled by Numba), called once per
instruction; without Numba, lengths of basic blocks are added up in Python, which does count failed conditions.
"""

import ctypes
import functools
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

HEADER = struct.Struct("<II")
PAGE = 4096
GUARD = 0xA5
GUARD_BYTES = 16  # at least; the rest of an allocation's pages is guard as well
STACK_PAINT = 0x5A
PRESERVED = {f"r{i}": 0xC0DE0000 + i for i in range(4, 12)}  # what a callee must hand back (AAPCS 6.1.1)


def send(stream: BinaryIO, header: dict[str, Any], data: bytes = b"") -> None:
    """Writes one message."""
    text = json.dumps(header).encode()
    stream.write(HEADER.pack(len(text), len(data)) + text + data)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Reads one message; raises EOFError if the other end is gone."""

    def exactly(n: int) -> bytes:
        data = stream.read(n)
        if len(data) != n:
            raise EOFError
        return data

    text, size = HEADER.unpack(exactly(HEADER.size))
    return json.loads(exactly(text)), exactly(size)


def pages(n: int) -> int:
    """n rounded up to whole pages."""
    return -(-n // PAGE) * PAGE


class Refused(Exception):
    """A request that cannot be met: its kind, text, and what else the caller should know."""

    def __init__(self, kind: str, text: str, **more: Any) -> None:
        super().__init__(text)
        self.reply = {"error": kind, "text": text, **more}


def native_hook() -> Any:
    """Machine code for UC_HOOK_CODE that counts into a u64; None without Numba."""
    try:
        from numba import cfunc, types
    except ImportError:
        return None

    @cfunc(types.void(types.voidptr, types.uint64, types.uint32, types.CPointer(types.uint64)))
    def count(engine, address, size, counter):
        counter[0] += 1

    return count


class Watchdog(threading.Thread):
    """Stops a call that takes too long. One thread that looks now and then: starting one takes longer than most calls."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.lock = threading.Lock()
        self.deadline: float | None = None
        self.stop: Callable[[], None] | None = None
        self.start()

    def run(self) -> None:
        """The thread."""
        while True:
            time.sleep(0.05)
            with self.lock:
                if self.deadline is not None and time.monotonic() > self.deadline:
                    self.stop()

    def begin(self, seconds: float, stop: Callable[[], None]) -> None:
        """Calls `stop`, again and again, once `seconds` are over."""
        with self.lock:
            self.deadline, self.stop = time.monotonic() + seconds, stop

    def end(self) -> bool:
        """Lets go; returns whether the time was over."""
        with self.lock:
            expired = time.monotonic() > self.deadline
            self.deadline = None
            return expired


class Machine:
    """One emulated core, its memory and its buffers."""

    def __init__(self) -> None:
        try:
            import unicorn
            import unicorn.arm_const
            import unicorn.unicorn_const
        except ImportError as error:
            text = f"the emulator is missing ({error}): type '{sys.executable} -m pip install unicorn'"
            raise Refused("tool", text) from error
        self.lib = unicorn
        self.arm = unicorn.arm_const
        self.const = unicorn.unicorn_const
        self.native = sys.modules[unicorn.Uc.__module__].uclib  # unicorn's C library, for hooks that aren't Python
        self.uc: Any = None
        self.buffers: dict[int, tuple[str, int, int, int]] = {}  # address -> name, size, first page, bytes of pages
        self.fault: dict[str, int] = {}
        self.hook: Any = None
        self.counter = ctypes.c_uint64()
        self.watchdog = Watchdog()

    # Requests. Each returns the reply's header, or header and data.

    def do_start(self, model: str, stack_low: int, stack_top: int, stop: int) -> dict:
        """Makes the core. `stop` is the address at which calls return."""
        # In its M-class mode the emulator gives a Cortex-M0 what it lacks (UDIV, SMLAD, misaligned accesses); without, it
        # refuses them. The cores that have them need the mode.
        mode = self.const.UC_MODE_THUMB | (0 if model.endswith("_M0") else self.const.UC_MODE_MCLASS)
        uc = self.lib.Uc(self.const.UC_ARCH_ARM, mode)
        uc.ctl_set_cpu_model(getattr(self.arm, model))
        self.uc, self.stop = uc, stop & ~1
        self.stack_low, self.stack_top = stack_low, stack_top
        self.protections = {"rx": self.const.UC_PROT_READ | self.const.UC_PROT_EXEC, "r": self.const.UC_PROT_READ}
        self.protections["rw"] = self.const.UC_PROT_READ | self.const.UC_PROT_WRITE
        uc.mem_map(stack_low, stack_top - stack_low, self.protections["rw"])
        uc.hook_add(self.const.UC_HOOK_MEM_INVALID, self._on_invalid)
        self.fresh = uc.context_save()
        return {"unicorn": self.lib.__version__}

    def do_segment(self, address: int, size: int, protection: str, data: bytes) -> dict:
        """Maps memory for a part of the program and fills it."""
        first = address // PAGE * PAGE
        self.uc.mem_map(first, pages(address + size - first), self.protections[protection])
        self.uc.mem_write(address, data + bytes(size - len(data)))
        return {}

    def do_alloc(self, name: str, size: int, align: int, low: int, high: int, protection: str) -> dict:
        """Maps a buffer, guards around it, at the first free pages of [low, high); pages between buffers stay unmapped."""
        room = pages(GUARD_BYTES + align + size + GUARD_BYTES)
        first = low
        for _, _, start, length in sorted(self.buffers.values(), key=lambda buffer: buffer[2]):
            if low <= start < high:
                if start - first >= room + PAGE:
                    break
                first = start + length + PAGE
        if first + room > high:
            raise Refused("memory", f"buffer {name} of {size} bytes does not fit the emulated memory")
        self.uc.mem_map(first, room, self.protections[protection])
        self.uc.mem_write(first, bytes([GUARD]) * room)
        address = -(-(first + GUARD_BYTES) // align) * align
        self.uc.mem_write(address, bytes(size))
        self.buffers[address] = (name, size, first, room)
        return {"address": address}

    def do_free(self, address: int) -> dict:
        """Unmaps a buffer."""
        if address not in self.buffers:
            raise Refused("argument", f"there is no buffer at {address:#x}")
        _, _, first, room = self.buffers.pop(address)
        self.uc.mem_unmap(first, room)
        return {}

    def do_write(self, address: int, data: bytes) -> dict:
        """Writes memory, read-only memory too: this is the programmer's probe, not the core."""
        self._probe(self.uc.mem_write, address, data, len(data))
        return {}

    def do_read(self, address: int, size: int) -> tuple[dict, bytes]:
        """Reads memory."""
        return {}, bytes(self._probe(self.uc.mem_read, address, size, size))

    def do_call(self, address: int, args: list[int], count: bool, seconds: float, limit: int) -> dict:
        """Calls a function as AAPCS says and returns r0, the instructions if counted, and the most stack it used.

        `seconds` and, if it is not 0, `limit` instructions bound the call.
        """
        uc = self.uc
        uc.context_restore(self.fresh)
        self.fault = {}
        uc.mem_write(self.stack_low, bytes([STACK_PAINT]) * (self.stack_top - self.stack_low))
        stacked = struct.pack(f"<{len(args[4:])}I", *args[4:])
        sp = (self.stack_top - len(stacked)) & ~7
        uc.mem_write(sp, stacked)
        registers = {f"r{i}": value for i, value in enumerate(args[:4])} | PRESERVED | {"sp": sp, "lr": self.stop | 1}
        for name, value in registers.items():
            uc.reg_write(self._register(name), value)
        instructions = self._emulate(address, count, seconds, limit)
        self._check(registers)
        stack = uc.mem_read(self.stack_low, self.stack_top - self.stack_low)
        used = len(stack.lstrip(bytes([STACK_PAINT])))
        return {"r0": uc.reg_read(self._register("r0")), "instructions": instructions, "stack": used}

    # What the requests are made of.

    def _register(self, name: str) -> int:
        return getattr(self.arm, f"UC_ARM_REG_{name.upper()}")

    def _probe(self, function: Any, address: int, argument: Any, size: int) -> Any:
        try:
            return function(address, argument)
        except self.lib.UcError as error:
            text = f"{size} bytes at {address:#x} are not all in the emulated memory"
            raise Refused("argument", text) from error

    def _native(self) -> Any:
        if self.hook is None:
            self.hook = native_hook()
        return self.hook

    def _hook(self, kind: int, function: int, data: int) -> Callable[[], Any]:
        """Registers machine code as a hook for every address, by unicorn's C function; returns what removes it."""
        handle = ctypes.c_size_t()
        status = self.native.uc_hook_add(
            self.uc._uch, ctypes.byref(handle), kind, ctypes.c_void_p(function), ctypes.c_void_p(data), 1, 0
        )
        if status != 0:
            raise Refused("tool", f"the emulator refused a hook (status {status})")
        return lambda: self.native.uc_hook_del(self.uc._uch, handle)

    def _on_invalid(self, uc, access: int, address: int, size: int, value: int, data) -> bool:
        """Notes what the core could not access; False lets the emulation end."""
        self.fault = {"address": address, "size": size}
        return False

    def _on_block(self, uc, address: int, size: int, data) -> None:
        """Counts the instructions of a basic block: 32 bits if the first halfword begins with 11101, 11110 or 11111."""
        code = uc.mem_read(address, size)
        at = n = 0
        while at < size:
            at += 4 if code[at + 1] >> 3 >= 0b11101 else 2
            n += 1
        self.counter.value += n

    def _emulate(self, address: int, count: bool, seconds: float, limit: int) -> int | None:
        """Runs from `address` to the return address, under the hook if counting; returns the count."""
        uc, unhook = self.uc, None
        if count:
            self.counter.value = 0
            if hook := self._native():
                unhook = self._hook(self.const.UC_HOOK_CODE, hook.address, ctypes.addressof(self.counter))
            else:
                unhook = functools.partial(uc.hook_del, uc.hook_add(self.const.UC_HOOK_BLOCK, self._on_block))
        if count or limit:
            uc.ctl_flush_tb()  # code translated before has no hook in it; a limit is a hook of unicorn's own
        self.watchdog.begin(seconds, uc.emu_stop)
        try:
            uc.emu_start(address | 1, self.stop, 0, limit)
        except self.lib.UcError as error:
            raise Refused("fault", str(error), **self._where(), **self.fault) from error
        finally:
            expired = self.watchdog.end()
            if unhook is not None:
                unhook()
            if count or limit:
                uc.ctl_flush_tb()
        if uc.reg_read(self._register("pc")) != self.stop:
            bound = f"{seconds:g} seconds" if expired else f"{limit} instructions"
            raise Refused("limit", f"still running after {bound}", **self._where())
        return self.counter.value if count else None

    def _where(self) -> dict[str, int]:
        return {name: self.uc.reg_read(self._register(name)) for name in ("pc", "lr", "sp")}

    def _check(self, registers: dict[str, int]) -> None:
        """Raises Refused if a finished call damaged a guard or a register."""
        for address, (name, size, first, room) in self.buffers.items():
            for start, end in ((first, address), (address + size, first + room)):
                guard = self.uc.mem_read(start, end - start)
                if guard.count(GUARD) != len(guard):
                    at = start + next(i for i, byte in enumerate(guard) if byte != GUARD)
                    self.uc.mem_write(start, bytes([GUARD]) * len(guard))
                    side = "before" if end == address else "after"
                    raise Refused("guard", f"wrote {side} buffer {name} ({size} bytes at {address:#x})", address=at)
        for name in (*PRESERVED, "sp"):
            if self.uc.reg_read(self._register(name)) != registers[name]:
                raise Refused("registers", f"did not preserve {name}, which AAPCS asks of it")


def main() -> None:
    """Serves requests from standard input until it closes."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the messages
    machine: Machine | None = None
    while True:
        try:
            request, data = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            machine = machine or Machine()
            arguments = dict(request)
            if data:
                arguments["data"] = data
            result = getattr(machine, f"do_{arguments.pop('op')}")(**arguments)
            header, payload = result if isinstance(result, tuple) else (result, b"")
            send(replies, {"ok": True, **header}, payload)
        except Refused as refusal:
            send(replies, refusal.reply)


if __name__ == "__main__":
    main()
