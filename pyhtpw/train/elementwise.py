"""Numba kernels of the trainer that take value by value or pool: ReLU, sums, means, pools, SiLU, AdamW.

The rules are those of `pyhtpw.train.kernels`: at most ``CHUNKS`` runs, each worked by one thread, whatever their number.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from pyhtpw.train.kernels import CHUNKS, _parallel, _serial

# -- ReLU, sums and means ----------------------------------------------------------------------------------------------


@_serial
def _relu_run(x, out):
    zero = x.dtype.type(0)
    for i in range(x.size):
        out[i] = x[i] if x[i] > zero else zero


@_serial
def _relu_backward_run(out, dy, dx):
    zero = dy.dtype.type(0)
    for i in range(dy.size):
        dx[i] = dy[i] if out[i] > zero else zero


@_serial
def _add_to_run(first, second, relu, out):
    zero = first.dtype.type(0)
    if relu:
        for i in range(out.size):
            v = first[i] + second[i]
            out[i] = v if v > zero else zero
    else:
        for i in range(out.size):
            out[i] = first[i] + second[i]


@_serial
def _mean_run(x, y):
    """y (n,C) = mean over the steps of x (n,T,C)."""
    windows, steps, channels = x.shape
    for n in range(windows):
        goal = y[n]
        for c in range(channels):
            goal[c] = 0.0
        for t in range(steps):
            source = x[n, t]
            for c in range(channels):
                goal[c] += source[c]
        for c in range(channels):
            goal[c] /= steps


@_serial
def _mean_backward_run(dy, dx):
    """dx (n,T,C) of `_mean_run`."""
    windows, steps, channels = dx.shape
    for n in range(windows):
        share = dy[n] / dy.dtype.type(steps)
        for t in range(steps):
            goal = dx[n, t]
            for c in range(channels):
                goal[c] = share[c]


@_parallel
def relu_forward(x, out):
    """out (N,T,C) = x, negative values replaced by 0."""
    windows = x.shape[0]
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        n = (hi - lo) * x.shape[1] * x.shape[2]
        _relu_run(x[lo:hi].reshape(n), out[lo:hi].reshape(n))


@_parallel
def relu_backward(out, dy, dx):
    """dx (N,T,C) = dy where out is above 0, else 0."""
    windows = dy.shape[0]
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        n = (hi - lo) * dy.shape[1] * dy.shape[2]
        _relu_backward_run(out[lo:hi].reshape(n), dy[lo:hi].reshape(n), dx[lo:hi].reshape(n))


@_parallel
def add_forward(first, second, relu, out):
    """out (N,T,C) = first + second, then ReLU if ``relu``."""
    windows = out.shape[0]
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        n = (hi - lo) * out.shape[1] * out.shape[2]
        _add_to_run(first[lo:hi].reshape(n), second[lo:hi].reshape(n), relu, out[lo:hi].reshape(n))


@_parallel
def mean_forward(x, y):
    """y (N,C) = mean over the steps of x (N,T,C)."""
    windows = x.shape[0]
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        _mean_run(x[lo:hi], y[lo:hi])


@_parallel
def mean_backward(dy, dx):
    """dx (N,T,C) of `mean_forward` from dy (N,C)."""
    windows = dx.shape[0]
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        _mean_backward_run(dy[lo:hi], dx[lo:hi])


# -- pools over whole windows of time, and SiLU ----------------------------------------------------------------------


@_serial
def _max_run(x, y, taps, stride):
    """y (n,O,C) = largest of each window of x (n,T,C)."""
    windows, outs, channels = y.shape
    for n in range(windows):
        for o in range(outs):
            for c in range(channels):
                y[n, o, c] = x[n, o * stride, c]
            for k in range(1, taps):
                t = o * stride + k
                for c in range(channels):
                    y[n, o, c] = x[n, t, c] if x[n, t, c] > y[n, o, c] else y[n, o, c]


@_serial
def _max_backward_run(x, y, dy, dx, taps, stride):
    """dx (n,T,C): each dy (n,O,C) goes to the first value of its window that equals the largest."""
    windows, outs, channels = y.shape
    rest = np.empty(channels, x.dtype)  # what has not found its place
    zero = x.dtype.type(0)
    dx[:] = 0.0
    for n in range(windows):
        for o in range(outs):
            for c in range(channels):
                rest[c] = dy[n, o, c]
            for k in range(taps):
                t = o * stride + k
                for c in range(channels):
                    d = rest[c] if x[n, t, c] == y[n, o, c] else zero
                    dx[n, t, c] += d
                    rest[c] -= d


@_parallel
def max_forward(x, y, taps, stride):
    """y (N,O,C) = largest value of each window of ``taps`` steps of x (N,T,C)."""
    windows = x.shape[0]
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        _max_run(x[lo:hi], y[lo:hi], taps, stride)


@_parallel
def max_backward(x, y, dy, dx, taps, stride):
    """dx (N,T,C) of `max_forward`; which value was the largest is seen from x and y, not remembered."""
    windows = x.shape[0]
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        _max_backward_run(x[lo:hi], y[lo:hi], dy[lo:hi], dx[lo:hi], taps, stride)


@_serial
def _average_run(x, y, taps, stride):
    """y (n,O,C) = mean of each window of x (n,T,C)."""
    windows, outs, channels = y.shape
    share = x.dtype.type(1.0 / taps)
    for n in range(windows):
        for o in range(outs):
            for c in range(channels):
                y[n, o, c] = 0.0
            for k in range(taps):
                t = o * stride + k
                for c in range(channels):
                    y[n, o, c] += x[n, t, c] * share


@_serial
def _average_backward_run(dy, dx, taps, stride):
    """dx (n,T,C) of `_average_run`."""
    windows, outs, channels = dy.shape
    share = dx.dtype.type(1.0 / taps)
    dx[:] = 0.0
    for n in range(windows):
        for o in range(outs):
            for k in range(taps):
                t = o * stride + k
                for c in range(channels):
                    dx[n, t, c] += dy[n, o, c] * share


@_parallel
def average_forward(x, y, taps, stride):
    """y (N,O,C) = mean of each window of ``taps`` steps of x (N,T,C)."""
    windows = x.shape[0]
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        _average_run(x[lo:hi], y[lo:hi], taps, stride)


@_parallel
def average_backward(dy, dx, taps, stride):
    """dx (N,T,C) of `average_forward`."""
    windows = dx.shape[0]
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        _average_backward_run(dy[lo:hi], dx[lo:hi], taps, stride)


@_serial
def _silu_run(x, y):
    one = x.dtype.type(1)
    for i in range(x.size):
        y[i] = x[i] / (one + np.exp(-x[i]))


@_serial
def _silu_backward_run(x, dy, dx):
    one = x.dtype.type(1)
    for i in range(x.size):
        s = one / (one + np.exp(-x[i]))
        dx[i] = dy[i] * s * (one + x[i] * (one - s))


@_parallel
def silu_forward(x, y):
    """y (N,T,C) = x * sigmoid(x)."""
    windows = x.shape[0]
    runs = min(windows, CHUNKS)
    size = x.shape[1] * x.shape[2]
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        n = (hi - lo) * size
        _silu_run(x[lo:hi].reshape(n), y[lo:hi].reshape(n))


@_parallel
def silu_backward(x, dy, dx):
    """dx (N,T,C) of `silu_forward`."""
    windows = x.shape[0]
    runs = min(windows, CHUNKS)
    size = x.shape[1] * x.shape[2]
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        n = (hi - lo) * size
        _silu_backward_run(x[lo:hi].reshape(n), dy[lo:hi].reshape(n), dx[lo:hi].reshape(n))


# -- AdamW -----------------------------------------------------------------------------------------------------------


@_serial
def _adamw_run(weights, gradient, first, second, decays, beta1, beta2, shrink, scale, correction, epsilon):
    one = weights.dtype.type(1)
    for i in range(weights.size):
        g = gradient[i]
        m = beta1 * first[i] + (one - beta1) * g
        v = beta2 * second[i] + (one - beta2) * (g * g)
        first[i] = m
        second[i] = v
        w = weights[i] - shrink * weights[i] if decays[i] else weights[i]
        weights[i] = w - scale * m / (np.sqrt(v * correction) + epsilon)


@_parallel
def adamw(weights, gradient, first, second, decays, beta1, beta2, shrink, scale, correction, epsilon):
    """One update of weights (P,) and of both moments (P,), in place.

    Weights with ``decays`` (P,) shrink by ``shrink`` of themselves first; then ``scale`` times the first moment is taken off, over the
    root of ``correction`` times the second one, plus ``epsilon``. The numbers are of the arrays' type.
    """
    size = weights.size
    for c in prange(CHUNKS):
        lo = c * size // CHUNKS
        hi = (c + 1) * size // CHUNKS
        _adamw_run(
            weights[lo:hi], gradient[lo:hi], first[lo:hi], second[lo:hi], decays[lo:hi],
            beta1, beta2, shrink, scale, correction, epsilon,
        )  # fmt: skip
