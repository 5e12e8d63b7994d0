"""Instructions per generated weight of synthesis on emulated Cortex-M boards, from packed codes to the kernel in the cache.

    python bench/synthesis.py [--cpu cortex-m4 ...] [--size 64 --size 128] [--tile 32 --tile 64] [--dz 4 --dz 8] [--json FILE]

What is counted is `htpw_synth_layer` of a square pointwise kernel with random codes, generator and head: unpacking of the
generator, the head and the codes, all products, and the layout of the cache. The kernel is compared with the host's.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pyhtpw.errors import MissingToolError, VerifyError
from pyhtpw.image.integer import Generated, Generator, IntegerModel, Matrix, Op, Requant, Stored, Tensor, Tiled
from pyhtpw.image.writer import write
from pyhtpw.model import Image
from pyhtpw.target import qemu, toolchain

# most instructions per weight that we aim for: a + b * dh
TARGETS = {"cortex-m4": (10.0, 0.8), "cortex-m55": (2.0, 0.15)}


def model(size: int, dh: int, dz: int, tile: int) -> IntegerModel:
    """A network with one generated kernel of size x size."""
    rng = np.random.default_rng([size, dh, dz, tile])
    shift = -round(np.log2(np.sqrt(dh) * 20))
    hidden = Matrix(rng.integers(-127, 128, (dh, dz)), rng.integers(-500, 500, dh), 23170 << 16, -3)
    head = Matrix(rng.integers(-127, 128, (tile, dh)), np.zeros(tile, np.int64), 25000 << 16, shift)
    weights = Generated(rng.integers(-8, 8, (-(-size * size // tile), dz)), (size, size))
    requant = Requant(np.full(1, 20000 << 16), np.full(1, -9), np.zeros(size, np.int64))
    flat = Requant(np.full(1, 20000 << 16), np.full(1, -9), np.zeros(1, np.int64))
    ops = (
        Op("pointwise", "conv1x1", (0,), Tensor(1, 1, size, 0), weights=weights, requant=requant),
        Op("fc", "fc", (1,), Tensor(1, 1, 1, 0), weights=Stored(np.ones((1, size), np.int8)), requant=flat),
    )
    return IntegerModel(Tensor(1, 1, size, 0), ops, generators=(Generator(dz, (hidden,)),), heads=(Tiled(head),))


def measure(elf: toolchain.Elf, image: bytes) -> qemu.Outcome:
    """What the board says of one `htpw_synth_layer`."""
    host, batch = Image(image), qemu.Batch(elf)
    data = batch.buffer(image, "image", align=4)
    opened, context, words = batch.buffer(4096, "model"), batch.buffer(512, "context"), batch.buffer(24, "plan", align=4)
    arena, cache = batch.buffer(1 << 16, "arena"), batch.buffer(1 << 16, "cache")
    kernel = batch.buffer(len(host.kernels()[0]), "kernel")
    batch.call("htpw_model_open", opened, data, len(image))
    batch.call("htpw_plan_memory", opened, 0, words)
    batch.call("htpw_bind", context, opened, 0, arena, 1 << 16, cache, 1 << 16, 1)
    call = batch.call("htpw_synth_layer", context, 0)
    batch.call("htpw_kernel_read", context, 0, kernel, len(host.kernels()[0]))
    outcomes = batch.run("log")
    if any(outcome.result for outcome in outcomes) or batch.read(kernel) != host.kernels()[0].tobytes():
        raise VerifyError(f"{elf.cpu.name}: the kernel differs from the host's")
    return outcomes[call]


def row(elf: toolchain.Elf, size: int, dh: int, dz: int, tile: int) -> dict[str, Any]:
    """One line of the report."""
    cpu, outcome = elf.cpu.name, measure(elf, write(model(size, dh, dz, tile)))
    per_weight, (base, slope) = outcome.instructions / size**2, TARGETS[cpu]
    entry = {"cpu": cpu, "size": size, "dh": dh, "dz": dz, "tile": tile, "instructions": outcome.instructions}
    entry |= {"per_weight": round(per_weight, 3), "target": round(base + slope * dh, 2)}
    return entry | {"met": per_weight <= base + slope * dh, "classes": outcome.classes}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="append", choices=tuple(TARGETS), help="repeatable; default: all")
    for name, what in (("size", "rows and columns of the kernel"), ("dh", "last hidden width"), ("dz", "code length"), ("tile", "tile")):
        parser.add_argument(f"--{name}", action="append", type=int, help=f"{what}; repeatable")
    parser.add_argument("--opt", default="-O3", help="compiler optimisation (default -O3)")
    parser.add_argument("--json", help="file to write instead of standard output")
    options = parser.parse_args()
    report: dict[str, Any] = {"provenance": {}, "rows": []}
    try:
        for cpu in options.cpu or TARGETS:
            elf = qemu.build(cpu, opt=options.opt, compiler="gcc")
            report["provenance"] = {"compiler": elf.compiler.version, "opt": elf.opt, "what": __doc__.split("\n\n")[2].strip()}
            for size in options.size or (64, 128):
                for tile in options.tile or (32, 64):
                    for dz in options.dz or (4, 8):
                        report["rows"] += [row(elf, size, dh, dz, tile) for dh in options.dh or (4, 8, 16)]
    except MissingToolError as error:
        print(f"NOT RUN: {error}", file=sys.stderr)
        return 2
    text = json.dumps(report, indent=1)
    if options.json:
        Path(options.json).write_text(text + "\n")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
