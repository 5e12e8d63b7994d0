"""Chromium and node for the tests of pages: found on this machine, or the test says NOT RUN."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")
OUTSIDE = """<!DOCTYPE html><meta charset="utf-8"><title>outside</title>
<iframe id="page" sandbox="allow-same-origin" width="%d" height="2000" srcdoc="%s"></iframe><pre id="out"></pre><script>
addEventListener("load", () => {
  const page = document.getElementById("page").contentDocument, root = page.documentElement;
  document.getElementById("out").textContent = JSON.stringify({text: page.body.innerText, hidden: [...page.querySelectorAll("[hidden]")].length,
    wide: root.scrollWidth, room: root.clientWidth, figures: [...page.querySelectorAll("svg")].filter((s) => s.getBoundingClientRect().height > 20).length});
});</script>"""


def node() -> str:
    """Path of node, or NOT RUN."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("NOT RUN: node is not installed")
    return found


def chromium() -> str:
    """Path of a Chromium (or HTPW_CHROMIUM), or NOT RUN."""
    found = next((path for name in (os.environ.get("HTPW_CHROMIUM") or "", *CHROMIUM) if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("NOT RUN: no Chromium is installed (chromium, google-chrome, or HTPW_CHROMIUM)")
    return found


def opened(page: Path, folder: Path, milliseconds: int = 20000) -> tuple[str, str]:
    """A page after its script has run, as text of its document, and what the console said."""
    command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--no-first-run",
               "--enable-logging=stderr", "--window-size=1280,2000", f"--virtual-time-budget={milliseconds}", "--dump-dom", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout, done.stderr[-2000:]
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def without_scripts(page: Path, folder: Path, width: int = 1200) -> dict:
    """What a reader with JavaScript off sees of a page: it is laid out in a frame in which no script may run."""
    outside = folder / "outside.html"
    outside.write_text(OUTSIDE % (width, html.escape(page.read_text(encoding="utf-8"), quote=True)), encoding="utf-8")
    document, _ = opened(outside, folder)
    return json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', document, re.S)[1]))
