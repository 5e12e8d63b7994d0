"""Every term of the objective against its definition and central differences; the terms together in a network."""

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
from test_train_layers import TOLERANCE, central_difference
from test_train_model import small

from pyhtpw import nets
from pyhtpw.errors import ConfigError
from pyhtpw.train import TrainConfig
from pyhtpw.train.losses import (
    absolute,
    cross_entropy,
    distillation,
    feature_matching,
    focal,
    log_softmax,
    soft_f1,
    spectral,
)
from pyhtpw.train.model import Model
from pyhtpw.train.objective import Criterion, Objective, feature_targets

RNG = np.random.default_rng(0)
LOGITS = 2 * RNG.standard_normal((7, 5))
LABELS = np.array([0, 3, 3, 1, 0, 4, 3])  # no example of class 2
WEIGHTS = np.array([0.5, 2.0, 1.0, 0.25, 3.0])
TEACHER = 3 * RNG.standard_normal((7, 5))

ON_LOGITS = {
    "cross-entropy": lambda z: cross_entropy(z, LABELS),
    "smoothed": lambda z: cross_entropy(z, LABELS, 0.13),
    "weighted": lambda z: cross_entropy(z, LABELS, 0.0, WEIGHTS),
    "smoothed and weighted": lambda z: cross_entropy(z, LABELS, 0.2, WEIGHTS),
    "focal 0": lambda z: focal(z, LABELS, 0.0),
    "focal 0.5": lambda z: focal(z, LABELS, 0.5),
    "focal 2": lambda z: focal(z, LABELS, 2.0),
    "focal weighted": lambda z: focal(z, LABELS, 3.0, WEIGHTS),
    "distillation": lambda z: distillation(z, TEACHER, 2.0),
    "distillation at 0.7": lambda z: distillation(z, TEACHER, 0.7),
    "soft F1": lambda z: soft_f1(z, LABELS),
}


def assert_gradient(term, array, tolerance=TOLERANCE, step=1e-5):
    _, found = term(array)
    expected = central_difference(lambda: term(array)[0], array, step)
    assert np.linalg.norm(expected) > 1e-6
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ON_LOGITS)
def test_gradients_on_logits(name):
    assert_gradient(ON_LOGITS[name], LOGITS.copy())


@pytest.mark.parametrize("name", ON_LOGITS)
def test_extreme_logits_stay_finite(name):
    for size in (1e4, -1e4):
        z = np.zeros((7, 5), np.float32)
        z[np.arange(7), LABELS] = size
        loss, grad = ON_LOGITS[name](z)
        assert np.isfinite(loss)
        assert np.isfinite(grad).all()
        assert grad.dtype == np.float32


def test_losses_match_their_definitions():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    own = p[np.arange(7), LABELS]
    w = WEIGHTS[LABELS]
    ce, _ = cross_entropy(LOGITS, LABELS, 0.1, WEIGHTS)
    rows = -0.9 * w * np.log(own) - 0.1 / 5 * (WEIGHTS * np.log(p)).sum(axis=1)
    assert ce == pytest.approx(rows.sum() / w.sum())
    assert focal(LOGITS, LABELS, 2.0)[0] == pytest.approx(np.mean(-((1 - own) ** 2) * np.log(own)))
    same, _ = cross_entropy(LOGITS, LABELS, 0.0, WEIGHTS)
    assert focal(LOGITS, LABELS, 0.0, WEIGHTS)[0] == pytest.approx(same)
    q, r = np.exp(log_softmax(TEACHER / 2)), np.exp(log_softmax(LOGITS / 2))
    assert distillation(LOGITS, TEACHER, 2.0)[0] == pytest.approx(4 * np.mean((q * np.log(q / r)).sum(axis=1)))
    assert distillation(TEACHER, TEACHER, 2.0)[0] == pytest.approx(0, abs=1e-12)
    f1 = []
    for c in (0, 1, 3, 4):
        y = np.equal(LABELS, c)
        f1.append(2 * p[y, c].sum() / (p[:, c].sum() + y.sum()))
    assert soft_f1(LOGITS, LABELS)[0] == pytest.approx(1 - np.mean(f1))
    sure = np.zeros((7, 5))
    sure[np.arange(7), LABELS] = 50
    assert soft_f1(sure, LABELS)[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("width", [3, 5])
def test_feature_matching(width):
    target = RNG.standard_normal((4, 3))
    features = RNG.standard_normal((4, width))
    assert_gradient(lambda f: feature_matching(f, target), features)
    assert feature_matching(features, target)[0] == pytest.approx(np.mean((features[:, :3] - target) ** 2))
    assert not feature_matching(features, target)[1][:, 3:].any()


def test_features_of_a_wider_teacher_are_those_that_vary_most():
    features = RNG.standard_normal((50, 4)) * [1.0, 5.0, 0.1, 3.0]
    found = feature_targets(features, 2)
    assert np.mean(found**2) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(found, features[:, [1, 3]] / np.sqrt(np.mean(features[:, [1, 3]] ** 2)), rtol=1e-5)
    assert feature_targets(features, 4).shape == feature_targets(features, 9).shape == (50, 4)
    assert not feature_targets(np.zeros((5, 3)), 2).any()


@pytest.mark.parametrize("shape", [(5, 3), (3, 7), (1, 4), (6, 1), (4, 4)])
def test_spectral_norm(shape):
    weight = RNG.standard_normal(shape)
    assert spectral(weight)[0] == pytest.approx(np.linalg.norm(weight, 2) ** 2, rel=1e-9)
    assert_gradient(spectral, weight)
    tiny, huge = spectral(weight * 1e-30)[0], spectral(weight * 1e30)[0]
    assert huge / tiny == pytest.approx(1e120, rel=1e-6)


def test_spectral_norm_of_odd_matrices():
    value, grad = spectral(np.zeros((3, 2), np.float32))
    assert value == 0
    assert not grad.any()
    assert spectral(np.eye(3))[0] == pytest.approx(1)  # any direction is the leading one
    assert np.isnan(spectral(np.full((2, 2), np.nan))[0])


def test_absolute():
    assert_gradient(absolute, RNG.uniform(0.1, 1, (3, 5)) * RNG.choice([-1, 1], (3, 5)))
    np.testing.assert_array_equal(absolute(np.array([0.0, -2.0, 3.0]))[1], [0, -1, 1])


# -- together ----------------------------------------------------------------------------------------------------------

EVERYTHING = Objective(
    ce=0.9, label_smoothing=0.1, class_weights=(1.0, 2.0, 0.5), focal=0.4, kd=0.8, feature=0.3, soft_f1=0.7,
    spectral=0.02, l1=0.003,
)  # fmt: skip


def signals(windows, classes=3, width=4, key="a"):
    rng = np.random.default_rng(1)
    return SimpleNamespace(
        logits=rng.standard_normal((windows, classes)), features=rng.standard_normal((windows, width)), key=key
    )


def test_gradient_of_the_whole_objective():
    graph = small()
    rng = np.random.default_rng(2)
    model = Model(graph, seed=3, dtype=np.float64)
    model.quantise_codes = False
    model.trained += 0.1 * rng.standard_normal(model.trained.size)
    labels = np.arange(20) % 3
    index = np.array([3, 4, 7, 7, 12, 19, 1])
    criterion = Criterion(EVERYTHING, graph, labels, signals(20))
    x = rng.standard_normal((7, *graph.input_shape))

    def value():
        logits = model.forward(x, training=True)
        scratch = {name: np.zeros_like(g) for name, g in model.grads.items()}
        return criterion.on_batch(logits, labels[index], model.features, index)[0] + criterion.on_parameters(
            model.params, scratch
        )

    logits = model.forward(x, training=True)
    _, dlogits, dfeatures = criterion.on_batch(logits, labels[index], model.features, index)
    model.backward(dlogits, dfeatures)
    criterion.on_parameters(model.params, model.grads)
    grads = {name: found.copy() for name, found in model.grads.items()}
    whole = np.linalg.norm(model.gradient)
    for name, found in grads.items():
        expected = central_difference(value, model.params[name])
        scale = max(np.linalg.norm(expected), 1e-3 * whole)
        assert np.linalg.norm(found - expected) <= TOLERANCE * scale, name


def test_weights_of_terms():
    labels = np.array([0, 1, 2, 2])
    z, f = RNG.standard_normal((4, 3)), RNG.standard_normal((4, 6))
    graph, index = small(), np.arange(4)

    def loss(teacher=None, **terms):
        return Criterion(Objective(**terms), graph, labels, teacher).on_batch(z, labels, f, index)

    value, grad, more = loss()
    plain = cross_entropy(z, labels)
    assert value == plain[0]
    assert grad.tobytes() == plain[1].tobytes()
    assert more is None
    teacher = signals(4)
    kl = distillation(z, teacher.logits, 2.0)[0]
    assert loss(teacher, kd=1.0)[0] == pytest.approx(0.3 * plain[0] + 0.7 * kl)
    assert loss(teacher, kd=1.0, kd_alpha=1.0)[0] == pytest.approx(kl)
    assert loss(ce=0.0, soft_f1=2.0)[0] == pytest.approx(2 * soft_f1(z, labels)[0])
    assert loss(ce=0.5, focal=2.0)[0] == pytest.approx(0.5 * plain[0] + 2 * focal(z, labels, 2.0)[0])
    balanced = np.array([4 / 3, 4 / 3, 2 / 3])
    assert loss(class_weights="balanced")[0] == pytest.approx(cross_entropy(z, labels, 0, balanced)[0])
    value, _, grad = loss(teacher, feature=1.0)
    expected = feature_matching(f, feature_targets(teacher.features, 6))
    assert value == pytest.approx(plain[0] + expected[0])
    np.testing.assert_array_equal(grad, expected[1])


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        *[({f.name: -0.5}, f"objective {f.name} is -0.5") for f in fields(Objective) if f.name != "class_weights"],
        ({"ce": "1"}, "objective ce is '1'"),
        ({"focal": True}, "objective focal is True"),
        ({"label_smoothing": 1}, "label_smoothing is 1"),
        ({"kd_alpha": 1.5}, "kd_alpha is 1.5"),
        ({"kd_temperature": 0}, "kd_temperature is 0"),
        ({"class_weights": (1.0, 0.0)}, "class_weights"),
        ({"class_weights": "even"}, "class_weights is 'even'"),
        ({"class_weights": 3}, "class_weights is 3"),
        ({"ce": 0, "l1": 1}, "no term that looks at data"),
        ({"hinge": 1}, "unknown entry 'hinge'"),
    ],
)
def test_bad_objectives_name_the_field(terms, said):
    with pytest.raises(ConfigError, match=said) as caught:
        TrainConfig(steps=1, objective=terms)
    assert "\n" not in str(caught.value)


def test_objective_of_a_config():
    assert TrainConfig(steps=1).objective == Objective()
    assert TrainConfig(steps=1, objective={"focal": 0.5}).objective == Objective(focal=0.5)
    assert Objective(class_weights=[1, 2]).class_weights == (1, 2)
    with pytest.raises(ConfigError, match="give a mapping"):
        TrainConfig(steps=1, objective="focal")


@pytest.mark.parametrize(
    ("terms", "graph", "teacher", "said"),
    [
        ({"spectral": 1}, small(generated=False), None, "spectral has nothing to act on: 'separable' has no generator"),
        ({"l1": 1}, small(generated=False), None, "l1 has nothing"),
        ({"kd": 1}, small(), None, "kd compares with a teacher"),
        ({"feature": 1}, small(), None, "feature compares with a teacher"),
        ({}, small(), signals(6), "kd and feature are 0"),
        ({"kd": 1}, small(), signals(5), r"logits have shape \(5, 3\) for 6 training windows"),
        ({"feature": 1}, small(), signals(7), r"features have shape"),
        ({"kd": 1}, small(), signals(6, classes=2), "tells 2 classes apart"),
        ({"class_weights": (1, 2)}, small(), None, "2 numbers for 3 classes"),
    ],
)
def test_objectives_that_do_not_fit(terms, graph, teacher, said):
    with pytest.raises(ConfigError, match=said):
        Criterion(Objective(**terms), graph, np.arange(6) % 3, teacher)


def test_l1_acts_on_heads_and_codes_only():
    graph = nets.build("hypertinypw", t=30, widths=(8, 8), strides=(1, 1), heads={"pw": "tiled", "depthwise": "seeded"})
    model = Model(graph)
    model.gradient[:] = 0
    loss = Criterion(Objective(l1=0.5), graph, np.arange(2)).on_parameters(model.params, model.grads)
    names = [name for name, grad in model.grads.items() if grad.any()]
    assert set(names) == {"pw2.codes", "dw1.codes", "dw2.codes", "head-2.weight"} or set(names) == {
        "pw2.codes", "dw1.codes", "dw2.codes", "head.weight"
    }  # fmt: skip
    assert loss == pytest.approx(0.5 * sum(np.abs(model.params[name]).sum() for name in names), rel=1e-5)
