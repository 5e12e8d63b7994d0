"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyhtpw.errors import ConfigError
from pyhtpw.nets.graph import Graph, Node, same_padding
from pyhtpw.nets.heads import HeadSpec
from pyhtpw.nets.hypertinypw import hypertinypw, separable, wide
from pyhtpw.nets.toml import load_heads

__all__ = [
    "NAMES",
    "Graph",
    "HeadSpec",
    "Node",
    "build",
    "hypertinypw",
    "load_heads",
    "same_padding",
    "separable",
    "wide",
]

_BUILDERS: dict[str, Callable[..., Graph]] = {
    "hypertinypw": hypertinypw,
    "hypertinypw-wide": wide,
    "separable": separable,
}
NAMES = tuple(_BUILDERS)
"""The names that `build` knows."""


def build(name: str, **options: Any) -> Graph:
    """The network called ``name``; ``options`` are its builder's arguments, ``t`` (steps per window) at least.

    Raises ConfigError for an unknown name, an unknown option, or sizes that make no network.
    """
    if name not in _BUILDERS:
        raise ConfigError(f"no network is called {name!r}; choose one of {', '.join(NAMES)}")
    try:
        return _BUILDERS[name](**options)
    except TypeError as error:  # a misspelt or missing option; the builders take nothing else amiss
        raise ConfigError(f"network {name!r}: {error}") from error
