"""Output files: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from pyhtpw.errors import ConfigError, ToolError
from pyhtpw.image.writer import replace_file


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replaces `path` by `data` in one step, making its folder if need be; ConfigError if that cannot be done."""
    path = Path(path)
    try:
        replace_file(path, data)
    except (OSError, ValueError) as error:  # ValueError: a path without a name
        raise ConfigError(
            f"{path}: cannot write: {getattr(error, 'strerror', error)}; choose a path that you may write to"
        ) from error


def missing(package: str, error: ImportError) -> ToolError:
    """The error for an optional package that is not installed."""
    return ToolError(f"reports need {package}, which cannot be imported ({error}): pip install 'pyhtpw[report]'")
