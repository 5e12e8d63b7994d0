"""The bill: every byte once, shares that add up, what storing would really cost, and Eq. 6 beside the file."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import random_images
import strategies  # noqa: F401 - registers the Hypothesis profiles
from hypothesis import given
from random_images import Generated, Stored
from rich.console import Console

from pyhtpw.errors import ConfigError
from pyhtpw.image import bill, parse, write
from pyhtpw.image.bill import GENERATION, PLAIN_BITS, _pieces, split
from pyhtpw.image.integer import bits_bytes
from pyhtpw.report import print_bill
from pyhtpw.report.bill import write_plot

EXAMPLE = random_images.example()


def stored_instead(model, bits: int):
    """The model with every generated kernel stored at `bits`: any values do for its size."""
    ops = tuple(
        replace(op, weights=Stored(np.ones(op.weights.shape, np.int8), bits)) if isinstance(op.weights, Generated) else op
        for op in model.ops
    )
    return replace(model, ops=ops, generators=(), heads=())


@given(random_images.models())
def test_everything_adds_up(model):
    data = write(model)
    figures = bill(parse(data), {"backend": "x", "arena": 5, "cache": 7})
    assert sum(figures["sections"].values()) == len(data) == figures["image_bytes"]
    spent = 0
    for tag in GENERATION:
        n = figures["sections"].get(tag, 0)
        spent += 16 + n + -n % 16 if n else 0
    made = 0
    for op, layer in zip(model.ops, figures["layers"], strict=True):
        assert sum(layer["bytes"].values()) >= 11  # a mul
        if isinstance(op.weights, Generated):
            row = figures["generated"][layer["name"]]
            n, made = int(np.prod(op.weights.shape)), made + 1
            assert row["kernel_bytes"] == n and row["metadata_bytes"] == layer["metadata_bytes"]
            assert row["stored_bytes"] == row["codes_bytes"] + row["shared_bytes"]
            assert row["stored_at"] == {str(b): bits_bytes(n, b) for b in PLAIN_BITS}
            assert row["costs_more_than_storing"] == [b for b, plain in row["stored_at"].items() if row["stored_bytes"] > plain]
            whole = {"generated": row["stored_bytes"], **row["stored_at"]}
            assert row["layer_bytes"] == {k: n + row["metadata_bytes"] for k, n in whole.items()}
    assert len(figures["generated"]) == made
    total = figures["generated_total"]
    assert (total is None) == (made == 0)
    if total:
        for key in ("kernel_bytes", "stored_bytes", "codes_bytes", "shared_bytes", "metadata_bytes"):
            assert total[key] == sum(row[key] for row in figures["generated"].values())
        assert total["stored_bytes"] == spent
    for bits in PLAIN_BITS:
        assert figures["whole_image_if_stored"][str(bits)] == len(write(stored_instead(model, bits)))
    omits = dict(figures["eq6_omits"])
    assert omits.pop("total") == sum(omits.values()) == len(data) - figures["eq6_bytes"]
    assert sum(figures["eq6"].values()) == figures["eq6_bytes"] and figures["sram"]["total"] == 12


def test_eq6_is_the_sum_over_weight_tensors():
    figures = bill(parse(write(EXAMPLE)))
    heads = 128 + 220 + (20 + 288) + 352 + 0 + bits_bytes(45, 4) + bits_bytes(15, 6) + 32
    assert figures["eq6"]["generator"] == bits_bytes(24, 6) + 12 + bits_bytes(30, 4)
    assert figures["eq6"]["heads"] == heads
    assert figures["eq6"]["codes"] == figures["sections"]["CODE"]
    assert figures["eq6"]["pw1"] == 0  # the first conv1x1 is generated
    assert figures["eq6"]["backbone"] == bits_bytes(48, 2) + bits_bytes(24, 4) + bits_bytes(55, 4) + 11 + 33
    assert figures["eq6_omits"]["tables"] == 256
    assert figures["eq6_omits"]["operator_records"] == figures["sections"]["OPS"]
    stored = bill(parse(write(stored_instead(EXAMPLE, 4))))
    assert stored["eq6"]["pw1"] == 32 and stored["generated_total"] is None and stored["generated"] == {}


def dearer(section: str, lengths: str, entry: int) -> set[str]:
    """Layers that pay more if an entry of GENR or HEAD were 1600 bytes longer."""
    parsed = parse(write(EXAMPLE))
    before = bill(parsed)["generated"]
    offset, length = parsed.sections[section]
    parsed.sections[section] = (offset, length + 1600)
    parsed.data += bytes(1600)
    longer = list(getattr(parsed, lengths))
    longer[entry] += 1600
    setattr(parsed, lengths, tuple(longer))
    after = bill(parsed)["generated"]
    more = {name: after[name]["shared_bytes"] - before[name]["shared_bytes"] for name in before}
    assert sum(more.values()) == 1600
    paying = {name for name, n in more.items() if n}
    weights = sum(before[name]["kernel_bytes"] for name in paying)
    assert all(abs(more[name] - 1600 * before[name]["kernel_bytes"] / weights) < 2 for name in paying)
    return paying


def test_shares_follow_use():
    """Generators and heads are paid by the layers behind them alone, by weights made."""
    assert dearer("GENR", "generator_bytes", 2) == {"conv1x14", "conv1x110"}  # through heads 2 and 3
    assert dearer("GENR", "generator_bytes", 0) == {"conv0", "depthwise1", "conv1x12", "conv1x15"}  # and a codebook's maker
    assert dearer("HEAD", "head_bytes", 0) == {"conv0", "conv1x12"}  # a tiled head, and the codebook that it makes
    assert dearer("HEAD", "head_bytes", 5) == {"conv1x17"}


def test_shared_matrices_are_paid_by_all_who_use_them():
    parsed = parse(write(EXAMPLE))
    assert _pieces(parsed, 2) == {(2, "rest"), (2, "b"), (2, "a")}
    assert _pieces(parsed, 3) == {(3, "rest"), (2, "b"), (3, "a")}
    assert _pieces(parsed, 7) == {(7, "rest"), (7, "b"), (2, "a")}
    assert _pieces(parsed, 6) == {(6, "rest"), (0, "rest")}


@pytest.mark.parametrize(("amount", "weights"), [(10, [1, 1, 1]), (0, [5]), (7, [100, 1, 0, 3]), (1, [1] * 9)])
def test_split_is_exact(amount, weights):
    parts = split(amount, weights)
    assert sum(parts) == amount and min(parts) >= 0
    assert all(abs(p - amount * w / sum(weights)) < 1 for p, w in zip(parts, weights, strict=True))


def test_published_sram_claim_stands_beside_the_plan():
    sram = bill(parse(write(EXAMPLE)), {"backend": "armv7em_dsp", "arena": 1000, "cache": 640})["sram"]
    assert sram["total"] == 1640 and sram["activation"] == 3 * 96  # an add reads two tensors
    assert sram["workspace"] == 88 and sram["published"] == 288


def full() -> dict:
    return bill(parse(write(EXAMPLE)), {"backend": "armv7em_dsp", "arena": 12345, "cache": 640})


@pytest.mark.parametrize("width", [40, 80, 160])
def test_bill_is_printed(width):
    out = io.StringIO()
    figures = full()
    print_bill(figures, Console(file=out, width=width))
    printed = " ".join(out.getvalue().split())
    assert f"{figures['eq6_bytes']:,}" in printed and "It leaves out" in printed
    assert "published:" in printed and "12,345" in printed
    assert max(map(len, out.getvalue().splitlines())) <= width


def test_bill_is_drawn(tmp_path):
    figures = full()
    write_plot(figures, tmp_path / "bill.svg")
    write_plot(figures, tmp_path / "again.svg")
    text = (tmp_path / "bill.svg").read_text()
    assert text == (tmp_path / "again.svg").read_text()
    for words in ("Eq. 6: heads", "stored at 2 bits", "conv1x110", f"{figures['eq6_bytes']:,}", "GENR"):
        assert words in text, words
    write_plot(figures, tmp_path / "bill.png")
    assert (tmp_path / "bill.png").read_bytes()[:4] == b"\x89PNG"
    write_plot(bill(parse(write(stored_instead(EXAMPLE, 8)))), tmp_path / "plain.png")
    with pytest.raises(ConfigError, match="bill.jpg: a figure is a .png or an .svg"):
        write_plot(figures, tmp_path / "bill.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        write_plot(figures, tmp_path / "file" / "bill.png")


def test_bill_is_json():
    assert json.loads(json.dumps(full())) == full()
