"""Quantisation: factors, ranges, the integer generator, and integer networks beside their float ones."""

import hypothesis.strategies as st
import numpy as np
import pytest
import strategies  # noqa: F401 - registers the Hypothesis profiles
from hypothesis import given

from pyhtpw.errors import ConfigError, QuantiseError
from pyhtpw.image import write
from pyhtpw.image.integer import Stored, Tiled
from pyhtpw.model import Image
from pyhtpw.nets import GeneratorSpec, build
from pyhtpw.quant import quantise
from pyhtpw.quant.quantise import with_threshold
from pyhtpw.quant.scales import affine, fit_range, multiplier, requant
from pyhtpw.quant.store import load_model, save_model
from pyhtpw.train import Model


@given(st.floats(2.0**-30, 2.0**29))
def test_multiplier_is_within_half_a_unit(real):
    m, shift = multiplier(real)
    assert 1 << 14 <= m < 1 << 15 and -31 <= shift <= 30
    assert abs(m * 2.0 ** (shift - 15) - real) <= real * 2.0**-15


@pytest.mark.parametrize("real", [-1.0, np.nan, np.inf, 2.0**31])
def test_multiplier_refuses(real):
    with pytest.raises(QuantiseError, match="factor"):
        multiplier(real)


def test_multiplier_of_nothing():
    assert multiplier(0.0) == (0, 0) and multiplier(2.0**-40) == (0, 0)
    assert requant(np.array([0.0, 0.01]), np.array([0.0, 3.4])).shifts.tolist() == [-6, -6]


@given(st.floats(-1000, 0), st.floats(0, 1000))
def test_affine_represents_zero_and_its_ends(low, high):
    scale = affine(low, high)
    assert -128 <= scale.zero_point <= 127
    assert scale.dequantise(scale.quantise(np.zeros(1)))[0] == 0
    for end in (low, high):
        assert abs(scale.dequantise(scale.quantise(np.array([end])))[0] - end) <= 1.01 * scale.scale


def test_fit_range_clips_tails_only_if_asked():
    x = np.random.default_rng(0).normal(size=200_000)
    assert fit_range(x).scale < fit_range(x, clip=False).scale
    assert fit_range(x, clip=False).scale == affine(x.min(), x.max()).scale
    with pytest.raises(QuantiseError, match="not finite"):
        fit_range(np.array([1.0, np.inf]))


def trained(generated: bool = True, steps: int = 30, **options):
    """A small network whose statistics have settled on structured input, and that input."""
    graph = build("hypertinypw" if generated else "separable", t=96, widths=(16, 24, 24), strides=(2, 2, 1), stem=8, **options)
    rng = np.random.default_rng(5)
    x = np.cumsum(rng.standard_normal((64, 96, 1)), axis=1).astype(np.float32)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    model = Model(graph, seed=3)
    model.params["fc.weight"][...] *= 8  # logits with a spread worth comparing
    for _ in range(steps):
        model.forward(x, training=True)
    return graph, model, x


@pytest.mark.parametrize("generated", [True, False])
def test_integer_logits_follow_float_logits(generated):
    graph, model, x = trained(generated)
    image = Image(write(quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=100.0)))
    logits = image.run_batch(image.quantise(x)).astype(float)
    real = (logits - image.parsed.ops[-1].out.zero_point) * image.parsed.info.logit_scale
    wanted = model.infer(x)
    for c in range(2):
        assert np.corrcoef(real[:, c], wanted[:, c])[0, 1] > 0.97


def test_predicted_kernels_are_the_synthesised_ones():
    """The quantiser's idea of every kernel is what the C library makes of the image."""
    graph, model, x = trained(generator=GeneratorSpec(dz=3, hidden=(8, 12), tile=20, code_bits=6))
    from pyhtpw.quant.generator import quantise_generator

    integer = quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=100.0)
    predicted = quantise_generator(graph, model.state()).kernels
    kernels = Image(write(integer)).kernels()
    names = [op.name for op in integer.ops]
    assert {names[i] for i in kernels} == set(predicted) == {"pw2", "pw3"}
    for i, kernel in kernels.items():
        assert np.array_equal(kernel, predicted[names[i]].ravel())
        assert isinstance(integer.ops[i].weights, Tiled)
    assert isinstance(integer.ops[names.index("pw1")].weights, Stored)


def test_integer_kernels_are_close_to_the_float_ones():
    graph, model, _ = trained()
    from pyhtpw.quant.generator import quantise_generator

    made = quantise_generator(graph, model.state())
    for name, kernel in model.kernels().items():
        if name in made.kernels:
            assert np.abs(made.kernels[name] * made.scale - kernel).max() <= 3 * made.scale


def test_quantisation_repeats_and_stores(tmp_path):
    graph, model, x = trained()
    integer = with_threshold(quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=100.0), 0.35)
    again = quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=100.0)
    assert write(with_threshold(again, 0.35)) == write(integer)
    save_model(integer, tmp_path / "model.npz")
    assert write(load_model(tmp_path / "model.npz")) == write(integer)
    info = Image(write(integer)).parsed.info
    assert (info.threshold, info.classes, info.name) == (np.float32(0.35), ("a", "b"), "hypertinypw")


def test_bad_stores_are_named(tmp_path):
    for content in (b"", b"PK\x03\x04 but not really", b"hello"):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(ConfigError, match=r"x\.npz: not an integer model"):
            load_model(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", structure=np.array("[1, 2]"))
    with pytest.raises(ConfigError, match="not an integer model"):
        load_model(tmp_path / "y.npz")


def test_bad_models_are_named():
    graph, model, x = trained(steps=1)
    params = model.state()
    params["dw2.gamma"] = -params["dw2.gamma"]
    with pytest.raises(QuantiseError, match="node dw2: a normalisation gain"):
        quantise(graph, params, x, classes=("a", "b"), sample_rate=1.0)
    x[3, 4] = np.nan
    with pytest.raises(QuantiseError, match="calibration"):
        quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=1.0)
