"""Sources of a report: demo folders, run folders, results of experiments, images; pages of several; plots; the command."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import random_images
from test_report import HOSTILE, Page, full

from pyhtpw.errors import ConfigError
from pyhtpw.experiment.runner import Decisions
from pyhtpw.image import write
from pyhtpw.image.reader import read_model
from pyhtpw.quant.store import save_model
from pyhtpw.report import architecture, compare, curves, figures, image_plots, tables
from pyhtpw.report.html import write_page, write_plots
from pyhtpw.report.sources import Source, load, several

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


SMALL = Path(__file__).parent / "vectors" / "images" / "tiled_1d.htpw"  # one generated kernel: quick to draw


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Source:
    """An image with every operator and every kind of head."""
    path = tmp_path_factory.mktemp("example") / "example.htpw"
    path.write_bytes(write(random_images.example()))
    return load(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One source of each kind."""
    out = tmp_path_factory.mktemp("sources")
    data = SMALL.read_bytes()
    model = read_model(data)
    model = replace(model, ops=tuple(replace(op, name=f"node{i}") for i, op in enumerate(model.ops)))
    (out / "bare.htpw").write_bytes(data)
    (out / "demo").mkdir()
    (out / "demo" / "model.htpw").write_bytes(data)
    report = {**full(), "image_bytes": len(data), "curves": {"validation": known_curve(), "test": known_curve()}, "wrong": known_wrong()}
    (out / "demo" / "report.json").write_text(json.dumps(report))
    run = out / "train"
    (run / "raw").mkdir(parents=True)
    (run / "raw" / "model.htpw").write_bytes(data)
    save_model(model, run / "raw" / "model.npz")
    (run / "curves.csv").write_text("step,loss,val_loss,val_macro_f1,ema_val_macro_f1,lr\n50,0.5,0.6,0.7,,0.001\n100,0.4,0.5,0.8,0.75,0.001\n")
    (run / "run.json").write_text(json.dumps({
        "command": ["pyhtpw", "train"], "seed": 3, "versions": {"pyhtpw": "0"}, "machine": {"cpu": "x"}, "config": {"steps": 100}, "recipe": {"median": 5},
        "data": {"name": "mitdb", "synthetic": False, "protocol": "paper"}, "network": {"name": "net", "nodes": []}}))
    (run / "summary.json").write_text(json.dumps({
        "steps": 100, "best_step": 100, "val_macro_f1": 0.8, "seconds": 1.0, "not_run": ["curves.png: no matplotlib"],
        "images": {"raw": {"threshold": 0.25, "val_macro_f1_integer": 0.79}}}))
    y, p, who = (np.arange(60) % 3 == 0).astype(np.int64), np.linspace(0.01, 0.99, 60), np.array([f"r{i % 6}" for i in range(60)])
    decided = Decisions(y, (p > 0.5).astype(np.int64), np.stack([1 - p, p], 1).astype(np.float32), who)
    (out / "small-s1.npz").write_bytes(decided.to_bytes())
    (out / "small-s1.json").write_text(json.dumps({
        "model": "small", "plan": "p", "seed": 1, "config_sha256": "0", "data": {"name": "mitdb", "protocol": "aami"}, "synthetic": False,
        "classes": ["a", "b"], "image_bytes": 4000, "network": {"name": "n", "parameters": 5, "macs": 6}, "test": {"macro_f1": 0.81, "n": 60},
        "validation": {"macro_f1": 0.83}, "cortex_m4": {"open": 1, "synthesis": 2, "inference": 3, "backend": "b"},
        "plan_m4": {"arena": 7, "cache": 8}, "not_run": []}))
    return out


def known_curve() -> dict:
    rng = np.random.default_rng(0)
    y, who = (np.arange(120) % 4 == 0).astype(np.int64), np.array([f"r{i % 8}" for i in range(120)])
    p = np.clip(0.4 * y + rng.random(120) * 0.6, 0, 1)
    return curves.curves(y, np.stack([1 - p, p], axis=1), who, resamples=30)


def known_wrong() -> dict:
    x = (np.sin(np.arange(300) / 9) * 90).astype(np.int8)
    row = {"record": HOSTILE, "sample": 5, "truth": "other", "decided": "ventricular", "p": 0.9, "shape": [300, 1], "int8": curves.base64.b64encode(x.tobytes()).decode()}
    return {"split": "validation", "wrong": 3, "scored": 100, "fs": 100.0, "windows": [row, {**row, "shape": [100, 3]}]}


def test_each_kind_is_read(folder):
    bare, demo, run, result = (load(folder / name) for name in ("bare.htpw", "demo", "train", "small-s1.json"))
    assert [s.kind for s in (bare, demo, run, result)] == ["image", "demo", "run", "result"]
    assert bare.report["image_bytes"] == len(bare.image.data) and "image alone" in bare.report["not_run"][0]
    assert demo.label == "demo" and demo.image.data == bare.image.data and demo.report["test"] == full()["test"]
    assert run.report["validation"] == {"threshold": 0.25, "macro_f1": 0.79} and run.report["training"]["best_step"] == 100
    assert run.report["training"]["curves"][1] == {"step": 100, "loss": 0.4, "val_loss": 0.5, "val_macro_f1": 0.8, "ema_val_macro_f1": 0.75, "lr": 0.001}
    assert run.report["median_filter"] == 5 and run.layer_names() == [f"node{i}" for i in range(len(run.image.layers))]
    assert any("test: a training never scores it" in line for line in run.report["not_run"]) and "curves.png: no matplotlib" in run.report["not_run"]
    assert result.image is None and result.report["cortex_m4"]["inference_instructions"] == 3 and result.report["curves"]["test"]["positives"] == 20
    assert load(folder / "demo" / "report.json").report == demo.report
    logged = {**result.report, "test_evaluations": 4}
    assert "Evaluations of test, this one included: 4." in tables.result(logged).note
    assert "Evaluations of test in the log x.jsonl, this one included: 4." in tables.result({**logged, "test_log": "x.jsonl"}).note


def test_an_image_of_another_size_is_not_the_demos(folder, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({**full(), "image_bytes": 6448}))
    (tmp_path / "model.htpw").write_bytes((folder / "bare.htpw").read_bytes())
    assert load(tmp_path).image is None


@pytest.mark.parametrize(("content", "words"), [(None, "cannot read a report"), ("{", "cannot read a report"), ("[]", "holds no report"), ("{}", "no image_bytes")])
def test_what_is_no_source_is_refused(content, words, tmp_path):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        load(path)
    with pytest.raises(ConfigError, match=r"neither report.json nor run.json"):
        load(tmp_path)


def test_layers_add_up_to_the_bill(example):
    source = example
    rows, bill = architecture.layers(source), source.image.bill()
    for row, layer in zip(rows, bill["layers"]):
        assert row.stored + row.codes + row.rest == sum(layer["bytes"].values())
    made = bill["generated_total"]
    assert sum(r.codes + r.share for r in rows) == made["stored_bytes"] and sum(r.weights for r in rows if r.codes) == made["kernel_bytes"]
    for bits in ("8", "4", "2"):
        assert sum(r.plain[bits] for r in rows if r.codes) == made["stored_at"][bits]
    assert {r.cached for r in rows} - {0} == {k.bytes for k in source.image.cached}
    op = source.image.parsed.ops[0]
    assert rows[0].activation == op.inputs[0].size + op.out.size
    table = architecture.table(source)
    assert len(table.rows) == len(rows) + 1 and all(len(row.cells) == len(table.columns) for row in table.rows) and "not run" in table.note


def test_board_counts_go_to_their_image(folder):
    source = load(folder / "bare.htpw")
    names = [op.name for op in source.image.parsed.ops]
    found = {"image": {"bytes": len(source.image.data)}, "board": "b", "cpu": "cortex-m4", "backend": "armv7em_dsp", "compiler": "gcc",
             "counted": {"layers": [{"name": n, "instructions": 100 + i} for i, n in enumerate([*names, "start and end"])], "phases": {}}}
    mine = Source("x", "image", source.path, {**source.report, "board": architecture.board(found, source.image)}, source.image)
    assert [row.instructions for row in architecture.layers(mine)] == [100 + i for i in range(len(names))]
    table = architecture.table(mine)
    assert "Instructions" in [c.label for c in table.columns] and "counted under QEMU" in table.note and all(len(r.cells) == len(table.columns) for r in table.rows)
    with pytest.raises(ConfigError, match="another image"):
        architecture.board({**found, "image": {"bytes": 1}}, source.image)


def test_heat_maps_show_what_the_library_made(example):
    source = example
    kernels = source.image.kernels()
    with figures.plots.style():
        drawn = image_plots.kernels(source)
        made = [op for op in source.image.parsed.ops if op.generated]
        assert list(drawn) == [f"kernel-{op.index}" for op in made][: image_plots.KERNELS] and len(made) > 3
        for op in made:
            plot = drawn[f"kernel-{op.index}"]
            shown = plot.figure.axes[0].images[0].get_array()
            assert np.array_equal(np.asarray(shown).ravel(), kernels[op.index].ravel())
            codes = np.asarray(plot.figure.axes[1].images[0].get_array())
            assert codes.size == op.code_values
            assert op.source in plot.alt and f"{op.code_values} " in plot.alt


def test_page_of_several_is_one_document(folder, tmp_path):
    found = several([folder / "demo", folder / "bare.htpw", folder / "bare.htpw", folder / "small-s1.json", folder / "train"])
    assert [s.label for s in found] == ["demo", "bare", "bare (2)", "small, seed 1", "train"]
    found = [found[0], found[2], found[3]]
    write_page(found, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    ids = page.values("id")
    assert len(ids) == len(set(ids)) and not {"script", "link", "iframe", "object", "img"} & set(page.tags) and not re.search("https?:", text)
    hrefs = page.values("href")
    assert {h[1:] for h in hrefs if h.startswith("#")} <= set(ids) and all(h.startswith(("#", "data:image/png;base64,")) for h in hrefs)
    assert page.tags["h1"] == page.tags["main"] == 1 and page.tags["article"] == 3 == page.text.count("On the device")
    levels = [int(tag[1]) for tag in re.findall(r"<(h[1-6])", text)]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))  # no level is skipped
    assert page.tags["svg"] == len([1 for tag, key, _ in page.attributes if (tag, key) == ("svg", "aria-label")]) > 15
    assert all(value.strip() for tag, key, value in page.attributes if (tag, key) == ("svg", "aria-label"))
    for words in ("Side by side", "bare (2)", "3 of 100 scored validation windows were decided wrong", "30 resamples of whole people", "image is not there"):
        assert words in page.text, words
    for name in ("a.html", "b.html"):
        write_page(found[2:], tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb (WCAG 2.2)."""
    colour = colour.lstrip("#")
    colour = "".join(c * 2 for c in colour) if len(colour) == 3 else colour
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_contrast():
    """Text at least 4.5 to its ground (WCAG AA), and figures' text too; colours of curves and bars 3 to white or told by more than colour."""
    css = Path(figures.__file__).with_name("report.css").read_text()
    names = dict(re.findall(r"--(\w+): (#\w+)", css))

    def ratio(a: str, b: str) -> float:
        high, low = sorted((luminance(names.get(a, a)), luminance(names.get(b, b))), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for ground in ("paper", "ground"):
        for text in ("ink", "muted", "accent", "bad", "good"):
            assert ratio(text, ground) >= 4.5, (text, ground)
    for text, ground in (("#3d2100", "#ffe08a"), ("ink", "#eaf4fb"), ("ink", "#fff4e5"), ("ink", "#e8f6f1"), ("bad", "#fff4e5")):
        assert ratio(text, ground) >= 4.5, (text, ground)
    from pyhtpw.report.curve_plots import LOOKS

    assert all(ratio(colour, "#fff") >= 3 for colour, _ in LOOKS.values()) and len({dash for _, dash in LOOKS.values()}) == len(LOOKS)
    assert len(set(compare.MARKS)) == len(compare.MARKS) == len(compare.COLOURS)


def test_pareto_has_published_points_beside_real_data_alone(folder):
    run, demo = load(folder / "train"), load(folder / "demo")
    real = Source("real", "demo", demo.path, {**demo.report, "data": "mitdb", "synthetic": False, "protocol": "aami"})
    with figures.plots.style():
        plot = compare.pareto([run, real])
        assert "published HyperTinyPW 230,912 bytes, 0.567" in plot.alt and "test 0.883" in plot.alt and "validation 0.790" in plot.alt
        assert compare.pareto([demo]) is None  # one point, and nothing published stands beside synthetic data
        assert "published" not in compare.pareto([demo, demo]).alt
    assert "another split" in compare.pareto_note([real]) and "synthetic" in compare.pareto_note([demo]) and "another split" not in compare.pareto_note([run])
    assert compare.front([(10, 0.5), (5, 0.6), (20, 0.9), (20, 0.7)]) == [1, 2]
    assert "0.883" in next(row for row in compare.table([run, real]).rows if row.cells[0] == "macro-F1, test").cells


def test_intervals_are_drawn_and_said(folder):
    report = load(folder / "demo").report
    with figures.plots.style():
        for name in ("roc", "pr", "threshold"):
            plot = figures.REPORT[name](report)
            assert len(plot.figure.axes[0].collections) == 2 and "95 % interval from 8 people" in plot.alt
        none = json.loads(json.dumps(report))
        for row in none["curves"].values():
            row["no_band"], row["threshold"]["low"] = "no intervals: why", None
        plot = figures.REPORT["threshold"](none)
        assert not plot.figure.axes[0].collections and "no intervals: why" in plot.alt
        assert "area 0.962" in figures.REPORT["roc"](report).alt  # the exact curve of test, as ever


def test_half_a_curve_is_no_curve(folder):
    report = json.loads(json.dumps(load(folder / "demo").report))
    for broken in (None, [], {"validation": None}, {"test": {"roc": {"x": [0, 1], "y": [0]}, "pr": "x", "threshold": {"x": [None], "y": [1]}}}):
        report["curves"] = broken
        with figures.plots.style():
            assert figures.REPORT["pr"](report) is None and figures.REPORT["threshold"](report) is None
    report["wrong"] = {"windows": [{"int8": "AAAA", "shape": [7, 7]}, 3]}
    with figures.plots.style():
        assert figures.REPORT["wrong"](report) is None


def test_plots_are_files(folder, tmp_path):
    written = write_plots(several([folder / "demo", folder / "small-s1.json"]), tmp_path / "plots")
    names = {str(path.relative_to(tmp_path / "plots")) for path in written}
    assert {"1-demo/roc.png", "1-demo/roc.svg", "1-demo/architecture.svg", "1-demo/wrong.png", "2-small--seed-1/pr.svg", "pareto.png"} <= names
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        else:
            root = ElementTree.parse(path).getroot()
            assert root.tag.endswith("svg") and next(root.iter("{http://purl.org/dc/elements/1.1/}title")).text
    with pytest.raises(ConfigError, match="not .pdf"):
        figures.files([figures.of_report(full())], ("pdf",))


def command(*arguments, cwd: Path, status: int = 0) -> subprocess.CompletedProcess:
    root = Path(__file__).parent.parent
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-m", "pyhtpw", "report", *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    return done


def test_command_of_several(folder, tmp_path):
    done = command(folder / "bare.htpw", folder / "small-s1.json", cwd=tmp_path)
    assert (tmp_path / "report.html").is_file() and "Figures side by side" in done.stdout and "== small, seed 1 ==" in done.stdout
    assert "Architecture, layer by layer" in done.stdout and "\x1b" not in done.stdout
    done = command(folder / "small-s1.json", "-o", "one.html", "--json", "--plots", "plots", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["file"] == "one.html" and found["image_bytes"] == 4000 and found["browser"] is None and (tmp_path / "one.html").is_file()
    assert sorted(found["plots"]) == sorted(f"plots/{name}" for name in os.listdir(tmp_path / "plots")) and (tmp_path / "plots" / "pr.svg").is_file()


def test_command_refuses_in_one_line(folder, tmp_path):
    (tmp_path / "board.json").write_text("{}")
    for arguments, words in (
        (("--input", "x.npy"), "add --interactive"), (("--interactive", "--input", "x.npy", "--data", "synthetic-ecg"), "two ways"),
        (("--data", "synthetic-ecg"), "samples, windows of synthetic-ecg have"), (("--board", "board.json"), "none of these images"),
        (("--board", "none.json"), "cannot read a board"),
    ):  # fmt: skip
        done = command(folder / "bare.htpw", *arguments, cwd=tmp_path, status=2)
        assert words in done.stderr.splitlines()[-1] and done.stdout == "" and not (tmp_path / "report.html").exists()


def test_validation_scores_an_image(tmp_path):
    """--data on an image of the data's own shape: figures, curves and wrong windows of validation, and test stays sealed."""
    image = Path(__file__).parent.parent / "examples" / "firmware" / "ecg-small.htpw"
    source = load(image)
    from pyhtpw.data import load as load_data
    from pyhtpw.data.seal import seal

    data = seal(load_data("synthetic-ecg", seed=0))
    if data.val.x[0].size != source.image.plan().input:
        pytest.skip("NOT RUN: the example image takes other windows than synthetic-ecg")
    found = curves.validation(source.image, data, tables.number(source.report["validation"]["threshold"]))
    p = source.image.run_batch(source.image.quantise(data.val.x), 2)
    assert found["validation"]["n"] == len(p) and found["curves"]["validation"]["n"] == len(p)
    at = curves.THRESHOLDS.tolist().index(min(curves.THRESHOLDS, key=lambda t: abs(t - found["validation"]["threshold"])))
    assert found["curves"]["validation"]["threshold"]["y"][at] == pytest.approx(found["validation"]["macro_f1"], abs=1e-5)
    assert found["wrong"]["split"] == "validation"
