"""Heads by layer from a TOML file."""

from __future__ import annotations

import os
from pathlib import Path

from pyhtpw.errors import ConfigError
from pyhtpw.nets.heads import HeadSpec, flatten

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    try:
        import tomli as tomllib
    except ModuleNotFoundError:
        tomllib = None


def load_toml(path: str | os.PathLike) -> dict[str, object]:
    """A TOML file as a dict; ConfigError naming it if it cannot be read."""
    if tomllib is None:
        raise ConfigError(f"{path}: reading TOML takes Python 3.11; give the settings as options instead")
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a TOML file") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{path}: not a TOML file ({error})") from error


def load_heads(path: str | os.PathLike) -> dict[str, str]:
    """The table ``[heads]`` of a TOML file, by kind or by layer, as `Graph.with_heads` takes it.

    ::

        [heads]
        pw = "tiled:tile=32,dz=4,hidden=16"
        depthwise = "tiled:dz=4,hidden=0"
        block3.pw = "stored:bits=4"

    Raises ConfigError naming the file if it cannot be read, has no such table, or holds anything but specifications.
    """
    top = load_toml(path)
    if not isinstance(top.get("heads"), dict) or not top["heads"]:
        raise ConfigError(f"{path}: has no table [heads]; add one with lines like pw = 'tiled:tile=32'")
    found = flatten(top["heads"])
    for key, text in found.items():
        try:
            HeadSpec.parse(text)
        except ConfigError as error:
            raise ConfigError(f"{path}: {key}: {error}") from error
    return found
