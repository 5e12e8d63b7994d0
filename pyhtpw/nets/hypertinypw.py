"""HyperTinyPW: a separable 1-D CNN whose pointwise kernels, all but the first, are generated.

After "Once-for-All Channel Mixers (HyperTinyPW): Generative Compression for TinyML" (arXiv:2603.24916).  Its hybrid
rule is kept: the first pointwise kernel is stored, because early mixing is morphology-sensitive.  Unlike the published
per-layer heads, which are larger than the kernels they make, all generated kernels share one small head over tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pyhtpw.errors import ConfigError
from pyhtpw.nets.graph import INPUT, Graph, Node, same_padding
from pyhtpw.nets.heads import HeadSpec

HEADS = {"pw": "tiled"}
"""Heads of `hypertinypw` if nothing else is said: all pointwise kernels but the first from one tiled head."""

WIDE = {
    "widths": (64, 128, 128, 128),
    "strides": (2, 2, 2, 1),
    "heads": {"pw": "tiled", "pw1": "stored:bits=4", "depthwise": "stored:bits=4", "fc": "stored:bits=4"},
}
"""Options of `wide`."""


def hypertinypw(
    t: int,
    channels_in: int = 1,
    classes: int = 2,
    *,
    stem: int = 16,
    widths: Sequence[int] = (32, 64, 64, 64, 64),
    strides: Sequence[int] = (2, 2, 2, 1, 1),
    stem_kernel: int = 9,
    stem_stride: int = 4,
    kernel: int = 5,
    rank: int = 0,
    norm: str = "batch",
    heads: Mapping[str, str | HeadSpec] | None = None,
    name: str = "",
) -> Graph:
    """Build the network for windows of ``t`` steps and ``channels_in`` channels.

    Stem convolution, then one block per width: depthwise, pointwise, and an addition of the block's input where the
    shapes agree (the ReLU then follows the addition), then the mean over time and the classifier.  Nodes are called
    stem, dw1, pw1, add1 (if any), dw2, ..., pool, fc.  ``heads`` is what `Graph.with_heads` takes; kernels that it
    does not speak of are stored.  ``rank`` r > 0 makes every pointwise kernel that this makes smaller the product of two, Cin to r
    (called pw1_in, ...) and r to Cout, with nothing between them: the low-rank alternative.  ``norm`` is "batch", or "group" for
    GroupNorm(1), the published choice for small batches, which an image holds with statistics frozen on calibration windows.
    Without ``heads`` `HEADS` apply, of which a single block has nothing.  The graph is called ``name``, or else "hypertinypw" if anything
    in it is generated and "separable" if not.  Raises ConfigError for sizes that make no network.
    """
    if len(widths) != len(strides) or not widths:
        raise ConfigError(
            f"hypertinypw: {len(widths)} widths and {len(strides)} strides; give as many of both, not none"
        )
    sizes = {"t": t, "stem_kernel": stem_kernel, "stem_stride": stem_stride, "kernel": kernel}
    sizes.update({f"strides[{i}]": stride for i, stride in enumerate(strides)})
    for what, size in sizes.items():  # the rest is for the graph to check, but these are divided by before it exists
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"hypertinypw: {what} is {size!r}; give a whole number of at least 1")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
        raise ConfigError(f"hypertinypw: rank is {rank!r}; give a whole number, 0 for whole kernels")
    if norm not in ("batch", "group"):
        raise ConfigError(f"hypertinypw: norm is {norm!r}; give batch or group")
    nodes = [Node("stem", "conv", (INPUT,), stem, stem_kernel, stem_stride, norm=norm, relu=True)]
    steps, _ = same_padding(t, stem_kernel, stem_stride)
    source, channels = "stem", stem
    for i, (width, stride) in enumerate(zip(widths, strides, strict=True), start=1):
        shape = (steps, channels)
        steps, _ = same_padding(steps, kernel, stride)
        residual = shape == (steps, width)
        nodes.append(Node(f"dw{i}", "depthwise", (source,), channels, kernel, stride, norm=norm, relu=True))
        mixed = f"dw{i}"
        if rank and rank * (channels + width) < channels * width:
            mixed = f"pw{i}_in"
            nodes.append(Node(mixed, "pointwise", (f"dw{i}",), rank))
        nodes.append(Node(f"pw{i}", "pointwise", (mixed,), width, norm=norm, relu=not residual))
        if residual:
            nodes.append(Node(f"add{i}", "add", (source, f"pw{i}"), width, relu=True))
        source, channels = nodes[-1].name, width
    nodes.append(Node("pool", "avgpool", (source,), channels))
    nodes.append(Node("fc", "fc", ("pool",), classes))
    graph = Graph(name or "separable", (t, channels_in), classes, tuple(nodes))
    if heads is None:
        heads = HEADS if len(widths) > 1 else {}
    graph = graph.with_heads(heads)
    return replace(graph, name=name or ("hypertinypw" if graph.generated_nodes() else "separable"))


def separable(t: int, channels_in: int = 1, classes: int = 2, **options: object) -> Graph:
    """The same network with every kernel stored (in 8 bits, or as ``heads`` says): the plain alternative."""
    return hypertinypw(t, channels_in, classes, **{"heads": {}, **options})


def wide(t: int, channels_in: int = 1, classes: int = 2, **options: object) -> Graph:
    """A wider network, 40,960 weights of which are generated, in which what is stored beside them weighs less.

    Its depthwise kernels and classifier are stored in 4 bits, as its generated kernels leave them no room to be the
    larger part.
    """
    return hypertinypw(t, channels_in, classes, **{**WIDE, "name": "hypertinypw-wide", **options})
