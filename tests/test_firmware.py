"""Firmware on QEMU boards: bytes equal the host's, memory is what was promised, and everything that can go wrong is named.

The default run takes Cortex-M0, M4 and M55; `tests/full_matrix.py` has every board, schedule, compiler, level and float ABI.
"""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import random_images
import test_codes_device as packs
from typer.testing import CliRunner

from pyhtpw.cli import app
from pyhtpw.errors import ConfigError, MissingToolError, VerifyError
from pyhtpw.image import write
from pyhtpw.model import Image
from pyhtpw.target import boards, costs, firmware, measure, session, stack, toolchain
from pyhtpw.target.firmware import FitError, Settings
from pyhtpw.target.qemu import BoardError
from pyhtpw.verify import sample_windows

SMALL = firmware.FOLDER / "ecg-small.htpw"
FULL = toolchain.ROOT / "results" / "mitdb-first.htpw"
GCC = Settings(compiler="gcc")
needs_tools = pytest.mark.skipif(
    (reason := boards.find_tools(GCC)) is not None or toolchain.tools()["pyelftools"] is None,
    reason=f"NOT RUN: {reason or 'pyelftools is missing'}",
)


@pytest.fixture(scope="module")
def small():
    return Image.open(SMALL)


@pytest.fixture(scope="module")
def every():
    """An image with every operator and head kind."""
    return Image(write(random_images.example()), "every operator")


def counted(image, board, schedule, windows=2):
    built = firmware.build(firmware.board_named(board), image, schedule, GCC)
    store = session.installed(built, image) if schedule == "installed" else None
    return built, session.run(built, sample_windows(image, windows), count=True, selftest=False, store=store)


# What it is for

@needs_tools
@pytest.mark.parametrize(("board", "schedule"), [("microbit", "boot"), ("mps2-an386", "installed"), ("mps3-an547", "lazy")])
def test_boards_give_the_hosts_bytes(small, board, schedule):
    (row,) = boards.matrix(small, sample_windows(small, 8), [board], [schedule], GCC)
    kernels = sum(kernel.bytes for kernel in small.cached)
    assert row.refused is None and row.differ == 0, row
    assert row.compared == 3 * (kernels + 8 * small.plan().output), "three pairs: numpy, C here, the board"


@needs_tools
@pytest.mark.parametrize("schedule", ["boot", "lazy", "streamed"])
def test_every_operator_runs_on_a_board(every, schedule):
    (row,) = boards.matrix(every, sample_windows(every, 3), ["mps2-an386"], [schedule], GCC)
    assert row.refused is None and row.differ == 0, row


@needs_tools
@pytest.mark.parametrize(("cut", "resets"), [(0, 2), (1, 1)])
def test_a_code_pack_survives_a_power_cut_and_a_reset(cut, resets):
    """Cut 0 tears the first page: the old codes run, the pack is sent again. Cut 1 comes behind the last byte that counts."""
    base, pack = Image(packs.BASE, "base"), packs.PACKS[2]
    x = sample_windows(base, 3)
    built = firmware.build(firmware.board_named("mps2-an386"), base, "boot", GCC, pack=pack)
    done = session.run(built, x, kernels=True, cut=cut)
    new = Image(packs.apply_pack(packs.BASE, pack)).run_batch(x)
    assert len(done.resets) == resets and "power failed" in done.resets[0]
    assert np.array_equal(done.logits[0], base.run_batch(x)) and not np.array_equal(base.run_batch(x), new)
    last = max(done.logits)
    assert done.packs[0] == 0 and done.packs[last] == 2 and np.array_equal(done.logits[last], new)
    assert np.array_equal(done.logits[1], new if cut else base.run_batch(x))
    (row,) = boards.matrix(base, x, ["mps2-an386"], ["streamed"], GCC, pack=pack, cut=cut)
    assert row.differ == 0 and row.pack == 2


@needs_tools
@pytest.mark.parametrize("cut", [0, 4])
def test_streaming_kernels_to_flash_resumes_after_a_power_cut(small, cut):
    x = sample_windows(small, 2)
    built = firmware.build(firmware.board_named("mps3-an547"), small, "streamed", GCC)
    done = session.run(built, x, cut=cut, keep=True)
    assert done.resets == ["power failed, reset"] and list(done.logits) == [1]
    assert np.array_equal(done.logits[1], small.run_batch(x))
    assert done.store == session.installed(built, small), "the store is what it is without a cut"


@needs_tools
def test_a_difference_is_found(small, monkeypatch):
    """The comparison can fail: a board whose logits are changed by one is reported, with its place."""
    true_run = session.run

    def wrong(*args, **options):
        done = true_run(*args, **options)
        done.logits[0][1, 0] ^= 1
        return done

    monkeypatch.setattr(session, "run", wrong)
    (row,) = boards.matrix(small, sample_windows(small, 2), ["mps2-an386"], ["boot"], GCC)
    assert row.differ == 2 and "window 1, class 0" in row.first, "it differs from numpy and from C here"


# What it measures

@needs_tools
def test_steady_state_is_the_same_by_every_schedule_to_the_instruction(small):
    runs = {schedule: counted(small, "mps2-an386", schedule)[1] for schedule in ("boot", "lazy", "streamed")}
    steady = {schedule: done.phases[-1].cost.instructions for schedule, done in runs.items()}
    assert len(set(steady.values())) == 1, steady
    boot, lazy = runs["boot"], runs["lazy"]
    assert boot.phase("run", 0).cost.instructions == steady["boot"] < lazy.phase("run", 0).cost.instructions
    assert lazy.phase("bind").cost.instructions < boot.phase("bind").cost.instructions


@needs_tools
def test_layers_add_up_to_the_inference(small):
    built, done = counted(small, "mps3-an547", "boot")
    counts, _, layers = measure.counted(small, built, done)
    assert [row["name"] for row in counts["layers"]] == [op.name for op in small.parsed.ops] + ["start and end"]
    assert sum(row["instructions"] for row in counts["layers"]) == counts["phases"]["inference"]["instructions"]
    assert sum(counts["phases"]["inference"]["classes"].values()) == counts["phases"]["inference"]["instructions"]
    macs = {op.name: op for op in small.parsed.ops}
    assert max(layers[:-1], key=lambda row: row[2].instructions)[0] in macs
    assert counts["inferences_until_1_percent"] > 0


@needs_tools
def test_the_report_accounts_for_every_byte(small, tmp_path):
    found = measure.report(small, firmware.board_named("mps2-an386"), "boot", GCC, sample_windows(small, 2))
    assert found["flash"]["sections"]["image"] == len(small.data)
    built = firmware.build(firmware.board_named("mps2-an386"), small, "boot", GCC)
    loaded = sum(len(s.data) for s in built.elf.segments)
    padding = loaded - found["flash"]["total"]
    assert 0 <= padding < 16 * len(found["flash"]["sections"]), "what is loaded is what the table says, and alignment"
    memory = found["sram"]
    plan = small.plan("armv7em_dsp")
    assert memory["sections"]["arena"] == plan.arena and memory["sections"]["cache"] == plan.cache
    for row in memory["stack"]:
        assert 0 < row["seen"] <= row["bound"], row
    assert memory["stack_seen"] <= memory["stack_bound"] <= firmware.STACK
    assert next(r for r in memory["stack"] if r["phase"] == "open")["seen"] >= 0.5 * next(
        r for r in memory["stack"] if r["phase"] == "open")["bound"], "a bound far from what is seen is a wrong graph"
    assert not set(found["counted"]["phases"]["inference"]) & {"low", "likely", "high"}
    likely = found["estimated"]["cycles"]["inference"]
    assert likely["low"] < likely["likely"] < likely["high"]
    from pyhtpw.target.measure_html import write_html

    write_html(found, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert f"{found['counted']['phases']['inference']['instructions']:,}" in page and "<script" not in page


@needs_tools
def test_firmware_without_the_self_test_is_smaller_and_the_same(small):
    from dataclasses import replace

    (row,) = boards.matrix(small, sample_windows(small, 2), ["mps2-an386"], ["boot"], replace(GCC, selftest=False))
    assert row.differ == 0 and row.refused is None
    with_it, without = (measure.flash(firmware.build(firmware.board_named("mps2-an386"), small, "boot", replace(GCC, selftest=on)))
                        for on in (True, False))
    assert "self-test" in with_it["library_code"] and "self-test" not in without["library_code"]
    assert without["total"] < with_it["total"] - 2000


@needs_tools
def test_stack_bounds_are_of_the_real_call_graph(every):
    built = firmware.build(firmware.board_named("mps2-an386"), every, "lazy", GCC)
    bounds = stack.Bounds(built)
    assert {"htpw_portable", "htpw_backend_armv7em_dsp"} <= set(bounds.tables)
    run = bounds.of("htpw_run")
    assert sum(frame for _, frame in run.path) == run.bytes and run.path[0][0] == "htpw_run"
    assert bounds.of("app_reset").bytes > run.bytes
    done = session.run(built, sample_windows(every, 2))
    assert done.phase("run").stack <= run.bytes and done.stack <= bounds.of("app_reset").bytes
    graph = bounds.graph
    graph["htpw_crc32"].calls.add("htpw_model_open")
    bounds._known.clear()
    with pytest.raises(Exception, match="recursion: .*htpw_model_open"):
        bounds.of("htpw_model_open")


@pytest.mark.parametrize(("mnemonic", "operands", "n"), [
    ("push", "{r4, r5, lr}", 12), ("push", "{r4-r11, lr}", 36), ("stmdb", "sp!, {r4-r11, lr}", 36), ("vpush", "{d8-d15}", 64),
    ("vpush", "{s16-s17}", 8), ("sub", "sp, #80", 80), ("sub.w", "sp, sp, #1024", 1024), ("add", "sp, #8", 0),
    ("str.w", "lr, [sp, #-4]!", 4),
    ("sub", "r0, #4", 0), ("strd", "r4, r5, [sp, #-16]!", 16)])
def test_what_lowers_the_stack(mnemonic, operands, n):
    assert stack.pushed(mnemonic, operands) == n


def test_estimates_follow_the_users_constants(tmp_path):
    cost = session.Cost(100, {"load": 40, "mac": 30, "branch": 10, "other": 20}, taken=8, moved=5, cycles=170)
    text = costs.CONSTANTS.read_text()
    mine = tmp_path / "mine.toml"
    mine.write_text(text.replace("current_ma = 10.0", "current_ma = 20.0").replace("wait_states = [0, 0, 5]", "wait_states = [1, 1, 1]"))
    plain, other = costs.Costs(), costs.Costs(mine)
    low = 40 + 30 + 10 + 20 + 5 + 8
    assert plain.cycles(cost, "cortex-m4").low == low and other.cycles(cost, "cortex-m4").low == low + 8
    assert plain.cycles(cost, "cortex-m4").likely == 170, "the estimate that looks at the order of instructions"
    assert plain.cycles(cost, "cortex-m7") is None
    e = costs.Estimate(80_000, 80_000, 80_000)
    assert plain.energy(e, "cortex-m4")["likely_ms"] == 1.0
    assert plain.energy(e, "cortex-m4")["likely_mj"] == pytest.approx(0.033)
    assert other.energy(e, "cortex-m4")["likely_mj"] == pytest.approx(0.066)
    mine.write_text(text.replace("load = [1, 2, 2]", "load = [3, 2, 2]"))
    with pytest.raises(ConfigError, match="load must be three ascending numbers"):
        costs.Costs(mine).cycles(cost, "cortex-m4")


# What goes wrong

@needs_tools
def test_an_image_too_large_for_a_board_is_refused_with_bytes(small):
    full = Image.open(FULL)
    with pytest.raises(FitError, match=r"does not fit microbit: RAM needs [\d,]+ bytes, 16,384 are there") as error:
        firmware.build(firmware.board_named("microbit"), full, "boot", GCC)
    plan = full.plan("thumb")
    assert error.value.there == 16384
    assert plan.arena + plan.cache + plan.input < error.value.needed < plan.arena + plan.cache + plan.input + 4096
    with pytest.raises(FitError, match="STORE needs 4,096 bytes, 0 are there: use boot or lazy"):
        firmware.build(firmware.board_named("microbit"), small, "streamed", GCC)
    rows = boards.matrix(small, sample_windows(small, 1), ["microbit"], ["boot", "streamed"], GCC)
    assert [row.refused is None for row in rows] == [True, False]
    plan = small.plan("thumb")
    assert plan.arena + plan.cache <= 12 * 1024, "the small image is planned for boards of 16 KiB"


def broken(tmp_path, body):
    path = tmp_path / "monitor.c"
    path.write_text('#include "app.h"\nvoid app_between_windows(uint32_t window) {\n' + body + "\n}\n")
    return [path]


@needs_tools
@pytest.mark.parametrize("board", ["microbit", "mps2-an386"])
def test_a_fault_names_registers_and_function(small, board, tmp_path):
    extra = broken(tmp_path, "(void)window; __asm__ volatile(\"udf #0\");")
    built = firmware.build(firmware.board_named(board), small, "boot", GCC, extra=extra)
    with pytest.raises(BoardError, match=r"HardFault at pc 0x[0-9a-f]+ \(app_between_windows\+0x\w+\), lr .*app_\w+.*r0 0x") as error:
        session.run(built, sample_windows(small, 1))
    assert error.value.kind == "fault"


@needs_tools
def test_a_stack_that_overflows_faults(small, tmp_path):
    extra = broken(tmp_path, "volatile uint8_t much[8192];\n"
                   "for (uint32_t i = 0; i < 8192u; i++) { much[i] = (uint8_t)window; } (void)much[3];")
    built = firmware.build(firmware.board_named("mps2-an386"), small, "boot", GCC, extra=extra)
    with pytest.raises(BoardError, match="the stack has overflowed") as error:
        session.run(built, sample_windows(small, 1))
    assert error.value.kind == "fault"


@needs_tools
def test_a_board_that_hangs_is_stopped(small, tmp_path):
    built = firmware.build(firmware.board_named("mps2-an386"), small, "boot", GCC, extra=broken(tmp_path, "(void)window; for (;;) {}"))
    with pytest.raises(BoardError, match="has not ended after 1 seconds; the last it said: logits 0") as error:
        session.run(built, sample_windows(small, 1), seconds=1)
    assert error.value.kind == "limit"


@needs_tools
def test_a_damaged_image_is_refused_by_the_board(small):
    data = bytearray(small.data)
    built = firmware.build(firmware.board_named("mps2-an386"), small, "boot", GCC)
    code = built.elf.path.read_bytes()
    at = code.index(bytes(data[:64]))
    spoiled = Path(os.fspath(built.elf.path) + ".spoiled")
    spoiled.write_bytes(code[: at + len(data) - 20] + b"\xff" + code[at + len(data) - 19 :])
    try:
        import dataclasses

        bad = dataclasses.replace(built, elf=dataclasses.replace(built.elf, path=spoiled))
        with pytest.raises(BoardError, match=r"open -\d+ .*(corrupt|malformed)"):
            session.run(bad, sample_windows(small, 1))
    finally:
        spoiled.unlink()


@needs_tools
def test_a_store_that_is_not_right_is_refused(small):
    built = firmware.build(firmware.board_named("mps2-an386"), small, "installed", GCC)
    store = bytearray(session.installed(built, small))
    store[next(i for i in range(len(store)) if store[i] not in (0, 0xFF) and i >= 256)] ^= 1
    with pytest.raises(BoardError, match="bind -19"):
        session.run(built, sample_windows(small, 1), store=bytes(store))


@needs_tools
def test_options_that_make_no_sense(small):
    with pytest.raises(ConfigError, match="unknown board 'nucleo'"):
        firmware.board_named("nucleo")
    with pytest.raises(ConfigError, match="unknown schedule"):
        boards.schedules("never")
    with pytest.raises(ConfigError, match="cortex-m3 has no floating-point unit"):
        firmware.build(firmware.board_named("mps2-an385"), small, "boot", Settings(compiler="gcc", float_abi="hard"))
    with pytest.raises(ConfigError, match="unknown float ABI"):
        firmware.build(firmware.board_named("mps2-an386"), small, "boot", Settings(float_abi="medium"))
    with pytest.raises(ConfigError, match="not a macro"):
        firmware.build(firmware.board_named("mps2-an386"), small, "boot", Settings(defines=("-O0",)))
    with pytest.raises(ConfigError, match="unknown optimisation"):
        firmware.build(firmware.board_named("mps2-an386"), small, "boot", Settings(opt="-Ofast"))
    with pytest.raises(ConfigError, match="two windows"):
        measure.report(small, firmware.board_named("mps2-an386"), "boot", GCC, sample_windows(small, 1))
    with pytest.raises(ConfigError, match="no windows"):
        boards.matrix(small, sample_windows(small, 1)[:0], ["mps2-an386"], ["boot"], GCC)


@needs_tools
def test_memory_that_is_not_what_was_promised_is_an_error(small, monkeypatch):
    built = firmware.build(firmware.board_named("mps2-an386"), small, "boot", GCC)
    done = session.run(built, sample_windows(small, 1))
    true = stack.Bounds.of
    monkeypatch.setattr(stack.Bounds, "of", lambda self, name: stack.Bound(8, ()) if name == "htpw_run" else true(self, name))
    with pytest.raises(VerifyError, match="run took .* its bound is 8"):
        measure.sram(built, done, stack.Bounds(built))


# The command line

@needs_tools
def test_the_command_line_runs_and_reports(small, tmp_path):
    runner = CliRunner()
    np.save(tmp_path / "x.npy", sample_windows(small, 3))
    command = ["target", "run", str(SMALL), "--board", "mps2-an386", "--schedule", "boot", "--input", str(tmp_path / "x.npy"), "--json"]
    done = runner.invoke(app, [*command, "--compiler", "gcc"])
    found = json.loads(done.stdout)
    assert done.exit_code == 0 and found["bytes_differ"] == 0 and found["rows"][0]["backend"] == "armv7em_dsp"
    page = tmp_path / "r.html"
    done = runner.invoke(app, ["target", "report", str(SMALL), "--compiler", "gcc", "--json", "--html", str(page)])
    assert done.exit_code == 0 and json.loads(done.stdout)["sram"]["stack_bound"] and page.exists()
    done = runner.invoke(app, ["target", "report", str(SMALL), "--compiler", "gcc"])
    assert re.search(r"ESTIMATED: cycles", done.stdout) and "below 1 % of all after" in done.stdout


def test_the_command_line_names_what_is_missing(monkeypatch):
    runner = CliRunner()
    monkeypatch.setenv("HTPW_QEMU", "no-such-emulator")
    if shutil.which(os.environ.get("HTPW_ARM_GCC", "arm-none-eabi-gcc")) is not None:
        done = runner.invoke(app, ["target", "run", str(SMALL), "--schedule", "boot", "--compiler", "gcc"])
        assert isinstance(done.exception, MissingToolError) and "apt-get install qemu-system-arm" in str(done.exception)
    monkeypatch.setenv("HTPW_ARM_GCC", "no-such-compiler")
    done = runner.invoke(app, ["target", "run", str(SMALL), "--compiler", "gcc"])
    assert "no-such-compiler" in str(done.exception)
    done = runner.invoke(app, ["target", "run", str(SMALL), "--input", "x.npy", "--data", "mitdb"])
    assert isinstance(done.exception, ConfigError)


@needs_tools
def test_a_trimmed_library_is_small_and_gives_the_same_bytes(small):
    x = sample_windows(small, 2)
    for code, schedule in (("small", "lazy"), ("compact", "installed")):
        (row,) = boards.matrix(small, x, ["mps2-an386"], [schedule], Settings(opt="-Os", compiler="gcc", trim=code))
        assert row.refused is None and row.differ == 0 and row.compared == 3 * (sum(k.bytes for k in small.cached) + 2 * small.plan().output)
    found = measure.report(small, firmware.board_named("mps2-an386"), "boot", Settings(opt="-Os", compiler="gcc", trim="small"), x)
    rows = {(r["build"], r["opt"]): r for r in found["code"]["builds"]}
    whole, fast, least = rows["whole", "-O3"], rows["compact", "-O3"], rows["small", "-Os"]
    assert least["is_asked_for"] and least["limit_kb"] == 8 and fast["limit_kb"] == 14 and "limit_kb" not in whole
    assert least["bytes"] < fast["bytes"] < whole["bytes"] and least["within_1024"] and fast["within_1024"]
    for row in rows.values():
        named = sum(s["bytes"] for s in row["symbols"] if s["section"] == ".text")
        assert named == row["text"] and row["bytes"] == row["text"] + row["rodata"]
        assert {"htpw_run", "htpw_bind", "htpw_model_open"} <= {s["name"] for s in row["symbols"]}
        assert not {"memcpy", "memset", "htpw_selftest", "htpw_error_text"} & {s["name"] for s in row["symbols"]}
    assert found["counted"]["phases"]["inference"]["instructions"] == least["instructions"]["inference"]
    assert found["counted"]["synthesis_instructions"] == least["instructions"]["synthesis"]
    assert whole["inference_ratio"] == 1 and least["inference_ratio"] > fast["inference_ratio"]
    text = "\n".join(measure.lines(found))
    assert "small -Os" in text and "trimmed (small)" in text and "HTPW_WITH" not in text
    with pytest.raises(ConfigError, match="unknown code 'tiny'"):
        measure.report(small, firmware.board_named("mps2-an386"), "boot", Settings(compiler="gcc", trim="tiny"), x)
