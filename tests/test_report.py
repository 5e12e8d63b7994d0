"""The report: HTML that stands alone, plots, terminal tables. Every figure here is made up for the test."""

from __future__ import annotations

import copy
import io
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from html.parser import HTMLParser

import pytest
from rich.console import Console

from pyhtpw.errors import ConfigError, ToolError
from pyhtpw.report import figures, print_bill, print_report, tables, write_html, write_png
from pyhtpw.report.files import write_atomically

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

FIGURES = ("learning", "roc", "confusion", "layers", "image")
VOID = {"meta", "br", "img", "link", "hr", "input"}
HOSTILE = "<script>alert('x')</script> & \"[red]$\\frac{"


def layer(weights: int, codes: int, shared: int) -> dict:
    stored = {"8": weights, "4": weights // 2, "2": weights // 4}
    return {
        "kernel_bytes": weights,
        "stored_bytes": codes + shared,
        "codes_bytes": codes,
        "shared_bytes": shared,
        "stored_at": stored,
        "costs_more_than_storing": [b for b in stored if codes + shared > stored[b]],
    }


def full() -> dict:
    """Every key of report.json; the image's sections sum to its bytes, and so do the stored alternatives."""
    return {
        "command": "pyhtpw run --data synthetic-ecg", "version": "0.0.0", "created": "2000-01-02T03:04:05+00:00",
        "machine": {"cpu": "Test CPU", "cores": 2, "python": "3", "numpy": "2", "numba": "0", "compiler": "testcc 1"},
        "data": "synthetic-ecg", "protocol": None, "synthetic": True, "seed": 20000, "classes": ["other", "ventricular"],
        "splits": {name: {"windows": n, "positives": n // 10, "groups": 3}
                   for name, n in (("train", 31234), ("val", 4321), ("test", 12345))},
        "network": {"name": "hypertinypw", "parameters": 6543, "macs": 1234567, "input": [1800, 1],
                    "nodes": [{"name": "pw2", "op": "pointwise", "cout": 64, "kernel": 1, "stride": 1, "head": "tiled",
                               "shape": [113, 64]}],
                    "generator": {"dz": 4, "hidden": [16], "tile": 32, "code_bits": 4}},
        "training": {"config": {"steps": 300, "lr": 0.002}, "steps": 300, "seconds": 12.5, "best_step": 200,
                     "val_macro_f1": 0.9, "checkpoint": "raw",
                     "curves": [{"step": 100 * i, "loss": 1 / i, "val_loss": 1.1 / i, "val_macro_f1": 0.9 - 0.2 / i,
                                 "ema_val_macro_f1": None, "lr": 0.001} for i in (1, 2, 3)]},
        "image": "model.htpw", "image_bytes": 6448,
        "sections": {"INFO": 58, "OPS": 268, "QUAN": 2310, "WGHT": 1824, "GENR": 390, "HEAD": 550, "CODE": 900,
                     "header": 128, "padding": 20},
        "layers": [{"name": "stem", "kind": "conv", "weights": 144, "bytes": {"OPS ": 26, "QUAN": 90, "WGHT": 146}},
                   {"name": "pw2", "kind": "conv1x1", "weights": 2048, "bytes": {"OPS ": 12, "QUAN": 321, "CODE": 450}}],
        "generated": {"pw2": layer(2048, 450, 101), "pw3": layer(4096, 450, 907)},
        "generated_total": layer(6144, 900, 1008) | {"costs_more_than_storing": []},
        "whole_image_if_stored": {"8": 10720, "4": 7648, "2": 6112},
        "plan": {"arena": 14400, "cache": 6144, "input": 1800, "output": 2},
        "bytes_compared": 47530008, "bytes_differ": 0,
        "pairs": [{"a": "numpy", "b": "C x86-64", "kernel_bytes": 6144, "logit_bytes": 24690, "windows": 12345,
                   "differ": 0, "first": None}],
        "validation": {"macro_f1": 0.898, "threshold": 0.35},
        "test": {"n": 12345, "positives": 837, "macro_f1": 0.8831, "balanced_accuracy": 0.871, "accuracy": 0.973,
                 "auc": 0.962, "brier": 0.0234, "threshold": 0.35000000000000003, "confusion": [[11342, 166], [165, 672]],
                 "per_class": [{"precision": 0.9, "recall": 0.8, "f1": 0.85, "support": 11508},
                               {"precision": 0.7, "recall": 0.6, "f1": 0.65, "support": 837}],
                 "roc": {"fpr": [0, 0.1, 1], "tpr": [0, 0.9, 1]}, "veb": {"sensitivity": 0.6, "ppv": 0.7, "f1": 0.65}},
        "test_notes": ["831 of the 837 test V beats are in record 233"],
        "cortex_m4": {"open_instructions": 123456, "synthesis_instructions": 2345678, "inference_instructions": 9876543,
                      "stack_bytes": 612, "compiler": "testcc", "flags": "-O2", "how": "counted", "text_bytes": 10240},
        "not_run": ["Apnea-ECG: not on this machine"],
    }  # fmt: skip


class Page(HTMLParser):
    """Checks the nesting of tags and collects text, attributes and ids."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def page(report: dict, tmp_path) -> tuple[Page, str]:
    path = tmp_path / "report.html"
    write_html(report, path)
    text = path.read_text(encoding="utf-8")
    return Page(text), text


def shown(report: dict, width: int, printer=print_report) -> str:
    out = io.StringIO()
    printer(report, Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize(
    "report", [full(), {}, {"synthetic": False, "test": None, "training": {"curves": []}, "generated": {}}]
)
def test_html_is_well_formed_and_loads_nothing(report, tmp_path):
    parsed, text = page(report, tmp_path)
    assert not re.search("https?:", text) and "@import" not in text and "url(" not in text.replace("url(#", "")
    assert not parsed.values("src") and all(value.startswith("#") for value in parsed.values("href"))
    assert not {"script", "link", "iframe", "img", "object"} & set(parsed.tags)
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    referred = {v[1:] for v in parsed.values("href")} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert referred <= set(ids)
    assert parsed.tags["h1"] == parsed.tags["main"] == parsed.tags["title"] == 1


def test_html_has_every_figure_and_number(tmp_path):
    parsed, _ = page(full(), tmp_path)
    assert parsed.tags["svg"] == len(FIGURES)
    labels = [value for tag, key, value in parsed.attributes if (tag, key) == ("svg", "aria-label")]
    for figure, words in zip(
        FIGURES, ("Learning curve to step 300", "ROC curve", "Confusion matrix on test", "Bytes per generated layer", "whole image")
    ):
        assert any(words in label for label in labels), figure
    assert "sensitivity 0.803, false positive rate 0.014" in parsed.text  # 672/837, 166/11508
    for words in (
        "0.883",
        "6,448",
        "10,720",
        "7,648",
        "6,112",
        "47,530,008",
        "9,876,543",
        "2,345,678",
        "Result at t* = 0.35",
        "47,530,008 bytes compared, 0 differ",
        "The sum 6,448 is the file",
        "record 233",
        "Apnea-ECG",
        "20000",
    ):
        assert words in parsed.text, words


def test_html_of_an_empty_report_says_not_run(tmp_path):
    parsed, _ = page({}, tmp_path)
    assert "svg" not in parsed.tags and parsed.text.count(tables.NOT_RUN) > 8
    assert not re.search(r"\d", re.sub("Cortex-M4|[Mm]acro-F1|8, 4 and 2 bits", "", parsed.text))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"synthetic": False}, True),
        ({"synthetic": None, "data": None}, False),
        ({"synthetic": False, "data": "mitdb"}, False),
        ({"data": "mitdb"}, True),
    ],
)
def test_banner_if_and_only_if_synthetic(change, expected, tmp_path):
    report = full() | {"command": "run"} | change
    parsed, text = page(report, tmp_path)
    assert ("SYNTHETIC DATA." in parsed.text) is expected and ('class="banner"' in text) is expected
    assert (text.count('class="badge">') >= 6) is expected and ('class="badge">' in text) is expected
    assert all(("SYNTHETIC DATA" in svg) is expected for svg in figures.svg(figures.of_report(report)).values())
    assert ("SYNTHETIC DATA" in shown(report, 80)) is expected


def test_hostile_names_are_only_text(tmp_path):
    report = full()
    report["network"]["name"] = report["image"] = report["command"] = HOSTILE
    report["classes"] = [HOSTILE, "\x1b[31mred\x00"]
    report["generated"][HOSTILE] = report["generated"].pop("pw3")
    report["layers"][0]["name"] = HOSTILE
    report["sections"][HOSTILE] = 0
    report["test_notes"] = report["not_run"] = [HOSTILE]
    parsed, text = page(report, tmp_path)
    assert "script" not in parsed.tags and "<script" not in text and "\x1b" not in text and "\x00" not in text
    assert parsed.tags["svg"] == len(FIGURES) and parsed.text.count(HOSTILE) > 6
    printed = shown(report, 140)
    assert HOSTILE in printed and "\x1b" not in printed


def test_same_report_same_bytes(tmp_path):
    page(full(), tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": "other"}):
        page(copy.deepcopy(full()), tmp_path)
        assert matplotlib.rcParams["font.size"] == 20  # the caller's settings stay his
    assert (tmp_path / "report.html").read_bytes() == first
    assert figures.files([figures.of_report(full())]) == figures.files([figures.of_report(full())])


def test_png_files(tmp_path):
    written = write_png(full(), tmp_path / "new" / "plots")
    assert [path.name for path in written] == [f"{name}.png" for name in FIGURES]
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in written)
    assert write_png({}, tmp_path) == []


@pytest.mark.parametrize("write", [lambda path: write_html({}, path), lambda path: write_png(full(), path)])
def test_unwritable_path_is_one_line(write, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match="cannot write") as caught:
        write(tmp_path / "file" / "report.html")
    assert "\n" not in str(caught.value) and [p.name for p in tmp_path.iterdir()] == ["file"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="cannot write"):
        write_html({}, tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    with pytest.raises(ConfigError, match="cannot write"):
        write_html({}, "")


def test_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ConfigError, match="No space left"):
        write_html({}, path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_missing_package_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ToolError, match=r"pip install 'pyhtpw\[report\]'") as caught:
        write_html({}, tmp_path / "report.html")
    assert package in str(caught.value) and not list(tmp_path.iterdir())


def test_terminal_needs_neither_matplotlib_nor_jinja2():
    code = "import sys, pyhtpw.report as r; r.print_report({}); assert not {'matplotlib', 'jinja2'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "not run" in done.stdout, done.stderr


def test_pyplot_is_not_loaded():
    code = (
        "import sys; from pyhtpw.report import figures as f; f.svg(f.of_report({})); f.files([f.of_report({})]); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 140])
def test_terminal_shows_every_number_whole(width):
    printed = shown(full(), width)
    for words in (
        "0.883",
        "0.898",
        "0.35",
        "11,342",
        "672",
        "6,448",
        "10,720",
        "7,648",
        "6,112",
        "2,310",
        "2,048",
        "551",
        "1,357",
        "47,530,008",
        "24,690",
        "9,876,543",
        "2,345,678",
        "123,456",
        "612",
    ):
        assert words in printed, words
    assert max(map(len, printed.splitlines())) <= width and "\u2026" not in printed


def test_terminal_tables_have_a_row_per_section():
    rows = [line.split() for line in shown(full(), 80).splitlines()]
    assert ["sum", "6,448", "10,720", "7,648", "6,112"] in rows
    assert ["HEAD", "550", "0", "0", "0"] in rows
    assert ["macro-F1", "0.883", "0.898"] in rows


def test_terminal_honours_no_color_and_narrow_encodings(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    print_report(full(), Console(file=out, width=80, force_terminal=True))
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", out.getvalue())
    raw = io.BytesIO()
    ascii_only = io.TextIOWrapper(raw, "ascii", write_through=True)
    print_report(full() | {"test_notes": ["\u5fc3\u96fb\u56f3"]}, Console(file=ascii_only, width=80))
    assert b"6,448" in raw.getvalue() and b"Note: ???" in raw.getvalue()


def test_bill_is_printed_and_equals_the_file():
    bill = {
        key: full()[key]
        for key in ("image_bytes", "sections", "layers", "generated", "generated_total", "whole_image_if_stored")
    }
    for width in (40, 80, 140):
        printed = shown(bill, width, print_bill)
        assert "The sum 6,448 is the file, 6,448 bytes." in printed.replace("\n", " ")
        assert "padding" in printed and "1,045" in printed  # all that the two layers own
    assert "is not the size of the file" in shown(bill | {"image_bytes": 6449}, 80, print_bill)
    plain = bill | {"generated": {}, "generated_total": None}
    assert "No kernel of this image is generated" in shown(plain, 80, print_bill)


def test_breakdown_sums_to_every_image():
    report = full()
    columns = tables.breakdown(report)
    assert {name: sum(column.values()) for name, column in columns.items()} == {
        tables.THIS: 6448,
        **report["whole_image_if_stored"],
    }
    report["whole_image_if_stored"]["2"] = 5000  # less than its payload
    assert tables.breakdown(report)["2"][tables.REST] is None
    assert "does not add up" in shown(report, 80)


def test_costs_more_is_flagged_wherever_it_holds(tmp_path):
    report = full()
    assert report["generated"]["pw2"]["costs_more_than_storing"] == ["2"]
    parsed, _ = page(report, tmp_path)
    assert "costs more than storing at 2 bits" in parsed.text and "Costs more than storing: pw2" in parsed.text
    assert "costs more than storing at 2 bits" in figures.svg(figures.of_report(report))["layers"]
    report["generated_total"]["costs_more_than_storing"] = ["8", "4", "2"]
    assert "stored plainly at 8, 4 and 2 bits" in page(report, tmp_path)[0].text
    for row in (*report["generated"].values(), report["generated_total"]):
        row["costs_more_than_storing"] = []
    assert "osts more than" not in page(report, tmp_path)[1] and "osts more than" not in shown(report, 140)


@pytest.mark.parametrize(("change", "words", "good"), [
    ({}, "47,530,008 bytes compared, 0 differ", True), ({"bytes_differ": 3}, "3 differ", False),
    ({"bytes_compared": 0}, "no byte", None),
    ({"bytes_compared": None}, "not run", None), ({"bytes_differ": None}, "not stated", None)])  # fmt: skip
def test_verdict(change, words, good):
    said = tables.verdict(full() | change)
    assert words in said[0] and said[1] is good


def test_a_difference_in_one_pair_is_never_good(tmp_path):
    report = full()
    report["pairs"][0] |= {"differ": 2, "first": "layer pw3, byte 17"}
    assert tables.verdict(report) == ("47,530,008 bytes compared, 0 differ, but 2 by the list of pairs", False)
    assert "layer pw3, byte 17" in page(report, tmp_path)[0].text and "layer pw3, byte 17" in shown(report, 140)


def test_half_a_report_still_renders(tmp_path):
    """Each key in turn is missing, then None; and each key in turn is the only one."""
    for key in full():
        for report in ({k: v for k, v in full().items() if k != key}, full() | {key: None}, {key: full()[key]}):
            assert tables.result(report) is None or tables.result(report).rows
            assert shown(report, 80)
    for key in ("sections", "test", "training", "generated", "generated_total", "pairs", "cortex_m4", "network"):
        page(full() | {key: None}, tmp_path)
        page({key: full()[key]}, tmp_path)


def test_numbers_that_are_none_are_not_run():
    assert (tables.whole(None), tables.whole(1234567), tables.whole(0)) == ("not run", "1,234,567", "0")
    assert (tables.decimal(None), tables.decimal(0.12349), tables.decimal(float("nan"))) == ("not run", "0.123", "nan")


def test_parallel_writers_leave_a_whole_file(tmp_path):
    path = tmp_path / "report.html"
    threads = [threading.Thread(target=write_atomically, args=(path, bytes([i]) * 100_000)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data = path.read_bytes()
    assert len(data) == 100_000 and len(set(data)) == 1 and list(tmp_path.iterdir()) == [path]
