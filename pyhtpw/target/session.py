"""Runs firmware on its QEMU board and reads what it prints: kernels, logits, phases, the stack, and faults.

    built = firmware.build(firmware.board_named("mps2-an386"), image)
    done = session.run(built, windows)            # done.logits, done.kernels, done.phases

With `count=True` QEMU also logs every executed block of the library (see `pyhtpw.target.qemu`), from which the instructions of each
phase, and of each operator of an inference, follow exactly.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pyhtpw.errors import ToolError
from pyhtpw.model import Image
from pyhtpw.target import qemu
from pyhtpw.target.firmware import Firmware
from pyhtpw.target.qemu import BoardError

SPLIT = "htpw_cursor_next"  # called once in front of every operator


@dataclass(frozen=True)
class Cost:
    """Executed instructions, by class (`qemu.classify`), taken branches, registers moved by loads and stores of several, and
    `qemu.estimate`'s cycles of Cortex-M3 and M4."""

    instructions: int
    classes: dict[str, int]
    taken: int
    moved: int
    cycles: int

    def __add__(self, other: "Cost") -> "Cost":
        classes = dict(Counter(self.classes) + Counter(other.classes))
        sums = (self.taken + other.taken, self.moved + other.moved, self.cycles + other.cycles)
        return Cost(self.instructions + other.instructions, classes, *sums)


NOTHING = Cost(0, {}, 0, 0, 0)


@dataclass(frozen=True)
class Phase:
    """A call of the library: what it is, bytes of stack below the application's frame, its result, and if counted its cost in all
    and between calls of `SPLIT`."""

    name: str
    stack: int
    result: int
    cost: Cost | None = None
    parts: tuple[Cost, ...] = ()


@dataclass
class Session:
    """What a board did from start to end.

    Attributes
    ----------
    backend : str
    logits : dict
        Starts (0: before any reset) -> (N, classes) int8.
    kernels : dict
        Operator -> row-major int8, if asked for.
    plan : tuple of int
        Arena, cache, input and output bytes as the board reports them.
    packs : dict
        Starts -> number of the applied code pack.
    phases : list of Phase
    stack : int
        Most stack of the whole program, bytes.
    resets : list of str
        Why it started again.
    store : bytes
        The flash store at the end, if asked for.
    decisions : list of tuple
        Of the ECG monitor: second, decision, quality, two logits.
    """

    backend: str = ""
    logits: dict[int, np.ndarray] = field(default_factory=dict)
    kernels: dict[int, np.ndarray] = field(default_factory=dict)
    plan: tuple[int, ...] = ()
    packs: dict[int, int] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
    stack: int = 0
    resets: list[str] = field(default_factory=list)
    store: bytes = b""
    decisions: list[tuple[int, ...]] = field(default_factory=list)
    console: str = ""

    def phase(self, name: str, at: int = 0) -> Phase:
        """The phase of that name, the `at`-th of several."""
        return [phase for phase in self.phases if phase.name == name][at]


def run(
    built: Firmware,
    windows: np.ndarray,
    *,
    count: bool = False,
    kernels: bool = False,
    selftest: bool = True,
    cut: int | None = None,
    store: bytes | None = None,
    keep: bool = False,
    samples: np.ndarray | None = None,
    seconds: float = 300.0,
) -> Session:
    """Starts the board and lets it run to its end.

    Parameters
    ----------
    windows : int8 (N, ...)
    count : bool
        Count instructions, which takes about twenty times as long.
    kernels : bool
        Read the cached kernels out too.
    cut : int, optional
        The power fails in this operation of the flash (0: the first), and the board starts again.
    store : bytes, optional
        What the flash store holds at the start; default: erased.
    keep : bool
        Read the flash store out at the end.
    samples : int16 (n,), optional
        What the ECG monitor's converter gives.
    seconds : float
        Bound on the time of everything.

    Raises
    ------
    MissingToolError
        If QEMU is missing.
    BoardError
        After a HardFault (registers and function), an error of the library, or if the board does not end in time.
    """
    elf = built.elf
    options = {"kernels": int(kernels), "selftest": int(selftest), "keep": int(keep), "blank": int(store is None)}
    options |= {"windows": len(windows)} | ({} if cut is None else {"cut": cut})
    with tempfile.TemporaryDirectory(prefix="htpw-board-") as folder:
        Path(folder, "windows").write_bytes(np.ascontiguousarray(windows, np.int8).tobytes())
        if samples is not None:
            Path(folder, "samples").write_bytes(np.ascontiguousarray(samples, "<i2").tobytes())
        if built.pack is not None:
            Path(folder, "pack").write_bytes(built.pack)
        command = [qemu.find_qemu(), "-M", built.board.name, "-display", "none", "-serial", "none", "-monitor", "none"]
        command += ["-nodefaults", "-kernel", str(elf.path), "-chardev", "file,id=console,path=console"]
        arguments = ",".join(["arg=firmware", *(f"arg={name}={value}" for name, value in options.items())])
        command += ["-semihosting-config", f"enable=on,target=native,chardev=console,{arguments}"]
        if store is not None:
            Path(folder, "flash").write_bytes(store)
        mark = elf.symbols["app_mark"].address
        log = qemu.Log(mark, elf.symbols[SPLIT].address if SPLIT in elf.symbols else None)
        if count:
            own = [s for s in elf.symbols.values() if s.is_function and s.section == ".text"]
            low, high = min(s.address for s in own), max(s.address + s.size for s in own)
            command += ["-d", "exec,in_asm,nochain", "-dfilter", f"{low:#x}..{high - 1:#x},{mark:#x}..{mark + 1:#x}"]
        expired = False
        try:
            qemu.follow(command, folder, seconds, log)
        except subprocess.TimeoutExpired:
            expired = True
        console = Path(folder, "console").read_text(errors="replace") if Path(folder, "console").exists() else ""
        _check(built, console, log, seconds if expired else None)
        session = _read(console)
        if kernels:
            session.kernels = _kernels(session, Path(folder, "kernels").read_bytes())
        if keep:
            session.store = Path(folder, "store").read_bytes()
    if count:
        _count(built, session, log)
    return session


def _check(built: Firmware, console: str, log: qemu.Log, expired: float | None) -> None:
    """Raises BoardError unless the program came to its end."""
    board, lines = f"{built.board.name} ({built.board.cpu})", console.splitlines()
    for line in lines:
        if line.startswith("fault"):
            registers = dict(re.findall(r"(\w+) (0x[0-9a-f]+)", line))
            if " overflow" in line:
                raise BoardError(f"{board}: the stack has overflowed ({line[6:].strip()}): reserve more", "fault")
            where = ", ".join(f"{name} {registers[name]} ({built.elf.place(int(registers[name], 16))})" for name in ("pc", "lr"))
            rest = ", ".join(f"{name} {value}" for name, value in registers.items() if name not in ("pc", "lr"))
            raise BoardError(f"{board}: HardFault at {where}; {rest}", "fault")
        if line.startswith("error"):
            raise BoardError(f"{board}: {line[6:]}", "error")
    last = lines[-1] if lines else "nothing"
    if expired is not None:
        raise BoardError(f"{board}: has not ended after {expired:g} seconds; the last it said: {last}", "limit")
    if last != "done":
        raise BoardError(f"{board}: ended without a result ({log.trouble}); the last it said: {last}", "died")


def _read(console: str) -> Session:
    session, logits, start = Session(console=console), {}, 0
    for line in console.splitlines():
        word, *rest = line.split() or [""]
        if word == "htpw":
            session.backend, start = rest[1], int(rest[2])
        elif word == "plan":
            session.plan = tuple(int(value) for value in rest)
        elif word == "pack":
            session.packs[start] = int(rest[0])
        elif word == "phase":
            session.phases.append(Phase(rest[0], int(rest[1]), int(rest[2])))
        elif word == "logits":
            logits.setdefault(int(rest[0]), []).append([int(value) for value in rest[1:]])
        elif word == "kernel":
            session.kernels[int(rest[0])] = np.empty(int(rest[1]), np.int8)
        elif word == "decision":
            session.decisions.append(tuple(int(value) for value in rest))
        elif word == "stack":
            session.stack = int(rest[0])
        elif line.endswith("reset"):
            session.resets.append(line)
    session.logits = {stage: np.array(rows, np.int8) for stage, rows in logits.items()}
    return session


def _kernels(session: Session, data: bytes) -> dict[int, np.ndarray]:
    found, at = {}, 0
    for op, space in session.kernels.items():
        found[op] = np.frombuffer(data, np.int8, space.size, at)
        at += space.size
    return found


def _count(built: Firmware, session: Session, log: qemu.Log) -> None:
    """Gives each phase its cost: the log has what lies between marks, every other of which is a phase."""
    phases = session.phases
    if len(log.parts) != 2 * len(phases) - 1:
        raise ToolError(f"{built.board.name}: QEMU logged {len(log.parts)} stretches, {2 * len(phases) - 1} were expected")
    listing = qemu.Listing(built.elf)
    for i, phase in enumerate(phases):
        parts = tuple(cost(listing, pairs, log.ends) for pairs in log.parts[2 * i])
        phases[i] = Phase(phase.name, phase.stack, phase.result, sum(parts, NOTHING), parts)


def cost(listing: qemu.Listing, pairs: Counter, ends: dict[int, int]) -> Cost:
    """What the blocks of one stretch cost."""
    instructions, classes, cycles = listing.analyse(pairs, ends)
    taken = sum(n for (start, after), n in pairs.items() if listing.block(start, ends[start])[2] and after != ends[start])
    moved = sum(n * listing.moved(start, ends[start]) for (start, _), n in pairs.items())
    return Cost(instructions, classes, taken, moved, cycles)


class OnBoard:
    """A session as one of the tellings of `pyhtpw.verify`."""

    def __init__(self, built: Firmware, done: Session, start: int = 0) -> None:
        self.name = f"C on {built.board.name} ({built.board.cpu}, {done.backend}, {built.schedule})"
        self._done, self._logits = done, done.logits[start]
        self.windows = len(self._logits)

    def kernels(self) -> dict[int, np.ndarray]:
        """Operator -> int8."""
        return self._done.kernels

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Of the windows that the board ran."""
        return self._logits[: len(x)]


def installed(built: Firmware, image: Image) -> bytes:
    """The content of the flash store that the streamed firmware of a board leaves behind."""
    from pyhtpw.target.firmware import build

    first = build(built.board, image, "streamed", built.settings)
    return run(first, np.empty((0, 1), np.int8), keep=True, selftest=False).store
