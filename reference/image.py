"""Read and validate a model image: bytes in, a tree of frozen dataclasses out.

Every "must" of the specification is checked before anything is returned; an image that breaks one
is refused whole with one line saying where. Multipliers, biases, codes and weights come back
unpacked, so that nothing after this module deals with bytes. The file around the payloads is read
by ``sections``, generators and heads by ``heads``; this module walks the operators.

Source: sections 1, 2 and 4 to 7 of the specification; comments give the number of the rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from .heads import (
    HEADS,
    MULTIPLIER_MAX,
    SHIFT_MAX,
    SHIFT_MIN,
    Generator,
    Head,
    read_generators,
    read_heads,
    require_bound,
)
from .sections import Cursor, ImageError, require, require_in, sections

__all__ = [
    "Addition",
    "Attention",
    "ImageError",
    "Linear",
    "Model",
    "Operator",
    "Product",
    "Windows",
    "read",
    "read_payloads",
]

CELLS_MAX = 1 << 22  # elements of a tensor, weights of a kernel
CACHED_MAX = 64
SLOTS = 8
Q31_MAX = (1 << 31) - 1

STORED8, STORED4, STORED2 = 0, 1, 2
STORED_WIDTHS = {STORED8: 8, STORED4: 4, STORED2: 2}
CODE_WIDTHS = (0, 4, 6, 8)  # by bits 4..5 of the source byte
KINDS = {
    1: "conv", 2: "depthwise", 3: "conv1x1", 4: "fc", 5: "add",
    6: "avgpool", 7: "maxpool", 8: "table", 9: "mul", 10: "attend",
}  # fmt: skip
POOLS = ("avgpool", "maxpool")
SPATIAL = ("conv", "depthwise")
# Largest left shifts for which section 7 holds: 255 * 255 << 14 and 511 * 255 * 255 << 5.
PRODUCT_SHIFT_MAX = 14
ATTENTION_SHIFT_MAX = 5
POSITIONS_MAX = 511
SOFTMAX_SHIFT_MAX = 30


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

    ``multiplier`` is int32 (1,) or (Cout,), the Q31 multiplier in [0, 2^31 - 1]; ``shift`` is int32
    of the same length, in [-31, 30]; ``bias`` is int32 (Cout,). Of ``weights`` (int8 in
    ``weight_shape``) and ``codes`` (int32 as ``head`` reads them) exactly one is present.
    ``narrow`` and ``cached`` are those of section 5. ``quan_part`` and ``code_part`` tell which
    bytes of QUAN and CODE belong to the operator; a code pack replaces those.
    """

    weight_shape: tuple[int, ...]
    multiplier: np.ndarray
    shift: np.ndarray
    bias: np.ndarray
    narrow: bool
    cached: bool
    weights: np.ndarray | None
    head: Head | None
    codes: np.ndarray | None
    quan_part: slice
    code_part: slice | None


@dataclass(frozen=True)
class Addition:
    """Scalars of an add; Q31 multipliers as in ``Linear``, shifts in [-31, 0]."""

    left_shift: int
    multipliers: tuple[int, int]
    shifts: tuple[int, int]
    out_multiplier: int
    out_shift: int


@dataclass(frozen=True)
class Product:
    """Scalars of a mul; Q31 multiplier, shift in [-31, 14]."""

    multiplier: int
    shift: int


@dataclass(frozen=True)
class Attention:
    """Scalars of an attend: those of its softmax, then the output's, with a shift in [-31, 5].

    ``reach`` is how far below the greatest score others still count.
    """

    softmax_multiplier: int
    softmax_shift: int
    reach: int
    multiplier: int
    shift: int


@dataclass(frozen=True, eq=False)
class Operator:
    """One instruction: reads ``sources`` slots, writes ``target``.

    Shapes are (H, W, C). ``zero_points`` belong to the sources, in order. ``windows`` is None but
    for convolutions with a kernel and pools, ``linear`` None for operators without weights,
    ``scalars`` None for all but add, mul and attend, ``table`` (int8 (256,)) for all but table.
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
    scalars: Addition | Product | Attention | None
    table: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Model:
    """A validated image.

    ``input_shape`` is (H, W, C) with zero point ``input_zero_point``; ``classes`` is the number of
    logits; ``info`` is the payload of INFO as it is, for a host to interpret.
    """

    input_shape: tuple[int, int, int]
    input_zero_point: int
    operators: tuple[Operator, ...]
    generators: tuple[Generator, ...]
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
    return read_payloads(sections(bytes(memoryview(data))))


def read_payloads(payloads: dict[bytes, bytes]) -> Model:
    """As ``read``, from the payloads of all sections, tag to bytes, absent ones empty."""
    generators = read_generators(Cursor("GENR", payloads[b"GENR"]))
    heads = read_heads(Cursor("HEAD", payloads[b"HEAD"]), generators)
    return _Operators(payloads, generators, heads).read()


# Multipliers of QUAN by their form: layout of one, largest stored value, and the Q31 multiplier.
FORMS: dict[int, tuple[str, int, Callable]] = {
    0: ("<u2", MULTIPLIER_MAX, lambda stored: stored << 16),
    1: ("<u1", 255, lambda stored: (256 + stored) << 22),
    2: ("<u4", Q31_MAX, lambda stored: stored),
}


@dataclass(frozen=True)
class _LinearRecord:
    """Bytes 5..11 of a linear operator's record (4.2)."""

    source_byte: int
    cout: int
    shift_base: int
    form_byte: int
    bias_bits: int
    head: int

    @property
    def source(self) -> int:
        return self.source_byte & 15

    @property
    def code_width(self) -> int:
        return CODE_WIDTHS[self.source_byte >> 4 & 3]

    @property
    def narrow(self) -> bool:
        return bool(self.source_byte & 0x80)

    @property
    def shift_bits(self) -> int:
        return self.form_byte & 7

    @property
    def form(self) -> int:
        return self.form_byte >> 3 & 3

    @property
    def per_tensor(self) -> bool:
        return bool(self.form_byte & 0x80)


class _Operators:
    """Walks OPS and consumes QUAN, WGHT and CODE along (4.2 to 4.4, 4.7)."""

    def __init__(self, payloads: dict[bytes, bytes], generators: tuple[Generator, ...], heads: tuple[Head, ...]):
        self._ops = Cursor("OPS", payloads[b"OPS "])
        self._quan = Cursor("QUAN", payloads[b"QUAN"])
        self._wght = Cursor("WGHT", payloads[b"WGHT"])
        self._code = Cursor("CODE", payloads[b"CODE"])
        self._info = payloads[b"INFO"]
        self._generators = generators
        self._heads = heads
        self._cached = 0
        # What was last written to each slot: (shape, zero point), None before the first write.
        self._slots: list[tuple[tuple[int, int, int], int] | None] = [None] * SLOTS

    def read(self) -> Model:
        *shape, zero_point, count = self._ops.fields("HHHbB", "header")
        shape = tuple(shape)
        self._check_shape("OPS: input", shape)
        require(count >= 1, "OPS: there are no operators")
        self._slots[0] = (shape, zero_point)
        operators = tuple(self._operator(index) for index in range(count))
        for cursor in (self._ops, self._quan, self._wght, self._code):
            cursor.finish()
        last = operators[-1].output_shape
        require(last[:2] == (1, 1), f"OPS: the last output has shape {last}, must be (1, 1, classes)")
        return Model(shape, zero_point, operators, self._generators, self._heads, last[2], self._info)

    @staticmethod
    def _check_shape(where: str, shape: tuple[int, ...]) -> None:
        require(
            all(1 <= n <= 65535 for n in shape) and shape[0] * shape[1] * shape[2] <= CELLS_MAX,
            f"{where}: shape {shape} is out of range",
        )

    def _source(self, where: str, slot: int) -> tuple[tuple[int, int, int], int]:
        require_in(where, "input slot", slot, 0, SLOTS - 1)
        content = self._slots[slot]
        require(content is not None, f"{where}: slot {slot} is read before it is written")
        return content

    def _operator(self, index: int) -> Operator:
        code, slots, zero_point, act_min, act_max = self._ops.fields("BBbbb", f"operator {index}")
        require(code in KINDS, f"OPS operator {index}: kind {code} is unknown")
        kind = KINDS[code]
        where = f"OPS operator {index} ({kind})"
        require(act_min <= act_max, f"{where}: act_min {act_min} is above act_max {act_max}")
        sources = [slots & 15]
        target = slots >> 4
        shape, source_zero_point = self._source(where, sources[0])
        zero_points = [source_zero_point]
        require_in(where, "output slot", target, 1, SLOTS - 1)

        window = linear = scalars = table = None
        if kind in PAIRS:
            (second,) = self._ops.fields("B", where)
            second_shape, second_zero_point = self._source(where, second)
            sources.append(second)
            zero_points.append(second_zero_point)
            scalars, output = PAIRS[kind](self, where, shape, second_shape)
        elif kind == "table":
            self._wght.align(4)
            table = self._wght.array(256, "<i1", f"table of {where}").astype(np.int8)
            output = shape
        elif kind in POOLS:
            window = self._pool(where, shape)
            require(
                zero_point == source_zero_point,
                f"{where}: zero point {zero_point} differs from the input's {source_zero_point}",
            )
            output = (*window.output_size, shape[2])
        else:
            window, linear, output = self._linear(where, kind, shape)
        require(target not in sources, f"{where}: slot {target} is read and written")
        self._check_shape(f"{where}: output", output)
        self._slots[target] = (output, zero_point)
        return Operator(
            kind, tuple(sources), target, shape, output, tuple(zero_points),
            zero_point, act_min, act_max, window, linear, scalars, table,
        )  # fmt: skip

    # Each of the next three reads what follows the second slot, and returns it with the output's shape.

    def _addition(self, where: str, shape: tuple, second: tuple) -> tuple[Addition, tuple]:
        require(shape == second, f"{where}: shapes {shape} and {second} differ")
        left_shift, s1, s2, s_out, m1, m2, m_out = self._ops.fields("BbbbIII", where)
        require_in(where, "left_shift", left_shift, 16, 22)
        for shift, multiplier in ((s1, m1), (s2, m2), (s_out, m_out)):
            require_in(where, "shift", shift, SHIFT_MIN, 0)
            require_in(where, "multiplier", multiplier, 0, Q31_MAX)
        return Addition(left_shift, (m1, m2), (s1, s2), m_out, s_out), shape

    def _product(self, where: str, shape: tuple, second: tuple) -> tuple[Product, tuple]:
        require(second in (shape, (1, 1, shape[2])), f"{where}: shapes {shape} and {second} do not fit")
        shift, multiplier = self._ops.fields("bI", where)
        require_in(where, "shift", shift, SHIFT_MIN, PRODUCT_SHIFT_MAX)
        require_in(where, "multiplier", multiplier, 0, Q31_MAX)
        return Product(multiplier, shift), shape

    def _attention(self, where: str, shape: tuple, second: tuple) -> tuple[Attention, tuple]:
        height, width, channels = shape
        require(second == (height, width, 1), f"{where}: scores have shape {second}, must be {(height, width, 1)}")
        require_in(where, "number of positions", height * width, 1, POSITIONS_MAX)
        softmax_shift, reach, shift, softmax_multiplier, multiplier = self._ops.fields("BBbII", where)
        require_in(where, "softmax shift", softmax_shift, 0, SOFTMAX_SHIFT_MAX)
        require(
            reach << softmax_shift <= Q31_MAX,
            f"{where}: a softmax range of {reach} << {softmax_shift} leaves int32",
        )
        require_in(where, "shift", shift, SHIFT_MIN, ATTENTION_SHIFT_MAX)
        for value in (softmax_multiplier, multiplier):
            require_in(where, "multiplier", value, 0, Q31_MAX)
        return Attention(softmax_multiplier, softmax_shift, reach, multiplier, shift), (1, 1, channels)

    def _pool(self, where: str, shape: tuple[int, int, int]) -> Windows:
        zero, *fields = self._ops.fields("BHHHHBBBB", where)
        require(zero == 0, f"{where}: byte 5 must be 0")
        size, kernel, stride, padding = (tuple(fields[i : i + 2]) for i in (0, 2, 4, 6))
        window = self._windows(where, size, kernel, stride, padding, (1, 1))
        for axis in (0, 1):
            # Windows move downwards, so if the first and the last hold a cell, all do.
            last = (size[axis] - 1) * stride[axis] - padding[axis]
            require(
                kernel[axis] > padding[axis] and last < shape[axis],
                f"{where}: a window holds no cell of the input",
            )
        return window

    @staticmethod
    def _windows(where: str, size, kernel, stride, padding, dilation) -> Windows:
        for name, value in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
            require(min(value) >= 1, f"{where}: {name} {value} must be at least 1")
        return Windows(size, kernel, stride, padding, dilation)

    def _linear(
        self, where: str, kind: str, shape: tuple[int, int, int]
    ) -> tuple[Windows | None, Linear, tuple[int, int, int]]:
        record = _LinearRecord(*self._ops.fields("BHbBBB", where))
        height, width, cin = shape
        cout = record.cout
        require(cout >= 1, f"{where}: Cout must be at least 1")
        window = None
        if kind in SPATIAL:
            fields = self._ops.fields("HHBBBBBBBB", where)
            window = self._windows(where, *(tuple(fields[i : i + 2]) for i in (0, 2, 4, 6, 8)))
        if kind == "conv":
            (groups,) = self._ops.fields("H", where)
            require(
                groups >= 1 and cin % groups == 0 and cout % groups == 0,
                f"{where}: {groups} groups do not divide {cin} and {cout} channels",
            )
            weight_shape = (cout, *window.kernel, cin // groups)
            terms = weight_shape[1] * weight_shape[2] * weight_shape[3]
        elif kind == "depthwise":
            require(cout % cin == 0, f"{where}: Cout {cout} is not a multiple of Cin {cin}")
            weight_shape = (*window.kernel, cout)
            terms = weight_shape[0] * weight_shape[1]
        else:
            terms = cin if kind == "conv1x1" else height * width * cin
            weight_shape = (cout, terms)
        size = window.output_size if window else (height, width) if kind == "conv1x1" else (1, 1)
        return window, self._quantised(where, record, weight_shape, terms), (*size, cout)

    def _quantised(self, where: str, record: _LinearRecord, weight_shape: tuple[int, ...], terms: int) -> Linear:
        """Read an operator's parts of QUAN, WGHT and CODE."""
        number = prod(weight_shape)
        require(number <= CELLS_MAX, f"{where}: a kernel of {number} weights is above 2^22")
        start = self._quan.position
        multiplier, shift, bias = self._scales(where, record, terms)
        quan_part = slice(start, self._quan.position)
        head = self._head(where, record, number)
        weights = codes = code_part = None
        if head is None:
            weights = self._stored(where, record.source, weight_shape)
        else:
            start = self._code.position
            codes = head.read_codes(self._code, head.tiles(number), record.code_width, f"codes of {where}")
            code_part = slice(start, self._code.position)
        cached = record.source != STORED8 and not (record.source == STORED4 and record.narrow)
        self._cached += cached
        require(self._cached <= CACHED_MAX, f"{where}: more than {CACHED_MAX} cached operators")
        return Linear(
            weight_shape, multiplier, shift, bias, record.narrow, cached,
            weights, head, codes, quan_part, code_part,
        )  # fmt: skip

    def _scales(self, where: str, record: _LinearRecord, terms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return Q31 multipliers, shifts and biases, int32 each (4.3)."""
        require(record.shift_bits <= 5, f"{where}: shift_bits {record.shift_bits} is above 5")
        require(record.form in FORMS, f"{where}: multiplier form {record.form} is unknown")
        require(record.form_byte & 0x60 == 0, f"{where}: reserved bits of the form must be 0")
        require_in(where, "bias_bits", record.bias_bits, 0, 32)
        count = 1 if record.per_tensor else record.cout
        layout, largest, q31 = FORMS[record.form]
        stored = self._quan.array(count, layout, f"multipliers of {where}")
        require_in(where, "multiplier", int(stored.max()), 0, largest)
        shift = record.shift_base + self._quan.bits(count, record.shift_bits, False, f"shifts of {where}")
        bias = self._quan.bits(record.cout, record.bias_bits, True, f"biases of {where}")
        for extreme in (int(shift.min()), int(shift.max())):
            require_in(where, "shift", extreme, SHIFT_MIN, SHIFT_MAX)
        require_bound(where, terms, 255, int(np.abs(bias).max()), int(shift.max()))
        return q31(stored).astype(np.int32), shift.astype(np.int32), bias.astype(np.int32)

    def _head(self, where: str, record: _LinearRecord, number: int) -> Head | None:
        """Return the head of an operator with ``number`` weights, None for stored weights (5)."""
        require(record.source_byte & 0x40 == 0, f"{where}: bit 6 of the source must be 0")
        if record.source in STORED_WIDTHS:
            require(record.head == 0, f"{where}: head must be 0 for stored weights")
            require(record.code_width == 0, f"{where}: stored weights have no codes, of {record.code_width} bits")
            require(record.source != STORED8 or not record.narrow, f"{where}: stored8 cannot be narrow")
            return None
        require(record.source in HEADS, f"{where}: weight source {record.source} is unknown")
        require(record.head < len(self._heads), f"{where}: head {record.head} does not exist")
        head = self._heads[record.head]
        name = HEADS[record.source].name
        require(type(head) is HEADS[record.source], f"{where}: source is {name}, head {record.head} is {head.name}")
        require(not head.coded or record.code_width, f"{where}: the width of the codes is missing")
        require(head.coded or not record.code_width, f"{where}: the width of the codes must be 0 for a {name} head")
        require(head.may_be_narrow or not record.narrow, f"{where}: head {record.head} cannot be narrow")
        require(
            not head.whole or head.rows == number,
            f"{where}: head {record.head} makes {head.rows} weights, the kernel has {number}",
        )
        return head

    def _stored(self, where: str, source: int, weight_shape: tuple[int, ...]) -> np.ndarray:
        """Return stored weights, int8 in ``weight_shape`` (4.4)."""
        number, what = prod(weight_shape), f"weights of {where}"
        if source == STORED8:
            self._wght.align(4)
            weights = self._wght.array(number, "<i1", what)
        else:
            weights = self._wght.bits(number, STORED_WIDTHS[source], True, what)
        return weights.astype(np.int8).reshape(weight_shape)


# What reads the records of operators with two inputs.
PAIRS: dict[str, Callable] = {
    "add": _Operators._addition,
    "mul": _Operators._product,
    "attend": _Operators._attention,
}
