"""table, mul and attend: numbers worked out by hand, a scalar telling of them, and an image refused for each rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import test_reference_scalar as scalar
from reference_images import assemble, image, op, payloads, plain_network, top

import reference
from reference import ImageError
from reference.kernels import softmax_s8


def single(op: dict, shape: tuple[int, int, int], zp: int = 0) -> dict:
    """A network of one operator without weights, from slot 0 to slot 1."""
    op = {"src": 0, "dst": 1, "zp": 0, "clamp": (-128, 127)} | op
    return {"input": shape, "zp": zp, "ops": [op], "generators": [], "heads": [], "info": b""}


def logits(net: dict, *windows: list) -> list:
    x = np.array(windows, np.int8).reshape(len(windows), *net["input"])
    return reference.run(reference.read(image(net)), x).tolist()


def test_a_table_is_looked_up_then_clamped():
    square = [min((i - 128) ** 2 // 16 - 128, 127) for i in range(256)]
    net = single({"kind": "table", "table": square, "clamp": (-128, 100)}, (1, 1, 5))
    # 128^2/16 - 128 = 896, cut to 127 in the table and to 100 by the clamp; 40^2/16 = 100 and 59^2/16 = 217
    assert logits(net, [-128, 0, 40, -59, 127]) == [[100, -128, -28, 89, 100]]


def test_a_product_is_rounded_once():
    # (x + 3)^2 / 8: M = 2^30 halves, the shift -2 divides by 4
    net = single({"kind": "mul", "src2": 0, "shift": -2, "multiplier": 1 << 30, "zp": -10}, (1, 1, 4), zp=-3)
    # 36/8 = 4.5 -> 5; 1/8 -> 0 (halved to 1, which is a quarter); 961/8 = 120.1; 130^2/8 = 2112
    assert logits(net, [3, -2, 28, 127]) == [[-5, -10, 110, 127]]
    net["ops"][0] |= {"shift": 14, "multiplier": (1 << 31) - 1, "zp": 0}
    assert logits(net, [-3, -4, 0, 127]) == [[0, 127, 127, 127]]


def test_a_product_with_one_value_per_channel():
    net = single({"kind": "mul", "src2": 1, "dst": 2, "shift": 0, "multiplier": 1 << 30}, (1, 2, 2))
    pool = {"kind": "maxpool", "src": 0, "dst": 1, "zp": 0, "clamp": (-128, 127)}
    pool |= {"out": (1, 1), "kernel": (1, 2), "stride": (1, 1), "padding": (0, 0)}
    second = pool | {"src": 2, "dst": 1}
    net["ops"] = [pool, net["ops"][0], second]
    traced = [y for _, y in reference.trace(reference.read(image(net)), np.array([[[[1, -6], [3, -4]]]], np.int8))]
    assert traced[0].tolist() == [[[[3, -4]]]]
    assert traced[1].tolist() == [[[[2, 12], [5, 8]]]]  # 3/2 and 9/2 are ties, which go up


def attend(**changes) -> dict:
    """Scores are the values themselves; a difference of 1 is 1/2 in the exponent."""
    one = {"kind": "attend", "src2": 0, "softmax": (1 << 30, 26, 31), "shift": 1, "multiplier": 1 << 30}
    return single(one | changes, (1, 4, 1), zp=1)


def test_an_attend_weighs_by_softmax():
    # equal scores: 64/256 each, and the sum of 4 * 64 * (5 - 1) = 1024 is divided by 2^8
    net = attend(shift=-7)
    assert logits(net, [5, 5, 5, 5]) == [[4]]
    # exp(-(100 - 98) / 2) = .368: weights 187, 69, 0, 0 of 256; 187 * 99 + 69 * 97 = 25206, / 256 = 98.46
    p = [256 / (1 + math.exp(-1)), 256 / (1 + math.exp(1))]
    assert [round(v) for v in p] == [187, 69]
    assert logits(net, [100, 98, 0, 0]) == [[98]]
    assert scalar.out(187 * 99 + 69 * 97, 1 << 30, -7, 0, -128, 127) == 98
    # the one that counts is 255 of 256 and no more, since the result of softmax is an int8
    assert logits(net, [-127, -128, 127, -128]) == [[126]]
    assert scalar.out(255 * 126, 1 << 30, -7, 0, -128, 127) == 126


def test_scores_out_of_reach_do_not_count():
    net = attend(shift=-7, softmax=(1 << 30, 26, 1))
    # 10 and 9 count, 8 does not: weights 159 (1 / (1 + exp(-1/2)) = .622) and 97
    assert logits(net, [10, 9, 8, 8]) == [[scalar.out(159 * 9 + 97 * 8, 1 << 30, -7, 0, -128, 127)]] == [[9]]
    net["ops"][0]["softmax"] = (1 << 30, 30, 0)
    # only the greatest: each 255 if alone, 128 of two
    assert logits(net, [10, 9, 8, 8], [10, 10, 8, 8]) == [[9], [9]]


def test_the_largest_sums_stay_in_int32():
    """511 positions of which each could weigh 255, with the largest shift: nothing wraps (numpy would refuse)."""
    net = attend(shift=5, multiplier=(1 << 31) - 1) | {"input": (7, 73, 1), "zp": 127}
    model = reference.read(image(net))
    x = np.full((2, 7, 73, 1), -128, np.int8)
    x[1, 3, 3] = 127
    assert reference.run(model, x).tolist() == [[-128], [0]]


def test_every_operator_equals_the_scalar_telling():
    net = plain_network()
    model = reference.read(image(net))
    x = scalar.tensor(3, 5, *net["input"])
    outputs = dict(reference.trace(model, x))
    seen = {0: (x, net["zp"])} | {o["dst"]: (outputs[i], o["zp"]) for i, o in enumerate(net["ops"])}
    for i, o in enumerate(net["ops"]):
        first, zp = seen[o["src"]]
        for n, h, w, c in np.ndindex(*outputs[i].shape):
            got, tail = int(outputs[i][n, h, w, c]), (o["zp"], *o["clamp"])
            if o["kind"] == "table":
                assert got == o["table"][int(first[n, h, w, c]) + 128]
            if o["kind"] == "mul":
                second, zp2 = seen[o["src2"]]
                other = second[n, h, w, c] if second.shape == first.shape else second[n, 0, 0, c]
                product = (int(first[n, h, w, c]) - zp) * (int(other) - zp2)
                assert got == scalar.out(product, o["multiplier"], o["shift"], *tail)
            if o["kind"] == "attend":
                multiplier, shift, reach = o["softmax"]
                p = softmax_s8(seen[o["src2"]][0][n].reshape(1, -1), mult=multiplier, shift=shift, diff_min=-reach)[0]
                total = sum((int(a) + 128) * (int(b) - zp) for a, b in zip(p, first[n, :, :, c].ravel(), strict=True))
                assert got == scalar.out(total, o["multiplier"], o["shift"], *tail)
        assert np.unique(outputs[i]).size > 3, i


RULES = [
    (op(0, dst=0), "output slot 0"),
    (op(0, src=7), "slot 7 is read before"),
    (op(1, src2=7), "slot 7 is read before"),
    (op(1, src2=8), "input slot 8"),
    (op(1, dst=1), "slot 1 is read and written"),
    (op(1, shift=15), "shift 15"),
    (op(1, shift=-32), "shift -32"),
    (op(1, multiplier=1 << 31), "multiplier 2147483648"),
    (op(1, clamp=(5, 4)), "act_min"),
    (op(3, src=3, src2=1), "do not fit"),
    (op(3, src2=5), "slot 5 is read before"),
    (op(5, src2=7), "slot 7 is read before"),
    (op(5, src2=255), "input slot 255"),
    (op(5, dst=5), "slot 5 is read and written"),
    (op(5, src2=2), "scores have shape"),
    (op(5, src2=3), "scores have shape"),
    (op(5, src=3), "scores have shape"),
    (op(5, shift=6), "shift 6"),
    (op(5, shift=-32), "shift -32"),
    (op(5, multiplier=1 << 31), "multiplier 2147483648"),
    (op(5, softmax=(1 << 31, 20, 90)), "multiplier 2147483648"),
    (op(5, softmax=(1, 31, 0)), "softmax shift 31"),
    (op(5, softmax=(1, 24, 128)), "128 << 24 leaves int32"),
    (op(5, softmax=(1, 30, 2)), "2 << 30 leaves int32"),
    (top(input=(2, 256, 2)), "number of positions 512"),
    (top(input=(512, 1, 2)), "number of positions 512"),
]


def spoiled(change) -> dict:
    net = plain_network()
    change(net)
    if net["input"] != (2, 3, 2):  # all the rest of it is right
        net["ops"][2]["kernel"] = net["input"][:2]
    return net


@pytest.mark.parametrize(("change", "message"), RULES)
def test_each_rule(change, message):
    with pytest.raises(ImageError, match=message):
        reference.read(image(spoiled(change)))


@pytest.mark.parametrize(
    "change",
    [
        op(1, shift=14), op(1, shift=-31), op(1, src2=0), op(5, shift=5), op(5, softmax=(0, 30, 1)), op(5, softmax=(1, 23, 255)),
        top(input=(7, 73, 2)), top(input=(1, 511, 2)),
    ],
)  # fmt: skip
def test_the_last_value_that_is_allowed(change):
    net = spoiled(change)
    x = scalar.tensor(1, 2, *net["input"])
    assert reference.run(reference.read(image(net)), x).shape == (2, 2)


def test_places_of_tables():
    """256 bytes from the next multiple of 4 on; what is skipped is 0, and nothing may be missing."""
    net = plain_network()
    net["ops"] = [net["ops"][4] | {"src": 0, "dst": 7}, *net["ops"]]
    parts = payloads(net)
    assert len(parts["WGHT"]) == 4 + 256 + 1 and parts["WGHT"][4] == 0x80 and not any(parts["WGHT"][1:4])
    reference.read(assemble(list(parts.items())))
    for at in (1, 3):
        parts["WGHT"][at] = 1
        with pytest.raises(ImageError, match="alignment"):
            reference.read(assemble(list(parts.items())))
        parts["WGHT"][at] = 0
    table = single({"kind": "table", "table": [0] * 256}, (1, 1, 1))
    parts = payloads(table)
    del parts["WGHT"][-1]
    with pytest.raises(ImageError, match=r"table of .* takes 256 bytes, 255 are left"):
        reference.read(assemble(list(parts.items())))
