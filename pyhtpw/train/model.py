"""A network with its parameters: forward, backward, inference and calibration."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from math import prod

import numpy as np

from pyhtpw.errors import ConfigError, DataError, TrainError
from pyhtpw.nets.graph import INPUT, Graph, is_running
from pyhtpw.nets.heads import BOUND
from pyhtpw.train.elementwise import add_forward
from pyhtpw.train.heads import Expander
from pyhtpw.train.kernels import single_blas
from pyhtpw.train.layers import Dropout, branch_mask, chain
from pyhtpw.train.workspace import Workspace

PUBLISHED_SPREAD = 0.5
"""Root mean square of what goes into the tanh of a published head at the start."""

MIN_GAMMA = 1e-3
"""Least gain of a normalisation or a seeded head: integer kernels cannot absorb a sign, so it must never reach 0 or
cross it."""


CODE_SPREAD = 0.15
"""Standard deviation of codes at the start: that of usual kernels, since the optimiser moves all parameters by about as much. (At 1, a
code of 4 bits took hundreds of steps to reach the next value of its grid.)"""

CODE_RANGE = {4: 2.35, 6: 3.25, 8: 4.1}
"""Largest code by bits, in units of the root mean square of its generator's codes: what a uniform quantiser of so many levels loses least
at on normal values (Max, "Quantizing for minimum distortion", 1960). Without it one outlier widens the grid of all."""


def initial_params(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Fresh parameters in float64.

    Each array is drawn from its own generator, seeded by ``seed`` and its name, so that adding a node to a graph
    leaves the others' start as it was.  Stored kernels are He-normal.  Codes are normal, hence diverse (of deviation `CODE_SPREAD`,
    those of a published generator 1), and a head is then scaled so that the kernels it makes have the He variance of their mean
    fan-in (a published one, which is bounded, to `PUBLISHED_SPREAD` in front of its tanh).  The entries that
    the tiles of a codebook pick are drawn evenly.
    """
    params: dict[str, np.ndarray] = {}
    kernels = graph.kernel_shapes()
    ops = {node.name: node.op for node in graph.nodes}
    heads = {head.name: head for head in graph.plan.heads}
    published = {code for head in graph.plan.heads if head.spec.published for code in head.codes}
    branched = {node.name: node for node in graph.nodes if node.branches}
    for name, shape in graph.parameter_shapes().items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        owner, _, part = name.rpartition(".")
        if part in ("gamma", "var", "gain"):
            params[name] = np.ones(shape)
        elif part in ("beta", "mean", "bias"):
            params[name] = np.zeros(shape)
        elif part == "codes":
            params[name] = rng.standard_normal(shape) * (1.0 if name in published else CODE_SPREAD)
        elif part == "ids":
            entries = graph.plan.heads[graph.plan.head_of[owner]].spec.entries
            params[name] = rng.permutation(np.arange(shape[0]) % entries).astype(float)
        elif owner.endswith((".expand", ".score")):  # what follows is a sigmoid
            params[name] = rng.standard_normal(shape) * np.sqrt(1.0 / shape[1])
        else:
            fan_in, gain = _fan(ops[owner], shape) if owner in ops else (prod(shape[1:]), 2.0)
            params[name] = rng.standard_normal(shape) * np.sqrt(gain / fan_in)
            if owner in branched:  # the fan-in of a channel is that of its branch
                taps = np.array(branched[owner].channel_taps()).reshape(-1, 1, 1)
                params[name] *= branch_mask(branched[owner], shape[2]) * np.sqrt(shape[1] / taps)
    if heads:
        made = _alive(graph, params, seed)
        applied: dict[str, float] = {}
        for head in heads.values():
            # in units of a gain of 2, as almost every kernel has it
            fan_in = np.mean([fan * 2.0 / gain for fan, gain in (_fan(ops[n], kernels[n]) for n in head.nodes)])
            spread = np.sqrt(np.mean(np.concatenate([made[n].ravel() for n in head.nodes]) ** 2))
            if head.a_of is None:
                parts = {"seeded": "gain", "factorised": "a.weight"}
                last = parts.get(head.spec.kind, "weight" if head.codes else "table.weight")
            else:  # A is scaled with the kernels of the head that it belongs to
                last, spread = "b.weight", spread * applied[graph.plan.heads[head.a_of].name]
            applied[head.name] = np.sqrt(2.0 / fan_in) / (spread or 1.0)
            if head.spec.published:  # bounded kernels can be too small for that; start where the tanh is not flat
                before = np.arctanh(np.clip(made[head.nodes[0]] / BOUND, -1 + 1e-12, 1 - 1e-12))
                applied[head.name] = PUBLISHED_SPREAD / (np.sqrt(np.mean(before**2)) or 1.0)
            params[f"{head.name}.{last}"] *= applied[head.name]
    return params


def _alive(graph: Graph, params: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """The kernels at the start; codes whose whole kernel is 0, since no hidden unit fires, would never learn and are
    drawn anew."""
    expander = Expander(graph, Workspace(np.float64))
    made = expander.forward(params)
    rng = np.random.default_rng([seed, len(made)])
    for _ in range(100):
        dead = [name for name, kernel in made.items() if not kernel.any() and f"{name}.codes" in params]
        if not dead:
            break
        for name in dead:
            codes = params[f"{name}.codes"]
            codes[...] = rng.standard_normal(codes.shape) * CODE_SPREAD
        made = expander.forward(params)
    return made


def _fan(op: str, shape: tuple[int, ...]) -> tuple[int, float]:
    """Fan-in of a kernel, and the gain of what follows: 2 for a ReLU, 1 for the classifier."""
    return (shape[0] if op == "depthwise" else prod(shape[1:])), (1.0 if op == "fc" else 2.0)


class Model:
    """A graph with parameters.

    ``params`` and ``grads`` map names to views of flat vectors: ``trained`` (what an optimiser changes), ``running``
    (running statistics) and ``gradient`` (laid out as ``trained``).  Write into the views, do not rebind them.
    ``quantise_codes`` False switches the rounding of codes off (gradient checks; codes with unlimited bits).
    """

    def __init__(
        self,
        graph: Graph,
        params: Mapping[str, np.ndarray] | None = None,
        seed: int = 0,
        dtype: type = np.float32,
    ) -> None:
        """``params`` are copied; without them the model starts from `initial_params` (graph, ``seed``).

        Raises ConfigError if ``params`` are not the graph's in name and shape, or not finite.
        """
        self.graph = graph
        self.dtype = np.dtype(dtype)
        self.quantise_codes = True
        shapes = graph.parameter_shapes()
        if params is None:
            params = initial_params(graph, seed)
        else:
            check_params(graph, params)
        trained = [name for name in shapes if not is_running(name)]
        running = [name for name in shapes if is_running(name)]
        self.trained, views = _flat_views(trained, shapes, self.dtype)
        self.running, more = _flat_views(running, shapes, self.dtype)
        self.params: dict[str, np.ndarray] = {name: {**views, **more}[name] for name in shapes}
        self.gradient, self.grads = _flat_views(trained, shapes, self.dtype)
        for name, view in self.params.items():
            view[...] = params[name]
        single = {code for head in graph.plan.heads if not head.spec.tiles for code in head.codes}
        self._ranged = [
            ([self.params[source] for source, _ in plan.sources], plan.code_bits)
            for plan in graph.plan.generators
            if not any(source in single for source, _ in plan.sources)
        ]
        self._work = Workspace(self.dtype)
        self._chains = {node.name: chain(node, self._work) for node in graph.nodes}
        self._expander = Expander(graph, self._work) if graph.plan.heads else None
        self._ready = False  # a training forward pass is waiting for its backward pass

    # -- passes -------------------------------------------------------------------------------------------------------

    def reseed(self, *key: int) -> None:
        """Let the dropouts of the next forward pass depend on ``key`` (a run's seed and step) and nothing else."""
        for layers in self._chains.values():
            for layer in layers:
                if isinstance(layer, Dropout):
                    layer.key = key

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        """Logits (N,classes) of windows x (N,T,C); in training the running statistics move.

        The array belongs to the model and holds until the next call.  Raises DataError for a wrong shape.
        """
        outputs = self._run(self._windows(x), training)
        return outputs[self.graph.nodes[-1].name][:, 0]

    @property
    def features(self) -> np.ndarray:
        """What the classifier read (N,d) in the last forward pass; holds until the next pass, also a backward one."""
        return self._outputs[self.graph.nodes[-1].inputs[0]][:, 0]

    def share(self, other: Model) -> None:
        """Work in the scratch memory of ``other``, a model of the same graph; not between a forward pass of one in training and its
        backward pass."""
        self._work = other._work  # what expands the kernels keeps its own: their values are still asked for
        for layers in self._chains.values():
            for layer in layers:
                layer.work = other._work

    @property
    def saved_bytes(self) -> int:
        """Bytes of the outputs of nodes and layers that the last forward pass kept for its backward pass."""
        return self._work.kept_bytes

    def _windows(self, x: np.ndarray) -> np.ndarray:
        if np.ndim(x) != 3 or np.shape(x)[1:] != self.graph.input_shape or np.shape(x)[0] < 1:
            wanted = ", ".join(str(n) for n in self.graph.input_shape)
            raise DataError(
                f"windows have shape {np.shape(x)} but {self.graph.name!r} reads (N, {wanted}); reshape them"
            )
        # Writeable, although nothing writes: a read-only array is another type to Numba, and compiles all anew.
        return np.require(x, self.dtype, ["C", "W"])

    def expand(self) -> dict[str, np.ndarray]:
        """The parameters, and the kernel of every generated node as ``{node}.weight``."""
        if self._expander is None:
            return self.params
        kernels = self._expander.forward(self.params, self.quantise_codes)
        return {**self.params, **{f"{name}.weight": kernel for name, kernel in kernels.items()}}

    def _run(self, x: np.ndarray, training: bool) -> dict[str, np.ndarray]:
        """Outputs (N,T,C) of "input" and all nodes, in buffers of the model."""
        self._ready = training
        self._expanded = self.expand()
        outputs = {INPUT: x}
        for node in self.graph.nodes:
            values = [outputs[source] for source in node.inputs]
            for layer in self._chains[node.name]:
                values = [layer.forward(values, self._expanded, training)]
            outputs[node.name] = values[0]
        self._outputs = outputs
        return outputs

    def backward(self, dlogits: np.ndarray, dfeatures: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Gradients of all trained parameters from ``dlogits`` (N,classes), after ``forward(x, training=True)``.

        ``dfeatures`` (N,d) is the gradient of a loss that looks at `features` as well, beside the one through the
        logits.
        Returns ``grads``, which the next call overwrites.  Raises TrainError without such a forward pass.
        """
        if not self._ready:
            raise TrainError("backward has no forward pass to follow; call forward(x, training=True) before it")
        self._ready = False
        grads: dict[str, np.ndarray] = self.grads
        if self._expander is not None:
            made = self._expander.kernel_grads()
            grads = {**grads, **{f"{name}.weight": grad for name, grad in made.items()}}
        last = self.graph.nodes[-1]
        pending = {last.name: np.require(dlogits, self.dtype, ["C", "W"])[:, None, :]}
        if dfeatures is not None:
            pending[last.inputs[0]] = np.require(dfeatures, self.dtype, ["C", "W"])[:, None, :]
        for node in reversed(self.graph.nodes):
            need = any(source != INPUT for source in node.inputs)
            passed = (pending.pop(node.name),)
            for layer in reversed(self._chains[node.name]):
                inner = layer is not self._chains[node.name][0]
                passed = layer.backward(passed[0], self._expanded, grads, need or inner)
            for source, grad in zip(node.inputs, passed, strict=True):
                if source == INPUT:
                    continue
                if source in pending:  # into a third array: either may also be another node's gradient
                    total = self._work.lend(*grad.shape)
                    add_forward(pending[source], grad, False, total)
                    grad = total
                pending[source] = grad
        if self._expander is not None:
            self._expander.backward(self.params, grads)
        self._outputs = {}  # overwritten by gradients in part
        return self.grads

    def first_not_finite(self) -> str:
        """Where the last passes first left the finite numbers: a node's statistics or output, else a gradient; "" if
        they did not."""
        for node in self.graph.nodes:
            for part in ("mean", "var"):
                if not np.isfinite(self.params.get(f"{node.name}.{part}", 0.0)).all():
                    return f"the {part} of node {node.name!r}"
            if not np.isfinite(self._outputs.get(node.name, 0.0)).all():
                return f"the output of node {node.name!r}"
        place = {node.name: -i for i, node in enumerate(self.graph.nodes)}  # the backward pass meets the last first
        for name in sorted(self.grads, key=lambda name: place.get(name.partition(".")[0], 1)):
            if not np.isfinite(self.grads[name]).all():
                return f"the gradient of {name!r}"
        return ""

    def project(self) -> None:
        """Put the parameters back where they must stay after an optimiser moved them: gammas and gains >= MIN_GAMMA, codes of many
        tiles within `CODE_RANGE`."""
        for name, value in self.params.items():
            if name.endswith((".gamma", ".gain")):
                np.maximum(value, self.dtype.type(MIN_GAMMA), out=value)
        for codes, bits in self._ranged:
            size = sum(z.size for z in codes)
            most = CODE_RANGE[bits] * np.sqrt(sum(float(np.sum(np.square(z, dtype=np.float64))) for z in codes) / size)
            for z in codes:
                np.clip(z, -z.dtype.type(most), z.dtype.type(most), out=z)

    # -- use ----------------------------------------------------------------------------------------------------------

    def infer(self, x: np.ndarray, batch: int = 256) -> np.ndarray:
        """Logits (N,classes) with running statistics, ``batch`` windows at a time; x may be a memory map."""
        out = np.empty((len(x), self.graph.classes), self.dtype)
        with single_blas():
            for start in range(0, len(x), batch):
                out[start : start + batch] = self.forward(x[start : start + batch])
        return out

    def activations(self, x: np.ndarray, batch: int = 256) -> dict[str, np.ndarray]:
        """Output (N,T,C) of "input" and of every node, after its normalisation (running statistics) and ReLU.

        Shapes are those of `Graph.shapes` behind N; the logits are the last node's.  The arrays are copies.
        """
        out = {name: np.empty((len(x), *shape), self.dtype) for name, shape in self.graph.shapes().items()}
        with single_blas():
            for start in range(0, len(x), batch):
                for name, value in self._run(self._windows(x[start : start + batch]), False).items():
                    out[name][start : start + batch] = value
        return out

    def kernels(self) -> dict[str, np.ndarray]:
        """Kernel of every node that has one, generated or stored, in its logical shape as the passes use it; copies."""
        made = {} if self._expander is None else self._expander.forward(self.params, self.quantise_codes)
        return {
            name: np.array(made[name] if name in made else self.params[f"{name}.weight"])
            for name in self.graph.kernel_shapes()
        }

    def state(self) -> dict[str, np.ndarray]:
        """Copies of all parameters."""
        return {name: value.copy() for name, value in self.params.items()}


def check_params(graph: Graph, params: Mapping[str, np.ndarray]) -> None:
    """Raise ConfigError unless ``params`` are exactly the graph's, in name and shape, and finite."""
    shapes = graph.parameter_shapes()
    for name in sorted(set(params) ^ set(shapes)):
        verb = "lack" if name in shapes else "have the unknown entry"
        raise ConfigError(f"parameters {verb} {name!r}; use those of a {graph.name!r} graph with the same nodes")
    for name, shape in shapes.items():
        if np.shape(params[name]) != shape:
            raise ConfigError(f"parameter {name!r} has shape {np.shape(params[name])}; the graph wants {shape}")
        if not np.all(np.isfinite(params[name])):
            raise ConfigError(f"parameter {name!r} holds values that are not finite; take an earlier checkpoint")


def _flat_views(
    names: list[str], shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One vector of zeros for all ``names``, and the views of it that are the named arrays."""
    flat = np.zeros(sum(prod(shapes[name]) for name in names), dtype)
    views, start = {}, 0
    for name in names:
        stop = start + prod(shapes[name])
        views[name] = flat[start:stop].reshape(shapes[name])
        start = stop
    return flat, views
