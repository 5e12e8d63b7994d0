"""Whole networks: images put together by hand, byte by byte, against a scalar interpreter.

The assembler and the interpreter below are written from the specification alone: Python integers,
``struct`` and ``zlib.crc32``, no array code and nothing of the project's writer. A network is a
plain dictionary, so that ``test_reference_image`` can spoil one entry of it.
"""

from __future__ import annotations

import random
import struct
import zlib

import numpy as np
import pytest
import test_reference_scalar as scalar

import reference
from reference import synthesis

KIND = {"conv": 1, "depthwise": 2, "conv1x1": 3, "fc": 4, "add": 5, "avgpool": 6, "maxpool": 7}
TAGS = ("INFO", "OPS ", "QUAN", "WGHT", "GENR", "HEAD", "CODE")


# The assembler


def bits(values: list[int], width: int) -> bytes:
    """Section 3: the packed stream as one integer."""
    stream = sum((value & ((1 << width) - 1)) << (i * width) for i, value in enumerate(values))
    return stream.to_bytes((len(values) * width + 7) // 8, "little")


def record(op: dict) -> bytes:
    """One operator of section 4.2."""
    slots = op["src"] | op["dst"] << 4
    data = struct.pack("<BBbbb", op.get("code", KIND[op["kind"]]), slots, op["zp"], *op["clamp"])
    if op["kind"] == "add":
        return data + struct.pack("<BBbbbHHH", op["src2"], op["left_shift"], *op["shifts"], *op["multipliers"])
    if op["kind"] in ("avgpool", "maxpool"):
        return data + struct.pack(
            "<BHHHHBBBB", op.get("zero", 0), *op["out"], *op["kernel"], *op["stride"], *op["padding"]
        )
    form = op["shift_bits"] | (0x80 if op["per_tensor"] else 0) | op.get("reserved", 0)
    data += struct.pack("<BHbBBB", op["source"], op["cout"], op["shift_base"], form, op["bias_bits"], op["head"])
    if op["kind"] in ("conv", "depthwise"):
        data += struct.pack("<HHBBBBBBBB", *op["out"], *op["kernel"], *op["stride"], *op["padding"], *op["dilation"])
    if op["kind"] == "conv":
        data += struct.pack("<H", op["groups"])
    return data


def payloads(net: dict) -> dict[str, bytearray]:
    """All sections of a network, empty ones included."""
    ops = struct.pack("<HHHbB", *net["input"], net["zp"], net.get("count", len(net["ops"])))
    quan, wght, code = b"", b"", b""
    for op in net["ops"]:
        ops += record(op)
        if "m" not in op:
            continue
        quan += b"".join(struct.pack("<H", m) for m in op["m"])
        quan += bits(op["u"], op["shift_bits"]) + bits(op["bias"], op["bias_bits"])
        if op["source"] == 5:
            code += bits(op["codes"], net["generator"]["code_bits"])
        else:
            wght += b"\0" * (-len(wght) % 4) + struct.pack(f"<{len(op['w'])}b", *op["w"])
    generator = b""
    if net["generator"]:
        g = net["generator"]
        count = g.get("count", len(g["layers"]))
        generator = struct.pack("<BBBB", count, g["code_bits"], g["dz"], g.get("zero", 0))
        for layer in g["layers"]:
            generator += struct.pack(
                "<BBBbH", layer["dh"], layer["weight_bits"], layer["bias_bits"], layer["shift"], layer["m"]
            )
            generator += bits(layer["w"], layer["weight_bits"])
            generator += bits(layer["bias"], layer["bias_bits"])
    heads = b""
    if net["heads"]:
        heads = struct.pack("<BB", net.get("head_count", len(net["heads"])), net.get("head_zero", 0))
        for head in net["heads"]:
            heads += struct.pack(
                "<BBHbBH", head.get("source", 5), head["weight_bits"], head["tile"],
                head["shift"], head.get("zero", 0), head["m"],
            )  # fmt: skip
            heads += bits(head["w"], head["weight_bits"])
    values = (net["info"], ops, quan, wght, generator, heads, code)
    return {tag: bytearray(value) for tag, value in zip(TAGS, values, strict=True)}


def assemble(sections: list[tuple[str, bytes]], **header) -> bytes:
    """Section 4; ``header`` overrides single fields, checksums are put right afterwards."""
    table, body = b"", b""
    position = 16 + 16 * len(sections)
    for tag, payload in sections:
        body += b"\0" * (-len(body) % 16)
        offset = position + len(body)
        table += struct.pack("<4sIII", tag.encode(), offset, len(payload), zlib.crc32(payload))
        body += payload
    body += b"\0" * (-len(body) % 16)
    table = header.get("table", table)
    head = struct.pack(
        "<4sBBBBI",
        header.get("magic", b"HTPW"),
        header.get("version", 1),
        header.get("rounding", 1),
        header.get("section_count", len(sections)),
        header.get("zero", 0),
        header.get("total", position + len(body)),
    )
    return head + struct.pack("<I", zlib.crc32(head + table)) + table + body


def image(net: dict) -> bytes:
    return assemble(list(payloads(net).items()))


# A network with every operator


def network(seed: int = 0, code_bits: int = 4, tile: int = 16, layers: int = 2, narrow: bool = False):
    """Ten operators; ``narrow`` takes the other choice of every width and form."""
    r = random.Random(seed)

    def signed(width: int, count: int) -> list[int]:
        if width == 0:
            return [0] * count
        low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
        return [r.choice((low, high, r.randint(low, high), r.randint(low, high))) for _ in range(count)]

    dz, hidden = 3, (5, 4, 7)[:layers]
    widths = (8, 6, 4) if narrow else (6, 4, 8)
    generator = {"code_bits": code_bits, "dz": dz, "layers": []}
    inputs = dz
    for index, dh in enumerate(hidden):
        weight_bits, bias_bits = widths[index], (0, 3, 11)[index] if narrow else (9, 0, 5)[index]
        generator["layers"].append({
            "dh": dh, "weight_bits": weight_bits, "bias_bits": bias_bits,
            "shift": 9 - weight_bits - (7 if index else code_bits), "m": r.randint(20000, 32767),
            "w": signed(weight_bits, dh * inputs), "bias": signed(bias_bits, dh),
        })  # fmt: skip
        inputs = dh
    heads = [
        {"weight_bits": w, "tile": t, "shift": s, "m": r.randint(16384, 32767), "w": signed(w, t * inputs)}
        for w, t, s in ((8, tile, -6), (4, 7, -3), (6, 1, -4))
    ]

    def linear(kind, src, dst, cout, terms, number, head=None, bias_bits=12, shift_bits=3, per_tensor=False):
        if narrow:
            per_tensor, shift_bits, bias_bits = not per_tensor, 5 - shift_bits, 15 - bias_bits
        count = 1 if per_tensor else cout
        base = -6 - terms.bit_length() // 2
        u = [r.randint(0, min(7, (1 << shift_bits) - 1)) for _ in range(count)]
        op = {
            "kind": kind, "src": src, "dst": dst, "cout": cout, "zp": r.randint(-20, 20),
            "clamp": (-128, 127), "source": 0 if head is None else 5, "head": head or 0,
            "shift_base": base - 2, "shift_bits": shift_bits, "per_tensor": per_tensor,
            "bias_bits": bias_bits, "u": u, "m": [r.randint(16384, 32767) for _ in range(count)],
            "bias": signed(bias_bits, cout),
        }  # fmt: skip
        if head is None:
            op["w"] = signed(8, number)
        else:
            tiles = -(-number // heads[head]["tile"])
            op["codes"] = signed(code_bits, tiles * dz)
        return op

    def windows(out, kernel, stride, padding, dilation=(1, 1)):
        return {"out": out, "kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}

    ops = [
        linear("conv", 0, 1, 6, 9, 54)
        | windows((3, 5), (3, 3), (2, 1), (1, 2), (1, 2))
        | {"groups": 2},
        linear("depthwise", 1, 2, 12, 6, 72, head=0, per_tensor=True)
        | windows((3, 3), (2, 3), (1, 2), (0, 1)),
        linear("conv1x1", 2, 3, 5, 12, 60, head=1, bias_bits=0),
        linear("conv1x1", 2, 4, 5, 12, 60, shift_bits=0, bias_bits=9) | {"clamp": (-90, 101)},
        {
            "kind": "add", "src": 3, "src2": 4, "dst": 1, "zp": -4, "clamp": (-128, 120),
            "left_shift": 20, "shifts": (-1, 0, -19), "multipliers": (30001, 16384, 25000),
        },
        {"kind": "maxpool", "src": 1, "dst": 2, "zp": -4, "clamp": (-128, 127)}
        | windows((2, 2), (2, 3), (2, 2), (1, 0)),
        linear("conv", 2, 7, 7, 10, 70, head=2, bias_bits=15, shift_bits=5)
        | windows((2, 2), (1, 2), (1, 1), (0, 0))
        | {"groups": 1},
        {"kind": "avgpool", "src": 7, "dst": 3, "zp": 0, "clamp": (-60, 127)}
        | windows((1, 2), (2, 2), (2, 1), (0, 1)),
        linear("fc", 3, 1, 4, 14, 56, head=0),
        {
            "kind": "add", "src": 1, "src2": 1, "dst": 2, "zp": 7, "clamp": (-128, 127),
            "left_shift": 16, "shifts": (0, -31, -16), "multipliers": (32767, 20000, 32000),
        },
    ]  # fmt: skip
    ops[7]["zp"] = ops[6]["zp"]
    info = struct.pack("<4f", 0.1, 0.2, 0.5, 125.0) + b"tiny\nN\nS\nV\nF"
    return {
        "input": (5, 6, 2), "zp": 3, "ops": ops, "generator": generator, "heads": heads, "info": info,
    }  # fmt: skip


def stored_network() -> dict:
    """One fc with stored weights: no generator, no heads, no codes, no info."""
    op = {
        "kind": "fc", "src": 0, "dst": 1, "zp": 0, "clamp": (-128, 127), "source": 0, "cout": 2,
        "shift_base": -7, "shift_bits": 0, "per_tensor": True, "bias_bits": 0, "head": 0,
        "m": [20000], "u": [0], "bias": [0, 0], "w": [1, -2, 3, -128, 127, 0],
    }  # fmt: skip
    return {"input": (1, 3, 1), "zp": 0, "ops": [op], "generator": None, "heads": [], "info": b""}


# The interpreter


def nested(values: list[int], shape: tuple[int, ...]):
    if len(shape) == 1:
        return values[: shape[0]]
    size = len(values) // shape[0]
    return [nested(values[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]


def flat_weights(net: dict, op: dict, number: int) -> list[int]:
    """Section 5."""
    if op["source"] == 0:
        return op["w"]
    head, dz = net["heads"][op["head"]], net["generator"]["dz"]
    result: list[int] = []
    for first in range(0, len(op["codes"]), dz):
        y = op["codes"][first : first + dz]
        for layer in net["generator"]["layers"]:
            n = len(y)
            sums = [layer["bias"][o] + sum(layer["w"][o * n + i] * y[i] for i in range(n)) for o in range(layer["dh"])]
            y = [min(max(scalar.rq(v, layer["m"] << 16, layer["shift"]), 0), 127) for v in sums]
        n = len(y)
        for k in range(head["tile"]):
            v = sum(head["w"][k * n + i] * y[i] for i in range(n))
            result.append(min(max(scalar.rq(v, head["m"] << 16, head["shift"]), -127), 127))
    return result[:number]


def interpret(net: dict, x: list) -> tuple[list, dict[int, list[int]]]:
    """Section 6: the outputs of all operators, and all generated weights, for one window."""
    slots, outputs, generated = {0: (x, net["zp"])}, [], {}
    for index, op in enumerate(net["ops"]):
        source, zp = slots[op["src"]]
        tail = (op["zp"], *op["clamp"])
        if op["kind"] == "add":
            y = added(op, (source, zp), slots[op["src2"]])
        elif op["kind"] in ("avgpool", "maxpool"):
            window = (op["out"], op["kernel"], op["stride"], op["padding"])
            y = scalar.pool(source, op["kind"] == "maxpool", *window, *op["clamp"])
        else:
            y = run_linear(net, index, op, source, zp, tail, generated)
        slots[op["dst"]] = (y, op["zp"])
        outputs.append(y)
    return outputs, generated


def added(op, first, second):
    (m1, m2, m_out), (s1, s2, s_out) = op["multipliers"], op["shifts"]
    (x1, zp1), (x2, zp2) = first, second

    def cell(a: int, b: int) -> int:
        f1 = scalar.rq((a - zp1) << op["left_shift"], m1 << 16, s1)
        f2 = scalar.rq((b - zp2) << op["left_shift"], m2 << 16, s2)
        return scalar.out(f1 + f2, m_out << 16, s_out, op["zp"], *op["clamp"])

    channels = range(len(x1[0][0]))
    return [[[cell(x1[h][w][c], x2[h][w][c]) for c in channels] for w in range(len(x1[0]))] for h in range(len(x1))]


def run_linear(net, index, op, source, zp, tail, generated):
    count, cin = op["cout"], len(source[0][0])
    pairs = [(m << 16, op["shift_base"] + u) for m, u in zip(op["m"], op["u"], strict=True)]
    scales = pairs * count if op["per_tensor"] else pairs
    if op["kind"] == "conv":
        shape = (count, *op["kernel"], cin // op["groups"])
        window = (op["out"], op["kernel"], op["stride"], op["padding"], op["dilation"])
    elif op["kind"] == "depthwise":
        shape = (*op["kernel"], count)
        window = (op["out"], op["kernel"], op["stride"], op["padding"], op["dilation"])
    else:
        if op["kind"] == "fc":
            source = [[[value for row in source for cell in row for value in cell]]]
            cin = len(source[0][0])
        shape = (count, 1, 1, cin)
        window = ((len(source), len(source[0])), (1, 1), (1, 1), (0, 0), (1, 1))
    number = int(np.prod(shape))
    flat = flat_weights(net, op, number)
    if op["source"] == 5:
        generated[index] = flat
    w = nested(flat, shape)
    rest = (op["bias"], scales, *window, -zp, tail)
    if op["kind"] == "depthwise":
        return scalar.depthwise(source, w, *rest)
    return scalar.conv(source, w, op.get("groups", 1), *rest)


VARIANTS = [
    {"seed": 1},
    {"seed": 2, "code_bits": 6, "tile": 72},
    {"seed": 3, "code_bits": 8, "tile": 1024, "layers": 3},
    {"seed": 4, "code_bits": 6, "tile": 5, "layers": 1, "narrow": True},
    {"seed": 5, "code_bits": 4, "tile": 71, "layers": 3, "narrow": True},
    {"seed": 6, "code_bits": 8, "tile": 1, "narrow": True},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_operator_equals_the_interpreter(variant):
    net = network(**variant)
    model = reference.read(image(net))
    x = scalar.tensor(variant["seed"], 3, *net["input"])
    traced = list(reference.trace(model, x))
    assert [index for index, _ in traced] == list(range(len(net["ops"])))
    for n, window in enumerate(x.tolist()):
        outputs, generated = interpret(net, window)
        for (index, result), expected in zip(traced, outputs, strict=True):
            assert result.dtype == np.int8
            assert result[n].tolist() == expected, f"operator {index}"
        kernels = synthesis.kernels(model)
        assert {i: w.reshape(-1).tolist() for i, w in kernels.items()} == generated
    logits = reference.run(model, x)
    assert logits.shape == (3, 4) and logits.dtype == np.int8
    assert logits.tolist() == traced[-1][1].reshape(3, 4).tolist()


def test_the_networks_above_do_not_saturate_everywhere():
    # A test on constant tensors would pass with any arithmetic.
    for variant in VARIANTS:
        net = network(**variant)
        model = reference.read(image(net))
        x = scalar.tensor(variant["seed"], 3, *net["input"])
        for index, result in reference.trace(model, x):
            assert np.unique(result).size > 3, (variant, index)
        for index, w in synthesis.kernels(model).items():
            assert np.unique(w).size > 3, (variant, index)
