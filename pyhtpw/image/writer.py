"""Integer model -> image bytes, as docs/SPEC.md section 4 defines them."""

import os
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pyhtpw.errors import ImageError
from pyhtpw.image import heads as heads_of
from pyhtpw.image.fields import SHIFTS, integers, pack_bits, put, signed_range, signed_width, whole
from pyhtpw.image.integer import (
    ATTEND_MAX,
    LINEAR,
    OPERATORS,
    PAIRS,
    POOLS,
    SOURCES,
    SPATIAL,
    TABLE,
    Codebook,
    Generated,
    Info,
    IntegerModel,
    Op,
    Requant,
    Stored,
    Tensor,
    Window,
)

FORMAT_VERSION = 2
ROUNDING = 1
SLOTS = 8
ENTRY = 16  # bytes of one row of the section table
TAGS = ("INFO", "OPS ", "QUAN", "WGHT", "GENR", "HEAD", "CODE")
CODE_WIDTHS = {0: 0, 4: 1, 6: 2, 8: 3}  # bits of codes -> bits 4..5 of the source byte
NARROW = 0x80
PER_TENSOR = 0x80
_STORED = {8: "stored8", 4: "stored4", 2: "stored2"}
_Q31 = (0, (1 << 31) - 1)
_INT8 = (-128, 127)


def assign_slots(model: IntegerModel) -> list[int]:
    """Slot of every tensor (index 0: the input), so that the arena is small.

    A tensor takes the smallest free slot that holds it; if none does, the free slot that has to grow least, or a new one.
    """
    last_use = {i: i for i in range(len(model.ops) + 1)}
    for i, op in enumerate(model.ops):
        for tensor in op.inputs:
            if not 0 <= tensor <= i:
                raise ImageError(f"operator {i} ({op.name}): reads tensor {tensor}, which no earlier operator writes")
            last_use[tensor] = max(last_use[tensor], i + 1)
    slots: list[int] = [0]
    capacity: dict[int, int] = {}
    holder: dict[int, int] = {}
    for i, op in enumerate(model.ops):
        size = op.out.size
        free = [s for s in capacity if last_use[holder[s]] < i + 1]
        fits = [s for s in free if capacity[s] >= size]
        if fits:
            slot = min(fits, key=lambda s: capacity[s])
        elif free:
            slot = max(free, key=lambda s: capacity[s])
        elif len(capacity) < SLOTS - 1:
            slot = len(capacity) + 1
        else:
            raise ImageError(f"operator {i} ({op.name}): more than {SLOTS - 1} tensors are alive at one time")
        capacity[slot] = max(capacity.get(slot, 0), size)
        holder[slot] = i + 1
        slots.append(slot)
    return slots


def multiplier_form(multipliers: np.ndarray) -> int:
    """The least form of SPEC 4.3 that holds all Q31 multipliers exactly: 1 (a byte), 0 (two) or 2 (four)."""
    m = np.asarray(multipliers, np.int64)
    if (m >= 1 << 30).all() and not (m & ((1 << 22) - 1)).any():
        return 1
    return 2 if (m & 0xFFFF).any() else 0


PACK_MULTIPLIERS = {
    0: lambda m: (m >> 16).astype("<u2").tobytes(),
    1: lambda m: ((m >> 22) - 256).astype(np.uint8).tobytes(),
    2: lambda m: m.astype("<u4").tobytes(),
}


def _quan(where: str, requant: Requant, channels: int) -> tuple[bytes, tuple[int, int, int]]:
    """QUAN bytes of one operator, and its shift_base, form and bias_bits."""
    if not isinstance(requant, Requant):
        raise ImageError(f"{where}: has no requantisation")
    biases = integers(where, "biases", requant.biases, (channels,), *signed_range(32))
    multipliers = integers(where, "multipliers", requant.multipliers, (None,), *_Q31)
    if len(multipliers) not in (1, channels):
        raise ImageError(f"{where}: {len(multipliers)} multipliers for {channels} channels")
    shifts = integers(where, "shifts", requant.shifts, (len(multipliers),), *SHIFTS)
    base = int(shifts.min())
    shift_bits = int(shifts.max() - base).bit_length()
    if shift_bits > 5:
        raise ImageError(f"{where}: shifts {base}..{shifts.max()} are more than 31 apart")
    bias_bits, form = signed_width(biases), multiplier_form(multipliers)
    per_tensor = PER_TENSOR if len(multipliers) == 1 else 0
    data = PACK_MULTIPLIERS[form](multipliers) + pack_bits(shifts - base, shift_bits) + pack_bits(biases, bias_bits)
    return data, (base, per_tensor | form << 3 | shift_bits, bias_bits)


def weight_shape(kind: str, x: Tensor, out: Tensor, window: Window | None) -> tuple[int, ...]:
    """Shape of an operator's weights (SPEC section 1)."""
    if kind in SPATIAL:
        if window is None:
            raise ImageError(f"a {kind} without a window has no shape of weights")
        return (out.c, *window.kernel, x.c // window.groups) if kind == "conv" else (*window.kernel, out.c)
    return (out.c, x.size if kind == "fc" else x.c)


def _stored(where: str, weights: Stored, shape: tuple[int, ...]) -> tuple[str, int, int, bytes]:
    """Source, code width, head and WGHT bytes (without the gap) of a stored kernel."""
    bits = heads_of.one_of(where, "bits of the stored weights", weights.bits, tuple(_STORED))
    if weights.narrow and bits == 8:
        raise ImageError(f"{where}: weights stored at 8 bits cannot be narrow")
    values = integers(where, "weights", weights.values, shape, *signed_range(bits))
    return _STORED[bits], 0, 0, pack_bits(values, bits)


def _generated(where: str, weights: Generated, shape: tuple[int, ...], model: IntegerModel) -> tuple[str, int, int, bytes]:
    """Source, code width, head and CODE bytes of a generated kernel."""
    if tuple(weights.shape) != shape:
        raise ImageError(f"{where}: the generated kernel has shape {tuple(weights.shape)}, the operator needs {shape}")
    if not 0 <= weights.head < len(model.heads):
        raise ImageError(f"{where}: head is {weights.head}, there are {len(model.heads)}")
    head = model.heads[weights.head]
    source = heads_of.kind_of(head).name
    tiles = heads_of.tiles(where, head, model.heads, int(np.prod(shape, dtype=np.int64)))
    _, bits = heads_of.code_field(head, model.generators, weights.bits)
    if isinstance(head, Codebook):
        if weights.bits:
            raise ImageError(f"{where}: bits of a codebook's ids are {weights.bits}, must be 0")
        if weights.narrow and head.of is None and head.bits > 4:
            raise ImageError(f"{where}: cannot be narrow, the codebook's table has {head.bits} bits")
        codes = integers(where, "ids", weights.codes, (tiles,), 0, len(head.entries) - 1)
    else:
        heads_of.one_of(where, "bits of the codes", weights.bits, heads_of.FIELD_WIDTHS)
        dz = heads_of.dz(head, model.generators)
        codes = integers(where, "codes", weights.codes, (tiles, dz), *signed_range(bits))
    return source, CODE_WIDTHS[weights.bits], weights.head, pack_bits(codes, bits)


Field = tuple[Any, ...]  # struct code, name, value, and its limits if they are not those of the code: `fields.put`


def _record(where: str, op: Op, used: list[int], target: int, linear: tuple[int, ...]) -> bytes:
    """The operator's record in OPS; `linear` holds source byte, shift_base, form, bias_bits and head."""
    kind, size = OPERATORS[op.kind]
    out, w = op.out, op.window
    fields: list[Field] = [
        ("B", "kind", kind),
        ("B", "slots", used[0] | target << 4),
        ("b", "zero point", out.zero_point),
        ("b", "act_min", op.act_min, -128, whole(where, "act_max", op.act_max, *_INT8)),
        ("b", "act_max", op.act_max),
    ]
    dimensions = [("H", "output height", out.h, 1, 65535), ("H", "output width", out.w, 1, 65535)]

    def pair(name: str, values: tuple[int, int], low: int, code: str = "B", high: int = 255) -> list[Field]:
        return [(code, f"{name} {values}", v, low, high) for v in values]

    if op.kind in LINEAR:
        source, base, form, bias_bits, head = linear
        fields += [("B", "source", source), ("H", "Cout", out.c, 1, 65535), ("b", "shift_base", base)]
        fields += [("B", "form", form), ("B", "bias_bits", bias_bits), ("B", "head", head)]
    if op.kind in SPATIAL and w is not None:
        fields += dimensions + pair("kernel", w.kernel, 1) + pair("stride", w.stride, 1)
        fields += pair("padding", w.padding, 0) + pair("dilation", w.dilation, 1)
        fields += [("H", "groups", w.groups, 1, 65535)] if op.kind == "conv" else []
    elif op.kind == "add" and op.add is not None:
        fields += [("B", "second slot", used[1]), ("B", "left_shift", op.add.left_shift, 16, 22)]
        fields += [("b", "shift of an add", s, -31, 0) for s in op.add.shifts]
        fields += [("I", "multiplier of an add", m, *_Q31) for m in op.add.multipliers]
    elif op.kind == "mul" and op.mul is not None:
        fields += [("B", "second slot", used[1]), ("b", "shift of a mul", op.mul.shift, -31, 14)]
        fields += [("I", "multiplier of a mul", op.mul.multiplier, *_Q31)]
    elif op.kind == "attend" and op.attend is not None:
        s = op.attend
        most = min(255, _Q31[1] >> whole(where, "softmax_shift", s.softmax_shift, 0, 30))  # shifted, it must fit int32
        fields += [("B", "second slot", used[1]), ("B", "softmax_shift", s.softmax_shift)]
        fields += [("B", "softmax_range", s.softmax_range, 0, most), ("b", "shift of an attend", s.shift, -31, 5)]
        fields += [("I", "softmax_multiplier", s.softmax_multiplier, *_Q31), ("I", "multiplier of an attend", s.multiplier, *_Q31)]
    elif op.kind in POOLS and w is not None:
        fields += [("B", "reserved", 0), *dimensions, *pair("window", w.kernel, 1, "H", 65535)]
        fields += pair("stride", w.stride, 1) + pair("padding", w.padding, 0)
    record = put(where, *fields)
    if len(record) != size:
        raise ImageError(f"{where}: the record of {op.kind} has {len(record)} bytes, must have {size}: fields are missing")
    return record


def _shapes(where: str, op: Op, inputs: list[Tensor]) -> None:
    """Refuses what a record cannot say: a shape that a reader would derive differently."""
    x, out, window = inputs[0], op.out, op.window
    if len(inputs) != (2 if op.kind in PAIRS else 1):
        raise ImageError(f"{where}: reads {len(inputs)} tensors")
    if (op.kind in SPATIAL or op.kind in POOLS) and window is None:
        raise ImageError(f"{where}: has no window")
    if op.kind in PAIRS and getattr(op, op.kind) is None:
        raise ImageError(f"{where}: has no scalars")
    same = (x.h, x.w, x.c)
    derived = {"fc": (1, 1, out.c), "conv1x1": (x.h, x.w, out.c), "attend": (1, 1, x.c)}.get(op.kind)
    if op.kind in ("add", "mul", "table"):
        derived = same
    if op.kind in POOLS:
        derived = (out.h, out.w, x.c)
    if op.kind in PAIRS:
        second = (inputs[1].h, inputs[1].w, inputs[1].c)
        fit = {"add": [same], "mul": [same, (1, 1, x.c)], "attend": [(x.h, x.w, 1)]}[op.kind]
        if second not in fit:
            raise ImageError(f"{where}: the second input has shape {second}, must be {' or '.join(map(str, fit))}")
    if op.kind == "attend" and x.h * x.w > ATTEND_MAX:
        raise ImageError(f"{where}: {x.h * x.w} positions are more than {ATTEND_MAX}")
    if derived is not None and derived != (out.h, out.w, out.c):
        raise ImageError(f"{where}: the output has shape {(out.h, out.w, out.c)}, must be {derived}")
    if window is None:
        return
    if op.kind == "conv" and (window.groups < 1 or x.c % window.groups or out.c % window.groups):
        raise ImageError(f"{where}: groups are {window.groups}, which does not divide {x.c} and {out.c} channels")
    if op.kind == "depthwise" and (window.groups != 1 or out.c % x.c):
        raise ImageError(f"{where}: {out.c} channels are no multiple of {x.c}, or groups ({window.groups}) are given")


def _info(info: Info | None) -> bytes:
    if info is None:
        return b""
    names = (info.name, *info.classes)
    if any("\n" in name for name in names):
        raise ImageError("INFO: a name holds a line feed, which separates names")
    try:
        numbers = struct.pack("<4f", info.input_scale, info.logit_scale, info.threshold, info.sample_rate)
        return numbers + "\n".join(names).encode()
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        raise ImageError(f"INFO: {error}") from error


def write(model: IntegerModel) -> bytes:
    """The image of an integer model.

    Multipliers, shifts and biases take the narrowest of the forms that the format has for them; nothing is rounded.

    Raises
    ------
    ImageError
        If a value does not fit its field or contradicts another; the message names the operator and the value. What
        the fields allow but the SPEC forbids (sums that may overflow, say) is found by opening the result, which every
        caller does.
    """
    slots = assign_slots(model)
    tensors = (model.input, *(op.out for op in model.ops))
    payload = {tag: bytearray() for tag in TAGS}
    payload["INFO"] += _info(model.info)
    payload["GENR"] += b"".join(heads_of.write_generators(model.generators))
    payload["HEAD"] += b"".join(heads_of.write_heads(model.heads, model.generators))
    t = model.input
    payload["OPS "] += put(
        "input",
        ("H", "height", t.h, 1, 65535),
        ("H", "width", t.w, 1, 65535),
        ("H", "channels", t.c, 1, 65535),
        ("b", "zero point", t.zero_point, *_INT8),
        ("B", "number of operators", len(model.ops), 1, 255),
    )
    for i, op in enumerate(model.ops):
        where = f"operator {i} ({op.name})"
        if op.kind not in OPERATORS:
            raise ImageError(f"{where}: kind {op.kind!r} is unknown")
        inputs = [tensors[n] for n in op.inputs]
        _shapes(where, op, inputs)
        linear: tuple[int, ...] = ()
        if op.kind in LINEAR:
            if op.requant is None:
                raise ImageError(f"{where}: has no requantisation")
            data, quant = _quan(where, op.requant, op.out.c)
            shape = weight_shape(op.kind, inputs[0], op.out, op.window)
            if isinstance(op.weights, Stored):
                source, width, head, kernel = _stored(where, op.weights, shape)
                if source == "stored8":
                    payload["WGHT"] += bytes(-len(payload["WGHT"]) % 4)
                payload["WGHT"] += kernel
            elif isinstance(op.weights, Generated):
                source, width, head, kernel = _generated(where, op.weights, shape, model)
                payload["CODE"] += kernel
            else:
                raise ImageError(f"{where}: weights are a {type(op.weights).__name__}, neither Stored nor Generated")
            payload["QUAN"] += data
            linear = (SOURCES[source] | width << 4 | (NARROW if op.weights.narrow else 0), *quant, head)
        if op.kind == "table":
            if op.table is None:
                raise ImageError(f"{where}: has no table")
            payload["WGHT"] += bytes(-len(payload["WGHT"]) % 4)
            payload["WGHT"] += integers(where, "table", op.table, (TABLE,), *_INT8).astype(np.int8).tobytes()
        payload["OPS "] += _record(where, op, [slots[n] for n in op.inputs], slots[i + 1], linear)
    return assemble({tag: bytes(data) for tag, data in payload.items()})


def assemble(payload: dict[str, bytes]) -> bytes:
    """The file around payloads (SPEC section 4): header, section table, checksums, padding. Empty sections are left out."""
    present = [tag for tag in TAGS if payload.get(tag)]
    offset = 16 + ENTRY * len(present)
    table, body = b"", bytearray()
    for tag in present:
        data = payload[tag]
        table += struct.pack("<4sIII", tag.encode(), offset, len(data), zlib.crc32(data))
        body += data + bytes(-len(data) % 16)
        offset += len(data) + -len(data) % 16
        if offset > 1 << 27:
            raise ImageError(f"the image takes more than 2^27 bytes: {offset} with section {tag}")
    head = struct.pack("<4sBBBBI", b"HTPW", FORMAT_VERSION, ROUNDING, len(present), 0, offset)
    return head + struct.pack("<I", zlib.crc32(head + table)) + table + bytes(body)


def replace_file(path: Path, data: bytes) -> None:
    """Writes bytes to `path` by way of a temporary file of this thread's own, so that a half-written file never carries the name.

    Makes the folder if need be. Raises OSError, and ValueError for a path without a name.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(data: bytes, path: str | os.PathLike[str]) -> None:
    """Writes bytes to `path`, all or nothing (`replace_file`); ImageError if that cannot be done."""
    path = Path(path)
    try:
        replace_file(path, data)
    except OSError as error:
        raise ImageError(f"{path}: cannot write: {error.strerror}; choose a folder that you may write to") from error
