"""The weights of operators: stored ones as they are, others from their codes.

How a head makes weights is told in ``heads``; here they are put into a kernel.

Source: sections 1 and 5 of the specification.
"""

from __future__ import annotations

from math import prod

import numpy as np

from .heads import NARROW_MAX, WEIGHT_MAX
from .image import Model, Operator


def kernels(model: Model) -> dict[int, np.ndarray]:
    """Make the weights of every cached operator.

    Parameters
    ----------
    model : Model

    Returns
    -------
    dict of int to ndarray of int8
        Operator index to weights in the shape of section 1 of the specification. Operators whose
        weights are run as they are stored (stored8, narrow stored4) are not in it. The weights of
        a narrow kernel are in [-8, 7], one to an element.
    """
    return {
        index: weights(model, index)
        for index, operator in enumerate(model.operators)
        if operator.linear is not None and operator.linear.cached
    }


def weights(model: Model, op_index: int) -> np.ndarray:
    """Return the weights of one operator, stored or generated.

    Parameters
    ----------
    model : Model
    op_index : int
        Index of a conv, depthwise, conv1x1 or fc in ``model.operators``.

    Returns
    -------
    ndarray of int8
        Shape: conv (Cout, Kh, Kw, Cin/groups), depthwise (Kh, Kw, Cout), conv1x1 and fc
        (Cout, Cin). Made weights are in [-127, 127], in [-7, 7] if narrow; stored ones, and
        those of a codebook's stored table, may also be the least value of their width.

    Raises
    ------
    ValueError
        The operator has no weights.
    IndexError
        There is no such operator.
    """
    operator = model.operators[op_index]
    linear = operator.linear
    if linear is None:
        raise ValueError(f"operator {op_index} ({operator.kind}) has no weights")
    if linear.weights is not None:
        return linear.weights
    tiles = linear.head.make(linear.codes, NARROW_MAX if linear.narrow else WEIGHT_MAX)
    made = tiles.reshape(-1)[: prod(linear.weight_shape)].astype(np.int8)
    return from_generation_order(operator, made)


def from_generation_order(operator: Operator, made: np.ndarray) -> np.ndarray:
    """Put weights, (n,) in the order in which heads make them, into the shape of section 1.

    Depthwise kernels are made filter by filter, (Cout, Kh, Kw); all others row by row.
    """
    if operator.kind == "depthwise":
        height, width, cout = operator.linear.weight_shape
        return made.reshape(cout, height, width).transpose(1, 2, 0)
    return made.reshape(operator.linear.weight_shape)
