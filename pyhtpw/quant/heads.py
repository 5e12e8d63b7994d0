"""Float generators, heads and codes of a graph in integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from pyhtpw.errors import QuantiseError
from pyhtpw.image import integer
from pyhtpw.image.integer import Generated, Generator, Head, Matrix
from pyhtpw.nets.graph import Graph
from pyhtpw.nets.heads import GeneratorPlan, HeadPlan
from pyhtpw.quant.fold import fold
from pyhtpw.quant.generator import NARROW, WIDE, run_head, run_matrix, seeded_layer
from pyhtpw.quant.scales import HALF, multiplier
from pyhtpw.train.heads import SEED_UNIT, code_scale, from_generation_order

_CLIPS = np.linspace(0.35, 1.0, 40)  # fractions of the full range tried where there are few bits


@dataclass(frozen=True)
class IntegerHeads:
    """`sources`: node -> what its operator holds; `kernels`: node -> int8, in the graph's logical shape; `scales`:
    node -> real value of one unit of its kernel."""

    generators: tuple[Generator, ...]
    heads: tuple[Head, ...]
    sources: Mapping[str, Generated]
    kernels: Mapping[str, np.ndarray]
    scales: Mapping[str, float]


@dataclass
class _Rows:
    """Rows of numbers as reals and as the integers that stand for them in steps of `scale`."""

    real: np.ndarray
    ints: np.ndarray
    scale: float

    def __getitem__(self, rows: slice) -> _Rows:
        return _Rows(self.real[rows], self.ints[rows], self.scale)


def best_scale(values: np.ndarray, low: int, high: int) -> float:
    """The step with which integers in [low, high] have the least squared error; 1 for nothing but zeros.

    With 8 bits the largest value decides: there is nothing to gain from clipping.
    """
    largest = np.abs(values).max(initial=0)
    if largest == 0:
        return 1.0
    if high >= 127:
        return float(largest / high)
    scales = largest * _CLIPS / high
    errors = [np.sum((np.clip(np.rint(values / s), low, high) * s - values) ** 2) for s in scales]
    return float(scales[int(np.argmin(errors))])


def _matrix(weight: np.ndarray, bias: np.ndarray | None, bits: int, scale_in: float, scale_out: float) -> Matrix:
    """A layer from inputs in steps of `scale_in` to outputs in steps of `scale_out`."""
    top = (1 << (bits - 1)) - 1
    scale = best_scale(weight, -top, top)
    ints = np.clip(np.rint(weight / scale), -top, top).astype(np.int64)
    biases = np.zeros(len(weight)) if bias is None else np.rint(bias / (scale_in * scale))
    m, shift = multiplier(scale_in * scale / scale_out, HALF)
    if (weight.shape[1] * 2**14 + np.abs(biases).max()) * 2.0 ** max(shift, 0) >= 1 << 30:
        raise QuantiseError(
            "a bias of the generator leaves the range of the accumulator: its weights are close to zero"
        )
    return Matrix(ints, biases.astype(np.int64), m, shift, bits)


class _Quantiser:
    """Walks the plan of one graph; every head is quantised after the generator that it stands on."""

    def __init__(self, graph: Graph, params: Mapping[str, np.ndarray]) -> None:
        self.graph, self.plan = graph, graph.plan
        self.params = {name: np.asarray(value, np.float64) for name, value in params.items()}
        for name in graph.plan.shapes():
            if not np.isfinite(self.params[name]).all():
                raise QuantiseError(f"{name} holds values that are not finite: the float model has diverged")
        self.generators: list[Generator] = []
        self.heads: list[Head] = []
        self.numbers: list[int] = []  # of generators in the plan -> in the image
        self.codes: dict[str, np.ndarray] = {}
        self.rows: dict[str, _Rows] = {}  # codes -> h
        self.inner: dict[int, float] = {}  # factorised: number of the head that decides -> step of h'
        self.made: dict[int, tuple[int, float]] = {}  # head of the plan -> head of the image, step of its kernels
        for plan in self.plan.generators:
            self._generator(plan)
        for at in range(len(self.plan.heads)):
            self._head(at)

    def _generator(self, plan: GeneratorPlan) -> None:
        """Codes have one step for all, as in training, so that integer codes are exactly the rounded ones; the
        largest h is 127."""
        codes = np.concatenate([self.params[source] for source, _ in plan.sources])
        step = code_scale([codes], plan.code_bits)
        top = (1 << (plan.code_bits - 1)) - 1
        ints = np.clip(np.rint(codes / step), -top, top).astype(np.int64)
        rows = _Rows(ints * step, ints, step)
        layers = []
        for i in range(len(plan.hidden)):
            weight, bias = (self.params[f"{plan.name}.{i}.{part}"] for part in ("weight", "bias"))
            real = np.maximum(rows.real @ weight.T + bias, 0)
            scale = best_scale(real, 0, 127)
            layers.append(_matrix(weight, bias, plan.bits, rows.scale, scale))
            rows = _Rows(real, run_matrix(layers[-1], rows.ints, 0), scale)
        start = 0
        for source, count in plan.sources:
            part = slice(start, start + count)
            self.codes[source], self.rows[source] = ints[part], rows[part]
            start += count
        made = Generator(plan.dz, tuple(layers))
        same = [i for i, other in enumerate(self.generators) if not layers and other == made]  # identities are alike
        self.numbers.append(same[0] if same else len(self.generators))
        if not same:
            self.generators.append(made)

    def _gather(self, plan: HeadPlan) -> _Rows:
        parts = [self.rows[source] for source in plan.codes]
        return _Rows(np.concatenate([p.real for p in parts]), np.concatenate([p.ints for p in parts]), parts[0].scale)

    def _head(self, at: int) -> None:
        plan = self.plan.heads[at]
        spec, generator = plan.spec, None if plan.generator is None else self.numbers[plan.generator]
        high = NARROW if spec.narrow else WIDE
        if spec.kind == "codebook" and spec.of == "stored":
            table = self.params[f"{plan.name}.table.weight"][self._used(plan)]
            low, top = (-127, 127) if spec.bits == 8 else (-(1 << spec.bits - 1), (1 << spec.bits - 1) - 1)
            scale = best_scale(table, low, top)
            ints = np.clip(np.rint(table / scale), low, top).astype(np.int64)
            self._append(at, integer.Codebook(ints, spec.bits), scale)
        elif spec.kind == "factorised":
            self._factorised(at, generator, high)
        elif spec.kind == "seeded":
            rows = self._gather(plan)
            gain = float(self.params[f"{plan.name}.gain"][0]) / SEED_UNIT
            layer = seeded_layer(integer.Seeded(plan.rows, spec.seed, 0, 0), spec.width)
            scale = best_scale(rows.real @ layer.weights.T * gain, -high, high)
            m, shift = multiplier(rows.scale * gain / scale, HALF)
            self._append(at, integer.Seeded(plan.rows, spec.seed, m, shift, generator), scale)
        else:
            rows = self._gather(plan)
            weight = self.params[f"{plan.name}.weight"]
            if spec.kind == "codebook":
                used = self._used(plan)
                rows = _Rows(rows.real[used], rows.ints[used], rows.scale)
            scale = best_scale(rows.real @ weight.T, -high, high)
            matrix = _matrix(weight, None, spec.head_bits, rows.scale, scale)
            kind = integer.Dense if spec.kind == "dense" else integer.Tiled
            self._append(at, kind(matrix, generator), scale)
            if spec.kind == "codebook":
                entries = self.codes[plan.codes[0]][used]
                self._append(at, integer.Codebook(entries, spec.code_bits, len(self.heads) - 1), scale)

    def _used(self, plan: HeadPlan) -> np.ndarray:
        """Entries of a codebook that some tile picks; the others are left out."""
        return np.unique(np.concatenate([self.params[f"{name}.ids"] for name in plan.nodes]).astype(np.int64))

    def _factorised(self, at: int, generator: int, high: int) -> None:
        """A shared matrix has one multiplier, hence one step of what goes in and one of what comes out, for all that
        share it."""
        heads, plan = self.plan.heads, self.plan.heads[at]

        def inner(head: HeadPlan) -> np.ndarray:
            """h' (1, r) of a head, real."""
            owner = head if head.b_of is None else heads[head.b_of]
            return self._gather(head).real @ self.params[f"{owner.name}.b.weight"].T

        lead = next((i for i in (plan.b_of, plan.a_of) if i is not None), at)  # the first of those that share anything
        if lead == at:
            family = [inner(head) for head in heads if head is plan or at in (head.a_of, head.b_of)]
            self.inner[at] = best_scale(np.concatenate(family), -WIDE, WIDE)
        step, bits = self.inner[lead], plan.spec.head_bits
        if plan.b_of is None:
            b: Matrix | int = _matrix(self.params[f"{plan.name}.b.weight"], None, bits, self._gather(plan).scale, step)
        else:
            b = self.made[plan.b_of][0]
        if plan.a_of is None:
            weight = self.params[f"{plan.name}.a.weight"]
            users = [inner(head) @ weight.T for head in heads if head is plan or head.a_of == at]
            scale = best_scale(np.concatenate(users), -high, high)
            a: Matrix | int = _matrix(weight, None, bits, step, scale)
        else:
            a, scale = self.made[plan.a_of]
        self._append(at, integer.Factorised(b, a, generator), scale)

    def _append(self, at: int, head: Head, scale: float) -> None:
        self.heads.append(head)
        self.made[at] = (len(self.heads) - 1, scale)


def quantise_heads(graph: Graph, params: Mapping[str, np.ndarray]) -> IntegerHeads:
    """Generators, heads and codes of a graph in integers, and the kernels that they make.

    Codes have one step per generator, what a generator makes uses [0, 127], and the kernels of a head [-127, 127]
    (narrow: [-7, 7]) with one step for all. Raises QuantiseError if something cannot be expressed.
    Published heads are folded into plain ones first (`pyhtpw.quant.fold`).
    """
    graph, params = fold(graph, params)
    q = _Quantiser(graph, params)
    model = integer.IntegerModel(integer.Tensor(1, 1, 1, 0), (), None, tuple(q.generators), tuple(q.heads))
    sources, kernels, scales = {}, {}, {}
    shapes = graph.kernel_shapes()
    for node in graph.generated_nodes():
        name, shape = node.name, shapes[node.name]
        plan = graph.plan.heads[graph.plan.head_of[name]]
        head, scales[name] = q.made[graph.plan.head_of[name]]
        if plan.spec.kind == "codebook":
            codes, bits = np.searchsorted(q._used(plan), q.params[f"{name}.ids"].astype(np.int64)), 0
        else:
            codes, bits = q.codes[f"{name}.codes"], plan.spec.code_bits
        sources[name] = Generated(codes, image_shape(node.op, shape), head, bits, plan.spec.narrow)
        flat = run_head(model, head, codes, NARROW if plan.spec.narrow else WIDE).reshape(-1)[: prod(shape)]
        kernels[name] = np.ascontiguousarray(from_generation_order(flat, shape, node.op == "depthwise").astype(np.int8))
    return IntegerHeads(model.generators, model.heads, sources, kernels, scales)


def image_shape(op: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in docs/SPEC.md section 1 of a kernel of logical `shape`."""
    if op == "conv":
        return (shape[0], 1, *shape[1:])
    return (1, *shape) if op == "depthwise" else tuple(shape)
