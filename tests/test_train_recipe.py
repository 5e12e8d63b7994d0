"""Teachers and their caches, early stop, masks and stretching, divergence by layer; all of it at once, to the byte."""

import json
import threading
from dataclasses import asdict, replace
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from test_train_model import every_op
from test_train_trainer import CONFIG, STEPS, TRAIN, VAL, contents, graph_of, same

from pyhtpw import nets
from pyhtpw.errors import ConfigError, TrainError
from pyhtpw.train import Model, TrainConfig, train
from pyhtpw.train.batches import augment, check_augment
from pyhtpw.train.checkpoint import load_checkpoint, save_checkpoint
from pyhtpw.train.teacher import Teacher, load_teacher, signals, train_teacher
from pyhtpw.train.trainer import BEST, LAST

FULL = TrainConfig(
    steps=30, batch=16, lr=0.01, warmup=5, eval_every=7, ema=0.9, balance=0.5, seed=3, patience=3,
    augment={"amplitude": 0.1, "noise": 0.02, "shift": 2, "stretch": 0.2, "time_mask": 5, "masks": 2},
    objective={
        "label_smoothing": 0.1, "class_weights": "balanced", "focal": 0.5, "kd": 1.0, "feature": 0.2, "soft_f1": 0.5,
        "spectral": 0.01, "l1": 0.001,
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher():
    graph = nets.build("separable", t=STEPS, stem=12, widths=(16, 16), strides=(2, 1), stem_stride=2)
    return Teacher(graph, Model(graph, seed=8).state())


@pytest.fixture(scope="module")
def told(teacher, tmp_path_factory):
    return signals(teacher, TRAIN.x, tmp_path_factory.mktemp("cache") / "train.safetensors")


# -- teachers ----------------------------------------------------------------------------------------------------------


def test_signals_are_the_teachers_outputs(teacher, told):
    model = Model(teacher.graph, teacher.params)
    np.testing.assert_array_equal(told.logits, model.infer(TRAIN.x))
    np.testing.assert_array_equal(told.features, model.activations(TRAIN.x)["pool"][:, 0])
    assert told.features.shape == (60, 16)


def test_cache_is_used_until_teacher_or_data_change(teacher, tmp_path, monkeypatch):
    path = tmp_path / "train.safetensors"
    first = signals(teacher, TRAIN.x, path)
    written = path.read_bytes()
    runs = []
    forward = Model.forward
    monkeypatch.setattr(Model, "forward", lambda *args: runs.append(1) or forward(*args))
    again = signals(teacher, TRAIN.x, path)
    assert not runs
    assert again.key == first.key
    np.testing.assert_array_equal(again.logits, first.logits)
    np.testing.assert_array_equal(again.features, first.features)
    other = Teacher(teacher.graph, {**teacher.params, "fc.bias": teacher.params["fc.bias"] + 1})
    changed = signals(other, TRAIN.x, path)
    assert runs
    assert changed.key != first.key
    np.testing.assert_allclose(changed.logits, first.logits + 1, rtol=1e-5)
    x = TRAIN.x.copy()
    x[3, 5, 0] += 1
    assert signals(teacher, x, path).key not in (first.key, changed.key)
    path.write_bytes(written[:-1])  # damaged
    assert signals(teacher, TRAIN.x, path).key == first.key
    assert path.read_bytes() == written


def test_teacher_is_trained_once_and_loaded_after(tmp_path):
    graph = graph_of()
    stop = threading.Event()
    stop.set()
    with pytest.raises(TrainError, match="stopped after step 0"):
        train_teacher(graph, TRAIN, VAL, CONFIG, tmp_path / "run", stop=stop)
    first = train_teacher(graph, TRAIN, VAL, CONFIG, tmp_path / "run")
    steps = []
    again = train_teacher(graph, TRAIN, VAL, CONFIG, tmp_path / "run", progress=steps.append)
    assert not steps
    assert first.key == again.key == load_teacher(tmp_path / "run").key == load_teacher(tmp_path / "run" / BEST).key
    with pytest.raises(TrainError, match="another config"):
        train_teacher(graph, TRAIN, VAL, FULL_WITHOUT_TEACHER, tmp_path / "run")
    with pytest.raises(TrainError, match="there is no checkpoint"):
        load_teacher(tmp_path)
    with pytest.raises(TrainError, match="holds no teacher"):
        load_teacher(tmp_path / "run" / LAST)
    save_checkpoint(tmp_path / "odd.safetensors", {"a": np.zeros(1)}, {"n": 1})
    with pytest.raises(TrainError, match="holds no teacher"):
        load_teacher(tmp_path / "odd.safetensors")


FULL_WITHOUT_TEACHER = TrainConfig(**{**vars(FULL), "objective": {"focal": 0.5}})


def test_run_with_another_teacher_does_not_resume(teacher, told, tmp_path):
    stop = threading.Event()
    stop.set()
    train(graph_of(), TRAIN, VAL, FULL, tmp_path, teacher=told, stop=stop)
    other = SimpleNamespace(logits=told.logits, features=told.features, key="other")
    with pytest.raises(TrainError, match=r"another data \(teacher"):
        train(graph_of(), TRAIN, VAL, FULL, tmp_path, teacher=other, resume=True)
    with pytest.raises(ConfigError, match="kd compares with a teacher"):
        train(graph_of(), TRAIN, VAL, FULL, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_student_follows_its_teacher(tmp_path):
    rng = np.random.default_rng(4)
    logits = np.where(rng.random((60, 1)) < 0.5, [[4.0, 0.0]], [[0.0, 4.0]])
    told = SimpleNamespace(logits=logits, features=np.zeros((60, 1)), key="k")
    config = TrainConfig(
        steps=150, batch=60, lr=0.02, warmup=5, ema=0.9, eval_every=150, objective={"kd": 1.0, "kd_alpha": 1.0}
    )
    graph = nets.build("separable", t=STEPS, stem=16, widths=(32, 32), strides=(2, 1), stem_stride=2)
    train(graph, TRAIN, VAL, config, tmp_path, teacher=told)
    found = Model(graph, load_checkpoint(tmp_path / BEST)[0]).infer(TRAIN.x)
    assert np.mean(found.argmax(1) == logits.argmax(1)) > 0.9  # not the labels, about half of which it contradicts


# -- early stop --------------------------------------------------------------------------------------------------------


def test_patience_ends_the_run_and_resumes_to_the_same_end(tmp_path):
    config = TrainConfig(steps=400, batch=16, lr=0.01, warmup=5, ema=0.5, eval_every=3, patience=2)
    result = train(graph_of(), TRAIN, VAL, config, tmp_path / "a")
    assert result.early
    assert not result.stopped
    assert result.steps == max(result.best_step, result.ema_best_step) + 2 * 3 < 400
    again = train(graph_of(), TRAIN, VAL, config, tmp_path / "a", resume=True)
    assert same(again, result)
    assert again.early
    stop = threading.Event()

    def watch(report):
        if report["step"] == result.steps - 4:
            stop.set()

    assert train(graph_of(), TRAIN, VAL, config, tmp_path / "b", progress=watch, stop=stop).stopped
    assert same(train(graph_of(), TRAIN, VAL, config, tmp_path / "b", resume=True), result)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with pytest.raises(ConfigError, match="patience"):
        TrainConfig(steps=1, patience=-1)


# -- augmentations -----------------------------------------------------------------------------------------------------


def test_stretch_runs_through_windows_faster_or_slower():
    x = np.arange(9, dtype=np.float32).reshape(1, 9, 1).repeat(300, axis=0)
    found = augment(x, np.random.default_rng(0), {"stretch": 0.5})[:, :, 0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 4], 4, rtol=1e-6)  # the middle stays
    speed = found[:, 5] - found[:, 4]
    assert 0.5 <= speed.min() < 0.55
    assert 1.45 < speed.max() <= 1.5
    expected = np.clip(4 + (np.arange(9) - 4) * speed[:, None], 0, 8)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    one = np.ones((3, 1, 2), np.float32)
    np.testing.assert_array_equal(augment(one, np.random.default_rng(0), {"stretch": 0.5}), one)


def test_masks_hide_spans_of_time_and_of_channels():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 20, 7)).astype(np.float32) + np.arange(7, dtype=np.float32)
    for name, axis, most in (("time_mask", 1, 6), ("feature_mask", 2, 3)):
        found = augment(x, np.random.default_rng(1), {name: most})
        changed = found != x
        places = changed.all(axis=3 - axis)  # whole rows, or whole columns
        np.testing.assert_array_equal(changed.any(axis=3 - axis), places)
        assert set(places.sum(axis=1)) == set(range(most + 1))
        assert all(np.ptp(np.flatnonzero(p)) == p.sum() - 1 for p in places if p.any())
        assert places.any(axis=0).all()  # anywhere
        fill = np.broadcast_to(x.mean(axis=(0, 1)), x.shape)
        np.testing.assert_allclose(found[changed], fill[changed], rtol=1e-4, atol=1e-4)
    twice = augment(x, np.random.default_rng(1), {"time_mask": 6, "feature_mask": 3, "masks": 2})
    assert (twice != x).mean() > (augment(x, np.random.default_rng(1), {"time_mask": 6, "feature_mask": 3}) != x).mean()


def test_what_is_off_draws_nothing():
    x = np.random.default_rng(0).standard_normal((4, 9, 2)).astype(np.float32)
    options = {"amplitude": 0.1, "noise": 0.1, "shift": 2}
    more = {**options, "stretch": 0, "time_mask": 0, "feature_mask": 0}
    found = [augment(x, np.random.default_rng(5), o) for o in (options, more)]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stretch": 1}, "stretch is 1"),
        ({"time_mask": 1.5}, "time_mask is 1.5"),
        ({"masks": 2}, "masks says how many"),
        ({"time_mask": 9}, "time_mask is 9 but windows have 9 steps"),
        ({"feature_mask": 2}, "feature_mask is 2 but windows have 2 channels"),
        ({"shift": 9}, "shift is 9 but windows have 9 steps"),
    ],
)
def test_bad_augmentations(options, said):
    with pytest.raises(ConfigError, match=said):
        check_augment(options, (9, 2))


# -- divergence --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_names_the_layer(tmp_path):
    graph = graph_of()
    start = Model(graph).state()
    start["pw1.beta"][2] = 3e38
    with pytest.raises(TrainError, match=r"\(first not finite: the (mean|var) of node 'dw2'\) at step 1"):
        train(graph, TRAIN, VAL, TrainConfig(steps=3), tmp_path, start=start)


def test_gradients_that_are_not_finite_are_named_from_the_back():
    model = Model(graph_of())
    model.forward(TRAIN.x[:4], training=True)
    model.backward(np.ones((4, 2), np.float32))
    assert model.first_not_finite() == ""
    model.grads["generator.0.bias"][:] = np.nan
    assert model.first_not_finite() == "the gradient of 'generator.0.bias'"
    model.grads["stem.gamma"][:] = np.inf
    model.grads["dw2.gamma"][:] = np.inf
    assert model.first_not_finite() == "the gradient of 'dw2.gamma'"


# -- all at once -------------------------------------------------------------------------------------------------------


def with_dropout(graph):
    """The graph with a dropout in front of its classifier."""
    *front, last = graph.nodes
    drop = nets.Node("drop", "dropout", last.inputs, graph.shapes()[last.inputs[0]][1], rate=0.3)
    return replace(graph, name=f"{graph.name}-dropout", nodes=(*front, drop, replace(last, inputs=("drop",))))


@pytest.mark.parametrize(
    ("graph", "aware"),
    [(graph_of(), False), (every_op((STEPS, 1), 2), False), (with_dropout(graph_of()), True)],
    ids=["plain", "every_op", "aware"],
)
def test_everything_on_same_bytes_for_threads_and_resume(graph, aware, told, tmp_path):
    config = replace(FULL, aware=aware)
    whole = train(graph, TRAIN, VAL, config, tmp_path / "whole", teacher=told)
    if numba.config.NUMBA_NUM_THREADS > 1:
        numba.set_num_threads(1)
        try:
            train(graph, TRAIN, VAL, config, tmp_path / "one", teacher=told)
        finally:
            numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
        assert contents(tmp_path / "one") == contents(tmp_path / "whole")
    for at in (4, 16):
        stop = threading.Event()

        def watch(report, at=at, stop=stop):
            if report["step"] == at:
                stop.set()

        directory = tmp_path / str(at)
        assert train(graph, TRAIN, VAL, config, directory, teacher=told, progress=watch, stop=stop).stopped
        assert same(train(graph, TRAIN, VAL, config, directory, teacher=told, resume=True), whole)
        assert contents(directory) == contents(tmp_path / "whole")
    plain = train(graph, TRAIN, VAL, TrainConfig(**{**vars(config), "objective": {}}), tmp_path / "plain")
    assert not same(plain, whole)


def test_checkpoints_older_than_a_field_resume(tmp_path):
    whole = train(graph_of(), TRAIN, VAL, CONFIG, tmp_path / "whole")
    stop = threading.Event()
    stop.set()
    train(graph_of(), TRAIN, VAL, CONFIG, tmp_path / "old", stop=stop)
    arrays, description = load_checkpoint(tmp_path / "old" / LAST)
    for name in ("objective", "patience"):
        del description["config"][name]
    for node in description["graph"]["nodes"]:
        del node["hidden"], node["rate"]
        node["norm"] = bool(node["norm"])
    save_checkpoint(tmp_path / "old" / LAST, arrays, description)
    assert same(train(graph_of(), TRAIN, VAL, CONFIG, tmp_path / "old", resume=True), whole)
    other = TrainConfig(**{**vars(CONFIG), "objective": {"class_weights": (1, 2)}})
    save_checkpoint(tmp_path / "old" / LAST, arrays, description)
    with pytest.raises(TrainError, match=r"another config \(objective"):
        train(graph_of(), TRAIN, VAL, other, tmp_path / "old", resume=True)
    train(graph_of(), TRAIN, VAL, other, tmp_path / "new", stop=stop)
    train(graph_of(), TRAIN, VAL, other, tmp_path / "new", resume=True, stop=stop)  # a tuple that JSON made a list


def test_config_goes_through_toml_like_data():
    config = TrainConfig(steps=1, objective={"class_weights": [1, 2], "kd": 1})
    assert TrainConfig(**json.loads(json.dumps(asdict(config)))) == config
