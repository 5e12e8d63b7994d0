"""docs/SPEC.md sections 2, 5 and 6 in plain Python integers and plain numpy: what the integer model means, without
any of the package's arithmetic."""

import numpy as np

from pyhtpw.image import integer
from pyhtpw.image.integer import Generated


def rq(v, multiplier, shift):
    """Section 2, on a Python int."""
    left, right = max(shift, 0), max(-shift, 0)
    h = ((v << left) * multiplier + (1 << 30)) >> 31
    if right:
        mask = (1 << right) - 1
        h = (h >> right) + (1 if (h & mask) > (mask >> 1) + (1 if h < 0 else 0) else 0)
    return h


def matrix(layer, x, low, high):
    out = []
    for weights, bias in zip(layer.weights.tolist(), layer.biases.tolist(), strict=True):
        v = bias + sum(w * i for w, i in zip(weights, x, strict=True))
        out.append(min(max(rq(v, layer.multiplier, layer.shift), low), high))
    return out


def xorshift_bytes(seed, count):
    s, found = seed, []
    while len(found) < count:
        s ^= (s << 13) & 0xFFFFFFFF
        s ^= s >> 17
        s ^= (s << 5) & 0xFFFFFFFF
        found += [b - 256 if b > 127 else b for b in s.to_bytes(4, "little")]
    return found[:count]


def tile_of(model, head, code, c):
    """What a head makes of one code."""
    generator = model.generators[head.generator]
    h = [int(z) for z in code]
    assert len(h) == generator.dz
    for layer in generator.layers:
        h = matrix(layer, h, 0, 127)
    if isinstance(head, integer.Factorised):
        b, a = (model.heads[m] if isinstance(m, int) else head for m in (head.b, head.a))
        return matrix(a.a, matrix(b.b, h, -127, 127), -c, c)
    if isinstance(head, integer.Seeded):
        d = len(h)
        flat = xorshift_bytes(head.seed, head.tile * d)
        return [
            min(max(rq(sum(flat[k * d + i] * h[i] for i in range(d)), head.multiplier, head.shift), -c), c)
            for k in range(head.tile)
        ]
    return matrix(head.matrix, h, -c, c)


def kernel(model, op):
    """Section 5: the weights of an operator in the shape of section 1."""
    w = op.weights
    if not isinstance(w, Generated):
        return w.values
    c, head = (7 if w.narrow else 127), model.heads[w.head]
    flat = []
    for code in w.codes:
        if not isinstance(head, integer.Codebook):
            flat += tile_of(model, head, code, c)
        elif head.of is None:
            flat += [int(v) for v in head.entries[code]]
        else:
            flat += tile_of(model, model.heads[head.of], head.entries[code], c)
    flat = np.array(flat[: int(np.prod(w.shape))], np.int8)
    if op.kind == "depthwise":
        kh, kw, cout = w.shape
        return flat.reshape(cout, kh, kw).transpose(1, 2, 0)
    return flat.reshape(w.shape)


def _rq(v, multipliers, shifts):
    """`rq` on int64 arrays, multipliers and shifts along the last axis."""
    right = np.maximum(-shifts, 0)
    h = ((v << np.maximum(shifts, 0)) * multipliers + (1 << 30)) >> 31
    mask = (1 << right) - 1
    return (h >> right) + ((h & mask) > (mask >> 1) + (h < 0))


def _hm(a, b):
    return (a * b + (1 << 30)) >> 31


def _rd(v, k):
    mask = (1 << k) - 1
    return (v >> k) + ((v & mask) > (mask >> 1) + (v < 0))


def _exp(v):
    """Section 6, on a Python int of at most 0."""
    if v == 0:
        return (1 << 31) - 1
    q = (v & ((1 << 24) - 1)) - (1 << 24)
    r, x = q - v, (q << 5) + (1 << 28)
    x2 = _hm(x, x)
    x3, x4 = _hm(x2, x), _rd(_hm(x2, x2), 2)
    e = 1895147668 + _hm(1895147668, x + _rd(_hm(x4 + x3, 715827883) + x2, 1))
    for k, factor in enumerate((1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)):
        if r >> (24 + k) & 1:
            e = _hm(e, factor)
    return e


def softmax(scores, s):
    """Section 6: the weights p + 128 of a list of Python ints."""
    m = max(scores)
    counts = [m - q <= s.softmax_range for q in scores]
    made = [_exp(_hm((q - m) << s.softmax_shift, s.softmax_multiplier)) if c else 0 for q, c in zip(scores, counts, strict=True)]
    total = sum(_rd(e, 12) for e, c in zip(made, counts, strict=True) if c)
    z = 32 - total.bit_length()
    u = ((total << z) - (1 << 31) + (1 << 31)) >> 1
    sat = lambda v: min(max(v, -(1 << 31)), (1 << 31) - 1)  # noqa: E731
    a = 1515870810 + _hm(u, -1010580540)
    for _ in range(3):
        a = a + sat(_hm(a, (1 << 29) - _hm(u, a)) * 4)
    a = sat(a * 2)
    return [min(max(_rd(_hm(a, e), 35 - z) - 128, -128), 127) + 128 if c else 0 for e, c in zip(made, counts, strict=True)]


def run(model, x, whole=False):
    """Section 6: int64 logits (N, classes) of int8 windows x (N, T, C); ``whole``: the last operator's output (N, T,
    C)."""
    tensors, info = [x.astype(np.int64)], [model.input]
    for op in model.ops:
        a, zp = tensors[op.inputs[0]], info[op.inputs[0]].zero_point
        if op.kind == "add":
            s, terms = op.add, []
            for k, at in enumerate(op.inputs):
                terms.append(
                    _rq((tensors[at] - info[at].zero_point) << s.left_shift, s.multipliers[k], np.int64(s.shifts[k]))
                )
            y = _rq(terms[0] + terms[1], s.multipliers[2], np.int64(s.shifts[2])) + op.out.zero_point
        elif op.kind == "avgpool":
            n, stride = op.window.kernel[1], op.window.stride[1]
            t = np.stack([a[:, o * stride : o * stride + n].sum(axis=1) for o in range(op.out.w)], axis=1)
            y = np.where(t > 0, (t + n // 2) // n, -((-t + n // 2) // n))
        elif op.kind == "maxpool":
            n, stride = op.window.kernel[1], op.window.stride[1]
            y = np.stack([a[:, o * stride : o * stride + n].max(axis=1) for o in range(op.out.w)], axis=1)
        elif op.kind == "table":
            y = op.table.astype(np.int64)[a + 128]
        elif op.kind == "mul":
            second = tensors[op.inputs[1]] - info[op.inputs[1]].zero_point
            y = _rq((a - zp) * second, op.mul.multiplier, np.int64(op.mul.shift)) + op.out.zero_point
        elif op.kind == "attend":
            weights = np.array([softmax(row, op.attend) for row in tensors[op.inputs[1]][:, :, 0].tolist()])
            acc = np.einsum("nt,ntc->nc", weights, a - zp)[:, None]
            y = _rq(acc, op.attend.multiplier, np.int64(op.attend.shift)) + op.out.zero_point
        else:
            w, v = kernel(model, op).astype(np.int64), a - zp
            if op.kind in ("conv", "depthwise"):
                taps = w.shape[2] if op.kind == "conv" else w.shape[1]
                stride, left = op.window.stride[1], op.window.padding[1]
                padded = np.pad(v, ((0, 0), (left, taps + op.out.w * stride), (0, 0)))
                acc = 0
                for k in range(taps):
                    part = padded[:, k : k + op.out.w * stride : stride]
                    acc = acc + (part @ w[:, 0, k].T if op.kind == "conv" else part * w[0, k])
            else:
                acc = v @ w.T
            acc = acc + op.requant.biases
            assert np.abs(acc).max() < 1 << 30
            y = _rq(acc, op.requant.multipliers, op.requant.shifts) + op.out.zero_point
        tensors.append(np.clip(y, op.act_min, op.act_max))
        info.append(op.out)
        assert tensors[-1].shape[1:] == (op.out.w, op.out.c)
    return tensors[-1] if whole else tensors[-1][:, 0]


def quantise_input(model, x):
    """Section 4.1."""
    q = np.rint(x.astype(np.float32) / np.float32(model.info.input_scale)) + model.input.zero_point
    return np.clip(q, -128, 127).astype(np.int8)
