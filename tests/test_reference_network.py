"""Whole networks against a scalar interpreter.

The interpreter below is written from the specification alone, in Python integers; it runs the
dictionaries of ``reference_images`` and never sees their bytes.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import test_reference_scalar as scalar
from reference_images import CODEBOOK, FACTORISED, SEEDED, TILED, image, network

import reference
from reference import synthesis


def nested(values: list[int], shape: tuple[int, ...]):
    if len(shape) == 1:
        return values[: shape[0]]
    size = len(values) // shape[0]
    return [nested(values[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]


def times(m: dict, x: list[int], low: int, high: int) -> list[int]:
    """A matrix applied to a vector."""
    n = len(x)
    sums = [m["bias"][o] + sum(m["w"][o * n + i] * x[i] for i in range(n)) for o in range(m["rows"])]
    return [min(max(scalar.rq(v, m["m"] << 16, m["shift"]), low), high) for v in sums]


@cache
def drawn(seed: int, count: int) -> tuple[int, ...]:
    """Section 5, the seeded matrix."""
    values: list[int] = []
    s = seed
    while len(values) < count:
        s ^= (s << 13) % 2**32
        s ^= s // 2**17
        s ^= (s << 5) % 2**32
        for k in range(4):
            byte = s // 256**k % 256
            values.append(byte - 256 if byte > 127 else byte)
    return tuple(values[:count])


def tile_of(net: dict, head: dict, z: list[int], c: int) -> list[int]:
    """Section 5, "synthesis of a tile"."""
    y = z
    for layer in net["generators"][head["generator"]]["layers"]:
        y = times(layer, y, 0, 127)
    if head["kind"] == FACTORISED:
        b = head["b"] if head["b_of"] == 255 else net["heads"][head["b_of"]]["b"]
        a = head["a"] if head["a_of"] == 255 else net["heads"][head["a_of"]]["a"]
        return times(a, times(b, y, -127, 127), -c, c)
    if head["kind"] == SEEDED:
        rows = head["tile"]
        made = {"rows": rows, "bias": [0] * rows, "w": drawn(head["seed"], rows * len(y))}
        return times({**made, "m": head["m"], "shift": head["shift"]}, y, -c, c)
    return times(head["h"], y, -c, c)


def split(values: list[int], size: int) -> list[list[int]]:
    return [values[i : i + size] for i in range(0, len(values), size)]


def made_weights(net: dict, op: dict) -> list[int]:
    """The weights of an operator with a head, in generation order."""
    head, c = net["heads"][op["head"]], 7 if op["narrow"] else 127
    if head["kind"] != CODEBOOK:
        codes = split(op["codes"], net["generators"][head["generator"]]["dz"])
        tiles = [tile_of(net, head, z, c) for z in codes]
        assert head["kind"] in (TILED, SEEDED) or len(tiles) == 1
    elif head["of"] == 255:
        table = split(head["table"], head["tile"])
        tiles = [table[i] for i in op["codes"]]
    else:
        maker = net["heads"][head["of"]]
        entries = split(head["codes"], net["generators"][maker["generator"]]["dz"])
        tiles = [tile_of(net, maker, entries[i], c) for i in op["codes"]]
    return [weight for tile in tiles for weight in tile][: op["number"]]


def flat_weights(net: dict, op: dict) -> list[int]:
    """Section 5: the weights in row-major order."""
    if "w" in op:
        return op["w"]
    made = made_weights(net, op)
    if op["kind"] != "depthwise":
        return made
    area = op["kernel"][0] * op["kernel"][1]
    return [made[o * area + tap] for tap in range(area) for o in range(op["cout"])]


def interpret(net: dict, x: list) -> tuple[list, dict[int, list[int]]]:
    """Section 6: the outputs of all operators, and all cached weights, for one window."""
    slots, outputs, cached = {0: (x, net["zp"])}, [], {}
    for index, op in enumerate(net["ops"]):
        source, zp = slots[op["src"]]
        tail = (op["zp"], *op["clamp"])
        if op["kind"] == "add":
            y = added(op, (source, zp), slots[op["src2"]])
        elif op["kind"] in ("avgpool", "maxpool"):
            window = (op["out"], op["kernel"], op["stride"], op["padding"])
            y = scalar.pool(source, op["kind"] == "maxpool", *window, *op["clamp"])
        else:
            flat = flat_weights(net, op)
            if op["source"] != 0 and (op["source"], op["narrow"]) != (1, True):
                cached[index] = flat
            y = run_linear(op, flat, source, zp, tail)
        slots[op["dst"]] = (y, op["zp"])
        outputs.append(y)
    return outputs, cached


def added(op, first, second):
    (m1, m2, m_out), (s1, s2, s_out) = op["multipliers"], op["shifts"]
    (x1, zp1), (x2, zp2) = first, second

    def cell(a: int, b: int) -> int:
        f1 = scalar.rq((a - zp1) << op["left_shift"], m1, s1)
        f2 = scalar.rq((b - zp2) << op["left_shift"], m2, s2)
        return scalar.out(f1 + f2, m_out, s_out, op["zp"], *op["clamp"])

    channels = range(len(x1[0][0]))
    return [[[cell(x1[h][w][c], x2[h][w][c]) for c in channels] for w in range(len(x1[0]))] for h in range(len(x1))]


def q31(form: int, stored: int) -> int:
    return (stored << 16, (256 + stored) << 22, stored)[form]


def run_linear(op, flat, source, zp, tail):
    count, cin = op["cout"], len(source[0][0])
    pairs = [(q31(op["form"], m), op["shift_base"] + u) for m, u in zip(op["m"], op["u"], strict=True)]
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
    w = nested(flat, shape)
    rest = (op["bias"], scales, *window, -zp, tail)
    if op["kind"] == "depthwise":
        return scalar.depthwise(source, w, *rest)
    return scalar.conv(source, w, op.get("groups", 1), *rest)


VARIANTS = [
    {"seed": 1},
    {"seed": 37, "tile": 72, "layers": (3, 1, 0), "use": ("stored4", 0, 5, 3, 4, 1), "narrow": (0, 1, 2)},
    {"seed": 3, "tile": 1024, "layers": (0, 2, 3), "use": ("stored4", 9, 9, 7, 7, "stored2"), "narrow": (8, 3)},
    {"seed": 228, "tile": 5, "layers": (1, 1, 1), "use": (10, 10, 11, 13, 12, 8), "other": True},
    {"seed": 40, "tile": 71, "layers": (3, 0, 3), "use": ("stored2", 8, 2, "stored4", 6, 9), "other": True},
    {"seed": 230, "tile": 1, "use": ("stored8", 7, 8, 5, 9, 1), "narrow": (1, 2, 3, 6, 8), "other": True},
    {"seed": 7, "layers": (1, 3, 2), "use": (8, 0, 6, 10, 4, 13), "narrow": (0, 2, 6, 8)},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_operator_equals_the_interpreter(variant):
    net = network(**variant)
    model = reference.read(image(net))
    x = scalar.tensor(variant["seed"], 3, *net["input"])
    traced = list(reference.trace(model, x))
    assert [index for index, _ in traced] == list(range(len(net["ops"])))
    kernels = synthesis.kernels(model)
    for n, window in enumerate(x.tolist()):
        outputs, cached = interpret(net, window)
        for (index, result), expected in zip(traced, outputs, strict=True):
            assert result.dtype == np.int8
            assert result[n].tolist() == expected, f"operator {index}"
        assert {i: w.reshape(-1).tolist() for i, w in kernels.items()} == cached
    assert all(w.dtype == np.int8 for w in kernels.values())
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
            limit = 7 if index in variant.get("narrow", ()) else 127
            inside = (np.abs(w.astype(int)) < limit).mean()
            assert inside > 0.25, (variant, index, inside)


def test_the_networks_above_use_everything():
    """Every head kind with and without narrow, every stored source, every form of multipliers."""
    seen, forms, widths = set(), set(), set()
    for variant in VARIANTS:
        for op in network(**variant)["ops"]:
            if "m" in op:
                seen.add((op["source"], op["narrow"]))
                forms.add((op["form"], op["per_tensor"]))
                widths.add(op["width"])
    wanted = {(source, narrow) for source in range(8) for narrow in (False, True)} - {(0, True)}
    assert seen == wanted
    assert len(forms) == 6 and widths == {0, 1, 2, 3}
