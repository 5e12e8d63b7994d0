"""Weights from codes: the generator and its heads, all tiles of an operator at once.

Source: section 5 of the specification.
"""

from __future__ import annotations

import numpy as np

from .image import Generator, Head, Model
from .kernels import requantise

HIDDEN_MAX = 127
WEIGHT_MAX = 127


def kernels(model: Model) -> dict[int, np.ndarray]:
    """Generate the weights of every operator that has codes.

    Parameters
    ----------
    model : Model

    Returns
    -------
    dict of int to ndarray of int8
        Operator index to weights in the shape of section 1 of the specification, in [-127, 127].
        Operators with stored weights are not in it.
    """
    return {
        index: weights(model, index)
        for index, operator in enumerate(model.operators)
        if operator.linear is not None and operator.linear.codes is not None
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
        (Cout, Cin).

    Raises
    ------
    ValueError
        The operator has no weights.
    IndexError
        There is no such operator.
    """
    linear = model.operators[op_index].linear
    if linear is None:
        raise ValueError(f"operator {op_index} ({model.operators[op_index].kind}) has no weights")
    if linear.weights is not None:
        return linear.weights
    tiles = generate(linear.codes, model.generator, model.heads[linear.head])
    count = int(np.prod(linear.weight_shape, dtype=np.int64))
    return tiles.reshape(-1)[:count].reshape(linear.weight_shape)


def generate(codes: np.ndarray, generator: Generator, head: Head) -> np.ndarray:
    """Run codes through the generator and a head.

    Parameters
    ----------
    codes : ndarray of int32, shape (tiles, dz)
        In the signed range of ``generator.code_bits``.
    generator : Generator
    head : Head

    Returns
    -------
    ndarray of int8, shape (tiles, tile)
        In [-127, 127]. The last tile is complete; the caller cuts it off.

    Notes
    -----
    Rounding: ``requantise``, once per hidden value and once per weight.
    """
    y = codes.astype(np.int64)
    for layer in generator.layers:
        sums = y @ layer.weights.T.astype(np.int64) + layer.bias
        scaled = requantise(sums, layer.multiplier << 16, layer.shift)
        y = np.minimum(np.maximum(scaled, 0), HIDDEN_MAX).astype(np.int64)
    scaled = requantise(y @ head.weights.T.astype(np.int64), head.multiplier << 16, head.shift)
    return np.minimum(np.maximum(scaled, -WEIGHT_MAX), WEIGHT_MAX).astype(np.int8)
