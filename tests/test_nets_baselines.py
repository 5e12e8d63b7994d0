"""The named networks beside the proposed one: published parameter counts, and each from training to C."""

import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from test_quant_ops import agreement, assert_c_is_numpy
from typer.testing import CliRunner

from pyhtpw import freezing, nets, pipeline, training
from pyhtpw.cli import app
from pyhtpw.cli import training as cli_training
from pyhtpw.data import load
from pyhtpw.errors import ConfigError
from pyhtpw.image.integer import Stored
from pyhtpw.nets import Graph
from pyhtpw.quant import quantise
from pyhtpw.quant.freeze import freeze, with_frozen_norms
from pyhtpw.recipes import RECIPES
from pyhtpw.train import Model
from pyhtpw.train.checkpoint import load_checkpoint
from pyhtpw.train.kernels import single_blas
from pyhtpw.train.objective import cross_entropy, score
from pyhtpw.train.optim import AdamW

NEW = ("regular_cnn", "resnet1d_small", "tiny_separable", "tiny_cnn", "tiny_vae_head", "ternary_separable", "published_generator")
PUBLISHED = {"regular_cnn": 1_455_618, "resnet1d_small": 63_474, "tiny_separable": 741, "tiny_cnn": 14_322}


def test_all_are_known_by_name():
    assert set(NEW) <= set(nets.NAMES)
    assert all(nets.build(name, t=64).name == name for name in NEW)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    assert nets.build(name, t=1800).parameter_count() == PUBLISHED[name]


def test_the_variational_network_lacks_its_variance():
    graph = nets.build("tiny_vae_head", t=1800)
    shapes = graph.parameter_shapes()
    branch = shapes["mu.weight"], shapes["mu.bias"]
    assert branch == ((16, 8, 32), (16,))
    assert graph.parameter_count() == 5_778
    assert graph.parameter_count() + sum(int(np.prod(shape)) for shape in branch) == 9_890


@pytest.mark.parametrize("t", [16, 17, 23, 100, 127, 1800, 1801])
def test_parts_of_any_window_are_eight(t):
    assert nets.build("tiny_vae_head", t=t).shapes()["parts"] == (8, 32)


def test_windows_that_are_too_short_are_refused():
    with pytest.raises(ConfigError, match="at least 16 steps"):
        nets.build("tiny_vae_head", t=15)
    with pytest.raises(ConfigError, match="node 'top4'"):
        nets.build("regular_cnn", t=15)


def test_shapes_of_the_residual_network():
    graph = nets.build("resnet1d_small", t=1800)
    shapes = graph.shapes()
    assert [shapes[name] for name in ("stem", "s1b2_act2", "s2b2_act2", "s3b2_act2")] == [(900, 16), (900, 16), (450, 32), (225, 32)]
    assert [node.name for node in graph.nodes if node.name.endswith("_short")] == ["s2b1_short", "s3b1_short"]


def trained(name: str, steps: int = 3):
    """A network after a few steps on two kinds of windows, and windows."""
    rng = np.random.default_rng(8)
    labels = np.arange(32) % 2
    pace = np.where(labels, 9, 3)[:, None, None] * rng.uniform(0.8, 1.2, (32, 1, 1))
    x = np.sin(pace * np.linspace(0, 2 * np.pi, 128)[None, :, None]) + 0.3 * rng.standard_normal((32, 128, 1))
    x = x.astype(np.float32)
    graph = nets.build(name, t=128)
    model = Model(graph, seed=2)
    optimiser, losses = AdamW(model, 0.01), []
    with single_blas():
        for step in range(1, steps + 1):
            model.reseed(step)
            loss, gradient = cross_entropy(model.forward(x, training=True), labels)
            losses.append(float(loss))
            model.backward(gradient)
            optimiser.step(step, 1e-3)
    return graph, model, x, losses


@pytest.mark.parametrize("name", NEW)
def test_from_training_to_c(name):
    graph, model, x, losses = trained(name)
    assert np.isfinite(losses).all()
    assert all(np.abs(value).max() > 0 for parameter, value in model.grads.items() if parameter.endswith(".weight"))
    integer = quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=100.0)
    image = assert_c_is_numpy(integer, x)
    logits = image.run_batch(image.quantise(x))
    assert len(np.unique(logits)) > 2, "logits say something"


@pytest.mark.parametrize("name", nets.NAMES)
def test_every_network_runs_in_c(name):
    """As it starts, three classes: the image opens, and C and the reference agree to the byte."""
    shape = {"hrv_featnet": (1, 16), "hrv_beats": (1, 8)}.get(name, (96, 2))
    graph = nets.build(name, t=shape[0], channels_in=shape[1], classes=3)
    x = np.random.default_rng(5).standard_normal((12, *shape)).astype(np.float32)
    model = Model(graph, seed=1)
    for _ in range(3):
        model.forward(x, training=True)  # statistics of normalisations
    integer = quantise(graph, model.state(), x, classes=("a", "b", "c"), sample_rate=100.0)
    image = assert_c_is_numpy(integer, x)
    assert len(np.unique(image.run_batch(image.quantise(x)).reshape(12, 3), axis=0)) > 1


def test_ternary_kernels_take_two_bits():
    graph, model, x, _ = trained("ternary_separable", 1)
    integer = quantise(graph, model.state(), x, classes=("a", "b"), sample_rate=100.0)
    bits = {op.name: op.weights.bits for op in integer.ops if isinstance(op.weights, Stored)}
    assert {name for name, width in bits.items() if width == 2} == {"pw1", "pw2", "pw3", "pw4"}


@pytest.mark.parametrize("name", NEW)
def test_heads_may_be_others(name):
    graph = nets.build(name, t=64, heads={"fc": "stored:bits=4"})
    assert graph.node("fc").head.bits == 4
    plain = nets.build(name, t=64, heads={})
    assert graph.parameter_count() == plain.parameter_count()


def test_tuning_of_frozen_statistics_trains_what_is_deployed():
    """A frozen network learns on, its statistics stay, and an image has nothing left to freeze."""
    graph, model, x, _ = trained("tiny_cnn")
    frozen, params = freeze(graph, model.state(), x)
    tuned = Model(frozen, params)
    assert frozen == with_frozen_norms(graph)
    assert frozen.trained_names() == graph.trained_names()
    labels, optimiser = np.arange(32) % 2, AdamW(tuned, 0.0)
    losses = []
    with single_blas():
        for step in range(1, 21):
            loss, gradient = cross_entropy(tuned.forward(x, training=True), labels)
            tuned.backward(gradient)
            optimiser.step(step, 1e-3)
            losses.append(float(loss))
    assert losses[-1] < losses[0]
    for name in ("conv1.mean", "conv3.var"):
        np.testing.assert_array_equal(tuned.params[name], params[name])
    same = freeze(frozen, tuned.state(), x)
    assert same[0] == frozen
    integer = quantise(frozen, tuned.state(), x, classes=("a", "b"), sample_rate=100.0)
    assert agreement(integer, tuned, x) > 0.99
    assert_c_is_numpy(integer, x)


# -- what `pyhtpw train` is told ---------------------------------------------------------------------------------------


def test_options_of_the_recipe_serve_only_networks_that_have_them():
    recipe = RECIPES["synthetic-ecg", "synthetic"]
    assert training.changed(recipe).net_options == recipe.net_options == {"kernel": 9, "stem_kernel": 15}
    assert training.changed(recipe, net="separable").net_options == recipe.net_options
    assert training.changed(recipe, net="tiny_cnn").net_options == {}
    assert training.changed(recipe, net="regular_cnn", heads={"fc": "stored"}).net_options == {"heads": {"fc": "stored"}}
    with pytest.raises(ConfigError, match="choose one of"):
        training.changed(recipe, net="nothing")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="NOT RUN: TOML takes Python 3.11")
def test_options_of_a_file_are_for_the_network_to_refuse(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text("[net]\nname = 'regular_cnn'\ndropout = 0.25\nkernel = 3\n")
    changed = training.changed(RECIPES["synthetic-ecg", "synthetic"], config=path)
    assert changed.net_options == {"dropout": 0.25, "kernel": 3}
    with pytest.raises(ConfigError, match="kernel"):
        nets.build(changed.net, t=64, **changed.net_options)


@pytest.mark.parametrize("name", ["tiny_separable", "tiny_vae_head"])
def test_a_dry_run_of_a_named_network(name, tmp_path):
    done = CliRunner().invoke(app, ["train", "--dry-run", "--json", "--net", name, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["network"] == name


def test_a_run_is_tuned_with_frozen_statistics(tmp_path):
    data = load("synthetic-ecg", seed=0)
    recipe = replace(RECIPES["synthetic-ecg", "synthetic"], train={"steps": 2, "eval_every": 2, "batch": 8})
    recipe = training.changed(recipe, net="tiny_cnn")
    graph, _, result = pipeline.train_stage(recipe, data, tmp_path / "a", seed=0)
    frozen, params, errors = training.initial(graph, tmp_path / "a", data, 0, frozen=True)
    assert [node.norm for node in frozen.nodes if node.norm] == ["frozen"] * 3
    assert not errors
    np.testing.assert_array_equal(params["conv2.weight"], result.params["conv2.weight"])
    tuned = pipeline.train_stage(recipe, data, tmp_path / "b", seed=0, start=(frozen, params))[2]
    np.testing.assert_array_equal(tuned.params["conv2.var"], params["conv2.var"])
    assert (tuned.params["conv2.weight"] != params["conv2.weight"]).any()
    again = training.initial(graph, tmp_path / "b", data, 0, frozen=True)
    assert again[0] == frozen
    np.testing.assert_array_equal(again[1]["conv2.mean"], params["conv2.mean"])


def test_what_freezing_and_tuning_do_is_reported(tmp_path, monkeypatch):
    """Validation macro-F1 as trained, frozen and tuned, by `--freeze`: in the summary, in words, and in the run folder."""
    data = load("synthetic-ecg", seed=0)
    parts = {name: getattr(data, name) for name in ("train", "val", "test")}
    few = {name: {f.name: getattr(part, f.name)[::40] for f in fields(part)} for name, part in parts.items()}
    data = replace(data, **{name: replace(parts[name], **columns) for name, columns in few.items()})
    monkeypatch.setattr(cli_training, "load_data", lambda *_: data)
    told = ["train", "--net", "tiny_cnn", "--json", "--steps", "3", "--out"]
    first = CliRunner().invoke(app, [*told, str(tmp_path / "a")])
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["group_norm"] is None
    tuned = CliRunner().invoke(app, [*told, str(tmp_path / "b"), "--init-from", str(tmp_path / "a"), "--freeze"])
    assert tuned.exit_code == 0, tuned.output
    found, summary = json.loads(tuned.stdout)["group_norm"], json.loads(tuned.stdout)
    assert found == json.loads((tmp_path / "b" / freezing.FILE).read_text())
    assert found["as_trained"] == pytest.approx(json.loads(first.stdout)["val_macro_f1"])
    assert found["tuned"] == summary["val_macro_f1"]
    assert found["change"] == found["tuned"] - found["as_trained"]
    assert found["nodes"] == ["conv1", "conv2", "conv3"]
    params, description = load_checkpoint(tmp_path / "a" / "best.safetensors")
    frozen = Model(*freeze(Graph.from_dict(description["graph"]), params, pipeline.calibration_windows(data, 0)))
    assert found["frozen"] == pytest.approx(score(frozen.infer(data.val.x), data.val.y).macro_f1)
    assert freezing.measure(tmp_path / "b", data, 0) is None, "frozen already"
    text = freezing.Frozen(0.9, 0.8, ("n",), 0.89).text()
    assert text == "GroupNorm: validation macro-F1 0.9000 as trained, 0.8000 frozen, 0.8900 tuned (-0.0100)"


def test_freezing_takes_a_run(tmp_path):
    done = CliRunner().invoke(app, ["train", "--net", "tiny_cnn", "--freeze", "--out", str(tmp_path / "run")])
    assert done.exit_code != 0
    assert "--init-from" in str(done.exception or done.output)
