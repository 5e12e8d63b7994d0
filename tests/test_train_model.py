"""The whole network: gradients, threads, inference; losses, scores and the optimiser."""

import numba
import numpy as np
import pytest
from test_train_layers import TOLERANCE, central_difference

from pyhtpw import nets
from pyhtpw.errors import ConfigError, DataError, TrainError
from pyhtpw.nets import Graph, Node
from pyhtpw.train.heads import code_scale
from pyhtpw.train.kernels import single_blas
from pyhtpw.train.layers import EPSILON
from pyhtpw.train.model import CODE_RANGE, MIN_GAMMA, Model
from pyhtpw.train.objective import cross_entropy, macro_f1, score
from pyhtpw.train.optim import AdamW, Ema, clip_gradient, decays, learning_rate

SPEC = "tiled:dz=3,hidden=6+5,tile=11"


def small(generated=True):
    return nets.build(
        "hypertinypw", t=23, channels_in=2, classes=3, stem=4, widths=(5, 6, 6), strides=(2, 1, 1), stem_stride=2,
        heads={"pw": SPEC} if generated else {},
    )  # fmt: skip


def branching():
    """One value used three times, an addition of a node to itself, an addition of the input, a tiled first kernel."""
    nodes = (
        Node("a", "pointwise", ("input",), 3, norm=True, relu=True, head="tiled:dz=2,hidden=3,tile=4"),
        Node("b", "add", ("a", "a"), 3),
        Node("c", "conv", ("a",), 3, 4, relu=True),
        Node("d", "add", ("b", "c"), 3, relu=True),
        Node("e", "add", ("input", "d"), 3),
        Node("f", "add", ("e", "a"), 3),
        Node("pool", "avgpool", ("f",), 3),
        Node("fc", "fc", ("pool",), 2),
    )
    return Graph("branching", (6, 3), 2, nodes)


def every_op(shape=(13, 2), classes=3):
    """Each node op there is, both normalisations, a generated kernel, pools that leave a rest."""
    nodes = (
        Node("a", "conv", ("input",), 5, 3, norm="group", head="tiled:dz=2,hidden=3,tile=4"),
        Node("act", "silu", ("a",), 5),
        Node("top", "maxpool", ("act",), 5, 3, 2),
        Node("se", "squeeze_excite", ("top",), 5, hidden=2, bias=True),
        Node("dw", "depthwise", ("se",), 5, 3, norm="batch", relu=True),
        Node("sum", "add", ("top", "dw"), 5),
        Node("mean", "avgpool", ("sum",), 5, 2, 2),
        Node("pw", "pointwise", ("mean",), 4, norm="group", relu=True),
        Node("pool", "avgpool", ("pw",), 4),
        Node("drop", "dropout", ("pool",), 4, rate=0.4),
        Node("fc", "fc", ("drop",), classes),
    )
    return Graph("every_op", shape, classes, nodes)


@pytest.mark.parametrize("graph", [small(), small(generated=False), branching(), every_op()], ids=lambda g: g.name)
def test_gradient_of_the_whole_network(graph):
    rng = np.random.default_rng(0)
    model = Model(graph, seed=3, dtype=np.float64)
    model.quantise_codes = False
    model.reseed(1, 2)
    # Random gains, shifts and biases: at their start of 1 and 0 some mistakes do not show, and ReLUs sit at their kink.
    model.trained += 0.1 * rng.standard_normal(model.trained.size)
    x = rng.standard_normal((9, *graph.input_shape))
    labels = rng.integers(0, graph.classes, 9)
    _, dlogits = cross_entropy(model.forward(x, training=True), labels)
    model.gradient[:] = np.nan
    grads = {name: value.copy() for name, value in model.backward(dlogits).items()}

    def value():
        return cross_entropy(model.forward(x, training=True), labels)[0]

    whole = np.linalg.norm(model.gradient)
    for name, found in grads.items():
        expected = central_difference(value, model.params[name])
        # Kernels before a normalisation may have hardly any gradient: measure those against the whole.
        scale = max(np.linalg.norm(expected), 1e-3 * whole)
        assert np.linalg.norm(found - expected) <= TOLERANCE * scale, name


def test_codes_start_like_kernels_and_keep_to_their_range():
    graph = small()
    model = Model(graph, seed=3)
    codes = [model.params[name] for name in model.params if name.endswith(".codes")]
    values = np.concatenate([z.ravel() for z in codes])
    assert 0.1 < values.std() < 0.2
    codes[0].flat[0] = -40.0
    size = np.sqrt(np.mean(np.square(np.concatenate([z.ravel() for z in codes]))))
    model.project()
    assert codes[0].flat[0] == pytest.approx(-CODE_RANGE[4] * size, rel=1e-5)
    kernel = model.expand()
    assert all(np.isfinite(value).all() for value in kernel.values())
    published = Model(nets.build("published_generator", t=64), seed=3)
    alone = next(name for name in published.params if name.endswith(".codes"))
    published.params[alone][:] = 0
    published.params[alone].flat[0] = 5.0
    published.project()
    assert published.params[alone].flat[0] == 5.0, "one code has no others to keep up with"


def test_rounding_of_codes_is_straight_through():
    graph = small()
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((5, *graph.input_shape)), rng.integers(0, 3, 5)
    rounded = Model(graph, seed=1, dtype=np.float64)
    codes = [name for name in rounded.params if name.endswith(".codes")]
    step = code_scale([rounded.params[name] for name in codes], 4)
    plain = Model(graph, rounded.params, dtype=np.float64)
    plain.quantise_codes = False
    for name in codes:
        plain.params[name][:] = np.rint(plain.params[name] / step) * step
    grads = []
    for model in (rounded, plain):
        _, dlogits = cross_entropy(model.forward(x, training=True), labels)
        grads.append(model.backward(dlogits))
    for name in grads[0]:
        np.testing.assert_array_equal(grads[0][name], grads[1][name], err_msg=name)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this machine offers one thread")
@pytest.mark.parametrize("windows", [1, 13, 64])
@pytest.mark.parametrize("graph", [small(), every_op()], ids=lambda g: g.name)
def test_threads_do_not_change_a_byte(graph, windows):
    x = np.random.default_rng(2).standard_normal((windows, *graph.input_shape)).astype(np.float32)
    found = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        try:
            model = Model(graph, seed=2)
            with single_blas():
                logits = model.forward(x, training=True).copy()
                model.backward(np.arange(logits.size, dtype=np.float32).reshape(logits.shape) / logits.size)
        finally:
            numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
        found.append((logits.tobytes(), model.gradient.tobytes(), model.running.tobytes()))
    assert found[0] == found[1]


def test_start_is_repeatable_diverse_and_well_scaled():
    graph = nets.build("hypertinypw", t=60)
    first, again, other = Model(graph, seed=5), Model(graph, seed=5), Model(graph, seed=6)
    assert first.trained.tobytes() == again.trained.tobytes()
    assert first.trained.tobytes() != other.trained.tobytes()
    for name, kernel in first.kernels().items():
        if name.startswith("pw"):
            assert 0.5 < kernel.std() / np.sqrt(2 / kernel.shape[1]) < 2, name
    codes = first.params["pw3.codes"]
    assert len(np.unique(codes, axis=0)) == len(codes)


def test_activations_agree_with_inference_and_with_folding():
    graph = small()
    rng = np.random.default_rng(7)
    model = Model(graph, seed=4)
    for name, value in model.params.items():  # running statistics and gains that are not 0 and 1
        if name.endswith((".gamma", ".var")):
            value[:] = rng.uniform(0.5, 2, value.shape)
        elif name.endswith((".beta", ".mean")):
            value[:] = rng.standard_normal(value.shape)
    x = rng.standard_normal((10, *graph.input_shape)).astype(np.float32)
    found = model.activations(x, batch=4)
    assert {name: value.shape[1:] for name, value in found.items()} == graph.shapes()
    np.testing.assert_array_equal(found["input"], x)
    np.testing.assert_allclose(found["fc"][:, 0], model.infer(x, batch=3), rtol=1e-5, atol=1e-5)
    p = model.params
    scale = p["pw2.gamma"] / np.sqrt(p["pw2.var"] + EPSILON)
    folded = found["dw2"] @ (model.kernels()["pw2"] * scale[:, None]).T + p["pw2.beta"] - p["pw2.mean"] * scale
    if graph.node("pw2").relu:
        folded = np.maximum(folded, 0)
    np.testing.assert_allclose(found["pw2"], folded, rtol=1e-4, atol=1e-4)
    assert all(found[node.name].min() >= 0 for node in graph.nodes if node.relu)


def test_inference_leaves_the_running_statistics_alone():
    model = Model(small())
    before = model.running.copy()
    model.infer(np.ones((3, 23, 2), np.float32))
    np.testing.assert_array_equal(model.running, before)
    model.forward(np.ones((3, 23, 2), np.float32), training=True)
    assert not np.array_equal(model.running, before)


def test_read_only_windows_are_accepted():
    x = np.zeros((2, 23, 2), np.float32)
    x.setflags(write=False)
    assert Model(small()).forward(x).shape == (2, 3)


def test_model_refuses_what_does_not_fit():
    graph = small()
    params = Model(graph).state()
    with pytest.raises(DataError, match="reads"):
        Model(graph).forward(np.zeros((2, 22, 2), np.float32))
    with pytest.raises(TrainError, match="forward"):
        Model(graph).backward(np.zeros((2, 3), np.float32))
    with pytest.raises(ConfigError, match=r"lack 'fc.bias'"):
        Model(graph, {k: v for k, v in params.items() if k != "fc.bias"})
    with pytest.raises(ConfigError, match="unknown entry 'more'"):
        Model(graph, {**params, "more": np.zeros(1)})
    with pytest.raises(ConfigError, match=r"'fc.bias' has shape"):
        Model(graph, {**params, "fc.bias": np.zeros(4)})
    with pytest.raises(ConfigError, match=r"'fc.bias'.*not finite"):
        Model(graph, {**params, "fc.bias": np.full(3, np.inf)})


# -- losses and scores -------------------------------------------------------------------------------------------------


def test_cross_entropy_gradient_and_extremes():
    rng = np.random.default_rng(8)
    logits, labels = rng.standard_normal((6, 4)), rng.integers(0, 4, 6)
    _, found = cross_entropy(logits, labels)
    expected = central_difference(lambda: cross_entropy(logits, labels)[0], logits)
    assert np.linalg.norm(found - expected) <= TOLERANCE * np.linalg.norm(expected)
    loss, grad = cross_entropy(np.array([[1e4, 0.0]], np.float32), np.array([1]))
    assert loss == 1e4
    np.testing.assert_array_equal(grad, [[1, -1]])


def test_macro_f1_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 0])
    # class 0: precision 2/4, recall 2/3; class 1: 1/2 and 1/2; class 2: never found
    assert macro_f1(labels, predicted, 3) == pytest.approx((4 / 7 + 1 / 2 + 0) / 3)
    assert macro_f1(labels, labels, 3) == 1
    assert macro_f1(labels, labels, 4) == 0.75  # a class nobody has counts 0


def test_binary_score_finds_the_threshold():
    probability = np.array([0.02, 0.11, 0.12, 0.3])
    logits = np.stack([np.zeros(4), np.log(probability / (1 - probability))], axis=1)
    found = score(logits.astype(np.float32), np.array([0, 0, 0, 1]))
    assert found.macro_f1 == 1
    assert found.threshold == pytest.approx(0.15)
    many = score(np.eye(3, dtype=np.float32), np.array([0, 1, 1]))
    assert many.threshold is None
    assert many.macro_f1 == pytest.approx((1 + 2 / 3 + 0) / 3)


# -- optimiser ---------------------------------------------------------------------------------------------------------


def test_learning_rate_rises_then_falls():
    rates = [learning_rate(i, 100, 0.5, 10) for i in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[9] == rates[10] == 0.5
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[55] == pytest.approx(0.25)
    assert 0 < rates[-1] < 0.001
    assert learning_rate(4, 5, 0.5, 5) == 0.5  # all of it is warm-up


def test_clipping():
    gradient = np.array([3.0, 4.0], np.float32)
    assert clip_gradient(gradient, 10) == 5
    np.testing.assert_array_equal(gradient, [3, 4])
    assert clip_gradient(gradient, 0) == 5
    np.testing.assert_array_equal(gradient, [3, 4])
    assert clip_gradient(gradient, 1) == 5
    np.testing.assert_allclose(gradient, [0.6, 0.8], rtol=1e-6)
    gradient[0] = np.nan
    assert np.isnan(clip_gradient(gradient, 1))
    assert gradient[1] == pytest.approx(0.8)


def test_adamw_matches_its_definition():
    model = Model(small(), seed=1, dtype=np.float64)
    rng = np.random.default_rng(9)
    optimiser = AdamW(model, weight_decay=0.1)
    weights = {name: model.params[name].copy() for name in model.grads}
    m = dict.fromkeys(weights, 0)
    v = dict.fromkeys(weights, 0)
    for t in (1, 2, 3):
        model.gradient[:] = rng.standard_normal(model.gradient.size)
        for name, g in model.grads.items():
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            decay = 0.1 if name.endswith(("weight", "codes")) else 0
            update = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.999**t)) + 1e-8)
            weights[name] = weights[name] * (1 - 0.01 * decay) - 0.01 * update
        optimiser.step(t, 0.01)
    for name, value in weights.items():
        np.testing.assert_allclose(model.params[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
    assert not decays("fc.bias")
    assert not decays("stem.gamma")
    assert not decays("generator.0.bias")
    assert decays("head.weight")


def test_gains_stay_positive():
    model = Model(small())
    optimiser = AdamW(model, weight_decay=0)
    model.gradient[:] = 1
    optimiser.step(1, 5.0)
    assert all(np.all(v == np.float32(MIN_GAMMA)) for k, v in model.params.items() if k.endswith(".gamma"))


def test_average_follows_weights_and_running_statistics():
    model = Model(small(), dtype=np.float64)
    start = model.trained.copy()
    ema = Ema(model, decay=0.9)
    model.trained += 1
    model.running += 2
    ema.update(model, 1)  # the decay starts at 2/11
    np.testing.assert_allclose(ema.model.trained, start + 9 / 11)
    np.testing.assert_allclose(ema.model.running - model.running, -2 * 2 / 11)
    for _ in range(3):
        ema.update(model, 10**6)
    np.testing.assert_allclose(model.trained - ema.model.trained, 2 / 11 * 0.9**3)
