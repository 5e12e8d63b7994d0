"""Corners of the x86 backends that hand over to the portable kernels: beyond what their vector code is proven for."""

from __future__ import annotations

import numpy as np
import pytest

import reference.kernels
from pyhtpw import _native, kernels

BACKENDS = _native.available_backends()


def int8(seed: int, *shape: int) -> np.ndarray:
    """Noise with extremes."""
    x = np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)
    x.reshape(-1)[:2] = -128, 127
    return x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("products", [16384, 16385, 20011])
def test_sums_of_more_products_than_vectors_requantise(backend, products):
    x, w, bias = int8(0, 3, products), int8(1, 19, products), np.arange(19, dtype=np.int32) * 1000
    scale = np.full(19, 1 << 30, np.int32), np.full(19, -14, np.int32)
    expected = reference.kernels.fully_connected_s8(x, w, bias, *scale, input_offset=127)
    assert np.unique(expected).size > 10
    assert np.array_equal(kernels.fully_connected_s8(x, w, bias, *scale, input_offset=127, backend=backend), expected)
    rows, pointwise = x.reshape(3, 1, 1, products), expected.reshape(3, 1, 1, 19)
    assert np.array_equal(kernels.conv1x1_cached_s8(rows, w, bias, *scale, input_offset=127, backend=backend), pointwise)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [(1, 128), (1, 129), (129, 1), (12, 11), (128, 1)])
def test_depthwise_kernels_of_more_taps_than_vectors_take(backend, kernel):
    x, w = int8(2, 1, 5, 40, 17), int8(3, 1, *kernel, 17)
    scale = np.full(17, 1 << 30, np.int32), np.full(17, -8, np.int32)
    keywords = {"padding": (kernel[0] // 2, kernel[1] // 2), "output_size": (5, 40), "input_offset": -3}
    expected = reference.kernels.depthwise_s8(x, w, None, *scale, **keywords)
    assert np.array_equal(kernels.depthwise_s8(x, w, None, *scale, **keywords, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"left_shift": 21}, {"left_shift": 22}, {"input1_shift": -30}, {"input2_shift": -31}, {"out_shift": -30}, {"input1_shift": 1},
        {"input2_shift": 2}, {"out_shift": 1}, {"input1_mult": (1 << 30) + 1}, {"input2_shift": -29, "out_shift": -29},
    ],
)  # fmt: skip
def test_sums_of_tensors_with_scales_that_vectors_do_not_take(backend, changes):
    a, b = int8(4, 1, 3, 7, 11), int8(5, 1, 3, 7, 11)
    scalars = {
        "input1_offset": 5, "input1_mult": 1 << 30, "input1_shift": -1, "input2_offset": -7, "input2_mult": 3 << 29, "input2_shift": -2,
        "left_shift": 20, "out_offset": 3, "out_mult": 1 << 30, "out_shift": -18,
    } | changes  # fmt: skip
    expected = reference.kernels.add_s8(a, b, **scalars)
    assert np.array_equal(kernels.add_s8(a, b, **scalars, backend=backend), expected)
