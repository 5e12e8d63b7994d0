"""Library code of an image on a Cortex-M4, by function, and what each build runs at: flash and instructions of the same builds.

    python bench/size.py model.htpw [--compiler gcc] [--symbols] [--json size.json]

Builds: the whole library at -O3 and -Os, and those that `pyhtpw export c` configures for the image with `--code` fast and compact at
-O3 and small at -Os. Code is what firmware that opens, plans, binds and runs links (.text of the library's functions; .rodata beside
it). Instructions are counted under emulation, on one window of random int8; kernels and logits are compared with the host's.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pyhtpw.errors import HtpwError, VerifyError
from pyhtpw.export import c
from pyhtpw.model import Image
from pyhtpw.target import Emulator, toolchain
from pyhtpw.target.model import TargetModel

CPU = "cortex-m4"
BUILDS = (("whole", "-O3", None), ("whole", "-Os", None), ("fast", "-O3", None), ("compact", "-O3", 14000), ("small", "-Os", 8000))


def measure(image: Image, code: str, opt: str, compiler: str) -> dict[str, Any]:
    """One build: bytes by symbol, and instructions of open, boot synthesis and inference."""
    macros = () if code == "whole" else c.macros(image, code=code)
    elf = toolchain.build(CPU, opt=opt, compiler=compiler, roots=toolchain.API, defines=macros)
    window = np.random.default_rng(1).integers(-128, 128, image.plan().input).astype(np.int8)
    with Emulator(CPU, opt=opt, compiler=compiler, defines=macros) as emulator:
        target = TargetModel(emulator, image.data, image.name, "boot")
        made, expected = target.kernels(), image.kernels()
        if not np.array_equal(target.run(window), image.run(window)) or any(not np.array_equal(made[op], expected[op]) for op in expected):
            raise VerifyError(f"{image.name}: {code} at {opt} gives other bytes than the host")
        counts = {"open": target.open_instructions, "synthesis": target.synthesis_instructions, "inference": target.inference_instructions}
    symbols = {s.name: s.size for s in sorted(elf.symbols.values(), key=lambda s: -s.size) if s.name.startswith("htpw_")}
    return {"code": code, "opt": opt, "text": elf.text_of_library, "rodata": elf.sizes[".rodata"], "instructions": counts,
            "stack": target.stack_bytes, "symbols": symbols}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--compiler", default="gcc", help="gcc (default), clang or auto")
    parser.add_argument("--symbols", action="store_true", help="also bytes by function")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    try:
        image = Image.open(options.image)
        rows = [measure(image, code, opt, options.compiler) | {"target": target} for code, opt, target in BUILDS]
    except HtpwError as error:
        print(f"size: {error}", file=sys.stderr)
        return 2
    fastest = rows[0]["instructions"]["inference"]
    print(f"{'build':14} {'text':>7} {'rodata':>7} {'open':>9} {'synthesis':>10} {'inference':>10}  speed")
    for row in rows:
        n = row["instructions"]
        verdict = "" if row["target"] is None else f"  target {row['target']}: {'met' if row['text'] <= row['target'] else 'MISSED'}"
        print(f"{row['code']:9} {row['opt']:4} {row['text']:>7} {row['rodata']:>7} {n['open']:>9} {n['synthesis']:>10} {n['inference']:>10}"
              f"  {fastest / n['inference']:.2f}{verdict}")
        for name, size in row["symbols"].items() if options.symbols else ():
            print(f"    {size:>6} {name}")
    if options.json:
        report = {"cpu": CPU, "image": options.image.name, "image_bytes": len(image.data), "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
