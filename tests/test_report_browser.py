"""The browser's telling: the library as WebAssembly in node and in Chromium gives the host's bytes; the page without JavaScript."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import Path

import browsers
import numpy as np
import pytest
import random_images

from pyhtpw.errors import ConfigError, MissingToolError
from pyhtpw.image import write
from pyhtpw.report import browser
from pyhtpw.report.html import section_ids, write_page
from pyhtpw.report.sources import Source, image, several

pytest.importorskip("jinja2")
IMAGES = Path(__file__).parent / "vectors" / "images"
SCRIPT = Path(browser.__file__).with_name("browser.js")
RUN = """
const { tell, bytesOf } = require(process.argv[1]), fs = require("fs");
const data = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
(async () => { for (const source of data.sources) {
  const told = await tell(bytesOf(data.wasm), source);
  console.log(JSON.stringify({ compared: told.compared, differ: told.differ, sha256: told.kernels.map((k) => k.sha256),
    kernels: told.kernels.map((k) => k.differ), windows: told.windows.map((w) => w.differ), logits: told.windows.map((w) => Array.from(w.logits)) }));
} })().catch((e) => { console.error(String(e)); process.exit(1); });
"""


@pytest.fixture(scope="module")
def wasm() -> bytes:
    try:
        return browser.wasm()
    except MissingToolError as error:
        pytest.skip(f"NOT RUN: {error}")


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Source:
    """An image with every operator and every kind of head."""
    path = tmp_path_factory.mktemp("browser") / "example.htpw"
    path.write_bytes(write(random_images.example()))
    return image(path)


def in_node(data: dict, folder: Path) -> list[dict]:
    (folder / "data.json").write_text(json.dumps(data))
    done = subprocess.run([browsers.node(), "-e", RUN, str(SCRIPT), str(folder / "data.json")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def sections(data: bytes) -> set[int]:
    """Ids of a WebAssembly module's sections."""
    found, at = set(), 8
    while at < len(data):
        found.add(data[at])
        at, size, shift = at + 1, 0, 0
        while True:
            size, shift, at, more = size | (data[at] & 127) << shift, shift + 7, at + 1, data[at] & 128
            if not more:
                break
        at += size
    return found


def test_the_module_imports_nothing(wasm):
    assert wasm[:8] == b"\0asm\1\0\0\0"
    assert 2 not in sections(wasm) and 10 in sections(wasm)  # no import section; there is code
    assert len(wasm) < 100_000


def test_every_byte_of_node_is_the_hosts(wasm, example, tmp_path):
    x = random_images.inputs(random_images.example(), 24, 3)
    told = browser.host(example, "browser", x, "test")
    (found,) = in_node(browser.embed([told]), tmp_path)
    host = example.image.kernels("portable")
    assert len(found["kernels"]) == len(host) > 3 and found["differ"] == 0
    assert found["compared"] == sum(k.size for k in host.values()) + 24 * example.image.classes
    assert np.array_equal(np.array(found["logits"], np.int8), example.image.run_batch(x, backend="portable"))


def test_a_changed_byte_is_counted(wasm, example, tmp_path):
    """What the page says can be false: other host bytes, other logits, a smaller kernel, a broken image."""
    told = browser.host(example, "browser", browser.sampled(example.image, 4), "test")
    data = browser.embed([told])
    kernel = bytearray(base64.b64decode(data["sources"][0]["kernels"][1]["weights"]))
    kernel[0] ^= 1
    kernel[-1] ^= 128
    data["sources"][0]["kernels"][1] = {**data["sources"][0]["kernels"][1], "weights": base64.b64encode(kernel).decode()}
    logits = bytearray(base64.b64decode(data["sources"][0]["logits"]))
    logits[-1] ^= 3
    data["sources"][0]["logits"] = base64.b64encode(logits).decode()
    (found,) = in_node(data, tmp_path)
    assert found["kernels"][1] == 2 and found["windows"][-1] == 1 and found["differ"] == 3
    told.data["kernels"][0]["sha256"] = "0" * 64
    assert in_node(browser.embed([told]), tmp_path)[0]["kernels"][0] == 1
    broken = bytearray(example.image.data)
    broken[40] ^= 1
    (tmp_path / "data.json").write_text(json.dumps({"wasm": data["wasm"], "sources": [{**data["sources"][0], "image": browser.text(bytes(broken))}]}))
    done = subprocess.run([browsers.node(), "-e", RUN, str(SCRIPT), str(tmp_path / "data.json")], capture_output=True, text=True)
    assert done.returncode == 1 and "Error: " in done.stderr


@pytest.fixture(scope="module")
def page(wasm, example, tmp_path_factory) -> Path:
    """Two images side by side, interactive; a hostile name among them."""
    folder = tmp_path_factory.mktemp("page")
    plain = IMAGES / "stored8_2d.htpw"
    found = several([example.path, plain])
    hostile = {"name": "</script><b>1</b>", "macs": 1}
    found[1] = Source(found[1].label, "image", plain, {**found[1].report, "network": hostile}, found[1].image)
    told = [browser.host(s, i, browser.sampled(s.image, 5), "seeded") for s, i in zip(found, section_ids(found))]
    write_page(found, folder / "page.html", told)
    return folder / "page.html"


def test_chromium_runs_the_page(page, example, tmp_path):
    document, console = browsers.opened(page, tmp_path)
    counts = re.findall(r'data-compared="(\d+)" data-differ="(\d+)"', document)
    assert len(counts) == 2 and all(differ == "0" and int(compared) > 4 for compared, differ in counts), console
    said = re.findall(r'role="status"[^>]*>([^<]*)<', document)
    assert len(said) == 2 and all("bytes compared, 0 differ" in line and "NOT RUN" not in line for line in said)
    assert "not run" not in re.search(r'id="s1-browser".*?</section>', document, re.S)[0]
    first = [", ".join(map(str, image(path).image.run_batch(browser.sampled(image(path).image, 1))[0])) for path in (example.path, IMAGES / "stored8_2d.htpw")]
    shown = re.findall(r'data-role="said"[^>]*>logits ([^;(<]*?)[;( ]*(?:<|;| \()', document)
    assert shown == first and 'data-role="controls" hidden' not in document  # what can be tried is there, and ran
    assert "Refused" not in console and "Error" not in console and "violat" not in console, console


def test_chromium_shows_a_difference(wasm, tmp_path):
    """One logit of the host changed: the page says so, in words and in the row of its window."""
    source = image(IMAGES / "tiled_1d.htpw")
    told = browser.host(source, "browser", browser.sampled(source.image, 3), "seeded")
    logits = bytearray(base64.b64decode(told.data["logits"]))
    logits[0] ^= 1
    told.data["logits"] = base64.b64encode(logits).decode()
    write_page([source], tmp_path / "page.html", [told])
    document, _ = browsers.opened(tmp_path / "page.html", tmp_path)
    assert re.search(r'class="callout bad" role="status"[^>]*>[^<]* bytes compared, 1 differ', document)
    assert re.findall(r'data-cell="window\d-1">([^<]*)<', document) == ["1", "0", "0"]


def test_chromium_without_scripts_shows_the_essentials(page, tmp_path):
    seen = browsers.without_scripts(page, tmp_path)
    for words in ("Side by side", "In your browser", "NOT RUN: the script of this page has not run", "Architecture, layer by layer", "Bytes by section", "SHA-256, host"):
        assert words in seen["text"], words
    assert "bytes compared, 0 differ" not in seen["text"] and seen["hidden"] == 2 and seen["figures"] > 6
    narrow = browsers.without_scripts(page, tmp_path, 420)
    assert narrow["wide"] <= narrow["room"] and seen["wide"] <= seen["room"]  # no sideways scrolling of the page itself


def test_page_has_one_script_and_its_hash(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 2 and text.count("</script>") == 2 and "'wasm-unsafe-eval'" in text and "'unsafe-eval'" not in text
    assert not re.search("https?:", text) and "<b>1</b>" not in text
    assert "<script" not in re.sub(r"(?s)<footer>.*", "", text)


def test_missing_compiler_is_said(monkeypatch):
    from pyhtpw.target import toolchain

    browser.wasm.cache_clear()
    monkeypatch.setattr(toolchain, "_clang", lambda: None)
    try:
        with pytest.raises(MissingToolError, match="pip install ziglang"):
            browser.wasm()
    finally:
        browser.wasm.cache_clear()


def test_nothing_to_run_is_refused(example):
    with pytest.raises(ConfigError, match="no windows"):
        browser.host(example, "browser", np.empty((0, *example.image.input_shape), np.int8), "test")
    with pytest.raises(ConfigError, match="has no image"):
        browser.host(Source("x", "demo", Path(), {}), "browser", np.zeros((1, 1), np.int8), "test")


def test_golden_images_are_the_same_in_node(wasm, tmp_path):
    """Every kind of head and of storage, in one and two dimensions."""
    found = [image(path) for path in sorted(IMAGES.glob("*.htpw"))]
    assert len(found) > 20
    told = [browser.host(source, "browser", browser.sampled(source.image, 3), "test") for source in found]
    rows = in_node(browser.embed(told), tmp_path)
    assert len(rows) == len(found)
    for source, row in zip(found, rows):
        kernels = source.image.kernels("portable")
        assert row["differ"] == 0 and len(row["kernels"]) == len(kernels), source.path
        assert row["compared"] == sum(k.size for k in kernels.values()) + 3 * source.image.classes
    assert any(not row["kernels"] for row in rows)  # nothing to make: logits are compared all the same
