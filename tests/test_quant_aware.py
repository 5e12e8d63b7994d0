"""Training sees what the device will cache: its forward kernels are the packed image's, byte for byte, for every head."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from pyhtpw.data.dataset import Split
from pyhtpw.errors import ConfigError
from pyhtpw.image import write
from pyhtpw.model import Image
from pyhtpw.nets import build
from pyhtpw.quant import quantise
from pyhtpw.quant.aware import AwareModel
from pyhtpw.train import Model, TrainConfig, train
from pyhtpw.train.objective import cross_entropy
from pyhtpw.train.optim import AdamW

T = 96
HEADS = {
    "tiled": {"pw": "tiled:tile=8,dz=3,hidden=6"},
    "tiled, linear, 6 bits": {"pw": "tiled:tile=16,dz=4,hidden=0,code_bits=6,head_bits=6"},
    "narrow": {"pw": "tiled:tile=8,narrow"},
    "seeded": {"pw": "seeded:tile=16,dz=6"},
    "dense": {"pw": "dense:dz=3,hidden=5+4,generator_bits=4"},
    "factorised": {"pw": "factorised:rank=3,share=b"},
    "codebook": {"pw": "codebook:entries=12,tile=4,bits=4"},
    "codebook, made": {"pw": "codebook:entries=16,tile=8,of=generated"},
    "everything": {"pw": "tiled:tile=8", "pw1": "seeded", "depthwise": "tiled:dz=2,hidden=0", "conv": "stored:bits=4", "fc": "stored:bits=2"},
}


def network(heads):
    return build("hypertinypw", t=T, widths=(8, 12, 12), strides=(2, 1, 1), stem=6, heads=heads)


def windows(n: int = 24):
    rng = np.random.default_rng(1)
    x = np.cumsum(rng.standard_normal((n, T, 1)), axis=1)
    return (x / x.std()).astype(np.float32), rng.integers(0, 2, n)


def steps(model: Model, count: int) -> list[float]:
    """A few updates; the losses."""
    x, labels = windows()
    optimiser, losses = AdamW(model, 0.0), []
    for at in range(count):
        loss, grad = cross_entropy(model.forward(x, training=True), labels)
        losses.append(loss)
        model.backward(grad)
        optimiser.step(at + 1, 3e-3)
        model.project()
    return losses


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_forward_kernels_are_the_images(heads):
    graph = network(heads)
    model = AwareModel(graph, seed=2)
    steps(model, 3)
    x, _ = windows()
    model.forward(x)  # with the parameters that are packed below
    integer = quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=100.0)
    image, kernels = Image(write(integer)), model.integer_kernels()
    assert kernels
    synthesised = {integer.ops[i].name: k for i, k in image.kernels().items()}
    for name, kernel in kernels.items():
        packed = synthesised[name]
        assert packed.tobytes() == np.ascontiguousarray(kernel, np.int8).tobytes(), name


def test_statistics_of_aware_training_are_the_kernels_own():
    """Trained on 2-bit kernels, the running statistics are theirs: packing must not correct them again for the rounding."""
    graph = network({"pw": "stored:bits=2", "depthwise": "stored:bits=2"})
    model = AwareModel(graph, seed=5)
    steps(model, 60)
    x, _ = windows()
    logits = model.forward(x)
    found = {}
    for recalibrate in (True, False):
        integer = quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=100.0, recalibrate=recalibrate)
        image = Image(write(integer))
        said = image.run_batch(image.quantise(x)).astype(np.float64) * integer.info.logit_scale
        found[recalibrate] = np.abs((said[:, 1] - said[:, 0]) - (logits[:, 1] - logits[:, 0])).mean()
    assert found[False] < 0.5 * found[True], found


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_it_learns_through_the_rounding(heads):
    losses = steps(AwareModel(network(heads), seed=3), 40)
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


def test_gradients_are_those_of_the_float_network_at_the_integer_kernels():
    """The gradient of the classifier, behind all kernels, is exactly what a plain model with these kernels stored has."""
    graph = network(HEADS["tiled"])
    model = AwareModel(graph, seed=4)
    x, labels = windows()
    _, grad = cross_entropy(model.forward(x, training=True), labels)
    mine = {k: v.copy() for k, v in model.backward(grad).items()}
    plain = Model(graph.stored(), {**{k: v for k, v in model.state().items() if k in graph.stored().parameter_shapes()},
                                   **{f"{n}.weight": k for n, k in model._expander.forward(model.params).items()}})
    plain.forward(x, training=True)
    theirs = plain.backward(grad)
    for name, value in theirs.items():
        if name in mine:
            np.testing.assert_allclose(mine[name], value, rtol=1e-4, atol=1e-6)


def test_a_run_trains_on_integer_kernels(tmp_path):
    """`TrainConfig.aware`: validation scores are those of the integer kernels; interrupted and resumed runs end at the same bytes."""
    graph, (x, labels) = network(HEADS["tiled"]), windows(48)
    split = Split(x, labels.astype(np.int64), np.array(["r"] * 48), np.arange(48), np.ones(48, bool))
    config = TrainConfig(steps=8, batch=16, warmup=2, eval_every=4, aware=True)
    whole = train(graph, split, split, config, tmp_path / "whole")
    float_run = train(graph, split, split, replace(config, aware=False), tmp_path / "float")
    assert any(not np.array_equal(whole.params[k], float_run.params[k]) for k in whole.params)
    stop = threading.Event()
    train(graph, split, split, config, tmp_path / "parts", stop=stop, progress=lambda s: stop.set() if s["step"] == 3 else None)
    resumed = train(graph, split, split, config, tmp_path / "parts", resume=True)
    assert all(np.array_equal(whole.params[k], resumed.params[k]) for k in whole.params)
    with pytest.raises(ConfigError, match="aware is 1"):
        TrainConfig(steps=1, aware=1)


def test_one_scale_per_tensor_is_refused():
    with pytest.raises(ConfigError, match="one scale per tensor"):
        AwareModel(network({"pw": "stored:bits=4,per_tensor"}))
    AwareModel(network({"pw": "stored:per_tensor"}))  # 8 bits stay float
