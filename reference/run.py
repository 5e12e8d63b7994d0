"""Run a model on windows: the slot machine of the specification, one numpy call per operator.

Source: sections 4.2 and 6 of the specification.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import synthesis
from .image import Model, Operator
from .kernels import (
    add_s8,
    avgpool_s8,
    clamp_s8,
    conv1x1_s8,
    conv_s8,
    depthwise_s8,
    fully_connected_s8,
    maxpool_s8,
    mul_s8,
    softmax_s8,
    table_s8,
)
from .kernels.requantise import requantise_to_s8


def run(model: Model, x: np.ndarray) -> np.ndarray:
    """Compute the logits of windows.

    Parameters
    ----------
    model : Model
    x : ndarray of int8, shape (N, H, W, C)
        Quantised windows, (H, W, C) as ``model.input_shape``.

    Returns
    -------
    ndarray of int8, shape (N, classes)

    Raises
    ------
    ValueError
        Wrong dtype or shape of ``x``.
    """
    for _, result in trace(model, x):
        logits = result  # an image has at least one operator
    return logits.reshape(x.shape[0], model.classes)


def trace(model: Model, x: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield what every operator writes, in order.

    Parameters
    ----------
    model, x
        As ``run``.

    Yields
    ------
    (int, ndarray of int8, shape (N, H, W, C))
        Index of the operator and its output; the last one holds the logits.

    Raises
    ------
    ValueError
        Wrong dtype or shape of ``x``.
    """
    if not isinstance(x, np.ndarray) or x.dtype != np.int8:
        raise ValueError("x must be an int8 array")
    if x.ndim != 4 or x.shape[1:] != model.input_shape:
        raise ValueError(f"x must have shape (N, *{model.input_shape}), not {x.shape}")
    slots = {0: x}
    for index, operator in enumerate(model.operators):
        if operator.linear is not None:
            result = _linear(operator, synthesis.weights(model, index), slots[operator.sources[0]])
        else:
            result = _plain(operator, *(slots[slot] for slot in operator.sources))
        slots[operator.target] = result
        yield index, result


def _linear(operator: Operator, w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Run a conv, depthwise, conv1x1 or fc."""
    linear = operator.linear
    cout = operator.output_shape[2]
    # One pair may serve all channels.
    multiplier = np.broadcast_to(linear.multiplier, cout)
    shift = np.broadcast_to(linear.shift, cout)
    keywords = {
        "input_offset": -operator.zero_points[0],
        "output_offset": operator.zero_point,
        "act_min": operator.act_min,
        "act_max": operator.act_max,
    }
    if operator.windows is not None:
        keywords["stride"] = operator.windows.stride
        keywords["padding"] = operator.windows.padding
        keywords["dilation"] = operator.windows.dilation
        keywords["output_size"] = operator.windows.output_size
    if operator.kind == "conv":
        return conv_s8(x, w, linear.bias, multiplier, shift, **keywords)
    if operator.kind == "depthwise":
        return depthwise_s8(x, w[None], linear.bias, multiplier, shift, **keywords)
    if operator.kind == "conv1x1":
        return conv1x1_s8(x, w, linear.bias, multiplier, shift, **keywords)
    flat = x.reshape(x.shape[0], w.shape[1])
    logits = fully_connected_s8(flat, w, linear.bias, multiplier, shift, **keywords)
    return logits.reshape(x.shape[0], 1, 1, cout)


def _plain(operator: Operator, x: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
    """Run an operator without weights."""
    clamp = {"act_min": operator.act_min, "act_max": operator.act_max}
    if operator.kind == "add":
        scalars = operator.scalars
        return add_s8(
            x,
            second,
            input1_offset=-operator.zero_points[0],
            input1_mult=scalars.multipliers[0],
            input1_shift=scalars.shifts[0],
            input2_offset=-operator.zero_points[1],
            input2_mult=scalars.multipliers[1],
            input2_shift=scalars.shifts[1],
            left_shift=scalars.left_shift,
            out_offset=operator.zero_point,
            out_mult=scalars.out_multiplier,
            out_shift=scalars.out_shift,
            **clamp,
        )
    if operator.kind == "mul":
        return mul_s8(
            x,
            np.broadcast_to(second, x.shape),
            input1_offset=-operator.zero_points[0],
            input2_offset=-operator.zero_points[1],
            out_offset=operator.zero_point,
            out_mult=operator.scalars.multiplier,
            out_shift=operator.scalars.shift,
            **clamp,
        )
    if operator.kind == "attend":
        return _attend(operator, x, second)
    if operator.kind == "table":
        return clamp_s8(table_s8(x, operator.table), **clamp)
    pool = avgpool_s8 if operator.kind == "avgpool" else maxpool_s8
    windows = operator.windows
    return pool(
        x,
        kernel=windows.kernel,
        stride=windows.stride,
        padding=windows.padding,
        output_size=windows.output_size,
        **clamp,
    )


def _attend(operator: Operator, x: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Sum positions, weighted by the softmax of their scores."""
    scalars, (windows, height, width, channels) = operator.scalars, x.shape
    p = softmax_s8(
        scores.reshape(windows, height * width),
        mult=scalars.softmax_multiplier,
        shift=scalars.softmax_shift,
        diff_min=-scalars.reach,
    )
    values = x.reshape(windows, height * width, channels).astype(np.int64) - operator.zero_points[0]
    total = ((p.astype(np.int64) + 128)[:, :, None] * values).sum(axis=1)
    y = requantise_to_s8(
        total, scalars.multiplier, scalars.shift, operator.zero_point, operator.act_min, operator.act_max
    )
    return y.reshape(windows, 1, 1, channels)
