"""The specification once more, with loops over Python integers and nothing else.

These functions are too slow for anything but tiny shapes, and have no idea of arrays, BLAS or
vectorised rounding; the numpy kernels must give the same values. ``test_reference_image`` uses
them to work out what a whole image must give.

Tensors are nested lists: ``x[h][w][c]``.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference.kernels as kernels


def rq(v: int, multiplier: int, shift: int) -> int:
    """Section 2 with the Q31 multiplier; unbounded Python integers."""
    high = ((v << max(shift, 0)) * multiplier + 2**30) >> 31
    right = max(-shift, 0)
    if right:
        mask = 2**right - 1
        rest = high & mask
        high = (high >> right) + (1 if rest > (mask >> 1) + (1 if high < 0 else 0) else 0)
    return high


def out(v: int, multiplier: int, shift: int, zp: int, act_min: int, act_max: int) -> int:
    return min(max(rq(v, multiplier, shift) + zp, act_min), act_max)


def spatial(x, tap, cout, channels, bias, scales, size, kernel, stride, padding, dilation, offset, tail):
    """Convolution in general: ``channels(o)`` lists the input channels of output o, and
    ``tap(o, ky, kx, i)`` is the weight of the i-th of them."""
    height, width = len(x), len(x[0])
    result = []
    for oy in range(size[0]):
        row = []
        for ox in range(size[1]):
            cell = []
            for o in range(cout):
                total = bias[o]
                for ky in range(kernel[0]):
                    for kx in range(kernel[1]):
                        y = oy * stride[0] - padding[0] + ky * dilation[0]
                        z = ox * stride[1] - padding[1] + kx * dilation[1]
                        if 0 <= y < height and 0 <= z < width:
                            for i, c in enumerate(channels(o)):
                                total += (x[y][z][c] + offset) * tap(o, ky, kx, i)
                cell.append(out(total, *scales[o], *tail))
            row.append(cell)
        result.append(row)
    return result


def conv(x, w, groups, *rest):
    """w[o][ky][kx][i]."""
    per_group_in = len(x[0][0]) // groups
    per_group_out = len(w) // groups

    def channels(o):
        first = o // per_group_out * per_group_in
        return range(first, first + per_group_in)

    return spatial(x, lambda o, ky, kx, i: w[o][ky][kx][i], len(w), channels, *rest)


def depthwise(x, w, *rest):
    """w[ky][kx][o]."""
    cout = len(w[0][0])
    per_input = cout // len(x[0][0])
    return spatial(x, lambda o, ky, kx, i: w[ky][kx][o], cout, lambda o: [o // per_input], *rest)


def pool(x, maximum, size, kernel, stride, padding, act_min, act_max):
    height, width = len(x), len(x[0])
    result = []
    for oy in range(size[0]):
        row = []
        for ox in range(size[1]):
            cell = []
            for c in range(len(x[0][0])):
                seen = [
                    x[y][z][c]
                    for y in range(oy * stride[0] - padding[0], oy * stride[0] - padding[0] + kernel[0])
                    for z in range(ox * stride[1] - padding[1], ox * stride[1] - padding[1] + kernel[1])
                    if 0 <= y < height and 0 <= z < width
                ]
                if maximum:
                    value = max(seen)
                else:
                    n, t = len(seen), sum(seen)
                    # Python's // floors, so truncation towards zero is spelt out.
                    value = (t + n // 2) // n if t > 0 else -((-t + n // 2) // n)
                cell.append(min(max(value, act_min), act_max))
            row.append(cell)
        result.append(row)
    return result


@st.composite
def geometries(draw):
    """Sizes, window, and an output that may crop the input or reach beyond it."""
    axis = []
    for _ in range(2):
        size = draw(st.integers(1, 5))
        kernel = draw(st.integers(1, 4))
        stride = draw(st.integers(1, 3))
        padding = draw(st.integers(0, 3))
        dilation = draw(st.integers(1, 3))
        output = draw(st.integers(1, 4))
        axis.append((size, kernel, stride, padding, dilation, output))
    return tuple(zip(*axis, strict=True))


def tensor(seed: int, *shape: int, low: int = -128, high: int = 127) -> np.ndarray:
    """Random int8, a quarter of it at the two extremes."""
    random = np.random.default_rng(seed)
    values = random.integers(low, high, shape, endpoint=True)
    extreme = random.integers(0, 8, shape)
    return np.where(extreme == 0, low, np.where(extreme == 1, high, values)).astype(np.int8)


def quantisation(seed: int, cout: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    bias = random.integers(-5000, 5000, cout).astype(np.int32)
    multiplier = random.choice([0, 1, 1 << 30, 2**31 - 1, 0x51234567, -(1 << 30)], cout)
    shift = random.integers(-12, 6, cout)
    return bias, multiplier.astype(np.int32), shift.astype(np.int32)


TAILS = st.sampled_from([(0, -128, 127), (-128, -128, 127), (127, -10, 20), (5, 3, 3)])
OFFSETS = st.sampled_from([-127, 0, 1, 128])


@given(
    geometries(),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    OFFSETS,
    TAILS,
    st.integers(0, 999),
)
@settings(deadline=None, max_examples=60)
def test_conv(geometry, groups, group_in, group_out, offset, tail, seed):
    size, kernel, stride, padding, dilation, output = geometry
    x = tensor(seed, 2, *size, groups * group_in)
    w = tensor(seed + 1, groups * group_out, *kernel, group_in)
    bias, multiplier, shift = quantisation(seed, groups * group_out)
    result = kernels.conv_s8(
        x, w, bias, multiplier, shift,
        stride=stride, padding=padding, dilation=dilation, output_size=output,
        input_offset=offset, output_offset=tail[0], act_min=tail[1], act_max=tail[2],
    )  # fmt: skip
    scales = list(zip(multiplier.tolist(), shift.tolist(), strict=True))
    rest = (bias.tolist(), scales, output, kernel, stride, padding, dilation, offset, tail)
    assert result.tolist() == [conv(image, w.tolist(), groups, *rest) for image in x.tolist()]


@given(geometries(), st.integers(1, 3), st.integers(1, 3), OFFSETS, TAILS, st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_depthwise(geometry, cin, per_input, offset, tail, seed):
    size, kernel, stride, padding, dilation, output = geometry
    x = tensor(seed, 2, *size, cin)
    w = tensor(seed + 1, 1, *kernel, cin * per_input)
    bias, multiplier, shift = quantisation(seed, cin * per_input)
    keywords = {
        "stride": stride, "padding": padding, "dilation": dilation, "output_size": output,
        "input_offset": offset, "output_offset": tail[0], "act_min": tail[1], "act_max": tail[2],
    }  # fmt: skip
    result = kernels.depthwise_s8(x, w, bias, multiplier, shift, **keywords)
    scales = list(zip(multiplier.tolist(), shift.tolist(), strict=True))
    rest = (bias.tolist(), scales, output, kernel, stride, padding, dilation, offset, tail)
    assert result.tolist() == [depthwise(image, w[0].tolist(), *rest) for image in x.tolist()]

    # int4 weights are the same weights in another packing.
    small = tensor(seed, *w.shape, low=-8, high=7)
    packed = kernels.depthwise_s4(x, kernels.pack_s4(small), bias, multiplier, shift, kernel=kernel, **keywords)
    plain = kernels.depthwise_s8(x, small, bias, multiplier, shift, **keywords)
    assert packed.tobytes() == plain.tobytes()


@given(geometries(), st.integers(1, 3), TAILS, st.integers(0, 999))
@settings(deadline=None, max_examples=120)
def test_pools(geometry, channels, tail, seed):
    size, kernel, stride, padding, _, output = geometry
    x = tensor(seed, 2, *size, channels)
    keywords = {"kernel": kernel, "stride": stride, "padding": padding, "output_size": output}
    keywords |= {"act_min": tail[1], "act_max": tail[2]}
    empty = any(
        k <= p or (o - 1) * s - p >= n for n, k, s, p, o in zip(size, kernel, stride, padding, output, strict=True)
    )
    for function, maximum in ((kernels.avgpool_s8, False), (kernels.maxpool_s8, True)):
        if empty:
            with pytest.raises(kernels.KernelArgumentError):
                function(x, **keywords)
        else:
            rest = (maximum, output, kernel, stride, padding, *tail[1:])
            assert function(x, **keywords).tolist() == [pool(image, *rest) for image in x.tolist()]


@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(-31, 30))
@settings(deadline=None, max_examples=300)
def test_requantise(v, multiplier, shift):
    inside = all(-(2**31) <= n < 2**31 for n in (v << max(shift, 0), rq(v, multiplier, max(shift, 0))))
    if inside:
        result = kernels.requantise(np.array([v], np.int32), multiplier, shift)
        assert result.tolist() == [rq(v, multiplier, shift)]
    else:
        with pytest.raises(kernels.KernelOverflowError):
            kernels.requantise(np.array([v], np.int32), multiplier, shift)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation", "expected"),
    [
        ((5, 7), (3, 3), (1, 1), (0, 0), (1, 1), (3, 5)),
        ((5, 7), (3, 3), (2, 2), (1, 1), (1, 1), (2, 3)),
        ((1, 1800), (1, 9), (1, 4), (0, 4), (1, 1), (1, 449)),
        ((5, 7), (2, 3), (1, 1), (0, 0), (4, 3), (1, 1)),
        ((2, 2), (1, 1), (3, 3), (0, 0), (1, 1), (1, 1)),
    ],
)
def test_default_output_size_has_no_padding_at_bottom_and_right(size, kernel, stride, padding, dilation, expected):
    x = tensor(0, 1, *size, 1)
    w = tensor(1, 1, *kernel, 1)
    scale = (np.full(1, 1 << 30, np.int32), np.full(1, -5, np.int32))
    keywords = {"stride": stride, "padding": padding, "dilation": dilation}
    result = kernels.conv_s8(x, w, None, *scale, **keywords)
    assert result.shape == (1, *expected, 1)
    explicit = kernels.conv_s8(x, w, None, *scale, output_size=expected, **keywords)
    assert explicit.tobytes() == result.tobytes()
