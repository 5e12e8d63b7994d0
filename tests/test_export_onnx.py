"""Images as ONNX in QDQ form: valid, and near the image in onnxruntime."""

import numpy as np
import pytest
import random_images
import tflite_networks
from hypothesis import HealthCheck, given, settings

from pyhtpw.errors import ExportError
from pyhtpw.export import schema
from pyhtpw.export.from_tflite import from_tflite
from pyhtpw.export.onnx import compare, to_onnx
from pyhtpw.image import write
from pyhtpw.model import Image

onnx = pytest.importorskip("onnx", reason="NOT RUN: the extra 'export' is missing")
pytest.importorskip("tflite", reason="NOT RUN: the extra 'export' is missing")


def imported(network) -> Image:
    return Image(write(from_tflite(schema.write(network)).model), "net")


@pytest.mark.parametrize("make", [tflite_networks.ds_cnn, tflite_networks.mobilenet, tflite_networks.one_dimensional])
def test_networks_are_near_in_onnxruntime(make):
    """Rounding in float instead of twice in integers: a logit in ten or so is another one, by a step or two after ten layers."""
    pytest.importorskip("onnxruntime", reason="NOT RUN: onnxruntime is missing: pip install 'pyhtpw[litert]'")
    image = imported(make(1))
    data, t = to_onnx(image), image.parsed.input
    x = np.random.default_rng(0).integers(-128, 128, (128, t.h, t.w, t.c)).astype(np.int8)
    found = compare(data, image, x)
    assert len(np.unique(image.run_batch(x))) > 8
    assert found["largest_difference"] <= 3 and found["differing"] < 0.4 * found["logits"]
    assert found["same_class"] >= 0.97 * len(x)


def test_weights_and_biases_are_the_image_s_own():
    image = imported(tflite_networks.ds_cnn(0))
    graph = onnx.load_from_string(to_onnx(image)).graph
    found = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    stem = image.parsed.ops[0]
    assert found["conv0_weights"].transpose(0, 2, 3, 1).shape == stem.weight_shape
    assert found["conv0_weights"].dtype == np.int8 and found["conv0_bias"].dtype == np.int32
    assert {n.op_type for n in graph.node} >= {"QuantizeLinear", "DequantizeLinear", "Conv", "AveragePool"}
    assert to_onnx(image) == to_onnx(image)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_images.models())
def test_random_images_are_valid_or_refused_by_name(model):
    image = Image(write(model))
    try:
        data = to_onnx(image)
    except ExportError as error:
        assert "(attend) has no counterpart" in str(error)
        return
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
