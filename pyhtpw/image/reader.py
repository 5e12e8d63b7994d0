"""Image bytes -> its parts, with the place and the length of each (`parse`), and -> the integer model (`read_model`).

The C library is the judge of validity (`pyhtpw.model.Image` opens an image there first). This reader refuses what it
cannot follow, by ImageError and nothing else, and checks every length before it allocates.
"""

import struct
import zlib
from dataclasses import dataclass, field

import numpy as np

from pyhtpw.errors import ImageError
from pyhtpw.image import heads as heads_of
from pyhtpw.image.fields import SHIFTS, Cursor, unpack_bits, whole
from pyhtpw.image.integer import (
    ATTEND_MAX,
    HEADS,
    LINEAR,
    OPERATORS,
    PAIRS,
    POOLS,
    SOURCES,
    SPATIAL,
    STORED,
    TABLE,
    AddScalars,
    AttendScalars,
    Codebook,
    Generated,
    Generator,
    Head,
    Info,
    IntegerModel,
    MulScalars,
    Op,
    Requant,
    Stored,
    Tensor,
    Window,
    bits_bytes,
)
from pyhtpw.image.writer import CODE_WIDTHS, ENTRY, FORMAT_VERSION, NARROW, PER_TENSOR, ROUNDING, SLOTS, TAGS, weight_shape

_KINDS = {number: (name, size) for name, (number, size) in OPERATORS.items()}
_SOURCES = {number: name for name, number in SOURCES.items()}
_STORED_BITS = {"stored8": 8, "stored4": 4, "stored2": 2}
_CODE_BITS = {field: bits for bits, field in CODE_WIDTHS.items()}
_MULTIPLIER_BYTES = {0: 2, 1: 1, 2: 4}
CELLS_MAX = 1 << 22
CACHED_MAX = 64


@dataclass(frozen=True)
class QuanForm:
    """How an operator's part of QUAN is laid out (SPEC 4.3); `count` multipliers and shifts, `channels` biases."""

    count: int
    channels: int
    shift_base: int
    shift_bits: int
    form: int
    bias_bits: int

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Bytes of multipliers, shifts and biases."""
        multipliers = self.count * _MULTIPLIER_BYTES[self.form]
        return multipliers, bits_bytes(self.count, self.shift_bits), bits_bytes(self.channels, self.bias_bits)


@dataclass
class ParsedOp:
    """One operator and the bytes that it owns in each section ("OPS ", "QUAN", "WGHT", "CODE").

    `bytes` counts them, alignment gaps included; `places` says where each part is: (offset in the file, length).
    """

    index: int
    name: str
    kind: str
    reads: tuple[int, ...]  # numbers of tensors, as in `integer.Op`
    inputs: tuple[Tensor, ...]
    out: Tensor
    act_min: int = -128
    act_max: int = 127
    window: Window | None = None
    add: AddScalars | None = None
    mul: MulScalars | None = None
    attend: AttendScalars | None = None
    source: str | None = None
    head: int = 0
    narrow: bool = False
    code_bits: int = 0  # width of one code, 0 for codebooks
    quan: QuanForm | None = None
    weight_shape: tuple[int, ...] = ()
    weights: int = 0  # elements of the kernel
    tiles: int = 0
    code_values: int = 0  # codes or ids stored
    code_width: int = 0  # bits of each
    bytes: dict[str, int] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def form(self) -> QuanForm:
        """`quan` of a linear operator."""
        if self.quan is None:
            raise AssertionError(f"operator {self.index} ({self.name}) has no requantisation metadata")
        return self.quan

    @property
    def generated(self) -> bool:
        """Whether the kernel is made by a head rather than stored."""
        return self.source in HEADS

    @property
    def cached(self) -> bool:
        """Whether the kernel is made or unpacked once and kept in memory (SPEC section 5)."""
        return self.source not in (None, "stored8") and not (self.source == "stored4" and self.narrow)

    @property
    def stored_bits(self) -> int:
        """Width of the stored weights, 0 if there are none."""
        return _STORED_BITS.get(self.source or "", 0)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference (padding counted)."""
        if self.kind not in LINEAR:
            return 0
        return self.weights * (self.out.h * self.out.w if self.kind != "fc" else 1)


@dataclass
class Parsed:
    """An image taken apart. `sections`: tag -> (offset, length); the lists of bytes are those of each entry."""

    data: bytes = field(repr=False)
    sections: dict[str, tuple[int, int]]
    info: Info | None
    input: Tensor
    ops: list[ParsedOp]
    generators: tuple[Generator, ...] = ()
    heads: tuple[Head, ...] = ()
    generator_bytes: tuple[int, ...] = ()
    head_bytes: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of the file."""
        return len(self.data)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(op.macs for op in self.ops)


def _sections(data: bytes) -> dict[str, tuple[int, int]]:
    """Header, section table, checksums and padding."""
    if len(data) < 16:
        raise ImageError(f"{len(data)} bytes are too few for a header")
    magic, version, rounding, count, zero, total, checksum = struct.unpack_from("<4sBBBBII", data)
    if magic != b"HTPW":
        raise ImageError(f"not an image: it begins with {magic!r}")
    if version != FORMAT_VERSION:
        raise ImageError(f"format version {version} is not {FORMAT_VERSION}: pack the model again")
    if rounding != ROUNDING or zero or not 1 <= count <= 16:
        raise ImageError(f"malformed header: rounding id {rounding}, {count} sections, byte 7 is {zero}")
    end = 16 + ENTRY * count
    if total != len(data) or total % 16 or total > 1 << 27 or end > total:
        raise ImageError(f"total length is {total}, there are {len(data)} bytes")
    if zlib.crc32(data[:12] + data[16:end]) != checksum:
        raise ImageError("the checksum of header and section table is wrong")
    sections: dict[str, tuple[int, int]] = {}
    order = -1
    for i in range(count):
        tag, offset, length, checksum = struct.unpack_from("<4sIII", data, 16 + ENTRY * i)
        name = tag.decode("ascii", "replace")
        if name not in TAGS or TAGS.index(name) <= order:
            raise ImageError(f"section {name!r} is unknown, comes twice or is out of order")
        order, start = TAGS.index(name), end + -end % 16
        if offset != start or offset + length > total or any(data[end:start]):
            raise ImageError(f"section {name.strip()} has offset {offset} and length {length}, or padding before it is not 0")
        end = offset + length
        if zlib.crc32(data[offset:end]) != checksum:
            raise ImageError(f"the checksum of section {name.strip()} is wrong")
        sections[name] = (offset, length)
    if any(data[end:]) or end + -end % 16 != total:
        raise ImageError("what follows the last section is not the padding to a multiple of 16")
    return sections


def _info(data: bytes) -> Info | None:
    if len(data) < 16:  # none, or what a device, which looks at nothing but its checksum, runs without all the same
        return None
    text = data[16:].decode(errors="replace").split("\n")
    a, b, c, d = struct.unpack_from("<4f", data)
    return Info(a, b, c, d, text[0], tuple(text[1:]))


class _Operators:
    """Walks OPS and consumes QUAN, WGHT and CODE along."""

    def __init__(self, parsed: Parsed, cursors: dict[str, Cursor]) -> None:
        self._parsed, self._cursors, self._ops = parsed, cursors, cursors["OPS "]
        self._slots: dict[int, tuple[int, Tensor]] = {0: (0, parsed.input)}  # slot -> number of the tensor, tensor
        self._cached = 0

    def read(self, index: int) -> ParsedOp:
        start = self._ops.place
        number, slots, zero_point, act_min, act_max = self._ops.fields("BBbbb", f"operator {index}")
        if number not in _KINDS:
            raise ImageError(f"operator {index}: kind {number} is unknown")
        kind, size = _KINDS[number]
        where = f"operator {index} ({kind})"
        tensor, x = self._slot(where, slots & 15)
        op = ParsedOp(index, f"{kind}{index}", kind, (tensor,), (x,), x, act_min, act_max)
        if act_min > act_max:
            raise ImageError(f"{where}: act_min {act_min} is above act_max {act_max}")
        used, h, w, c = {slots & 15}, x.h, x.w, x.c
        if kind in PAIRS:
            used.add(self._pair(op, where))
            h, w = (1, 1) if kind == "attend" else (h, w)
        elif kind == "table":
            gap = self._cursors["WGHT"].align(4)
            self._take(op, "WGHT", TABLE, gap)
        elif kind in POOLS:
            zero, h, w, *window = self._ops.fields("BHHHHBBBB", where)
            op.window = Window(tuple(window[0:2]), tuple(window[2:4]), tuple(window[4:6]))
            whole(where, "byte 5", zero, 0, 0)
        else:
            h, w, c = self._linear(op, where)
        op.out = Tensor(h, w, c, zero_point)
        if not h * w * c or op.out.size > CELLS_MAX:
            raise ImageError(f"{where}: the output has shape {(h, w, c)}")
        if op.window is not None and not min((*op.window.kernel, *op.window.stride, *op.window.dilation)):
            raise ImageError(f"{where}: a kernel, stride or dilation of 0")
        if self._ops.place - start != size:
            raise AssertionError(f"record of {kind} was read as {self._ops.place - start} bytes, the table says {size}")
        op.bytes["OPS "], op.places["OPS "] = size, (start, size)
        if kind in LINEAR:
            self._parts(op, where)
        target = slots >> 4
        if target in used or not 1 <= target < SLOTS:
            raise ImageError(f"{where}: writes slot {target}")
        self._slots[target] = (index + 1, op.out)
        return op

    def _slot(self, where: str, slot: int) -> tuple[int, Tensor]:
        if slot not in self._slots:
            raise ImageError(f"{where}: slot {slot} is read before it is written")
        return self._slots[slot]

    def _pair(self, op: ParsedOp, where: str) -> int:
        """Bytes 5.. of the record of an operator with two inputs; returns the slot of the second."""
        x = op.inputs[0]
        second, *rest = self._ops.fields({"add": "BBbbbIII", "mul": "BbI", "attend": "BBBbII"}[op.kind], where)
        also, y = self._slot(where, second)
        fit = {"add": [(x.h, x.w, x.c)], "mul": [(x.h, x.w, x.c), (1, 1, x.c)], "attend": [(x.h, x.w, 1)]}[op.kind]
        if (y.h, y.w, y.c) not in fit or (op.kind == "attend" and x.h * x.w > ATTEND_MAX):
            raise ImageError(f"{where}: inputs of shape {(x.h, x.w, x.c)} and {(y.h, y.w, y.c)}")
        op.reads, op.inputs = (*op.reads, also), (x, y)
        if op.kind == "add":
            op.add = AddScalars(rest[0], tuple(rest[4:]), tuple(rest[1:4]))
        elif op.kind == "mul":
            op.mul = MulScalars(rest[1], rest[0])
        else:
            shift, span, out_shift, multiplier, out_multiplier = rest
            op.attend = AttendScalars(multiplier, shift, span, out_multiplier, out_shift)
        return second

    def _linear(self, op: ParsedOp, where: str) -> tuple[int, int, int]:
        """Bytes 5.. of a linear operator's record; returns the output's shape."""
        x = op.inputs[0]
        source, c, base, form, bias_bits, op.head = self._ops.fields("BHbBBB", where)
        if source & 15 not in _SOURCES or source & 0x40:
            raise ImageError(f"{where}: weight source {source & 0x4F} is unknown")
        op.source, op.narrow, op.code_bits = _SOURCES[source & 15], bool(source & NARROW), _CODE_BITS[source >> 4 & 3]
        if form & 7 > 5 or form >> 3 & 3 > 2 or form & 0x60 or bias_bits > 32 or not c:
            raise ImageError(f"{where}: form {form:#04x}, bias_bits {bias_bits} or Cout {c} is out of range")
        op.quan = QuanForm(1 if form & PER_TENSOR else c, c, base, form & 7, form >> 3 & 3, bias_bits)
        if op.kind not in SPATIAL:
            return (1, 1, c) if op.kind == "fc" else (x.h, x.w, c)
        h, w, *k = self._ops.fields("HHBBBBBBBB", where)
        groups = self._ops.fields("H", where)[0] if op.kind == "conv" else 1
        op.window = Window((k[0], k[1]), (k[2], k[3]), (k[4], k[5]), (k[6], k[7]), groups)
        if not groups or x.c % groups or c % groups or (op.kind == "depthwise" and c % x.c):
            raise ImageError(f"{where}: {groups} groups, {x.c} and {c} channels do not go together")
        return h, w, c

    def _take(self, op: ParsedOp, tag: str, length: int, gap: int = 0) -> None:
        cursor = self._cursors[tag]
        op.places[tag], op.bytes[tag] = (cursor.place, length), length + gap
        cursor.take(length, f"operator {op.index}")

    def _parts(self, op: ParsedOp, where: str) -> None:
        """The operator's parts of QUAN and of WGHT or CODE."""
        parsed = self._parsed
        op.weight_shape = weight_shape(op.kind, op.inputs[0], op.out, op.window)
        op.weights = 1
        for n in op.weight_shape:
            op.weights *= n
        if not op.weights or op.weights > CELLS_MAX:
            raise ImageError(f"{where}: the kernel has {op.weights} weights")
        self._take(op, "QUAN", sum(op.form.lengths))
        self._cached += op.cached
        if self._cached > CACHED_MAX:
            raise ImageError(f"{where}: more than {CACHED_MAX} kernels are made or unpacked")
        if op.source in STORED:
            if op.head or op.code_bits or (op.narrow and op.source == "stored8"):
                raise ImageError(f"{where}: stored weights with head {op.head}, codes or narrow 8 bits")
            gap = self._cursors["WGHT"].align(4) if op.source == "stored8" else 0
            self._take(op, "WGHT", bits_bytes(op.weights, op.stored_bits), gap)
            return
        if op.head >= len(parsed.heads):
            raise ImageError(f"{where}: head {op.head} does not exist")
        head = parsed.heads[op.head]
        if heads_of.kind_of(head).name != op.source:
            raise ImageError(f"{where}: source {op.source} is not the kind of head {op.head}")
        if isinstance(head, Codebook) == bool(op.code_bits):
            raise ImageError(f"{where}: codes of {op.code_bits} bits with a head of kind {op.source}")
        if isinstance(head, Codebook) and op.narrow and head.of is None and head.bits > 4:
            raise ImageError(f"{where}: narrow with a table of {head.bits} bits")
        op.tiles = heads_of.tiles(where, head, parsed.heads, op.weights)
        values, op.code_width = heads_of.code_field(head, parsed.generators, op.code_bits)
        op.code_values = op.tiles * values
        self._take(op, "CODE", bits_bytes(op.code_values, op.code_width))


def parse(data: bytes, name: str = "image") -> Parsed:
    """Takes an image apart. Raises ImageError, naming `name`, if it cannot be followed."""
    data = bytes(data)
    try:
        sections = _sections(data)
        cursors = {}
        for tag in TAGS:
            offset, length = sections.get(tag, (0, 0))
            cursors[tag] = Cursor(tag.strip(), data[offset : offset + length], offset)
        h, w, c, zero_point, count = cursors["OPS "].fields("HHHbB", "header")
        tensor = Tensor(h, w, c, zero_point)
        if not tensor.size or tensor.size > CELLS_MAX or not count:
            raise ImageError(f"the input has shape {(h, w, c)}, and there are {count} operators")
        offset, length = sections.get("INFO", (0, 0))
        generators = heads_of.read_generators(cursors["GENR"]) if sections.get("GENR", (0, 0))[1] else []
        made = tuple(g for g, _ in generators)
        heads = heads_of.read_heads(cursors["HEAD"], made) if sections.get("HEAD", (0, 0))[1] else []
        parsed = Parsed(
            data,
            sections,
            _info(data[offset : offset + length]),
            tensor,
            [],
            made,
            tuple(head for head, _ in heads),
            tuple(n for _, n in generators),
            tuple(n for _, n in heads),
        )
        operators = _Operators(parsed, cursors)
        parsed.ops = [operators.read(i) for i in range(count)]
        for tag in ("OPS ", "QUAN", "WGHT", "CODE"):
            cursors[tag].finish()
        last = parsed.ops[-1].out
        if (last.h, last.w) != (1, 1):
            raise ImageError(f"the last output has shape {(last.h, last.w, last.c)}, must be (1, 1, classes)")
        return parsed
    except ImageError as error:
        raise ImageError(f"{name}: {error}", error.code) from error


def requant_values(parsed: Parsed, op: ParsedOp) -> Requant:
    """Multipliers, shifts and biases of a linear operator."""
    form = op.form
    at, parts = op.places["QUAN"][0], []
    for length in form.lengths:
        parts.append(parsed.data[at : at + length])
        at += length
    if form.form == 1:
        multipliers = (np.frombuffer(parts[0], np.uint8).astype(np.int64) + 256) << 22
    elif form.form == 0:
        multipliers = np.frombuffer(parts[0], "<u2").astype(np.int64) << 16
    else:
        multipliers = np.frombuffer(parts[0], "<u4").astype(np.int64)
    shifts = form.shift_base + unpack_bits(parts[1], form.count, form.shift_bits, signed=False)
    if multipliers.max() >= 1 << 31 or shifts.min() < SHIFTS[0] or shifts.max() > SHIFTS[1]:
        raise ImageError(f"operator {op.index}: a multiplier or shift is out of range")
    return Requant(multipliers, shifts, unpack_bits(parts[2], form.channels, form.bias_bits))


def _part(parsed: Parsed, op: ParsedOp, tag: str) -> bytes:
    offset, length = op.places[tag]
    return parsed.data[offset : offset + length]


def code_values(parsed: Parsed, op: ParsedOp) -> np.ndarray:
    """Codes (tiles, dz) of a generated operator, or a codebook's ids (tiles,)."""
    head = parsed.heads[op.head]
    codes = unpack_bits(_part(parsed, op, "CODE"), op.code_values, op.code_width, signed=not isinstance(head, Codebook))
    if not isinstance(head, Codebook):
        return codes.reshape(op.tiles, -1)
    if codes.max() >= len(head.entries):
        raise ImageError(f"operator {op.index}: id {codes.max()} of a codebook with {len(head.entries)} entries")
    return codes


def table_values(parsed: Parsed, op: ParsedOp) -> np.ndarray:
    """The table of a table operator, int8 (256,)."""
    return np.frombuffer(_part(parsed, op, "WGHT"), np.int8)


def kernel_values(parsed: Parsed, op: ParsedOp) -> np.ndarray:
    """The kernel of an operator that stores it, int8 of `op.weight_shape`."""
    values = unpack_bits(_part(parsed, op, "WGHT"), op.weights, op.stored_bits, dtype=np.int8)
    return values.reshape(op.weight_shape)


def _weights(parsed: Parsed, op: ParsedOp) -> Stored | Generated:
    if op.generated:
        return Generated(code_values(parsed, op), op.weight_shape, op.head, op.code_bits, op.narrow)
    return Stored(kernel_values(parsed, op), op.stored_bits, op.narrow)


def read_model(data: bytes, name: str = "image") -> IntegerModel:
    """The integer model of an image: the inverse of `pyhtpw.image.write`.

    Operators are called by kind and number, since an image stores no names. Raises ImageError as `parse`.
    """
    parsed = parse(data, name)
    ops = []
    try:
        for op in parsed.ops:
            linear = op.kind in LINEAR
            weights, requant = (_weights(parsed, op), requant_values(parsed, op)) if linear else (None, None)
            table = table_values(parsed, op) if op.kind == "table" else None
            plain = (op.window, op.add, table, op.mul, op.attend)
            ops.append(Op(op.name, op.kind, op.reads, op.out, op.act_min, op.act_max, weights, requant, *plain))
    except ImageError as error:
        raise ImageError(f"{name}: {error}", error.code) from error
    return IntegerModel(parsed.input, tuple(ops), parsed.info, parsed.generators, parsed.heads)
