"""A whole network on emulated boards, beside the same firmware with CMSIS-NN's kernels.

    python bench/network.py [--image results/mitdb-first.htpw] [--json results/network.json]
    python bench/network.py --peer-include <CMSIS-NN>/Include --peer cortex-m4=<library> --peer cortex-m55=<library> \
        --peer-flags "..." --record                     # with a CMSIS-NN of your own, built outside; writes peers/cmsis_nn.json

Both are `examples/firmware`, linked with the same library, the same flags and the same image; the peer's build sends convolutions,
depthwise and pointwise layers, additions and maximum pools to CMSIS-NN (`csrc/backends/cmsis_nn`). Logits of both must be those of
this machine. Without a CMSIS-NN the recorded counts are used. All numbers are counts or estimates under emulation.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from pyhtpw.errors import ConfigError, MissingToolError, VerifyError
from pyhtpw.model import Image
from pyhtpw.target import firmware, session
from pyhtpw.target.costs import Costs
from pyhtpw.target.firmware import Settings
from pyhtpw.verify import sample_windows

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).parent / "peers" / "cmsis_nn.json"
BOARDS = {"cortex-m4": "mps2-an386", "cortex-m55": "mps3-an547"}
TARGETS = {"cortex-m4": 0.50, "cortex-m55": 0.75}  # ours / CMSIS-NN's, instructions and estimated cycles


def measure(image: Image, cpu: str, settings: Settings) -> dict:
    """A steady inference: instructions, estimated cycles, and instructions by layer. VerifyError if logits are not the host's."""
    x = sample_windows(image, 2)
    built = firmware.build(firmware.board_named(BOARDS[cpu]), image, "boot", settings)
    done = session.run(built, x, count=True, selftest=False)
    if done.logits[0].tobytes() != image.run_batch(x).tobytes():
        raise VerifyError(f"{built.board.name}: logits with {done.backend} differ from this machine's")
    steady = done.phases[-1]
    ops = image.parsed.ops
    layers = {op.name: part.instructions for op, part in zip(ops, steady.parts[1 : 1 + len(ops)], strict=True)}
    cycles = Costs().cycles(steady.cost, cpu)
    return {"backend": done.backend, "instructions": steady.cost.instructions, "cycles_estimated": asdict(cycles), "layers": layers,
            "compiler": built.library.compiler.version}


def peer_rows(image: Image, options: argparse.Namespace) -> dict[str, dict]:
    """cpu -> what the peer takes, measured now if a library was named, else recorded."""
    libraries = dict(entry.split("=", 1) for entry in options.peer)
    if not libraries:
        known = json.loads(PEERS.read_text()).get("networks", {}).get("rows", [])
        digest = hashlib.sha256(image.data).hexdigest()
        return {row["cpu"]: row for row in known if row["image_sha256"] == digest}
    if options.peer_include is None:
        raise ConfigError("--peer needs --peer-include, the folder with arm_nnfunctions.h")
    rows = {}
    for cpu, library in libraries.items():
        if cpu not in BOARDS or not Path(library).is_file():
            raise ConfigError(f"--peer {cpu}={library}: give one of {', '.join(BOARDS)} and a library that is there")
        settings = Settings(compiler="gcc", peer=(options.peer_include.resolve(), Path(library).resolve()))
        row = {"cpu": cpu, "image": Path(options.image).name, "image_sha256": hashlib.sha256(image.data).hexdigest()}
        rows[cpu] = row | measure(image, cpu, settings)
    return rows


def record(rows: dict[str, dict], flags: str, commit: str) -> None:
    """Writes the peer's rows into `PEERS`."""
    whole = json.loads(PEERS.read_text())
    whole["networks"] = {"commit": commit, "flags": flags, "counting": "bench/network.py", "rows": list(rows.values())}
    text = PEERS.read_text()
    head = text[: text.index('"networks"')].rstrip().rstrip(",") if '"networks"' in text else text.rstrip().removesuffix("}").rstrip()
    temporary = PEERS.with_suffix(".partial")
    temporary.write_text(head + ',\n "networks": ' + json.dumps(whole["networks"], indent=1).replace("\n", "\n ") + "\n}\n")
    json.loads(temporary.read_text())
    temporary.replace(PEERS)


def main() -> int:
    """Entry point; status 1 if a target is missed, 2 if something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default=str(ROOT / "results" / "mitdb-first.htpw"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peer-include", type=Path)
    parser.add_argument("--peer", action="append", default=[], metavar="CPU=LIBRARY")
    parser.add_argument("--peer-flags", default="")
    parser.add_argument("--peer-commit", default="")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if options.record and not (options.peer and options.peer_flags and options.peer_commit):
        parser.error("--record needs --peer, --peer-flags and --peer-commit")
    try:
        image = Image.open(options.image)
        theirs = peer_rows(image, options)
        rows, missed = [], 0
        for cpu in BOARDS:
            ours = measure(image, cpu, Settings(compiler="gcc"))
            row = {"cpu": cpu, "ours": ours, "peer": theirs.get(cpu), "target": TARGETS[cpu]}
            if peer := theirs.get(cpu):
                row["instructions_ratio"] = round(ours["instructions"] / peer["instructions"], 3)
                row["cycles_ratio_estimated"] = round(ours["cycles_estimated"]["likely"] / peer["cycles_estimated"]["likely"], 3)
                row["met"] = row["instructions_ratio"] <= TARGETS[cpu] and row["cycles_ratio_estimated"] <= TARGETS[cpu]
                missed += not row["met"]
            rows.append(row)
    except (MissingToolError, ConfigError) as error:
        print(f"NOT RUN: {error}", file=sys.stderr)
        return 2
    for row in rows:
        ours, peer = row["ours"], row["peer"]
        print(f"{row['cpu']}: {ours['instructions']:,} instructions with {ours['backend']}", end="")
        if peer is None:
            print("; no recorded count of the peer for this image")
            continue
        print(f", {peer['instructions']:,} with CMSIS-NN: {row['instructions_ratio']} (estimated cycles {row['cycles_ratio_estimated']}), "
              f"target {row['target']}: {'met' if row['met'] else 'MISSED'}")
        for name, n in ours["layers"].items():
            print(f"  {name:12s} {n:10,} {peer['layers'][name]:10,}  {n / peer['layers'][name]:.2f}")
    if options.record:
        record(theirs, options.peer_flags, options.peer_commit)
    if options.json is not None:
        temporary = options.json.with_suffix(".partial")
        temporary.write_text(json.dumps({"image": Path(options.image).name, "rows": rows}, indent=1) + "\n")
        temporary.replace(options.json)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
