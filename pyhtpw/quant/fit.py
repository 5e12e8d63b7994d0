"""From a trained network with stored kernels to one whose kernels are generated: heads fitted to given kernels,
without any training data.

Linear tiled heads by alternating least squares over codes on their integer grid, seeded ones by least squares of the
codes for several seeds, codebooks by k-means, dense and factorised heads exactly or by singular values; heads behind
hidden layers start from the linear solution and go on with a short deterministic Adam on the error of the kernels.

The scale of every output channel is first moved into the normalisation behind it, where it costs nothing: what is
left for a head to reproduce has rows of equal size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from pyhtpw.errors import ConfigError
from pyhtpw.nets.graph import Graph, Node
from pyhtpw.nets.heads import BOUND, HeadPlan
from pyhtpw.quant import solve
from pyhtpw.quant.statistics import EPS, statistics
from pyhtpw.quant.stored import nearest
from pyhtpw.train.heads import SEED_UNIT, Expander, MicroMlp, code_scale, in_generation_order, seeded_matrix
from pyhtpw.train.kernels import single_blas
from pyhtpw.train.model import Model, check_params, initial_params
from pyhtpw.train.workspace import Workspace

SEEDS = 8
"""Seeds that are tried for a seeded head: that of its specification and the next ones."""

ADAM_STEPS = 400
_WITHIN = 0.9  # of its bound, what the largest weight of a published kernel is scaled to
_IMPORTANCE = (0.1, 10.0)  # least and largest weight of an element, relative to its layer's mean


@dataclass(frozen=True)
class Report:
    """``errors``: node -> ||fitted - wanted|| / ||wanted|| of its kernel (rows of equal size, codes on their grid;
    for stored nodes what rounding to their bits does); ``seeds``: head -> the seed that was chosen."""

    errors: Mapping[str, float]
    seeds: Mapping[str, int]


def fit_network(
    graph: Graph,
    params: Mapping[str, np.ndarray],
    heads: Mapping[str, object],
    *,
    calibration: np.ndarray | None = None,
    input_variance: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> tuple[Graph, dict[str, np.ndarray], Report]:
    """Map a trained network onto other heads.

    Parameters
    ----------
    graph, params
        A trained network; where it is generated already, its expanded kernels are fitted.
    heads
        As `Graph.with_heads` takes them. Nodes that they do not speak of keep their kernels and heads.
    calibration : float32 (N, T, C), optional
        Training windows. With them elements count by the variance of their inputs, and running statistics are
        corrected by what the new kernels change.
    input_variance
        Node -> variance (Cin,) of its inputs, instead of that of `calibration`.
    seed
        Of everything that is drawn.

    Returns
    -------
    graph, params, report
        `params` are float32 under the trainer's names, ready to be quantised or trained on. A seeded head's
        specification may come back with another seed.

    Raises
    ------
    ConfigError
        For heads that the network cannot have, and parameters that are not its own.
    """
    check_params(graph, params)
    wanted = graph.with_heads(heads)
    kernels = {name: np.asarray(k, np.float64) for name, k in Model(graph, params, dtype=np.float64).kernels().items()}
    stored = {f"{name}.weight": kernel for name, kernel in kernels.items()}
    plain = graph.stored()
    source = {name: np.asarray(stored.get(name, params.get(name)), np.float64) for name in plain.parameter_shapes()}
    changed = [node for node in wanted.nodes if node.head.generated]
    scaled = _equalised(changed, source)
    with single_blas():
        if input_variance is None and calibration is not None:
            acts = Model(plain, source).activations(np.asarray(calibration, np.float32))
            input_variance = {
                node.name: acts[node.inputs[0]].reshape(-1, acts[node.inputs[0]].shape[-1]).var(0, dtype=np.float64)
                for node in changed
            }
        fit = _Fit(wanted, scaled, input_variance or {}, seed)
        fit.run()
    found = {name: np.asarray(value, np.float32) for name, value in fit.params.items()}
    made = fit.made()
    if calibration is not None:
        found = _corrected(fit.graph, found, scaled, made, calibration)
    errors = {}
    for node in wanted.nodes:
        if node.name in made:
            target = scaled[f"{node.name}.weight"]
            errors[node.name] = float(np.linalg.norm(made[node.name] - target) / max(np.linalg.norm(target), 1e-30))
        elif node.name in kernels:
            kernel = kernels[node.name]
            rounded = nearest(kernel, node.head.bits, 1 if node.op == "depthwise" else 0, rule=node.head.rule)
            errors[node.name] = float(np.linalg.norm(rounded - kernel) / max(np.linalg.norm(kernel), 1e-30))
    seeds = {head.name: head.spec.seed for head in fit.graph.plan.heads if head.spec.kind == "seeded"}
    return fit.graph, found, Report(errors, seeds)


def _equalised(nodes: list[Node], source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters of the same function in which the output channels of the given nodes' kernels have equal size, where
    a normalisation follows."""
    values = dict(source)
    for node in nodes:
        if node.norm not in ("batch", "frozen"):
            continue
        kernel = values[f"{node.name}.weight"]
        axis = 1 if node.op == "depthwise" else 0
        other = tuple(i for i in range(kernel.ndim) if i != axis)
        size = np.sqrt(np.mean(kernel**2, axis=other))
        fan_in = kernel.size // kernel.shape[axis]
        wanted = np.sqrt(2 / fan_in)  # the size that kernels start with
        if node.head.published:  # or all of it inside the bound
            size, wanted = np.abs(kernel).max(axis=other), _WITHIN * BOUND
        scale = np.where(size > 1e-12, size / wanted, 1.0)
        shape = [1] * kernel.ndim
        shape[axis] = -1
        values[f"{node.name}.weight"] = kernel / scale.reshape(shape)
        for part in ("mean", "bias") if node.bias else ("mean",):
            values[f"{node.name}.{part}"] = values[f"{node.name}.{part}"] / scale
        values[f"{node.name}.var"] = np.maximum((values[f"{node.name}.var"] + EPS) / scale**2 - EPS, 0)
    return values


def _corrected(
    graph: Graph, found: dict, scaled: Mapping, made: Mapping, calibration: np.ndarray
) -> dict[str, np.ndarray]:
    """Running statistics moved by what the fitted kernels change."""
    plain, nodes = graph.stored(), set(made)
    x = np.ascontiguousarray(calibration, np.float32)
    values = {name: np.asarray(scaled[name], np.float32) for name in plain.parameter_shapes()}
    before, _ = statistics(plain, values, x, None, nodes)
    values.update({f"{name}.weight": np.ascontiguousarray(kernel, np.float32) for name, kernel in made.items()})
    _, values = statistics(plain, values, x, before, nodes)
    running = [f"{name}.{part}" for name in nodes for part in ("mean", "var") if f"{name}.{part}" in found]
    return {**found, **{name: values[name] for name in running}}


class _Fit:
    """The state of one fit: parameters of the wanted graph, and rows (tiles) that its heads should make."""

    def __init__(
        self, graph: Graph, scaled: Mapping[str, np.ndarray], variance: Mapping[str, np.ndarray], seed: int
    ) -> None:
        self.graph, self.seed = graph, seed
        self.params = initial_params(graph, seed)
        self.targets = {node.name: scaled[f"{node.name}.weight"] for node in graph.generated_nodes()}
        self.importance = {node.name: self._importance(node, scaled, variance) for node in graph.generated_nodes()}
        for name in graph.parameter_shapes():
            if name in scaled:
                self.params[name] = scaled[name].copy()

    def _importance(self, node: Node, scaled: Mapping, variance: Mapping) -> np.ndarray:
        """How much each element of a kernel matters, 1 on average: squared gain of its output times the variance of
        its input."""
        kernel = self.targets[node.name]
        weight = np.ones(kernel.shape)
        if node.norm in ("batch", "frozen"):
            gain = scaled[f"{node.name}.gamma"] ** 2 / (scaled[f"{node.name}.var"] + EPS)
            weight = weight * (gain if node.op == "depthwise" else gain.reshape(-1, *[1] * (kernel.ndim - 1)))
        if node.name in variance:
            given = np.asarray(variance[node.name], np.float64)
            if given.shape != kernel.shape[-1:] or not np.isfinite(given).all() or (given < 0).any():
                raise ConfigError(
                    f"input variance of {node.name!r} has shape {given.shape}; "
                    f"give {kernel.shape[-1]} numbers of at least 0"
                )
            weight = weight * given
        return np.clip(weight / max(weight.mean(), 1e-30), *_IMPORTANCE)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, head: HeadPlan) -> tuple[np.ndarray, np.ndarray]:
        """What a head should make, (tiles, tile), and how much each element matters, 0 where the last tile of a
        kernel is cut off."""
        x, weight = [], []
        for name in head.nodes:
            depthwise = self.graph.node(name).op == "depthwise"
            for parts, values in ((x, self.targets), (weight, self.importance)):
                flat = in_generation_order(values[name], depthwise)
                parts.append(np.pad(flat, (0, -flat.size % head.rows)).reshape(-1, head.rows))
        return np.concatenate(x), np.concatenate(weight)

    def _spread(self, head: HeadPlan, codes: np.ndarray) -> None:
        start = 0
        for source in head.codes:
            count = len(self.params[source])
            self.params[source] = codes[start : start + count].astype(np.float64)
            start += count

    def made(self) -> dict[str, np.ndarray]:
        """Kernels of the fitted heads, codes on their grid."""
        return Expander(self.graph, Workspace(np.float64)).forward(self.params) if self.targets else {}

    # -- heads --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Fit everything: codebooks first choose their tables, heads of single codes come last, when their generator
        is settled."""
        books: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for head in self.graph.plan.heads:
            if head.spec.kind == "codebook":
                books[head.name] = self._codebook(head)
        for at, plan in enumerate(self.graph.plan.generators):
            heads = [h for h in self.graph.plan.heads if h.generator == at and h.spec.tiles]
            if not heads:
                continue
            top = (1 << (plan.code_bits - 1)) - 1
            for head in heads:
                x, weight = books.get(head.name) or self.rows(head)
                if head.spec.kind == "seeded":
                    self._seeded(head, x, weight, top)
                else:
                    codes, matrix = solve.alternate(x, weight, plan.dz, top)
                    self._spread(head, codes)
                    if not plan.hidden:
                        self.params[f"{head.name}.weight"] = matrix
            if plan.hidden:
                self._through_layers(at, heads, books)
            for head in heads:
                if head.spec.kind == "codebook":
                    self._reassign(head)
        for head in self.graph.plan.heads:
            if head.spec.kind in ("dense", "factorised"):
                self._tame(head)
        for head in self.graph.plan.heads:
            if head.spec.kind == "dense":
                h = self._h(head)
                whole = self._whole(head)
                if head.spec.published:
                    if np.abs(whole).max() >= BOUND:
                        raise ConfigError(
                            f"node {head.nodes[0]!r}: its kernel has a weight of {np.abs(whole).max():.3f}, which a published head "
                            f"bounds to {BOUND}, and no normalisation behind it that could make up for less; give it another head"
                        )
                    whole = np.arctanh(whole / BOUND)
                self.params[f"{head.name}.weight"] = np.outer(whole, h) / (h @ h)
            elif head.spec.kind == "factorised" and head.spec.share != "a":
                owner = head if head.b_of is None else self.graph.plan.heads[head.b_of]
                h = self.params[f"{owner.name}.b.weight"] @ self._h(head)
                self.params[f"{head.name}.a.weight"] = np.outer(self._whole(head), h) / (h @ h)
            elif head.spec.kind == "factorised" and head.a_of is None:
                self._shared_a(head)

    def _codebook(self, head: HeadPlan) -> tuple[np.ndarray, np.ndarray]:
        x, weight = self.rows(head)
        table, ids = solve.k_means(x, weight, head.spec.entries, self.seed)
        self._set_ids(head, ids)
        if head.generator is None:
            self.params[f"{head.name}.table.weight"] = table
        total = np.zeros_like(table)
        np.add.at(total, ids, weight)
        return table, np.maximum(total, 1e-6 * total.max())

    def _set_ids(self, head: HeadPlan, ids: np.ndarray) -> None:
        start = 0
        for name in head.nodes:
            count = len(self.params[f"{name}.ids"])
            self.params[f"{name}.ids"] = ids[start : start + count].astype(np.float64)
            start += count

    def _reassign(self, head: HeadPlan) -> None:
        """Tiles pick the nearest of the entries that came out, which are not quite those that k-means asked for."""
        plan = self.graph.plan.generators[head.generator]
        h = MicroMlp(plan).forward(self._rounded(head, f"{head.name}.codes"), self.params)
        x, weight = self.rows(head)
        self._set_ids(head, solve.assign(x, weight, h @ self.params[f"{head.name}.weight"].T)[0])

    def _seeded(self, head: HeadPlan, x: np.ndarray, weight: np.ndarray, top: int) -> None:
        """Codes for several seeds; the best one goes into the specification. Behind hidden layers any seed is as
        good."""
        if head.spec.hidden:
            return
        best = np.inf
        spec = head.spec
        # two heads that came to the same specification would be one
        taken = {h.spec for h in self.graph.plan.heads if h.name != head.name}
        for seed in range(spec.seed, min(spec.seed + SEEDS, 1 << 32)):
            if replace(spec, seed=seed) in taken:
                continue
            matrix = seeded_matrix(seed, head.rows, spec.dz) / SEED_UNIT
            codes, gain = solve.codes_for_matrix(x, weight, matrix, top)
            error = solve.loss(x, weight, gain * codes @ matrix.T)
            if error < best:
                best, chosen = error, seed
                self._spread(head, codes)
                self.params[f"{head.name}.gain"] = np.array([gain])
        names = set(head.nodes)
        nodes = tuple(replace(n, head=replace(n.head, seed=chosen)) if n.name in names else n for n in self.graph.nodes)
        self.graph = replace(self.graph, nodes=nodes)

    def _through_layers(self, at: int, heads: list[HeadPlan], books: Mapping) -> None:
        """A generator with hidden layers: first one that passes codes on as relu(z) and relu(-z), which makes the
        linear solution, then Adam."""
        plan = self.graph.plan.generators[at]
        for head in heads:  # numbers of about 1 suit the layers behind them
            for source in head.codes:
                if head.spec.kind != "seeded":
                    self.params[source] /= (1 << (plan.code_bits - 1)) - 1
        both = 2 * plan.dz
        for i, units in enumerate(plan.hidden):
            weight = self.params[f"{plan.name}.{i}.weight"]
            if units < both:
                break
            weight[:both] = 0
            if i == 0:
                weight[: plan.dz] = np.eye(plan.dz)
                weight[plan.dz : both] = -np.eye(plan.dz)
            else:
                weight[:both, :both] = np.eye(both)
        targets = {}
        for head in heads:
            targets[head.name] = books.get(head.name) or self.rows(head)
            if head.spec.kind != "seeded":
                h = np.concatenate(
                    [MicroMlp(plan).forward(self._rounded(head, source), self.params) for source in head.codes]
                )
                self.params[f"{head.name}.weight"] = solve.least_squares_matrix(*targets[head.name], h)
        names = [*plan.shapes()]
        for head in heads:
            names += [*head.codes, *(n for n in head.shapes() if n not in head.codes)]
        self._adam(names, [n for head in heads for n in head.nodes])

    def _adam(self, names: list[str], nodes: list[str]) -> None:
        """Adam with a cosine rate on the weighted error of the given nodes' kernels; keeps the best parameters that
        it saw."""
        expander = Expander(self.graph, Workspace(np.float64))
        size = np.sqrt(np.mean(np.concatenate([self.targets[n].ravel() for n in nodes]) ** 2)) or 1.0
        first, second = ({n: np.zeros_like(self.params[n]) for n in names} for _ in range(2))
        # heads make weights of size `size`, everything before them numbers of about 1
        rate = {n: 0.01 * (size if n.startswith("head") and not n.endswith(".codes") else 1.0) for n in names}
        grads = {n: np.zeros_like(v) for n, v in self.params.items()}
        best, kept = np.inf, {}
        for step in range(1, ADAM_STEPS + 2):
            made = expander.forward(self.params)
            error = sum(solve.loss(self.targets[n], self.importance[n], made[n]) for n in nodes)
            if error < best:
                best, kept = error, {n: self.params[n].copy() for n in names}
            if step > ADAM_STEPS:
                break
            for name, grad in expander.kernel_grads().items():
                grad[:] = (
                    2 * self.importance[name] * (made[name] - self.targets[name]) / size**2 if name in nodes else 0
                )
            expander.backward(self.params, grads)
            fade = 0.5 * (1 + np.cos(np.pi * step / ADAM_STEPS))
            for n in names:
                first[n] += 0.1 * (grads[n] - first[n])
                second[n] += 0.01 * (grads[n] ** 2 - second[n])
                move = first[n] / (1 - 0.9**step) / (np.sqrt(second[n] / (1 - 0.99**step)) + 1e-12)
                self.params[n] -= rate[n] * fade * move
                if n.endswith(".gain"):
                    np.maximum(self.params[n], 1e-6, out=self.params[n])
        self.params.update(kept)

    # -- heads of single codes ----------------------------------------------------------------------------------------

    def _rounded(self, head: HeadPlan, source: str) -> np.ndarray:
        plan = self.graph.plan.generators[head.generator]
        step = code_scale([self.params[name] for name, _ in plan.sources], plan.code_bits)
        return np.rint(self.params[source] / step) * step

    def _h(self, head: HeadPlan) -> np.ndarray:
        return MicroMlp(self.graph.plan.generators[head.generator]).forward(
            self._rounded(head, head.codes[0]), self.params
        )[0]

    def _whole(self, head: HeadPlan) -> np.ndarray:
        name = head.nodes[0]
        return in_generation_order(self.targets[name], self.graph.node(name).op == "depthwise")

    def _tame(self, head: HeadPlan) -> None:
        """Any code does, but it must not widen the grid of the codes that were fitted to it."""
        others = [
            name for h in self.graph.plan.heads if h.generator == head.generator and h.spec.tiles for name in h.codes
        ]
        if others:
            largest = max(float(np.abs(self.params[name]).max()) for name in others)
            code = self.params[head.codes[0]]
            self.params[head.codes[0]] = code * largest / np.abs(code).max()

    def _shared_a(self, owner: HeadPlan) -> None:
        """Kernels of equal size share A: their best common subspace, by singular values, and the coordinates of each
        in its B."""
        heads = [
            h
            for h in self.graph.plan.heads
            if h is owner or (h.a_of is not None and self.graph.plan.heads[h.a_of] is owner)
        ]
        u, s, vt = np.linalg.svd(np.stack([self._whole(h) for h in heads]), full_matrices=False)
        rank = min(owner.spec.rank, len(s))
        a = np.zeros((owner.rows, owner.spec.rank))
        a[:, :rank] = vt[:rank].T
        self.params[f"{owner.name}.a.weight"] = a
        for i, head in enumerate(heads):
            h = self._h(head)
            inner = np.zeros(owner.spec.rank)
            inner[:rank] = u[i, :rank] * s[:rank]
            self.params[f"{head.name}.b.weight"] = np.outer(inner, h) / (h @ h)


def kernel_error(graph: Graph, report: Report) -> float:
    """The relative error of all kernels together, layers weighted by their number of weights."""
    shapes = graph.kernel_shapes()
    total = sum(prod(shapes[name]) for name in report.errors)
    return float(np.sqrt(sum(prod(shapes[name]) * error**2 for name, error in report.errors.items()) / total))
