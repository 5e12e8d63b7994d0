"""The fuzz targets build and find nothing in a few seconds; inputs that once found something are shown to C and Python.

`make fuzz` runs the targets for longer. Files in tests/vectors/fuzz begin with the name of their target and the control bytes of
tests/fuzz/fuzz.h.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pyhtpw import _native
from pyhtpw.errors import ImageError
from pyhtpw.flash import Flash
from pyhtpw.model import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "fuzz"))

import fuzz_reader  # noqa: E402
import make_seeds  # noqa: E402
import run  # noqa: E402

FOUND = sorted((ROOT / "tests" / "vectors" / "fuzz").iterdir())
SEEDS = {f"{name}": data for name, data in make_seeds.images().items()}


@pytest.mark.parametrize("target", run.TARGETS)
def test_smoke(target, tmp_path):
    try:
        run.need(target)
    except run.NotRun as reason:
        pytest.skip(f"NOT RUN: {reason}")
    run.build(target, 2)
    row = run.fuzz(target, seconds=3, runs=2000, corpus=tmp_path / "corpus")
    assert row.status == "PASS", row
    assert row.executions > 10 and row.coverage > 100, row


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found_once(path):
    control, data = path.read_bytes()[:8], path.read_bytes()[8:]
    if path.name.startswith("codes-"):
        assert fuzz_reader.check_pack(data) in ("refused", "run")
        return
    if fuzz_reader.check(data) == "run":
        every_schedule(data, control)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found_once_under_sanitizers(path):
    target = path.name.split("-")[0]
    try:
        run.need(target)
    except run.NotRun as reason:
        pytest.skip(f"NOT RUN: {reason}")
    assert run.replay([path]) == 0


def every_schedule(data: bytes, control: bytes) -> None:
    """As fuzz_image.c: all schedules and backends give the same logits, from a flash that holds anything, with a power cut."""
    image = Image(data)
    x = np.random.default_rng(control[6]).integers(-128, 128, image.plan().input).astype(np.int8)
    page = 4 << (control[3] & 7)
    erase = page * (1 + (control[3] >> 3 & 7))
    expected = image.bind("boot", "portable").run(x).tolist()
    for backend in _native.available_backends():
        for schedule in ("boot", "lazy"):
            assert image.bind(schedule, backend).run(x).tolist() == expected
        room = 2 * page + 32 + image.plan(backend).cache
        flash = Flash(room + -room % erase, page, erase)
        if control[4] & 1:
            flash.memory[:] = np.random.default_rng(0).integers(0, 256, flash.memory.size)
        flash.power(control[5])
        try:
            image.bind_flash(flash, "streamed", backend)
        except ImageError:
            assert flash.is_off
        flash.power()
        assert image.bind_flash(flash, "streamed", backend).run(x).tolist() == expected
        assert image.bind_flash(flash, "installed", backend).run(x).tolist() == expected
        assert flash.violations == 0


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_what_they_should_be(name):
    """Each is accepted by everybody and runs, since a fuzzer that starts from refused images finds little."""
    assert fuzz_reader.check(SEEDS[name]) == "run"
    every_schedule(SEEDS[name], bytes((0, 0, 0, 9, 1, 5, 1, 0)))


def test_packs_among_the_seeds():
    for name, data in make_seeds.packs(make_seeds.base()).items():
        assert fuzz_reader.check_pack(data) == "run", name


def test_splitting_and_joining_change_nothing():
    for data in SEEDS.values():
        assert fuzz_reader.join(fuzz_reader.split(data)) == data
    pack = make_seeds.packs(make_seeds.base())["all"]
    assert fuzz_reader.mend_pack(pack) == pack
