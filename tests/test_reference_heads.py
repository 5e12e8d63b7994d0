"""Generators and heads: what each kind makes, worked out by hand, and what the reader refuses.

The expectations of the first half are written out as numbers, with the sums that lead to them; a
matrix of ``reference_images`` halves its sums, with ties up as section 2 has it.
"""

from __future__ import annotations

import numpy as np
import pytest
from reference_images import (
    CODEBOOK,
    DENSE,
    FACTORISED,
    SEEDED,
    TILED,
    assemble,
    generator,
    head,
    image,
    layer,
    matrix,
    network,
    payloads,
    plain,
    single,
    stored_network,
    top,
)

import reference
from reference import ImageError, synthesis
from reference.heads import draw

PASS = {"dz": 2, "layers": []}  # no layers: h is the code


def kernel(op: dict, generators: list[dict], heads: list[dict], narrow: bool = False) -> list[int]:
    """The weights that the reference makes for a network of ``op`` alone, in row-major order."""
    cin = 2 if op["kind"] == "depthwise" else len(op.pop("x"))
    net = single(op | {"narrow": narrow}, (1, 1, cin), generators, heads)
    model = reference.read(image(net))
    w = synthesis.kernels(model)[0]
    assert w.dtype == np.int8
    assert np.array_equal(w, synthesis.weights(model, 0))
    return w.reshape(-1).tolist()


def fc(cin: int, cout: int, source: int, codes: list[int], code_bits: int, **rest) -> dict:
    """An fc with a head; codes of 4, 6 or 8 bits, ids of any other width."""
    width = {4: 1, 6: 2, 8: 3}[code_bits] if source != CODEBOOK else 0
    op = plain("fc", cin, cout, source=source, width=width, codes=codes, code_bits=code_bits)
    return op | {"x": [0] * cin} | rest


def test_the_first_bytes_of_seed_1_by_hand():
    # s = 1: 1 ^ 1 << 13 = 0x00002001; >> 17 gives 0; ^ 0x00040020 = 0x00042021.
    # 0x00042021: ^ 0x84042000 = 0x84000021; ^ 0x00004200 = 0x84004221; ^ 0x80084420 = 0x04080601.
    # 0x04080601: ^ 0x00c02000 = 0x04c82601; ^ 0x00000264 = 0x04c82465; ^ 0x99048ca0 = 0x9dcca8c5.
    # 0x9dcca8c5: ^ 0x9518a000 = 0x08d408c5; ^ 0x0000046a = 0x08d40caf; ^ 0x1a8195e0 = 0x1255994f.
    expected = [
        0x21, 0x20, 0x04, 0x00,
        0x01, 0x06, 0x08, 0x04,
        0xC5 - 256, 0xA8 - 256, 0xCC - 256, 0x9D - 256,
        0x4F, 0x99 - 256, 0x55, 0x12,
    ]  # fmt: skip
    assert draw(1, 16).tolist() == expected
    assert draw(1, 13).tolist() == expected[:13]
    assert draw(2**32 - 1, 1).dtype == np.int8


def test_dense():
    # z = (3, -2); rows: 10*3 + 1*-2 + 0 = 28 -> 14; -7*3 + 4*-2 + 6 = -23 -> -11.5 -> -11;
    # 127*3 - -128*2 = 637 -> 318.5 -> 127; -128*3 = -384 -> -192 -> -127.
    h = matrix(4, [10, 1, -7, 4, 127, -128, -128, 0], [0, 6, 0, 0])
    heads = [{"kind": DENSE, "generator": 0, "h": h}]
    assert kernel(fc(2, 2, DENSE, [3, -2], 4), [PASS], heads) == [14, -11, 127, -127]
    assert kernel(fc(2, 2, DENSE, [3, -2], 4), [PASS], heads, narrow=True) == [7, -7, 7, -7]


def test_layers_are_clamped_to_0_and_127():
    # z = (-8, 31) of 6 bits. Layer 0: 2*-8 + 31 = 15 -> 8; -8*1 = -8 -> -4 -> 0; 31*9 = 279 -> 139.5 -> 127.
    # Layer 1: 8 - 0 + 127 = 135 -> 68; 127 * -1 -> 0.
    # H: 68 + 5 = 73 -> 37 (36.5); -3 * 68 = -204 -> -102.
    layers = [matrix(3, [2, 1, 1, 0, 0, 9]), matrix(2, [1, -1, 1, 0, 0, -1])]
    heads = [{"kind": DENSE, "generator": 1, "h": matrix(2, [1, 7, -3, 99], [5, 0])}]
    generators = [PASS, {"dz": 2, "layers": layers}]
    assert kernel(fc(2, 1, DENSE, [-8, 31], 6), generators, heads) == [37, -102]


def test_factorised():
    # z = (100, -100) of 8 bits. B: 100 + 100 = 200 -> 100; 3*-100 = -300 -> -150 -> -127 (not 0, not -7).
    # A: 100 -> 50; -127 -> -63.5 -> -63; 100 - 127 = -27, +1 = -26 -> -13; 0 + 5 -> 2.5 -> 3.
    b = matrix(2, [1, -1, 0, 3])
    a = matrix(4, [1, 0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 5])
    own = {"kind": FACTORISED, "generator": 0, "b_of": 255, "a_of": 255, "r": 2, "b": b, "a": a}
    assert kernel(fc(2, 2, FACTORISED, [100, -100], 8), [PASS], [own]) == [50, -63, -13, 3]
    assert kernel(fc(2, 2, FACTORISED, [100, -100], 8), [PASS], [own], narrow=True) == [7, -7, -7, 3]


def test_factorised_with_shared_matrices():
    b = matrix(2, [1, -1, 0, 3])
    a = matrix(4, [1, 0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 5])
    heads = [
        {"kind": FACTORISED, "generator": 0, "b_of": 255, "a_of": 255, "r": 2, "b": b, "a": a},
        # B: 2*100 -> 100, -100 -> -50, of a generator with one value; A: 50, -25, 100 - 50 + 1 = 51 -> 26 (25.5), 3.
        {"kind": FACTORISED, "generator": 1, "b_of": 255, "a_of": 0, "r": 2, "b": matrix(2, [2, -1])},
        # B of head 0 as above: 100, -127; A: 2*100 - 127 = 73 -> 37 (36.5); -127 -> -63.
        {"kind": FACTORISED, "generator": 0, "b_of": 0, "a_of": 255, "r": 2, "a": matrix(2, [2, 1, 0, 1])},
        {"kind": FACTORISED, "generator": 0, "b_of": 0, "a_of": 0, "r": 2},
    ]
    generators = [PASS, {"dz": 1, "layers": []}]
    assert kernel(fc(2, 2, FACTORISED, [100], 8, head=1), generators, heads) == [50, -25, 26, 3]
    assert kernel(fc(2, 1, FACTORISED, [100, -100], 8, head=2), generators, heads) == [37, -63]
    assert kernel(fc(2, 2, FACTORISED, [100, -100], 8, head=3), generators, heads) == [50, -63, -13, 3]


def test_tiled_cuts_off_the_last_tile():
    # H = (1, 0), (0, 1), (1, 1) with a bias of 1 on the last row.
    # z = (6, 3): 3, 1.5 -> 2, 10/2 = 5. z = (-5, 1): -2.5 -> -2, 0.5 -> 1, -3/2 -> -1.
    # z = (7, 7): 3.5 -> 4, 4, 7.5 -> 8, of which one is needed.
    heads = [{"kind": TILED, "generator": 0, "h": matrix(3, [1, 0, 0, 1, 1, 1], [0, 0, 1])}]
    codes = [6, 3, -5, 1, 7, 7]
    assert kernel(fc(7, 1, TILED, codes, 4), [PASS], heads) == [3, 2, 5, -2, 1, -1, 4]
    assert kernel(fc(3, 3, TILED, codes, 4), [PASS], heads) == [3, 2, 5, -2, 1, -1, 4, 4, 8]
    assert kernel(fc(3, 3, TILED, codes, 4), [PASS], heads, narrow=True) == [3, 2, 5, -2, 1, -1, 4, 4, 7]


def test_seeded():
    # H of seed 1 with tile 3: (33, 32), (4, 0), (1, 6); 2 bytes of the second state are dropped.
    # z = (1, 1): 65 -> 32.5 -> 33, 4 -> 2, 7 -> 4 (3.5). z = (-2, 5): -66 + 160 = 94 -> 47, -8 -> -4, 28 -> 14.
    heads = [{"kind": SEEDED, "generator": 0, "tile": 3, "shift": 0, "m": 16384, "seed": 1}]
    assert kernel(fc(5, 1, SEEDED, [1, 1, -2, 5], 6), [PASS], heads) == [33, 2, 4, 47, -4]
    assert kernel(fc(5, 1, SEEDED, [1, 1, -2, 5], 6), [PASS], heads, narrow=True) == [7, 2, 4, 7, -4]


def test_codebook_of_a_stored_table():
    table = {"kind": CODEBOOK, "generator": 0, "of": 255, "entries": 3, "tile": 2}
    heads = [table | {"bits": 8, "table": [-128, 127, 1, 2, 3, 4]}]
    assert kernel(fc(5, 1, CODEBOOK, [2, 0, 1], 2), [], heads) == [3, 4, -128, 127, 1]
    # Stored rows are not clamped to -7: the packed kernels hold -8.
    heads = [table | {"bits": 4, "table": [-8, 7, 1, 2, 3, 4]}]
    assert kernel(fc(5, 1, CODEBOOK, [2, 0, 1], 2), [], heads, narrow=True) == [3, 4, -8, 7, 1]
    heads = [table | {"bits": 2, "table": [-2, 1, 0, -1, 1, 1]}]
    assert kernel(fc(5, 1, CODEBOOK, [2, 0, 1], 2), [], heads, narrow=True) == [1, 1, -2, 1, 0]
    # One entry takes no ids at all.
    heads = [table | {"entries": 1, "bits": 2, "table": [-2, 1]}]
    assert kernel(fc(5, 1, CODEBOOK, [0, 0, 0], 0), [], heads) == [-2, 1, -2, 1, -2]


def test_codebook_of_made_entries():
    heads = [
        {"kind": TILED, "generator": 0, "h": matrix(3, [1, 0, 0, 1, 1, 1], [0, 0, 1])},
        # Entries (3, 2, 5), (-2, 1, -1), (16, -16, -1 + 1 = 0).
        {"kind": CODEBOOK, "generator": 0, "of": 0, "entries": 3, "width": 6, "codes": [6, 3, -5, 1, 31, -32]},
        {"kind": SEEDED, "generator": 0, "tile": 3, "shift": 0, "m": 16384, "seed": 1},
        # Entries (33, 2, 4) and (47, -4, 14) as in test_seeded.
        {"kind": CODEBOOK, "generator": 0, "of": 2, "entries": 2, "width": 8, "codes": [1, 1, -2, 5]},
    ]
    op = fc(8, 1, CODEBOOK, [2, 0, 1], 2, head=1)
    assert kernel(dict(op), [PASS], heads) == [16, -16, 0, 3, 2, 5, -2, 1]
    assert kernel(dict(op), [PASS], heads, narrow=True) == [7, -7, 0, 3, 2, 5, -2, 1]
    op = fc(4, 1, CODEBOOK, [1, 0], 1, head=3)
    assert kernel(op, [PASS], heads) == [47, -4, 14, 33]


@pytest.mark.parametrize("kind", [DENSE, TILED, CODEBOOK])
def test_depthwise_kernels_are_made_filter_by_filter(kind):
    # Two filters of 1 x 3: made as a0 a1 a2 b0 b1 b2, row-major (Kh, Kw, Cout) is a0 b0 a1 b1 a2 b2.
    made = [2, 4, 6, -8, -6, -4]
    h = matrix(6, [value for v in made for value in (v, 0)])
    heads = {
        DENSE: {"kind": DENSE, "generator": 0, "h": h},
        TILED: {"kind": TILED, "generator": 0, "h": h},
        CODEBOOK: {"kind": CODEBOOK, "generator": 0, "of": 255, "entries": 1, "tile": 6, "bits": 4, "table": made},
    }
    op = plain("depthwise", 2, 2, source=kind, kernel=(1, 3), codes=[2, 0], code_bits=4, width=1)
    if kind == CODEBOOK:
        op |= {"codes": [0], "code_bits": 0, "width": 0}
    expected = [2, -8, 4, -6, 6, -4]
    assert kernel(op, [PASS], [heads[kind]]) == expected
    # Stored weights are row-major.
    op = plain("depthwise", 2, 2, source=1, kernel=(1, 3), w=made, weight_bits=4)
    assert kernel(op, [], []) == made


def test_stored4_and_stored2():
    """-8..7 and -2..1 from the low bits up, through an fc that gives its sums."""
    for source, width, w in ((1, 4, [-8, 7, 3, 0, -1, 1]), (2, 2, [-2, 1, 0, -1, -1, 1])):
        for narrow in (False, True):
            op = plain("fc", 3, 2, source=source, narrow=narrow, w=w, weight_bits=width)
            net = single(op, (1, 1, 3), [], [])
            parts = payloads(net)
            packed = {4: bytes([0x78, 0x03, 0x1F]), 2: bytes([0b11000110, 0b0111])}[width]
            assert parts["WGHT"] == packed
            model = reference.read(assemble(list(parts.items())))
            # x = (11, 3, 1): -88 + 21 + 3 = -64; -1*3 + 1 = -2; and -22 + 3 = -19; -11 - 3 + 1 = -13.
            x = np.array([[[[11, 3, 1]]]], np.int8)
            expected = [-64, -2] if width == 4 else [-19, -13]
            assert reference.run(model, x).tolist() == [expected]
            assert synthesis.weights(model, 0).reshape(-1).tolist() == w
            assert sorted(synthesis.kernels(model)) == ([] if width == 4 and narrow else [0])


def test_multiplier_forms():
    """40 times M * 2^-31, by hand: 0.75, 1.5 (255: 1.996...), and 2^31 - 1 that just rounds up again."""
    x = np.array([[[[40]]]], np.int8)
    for form, stored, expected in (
        (0, 24576, 30), (0, 32767, 40), (1, 0, 20), (1, 128, 30), (1, 255, 40),
        (2, 3 << 29, 30), (2, (1 << 31) - 1, 40), (2, 1, 0),
    ):  # fmt: skip
        op = plain("fc", 1, 1, form=form, m=[stored], shift_base=0, w=[1], weight_bits=8)
        model = reference.read(image(single(op, (1, 1, 1), [], [])))
        assert reference.run(model, x).tolist() == [[expected]], (form, stored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (top(generator_count=0), "generators 0"),
        (top(generator_count=9), "generators 9"),
        (top(generator_count=2), "left over"),
        (top(generator_count=4), "GENR: GENR 3 takes 3 bytes"),
        (generator(2, count=4), "layers 4"),
        (generator(2, count=0), "left over"),
        (generator(0, dz=0), "dz 0"),
        (generator(1, dz=1025), "dz 1025"),
        (layer(0, rows=0), "GENR 0 layer 0: rows 0"),
        (layer(0, rows=1025), "GENR 0 layer 0: rows 1025"),
        (layer(0, weight_bits=7), "weight_bits 7"),
        (layer(0, bias_bits=33), "bias_bits 33"),
        (layer(1, shift=-32), "shift -32"),
        (layer(1, shift=31), "shift 31"),
        (layer(1, m=32768), "multiplier 32768"),
        (layer(1, shift=15), "GENR 0 layer 1: sums .* limit is 2\\^30"),
        (top(heads=[]), "head 6 does not exist"),
        (top(head_count=0), "heads 0"),
        (top(head_count=65), "heads 65"),
        (top(head_count=13), "left over"),
        (head(0, code=2), "kind 2 is unknown"),
        (head(0, code=8), "kind 8 is unknown"),
        (head(0, generator=3), "HEAD 0: generator 3 does not exist"),
        (head(7, generator=3), "HEAD 7: generator 3 does not exist"),
        (head(8, generator=1), "generator of a codebook"),
        (head(9, generator=1), "HEAD 9: of 6 has another generator"),
        (head(10, generator=0), "HEAD 10: of 7 has another generator"),
        (head(10, generator=3), "HEAD 10: generator 3 does not exist"),
        (head(0, "h", rows=0), "HEAD 0: rows 0"),
        (head(0, "h", weight_bits=2), "HEAD 0: weight_bits 2"),
        (head(0, "h", bias_bits=33), "HEAD 0: bias_bits 33"),
        (head(0, "h", m=32768), "HEAD 0: multiplier 32768"),
        (head(0, "h", shift=20), "HEAD 0: sums"),
        (head(6, "h", rows=0), "HEAD 6: rows 0"),
        (head(6, "h", shift=-32), "HEAD 6: shift -32"),
        (head(6, "h", shift=31), "HEAD 6: shift 31"),
        (head(6, "h", shift=20), "HEAD 6: sums"),
        (head(2, "b", rows=0), "HEAD 2 B: rows 0"),
        (head(2, "b", rows=1025), "HEAD 2 B: rows 1025"),
        (head(2, "b", shift=20), "HEAD 2 B: sums"),
        (head(2, "a", rows=0), "HEAD 2 A: rows 0"),
        (head(2, "a", weight_bits=5), "HEAD 2 A: weight_bits 5"),
        (head(2, "a", shift=20), "HEAD 2 A: sums"),
        (head(4, b_of=4), "b_of 4 is not an earlier head"),
        (head(4, b_of=254), "b_of 254 is not an earlier head"),
        (head(4, b_of=0), "b_of 0 is a dense head"),
        (head(5, b_of=4), "b_of 4 does not hold its own B"),
        (head(5, b_of=3), "b_of 3 has another generator"),
        (head(3, a_of=3), "a_of 3 is not an earlier head"),
        (head(3, a_of=1), "a_of 1 is a dense head"),
        (head(5, a_of=3), "a_of 3 does not hold its own A"),
        (head(2, r=0), "HEAD 2: r 0"),
        (head(2, r=1025), "HEAD 2: r 1025"),
        (head(2, r=2), "HEAD 2: B has 3 rows, r is 2"),
        (head(4, r=4), "HEAD 4: B has 3 rows, r is 4"),
        (head(3, "b", rows=2, w=[0] * 10, bias=[0] * 2), "HEAD 3: B has 2 rows, r is 3"),
        (head(7, tile=0), "HEAD 7: tile"),
        (head(7, shift=-32), "HEAD 7: shift -32"),
        (head(7, shift=31), "HEAD 7: shift 31"),
        (head(7, m=32768), "HEAD 7: multiplier 32768"),
        (head(7, seed=0), "seed must not be 0"),
        (head(7, shift=20), "HEAD 7: sums"),
        (head(8, entries=0), "entries 0"),
        (head(8, entries=257), "entries 257"),
        (head(8, tile=0), "HEAD 8: tile"),
        (head(8, bits=6), "HEAD 8: bits 6"),
        (head(8, bits=0), "HEAD 8: bits 0"),
        (head(9, entries=0), "entries 0"),
        (head(9, entries=257), "entries 257"),
        (head(9, width=2), "HEAD 9: width 2"),
        (head(9, of=9), "of 9 is not an earlier head"),
        (head(9, of=2), "of 2 is a factorised head"),
        (head(9, of=0), "of 0 is a dense head"),
        (head(9, of=8), "of 8 is a codebook head"),
    ],
)
def test_each_rule(change, message):
    net = network()
    change(net)
    with pytest.raises(ImageError, match=message) as caught:
        reference.read(image(net))
    assert "\n" not in str(caught.value)


def test_a_shared_matrix_has_the_same_rank():
    net = network()
    net["heads"][3] |= {"r": 2}
    net["heads"][3]["b"] |= {"rows": 2, "w": [0] * 10, "bias": [0] * 2}
    with pytest.raises(ImageError, match="HEAD 3: A has 3 columns, r is 2"):
        reference.read(image(net))


def test_heads_and_generators_may_be_many():
    net = stored_network()
    net["generators"] = [{"dz": 1024, "layers": []}] * 8
    net["heads"] = [{"kind": SEEDED, "generator": 7, "tile": 4096, "shift": 0, "m": 1, "seed": 1}] * 64
    model = reference.read(image(net))
    assert len(model.generators) == 8
    assert len(model.heads) == 64
    net["heads"] = [net["heads"][0] | {"tile": 4097}]
    with pytest.raises(ImageError, match=r"HEAD 0: tile 4097 is not in 1\.\.4096"):
        reference.read(image(net))


def test_only_codebooks_of_stored_tables_can_be_without_generators():
    net = network(use=("stored8", 8, 8, 11, 8, 13))
    net["heads"] = [net["heads"][8], net["heads"][11], net["heads"][13]]
    net["generators"] = []
    for op in net["ops"]:
        if "codes" in op:
            op["head"] = (8, 11, 13).index(op["head"])
    reference.read(image(net))
    parts = payloads(network())
    parts["GENR"] = bytearray()
    with pytest.raises(ImageError, match="HEAD 0: generator 0 does not exist"):
        reference.read(assemble(list(parts.items())))


def test_every_id_must_be_an_entry():
    net = network()
    assert net["heads"][9]["entries"] == 4
    net["heads"][9] |= {"entries": 3, "codes": net["heads"][9]["codes"][:6]}
    net["ops"][6]["codes"] = [0, 2, 1, 2, 0]
    reference.read(image(net))
    net["ops"][6]["codes"][3] = 3
    with pytest.raises(ImageError, match="CODE: codes of .*operator 6 .*: id 3 of 3 entries"):
        reference.read(image(net))


def test_the_overflow_bound_of_the_synthesis_is_exact():
    # Generators make 4, 5 and 5 values here; 4 * 128 * 128 = 2^16 and 5 * 128 * 128 = 1.25 * 2^16.
    for index, part, fits in ((0, "h", 13), (7, "", 13), (6, "h", 13), (2, "b", 13), (2, "a", 14)):
        net = network(layers=(2, 0, 1))
        target = net["heads"][index][part] if part else net["heads"][index]
        target["shift"] = fits
        if part:
            target |= {"bias_bits": 0, "bias": [0] * target["rows"]}
        reference.read(image(net))
        target["shift"] = fits + 1
        with pytest.raises(ImageError, match=f"HEAD {index}.*: sums"):
            reference.read(image(net))
    net = network()
    limit = (1 << 28) - 3 * 128 * 128
    net["generators"][0]["layers"][0] |= {"shift": 2, "bias_bits": 32, "bias": [0, 0, limit - 1, 0, 0]}
    reference.read(image(net))
    net["generators"][0]["layers"][0]["bias"][2] = -limit
    with pytest.raises(ImageError, match="GENR 0 layer 0: sums"):
        reference.read(image(net))
