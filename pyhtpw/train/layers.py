"""Layers with explicit forward and backward passes, over windows laid out (N, T, C).

Every layer follows one protocol, `Layer`.  Its parameters are looked up by the full names of
`pyhtpw.nets.graph`; for a node whose kernel is generated the caller puts the expanded kernel under
``{node}.weight``, so that a layer never knows where its kernel came from (`pyhtpw.train.heads` expands them).

Arrays that a layer's forward pass returns belong to its workspace: they hold until the layer's next call.  Gradients
are lent (`Workspace.lend`): they hold as long as somebody does.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numba import get_num_threads

from pyhtpw.nets.graph import Node, pool_windows, same_padding
from pyhtpw.train import elementwise as E
from pyhtpw.train import kernels as K
from pyhtpw.train.workspace import Workspace

EPSILON = 1e-5
"""Added to every variance under a square root; the quantiser folds with the same value."""

MOMENTUM = 0.1
"""Weight of the newest batch in the running statistics."""

ROWS = 512
"""About how many output steps a matrix product of a convolution takes at once."""

Arrays = Mapping[str, np.ndarray]


class Layer:
    """One step of a network.

    ``forward`` keeps what ``backward`` needs.  ``backward`` adds nothing up: it writes the gradients of the layer's
    parameters into ``grads`` and returns one gradient per input, None where ``need`` is False (then the only input is
    the network's own, which nobody trains).
    """

    def __init__(self, node: Node, work: Workspace) -> None:
        self.node = node
        self.work = work

    def _get(self, purpose: str, *shape: int) -> np.ndarray:
        return self.work.get(f"{self.node.name}/{type(self).__name__}/{purpose}", *shape)

    def _lend(self, *shape: int) -> np.ndarray:
        return self.work.lend(*shape)

    def _add_bias(self, y: np.ndarray, params: Arrays) -> np.ndarray:
        if self.node.bias:
            y += params[f"{self.node.name}.bias"]
        return y

    def _bias_gradient(self, dy: np.ndarray, grads: Arrays) -> None:
        if self.node.bias:  # in float64: one sum over all windows and steps, which numpy does not take pairwise
            grads[f"{self.node.name}.bias"][:] = dy.sum(axis=(0, 1), dtype=np.float64)

    def forward(self, inputs: Sequence[np.ndarray], params: Arrays, training: bool) -> np.ndarray:
        """The layer's output for ``inputs``; ``training`` chooses between batch and running statistics."""
        raise NotImplementedError

    def backward(
        self, dy: np.ndarray, params: Arrays, grads: Arrays, need: bool
    ) -> tuple[np.ndarray, ...] | tuple[None]:
        """Gradients of the inputs of the last ``forward`` from ``dy``, the gradient of its output."""
        raise NotImplementedError


def branch_mask(node: Node, channels: int, dtype: type = np.float64) -> np.ndarray:
    """1 for the taps that the branches of a conv have, 0 for the others, (Cout, K, Cin)."""
    mask = np.zeros((node.cout, node.kernel, channels), dtype)
    for channel, taps in enumerate(node.channel_taps()):
        start = (node.kernel - taps) // 2
        mask[channel, start : start + taps] = 1
    return mask


class Convolution(Layer):
    """Convolution over time, with a bias if the node has one, SAME padding with 0; a pointwise kernel is the case of one tap."""

    def forward(self, inputs, params, training):
        """(N,T,I) -> (N,O,C)."""
        (x,) = inputs
        windows, steps, channels = x.shape
        node = self.node
        outs, self._left = same_padding(steps, node.kernel, node.stride)
        y = self._get("y", windows, outs, node.cout)
        self._x = x
        weight = params[f"{node.name}.weight"].reshape(node.cout, -1)
        K.conv_forward(x, weight, y, self._columns(windows, outs, channels), node.stride, self._left, node.kernel)
        return self._add_bias(y, params)

    def backward(self, dy, params, grads, need):
        """dy (N,O,C) -> dx (N,T,I); the kernel's gradient is summed over the runs in their order."""
        node, x = self.node, self._x
        windows, outs, _ = dy.shape
        weight = params[f"{node.name}.weight"].reshape(node.cout, -1)
        cols = self._columns(windows, outs, x.shape[2])
        dw_runs = self._lend(K.chunk_count(windows), *weight.shape)
        more = self._lend(len(cols), *weight.shape)
        dx = self._lend(*(x.shape if need else (1, 1, 1)))
        K.conv_backward(x, weight, dy, dx, cols, dw_runs, more, node.stride, self._left, node.kernel, need)
        np.sum(dw_runs, axis=0, out=grads[f"{node.name}.weight"].reshape(node.cout, -1))
        if node.branches:
            grads[f"{node.name}.weight"] *= branch_mask(node, weight.shape[1] // node.kernel, weight.dtype)
        self._bias_gradient(dy, grads)
        return (dx if need else None,)

    def _columns(self, windows: int, outs: int, channels: int) -> np.ndarray:
        """Scratch of each thread for the gathered taps of some windows."""
        node = self.node
        if node.kernel == 1 and node.stride == 1:
            return self._lend(1, 1, 1, 1)
        runs = K.chunk_count(windows)
        some = min(-(-windows // runs), max(1, ROWS // outs))
        return self._lend(get_num_threads(), some, outs, node.kernel * channels)


class Depthwise(Layer):
    """Each channel convolved with its own taps, with a bias if the node has one, SAME padding with 0."""

    def forward(self, inputs, params, training):
        """(N,T,C) -> (N,O,C)."""
        (x,) = inputs
        windows, steps, channels = x.shape
        outs, self._left = same_padding(steps, self.node.kernel, self.node.stride)
        y = self._get("y", windows, outs, channels)
        self._x = x
        K.depthwise_forward(x, params[f"{self.node.name}.weight"], y, self.node.stride, self._left)
        return self._add_bias(y, params)

    def backward(self, dy, params, grads, need):
        """dy (N,O,C) -> dx (N,T,C), which costs little beside dw and is always taken."""
        weight = params[f"{self.node.name}.weight"]
        dw_runs = self._lend(K.chunk_count(dy.shape[0]), *weight.shape)
        dx = self._lend(*self._x.shape)
        K.depthwise_backward(self._x, weight, dy, dx, dw_runs, self.node.stride, self._left)
        np.sum(dw_runs, axis=0, out=grads[f"{self.node.name}.weight"])
        self._bias_gradient(dy, grads)
        return (dx if need else None,)


class BatchNorm(Layer):
    """Batch normalisation per channel over windows and steps, with the node's ReLU behind it if it has one."""

    def forward(self, inputs, params, training):
        """(N,T,C) -> (N,T,C); in training the running statistics in ``params`` move towards the batch's."""
        (y,) = inputs
        windows, steps, channels = y.shape
        name = self.node.name
        running_mean, running_var = params[f"{name}.mean"], params[f"{name}.var"]
        if training:
            runs = K.chunk_count(windows)
            moments_runs = self._lend(runs, 2, channels)
            K.norm_moments(y, moments_runs)
            cuts = np.arange(runs + 1) * windows // runs
            mean, variance = K.merge_moments(moments_runs, np.diff(cuts) * steps)
            rows = windows * steps
            running_mean += MOMENTUM * (mean - running_mean)
            # The running variance is the unbiased one, as everywhere: it stands for unseen data.
            running_var += MOMENTUM * (variance * (rows / max(rows - 1, 1)) - running_var)
        else:
            mean, variance = running_mean.astype(np.float64), running_var.astype(np.float64)
        inverse = 1.0 / np.sqrt(variance + EPSILON)
        scale = params[f"{name}.gamma"] * inverse
        shift = params[f"{name}.beta"] - mean * scale
        out = self._get("out", *y.shape)
        K.norm_forward(y, scale.astype(y.dtype), shift.astype(y.dtype), self.node.relu, out)
        self._y, self._out, self._mean, self._inverse = y, out, mean, inverse
        return out

    def backward(self, dy, params, grads, need):
        """dy (N,T,C) -> dx (N,T,C), for a forward pass in training."""
        y, name = self._y, self.node.name
        windows, steps, channels = y.shape
        rows = windows * steps
        dz = self._out  # has served: whoever read it has been through its backward pass
        sums_runs = self._lend(K.chunk_count(windows), 2, channels)
        mean = self._mean.astype(y.dtype)
        K.norm_backward_sums(dy, dz, y, mean, self.node.relu, sums_runs)
        total, product = sums_runs.sum(axis=0, dtype=np.float64)
        # The kernel summed with the rounded mean; what that shifts the product by is known exactly.
        product -= total * (self._mean - mean)
        grads[f"{name}.gamma"][:] = product * self._inverse
        grads[f"{name}.beta"][:] = total
        a = params[f"{name}.gamma"] * self._inverse
        b = -a * self._inverse**2 * product / rows
        e = -a * total / rows - b * self._mean
        K.norm_backward_combine(dz, y, a.astype(y.dtype), b.astype(y.dtype), e.astype(y.dtype))
        return (dz,)


class GroupNorm(Layer):
    """Normalisation of each window over all of its steps and channels, then gain and shift per channel, with the
    node's ReLU behind it if it has one (Wu and He, arXiv:1803.08494, with one group)."""

    def forward(self, inputs, params, training):
        """(N,T,C) -> (N,T,C), the same in training and in use."""
        (y,) = inputs
        name = self.node.name
        out = self._get("out", *y.shape)
        self._moments = np.empty((len(y), 2))
        K.group_forward(y, params[f"{name}.gamma"], params[f"{name}.beta"], self.node.relu, EPSILON, self._moments, out)
        self._y, self._out = y, out
        return out

    def backward(self, dy, params, grads, need):
        """dy (N,T,C) -> dx (N,T,C)."""
        name = self.node.name
        dx = self._lend(*dy.shape)
        sums_runs = np.empty((K.chunk_count(len(dy)), 2, dy.shape[2]))
        K.group_backward(dy, self._out, self._y, params[f"{name}.gamma"], self.node.relu, self._moments, dx, sums_runs)
        grads[f"{name}.gamma"][:], grads[f"{name}.beta"][:] = sums_runs.sum(axis=0)
        return (dx,)


class FrozenNorm(Layer):
    """The normalisation of `BatchNorm` in use, in training too: a gain and a shift per channel, with the node's ReLU
    behind it if it has one."""

    def forward(self, inputs, params, training):
        """(N,T,C) -> (N,T,C); the statistics in ``params`` stay as they are."""
        (y,) = inputs
        name = self.node.name
        self._mean = params[f"{name}.mean"].astype(np.float64)
        self._inverse = 1.0 / np.sqrt(params[f"{name}.var"].astype(np.float64) + EPSILON)
        scale = params[f"{name}.gamma"] * self._inverse
        shift = params[f"{name}.beta"] - self._mean * scale
        self._scale = scale.astype(y.dtype)
        self._y, self._out = y, self._get("out", *y.shape)
        K.norm_forward(y, self._scale, shift.astype(y.dtype), self.node.relu, self._out)
        return self._out

    def backward(self, dy, params, grads, need):
        """dy (N,T,C) -> dx (N,T,C)."""
        name, channels = self.node.name, dy.shape[2]
        dz = self._out
        sums_runs = self._lend(K.chunk_count(len(dy)), 2, channels)
        mean = params[f"{name}.mean"].astype(dy.dtype)
        K.norm_backward_sums(dy, dz, self._y, mean, self.node.relu, sums_runs)
        total, product = sums_runs.sum(axis=0, dtype=np.float64)
        grads[f"{name}.gamma"][:] = product * self._inverse
        grads[f"{name}.beta"][:] = total
        dz *= self._scale
        return (dz,)


class Relu(Layer):
    """Negative values replaced by 0, for nodes whose ReLU has nothing to ride on."""

    def forward(self, inputs, params, training):
        """(N,T,C) -> the same."""
        (x,) = inputs
        self._out = self._get("out", *x.shape)
        E.relu_forward(x, self._out)
        return self._out

    def backward(self, dy, params, grads, need):
        """The gradient at 0 is 0."""
        dx = self._lend(*dy.shape)
        E.relu_backward(self._out, dy, dx)
        return (dx,)


class Add(Layer):
    """Sum of two equal shapes, with the node's ReLU behind it if it has one."""

    def forward(self, inputs, params, training):
        """(N,T,C), (N,T,C) -> (N,T,C)."""
        first, second = inputs
        self._out = self._get("out", *first.shape)
        E.add_forward(first, second, self.node.relu, self._out)
        return self._out

    def backward(self, dy, params, grads, need):
        """Both inputs receive the same array; nobody writes into a gradient that came from elsewhere."""
        if self.node.relu:
            dx = self._lend(*dy.shape)
            E.relu_backward(self._out, dy, dx)
            dy = dx
        return (dy, dy)


class AveragePool(Layer):
    """Mean over time."""

    def forward(self, inputs, params, training):
        """(N,T,C) -> (N,1,C)."""
        (x,) = inputs
        self._shape = x.shape
        out = self._get("out", x.shape[0], 1, x.shape[2])
        E.mean_forward(x, out.reshape(x.shape[0], x.shape[2]))
        return out

    def backward(self, dy, params, grads, need):
        """dy (N,1,C) -> dx (N,T,C)."""
        dx = self._lend(*self._shape)
        E.mean_backward(dy[:, 0], dx)
        return (dx,)


class WindowAverage(Layer):
    """Mean of windows of some steps, a stride apart; whole windows only."""

    def forward(self, inputs, params, training):
        """(N,T,C) -> (N,O,C)."""
        (x,) = inputs
        self._shape = x.shape
        out = self._get("out", x.shape[0], pool_windows(x.shape[1], self.node.kernel, self.node.stride), x.shape[2])
        E.average_forward(x, out, self.node.kernel, self.node.stride)
        return out

    def backward(self, dy, params, grads, need):
        """dy (N,O,C) -> dx (N,T,C)."""
        dx = self._lend(*self._shape)
        E.average_backward(dy, dx, self.node.kernel, self.node.stride)
        return (dx,)


class MaxPool(Layer):
    """Largest value of windows of some steps, a stride apart; whole windows only."""

    def forward(self, inputs, params, training):
        """(N,T,C) -> (N,O,C)."""
        (self._x,) = inputs
        windows, steps, channels = self._x.shape
        self._out = self._get("out", windows, pool_windows(steps, self.node.kernel, self.node.stride), channels)
        E.max_forward(self._x, self._out, self.node.kernel, self.node.stride)
        return self._out

    def backward(self, dy, params, grads, need):
        """dy (N,O,C) -> dx (N,T,C); of equal values the first has the gradient."""
        dx = self._lend(*self._x.shape)
        E.max_backward(self._x, self._out, dy, dx, self.node.kernel, self.node.stride)
        return (dx,)


class Silu(Layer):
    """x * sigmoid(x)."""

    def forward(self, inputs, params, training):
        """(N,T,C) -> (N,T,C)."""
        (self._x,) = inputs
        out = self._get("out", *self._x.shape)
        E.silu_forward(self._x, out)
        return out

    def backward(self, dy, params, grads, need):
        """dy (N,T,C) -> dx (N,T,C)."""
        dx = self._lend(*dy.shape)
        E.silu_backward(self._x, dy, dx)
        return (dx,)


class SqueezeExcite(Layer):
    """Channels scaled by what two small layers make of their means over time (Hu et al., arXiv:1709.01507)."""

    def forward(self, inputs, params, training):
        """(N,T,C) -> (N,T,C)."""
        (x,) = inputs
        name = self.node.name
        mean = x.mean(axis=1)
        inner = mean @ params[f"{name}.reduce.weight"].T
        if self.node.bias:
            inner += params[f"{name}.reduce.bias"]
        inner = np.maximum(inner, 0)
        outer = inner @ params[f"{name}.expand.weight"].T
        if self.node.bias:
            outer += params[f"{name}.expand.bias"]
        gate = 0.5 * (1 + np.tanh(0.5 * outer))  # the sigmoid, without an exponential that could overflow
        self._x, self._mean, self._inner, self._gate = x, mean, inner, gate
        return np.multiply(x, gate[:, None], out=self._get("out", *x.shape))

    def backward(self, dy, params, grads, need):
        """dy (N,T,C) -> dx (N,T,C), directly and through the means."""
        name, gate = self.node.name, self._gate
        douter = np.einsum("ntc,ntc->nc", dy, self._x) * gate * (1 - gate)
        np.matmul(douter.T, self._inner, out=grads[f"{name}.expand.weight"])
        dinner = (douter @ params[f"{name}.expand.weight"]) * (self._inner > 0)
        np.matmul(dinner.T, self._mean, out=grads[f"{name}.reduce.weight"])
        if self.node.bias:
            np.sum(douter, axis=0, out=grads[f"{name}.expand.bias"])
            np.sum(dinner, axis=0, out=grads[f"{name}.reduce.bias"])
        dmean = dinner @ params[f"{name}.reduce.weight"]
        dx = np.multiply(dy, gate[:, None], out=self._lend(*dy.shape))
        dx += (dmean / dy.shape[1])[:, None]
        return (dx,)


class Attention(Layer):
    """Mean over time in which a step weighs the sigmoid of what two small layers make of its channels.

    The weights add up to 1: they are the softmax over time of the logarithm of that sigmoid, and are computed so.
    """

    def forward(self, inputs, params, training):
        """(N,T,C) -> (N,1,C)."""
        (x,) = inputs
        name, (windows, steps, channels) = self.node.name, x.shape
        inner = x.reshape(-1, channels) @ params[f"{name}.reduce.weight"].T + params[f"{name}.reduce.bias"]
        inner = np.maximum(inner, 0)
        score = (inner @ params[f"{name}.score.weight"][0] + params[f"{name}.score.bias"]).reshape(windows, steps)
        logarithm = -np.logaddexp(0, -score)
        share = np.exp(logarithm - logarithm.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        self._x, self._inner, self._share = x, inner, share
        self._rest = 0.5 * (1 - np.tanh(0.5 * score))  # 1 - sigmoid: the derivative of the logarithm
        return np.matmul(share[:, None], x, out=self._get("out", windows, 1, channels))

    def backward(self, dy, params, grads, need):
        """dy (N,1,C) -> dx (N,T,C), directly and through the weights."""
        name, x, share = self.node.name, self._x, self._share
        dshare = np.matmul(x, dy[:, 0, :, None])[:, :, 0]
        dscore = share * (dshare - np.sum(share * dshare, axis=1, keepdims=True)) * self._rest
        dscore = dscore.reshape(-1, 1)
        np.matmul(dscore.T, self._inner, out=grads[f"{name}.score.weight"])
        grads[f"{name}.score.bias"][0] = dscore.sum(dtype=np.float64)
        dinner = dscore * params[f"{name}.score.weight"] * (self._inner > 0)
        np.matmul(dinner.T, x.reshape(-1, x.shape[2]), out=grads[f"{name}.reduce.weight"])
        grads[f"{name}.reduce.bias"][:] = dinner.sum(axis=0, dtype=np.float64)
        dx = self._get("dx", *x.shape)
        np.matmul(dinner, params[f"{name}.reduce.weight"], out=dx.reshape(-1, x.shape[2]))
        dx += share[:, :, None] * dy
        return (dx,)


class Dropout(Layer):
    """Values put to 0 at random in training, the others scaled up by 1/(1-rate); nothing otherwise.

    The choice is a pure function of ``key`` (see `Model.reseed`) and the node's name, so that a resumed run makes it
    again.
    """

    key: tuple[int, ...] = (0,)

    def forward(self, inputs, params, training):
        """Any shape -> the same."""
        (x,) = inputs
        self._scale = None
        if not training or not self.node.rate:
            return x
        rng = np.random.default_rng([*self.key, zlib.crc32(self.node.name.encode())])
        self._scale = self._get("scale", *x.shape)
        np.divide(rng.random(x.shape, np.float32) >= self.node.rate, 1 - self.node.rate, out=self._scale)
        return np.multiply(x, self._scale, out=self._get("out", *x.shape))

    def backward(self, dy, params, grads, need):
        """The values that were dropped have no gradient."""
        return (dy if self._scale is None else np.multiply(dy, self._scale, out=self._lend(*dy.shape)),)


class Linear(Layer):
    """The classifier: a matrix and a bias."""

    def forward(self, inputs, params, training):
        """(N,1,I) -> (N,1,C)."""
        (x,) = inputs
        self._x = x
        out = self._get("out", x.shape[0], 1, self.node.cout)
        np.matmul(x[:, 0], params[f"{self.node.name}.weight"].T, out=out[:, 0])
        out += params[f"{self.node.name}.bias"]
        return out

    def backward(self, dy, params, grads, need):
        """dy (N,1,C) -> dx (N,1,I)."""
        name = self.node.name
        np.matmul(dy[:, 0].T, self._x[:, 0], out=grads[f"{name}.weight"])
        np.sum(dy[:, 0], axis=0, out=grads[f"{name}.bias"])
        dx = self._lend(*self._x.shape)
        np.matmul(dy[:, 0], params[f"{name}.weight"], out=dx[:, 0])
        return (dx,)


_LAYERS: dict[str, type[Layer]] = {
    "conv": Convolution,
    "pointwise": Convolution,
    "depthwise": Depthwise,
    "add": Add,
    "avgpool": AveragePool,
    "maxpool": MaxPool,
    "silu": Silu,
    "squeeze_excite": SqueezeExcite,
    "attention": Attention,
    "dropout": Dropout,
    "fc": Linear,
}

_NORMS: dict[str, type[Layer]] = {"batch": BatchNorm, "group": GroupNorm, "frozen": FrozenNorm}


def chain(node: Node, work: Workspace) -> tuple[Layer, ...]:
    """The layers that make up ``node``: its op, then normalisation with ReLU, or ReLU alone."""
    kind = WindowAverage if node.op == "avgpool" and not node.pools_all else _LAYERS[node.op]
    layers = [kind(node, work)]
    if node.norm:
        layers.append(_NORMS[node.norm](node, work))
    elif node.relu and kind is not Add:
        layers.append(Relu(node, work))
    return tuple(layers)
