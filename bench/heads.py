"""What every head kind costs: bytes of the image, instructions of synthesis, SRAM, beside the same network stored at 8, 4 and 2 bits.

    python bench/heads.py [--network demo|wide] [--steps 400] [--no-count] [--json results/heads.json]

Two networks on the embedded synthetic data set: `demo` (hypertinypw) and `wide` (hypertinypw-wide, 40,960 generated weights). Each
is trained stored, then mapped onto every head (`pyhtpw pack --head`), so that biases, multipliers and codes are those of a real
network; accuracy is not what is measured here, and validation macro-F1 (synthetic data, no fine-tuning) stands beside the bytes only
to show what the mapping lost. Sizes are those of the files. Instructions are those of htpw_bind with the boot schedule, from
opened image to the last kernel in the cache, counted by QEMU's log on both cores, less those of kernels that are stored in 4 or 2 bits
and only unpacked, over all generated weights; `boot_inferences` says
how many inferences of a Cortex-M4 synthesis takes as long as (unicorn counts both). `sram_claim` is the published figure, max(activation,
workspace), beside which stands what the plan says.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from pyhtpw.data import load  # noqa: E402
from pyhtpw.errors import MissingToolError, VerifyError  # noqa: E402
from pyhtpw.image import bill  # noqa: E402
from pyhtpw.model import Image  # noqa: E402
from pyhtpw.nets import build  # noqa: E402
from pyhtpw.packing import pack_network  # noqa: E402
from pyhtpw.target import Emulator, qemu  # noqa: E402
from pyhtpw.train import TrainConfig, train  # noqa: E402
from pyhtpw.train.trainer import LAST  # noqa: E402

# name, and a tile of which the rows of its generated kernels are whole numbers
NETWORKS = {"demo": ("hypertinypw", 32), "wide": ("hypertinypw-wide", 64)}
# head of the generated pointwise kernels; those of the other kernels are the network's own
HEADS = {
    "stored8": "stored",
    "stored4": "stored:bits=4",
    "stored4, run from flash": "stored:bits=4,narrow",
    "stored2": "stored:bits=2",
    "dense": "dense",
    "factorised": "factorised:rank=4",
    "factorised, shared A": "factorised:rank=4,share=a",
    "tiled": "tiled",
    "tiled, dh 4": "tiled:tile={tile},hidden=4",
    "tiled, dh 8": "tiled:tile={tile},hidden=8",
    "tiled, dh 16": "tiled:tile={tile},hidden=16",
    "tiled, linear": "tiled:hidden=0",
    "tiled, linear, dz 8": "tiled:tile={tile},dz=8,hidden=0",
    "tiled, INT4 cache": "tiled:narrow",
    "seeded": "seeded",
    "codebook": "codebook:entries=64,tile=8,bits=4",
    "codebook, made": "codebook:entries=256,tile=16,of=generated",
}
TARGETS = {"cortex-m4": (10.0, 0.8), "cortex-m55": (2.0, 0.15)}  # instructions per weight: a + b * dh
LIMITS = {"8": 0.27, "4": 0.5, "2": 0.75}  # of the wide network's image, against the stored ones
PLAN = {"cortex-m4": "armv7em_dsp", "cortex-m55": "armv81m_mve"}


def trained(name: str, data, steps: int, folder: Path):
    """The stored network after `steps` steps with seed 0; a finished run is used again."""
    graph = build(NETWORKS[name][0], t=data.train.x.shape[1], channels_in=data.train.x.shape[2], classes=2, kernel=9, stem_kernel=15)
    graph = graph.stored()
    config = TrainConfig(steps=steps, warmup=min(100, steps), eval_every=steps, weight_decay=0.1, seed=0)
    run = folder / f"{name}-{steps}"
    return graph, train(graph, data.train, data.val, config, run, resume=(run / LAST).exists()).params


def boot(elf, image: Image) -> int:
    """Instructions of htpw_bind with the boot schedule, less those of stored kernels; all are compared with the host's."""
    batch, plan = qemu.Batch(elf), image.plan(PLAN[elf.cpu.name])
    model, context = batch.buffer(4096, "model"), batch.buffer(512, "context")
    arena, cache = batch.buffer(plan.arena, "arena"), batch.buffer(plan.cache, "cache")
    batch.call("htpw_model_open", model, batch.buffer(image.data, "image", align=4), len(image.data))
    call = batch.call("htpw_bind", context, model, 0, arena, plan.arena, cache, plan.cache, 0)
    stored = [layer for layer, k in enumerate(image.cached) if not image.parsed.ops[k.op].generated]
    unpacked = [batch.call("htpw_synth_layer", context, layer) for layer in stored]
    kernels = {layer: batch.buffer(k.bytes, "kernel") for layer, k in enumerate(image.cached)}
    for layer, address in kernels.items():
        batch.call("htpw_kernel_read", context, layer, address, image.cached[layer].bytes)
    outcomes = batch.run("log")
    expected = image.kernels()
    for layer, k in enumerate(image.cached):
        if batch.read(kernels[layer]) != expected[k.op].tobytes():
            raise VerifyError(f"{elf.cpu.name}: kernel {layer} differs from the host's")
    return outcomes[call].instructions - sum(outcomes[i].instructions for i in unpacked)


def boot_inferences(image: Image) -> float:
    """Instructions of synthesis over those of one inference, on an emulated Cortex-M4."""
    with Emulator("cortex-m4", compiler="gcc") as emulator, emulator.open(image.data) as model:
        inference = model.count_inference(np.zeros(image.plan().input, np.int8))
        return round(model.synthesis_instructions / inference, 3)


def row(network: str, head: str, packed, elfs: dict[str, Any]) -> dict[str, Any]:
    """One line of the report."""
    image = packed.quantised.image
    account = bill(image.parsed)
    sections, total = account["sections"], account["generated_total"]
    weights = sum(op.weights for op in image.parsed.ops if op.generated)
    plans = {cpu: image.plan(backend) for cpu, backend in PLAN.items()}
    largest = max(op.out.size + sum(t.size for t in op.inputs) for op in image.parsed.ops)
    workspace = max((k.bytes for k in image.cached), default=0)
    entry: dict[str, Any] = {
        "network": network,
        "head": head,
        "specification": HEADS[head].format(tile=NETWORKS[network][1]),
        "image_bytes": len(image.data),
        "kernel_bytes": sum(sections.get(tag, 0) for tag in ("WGHT", "GENR", "HEAD", "CODE")),
        "metadata_bytes": sections.get("QUAN", 0),
        "generated_weights": weights,
        "stored_for_them": total["stored_bytes"] if total else None,
        "val_macro_f1_synthetic": round(packed.quantised.macro_f1, 4),
        "sram": {cpu: {"arena": p.arena, "cache": p.cache} for cpu, p in plans.items()},
        "sram_claim": max(largest, workspace),
        "synthesis_instructions_per_weight": {},
    }
    for cpu, elf in elfs.items():
        if weights:
            entry["synthesis_instructions_per_weight"][cpu] = round(boot(elf, image) / weights, 2)
    if weights and "cortex-m4" in elfs:
        entry["boot_inferences"] = boot_inferences(image)
    if head.startswith("tiled, dh"):
        dh = int(head.split()[-1])
        entry["target"] = {cpu: round(a + b * dh, 2) for cpu, (a, b) in TARGETS.items()}
    return entry


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The wide network's best generated image beside the stored ones, and the targets of synthesis."""
    out: dict[str, Any] = {}
    for network in dict.fromkeys(r["network"] for r in rows):
        mine = [r for r in rows if r["network"] == network]
        stored = {b: next(r["image_bytes"] for r in mine if r["head"] == f"stored{b}") for b in LIMITS}
        best = min((r for r in mine if r["generated_weights"]), key=lambda r: r["image_bytes"])
        ratios = {b: round(best["image_bytes"] / size, 3) for b, size in stored.items()}
        out[network] = {"best": best["head"], "image_bytes": best["image_bytes"], "stored": stored, "ratios": ratios}
        if network == "wide":
            out[network]["targets"] = {b: {"limit": LIMITS[b], "met": ratios[b] <= LIMITS[b]} for b in LIMITS}
        for r in mine:
            for cpu, target in r.get("target", {}).items():
                found = r["synthesis_instructions_per_weight"].get(cpu)
                if found is not None:
                    out[network].setdefault("synthesis", []).append(
                        {"cpu": cpu, "head": r["head"], "per_weight": found, "target": target, "met": found <= target}
                    )
    return out


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", choices=tuple(NETWORKS), help="repeatable; default: both")
    parser.add_argument("--head", action="append", choices=tuple(HEADS), help="repeatable; default: all (stored ones always run)")
    parser.add_argument("--steps", type=int, default=400, help="training steps of the stored networks (default 400)")
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "heads", help="where the trained networks are kept")
    parser.add_argument("--no-count", action="store_true", help="sizes only: no cross compiler and no QEMU needed")
    parser.add_argument("--json", nargs="?", const="-", help="print JSON, or write it to a file")
    options = parser.parse_args()
    elfs: dict[str, Any] = {}
    not_run = []
    if not options.no_count:
        for cpu in TARGETS:
            try:
                elfs[cpu] = qemu.build(cpu, opt="-O3", compiler="gcc")
                qemu.find_qemu()
            except MissingToolError as error:
                not_run.append(f"{cpu}: {error}")
    data = load("synthetic-ecg", seed=0)
    rows = []
    for network in options.network or NETWORKS:
        graph, params = trained(network, data, options.steps, options.runs)
        nodes = build(NETWORKS[network][0], t=graph.input_shape[0], channels_in=graph.input_shape[1], classes=2).nodes
        own = {node.name: node.head for node in nodes if node.name in graph.kernel_shapes()}
        for head, specification in HEADS.items():
            if options.head and head not in options.head and not head.startswith("stored"):
                continue
            specification = specification.format(tile=NETWORKS[network][1])
            mapping = {name: specification if spec.generated else spec.text() for name, spec in own.items()}
            packed = pack_network(graph, params, data, mapping, seed=0)
            rows.append(row(network, head, packed, elfs))
            print(f"{network:5} {head:22} {rows[-1]['image_bytes']:8,} bytes  {rows[-1]['synthesis_instructions_per_weight']}",
                  file=sys.stderr)
    report = {
        "command": " ".join(["python", "bench/heads.py", *sys.argv[1:]]),
        "data": "synthetic-ecg, seed 0 (synthetic)",
        "steps": options.steps,
        "compilers": {cpu: f"{elf.compiler.version}, {elf.opt}" for cpu, elf in elfs.items()},
        "images": rows,
        "summary": summary(rows),
        "not_run": not_run,
    }
    text = json.dumps(report, indent=1) + "\n"
    if options.json and options.json != "-":
        Path(options.json).write_text(text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
