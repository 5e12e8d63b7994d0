"""Images put together by hand, byte by byte, from the specification alone.

Python integers, ``struct`` and ``zlib.crc32``; no array code and nothing of the project's writer.
A network is a plain dictionary, so that a test can spoil one entry of it.
"""

from __future__ import annotations

import random
import struct
import zlib

KIND = {
    "conv": 1, "depthwise": 2, "conv1x1": 3, "fc": 4, "add": 5,
    "avgpool": 6, "maxpool": 7, "table": 8, "mul": 9, "attend": 10,
}  # fmt: skip
STORED = {"stored8": 8, "stored4": 4, "stored2": 2}
SOURCE = {"stored8": 0, "stored4": 1, "stored2": 2}
DENSE, FACTORISED, TILED, SEEDED, CODEBOOK = 3, 4, 5, 6, 7
TAGS = ("INFO", "OPS ", "QUAN", "WGHT", "GENR", "HEAD", "CODE")
FORM_LAYOUT = "HBI"  # multipliers of QUAN by form


def bits(values: list[int], width: int) -> bytes:
    """Section 3: the packed stream as one integer."""
    stream = sum((value & ((1 << width) - 1)) << (i * width) for i, value in enumerate(values))
    return stream.to_bytes((len(values) * width + 7) // 8, "little")


def record(op: dict) -> bytes:
    """One operator of section 4.2."""
    slots = op["src"] | op["dst"] << 4
    data = struct.pack("<BBbbb", op.get("code", KIND[op["kind"]]), slots, op["zp"], *op["clamp"])
    if op["kind"] == "add":
        return data + struct.pack("<BBbbbIII", op["src2"], op["left_shift"], *op["shifts"], *op["multipliers"])
    if op["kind"] == "table":
        return data
    if op["kind"] == "mul":
        return data + struct.pack("<BbI", op["src2"], op["shift"], op["multiplier"])
    if op["kind"] == "attend":
        softmax_multiplier, softmax_shift, reach = op["softmax"]
        data += struct.pack("<BBBb", op["src2"], softmax_shift, reach, op["shift"])
        return data + struct.pack("<II", softmax_multiplier, op["multiplier"])
    if op["kind"] in ("avgpool", "maxpool"):
        return data + struct.pack(
            "<BHHHHBBBB", op.get("zero", 0), *op["out"], *op["kernel"], *op["stride"], *op["padding"]
        )
    source = op["source"] | op["width"] << 4 | op.get("bit6", 0) << 6 | op["narrow"] << 7
    form = op["shift_bits"] | op["form"] << 3 | op.get("reserved", 0) | op["per_tensor"] << 7
    data += struct.pack("<BHbBBB", source, op["cout"], op["shift_base"], form, op["bias_bits"], op["head"])
    if op["kind"] in ("conv", "depthwise"):
        data += struct.pack("<HHBBBBBBBB", *op["out"], *op["kernel"], *op["stride"], *op["padding"], *op["dilation"])
    if op["kind"] == "conv":
        data += struct.pack("<H", op["groups"])
    return data


def matrix_bytes(m: dict) -> bytes:
    """A matrix record of section 4.5."""
    data = struct.pack("<HBBbH", m["rows"], m["weight_bits"], m["bias_bits"], m["shift"], m["m"])
    return data + bits(m["w"], m["weight_bits"]) + bits(m["bias"], m["bias_bits"])


def generator_bytes(g: dict) -> bytes:
    layers = b"".join(matrix_bytes(layer) for layer in g["layers"])
    return struct.pack("<BH", g.get("count", len(g["layers"])), g["dz"]) + layers


def head_bytes(head: dict) -> bytes:
    """An entry of section 4.6."""
    data = struct.pack("<BB", head.get("code", head["kind"]), head["generator"])
    if head["kind"] in (DENSE, TILED):
        return data + matrix_bytes(head["h"])
    if head["kind"] == FACTORISED:
        data += struct.pack("<BBH", head["b_of"], head["a_of"], head["r"])
        return data + b"".join(matrix_bytes(head[name]) for name in "ba" if head[f"{name}_of"] == 255)
    if head["kind"] == SEEDED:
        return data + struct.pack("<HbHI", head["tile"], head["shift"], head["m"], head["seed"])
    data += struct.pack("<BH", head["of"], head["entries"])
    if head["of"] == 255:
        return data + struct.pack("<HB", head["tile"], head["bits"]) + bits(head["table"], head["bits"])
    return data + struct.pack("<B", head["width"]) + bits(head["codes"], head["width"])


def parts_of(op: dict) -> tuple[bytes, bytes]:
    """An operator's parts of QUAN and CODE."""
    quan = b"".join(struct.pack("<" + FORM_LAYOUT[min(op["form"], 2)], m) for m in op["m"])
    quan += bits(op["u"], op["shift_bits"]) + bits(op["bias"], op["bias_bits"])
    return quan, bits(op["codes"], op["code_bits"]) if "codes" in op else b""


def payloads(net: dict) -> dict[str, bytearray]:
    """All sections of a network, empty ones included."""
    ops = struct.pack("<HHHbB", *net["input"], net["zp"], net.get("count", len(net["ops"])))
    quan, wght, code, generators, heads = b"", b"", b"", b"", b""
    for op in net["ops"]:
        ops += record(op)
        if op["kind"] == "table":
            wght += b"\0" * (-len(wght) % 4) + bits(op["table"], 8)
        if "m" not in op:
            continue
        quan += parts_of(op)[0]
        code += parts_of(op)[1]
        if "w" in op:
            if op["weight_bits"] == 8:
                wght += b"\0" * (-len(wght) % 4)
            wght += bits(op["w"], op["weight_bits"])
    if net["generators"]:
        generators = struct.pack("<B", net.get("generator_count", len(net["generators"])))
        generators += b"".join(generator_bytes(g) for g in net["generators"])
    if net["heads"]:
        heads = struct.pack("<B", net.get("head_count", len(net["heads"])))
        heads += b"".join(head_bytes(h) for h in net["heads"])
    values = (net["info"], ops, quan, wght, generators, heads, code)
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
        header.get("version", 2),
        header.get("rounding", 1),
        header.get("section_count", len(sections)),
        header.get("zero", 0),
        header.get("total", position + len(body)),
    )
    return head + struct.pack("<I", zlib.crc32(head + table)) + table + body


def image(net: dict) -> bytes:
    return assemble(list(payloads(net).items()))


# Small parts, for expectations that fit on a line


def matrix(rows: int, w: list[int], bias: list[int] | None = None, shift: int = 0, m: int = 16384, **rest) -> dict:
    """A matrix of 8-bit weights and 16-bit biases that halves its sums, m = 16384 being 1/2."""
    widths = {"weight_bits": 8, "bias_bits": 16 if bias else 0}
    return {"rows": rows, **widths, "shift": shift, "m": m, "w": w, "bias": bias or [0] * rows} | rest


def plain(kind: str, cin: int, cout: int, **rest) -> dict:
    """An fc, conv1x1 or depthwise that gives its sums as they are: M = 2^30 and a shift of 1."""
    op = {
        "kind": kind, "src": 0, "dst": 1, "zp": 0, "clamp": (-128, 127), "cout": cout, "source": 0, "width": 0,
        "narrow": False, "head": 0, "shift_base": 1, "shift_bits": 0, "form": 1, "per_tensor": True,
        "bias_bits": 0, "m": [0], "u": [0], "bias": [0] * cout,
    }  # fmt: skip
    if kind == "depthwise":
        op |= {"out": (1, 1), "kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    return op | rest


def single(op: dict, shape: tuple[int, int, int], generators: list[dict], heads: list[dict]) -> dict:
    """A network of one operator."""
    return {"input": shape, "zp": 0, "ops": [op], "generators": generators, "heads": heads, "info": b""}


def stored_network() -> dict:
    """One fc with stored weights: no generator, no heads, no codes, no info."""
    op = plain(
        "fc", 3, 2, shift_base=-7, form=0, m=[20000], weight_bits=8, w=[1, -2, 3, -128, 127, 0],
    )  # fmt: skip
    return single(op, (1, 3, 1), [], [])


def plain_network() -> dict:
    """A table, products of both kinds and an attend over an input (2, 3, 2), behind 3 bytes of weights that none needs."""
    prefix = {"zp": 0, "clamp": (-128, 127)}
    scores = plain("conv1x1", 2, 1, src=4, dst=5, per_tensor=True, weight_bits=4, source=1, w=[3, -2], m=[0], shift_base=-1)
    ops = [
        {"kind": "table", "src": 0, "dst": 1, "table": [(37 * i) % 256 - 128 for i in range(256)]} | prefix | {"zp": -9},
        {"kind": "mul", "src": 0, "src2": 1, "dst": 2, "shift": -6, "multiplier": 1500000001} | prefix | {"zp": 4},
        {"kind": "avgpool", "src": 2, "dst": 3, "out": (1, 1), "kernel": (2, 3), "stride": (1, 1), "padding": (0, 0)} | prefix,
        {"kind": "mul", "src": 1, "src2": 3, "dst": 4, "shift": -6, "multiplier": 1 << 30} | prefix,
        scores,
        {"kind": "attend", "src": 4, "src2": 5, "dst": 6, "softmax": (1400000000, 20, 90), "shift": -7, "multiplier": 1 << 30}
        | prefix
        | {"zp": 3, "clamp": (-100, 120)},
    ]  # fmt: skip
    ops[2]["zp"] = 4
    return {"input": (2, 3, 2), "zp": -5, "ops": ops, "generators": [], "heads": [], "info": b""}


# A network with every operator that has weights, add and pools, and heads of every kind

EVERYTHING = ("stored8", 6, 2, 3, 9, 1)
"""Weights of the six linear operators 0, 1, 2, 3, 6 and 8: a stored source or the number of a head."""


def network(
    seed: int = 0,
    use: tuple = EVERYTHING,
    narrow: tuple[int, ...] = (),
    layers: tuple[int, int, int] = (2, 0, 1),
    tile: int = 16,
    other: bool = False,
) -> dict:
    """Ten operators, three generators, fourteen heads (some of which nobody uses).

    ``narrow`` lists the operators that are; ``other`` takes the other choice of every width and form.
    """
    r = random.Random(seed)

    def signed(width: int, count: int) -> list[int]:
        if width == 0:
            return [0] * count
        low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
        return [r.choice((low, high, r.randint(low, high), r.randint(low, high))) for _ in range(count)]

    def random_matrix(rows: int, cols: int, weight_bits: int, bias_bits: int, input_bits: int, drop: int = 0) -> dict:
        return {
            "rows": rows, "weight_bits": weight_bits, "bias_bits": bias_bits,
            "shift": 9 - weight_bits - input_bits - drop, "m": r.randint(20000, 32767),
            "w": signed(weight_bits, rows * cols), "bias": signed(bias_bits, rows),
        }  # fmt: skip

    widths = (8, 6, 4) if other else (6, 4, 8)
    biases = (0, 3, 11) if other else (9, 0, 5)
    generators, size = [], []
    for dz, count in zip((3, 5, 2), layers, strict=True):
        made, cols = [], dz
        for index in range(count):
            made.append(random_matrix((5, 4, 7)[index], cols, widths[index], biases[index], 7 if index else 5))
            cols = made[-1]["rows"]
        generators.append({"dz": dz, "layers": made})
        size.append((cols, 7 if count else 5))  # d, and roughly how many bits h has

    # Heads of narrow kernels scale down further, so that their weights are not all at the limit.
    narrowed = {source for index, source in zip((0, 1, 2, 3, 6, 8), use, strict=True) if index in narrow}
    narrowed |= {6 if head == 9 else 7 for head in narrowed & {9, 10}} | {2 for head in narrowed & {3, 5}}

    def drop() -> int:
        """For the head that is made next."""
        return 4 if len(heads) in narrowed else 0

    def one(kind: int, g: int, rows: int, weight_bits: int, bias_bits: int) -> dict:
        d, input_bits = size[g]
        return {"kind": kind, "generator": g, "h": random_matrix(rows, d, weight_bits, bias_bits, input_bits, drop())}

    def factorised(g: int, b_of: int = 255, a_of: int = 255, n: int = 0) -> dict:
        d, input_bits = size[g]
        head = {"kind": FACTORISED, "generator": g, "b_of": b_of, "a_of": a_of, "r": 3}
        if b_of == 255:
            head["b"] = random_matrix(3, d, 6, 7, input_bits)
        if a_of == 255:
            head["a"] = random_matrix(n, 3, 4, 5, 8, drop())
        return head

    def stored_book(entries: int, tile: int, width: int) -> dict:
        return {
            "kind": CODEBOOK, "generator": 0, "of": 255, "entries": entries, "tile": tile, "bits": width,
            "table": signed(width, entries * tile),
        }  # fmt: skip

    def made_book(of: int, entries: int, width: int) -> dict:
        g = heads[of]["generator"]
        codes = signed(width, entries * generators[g]["dz"])
        return {"kind": CODEBOOK, "generator": g, "of": of, "entries": entries, "width": width, "codes": codes}

    def seeded(g: int, tile: int) -> dict:
        shift = 9 - 8 - size[g][1] - drop()
        seed32 = r.randint(1, 2**32 - 1)
        return {"kind": SEEDED, "generator": g, "tile": tile, "shift": shift, "m": 30000, "seed": seed32}

    heads: list[dict] = []
    for make in (
        lambda: one(DENSE, 0, 72, widths[0], 6),
        lambda: one(DENSE, 1, 56, widths[1], 0),
        lambda: factorised(0, n=60),
        lambda: factorised(1, a_of=2),
        lambda: factorised(0, b_of=2, n=70),
        lambda: factorised(0, b_of=2, a_of=2),
        lambda: one(TILED, 2, tile, 8, biases[1]),
        lambda: seeded(1, 7),
        lambda: stored_book(5, 5, 4),
        lambda: made_book(6, 4, 4 if other else 6),
        lambda: made_book(7, 9, 8),
        lambda: stored_book(16, 3, 8),
        lambda: one(TILED, 0, 1, 6, 3),
        lambda: stored_book(1, 72, 2),
    ):
        heads.append(make())

    def linear(index, kind, src, dst, cout, terms, number, bias_bits=12, shift_bits=3, per_tensor=False):
        if other:
            per_tensor, shift_bits, bias_bits = not per_tensor, 5 - shift_bits, 13 - bias_bits
        count = 1 if per_tensor else cout
        form = (index + seed) % 3
        source = use[(0, 1, 2, 3, 6, 8).index(index)]
        base = -8 - terms.bit_length() // 2
        if index in narrow or source in ("stored4", "stored2"):
            gain = 6 if source == "stored2" else 4  # bits that these weights have less
            base, bias_bits = base + gain, max(bias_bits - gain, 0)
        op = {
            "kind": kind, "src": src, "dst": dst, "cout": cout, "zp": r.randint(-20, 20), "clamp": (-128, 127),
            "narrow": index in narrow, "width": 0, "head": 0, "form": form, "shift_base": base,
            "shift_bits": shift_bits, "per_tensor": per_tensor, "bias_bits": bias_bits, "bias": signed(bias_bits, cout),
            "u": [r.randint(0, min(7, (1 << shift_bits) - 1)) for _ in range(count)],
            "m": [r.randint(*((16384, 32767), (0, 255), (2**30, 2**31 - 1))[form]) for _ in range(count)],
        }  # fmt: skip
        if source in SOURCE:
            return op | {"source": SOURCE[source], "weight_bits": STORED[source], "w": signed(STORED[source], number)}
        head = heads[source]
        op |= {"source": head["kind"], "head": source, "number": number}
        if head["kind"] == CODEBOOK:
            made = heads[head["of"]] if head["of"] != 255 else head
            tiles = -(-number // (made["h"]["rows"] if "h" in made else made["tile"]))
            width = (head["entries"] - 1).bit_length()
            return op | {"code_bits": width, "codes": [r.randrange(head["entries"]) for _ in range(tiles)]}
        rows = head["h"]["rows"] if head["kind"] == TILED else head.get("tile", number)
        op |= {"width": 1 + (index + seed) % 3}
        op |= {"code_bits": 2 + 2 * op["width"]}
        dz = generators[head["generator"]]["dz"]
        return op | {"codes": signed(op["code_bits"], -(-number // rows) * dz)}

    def windows(out, kernel, stride, padding, dilation=(1, 1)):
        return {"out": out, "kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}

    ops = [
        linear(0, "conv", 0, 1, 6, 9, 54)
        | windows((3, 5), (3, 3), (2, 1), (1, 2), (1, 2))
        | {"groups": 2},
        linear(1, "depthwise", 1, 2, 12, 6, 72, per_tensor=True)
        | windows((3, 3), (2, 3), (1, 2), (0, 1)),
        linear(2, "conv1x1", 2, 3, 5, 12, 60, bias_bits=0),
        linear(3, "conv1x1", 2, 4, 5, 12, 60, shift_bits=0, bias_bits=9) | {"clamp": (-90, 101)},
        {
            "kind": "add", "src": 3, "src2": 4, "dst": 1, "zp": -4, "clamp": (-128, 120),
            "left_shift": 20, "shifts": (-1, 0, -19), "multipliers": (1966145537, 1 << 30, 1638400001),
        },
        {"kind": "maxpool", "src": 1, "dst": 2, "zp": -4, "clamp": (-128, 127)}
        | windows((2, 2), (2, 3), (2, 2), (1, 0)),
        linear(6, "conv", 2, 7, 7, 10, 70, bias_bits=13, shift_bits=5)
        | windows((2, 2), (1, 2), (1, 1), (0, 0))
        | {"groups": 1},
        {"kind": "avgpool", "src": 7, "dst": 3, "zp": 0, "clamp": (-60, 127)}
        | windows((1, 2), (2, 2), (2, 1), (0, 1)),
        linear(8, "fc", 3, 1, 4, 14, 56),
        {
            "kind": "add", "src": 1, "src2": 1, "dst": 2, "zp": 7, "clamp": (-128, 127),
            "left_shift": 16, "shifts": (0, -31, -16), "multipliers": (2**31 - 1, 1310720000, 2097152000),
        },
    ]  # fmt: skip
    ops[7]["zp"] = ops[6]["zp"]
    info = struct.pack("<4f", 0.1, 0.2, 0.5, 125.0) + b"tiny\nN\nS\nV\nF"
    return {
        "input": (5, 6, 2), "zp": 3, "ops": ops, "generators": generators, "heads": heads, "info": info,
    }  # fmt: skip


# Changes that spoil a network, each a function of it


def op(index: int, **changes):
    """A change of one operator of ``network()``."""

    def change(net: dict) -> None:
        net["ops"][index] |= changes

    return change


def layer(index: int, **changes):
    """A change of one layer of generator 0, which has two: (5, 3) and (4, 5)."""

    def change(net: dict) -> None:
        net["generators"][0]["layers"][index] |= changes

    return change


def head(index: int, part: str = "", **changes):
    """A change of an entry of HEAD, or of the matrix ``part`` of it."""

    def change(net: dict) -> None:
        entry = net["heads"][index]
        (entry[part] if part else entry).update(changes)

    return change


def top(**changes):
    def change(net: dict) -> None:
        net |= changes

    return change


def generator(index: int, **changes):
    def change(net: dict) -> None:
        net["generators"][index] |= changes

    return change


def first_multiplier(value: int, form: int):
    def change(net: dict) -> None:
        net["ops"][0] |= {"form": form, "m": [value] * 6}

    return change
