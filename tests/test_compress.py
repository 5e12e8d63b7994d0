"""Images with generated kernels out of images with stored ones, without a float network."""

import numpy as np
import pytest
import tflite_networks

from pyhtpw.errors import ConfigError
from pyhtpw.export import schema
from pyhtpw.export.compress import compress, expanded_model
from pyhtpw.export.from_tflite import from_tflite
from pyhtpw.image import write
from pyhtpw.image.integer import HEADS
from pyhtpw.image.reader import read_model
from pyhtpw.model import Image
from pyhtpw.quant.generator import kernel_of

pytest.importorskip("tflite", reason="NOT RUN: the extra 'export' is missing")


@pytest.fixture(scope="module")
def image() -> Image:
    return Image(write(from_tflite(schema.write(tflite_networks.mobilenet(1))).model), "net")


@pytest.fixture(scope="module")
def windows(image) -> np.ndarray:
    t = image.parsed.input
    return np.random.default_rng(3).integers(-128, 128, (96, t.h, t.w, t.c)).astype(np.int8)


def test_a_given_head_makes_all_pointwise_kernels_and_nothing_else_changes(image):
    made = compress(image, 10_000, heads={"pw": "tiled:hidden=0,dz=4,tile=8"})
    assert made.agreement is None
    for old, new in zip(image.parsed.ops, made.image.parsed.ops, strict=True):
        if old.kind == "conv1x1":
            assert new.source in HEADS and 0 < made.errors[old.name] < 1
        else:
            assert (old.source, old.window, old.out) == (new.source, new.window, new.out)
    assert len(made.image.data) < len(image.data)


def test_reported_errors_are_those_of_the_kernels_that_the_library_makes(image):
    made = compress(image, 10_000, heads={"pw": "seeded"})
    old, new = read_model(image.data), read_model(made.image.data)
    for name, error in made.errors.items():
        i = [op.name for op in old.ops].index(name)
        real = []
        for op, kernel in ((old.ops[i], kernel_of(old, old.ops[i])), (new.ops[i], made.image.kernels()[i].reshape(-1, old.ops[i].weights.values.shape[1]))):
            real.append(kernel * np.broadcast_to(op.requant.multipliers * 2.0 ** (op.requant.shifts - 31.0), len(kernel))[:, None])
        assert error == pytest.approx(np.linalg.norm(real[1] - real[0]) / np.linalg.norm(real[0]), rel=1e-9)


def test_the_search_keeps_the_budget_and_windows_help(image, windows):
    budget = len(image.data) - 500
    blind = compress(image, budget, evaluations=6)
    seeing = compress(image, budget, windows, evaluations=6)
    wanted = image.run_batch(windows[48:]).astype(int)
    for made in (blind, seeing):
        assert len(made.image.data) <= budget and len(made.tried) >= 6
    assert seeing.agreement == np.mean(seeing.image.run_batch(windows[48:]).argmax(1) == wanted.argmax(1))

    def gap(made):
        return np.mean((made.image.run_batch(windows[48:]) - wanted) ** 2)

    assert gap(seeing) <= gap(blind)
    assert write(compress(image, budget, windows, evaluations=6).model) == seeing.image.data


def test_windows_mend_multipliers_and_biases(image, windows):
    """With the same coarse kernels, logits are nearer to the original's on windows that were not fitted."""
    heads = {"pw": "stored:bits=2"}
    blind, seeing = compress(image, 10_000, heads=heads), compress(image, 10_000, windows, heads=heads)
    wanted = image.run_batch(windows[48:]).astype(int)
    gaps = [np.mean((made.image.run_batch(windows[48:]) - wanted) ** 2.0) for made in (blind, seeing)]
    assert gaps[1] < gaps[0]


def test_generated_kernels_are_expanded_first(image):
    made = compress(image, 10_000, heads={"pw": "tiled:hidden=0,dz=4,tile=8"}).image
    plain = Image(write(expanded_model(made)))
    x = np.random.default_rng(0).integers(-128, 128, (8, made.plan.input)).astype(np.int8)
    np.testing.assert_array_equal(plain.run_batch(x), made.run_batch(x))
    assert not any(op.generated for op in plain.parsed.ops)


def test_what_makes_no_sense_is_said(image, windows):
    with pytest.raises(ConfigError, match="a budget of 100 bytes cannot be met: the smallest image is"):
        compress(image, 100, heads={"pw": "seeded"})
    with pytest.raises(ConfigError, match="no pointwise layer is called nobody; there are conv1x12"):
        compress(image, 9000, heads={"nobody": "seeded"})
    with pytest.raises(ConfigError, match="3 windows are too few"):
        compress(image, 9000, windows[:3])
    b = tflite_networks.Builder(0, 4, 4, 2)
    network = b.classifier(b.pool(b.input), 3, softmax=False)
    with pytest.raises(ConfigError, match="no pointwise"):
        compress(Image(write(from_tflite(schema.write(network)).model)), 9000)
