"""What `pyhtpw train` is told: a recipe changed by a TOML file and by options, parameters to begin with, and what a run would cost."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyhtpw.data import Dataset
from pyhtpw.data.hrv import NETWORKS
from pyhtpw.errors import ConfigError
from pyhtpw.image import write
from pyhtpw.nets import Graph, build, takes
from pyhtpw.nets.toml import load_heads, load_toml
from pyhtpw.pipeline import calibration_windows
from pyhtpw.quant import quantise
from pyhtpw.quant.fit import fit_network
from pyhtpw.quant.freeze import freeze, with_frozen_norms
from pyhtpw.recipes import Recipe
from pyhtpw.train import TrainConfig
from pyhtpw.train.checkpoint import load_checkpoint
from pyhtpw.train.kernels import single_blas
from pyhtpw.train.objective import Objective, cross_entropy
from pyhtpw.train.optim import AdamW, Ema
from pyhtpw.train.teacher import Signals, Teacher, load_teacher, signals, train_teacher
from pyhtpw.train.trainer import BEST, Progress

TABLES = ("net", "train", "heads", "evaluate", "teacher")
TEACHER = ("run", "net", "steps", "options", "train")
_TRIAL_STEPS = 4  # of a dry run, after two that warm up


def changed(
    recipe: Recipe,
    *,
    config: Path | None = None,
    net: str | None = None,
    heads: Mapping[str, str] | None = None,
    aware: bool | None = None,
    teacher: Mapping[str, Any] | None = None,
    objective: Mapping[str, float] | None = None,
) -> Recipe:
    """The recipe with what a TOML file says in place of its own, and options in place of that.

    The file has any of the tables ``[net]`` (``name``, and options of `pyhtpw.nets.build`), ``[train]`` (fields of
    `pyhtpw.train.TrainConfig`; ``teacher = "RUN"`` for a teacher that is there), ``[teacher]`` (as `Recipe` has it), ``[heads]`` and
    ``[evaluate]`` (``median``). A teacher counts kd = 1 unless the objective says otherwise. Options of the recipe's own network
    that another one does not have are left out, those of the file are not. Raises ConfigError naming file and entry.
    """
    given: dict[str, Any] = {}
    if config is not None:
        tables = load_toml(config)
        unknown = sorted(set(tables) - set(TABLES))
        if unknown:
            raise ConfigError(f"{config}: has the unknown table or entry {unknown[0]!r}; its tables are {', '.join(TABLES)}")
        given = dict(tables.get("net", {}))
        recipe = replace(recipe, net=given.pop("name", recipe.net))
        train = dict(tables.get("train", {}))
        told = dict(tables.get("teacher", {}))
        if "teacher" in train:
            if told:
                raise ConfigError(f"{config}: [train] teacher and the table [teacher] both name a teacher; leave one out")
            told = {"run": train.pop("teacher")}
        for table, has, known in (("train", train, {f.name for f in fields(TrainConfig)}), ("teacher", told, TEACHER)):
            wrong = sorted(set(has) - set(known))
            if wrong:
                raise ConfigError(f"{config}: [{table}] has the unknown entry {wrong[0]!r}")
        recipe = replace(recipe, train={**recipe.train, **train}, teacher=told or recipe.teacher)
        recipe = replace(recipe, median=tables.get("evaluate", {}).get("median", recipe.median))
        if "heads" in tables:
            given["heads"] = load_heads(config)
    if net is not None:
        recipe = replace(recipe, net=net)
    if heads:
        given["heads"] = dict(heads)
    own = {name: value for name, value in recipe.net_options.items() if takes(recipe.net, name)}
    recipe = replace(recipe, net_options={**own, **given})
    if aware is not None:
        recipe = replace(recipe, train={**recipe.train, "aware": aware})
    if teacher:
        recipe = replace(recipe, teacher=dict(teacher))
    goal = {**_mapping(recipe.train.get("objective", {})), **(objective or {})}
    if recipe.teacher and not (goal.get("kd") or goal.get("feature")):
        goal["kd"] = 1.0
    return replace(recipe, train={**recipe.train, "objective": goal}) if goal else recipe


def _mapping(objective: Any) -> dict[str, Any]:
    """An objective as the options that make it, checked."""
    given = asdict(Objective.parse(objective))
    return given if isinstance(objective, Objective) else {name: given[name] for name in objective}


def distil(
    recipe: Recipe, data: Dataset, out: Path, *, seed: int = 0, progress: Progress | None = None
) -> tuple[Teacher, Signals] | None:
    """The recipe's teacher and what it says of the training windows; None if the recipe has none.

    A teacher that is named by its network is trained in ``out``/teacher first, with the recipe's settings but its own steps and the
    plain cross-entropy; a run that is there goes on, and a finished one is just loaded. The outputs are kept in
    ``out``/teacher.safetensors and computed again if teacher or windows change.

    Raises ConfigError for a teacher that is not one of these, or reads other windows or has other classes; TrainError for a folder
    without one, and for a run that does not belong to these settings.
    """
    told = dict(recipe.teacher)
    if not told:
        return None
    if ("run" in told) == ("net" in told):
        raise ConfigError("the teacher is either a run that is there or a network to train first: give one of run and net")
    if "run" in told:
        teacher = load_teacher(told["run"])
    else:
        _, t, c = data.train.x.shape
        graph = build(told["net"], t=t, channels_in=c, classes=len(data.classes), **told.get("options", {}))
        settings = {**recipe.train, **told.get("train", {}), "seed": seed, "aware": False}
        if "objective" not in told.get("train", {}):
            settings["objective"] = {}
        settings["steps"] = told.get("steps", settings["steps"])
        settings["warmup"] = min(settings.get("warmup", 100), settings["steps"])
        settings["eval_every"] = min(settings.get("eval_every", 100), settings["steps"])
        try:
            config = TrainConfig(**settings)
        except TypeError as error:
            raise ConfigError(f"[teacher] train: {error}") from error
        teacher = train_teacher(graph, data.train, data.val, config, out / "teacher", progress=progress)
    shape, classes = data.train.x.shape[1:], len(data.classes)
    if teacher.graph.input_shape != shape or teacher.graph.classes != classes:
        raise ConfigError(
            f"the teacher {teacher.graph.name!r} reads windows {teacher.graph.input_shape} of {teacher.graph.classes} classes, these are "
            f"{tuple(shape)} of {classes}: train one on the same data"
        )
    return teacher, signals(teacher, data.train.x, out / "teacher.safetensors")


def initial(
    graph: Graph, run: Path, data: Dataset, seed: int, *, frozen: bool = False
) -> tuple[Graph, dict[str, np.ndarray], dict[str, float]]:
    """Parameters of an earlier run to begin with; where its heads are others, the new ones are fitted to its kernels.

    `frozen`: every GroupNorm with its statistics frozen on training windows (`pyhtpw.quant.freeze`), as an image has it,
    so that what is trained now is what will be deployed.

    Returns
    -------
    graph, params, errors
        A seeded head may come back with another seed, a GroupNorm as norm "frozen"; `errors` are the relative errors of fitted kernels.

    Raises
    ------
    ConfigError
        If the run's network differs in more than its heads.
    """
    params, description = load_checkpoint(run / BEST if run.is_dir() else run)
    source = Graph.from_dict(description["graph"])
    if frozen:
        graph = with_frozen_norms(graph)
        source, params = freeze(source, params, calibration_windows(data, seed))
    if source.stored().nodes != graph.stored().nodes or source.input_shape != graph.input_shape:
        raise ConfigError(f"{run}: its network {source.name!r} has other layers than {graph.name!r}: heads may differ, nothing else")
    if source.nodes == graph.nodes:
        return graph, dict(params), {}
    heads = {node.name: node.head.text() for node in graph.nodes if node.name in graph.kernel_shapes()}
    windows = calibration_windows(data, seed)
    fitted, found, report = fit_network(source, params, heads, calibration=windows, seed=seed)
    return replace(fitted, name=graph.name), found, dict(report.errors)


def on_features(recipe: Recipe, usual: Recipe) -> Recipe:
    """The recipe of a network that reads features instead of a signal: without the augmentation that the data set's ``usual`` recipe
    has for signals. One that was asked for stays."""
    train = dict(recipe.train)
    if recipe.net in NETWORKS and train.get("augment") == usual.train.get("augment"):
        train.pop("augment", None)
    return replace(recipe, train=train)


@dataclass(frozen=True)
class Estimate:
    """What a run would cost, before it: bytes of the image as the network starts, memory, time.

    ``activation_bytes`` is what a forward pass keeps for the backward pass, ``memory_bytes`` what the process grew by at its largest,
    in the trial: activations, gradients, scratch, and the code of the kernels.
    """

    network: str
    parameters: int
    macs: int
    generated_weights: int
    image_bytes: int
    activation_bytes: int
    memory_bytes: int | None
    ms_per_step: float
    steps: int

    @property
    def hours(self) -> float:
        """Of all steps, validation left out."""
        return self.ms_per_step * self.steps / 3.6e6


def resident(field: str = "VmRSS") -> int | None:
    """Bytes of this process in memory now, or ("VmHWM") at most so far; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def estimate(recipe: Recipe, data: Dataset, *, steps: int | None = None, seed: int = 0) -> Estimate:
    """Builds the recipe's network, packs it as it starts and times a few steps."""
    _, t, c = data.train.x.shape
    graph = build(recipe.net, t=t, channels_in=c, classes=len(data.classes), **recipe.net_options)
    settings: dict[str, Any] = {**recipe.train, "seed": seed}
    config = TrainConfig(**settings)
    if config.aware:
        from pyhtpw.quant.aware import AwareModel as Kind
    else:
        from pyhtpw.train import Model as Kind
    before = resident()
    model = Kind(graph, seed=seed)
    optimiser = AdamW(model, config.weight_decay)
    average = Ema(model, config.ema)
    x, labels = np.array(data.train.x[: config.batch], np.float32), np.asarray(data.train.y[: config.batch])
    times = []
    with single_blas():  # as the trainer does: threads of BLAS inside the layers' own fight for the cores
        for step in range(1, 3 + _TRIAL_STEPS):
            began = time.perf_counter()
            _, grad = cross_entropy(model.forward(x, training=True), labels)
            model.backward(grad)
            optimiser.step(step, config.lr / 100)
            average.update(model, step)
            times.append(time.perf_counter() - began)
    peak = resident("VmHWM")
    image = write(quantise(graph, model.state(), calibration_windows(data, seed, 64), classes=data.classes, sample_rate=data.fs))
    kernels = graph.kernel_shapes()
    return Estimate(
        graph.name,
        graph.parameter_count(),
        sum(graph.macs().values()),
        sum(int(np.prod(kernels[node.name])) for node in graph.generated_nodes()),
        len(image),
        model.saved_bytes,
        None if before is None else peak - before,
        round(1e3 * float(np.median(times[2:])), 2),
        steps or config.steps,
    )
