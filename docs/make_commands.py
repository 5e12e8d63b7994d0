"""Writes docs/commands.md, the command reference, from the command line itself.

    python docs/make_commands.py           writes it
    python docs/make_commands.py --check   exits 1 if it is out of date
"""

import inspect
import sys
from pathlib import Path

import typer

from pyhtpw.cli import app
from pyhtpw.cli.examples import EXAMPLES

PAGE = Path(__file__).resolve().parent / "commands.md"
HEAD = """# Commands

Made by `docs/make_commands.py` from the command line; `pyhtpw COMMAND --help` says the same.
What the exit status means: [Exit codes](exit-codes.md).
"""


def leaves(command, words: tuple[str, ...] = ()):
    """(name, command) of every command that does something."""
    if not hasattr(command, "commands"):
        yield " ".join(words), command
        return
    for name, child in command.commands.items():
        yield from leaves(child, (*words, name))


def default(parameter) -> str:
    value = parameter.default
    if value is None or value is False or callable(value) or isinstance(value, (list, tuple)) or parameter.required:
        return ""
    return f" Default: `{str(value).lower() if isinstance(value, bool) else value}`."


def row(parameter) -> str:
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
    else:
        name = ", ".join(parameter.opts) + "".join(f" / {o}" for o in parameter.secondary_opts)
    text = " ".join((getattr(parameter, "help", "") or "").split()).replace("|", "\\|").replace("<", "&lt;")
    return f"| `{name}` | {text}{' Required.' if parameter.required else ''}{default(parameter)} |"


def page() -> str:
    parts = [HEAD]
    for name, command in leaves(typer.main.get_command(app)):
        help_text = inspect.cleandoc(command.help or "").replace("\f", "").replace("<", "&lt;")
        shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"
                 and p.name not in ("install_completion", "show_completion")]
        rows = "\n".join(map(row, shown))
        parts.append(f"## pyhtpw {name}\n\n{help_text}\n\n```sh\n" + "\n".join(EXAMPLES[name]) + "\n```\n\n"
                     f"| argument or option | what it is |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    if "--check" in sys.argv:
        is_current = PAGE.is_file() and page() == PAGE.read_text()
        sys.exit(0 if is_current else "docs/commands.md is out of date: run python docs/make_commands.py")
    PAGE.write_text(page())
