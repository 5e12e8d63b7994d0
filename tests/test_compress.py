"""Images with generated kernels out of images with stored ones, without a float network."""

import numpy as np
import pytest
import tflite_networks
from test_export_tflite import trained_like

from pyhtpw.errors import ConfigError
from pyhtpw.export import schema
from pyhtpw.export.compress import compress, expanded_model
from pyhtpw.export.finetune import float_network
from pyhtpw.export.from_tflite import from_tflite
from pyhtpw.image import write
from pyhtpw.image.integer import HEADS
from pyhtpw.image.reader import read_model
from pyhtpw.model import Image
from pyhtpw.quant.generator import kernel_of
from pyhtpw.train import Model

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
        before = kernel_of(old, old.ops[i])
        for op, kernel in ((old.ops[i], before), (new.ops[i], made.image.kernels()[i].reshape(before.shape))):
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
    x = np.random.default_rng(0).integers(-128, 128, (8, made.plan().input)).astype(np.int8)
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


# -- fine-tuning ------------------------------------------------------------------------------------------------------


def reals(model, logits: np.ndarray) -> np.ndarray:
    return (logits.astype(np.float64) - model.ops[-1].out.zero_point) * model.info.logit_scale


@pytest.fixture(scope="module")
def signal():
    """An image over time with stored kernels, and windows (synthetic; nothing is learnt)."""
    image, x = trained_like("tiny_separable")
    return Image(write(expanded_model(image)), "signal"), x


def test_the_float_network_of_an_image(signal):
    image, x = signal
    model = read_model(image.data)
    graph, params = float_network(model)
    floats = ((x.astype(np.float32) - model.input.zero_point) * np.float32(model.info.input_scale)).reshape(len(x), *graph.input_shape)
    found, wanted = Model(graph, params).infer(floats), reals(model, image.run_batch(x))
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.999
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 5 * model.info.logit_scale


def test_fine_tuning_brings_logits_nearer_and_keeps_the_input(signal):
    image, x = signal
    made = compress(image, len(image.data), x[:600], heads={"pw": "stored:bits=2"}, steps=300)
    assert "before 300 steps" in made.tuned and not made.tuned.startswith("not")
    plain = compress(image, len(image.data), x[:600], heads={"pw": "stored:bits=2"})
    wanted = reals(read_model(image.data), image.run_batch(x[600:]))  # windows that nothing has seen
    gaps = [np.mean((reals(m.model, m.image.run_batch(x[600:])) - wanted) ** 2) for m in (made, plain)]
    assert gaps[0] < gaps[1] / 2
    old, new = read_model(image.data), read_model(made.image.data)
    assert new.input == old.input and new.info.input_scale == old.info.input_scale and new.info.threshold == old.info.threshold


def test_networks_that_cannot_be_rebuilt_stay_as_they_were_fitted(image, windows):
    made = compress(image, 10_000, windows, heads={"pw": "stored:bits=4"}, steps=5)
    assert made.tuned == "not fine-tuned: the input has 16 rows: the trainer knows networks over time alone (height 1)"
    with pytest.raises(ConfigError, match="fine-tuning needs training windows"):
        compress(image, 10_000, heads={"pw": "stored:bits=4"}, steps=5)
