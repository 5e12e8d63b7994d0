"""Training runs: the same bytes whatever happens to them, what they leave behind, and what they refuse."""

import csv
import shutil
import signal
import threading
from types import SimpleNamespace

import numba
import numpy as np
import pytest

from pyhtpw import nets
from pyhtpw.errors import ConfigError, DataError, TrainError
from pyhtpw.train import Model, TrainConfig, train, trainer
from pyhtpw.train.batches import Sampler, augment, load_batch
from pyhtpw.train.checkpoint import load_checkpoint, save_checkpoint
from pyhtpw.train.objective import score
from pyhtpw.train.trainer import BEST, BEST_EMA, CURVES, LAST

STEPS = 40
CONFIG = TrainConfig(
    steps=30, batch=16, lr=0.01, warmup=5, eval_every=7, ema=0.9, balance=0.5, seed=3,
    augment={"amplitude": 0.1, "noise": 0.02, "shift": 2},
)  # fmt: skip
FILES = (LAST, BEST, BEST_EMA, CURVES)


def graph_of(classes=2):
    heads = {"pw": "tiled:dz=3,hidden=6,tile=9"}
    return nets.build(
        "hypertinypw", t=STEPS, classes=classes, stem=6, widths=(8, 8), strides=(2, 1), stem_stride=2, heads=heads
    )


def split_of(windows=60, classes=2, seed=0):
    """Noise with a bump whose place tells the class; class 0 is the largest."""
    rng = np.random.default_rng(seed)
    y = np.where(rng.random(windows) < 0.6, 0, rng.integers(0, classes, windows))
    y[:classes] = np.arange(classes)
    x = rng.standard_normal((windows, STEPS, 1)).astype(np.float32)
    for window, label in zip(x, y, strict=True):
        window[8 * label : 8 * label + 8] += 2
    return SimpleNamespace(x=x, y=y)


TRAIN, VAL = split_of(), split_of(40, seed=1)


def contents(directory):
    return {name: (directory / name).read_bytes() for name in FILES}


def same(a, b):
    """Whether two results agree to the byte, times aside."""
    return (
        a.curves == b.curves
        and (a.best_step, a.ema_best_step, a.threshold, a.ema_threshold)
        == (b.best_step, b.ema_best_step, b.threshold, b.ema_threshold)
        and all(a.params[k].tobytes() == b.params[k].tobytes() for k in a.params)
        and all(a.ema_params[k].tobytes() == b.ema_params[k].tobytes() for k in a.ema_params)
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """An uninterrupted run: its result and its directory."""
    directory = tmp_path_factory.mktemp("unbroken")
    return train(graph_of(), TRAIN, VAL, CONFIG, directory), directory


def test_result_and_files(unbroken):
    result, directory = unbroken
    assert not result.stopped
    assert result.steps == CONFIG.steps
    assert [row["step"] for row in result.curves] == [7, 14, 21, 28, 30]
    assert result.val_macro_f1 == max(row["val_macro_f1"] for row in result.curves)
    assert result.ema_val_macro_f1 == max(row["ema_val_macro_f1"] for row in result.curves)
    for params, file, f1, t in (
        (result.params, BEST, result.val_macro_f1, result.threshold),
        (result.ema_params, BEST_EMA, result.ema_val_macro_f1, result.ema_threshold),
    ):
        stored, description = load_checkpoint(directory / file)
        assert {k: v.tobytes() for k, v in stored.items()} == {k: v.tobytes() for k, v in params.items()}
        assert nets.Graph.from_dict(description["graph"]) == graph_of()
        assert description["config"]["lr"] == CONFIG.lr
        assert set(description["environment"]) == {"numpy", "scipy", "numba", "llvmlite", "cpu"}
        again = score(Model(graph_of(), params).infer(VAL.x), VAL.y)
        assert (again.macro_f1, again.threshold) == (f1, t)
    with open(directory / CURVES, newline="") as stream:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]
    assert rows == result.curves
    assert sorted(p.name for p in directory.iterdir()) == sorted(FILES)


def test_same_seed_same_bytes_other_seed_others(unbroken, tmp_path):
    again = train(graph_of(), TRAIN, VAL, CONFIG, tmp_path)
    assert same(again, unbroken[0])
    assert contents(tmp_path) == contents(unbroken[1])
    other = train(graph_of(), TRAIN, VAL, TrainConfig(**{**vars(CONFIG), "seed": 4}), tmp_path)
    assert not same(other, unbroken[0])


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this machine offers one thread")
def test_one_thread_same_bytes(unbroken, tmp_path):
    numba.set_num_threads(1)
    try:
        train(graph_of(), TRAIN, VAL, CONFIG, tmp_path)
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    assert contents(tmp_path) == contents(unbroken[1])


@pytest.mark.parametrize("at", [1, 7, 18, 29])
def test_stopped_and_resumed_same_bytes(unbroken, tmp_path, at):
    stop = threading.Event()

    def watch(report):
        if report["step"] == at:
            stop.set()

    first = train(graph_of(), TRAIN, VAL, CONFIG, tmp_path, progress=watch, stop=stop)
    assert first.stopped
    assert first.steps == at
    assert (first.val_macro_f1 is None) == (at < CONFIG.eval_every)
    second = train(graph_of(), TRAIN, VAL, CONFIG, tmp_path, resume=True)
    assert not second.stopped
    assert same(second, unbroken[0])
    assert contents(tmp_path) == contents(unbroken[1])


def test_interrupted_twice_and_resumed_same_bytes(unbroken, tmp_path):
    def interrupt_at(step):
        def watch(report):
            if report["step"] == step:
                raise KeyboardInterrupt

        return watch

    for resume, step in ((False, 5), (True, 16)):
        with pytest.raises(KeyboardInterrupt):
            train(graph_of(), TRAIN, VAL, CONFIG, tmp_path, resume=resume, progress=interrupt_at(step))
    assert same(train(graph_of(), TRAIN, VAL, CONFIG, tmp_path, resume=True), unbroken[0])
    assert contents(tmp_path) == contents(unbroken[1])


@pytest.fixture
def listening():
    """Ctrl-C as in a terminal: a suite that runs in the background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_inside_a_step_finishes_the_step(unbroken, tmp_path, listening, monkeypatch):
    advance, steps = trainer._Run.advance, []

    def pressing(run, *batch):
        """Ctrl-C in the 12th step."""
        steps.append(run.step)
        if len(steps) == 12:
            signal.raise_signal(signal.SIGINT)
        return advance(run, *batch)

    monkeypatch.setattr(trainer._Run, "advance", pressing)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="step 12"):
        train(graph_of(), TRAIN, VAL, CONFIG, tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert load_checkpoint(tmp_path / LAST)[1]["step"] == 12
    assert same(train(graph_of(), TRAIN, VAL, CONFIG, tmp_path, resume=True), unbroken[0])


def test_killed_run_resumes_from_its_last_validation(unbroken, tmp_path):
    alive, dead = tmp_path / "alive", tmp_path / "dead"

    def watch(report):
        if report["step"] == 20:  # what a kill would leave: the files of step 14
            shutil.copytree(alive, dead)

    train(graph_of(), TRAIN, VAL, CONFIG, alive, progress=watch)
    assert load_checkpoint(dead / LAST)[1]["step"] == 14
    assert same(train(graph_of(), TRAIN, VAL, CONFIG, dead, resume=True), unbroken[0])
    assert contents(dead) == contents(unbroken[1])


def test_finished_run_resumes_to_its_result(unbroken, tmp_path):
    shutil.copytree(unbroken[1], tmp_path / "copy")
    assert same(train(graph_of(), TRAIN, VAL, CONFIG, tmp_path / "copy", resume=True), unbroken[0])


def test_memory_mapped_windows_same_bytes(unbroken, tmp_path):
    np.save(tmp_path / "x.npy", TRAIN.x)
    np.save(tmp_path / "v.npy", VAL.x)
    mapped = SimpleNamespace(x=np.load(tmp_path / "x.npy", mmap_mode="r"), y=TRAIN.y)
    mapped_val = SimpleNamespace(x=np.load(tmp_path / "v.npy", mmap_mode="r"), y=VAL.y)
    assert same(train(graph_of(), mapped, mapped_val, CONFIG, tmp_path / "run"), unbroken[0])


def test_progress_reports(tmp_path):
    seen = []
    train(graph_of(), TRAIN, VAL, TrainConfig(steps=5, batch=8, eval_every=2), tmp_path, progress=seen.append)
    assert [r["step"] for r in seen] == [1, 2, 3, 4, 5]
    assert all(r["steps"] == 5 for r in seen)
    assert [r["val_macro_f1"] is None for r in seen] == [True, False, True, False, False]
    assert seen[0]["eta_s"] is None
    assert seen[-1]["eta_s"] == 0


@pytest.mark.parametrize("classes", [2, 3])
def test_overfits_64_windows_without_any_pattern(tmp_path, classes):
    rng = np.random.default_rng(0)
    split = SimpleNamespace(x=rng.standard_normal((64, STEPS, 1)).astype(np.float32), y=np.arange(64) % classes)
    graph = nets.build(
        "hypertinypw", t=STEPS, classes=classes, stem=16, widths=(32, 32, 32), strides=(2, 1, 1), stem_stride=2
    )
    config = TrainConfig(steps=250, lr=0.02, warmup=20, ema=0.9, weight_decay=0.0, eval_every=50, balance="none")
    result = train(graph, split, split, config, tmp_path)
    assert result.val_macro_f1 == 1
    assert result.ema_val_macro_f1 == 1
    assert result.curves[-1]["loss"] < 0.3 * result.curves[0]["loss"]


def test_new_run_removes_what_an_older_one_left(unbroken, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(unbroken[1], directory)
    stop = threading.Event()
    stop.set()
    train(graph_of(), TRAIN, VAL, CONFIG, directory, stop=stop)
    assert [p.name for p in directory.iterdir()] == [LAST]
    assert load_checkpoint(directory / LAST)[1]["step"] == 0


# -- sampling and augmentation -----------------------------------------------------------------------------------------


def test_balanced_batches_have_the_asked_shares():
    labels = np.array([0] * 90 + [1] * 8 + [2] * 2)
    sampler = Sampler(labels, 3, balance=0.6)
    for step in range(20):
        chosen = sampler.draw(np.random.default_rng([0, step]), 11)
        assert np.all(np.diff(chosen) >= 0)
        counts = np.bincount(labels[chosen], minlength=3)
        assert counts[0] == 4
        assert sorted(counts[1:]) == [3, 4]
    assert np.all(Sampler(labels, 3, "none").draw(np.random.default_rng(0), 1000) < 100)


def test_batch_depends_on_seed_and_step_only():
    sampler = Sampler(TRAIN.y, 2, 0.5)
    options = {"amplitude": 0.2, "noise": 0.1, "shift": 3}
    first = load_batch(TRAIN, sampler, 1, 9, 8, options)
    load_batch(TRAIN, sampler, 1, 10, 8, options)
    again = load_batch(TRAIN, sampler, 1, 9, 8, options)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], load_batch(TRAIN, sampler, 2, 9, 8, options)[0])


def test_augmentations_do_what_they_say():
    x = np.arange(1, 11, dtype=np.float32).reshape(1, 10, 1).repeat(200, axis=0)
    rng = np.random.default_rng(0)
    assert augment(x, rng, {}) is x
    scaled = augment(x, rng, {"amplitude": 0.25}) / x
    np.testing.assert_allclose(scaled, np.broadcast_to(scaled[:, :1], scaled.shape), rtol=1e-6)
    assert scaled.dtype == np.float32
    assert 0.75 <= scaled.min() < 0.8
    assert 1.2 < scaled.max() <= 1.25
    noise = augment(x, rng, {"noise": 0.5}) - x
    assert noise.std() == pytest.approx(0.5, rel=0.1)
    shifted = augment(x, rng, {"shift": 2})
    seen = {tuple(window) for window in shifted[:, :, 0]}
    assert seen == {tuple(np.clip(np.arange(1, 11) - move, 1, 10).astype(np.float32)) for move in range(-2, 3)}
    np.testing.assert_array_equal(x[:, 0], 1)  # the original is as it was


# -- what is refused ---------------------------------------------------------------------------------------------------


def changed(**fields):
    return SimpleNamespace(**{"x": TRAIN.x, "y": TRAIN.y, **fields})


def with_nan():
    x = TRAIN.x.copy()
    x[17, 3, 0] = np.nan
    return x


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (changed(x=with_nan()), r"training x\[17\].*not finite"),
        (changed(y=np.zeros(60, int)), "no example of class 1"),
        (changed(x=TRAIN.x[:, :-1]), r"x has shape .*wants \(N, 40, 1\)"),
        (changed(x=TRAIN.x[..., 0]), "x has shape"),
        (changed(x=TRAIN.x.astype(np.int16)), "type int16"),
        (changed(y=TRAIN.y[:-1]), "one label per window"),
        (changed(y=TRAIN.y.astype(float)), "type float64"),
        (changed(y=np.where(np.arange(60) == 4, 2, TRAIN.y)), r"y\[4\] is 2"),
        (changed(y=TRAIN.y - 1), "labels must be 0 to 1"),
        (changed(x=TRAIN.x[:0], y=TRAIN.y[:0]), "empty"),
    ],
)
def test_unusable_data_is_refused(tmp_path, split, said):
    with pytest.raises(DataError, match=said) as caught:
        train(graph_of(), split, VAL, CONFIG, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_validation_data_are_checked_too(tmp_path):
    with pytest.raises(DataError, match="validation x"):
        train(graph_of(), TRAIN, changed(x=with_nan()), CONFIG, tmp_path)


@pytest.mark.parametrize(
    "field",
    [
        {"steps": 0}, {"batch": 1.5}, {"warmup": -1}, {"eval_every": 0}, {"seed": -1}, {"lr": 0}, {"lr": float("nan")},
        {"weight_decay": -1}, {"clip": float("inf")}, {"ema": 1}, {"balance": 1.5}, {"balance": "all"},
        {"augment": {"flip": 1}}, {"augment": {"noise": -1}}, {"augment": {"amplitude": 1}}, {"augment": {"shift": 0.5}},
    ],
)  # fmt: skip
def test_bad_configs_name_the_field(field):
    with pytest.raises(ConfigError, match=next(iter(field))):
        TrainConfig(**{"steps": 10, **field})


def test_shift_longer_than_a_window_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="shift is 40 but windows have 40"):
        train(graph_of(), TRAIN, VAL, TrainConfig(steps=1, augment={"shift": 40}), tmp_path)


def test_resume_refuses_another_run(unbroken, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(unbroken[1], directory)
    other = TrainConfig(**{**vars(CONFIG), "lr": 0.02})
    with pytest.raises(TrainError, match=r"another config \(lr: 0.01, now 0.02\)"):
        train(graph_of(), TRAIN, VAL, other, directory, resume=True)
    with pytest.raises(TrainError, match="another graph"):
        train(nets.build("separable", t=STEPS), TRAIN, VAL, CONFIG, directory, resume=True)
    with pytest.raises(TrainError, match="another data"):
        train(graph_of(), split_of(61), VAL, CONFIG, directory, resume=True)
    assert contents(directory) == contents(unbroken[1])


def test_resume_warns_of_another_machine(unbroken, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(unbroken[1], directory)
    arrays, description = load_checkpoint(directory / LAST)
    description["environment"]["cpu"] = "abacus"
    save_checkpoint(directory / LAST, arrays, description)
    with pytest.warns(UserWarning, match="another CPU"):
        train(graph_of(), TRAIN, VAL, CONFIG, directory, resume=True)


def test_resume_needs_an_intact_checkpoint(unbroken, tmp_path):
    with pytest.raises(TrainError, match="there is no checkpoint"):
        train(graph_of(), TRAIN, VAL, CONFIG, tmp_path, resume=True)
    (tmp_path / LAST).write_bytes((unbroken[1] / LAST).read_bytes()[:-100])
    with pytest.raises(TrainError, match="damaged") as caught:
        train(graph_of(), TRAIN, VAL, CONFIG, tmp_path, resume=True)
    assert "\n" not in str(caught.value)


def test_unwritable_directory_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainError, match="choose a writable"):
        train(graph_of(), TRAIN, VAL, CONFIG, tmp_path / "file")
    with pytest.raises(TrainError, match="choose a writable"):
        train(graph_of(), TRAIN, VAL, CONFIG, tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("gain", "lr", "said"),
    [
        # finite windows, but not their squares
        (1e36, 0.01, r"a normalisation overflows \(first not finite: the var of node 'stem'\) at step 1;"),
        (1.0, 1e38, r"the (loss|gradient) is .* \(first not finite: .*\) at step 2;"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_names_the_step_and_the_last_good_checkpoint(tmp_path, gain, lr, said):
    split = SimpleNamespace(x=TRAIN.x * np.float32(gain), y=TRAIN.y)
    with pytest.raises(TrainError, match=said + r" the last good checkpoint is .*last\.safetensors \(step 0\)"):
        train(graph_of(), split, VAL, TrainConfig(steps=9, lr=lr, warmup=0), tmp_path)
    assert load_checkpoint(tmp_path / LAST)[1]["step"] == 0


def test_checkpoint_write_leaves_no_half_file(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": np.arange(3)}, {"n": 1})

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(TrainError, match="No space left"):
        save_checkpoint(path, {"a": np.arange(4)}, {"n": 2})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]
    arrays, description = load_checkpoint(path)
    np.testing.assert_array_equal(arrays["a"], np.arange(3))
    assert description == {"n": 1}


def test_training_goes_on_from_given_parameters(unbroken, tmp_path):
    start = unbroken[0].params
    config = TrainConfig(
        **{**vars(CONFIG), "steps": 2, "warmup": 0, "eval_every": 1, "lr": 1e-6, "weight_decay": 0.0, "augment": {}}
    )
    result = train(graph_of(), TRAIN, VAL, config, tmp_path, start=start)
    for name, value in result.params.items():
        if not name.endswith((".mean", ".var")):
            np.testing.assert_allclose(value, start[name], atol=1e-5)
    stop = threading.Event()
    stop.set()
    train(graph_of(), TRAIN, VAL, config, tmp_path, start=start, stop=stop)
    with pytest.raises(TrainError, match="another data"):
        train(graph_of(), TRAIN, VAL, config, tmp_path, resume=True)
    other = {**start, "fc.bias": start["fc.bias"] + 1}
    with pytest.raises(TrainError, match="start_crc32"):
        train(graph_of(), TRAIN, VAL, config, tmp_path, start=other, resume=True)
    again = train(graph_of(), TRAIN, VAL, config, tmp_path, start=start, resume=True)
    assert same(again, result)
    with pytest.raises(ConfigError, match=r"lack 'fc.bias'"):
        train(graph_of(), TRAIN, VAL, config, tmp_path, start={k: v for k, v in start.items() if k != "fc.bias"})


@pytest.mark.parametrize(
    "spec", ["seeded:tile=9,dz=3", "codebook:entries=8,tile=6", "factorised:share=a,hidden=4", "dense"]
)
def test_other_heads_resume_to_the_same_bytes(tmp_path, spec):
    graph = nets.build(
        "hypertinypw",
        t=STEPS,
        stem=6,
        widths=(8, 8),
        strides=(2, 1),
        stem_stride=2,
        heads={"pw": spec, "pw1": spec, "depthwise": spec},
    )
    whole = train(graph, TRAIN, VAL, CONFIG, tmp_path / "whole")
    stop = threading.Event()

    def watch(report):
        if report["step"] == 9:
            stop.set()

    assert train(graph, TRAIN, VAL, CONFIG, tmp_path / "parts", progress=watch, stop=stop).stopped
    assert same(train(graph, TRAIN, VAL, CONFIG, tmp_path / "parts", resume=True), whole)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
