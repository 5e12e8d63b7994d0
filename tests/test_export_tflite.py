"""Images as .tflite files: equal logits to the bit, by an interpreter in numpy always and by LiteRT where it is installed."""

import json
from dataclasses import replace
from functools import cache

import hypothesis.strategies as st
import numpy as np
import pytest
import random_images
from hypothesis import HealthCheck, given, settings
from tflite_reference import litert

from pyhtpw.errors import ExportError, ImageError
from pyhtpw.export import interpreter, scales, schema
from pyhtpw.export.tflite import to_tflite
from pyhtpw.image import write
from pyhtpw.image.codes import apply_pack, make_pack
from pyhtpw.image.integer import (
    AddScalars,
    AttendScalars,
    Info,
    IntegerModel,
    MulScalars,
    Op,
    Requant,
    Stored,
    Tensor,
    Window,
)
from pyhtpw.image.reader import read_model
from pyhtpw.model import Image
from pyhtpw.nets import build
from pyhtpw.quant import quantise
from pyhtpw.train import Model

pytest.importorskip("tflite", reason="NOT RUN: the extra 'export' is missing")


def top(multiplier: int, bits: int = 15) -> int:
    """A multiplier of at least 2^30 with no more bits."""
    return (int(multiplier) | 1 << 30) >> 31 - bits << 31 - bits


def sayable(model: IntegerModel) -> IntegerModel:
    """A random model with multipliers as quantisers make them: normalised, 16 bits, those of an addition from scales."""
    ops = []
    for op in model.ops:
        if op.requant is not None:
            op = replace(op, requant=replace(op.requant, multipliers=np.array([top(m) for m in op.requant.multipliers])))
        if op.add is not None:
            second = min(op.add.shifts[1], 0)
            factors = (1 << 30, 1 << 30 if second == 0 else top(op.add.multipliers[1]), top(op.add.multipliers[2]))
            op = replace(op, add=AddScalars(20, factors, (0, second, min(op.add.shifts[2], -1))))
        if op.mul is not None:
            op = replace(op, mul=MulScalars(top(op.mul.multiplier), op.mul.shift))
        if op.attend is not None:
            a = op.attend
            span = min(255, (31 << 26) >> a.softmax_shift)
            op = replace(op, attend=AttendScalars(top(a.softmax_multiplier), a.softmax_shift, span, top(a.multiplier), a.shift))
        ops.append(op)
    return replace(model, ops=tuple(ops))


SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(random_images.models(), st.booleans(), random_images.SEEDS)
def test_random_images_are_equal_to_the_bit_or_refused_by_name(model, as_quantisers, seed):
    model = sayable(model) if as_quantisers else model
    image, x = Image(write(model)), random_images.inputs(model, 4, seed)
    try:
        data = to_tflite(image)
    except ExportError as error:
        named = [part.split(" (")[0] for part in str(error).split("bit: ")[1].split("; ")]
        assert any(op.name in named for op in model.ops)
        if as_quantisers:  # what is left to refuse: padded means, and ratios of scales that no two float32 have
            assert all("neither SAME nor VALID" in part or "(add): no float32" in part or "(attend): no float32" in part
                       for part in str(error).split("bit: ")[1].split("; ")
                       if "one input's" not in part)
        return
    assert to_tflite(image) == data
    np.testing.assert_array_equal(interpreter.run(schema.read(data), x), image.run_batch(x))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_images.models(), random_images.SEEDS)
def test_random_images_are_equal_to_litert(model, seed):
    image, x = Image(write(sayable(model))), random_images.inputs(model, 4, seed)
    try:
        data = to_tflite(image)
    except ExportError:
        return
    np.testing.assert_array_equal(litert(data, x), image.run_batch(x))


def lively() -> Image:
    """The example of every operator, as quantisers make it."""
    return Image(write(sayable(random_images.example())))


def test_an_image_with_every_operator_and_head():
    image = lively()
    x = random_images.inputs(random_images.example(), 200, 3)
    ours = image.run_batch(x)
    assert len(np.unique(ours)) > 20
    network = schema.read(to_tflite(image))
    np.testing.assert_array_equal(interpreter.run(network, x), ours)
    codes = {op.code for op in network.operators}
    assert "FULLY_CONNECTED" not in codes and "MEAN" not in codes
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D", "ADD", "MUL", "GATHER", "SOFTMAX"} <= codes


def test_an_image_with_every_operator_and_head_in_litert():
    image = lively()
    x = random_images.inputs(random_images.example(), 200, 3)
    np.testing.assert_array_equal(litert(to_tflite(image), x), image.run_batch(x))


NETWORKS = {
    "hypertinypw": ("hypertinypw", {}),
    "seeded": ("hypertinypw", {"heads": {"pw": "seeded", "depthwise": "stored:bits=4"}}),
    "codebook": ("separable", {"heads": {"pw": "codebook:entries=16,tile=4"}}),
    "tiny_separable": ("tiny_separable", {}),
    "tiny_cnn": ("tiny_cnn", {}),
    "resnet1d_small": ("resnet1d_small", {}),
}


@cache
def trained_like(name: str) -> tuple[Image, np.ndarray]:
    """A quantised network with settled statistics, and 1,000 windows; synthetic, and nothing is learnt."""
    kind, options = NETWORKS[name]
    graph = build(kind, t=64, **options)
    rng = np.random.default_rng(7)
    x = np.cumsum(rng.standard_normal((1000, 64, graph.input_shape[1])), axis=1).astype(np.float32)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    model = Model(graph, seed=1)
    for _ in range(3):
        model.forward(x[:48], training=True)
    image = Image(write(quantise(graph, model.state(), x[:48], classes=("a", "b"), sample_rate=100.0)), name)
    return image, image.quantise(x)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_the_trainer_are_equal_to_the_bit(name):
    image, x = trained_like(name)
    network = schema.read(to_tflite(image))
    ours = image.run_batch(x)
    assert len(np.unique(ours)) > 10
    np.testing.assert_array_equal(interpreter.run(network, x[:64]), ours[:64])
    info = image.parsed.info
    assert np.float32(network.tensors[network.inputs[0]].scale) == np.float32(info.input_scale)
    assert np.float32(network.tensors[network.outputs[0]].scale) == np.float32(info.logit_scale)
    assert network.tensors[network.outputs[0]].shape == (1, 2)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_the_trainer_are_equal_to_litert_on_1000_windows(name):
    image, x = trained_like(name)
    assert np.count_nonzero(litert(to_tflite(image), x) != image.run_batch(x)) == 0


# -- one operator each ------------------------------------------------------------------------------------------------

X = Tensor(6, 7, 4, -3)


def small(*ops: Op, info: Info | None = None, x: Tensor = X) -> Image:
    """Operators, then a classifier."""
    last = ops[-1].out
    w = np.arange(2 * last.size, dtype=np.int64).reshape(2, -1) * 37 % 255 - 127
    q = Requant(np.array([20000 << 16]), np.array([-9]), np.array([5, -9]))
    fc = Op("fc", "fc", (len(ops),), Tensor(1, 1, 2, 7), weights=Stored(w.astype(np.int8)), requant=q)
    return Image(write(IntegerModel(x, (*ops, fc), info)), "small")


def equal(image: Image) -> schema.Network:
    t = image.parsed.input
    x = np.random.default_rng(2).integers(-128, 128, (64, t.h, t.w, t.c)).astype(np.int8)
    network = schema.read(to_tflite(image))
    ours = image.run_batch(x)
    assert len(np.unique(ours)) > 4
    np.testing.assert_array_equal(interpreter.run(network, x), ours)
    return network


Y = Tensor(6, 7, 3, 5)


def convolution(multipliers=(20000 << 16,) * 3, shifts=(-9,) * 3, out=Y, window=None, **more) -> Op:
    rng = np.random.default_rng(0)
    window = window or Window((3, 3), (1, 1), (1, 1))
    w = rng.integers(-128, 128, (3, *window.kernel, 4)).astype(np.int8)
    q = Requant(np.array(multipliers), np.array(shifts), rng.integers(-9000, 9000, 3))
    return Op("c", "conv", (0,), out, weights=Stored(w), requant=q, window=window, **more)


@pytest.mark.parametrize(
    "window, size, codes",
    [
        (Window((3, 3), (1, 1), (1, 1)), (6, 7), []),
        (Window((3, 3), (2, 2), (0, 1)), (3, 4), []),
        (Window((3, 3)), (4, 5), []),
        (Window((3, 3), (1, 1), (2, 2)), (6, 7), ["PAD", "SLICE"]),
        (Window((3, 3), (2, 3), (1, 0), (2, 1)), (3, 3), ["PAD"]),
        (Window((3, 3), (1, 1)), (2, 2), ["SLICE"]),
        (Window((3, 3), (1, 1)), (9, 9), ["PAD"]),
    ],
)
def test_any_padding(window, size, codes):
    network = equal(small(convolution(window=window, out=Tensor(*size, 3, 5))))
    used = {op.code for op in network.operators} & {"PAD", "SLICE"}
    assert used <= set(codes) and bool(used) == bool(codes)


@pytest.mark.parametrize("low, high, codes", [(-128, 127, []), (5, 127, []), (-20, 127, ["MAXIMUM"]), (-20, 60, ["MAXIMUM", "MINIMUM"]),
                                              (-128, 3, ["MINIMUM"])])
def test_any_limits(low, high, codes):
    network = equal(small(convolution(act_min=low, act_max=high)))
    assert [op.code for op in network.operators if op.code.endswith("IMUM")] == codes


def test_channels_with_a_multiplier_of_nothing():
    equal(small(convolution(multipliers=(20000 << 16, 0, 20000 << 16))))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_multipliers_of_31_bits_that_float_scales_made(count):
    """A converter's multipliers: one ratio of scales and a float32 weight scale for each channel; the ratio is found again."""
    w = np.float32([0.00317, 0.00521, 0.0081])
    pairs = [scales.quantize_multiplier(float(np.float32(0.0236)) * float(v) / float(np.float32(0.0411))) for v in w[np.arange(3) % count]]
    network = equal(small(convolution(multipliers=[p[0] for p in pairs], shifts=[p[1] for p in pairs])))
    assert network.tensors[0].scale == 1.0  # no INFO


def test_multipliers_that_no_scales_make_are_refused_by_operator_and_channel():
    rng = np.random.default_rng(1)
    q = Requant(rng.integers(1 << 30, 1 << 31, 8) | 1, np.full(8, -9), np.zeros(8, np.int64))
    wide = Op("w", "conv1x1", (0,), Tensor(6, 7, 8, 0), weights=Stored(np.ones((8, 4), np.int8)), requant=q)
    low = replace(convolution(multipliers=(20000 << 16, 1 << 29, 20000 << 16)), inputs=(0,))
    with pytest.raises(ExportError, match=r"conv1x10 \(conv1x1\): channel 0: no float32 scale gives multiplier \d+ \(and 7 more chan"):
        to_tflite(small(wide))
    with pytest.raises(ExportError, match=r"conv0 \(conv\): channel 1: multiplier 536870912 is below 2\^30"):
        to_tflite(small(low))


def test_everything_that_is_wrong_is_said_at_once():
    add = Op("a", "add", (0, 0), X, add=AddScalars(18, (1 << 30,) * 3, (0, 0, -18)))
    pool = Op("p", "avgpool", (1,), Tensor(6, 7, 4, -3), window=Window((3, 3), (1, 1), (2, 2)))
    with pytest.raises(ExportError, match=r"add0 \(add\): left shift 18.*; avgpool1 \(avgpool\): padding \(2, 2\)"):
        to_tflite(small(add, pool))


@given(st.integers(1 << 30, (1 << 31) - 1), st.integers(-31, 30))
def test_multipliers_are_derived_as_the_interpreter_does(multiplier, shift):
    assert scales.quantize_multiplier(scales.real(multiplier, shift)) == (multiplier, shift)
    assert scales.quantize_multiplier(float(np.ldexp(1 - 2.0**-40, shift))) == ((1 << 30, shift + 1))
    assert scales.quantize_multiplier(2.0**-34) == (0, 0) == scales.quantize_multiplier(0.0)


@given(st.floats(0, 2.0**20, width=32), st.floats(2.0**-30, 2.0**20, width=32))
def test_two_derivations_of_multipliers_agree(first, second):
    """The exporter's in double and the interpreter's in whole numbers."""
    for scale in (first, second, first * second, first / second):
        assert scales.quantize_multiplier(scale) == interpreter.derived(scale)


def test_scales_of_additions_of_wide_multipliers():
    for scale in np.random.default_rng(4).uniform(0.01, 0.09, (20, 3)).astype(np.float32).tolist():
        wanted = scales.add_multipliers(*scale)
        found = scales.add_scales(tuple(p[0] for p in wanted), tuple(p[1] for p in wanted))
        assert found is not None and scales.add_multipliers(*found) == wanted


def test_images_with_a_code_pack_are_merged_first():
    image = lively()
    model = read_model(image.data)
    at = next(i for i, op in enumerate(model.ops) if op.requant is not None)
    q = model.ops[at].requant
    op = replace(model.ops[at], requant=replace(q, biases=q.biases[::-1].copy()))
    other = write(replace(model, ops=(*model.ops[:at], op, *model.ops[at + 1 :])))
    pack = make_pack(image.data, other, 3)
    with pytest.raises(ExportError, match="a code pack is applied"):
        to_tflite(Image(image.data, codes=pack))
    assert to_tflite(Image(apply_pack(image.data, pack))) == to_tflite(Image(other))


def test_metadata_and_identity():
    info = Info(0.031, 0.2, 0.35, 360.0, "ecg", ("n", "v"))
    network = equal(small(convolution(), info=info))
    data = to_tflite(small(convolution(), info=info))
    assert json.dumps({"threshold": 0.35})[1:13] in data.decode("latin-1")
    assert network.tensors[0].scale == pytest.approx(0.031, rel=1e-7) and network.description.startswith("pyhtpw")
    with pytest.raises(ImageError, match="not a TensorFlow Lite file"):
        schema.read(data[4:])
