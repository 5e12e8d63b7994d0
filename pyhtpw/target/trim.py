"""What a library that is built for one image costs in flash, and what it runs at: builds of the same firmware, side by side.

Code is what the linker kept of the library: its functions in .text, by symbol, and .rodata with every constant behind it. Start-up,
application, memcpy and the compiler's helpers are not the library's. Every build is run, its logits compared with this machine's, and
its instructions counted, so that size and speed are of one program.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from pyhtpw.errors import ConfigError, VerifyError
from pyhtpw.export import c
from pyhtpw.model import Image
from pyhtpw.target import firmware, session, toolchain
from pyhtpw.target.firmware import Board, Firmware, Settings

PEERS = toolchain.ROOT / "bench" / "peers" / "cmsis_nn.json"
LIMITS = {("compact", "-O3"): 14, ("small", "-Os"): 8}  # kB of code that the project aims at, on a Cortex-M4


def library_code(built: Firmware) -> dict[str, Any]:
    """Bytes of the library in a program: text, rodata, and its symbols, the largest first."""
    symbols = [s for s in built.elf.symbols.values()
               if s.section in (".text", ".rodata") and s.size and s.name.startswith("htpw_") and not s.name.startswith("htpw_target_")]
    text = sum(s.size for s in symbols if s.section == ".text")
    rodata = built.elf.sizes[".rodata"]
    rows = [{"name": s.name, "section": s.section, "bytes": s.size} for s in sorted(symbols, key=lambda s: (-s.size, s.name))]
    return {"text": text, "rodata": rodata, "bytes": text + rodata, "symbols": rows}


def peer(image: Image, cpu: str) -> int | None:
    """Instructions of an inference of this image with CMSIS-NN, as recorded by bench/network.py; None if nobody counted them."""
    if not PEERS.is_file():
        return None
    digest = hashlib.sha256(image.data).hexdigest()
    rows = json.loads(PEERS.read_text()).get("networks", {}).get("rows", [])
    return next((row["instructions"] for row in rows if (row["cpu"], row["image_sha256"]) == (cpu, digest)), None)


def measure(image: Image, board: Board, schedule: str, settings: Settings, x: np.ndarray, seconds: float = 300.0) -> dict[str, Any]:
    """Code and instructions of one build. Raises VerifyError if its logits are not this machine's."""
    built = firmware.build(board, image, schedule, replace(settings, lean=True, selftest=False))
    store = session.installed(built, image) if schedule == "installed" else None
    done = session.run(built, x, count=True, selftest=False, store=store, seconds=seconds)
    if done.logits[max(done.logits)].tobytes() != image.run_batch(x).tobytes():
        raise VerifyError(f"{board.name}: logits of the {settings.trim or 'whole'} library at {settings.opt} differ from this machine's")
    runs = [phase.cost.instructions for phase in done.phases if phase.name == "run"]
    bind = sum(phase.cost.instructions for phase in done.phases if phase.name == "bind")
    limit = LIMITS.get((settings.trim, settings.opt)) if board.cpu == "cortex-m4" else None
    code = library_code(built)
    met = {}
    if limit is not None:
        met = {"limit_kb": limit} | {f"within_{unit}": code["bytes"] <= limit * unit for unit in (1000, 1024)}
    return {"build": settings.trim or "whole", "opt": settings.opt, "backend": done.backend, **code, **met,
            "instructions": {"synthesis": bind + runs[0] - runs[-1], "inference": runs[-1]}}


def compare(image: Image, board: Board, schedule: str, settings: Settings, x: np.ndarray, seconds: float = 300.0) -> dict[str, Any]:
    """The whole library at -O3, then trimmed ones at -O3 and -Os, and what was asked for; ratios to the first, and to CMSIS-NN.

    Parameters
    ----------
    x : int8 (N, H, W, C)
        Two windows at least: the last one is the steady state.

    Raises
    ------
    ConfigError
        If `settings.trim` is no `pyhtpw.export.c.CODE`.
    VerifyError
        If logits differ from this machine's.
    """
    if settings.trim not in c.CODE:
        raise ConfigError(f"unknown code {settings.trim!r}: use one of {', '.join(c.CODE)}")
    wanted = dict.fromkeys([(None, "-O3"), ("compact", "-O3"), ("small", "-Os"), (settings.trim, "-O3"), (settings.trim, "-Os"),
                            (settings.trim, settings.opt)])
    rows = [measure(image, board, schedule, replace(settings, trim=code, opt=opt), x, seconds) for code, opt in wanted]
    theirs, whole = peer(image, board.cpu), rows[0]["instructions"]
    for row in rows:
        n = row["instructions"]
        row["is_asked_for"] = (row["build"], row["opt"]) == (settings.trim, settings.opt)
        row["inference_ratio"] = round(n["inference"] / whole["inference"], 3)
        row["synthesis_ratio"] = round(n["synthesis"] / whole["synthesis"], 3) if whole["synthesis"] else None
        row["inference_ratio_peer"] = None if theirs is None else round(n["inference"] / theirs, 3)
    return {"peer_instructions": theirs, "builds": rows}


def _verdict(row: dict[str, Any]) -> str:
    if "limit_kb" not in row:
        return ""
    k = row["limit_kb"]
    return ", ".join(f"<= {k} x {unit}: {'yes' if row[f'within_{unit}'] else 'NO'}" for unit in (1000, 1024))


def tables(found: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
    """(title, head, rows): the builds side by side, then the symbols of the one that was asked for."""
    rows = [[f"{r['build']} {r['opt']}", r["text"], r["rodata"], r["bytes"], r["instructions"]["synthesis"], r["instructions"]["inference"],
             r["synthesis_ratio"] or "-", r["inference_ratio"], r["inference_ratio_peer"] or "-", _verdict(r)] for r in found["builds"]]
    yield ("Library code, bytes, and instructions of the same builds (counted)",
           ["build", "text", "rodata", "sum", "synthesis", "inference", "synthesis / whole", "inference / whole", "inference / CMSIS-NN",
            "aim"],
           rows)
    asked = next(r for r in found["builds"] if r["is_asked_for"])
    symbols = [[s["name"], s["section"], s["bytes"]] for s in asked["symbols"]]
    yield f"Library code of {asked['build']} {asked['opt']} by symbol", ["symbol", "section", "bytes"], symbols


__all__ = ["LIMITS", "compare", "library_code", "measure", "peer", "tables"]
