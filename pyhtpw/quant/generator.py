"""The float generator, head and codes in integers, and the kernels that this integer generator makes.

The kernels are computed here as well (in int64 numpy, from the definition in docs/SPEC.md section 5), because the layers that
use them need their real scale and their rounding error. `pyhtpw.verify` proves them equal to what the device caches.
"""

from dataclasses import dataclass

import numpy as np

from pyhtpw.errors import QuantiseError
from pyhtpw.image.integer import Layer, Tiled
from pyhtpw.nets.graph import Graph
from pyhtpw.quant.scales import multiplier


@dataclass(frozen=True)
class IntegerGenerator:
    """Integer layers, head and codes; `kernels`: node -> int8 (Cout, Cin); `scale`: real value of one LSB of a kernel."""

    layers: tuple[Layer, ...]
    heads: tuple[Layer, ...]
    sources: dict[str, Tiled]
    kernels: dict[str, np.ndarray]
    scale: float


def _requantise(acc: np.ndarray, m: int, shift: int) -> np.ndarray:
    """`rq` of docs/SPEC.md section 2 on int64 arrays."""
    right = max(-shift, 0)
    high = ((acc << max(shift, 0)) * (m << 16) + (1 << 30)) >> 31
    mask = (1 << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


def run_layer(layer: Layer, x: np.ndarray, low: int) -> np.ndarray:
    """One integer layer on rows of `x` (rows, cols): int64 results clamped to [low, 127]."""
    acc = x @ layer.weights.astype(np.int64).T + layer.biases.astype(np.int64)
    return np.clip(_requantise(acc, layer.multiplier, layer.shift), low, 127)


def _symmetric(values: np.ndarray, bits: int) -> tuple[np.ndarray, float]:
    """Symmetric integers of `bits` bits and their scale."""
    top = (1 << (bits - 1)) - 1
    scale = np.abs(values).max() / top
    if not np.isfinite(scale):
        raise QuantiseError("the generator has weights that are not finite: the float model has diverged")
    scale = scale or 1.0
    return np.clip(np.rint(values / scale), -top, top).astype(np.int64), float(scale)


def quantise_generator(graph: Graph, params: dict[str, np.ndarray], *, weight_bits: int = 8) -> IntegerGenerator:
    """Quantises the shared generator, the tiled head and all codes.

    Codes: one scale for the model, as in training (`code_bits` from the graph), so that integer codes are exactly the
    fake-quantised ones. Embeddings: the largest value over all tiles is 127. Kernels: the largest weight over all layers is 127.
    """
    spec = graph.generator
    names = [node.name for node in graph.nodes if node.head == "tiled"]
    all_codes = np.concatenate([params[f"{n}.codes"].astype(np.float64).ravel() for n in names])
    _, code_scale = _symmetric(all_codes, spec.code_bits)
    top = (1 << (spec.code_bits - 1)) - 1
    codes = {n: np.clip(np.rint(params[f"{n}.codes"] / code_scale), -top, top).astype(np.int64) for n in names}

    x = np.concatenate([codes[n] for n in names])
    real = x * code_scale
    scale, layers = code_scale, []
    for i in range(len(spec.hidden)):
        weight = params[f"generator.{i}.weight"].astype(np.float64)
        bias = params[f"generator.{i}.bias"].astype(np.float64)
        w, w_scale = _symmetric(weight, weight_bits)
        real = np.maximum(real @ weight.T + bias, 0)
        h_scale = (real.max() or 1.0) / 127
        m, shift = multiplier(scale * w_scale / h_scale)
        layers.append(Layer(w, np.rint(bias / (scale * w_scale)).astype(np.int64), m, shift, weight_bits))
        x, scale = run_layer(layers[-1], x, 0), h_scale

    weight = params["head.weight"].astype(np.float64)
    w, w_scale = _symmetric(weight, weight_bits)
    kernel_scale = (np.abs(real @ weight.T).max() or 1.0) / 127
    m, shift = multiplier(scale * w_scale / kernel_scale)
    head = Layer(w, np.zeros(len(w), np.int64), m, shift, weight_bits)
    tiles = run_layer(head, x, -127)

    kernels, sources, at = {}, {}, 0
    shapes = graph.shapes()
    for name in names:
        node = graph.node(name)
        shape = (node.cout, shapes[node.inputs[0]][1])
        count = len(codes[name])
        kernels[name] = tiles[at : at + count].ravel()[: shape[0] * shape[1]].reshape(shape).astype(np.int8)
        sources[name] = Tiled(codes[name], shape)
        at += count
    return IntegerGenerator(tuple(layers), (head,), sources, kernels, kernel_scale)
