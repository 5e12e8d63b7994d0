"""Integer model -> image bytes, as docs/SPEC.md section 4 defines them."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np

from pyhtpw.errors import ImageError
from pyhtpw.image.integer import LINEAR, OPERATORS, POOLS, SOURCES, SPATIAL, IntegerModel, Layer, Op, Requant, Stored, Tiled

FORMAT_VERSION = 1
ROUNDING = 1
SLOTS = 8
TAGS = ("INFO", "OPS ", "QUAN", "WGHT", "GENR", "HEAD", "CODE")


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """Packs integers into fields of `bits` bits, least significant first; raises ImageError if one does not fit."""
    values = np.asarray(values, np.int64).ravel()
    if bits == 0:
        if values.any():
            raise ImageError("values that are not 0 cannot be packed into 0 bits")
        return b""
    if values.size and (values.min() < -(1 << (bits - 1)) or values.max() >= (1 << bits)):
        raise ImageError(f"values {values.min()}..{values.max()} do not fit fields of {bits} bits")
    planes = (values[:, None] >> np.arange(bits)) & 1
    return np.packbits(planes.astype(np.uint8).ravel(), bitorder="little").tobytes()


def signed_width(values: np.ndarray) -> int:
    """Least width in bits that holds all signed values; 0 if all are 0."""
    values = np.asarray(values, np.int64).ravel()
    if not values.any():
        return 0
    return max(int(v if v >= 0 else ~v).bit_length() + 1 for v in (values.min(), values.max()))


def assign_slots(model: IntegerModel) -> list[int]:
    """Slot of every tensor (index 0: the input), so that the arena is small.

    A tensor takes the smallest free slot that holds it; if none does, the free slot that has to grow least, or a new one.
    """
    last_use = {i: i for i in range(len(model.ops) + 1)}
    for i, op in enumerate(model.ops):
        for tensor in op.inputs:
            last_use[tensor] = max(last_use[tensor], i + 1)
    slots, capacity, holder = [0], {}, {}
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
            raise ImageError(f"operator {op.name}: more than {SLOTS - 1} tensors are alive at one time")
        capacity[slot] = max(capacity.get(slot, 0), size)
        holder[slot] = i + 1
        slots.append(slot)
    return slots


def _quan(requant: Requant) -> tuple[bytes, int, int, int]:
    """QUAN bytes of one operator, and its shift_base, shift_form and bias_bits."""
    base = int(requant.shifts.min())
    shift_bits = int(requant.shifts.max() - base).bit_length()
    if shift_bits > 5:
        raise ImageError(f"shifts {base}..{requant.shifts.max()} of one operator are more than 31 apart")
    bias_bits = signed_width(requant.biases)
    per_tensor = 0x80 if len(requant.multipliers) == 1 else 0
    data = requant.multipliers.astype("<u2").tobytes()
    data += pack_bits(requant.shifts - base, shift_bits) + pack_bits(requant.biases, bias_bits)
    return data, base, per_tensor | shift_bits, bias_bits


def _record(op: Op, slots: list[int], index: int, quant: tuple[int, int, int]) -> bytes:
    """The operator's record in OPS."""
    kind, size = OPERATORS[op.kind]
    out = op.out
    used = [slots[i] for i in op.inputs]
    record = struct.pack("<BBbbb", kind, used[0] | slots[index + 1] << 4, out.zero_point, op.act_min, op.act_max)
    if op.kind in LINEAR:
        source = "stored8" if isinstance(op.weights, Stored) else "tiled"
        head = op.weights.head if isinstance(op.weights, Tiled) else 0
        record += struct.pack("<BHbBBB", SOURCES[source], out.c, *quant, head)
    if op.kind in SPATIAL:
        w = op.window
        record += struct.pack("<HH8B", out.h, out.w, *w.kernel, *w.stride, *w.padding, *w.dilation)
        record += struct.pack("<H", w.groups) if op.kind == "conv" else b""
    elif op.kind == "add":
        record += struct.pack("<BB3b3H", used[1], op.add.left_shift, *op.add.shifts, *op.add.multipliers)
    elif op.kind in POOLS:
        w = op.window
        record += struct.pack("<BHHHH4B", 0, out.h, out.w, *w.kernel, *w.stride, *w.padding)
    if len(record) != size:
        raise AssertionError(f"record of {op.kind} has {len(record)} bytes, the table says {size}")
    return record


def _layer(prefix: bytes, layer: Layer, with_bias: bool) -> bytes:
    """A generator layer (dh, weight_bits, bias_bits, shift, m) or what follows a head's own fields."""
    data = prefix + pack_bits(layer.weights, layer.bits)
    return data + (pack_bits(layer.biases, signed_width(layer.biases)) if with_bias else b"")


def _generator(model: IntegerModel) -> bytes:
    if not model.generator:
        return b""
    dz = model.generator[0].weights.shape[1]
    data = struct.pack("<BBBB", len(model.generator), model.code_bits, dz, 0)
    for layer in model.generator:
        width = signed_width(layer.biases)
        fields = struct.pack("<BBBbH", len(layer.weights), layer.bits, width, layer.shift, layer.multiplier)
        data += _layer(fields, layer, with_bias=True)
    return data


def _heads(model: IntegerModel) -> bytes:
    if not model.heads:
        return b""
    data = struct.pack("<BB", len(model.heads), 0)
    for head in model.heads:
        fields = (SOURCES["tiled"], head.bits, len(head.weights), head.shift, 0, head.multiplier)
        data += _layer(struct.pack("<BBHbBH", *fields), head, with_bias=False)
    return data


def _info(model: IntegerModel) -> bytes:
    if model.info is None:
        return b""
    info = model.info
    numbers = struct.pack("<4f", info.input_scale, info.logit_scale, info.threshold, info.sample_rate)
    return numbers + "\n".join((info.name, *info.classes)).encode()


def write(model: IntegerModel) -> bytes:
    """The image of an integer model.

    Raises
    ------
    ImageError
        If a value does not fit its field. What the fields allow but the SPEC forbids is found by opening the result,
        which every caller does.
    """
    slots = assign_slots(model)
    t = model.input
    payload = {tag: bytearray() for tag in TAGS}
    payload["INFO"] += _info(model)
    payload["OPS "] += struct.pack("<HHHbB", t.h, t.w, t.c, t.zero_point, len(model.ops))
    payload["GENR"] += _generator(model)
    payload["HEAD"] += _heads(model)
    try:
        for i, op in enumerate(model.ops):
            quant = (0, 0, 0)
            if op.kind in LINEAR:
                data, *quant = _quan(op.requant)
                payload["QUAN"] += data
                if isinstance(op.weights, Stored):
                    payload["WGHT"] += bytes(-len(payload["WGHT"]) % 4) + op.weights.values.astype(np.int8).tobytes()
                else:
                    payload["CODE"] += pack_bits(op.weights.codes, model.code_bits)
            payload["OPS "] += _record(op, slots, i, quant)
    except struct.error as error:
        raise ImageError(f"operator {op.name}: a field does not fit the format: {error}") from error

    present = [tag for tag in TAGS if payload[tag]]
    offset = 16 + 16 * len(present)
    table, body = b"", b""
    for tag in present:
        data = bytes(payload[tag])
        table += struct.pack("<4sIII", tag.encode(), offset, len(data), zlib.crc32(data))
        body += data + bytes(-len(data) % 16)
        offset += len(data) + -len(data) % 16
    head = struct.pack("<4sBBBBI", b"HTPW", FORMAT_VERSION, ROUNDING, len(present), 0, offset)
    return head + struct.pack("<I", zlib.crc32(head + table)) + table + body


def save(data: bytes, path: str | os.PathLike) -> None:
    """Writes bytes to `path` by way of a temporary file, so that a half-written image never carries the name."""
    path = Path(path)
    temporary = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise ImageError(f"{path}: cannot write: {error.strerror}; choose a folder that you may write to") from error
