"""Hypothesis strategies for whole integer models, valid by docs/SPEC.md: any operators, heads, widths and register use.

Structure is drawn element by element, so that a failing example shrinks; values come from a drawn seed.
"""

import hypothesis.strategies as st
import numpy as np

from pyhtpw.image import heads as heads_of
from pyhtpw.image.integer import (
    ATTEND_MAX,
    AddScalars,
    AttendScalars,
    Codebook,
    Dense,
    Factorised,
    Generated,
    Generator,
    Info,
    IntegerModel,
    Matrix,
    MulScalars,
    Op,
    Requant,
    Seeded,
    Stored,
    Tensor,
    Tiled,
    Window,
)

ACC_LIMIT = 1 << 30
OWN_MATRIX = 3000  # weights of the largest kernel that gets a dense or factorised head of its own
SEEDS = st.integers(0, 2**32 - 1)


def values(rng: np.random.Generator, shape, bits: int = 8) -> np.ndarray:
    """Signed integers of a width; now and then only its extremes."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if rng.random() < 0.25:
        return rng.choice([low, high], shape)
    return rng.integers(low, high + 1, shape)


def seed_words(seed: int, count: int) -> np.ndarray:
    """Weights of a seeded matrix, int64 (count,): the bytes of xorshift32's states (SPEC section 5)."""
    words, s = [], seed
    for _ in range(-(-count // 4)):
        s ^= s << 13 & 0xFFFFFFFF
        s ^= s >> 17
        s ^= s << 5 & 0xFFFFFFFF
        words.append(s)
    return np.array(words, "<u4").view(np.int8)[:count].astype(np.int64)


@st.composite
def matrices(draw, rows: int, cols: int) -> Matrix:
    """A layer of a generator or a part of a head within the bound of SPEC section 7."""
    rng = np.random.default_rng(draw(SEEDS))
    bits = draw(st.sampled_from((4, 6, 8)))
    shift = draw(st.sampled_from((-31, -9, -8, -7, -6, -5, 0, 2)))
    room = (ACC_LIMIT >> max(shift, 0)) - 1 - cols * 128 * 128
    limit = min(room, draw(st.sampled_from((0, 20000, ACC_LIMIT))))
    bias = rng.integers(-limit, limit + 1, rows)
    m = draw(st.sampled_from((0, 1, 16384, 23170, 32767)))
    return Matrix(values(rng, (rows, cols), bits).astype(np.int64), bias.astype(np.int64), m << 16, shift, bits)


@st.composite
def generators(draw) -> Generator:
    """A micro-MLP of 0 to 3 layers."""
    dz, made = draw(st.integers(1, 6)), []
    cols = dz
    for _ in range(draw(st.integers(0, 3))):
        rows = draw(st.sampled_from((1, 3, 4, 8, 16)))
        made.append(draw(matrices(rows, cols)))
        cols = rows
    return Generator(dz, tuple(made))


@st.composite
def requants(draw, channels: int, products: int) -> Requant:
    """Metadata of a linear operator: per tensor or per channel, any multiplier form and bias width that the bound allows."""
    rng = np.random.default_rng(draw(SEEDS))
    count = 1 if draw(st.booleans()) else channels
    base = draw(st.sampled_from((-31, -14, -12, -10, -8, -4, 0)))
    spread = draw(st.sampled_from((0, 1, 3, 20, 31)))
    top = 1 if products * 255 * 128 < ACC_LIMIT // 2 else 0
    shifts = np.clip(base + rng.integers(0, spread + 1, count), -31, top)
    room = (ACC_LIMIT >> max(int(shifts.max()), 0)) - 1 - products * 255 * 128
    limit = min(room, draw(st.sampled_from((0, 1, 100, 30000, ACC_LIMIT))))
    bias = rng.integers(-limit, limit + 1, channels)
    form = draw(st.sampled_from((8, 16, 32)))
    if form == 8:
        multipliers = (256 + rng.integers(0, 256, count)) << 22
    elif form == 16:
        multipliers = rng.choice([0, 1, 16384, 32767, *rng.integers(0, 32768, 4)], count) << 16
    else:
        multipliers = rng.choice([0, 1, (1 << 31) - 1, 1 << 30, *rng.integers(0, 1 << 31, 4)], count)
    return Requant(multipliers.astype(np.int64), shifts.astype(np.int64), bias.astype(np.int64))


def _out_size(size: int, kernel: int, stride: int, pad: int, extra: int) -> int:
    return max(1, (size + pad + extra - kernel) // stride + 1)


class _Weights:
    """Draws the weights of one operator after the other, and the heads that they need."""

    def __init__(self, draw) -> None:
        self.draw = draw
        self.heads: list = []
        self.cached = 0
        count = draw(st.sampled_from((0, 1, 1, 2, 3)))
        self.generators = tuple(draw(generators()) for _ in range(count))

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self.draw(SEEDS))

    def _some_generator(self) -> int:
        return self.draw(st.integers(0, len(self.generators) - 1))

    def _of_kind(self, *kinds: type) -> list[int]:
        return [i for i, head in enumerate(self.heads) if isinstance(head, kinds)]

    def _add(self, head) -> int:
        self.heads.append(head)
        return len(self.heads) - 1

    def _dense(self, n: int) -> int:
        g = self._some_generator()
        return self._add(Dense(self.draw(matrices(n, self.generators[g].width)), g))

    def _factorised(self, n: int) -> int:
        """A and B are each its own, or shared with an earlier head that fits."""
        g = self._some_generator()
        own_b = [i for i in self._of_kind(Factorised) if isinstance(self.heads[i].b, Matrix) and self.heads[i].generator == g]
        own_a = [
            i for i in self._of_kind(Factorised) if isinstance(self.heads[i].a, Matrix) and len(self.heads[i].a.weights) == n
        ]
        if own_b and self.draw(st.booleans()):
            b = self.draw(st.sampled_from(own_b))
            rank = len(self.heads[b].b.weights)
        else:
            ranks = [self.heads[i].a.weights.shape[1] for i in own_a] or [1, 2, 4]
            rank = self.draw(st.sampled_from(ranks))
            b = self.draw(matrices(rank, self.generators[g].width))
        own_a = [i for i in own_a if self.heads[i].a.weights.shape[1] == rank]
        shared = own_a and self.draw(st.booleans())
        a = self.draw(st.sampled_from(own_a)) if shared else self.draw(matrices(n, rank))
        return self._add(Factorised(b, a, g))

    def _tiled(self, _: int) -> int:
        g, tile = self._some_generator(), self.draw(st.sampled_from((1, 5, 8, 32)))
        return self._add(Tiled(self.draw(matrices(tile, self.generators[g].width)), g))

    def _seeded(self, _: int) -> int:
        m, shift = self.draw(st.sampled_from((1, 16384, 30000))), self.draw(st.sampled_from((-9, -7, -5, 0)))
        tile, seed = self.draw(st.sampled_from((1, 3, 16, 33))), self.draw(st.integers(1, 2**32 - 1))
        return self._add(Seeded(tile, seed, m << 16, shift, self._some_generator()))

    def _codebook(self, n: int) -> int:
        rng, entries = self._rng(), self.draw(st.sampled_from((1, 2, 3, 16, 17, 256)))
        makers = self._of_kind(Tiled, Seeded)
        if makers and self.draw(st.booleans()):
            of, bits = self.draw(st.sampled_from(makers)), self.draw(st.sampled_from((4, 6, 8)))
            dz = self.generators[self.heads[of].generator].dz
            return self._add(Codebook(values(rng, (entries, dz), bits).astype(np.int64), bits, of))
        tile, bits = self.draw(st.sampled_from((1, 4, 7, 16))), self.draw(st.sampled_from((8, 4, 2)))
        return self._add(Codebook(values(rng, (entries, tile), bits).astype(np.int64), bits))

    def _head(self, n: int) -> int:
        """A head that makes kernels of `n` weights: one that is there, or a new one."""
        fit = [
            i for i, head in enumerate(self.heads)
            if not isinstance(head, Dense | Factorised) or heads_of.made(head, self.heads) == n
        ]  # fmt: skip
        if fit and (len(self.heads) > 60 or self.draw(st.integers(0, 2)) == 0):
            return self.draw(st.sampled_from(fit))
        kinds = [self._codebook]
        if self.generators:
            kinds += [self._tiled, self._seeded] + [self._dense, self._factorised] * (n <= OWN_MATRIX)
        return self.draw(st.sampled_from(kinds))(n)

    def __call__(self, shape: tuple[int, ...]) -> Stored | Generated:
        n, narrow = int(np.prod(shape)), self.draw(st.booleans())
        source = self.draw(st.sampled_from(("8", "4", "2", "head", "head", "head")))
        if source != "head":
            bits = int(source)
            return Stored(values(self._rng(), shape, bits).astype(np.int8), bits, narrow and bits < 8)
        index = self._head(n)
        head = self.heads[index]
        tiles = heads_of.tiles("a random operator", head, self.heads, n)
        if isinstance(head, Codebook):
            ids = self._rng().integers(0, len(head.entries), tiles)
            return Generated(ids, shape, index, 0, narrow and (head.of is not None or head.bits <= 4))
        bits = self.draw(st.sampled_from((4, 6, 8)))
        codes = values(self._rng(), (tiles, self.generators[head.generator].dz), bits)
        return Generated(codes.astype(np.int64), shape, index, bits, narrow)


@st.composite
def models(draw, max_ops: int = 6) -> IntegerModel:
    """A network over a small input; ends in a fully connected layer."""
    dim = st.sampled_from((1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17))
    zero = st.sampled_from((-128, -127, -1, 0, 5, 127))
    height = draw(st.sampled_from((1, 1, 3, 4)))
    tensors = [Tensor(height, draw(dim), draw(dim), draw(zero))]
    weights, ops = _Weights(draw), []

    def emit(kind, inputs, out, **more):
        low = draw(st.sampled_from((-128, -128, -5, 0)))
        high = draw(st.sampled_from((127, 127, 0, 60)))
        ops.append(Op(f"{kind}{len(ops)}", kind, inputs, out, low, high, **more))
        tensors.append(out)

    for _ in range(draw(st.integers(0, max_ops))):
        at = draw(st.sampled_from([i for i in (len(tensors) - 1, len(tensors) - 2, 0) if i >= 0]))
        x = tensors[at]
        twins = [i for i, t in enumerate(tensors) if (t.h, t.w, t.c) == (x.h, x.w, x.c) and len(tensors) - i <= 4]
        kind = draw(st.sampled_from(("conv", "depthwise", "conv1x1", "add", "avgpool", "maxpool", "table", "mul", "attend")))
        multipliers = st.one_of(st.sampled_from((0, 1 << 30, 20000 << 16, (1 << 31) - 1)), st.integers(0, (1 << 31) - 1))
        if kind == "attend" and x.h * x.w > ATTEND_MAX:
            kind = "table"
        if kind == "table":
            table = values(np.random.default_rng(draw(SEEDS)), 256).astype(np.int8)
            emit(kind, (at,), Tensor(x.h, x.w, x.c, draw(zero)), table=table)
        elif kind == "mul":
            if draw(st.booleans()):  # by channel: with the means, say
                second = len(tensors)
                emit("avgpool", (at,), Tensor(1, 1, x.c, x.zero_point), window=Window((x.h, x.w), (1, 1)))
            else:
                second = draw(st.sampled_from(twins or [at]))
            scalars = MulScalars(draw(multipliers), draw(st.sampled_from((-31, -9, -8, -6, 0, 14))))
            emit(kind, (at, second), Tensor(x.h, x.w, x.c, draw(zero)), mul=scalars)
        elif kind == "attend":
            scores = Tensor(x.h, x.w, 1, draw(zero))
            emit("conv1x1", (at,), scores, weights=weights((1, x.c)), requant=draw(requants(1, x.c)))
            shift = draw(st.sampled_from((0, 10, 18, 20, 22, 23, 30)))
            span = draw(st.sampled_from((0, 1, 30, 255)))
            scalars = AttendScalars(
                draw(multipliers), shift, min(span, ((1 << 31) - 1) >> shift),
                draw(multipliers), draw(st.sampled_from((-31, -10, -8, -7, 0, 5))),
            )  # fmt: skip
            emit(kind, (at, len(tensors) - 1), Tensor(1, 1, x.c, draw(zero)), attend=scalars)
        elif kind == "add":
            scalars = AddScalars(
                draw(st.sampled_from((16, 20, 22))),
                tuple(draw(multipliers) for _ in range(3)),
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
            )  # fmt: skip
    x, classes = tensors[-1], draw(st.integers(1, 4))
    emit(
        "fc", (len(tensors) - 1,), Tensor(1, 1, classes, draw(zero)),
        weights=weights((classes, x.size)), requant=draw(requants(classes, x.size)),
    )  # fmt: skip
    info = Info(0.05, 0.1, 0.5, 360.0, "random", ("a",) * classes) if draw(st.booleans()) else None
    return IntegerModel(tensors[0], tuple(ops), info, weights.generators, tuple(weights.heads))


def inputs(model: IntegerModel, n: int, seed: int) -> np.ndarray:
    """int8 windows (n, H, W, C), extremes among them."""
    t = model.input
    x = values(np.random.default_rng(seed), (n, t.h, t.w, t.c)).astype(np.int8)
    x[0] = -128
    return x


def lively(rng: np.random.Generator, rows: int, cols: int, rms: float, bits: int = 8, aim: float = 60) -> Matrix:
    """A matrix whose results have the root mean square `aim` for inputs of `rms`: about 4 and 18 for codes of 4 and 6 bits."""
    top = (1 << (bits - 1)) - 1
    weights = rng.integers(-top, top + 1, (rows, cols)).astype(np.int64)
    spread = rms * np.sqrt((weights**2).sum(1).mean())
    shift = int(np.floor(np.log2(aim / spread))) + 1
    m = min(int(aim / spread / 2.0**shift * (1 << 15)), 32767)
    return Matrix(weights, rng.integers(-int(spread) // 4, int(spread) // 4 + 1, rows), m << 16, shift, bits)


def example(seed: int = 0) -> IntegerModel:
    """One fixed small network with every section, operator, head kind, storage width and multiplier form.

    Its kernels and logits use their whole range, so that damage shows.
    """
    rng = np.random.default_rng(seed)
    generators = (
        Generator(3, (lively(rng, 8, 3, 4, 6),)),
        Generator(4),
        Generator(2, (lively(rng, 6, 2, 18), lively(rng, 5, 6, 35, 4))),
    )
    head_list = [
        Tiled(lively(rng, 16, 8, 35), 0),
        Dense(lively(rng, 55, 4, 18, aim=4), 1),
        Factorised(lively(rng, 4, 5, 35), lively(rng, 72, 4, 60), 2),
        Factorised(2, lively(rng, 88, 4, 60), 2),
        Seeded(12, 0x2545F491, 20000 << 16, -7, 0),
        Codebook(rng.integers(-8, 8, (9, 5)).astype(np.int64), 4),
        Codebook(rng.integers(-31, 32, (5, 3)).astype(np.int64), 6, 0),
        Factorised(lively(rng, 4, 8, 4), 2, 0),
    ]
    ops: list[Op] = []

    def requant(out, products, weight_rms, form, gain):
        spread = products**0.5 * weight_rms * 70
        shift = int(np.rint(np.log2(60 * gain / spread)))
        if form == 8:
            multipliers = (256 + rng.integers(0, 256, out.c)) << 22
        else:
            multipliers = rng.integers(1 << 30, 1 << 31, out.c) >> (32 - form) << (32 - form)
        return Requant(multipliers, shift + rng.integers(0, 2, out.c), rng.integers(-int(spread), int(spread) + 1, out.c))

    def emit(kind, inputs, out, weights=None, products=1, form=16, gain=1.0, **more):
        more["requant"] = None
        if weights is not None:
            top = (1 << (weights.bits - 1)) - 1 if isinstance(weights, Stored) else 7 if weights.narrow else 127
            more["requant"] = requant(out, products, top / 2, form, gain)
        ops.append(Op(f"{kind}{len(ops)}", kind, inputs, out, weights=weights, **more))

    def stored(*shape, bits=8, narrow=False):
        top = (1 << (bits - 1)) - 1
        return Stored(rng.integers(-top - (bits < 8), top + 1, shape).astype(np.int8), bits, narrow)

    def made(head, *shape, bits=4, narrow=False):
        n, kind = int(np.prod(shape)), head_list[head]
        tiles = heads_of.tiles("the example", kind, head_list, n)
        if isinstance(kind, Codebook):
            return Generated(rng.integers(0, len(kind.entries), tiles), shape, head, 0, narrow)
        top = (1 << (bits - 1)) - 1
        return Generated(rng.integers(-top, top + 1, (tiles, heads_of.dz(kind, generators))), shape, head, bits, narrow)

    wide = Tensor(1, 12, 8, -128)
    emit("conv", (0,), wide, made(0, 8, 1, 5, 2), 10, 8, window=Window((1, 5), (1, 2), (0, 2)))
    emit("depthwise", (1,), wide, made(4, 1, 9, 8), 9, window=Window((1, 9), (1, 1), (0, 4)))
    emit("conv1x1", (2,), Tensor(1, 12, 8, 4), made(6, 8, 8), 8, 32)
    add = AddScalars(20, (1 << 30, (20000 << 16) + 5, 30000 << 16), (0, 0, -18))
    emit("add", (1, 3), wide, add=add)
    emit("conv1x1", (4,), Tensor(1, 12, 9, -100), made(2, 9, 8, bits=6), 8)
    emit("conv1x1", (5,), wide, made(7, 8, 9, bits=8), 9)
    emit("maxpool", (6,), Tensor(1, 6, 8, -128), window=Window((1, 2), (1, 2)))
    emit("conv1x1", (7,), Tensor(1, 6, 8, 3), made(5, 8, 8, narrow=True), 8, 8)
    emit("conv", (8,), Tensor(1, 6, 8, -90), stored(8, 1, 3, 2, bits=2), 6, 16, window=Window((1, 3), (1, 1), (0, 1), (1, 1), 4))
    emit("depthwise", (9,), Tensor(1, 6, 8, -128), stored(1, 3, 8, bits=4), 3, window=Window((1, 3), (1, 1), (0, 2), (1, 2)))
    emit("conv1x1", (10,), Tensor(1, 6, 11, -128), made(3, 11, 8), 8, 32, gain=4)
    emit("conv1x1", (11,), Tensor(1, 6, 5, -10), made(1, 5, 11, bits=6, narrow=True), 11, gain=1.5)
    emit("conv1x1", (12,), Tensor(1, 6, 11, -128), stored(11, 5, bits=4, narrow=True), 5, 8, gain=2)
    emit("avgpool", (13,), Tensor(1, 1, 11, -128), window=Window((1, 6)))
    gate = np.rint(254 / (1 + np.exp(-np.arange(256) / 24 + 4))).astype(np.int64) - 127
    emit("table", (14,), Tensor(1, 1, 11, -128), table=gate.astype(np.int8))
    emit("mul", (13, 15), Tensor(1, 6, 11, -100), mul=MulScalars((29000 << 16) + 3, -8))
    emit("conv1x1", (16,), Tensor(1, 6, 1, 0), stored(1, 11), 11, gain=4)
    emit("attend", (16, 17), Tensor(1, 1, 11, -90), attend=AttendScalars(27000 << 16, 21, 255, 31000 << 16, -8))
    emit("fc", (18,), Tensor(1, 1, 3, 0), stored(3, 11), 11)
    info = Info(0.05, 0.1, 0.5, 360.0, "example", ("a", "b", "c"))
    return IntegerModel(Tensor(1, 24, 2, -3), tuple(ops), info, generators, tuple(head_list))
