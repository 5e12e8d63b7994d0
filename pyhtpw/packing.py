"""From a trained float network to an image with other heads: `pyhtpw pack RUN --head ...`.

Training windows calibrate, validation windows choose; nothing here sees the test split.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyhtpw.data import Dataset
from pyhtpw.errors import ConfigError
from pyhtpw.image import write
from pyhtpw.nets import Graph
from pyhtpw.pipeline import Quantised, calibration_windows, quantise_stage, tune_stage
from pyhtpw.quant import quantise
from pyhtpw.quant.fit import fit_network
from pyhtpw.quant.search import Trial, auto_heads

AUTO = "auto"


@dataclass(frozen=True)
class Packed:
    """A packed network: what was quantised, its heads by kind or layer, relative error of each kernel (empty where nothing was
    fitted), and what a search tried."""

    quantised: Quantised
    heads: Mapping[str, str]
    errors: Mapping[str, float]
    tried: tuple[Trial, ...] = ()


def parse_heads(texts: Sequence[str]) -> dict[str, str]:
    """Head options to what `Graph.with_heads` takes: "tiled:tile=32" is for the pointwise kernels (pw), "KEY=SPEC" for a kind or layer.

    Raises ConfigError for a key that is given twice, and for "auto" beside anything else.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, equals, spec = text.partition("=")
        if not equals or ":" in key:  # the first "=" belongs to the specification
            key, spec = "pw", text
        if key in found:
            raise ConfigError(f"--head {text}: heads of {key} are given twice")
        found[key.strip()] = spec.strip()
    if AUTO in found.values() and len(found) > 1:
        raise ConfigError("--head auto chooses all heads: leave the other --head options out")
    return found


def pack_network(
    graph: Graph, params: Mapping[str, np.ndarray], data: Dataset, heads: Mapping[str, str], *, seed: int, median: int = 1,
    aware: bool = False,
) -> Packed:  # fmt: skip
    """Fits the given heads to the network's kernels (those that it has keep theirs), quantises, and tunes t*. `aware` as in
    `pyhtpw.pipeline.quantise_stage`; kernels that are fitted here are none that it was trained on.

    Raises ConfigError for heads that the network cannot have, QuantiseError for values out of range.
    """
    errors: Mapping[str, float] = {}
    if heads:
        windows = calibration_windows(data, seed)
        graph, params, report = fit_network(graph, params, heads, calibration=windows, seed=seed)
        errors = report.errors
    quantised = quantise_stage(graph, dict(params), data, seed=seed, median=median, aware=aware and not heads)
    return Packed(quantised, {n.name: n.head.text() for n in graph.nodes if n.name in graph.kernel_shapes()}, errors)


def pack_auto(
    graph: Graph,
    params: Mapping[str, np.ndarray],
    data: Dataset,
    budget: int,
    *,
    seed: int,
    median: int = 1,
    evaluations: int = 60,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Packed:
    """Searches the mix of heads, stored kernels included, with the best validation macro-F1 within `budget` bytes of image.

    Raises ConfigError naming the smallest reachable size if the budget cannot be met.
    """
    windows = calibration_windows(data, seed)

    def made(network: Graph, values: Mapping[str, np.ndarray]):
        return quantise(network, dict(values), windows, classes=data.classes, sample_rate=data.fs)

    choice = auto_heads(
        graph,
        params,
        budget,
        lambda model: tune_stage(model, data, median).macro_f1,
        size=lambda model: len(write(model)),
        quantise=made,
        calibration=windows,
        evaluations=evaluations,
        progress=progress,
        seed=seed,
    )
    return Packed(tune_stage(choice.model, data, median), choice.heads, {}, choice.tried)
