"""The numpy kernels against CMSIS-NN's golden vectors, and what they refuse."""

from __future__ import annotations

import collections
import os

import numpy as np
import pytest
import vectors_io
from hypothesis import given, settings
from hypothesis import strategies as st

import reference.kernels as kernels
from reference.kernels.requantise import divide_by_power_of_two, doubling_high_multiply

CORE = ("core", "core_mve_differs")
# Counts of the committed copy; HTPW_VECTORS may point at another set.
COMMITTED = vectors_io.ENVIRONMENT not in os.environ
EXPECTED_CASES = {"core": 1163, "core_mve_differs": 30, "wrap": 82}
EXPECTED_WRAP = {"same bytes": 49, "refused": 33}


def compute(case: vectors_io.Case) -> np.ndarray:
    name, args, kwargs = vectors_io.arguments(case)
    return getattr(kernels, name)(*args, **kwargs)


def same_bytes(result: np.ndarray, expected: np.ndarray) -> bool:
    return result.dtype == np.int8 and result.shape == expected.shape and result.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kernel", vectors_io.KERNELS)
def test_core_cases_equal_cmsis_nn_byte_for_byte(kernel: str):
    chosen = [case for case in vectors_io.cases(kernel) if case.tier in CORE]
    assert chosen
    wrong = [str(case) for case in chosen if not same_bytes(compute(case), case.expected)]
    assert not wrong


@pytest.mark.skipif(not COMMITTED, reason="HTPW_VECTORS is set")
def test_no_case_is_missing():
    counts = collections.Counter(case.tier for kernel in vectors_io.KERNELS for case in vectors_io.cases(kernel))
    assert dict(counts) == EXPECTED_CASES


def test_wrap_cases_give_the_same_bytes_or_are_refused():
    counts = collections.Counter()
    for kernel in vectors_io.KERNELS:
        for case in vectors_io.cases(kernel):
            if case.tier != "wrap":
                continue
            try:
                result = compute(case)
            except kernels.KernelOverflowError:
                counts["refused"] += 1
            else:
                assert same_bytes(result, case.expected), case
                counts["same bytes"] += 1
    assert counts["same bytes"] and (dict(counts) == EXPECTED_WRAP or not COMMITTED)


@pytest.mark.parametrize("kernel", ["conv_1x1_s8", "conv_1x1_s4"])
def test_strided_pointwise_cases_through_conv1x1(kernel: str):
    strided = 0
    for case in vectors_io.cases(kernel):
        name, (x, w, *rest), kwargs = vectors_io.arguments(case)
        if case.tier not in CORE or name.startswith("conv1x1"):
            continue
        strided += 1
        if kernel.endswith("s8"):
            w = w[:, 0, 0, :]
        kwargs.pop("kernel", None)
        result = getattr(kernels, f"conv1x1_{kernel[-2:]}")(x, w, *rest, **kwargs)
        assert same_bytes(result, case.expected), case
    assert strided > 20


def test_requantise_scalar_vectors():
    v = vectors_io.requantise_vectors()
    keep = ~v["overflow_double"]
    result = kernels.requantise(v["value"][keep], v["multiplier"][keep], v["shift"][keep])
    assert result.dtype == np.int32
    assert np.array_equal(result, v["result_double"][keep])
    assert keep.sum() > 10000


def test_requantise_refuses_every_vector_that_wraps():
    v = vectors_io.requantise_vectors()
    for index in np.flatnonzero(v["overflow_double"]):
        one = v["value"][index : index + 1]
        with pytest.raises(kernels.KernelOverflowError):
            kernels.requantise(one, int(v["multiplier"][index]), int(v["shift"][index]))


def test_doubling_high_multiply_scalar_vectors():
    v = vectors_io.requantise_vectors()
    result = doubling_high_multiply(v["dhm_a"].astype(np.int64), v["dhm_b"].astype(np.int64))
    # The vectors saturate the one product that leaves int32.
    assert np.array_equal(np.minimum(result, 2**31 - 1), v["dhm_result"])


def test_divide_by_power_of_two_scalar_vectors():
    v = vectors_io.requantise_vectors()
    value = v["divpow2_value"].astype(np.int64)
    result = divide_by_power_of_two(value, v["divpow2_exponent"].astype(np.int64))
    assert np.array_equal(result, v["divpow2_result"])


@st.composite
def fields(draw):
    width = draw(st.integers(0, 32))
    signed = draw(st.booleans())
    low, high = 0, (1 << width) - 1
    if signed and width:
        low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
    values = draw(st.lists(st.integers(low, high), max_size=40))
    return np.array(values, np.int64), width, signed


@given(fields())
@settings(deadline=None)
def test_bit_fields_round_trip(field):
    values, width, signed = field
    packed = kernels.pack(values, width, signed=signed)
    assert packed.dtype == np.uint8
    # The stream as one big integer is the definition itself.
    stream = sum((int(v) & ((1 << width) - 1)) << (i * width) for i, v in enumerate(values))
    assert packed.tobytes() == stream.to_bytes((len(values) * width + 7) // 8, "little")
    assert np.array_equal(kernels.unpack(packed, len(values), width, signed=signed), values)


@given(st.lists(st.integers(-8, 7), max_size=33))
@settings(deadline=None)
def test_int4_weights_round_trip(values):
    weights = np.array(values, np.int8)
    packed = kernels.pack_s4(weights)
    assert all(packed[i // 2] & 15 == values[i] & 15 for i in range(0, len(values), 2))
    assert all(packed[i // 2] >> 4 == values[i] & 15 for i in range(1, len(values), 2))
    assert np.array_equal(kernels.unpack_s4(packed, weights.shape), weights)
    assert np.array_equal(kernels.unpack_s4(packed.view(np.int8), weights.shape), weights)


def test_unpack_refuses_what_is_not_a_field():
    one = np.array([0b1000_0101], np.uint8)
    for data, count, width in [
        (one, 1, 4),  # a bit after the last value
        (one, 3, 4),  # too short
        (one, 0, 4),  # too long
        (one, 1, 33),
        (one.view(np.int8), 2, 4),
    ]:
        with pytest.raises(kernels.KernelArgumentError):
            kernels.unpack(data, count, width, signed=False)
    for value, width, signed in [(2, 1, False), (1, 1, True), (-1, 3, False), (1, 0, False)]:
        with pytest.raises(kernels.KernelArgumentError):
            kernels.pack(np.array([value]), width, signed=signed)
    with pytest.raises(kernels.KernelArgumentError):
        kernels.pack(np.array([0.5]), 4, signed=False)
    with pytest.raises(kernels.KernelArgumentError):
        kernels.pack_s4(np.array([8], np.int8))


def test_table_is_indexed_by_the_value_plus_128():
    x = np.arange(-128, 128).astype(np.int8)
    assert np.array_equal(kernels.table_s8(x, x), x)
    assert np.array_equal(kernels.table_s8(x.reshape(16, 16), x[::-1].copy()), x[::-1].reshape(16, 16))
    with pytest.raises(kernels.KernelArgumentError):
        kernels.table_s8(x, x[:255])
    with pytest.raises(kernels.KernelArgumentError):
        kernels.table_s8(x.astype(np.int16), x)


def test_clamp_is_relu_with_the_zero_point_as_lower_bound():
    x = np.arange(-128, 128).astype(np.int8)
    assert np.array_equal(kernels.clamp_s8(x, act_min=-3, act_max=100), np.clip(x, -3, 100))
    assert kernels.clamp_s8(x, act_min=-3, act_max=100).dtype == np.int8
    assert np.array_equal(kernels.relu_s8(x), np.maximum(x, 0))
    with pytest.raises(kernels.KernelArgumentError):
        kernels.relu_s8(x.astype(np.int32))


def conv_arguments() -> tuple[list, dict]:
    """Valid arguments of conv_s8 that each refusal below spoils in one place."""
    x = np.full((1, 4, 4, 4), 100, np.int8)
    w = np.full((2, 3, 3, 4), 100, np.int8)
    return [x, w, np.zeros(2, np.int32), np.full(2, 1 << 30, np.int32), np.zeros(2, np.int32)], {}


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, np.zeros((1, 4, 4, 4), np.int16)),
        (0, np.zeros((4, 4, 4), np.int8)),
        (0, np.zeros((1, 2, 2, 4), np.int8)),
        (0, np.zeros((1, 0, 4, 4), np.int8)),
        (0, [[1]]),
        (1, np.zeros((2, 3, 3, 4), np.uint8)),
        (1, np.zeros((2, 3, 3, 3), np.int8)),
        (1, np.zeros((2, 0, 3, 4), np.int8)),
        (1, np.zeros((3, 3, 3, 2), np.int8)),
        (2, np.zeros(2, np.int64)),
        (2, np.zeros(3, np.int32)),
        (3, np.zeros(2, np.float32)),
        (3, np.zeros((1, 2), np.int32)),
        (4, np.array([0, 31], np.int32)),
        (4, np.array([0, -32], np.int32)),
        ("stride", (0, 1)),
        ("stride", 1),
        ("stride", (1.0, 1)),
        ("padding", (-1, 0)),
        ("dilation", (1, 0)),
        ("dilation", (1, True)),
        ("output_size", (0, 1)),
        ("input_offset", 129),
        ("input_offset", -128),
        ("output_offset", 128),
        ("act_min", -129),
        ("act_max", -129),
        ("act_max", 3.0),
    ],
)
def test_conv_refuses_a_wrong_argument(position, value):
    args, kwargs = conv_arguments()
    kernels.conv_s8(*args, **kwargs)
    if isinstance(position, str):
        kwargs[position] = value
    else:
        args[position] = value
    with pytest.raises(kernels.KernelArgumentError) as caught:
        kernels.conv_s8(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_other_kernels_refuse_wrong_arguments():
    x = np.zeros((1, 2, 2, 2), np.int8)
    row = np.zeros((1, 3), np.int8)
    scale = (np.zeros(2, np.int32), np.zeros(2, np.int32))
    add = dict.fromkeys(["input1_offset", "input1_mult", "input1_shift", "input2_offset"], 0)
    add |= dict.fromkeys(["input2_mult", "input2_shift", "out_offset", "out_mult", "out_shift"], 0)
    attempts = [
        lambda: kernels.depthwise_s8(x, np.zeros((1, 1, 1, 3), np.int8), None, *scale),
        lambda: kernels.depthwise_s8(x, np.zeros((2, 1, 1, 2), np.int8), None, *scale),
        lambda: kernels.conv1x1_s8(x, np.zeros((2, 1, 1, 2), np.int8), None, *scale),
        lambda: kernels.conv_s4(x, np.zeros(3, np.uint8), None, *scale, kernel=(1, 1)),
        lambda: kernels.conv_s4(x, np.zeros(2, np.int16), None, *scale, kernel=(1, 1)),
        lambda: kernels.fully_connected_s8(row, np.zeros((2, 4), np.int8), None, 0, 0),
        lambda: kernels.fully_connected_s8(row, np.zeros((2, 3), np.int8), None, 0.5, 0),
        lambda: kernels.fully_connected_s8(row, np.zeros((3, 3), np.int8), None, *scale),
        lambda: kernels.fully_connected_s8(row, row, None, 0, 0, filter_offset=129),
        lambda: kernels.fully_connected_s4(row, np.zeros(2, np.uint8), None, 0, 0, rows=0),
        lambda: kernels.avgpool_s8(x, kernel=(2, 2), padding=(2, 0), output_size=(1, 1)),
        lambda: kernels.maxpool_s8(x, kernel=(2, 2), output_size=(3, 1)),
        lambda: kernels.maxpool_s8(x, kernel=(3, 3)),
        lambda: kernels.add_s8(x, row, left_shift=20, **add),
        lambda: kernels.add_s8(x, x, left_shift=23, **add),
        lambda: kernels.mul_s8(x, x, input1_offset=0, input2_offset=0, out_offset=0, out_mult=1, out_shift=31),
        lambda: kernels.softmax_s8(row, mult=-1, shift=0, diff_min=0),
        lambda: kernels.requantise(np.zeros(2, np.int16), 0, 0),
        lambda: kernels.requantise(np.zeros(2, np.int32), *(np.zeros(3, np.int32),) * 2),
    ]
    for attempt in attempts:
        with pytest.raises(kernels.KernelArgumentError):
            attempt()


def test_sums_that_leave_int32_are_refused():
    args, kwargs = conv_arguments()
    args[2] = np.array([0, 2**31 - 1], np.int32)
    with pytest.raises(kernels.KernelOverflowError):
        kernels.conv_s8(*args, **kwargs)
    # The same bias is fine where the products bring the sum back into int32.
    args[1] = -args[1]
    kernels.conv_s8(*args, **kwargs)
    with pytest.raises(kernels.KernelOverflowError):
        kernels.requantise(np.array([1 << 29], np.int32), 1 << 30, 2)
    with pytest.raises(kernels.KernelOverflowError):
        kernels.requantise(np.array([1 << 31], np.int64), 1 << 30, 0)
    with pytest.raises(kernels.KernelOverflowError):
        kernels.softmax_s8(np.zeros((1, 512), np.int8), mult=1 << 30, shift=20, diff_min=-100)


def test_arguments_are_not_written():
    for kernel in vectors_io.KERNELS:
        case = next(case for case in vectors_io.cases(kernel) if case.tier == "core")
        before = {name: array.tobytes() for name, array in case.arrays.items()}
        compute(case)
        assert before == {name: array.tobytes() for name, array in case.arrays.items()}


def test_an_empty_batch_gives_an_empty_result():
    args, kwargs = conv_arguments()
    args[0] = args[0][:0]
    assert kernels.conv_s8(*args, **kwargs).shape == (0, 2, 2, 2)
    assert kernels.maxpool_s8(args[0], kernel=(2, 2)).shape == (0, 3, 3, 4)
    assert kernels.softmax_s8(np.zeros((0, 3), np.int8), mult=1, shift=1, diff_min=0).shape == (0, 3)
