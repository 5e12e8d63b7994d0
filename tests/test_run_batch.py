"""Several windows at a time: operator by operator for all of them, the bytes are those of one run for each."""

import hypothesis.strategies as st
import numpy as np
import pytest
import random_images
import strategies  # noqa: F401 - registers the Hypothesis profiles
from hypothesis import given

from pyhtpw import _native
from pyhtpw._native import ffi, lib
from pyhtpw.errors import ImageError
from pyhtpw.image import write
from pyhtpw.model import _WINDOWS, Image


def many(context, x: np.ndarray, most: int, arena: np.ndarray, threads_took: int = 0) -> np.ndarray:
    """pyhtpw_run_many of one thread that takes `most` windows at a time; others have taken `threads_took` before."""
    out = np.full((len(x), context.plan.output), 77, np.int8)
    memory = _native.int8_pointer(x), context.plan.input, _native.int8_pointer(out), context.plan.output
    taken = ffi.new("size_t *", threads_took)
    place = ffi.cast("void *", arena.ctypes.data)
    _native.check(lib.pyhtpw_run_many(context._context, place, most, taken, len(x), *memory), "many")
    assert taken[0] >= len(x)
    return out


@given(random_images.models(), st.integers(0, 2**32 - 1), st.sampled_from(_native.available_backends()),
       st.sampled_from(["boot", "lazy"]), st.integers(1, 9), st.integers(1, 5))
def test_windows_together_are_windows_alone(model, seed, backend, schedule, n, most):
    """Every operator, head and width; memory of exactly the planned bytes for each window, dirty at first, is all that is written."""
    image = Image(write(model))
    x = random_images.inputs(model, n, seed).reshape(n, -1)
    expected = np.array([image.run(window, "portable") for window in x])
    context, guard = image.bind(schedule, backend), 64
    memory = _native.aligned(most * context.plan.arena + 2 * guard)
    memory[:] = np.random.default_rng(seed).integers(0, 256, len(memory))
    before = memory.copy()
    arena = memory[guard : len(memory) - guard]
    assert np.array_equal(many(context, x, most, arena), expected)
    assert np.array_equal(memory[:guard], before[:guard]) and np.array_equal(memory[-guard:], before[-guard:])
    assert np.array_equal(context.run(x[0]), expected[0])
    assert np.array_equal(image.run_batch(x, threads=1 + seed % 3, backend=backend), expected)


def test_threads_take_what_is_left():
    """What others have taken is not run again, and a window more than the parts is run too."""
    image = Image(write(random_images.example()))
    x = random_images.values(np.random.default_rng(3), (4 * _WINDOWS + 1, image.plan().input)).astype(np.int8)
    context = image.bind()
    arena = _native.aligned(_WINDOWS * image.plan().arena)
    found = many(context, x, _WINDOWS, arena, 2 * _WINDOWS)
    assert (found[: 2 * _WINDOWS] == 77).all()
    assert np.array_equal(found[2 * _WINDOWS :], [image.run(window) for window in x[2 * _WINDOWS :]])


def test_a_run_by_parts_is_not_spoilt():
    image = Image(write(random_images.example()))
    x = random_images.values(np.random.default_rng(4), (2, image.plan().input)).astype(np.int8)
    context, out = image.bind(), np.zeros(image.classes, np.int8)
    context.run_partial(x[0], out, 1)
    with pytest.raises(ImageError) as error:
        many(context, x, 2, _native.aligned(2 * image.plan().arena))
    assert error.value.code == lib.HTPW_ERR_RESUME
