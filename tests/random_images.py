"""Hypothesis strategies for whole integer models, valid by docs/SPEC.md: any operators, heads, widths and register use.

Structure is drawn element by element, so that a failing example shrinks; values come from a drawn seed.
"""

import hypothesis.strategies as st
import numpy as np

from pyhtpw.image.integer import AddScalars, Info, IntegerModel, Layer, Op, Requant, Stored, Tensor, Tiled, Window

ACC_LIMIT = 1 << 30


def values(rng: np.random.Generator, shape, bits: int = 8) -> np.ndarray:
    """Signed integers of a width; now and then only its extremes."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if rng.random() < 0.25:
        return rng.choice([low, high], shape)
    return rng.integers(low, high + 1, shape)


@st.composite
def layers(draw, rows: int, cols: int, with_bias: bool) -> Layer:
    """A generator layer or head within the bound of SPEC section 7."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = draw(st.sampled_from((4, 6, 8)))
    shift = draw(st.sampled_from((-31, -9, -8, -7, -6, -5, 0, 2)))
    room = (ACC_LIMIT >> max(shift, 0)) - 1 - cols * 128 * 128
    bias = rng.integers(-min(room, 20000), min(room, 20000) + 1, rows) if with_bias and draw(st.booleans()) else np.zeros(rows, int)
    return Layer(values(rng, (rows, cols), bits), bias.astype(np.int64), draw(st.sampled_from((0, 1, 16384, 23170, 32767))), shift, bits)


@st.composite
def requants(draw, channels: int, products: int) -> Requant:
    """Metadata of a linear operator: per tensor or per channel, any bias width that the bound allows."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = 1 if draw(st.booleans()) else channels
    base = draw(st.sampled_from((-31, -14, -12, -10, -8, -4, 0)))
    spread = draw(st.sampled_from((0, 1, 3, 20)))
    shifts = np.clip(base + rng.integers(0, spread + 1, count), -31, 1)
    room = (ACC_LIMIT >> max(int(shifts.max()), 0)) - 1 - products * 255 * 128
    limit = min(room, draw(st.sampled_from((0, 1, 100, 30000, ACC_LIMIT))))
    bias = rng.integers(-limit, limit + 1, channels)
    multipliers = rng.choice([0, 1, 16384, 32767, *rng.integers(0, 32768, 4)], count)
    return Requant(multipliers.astype(np.int64), shifts.astype(np.int64), bias.astype(np.int64))


def _out_size(size: int, kernel: int, stride: int, pad: int, extra: int) -> int:
    return max(1, (size + pad + extra - kernel) // stride + 1)


@st.composite
def models(draw, max_ops: int = 6) -> IntegerModel:
    """A network over a small input; ends in a fully connected layer."""
    dim = st.sampled_from((1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17))
    zero = st.sampled_from((-128, -127, -1, 0, 5, 127))
    height = draw(st.sampled_from((1, 1, 3, 4)))
    tensors = [Tensor(height, draw(dim), draw(dim), draw(zero))]

    generator, heads, code_bits, dz = (), [], 4, 1
    if draw(st.booleans()):
        dz, cols = draw(st.integers(1, 6)), None
        made, cols = [], dz
        for _ in range(draw(st.integers(1, 3))):
            rows = draw(st.sampled_from((1, 3, 4, 8, 16)))
            made.append(draw(layers(rows, cols, True)))
            cols = rows
        generator, code_bits = tuple(made), draw(st.sampled_from((4, 6, 8)))
        heads = [draw(layers(draw(st.sampled_from((1, 5, 8, 32))), cols, False)) for _ in range(draw(st.integers(1, 2)))]

    def weights(shape):
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        if heads and draw(st.booleans()):
            head = draw(st.integers(0, len(heads) - 1))
            tiles = -(-int(np.prod(shape)) // len(heads[head].weights))
            return Tiled(values(rng, (tiles, dz), code_bits), shape, head)
        return Stored(values(rng, shape).astype(np.int8))

    ops = []

    def emit(kind, inputs, out, **more):
        low = draw(st.sampled_from((-128, -128, -5, 0)))
        high = draw(st.sampled_from((127, 127, 0, 60)))
        ops.append(Op(f"{kind}{len(ops)}", kind, inputs, out, low, high, **more))
        tensors.append(out)

    for _ in range(draw(st.integers(0, max_ops))):
        at = draw(st.sampled_from([i for i in (len(tensors) - 1, len(tensors) - 2, 0) if i >= 0]))
        x = tensors[at]
        twins = [i for i, t in enumerate(tensors) if (t.h, t.w, t.c) == (x.h, x.w, x.c) and len(tensors) - i <= 4]
        kind = draw(st.sampled_from(("conv", "depthwise", "conv1x1", "add", "avgpool", "maxpool")))
        if kind == "add":
            scalars = AddScalars(
                draw(st.sampled_from((16, 20, 22))),
                tuple(draw(st.sampled_from((0, 16384, 20000, 32767))) for _ in range(3)),
                tuple(draw(st.sampled_from((-31, -3, -1, 0))) for _ in range(2)) + (draw(st.sampled_from((-31, -19, -16, 0))),),
            )
            emit("add", (at, draw(st.sampled_from(twins or [at]))), Tensor(x.h, x.w, x.c, draw(zero)), add=scalars)
        elif kind == "conv1x1":
            c = draw(dim)
            emit(kind, (at,), Tensor(x.h, x.w, c, draw(zero)), weights=weights((c, x.c)), requant=draw(requants(c, x.c)))
        elif kind in ("avgpool", "maxpool"):
            kernel = (draw(st.integers(1, x.h)), draw(st.integers(1, x.w)))
            stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
            pad = (draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1)))
            out = [
                min(_out_size(n, k, s, p, k - 1), (n - 1 + p) // s + 1)
                for n, k, s, p in zip((x.h, x.w), kernel, stride, pad, strict=True)
            ]
            emit(kind, (at,), Tensor(*out, x.c, x.zero_point), window=Window(kernel, stride, pad))
        else:
            kernel = (draw(st.integers(1, 3)) if x.h > 1 else 1, draw(st.integers(1, 9)))
            stride = (draw(st.integers(1, 2)), draw(st.integers(1, 4)))
            dilation = (1, draw(st.integers(1, 2)))
            pad = (draw(st.integers(0, 2)), draw(st.integers(0, 9)))
            out = [_out_size(n, k, s, p, k) for n, k, s, p in zip((x.h, x.w), kernel, stride, pad, strict=True)]
            groups = 1
            if kind == "conv":
                groups = draw(st.sampled_from([g for g in (1, 2, 3) if x.c % g == 0]))
                c = groups * draw(st.sampled_from((1, 2, 3, 5, 8)))
                shape, products = (c, *kernel, x.c // groups), kernel[0] * kernel[1] * x.c // groups
            else:
                c = x.c * draw(st.sampled_from((1, 1, 2)))
                shape, products = (*kernel, c), kernel[0] * kernel[1]
            emit(
                kind, (at,), Tensor(*out, c, draw(zero)), weights=weights(shape), requant=draw(requants(c, products)),
                window=Window(kernel, stride, pad, dilation, groups),
            )
    x, classes = tensors[-1], draw(st.integers(1, 4))
    emit(
        "fc", (len(tensors) - 1,), Tensor(1, 1, classes, draw(zero)),
        weights=weights((classes, x.size)), requant=draw(requants(classes, x.size)),
    )
    info = Info(0.05, 0.1, 0.5, 360.0, "random", ("a",) * classes) if draw(st.booleans()) else None
    return IntegerModel(tensors[0], tuple(ops), info, generator, tuple(heads), code_bits)


def inputs(model: IntegerModel, n: int, seed: int) -> np.ndarray:
    """int8 windows (n, H, W, C), extremes among them."""
    t = model.input
    x = values(np.random.default_rng(seed), (n, t.h, t.w, t.c)).astype(np.int8)
    x[0] = -128
    return x


def example(seed: int = 0) -> IntegerModel:
    """One fixed small network with every section and every operator, whose kernels and logits use their whole range."""
    rng = np.random.default_rng(seed)
    generator = (Layer(values(rng, (8, 3), 6), rng.integers(-300, 300, 8), 20000, -3, 6),)
    heads = (Layer(rng.integers(-127, 128, (16, 8)), np.zeros(16, np.int64), 25000, -7, 8),)
    ops: list[Op] = []

    def emit(kind, inputs, out, weights=None, products=1, **more):
        requant = None
        if weights is not None:
            shift = -int(np.ceil(np.log2(products**0.5))) - (7 if kind != "fc" else 3)  # pooling has narrowed the range
            shifts = shift + rng.integers(0, 2, out.c)
            requant = Requant(rng.integers(16384, 32768, out.c), shifts, rng.integers(-2000, 2000, out.c))
        ops.append(Op(f"{kind}{len(ops)}", kind, inputs, out, weights=weights, requant=requant, **more))

    def stored(*shape):
        return Stored(rng.integers(-127, 128, shape).astype(np.int8))

    def tiled(*shape):
        return Tiled(rng.integers(-7, 8, (-(-int(np.prod(shape)) // 16), 3)), shape)

    emit("conv", (0,), Tensor(1, 12, 8, -128), stored(8, 1, 5, 2), 10, window=Window((1, 5), (1, 2), (0, 2)))
    emit("depthwise", (1,), Tensor(1, 12, 8, -128), stored(1, 3, 8), 3, window=Window((1, 3), (1, 1), (0, 1)))
    emit("conv1x1", (2,), Tensor(1, 12, 8, 4), tiled(8, 8), 8)
    add = AddScalars(20, (16384, 20000, 30000), (0, 0, -18))
    emit("add", (1, 3), Tensor(1, 12, 8, -128), add=add, act_min=-128)
    emit("maxpool", (4,), Tensor(1, 6, 8, -128), window=Window((1, 2), (1, 2)))
    emit("conv1x1", (5,), Tensor(1, 6, 11, -128), tiled(11, 8), 8)
    emit("avgpool", (6,), Tensor(1, 1, 11, -128), window=Window((1, 6)))
    emit("fc", (7,), Tensor(1, 1, 3, 0), stored(3, 11), 11)
    info = Info(0.05, 0.1, 0.5, 360.0, "example", ("a", "b", "c"))
    return IntegerModel(Tensor(1, 24, 2, -3), tuple(ops), info, generator, heads, 4)
