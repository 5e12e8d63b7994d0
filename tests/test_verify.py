"""`compare` finds a planted bit, in every telling, in kernels and in logits, and says where it is."""

import numpy as np
import pytest
import random_images

from pyhtpw.errors import ConfigError, MissingToolError, VerifyError
from pyhtpw.image import write
from pyhtpw.model import Image
from pyhtpw.target.emulator import Emulator
from pyhtpw.verify import Emulated, Native, Numpy, compare, sample_windows


class Planted:
    """A telling with one bit of one kernel or of one logit flipped."""

    def __init__(self, telling, kernel=None, logit=None):
        self.name, self.windows = telling.name, telling.windows
        self._telling, self._kernel, self._logit = telling, kernel, logit

    def kernels(self):
        kernels = {i: np.array(k, order="C") for i, k in self._telling.kernels().items()}
        if self._kernel is not None:
            op, at = self._kernel
            kernels[op].reshape(-1)[at] ^= 4
        return kernels

    def logits(self, x):
        logits = np.array(self._telling.logits(x))
        if self._logit is not None:
            logits[self._logit] ^= 1
        return logits


@pytest.fixture(scope="module")
def image():
    return Image(write(random_images.example()))


@pytest.fixture(scope="module")
def tellings(image):
    found = [Numpy(image, 20), Native(image, 20)]
    try:
        emulator = Emulator("cortex-m4")
        found.append(Emulated(emulator.open(image.data), windows=4))
    except MissingToolError as error:
        emulator = None
        print(f"NOT RUN: planted bits on Cortex-M4: {error}")
    yield found
    if emulator is not None:
        emulator.close()


def test_tellings_agree(image, tellings):
    pairs = compare(image, sample_windows(image, 20), tellings)
    assert len(pairs) == len(tellings) * (len(tellings) - 1) // 2
    assert all(p.differ == 0 and p.first is None for p in pairs)
    assert pairs[0].windows == 20 and pairs[0].logit_bytes == 60
    assert all(p.kernel_bytes == sum(k.bytes for k in image.cached) for p in pairs)
    assert all(p.windows == 4 for p in pairs[1:])


@pytest.mark.parametrize("which", [0, 1, 2])
def test_planted_kernel_bit_is_found(image, tellings, which):
    if which >= len(tellings):
        pytest.skip("NOT RUN: planted bit on Cortex-M4: no cross compiler or emulator")
    op, shape = image.cached[1].op, image.parsed.ops[image.cached[1].op].weight_shape
    changed = list(tellings)
    changed[which] = Planted(tellings[which], kernel=(op, 10))
    pairs = compare(image, sample_windows(image, 4), changed)
    value = int(tellings[which].kernels()[op].reshape(-1)[10])
    for pair in pairs:
        hit = changed[which].name in (pair.a, pair.b)
        assert pair.differ == int(hit)
        if hit:
            at = tuple(int(i) for i in np.unravel_index(10, shape))
            assert f"operator {op}) at {at}" in pair.first
            assert f"{changed[which].name} {value ^ 4}" in pair.first


@pytest.mark.parametrize("which", [0, 1, 2])
def test_planted_logit_bit_is_found(image, tellings, which):
    if which >= len(tellings):
        pytest.skip("NOT RUN: planted bit on Cortex-M4: no cross compiler or emulator")
    changed = list(tellings)
    changed[which] = Planted(tellings[which], logit=(2, 1))
    for pair in compare(image, sample_windows(image, 4), changed):
        hit = changed[which].name in (pair.a, pair.b)
        assert pair.differ == int(hit)
        assert not hit or "window 2, class 1" in pair.first


def test_missing_kernels_are_an_error(image):
    class Lacking(Planted):
        def kernels(self):
            kernels = super().kernels()
            kernels.popitem()
            return kernels

    with pytest.raises(VerifyError, match="do not give"):
        compare(image, sample_windows(image, 2), [Numpy(image), Lacking(Native(image))])


def test_nothing_to_compare_is_an_error(image):
    with pytest.raises(ConfigError):
        compare(image, sample_windows(image, 2), [Numpy(image)])


def test_sample_windows_cover_the_range_and_repeat(image):
    x = sample_windows(image, 30, seed=4)
    assert np.array_equal(x, sample_windows(image, 30, seed=4)) and not np.array_equal(x, sample_windows(image, 30))
    assert x.min() == -128 and x.max() == 127 and (x[0] == -128).all()
