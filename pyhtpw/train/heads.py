"""Generated kernels in training: from codes, generators and heads to kernels, and back with the kernels' gradients.

One class per head kind knows how rows h of the generator's output become the head's kernels; `Expander` does the rest
for a whole graph: codes through their integer grid, generators that serve several heads, and the generation order of
docs/SPEC.md section 1.

Codes pass through `code_scale`'s grid; the backward pass takes that rounding as the identity and the scale as a
constant (straight-through estimator). All other gradients are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from pyhtpw.nets.graph import Graph
from pyhtpw.nets.heads import BOUND, GeneratorPlan, HeadPlan
from pyhtpw.train.workspace import Workspace

Arrays = Mapping[str, np.ndarray]
LAYER_EPSILON = 1e-5
"""Added to the variance in the LayerNorm of a published generator."""
SEED_UNIT = 128.0
"""A seeded matrix is gain * bytes / SEED_UNIT."""


def code_scale(codes: Sequence[np.ndarray], bits: int) -> float:
    """The one step between code values of a generator: max|z| over all layers / (2^(bits-1) - 1); 1 if all are 0."""
    largest = max(float(np.max(np.abs(z))) for z in codes)
    return largest / (2 ** (bits - 1) - 1) if largest > 0 else 1.0


def seeded_matrix(seed: int, rows: int, cols: int) -> np.ndarray:
    """The int8 matrix (rows, cols) that docs/SPEC.md section 5 draws from ``seed`` with a 32-bit xorshift."""
    words = np.empty(-(-rows * cols // 4), "<u4")
    s = seed
    for i in range(len(words)):
        s ^= s << 13 & 0xFFFFFFFF
        s ^= s >> 17
        s ^= s << 5 & 0xFFFFFFFF
        words[i] = s
    return words.view(np.int8)[: rows * cols].reshape(rows, cols).copy()


def in_generation_order(kernel: np.ndarray, depthwise: bool) -> np.ndarray:
    """A kernel's weights, flat, in the order in which heads make them; a view where there can be one."""
    return (kernel.T if depthwise else kernel).reshape(-1)


def from_generation_order(flat: np.ndarray, shape: tuple[int, ...], depthwise: bool) -> np.ndarray:
    """The kernel of logical ``shape`` that `in_generation_order` laid out; a view of ``flat``."""
    return flat.reshape(shape[::-1]).T if depthwise else flat.reshape(shape)


class MicroMlp:
    """A generator g: h = relu(G z + b) for each hidden layer; a published one h = relu(LayerNorm(G z + b)), and
    relu(G z) for the last."""

    def __init__(self, plan: GeneratorPlan) -> None:
        self.plan = plan

    def forward(self, codes: np.ndarray, params: Arrays) -> np.ndarray:
        """Codes (rows, dz) -> h (rows, d)."""
        self._values, self._norms = [codes], []
        for i in range(len(self.plan.hidden)):
            pre = self._values[-1] @ params[f"{self.plan.name}.{i}.weight"].T
            if not self.plan.is_plain(i):
                pre += params[f"{self.plan.name}.{i}.bias"]
                if self.plan.published:
                    inverse = 1 / np.sqrt(pre.var(axis=1, keepdims=True) + pre.dtype.type(LAYER_EPSILON))
                    pre = (pre - pre.mean(axis=1, keepdims=True)) * inverse
                    self._norms.append((pre, inverse))
                    pre = pre * params[f"{self.plan.name}.{i}.gamma"] + params[f"{self.plan.name}.{i}.beta"]
            self._values.append(np.maximum(pre, 0))
        return self._values[-1]

    def backward(self, d: np.ndarray, params: Arrays, grads: Arrays) -> np.ndarray:
        """dL/dh (rows, d) -> dL/dcodes (rows, dz); writes the gradients of the layers."""
        for i in reversed(range(len(self.plan.hidden))):
            d = d * (self._values[i + 1] > 0)
            if not self.plan.is_plain(i):
                if self.plan.published:
                    d = self._norm_backward(i, d, params, grads)
                np.sum(d, axis=0, out=grads[f"{self.plan.name}.{i}.bias"])
            np.matmul(d.T, self._values[i], out=grads[f"{self.plan.name}.{i}.weight"])
            d = d @ params[f"{self.plan.name}.{i}.weight"]
        return d


    def _norm_backward(self, i: int, d: np.ndarray, params: Arrays, grads: Arrays) -> np.ndarray:
        """Through the LayerNorm of layer i."""
        normal, inverse = self._norms[i]
        np.sum(d * normal, axis=0, out=grads[f"{self.plan.name}.{i}.gamma"])
        np.sum(d, axis=0, out=grads[f"{self.plan.name}.{i}.beta"])
        d = d * params[f"{self.plan.name}.{i}.gamma"]
        return inverse * (d - d.mean(axis=1, keepdims=True) - normal * (d * normal).mean(axis=1, keepdims=True))


class Matrix:
    """Dense and tiled heads: out = H h, or BOUND * tanh(H h) of a published one."""

    def __init__(self, plan: HeadPlan, heads: Sequence[HeadPlan], work: Workspace) -> None:
        self.plan, self.work, self.name = plan, work, plan.name

    def forward(self, h: np.ndarray, params: Arrays) -> np.ndarray:
        """h (rows, d) -> (rows, tile or n)."""
        self._h = h
        made = np.matmul(
            h, params[f"{self.name}.weight"].T, out=self.work.get(f"{self.name}/w", len(h), self.plan.rows)
        )
        if not self.plan.spec.published:
            return made
        self._tanh = np.tanh(made)
        return np.multiply(self._tanh, made.dtype.type(BOUND), out=made)

    def backward(self, d: np.ndarray, params: Arrays, grads: Arrays) -> np.ndarray:
        """dL/dout -> dL/dh; writes the gradient of the head's parameters."""
        if self.plan.spec.published:
            d = d * (d.dtype.type(BOUND) * (1 - self._tanh**2))
        np.matmul(d.T, self._h, out=grads[f"{self.name}.weight"])
        return d @ params[f"{self.name}.weight"]


class Factorised:
    """Eq. 3: out = A (B h). A shared matrix collects the gradients of all heads that use it."""

    def __init__(self, plan: HeadPlan, heads: Sequence[HeadPlan], work: Workspace) -> None:
        self.a = f"{plan.name if plan.a_of is None else heads[plan.a_of].name}.a.weight"
        self.b = f"{plan.name if plan.b_of is None else heads[plan.b_of].name}.b.weight"

    def forward(self, h: np.ndarray, params: Arrays) -> np.ndarray:
        """h (1, d) -> (1, n)."""
        self._h, self._inner = h, h @ params[self.b].T
        return self._inner @ params[self.a].T

    def backward(self, d: np.ndarray, params: Arrays, grads: Arrays) -> np.ndarray:
        """dL/dout -> dL/dh; adds to the gradients of both matrices, which `Expander` has cleared."""
        grads[self.a][...] += d.T @ self._inner
        inner = d @ params[self.a]
        grads[self.b][...] += inner.T @ self._h
        return inner @ params[self.b]


class Seeded:
    """Tiled, with the matrix gain * bytes / 128; the gain is all there is to train."""

    def __init__(self, plan: HeadPlan, heads: Sequence[HeadPlan], work: Workspace) -> None:
        self.gain = f"{plan.name}.gain"
        matrix = seeded_matrix(plan.spec.seed, plan.rows, plan.spec.width)
        self.matrix = (matrix / SEED_UNIT).astype(work.dtype)

    def forward(self, h: np.ndarray, params: Arrays) -> np.ndarray:
        """h (rows, d) -> (rows, tile)."""
        self._plain = h @ self.matrix.T
        return self._plain * params[self.gain]

    def backward(self, d: np.ndarray, params: Arrays, grads: Arrays) -> np.ndarray:
        """dL/dout -> dL/dh; writes the gradient of the gain."""
        grads[self.gain][0] = np.sum(d * self._plain, dtype=np.float64)
        return d @ (self.matrix * params[self.gain])


_KINDS = {"dense": Matrix, "tiled": Matrix, "codebook": Matrix, "factorised": Factorised, "seeded": Seeded}


class Expander:
    """All generated kernels of a graph.

    ``forward`` keeps what ``backward`` needs. Codes are laid end to end per generator, so that it runs once over all
    of them, and tiles per head; a kernel's last tile is cut off at its size, and what is cut off has no gradient.
    """

    def __init__(self, graph: Graph, work: Workspace) -> None:
        self.plan = graph.plan
        self.work = work
        kernels = graph.kernel_shapes()
        self.shapes = {node.name: kernels[node.name] for node in graph.generated_nodes()}
        self._depthwise = {node.name: node.op == "depthwise" for node in graph.generated_nodes()}
        self._generators = [MicroMlp(plan) for plan in self.plan.generators]
        self._heads = [_KINDS[plan.spec.kind](plan, self.plan.heads, work) for plan in self.plan.heads]
        self._at: dict[str, slice] = {}  # codes -> rows of their generator
        self._rows = []
        for plan in self.plan.generators:
            start = 0
            for source, rows in plan.sources:
                self._at[source] = slice(start, start + rows)
                start += rows
            self._rows.append(start)
        self._tiles: dict[str, slice] = {}  # node -> rows of its head
        self._counts = []
        for plan in self.plan.heads:
            start = 0
            for name in plan.nodes:
                stop = start + -(-prod(self.shapes[name]) // plan.rows)
                self._tiles[name] = slice(start, stop)
                start = stop
            self._counts.append(start)
        self._whole = [  # heads that make all rows of their generator, in its order: no copy needed
            plan.generator is not None
            and plan.codes == tuple(source for source, _ in self.plan.generators[plan.generator].sources)
            for plan in self.plan.heads
        ]

    def forward(self, params: Arrays, quantise: bool = True) -> dict[str, np.ndarray]:
        """Kernel of every generated node in its logical shape; ``quantise`` False leaves the codes unrounded."""
        made = []
        for plan, mlp in zip(self.plan.generators, self._generators, strict=True):
            codes = np.concatenate([params[source] for source, _ in plan.sources])
            if quantise:
                scale = codes.dtype.type(code_scale([codes], plan.code_bits))
                codes = np.rint(codes / scale) * scale
            made.append(mlp.forward(codes, params))
        kernels: dict[str, np.ndarray] = {}
        for at, (plan, head) in enumerate(zip(self.plan.heads, self._heads, strict=True)):
            if plan.generator is None:
                tiles = params[f"{plan.name}.table.weight"]
            else:
                h = made[plan.generator]
                if not self._whole[at]:
                    h = np.concatenate([h[self._at[source]] for source in plan.codes])
                tiles = head.forward(h, params)
            for name in plan.nodes:
                shape = self.shapes[name]
                if plan.spec.kind == "codebook":
                    rows = tiles[params[f"{name}.ids"].astype(np.intp)]
                else:
                    rows = tiles[self._tiles[name]]
                kernel = from_generation_order(rows.reshape(-1)[: prod(shape)], shape, self._depthwise[name])
                kernels[name] = np.ascontiguousarray(kernel)
        return kernels

    def kernel_grads(self) -> dict[str, np.ndarray]:
        """Arrays of the kernels' shapes for dL/dkernel, which ``backward`` reads once they are filled."""
        self._dtiles, found = [], {}
        for plan, count in zip(self.plan.heads, self._counts, strict=True):
            dtiles = self.work.get(f"{plan.name}/dw", count, plan.rows)
            dtiles[:] = 0
            self._dtiles.append(dtiles)
            for name in plan.nodes:
                flat = dtiles[self._tiles[name]].reshape(-1)[: prod(self.shapes[name])]
                found[name] = from_generation_order(flat, self.shapes[name], self._depthwise[name])
        return found

    def backward(self, params: Arrays, grads: Arrays) -> None:
        """Write the gradients of codes, generators and heads from the filled ``kernel_grads``."""
        dh: list[np.ndarray | None] = [None] * len(self._generators)
        for plan in self.plan.heads:
            if plan.spec.kind == "factorised":
                for name in plan.shapes():
                    grads[name][...] = 0
        for at, (plan, head) in enumerate(zip(self.plan.heads, self._heads, strict=True)):
            d = self._dtiles[at]
            if plan.spec.kind == "codebook":
                d = self._table_gradient(plan, d, params)
                if plan.generator is None:
                    grads[f"{plan.name}.table.weight"][...] = d
                    continue
            d = head.backward(d, params, grads)
            if self._whole[at]:
                dh[plan.generator] = d
                continue
            if dh[plan.generator] is None:
                dh[plan.generator] = np.zeros((self._rows[plan.generator], d.shape[1]), d.dtype)
            start = 0
            for source in plan.codes:
                rows = self._at[source]
                count = rows.stop - rows.start
                dh[plan.generator][rows] = d[start : start + count]
                start += count
        for plan, mlp, d in zip(self.plan.generators, self._generators, dh, strict=True):
            d = mlp.backward(d, params, grads)
            for source, _ in plan.sources:
                grads[source][:] = d[self._at[source]]

    def _table_gradient(self, plan: HeadPlan, dtiles: np.ndarray, params: Arrays) -> np.ndarray:
        """dL/dtable (entries, tile): the sum over all tiles that pick an entry."""
        ids = np.concatenate([params[f"{name}.ids"] for name in plan.nodes]).astype(np.intp)
        d = np.zeros((plan.spec.entries, plan.rows), dtiles.dtype)
        np.add.at(d, ids, dtiles)
        return d
