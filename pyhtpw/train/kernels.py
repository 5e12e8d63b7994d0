"""Numba kernels of the trainer: convolution, depthwise convolution, normalisations; `elementwise` has the others.

Letters used throughout: N windows, T input steps, O output steps, C channels, I input channels, K taps,
R = N*O rows.  Arrays are C-contiguous and of one floating type, float32 in training and float64 in gradient checks.
Nothing here allocates large arrays: the caller owns outputs and scratch.

**Results do not depend on the number of threads.**  Every kernel cuts the N windows into at most ``CHUNKS`` runs
(`chunk_count`), the cut depends on N only, each run is worked by one thread, and sums over the batch are first taken
per run and then over the runs in their order.  Matrix products inside a run go to BLAS, which must be limited to one
thread (`single_blas`) for the same reason.

The parallel functions are few and only loop over runs, the work is in plain helpers: Numba's parallel pass is the
costly part of a cold start.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import scipy.linalg  # noqa: F401  loads the BLAS that Numba calls, so that `single_blas` finds it
from numba import get_thread_id, njit, prange
from threadpoolctl import ThreadpoolController

CHUNKS = 8
"""Most runs a batch is cut into; also the most threads that can share one kernel."""

ROW = 256
"""Values that the loops over channels take at once, where there are fewer channels: long enough for vectors, and some
rows of it stay in the first-level cache."""

# OpenMP threads that wait spin by default.  On a core that something else wants too, spinning holds up the very thread
# that is waited for: a step then takes ten times as long or more.  Read when the first kernel starts its threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The exception is GNU's library, where a wait may spin for a bounded time, about 0.1 ms here, and then sleep: a step
# has some sixty kernels of 0.1 to 0.5 ms with little between them, and to wake a thread for each takes 0.05 ms.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# The one place for compiler flags.  "contract" only lets a*b+c become one FMA instruction: it orders no sum anew, so
# the same machine code gives the same bytes.  All automatic parallelism is off: only the loops marked prange count.
_FLAGS = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
_ONLY_PRANGE = {
    "comprehension": False, "prange": True, "numpy": False, "reduction": False,
    "inplace_binop": False, "setitem": False, "stencil": False, "fusion": False,
}  # fmt: skip
_serial = njit(**_FLAGS)
_parallel = njit(parallel=_ONLY_PRANGE, **_FLAGS)

_blas: ThreadpoolController | None = None


@contextlib.contextmanager
def single_blas() -> Iterator[None]:
    """Limit BLAS to one thread inside the block, so that no sum depends on the number of cores."""
    global _blas
    if _blas is None:  # looking at the loaded libraries takes milliseconds, setting the limit microseconds
        _blas = ThreadpoolController()
    with _blas.limit(limits=1, user_api="blas"):
        yield


def chunk_count(windows: int) -> int:
    """Number of runs that a batch of ``windows`` is cut into; run c holds windows c*N//runs up to (c+1)*N//runs."""
    return min(int(windows), CHUNKS)


# -- values per channel, repeated to long rows: a loop over a few channels is mostly its own beginning and end ------------


@_serial
def _reps(channels):
    """How often ``channels`` values are repeated to make a row of about `ROW`."""
    return max(1, ROW // channels)


@_serial
def _tile(values, reps):
    """values (C,) one after another ``reps`` times."""
    out = np.empty(values.size * reps, values.dtype)
    for r in range(reps):
        for c in range(values.size):
            out[r * values.size + c] = values[c]
    return out


@_serial
def _fold(sums, out):
    """out (C,) = the sums (reps*C,) of each channel, added in their order."""
    for c in range(out.size):
        total = sums[c]
        for at in range(c + out.size, sums.size, out.size):
            total += sums[at]
        out[c] = total


# -- convolution (also pointwise) as a matrix product --------------------------------------------------------------


@_serial
def _gather(x, cols, stride, left, taps):
    """Copy the taps of each output step of windows x (n,T,I) side by side into cols (n,O,K*I); outside is 0.

    The taps of one output step are neighbours in x, so that each is one long copy.
    """
    windows, steps, channels = x.shape
    width = taps * channels
    for n in range(windows):
        flat = x[n].reshape(steps * channels)
        for o in range(cols.shape[1]):
            first = o * stride - left
            lo = max(0, -first) * channels
            hi = min(taps, steps - first) * channels
            row = cols[n, o]
            source = flat[first * channels + lo : first * channels + hi]
            for i in range(lo):
                row[i] = 0.0
            inner = row[lo:hi]
            for i in range(source.size):
                inner[i] = source[i]
            for i in range(hi, width):
                row[i] = 0.0


@_serial
def _scatter_add(dcols, dx, stride, left, taps):
    """Transpose of `_gather`: dx (n,T,I) = sum of the entries of dcols (n,O,K*I) that were copied from it."""
    windows, steps, channels = dx.shape
    dx[:] = 0.0
    for n in range(windows):
        flat = dx[n].reshape(steps * channels)
        for o in range(dcols.shape[1]):
            first = o * stride - left
            lo = max(0, -first) * channels
            hi = min(taps, steps - first) * channels
            inner = dcols[n, o, lo:hi]
            goal = flat[first * channels + lo : first * channels + hi]
            for i in range(goal.size):
                goal[i] += inner[i]


@_parallel
def conv_forward(x, w, y, cols, stride, left, taps):
    """y (N,O,C) = taps of x (N,T,I) times w (C,K*I).

    cols (threads,n,O,K*I) is scratch for n windows at a time of each thread.  With one tap and stride 1 the taps are x
    itself and cols is not used.
    """
    windows, outs, channels = y.shape
    runs = min(windows, CHUNKS)
    width = w.shape[1]
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        if taps == 1 and stride == 1:
            rows = (hi - lo) * outs
            np.dot(x[lo:hi].reshape(rows, width), w.T, y[lo:hi].reshape(rows, channels))
        else:
            own = get_thread_id()
            for start in range(lo, hi, cols.shape[1]):
                stop = min(hi, start + cols.shape[1])
                rows = (stop - start) * outs
                some = cols[own, : stop - start]
                _gather(x[start:stop], some, stride, left, taps)
                np.dot(some.reshape(rows, width), w.T, y[start:stop].reshape(rows, channels))


@_parallel
def conv_backward(x, w, dy, dx, cols, dw_runs, more, stride, left, taps, need_dx):
    """Gradients of `conv_forward` from dy (N,O,C).

    dw_runs (runs,C,K*I) receives one partial sum per run.  With ``need_dx`` dx (N,T,I) is written.  cols
    (threads,n,O,K*I) and more (threads,C,K*I) are scratch: the taps are gathered once more rather than kept since the
    forward pass, which would take K times the memory of x.
    """
    windows, outs, channels = dy.shape
    runs = min(windows, CHUNKS)
    width = w.shape[1]
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        if taps == 1 and stride == 1:
            rows = (hi - lo) * outs
            d = dy[lo:hi].reshape(rows, channels)
            np.dot(d.T, x[lo:hi].reshape(rows, width), dw_runs[c])
            if need_dx:
                np.dot(d, w, dx[lo:hi].reshape(rows, width))
        else:
            own = get_thread_id()
            for start in range(lo, hi, cols.shape[1]):
                stop = min(hi, start + cols.shape[1])
                rows = (stop - start) * outs
                d = dy[start:stop].reshape(rows, channels)
                some = cols[own, : stop - start]
                flat = some.reshape(rows, width)
                _gather(x[start:stop], some, stride, left, taps)
                if start == lo:
                    np.dot(d.T, flat, dw_runs[c])
                else:
                    np.dot(d.T, flat, more[own])
                    _add_run(dw_runs[c].reshape(channels * width), more[own].reshape(channels * width))
                if need_dx:
                    np.dot(d, w, flat)
                    _scatter_add(some, dx[start:stop], stride, left, taps)


@_serial
def _add_run(total, more):
    for i in range(total.size):
        total[i] += more[i]


# -- depthwise convolution -----------------------------------------------------------------------------------------


@_serial
def _to_planes(x, planes, stride, left):
    """Step t of x (T,C) to planes (stride,P,C): step (t+left)//stride of plane (t+left)%stride; 0 where none comes.

    What a tap reads for all output steps lies side by side in one plane then.
    """
    steps, channels = x.shape
    for p in range(stride):
        for u in range(planes.shape[1]):
            t = u * stride + p - left
            row = planes[p, u]
            if 0 <= t < steps:
                source = x[t]
                for c in range(channels):
                    row[c] = source[c]
            else:
                for c in range(channels):
                    row[c] = 0.0


@_serial
def _multiply_add(out, x, step, w):
    """out (m,) += sum over k of x[k*step : k*step + m] * w[k, :m], three taps at a time."""
    m = out.size
    taps = w.shape[0]
    for k in range(0, taps - 2, 3):
        x0, x1, x2 = x[k * step :], x[(k + 1) * step :], x[(k + 2) * step :]
        w0, w1, w2 = w[k], w[k + 1], w[k + 2]
        for j in range(m):
            out[j] += x0[j] * w0[j] + x1[j] * w1[j] + x2[j] * w2[j]
    for k in range(taps - taps % 3, taps):
        x0, w0 = x[k * step :], w[k]
        for j in range(m):
            out[j] += x0[j] * w0[j]


@_serial
def _correlate(dw, x, step, dy):
    """dw (K,W) += x[k*step : k*step + m] * dy (m,), m <= W.

    Two taps at a time: with three there are more pairs of arrays that might overlap than the compiler cares to check.
    """
    m = dy.size
    taps = dw.shape[0]
    for k in range(0, taps - 1, 2):
        x0, x1 = x[k * step :], x[(k + 1) * step :]
        d0, d1 = dw[k], dw[k + 1]
        for j in range(m):
            d0[j] += x0[j] * dy[j]
            d1[j] += x1[j] * dy[j]
    for k in range(taps - taps % 2, taps):
        x0, d0 = x[k * step :], dw[k]
        for j in range(m):
            d0[j] += x0[j] * dy[j]


@_serial
def _tap_tiles(w, stride, backwards):
    """The taps of w (K,C) that read plane p, in ascending order (descending if ``backwards``), as tiles
    (stride,most,W), and how many they are."""
    taps, channels = w.shape
    reps = _reps(channels)
    tiles = np.zeros((stride, (taps + stride - 1) // stride, reps * channels), w.dtype)
    counts = np.zeros(stride, np.int64)
    for k in range(taps):
        counts[k % stride] += 1
    for k in range(taps):
        p = k % stride
        at = counts[p] - 1 - k // stride if backwards else k // stride
        for r in range(reps):
            for c in range(channels):
                tiles[p, at, r * channels + c] = w[k, c]
    return tiles, counts


@_serial
def _depthwise_run(x, w, y, stride, left):
    """y (n,O,C) = depthwise convolution of x (n,T,C) with w (K,C)."""
    windows, _, channels = x.shape
    outs = y.shape[1]
    planes = np.empty((stride, outs + (w.shape[0] - 1) // stride, channels), x.dtype)
    tiles, counts = _tap_tiles(w, stride, False)
    width = tiles.shape[2]
    for n in range(windows):
        _to_planes(x[n], planes, stride, left)
        flat = y[n].reshape(outs * channels)
        for start in range(0, flat.size, width):
            out = flat[start : start + width]
            for j in range(out.size):
                out[j] = 0.0
            for p in range(stride):
                plane = planes[p].reshape(planes.shape[1] * channels)
                _multiply_add(out, plane[start:], channels, tiles[p, : counts[p]])


@_serial
def _depthwise_backward_run(x, w, dy, dx, dw, stride, left):
    """dx (n,T,C) and dw (K,C) of `_depthwise_run` from dy (n,O,C)."""
    windows, steps, channels = x.shape
    taps = w.shape[0]
    outs = dy.shape[1]
    before = (taps - 1) // stride
    places = outs + before
    planes = np.empty((stride, places, channels), x.dtype)
    padded = np.zeros((before + places) * channels, x.dtype)  # dy with as many zeros before and behind
    tiles, counts = _tap_tiles(w, stride, True)
    sums = np.zeros_like(tiles)
    width = tiles.shape[2]
    for n in range(windows):
        _to_planes(x[n], planes, stride, left)
        d = dy[n].reshape(outs * channels)
        inner = padded[before * channels : before * channels + d.size]
        for i in range(d.size):
            inner[i] = d[i]
        for start in range(0, d.size, width):
            some = d[start : start + width]
            for p in range(stride):
                plane = planes[p].reshape(places * channels)
                _correlate(sums[p, : counts[p]], plane[start:], channels, some)
        for p in range(stride):  # planes become those of dx
            plane = planes[p].reshape(places * channels)
            shift = (before + 1 - counts[p]) * channels
            for start in range(0, plane.size, width):
                out = plane[start : start + width]
                for j in range(out.size):
                    out[j] = 0.0
                _multiply_add(out, padded[start + shift :], channels, tiles[p, : counts[p]])
        for t in range(steps):
            goal = dx[n, t]
            u = (t + left) // stride
            if u < places:
                source = planes[(t + left) % stride, u]
                for c in range(channels):
                    goal[c] = source[c]
            else:
                for c in range(channels):
                    goal[c] = 0.0
    for k in range(taps):
        for c in range(channels):
            total = sums[k % stride, k // stride, c]
            for at in range(channels + c, width, channels):
                total += sums[k % stride, k // stride, at]
            dw[k, c] = total


@_parallel
def depthwise_forward(x, w, y, stride, left):
    """y (N,O,C) = each channel of x (N,T,C) convolved with its own K taps of w (K,C)."""
    windows = x.shape[0]
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        _depthwise_run(x[lo:hi], w, y[lo:hi], stride, left)


@_parallel
def depthwise_backward(x, w, dy, dx, dw_runs, stride, left):
    """dx (N,T,C) and one partial dw (K,C) per run in dw_runs (runs,K,C), from dy (N,O,C)."""
    windows = x.shape[0]
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        _depthwise_backward_run(x[lo:hi], w, dy[lo:hi], dx[lo:hi], dw_runs[c], stride, left)


# -- batch normalisation, with the ReLU that may follow it ---------------------------------------------------------


@_serial
def _moments_run(y, moments):
    """moments (2,C) = mean and sum of squared deviations of the rows of y (r,C)."""
    rows, channels = y.shape
    flat = y.reshape(rows * channels)
    reps = _reps(channels)
    width = reps * channels
    sums = np.zeros(width, y.dtype)
    for start in range(0, flat.size, width):
        some = flat[start : start + width]
        for j in range(some.size):
            sums[j] += some[j]
    _fold(sums, moments[0])
    for c in range(channels):
        moments[0, c] /= rows
    mean = _tile(moments[0], reps)
    sums[:] = 0.0
    # A second pass instead of E[y^2] - E[y]^2, which cancels in float32; the run is still in the cache.
    for start in range(0, flat.size, width):
        some = flat[start : start + width]
        for j in range(some.size):
            d = some[j] - mean[j]
            sums[j] += d * d
    _fold(sums, moments[1])


@_serial
def _affine_run(y, scale, shift, relu, out):
    """out (r,C) = y*scale + shift, negative values replaced by 0 with ``relu``."""
    rows, channels = y.shape
    source, goal = y.reshape(rows * channels), out.reshape(rows * channels)
    reps = _reps(channels)
    scales, shifts = _tile(scale, reps), _tile(shift, reps)
    zero = y.dtype.type(0)
    width = reps * channels
    for start in range(0, source.size, width):
        some, to = source[start : start + width], goal[start : start + width]
        if relu:
            for j in range(some.size):
                v = some[j] * scales[j] + shifts[j]
                to[j] = v if v > zero else zero
        else:
            for j in range(some.size):
                to[j] = some[j] * scales[j] + shifts[j]


@_serial
def _norm_sums_run(dout, out, y, mean, relu, sums):
    """out (r,C) becomes dz = dout behind the ReLU; sums (2,C) = over the rows, dz and dz*(y - mean).

    One array under one name: where two names might be one place, the compiler would not take several values at once.
    """
    rows, channels = y.shape
    size = rows * channels
    reps = _reps(channels)
    width = reps * channels
    douts, dzs, ys = dout.reshape(size), out.reshape(size), y.reshape(size)
    means = _tile(mean, reps)
    first, second = np.zeros(width, y.dtype), np.zeros(width, y.dtype)
    zero = y.dtype.type(0)
    for start in range(0, size, width):
        some, to, of = douts[start : start + width], dzs[start : start + width], ys[start : start + width]
        if relu:
            for j in range(some.size):
                d = some[j]
                to[j] = d if to[j] > zero else zero
        else:
            for j in range(some.size):
                to[j] = some[j]
        for j in range(some.size):
            first[j] += to[j]
            second[j] += to[j] * (of[j] - means[j])
    _fold(first, sums[0])
    _fold(second, sums[1])


@_serial
def _norm_combine_run(dz, y, a, b, e):
    """dz (r,C) becomes a*dz + b*y + e, the gradient before the normalisation."""
    rows, channels = y.shape
    size = rows * channels
    reps = _reps(channels)
    width = reps * channels
    dzs, ys = dz.reshape(size), y.reshape(size)
    scales, slopes, shifts = _tile(a, reps), _tile(b, reps), _tile(e, reps)
    for start in range(0, size, width):
        some, of = dzs[start : start + width], ys[start : start + width]
        for j in range(some.size):
            some[j] = scales[j] * some[j] + slopes[j] * of[j] + shifts[j]


@_parallel
def norm_moments(y, moments_runs):
    """Per run, mean and sum of squared deviations of y (N,O,C) over its rows, into moments_runs (runs,2,C)."""
    windows, outs, channels = y.shape
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        _moments_run(y[lo:hi].reshape((hi - lo) * outs, channels), moments_runs[c])


@_parallel
def norm_forward(y, scale, shift, relu, out):
    """out (N,O,C) = y*scale + shift per channel, then ReLU if ``relu``."""
    windows, outs, channels = y.shape
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        rows = (hi - lo) * outs
        _affine_run(y[lo:hi].reshape(rows, channels), scale, shift, relu, out[lo:hi].reshape(rows, channels))


@_parallel
def norm_backward_sums(dout, out, y, mean, relu, sums_runs):
    """First half of the backward pass: out (N,O,C) becomes dz and, per run, the two sums of `_norm_sums_run`."""
    windows, outs, channels = y.shape
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        shape = ((hi - lo) * outs, channels)
        _norm_sums_run(
            dout[lo:hi].reshape(shape), out[lo:hi].reshape(shape), y[lo:hi].reshape(shape), mean, relu, sums_runs[c]
        )  # fmt: skip


@_parallel
def norm_backward_combine(dz, y, a, b, e):
    """Second half: dz (N,O,C) becomes a*dz + b*y + e with per-channel a, b, e."""
    windows, outs, channels = y.shape
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        rows = (hi - lo) * outs
        _norm_combine_run(dz[lo:hi].reshape(rows, channels), y[lo:hi].reshape(rows, channels), a, b, e)


def merge_moments(moments_runs: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance (C,) over all rows from the moments (runs,2,C) of runs with ``rows`` (runs,) rows.

    Chan, Golub and LeVeque's update for groups of unequal size, taken in double precision.
    """
    share = rows.astype(np.float64)[:, None] / rows.sum()
    means = moments_runs[:, 0].astype(np.float64)
    mean = (share * means).sum(axis=0)
    variance = moments_runs[:, 1].sum(axis=0, dtype=np.float64) / rows.sum()
    variance += (share * (means - mean) ** 2).sum(axis=0)
    return mean, variance


# -- normalisation of each window by itself, with the ReLU that may follow it --------------------------------------


@_serial
def _group_run(y, gamma, beta, relu, epsilon, moments, out):
    """out (n,T,C) of y (n,T,C); moments (n,2) = mean and 1/deviation of each window."""
    windows, steps, channels = y.shape
    sums = np.empty(channels)  # one per channel, since a single sum cannot be taken many values at a time
    scale = np.empty(channels, y.dtype)
    shift = np.empty(channels, y.dtype)
    for n in range(windows):
        sums[:] = 0.0
        for t in range(steps):
            for c in range(channels):
                sums[c] += y[n, t, c]
        mean = sums.sum() / (steps * channels)
        sums[:] = 0.0
        for t in range(steps):
            for c in range(channels):
                d = y[n, t, c] - mean
                sums[c] += d * d
        inverse = 1.0 / np.sqrt(sums.sum() / (steps * channels) + epsilon)
        moments[n, 0] = mean
        moments[n, 1] = inverse
        for c in range(channels):
            scale[c] = gamma[c] * inverse
            shift[c] = beta[c] - mean * gamma[c] * inverse
        _affine_run(y[n], scale, shift, relu, out[n])


@_serial
def _group_backward_run(dout, out, y, gamma, relu, moments, dx, sums):
    """dx (n,T,C) of `_group_run`; sums (2,C) = the gradients of gamma and beta."""
    windows, steps, channels = y.shape
    own = np.empty((2, channels))
    a = np.empty(channels, y.dtype)
    b = np.empty(channels, y.dtype)
    e = np.empty(channels, y.dtype)
    sums[:] = 0.0
    for n in range(windows):
        mean, inverse = moments[n]
        own[:] = 0.0
        for t in range(steps):
            for c in range(channels):
                d = dout[n, t, c] if not relu or out[n, t, c] > 0.0 else y.dtype.type(0)
                dx[n, t, c] = d
                own[0, c] += d * (y[n, t, c] - mean)
                own[1, c] += d
        product = 0.0
        total = 0.0
        for c in range(channels):
            own[0, c] *= inverse
            sums[0, c] += own[0, c]
            sums[1, c] += own[1, c]
            product += gamma[c] * own[0, c]
            total += gamma[c] * own[1, c]
        slope = -inverse * inverse * product / (steps * channels)
        for c in range(channels):
            a[c] = gamma[c] * inverse
            b[c] = slope
            e[c] = -inverse * total / (steps * channels) - slope * mean
        _norm_combine_run(dx[n], y[n], a, b, e)


@_parallel
def group_forward(y, gamma, beta, relu, epsilon, moments, out):
    """out (N,T,C) = each window of y normalised over steps and channels, times gamma plus beta (C,), then ReLU.

    moments (N,2) float64 receives mean and 1/deviation for the backward pass.
    """
    windows = y.shape[0]
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        _group_run(y[lo:hi], gamma, beta, relu, epsilon, moments[lo:hi], out[lo:hi])


@_parallel
def group_backward(dout, out, y, gamma, relu, moments, dx, sums_runs):
    """dx (N,T,C) of `group_forward`, and per run the gradients of gamma and beta in sums_runs (runs,2,C) float64."""
    windows = y.shape[0]
    runs = min(windows, CHUNKS)
    for c in prange(runs):
        lo = c * windows // runs
        hi = (c + 1) * windows // runs
        _group_backward_run(
            dout[lo:hi], out[lo:hi], y[lo:hi], gamma, relu, moments[lo:hi], dx[lo:hi], sums_runs[c]
        )  # fmt: skip
