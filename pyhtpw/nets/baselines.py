"""The networks that generated kernels are compared with: the teacher, small plain networks, and a ternary one.

Layers, widths and parameter counts are those of the published text and its public code ("Once-for-All Channel Mixers
(HyperTinyPW)", arXiv:2603.24916), as far as these say them; what they leave open is chosen here, and each docstring says
what.  Padding is SAME throughout.  All of them take ``heads`` as `hypertinypw` does, so that their kernels too can be
stored in fewer bits or generated.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyhtpw.errors import ConfigError
from pyhtpw.nets.graph import INPUT, Graph, Node
from pyhtpw.nets.heads import HeadSpec

Heads = Mapping[str, str | HeadSpec] | None

VAE_STEPS, VAE_LATENT = 8, 16
PUBLISHED = "dense:dz=16,hidden=96+96+96,code_bits=8,published"
"""Head of the one generated kernel of `published_generator`: 11,344 parameters of generator and code, 205,824 of head."""


def _graph(name: str, t: int, channels_in: int, classes: int, nodes: list[Node], heads: Heads) -> Graph:
    return Graph(name, (t, channels_in), classes, tuple(nodes)).with_heads(heads or {})


def _ternary(rule: str) -> dict[str, str]:
    """Heads of `ternary_separable` if nothing else is said."""
    return dict.fromkeys(("pw", "pw1"), f"stored:bits=2,rule={rule}")


def _ending(source: str, channels: int, classes: int) -> list[Node]:
    return [Node("pool", "avgpool", (source,), channels), Node("fc", "fc", ("pool",), classes)]


def regular_cnn(
    t: int, channels_in: int = 1, classes: int = 2, *, dropout: float = 0.5, heads: Heads = None
) -> Graph:
    """Build the teacher, a wide plain CNN: 1,455,618 parameters for one channel and two classes.

    Five convolutions, 64 of 7 taps, 128 of 5, 256, 512 and 512 of 3, each with BatchNorm and ReLU; a max pool of 2 after
    the first four; mean over time, dropout, a hidden layer of 256 with ReLU, and the classifier.  The count holds with a
    bias in front of every BatchNorm (1,472 of them), where it has no effect and costs an image nothing; without them it
    would be 1,454,146.  The rate of ``dropout`` is nowhere stated.
    """
    nodes, source = [], INPUT
    for i, (width, kernel) in enumerate(((64, 7), (128, 5), (256, 3), (512, 3), (512, 3)), start=1):
        nodes.append(Node(f"conv{i}", "conv", (source,), width, kernel, norm=True, relu=True, bias=True))
        if i < 5:
            nodes.append(Node(f"top{i}", "maxpool", (f"conv{i}",), width, 2, 2))
        source = nodes[-1].name
    nodes += [
        Node("pool", "avgpool", (source,), 512),
        Node("drop", "dropout", ("pool",), 512, rate=dropout),
        Node("hidden", "pointwise", ("drop",), 256, relu=True, bias=True),
        Node("fc", "fc", ("hidden",), classes),
    ]
    return _graph("regular_cnn", t, channels_in, classes, nodes, heads)


def resnet1d_small(t: int, channels_in: int = 1, classes: int = 2, *, heads: Heads = None) -> Graph:
    """Build a small residual network: 63,474 parameters for one channel and two classes.

    A stem of 16 filters of 9 taps, stride 2, GroupNorm(1) and SiLU; three stages of 16, 32 and 32 channels, strides 1, 2
    and 2, of two basic blocks each: two convolutions of 7 taps with GroupNorm(1), SiLU between them and behind the
    addition.  The input of a stage's first block passes a 1x1 convolution where its shape changes.  The count holds with
    GroupNorm on these shortcuts, too, and with no bias in any convolution.
    """
    nodes = [
        Node("stem", "conv", (INPUT,), 16, 9, 2, norm="group"),
        Node("stem_act", "silu", ("stem",), 16),
    ]
    source, channels = "stem_act", 16
    for stage, (width, first) in enumerate(((16, 1), (32, 2), (32, 2)), start=1):
        for block in (1, 2):
            name, stride = f"s{stage}b{block}", first if block == 1 else 1
            nodes += [
                Node(f"{name}_conv1", "conv", (source,), width, 7, stride, norm="group"),
                Node(f"{name}_act1", "silu", (f"{name}_conv1",), width),
                Node(f"{name}_conv2", "conv", (f"{name}_act1",), width, 7, norm="group"),
            ]
            if stride != 1 or width != channels:
                nodes.append(Node(f"{name}_short", "conv", (source,), width, 1, stride, norm="group"))
                source = nodes[-1].name
            nodes.append(Node(f"{name}_add", "add", (source, f"{name}_conv2"), width))
            nodes.append(Node(f"{name}_act2", "silu", (f"{name}_add",), width))
            source, channels = f"{name}_act2", width
    return _graph("resnet1d_small", t, channels_in, classes, nodes + _ending(source, channels, classes), heads)


def tiny_separable(t: int, channels_in: int = 1, classes: int = 2, *, heads: Heads = None) -> Graph:
    """Build the smallest of them: 741 parameters for one channel and two classes.

    Two blocks to 16 and 32 channels, each a depthwise convolution of 3 taps and a pointwise one, BatchNorm and ReLU; a
    max pool of 2 between the blocks.  The count holds with one BatchNorm to a block, behind the pointwise kernel, and no
    bias but the classifier's.  The 14.5 kB that are published for this network are not its size; see `tiny_cnn`.
    """
    nodes = [
        Node("dw1", "depthwise", (INPUT,), channels_in, 3),
        Node("pw1", "pointwise", ("dw1",), 16, norm=True, relu=True),
        Node("top1", "maxpool", ("pw1",), 16, 2, 2),
        Node("dw2", "depthwise", ("top1",), 16, 3),
        Node("pw2", "pointwise", ("dw2",), 32, norm=True, relu=True),
    ]
    return _graph("tiny_separable", t, channels_in, classes, nodes + _ending("pw2", 32, classes), heads)


def tiny_cnn(t: int, channels_in: int = 1, classes: int = 2, *, heads: Heads = None) -> Graph:
    """Build the relative of `tiny_separable` whose size is near the published one: 14,322 parameters for one channel and
    two classes.

    Three plain convolutions, 16 of 9 taps, 32 of 7 and 64 of 5, each with GroupNorm(1), SiLU and an average pool of 2; the
    mean over time takes the place of the last.  The count holds with no bias but the classifier's.
    """
    nodes, source = [], INPUT
    for i, (width, kernel) in enumerate(((16, 9), (32, 7), (64, 5)), start=1):
        nodes.append(Node(f"conv{i}", "conv", (source,), width, kernel, norm="group"))
        nodes.append(Node(f"act{i}", "silu", (f"conv{i}",), width))
        if i < 3:
            nodes.append(Node(f"mean{i}", "avgpool", (f"act{i}",), width, 2, 2))
        source = nodes[-1].name
    return _graph("tiny_cnn", t, channels_in, classes, nodes + _ending(source, 64, classes), heads)


def tiny_vae_head(t: int, channels_in: int = 1, classes: int = 2, *, heads: Heads = None) -> Graph:
    """Build what is deployed of a small variational network: 5,778 of its 9,890 parameters for one channel and two
    classes.

    Convolutions of 16 and 32 filters of 3 taps, each with a bias and ReLU; means of 8 parts of the window; a layer to the
    mean of a latent vector of 16, and the classifier on it.  A second layer of the same size (4,112 parameters) to its
    log-variance serves training alone, for the noise of the reparameterisation and the KL term.  In use the latent vector
    is its mean, so that branch is no part of this graph, and neither is it of training here: the noise is taken to be 0,
    which trains an ordinary network with a bottleneck.

    Where 8 does not divide ``t``, the 8 parts have equal length and overlap, where those of an adaptive pool differ in
    length by a step or two.
    """
    if t < 2 * VAE_STEPS:
        raise ConfigError(f"tiny_vae_head: t is {t}; give at least {2 * VAE_STEPS} steps, two for each part")
    stride = t // VAE_STEPS
    nodes = [
        Node("conv1", "conv", (INPUT,), 16, 3, relu=True, bias=True),
        Node("conv2", "conv", ("conv1",), 32, 3, relu=True, bias=True),
        Node("parts", "avgpool", ("conv2",), 32, t - (VAE_STEPS - 1) * stride, stride),
        # One kernel over all 8 steps, without padding, is a layer on all of them in a row.
        Node("mu", "conv", ("parts",), VAE_LATENT, VAE_STEPS, VAE_STEPS, bias=True),
        Node("fc", "fc", ("mu",), classes),
    ]
    return _graph("tiny_vae_head", t, channels_in, classes, nodes, heads)


def hrv_featnet(t: int, channels_in: int = 16, classes: int = 2, *, heads: Heads = None) -> Graph:
    """Build a linear layer on 16 features of a window: 34 parameters for two classes.

    The features, 8 of heart-rate variability and 8 of amplitude and spectrum, are made by `pyhtpw.data.hrv.featured`, which
    has the channels in their order and ``t`` 1.  They are no part of the network, and of no image: finding beats is nothing
    that the operators of an image can do.
    """
    return _features("hrv_featnet", 16, t, channels_in, classes, heads)


def hrv_beats(t: int, channels_in: int = 8, classes: int = 2, *, heads: Heads = None) -> Graph:
    """Build a linear layer on the 8 features of heart-rate variability alone, for data that are beat times without a signal:
    18 parameters for two classes.

    It is not the published `hrv_featnet`, which has 8 features more.
    """
    return _features("hrv_beats", 8, t, channels_in, classes, heads)


def _features(name: str, count: int, t: int, channels_in: int, classes: int, heads: Heads) -> Graph:
    if (t, channels_in) != (1, count):
        raise ConfigError(
            f"{name}: windows have {t} steps of {channels_in} channels, but it reads {count} features as channels of one step; "
            "feature extraction is not part of a network, nor of an image: make them with pyhtpw.data.hrv"
        )
    return _graph(name, t, channels_in, classes, [Node("fc", "fc", (INPUT,), classes)], heads)


def published_generator(
    t: int, channels_in: int = 1, classes: int = 2, *, base: int = 16, dropout: float = 0.2, heads: Heads = None
) -> Graph:
    """Build the network of the published code whose last pointwise kernel, 64x32, is generated: 229,277 of its 231,325
    parameters for one channel and two classes.

    A stem of three convolutions of 3, 5 and 7 taps beside each other, 5, 5 and 6 channels of them, BatchNorm, ReLU, max pool
    of 2; three blocks of a depthwise convolution of 5 taps, BatchNorm, ReLU, a pointwise one, BatchNorm and squeeze-excite (a
    quarter of the channels inside, no bias), to 32 channels with stride 2, to 32 with the block's input added, and to 64 with
    stride 2, each with ReLU at its end; attention pooling through ``base / 4`` channels; layers of 64 and 32 with ReLU, and the
    classifier.  ``dropout`` is the rate behind the first of these layers, half of it that behind the second.

    The published total is that of this reading, no convolution having a bias, and of the kernel of 2,048 weights which the
    published code keeps beside the generator that takes its place, and never uses; a graph has no room for it.  Of the rest,
    205,824 are the head (96x96 and 2048x96), 11,344 the generator and its one code, and 12,109 everything else, so that the
    same network with the kernel stored (``heads={}``) has 14,157.

    Three things differ.  Padding is SAME, which where the stride is 2 lies a step further right for even lengths.  The code is
    rounded to 8 bits in training, as it is in an image.  The published input is standardised window by window and its generator
    has a dropout of 0.1; here the first is the data set's affair and the second is left out.
    """
    width = base
    nodes = [
        Node("stem", "conv", (INPUT,), base, 7, norm=True, relu=True, branches=(3, 5, 7)),
        Node("top", "maxpool", ("stem",), base, 2, 2),
    ]
    source = "top"
    for i, (cout, stride) in enumerate(((2 * base, 2), (2 * base, 1), (4 * base, 2)), start=1):
        residual = stride == 1 and cout == width
        nodes += [
            Node(f"dw{i}", "depthwise", (source,), width, 5, stride, norm=True, relu=True),
            Node(f"pw{i}", "pointwise", (f"dw{i}",), cout, norm=True),
            Node(f"se{i}", "squeeze_excite", (f"pw{i}",), cout, hidden=cout // 4, relu=not residual),
        ]
        if residual:
            nodes.append(Node(f"add{i}", "add", (source, f"se{i}"), cout, relu=True))
        source, width = nodes[-1].name, cout
    nodes += [
        Node("pool", "attention", (source,), width, hidden=max(1, base // 4)),
        Node("hidden1", "pointwise", ("pool",), 64, relu=True, bias=True),
        Node("drop1", "dropout", ("hidden1",), 64, rate=dropout),
        Node("hidden2", "pointwise", ("drop1",), 32, relu=True, bias=True),
        Node("drop2", "dropout", ("hidden2",), 32, rate=dropout / 2),
        Node("fc", "fc", ("drop2",), classes),
    ]
    return _graph("published_generator", t, channels_in, classes, nodes, {"pw3": PUBLISHED} if heads is None else heads)


def ternary_separable(
    t: int, channels_in: int = 1, classes: int = 2, *, rule: str = "best", heads: Heads = None
) -> Graph:
    """Build a separable network whose pointwise kernels are stored in 2 bits.

    A stem of 16 filters of 7 taps, stride 2, and a max pool of 2; blocks of a depthwise convolution of 5 taps and a
    pointwise one to 32, 32, 64 and 64 channels, strides 2, 1, 2 and 1.  BatchNorm and ReLU follow every convolution, as
    in `hypertinypw`.  Published kernels are {-1, 0, 1} times a scale per filter, by a threshold of 0.7 of the filter's largest
    weight: ``rule`` "max".  "mean" takes 0.7 of the mean instead (Li and Liu, arXiv:1605.04711).  With "best" the scale is the
    one with the least squared error, and -2 may occur: two bits hold it.  Train with ``--aware`` to have these kernels in every
    forward pass.  ``rule`` is for the heads that the network has by itself; other ``heads`` say their own.
    """
    nodes = [
        Node("stem", "conv", (INPUT,), 16, 7, 2, norm=True, relu=True),
        Node("top", "maxpool", ("stem",), 16, 2, 2),
    ]
    source, channels = "top", 16
    for i, (width, stride) in enumerate(((32, 2), (32, 1), (64, 2), (64, 1)), start=1):
        nodes.append(Node(f"dw{i}", "depthwise", (source,), channels, 5, stride, norm=True, relu=True))
        nodes.append(Node(f"pw{i}", "pointwise", (f"dw{i}",), width, norm=True, relu=True))
        source, channels = f"pw{i}", width
    nodes += _ending(source, channels, classes)
    return _graph("ternary_separable", t, channels_in, classes, nodes, _ternary(rule) if heads is None else heads)
