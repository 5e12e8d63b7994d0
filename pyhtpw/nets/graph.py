"""Network definitions: a graph of nodes over windows of shape (T, C), its shapes, parameters and cost.

A `Graph` is plain frozen data.  It knows nothing of training, integers or images; those read it.  Every graph that
exists is valid: the constructor checks all of it and raises `pyhtpw.errors.ConfigError` (a ValueError) naming the node.

Parameters are a flat dict of arrays; their names and shapes are fixed here (`Graph.parameter_shapes`):

====================  =======================================================================================
``{node}.weight``     conv (Cout,K,Cin), depthwise (K,C), stored pointwise (Cout,Cin), fc (Cout,Cin)
``{node}.bias``       fc, and with ``bias``, (Cout,)
``{node}.gamma``      with norm, (Cout,); also ``.beta``, and except with norm "group" the running ``.mean``, ``.var``
``{node}.reduce.*``   squeeze_excite and attention, the first layer: weight (hidden, C), bias (hidden,)
``{node}.expand.*``   the second of a squeeze_excite: weight (C, hidden), bias (C,); biases with ``bias`` alone
``{node}.score.*``    the second of an attention: weight (1, hidden), bias (1,)
``{node}.codes``      generated kernels in place of the weight, (tiles, dz); tiles is 1 for dense and factorised heads
``{node}.ids``        codebooks in place of the weight, (tiles,): whole numbers, which no optimiser touches
``generator.{i}.*``   hidden layer i of a generator: weight (d_i, d_{i-1}) with d_{-1} = dz, bias (d_i,); of a published
                      one also gamma and beta (d_i,), but the last layer has its weight alone
``head.weight``       head, (tile, d), or (n, d) of a dense one; d = d_last, or dz without a layer
``head.a.weight``     factorised head, (n, rank), and ``head.b.weight`` (rank, d), unless they are another head's
``head.gain``         seeded head, (1,): what the bytes of its matrix are worth, times 128
``head.table.weight`` codebook of a stored table, (entries, tile)
``head.codes``        codebook of a generated table, (entries, dz), beside its ``head.weight``
====================  =======================================================================================

The second generator is called ``generator-2``, the second head ``head-2``, and so on (`pyhtpw.nets.heads`). Tiles
follow the generation order of docs/SPEC.md section 1: that of (C,K) for depthwise kernels, so that a tile of K
weights is a filter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from math import prod
from typing import Any

from pyhtpw.errors import ConfigError
from pyhtpw.nets.heads import HeadSpec, Plan, make_plan, node_kind, resolve_keys

OPS = (
    "conv", "depthwise", "pointwise", "add", "avgpool", "maxpool", "silu", "squeeze_excite", "attention", "dropout", "fc"
)  # fmt: skip
NORMS = ("batch", "group", "frozen")
"""Normalisations: per channel over the batch (running statistics when in use), or per window over all of its steps and
channels with one gain and shift per channel (GroupNorm with one group: the same in training and in use), or with
statistics that never move (what `pyhtpw.quant.freeze` makes of the second; only gains and shifts are trained)."""
INPUT = "input"
RUNNING = ("mean", "var", "ids")
"""Last parts of the names of parameters that no optimiser touches: running statistics, and the ids of codebooks."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_RESERVED = (INPUT, "generator", "head")  # the first is an input's name, the others start parameter names
_KERNEL_OPS = ("conv", "depthwise")
_POOL_OPS = ("avgpool", "maxpool")
_KEEPING_OPS = ("depthwise", "add", "avgpool", "maxpool", "silu", "squeeze_excite", "attention", "dropout")
_HIDDEN_OPS = ("squeeze_excite", "attention")
_WEIGHT_OPS = ("conv", "depthwise", "pointwise", "fc")
_NORM_OPS = ("conv", "depthwise", "pointwise")
_RELU_OPS = (*_NORM_OPS, "add", "squeeze_excite")
_BIAS_OPS = (*_NORM_OPS, "squeeze_excite")


def _is_count(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def same_padding(t: int, k: int, s: int) -> tuple[int, int]:
    """Output steps and left padding of "SAME" padding for ``t`` steps, ``k`` taps and stride ``s``.

    TensorFlow's rule: ceil(t/s) output steps; what must be added in total is split with the odd step on the right.
    """
    out = -(-t // s)
    total = max((out - 1) * s + k - t, 0)
    return out, total // 2


def pool_windows(t: int, k: int, s: int) -> int:
    """Output steps of a pool of ``k`` steps and stride ``s`` over ``t`` steps: whole windows only, no padding."""
    return (t - k) // s + 1


@dataclass(frozen=True)
class Node:
    """One operator, with the normalisation and ReLU directly behind it.

    ``inputs`` are names of earlier nodes or "input".  ``norm`` is one of `NORMS`, or "" for none; True is "batch" and
    False "".  ``head`` says where the kernel comes from; text is parsed (`pyhtpw.nets.heads`).

    An avgpool with kernel and stride 1 is the mean over all time; other pools take whole windows of ``kernel`` steps,
    ``stride`` apart.  ``hidden`` is the width between the two layers of a squeeze_excite: channels times
    sigmoid(expand(relu(reduce(mean over time)))); or of an attention: the mean over time in which every step weighs
    sigmoid(score(relu(reduce(its channels)))).  ``rate`` is the share of values that a dropout puts to 0 in
    training, the others growing to make up for it.  ``bias`` adds a trained value per channel to what a kernel makes, in
    front of the normalisation if there is one, and to both layers of a squeeze_excite; an fc and an attention always have
    theirs.

    ``branches`` makes a conv of several side by side, each with fewer taps: as many odd numbers as branches, the last and
    largest of which is ``kernel``.  The channels are divided equally, what is left over goes to the last.  All are one
    kernel, in which the taps that a branch does not have are 0, stay 0 and are no parameters.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    cout: int
    kernel: int = 1
    stride: int = 1
    norm: str | bool = ""
    relu: bool = False
    head: HeadSpec = HeadSpec()  # noqa: RUF009  frozen
    hidden: int = 0
    rate: float = 0.0
    bias: bool = False
    branches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "head", HeadSpec.parse(self.head))
        except ConfigError as error:
            raise self._fail(str(error)) from error
        object.__setattr__(self, "inputs", (self.inputs,) if isinstance(self.inputs, str) else tuple(self.inputs))
        object.__setattr__(self, "branches", tuple(self.branches))
        if isinstance(self.norm, bool):
            object.__setattr__(self, "norm", "batch" if self.norm else "")

    @property
    def pools_all(self) -> bool:
        """Whether this is a mean over all time."""
        return self.op == "avgpool" and (self.kernel, self.stride) == (1, 1)

    def _fail(self, problem: str) -> ConfigError:
        return ConfigError(f"node {self.name!r} ({self.op}): {problem}")

    def check(self) -> None:
        """Raise ConfigError for anything that is wrong with this node whatever its inputs are."""
        if not isinstance(self.name, str) or not _NAME.match(self.name) or self.name in _RESERVED:
            raise ConfigError(
                f"node {self.name!r}: names are letters, digits and _, not starting with a digit, and none of "
                + ", ".join(_RESERVED)
            )
        if self.op not in OPS:
            raise self._fail(f"unknown op; choose one of {', '.join(OPS)}")
        wanted = 2 if self.op == "add" else 1
        if len(self.inputs) != wanted:
            raise self._fail(f"has {len(self.inputs)} inputs; give {wanted}")
        for name in ("cout", "kernel", "stride"):
            if not _is_count(getattr(self, name)):
                raise self._fail(f"{name} is {getattr(self, name)!r}; give a whole number of at least 1")
        if self.op not in (*_KERNEL_OPS, *_POOL_OPS) and (self.kernel, self.stride) != (1, 1):
            raise self._fail("has no taps; leave kernel and stride at 1")
        if self.op in _POOL_OPS and self.kernel == 1 and not self.pools_all:
            raise self._fail("pools one step at a time; give a kernel of at least 2")
        if self.norm and self.norm not in NORMS:
            raise self._fail(f"norm is {self.norm!r}; choose one of {', '.join(NORMS)}, or '' for none")
        if self.norm and self.op not in _NORM_OPS:
            raise self._fail("cannot be normalised; set norm to False")
        if self.op in _HIDDEN_OPS:
            if not _is_count(self.hidden):
                raise self._fail(f"hidden is {self.hidden!r}; give a whole number of at least 1")
        elif self.hidden != 0:
            raise self._fail("has no hidden layer; leave hidden at 0")
        if isinstance(self.rate, bool) or not isinstance(self.rate, (int, float)) or not 0 <= self.rate < 1:
            raise self._fail(f"rate is {self.rate!r}; give a number from 0 to below 1")
        if self.rate and self.op != "dropout":
            raise self._fail("drops nothing; leave rate at 0")
        if self.bias and self.op not in _BIAS_OPS:
            raise self._fail("has no kernel to add a bias to, or always has one; leave bias at False")
        if self.relu and self.op not in _RELU_OPS:
            raise self._fail("cannot carry a ReLU; set relu to False")
        if self.head != HeadSpec() and self.op not in _WEIGHT_OPS:
            raise self._fail("has no kernel that a head could make; set head to 'stored'")
        self._check_branches()

    def _check_branches(self) -> None:
        if not self.branches:
            return
        if self.op != "conv":
            raise self._fail("cannot have branches; leave them out")
        odd = all(_is_count(taps) and taps % 2 for taps in self.branches)
        if not odd or not self.branches[-1] == max(self.branches) == self.kernel:
            raise self._fail(f"branches are {self.branches}; give odd numbers of taps, the last and largest of them the kernel")
        if len(self.branches) > self.cout:
            raise self._fail(f"has {len(self.branches)} branches for {self.cout} channels; give a channel to each")
        if self.stride != 1:
            raise self._fail("has branches, which are centred on the same step; leave stride at 1")
        if self.head.generated:
            raise self._fail("has branches, the zeros of which no head makes; store its kernel")

    def channel_taps(self) -> tuple[int, ...]:
        """Taps of the branch that each output channel of a conv belongs to; all of them ``kernel`` without branches."""
        if not self.branches:
            return (self.kernel,) * self.cout
        share = self.cout // len(self.branches)
        last = self.cout - share * (len(self.branches) - 1)
        return tuple(taps for i, taps in enumerate(self.branches) for _ in range(share if i + 1 < len(self.branches) else last))

    def weight_shape(self, channels: int) -> tuple[int, ...]:
        """Shape of the kernel for ``channels`` input channels; () for an op without one."""
        if self.op == "conv":
            return (self.cout, self.kernel, channels)
        if self.op == "depthwise":
            return (self.kernel, channels)
        if self.op in ("pointwise", "fc"):
            return (self.cout, channels)
        return ()


@dataclass(frozen=True)
class Graph:
    """A network from windows of ``input_shape`` = (T, C) to ``classes`` logits.

    Nodes are in an order in which they can run; the last, and only the last, is the classifier "fc".
    """

    name: str
    input_shape: tuple[int, int]
    classes: int
    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        object.__setattr__(self, "nodes", tuple(self.nodes))
        self._check()

    def _check(self) -> None:
        if len(self.input_shape) != 2 or not all(_is_count(n) for n in self.input_shape):
            raise ConfigError(f"graph {self.name!r}: input_shape is {self.input_shape!r}; give (steps, channels)")
        if not _is_count(self.classes, 2):
            raise ConfigError(f"graph {self.name!r}: classes is {self.classes!r}; give a whole number of at least 2")
        if not self.nodes or self.nodes[-1].op != "fc":
            raise ConfigError(f"graph {self.name!r}: the last node must be the classifier; append an 'fc' node")
        known, used = {INPUT}, set()
        for node in self.nodes:
            node.check()
            if node.name in known:
                raise node._fail("another node has this name; rename one")
            for source in node.inputs:
                if source not in known:
                    raise node._fail(f"input {source!r} is no earlier node; reorder or rename")
            if node.op == "fc" and node is not self.nodes[-1]:
                raise node._fail("is not the last node; a graph has one classifier, at its end")
            known.add(node.name)
            used.update(node.inputs)
        for node in self.nodes[:-1]:
            if node.name not in used:
                raise node._fail("nothing uses its output; remove it")
        self.plan  # noqa: B018  checks shapes and heads

    # -- what follows from the definition ---------------------------------------------------------------------------

    def node(self, name: str) -> Node:
        """The node called ``name``; ConfigError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise ConfigError(f"graph {self.name!r}: no node is called {name!r}; choose one of its nodes")

    def generated_nodes(self) -> tuple[Node, ...]:
        """The nodes whose kernels are generated, in running order."""
        return tuple(node for node in self.nodes if node.head.generated)

    @cached_property
    def plan(self) -> Plan:
        """Generators and heads; ConfigError naming the graph if the specifications do not go together."""
        kernels = self.kernel_shapes()
        try:
            return make_plan(
                {n.name: (n.head.resolved(n.op, kernels[n.name]), kernels[n.name]) for n in self.generated_nodes()}
            )
        except ConfigError as error:
            raise ConfigError(f"graph {self.name!r}: {error}") from error

    def kinds(self) -> dict[str, str]:
        """Kind (`pyhtpw.nets.heads.NODE_KINDS`) of every node with a kernel, in running order."""
        first = next((node.name for node in self.nodes if node.op == "pointwise"), None)
        return {n.name: node_kind(n.op, n.name == first) for n in self.nodes if n.op in _WEIGHT_OPS}

    def with_heads(self, heads: Mapping[str, object]) -> Graph:
        """The same network with kernels from other heads.

        Parameters
        ----------
        heads
            By kind ("pw", "pw1", "depthwise", "conv", "fc") or by node ("pw3", or "block3.pw" for it, which is
            stronger), each a specification or its text. Nodes that no entry speaks of keep their heads.

        Raises
        ------
        ConfigError
            For keys that name nothing, and specifications that make no sense.
        """
        specs = resolve_keys(heads, self.kinds())
        return replace(self, nodes=tuple(replace(n, head=specs.get(n.name, n.head)) for n in self.nodes))

    def stored(self) -> Graph:
        """The same network with every kernel stored in 8 bits."""
        return replace(self, nodes=tuple(replace(node, head=HeadSpec()) for node in self.nodes))

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Output shape (T, C) of "input" and of every node; ConfigError where inputs do not fit."""
        shapes: dict[str, tuple[int, int]] = {INPUT: self.input_shape}
        for node in self.nodes:
            steps, channels = shapes[node.inputs[0]]
            if node.op == "add" and shapes[node.inputs[1]] != (steps, channels):
                raise node._fail(
                    f"inputs have shapes {(steps, channels)} and {shapes[node.inputs[1]]}; make them equal"
                )
            if node.op in _KEEPING_OPS and node.cout != channels:
                raise node._fail(f"cout is {node.cout} but it keeps its {channels} input channels; set cout to that")
            if node.op == "fc":
                if steps != 1:
                    raise node._fail(f"needs one step but gets {steps}; put an 'avgpool' before it")
                if node.cout != self.classes:
                    raise node._fail(f"cout is {node.cout} but the graph has {self.classes} classes; make them equal")
            if node.pools_all or node.op == "attention":
                steps = 1
            elif node.op in _POOL_OPS:
                if node.kernel > steps:
                    raise node._fail(f"kernel is {node.kernel} but there are {steps} steps; give a smaller one")
                steps = pool_windows(steps, node.kernel, node.stride)
            elif node.op in _KERNEL_OPS:
                steps, _ = same_padding(steps, node.kernel, node.stride)
            shapes[node.name] = (steps, node.cout)
        return shapes

    def kernel_shapes(self) -> dict[str, tuple[int, ...]]:
        """Logical kernel shape of every node that has one, generated or stored."""
        shapes = self.shapes()
        return {n.name: n.weight_shape(shapes[n.inputs[0]][1]) for n in self.nodes if n.op in _WEIGHT_OPS}

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of all parameters, running statistics included, in a fixed order (see the module's table)."""
        found: dict[str, tuple[int, ...]] = {}
        kernels = self.kernel_shapes()
        for node in self.nodes:
            if node.head.generated:
                spec = node.head.resolved(node.op, kernels[node.name])
                tiles = -(-prod(kernels[node.name]) // spec.tile) if spec.tiles else 1
                found.update(
                    {f"{node.name}.ids": (tiles,)}
                    if spec.kind == "codebook"
                    else {f"{node.name}.codes": (tiles, spec.dz)}
                )
            elif node.name in kernels:
                found[f"{node.name}.weight"] = kernels[node.name]
            if node.op == "fc" or (node.bias and node.op in _NORM_OPS):
                found[f"{node.name}.bias"] = (node.cout,)
            if node.op in _HIDDEN_OPS:
                second, rows = ("expand", node.cout) if node.op == "squeeze_excite" else ("score", 1)
                for part, shape in (("reduce", (node.hidden, node.cout)), (second, (rows, node.hidden))):
                    found[f"{node.name}.{part}.weight"] = shape
                    if node.bias or node.op == "attention":
                        found[f"{node.name}.{part}.bias"] = shape[:1]
            if node.norm:
                for part in ("gamma", "beta") if node.norm == "group" else ("gamma", "beta", "mean", "var"):
                    found[f"{node.name}.{part}"] = (node.cout,)
        found.update(self.plan.shapes())
        return found

    def trained_names(self) -> tuple[str, ...]:
        """Names of the parameters an optimiser changes: all but the running statistics and ids."""
        return tuple(name for name in self.parameter_shapes() if not is_running(name))

    def parameter_count(self) -> int:
        """Number of trained values (not bytes: images and their bill are another module's business)."""
        shapes, kernels = self.parameter_shapes(), self.kernel_shapes()
        zeros = sum((node.kernel - taps) * kernels[node.name][2] for node in self.nodes if node.branches for taps in node.channel_taps())
        return sum(prod(shapes[name]) for name in self.trained_names()) - zeros

    def macs(self) -> dict[str, int]:
        """Multiply-accumulates per window of every node with weights; padding counts as if it were data.

        Those of a squeeze_excite are its two layers, those of an attention also its sum; what only moves or scales values
        (pools, SiLU, the scaling of channels) is not counted.
        """
        shapes, kernels = self.shapes(), self.kernel_shapes()
        found = {}
        for node in self.nodes:
            if node.name in kernels:  # each output step of any of these ops uses every weight once
                found[node.name] = shapes[node.name][0] * prod(kernels[node.name])
            elif node.op == "squeeze_excite":
                found[node.name] = 2 * node.hidden * node.cout
            elif node.op == "attention":  # the two layers, and the weighted sum
                found[node.name] = shapes[node.inputs[0]][0] * (node.hidden * (node.cout + 1) + node.cout)
        return found

    def generator_macs(self) -> int:
        """Multiply-accumulates that make all generated kernels once, at boot."""
        total = 0
        rows = {source: count for generator in self.plan.generators for source, count in generator.sources}
        for head in self.plan.heads:
            if head.generator is None:
                continue
            layers = sum(
                prod(shape)
                for name, shape in self.plan.generators[head.generator].shapes().items()
                if name.endswith("weight")
            )
            each = head.rows * head.spec.width
            if head.spec.kind == "factorised":
                each = head.spec.rank * (head.spec.width + head.rows)
            total += sum(rows[codes] for codes in head.codes) * (layers + each)
        return total

    # -- JSON ---------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers, ready for JSON; `from_dict` reads them back."""
        plain = asdict(self)
        plain["input_shape"] = list(self.input_shape)
        plain["nodes"] = [
            {**asdict(node), "inputs": list(node.inputs), "head": node.head.text(), "branches": list(node.branches)}
            for node in self.nodes
        ]
        return plain

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> Graph:
        """The graph that `to_dict` wrote; ConfigError for missing or unknown entries."""
        top = _entries(Graph, plain, "graph")
        try:
            nodes = tuple(Node(**_entries(Node, node, "node")) for node in top["nodes"])
            return Graph(**{**top, "nodes": nodes})
        except TypeError as error:  # a number where a list belongs, or the like
            raise ConfigError(f"graph description is malformed ({error}); give the dict that to_dict wrote") from error


def _entries(kind: type, plain: object, what: str) -> dict[str, Any]:
    """``plain`` as keyword arguments of the dataclass ``kind``; ConfigError if they cannot be."""
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{what} description is {type(plain).__name__}; give the dict that to_dict wrote")
    names = {f.name for f in fields(kind)}
    unknown = sorted(set(plain) - names)
    if unknown:
        raise ConfigError(f"{what} description has the unknown entry {unknown[0]!r}; remove it")
    required = {Graph: ("name", "input_shape", "classes", "nodes"), Node: ("name", "op", "inputs", "cout")}
    for name in required.get(kind, ()):
        if name not in plain:
            raise ConfigError(f"{what} description lacks the entry {name!r}; add it")
    return dict(plain)


def is_running(name: str) -> bool:
    """Whether the parameter ``name`` is one of `RUNNING` rather than a trained value."""
    return name.rpartition(".")[2] in RUNNING
