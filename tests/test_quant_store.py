"""The integer model as a file: what `pyhtpw quantise` leaves and `pyhtpw pack` reads."""

import numpy as np
import pytest
from test_quant import HEADS, quantised, trained

from pyhtpw.errors import ConfigError
from pyhtpw.image import write
from pyhtpw.model import Image
from pyhtpw.quant.quantise import with_threshold
from pyhtpw.quant.store import load_model, save_model


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
