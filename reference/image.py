"""Read and validate a model image: bytes in, a tree of frozen dataclasses out.

Every "must" of the specification is checked before anything is returned; an image that breaks one
is refused whole with one line saying where. Multipliers, biases, codes and weights come back
unpacked, so that nothing after this module deals with bytes.

Source: sections 1 and 4 to 7 of the specification; comments give the number of the rule.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from .kernels import KernelArgumentError, packed_length, unpack

MAGIC = b"HTPW"
VERSION = 1
ROUNDING = 1
ALIGNMENT = 16
HEADER_BYTES = 16
ENTRY_BYTES = 16
SECTIONS_MAX = 16
SECTION_ORDER = (b"INFO", b"OPS ", b"QUAN", b"WGHT", b"GENR", b"HEAD", b"CODE")
IMAGE_MAX = 1 << 27

CELLS_MAX = 1 << 22  # elements of a tensor, weights of a kernel
GENERATED_MAX = 64
SLOTS = 8
SUM_LIMIT = 1 << 30
MULTIPLIER_MAX = 32767
SHIFT_MIN, SHIFT_MAX = -31, 30
FIELD_WIDTHS = (4, 6, 8)

STORED8 = 0
TILED = 5
KINDS = {1: "conv", 2: "depthwise", 3: "conv1x1", 4: "fc", 5: "add", 6: "avgpool", 7: "maxpool"}
POOLS = ("avgpool", "maxpool")
SPATIAL = ("conv", "depthwise")


class ImageError(ValueError):
    """The bytes are not a valid image."""


@dataclass(frozen=True)
class Windows:
    """Sliding windows of a convolution or pool; every field is (vertical, horizontal).

    ``padding`` is (top, left); what is read beyond the bottom and right follows from
    ``output_size``.
    """

    output_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Linear:
    """Weights and requantisation of a conv, depthwise, conv1x1 or fc.

    ``multiplier`` is int32 (1,) or (Cout,), in [0, 32767]; the CMSIS-NN multiplier is that << 16.
    ``shift`` is int32 of the same length, in [-31, 30]. ``bias`` is int32 (Cout,). Of ``weights``
    (int8 in ``weight_shape``) and ``codes`` (int32 (tiles, dz), for head number ``head``) exactly
    one is present, and that tells the source.
    """

    weight_shape: tuple[int, ...]
    multiplier: np.ndarray
    shift: np.ndarray
    bias: np.ndarray
    head: int
    weights: np.ndarray | None
    codes: np.ndarray | None


@dataclass(frozen=True)
class Addition:
    """Scalars of an add; multipliers in [0, 32767] as in ``Linear``, shifts in [-31, 0]."""

    left_shift: int
    multipliers: tuple[int, int]
    shifts: tuple[int, int]
    out_multiplier: int
    out_shift: int


@dataclass(frozen=True, eq=False)
class Operator:
    """One instruction: reads ``sources`` slots, writes ``target``.

    Shapes are (H, W, C). ``zero_points`` belong to the sources, in order. ``windows`` is None but
    for convolutions with a kernel and pools, ``linear`` None for pools and add, ``addition``
    None for all but add.
    """

    kind: str
    sources: tuple[int, ...]
    target: int
    input_shape: tuple[int, int, int]
    output_shape: tuple[int, int, int]
    zero_points: tuple[int, ...]
    zero_point: int
    act_min: int
    act_max: int
    windows: Windows | None
    linear: Linear | None
    addition: Addition | None


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of the generator: weights int32 (dh, d_in), bias int32 (dh,)."""

    weights: np.ndarray
    bias: np.ndarray
    multiplier: int
    shift: int


@dataclass(frozen=True)
class Generator:
    """The micro-MLP: codes of ``code_bits`` bits and length ``dz`` go through ``layers``."""

    code_bits: int
    dz: int
    layers: tuple[Layer, ...]


@dataclass(frozen=True, eq=False)
class Head:
    """The last step of synthesis: weights int32 (tile, dh)."""

    weights: np.ndarray
    multiplier: int
    shift: int

    @property
    def tile(self) -> int:
        return self.weights.shape[0]


@dataclass(frozen=True, eq=False)
class Model:
    """A validated image.

    ``input_shape`` is (H, W, C) with zero point ``input_zero_point``; ``classes`` is the number of
    logits; ``info`` is the payload of INFO as it is, for a host to interpret.
    """

    input_shape: tuple[int, int, int]
    input_zero_point: int
    operators: tuple[Operator, ...]
    generator: Generator | None
    heads: tuple[Head, ...]
    classes: int
    info: bytes


def read(data: bytes) -> Model:
    """Parse and validate an image.

    Parameters
    ----------
    data : bytes
        The whole file, nothing after it.

    Returns
    -------
    Model

    Raises
    ------
    ImageError
        The first broken rule, with the section or operator it was found in.
    TypeError
        ``data`` is not bytes-like.
    """
    payloads = _sections(bytes(memoryview(data)))
    generator = _generator(_Cursor("GENR", payloads[b"GENR"]))
    heads = _heads(_Cursor("HEAD", payloads[b"HEAD"]), generator)
    return _Operators(payloads, generator, heads).read()


class _Cursor:
    """Reads a payload front to back; every read is bounded and named in its error."""

    def __init__(self, name: str, data: bytes):
        self.name = name
        self._data = data
        self._position = 0

    @property
    def empty(self) -> bool:
        return not self._data

    def take(self, count: int, what: str) -> bytes:
        """Return the next ``count`` bytes."""
        left = len(self._data) - self._position
        if count > left:
            raise ImageError(f"{self.name}: {what} takes {count} bytes, {left} are left")
        self._position += count
        return self._data[self._position - count : self._position]

    def fields(self, layout: str, what: str) -> tuple:
        """Return the little-endian fields of a struct layout."""
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout), what))

    def bits(self, count: int, width: int, signed: bool, what: str) -> np.ndarray:
        """Return a packed array as int64 (count,); the length is checked before it is read."""
        data = np.frombuffer(self.take(packed_length(count, width), what), np.uint8)
        try:
            return unpack(data, count, width, signed=signed)
        except KernelArgumentError as error:
            raise ImageError(f"{self.name}: {what}: {error}") from None

    def align(self, multiple: int) -> None:
        """Skip zeros up to a multiple, counted from the start of the payload."""
        skipped = self.take(-self._position % multiple, "alignment")
        _require(not any(skipped), f"{self.name}: alignment bytes must be 0")

    def finish(self) -> None:
        left = len(self._data) - self._position
        _require(left == 0, f"{self.name}: {left} bytes are left over")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ImageError(message)


def _require_in(where: str, name: str, value: int, low: int, high: int) -> None:
    _require(low <= value <= high, f"{where}: {name} {value} is not in {low}..{high}")


def _sections(data: bytes) -> dict[bytes, bytes]:
    """Check header, table, checksums and padding (4); return all payloads, absent ones empty."""
    _require(len(data) >= HEADER_BYTES, f"file: {len(data)} bytes are too few for a header")
    magic, version, rounding, count, zero, total, checksum = struct.unpack_from("<4sBBBBII", data)
    _require(magic == MAGIC, f"file: magic is {magic!r}")
    _require(version == VERSION, f"file: format version {version} is unknown")
    _require(rounding == ROUNDING, f"file: rounding id {rounding} is unknown")
    _require_in("file", "number of sections", count, 1, SECTIONS_MAX)
    _require(zero == 0, "file: header byte 7 must be 0")
    _require(total % ALIGNMENT == 0, f"file: total length {total} is not a multiple of 16")
    _require(total == len(data), f"file: total length is {total}, there are {len(data)} bytes")
    _require(total <= IMAGE_MAX, f"file: total length {total} is above 2^27")
    end = HEADER_BYTES + ENTRY_BYTES * count
    _require(end <= total, "file: the section table does not fit")
    _require(zlib.crc32(data[:12] + data[HEADER_BYTES:end]) == checksum, "file: header CRC is wrong")

    payloads = dict.fromkeys(SECTION_ORDER, b"")
    seen: list[bytes] = []
    for index in range(count):
        entry = HEADER_BYTES + ENTRY_BYTES * index
        tag, offset, length, checksum = struct.unpack_from("<4sIII", data, entry)
        name = tag.decode("ascii", "replace").strip()
        _require(tag in SECTION_ORDER, f"file: unknown section {tag!r}")
        _require(tag not in seen, f"file: section {name} appears twice")
        _require(
            not seen or SECTION_ORDER.index(seen[-1]) < SECTION_ORDER.index(tag),
            f"file: section {name} is out of order",
        )
        start = end + -end % ALIGNMENT
        _require(offset == start, f"{name}: offset is {offset}, must be {start}")
        _require(offset + length <= total, f"{name}: payload ends after the file")
        _require(not any(data[end:start]), f"{name}: padding before the payload must be 0")
        end = offset + length
        payloads[tag] = data[offset:end]
        _require(zlib.crc32(payloads[tag]) == checksum, f"{name}: CRC is wrong")
        seen.append(tag)
    _require(not any(data[end:]), "file: padding after the last payload must be 0")
    _require(end + -end % ALIGNMENT == total, "file: zeros follow the last section beyond the next multiple of 16")
    _require(b"OPS " in seen, "file: section OPS is missing")
    return payloads


def _scaling(where: str, multiplier: int, shift: int) -> None:
    """Check one multiplier and one shift (2)."""
    _require_in(where, "multiplier", multiplier, 0, MULTIPLIER_MAX)
    _require_in(where, "shift", shift, SHIFT_MIN, SHIFT_MAX)


def _bound(where: str, terms: int, input_max: int, bias: np.ndarray, shift: int) -> None:
    """Check that no sum of ``terms`` products can leave int32 (7)."""
    largest = max(-int(bias.min()), int(bias.max()))
    bound = (terms * input_max * 128 + largest) << max(shift, 0)
    _require(bound < SUM_LIMIT, f"{where}: sums may reach {bound}, the limit is 2^30")


def _generator(cursor: _Cursor) -> Generator | None:
    """Read GENR (4.5)."""
    if cursor.empty:
        return None
    count, code_bits, dz, zero = cursor.fields("BBBB", "header")
    _require_in("GENR", "number of layers", count, 1, 3)
    _require(code_bits in FIELD_WIDTHS, f"GENR: code_bits {code_bits} is not 4, 6 or 8")
    _require_in("GENR", "dz", dz, 1, 255)
    _require(zero == 0, "GENR: header byte 3 must be 0")
    layers = []
    inputs = dz
    for index in range(count):
        where = f"GENR layer {index}"
        dh, weight_bits, bias_bits, shift, multiplier = cursor.fields("BBBbH", f"layer {index}")
        _require_in(where, "dh", dh, 1, 255)
        _require(weight_bits in FIELD_WIDTHS, f"{where}: weight_bits {weight_bits} is not 4, 6 or 8")
        _require_in(where, "bias_bits", bias_bits, 0, 32)
        _scaling(where, multiplier, shift)
        weights = cursor.bits(dh * inputs, weight_bits, True, f"weights of layer {index}")
        bias = cursor.bits(dh, bias_bits, True, f"biases of layer {index}")
        _bound(where, inputs, 128, bias, shift)
        weights = weights.astype(np.int32).reshape(dh, inputs)
        layers.append(Layer(weights, bias.astype(np.int32), multiplier, shift))
        inputs = dh
    cursor.finish()
    return Generator(code_bits, dz, tuple(layers))


def _heads(cursor: _Cursor, generator: Generator | None) -> tuple[Head, ...]:
    """Read HEAD (4.6)."""
    if cursor.empty:
        return ()
    _require(generator is not None, "HEAD: heads without a generator")
    dh = generator.layers[-1].bias.size
    count, zero = cursor.fields("BB", "header")
    _require_in("HEAD", "number of heads", count, 1, 8)
    _require(zero == 0, "HEAD: header byte 1 must be 0")
    heads = []
    for index in range(count):
        where = f"HEAD {index}"
        source, weight_bits, tile, shift, zero, multiplier = cursor.fields("BBHbBH", f"head {index}")
        _require(source == TILED, f"{where}: source {source} is not supported")
        _require(weight_bits in FIELD_WIDTHS, f"{where}: weight_bits {weight_bits} is not 4, 6 or 8")
        _require_in(where, "tile", tile, 1, 1024)
        _require(zero == 0, f"{where}: byte 5 must be 0")
        _scaling(where, multiplier, shift)
        _bound(where, dh, 128, np.zeros(1, np.int64), shift)
        weights = cursor.bits(tile * dh, weight_bits, True, f"weights of head {index}")
        heads.append(Head(weights.astype(np.int32).reshape(tile, dh), multiplier, shift))
    cursor.finish()
    return tuple(heads)


@dataclass(frozen=True)
class _LinearRecord:
    """Bytes 5..11 of a linear operator's record (4.2)."""

    source: int
    cout: int
    shift_base: int
    shift_form: int
    bias_bits: int
    head: int


class _Operators:
    """Walks OPS and consumes QUAN, WGHT and CODE along (4.2 to 4.4, 4.7)."""

    def __init__(self, payloads: dict[bytes, bytes], generator: Generator | None, heads: tuple[Head, ...]):
        self._ops = _Cursor("OPS", payloads[b"OPS "])
        self._quan = _Cursor("QUAN", payloads[b"QUAN"])
        self._wght = _Cursor("WGHT", payloads[b"WGHT"])
        self._code = _Cursor("CODE", payloads[b"CODE"])
        self._info = payloads[b"INFO"]
        self._generator = generator
        self._heads = heads
        self._generated = 0
        # What was last written to each slot: (shape, zero point), None before the first write.
        self._slots: list[tuple[tuple[int, int, int], int] | None] = [None] * SLOTS

    def read(self) -> Model:
        *shape, zero_point, count = self._ops.fields("HHHbB", "header")
        shape = tuple(shape)
        self._check_shape("OPS: input", shape)
        _require(count >= 1, "OPS: there are no operators")
        self._slots[0] = (shape, zero_point)
        operators = tuple(self._operator(index) for index in range(count))
        for cursor in (self._ops, self._quan, self._wght, self._code):
            cursor.finish()
        last = operators[-1].output_shape
        _require(last[:2] == (1, 1), f"OPS: the last output has shape {last}, must be (1, 1, classes)")
        return Model(shape, zero_point, operators, self._generator, self._heads, last[2], self._info)

    @staticmethod
    def _check_shape(where: str, shape: tuple[int, ...]) -> None:
        _require(
            all(1 <= n <= 65535 for n in shape) and shape[0] * shape[1] * shape[2] <= CELLS_MAX,
            f"{where}: shape {shape} is out of range",
        )

    def _source(self, where: str, slot: int) -> tuple[tuple[int, int, int], int]:
        _require_in(where, "input slot", slot, 0, SLOTS - 1)
        content = self._slots[slot]
        _require(content is not None, f"{where}: slot {slot} is read before it is written")
        return content

    def _operator(self, index: int) -> Operator:
        code, slots, zero_point, act_min, act_max = self._ops.fields("BBbbb", f"operator {index}")
        _require(code in KINDS, f"OPS operator {index}: kind {code} is unknown")
        kind = KINDS[code]
        where = f"OPS operator {index} ({kind})"
        _require(act_min <= act_max, f"{where}: act_min {act_min} is above act_max {act_max}")
        sources = [slots & 15]
        target = slots >> 4
        shape, source_zero_point = self._source(where, sources[0])
        zero_points = [source_zero_point]
        _require_in(where, "output slot", target, 1, SLOTS - 1)

        window = linear = addition = None
        if kind == "add":
            second, addition = self._addition(where)
            second_shape, second_zero_point = self._source(where, second)
            sources.append(second)
            zero_points.append(second_zero_point)
            _require(shape == second_shape, f"{where}: shapes {shape} and {second_shape} differ")
            output = shape
        elif kind in POOLS:
            window = self._pool(where, shape)
            _require(
                zero_point == source_zero_point,
                f"{where}: zero point {zero_point} differs from the input's {source_zero_point}",
            )
            output = (*window.output_size, shape[2])
        else:
            window, linear, output = self._linear(where, kind, shape)
        _require(target not in sources, f"{where}: slot {target} is read and written")
        self._check_shape(f"{where}: output", output)
        self._slots[target] = (output, zero_point)
        return Operator(
            kind, tuple(sources), target, shape, output, tuple(zero_points),
            zero_point, act_min, act_max, window, linear, addition,
        )  # fmt: skip

    def _addition(self, where: str) -> tuple[int, Addition]:
        second, left_shift, s1, s2, s_out, m1, m2, m_out = self._ops.fields("BBbbbHHH", where)
        _require_in(where, "left_shift", left_shift, 16, 22)
        for shift, multiplier in ((s1, m1), (s2, m2), (s_out, m_out)):
            _require_in(where, "shift", shift, SHIFT_MIN, 0)
            _require_in(where, "multiplier", multiplier, 0, MULTIPLIER_MAX)
        return second, Addition(left_shift, (m1, m2), (s1, s2), m_out, s_out)

    def _pool(self, where: str, shape: tuple[int, int, int]) -> Windows:
        zero, *fields = self._ops.fields("BHHHHBBBB", where)
        _require(zero == 0, f"{where}: byte 5 must be 0")
        size, kernel, stride, padding = (tuple(fields[i : i + 2]) for i in (0, 2, 4, 6))
        window = self._windows(where, size, kernel, stride, padding, (1, 1))
        for axis in (0, 1):
            # Windows move downwards, so if the first and the last hold a cell, all do.
            last = (size[axis] - 1) * stride[axis] - padding[axis]
            _require(
                kernel[axis] > padding[axis] and last < shape[axis],
                f"{where}: a window holds no cell of the input",
            )
        return window

    @staticmethod
    def _windows(where: str, size, kernel, stride, padding, dilation) -> Windows:
        for name, value in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
            _require(min(value) >= 1, f"{where}: {name} {value} must be at least 1")
        return Windows(size, kernel, stride, padding, dilation)

    def _linear(
        self, where: str, kind: str, shape: tuple[int, int, int]
    ) -> tuple[Windows | None, Linear, tuple[int, int, int]]:
        record = _LinearRecord(*self._ops.fields("BHbBBB", where))
        height, width, cin = shape
        cout = record.cout
        _require(cout >= 1, f"{where}: Cout must be at least 1")
        window = None
        if kind in SPATIAL:
            fields = self._ops.fields("HHBBBBBBBB", where)
            window = self._windows(where, *(tuple(fields[i : i + 2]) for i in (0, 2, 4, 6, 8)))
        if kind == "conv":
            (groups,) = self._ops.fields("H", where)
            _require(
                groups >= 1 and cin % groups == 0 and cout % groups == 0,
                f"{where}: {groups} groups do not divide {cin} and {cout} channels",
            )
            weight_shape = (cout, *window.kernel, cin // groups)
            terms = weight_shape[1] * weight_shape[2] * weight_shape[3]
        elif kind == "depthwise":
            _require(cout % cin == 0, f"{where}: Cout {cout} is not a multiple of Cin {cin}")
            weight_shape = (*window.kernel, cout)
            terms = weight_shape[0] * weight_shape[1]
        else:
            terms = cin if kind == "conv1x1" else height * width * cin
            weight_shape = (cout, terms)
        size = window.output_size if window else (height, width) if kind == "conv1x1" else (1, 1)
        return window, self._quantised(where, record, weight_shape, terms), (*size, cout)

    def _quantised(self, where: str, record: _LinearRecord, weight_shape: tuple[int, ...], terms: int) -> Linear:
        """Read an operator's parts of QUAN, WGHT and CODE."""
        shift_bits = record.shift_form & 7
        _require(shift_bits <= 5, f"{where}: shift_bits {shift_bits} is above 5")
        _require(record.shift_form & 0x78 == 0, f"{where}: reserved bits of shift_form must be 0")
        _require_in(where, "bias_bits", record.bias_bits, 0, 32)
        count = 1 if record.shift_form & 0x80 else record.cout
        multiplier = np.frombuffer(self._quan.take(2 * count, f"multipliers of {where}"), "<u2")
        shift = record.shift_base + self._quan.bits(count, shift_bits, False, f"shifts of {where}")
        bias = self._quan.bits(record.cout, record.bias_bits, True, f"biases of {where}")
        _scaling(where, int(multiplier.max()), int(shift.max()))
        _require_in(where, "shift", int(shift.min()), SHIFT_MIN, SHIFT_MAX)
        _bound(where, terms, 255, bias, int(shift.max()))
        weights, codes = self._weights(where, record, weight_shape)
        return Linear(
            weight_shape, multiplier.astype(np.int32), shift.astype(np.int32),
            bias.astype(np.int32), record.head, weights, codes,
        )  # fmt: skip

    def _weights(
        self, where: str, record: _LinearRecord, weight_shape: tuple[int, ...]
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return (weights, None) for stored8, (None, codes) for tiled (5)."""
        number = 1
        for n in weight_shape:
            number *= n
        _require(number <= CELLS_MAX, f"{where}: a kernel of {number} weights is above 2^22")
        if record.source == STORED8:
            _require(record.head == 0, f"{where}: head must be 0 for stored weights")
            self._wght.align(4)
            data = self._wght.take(number, f"weights of {where}")
            return np.frombuffer(data, np.int8).reshape(weight_shape), None
        _require(record.source == TILED, f"{where}: weight source {record.source} is not supported")
        _require(record.head < len(self._heads), f"{where}: head {record.head} does not exist")
        self._generated += 1
        _require(self._generated <= GENERATED_MAX, f"{where}: more than {GENERATED_MAX} generated operators")
        tiles = -(-number // self._heads[record.head].tile)
        generator = self._generator
        codes = self._code.bits(tiles * generator.dz, generator.code_bits, True, f"codes of {where}")
        return None, codes.astype(np.int32).reshape(tiles, generator.dz)
