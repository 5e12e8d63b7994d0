"""The golden images: tiny networks of every weight source and operator, their kernels and logits on file, in C, numpy, the reader."""

import base64
import json

import make_golden_images as golden
import numpy as np
import pytest

import reference
from pyhtpw import _native
from pyhtpw.image import parse, read_model, write
from pyhtpw.image.integer import OPERATORS, SOURCES
from pyhtpw.model import Image
from reference import synthesis


def int8(told: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(told["int8_base64"]), np.int8).reshape(told["shape"])


@pytest.fixture(scope="module", params=golden.NAMES)
def case(request):
    """(image, windows, kernels by operator, logits) as the files tell them."""
    image = (golden.FOLDER / f"{request.param}.htpw").read_bytes()
    told = json.loads((golden.FOLDER / f"{request.param}.json").read_text())
    kernels = {int(i): int8(k) for i, k in told["kernels"].items()}
    return image, int8(told["windows"]), kernels, np.array(told["logits"], np.int8)


def test_files_are_those_of_the_script():
    assert golden.main(["--check"]) == 0, "run tests/make_golden_images.py if the format has changed, and look at the difference"


def test_every_source_and_operator_is_there():
    parsed = [parse((golden.FOLDER / f"{name}.htpw").read_bytes()) for name in golden.NAMES]
    assert {op.source for p in parsed for op in p.ops if op.source} == set(SOURCES)
    assert {op.kind for p in parsed for op in p.ops} == set(OPERATORS)
    assert {op.narrow for p in parsed for op in p.ops if op.cached} == {True, False}
    assert {op.quan.form for p in parsed for op in p.ops if op.quan} == {0, 1, 2}


def test_images_are_small_and_read_back(case):
    image = case[0]
    assert len(image) < golden.SIZE_LIMIT and write(read_model(image)) == image


def test_numpy(case):
    image, x, kernels, logits = case
    model = reference.read(image)
    for i, kernel in kernels.items():
        assert np.array_equal(synthesis.weights(model, i), kernel)
    assert np.array_equal(reference.run(model, x), logits)


@pytest.mark.parametrize("backend", _native.available_backends())
@pytest.mark.parametrize("schedule", ["boot", "lazy"])
def test_c(case, backend, schedule):
    image, x, kernels, logits = case
    context = Image(image).bind(schedule, backend)
    assert np.array_equal(np.stack([context.run(window) for window in x]), logits)
    made = context.kernels()
    assert {op.index for op in parse(image).ops if op.generated} <= set(made)
    for i, kernel in made.items():
        assert np.array_equal(np.asarray(kernel, np.int8).ravel(), kernels[i].ravel())
