"""The wider network: what its image takes, everything counted, beside the same network stored."""

from math import prod

import numpy as np
import pytest
from spec_size import image_bytes, sections
from test_quant import EVERYTHING

from pyhtpw.nets import build
from pyhtpw.quant import quantise
from pyhtpw.train import Model


def image_of(heads=None):
    options = {} if heads is None else {"heads": heads}
    graph = build("hypertinypw-wide", t=300, **options)
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.standard_normal((24, 300, 1)), axis=1).astype(np.float32)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    model = Model(graph, seed=0)
    for _ in range(3):
        model.forward(x, training=True)
    integer = quantise(graph, model.state(), x, classes=("other", "ventricular"), sample_rate=360.0)
    return graph, integer


@pytest.fixture(scope="module")
def twins():
    """Bytes of the image with all kernels stored, by bits; its metadata is as compact."""
    return {bits: image_bytes(image_of(dict.fromkeys(EVERYTHING, f"stored:bits={bits}"))[1]) for bits in (8, 4, 2)}


@pytest.mark.parametrize(
    "heads",
    [
        None,
        {"pw": "tiled:hidden=0", "pw1": "tiled:hidden=0", "depthwise": "tiled:hidden=0", "fc": "stored:bits=4"},
        {"pw": "seeded", "pw1": "stored:bits=4", "depthwise": "stored:bits=4", "fc": "stored:bits=4"},
    ],
)
def test_generated_images_are_smaller_than_every_stored_one(twins, heads):
    graph, integer = image_of(heads)
    kernels = graph.kernel_shapes()
    assert sum(prod(kernels[node.name]) for node in graph.generated_nodes()) >= 30_000
    size = image_bytes(integer)
    assert size <= 0.27 * twins[8]
    assert size <= 0.5 * twins[4]
    assert size <= 0.75 * twins[2]


def test_a_dense_head_is_larger_than_what_it_makes(twins):
    """docs: with one matrix per kernel nothing is ever saved, and the arithmetic says so."""
    _, integer = image_of({"pw": "dense:hidden=0,dz=4,head_bits=4"})
    assert image_bytes(integer) > 1.3 * twins[4]
    _, integer = image_of({"pw": "factorised:rank=2,hidden=0,head_bits=4"})
    assert image_bytes(integer) > twins[4]


def test_metadata_is_compact():
    """At most 4 bytes per output channel, where 9 (bias, multiplier and shift as CMSIS-NN has them) would be larger
    than all that is generated."""
    _, integer = image_of()
    channels = sum(op.out.c for op in integer.ops if op.requant is not None)
    assert sections(integer)["QUAN"] <= 4 * channels
