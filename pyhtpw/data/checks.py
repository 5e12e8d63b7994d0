"""Helpers of ``pyhtpw data check``: gathering problems in place of stopping at the first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import DataError

Result = TypeVar("Result")
SUMS = "SHA256SUMS"


class Problems(list[str]):
    """Messages, in the order they were found, each once."""

    def add(self, message: str) -> None:
        if message not in self:
            self.append(message)

    def attempt(self, function: Callable[..., Result], *arguments: object) -> Result | None:
        """The function's result; None, and its message kept, if it raises DataError."""
        try:
            return function(*arguments)
        except DataError as error:
            self.add(str(error))
            return None


def check_sums(folder: Path, problems: Problems, progress: Callable[[int, int, str], None] | None = None) -> int:
    """Compare files with ``SHA256SUMS``, where a folder has one; returns how many it names.

    Lines are ``<64 hexadecimal digits>  <path>``, as `sha256sum` writes them; paths are relative and stay inside.
    """
    path = folder / SUMS
    if not path.is_file():
        return 0
    lines = [line for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
    for at, line in enumerate(lines, 1):
        digest, _, name = line.partition(" ")
        name = name.strip().lstrip("*")
        if len(digest) != 64 or not name or name.startswith("/") or ".." in Path(name).parts:
            problems.add(f"{SUMS} line {at} is no checksum and relative path: copy it anew")
        elif not (folder / name).is_file():
            problems.add(f"{name} is missing, but {SUMS} names it: copy it there")
        elif sha256_of(folder / name) != digest.lower():
            problems.add(f"{name} is not what {SUMS} says: copy it anew")
        if progress is not None and at % 100 == 0:
            progress(at, len(lines), "checksums")
    return len(lines)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def two_sides(groups: dict[str, set[str]], title: str, what: str) -> list[str]:
    """One message for each group (a patient, a speaker) that is in two splits."""
    out = []
    parts = list(groups)
    for k, one in enumerate(parts):
        for other in parts[k + 1:]:
            out += [f"{title}: {what} {name} is in {one} and in {other}: move every clip or record of one {what} to one side"
                    for name in sorted(groups[one] & groups[other])]
    return out
