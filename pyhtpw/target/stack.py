"""A static bound on the stack: frames that the compiler states, along the deepest path of the call graph.

Frames
    `-fstack-usage` of each function. A naked routine, of which the compiler says 0, and every other function too, counts at least what
    its code pushes and subtracts from sp.
Edges
    Direct calls and tail calls, read from the disassembly of the linked program.
Function pointers
    The library has three kinds, told apart by where an address lies. Addresses in the tables `struct htpw_backend` (objects
    htpw_backend_*, htpw_portable) are what the core calls through `ctx->backend`: every indirect call of a function outside the
    tables can reach every one of them. Addresses that only flash drivers are made of (htpw_fake_*) are what the files htpw_flash.c
    and htpw_codes.c call. Inside a backend an indirect call or jump goes to any other function of the same backend whose address is
    taken in code or constants and which is not in the table; those that push nothing continue in the frame of the routine that
    jumped to them, and what they jump to is a label of it.
A cycle in this graph would be recursion, which the library has not: it is an error.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from pyhtpw.errors import MissingToolError, ToolError
from pyhtpw.target.firmware import Firmware
from pyhtpw.target.qemu import memory

LINE = re.compile(r"^ *([0-9a-f]+):\t[0-9a-f ]+\t(\S+)(?:\t([^@;]*))?")
HEADER = re.compile(r"^[0-9a-f]+ <([^>]+)>:$")
TARGET = re.compile(r"^\w*?,? ?([0-9a-f]+) <([^>+]+)>$")
RETURN_OR_SWITCH = re.compile(r"pc, (\[sp\], #|\[\w+, \w+, lsl #2\])")
TABLE = re.compile(r"^htpw_(backend_\w+|portable)$")
DRIVERS = ("htpw_fake_erase", "htpw_fake_program")
FLASH_CALLERS = ("htpw_flash_erase", "htpw_flash_program")


@dataclass
class Function:
    """A function of the program: its frame in bytes, what it calls, and whether it calls or jumps through a pointer."""

    name: str
    frame: int = 0
    calls: set[str] = field(default_factory=set)
    indirect: bool = False


@dataclass(frozen=True)
class Bound:
    """Deepest stack of a function with all that it calls, in bytes, and the path that takes it."""

    bytes: int
    path: tuple[tuple[str, int], ...]


def stated(folders: list[Path]) -> dict[str, int]:
    """Frames by function name from -fstack-usage files; ToolError for one whose size is not fixed."""
    frames: dict[str, int] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.su")):
            for line in path.read_text().splitlines():
                where, size, kind = line.rsplit("\t", 2)
                name = where.rsplit(":", 1)[1]
                if "dynamic" in kind and "bounded" not in kind:
                    raise ToolError(f"{where}: its stack is not bounded ({kind}), so that nothing can be said of the program's")
                frames[name] = max(frames.get(name, 0), int(size))
    return frames


def pushed(mnemonic: str, operands: str) -> int:
    """Bytes by which an instruction lowers sp."""
    name = mnemonic.split(".")[0]
    if name in ("push", "vpush") or (name in ("stmdb", "vstmdb") and operands.startswith("sp!")):
        count = 0
        for part in re.search(r"\{(.*)\}", operands)[1].split(","):
            first, _, last = part.strip().partition("-")
            count += int(last[1:]) - int(first[1:]) + 1 if last else 1
        wide = "{d" in operands.replace(" ", "")
        return count * (8 if wide else 4)
    if match := re.match(r"(?:sp, )?sp, #(\d+)$", operands.strip()):
        return int(match[1]) if name in ("sub", "subw") else 0
    if match := re.search(r"\[sp, #-(\d+)\]!", operands):
        return int(match[1])
    return 0


def functions(built: Firmware) -> dict[str, Function]:
    """The call graph of the linked program, but for function pointers."""
    objdump = shutil.which("arm-none-eabi-objdump")
    if objdump is None:
        raise MissingToolError("arm-none-eabi-objdump is missing: type 'apt-get install binutils-arm-none-eabi'")
    command = [objdump, "-d", str(built.elf.path)]
    if built.board.cpu == "cortex-m55":
        command += ["-m", "armv8.1-m.main"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    frames, found = stated([built.library.folder, built.folder]), {}
    current, lowered, lines = None, 0, listing.splitlines()
    for line in [*lines, "00000000 <end>:"]:
        if match := HEADER.match(line):
            if current is not None:
                current.frame = max(current.frame, lowered)
            name = match[1]
            base = name.split(".")[0]  # gcc's clones: name.constprop.0
            current = found.setdefault(name, Function(name, frames.get(name, frames.get(base, 0))))
            lowered = 0
        elif current is not None and (match := LINE.match(line)):
            mnemonic, operands = match[2].split(".")[0], (match[3] or "").strip()
            lowered += pushed(match[2], operands)
            goal = TARGET.match(operands)
            if goal and goal[2] != current.name and (mnemonic.startswith(("b", "cb")) and mnemonic not in ("bic", "bfi", "bfc", "bics")):
                current.calls.add(goal[2])
            elif mnemonic == "blx" or (mnemonic == "bx" and operands != "lr") or (mnemonic == "mov" and operands.startswith("pc,")):
                current.indirect = True
            elif mnemonic == "ldr" and operands.startswith("pc") and not RETURN_OR_SWITCH.match(operands):
                current.indirect = True
    found.pop("end", None)
    return {name: f for name, f in found.items() if not name.startswith("$")}


def _words(built: Firmware, symbol) -> list[int]:
    data = memory(built.elf, symbol.address, symbol.size & ~3)
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]


def resolve(built: Firmware, graph: dict[str, Function]) -> dict[str, list[str]]:
    """Adds the edges of function pointers to a graph; returns what the tables hold."""
    by_address = {s.address | 1: s.name for s in built.elf.symbols.values() if s.is_function}
    tables = {
        symbol.name: [by_address[word] for word in _words(built, symbol) if word in by_address]
        for symbol in built.elf.symbols.values()
        if not symbol.is_function and TABLE.match(symbol.name) and symbol.section == ".rodata"
    }
    kernels = {name for table in tables.values() for name in table}
    taken = {
        by_address[word]
        for symbol in built.elf.symbols.values()
        if symbol.section in (".text", ".rodata") and symbol.size >= 4
        for word in _words(built, symbol)
        if word in by_address
    }
    routines = {name for name in taken - kernels - set(DRIVERS) if name.startswith(("htpw_dsp", "htpw_mve", "htpw_thumb"))}
    inside = _reach(graph, kernels | routines)
    for function in graph.values():
        if not function.indirect:
            continue
        if function.name in FLASH_CALLERS:
            function.calls |= {name for name in DRIVERS if name in graph}
        elif function.name in inside:
            if function.frame and function.name not in routines:
                function.calls |= {name for name in routines if name in graph} - {function.name}
            elif function.frame:  # a routine jumps to its ending, which has no frame of its own
                function.calls |= {name for name in routines if name in graph and graph[name].frame == 0} - {function.name}
        elif function.name.startswith("htpw_"):
            function.calls |= {name for name in kernels if name in graph}
    return tables


def _reach(graph: dict[str, Function], start: set[str]) -> set[str]:
    seen, waiting = set(), [name for name in start if name in graph]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [callee for callee in graph[name].calls if callee in graph]
    return seen


class Bounds:
    """Static bounds of a program.

    Raises
    ------
    ToolError
        If a frame has no fixed size or the graph has a cycle.
    """

    def __init__(self, built: Firmware) -> None:
        self.graph = functions(built)
        self.tables = resolve(built, self.graph)
        self._known: dict[str, Bound] = {}
        self._open: list[str] = []

    def of(self, name: str) -> Bound:
        """The bound of a function by name."""
        if name in self._known:
            return self._known[name]
        if name in self._open:
            raise ToolError(f"recursion: {' -> '.join([*self._open[self._open.index(name):], name])}")
        function = self.graph[name]
        self._open.append(name)
        deepest = Bound(0, ())
        for callee in sorted(function.calls):
            if callee in self.graph:
                below = self.of(callee)
                deepest = max(deepest, below, key=lambda bound: bound.bytes)
        self._open.pop()
        self._known[name] = Bound(function.frame + deepest.bytes, ((name, function.frame), *deepest.path))
        return self._known[name]
