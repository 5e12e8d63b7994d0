"""The command line, as a user types it: every command, JSON, bad input in one line, Ctrl-C and resume."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import random_images

from pyhtpw.image import write
from pyhtpw.image.codes import apply_pack
from pyhtpw.model import Image

COMMANDS = (
    "demo", "train", "quantise", "pack", "bill", "verify", "run", "report", "pack-codes", "keygen", "sign", "verify-signature",
    "sweep",
)  # fmt: skip


def pyhtpw(*arguments, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120", **options.pop("env", {})}
    command = [sys.executable, "-m", "pyhtpw", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, **options)


def ok(*arguments, **options) -> str:
    done = pyhtpw(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments, **options) -> str:
    """The one line of a refusal."""
    done = pyhtpw(*arguments, **options)
    assert done.returncode == 2 and done.stdout == "", (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("pyhtpw: "), done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """A very short demo: what matters here is that every stage runs, not what it scores."""
    out = tmp_path_factory.mktemp("demo")
    ok("demo", "--steps", 60, "--out", out, "--seed", 3)
    return out


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("image") / "example.htpw"
    path.write_bytes(write(random_images.example()))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    text = ok(command, "--help")
    assert "--json" in text and "--seed" in text


@pytest.mark.parametrize("command", ["run", "table"])
def test_help_of_results(command):
    assert "--json" in ok("results", command, "--help")


def test_a_declared_experiment(tmp_path):
    """Dry run, run, and table, as typed; what a plan names that is not there is one line."""
    plan = tmp_path / "tiny.toml"
    plan.write_text("""title = "Tiny"
data = "synthetic-ecg"
protocol = "synthetic"
data_options = {patients = [3, 3, 3], beats = [40, 40, 40], window = 64}
seeds = [0]
steps = 3
train = {augment = {}}
[[model]]
name = "one"
net = "separable"
options = {stem = 4, widths = [4], strides = [2], stem_kernel = 5, kernel = 3}
""")
    rows = json.loads(ok("results", "run", plan, "--dry-run", "--json", cwd=tmp_path))
    assert [row["state"] for row in rows["runs"]] == ["to do"] and not (tmp_path / "results").exists()
    assert "test not looked at" in ok("results", "run", plan, "--validation-only", cwd=tmp_path)
    assert "test macro-F1" in ok("results", "run", plan, cwd=tmp_path)
    assert len((tmp_path / "results" / "test-log.jsonl").read_text().splitlines()) == 1
    assert "# Tiny" in ok("results", "table", plan, cwd=tmp_path) and (tmp_path / "results" / "tiny.md").is_file()
    assert str(tmp_path) not in (tmp_path / "results" / "runs" / "tiny" / "one-s0.json").read_text()
    assert "no model or run 'two'" in refused("results", "run", plan, "--only", "two", cwd=tmp_path)


def test_demo_report_has_everything(demo):
    report = json.loads((demo / "report.json").read_text())
    assert report["data"] == "synthetic-ecg" and report["synthetic"] is True and report["seed"] == 3
    assert report["image_bytes"] == (demo / "model.htpw").stat().st_size == sum(report["sections"].values())
    assert set(report["generated"]) == {"pw2", "pw3", "pw4", "pw5"}
    for row in report["generated"].values():
        assert set(row["stored_at"]) == {"8", "4", "2"} and row["kernel_bytes"] and row["stored_bytes"]
    assert report["bytes_differ"] == 0
    assert report["bytes_compared"] == sum(p["kernel_bytes"] + p["logit_bytes"] for p in report["pairs"])
    assert max(p["windows"] for p in report["pairs"]) >= 256
    assert set(report["test"]) >= {"macro_f1", "balanced_accuracy", "auc", "threshold", "n"}
    if report["cortex_m4"] is None:
        assert report["not_run"], "what did not run must be listed"
    else:
        assert report["cortex_m4"]["synthesis_instructions"] > 0 and report["cortex_m4"]["inference_instructions"] > 0
        assert any(p["windows"] == 16 for p in report["pairs"])
    ok("pack", demo / "model.npz", "-o", demo / "again.htpw")
    assert (demo / "again.htpw").read_bytes() == (demo / "model.htpw").read_bytes()
    page = (demo / "report.html").read_text()
    assert "SYNTHETIC" in page and "<script" not in page and f"{report['image_bytes']:,}" in page


def test_stages_one_by_one_give_the_demo_image(demo, tmp_path):
    """quantise and pack from the demo's checkpoint end in the very bytes of its image."""
    ok("quantise", demo / "run", "-o", tmp_path / "m.npz", "--seed", 3)
    packed = json.loads(ok("pack", tmp_path / "m.npz", "-o", tmp_path / "m.htpw", "--json"))
    assert (tmp_path / "m.htpw").read_bytes() == (demo / "model.htpw").read_bytes()
    assert packed["image_bytes"] == (tmp_path / "m.htpw").stat().st_size


def test_train_says_what_comes_next(tmp_path):
    figures = json.loads(ok("train", "--steps", 5, "--out", tmp_path / "run", "--json"))
    assert figures["steps"] == 5 and figures["synthetic"] and (tmp_path / "run" / "best.safetensors").exists()


def test_verify_prints_the_tellings(image):
    text = ok("verify", image, "--windows", 40, "--target-windows", 3)
    assert "numpy / C here (portable)" in text and text.rstrip().endswith(" 0 differ")
    assert "cortex-m4" in text or "NOT RUN: Cortex-M4" in text
    figures = json.loads(ok("verify", image, "--json", "--windows", 10, "--target-windows", 2, "--seed", 5))
    assert figures["bytes_differ"] == 0 and figures["pairs"][0]["windows"] == 10


def test_verify_fails_when_bytes_differ(image, monkeypatch, capsys):
    from pyhtpw import cli, verify

    class Wrong(verify.Native):
        def logits(self, x):
            return super().logits(x) ^ np.int8(1)

    monkeypatch.setattr("pyhtpw.pipeline.Native", Wrong)
    monkeypatch.setattr(sys, "argv", ["pyhtpw", "verify", str(image), "--windows", "3", "--target-windows", "1"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1 and "first: logits of" in capsys.readouterr().out


def test_bill_and_run(image, tmp_path):
    figures = json.loads(ok("bill", image, "--json"))
    assert sum(figures["sections"].values()) == image.stat().st_size
    assert figures["eq6_bytes"] + figures["eq6_omits"]["total"] == image.stat().st_size
    assert figures["sram"]["backend"] == "armv7em_dsp" and figures["sram"]["total"] > figures["sram"]["published"]
    assert f"{image.stat().st_size:,}" in ok("bill", image, "--plot", tmp_path / "bill.svg")
    assert "Eq. 6" in (tmp_path / "bill.svg").read_text()
    assert "a .png or an .svg" in refused("bill", image, "--plot", tmp_path / "bill.gif")
    x = random_images.inputs(random_images.example(), 3, 0)
    np.save(tmp_path / "x.npy", x)
    rows = json.loads(ok("run", image, tmp_path / "x.npy", "--json"))["windows"]
    assert len(rows) == 3 and len(rows[0]["logits"]) == 3 and abs(sum(rows[0]["probabilities"]) - 1) < 1e-5
    np.save(tmp_path / "real.npy", x.astype(np.float32))
    assert len(ok("run", image, tmp_path / "real.npy").splitlines()) == 3
    assert "synthetic" in json.loads(ok("run", image, "--json"))["input"]


def test_code_packs(image, tmp_path):
    """What pack-codes writes, applied to the base, is the personalised image, for the C library too."""
    model = random_images.example()
    weights = model.ops[0].weights
    changed = replace(model.ops[0], weights=replace(weights, codes=-weights.codes.clip(-7, 7)))
    personalised = replace(model, ops=(changed, *model.ops[1:]))
    (tmp_path / "mine.htpw").write_bytes(write(personalised))
    told = json.loads(ok("pack-codes", image, tmp_path / "mine.htpw", "-o", tmp_path / "c.htpc", "--number", 4, "--json"))
    assert told["number"] == 4 and told["entries"] == [{"operator": 0, "part": "CODE", "bytes": 8}]
    base, pack = image.read_bytes(), (tmp_path / "c.htpc").read_bytes()
    assert apply_pack(base, pack) == write(personalised)
    x = random_images.inputs(model, 5, 0)
    assert np.array_equal(Image(base, codes=pack).run_batch(x), Image(write(personalised)).run_batch(x))
    refusal = refused("pack-codes", image, image, "-o", tmp_path / "none.htpc", "--number", 4)
    assert "no codes and no requantisation differ" in refusal and not (tmp_path / "none.htpc").exists()


def test_report_again(demo, tmp_path):
    ok("report", demo, "-o", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (demo / "report.html").read_bytes()


def test_bad_input_is_one_line(image, tmp_path):
    missing = tmp_path / "none"
    assert str(missing) in refused("demo", "--data", "mitdb", "--data-dir", missing, "--out", tmp_path / "o")
    assert "data-dir" in refused("demo", "--data", "mitdb", "--out", tmp_path / "o", env={"HTPW_DATA": ""})
    assert "unknown data set 'x'" in refused("train", "--data", "x", "--out", tmp_path / "o")
    assert "none.htpw: cannot read" in refused("bill", tmp_path / "none.htpw")
    data = image.read_bytes()
    (tmp_path / "cut.htpw").write_bytes(data[:-16])
    assert "cut.htpw: image is shorter" in refused("verify", tmp_path / "cut.htpw")
    (tmp_path / "flip.htpw").write_bytes(data[:300] + bytes([data[300] ^ 4]) + data[301:])
    assert "flip.htpw: a section is corrupt" in refused("run", tmp_path / "flip.htpw")
    np.save(tmp_path / "long.npy", np.zeros((2, 49), np.int8))
    assert "the network takes 48 samples" in refused("run", image, tmp_path / "long.npy")
    x = np.zeros((2, 48), np.float32)
    x[1, 7] = np.nan
    np.save(tmp_path / "nan.npy", x)
    assert "window 1 holds NaN or infinity at sample 7" in refused("run", image, tmp_path / "nan.npy")
    np.save(tmp_path / "int.npy", np.zeros((2, 48), np.int32))
    assert "int32" in refused("run", image, tmp_path / "int.npy")
    (tmp_path / "text.npy").write_text("hello")
    assert "text.npy: cannot read windows" in refused("run", image, tmp_path / "text.npy")
    assert "no checkpoint" in refused("quantise", tmp_path / "none")
    assert "not an integer model" in refused("pack", image)
    assert "cannot read a report" in refused("report", tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "cannot write there" in refused("demo", "--out", tmp_path / "file" / "demo")
    assert "unknown compiler" in refused("verify", image, "--compiler", "tcc")


def test_no_compiler_is_listed_as_not_run(image):
    environment = {"PATH": "/nonexistent", "HTPW_ARM_GCC": ""}
    done = pyhtpw("verify", image, "--windows", 2, "--compiler", "gcc", env=environment)
    assert done.returncode == 0 and "NOT RUN: Cortex-M4 emulation: arm-none-eabi-gcc is missing" in done.stdout


def test_interrupt_and_resume_give_the_same_bytes(tmp_path):
    """Ctrl-C leaves a checkpoint; --resume ends in the bytes of an unbroken run."""
    arguments = ["train", "--steps", "400", "--seed", "1"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ok(*arguments, "--out", whole)
    process = subprocess.Popen(
        [sys.executable, "-m", "pyhtpw", *arguments, "--out", str(broken)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 200
    while not (broken / "curves.csv").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)  # the first validation has been: stop somewhere before the next
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "--resume" in errors, errors
    ok(*arguments, "--out", broken, "--resume")
    for name in ("best.safetensors", "best_ema.safetensors", "last.safetensors", "curves.csv"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
