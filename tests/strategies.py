"""Hypothesis strategies for kernel arguments, shared by everything that compares two tellings of the kernels.

A `Call` is a function name of the common signature with its arguments, so one test drives any two modules::

    @given(strategies.conv_calls())
    def test_conv(call):
        assert same_bytes(call.run(one_module), call.run(another))

All calls are valid in the sense of docs/SPEC.md section 7: no sum leaves +-2^30, and no shifted sum either. Within
that they go for the edges: sizes around vector lanes, odd channels, one-sided padding, windows outside the input, and
in at most two of the aspects of `ASPECTS` at a time, extremes; in the others values are such that the results spread
over int8 and a wrong sum or rounding shows. Tensors come from a drawn kind and seed, not element by element.

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


# Tensors and scales. What is not extreme in a call is usual.

ASPECTS = ("tensor", "scale", "bias", "offset", "clamp")
extremes = st.sets(st.sampled_from(ASPECTS), max_size=2)
Extreme = set[str]


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
def tensors(draw: st.DrawFn, shape: tuple[int, ...], extreme: Extreme, low: int = -128, high: int = 127) -> np.ndarray:
    """int8 tensors of one shape: random, or constant at an extreme, or random extremes."""
    kind = draw(st.sampled_from(("extremes", "low", "high"))) if "tensor" in extreme else "random"
    return fill(kind, draw(seeds), shape, low, high)


@st.composite
def scales(
    draw: st.DrawFn, channels: int, products: int, largest: int, extreme: Extreme, array: bool = True
) -> tuple[Any, Any, Any]:
    """(bias, multiplier, shift) of a layer whose sums have `products` terms with weights up to `largest`.

    Multipliers and shifts are arrays, or integers if not `array`.
    """
    rng = np.random.default_rng(draw(seeds))
    bound, spread = products * 255 * largest, int(40 * largest * products**0.5)
    peak = min(2 * spread, SUM_LIMIT - bound)
    bias = rng.integers(-peak, peak, channels, np.int64, endpoint=True)
    if "bias" in extreme:
        peak = SUM_LIMIT - bound
        bias = draw(st.sampled_from((0, peak, None)))
        bias = None if bias is None else bias * rng.choice(np.array([-1, 1], np.int64), channels)
    bias = None if bias is None else bias.astype(np.int32)
    if "scale" in extreme:
        shift = np.full(channels, draw(shifts))
        multiplier = np.array([draw(multipliers) for _ in range(min(channels, 3))])[np.arange(channels) % 3]
    else:
        shift = 7 - spread.bit_length() + rng.integers(-1, 2, channels)
        multiplier = rng.integers(2**30, 2**31, channels)
    headroom = (SUM_LIMIT // (bound + peak)).bit_length() - 1
    multiplier, shift = multiplier.astype(np.int32), np.minimum(shift, headroom).astype(np.int32)
    return (bias, multiplier, shift) if array else (bias, int(multiplier[0]), int(shift[0]))


@st.composite
def clamp_keywords(draw: st.DrawFn, extreme: Extreme) -> dict[str, int]:
    act_min, act_max = draw(clamps) if "clamp" in extreme else (-128, 127)
    return {"act_min": act_min, "act_max": act_max}


@st.composite
def outputs(draw: st.DrawFn, extreme: Extreme) -> dict[str, int]:
    """Offsets and clamp of a layer."""
    usual = st.integers(-9, 9)
    first, last = (input_offsets, output_offsets) if "offset" in extreme else (usual, usual)
    return {"input_offset": draw(first), "output_offset": draw(last), **draw(clamp_keywords(extreme))}


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
    vertical, horizontal, extreme = draw(axes()), draw(axes()), draw(extremes)
    groups = draw(st.sampled_from((1, 2, 3))) if grouped else 1
    in_g, out_c = draw(small_sizes if groups > 1 else sizes), groups * draw(small_sizes)
    x = draw(tensors((draw(st.integers(1, 2)), vertical.size, horizontal.size, groups * in_g), extreme))
    w = draw(tensors((out_c, vertical.kernel, horizontal.kernel, in_g), extreme, *weight_range(bits)))
    scale = draw(scales(out_c, w[0].size, 1 << (bits - 1), extreme))
    keywords = window_keywords(vertical, horizontal) | draw(outputs(extreme))
    if bits == 8:
        return Call("conv_s8", (x, w, *scale), keywords)
    return Call("conv_s4", (x, pack_s4(w), *scale), {**keywords, "kernel": w.shape[1:3]})


@st.composite
def conv1x1_calls(draw: st.DrawFn, bits: int = 8) -> Call:
    """conv1x1_s8 and conv1x1_s4; odd and even row counts."""
    in_c, out_c, extreme = draw(sizes), draw(sizes), draw(extremes)
    x = draw(tensors((draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 5)), in_c), extreme))
    w = draw(tensors((out_c, in_c), extreme, *weight_range(bits)))
    scale = draw(scales(out_c, in_c, 1 << (bits - 1), extreme))
    return Call(f"conv1x1_s{bits}", (x, w if bits == 8 else pack_s4(w), *scale), draw(outputs(extreme)))


@st.composite
def depthwise_calls(draw: st.DrawFn, bits: int = 8) -> Call:
    """depthwise_s8 and depthwise_s4; channel multipliers 1 to 3."""
    vertical, horizontal, extreme = draw(axes()), draw(axes()), draw(extremes)
    in_c = draw(sizes)
    out_c = in_c * draw(st.sampled_from((1, 2, 3)))
    x = draw(tensors((draw(st.integers(1, 2)), vertical.size, horizontal.size, in_c), extreme))
    w = draw(tensors((1, vertical.kernel, horizontal.kernel, out_c), extreme, *weight_range(bits)))
    scale = draw(scales(out_c, vertical.kernel * horizontal.kernel, 1 << (bits - 1), extreme))
    keywords = window_keywords(vertical, horizontal) | draw(outputs(extreme))
    if bits == 8:
        return Call("depthwise_s8", (x, w, *scale), keywords)
    return Call("depthwise_s4", (x, pack_s4(w), *scale), {**keywords, "kernel": w.shape[1:3]})


@st.composite
def fully_connected_calls(draw: st.DrawFn, bits: int = 8) -> Call:
    """fully_connected_s8 and _s4, per tensor or per channel."""
    in_c, out_c, extreme, array = draw(sizes), draw(sizes), draw(extremes), draw(st.booleans())
    x = draw(tensors((draw(st.integers(1, 3)), in_c), extreme))
    w = draw(tensors((out_c, in_c), extreme, *weight_range(bits)))
    keywords = draw(outputs(extreme))
    scale = draw(scales(out_c, in_c, 255 if bits == 8 else 8, extreme, array))
    if bits == 8:
        offset = draw(input_offsets if "offset" in extreme else st.integers(-9, 9))
        return Call("fully_connected_s8", (x, w, *scale), {**keywords, "filter_offset": offset})
    return Call("fully_connected_s4", (x, pack_s4(w), *scale), {**keywords, "rows": out_c})


@st.composite
def pool_calls(draw: st.DrawFn, name: str) -> Call:
    """avgpool_s8 or maxpool_s8."""
    vertical, horizontal, extreme = draw(axes(pool=True)), draw(axes(pool=True)), draw(extremes)
    x = draw(tensors((draw(st.integers(1, 2)), vertical.size, horizontal.size, draw(sizes)), extreme))
    keywords = window_keywords(vertical, horizontal) | {"kernel": (vertical.kernel, horizontal.kernel)}
    del keywords["dilation"]
    return Call(name, (x,), keywords | draw(clamp_keywords(extreme)))


@st.composite
def elementwise_calls(draw: st.DrawFn, name: str) -> Call:
    """add_s8 or mul_s8. Each factor of an input of add is below 1, so that no term leaves int32."""
    shape, extreme = (draw(sizes), draw(st.integers(1, 5))), draw(extremes)
    usual = st.integers(-9, 9)
    first, last = (input_offsets, output_offsets) if "offset" in extreme else (usual, usual)
    m = multipliers if "scale" in extreme else st.integers(2**30, 2**31 - 1)
    keywords = {"input1_offset": draw(first), "input2_offset": draw(first), "out_offset": draw(last)}
    keywords |= {"out_mult": draw(m), **draw(clamp_keywords(extreme))}
    if name == "add_s8":
        factors = (
            st.one_of(st.sampled_from((0, -1, -31)), st.integers(-8, 0)) if "scale" in extreme else st.integers(-2, 0)
        )
        left_shift = draw(st.integers(16, 22))
        keywords |= {"input1_mult": draw(m), "input1_shift": draw(factors), "left_shift": left_shift}
        keywords |= {"input2_mult": draw(m), "input2_shift": draw(factors)}
        keywords |= {"out_shift": draw(factors if "scale" in extreme else st.integers(-left_shift, 1 - left_shift))}
    else:
        keywords |= {"out_shift": draw(st.sampled_from((-31, 0, 13)) if "scale" in extreme else st.integers(-8, -5))}
    return Call(name, (draw(tensors(shape, extreme)), draw(tensors(shape, extreme))), keywords)


@st.composite
def softmax_calls(draw: st.DrawFn) -> Call:
    """softmax_s8 with the smallest difference that TFLite derives from the shift, or none at all."""
    extreme = draw(extremes)
    x = draw(tensors((draw(st.integers(1, 3)), draw(st.one_of(sizes, st.just(511)))), extreme))
    shift = draw(st.integers(0, 30) if "scale" in extreme else st.integers(19, 24))
    diff_min = 0 if "clamp" in extreme else -((31 << 26) >> shift)
    multiplier = draw(multipliers if "scale" in extreme else st.integers(2**30, 2**31 - 1))
    return Call("softmax_s8", (x,), {"mult": multiplier, "shift": shift, "diff_min": diff_min})
