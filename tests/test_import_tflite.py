"""INT8 .tflite networks as images: equal logits to the bit but for FULLY_CONNECTED, refusals by name, and hostile files."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import tflite_networks
from hypothesis import HealthCheck, given, settings
from tflite_reference import litert

from pyhtpw.errors import ExportError, HtpwError, ImageError
from pyhtpw.export import interpreter, schema
from pyhtpw.export.from_tflite import compare, from_tflite
from pyhtpw.export.schema import Operator, Tensor
from pyhtpw.export.tflite import to_tflite
from pyhtpw.image import write
from pyhtpw.model import Image

pytest.importorskip("tflite", reason="NOT RUN: the extra 'export' is missing")

NETWORKS = {
    "ds_cnn": tflite_networks.ds_cnn,
    "ds_cnn, 1x1 classifier": lambda seed: tflite_networks.ds_cnn(seed, fc=False),
    "mobilenet": tflite_networks.mobilenet,
    "mobilenet, 1x1 classifier": lambda seed: tflite_networks.mobilenet(seed, fc=False),
    "one dimension": tflite_networks.one_dimensional,
}


def windows(network, n: int = 96) -> np.ndarray:
    shape = network.tensors[network.inputs[0]].shape[1:]
    return np.random.default_rng(9).integers(-128, 128, (n, *shape)).astype(np.int8)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [1, 2])
def test_networks_are_equal_to_the_bit_but_for_fully_connected(name, seed):
    network = NETWORKS[name](seed)
    imported = from_tflite(schema.write(network))
    image, x = Image(write(imported.model)), windows(network)
    found = compare(imported, image, x.reshape(len(x), *_shape(image)))
    has_fc = any(op.code == "FULLY_CONNECTED" for op in network.operators)
    assert bool(imported.approximate) == has_fc
    assert found["logits"] == len(x) * image.plan().output and len(np.unique(image.run_batch(x))) > 8
    if has_fc:  # a different rounding, nothing else
        assert found["largest_difference"] <= 1 and found["differing"] < found["logits"] / 20
    else:
        assert found["differing"] == 0
    assert imported.dropped == (("SOFTMAX",) if network.operators[-1].code == "SOFTMAX" else ())
    assert {op.source for op in image.parsed.ops if op.source} <= {"stored8", "stored2"}


def _shape(image: Image) -> tuple[int, int, int]:
    t = image.parsed.input
    return t.h, t.w, t.c


@pytest.mark.parametrize("name", NETWORKS)
def test_the_interpreter_is_litert(name):
    """To the bit, FULLY_CONNECTED, MEAN and SOFTMAX among the operators."""
    network = NETWORKS[name](3)
    data, x = schema.write(network), windows(network)
    np.testing.assert_array_equal(interpreter.run(schema.read(data), x), litert(data, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_out_again_the_logits_stay(name):
    """Image -> .tflite -> image: the multipliers of 31 bits survive, the classifier is a convolution, and so nothing differs."""
    network = NETWORKS[name](1)
    image = Image(write(from_tflite(schema.write(network)).model))
    again = from_tflite(to_tflite(image))
    x = windows(network).reshape(-1, *_shape(image))
    np.testing.assert_array_equal(Image(write(again.model)).run_batch(x), image.run_batch(x))
    assert again.approximate == () and compare(again, image, x)["differing"] == 0


def test_float_ends_are_dropped():
    network = tflite_networks.ds_cnn(0)
    first, last = network.inputs[0], network.outputs[0]
    t = network.tensors
    t += [Tensor("x", t[first].shape, "float32"), Tensor("y", t[last].shape, "float32")]
    operators = [Operator("QUANTIZE", (len(t) - 2,), (first,)), *network.operators, Operator("DEQUANTIZE", (last,), (len(t) - 1,))]
    imported = from_tflite(schema.write(replace(network, operators=operators, inputs=(len(t) - 2,), outputs=(len(t) - 1,))))
    plain = from_tflite(schema.write(tflite_networks.ds_cnn(0)))
    assert write(imported.model) == write(plain.model)
    assert sorted(imported.dropped) == ["DEQUANTIZE", "QUANTIZE", "SOFTMAX"]


def test_the_sizes_of_a_flatten_are_no_operators():
    b = tflite_networks.Builder(0, 4, 4, 3)
    x = b.convolution(b.input, 5)
    sizes = []
    for shape in ((4,), (), (2,)):
        b.tensors.append(Tensor(f"sizes{len(shape)}", shape, "int32"))
        sizes.append(len(b.tensors) - 1)
    one, zero, rest = (b.constant(np.array(v, np.int32)) for v in ([1], [0], 80))
    b.emit("SHAPE", (x,), sizes[0], OutType=2)
    b.emit("STRIDED_SLICE", (sizes[0], zero, one, one), sizes[1], ShrinkAxisMask=1)
    b.emit("PACK", (sizes[1], rest), sizes[2], ValuesCount=2, Axis=0)
    flat = b.tensor((1, 80), b.tensors[x].scale, b.tensors[x].zero)
    network = b.classifier(b.emit("RESHAPE", (x, sizes[2]), flat), 3, softmax=False)
    data = schema.write(network)
    imported, x = from_tflite(data), windows(network)
    image = Image(write(imported.model))
    assert [op.kind for op in image.parsed.ops] == ["conv1x1", "fc"]
    assert compare(imported, image, x)["largest_difference"] <= 1
    np.testing.assert_array_equal(interpreter.run(imported.network, x), litert(data, x))


def test_requantising_and_limits_become_tables():
    b = tflite_networks.Builder(0, 4, 4, 3)
    x = b.emit("QUANTIZE", (b.input,), b.tensor((1, 4, 4, 3), 0.021, 17))
    low = b.constant(np.array([-40], np.int8), np.array([0.021], np.float32))
    x = b.emit("MAXIMUM", (x, low), b.tensor((1, 4, 4, 3), 0.021, 17))
    network = b.classifier(x, 3, fc=False, softmax=False)
    imported = from_tflite(schema.write(network))
    image = Image(write(imported.model))
    assert [op.kind for op in image.parsed.ops] == ["table", "table", "fc"]
    assert compare(imported, image, windows(network))["differing"] == 0


def test_unknown_operators_are_named_all_at_once():
    network = tflite_networks.ds_cnn(0)
    x = network.inputs[0]
    network.operators[2:2] = [Operator(code, (x,), (x,)) for code in ("DEQUANTIZE", "GATHER", "CAST", "CAST")]
    with pytest.raises(ExportError, match=r"no counterpart for CAST \(2\), GATHER; known are CONV_2D"):
        from_tflite(schema.write(network))


def changed(edit, make=tflite_networks.ds_cnn) -> bytes:
    network = make(0)
    edit(network)
    return schema.write(network)


def constant(network, at: int):
    return network.tensors[network.operators[0].inputs[at]]


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda n: setattr(constant(n, 0), "zero_points", np.array([200])), "zero point of int8"),
        (lambda n: setattr(constant(n, 0), "scales", np.array([0], np.float32)), "one scale above 0"),
        (lambda n: setattr(constant(n, 1), "zero_points", np.ones(16, np.int64)), "zero point other than 0"),
        (lambda n: setattr(constant(n, 1), "axis", 1), "one for each of 16 channels"),
        (lambda n: setattr(constant(n, 1), "data", None), "needs a constant int8 tensor with 4 dimensions"),
        (lambda n: setattr(constant(n, 0), "dtype", "uint8"), "convert with full integer"),
        (lambda n: setattr(constant(n, 0), "shape", (2, 25, 10, 1)), r"shape \(2, 25, 10, 1\)"),
        (lambda n: n.operators[0].options.update(StrideW=0), "stride"),
        (lambda n: n.operators[1].options.update(DepthMultiplier=2), "has weights"),
        (lambda n: n.operators[0].options.update(FusedActivationFunction="RELU6", Padding="VALID"), "makes"),
        (lambda n: n.operators.insert(0, n.operators.pop(1)), "reads a tensor that no operator before it makes"),
        (lambda n: n.operators.insert(3, replace(n.operators[-1], outputs=n.operators[3].outputs)), "only at the end|no operator before"),
        (lambda n: setattr(n, "outputs", (n.operators[2].outputs[0],)), "known only at the end|not what the last operator makes"),
        (lambda n: setattr(n, "inputs", n.inputs * 2), "2 inputs"),
    ],
)
def test_networks_that_contradict_themselves(edit, message):
    with pytest.raises(HtpwError, match=message):
        from_tflite(changed(edit))


def test_a_pad_that_no_convolution_takes_up():
    b = tflite_networks.Builder(0, 8, 8, 2)
    x = b.pool(b.pad(b.input, (1, 1), (1, 1)))
    with pytest.raises(ExportError, match="reads a PAD; only convolutions with VALID padding can"):
        from_tflite(schema.write(b.classifier(x, 3, fc=False)))


DATA = schema.write(tflite_networks.mobilenet(0))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 255)), min_size=1, max_size=6), st.integers(8, len(DATA)))
def test_damaged_files_are_read_or_refused(changes, end):
    data = bytearray(DATA)
    for at, value in changes:
        data[at] = value
    for damaged in (bytes(data), bytes(data[:end])):
        try:
            write(from_tflite(damaged, "damaged").model)
        except HtpwError as error:
            assert "\n" not in str(error)


def test_files_that_are_none():
    for data in (b"", b"\0" * 64, b"\0\0\0\0TFL3" + b"\xff" * 64):
        with pytest.raises(ImageError, match="TensorFlow Lite|subgraphs"):
            from_tflite(data)
