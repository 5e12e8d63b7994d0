"""The Python face of the C kernels: golden vectors of CMSIS-NN, refusals, overflow bounds, memory layouts."""

import numpy as np
import pytest
import strategies as own
import vectors_io

from pyhtpw import kernels
from pyhtpw._native import ffi, lib
from pyhtpw.errors import HtpwError, KernelError
from pyhtpw.executor import Host, Struct

INT32_MAX = 2**31 - 1
BACKENDS = kernels.backends()


# Golden vectors.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", vectors_io.KERNELS)
def test_golden_vectors(kernel: str, backend: str) -> None:
    """Every output byte; only a case whose arithmetic leaves int32 may be refused instead, and not all of those are."""
    ran = dict.fromkeys(vectors_io.TIERS, 0)
    for case in vectors_io.cases(kernel):
        name, args, keywords = vectors_io.arguments(case)
        try:
            got = getattr(kernels, name)(*args, backend=backend, **keywords)
        except KernelError as error:
            assert case.tier == "wrap", f"{case}: {error}"
            continue
        assert got.dtype == np.int8 and got.shape == case.expected.shape, str(case)
        assert got.tobytes() == case.expected.tobytes(), f"{case}: {(got != case.expected).sum()} bytes differ"
        ran[case.tier] += 1
    assert ran["core"] >= 20


def test_golden_requantise() -> None:
    v = vectors_io.requantise_vectors()
    got = kernels.requantise(v["value"], v["multiplier"], v["shift"])
    assert got.dtype == np.int32 and len(got) > 10000
    assert np.array_equal(got, v["result_double"])


# Refusals: one valid call of each kind, and what must not be changed in it.


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int8)


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


M, S = int32(2**30, 2**30), int32(0, 0)
LINEAR = {"bias": int32(1, 2), "multiplier": M, "shift": S}
POINTWISE = {"x": zeros(1, 2, 3, 4), "w": zeros(2, 4), **LINEAR}
VALID = {
    "conv_s8": {"x": zeros(1, 5, 5, 4), "w": zeros(2, 3, 3, 4), **LINEAR},
    "conv_s4": {"x": zeros(1, 5, 5, 4), "w": np.zeros(36, np.uint8), "kernel": (3, 3), **LINEAR},
    "conv1x1_s8": POINTWISE,
    "conv1x1_s4": POINTWISE | {"w": np.zeros(4, np.uint8)},
    "depthwise_s8": {"x": zeros(1, 5, 5, 2), "w": zeros(1, 3, 3, 2), **LINEAR},
    "depthwise_s4": {"x": zeros(1, 5, 5, 2), "w": np.zeros(9, np.uint8), "kernel": (3, 3), **LINEAR},
    "fully_connected_s8": {"x": zeros(3, 4), "w": zeros(2, 4), **LINEAR},
    "fully_connected_s4": {"x": zeros(3, 4), "w": np.zeros(4, np.uint8), "rows": 2, **LINEAR},
    "avgpool_s8": {"x": zeros(1, 5, 5, 4), "kernel": (2, 2)},
    "maxpool_s8": {"x": zeros(1, 5, 5, 4), "kernel": (2, 2)},
    "mul_s8": {"a": zeros(3), "b": zeros(3), "input1_offset": 0, "input2_offset": 0, "out_offset": 0, "out_mult": 1}
    | {"out_shift": 0},
    "softmax_s8": {"x": zeros(2, 9), "mult": 2**30, "shift": 20, "diff_min": -100},
    "clamp_s8": {"x": zeros(3), "act_min": -1, "act_max": 1},
    "relu_s8": {"x": zeros(3)},
    "relu6_s8": {"x": zeros(3)},
    "table_s8": {"x": zeros(3), "table": zeros(256)},
    "requantise": {"acc": int32(1, 2), "multiplier": 1, "shift": 0},
    "pack_bits": {"values": int32(1, -2), "bits": 2},
    "unpack_bits": {"stream": np.zeros(3, np.uint8), "n": 6, "bits": 4},
}
TERM = {"mult": 2**30, "shift": 0, "offset": 0}
VALID["add_s8"] = {"a": zeros(3), "b": zeros(3), "left_shift": 20} | {
    f"{part}_{field}": value for part in ("input1", "input2", "out") for field, value in TERM.items()
}

LINEAR_FAULTS = {
    "x": [zeros(4), zeros(1, 2, 3, 5, 7), np.zeros((1, 5, 5, 4), np.uint8), [[0]], None],
    "w": [zeros(3), zeros(2, 4, 7, 7, 7), np.zeros((2, 4), np.int16), np.zeros(99, np.uint8)],
    "bias": [int32(1), np.array([1, 2]), 3, np.array([1.0, 2.0]), int32(INT32_MAX, -INT32_MAX - 1).reshape(1, 2)],
    "multiplier": [int32(1, 2, 3), int32(1, -1), np.array([1, 2]), 1.5, -1, 2**31, M.astype(">i4"), 2**30],
    "shift": [int32(0), int32(0, 31), int32(-32, 0), "0", None],
    "input_offset": [-128, 129, 0.0],
    "output_offset": [-129, 128, None],
    "act_min": [-129, 128],
    "act_max": [128, -129, 1.0],
    "backend": ["", "avx1024", 1],
}
WINDOW_FAULTS = {
    "stride": [(0, 1), (1,), 1, (1, -1), (1.0, 1), (2**31, 1)],
    "padding": [(-1, 0), (0, 0, 0, 0), "same!"],
    "dilation": [(0, 1), (9, 9), (1, 2**30)],
    "output_size": [(0, 1), (1, 1, 1), (2**20, 2**20), (-1, 3)],
}
POOL_FAULTS = {
    "x": [zeros(5, 5), zeros(0, 5, 5, 4), np.zeros((1, 5, 5, 4), np.float32)],
    "kernel": [(0, 1), (6, 1), 3],
    "stride": WINDOW_FAULTS["stride"],
    "padding": [(2, 0), (0, 2), (-1, 0)],
    "output_size": [(6, 5), (5, 6), (0, 1)],
    "act_min": [128],
    "backend": ["avx1024"],
}
ELEMENTWISE_FAULTS = {
    "a": [zeros(2), np.zeros(3, np.int16)],
    "b": [zeros(3, 1), np.zeros(3, np.uint8)],
    "input1_offset": [-128, 129],
    "input2_offset": [-128, 129],
    "out_offset": [-129, 128],
    "out_mult": [-1, 2**31],
    "out_shift": [-32, 31],
    "act_max": [-129],
    "backend": ["avx1024"],
}
X_FAULTS = {"x": [np.zeros(3, np.uint8), np.zeros(3, np.int32), 7], "backend": ["avx1024"]}
FAULTS = {name: LINEAR_FAULTS for name in VALID if name.startswith(("conv", "fully", "depthwise"))}
FAULTS |= dict.fromkeys(("conv_s8", "conv_s4", "depthwise_s8", "depthwise_s4"), LINEAR_FAULTS | WINDOW_FAULTS)
FAULTS["conv_s4"] = FAULTS["conv_s4"] | {"kernel": [(3, 0), (2, 3)], "groups": [0, 3, -1]}
FAULTS["depthwise_s4"] = FAULTS["depthwise_s4"] | {"kernel": [(3, 0), (2, 3)]}
FAULTS["fully_connected_s4"] = LINEAR_FAULTS | {"rows": [0, 1, 9]}
FAULTS["fully_connected_s8"] = LINEAR_FAULTS | {"filter_offset": [-128, 129]}
FAULTS |= {"avgpool_s8": POOL_FAULTS, "maxpool_s8": POOL_FAULTS, "mul_s8": ELEMENTWISE_FAULTS}
FAULTS["add_s8"] = ELEMENTWISE_FAULTS | {"left_shift": [15, 23], "input1_mult": [-1], "input2_shift": [31]}
FAULTS["softmax_s8"] = {
    "x": [zeros(9), zeros(2, 512), zeros(0, 3)],
    "mult": [-1, 2**31],
    "shift": [-1, 31],
    "diff_min": [1],
    "backend": ["avx1024"],
}
FAULTS["clamp_s8"] = X_FAULTS | {"act_min": [-129, 2], "act_max": [-2, 128]}
FAULTS |= {"relu_s8": X_FAULTS, "relu6_s8": X_FAULTS}
FAULTS["table_s8"] = X_FAULTS | {"table": [zeros(255), np.zeros(256, np.uint8)]}
FAULTS["requantise"] = {
    "acc": [np.array([1, 2]), 2**31, 0.5],
    "multiplier": [2**31, int32(1, 2, 3)],
    "shift": [31, -32, int32(0, 31)],
}
FAULTS["pack_bits"] = {"values": [int32(2, 0), int32(0, -3), np.zeros(2), [1]], "bits": [33, -1, 0, 1]}
FAULTS["unpack_bits"] = {"stream": [zeros(3), np.zeros((3, 1), np.uint8)], "n": [7, -1], "bits": [33, -1, 5]}


@pytest.mark.parametrize("name", VALID)
def test_faulty_arguments_are_refused(name: str) -> None:
    function = getattr(kernels, name)
    function(**VALID[name])
    for argument, faults in FAULTS[name].items():
        for fault in faults:
            with pytest.raises(KernelError):
                pytest.fail(f"{argument}={fault!r} gave {function(**VALID[name] | {argument: fault})!r}")


def test_refusals_are_one_line_errors_of_this_package() -> None:
    with pytest.raises(KernelError) as caught:
        kernels.relu_s8(np.zeros(3, np.float32))
    assert isinstance(caught.value, HtpwError) and isinstance(caught.value, ValueError)
    assert str(caught.value) == "x must be an array of int8, not float32"


def test_channels_must_match() -> None:
    for name, change in {
        "conv_s8": {"w": zeros(2, 3, 3, 3)},
        "conv1x1_s8": {"w": zeros(2, 5)},
        "depthwise_s8": {"x": zeros(1, 5, 5, 3)},
        "depthwise_s4": {"x": zeros(1, 5, 5, 3)},
        "fully_connected_s8": {"x": zeros(3, 5)},
    }.items():
        with pytest.raises(KernelError):
            getattr(kernels, name)(**VALID[name] | change)
    groups_do_not_divide_outputs = {"x": zeros(1, 5, 5, 6), "w": zeros(2, 3, 3, 2)}
    with pytest.raises(KernelError, match="3 groups"):
        kernels.conv_s8(**VALID["conv_s8"] | groups_do_not_divide_outputs)


# Overflow.


@pytest.mark.parametrize("sign", (1, -1))
@pytest.mark.parametrize("name", [name for name in VALID if name in FAULTS and "bias" in VALID[name]])
def test_overflow_is_refused_exactly(name: str, sign: int) -> None:
    """x = 127 and offset 128 with the largest weights: a bias may fill what is left of int32, and no more."""
    call = VALID[name] | {"input_offset": 128}
    x, w = call["x"] + np.int8(127), call["w"]
    largest = 7 if w.dtype == np.uint8 else 127
    w = np.full_like(w, 0x77 if w.dtype == np.uint8 else 127)
    peak = {"conv": 36, "conv1x1": 4, "depthwise": 9, "fully_connected": 4}[name[:-3]] * 255 * largest
    if sign < 0:
        w = np.full_like(w, 0x99) if w.dtype == np.uint8 else -w
    room = INT32_MAX - peak if sign > 0 else INT32_MAX + 1 - peak
    function = getattr(kernels, name)
    accepted = function(**call | {"x": x, "w": w, "bias": int32(0, sign * room)})
    assert accepted.reshape(-1, 2)[0, 1] == (127 if sign > 0 else -128)
    over = call | {"x": x, "w": w, "bias": int32(0, sign * (room + 1))}
    with pytest.raises(KernelError, match="channel 1"):
        function(**over)
    function(**over | {"x": x - np.int8(1)})  # what counts is the range of the input given


def test_overflow_of_a_partial_sum_is_refused() -> None:
    """The sum itself is the bias alone, but an order of summation exists that leaves int32."""
    x, w = np.full((1, 2), 100, np.int8), np.array([[1, -1]], np.int8)
    kernels.fully_connected_s8(x, w, int32(INT32_MAX - 100), 0, 0)
    with pytest.raises(KernelError, match="int32"):
        kernels.fully_connected_s8(x, w, int32(INT32_MAX - 99), 0, 0)


def test_filter_offset_counts_towards_overflow() -> None:
    x, w = np.full((1, 3), 127, np.int8), np.full((1, 3), 127, np.int8)
    room, offsets = INT32_MAX - 3 * 255 * 255, {"input_offset": 128, "filter_offset": 128}
    assert kernels.fully_connected_s8(x, w, int32(room), 2**30, 0, **offsets).item() == 127
    with pytest.raises(KernelError):
        kernels.fully_connected_s8(x, w, int32(room + 1), 2**30, 0, **offsets)


# Memory.


def strided(array: np.ndarray) -> np.ndarray:
    """An equal array whose elements lie apart."""
    wide = np.zeros((*array.shape, 2), array.dtype)
    wide[..., 0] = array
    return wide[..., 0]


@pytest.mark.parametrize("change", (strided, lambda a: own.unaligned(a, 3), np.asfortranarray))
@pytest.mark.parametrize("kernel", ("conv_wrapper_s8", "conv_1x1_fast_s8", "dw_wrapper_s4", "fc_pc_s8", "add_s8"))
def test_any_layout_gives_the_same(kernel: str, change) -> None:
    for _, case in zip(range(8), vectors_io.cases(kernel), strict=False):
        name, args, keywords = vectors_io.arguments(case)
        moved = [change(a) if isinstance(a, np.ndarray) else a for a in args]
        for array in moved:
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        if case.tier != "wrap":
            assert getattr(kernels, name)(*moved, **keywords).tobytes() == case.expected.tobytes(), str(case)


def test_results_are_new_arrays() -> None:
    x = np.arange(-8, 8, dtype=np.int8)
    y = kernels.clamp_s8(x, act_min=-128, act_max=127)
    assert np.array_equal(x, y) and not np.shares_memory(x, y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_element_wise_kernels_work_in_place(backend: str) -> None:
    """The contract allows y to be an input of these."""
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-128, 128, 101, np.int8) for _ in range(2))
    table = rng.integers(-128, 128, 256, np.int8)
    add, mul = (  # a and b: offset, multiplier, shift; left shift; out: offset, multiplier, shift; clamp
        Struct("htpw_elementwise", (5, 2**30, 0, -7, 2**30, 0, 20, 0, 2**30, shift, -100, 100)) for shift in (-18, -6)
    )
    calls = {
        "add_s8": lambda run, a, b, y: run("add_s8", 101, add, a, b, y),
        "mul_s8": lambda run, a, b, y: run("mul_s8", 101, mul, a, b, y),
        "clamp_s8": lambda run, a, b, y: run("clamp_s8", 101, -50, 60, a, y),
        "table_s8": lambda run, a, b, y: run("table_s8", 101, table, a, y),
        "softmax_s8": lambda run, a, b, y: run("softmax_s8", 1, 101, 2**30, 22, -128, a, y),
    }
    for name, call in calls.items():
        run, expected = Host(backend).run, np.zeros(101, np.int8)
        call(run, a, b, expected)
        assert len(set(expected.tolist())) > 3
        for position in range(2 if name in ("add_s8", "mul_s8") else 1):
            arrays = [a.copy(), b.copy()]
            call(run, *arrays, arrays[position])
            assert np.array_equal(arrays[position], expected), name


# Windows, bits, backends.


def test_convolution_of_padding_alone_is_the_bias() -> None:
    x, w = np.full((1, 1, 1, 1), 50, np.int8), np.full((1, 1, 1, 1), 1, np.int8)
    y = kernels.conv_s8(x, w, int32(7), 2**30, 1, padding=(2, 1), output_size=(4, 3))
    assert y[0, :, :, 0].tolist() == [[7, 7, 7], [7, 7, 7], [7, 57, 7], [7, 7, 7]]


def test_empty_element_wise_calls() -> None:
    assert kernels.relu_s8(zeros(0)).shape == (0,)
    assert kernels.mul_s8(**VALID["mul_s8"] | {"a": zeros(0, 3), "b": zeros(0, 3)}).shape == (0, 3)


def test_bit_order() -> None:
    """docs/SPEC.md section 3: least significant first; of two nibbles the even one is the low one."""
    assert kernels.pack_bits(int32(1, 2, -1), 4).tolist() == [0x21, 0x0F]
    assert kernels.pack_bits(np.array([5, 1], np.uint16), 3, signed=False).tolist() == [0b001101]
    assert kernels.pack_bits(int32(0, 0), 0).tolist() == []
    assert kernels.unpack_bits(np.zeros(0, np.uint8), 3, 0).tolist() == [0, 0, 0]
    assert lib.htpw_bits_unsigned(ffi.NULL, 5, 0) == lib.htpw_bits_signed(ffi.NULL, 5, 0) == 0


@pytest.mark.parametrize("bits", range(1, 33))
def test_single_fields(bits: int) -> None:
    """Every position within a byte, both signs, and no influence of the bytes behind the stream."""
    count = 17
    values = np.random.default_rng(bits).integers(-(1 << (bits - 1)), 1 << (bits - 1), count)
    stream = kernels.pack_bits(values, bits)
    for behind in (0, 255):
        longer = np.append(stream, np.full(8, behind, np.uint8))
        data = ffi.from_buffer("uint8_t[]", longer)
        assert [lib.htpw_bits_signed(data, i, bits) for i in range(count)] == values.tolist()
        assert [lib.htpw_bits_unsigned(data, i, bits) for i in range(count)] == (values % (1 << bits)).tolist()


def test_backends() -> None:
    assert kernels.backends()[0] == "portable"
    with pytest.raises(KernelError, match="unknown backend 'nvfp5'.*portable"):
        kernels.relu_s8(zeros(1), backend="nvfp5")
