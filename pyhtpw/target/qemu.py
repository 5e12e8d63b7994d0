"""QEMU boards: functions of the cross-built library on a whole emulated microcontroller, one start per batch of calls.

What `emulator` (unicorn) cannot do is done here: Cortex-M55 with and without Helium, the boards' own start-up, and counts
that include every issued instruction. A `Batch` lays out buffers and calls on the host, `board.c` performs them, and files
pass the memory there and back through semihosting.

Counting
--------
QEMU logs every translated block that it executes (`-d exec,nochain`); between two calls of a marker function these are the
blocks of one call. A block is straight-line code of known length, so the log gives exact instruction counts, class by class,
without stepping. An instruction whose IT condition fails is counted: it takes an issue slot. memcpy and memset called by
the function are counted, setting up its arguments is not. For long runs `count="clock"` instead reads a timer
of the board that QEMU drives by executed instructions (`-icount`): as fast as not counting, and coarse (one tick of
the board's clock is 1000 / MHz instructions).
"""

import functools
import os
import re
import shutil
import struct
import subprocess
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyhtpw.errors import ConfigError, MissingToolError, ToolError
from pyhtpw.target import toolchain

GUARD, GUARD_BYTES = 0xA5, 32
ARGS, MAGIC = 14, 0x4A505448  # as in board.c
JOB = struct.Struct("<6I12I")
CALL = struct.Struct(f"<I{ARGS}I2I")
DONE, FAULT = 1, 2
FAULT_NAMES = ("r0", "r1", "r2", "r3", "r12", "lr", "pc", "xpsr", "cfsr", "hfsr", "mmfar", "bfar")
INSTALL = "type 'apt-get install qemu-system-arm'"


class BoardError(ToolError):
    """A board did what it must not. `kind` is one word: fault, limit, guard or died."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Board:
    """A machine of QEMU: where code, stack and jobs lie, and the clock of its timer in MHz."""

    machine: str
    code: int
    ram: int
    image: int
    image_bytes: int
    mhz: float


_MPS2 = {"code": 0x00000000, "ram": 0x20000000, "image": 0x21000000, "image_bytes": 16 << 20, "mhz": 25}
_MPS3 = {"code": 0x00000000, "ram": 0x20000000, "image": 0x70000000, "image_bytes": 16 << 20, "mhz": 32}
BOARDS = {
    # code for Cortex-M0 runs on the board with an M3, which executes all of it; unaligned words fault there too
    "cortex-m0": Board("mps2-an385", **_MPS2),
    "cortex-m3": Board("mps2-an385", **_MPS2),
    "cortex-m4": Board("mps2-an386", **_MPS2),
    "cortex-m7": Board("mps2-an500", **_MPS2 | {"image": 0x60000000}),
    "cortex-m33": Board("mps2-an505", code=0x10000000, ram=0x38000000, image=0x80000000, image_bytes=16 << 20, mhz=20),
    "cortex-m55": Board("mps3-an547", **_MPS3),
    "cortex-m55-nomve": Board("mps3-an547", **_MPS3),
}


@functools.cache
def _qemu(name: str) -> str | None:
    path = shutil.which(name)
    try:
        done = path and subprocess.run([path, "--version"], capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return path if done and done.returncode == 0 else None


def find_qemu() -> str:
    """Path of qemu-system-arm, or of what HTPW_QEMU names.

    Raises
    ------
    MissingToolError
        If it is not there; the message says what to type.
    """
    name = os.environ.get("HTPW_QEMU") or "qemu-system-arm"
    if found := _qemu(name):
        return found
    raise MissingToolError(f"{name} is missing: {INSTALL} or set HTPW_QEMU")


def build(
    cpu: str = "cortex-m4",
    *,
    opt: str = "-O3",
    compiler: str = "auto",
    extra: Sequence[str | os.PathLike] = (),
    roots: Sequence[str] = toolchain.LIBRARY,
    defines: Sequence[str] = (),
) -> toolchain.Elf:
    """The library and `board.c` for the board of a core; parameters as `toolchain.build` takes them."""
    if cpu not in BOARDS:
        raise ConfigError(f"no board for {cpu!r}: use one of {', '.join(BOARDS)}")
    board, layout = BOARDS[cpu], (toolchain.HERE / "board.ld").read_text()
    for name in ("CODE", "RAM", "IMAGE", "IMAGE_BYTES"):
        layout = layout.replace(f"@{name}@", f"{getattr(board, name.lower()):#x}")
    more = [toolchain.HERE / "board.c", *extra]
    return toolchain.build(cpu, opt=opt, compiler=compiler, extra=more, roots=roots, layout=layout, defines=defines)


def memory(elf: toolchain.Elf, address: int, size: int) -> bytes:
    """`size` bytes of the program's memory as it is loaded."""
    for segment in elf.segments:
        offset = address - segment.address
        if offset >= 0 and offset + size <= len(segment.data):
            return segment.data[offset : offset + size]
    raise ConfigError(f"{elf.path.name} has no {size} bytes at {address:#x}")


@dataclass(frozen=True)
class Outcome:
    """What a call gave.

    Attributes
    ----------
    result : int
        r0 as a signed number; meaningless for a function that returns nothing.
    instructions : int or None
        Issued instructions, None if not counted; with the clock exact only to `Board.mhz`'s tick.
    classes : dict
        Class -> instructions (see `classify`); of counts by log only.
    cycles : int or None
        Estimate of `estimate`; of counts by log only.
    """

    result: int
    instructions: int | None = None
    classes: dict[str, int] = field(default_factory=dict)
    cycles: int | None = None


class Batch:
    """Buffers and calls of one start of QEMU.

    Lay out buffers, add calls (executed in order; a later one sees what an earlier one wrote), `run`, then `read`.

    Parameters
    ----------
    elf : toolchain.Elf
        Of `build`.
    """

    def __init__(self, elf: toolchain.Elf) -> None:
        self.elf = elf
        self.board = BOARDS[elf.cpu.name]
        self._memory = bytearray(JOB.size)
        self._buffers: dict[int, tuple[str, int]] = {}
        self._calls: list[tuple[str, int, tuple[int, ...]]] = []
        self._ran = False

    def buffer(self, data: Any, name: str = "buffer", *, align: int = 16, shift: int = 0) -> int:
        """Address of a new buffer, `shift` bytes beyond a multiple of `align`.

        `data` is its number of bytes, all zero then, or what it holds (bytes, a numpy array). Guard bytes stand around it;
        `run` raises BoardError with the name of a buffer whose guards were changed.
        """
        data = bytes(data) if isinstance(data, int) else bytes(memoryview(data).cast("B"))
        self._memory += bytes([GUARD]) * GUARD_BYTES
        padding = (shift - len(self._memory) - self.board.image) % align
        self._memory += bytes([GUARD]) * padding
        address = self.board.image + len(self._memory)
        self._memory += data + bytes([GUARD]) * GUARD_BYTES
        self._buffers[address] = (name, len(data))
        if len(self._memory) > self.board.image_bytes // 2:
            raise ConfigError(f"buffers of one batch take more than {self.board.image_bytes // 2} bytes: use more batches")
        return address

    def call(self, function: str | int, *args: int) -> int:
        """Adds a call of a function, by name or address, and returns its number. Arguments in C's order, 32 bits each."""
        name = function if isinstance(function, str) else self.elf.place(function)
        address = self.elf.address(function) if isinstance(function, str) else function | 1
        if len(args) > ARGS:
            raise ConfigError(f"{name}: {len(args)} arguments: at most {ARGS} are passed")
        for i, value in enumerate(args):
            if not -(1 << 31) <= value < 1 << 32:
                raise ConfigError(f"{name}: argument {i} is {value}: it does not fit 32 bits")
        self._calls.append((name, address, tuple(int(value) & 0xFFFFFFFF for value in args)))
        return len(self._calls) - 1

    def read(self, address: int, size: int | None = None) -> bytes:
        """Bytes of memory after `run`; the whole buffer without a size."""
        size = self._buffers[address][1] if size is None else size
        offset = address - self.board.image
        return bytes(self._memory[offset : offset + size])

    def run(self, count: str | None = None, *, seconds: float = 300.0) -> list[Outcome]:
        """Starts the board and performs the calls.

        Parameters
        ----------
        count : str, optional
            "log" for exact instructions, classes and cycles, "clock" for instructions by the board's timer.
        seconds : float
            Bound on the time of the whole batch.

        Raises
        ------
        MissingToolError
            If QEMU is missing.
        BoardError
            After a fault, a changed guard byte, or too long a time.
        """
        if count not in (None, "log", "clock"):
            raise ConfigError(f"unknown way of counting {count!r}: use log or clock")
        if self._ran:
            raise ConfigError("a batch runs once: make another")
        self._ran = True
        table = self._table()
        header = (MAGIC, len(self._memory), len(self._calls), table, 0, 0, *[0] * 12)
        JOB.pack_into(self._memory, 0, *header)
        with tempfile.TemporaryDirectory(prefix="htpw-board-") as folder:
            Path(folder, "job").write_bytes(self._memory)
            log = self._start(folder, count, seconds)
            result = Path(folder, "result")
            if not result.exists() or result.stat().st_size != len(self._memory):
                raise BoardError(f"{self.board.machine} ended without a result: {log.trouble}", "died")
            self._memory = bytearray(result.read_bytes())
        self._check(JOB.unpack_from(self._memory))
        return self._outcomes(table, count, log)

    def _table(self) -> int:
        """Appends the table of calls; returns its address."""
        self._memory += bytes(-len(self._memory) % 8)
        table = self.board.image + len(self._memory)
        for _, address, args in self._calls:
            self._memory += CALL.pack(address, *args, *[0] * (ARGS - len(args)), 0, 0)
        return table

    def _start(self, folder: str, count: str | None, seconds: float) -> "Log":
        """Runs QEMU to its end; returns what it logged."""
        command = [find_qemu(), "-M", self.board.machine, "-display", "none", "-serial", "none", "-monitor", "none"]
        command += ["-nodefaults", "-kernel", str(self.elf.path)]
        command += ["-semihosting-config", "enable=on,target=native"]
        mark = self.elf.symbols["htpw_target_mark"].address
        own = [s for s in self.elf.symbols.values() if s.is_function and s.section == ".text"]
        low, high = min(s.address for s in own), max(s.address + s.size for s in own)
        if count == "log":
            command += ["-d", "exec,in_asm,nochain", "-dfilter", f"{low:#x}..{high - 1:#x},{mark:#x}..{mark + 1:#x}"]
        elif count == "clock":
            command += ["-icount", "shift=0"]
        log = Log(mark)
        try:
            follow(command, folder, seconds, log)
        except subprocess.TimeoutExpired:
            text = f"{self.elf.cpu.name}: the batch of {len(self._calls)} calls has not ended after {seconds:g} seconds"
            raise BoardError(text, "limit") from None
        return log

    def _check(self, header: tuple[int, ...]) -> None:
        """Raises BoardError after a fault or if a guard byte has changed."""
        state, index, fault = header[4], header[5], dict(zip(FAULT_NAMES, header[6:], strict=True))
        if state == FAULT:
            name = self._calls[index][0] if index < len(self._calls) else "start-up"
            where = f"pc {fault['pc']:#x} ({self.elf.place(fault['pc'])}), lr {fault['lr']:#x} ({self.elf.place(fault['lr'])})"
            rest = ", ".join(f"{key} {fault[key]:#x}" for key in FAULT_NAMES if key not in ("pc", "lr"))
            raise BoardError(f"{self.elf.cpu.name}: {name} (call {index}): HardFault at {where}, {rest}", "fault")
        if state != DONE:
            raise BoardError(f"{self.board.machine} ended in state {state}", "died")
        for address, (name, size) in self._buffers.items():
            start = address - self.board.image
            for side, at in (("before", start - GUARD_BYTES), ("after", start + size)):
                if self._memory[at : at + GUARD_BYTES] != bytes([GUARD]) * GUARD_BYTES:
                    raise BoardError(f"{self.elf.cpu.name}: wrote {side} buffer {name} ({size} bytes at {address:#x})", "guard")

    def _outcomes(self, table: int, count: str | None, log: "Log") -> list[Outcome]:
        if count == "log" and len(log.calls) != len(self._calls):
            raise BoardError(f"{self.board.machine} logged {len(log.calls)} calls of {len(self._calls)}: {log.trouble}", "died")
        outcomes = []
        listing = Listing(self.elf) if count == "log" else None
        for i in range(len(self._calls)):
            *_, result, ticks = CALL.unpack_from(self._memory, table - self.board.image + i * CALL.size)
            result -= (result >> 31) << 32
            if count is None:
                outcomes.append(Outcome(result))
            elif count == "clock":
                outcomes.append(Outcome(result, round(ticks * 1000 / self.board.mhz)))
            else:
                outcomes.append(Outcome(result, *listing.analyse(log.calls[i], log.ends)))
        return outcomes


class Log:
    """QEMU's log, read while it is written: how often each block followed each other block, call by call.

    `calls` has a Counter per call: (start of a block, start of the block after it) -> times; the block after the last one
    is None. `ends` has the end of each block. `parts` has the Counters of each call cut in front of every block that begins at
    `split`, the first one being what comes before.
    """

    TRACE = re.compile(rb"^Trace \d+: \S+ \[[0-9a-f]+/([0-9a-f]+)/")
    CODE = re.compile(rb"^0x([0-9a-f]+): +((?:[0-9a-f]{2,8} )+)")

    def __init__(self, mark: int, split: int | None = None) -> None:
        self.calls: list[Counter[tuple[int, int | None]]] = []
        self.parts: list[list[Counter[tuple[int, int | None]]]] = []
        self._split = split
        self._cut: list[Counter[tuple[int, int | None]]] = []  # of the call that goes on, all but the last
        self.ends: dict[int, int] = {}
        self.trouble = "it said nothing"
        self._mark = mark
        self._pairs: Counter[tuple[int, int | None]] | None = None  # None in front of the first mark
        self._last: int | None = None
        self._first: int | None = None  # of the block that is being listed
        self._starts: dict[bytes, int] = {}

    def feed(self, lines: list[bytes]) -> None:
        """Takes whole lines."""
        last, pairs, known = self._last, self._pairs, self._starts
        for line in lines:
            if line.startswith(b"Trace"):
                start = known.get(line)
                if start is None:
                    if not (match := self.TRACE.match(line)):
                        raise ToolError(f"QEMU's log has an unknown form: {line.decode(errors='replace').strip()}")
                    start = known[line] = int(match[1], 16)
                if start == self._mark:
                    if pairs is not None:
                        if last is not None:
                            pairs[last, None] += 1
                        self.parts.append([*self._cut, pairs])
                        self.calls.append(sum(self._cut, pairs) if self._cut else pairs)
                    pairs, last = Counter(), None
                    self._cut.clear()
                elif pairs is not None:
                    if last is not None:
                        pairs[last, start] += 1
                    last = start
                    if start == self._split:
                        self._cut.append(pairs)
                        pairs = Counter()
            elif line.startswith(b"0x"):
                self._listed(line)
            elif line.startswith(b"IN:"):
                self._first = None
            elif line.startswith(b"qemu"):
                self.trouble = line.decode(errors="replace").strip()
        self._last, self._pairs = last, pairs

    def _listed(self, line: bytes) -> None:
        """A line of a block's disassembly: address and bytes of one instruction."""
        if match := self.CODE.match(line):
            address, size = int(match[1], 16), len(match[2].replace(b" ", b"")) // 2
            if self._first is None:
                self._first = address
            self.ends[self._first] = address + size


def follow(command: Sequence[str], folder: str, seconds: float, log: Log) -> None:
    """Runs QEMU in a folder and feeds what it writes to `log`; raises TimeoutExpired, with QEMU killed, after `seconds`."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, **pipes) as qemu:
        expired = threading.Event()

        def end() -> None:
            expired.set()
            qemu.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            rest = b""
            while chunk := os.read(qemu.stderr.fileno(), 1 << 20):
                *lines, rest = (rest + chunk).split(b"\n")
                log.feed(lines)
            log.feed([rest])
            qemu.wait()
        finally:
            timer.cancel()
            qemu.kill()
        if expired.is_set():
            raise subprocess.TimeoutExpired(command, seconds)


# What instructions are

LOADS, STORES = ("ldr", "ldm", "pop", "vldr", "vpop"), ("str", "stm", "push", "vstr", "vpush")
UNPACK = ("sxtb16", "sxtab16", "uxtb16", "uxtab16", "pkh", "ror", "ssat", "usat", "qadd", "qsub", "sadd", "ssub")
MULTIPLY = ("mul", "mla", "mls", "smul", "smla", "smls", "smmul", "smmla", "umul", "umla", "smuad")
BRANCHES = re.compile(r"(b|bl|bx|blx|cbz|cbnz|tbb|tbh)$|b(eq|ne|cs|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)$")


def classify(mnemonic: str) -> str:
    """Class of an instruction: load, store, mac, simd_unpack, branch, it, div, loop_start, loop_end, mve_load, mve_store,
    mve_mac, mve_pred, mve_other or other. "mac" is any multiplication."""
    name = mnemonic.split(".")[0]
    if name.startswith("v") and not name.startswith(("vldm", "vstm", "vpush", "vpop")):
        for prefix, kind in (("vldr", "load"), ("vld", "load"), ("vstr", "store"), ("vst", "store"), ("vml", "mac")):
            if name.startswith(prefix):
                return f"mve_{kind}"
        if name.startswith(("vmul", "vqdmul", "vqrdmul", "vqdml", "vqrdml", "vrml")):
            return "mve_mac"
        return "mve_pred" if name.startswith(("vpt", "vpst", "vctp", "vcmp", "vpsel", "vpnot", "vmsr", "vmrs")) else "mve_other"
    if BRANCHES.match(name):
        return "branch"
    if name.startswith("it") and set(name[2:]) <= set("te"):
        return "it"
    for kind, prefixes in (("loop_end", ("le", "letp")), ("loop_start", ("dls", "dlstp", "wls", "wlstp"))):
        if name in prefixes:
            return kind
    for kind, prefixes in (
        ("div", ("sdiv", "udiv")),
        ("simd_unpack", UNPACK),
        ("mac", MULTIPLY),
        ("load", LOADS),
        ("store", STORES),
    ):
        if name.startswith(prefixes):
            return kind
    return "other"


def estimate(kinds: Sequence[str], registers: Sequence[int]) -> int:
    """Cycles of a stretch of straight-line code on Cortex-M3 and M4 without wait states: 1 per instruction, 1 more for the
    first of neighbouring loads, n more for moving n >= 2 registers, 6 per division. Taken branches cost 2 more: the caller
    adds them, as this sees only what lies between."""
    cycles = 0
    for i, (kind, moved) in enumerate(zip(kinds, registers, strict=True)):
        cycles += 6 if kind == "div" else 1
        if moved > 1:
            cycles += moved
        elif kind == "load" and (i == 0 or kinds[i - 1] != "load" or registers[i - 1] > 1):
            cycles += 1
    return cycles


def registers_moved(mnemonic: str, operands: str) -> int:
    """Registers that a load or store of several moves; 0 for all else."""
    if mnemonic.startswith(("ldrd", "strd")):
        return 2
    if not mnemonic.startswith(("ldm", "stm", "push", "pop", "vpush", "vpop", "vldm", "vstm")):
        return 0
    moved = 0
    for part in re.search(r"\{(.*)\}", operands)[1].split(","):
        first, _, last = part.strip().partition("-")
        moved += int(last[1:]) - int(first[1:]) + 1 if last else 1
    return moved


class Listing:
    """The disassembly of a program, for telling what the blocks of a log consist of."""

    LINE = re.compile(r"^ *([0-9a-f]+):\t[0-9a-f ]+\t(\S+)(?:\t(.*))?$", re.MULTILINE)

    def __init__(self, elf: toolchain.Elf) -> None:
        objdump = shutil.which("arm-none-eabi-objdump")
        if objdump is None:
            raise MissingToolError("arm-none-eabi-objdump is missing: type 'apt-get install binutils-arm-none-eabi'")
        command = [objdump, "-d", "-j", ".text", str(elf.path)]
        if elf.cpu.name.startswith("cortex-m55"):
            command += ["-m", "armv8.1-m.main"]  # or it takes Helium for coprocessor instructions
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        self._code = {int(m[1], 16): (m[2], m[3] or "") for m in self.LINE.finditer(done.stdout)}

    @functools.cache  # noqa: B019 - there is one for each program
    def block(self, start: int, end: int) -> tuple[Counter[str], int, bool]:
        """Of the code from start to end: instructions by class, estimated cycles, and whether a branch ends it."""
        at = [address for address in range(start, end, 2) if address in self._code]
        code = [self._code[address] for address in at]
        kinds = [classify(mnemonic) for mnemonic, _ in code]
        cycles = estimate(kinds, [registers_moved(*entry) for entry in code])
        last = kinds[-1] if kinds else ""
        return Counter(kinds), cycles, last in ("branch", "loop_end", "loop_start") or "pc" in code[-1][1]

    @functools.cache  # noqa: B019 - there is one for each program
    def moved(self, start: int, end: int) -> int:
        """Registers that loads and stores of several move, from start to end."""
        return sum(registers_moved(*self._code[address]) for address in range(start, end, 2) if address in self._code)

    def analyse(self, pairs: Counter, ends: dict[int, int]) -> tuple[int, dict[str, int], int]:
        """(instructions, classes, cycles) of the blocks of one call."""
        classes: Counter[str] = Counter()
        cycles = 0
        times: defaultdict[int, int] = defaultdict(int)
        for (start, following), n in pairs.items():
            times[start] += n
            if self.block(start, ends[start])[2] and following != ends[start]:
                cycles += 2 * n
        for start, n in times.items():
            kinds, block_cycles, _ = self.block(start, ends[start])
            cycles += n * block_cycles
            for kind, number in kinds.items():
                classes[kind] += n * number
        return sum(classes.values()), dict(classes), cycles
