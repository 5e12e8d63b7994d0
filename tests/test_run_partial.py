"""`htpw_run_partial` and the hook: a window in parts gives the logits of a whole one, and misuse is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_parts import network

from pyhtpw import _native
from pyhtpw._native import ffi, lib
from pyhtpw.errors import ImageError
from pyhtpw.image.writer import write
from pyhtpw.model import Image

RESUME = _native.ERRORS[lib.HTPW_ERR_RESUME]
IMAGE = Image(write(network()), "network")
OPERATORS = len(network().ops)
WINDOWS = np.random.default_rng(4).integers(-128, 128, (3, IMAGE.plan().input)).astype(np.int8)


@pytest.mark.parametrize("backend", _native.available_backends())
@pytest.mark.parametrize("schedule", ["boot", "lazy"])
def test_any_step_gives_the_same_logits(backend, schedule):
    for step in (1, 2, 3, OPERATORS - 1, OPERATORS, OPERATORS + 5):
        context = IMAGE.bind(schedule, backend)
        for window in WINDOWS:
            out, calls, left = np.full(IMAGE.plan().output, 99, np.int8), 0, OPERATORS
            while left:
                left = context.run_partial(window, out, step)
                calls += 1
                assert left == max(OPERATORS - calls * step, 0)
                assert left == 0 or (out == 99).all(), "logits are written at the end only"
            assert np.array_equal(out, IMAGE.run(window, backend)) and calls == -(-OPERATORS // step)


@settings(deadline=None, max_examples=30)
@given(steps=st.lists(st.integers(1, OPERATORS), min_size=1, max_size=20), index=st.integers(0, 2))
def test_steps_may_differ(steps, index):
    context, out, left = IMAGE.bind(), np.empty(IMAGE.plan().output, np.int8), OPERATORS
    while left:
        step = steps.pop() if steps else 1
        assert context.run_partial(WINDOWS[index], out, step) == max(left - step, 0)
        left = max(left - step, 0)
    assert np.array_equal(out, IMAGE.run(WINDOWS[index]))


def test_misuse_is_refused_and_does_no_harm():
    context, out = IMAGE.bind(), np.empty(IMAGE.plan().output, np.int8)
    context.run_partial(WINDOWS[0], out, 2)
    with pytest.raises(RESUME):
        context.run_partial(WINDOWS[1], out, 1)
    with pytest.raises(RESUME):
        context.run_partial(WINDOWS[0], out.copy(), 1)
    with pytest.raises(RESUME):
        context.run(WINDOWS[0])
    with pytest.raises(ImageError, match="argument"):
        context.run_partial(WINDOWS[0], out, 0)
    with pytest.raises(ImageError, match="samples"):
        context.run_partial(WINDOWS[0][1:], out, 1)
    assert context.run_partial(WINDOWS[0], out, OPERATORS) == 0, "what was refused has changed nothing"
    assert np.array_equal(out, IMAGE.run(WINDOWS[0]))
    assert np.array_equal(context.run(WINDOWS[1]), IMAGE.run(WINDOWS[1]))
    context.run_partial(WINDOWS[0], out, 3)
    context.cancel()
    assert np.array_equal(context.run(WINDOWS[2]), IMAGE.run(WINDOWS[2]))
    assert lib.htpw_run_cancel(ffi.NULL) == lib.HTPW_ERR_ARGUMENT
    assert lib.htpw_set_hook(ffi.NULL, ffi.NULL, ffi.NULL) == lib.HTPW_ERR_ARGUMENT


def test_the_hook_stands_around_every_operator():
    context, told = IMAGE.bind(), []
    context.set_hook(lambda op, is_done: told.append((op, is_done)))
    whole = [(op, is_done) for op in range(OPERATORS) for is_done in (False, True)]
    assert np.array_equal(context.run(WINDOWS[0]), IMAGE.run(WINDOWS[0])) and told == whole
    told.clear()
    out = np.empty(IMAGE.plan().output, np.int8)
    while context.run_partial(WINDOWS[0], out, 2):
        pass
    assert told == whole
    told.clear()
    context.set_hook(None)
    context.run(WINDOWS[0])
    assert not told
