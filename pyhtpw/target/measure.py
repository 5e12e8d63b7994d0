"""What firmware takes, measured: flash from the linked ELF, SRAM and stack from the running board, instructions from its log.

Counted numbers and estimates never share a table: everything under "estimated" comes from `pyhtpw.target.costs`, all else is read
from the program or counted while it ran.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pyhtpw.errors import ConfigError, VerifyError
from pyhtpw.model import Image
from pyhtpw.target import firmware, session
from pyhtpw.target.costs import Costs, Estimate
from pyhtpw.target.firmware import Board, Firmware, Settings
from pyhtpw.target.session import NOTHING, Cost, Phase, Session
from pyhtpw.target.stack import Bounds

FLASHED = {".startup": "start-up", ".app": "application", ".image": "image", ".text": "library code", ".rodata": "library tables",
           ".data": "initial values"}
SRAM = {".stack": "stack, reserved", ".data": "static data", ".bss": "static data", ".arena": "arena", ".cache": "cache",
        ".rest": "self-test beyond arena and cache", ".noinit": "kept over resets"}
PARTS = {"htpw_selftest": "self-test", "htpw_synth": "synthesis", "htpw_heads": "synthesis", "ports_htpw_fake_flash": "flash driver",
         "ecg_monitor_ecg_front": "ECG front end", "ecg_front": "ECG front end"}
ROOTS = {"selftest": "htpw_selftest", "open": "htpw_model_open", "codes": "htpw_codes_boot", "run": "htpw_run", "store": "htpw_codes_store"}


def sections(built: Firmware) -> dict[str, int]:
    """Bytes of every allocated section of the program."""
    from elftools.elf.elffile import ELFFile

    with built.elf.path.open("rb") as file:
        return {s.name: s["sh_size"] for s in ELFFile(file).iter_sections() if s["sh_flags"] & 2 and s["sh_size"]}


def objects(built: Firmware) -> dict[str, str]:
    """Function -> the object file that it comes from, by the compiler's stack-usage files."""
    found = {}
    for folder in (built.library.folder, built.folder):
        for path in sorted(folder.glob("*.su")):
            for line in path.read_text().splitlines():
                found[line.split("\t")[0].rsplit(":", 1)[1].split(".")[0]] = path.stem  # clones are called name.constprop
    return found


def _group(origin: str | None, name: str) -> str:
    """The part of the library that an object file is."""
    if origin is None or origin == "runtime":
        return "runtime"  # memcpy, memset, the compiler's helpers
    for prefix in ("kernels_", "backends_"):
        if origin.startswith(prefix):
            return "kernels"
    return PARTS.get(origin, "core")


def flash(built: Firmware) -> dict[str, Any]:
    """Flash by section, by part of the library, and by symbol."""
    sizes, origin = sections(built), objects(built)
    groups: defaultdict[str, int] = defaultdict(int)
    symbols = []
    for symbol in sorted(built.elf.symbols.values(), key=lambda s: (-s.size, s.name)):
        if symbol.section not in FLASHED or not symbol.size:
            continue
        source = origin.get(symbol.name.split(".")[0].split("@")[0])
        group = FLASHED[symbol.section]
        if symbol.section == ".text":
            group = _group(source, symbol.name)
            groups[group] += symbol.size
        symbols.append({"name": symbol.name, "section": symbol.section, "part": group, "file": source, "bytes": symbol.size})
    by_section = dict.fromkeys(FLASHED.values(), 0)
    for name, label in FLASHED.items():
        by_section[label] += sizes.get(name, 0)
    library = sum(groups.values())
    groups["padding and constants between functions"] = sizes.get(".text", 0) - library
    return {"sections": by_section, "total": sum(by_section.values()), "library_code": dict(groups), "symbols": symbols}


def sram(built: Firmware, done: Session, bounds: Bounds) -> dict[str, Any]:
    """SRAM by section, stack seen and stack bound by phase, beside what the memory plan promised.

    Raises VerifyError if arena or cache are not what was promised, or the stack passed its bound.
    """
    sizes = sections(built)
    by_section = dict.fromkeys(SRAM.values(), 0)
    for name, label in SRAM.items():
        by_section[label] += sizes.get(name, 0)
    cache = 0 if built.schedule in ("streamed", "installed") else built.plan.cache
    promised = {"arena": built.arena, "cache": cache}
    if by_section["arena"] != built.arena or by_section["cache"] != cache or done.plan[:2] != (built.arena, cache):
        raise VerifyError(f"{built.board.name}: arena and cache are {by_section['arena']} + {by_section['cache']} bytes, the board "
                          f"plans {done.plan[:2]}, promised were {built.arena} + {cache}")
    bind = "htpw_bind_flash" if built.schedule in ("streamed", "installed") else "htpw_bind"
    stacks = []
    for name in dict.fromkeys(phase.name for phase in done.phases):
        seen, bound = max(p.stack for p in done.phases if p.name == name), bounds.of(ROOTS.get(name, bind))
        stacks.append({"phase": name, "seen": seen, "bound": bound.bytes, "path": [list(entry) for entry in bound.path]})
    whole = bounds.of("app_reset")
    for row in [*stacks, {"phase": "the whole program", "seen": done.stack, "bound": whole.bytes}]:
        if row["seen"] > row["bound"]:
            raise VerifyError(f"{built.board.name}: {row['phase']} took {row['seen']} bytes of stack, its bound is {row['bound']}")
    used = sum(by_section.values()) - by_section["stack, reserved"]
    return {"sections": by_section, "reserved": sum(by_section.values()), "promised": promised, "stack": stacks,
            "stack_seen": done.stack, "stack_bound": whole.bytes, "used_at_most": used + whole.bytes, "used_seen": used + done.stack}


def _named(image: Image, phase: Phase) -> list[tuple[str, str, Cost]]:
    """Name, kind and cost of every operator of an inference, and what is between them."""
    ops, parts = image.parsed.ops, phase.parts
    if len(parts) < len(ops) + 1:
        raise ConfigError("the program has no calls between operators to count by: was htpw_cursor_next inlined?")
    rows = [(op.name, type(op).__name__ if not hasattr(op, "kind") else str(op.kind), parts[1 + i]) for i, op in enumerate(ops)]
    rest = sum(parts[len(ops) + 1 :], parts[0])
    return [*rows, ("start and end", "", rest)]


def counted(image: Image, built: Firmware, done: Session) -> tuple[dict[str, Any], dict[str, Cost], list]:
    """Instructions by phase, and by operator of a steady inference."""
    runs = [phase for phase in done.phases if phase.name == "run"]
    costs = {phase.name: phase.cost for phase in done.phases if phase.name != "run"}
    costs |= {"first inference": runs[0].cost, "inference": runs[-1].cost}
    layers = _named(image, runs[-1])
    boot = costs["bind"].instructions + costs["first inference"].instructions - costs["inference"].instructions
    inference = costs["inference"].instructions
    return (
        {
            "phases": {
                name: {"instructions": c.instructions, "taken_branches": c.taken, "classes": c.classes} for name, c in costs.items()
            },
            "layers": [{"name": n, "kind": k, "instructions": c.instructions, "classes": c.classes} for n, k, c in layers],
            "synthesis_instructions": boot,
            "synthesis_in_inferences": round(boot / inference, 3),
            "inferences_until_1_percent": math.ceil(99 * boot / inference),
        },
        costs,
        layers,
    )


def report(
    image: Image,
    board: Board,
    schedule: str,
    settings: Settings,
    x: np.ndarray,
    *,
    constants: Path | None = None,
    seconds: float = 300.0,
) -> dict[str, Any]:
    """Everything that is known of an image on a board, as a JSON object.

    Parameters
    ----------
    x : int8 (N, H, W, C)
        At least two windows: the last one is counted as the steady state.
    constants : Path, optional
        Constants of the estimates, as `costs.toml`.

    Raises
    ------
    ConfigError, FitError, MissingToolError, BoardError
        As building and running.
    VerifyError
        If memory is not what was promised.
    """
    if len(x) < 2:
        raise ConfigError("a report needs two windows at least: the first inference may synthesise")
    model = Costs(constants)
    built = firmware.build(board, image, schedule, settings)
    store = session.installed(built, image) if schedule == "installed" else None
    done = session.run(built, x, count=True, store=store, seconds=seconds)
    counts, costs, layers = counted(image, built, done)
    estimates = {name: model.cycles(cost, board.cpu) for name, cost in costs.items()}
    steady = estimates["inference"]
    return {
        "image": {"name": image.name, "bytes": len(image.data)},
        "board": board.name, "cpu": board.cpu, "backend": done.backend, "schedule": schedule,
        "compiler": built.library.compiler.version, "flags": " ".join(f for f in built.library.flags if f[:2] in ("-m", "-O", "-D")),
        "flash": flash(built),
        "sram": sram(built, done, Bounds(built)),
        "counted": counts,
        "estimated": None if steady is None else {
            "constants": model.path.name,
            "cycles": {name: _cycles(e) for name, e in estimates.items()},
            "layers": [{"name": name, **_cycles(model.cycles(cost, board.cpu))} for name, _, cost in layers],
            "energy_per_inference": model.energy(steady, board.cpu),
        },
    }


def _cycles(estimate: Estimate) -> dict[str, int]:
    return {"low": estimate.low, "likely": estimate.likely, "high": estimate.high}


def tables(found: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
    """(title, head, rows) of every table of a report."""
    flashed, memory, counts, estimated = (found[name] for name in ("flash", "sram", "counted", "estimated"))
    yield "Flash, bytes (from the ELF)", ["section", "bytes"], [*flashed["sections"].items(), ["sum", flashed["total"]]]
    yield "Library code, bytes (from the ELF)", ["part", "bytes"], list(flashed["library_code"].items())
    largest = [[s["name"], s["part"], s["bytes"]] for s in flashed["symbols"][:20]]
    yield "The 20 largest symbols in flash", ["symbol", "part", "bytes"], largest
    yield "SRAM, bytes (from the ELF)", ["section", "bytes"], list(memory["sections"].items())
    rows = [[s["phase"], s["seen"], s["bound"]] for s in memory["stack"]]
    rows.append(["the whole program", memory["stack_seen"], memory["stack_bound"]])
    yield "Stack, bytes", ["phase", "seen (painted)", "bound (-fstack-usage)"], rows
    phases = [[name, row["instructions"], row["taken_branches"]] for name, row in counts["phases"].items()]
    yield "Counted: executed instructions", ["phase", "instructions", "taken branches"], phases
    layers = [[row["name"], row["kind"], row["instructions"]] for row in counts["layers"]]
    yield "Counted: one steady inference by layer", ["layer", "kind", "instructions"], layers
    if estimated is not None:
        rows = [[name, e["low"], e["likely"], e["high"]] for name, e in estimated["cycles"].items()]
        yield f"ESTIMATED: cycles ({estimated['constants']})", ["phase", "low", "likely", "high"], rows
        rows = [[e["name"], e["low"], e["likely"], e["high"]] for e in estimated["layers"]]
        yield "ESTIMATED: cycles of one steady inference by layer", ["layer", "low", "likely", "high"], rows
        if energy := estimated["energy_per_inference"]:
            rows = [["milliseconds", *(energy[f"{k}_ms"] for k in ("low", "likely", "high"))],
                    ["millijoules", *(energy[f"{k}_mj"] for k in ("low", "likely", "high"))]]
            clock = f"{energy['frequency_mhz']} MHz, {energy['current_ma']} mA, {energy['voltage']} V"
            yield f"ESTIMATED: energy proxy of one inference at {clock}", ["", "low", "likely", "high"], rows


def headline(found: dict[str, Any]) -> list[str]:
    """What a report is of, and its conclusions."""
    counts, memory = found["counted"], found["sram"]
    return [
        f"{found['image']['name']} ({found['image']['bytes']:,} bytes) on {found['board']} ({found['cpu']}), backend {found['backend']}, "
        f"schedule {found['schedule']}",
        f"{found['compiler']}: {found['flags']}; emulated by QEMU, nothing here is a time on silicon",
        f"SRAM: arena and cache are what htpw_plan_memory promised ({memory['promised']['arena']:,} + {memory['promised']['cache']:,} "
        f"bytes); at most {memory['used_at_most']:,} bytes with the stack bound, {memory['used_seen']:,} seen",
        f"synthesis costs {counts['synthesis_in_inferences']} inferences; below 1 % of all after {counts['inferences_until_1_percent']}",
    ]


def lines(found: dict[str, Any]) -> Iterator[str]:
    """A report for terminals."""
    yield from headline(found)
    for title, head, rows in tables(found):
        text = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in [head, *rows]]
        widths = [max(len(row[i]) for row in text) for i in range(len(head))]
        yield ""
        yield title
        for first, *others in text:
            cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            yield "  " + "  ".join([first.ljust(widths[0]), *cells])


__all__ = ["NOTHING", "counted", "flash", "lines", "report", "sections", "sram", "tables"]
