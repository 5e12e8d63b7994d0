"""Traces agree in every telling, and one planted change is found where it is: in tellings, in images, on the command line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import random_images
import strategies  # noqa: F401 - registers the Hypothesis profiles
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import pyhtpw
from pyhtpw import _native
from pyhtpw.cli import app
from pyhtpw.compare import diff, differences, tellings, trace
from pyhtpw.errors import ConfigError, ImageError, MissingToolError
from pyhtpw.image import read_model, write
from pyhtpw.image.codes import make_pack
from pyhtpw.image.integer import Stored
from pyhtpw.model import Image
from pyhtpw.verify import sample_windows

RUN = CliRunner()


@pytest.fixture(scope="module")
def image():
    return Image(write(random_images.example()), "example")


@pytest.fixture(scope="module")
def windows(image):
    return sample_windows(image, 5)


def changed(image: Image, kind: str) -> tuple[Image, int]:
    """The image with one stored weight, or one bias, changed as far as it goes; and which operator's."""
    model = read_model(image.data)
    for i, op in enumerate(model.ops):
        if kind == "weight" and isinstance(op.weights, Stored) and op.weights.bits == 8 and not op.weights.narrow:
            values = op.weights.values.copy()
            values.flat[1] = -100 if values.flat[1] > 0 else 100
            new = replace(op, weights=replace(op.weights, values=values))
        elif kind == "bias" and op.requant is not None:
            biases = op.requant.biases.copy()
            biases[0] += 40
            new = replace(op, requant=replace(op.requant, biases=biases))
        else:
            continue
        return pyhtpw.pack(replace(model, ops=(*model.ops[:i], new, *model.ops[i + 1 :]))), i
    raise AssertionError("nothing to change")


@given(random_images.models(), st.integers(0, 2**32 - 1), st.sampled_from(_native.available_backends()))
def test_tellings_give_the_same_tensors(model, seed, backend):
    opened = Image(write(model))
    x = random_images.inputs(model, 2, seed)
    numpy, here = trace(opened, x, "numpy"), trace(opened, x, backend)
    assert list(numpy) == list(here) == [layer.index for layer in opened.layers]
    assert not differences(opened, numpy, here)
    for layer in opened.layers:
        assert here[layer.index].shape == (2, *layer.output_shape) and here[layer.index].dtype == np.int8
    assert np.array_equal(here[len(here) - 1].reshape(2, -1), opened.run_batch(x))


def test_a_trace_leaves_the_image_as_it_was(image, windows):
    before = image.run_batch(windows)
    trace(image, windows)
    assert np.array_equal(image.run_batch(windows), before) and image.classes == before.shape[1]


def test_the_emulated_core_gives_the_same_tensors(image, windows):
    try:
        found = trace(image, windows[:3], "m4")
    except MissingToolError as error:
        pytest.skip(f"NOT RUN: {error}")
    assert not differences(image, trace(image, windows[:3], "numpy"), found)


def test_the_emulated_core_runs_on_after_a_trace(image, windows):
    from pyhtpw.target.emulator import Emulator

    try:
        with Emulator("cortex-m4") as emulator:
            model = emulator.open(image.data)
            found = dict(model.trace(windows[:1]))
            assert np.array_equal(model.run(windows[1]), image.run(windows[1]))
            next(model.trace(windows))  # left off in the middle
            assert np.array_equal(model.run(windows[2]), image.run(windows[2]))
    except MissingToolError as error:
        pytest.skip(f"NOT RUN: {error}")
    assert len(found) == len(image.layers)


def test_the_first_difference_is_named(image, windows):
    a = trace(image, windows, "numpy")
    b = {i: y.copy() for i, y in a.items()}
    b[3][2].flat[7] ^= 1
    b[5][0].flat[0] ^= 1
    first, second = differences(image, a, b)
    where = (2, *np.unravel_index(7, b[3][0].shape))
    assert (first.layer, first.window, first.at, first.differ) == (3, 2, tuple(int(i) for i in where[1:]), 1)
    assert (first.a, first.b) == (a[3][where], b[3][where]) and first.of == b[3].size and first.name == image.layers[3].name
    assert second.layer == 5 and f"layer 3 ({first.name}), window 2" in str(first)
    assert not differences(image, a, {i: y for i, y in b.items() if i not in (3, 5)})  # what only one has is not compared


def test_images_differ_where_they_were_changed(image, windows):
    same = image.diff(Image(image.data), windows)
    assert same.is_same and same.first is None and same.windows == len(windows)
    other, at = changed(image, "weight")
    found = image.diff(other, windows)
    (kernel,) = found.kernels
    assert (kernel.layer, kernel.differ, kernel.of) == (at, 1, image.synthesise(at).size)
    assert kernel.largest == abs(int(image.synthesise(at).flat[1]) - int(other.synthesise(at).flat[1]))
    assert found.first is not None and found.first.layer == at and not found.structure and not found.is_same
    assert not image.diff(other).tensors and not image.diff(other).is_same
    biased, at = changed(image, "bias")
    found = image.diff(biased, windows)
    assert found.metadata == ((image.layers[at].name, "biases"),) and not found.kernels and found.first.layer == at
    assert json.loads(json.dumps(found.to_dict()))["metadata"] == [[image.layers[at].name, "biases"]]


def test_other_structures_are_said(image):
    model = read_model(image.data)
    i = next(i for i, op in enumerate(model.ops) if op.weights is not None and not isinstance(op.weights, Stored))
    op = replace(model.ops[i], weights=Stored(image.synthesise(i), 8))
    stored = pyhtpw.pack(replace(model, ops=(*model.ops[:i], op, *model.ops[i + 1 :])))
    found = image.diff(stored, sample_windows(image, 3))
    assert len(found.structure) == 1 and "source" in found.structure[0] and "stored8" in found.structure[0]
    assert not found.kernels and not found.tensors  # the same bytes run
    real = pyhtpw.Image.open(Path(__file__).parent.parent / "results" / "mitdb-first.htpw")
    found = image.diff(real)
    assert found.structure[0].startswith("input: ") and f"{len(image.layers)} and {len(real.layers)} layers" in found.structure


def test_refusals(image, windows):
    with pytest.raises(ConfigError, match="unknown telling"):
        trace(image, windows, "nothing")
    with pytest.raises(ConfigError, match="at least one window"):
        trace(image, windows[:0])
    with pytest.raises(ImageError, match="int8"):
        trace(image, windows.astype(float))
    with pytest.raises(ConfigError, match="as many"):
        diff(image, image, (windows, windows[:2]))
    biased, _ = changed(image, "bias")
    packed = Image(image.data, codes=make_pack(image.data, biased.data, 1))
    with pytest.raises(ConfigError, match="code pack"):
        trace(packed, windows, "numpy")
    assert not differences(image, trace(biased, windows), trace(packed, windows))
    assert {"numpy", "c", "portable", "m4"} <= set(tellings())


def test_commands(image, tmp_path):
    a, b, x = tmp_path / "a.htpw", tmp_path / "b.htpw", tmp_path / "x.npy"
    a.write_bytes(image.data)
    other, at = changed(image, "weight")
    b.write_bytes(other.data)
    np.save(x, sample_windows(image, 6))

    done = RUN.invoke(app, ["diff", str(a), str(a), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["is_same"]
    done = RUN.invoke(app, ["diff", str(a), str(b), "--input", str(x)])
    assert done.exit_code == 1 and f"first: layer {at} (" in done.stdout and "kernel of" in done.stdout
    done = RUN.invoke(app, ["diff", str(a), str(b), "--input", str(x), "--data", "mitdb"])
    assert isinstance(done.exception, ConfigError)

    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    command = ["trace", str(a), "--telling", "numpy", "--telling", "c", "--input", str(x), "--windows", "3"]
    done = RUN.invoke(app, [*command, "-o", str(first), "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 0 and found["compared"] == {"numpy / c": []} and found["windows"] == 3
    with np.load(first) as file:
        assert np.array_equal(file["input"], np.load(x)[:3])
        names = [f"{layer.index:02d}-{layer.name}" for layer in image.layers]
        assert set(file.files) == {"input"} | {f"{t}/{n}" for t in ("numpy", "c") for n in names}
        assert np.array_equal(file[f"c/{names[-1]}"].reshape(3, -1), image.run_batch(np.load(x)[:3]))
    done = RUN.invoke(app, ["trace", str(a), "--telling", "portable", "--against", str(first)])
    assert done.exit_code == 0 and "every byte of every layer is the same" in done.stdout
    done = RUN.invoke(app, ["trace", str(b), "--against", str(first), "-o", str(second)])
    assert done.exit_code == 1 and f"first difference: layer {at} (" in done.stdout
    for wrong in (x, tmp_path / "none.npz"):
        done = RUN.invoke(app, ["trace", str(a), "--against", str(wrong)])
        assert isinstance(done.exception, ConfigError) and "trace" in str(done.exception), wrong
