"""Image bytes -> its parts, with the place and the length of each: what `bill`, `report` and `verify` read.

The C library is the judge of validity (`pyhtpw.model.Image` opens an image there first); this reader names and measures the
parts, and refuses what it cannot follow.
"""

import struct
from dataclasses import dataclass, field

from pyhtpw.errors import ImageError
from pyhtpw.image.integer import LINEAR, OPERATORS, POOLS, SOURCES, SPATIAL, Info, Tensor, Window, bits_bytes

_KINDS = {number: (name, size) for name, (number, size) in OPERATORS.items()}
_SOURCES = {number: name for name, number in SOURCES.items()}


@dataclass
class ParsedOp:
    """One operator and the bytes that it owns in each section ("OPS ", "QUAN", "WGHT", "CODE")."""

    index: int
    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    out: Tensor
    window: Window | None = None
    source: str | None = None
    head: int = 0
    weight_shape: tuple[int, ...] = ()
    weights: int = 0  # elements of the kernel
    tiles: int = 0
    bytes: dict[str, int] = field(default_factory=dict)

    @property
    def generated(self) -> bool:
        """Whether the kernel is synthesised rather than stored."""
        return self.source not in (None, "stored8")

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference (padding counted)."""
        if self.kind not in LINEAR:
            return 0
        return self.weights * (self.out.h * self.out.w if self.kind != "fc" else 1)


@dataclass
class Parsed:
    """An image taken apart. `sections`: tag -> (offset, length)."""

    total: int
    sections: dict[str, tuple[int, int]]
    info: Info | None
    input: Tensor
    ops: list[ParsedOp]
    dz: int = 0
    code_bits: int = 0
    generator: list[tuple[int, int]] = field(default_factory=list)  # (rows, cols) of each layer
    tiles: list[int] = field(default_factory=list)  # tile of each head

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(op.macs for op in self.ops)


def _info(data: bytes) -> Info:
    text = data[16:].decode(errors="replace").split("\n")
    return Info(*struct.unpack_from("<4f", data), text[0], tuple(text[1:]))


def _generator(parsed: Parsed, data: bytes) -> None:
    layers, parsed.code_bits, cols, _ = struct.unpack_from("<4B", data)
    parsed.dz, at = cols, 4
    for _ in range(layers):
        rows, weight_bits, bias_bits = struct.unpack_from("<3B", data, at)
        at += 6 + bits_bytes(rows * cols, weight_bits) + bits_bytes(rows, bias_bits)
        parsed.generator.append((rows, cols))
        cols = rows


def _heads(parsed: Parsed, data: bytes) -> None:
    at = 2
    for _ in range(data[0]):
        weight_bits, tile = struct.unpack_from("<BH", data, at + 1)
        parsed.tiles.append(tile)
        at += 8 + bits_bytes(tile * parsed.generator[-1][0], weight_bits)


def _weight_shape(op: ParsedOp) -> tuple[int, ...]:
    c_in, c_out = op.inputs[0].c, op.out.c
    if op.kind == "conv":
        return (c_out, *op.window.kernel, c_in // op.window.groups)
    if op.kind == "depthwise":
        return (*op.window.kernel, c_out)
    return (c_out, op.inputs[0].size if op.kind == "fc" else c_in)


def _op(parsed: Parsed, record: bytes, index: int, slots: dict[int, Tensor], wght: int) -> ParsedOp:
    """Decodes one record; `wght` is where WGHT stands, for the alignment gap."""
    kind = _KINDS[record[0]][0]
    x = slots[record[1] & 15]
    zero_point = struct.unpack_from("<b", record, 2)[0]
    h, w, c = x.h, x.w, x.c
    op = ParsedOp(index, f"{kind}{index}", kind, (x,), x, bytes={"OPS ": len(record)})
    if kind == "add":
        op.inputs = (x, slots[record[5]])
    elif kind in POOLS:
        h, w, *window = struct.unpack_from("<HHHH4B", record, 6)
        op.window = Window(tuple(window[0:2]), tuple(window[2:4]), tuple(window[4:6]))
    else:
        source, c, _, form, bias_bits, op.head = struct.unpack_from("<BHbBBB", record, 5)
        op.source = _SOURCES[source]
        count = 1 if form & 0x80 else c
        op.bytes["QUAN"] = 2 * count + bits_bytes(count, form & 7) + bits_bytes(c, bias_bits)
        if kind in SPATIAL:
            h, w, *window = struct.unpack_from("<HH8B", record, 12)
            groups = struct.unpack_from("<H", record, 24)[0] if kind == "conv" else 1
            op.window = Window(*(tuple(window[i : i + 2]) for i in (0, 2, 4, 6)), groups)
        elif kind == "fc":
            h = w = 1
    op.out = Tensor(h, w, c, zero_point)
    if op.source is not None:
        op.weight_shape = _weight_shape(op)
        op.weights = 1
        for n in op.weight_shape:
            op.weights *= n
        if op.generated:
            op.tiles = -(-op.weights // parsed.tiles[op.head])
            op.bytes["CODE"] = bits_bytes(op.tiles * parsed.dz, parsed.code_bits)
        else:
            op.bytes["WGHT"] = -wght % 4 + op.weights
    slots[record[1] >> 4] = op.out
    return op


def parse(data: bytes, name: str = "image") -> Parsed:
    """Takes an image apart. Raises ImageError, naming `name`, if it cannot be followed."""
    try:
        count, total = data[6], struct.unpack_from("<I", data, 8)[0]
        sections = {}
        for i in range(count):
            tag, offset, length, _ = struct.unpack_from("<4sIII", data, 16 + 16 * i)
            sections[tag.decode()] = (offset, length)

        def payload(tag: str) -> bytes:
            offset, length = sections.get(tag, (0, 0))
            return data[offset : offset + length]

        ops = payload("OPS ")
        h, w, c, zero_point, operators = struct.unpack_from("<HHHbB", ops)
        tensor = Tensor(h, w, c, zero_point)
        parsed = Parsed(total, sections, _info(payload("INFO")) if payload("INFO") else None, tensor, [])
        if payload("GENR"):
            _generator(parsed, payload("GENR"))
        if payload("HEAD"):
            _heads(parsed, payload("HEAD"))
        at, wght, slots = 8, 0, {0: tensor}
        for i in range(operators):
            size = _KINDS[ops[at]][1]
            op = _op(parsed, ops[at : at + size], i, slots, wght)
            at, wght = at + size, wght + op.bytes.get("WGHT", 0)
            parsed.ops.append(op)
        return parsed
    except (struct.error, IndexError, KeyError, UnicodeDecodeError, ZeroDivisionError) as error:
        raise ImageError(f"{name}: malformed image ({type(error).__name__}: {error})") from error
