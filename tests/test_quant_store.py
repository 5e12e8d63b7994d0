"""The integer model as a file: what `pyhtpw quantise` leaves and `pyhtpw pack` reads; and as an image, run in C."""

import integer_plain
import numpy as np
import pytest
from spec_size import image_bytes
from test_quant import HEADS, quantised, trained

from pyhtpw.errors import ConfigError
from pyhtpw.image import write
from pyhtpw.model import Image
from pyhtpw.nets import build
from pyhtpw.quant.generator import kernel_of
from pyhtpw.quant.heads import quantise_heads
from pyhtpw.quant.quantise import with_threshold
from pyhtpw.quant.store import load_model, save_model
from pyhtpw.train import Model


@pytest.mark.parametrize("name", HEADS)
def test_stores_every_head(tmp_path, name):
    graph, model, x = trained(steps=1, heads=HEADS[name])
    integer = with_threshold(quantised(graph, model, x), 0.35)
    save_model(integer, tmp_path / "model.npz")
    assert write(load_model(tmp_path / "model.npz")) == write(integer)
    info = Image(write(integer)).parsed.info
    assert (info.threshold, info.classes, info.name) == (np.float32(0.35), ("a", "b"), graph.name)


def test_bad_stores_are_named(tmp_path):
    for content in (b"", b"PK\x03\x04 but not really", b"hello"):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(ConfigError, match=r"x\.npz: not an integer model"):
            load_model(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", structure=np.array("[1, 2]"))
    with pytest.raises(ConfigError, match="not an integer model"):
        load_model(tmp_path / "y.npz")


@pytest.mark.parametrize("name", HEADS)
def test_the_library_makes_the_quantisers_kernels(name):
    """The file takes what SPEC says; C makes the kernels of the quantiser, and the logits of plain numpy."""
    graph, model, x = trained(steps=1, heads=HEADS[name])
    integer = quantised(graph, model, x)
    assert len(write(integer)) == image_bytes(integer)
    image = Image(write(integer))
    windows = image.quantise(x)
    np.testing.assert_array_equal(windows.reshape(x.shape), integer_plain.quantise_input(integer, x))
    np.testing.assert_array_equal(image.run_batch(windows), integer_plain.run(integer, windows.reshape(x.shape)))
    for i, kernel in image.kernels().items():
        np.testing.assert_array_equal(np.ravel(kernel), kernel_of(integer, integer.ops[i]).ravel())


@pytest.mark.parametrize("spec", ["factorised:share=a", "factorised:share=a,hidden=0,rank=3", "factorised:narrow"])
def test_kernels_that_share_a_matrix(spec):
    graph = build("hypertinypw", t=96, stem=24, widths=(24,) * 3, strides=(2, 2, 1), heads={"pw": spec, "pw1": spec})
    model = Model(graph, seed=1)
    x = np.random.default_rng(2).standard_normal((16, 96, 1)).astype(np.float32)
    integer = quantised(graph, model, x)
    assert [isinstance(head.a if "=a" in spec else head.b, int) for head in integer.heads] == [False, True, True]
    made = quantise_heads(graph, model.state())
    floats = model.kernels()
    image = Image(write(integer))
    assert len(write(integer)) == image_bytes(integer)
    windows = image.quantise(x)
    np.testing.assert_array_equal(image.run_batch(windows), integer_plain.run(integer, windows.reshape(x.shape)))
    for name, kernel in made.kernels.items():
        op = next(op for op in integer.ops if op.name == name)
        np.testing.assert_array_equal(kernel, integer_plain.kernel(integer, op))
        error = np.linalg.norm(kernel * made.scales[name] - floats[name]) / np.linalg.norm(floats[name])
        assert error < (0.2 if "narrow" in spec else 0.05)
