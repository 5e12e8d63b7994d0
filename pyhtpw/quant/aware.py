"""Training that sees the kernels which the device will cache: codes, generator, heads and requantisation in integers, and stored
kernels on the grid of their bits, in every forward pass. Gradients pass through all rounding as if it were the identity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pyhtpw.errors import ConfigError
from pyhtpw.nets.graph import Graph
from pyhtpw.quant.heads import IntegerHeads, quantise_heads
from pyhtpw.quant.stored import nearest
from pyhtpw.train.heads import Expander
from pyhtpw.train.model import Model
from pyhtpw.train.workspace import Workspace


class IntegerExpander(Expander):
    """Generated kernels as the integer generator makes them, times their step.

    The float expansion runs too: its hidden values are what the straight-through gradients are taken at.
    ``made`` holds the integers of the last forward pass.
    """

    def __init__(self, graph: Graph, work: Workspace) -> None:
        super().__init__(graph, work)
        self.graph = graph
        self.made: IntegerHeads | None = None

    def forward(self, params: Mapping[str, np.ndarray], quantise: bool = True) -> dict[str, np.ndarray]:
        """Kernel of every generated node; the same arithmetic that `pyhtpw.quant.quantise` packs."""
        super().forward(params, quantise)
        self.made = quantise_heads(self.graph, params)
        return {
            name: (kernel * self.made.scales[name]).astype(self.work.dtype) for name, kernel in self.made.kernels.items()
        }


class AwareModel(Model):
    """A `Model` whose forward pass runs on the kernels of its image: those of every head and width to the byte, and those stored in 4 or
    2 bits on their own grid. (Kernels stored in 8 bits and activations stay float: their rounding is what calibration is for.)"""

    def __init__(
        self,
        graph: Graph,
        params: Mapping[str, np.ndarray] | None = None,
        seed: int = 0,
        dtype: type = np.float32,
    ) -> None:
        super().__init__(graph, params, seed, dtype)
        if graph.plan.heads:
            self._expander = IntegerExpander(graph, self._work)
        self._narrow = [
            node for node in graph.nodes if node.name in graph.kernel_shapes() and not node.head.generated and node.head.bits < 8
        ]
        shared = next((node.name for node in self._narrow if node.head.per_tensor), None)
        if shared is not None:  # its integers hang on gains of the normalisation and on the multiplier, which packing alone knows
            raise ConfigError(f"{shared}: kernels of one scale per tensor ({graph.node(shared).head.text()}) cannot be trained as the "
                              "image will hold them: leave out per_tensor, or do not train aware")

    def expand(self) -> dict[str, np.ndarray]:
        """The parameters with every kernel as the image will hold it."""
        values = super().expand()
        for node in self._narrow:
            key = f"{node.name}.weight"
            axis = 1 if node.op == "depthwise" else 0
            rounded = nearest(self.params[key], node.head.bits, axis, node.head.per_tensor, node.head.rule)
            values = {**values, key: rounded.astype(self.dtype)}
        return values

    def integer_kernels(self) -> dict[str, np.ndarray]:
        """Node -> int8 kernel that the last forward pass ran on."""
        return dict(self._expander.made.kernels) if self._expander is not None else {}
