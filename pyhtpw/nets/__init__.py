"""Networks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from pyhtpw.errors import ConfigError
from pyhtpw.nets.baselines import (
    hrv_beats,
    hrv_featnet,
    published_generator,
    regular_cnn,
    resnet1d_small,
    ternary_separable,
    tiny_cnn,
    tiny_separable,
    tiny_vae_head,
)
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
    "hrv_beats",
    "hrv_featnet",
    "hypertinypw",
    "load_heads",
    "published_generator",
    "regular_cnn",
    "resnet1d_small",
    "same_padding",
    "separable",
    "takes",
    "ternary_separable",
    "tiny_cnn",
    "tiny_separable",
    "tiny_vae_head",
    "wide",
]

_BUILDERS: dict[str, Callable[..., Graph]] = {
    "hypertinypw": hypertinypw,
    "hypertinypw-wide": wide,
    "separable": separable,
    "regular_cnn": regular_cnn,
    "resnet1d_small": resnet1d_small,
    "tiny_separable": tiny_separable,
    "tiny_cnn": tiny_cnn,
    "tiny_vae_head": tiny_vae_head,
    "ternary_separable": ternary_separable,
    "published_generator": published_generator,
    "hrv_featnet": hrv_featnet,
    "hrv_beats": hrv_beats,
}
NAMES = tuple(_BUILDERS)
"""The names that `build` knows."""


def _builder(name: str) -> Callable[..., Graph]:
    if name not in _BUILDERS:
        raise ConfigError(f"no network is called {name!r}; choose one of {', '.join(NAMES)}")
    return _BUILDERS[name]


def takes(name: str, option: str) -> bool:
    """Whether the network called ``name`` has an option of this name; ConfigError for an unknown network."""
    known = inspect.signature(_builder(name)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):  # those of `hypertinypw`
        known = {**known, **inspect.signature(hypertinypw).parameters}
    return option in known


def build(name: str, **options: Any) -> Graph:
    """The network called ``name``; ``options`` are its builder's arguments, ``t`` (steps per window) at least.

    Raises ConfigError for an unknown name, an unknown option, or sizes that make no network.
    """
    builder = _builder(name)
    try:
        return builder(**options)
    except TypeError as error:  # a misspelt or missing option; the builders take nothing else amiss
        raise ConfigError(f"network {name!r}: {error}") from error
