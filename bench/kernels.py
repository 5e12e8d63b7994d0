"""Instructions of the kernels on emulated Cortex-M boards, shape by shape, beside those of CMSIS-NN.

    python bench/kernels.py [--cpu cortex-m4 ...] [--backend armv7em_dsp ...] [--sizes] [--json results/kernels.json]

Each kernel is called through the table of its backend, with the shapes, compiler and flags of the peer's numbers in
`peers/cmsis_nn.json`, and its output is compared with the host's. How instructions are counted is told in
`pyhtpw/target/qemu.py`. All numbers are counts or estimates under emulation; none is a time on silicon.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyhtpw import kernels
from pyhtpw._native import ffi, lib
from pyhtpw.errors import MissingToolError, VerifyError
from pyhtpw.target import qemu, toolchain
from pyhtpw.target.board_kernels import BoardTarget, Table, tables

PEERS = Path(__file__).parent / "peers" / "cmsis_nn.json"
CPUS = ("cortex-m0", "cortex-m3", "cortex-m4", "cortex-m55")
PEER_NAMES = {
    "conv1x1": "arm_convolve_1x1_s8_fast",
    "gemv": "arm_fully_connected_s8",
    "depthwise": "arm_depthwise_conv_wrapper_s8",
    "add": "arm_elementwise_add_s8",
    "avgpool": "arm_avgpool_s8",
}
GEMV_TARGET = ("16->4096", "12->2304", "32->1024")  # the shapes of synthesis

# (cores, group, layouts or all if empty) -> largest geometric mean of our instructions / the peer's that we aim for
TARGETS = {
    ("cortex-m4", "conv1x1 W>=16", "widened"): 0.55,
    ("cortex-m4", "conv1x1 W>=16", "int8"): 0.70,
    ("cortex-m4", "conv1x1 W>=16", "row_major"): 0.85,
    ("cortex-m4", "conv1x1 W=1", "best"): 0.70,
    ("cortex-m4", "depthwise", "-"): 0.30,
    ("cortex-m4", "gemv synthesis", "best"): 0.40,
    ("cortex-m4", "add", "-"): 0.30,
    ("cortex-m4", "avgpool", "-"): 0.30,
    ("cortex-m55", "conv1x1 W>=16", "int8"): 0.70,
    ("cortex-m55", "depthwise", "-"): 0.60,
    ("cortex-m3", "conv1x1 W>=16", "row_major"): 0.85,
    ("cortex-m3", "depthwise", "-"): 0.55,
    ("cortex-m0", "conv1x1 W>=16", "row_major"): 0.85,
    ("cortex-m0", "depthwise", "-"): 0.55,
}


@dataclass(frozen=True)
class Shape:
    """One row of the peer: its kernel as we call it, its shape as text, and its numbers."""

    kernel: str
    sizes: dict[str, int]
    instructions: int
    cycles: int | None

    @property
    def text(self) -> str:
        """The shape, such as 16x64->64 or W225 C16 K3 S1."""
        s = self.sizes
        if self.kernel == "conv1x1":
            return f"{s['W']}x{s['Cin']}->{s['Cout']}"
        if self.kernel == "gemv":
            return f"{s['Cin']}->{s['Cout']}"
        if self.kernel == "depthwise":
            return f"W{s['W']} C{s['C']} K{s['K']} S{s['stride']}"
        return f"n{s['n']}" if self.kernel == "add" else f"W{s['W']} C{s['C']}"


def shapes(cpu: str) -> list[Shape]:
    """The peer's rows of one core."""
    ours = {theirs: name for name, theirs in PEER_NAMES.items()}
    rows = json.loads(PEERS.read_text())["rows"]
    return [Shape(ours[r["kernel"]], r["shape"], r["instructions"], r["cycles_est"]) for r in rows if r["cpu"] == cpu]


def arguments(shape: Shape) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """A call of `pyhtpw.kernels` of this shape: random data, input offset 7, scales that spread the results over int8."""
    rng = np.random.default_rng([len(shape.kernel), *shape.sizes.values()])
    s = shape.sizes

    def int8(*size: int) -> np.ndarray:
        return rng.integers(-128, 128, size).astype(np.int8)

    def layer(channels: int, products: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shift = -round(math.log2(math.sqrt(products) * 75))
        bias = rng.integers(-5000, 5000, channels).astype(np.int32)
        multiplier = rng.integers(1 << 30, (1 << 31) - 1, channels).astype(np.int32)
        return bias, multiplier, np.full(channels, shift, np.int32)

    offsets = {"input_offset": 7, "output_offset": -3}
    if shape.kernel in ("conv1x1", "gemv"):
        bias, multiplier, shift = layer(s["Cout"], s["Cin"])
        scale = (multiplier, shift) if shape.kernel == "conv1x1" else (int(multiplier[0]), int(shift[0]))  # as the peer's
        x, w = int8(1, 1, s["W"], s["Cin"]), int8(s["Cout"], s["Cin"])
        return "conv1x1_s8", (x, w, bias, *scale), offsets  # which is also what runs fully connected layers
    if shape.kernel == "depthwise":
        width, taps, stride = s["W"], s["K"], s["stride"]
        size = -(-width // stride)
        padding = max((size - 1) * stride + taps - width, 0) // 2
        window = {"stride": (1, stride), "padding": (0, padding), "output_size": (1, size)}
        return "depthwise_s8", (int8(1, 1, width, s["C"]), int8(1, 1, taps, s["C"]), *layer(s["C"], taps)), offsets | window
    if shape.kernel == "avgpool":
        return "avgpool_s8", (int8(1, 1, s["W"], s["C"]),), {"kernel": (1, s["W"])}
    scales = {"input1_offset": 7, "input1_mult": 0x52000000, "input1_shift": -1, "left_shift": 20}
    scales |= {"input2_offset": -3, "input2_mult": 0x61000000, "input2_shift": 0}
    scales |= {"out_offset": 5, "out_mult": 0x4A000000, "out_shift": -19}
    return "add_s8", (int8(s["n"]), int8(s["n"])), scales


def in_4_bits(args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """A call of `arguments` with the upper four bits of its weights, packed."""
    x, w, bias, multiplier, shift = args
    packed = kernels.pack_bits(w >> 4, 4)
    if isinstance(multiplier, int):
        return "fully_connected_s4", (x.reshape(-1, x.shape[-1]), packed, bias, multiplier, shift), keywords | {"rows": len(w)}
    return "conv1x1_s4", (x, packed, bias, multiplier, shift), keywords


def variants(shape: Shape, elf: toolchain.Elf, table: Table) -> Iterator[tuple[str, str | None, int]]:
    """(layout, kernel if not that of the shape, cache bytes) of the ways in which a backend can do a shape. The peer's numbers
    beside 4-bit weights are those of its int8 kernel."""
    if shape.kernel not in ("conv1x1", "gemv"):
        yield "-", None, 0
        return
    out_c, in_c = shape.sizes["Cout"], shape.sizes["Cin"]
    yield "row_major", None, out_c * in_c
    if not elf.place(table.functions["conv1x1_s4"]).startswith("htpw_conv1x1_s4_plain"):
        yield "int4", None, (out_c * in_c + 1) // 2
    layout = lib.htpw_backend_rule(table.id).layout
    if layout.out_block > 1:
        name = "widened" if layout.bytes == 2 else "int8"
        yield name, "conv1x1_cached_s8", lib.htpw_layout_bytes(ffi.new("struct htpw_layout *", layout), out_c, in_c)


def measure(elf: toolchain.Elf, table: Table) -> list[dict[str, Any]]:
    """Rows of one backend: all shapes, in as many starts of the board as their buffers need."""
    cpu, rows = elf.cpu.name, []
    for group in chunks(shapes(cpu)):
        batch = qemu.Batch(elf)
        board = BoardTarget(batch, table)
        jobs: list[tuple[Shape, str, int, np.ndarray, np.ndarray]] = []
        for shape in group:
            name, args, keywords = arguments(shape)
            for layout, instead, cache in variants(shape, elf, table):
                call = in_4_bits(args, keywords) if layout == "int4" else (name, args, keywords)
                expected = getattr(kernels, call[0])(*call[1], **call[2])
                got = getattr(kernels, instead or call[0])(*call[1], **call[2], backend=board)
                jobs.append((shape, layout, cache, got, expected))
        outcomes = batch.run("log")
        board.collect()
        for (shape, layout, cache, got, expected), call in zip(jobs, board.calls, strict=True):
            if got.tobytes() != expected.tobytes():
                raise VerifyError(f"{cpu} {table.name} {shape.kernel} {shape.text} ({layout}): differs from the host")
            outcome = outcomes[call]
            rows.append(
                {
                    "cpu": cpu,
                    "backend": table.name,
                    "kernel": shape.kernel,
                    "shape": shape.text,
                    "layout": layout,
                    "instructions": outcome.instructions,
                    "cmsis_nn_instructions": shape.instructions,
                    "cycles_est": outcome.cycles if shape.cycles is not None else None,
                    "cmsis_nn_cycles_est": shape.cycles,
                    "cache_bytes": cache,
                    "classes": outcome.classes,
                }
            )
    return rows


def chunks(rows: list[Shape]) -> Iterator[list[Shape]]:
    """Shapes of one kernel at a time."""
    by_kernel = defaultdict(list)
    for shape in rows:
        by_kernel[shape.kernel].append(shape)
    yield from by_kernel.values()


def choose(found: dict[str, Table], names: list[str] | None) -> list[Table]:
    """The backends to measure: those asked for, else all but the portable one, else that one."""
    if names:
        return [table for name, table in found.items() if name in names]
    return [table for name, table in found.items() if name != "portable"] or [found["portable"]]


# Summaries

def group_of(row: dict[str, Any]) -> str:
    """The group of shapes with one target that a row belongs to."""
    if row["kernel"] == "conv1x1":
        return "conv1x1 W=1" if row["shape"].startswith("1x") else "conv1x1 W>=16"
    if row["kernel"] == "gemv":
        return "gemv synthesis" if row["shape"] in GEMV_TARGET else "gemv other"
    return row["kernel"]


def peer_of(row: dict[str, Any], rows: list[dict[str, Any]], figure: str) -> int:
    """The peer's instructions or cycles_est: for one row of x, the better of its two kernels."""
    figure = f"cmsis_nn_{figure}"
    if group_of(row) != "conv1x1 W=1":
        return row[figure]
    same = row["shape"].removeprefix("1x")
    gemv = [r[figure] for r in rows if (r["cpu"], r["kernel"], r["shape"]) == (row["cpu"], "gemv", same)]
    return min([row[figure], *gemv])


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By core, group and layout: geometric means of our instructions and estimated cycles / the peer's, and the worst shape of
    either. Layout "best" is, shape by shape and figure by figure, the least of int8 weights. `met`: both means within the
    target and no shape above the peer's; a core without estimated cycles is judged by its instructions."""
    ratios: dict[tuple[str, str, str, str], dict[str, float]] = defaultdict(dict)
    for row in rows:
        for figure in ("instructions", "cycles_est"):
            if row[f"cmsis_nn_{figure}"] is None or row[figure] is None:
                continue
            ratio = row[figure] / peer_of(row, rows, figure)
            for layout in {row["layout"], "best"} if row["layout"] not in ("-", "int4") else {row["layout"]}:
                known = ratios[row["cpu"], group_of(row), layout, figure]
                known[row["shape"]] = min(known.get(row["shape"], math.inf), ratio)
    result = []
    for cpu, group, layout in sorted({key[:3] for key in ratios}):
        entry: dict[str, Any] = {"cpu": cpu, "group": group, "layout": layout}
        found = {name: ratios.get((cpu, group, layout, name)) for name in ("instructions", "cycles_est")}
        means = {n: math.exp(sum(map(math.log, v.values())) / len(v)) if v else None for n, v in found.items()}
        worst = max(max(v.values()) for v in found.values() if v)
        entry |= {"shapes": len(found["instructions"]), "ratio": round(means["instructions"], 4)}
        entry |= {"cycles_ratio": means["cycles_est"] and round(means["cycles_est"], 4), "worst": round(worst, 4)}
        target = TARGETS.get((cpu, group, layout))
        met = target and all(m <= target for m in means.values() if m is not None) and worst <= 1
        result.append(entry | {"target": target, "met": met})
    return result


def sizes(cpu: str, found: list[Table], elf: toolchain.Elf) -> list[dict[str, Any]]:
    """Bytes of code and constants of each kernel with all that it needs, at -Os and -O3."""
    peers = json.loads(PEERS.read_text())["code_size"]
    result = []
    for table in found:
        for kernel, address in table.functions.items():
            symbol = elf.place(address).split("+")[0]
            for opt in ("-Os", "-O3"):
                alone = toolchain.build(cpu, opt=opt, roots=(symbol,))
                theirs = PEER_NAMES.get(kernel, "arm_max_pool_s8" if kernel == "maxpool" else None)
                match = [p["bytes"] for p in peers if (p["cpu"], p["kernel"], p["opt"]) == (cpu, theirs, opt)]
                row = {"cpu": cpu, "backend": table.name, "kernel": kernel, "opt": opt}
                row |= {"bytes": alone.text_of_library + alone.sizes[".rodata"], "cmsis_nn_bytes": match[0] if match else None}
                result.append(row)
    return result


def show(report: dict[str, Any]) -> None:
    """Prints rows, ratios and means."""
    for row in report["rows"]:
        ratio = row["instructions"] / row["cmsis_nn_instructions"]
        line = f"{row['cpu']:16} {row['backend']:16} {row['kernel']:9} {row['shape']:16} {row['layout']:9}"
        line += f" {row['instructions']:>9} / {row['cmsis_nn_instructions']:>9} = {ratio:.3f}"
        if row["cycles_est"]:
            line += f"   cycles est. {row['cycles_est'] / row['cmsis_nn_cycles_est']:.3f}"
        print(line)
    print("\ngeometric means of instructions / CMSIS-NN's")
    for row in report["summary"]:
        verdict = "" if row["target"] is None else f"  target {row['target']:.2f}: {'met' if row['met'] else 'MISSED'}"
        print(f"{row['cpu']:16} {row['group']:16} {row['layout']:9} {row['ratio']:.3f} ({row['shapes']} shapes){verdict}")
    if report["code_size"]:
        print("\ncode bytes, all that a kernel needs included")
        for row in report["code_size"]:
            peer = row["cmsis_nn_bytes"] or "-"
            print(f"{row['cpu']:16} {row['backend']:16} {row['kernel']:9} {row['opt']} {row['bytes']:>6} / {peer:>6}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="append", choices=CPUS, help="repeatable; default: all")
    parser.add_argument("--backend", action="append", help="repeatable; default: all but portable, else that")
    parser.add_argument("--opt", default="-O3", help="compiler optimisation (default -O3)")
    parser.add_argument("--sizes", action="store_true", help="also code sizes, which need a build per kernel")
    parser.add_argument("--json", nargs="?", const="-", help="file to write; without one, standard output")
    options = parser.parse_args()
    report: dict[str, Any] = {"provenance": {}, "rows": [], "summary": [], "code_size": []}
    try:
        qemu.find_qemu()
        for cpu in options.cpu or CPUS:
            elf = qemu.build(cpu, opt=options.opt, compiler="gcc")
            chosen = choose(tables(elf), options.backend)
            report["provenance"] = {"compiler": elf.compiler.version, "opt": elf.opt, "method": qemu.__doc__.split("\n\n", 1)[1]}
            for table in chosen:
                report["rows"] += measure(elf, table)
            if options.sizes:
                report["code_size"] += sizes(cpu, chosen, elf)
    except MissingToolError as error:
        print(f"NOT RUN: {error}", file=sys.stderr)
        return 2
    report["summary"] = summary(report["rows"])
    if options.json == "-":
        print(json.dumps(report, indent=1))
        return 0
    show(report)
    if options.json:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
