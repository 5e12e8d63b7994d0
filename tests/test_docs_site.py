"""The documents: the site builds without a warning, links lead somewhere, examples and code blocks run, commands exist."""

import contextlib
import doctest
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
         ROOT / "examples/firmware/README.md"]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.M | re.S)


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#{1,3} (.+)", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", [p for p in PAGES if ">>> " in p.read_text()], ids=lambda p: p.name)
def test_sessions_of_pages_run(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert tried and not failed


def test_readme_python_runs(tmp_path, monkeypatch):
    """The first Python block, on the image whose figures the README shows."""
    shutil.copy(ROOT / "results/mitdb-first.htpw", tmp_path / "model.htpw")
    monkeypatch.chdir(tmp_path)
    space = {"windows": np.zeros((2, 1800, 1), np.float32)}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(blocks(ROOT / "README.md", "python")[0], space)
    assert space["logits"].shape == (2, 2) and "CODE" in printed.getvalue()


def test_readme_c_compiles(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("NOT RUN: no C compiler")
    first, *rest = blocks(ROOT / "README.md", "c")[0].splitlines()
    source = "\n".join([first, "static void log(const char *text) { (void)text; }",
                        "void snippet(const void *image, size_t image_bytes, void *arena, void *cache, const int8_t *window, int8_t *logits);",
                        "void snippet(const void *image, size_t image_bytes, void *arena, void *cache, const int8_t *window, int8_t *logits) {",
                        *rest, "}\n"])
    (tmp_path / "snippet.c").write_text(source)
    done = subprocess.run([compiler, "-std=c99", "-Wall", "-Werror", "-fno-builtin", "-fsyntax-only", f"-I{ROOT / 'csrc'}", "snippet.c"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def lines_of_shell():
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                yield page.name, line


def command_tree():
    import typer

    from pyhtpw.cli import app

    def leaves(command, words=()):
        for name, child in command.commands.items():
            if hasattr(child, "commands"):
                yield from leaves(child, (*words, name))
            else:
                yield " ".join((*words, name)), child

    return dict(leaves(typer.main.get_command(app)))


def parse(line: str, tree: dict) -> None:
    """Raises if no command takes these arguments."""
    words = shlex.split(re.sub(r"<([^>]*)>", lambda m: m[1].split()[0], line), comments=True)[1:]
    name = " ".join(words[:2]) if " ".join(words[:2]) in tree else words[0]
    tree[name].make_context(name, words[len(name.split()):])


def test_commands_of_pages_exist():
    tree, targets = command_tree(), set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    found = 0
    for page, line in lines_of_shell():
        if line.startswith("pyhtpw "):
            parse(line, tree)
        elif line.startswith("make "):
            assert line.split()[1] in targets, (page, line)
        elif line.startswith("python "):
            assert (ROOT / line.split()[1]).is_file(), (page, line)
        else:
            continue
        found += 1
    assert found > 40


def test_every_command_ends_with_examples_that_it_takes():
    from pyhtpw.cli import app
    from pyhtpw.cli.examples import EXAMPLES, commands

    tree = command_tree()
    assert EXAMPLES.keys() == tree.keys() == commands(app).keys()
    for name, lines in EXAMPLES.items():
        assert "Examples:" in commands(app)[name].epilog
        for line in lines:
            assert line.startswith(f"pyhtpw {name} ") or line == f"pyhtpw {name}", line
            parse(line, tree)


def test_help_texts_hold_no_brackets():
    """rich takes [word] for markup and prints nothing."""
    for name, command in command_tree().items():
        for text in [command.help or "", *(getattr(p, "help", "") or "" for p in command.params)]:
            assert not re.search(r"\[[a-z]", text), (name, text)


def test_command_reference_is_current():
    done = subprocess.run([sys.executable, "docs/make_commands.py", "--check"], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


def test_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("myst_parser", reason="NOT RUN: the extra 'docs' is missing")
    pytest.importorskip("furo", reason="NOT RUN: the extra 'docs' is missing")
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "trees", "docs",
                           tmp_path / "site"], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "run_batch" in (tmp_path / "site/api.html").read_text()


@pytest.mark.parametrize("name, steps", [("ecg_end_to_end", 4), ("keyword_spotting", 20)])
def test_examples_run(name, steps, tmp_path, capsys):
    example = runpy.run_path(str(ROOT / f"examples/{name}.py"))
    assert example["main"](["--steps", str(steps), "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "synthetic" in text and re.search(r"[\d,]+ bytes compared, 0 differ", text)
    assert list(tmp_path.glob("*.htpw"))
