"""HyperTinyPW: a separable 1-D CNN whose pointwise kernels, all but the first, are generated.

After "Once-for-All Channel Mixers (HyperTinyPW): Generative Compression for TinyML" (arXiv:2603.24916).  Its hybrid
rule is kept: the first pointwise kernel is stored, because early mixing is morphology-sensitive.  Unlike the published
per-layer heads, which are larger than the kernels they make, all generated kernels share one small head over tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyhtpw.errors import ConfigError
from pyhtpw.nets.graph import INPUT, GeneratorSpec, Graph, Node, same_padding


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
    generator: GeneratorSpec | None = GeneratorSpec(),  # noqa: B008  frozen
    generated: bool = True,
) -> Graph:
    """Build the network for windows of ``t`` steps and ``channels_in`` channels.

    Stem convolution, then one block per width: depthwise, pointwise, and an addition of the block's input where the
    shapes agree (the ReLU then follows the addition), then the mean over time and the classifier.  Nodes are called
    stem, dw1, pw1, add1 (if any), dw2, ..., pool, fc.  With ``generated`` False every kernel is stored, which is the
    network "separable".  A single block has nothing to generate.  Raises ConfigError for sizes that make no network.
    """
    if len(widths) != len(strides) or not widths:
        raise ConfigError(
            f"hypertinypw: {len(widths)} widths and {len(strides)} strides; give as many of both, not none"
        )
    if generated and generator is None:
        raise ConfigError("hypertinypw: generated kernels need a generator; give one or set generated to False")
    sizes = {"t": t, "stem_kernel": stem_kernel, "stem_stride": stem_stride, "kernel": kernel}
    sizes.update({f"strides[{i}]": stride for i, stride in enumerate(strides)})
    for name, size in sizes.items():  # the rest is for the graph to check, but these are divided by before it exists
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"hypertinypw: {name} is {size!r}; give a whole number of at least 1")
    nodes = [Node("stem", "conv", (INPUT,), stem, stem_kernel, stem_stride, norm=True, relu=True)]
    steps, _ = same_padding(t, stem_kernel, stem_stride)
    source, channels = "stem", stem
    for i, (width, stride) in enumerate(zip(widths, strides, strict=True), start=1):
        shape = (steps, channels)
        steps, _ = same_padding(steps, kernel, stride)
        residual = shape == (steps, width)
        head = "tiled" if generated and i > 1 else "stored"
        nodes.append(Node(f"dw{i}", "depthwise", (source,), channels, kernel, stride, norm=True, relu=True))
        nodes.append(Node(f"pw{i}", "pointwise", (f"dw{i}",), width, norm=True, relu=not residual, head=head))
        if residual:
            nodes.append(Node(f"add{i}", "add", (source, f"pw{i}"), width, relu=True))
        source, channels = nodes[-1].name, width
    nodes.append(Node("pool", "avgpool", (source,), channels))
    nodes.append(Node("fc", "fc", ("pool",), classes))
    uses_generator = any(node.head == "tiled" for node in nodes)
    return Graph(
        "hypertinypw" if generated else "separable",
        (t, channels_in),
        classes,
        tuple(nodes),
        generator if uses_generator else None,
    )


def separable(t: int, channels_in: int = 1, classes: int = 2, **options: object) -> Graph:
    """The same network with every kernel stored: the plain alternative that generation is measured against."""
    return hypertinypw(t, channels_in, classes, **{**options, "generated": False})
