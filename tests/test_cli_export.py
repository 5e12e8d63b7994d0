"""Export, import and compress as a user types them, and the example."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import tflite_networks
from test_cli import ok, refused

from pyhtpw.export import schema
from pyhtpw.model import Image

pytest.importorskip("tflite", reason="NOT RUN: the extra 'export' is missing")
EXAMPLE = Path(__file__).parent.parent / "examples" / "compress_your_tflite.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export")
    (path / "net.tflite").write_bytes(schema.write(tflite_networks.ds_cnn(1)))
    np.save(path / "x.npy", np.random.default_rng(0).integers(-128, 128, (64, 25, 10, 1)).astype(np.int8))
    return path


def test_in_compressed_and_out(folder):
    text = ok("import", "tflite", folder / "net.tflite", "-o", folder / "net.htpw")
    assert "of 768 logits differ from TensorFlow Lite's reference on 64 random windows" in text
    assert "dropped: SOFTMAX" in text and "FULLY_CONNECTED" in text
    found = json.loads(ok("compress", folder / "net.htpw", "--budget", 2300, "--input", folder / "x.npy", "--evaluations", 4,
                          "-o", folder / "small.htpw", "--json"))
    assert found["after"]["image_bytes"] == (folder / "small.htpw").stat().st_size <= 2300 < found["before"]["image_bytes"]
    assert set(found["kernel_errors"]) == {"conv1x12", "conv1x14"} and 0 <= found["agreement"] <= 1
    out = json.loads(ok("export", "tflite", folder / "small.htpw", "--json"))
    assert out["differing"] == 0 and out["bytes"] == (folder / "small.tflite").stat().st_size
    assert "0 differing logits" in ok("export", "tflite", folder / "net.htpw", "-o", folder / "again.tflite")
    Image.open(folder / "small.htpw")


def test_onnx(folder):
    ok("import", "tflite", folder / "net.tflite", "-o", folder / "onnx.htpw", "--json")
    found = json.loads(ok("export", "onnx", folder / "onnx.htpw", "--windows", 16, "--json"))
    assert found["bytes"] == (folder / "onnx.onnx").stat().st_size
    assert (found["compared"] is None) == bool(found["not_run"])


def test_refusals(folder):
    assert "not a TensorFlow Lite file" in refused("import", "tflite", folder / "x.npy")
    assert "cannot read the file" in refused("import", "tflite", folder / "none.tflite")
    assert "cannot read the image" in refused("export", "tflite", folder / "none.htpw")


def test_the_example_runs(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE)])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    text = capsys.readouterr().out
    assert not done.value.code and "0 of 768 logits differ" in text and ": 0 differing logits" in text
