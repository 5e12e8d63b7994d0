"""INT8 networks as other tools' converters leave them, with random weights: written with the records of `pyhtpw.export.schema`.

Scales are arbitrary float32 numbers, one for each channel; networks end as classifiers do, in MEAN or a pool, FULLY_CONNECTED, SOFTMAX.
"""

import math

import numpy as np

from pyhtpw.export.schema import Network, Operator, Tensor


class Builder:
    """Grows a network operator by operator; every method returns the number of the tensor that it makes."""

    def __init__(self, seed: int, *shape: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self.input = self.tensor((1, *shape))

    def tensor(self, shape, scale=None, zero=None) -> int:
        scale = self.rng.uniform(0.01, 0.05) if scale is None else scale
        zero = int(self.rng.integers(-128, 10)) if zero is None else zero
        name = f"t{len(self.tensors)}"
        self.tensors.append(Tensor(name, tuple(shape), "int8", None, np.array([scale], np.float32), np.array([zero])))
        return len(self.tensors) - 1

    def constant(self, data, scales=None, axis=0) -> int:
        zeros = None if scales is None else np.zeros(len(scales), np.int64)
        self.tensors.append(Tensor(f"c{len(self.tensors)}", data.shape, str(data.dtype), data, scales, zeros, axis))
        return len(self.tensors) - 1

    def emit(self, code, inputs, output, **options) -> int:
        self.operators.append(Operator(code, tuple(inputs), (output,), options))
        return output

    def linear(self, code, x, shape, axis, products, out_shape, activation="RELU", per_tensor=False, **options) -> int:
        t = self.tensors[x]
        channels = shape[axis]
        w = self.rng.integers(-127, 128, shape).astype(np.int8)
        out = self.tensor(out_shape, zero=-128 if activation.startswith("RELU") else None)
        spread = t.scale * 70 * 70 * math.sqrt(products) / (self.tensors[out].scale * 80)
        scales = (self.rng.uniform(0.7, 1.4, 1 if per_tensor else channels) / spread).astype(np.float32)
        bias = self.rng.integers(-3000, 3000, channels).astype(np.int32)
        inputs = (x, self.constant(w, scales, 0 if per_tensor else axis), self.constant(bias))
        return self.emit(code, inputs, out, FusedActivationFunction=activation, **options)

    def convolution(self, x, channels, kernel=(1, 1), stride=(1, 1), padding="SAME", depthwise=False, pads=(0, 0), **more) -> int:
        _, h, w, c = self.tensors[x].shape
        if padding == "SAME":
            size = [-(-n // s) for n, s in zip((h, w), stride, strict=True)]
        else:
            size = [(n - k) // s + 1 for n, k, s in zip((h, w), kernel, stride, strict=True)]
        shape = (1, *kernel, channels) if depthwise else (channels, *kernel, c)
        if depthwise:
            more["DepthMultiplier"] = channels // c
        products = math.prod(kernel) * (1 if depthwise else c)
        return self.linear(
            "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", x, shape, 3 if depthwise else 0, products, (1, *size, channels),
            Padding=padding, StrideH=stride[0], StrideW=stride[1], DilationHFactor=1, DilationWFactor=1, **more,
        )  # fmt: skip

    def pad(self, x, rows, columns) -> int:
        t = self.tensors[x]
        sides = np.array([[0, 0], rows, columns, [0, 0]], np.int32)
        shape = [n + int(s) for n, s in zip(t.shape, sides.sum(1), strict=True)]
        return self.emit("PAD", (x, self.constant(sides)), self.tensor(shape, t.scale, t.zero))

    def pool(self, x, code="AVERAGE_POOL_2D") -> int:
        t = self.tensors[x]
        _, h, w, c = t.shape
        return self.emit(code, (x,), self.tensor((1, 1, 1, c), t.scale, t.zero), Padding="VALID", StrideH=h, StrideW=w, FilterHeight=h,
                         FilterWidth=w, FusedActivationFunction="NONE")

    def mean(self, x) -> int:
        axes = self.constant(np.array([1, 2], np.int32))
        return self.emit("MEAN", (x, axes), self.tensor((1, self.tensors[x].shape[3]), self.tensors[x].scale * 0.83), KeepDims=False)

    def reshape(self, x, *shape) -> int:
        t = self.tensors[x]
        return self.emit("RESHAPE", (x, self.constant(np.array([-1, *shape], np.int32))), self.tensor((1, *shape), t.scale, t.zero))

    def add(self, a, b) -> int:
        return self.emit("ADD", (a, b), self.tensor(self.tensors[a].shape, 0.06), FusedActivationFunction="NONE")

    def mul(self, a, b) -> int:
        scale = self.tensors[a].scale * self.tensors[b].scale * 100
        return self.emit("MUL", (a, b), self.tensor(self.tensors[a].shape, scale), FusedActivationFunction="NONE")

    def classifier(self, x, classes, fc=True, softmax=True) -> Network:
        size = math.prod(self.tensors[x].shape)
        if fc:
            x = self.linear("FULLY_CONNECTED", x, (classes, size), 0, size, (1, classes), "NONE", per_tensor=True, WeightsFormat=0,
                            KeepNumDims=False)
        else:
            x = self.convolution(self.reshape(x, 1, 1, size), classes, activation="NONE", padding="VALID")
            x = self.reshape(x, classes)
        if softmax:
            x = self.emit("SOFTMAX", (x,), self.tensor((1, classes), 1 / 256, -128), Beta=1.0)
        return Network(self.tensors, self.operators, (self.input,), (x,), "random weights")


def ds_cnn(seed: int = 0, fc: bool = True, softmax: bool = True) -> Network:
    """Keyword-spotting shape: one wide convolution, depthwise and 1x1 pairs, a pool, a classifier."""
    b = Builder(seed, 25, 10, 1)
    x = b.convolution(b.input, 16, (10, 4), (2, 2))
    for _ in range(2):
        x = b.convolution(x, 16, (3, 3), depthwise=True)
        x = b.convolution(x, 16)
    x = b.reshape(b.pool(x), 16)
    return b.classifier(x, 12, fc, softmax)


def mobilenet(seed: int = 0, fc: bool = True) -> Network:
    """Visual-wake-words shape: PAD before strides, ReLU6, an inverted residual with ADD, MUL by channel, MEAN."""
    b = Builder(seed, 16, 16, 3)
    x = b.convolution(b.pad(b.input, (0, 1), (0, 1)), 8, (3, 3), (2, 2), "VALID", activation="RELU6")
    x = b.convolution(b.pad(x, (1, 1), (1, 1)), 8, (3, 3), (1, 1), "VALID", depthwise=True, activation="RELU6")
    x = b.convolution(x, 12, activation="NONE")
    y = b.convolution(x, 24, activation="RELU6")
    y = b.convolution(y, 24, (3, 3), depthwise=True, activation="RELU6")
    x = b.add(x, b.convolution(y, 12, activation="NONE"))
    gate = b.convolution(b.pool(x), 12, activation="NONE")
    x = b.mul(x, gate)
    x = b.convolution(x, 16, (3, 3), (2, 2), activation="RELU")
    return b.classifier(b.mean(x) if fc else b.pool(x), 5, fc)


def one_dimensional(seed: int = 0) -> Network:
    """A signal of 64 samples; Conv1D as converters say it: EXPAND_DIMS, CONV_2D, RESHAPE."""
    b = Builder(seed, 64, 2)
    x = b.reshape(b.input, 1, 64, 2)
    x = b.convolution(x, 8, (1, 7), (1, 2))
    x = b.convolution(x, 16, (1, 5), (1, 2), depthwise=True)
    x = b.reshape(x, 16, 16)
    x = b.convolution(b.reshape(x, 1, 16, 16), 8)
    return b.classifier(b.pool(x, "MAX_POOL_2D"), 3, fc=False, softmax=False)
