"""Layer by layer: bytes as they are beside bytes stored plainly, instructions where a board was measured, and SRAM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyhtpw.errors import ConfigError
from pyhtpw.image.integer import bits_bytes
from pyhtpw.image.reader import ParsedOp
from pyhtpw.model import Image
from pyhtpw.report.sources import Source
from pyhtpw.report.tables import BITS, Column, Row, Table, get, integer, whole


@dataclass(frozen=True)
class LayerCost:
    """What one operator takes; bytes unless said otherwise.

    `stored` is its kernel (or table) as it lies in the image, `codes` and `share` what a generated kernel takes instead (the share of
    generators and heads by weights), `rest` its record, multipliers, shifts and biases; `plain` the kernel stored at 8, 4 and 2 bits.
    `activation` is its inputs and output together, `cached` its kernel in SRAM (int8, row-major; 0 if it runs as it is stored).
    `instructions` of one inference, None where no board was measured.
    """

    name: str
    kind: str
    source: str
    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    weights: int
    stored: int
    codes: int
    share: int
    rest: int
    plain: dict[str, int]
    activation: int
    cached: int
    instructions: int | None

    @property
    def bytes(self) -> int:
        """All that it takes of the image, its share of generators and heads included."""
        return self.stored + self.codes + self.share + self.rest


def layers(source: Source) -> list[LayerCost]:
    """Every operator of a source's image; [] without one."""
    image = source.image
    if image is None:
        return []
    names, generated = source.layer_names(), source.report.get("generated") or {}
    counted = {i: integer(get(row, "instructions")) for i, row in enumerate(get(source.report, "board", "layers") or ())}
    return [_layer(op, names[op.index], generated.get(names[op.index]) or {}, counted.get(op.index)) for op in image.parsed.ops]


def _layer(op: ParsedOp, name: str, generated: Mapping[str, Any], instructions: int | None) -> LayerCost:
    reads = dict(zip(op.reads, op.inputs, strict=True))
    kernel = op.weights if op.weight_shape else 0
    return LayerCost(
        name, op.kind, op.source or "", (op.out.h, op.out.w, op.out.c), tuple(op.weight_shape), kernel,
        op.bytes.get("WGHT", 0), op.bytes.get("CODE", 0), integer(generated.get("shared_bytes")) or 0,
        op.bytes.get("OPS ", 0) + op.bytes.get("QUAN", 0),
        {b: bits_bytes(kernel, int(b)) for b in BITS} if kernel else {},
        sum(t.size for t in reads.values()) + op.out.size, kernel if op.cached else 0, instructions,
    )  # fmt: skip


def board(found: Mapping[str, Any], image: Image) -> dict[str, Any]:
    """The part of a board's report (`pyhtpw target report --json`) that a report shows; ConfigError if it is of another image."""
    rows = get(found, "counted", "layers") or []
    names = [op.name for op in image.parsed.ops]
    if get(found, "image", "bytes") != len(image.data) or [get(row, "name") for row in rows][: len(names)] != names:
        raise ConfigError(f"{image.name}: the board's report is of another image: make one with 'pyhtpw target report --json'")
    keep = {key: found.get(key) for key in ("board", "cpu", "backend", "schedule", "compiler", "flags")}
    return {**keep, "layers": [{"name": row["name"], "instructions": row["instructions"]} for row in rows[: len(names)]],
            "synthesis_instructions": get(found, "counted", "synthesis_instructions"),
            "inference_instructions": get(found, "counted", "phases", "inference", "instructions"),
            "sram_used_at_most": get(found, "sram", "used_at_most"), "flash_total": get(found, "flash", "total")}  # fmt: skip


def measure(image: Image, name: str = "mps2-an386") -> dict[str, Any]:
    """An image on an emulated board, instructions by layer; errors as `pyhtpw.target.measure.report`."""
    from pyhtpw.target import boards
    from pyhtpw.target import measure as measuring
    from pyhtpw.target.firmware import Settings
    from pyhtpw.verify import sample_windows

    return board(measuring.report(image, boards.board_named(name), "boot", Settings(), sample_windows(image, 3)), image)


def table(source: Source) -> Table | None:
    """`layers` as a table; None without an image."""
    found = layers(source)
    if not found:
        return None
    rows = []
    for each in found:
        plain = [whole(each.plain[b]) if each.plain else "" for b in BITS]
        counted = [] if each.instructions is None else [whole(each.instructions)]
        rows.append(
            Row(
                (
                    each.name,
                    each.kind,
                    "x".join(map(str, each.shape)),
                    "x".join(map(str, each.kernel)),
                    each.source,
                    whole(each.bytes),
                    whole(each.stored + each.codes + each.share) if each.kernel else "",
                    *plain,
                    *counted,
                    whole(each.activation),
                    whole(each.cached),
                )
            )
        )
    has = found[0].instructions is not None
    made = get(source.report, "board") or {}
    sums = [sum(getattr(each, key) for each in found) for key in ("bytes", "cached")]
    total = ["sum", "", "", "", "", whole(sums[0]), "", "", "", ""]
    rows.append(Row((*total, *([whole(sum(each.instructions or 0 for each in found))] if has else []), "", whole(sums[1])), "total"))
    heads = [
        Column("Layer", False),
        Column("Kind", False, True),
        Column("Output", False, True),
        Column("Kernel", False, True),
        Column("Kernel is", False, True),
        Column("Bytes"),
        Column("of them kernel", True, True),
        *(Column(f"at {b} bits") for b in BITS),
    ]
    heads += [Column("Instructions")] if has else []
    heads += [Column("Activations"), Column("Kernel in SRAM", True, True)]
    note = (
        "Bytes: all that a layer takes of the image, its share of generators and heads included; header, names and padding are no "
        "layer's. At 8, 4 and 2 bits: its kernel stored plainly. Activations: inputs and output of the layer; kernel in SRAM: "
        "row-major, as it is made once."
    )
    if has:
        note += (
            f" Instructions: {made.get('board')} ({made.get('cpu')}), {made.get('backend')}, {made.get('compiler')}, counted under QEMU."
        )
    else:
        note += " Instructions by layer: not run (--measure, or --board with the JSON of 'pyhtpw target report')."
    return Table("Architecture, layer by layer", tuple(heads), tuple(rows), note)
