"""Which head for which layers: the mix that loses least on validation data within a budget of bytes.

1. Every candidate is fitted to every group of layers alone. What takes more bytes for a larger error of the kernels
   than another is dropped.
2. The rest is scored one change at a time, the others stored in 8 bits; where the evaluations do not suffice, a drop
   in proportion to the squared error of the kernels, as measured for the same group, is assumed.
3. All mixes are ranked by the sum of their drops, and those that should fit the budget are made and scored in that
   order, until the evaluations are used up. The best measured one wins; of equals the smaller.

Nothing is drawn but what `pyhtpw.quant.fit` draws from its seed: the same arguments give the same choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, isfinite, prod
from typing import Any

import numpy as np

from pyhtpw.errors import ConfigError
from pyhtpw.image.integer import IntegerModel, bits_bytes
from pyhtpw.nets.graph import Graph
from pyhtpw.nets.heads import HeadSpec
from pyhtpw.quant.fit import fit_network, kernel_error

STORED = ("stored", "stored:bits=4", "stored:bits=2")
CANDIDATES = {
    "pw": (
        *STORED,
        "tiled:hidden=0,tile=8",
        "tiled:hidden=0,tile=16",
        "tiled:hidden=0",
        "tiled",
        "tiled:hidden=0,dz=8",
        "tiled:hidden=0,dz=8,tile=64",
        "seeded",
        "codebook:entries=64,tile=4",
        "codebook:entries=256,tile=8,bits=4",
    ),
    "pw1": (*STORED, "stored:per_tensor", "tiled:hidden=0,tile=8", "tiled:hidden=0,tile=16", "seeded"),
    "depthwise": (*STORED, "tiled:hidden=0", "tiled:hidden=0,dz=2", "codebook:entries=64,bits=4,tile=4"),
    "conv": (*STORED, "stored:per_tensor"),
    "fc": (*STORED, "stored:per_tensor"),
}
"""What is tried for each kind if nothing else is said."""

_MOST = 8  # candidates of a group that are looked at closely
_RANKED = 400  # mixes whose bytes are counted exactly


@dataclass(frozen=True)
class Trial:
    """One mix that was made: ``heads`` by group, real ``bytes`` of the image, error of the kernels, and ``score``
    (None if not scored)."""

    heads: Mapping[str, str]
    bytes: int
    error: float
    score: float | None
    stage: str


@dataclass(frozen=True)
class Choice:
    """The mix that won, as `Graph.with_heads` takes it, its network, and everything that was tried, in order."""

    heads: Mapping[str, str]
    graph: Graph
    params: Mapping[str, np.ndarray]
    model: IntegerModel
    bytes: int
    score: float
    tried: tuple[Trial, ...]


def kernel_bytes(graph: Graph) -> int:
    """Bytes of all kernels of a graph, stored or generated: WGHT, GENR, HEAD and CODE of docs/SPEC.md, biases of
    generators taken as 16 bits."""
    shapes, plan, total = graph.kernel_shapes(), graph.plan, 0
    for node in graph.nodes:
        if node.name in shapes and not node.head.generated:
            total += bits_bytes(prod(shapes[node.name]), node.head.bits)

    def matrix(rows: int, cols: int, bits: int, bias: int = 0) -> int:
        return 7 + bits_bytes(rows * cols, bits) + bits_bytes(rows, bias)

    for generator in plan.generators:
        total += 3
        for name, shape in generator.shapes().items():
            total += matrix(*shape, generator.bits, 16) if name.endswith("weight") else 0
        for source, rows in generator.sources:
            if source.rpartition(".")[0] in shapes:
                total += bits_bytes(rows * generator.dz, generator.code_bits)
    for head in plan.heads:
        spec, d = head.spec, head.spec.width
        if spec.kind == "codebook":
            tiles = sum(-(-prod(shapes[name]) // head.rows) for name in head.nodes)
            used = min(spec.entries, tiles)
            total += 5 + bits_bytes(tiles, max(used - 1, 0).bit_length())
            if head.generator is None:
                total += 3 + bits_bytes(used * spec.tile, spec.bits)
            else:
                total += 2 + matrix(head.rows, d, spec.head_bits) + 1 + bits_bytes(used * spec.dz, spec.code_bits)
        elif spec.kind == "seeded":
            total += 11
        elif spec.kind == "factorised":
            total += 6 + (matrix(spec.rank, d, spec.head_bits) if head.b_of is None else 0)
            total += matrix(head.rows, spec.rank, spec.head_bits) if head.a_of is None else 0
        else:
            total += 2 + matrix(head.rows, d, spec.head_bits)
    return total


class _Search:
    def __init__(
        self, graph, params, budget, score, size, quantise, candidates, calibration, evaluations, progress, seed
    ):
        self.graph, self.params, self.budget = graph, params, budget
        self.score, self.size, self.quantise = score, size, quantise
        self.calibration, self.evaluations, self.progress, self.seed = calibration, evaluations, progress, seed
        self.candidates = candidates
        self.groups = tuple(candidates)
        self.done = 0
        self.trials: list[Trial] = []
        self.made: dict[tuple, tuple] = {}
        self.scores: dict[tuple, float] = {}

    def make(self, mix: tuple[str, ...]):
        """Graph, parameters, integer model, bytes and kernel error of a mix, one specification per group."""
        if mix not in self.made:
            heads = dict(zip(self.groups, mix, strict=True))
            graph, params, report = fit_network(
                self.graph, self.params, heads, calibration=self.calibration, seed=self.seed
            )
            model = self.quantise(graph, params)
            self.made[mix] = graph, params, model, int(self.size(model)), kernel_error(graph, report)
        return self.made[mix]

    def evaluate(self, mix: tuple[str, ...], stage: str, *, only_if_it_fits: bool = False) -> float | None:
        """The measured score of a mix; None, without using up an evaluation, if it should fit and does not."""
        if mix in self.scores:
            return self.scores[mix]
        _, _, model, size, error = self.make(mix)
        found = None
        if size <= self.budget or not only_if_it_fits:
            found = float(self.score(model))
            found = self.scores[mix] = found if isfinite(found) else -inf
            self.done += 1
        trial = Trial(dict(zip(self.groups, mix, strict=True)), size, error, found, stage)
        self.trials.append(trial)
        if self.progress is not None:
            self.progress(
                {
                    "done": self.done,
                    "of": self.evaluations,
                    "stage": stage,
                    "heads": trial.heads,
                    "bytes": size,
                    "score": found,
                }
            )
        if len(self.made) > 64:  # integer models and parameters of a long search would fill memory
            best = self.best()
            for key in [k for k in self.made if best is None or k != best][:32]:
                del self.made[key]
        return found

    def best(self) -> tuple[str, ...] | None:
        """The best mix so far that fits the budget; of equals the smaller, then the earlier."""
        fitting = [t for t in self.trials if t.score is not None and t.bytes <= self.budget]
        if not fitting:
            return None
        top = max(fitting, key=lambda t: (t.score, -t.bytes))
        return tuple(top.heads[group] for group in self.groups)

    def estimate(self, mix: tuple[str, ...]) -> int:
        return kernel_bytes(self.graph.with_heads(dict(zip(self.groups, mix, strict=True))))


def auto_heads(
    graph: Graph,
    params: Mapping[str, np.ndarray],
    budget_bytes: int,
    score: Callable[[IntegerModel], float],
    *,
    size: Callable[[IntegerModel], int],
    quantise: Callable[[Graph, Mapping[str, np.ndarray]], IntegerModel],
    candidates: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    calibration: np.ndarray | None = None,
    evaluations: int = 60,
    progress: Callable[[dict[str, Any]], None] | None = None,
    seed: int = 0,
) -> Choice:
    """The mix of heads that loses least within a budget of bytes.

    Parameters
    ----------
    graph, params
        A trained network, its kernels best stored.
    budget_bytes
        Most bytes of the whole image.
    score
        Validation score of an integer model, larger is better (macro-F1 from integer logits). Not finite counts as
        worst.
    size
        Bytes of the image of an integer model.
    quantise
        Graph and parameters -> integer model.
    candidates
        Specifications by group, a group being a key of `Graph.with_heads` (kind or node); or the same for every kind;
        `CANDIDATES` if None. Kernels of no group keep the heads that they have.
    calibration
        Training windows (N, T, C), for `fit_network`.
    evaluations
        Most calls of `score`.
    progress
        Called after every mix made with a dict: done, of, stage, heads, bytes, score (None if it was too large to be
        scored).
    seed
        For `fit_network`.

    Raises
    ------
    ConfigError
        If nothing fits the budget (naming the smallest size that was reached), or the arguments make no sense.
    """
    if isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 2:
        raise ConfigError(f"evaluations is {evaluations!r}; give a whole number of at least 2")
    groups = _groups(graph, candidates)
    s = _Search(graph, params, budget_bytes, score, size, quantise, groups, calibration, evaluations, progress, seed)

    base = tuple(specs[0] for specs in groups.values())
    constant = s.make(base)[3] - s.estimate(base)
    error, single = _errors(s, base)
    kept = {g: _undominated(groups[g], single[g], error[g]) for g in s.groups}

    smallest = min(
        [tuple(min(kept[g], key=single[g].get) for g in s.groups), *_uniform(groups)],
        key=lambda mix: (s.estimate(mix), mix),
    )
    reached = s.make(smallest)[3]
    if reached > budget_bytes:
        text = ", ".join(f"{g}={spec}" for g, spec in zip(s.groups, smallest, strict=True))
        raise ConfigError(
            f"a budget of {budget_bytes} bytes cannot be met: the smallest image is {reached} bytes ({text}); "
            "allow that or add candidates"
        )

    top = s.evaluate(base, "base")
    changes = [(g, spec) for g in s.groups for spec in kept[g] if spec != base[s.groups.index(g)]]
    # the changes that save most first; a part of the evaluations is left for mixes
    changes.sort(key=lambda change: (single[change[0]][change[1]], change))
    for g, spec in changes[: max((evaluations - 1) * 2 // 3, 0)]:
        s.evaluate(_swap(s, base, g, spec), "single")
    drops = {g: _drops(s, base, g, kept[g], error[g], top) for g in s.groups}

    s.evaluate(smallest, "mix", only_if_it_fits=True) if s.done < evaluations else None
    for mix in _ranked(s, kept, drops, single, base, constant):
        if s.done >= evaluations:
            break
        s.evaluate(mix, "mix", only_if_it_fits=True)
    best = s.best() or smallest
    made = s.make(best)
    if best not in s.scores:  # all evaluations went into changes that do not fit
        s.evaluate(best, "mix")
    heads = {
        g: made[0].node(n).head.text() if (n := _node_of(graph, g)) else spec
        for g, spec in zip(s.groups, best, strict=True)
    }
    return Choice(heads, *made[:4], s.scores[best], tuple(s.trials))


def _groups(graph: Graph, candidates: Mapping[str, Sequence[str]] | Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """Candidates by group, each text in its shortest form, with the first one being what all else is measured
    against."""
    kinds = dict.fromkeys(graph.kinds().values())
    if candidates is None:
        candidates = {kind: CANDIDATES[kind] for kind in kinds}
    elif not isinstance(candidates, Mapping):
        candidates = {kind: tuple(candidates) for kind in kinds}
    found = {}
    for group, specs in candidates.items():
        if isinstance(specs, str) or not specs:
            raise ConfigError(f"candidates of {group!r} are {specs!r}; give a list of at least one specification")
        texts = list(dict.fromkeys(HeadSpec.parse(text).text() for text in specs))
        if "stored" in texts:  # the best there is, whatever the order
            texts.insert(0, texts.pop(texts.index("stored")))
        graph.with_heads({group: texts[0]})  # names what is wrong with the group
        found[group] = tuple(texts)
    if not found:
        raise ConfigError("there are no candidates; give some for at least one group")
    return found


def _node_of(graph: Graph, group: str) -> str | None:
    """A node that a group's entry reaches, to read the final specification (a seeded head's seed is chosen) from."""
    marked = graph.stored().with_heads({group: "stored:bits=2"})
    return next((node.name for node in marked.nodes if node.head.bits == 2), None)


def _swap(s: _Search, mix: tuple[str, ...], group: str, spec: str) -> tuple[str, ...]:
    return tuple(spec if g == group else old for g, old in zip(s.groups, mix, strict=True))


def _errors(s: _Search, base: tuple[str, ...]) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """By group and candidate alone: squared error of its kernels, and bytes of all kernels with nothing else
    changed."""
    error, size = {}, {}
    for g in s.groups:
        error[g], size[g] = {}, {}
        for spec in s.candidates[g]:
            other, _, report = fit_network(s.graph, s.params, {g: spec}, calibration=s.calibration, seed=s.seed)
            error[g][spec] = kernel_error(other, report) ** 2
            size[g][spec] = s.estimate(_swap(s, base, g, spec))
    return error, size


def _undominated(specs: Sequence[str], size: Mapping[str, int], error: Mapping[str, float]) -> list[str]:
    """Candidates that no other beats in both bytes and error, the first one always, at most `_MOST`, spread over the
    sizes."""
    kept = [specs[0]]
    for spec in specs[1:]:
        beaten = any(
            (size[o], error[o]) != (size[spec], error[spec]) and size[o] <= size[spec] and error[o] <= error[spec]
            for o in specs
        )
        twin = any(size[o] == size[spec] and error[o] == error[spec] for o in kept)
        if not beaten and not twin:
            kept.append(spec)
    if len(kept) > _MOST:
        order = sorted(kept[1:], key=lambda spec: (size[spec], spec))
        chosen = np.unique(np.linspace(0, len(order) - 1, _MOST - 1).round().astype(int))
        kept = [kept[0], *(order[i] for i in chosen)]
    return kept


def _uniform(groups: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Mixes in which as many groups as can share one specification, and so perhaps one head; the others take their
    first."""
    every = dict.fromkeys(spec for specs in groups.values() for spec in specs)
    smallest = {g: next((s for s in specs if s == "stored:bits=2"), specs[0]) for g, specs in groups.items()}
    return [tuple(spec if spec in specs else smallest[g] for g, specs in groups.items()) for spec in every]


def _drops(
    s: _Search, base, group: str, specs: Sequence[str], error: Mapping[str, float], top: float
) -> dict[str, float]:
    """How much the score falls with each candidate of a group: measured, or in proportion to the squared error of the
    kernels."""
    measured = {spec: top - s.scores[mix] for spec in specs if (mix := _swap(s, base, group, spec)) in s.scores}
    more = {spec: error[spec] - error[specs[0]] for spec in specs}
    pairs = [(more[spec], drop) for spec, drop in measured.items() if more[spec] > 0 and isfinite(drop)]
    slope = max(sum(e * d for e, d in pairs) / sum(e * e for e, _ in pairs), 0.0) if pairs else 1.0
    # infinite minus infinite has no order: a score that is not finite is just very bad
    return {
        spec: measured[spec]
        if spec in measured and isfinite(measured[spec])
        else 1e6
        if spec in measured
        else slope * more[spec]
        for spec in specs
    }


def _ranked(s: _Search, kept, drops, single, base, constant: int) -> list[tuple[str, ...]]:
    """Mixes that should fit the budget, best first by the sum of their drops, then by bytes."""
    whole = s.estimate(base)
    rows = []
    for mix in product(*(kept[g] for g in s.groups)):
        drop = sum(drops[g][spec] for g, spec in zip(s.groups, mix, strict=True))
        # groups of equal specification share: the sum is an upper bound, hence the margin
        size = whole + constant + sum(single[g][spec] - whole for g, spec in zip(s.groups, mix, strict=True))
        if size <= s.budget * 1.15 + 64:
            rows.append((drop, size, mix))
    rows.sort()
    found = []
    for drop, _, mix in rows[:_RANKED]:
        size = s.estimate(mix) + constant
        if size <= s.budget + 32:  # an estimate: the real size decides
            found.append((drop, size, mix))
    return [mix for _, _, mix in sorted(found)]
