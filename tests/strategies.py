"""Hypothesis strategies for kernel arguments, shared by everything that compares two tellings of the kernels.

A `Call` is a function name of the common signature with its arguments, so one test drives any two modules::

    @given(strategies.conv_calls())
    def test_conv(call):
        assert same_bytes(call.run(one_module), call.run(another))

All calls are valid in the sense of docs/SPEC.md section 7: no sum leaves +-2^30, and no shifted sum either. Within
that they go for the edges: sizes around vector lanes, odd channels, one-sided padding, windows outside the input,
extremes of multiplier, shift, bias, zero point and clamp. Tensors come from a drawn kind and seed, not element by
element.

The profile is named by the environment variable HYPOTHESIS_PROFILE: `default` repeats the same examples in every run;
`deep` runs a hundred times as many, new ones each time.
"""

import os
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, settings

LANES = (4, 8, 16, 32)
EDGES = tuple(sorted({1, 2, 3} | {lane + step for lane in LANES for step in (-1, 0, 1)}))
SMALL = tuple(size for size in EDGES if size <= 9)
SUM_LIMIT = 2**30 - 1  # |sum| and |sum << shift|, docs/SPEC.md section 7
EXAMPLES = 100

settings.register_profile(
    "default", max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", settings.get_profile("default"), max_examples=100 * EXAMPLES, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


class Call(NamedTuple):
    """One call of a kernel by the common signature."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, module: Any, **more: Any) -> np.ndarray:
        return getattr(module, self.name)(*self.args, **self.kwargs, **more)

    def moved(self, shift: int) -> "Call":
        """The same call with all arrays at addresses that are `shift` past a multiple of 16."""
        return self._replace(args=tuple(unaligned(a, shift) if isinstance(a, np.ndarray) else a for a in self.args))


def unaligned(array: np.ndarray, shift: int) -> np.ndarray:
    """A C-contiguous copy at an address that is `shift` past a multiple of 16."""
    raw = np.zeros(array.nbytes + 32, np.uint8)
    start = (shift - raw.ctypes.data) % 16
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def pack_s4(weights: np.ndarray) -> np.ndarray:
    """Values of [-8, 7], flattened, two per byte, the even one in the low nibble."""
    nibbles = np.append(weights.ravel(), np.zeros(weights.size % 2, weights.dtype)).astype(np.uint8) & 15
    return nibbles[::2] | nibbles[1::2] << 4


# Scalars.

seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from(EDGES)
small_sizes = st.sampled_from(SMALL)
multipliers = st.one_of(
    st.sampled_from((2**30, 2**31 - 1, 0, 1, 2**30 + 1, 0x4000 << 16, 0x7FFF << 16)),
    st.integers(0x4000, 0x7FFF).map(lambda m: m << 16),
    st.integers(0, 2**31 - 1),
)
any_multipliers = st.one_of(multipliers, st.integers(-(2**31), 2**31 - 1))
shifts = st.one_of(st.sampled_from((0, -1, 1, -31, -30, 30, 29)), st.integers(-31, 30))
accumulators = st.one_of(
    st.sampled_from((0, 1, -1, 2**31 - 1, -(2**31), 2**30, -(2**30))), st.integers(-(2**31), 2**31 - 1)
)
input_offsets = st.one_of(st.sampled_from((0, 128, -127, 1)), st.integers(-127, 128))
output_offsets = st.one_of(st.sampled_from((0, -128, 127)), st.integers(-128, 127))
clamps = st.one_of(
    st.just((-128, 127)),
    st.sampled_from(((0, 127), (-128, -128), (127, 127), (0, 0))),
    st.tuples(st.integers(-128, 127), st.integers(-128, 127)).map(lambda pair: (min(pair), max(pair))),
)


# Tensors.


def fill(kind: str, seed: int, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    """An int8 tensor of values in [low, high]."""
    if kind == "low":
        return np.full(shape, low, np.int8)
    if kind == "high":
        return np.full(shape, high, np.int8)
    rng = np.random.default_rng(seed)
    if kind == "extremes":
        return rng.choice(np.array([low, high], np.int8), shape)
    return rng.integers(low, high, shape, np.int8, endpoint=True)


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], low: int = -128, high: int = 127) -> np.ndarray:
    """int8 tensors of one shape: random, constant at an extreme, or random extremes."""
    kind = draw(st.sampled_from(("random", "random", "low", "high", "extremes")))
    return fill(kind, draw(seeds), shape, low, high)


@st.composite
def scales(draw: st.DrawFn, channels: int, bound: int, array: bool = True) -> tuple[Any, Any, Any]:
    """(bias, multiplier, shift) of a layer whose sums without bias stay within +-bound.

    Shifts mostly put the results in the range of int8, where rounding shows; multipliers and shifts are arrays, or
    integers if not `array`.
    """
    rng = np.random.default_rng(draw(seeds))
    limit = SUM_LIMIT - bound
    peak = draw(st.sampled_from((None, 0, min(1000, limit), limit)))
    bias = None if peak is None else rng.integers(-peak, peak, channels, np.int64, endpoint=True).astype(np.int32)
    if peak == limit:
        bias[:] = limit * np.where(rng.integers(0, 2, channels), 1, -1)
    if draw(st.booleans()):
        typical = 7 - int(bound).bit_length()
        shift = rng.integers(max(typical - 1, -31), typical + 3, channels, np.int32, endpoint=True)
    else:
        shift = np.full(channels, draw(shifts), np.int32)
    headroom = (SUM_LIMIT // (bound + (peak or 0))).bit_length() - 1
    shift = np.minimum(shift, headroom).astype(np.int32)
    multiplier = np.array([draw(multipliers) for _ in range(min(channels, 3))], np.int32)[np.arange(channels) % 3]
    return (bias, multiplier, shift) if array else (bias, int(multiplier[0]), int(shift[0]))


@st.composite
def outputs(draw: st.DrawFn) -> dict[str, int]:
    """Offsets and clamp of a layer."""
    act_min, act_max = draw(clamps)
    offsets = {"input_offset": draw(input_offsets), "output_offset": draw(output_offsets)}
    return {**offsets, "act_min": act_min, "act_max": act_max}


class Axis(NamedTuple):
    """One axis of a window; `output` is None for the size without padding at the end."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    output: int | None


@st.composite
def axes(draw: st.DrawFn, pool: bool = False) -> Axis:
    """One axis: windows of a convolution may lie anywhere, each window of a pool holds at least one cell."""
    size, kernel = draw(small_sizes), draw(st.integers(1, 5))
    stride, dilation = draw(st.integers(1, 3)), 1 if pool else draw(st.integers(1, 3))
    padding = draw(st.integers(0, kernel - 1 if pool else kernel * dilation))
    reach = (kernel - 1) * dilation + 1
    last = (size - 1 + padding) // stride + 1 if pool else (size + padding) // stride + 2
    output = None if size + padding >= reach and draw(st.booleans()) else draw(st.integers(1, last))
    return Axis(size, kernel, stride, padding, dilation, output)


def window_keywords(vertical: Axis, horizontal: Axis) -> dict[str, Any]:
    """Keywords of two axes; an output size that only one axis leaves open is computed."""
    both = (vertical, horizontal)
    output = None
    if vertical.output is not None or horizontal.output is not None:
        plain = ((a.size + a.padding - (a.kernel - 1) * a.dilation - 1) // a.stride + 1 for a in both)
        output = tuple(size if a.output is None else a.output for a, size in zip(both, plain, strict=True))
    return {
        "stride": tuple(a.stride for a in both),
        "padding": tuple(a.padding for a in both),
        "dilation": tuple(a.dilation for a in both),
        "output_size": output,
    }


# Calls. `bits` is that of the weights: with 4 the packed form is called.


def weight_range(bits: int) -> tuple[int, int]:
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


@st.composite
def conv_calls(draw: st.DrawFn, bits: int = 8, grouped: bool = True) -> Call:
    """conv_s8 and conv_s4; groups are drawn if `grouped`."""
    vertical, horizontal = draw(axes()), draw(axes())
    groups = draw(st.sampled_from((1, 1, 2, 3))) if grouped else 1
    in_g, out_c = draw(small_sizes if groups > 1 else sizes), groups * draw(small_sizes)
    x = draw(tensors((draw(st.integers(1, 2)), vertical.size, horizontal.size, groups * in_g)))
    w = draw(tensors((out_c, vertical.kernel, horizontal.kernel, in_g), *weight_range(bits)))
    scale = draw(scales(out_c, w[0].size * 255 << (bits - 1)))
    keywords = window_keywords(vertical, horizontal) | draw(outputs())
    if bits == 8:
        return Call("conv_s8", (x, w, *scale), keywords)
    return Call("conv_s4", (x, pack_s4(w), *scale), {**keywords, "kernel": w.shape[1:3]})


@st.composite
def conv1x1_calls(draw: st.DrawFn, bits: int = 8) -> Call:
    """conv1x1_s8 and conv1x1_s4; odd and even row counts."""
    in_c, out_c = draw(sizes), draw(sizes)
    x = draw(tensors((draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 5)), in_c)))
    w = draw(tensors((out_c, in_c), *weight_range(bits)))
    scale = draw(scales(out_c, in_c * 255 << (bits - 1)))
    return Call(f"conv1x1_s{bits}", (x, w if bits == 8 else pack_s4(w), *scale), draw(outputs()))


@st.composite
def depthwise_calls(draw: st.DrawFn, bits: int = 8) -> Call:
    """depthwise_s8 and depthwise_s4; channel multipliers 1 to 3."""
    vertical, horizontal = draw(axes()), draw(axes())
    in_c = draw(sizes)
    out_c = in_c * draw(st.sampled_from((1, 1, 2, 3)))
    x = draw(tensors((draw(st.integers(1, 2)), vertical.size, horizontal.size, in_c)))
    w = draw(tensors((1, vertical.kernel, horizontal.kernel, out_c), *weight_range(bits)))
    scale = draw(scales(out_c, vertical.kernel * horizontal.kernel * 255 << (bits - 1)))
    keywords = window_keywords(vertical, horizontal) | draw(outputs())
    if bits == 8:
        return Call("depthwise_s8", (x, w, *scale), keywords)
    return Call("depthwise_s4", (x, pack_s4(w), *scale), {**keywords, "kernel": w.shape[1:3]})


@st.composite
def fully_connected_calls(draw: st.DrawFn, bits: int = 8) -> Call:
    """fully_connected_s8 and _s4, per tensor or per channel."""
    in_c, out_c = draw(sizes), draw(sizes)
    x = draw(tensors((draw(st.integers(1, 3)), in_c)))
    w = draw(tensors((out_c, in_c), *weight_range(bits)))
    scale = draw(scales(out_c, in_c * 255 * (255 if bits == 8 else 8), array=draw(st.booleans())))
    if bits == 8:
        return Call("fully_connected_s8", (x, w, *scale), draw(outputs()) | {"filter_offset": draw(input_offsets)})
    return Call("fully_connected_s4", (x, pack_s4(w), *scale), draw(outputs()) | {"rows": out_c})


@st.composite
def pool_calls(draw: st.DrawFn, name: str) -> Call:
    """avgpool_s8 or maxpool_s8."""
    vertical, horizontal = draw(axes(pool=True)), draw(axes(pool=True))
    x = draw(tensors((draw(st.integers(1, 2)), vertical.size, horizontal.size, draw(sizes))))
    keywords = window_keywords(vertical, horizontal) | {"kernel": (vertical.kernel, horizontal.kernel)}
    del keywords["dilation"]
    act_min, act_max = draw(clamps)
    return Call(name, (x,), keywords | {"act_min": act_min, "act_max": act_max})


@st.composite
def elementwise_calls(draw: st.DrawFn, name: str) -> Call:
    """add_s8 or mul_s8. Shifts of add are those of two factors below 1 and one above, so no term leaves int32."""
    shape = (draw(sizes), draw(st.integers(1, 5)))
    act_min, act_max = draw(clamps)
    keywords = {"input1_offset": draw(input_offsets), "input2_offset": draw(input_offsets)}
    keywords |= {"out_offset": draw(output_offsets), "out_mult": draw(multipliers)}
    keywords |= {"act_min": act_min, "act_max": act_max}
    if name == "add_s8":
        terms = st.one_of(st.sampled_from((0, -1, -31)), st.integers(-8, 0))
        left_shift = draw(st.integers(16, 22))
        keywords |= {"input1_mult": draw(multipliers), "input1_shift": draw(terms), "left_shift": left_shift}
        keywords |= {"input2_mult": draw(multipliers), "input2_shift": draw(terms)}
        keywords |= {"out_shift": draw(st.one_of(terms, st.integers(-left_shift - 1, 2 - left_shift)))}
    else:
        keywords |= {"out_shift": draw(st.one_of(st.integers(-10, 13), st.just(-31)))}
    return Call(name, (draw(tensors(shape)), draw(tensors(shape))), keywords)


@st.composite
def softmax_calls(draw: st.DrawFn) -> Call:
    """softmax_s8 with the smallest difference that TFLite derives from the shift, or none at all."""
    x = draw(tensors((draw(st.integers(1, 3)), draw(st.one_of(sizes, st.just(511))))))
    shift = draw(st.integers(0, 30))
    diff_min = draw(st.sampled_from((-((31 << 26) >> shift), 0)))
    return Call("softmax_s8", (x,), {"mult": draw(multipliers), "shift": shift, "diff_min": diff_min})
