"""The C kernels and the numpy reference are two tellings of the same arithmetic: generated calls, equal bytes."""

import numpy as np
import pytest
import strategies as own
from hypothesis import assume, given
from hypothesis import strategies as st

import reference.kernels
from pyhtpw import kernels
from pyhtpw.executor import Host

GUARD, PATTERN = 64, 0xA5

CALLS = {
    "conv_s8": own.conv_calls(),
    "conv_s4": own.conv_calls(bits=4, grouped=False),
    "conv1x1_s8": own.conv1x1_calls(),
    "conv1x1_cached_s8": own.conv1x1_calls().map(lambda call: call._replace(name="conv1x1_cached_s8")),
    "conv1x1_s4": own.conv1x1_calls(bits=4),
    "depthwise_s8": own.depthwise_calls(),
    "depthwise_s4": own.depthwise_calls(bits=4),
    "fully_connected_s8": own.fully_connected_calls(),
    "fully_connected_s4": own.fully_connected_calls(bits=4),
    "avgpool_s8": own.pool_calls("avgpool_s8"),
    "maxpool_s8": own.pool_calls("maxpool_s8"),
    "add_s8": own.elementwise_calls("add_s8"),
    "mul_s8": own.elementwise_calls("mul_s8"),
    "softmax_s8": own.softmax_calls(),
}


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gives the C code output buffers at odd addresses between guard bytes; returns the kernels that ran."""
    plain, ran = Host.run, []

    def run(self, kernel, *args):
        *rest, y = args
        if y.dtype != np.int8:  # words, which cannot lie at odd addresses
            return plain(self, kernel, *args)
        buffer = np.full(y.nbytes + 2 * GUARD + 16, PATTERN, np.uint8)
        start = GUARD + (1 - buffer.ctypes.data) % 16
        inside = slice(start, start + y.nbytes)
        plain(self, kernel, *rest, buffer[inside].view(np.int8))
        y.reshape(-1).view(np.uint8)[:] = buffer[inside]
        buffer[inside] = PATTERN
        assert (buffer == PATTERN).all(), f"{kernel} wrote outside its output"
        ran.append(kernel)

    monkeypatch.setattr(Host, "run", run)
    return ran


def assert_equal(got: np.ndarray, expected: np.ndarray, call: own.Call) -> None:
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert got.tobytes() == expected.tobytes(), f"{(got != expected).sum()} of {got.size} values differ for {call}"


@pytest.mark.parametrize("backend", kernels.backends())
@pytest.mark.parametrize("name", CALLS)
def test_equals_reference(name: str, backend: str, guarded: list[str]) -> None:
    @given(call=CALLS[name], shift=st.sampled_from((0, 1, 3, 8)))
    def run(call: own.Call, shift: int) -> None:
        # the cached form is the same product from another place
        expected = call._replace(name=call.name.replace("_cached", "")).run(reference.kernels)
        call = call.moved(shift)
        before = [a.tobytes() for a in call.args if isinstance(a, np.ndarray)]
        assert_equal(call.run(kernels, backend=backend), expected, call)
        assert [a.tobytes() for a in call.args if isinstance(a, np.ndarray)] == before, "an input was written"

    run()
    assert guarded and set(guarded) == {name}


@pytest.mark.parametrize("backend", kernels.backends())
def test_softmax_densely(backend: str) -> None:
    """A step less in the reciprocal changes one value in twenty thousand: half a million are compared."""
    rng = np.random.default_rng(0)
    for length in range(2, 40):
        for shift in range(19, 26):
            x = rng.integers(-128, 128, (100, length), np.int8)
            scale = {"mult": int(rng.integers(2**30, 2**31)), "shift": shift, "diff_min": -((31 << 26) >> shift)}
            call = own.Call("softmax_s8", (x,), scale)
            assert_equal(call.run(kernels, backend=backend), call.run(reference.kernels), call)


@given(call=own.conv1x1_calls(), stride=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_strided_pointwise_is_a_convolution(call: own.Call, stride: tuple[int, int]) -> None:
    x, w, *scale = call.args
    expected = reference.kernels.conv_s8(x, w[:, None, None, :], *scale, stride=stride, **call.kwargs)
    assert_equal(call.run(kernels, stride=stride), expected, call)


@given(call=own.conv1x1_calls(bits=4), stride=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_strided_pointwise_s4_is_a_convolution(call: own.Call, stride: tuple[int, int]) -> None:
    expected = reference.kernels.conv_s4(*call.args, kernel=(1, 1), stride=stride, **call.kwargs)
    assert_equal(call.run(kernels, stride=stride), expected, call)


@given(call=own.conv_calls(bits=4).filter(lambda call: call.args[0].shape[3] % 2 == 0), seed=own.seeds)
def test_grouped_s4_equals_s8(call: own.Call, seed: int) -> None:
    """The numpy reference has no grouped 4-bit form: the int8 form with the same weights stands in."""
    x, _, *scale = call.args
    keywords = dict(call.kwargs)
    in_g, out_c = x.shape[3] // 2, len(scale[1])
    if out_c % 2:
        x, in_g = x[..., :1], 1
    w = own.fill("random", seed, (out_c, *keywords.pop("kernel"), in_g), -8, 7)
    got = kernels.conv_s4(x, own.pack_s4(w), *scale, kernel=w.shape[1:3], groups=x.shape[3] // in_g, **keywords)
    assert_equal(got, reference.kernels.conv_s8(x, w, *scale, **keywords), call)


@given(call=own.conv_calls(grouped=False))
def test_one_scale_serves_all_channels(call: own.Call) -> None:
    x, w, bias, multiplier, shift = call.args
    m, s = int(multiplier[0]), int(shift.min())
    expected = reference.kernels.conv_s8(x, w, bias, np.full_like(multiplier, m), np.full_like(shift, s), **call.kwargs)
    assert_equal(kernels.conv_s8(x, w, bias, m, s, **call.kwargs), expected, call)


@given(v=own.accumulators, multiplier=own.any_multipliers, shift=st.integers(-31, 0))
def test_requantise(v: int, multiplier: int, shift: int) -> None:
    assume(not v == multiplier == -(2**31))  # the one product that wraps, which the reference refuses
    arrays = [np.array([value], np.int32) for value in (v, multiplier, shift)]
    expected = reference.kernels.requantise(*arrays)
    assert kernels.requantise(*arrays).tolist() == expected.tolist()
    assert kernels.requantise(v, multiplier, shift).item() == expected[0]


@given(v=own.accumulators, multiplier=own.any_multipliers, shift=own.shifts)
def test_requantise_is_two_roundings(v: int, multiplier: int, shift: int) -> None:
    """docs/SPEC.md section 2 in Python integers, where nothing overflows by itself."""
    x = ((v << max(shift, 0)) + 2**31) % 2**32 - 2**31
    h = (((x * multiplier + 2**30) >> 31) + 2**31) % 2**32 - 2**31
    right = max(-shift, 0)
    rounded, rest = divmod(abs(h), 1 << right)
    rounded += 2 * rest >= 1 << right and right > 0
    assert kernels.requantise(v, multiplier, shift).item() == (rounded if h >= 0 else -rounded)


@given(x=own.tensors((3, 33), set()), table=own.tensors((256,), set()), clamp=own.clamps, shift=st.integers(0, 15))
def test_activations(x: np.ndarray, table: np.ndarray, clamp: tuple[int, int], shift: int) -> None:
    calls = [
        own.Call("relu_s8", (x,), {}),
        own.Call("relu6_s8", (x,), {}),
        own.Call("table_s8", (x, table), {}),
        own.Call("clamp_s8", (x,), {"act_min": clamp[0], "act_max": clamp[1]}),
    ]
    for call in calls:
        assert_equal(call.moved(shift).run(kernels), call.run(reference.kernels), call)


@given(data=st.data(), bits=st.integers(1, 32), signed=st.booleans())
def test_bits(data: st.DataObject, bits: int, signed: bool) -> None:
    low, high = own.weight_range(bits) if signed else (0, (1 << bits) - 1)
    values = data.draw(st.lists(st.one_of(st.sampled_from((low, high)), st.integers(low, high)), max_size=40))
    array = np.array(values, np.int64)
    packed = kernels.pack_bits(array, bits, signed=signed)
    assert packed.tobytes() == reference.kernels.pack(array, bits, signed=signed).tobytes()
    stream = own.unaligned(packed, data.draw(st.integers(0, 15)))
    assert kernels.unpack_bits(stream, len(values), bits, signed=signed).tolist() == values
