"""A smaller image of an image, without the float network it came from: pointwise kernels are mapped onto heads.

The kernels of the image are the target. Every mix of heads is fitted to them by `pyhtpw.quant.fit` and chosen by `pyhtpw.quant.search`, as
for a float network: for that they stand in a chain of pointwise nodes in which only their shapes matter. What is then packed is the
image's own operators, with new kernels, and multipliers and biases that go with them.

With windows, each layer's multipliers and biases are fitted by least squares so that it makes of the compressed network's activations
what the original made of its own, layer by layer; and mixes are chosen by the logits on windows that no layer has been fitted to. Without,
the error of the kernels decides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import reference
from pyhtpw.errors import ConfigError, QuantiseError
from pyhtpw.image import write
from pyhtpw.image.integer import IntegerModel, Op, Stored
from pyhtpw.image.reader import read_model
from pyhtpw.model import Image
from pyhtpw.nets.graph import Graph, Node
from pyhtpw.quant.generator import kernel_of
from pyhtpw.quant.heads import quantise_heads
from pyhtpw.quant.scales import COMPACT, Factors, factors, requant
from pyhtpw.quant.search import CANDIDATES, Trial, auto_heads
from pyhtpw.quant.statistics import EPS
from pyhtpw.quant.stored import quantise_stored
from reference.run import trace

ROUNDS = 2  # fits of multipliers and biases: on the original's activations, then on those of the compressed network
FIT_WINDOWS, HELD_WINDOWS = 64, 512
OWN_GROUPS = 3  # up to so many pointwise layers, each chooses its own head


@dataclass(frozen=True)
class Compressed:
    """`heads` by group and `sources` by operator; `errors`: operator -> ||new - old|| / ||old|| of its kernel with multipliers (as
    fitted, before any fine-tuning); `agreement`: share of the held-out
    windows with the same class, None without windows."""

    model: IntegerModel
    image: Image
    heads: Mapping[str, str]
    sources: Mapping[str, str]
    errors: Mapping[str, float]
    agreement: float | None
    tried: tuple[Trial, ...]
    tuned: str = ""


def compress(
    image: Image,
    budget: int,
    windows: np.ndarray | None = None,
    *,
    heads: Mapping[str, str] | None = None,
    evaluations: int = 24,
    steps: int = 0,
    seed: int = 0,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Compressed:
    """The image with the best mix of heads for its pointwise kernels within `budget` bytes.

    Parameters
    ----------
    image
        With stored kernels, as `pyhtpw import` leaves it; generated ones are expanded first.
    budget
        Bytes of the whole new image.
    windows : int8 (N, H, W, C), N >= 8, optional
        Training windows: half of them fit multipliers and biases (at most 64), the others choose.

    heads
        Specification by kind (pw1 is the first pointwise layer, pw the others, or all if pw1 is not named) or operator: no search there.

    steps
        Updates of fine-tuning with the chosen heads (`pyhtpw.export.finetune`), which needs windows and a network over time. Its result is
        taken if its logits are nearer to the original's on held-out windows, and it is within the budget.

    Raises
    ------
    ConfigError
        If there is nothing to compress, too few windows, or the smallest reachable size is above the budget.
    """
    if windows is not None and len(windows) < 8:
        raise ConfigError(f"{len(windows)} windows are too few to fit and to choose: give at least 8")
    work = _Compressor(image, windows)
    choice = auto_heads(
        work.graph, work.params, budget, work.score, size=lambda model: len(write(model)), quantise=work.rebuilt,
        candidates=work.candidates(heads or {}), evaluations=evaluations, seed=seed, progress=progress,
    )  # fmt: skip
    sources = {name: choice.graph.node(name).head.text() for name in work.at}
    model, tuned = work.tuned(choice.model, sources, budget, steps, seed) if steps else (choice.model, "")
    made = Image(write(model), f"{image.name}, compressed")
    return Compressed(model, made, choice.heads, sources, work.errors(choice.model), work.agreement(made), choice.tried, tuned)


def expanded_model(image: Image) -> IntegerModel:
    """The image's integer model with generated kernels stored in 8 bits."""
    if image.codes_number:
        raise ConfigError(f"{image.name}: a code pack is applied: open the image that pyhtpw.image.codes.apply_pack makes of both")
    model = read_model(image.data, image.name)
    ops = []
    for op in model.ops:
        if op.weights is not None and not isinstance(op.weights, Stored):
            op = replace(op, weights=Stored(kernel_of(model, op)))
        ops.append(op)
    return replace(model, ops=tuple(ops), generators=(), heads=())


def _effective(op: Op) -> np.ndarray:
    """What one unit of each channel's sum is worth in units of the output, float64 (Cout,)."""
    q = op.requant
    return np.broadcast_to(Factors(np.asarray(q.multipliers), np.asarray(q.shifts)).real, op.out.c)


class _Compressor:
    def __init__(self, image: Image, windows: np.ndarray | None) -> None:
        self.model = expanded_model(image)
        self.shapes = (self.model.input, *(op.out for op in self.model.ops))
        self.at = {op.name: i for i, op in enumerate(self.model.ops[:-1]) if op.kind == "conv1x1"}  # without the classifier
        if not self.at:
            raise ConfigError(f"{image.name}: has no pointwise (1x1) kernel before its classifier, which is what heads make instead")
        self.graph, self.params = self._chain()
        self.fit = self.held = self.targets = None
        if windows is not None:
            half = len(windows) // 2
            self.training, self.held = windows[:half], windows[half : half + HELD_WINDOWS]
            self.fit, self.says = windows[: min(half, FIT_WINDOWS)], image.run_batch(windows[:half])
            self.wanted = image.run_batch(self.held).astype(np.int64)
            self.targets = self._activations(self.model)

    def _chain(self) -> tuple[Graph, dict[str, np.ndarray]]:
        """The pointwise kernels as nodes of a network; convolutions of one tap bring channels from one to the next."""
        nodes: list[Node] = []
        params: dict[str, np.ndarray] = {}
        last, width = "input", self.shapes[self.model.ops[next(iter(self.at.values()))].inputs[0]].c
        first = width
        for name, i in self.at.items():
            op = self.model.ops[i]
            out_c, in_c = op.weights.values.shape
            if in_c != width:
                nodes.append(Node(f"to_{name}", "conv", (last,), in_c))
                params[f"to_{name}.weight"] = np.ones((in_c, 1, width), np.float32)
                last = f"to_{name}"
            nodes.append(Node(name, "pointwise", (last,), out_c, norm="batch"))
            unit = _effective(op)
            # the normalisation behind a kernel holds what its multipliers do: the fit weighs channels by it
            params[f"{name}.weight"] = op.weights.values.astype(np.float32)
            params[f"{name}.gamma"] = np.maximum(unit, 1e-12).astype(np.float32)
            params[f"{name}.var"] = np.full(out_c, 1 - EPS, np.float32)
            params[f"{name}.mean"] = params[f"{name}.beta"] = np.zeros(out_c, np.float32)
            last, width = name, out_c
        nodes.append(Node("pool", "avgpool", (last,), width))
        nodes.append(Node("fc", "fc", ("pool",), 2))
        params |= {"fc.weight": np.ones((2, width), np.float32), "fc.bias": np.zeros(2, np.float32)}
        return Graph("kernels", (1, first), 2, tuple(nodes)), params

    def candidates(self, heads: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        """Specifications by group: those given, else all; fewer bits only where there are more."""
        kinds = {name: kind for name, kind in self.graph.kinds().items() if name in self.at}
        for key in heads:
            if key not in kinds and key not in ("pw", "pw1"):
                known = ", ".join(kinds)
                raise ConfigError(f"--head {key}=...: no pointwise layer is called {key}; there are {known}, and the kinds pw1 and pw")
        own = len(kinds) <= OWN_GROUPS or any(key in kinds for key in heads)
        found = {}
        for group in kinds if own else dict.fromkeys(kinds.values()):
            kind = kinds.get(group, group)
            given = heads.get(group, heads.get(kind, heads.get("pw")))
            bits = max(self.model.ops[self.at[n]].weights.bits for n in kinds if group in (n, kinds[n]))
            every = (s for s in CANDIDATES["pw"] if not s.startswith("stored:bits=") or int(s[-1]) < bits)
            found[group] = (given,) if given else tuple(every)
        return found

    # -- from heads to operators --------------------------------------------------------------------------------------

    def rebuilt(self, graph: Graph, params: Mapping[str, np.ndarray]) -> IntegerModel:
        """The model with the kernels of a fitted chain."""
        made = quantise_heads(graph, params)
        ops, kernels = list(self.model.ops), {}
        for name, i in self.at.items():
            op, node = ops[i], graph.node(name)
            unit = _effective(op)
            if name in made.sources:
                gain = np.asarray(params[f"{name}.gamma"], np.float64) / np.sqrt(np.asarray(params[f"{name}.var"], np.float64) + EPS)
                weights, kernel = made.sources[name], made.kernels[name]
                scaling = factors(gain * made.scales[name], COMPACT)
            elif node.head.bits < op.weights.bits or node.head.per_tensor:
                old = op.weights.values.astype(np.float64) * unit[:, None]
                kernel, scaling = quantise_stored(old, 1.0, node.head.bits, COMPACT, per_tensor=node.head.per_tensor)
                weights = Stored(kernel, node.head.bits, node.head.narrow)
            else:
                continue
            kernels[i] = kernel
            biases = self._biases(op, np.asarray(op.requant.biases) * unit, scaling)
            ops[i] = replace(op, weights=weights, requant=requant(scaling, biases, kernel.shape[1]))
        model = replace(self.model, ops=tuple(ops), generators=made.generators, heads=made.heads)
        return self._corrected(model, kernels) if self.fit is not None and kernels else model

    def _biases(self, op: Op, real: np.ndarray, scaling: Factors) -> np.ndarray:
        """Biases for offsets in units of the output; no larger than what moves it from end to end and the sums allow."""
        limit = ((1 << 30) >> max(int(scaling.shifts.max()), 0)) - 1 - op.weights.values.shape[1] * 255 * 128
        live = scaling.real > 0
        biases = np.zeros(len(real))
        np.divide(real, scaling.real, out=biases, where=live)
        return np.clip(biases, -limit, limit)

    def _activations(self, model: IntegerModel) -> dict[int, np.ndarray]:
        """Tensor -> int8 values on the windows that fit."""
        found = {0: self.fit}
        for i, y in trace(reference.read(write(model)), self.fit):
            found[i + 1] = y
        return found

    def _corrected(self, model: IntegerModel, kernels: Mapping[int, np.ndarray]) -> IntegerModel:
        """Multipliers and biases by which each new layer comes nearest to what the old one made, least squares per channel."""
        acts = self.targets
        for _ in range(ROUNDS):
            ops = list(model.ops)
            for i, kernel in kernels.items():
                old, op = self.model.ops[i], ops[i]
                wanted = self._sums(acts=self.targets, op=old, kernel=old.weights.values) + np.asarray(old.requant.biases)
                wanted = wanted * _effective(old)
                sums = self._sums(acts, op, kernel)
                mean_x, mean_y = sums.mean(0), wanted.mean(0)
                spread = ((sums - mean_x) ** 2).sum(0)
                slope = np.divide(((sums - mean_x) * (wanted - mean_y)).sum(0), spread, out=np.zeros(op.out.c), where=spread > 0)
                now = _effective(op)
                # a channel that says nothing on these windows, or would change its sign, keeps its gain
                gain = np.where((slope > now / 4) & (slope < now * 4), slope, now)
                scaling = factors(gain, COMPACT)
                biases = self._biases(old, mean_y - scaling.real * mean_x, scaling)
                ops[i] = replace(op, requant=requant(scaling, biases, kernel.shape[1]))
            model = replace(model, ops=tuple(ops))
            acts = self._activations(model)
        return model

    def _sums(self, acts: Mapping[int, np.ndarray], op: Op, kernel: np.ndarray) -> np.ndarray:
        """Sums of a pointwise layer without biases, float64 (positions, Cout), exact."""
        t = op.inputs[0]
        x = acts[t].reshape(-1, kernel.shape[1]).astype(np.float64) - self.shapes[t].zero_point
        return x @ kernel.T.astype(np.float64)

    def tuned(self, model: IntegerModel, heads: Mapping[str, str], budget: int, steps: int, seed: int) -> tuple[IntegerModel, str]:
        """The better of the model and its fine-tuned twin, and what came of it."""
        if self.fit is None:
            raise ConfigError("fine-tuning needs training windows: give them, or no steps")
        from pyhtpw.export.finetune import finetune  # the trainer, for those who train alone

        try:
            found = finetune(self.model, heads, self.training, self.says, steps=steps, seed=seed)
        except (ConfigError, QuantiseError) as error:
            return model, f"not fine-tuned: {error}"
        before, after, size = self.distance(model), self.distance(found), len(write(found))
        text = f"mean squared difference of logits {before:.4g} before {steps} steps, {after:.4g} after"
        if size > budget:
            return model, f"not taken, {size} bytes: {text}"
        return (found, text) if after < before else (model, f"not taken: {text}")

    def distance(self, model: IntegerModel) -> float:
        """Mean squared difference of real logits on held-out windows."""
        both = []
        for one, logits in ((self.model, self.wanted), (model, Image(write(model)).run_batch(self.held).astype(np.int64))):
            both.append((logits - one.ops[-1].out.zero_point) * (one.info.logit_scale if one.info is not None else 1.0))
        return float(np.mean((both[0] - both[1]) ** 2))

    # -- how good it is -----------------------------------------------------------------------------------------------

    def score(self, model: IntegerModel) -> float:
        """Larger is better: minus the mean squared difference of logits, or without windows minus the error of the kernels."""
        if self.fit is None:
            errors = self.errors(model)
            sizes = {name: self.model.ops[self.at[name]].weights.values.size for name in errors}
            return -float(np.sqrt(sum(sizes[n] * e * e for n, e in errors.items()) / sum(sizes.values())))
        found = Image(write(model)).run_batch(self.held).astype(np.int64)
        return -float(np.mean((found - self.wanted) ** 2))

    def errors(self, model: IntegerModel) -> dict[str, float]:
        """Relative error of every pointwise kernel, its multipliers in it."""
        found = {}
        for name, i in self.at.items():
            old, new = self.model.ops[i], model.ops[i]
            wanted = old.weights.values * _effective(old)[:, None]
            made = kernel_of(model, new) * _effective(new)[:, None]
            found[name] = float(np.linalg.norm(made - wanted) / max(np.linalg.norm(wanted), 1e-30))
        return found

    def agreement(self, image: Image) -> float | None:
        if self.fit is None:
            return None
        return float(np.mean(image.run_batch(self.held).argmax(1) == self.wanted.argmax(1)))


