"""The declaration of an experiment: a TOML file that is committed before any of its runs sees test.

::

    title = "Accuracy against bytes, MIT-BIH aami"
    data = "mitdb"
    protocol = "aami"
    seeds = [0, 1, 2]
    steps = 4000                       # of every model that does not say otherwise
    median = 1
    figure = "veb_f1"                  # what comparisons are about; default macro_f1
    reference = "regular-cnn"          # whose macro-F1 on test is 100 % of retention; without it each model's own teacher
    budgets = [32768, 65536]           # a chart of the best model (on validation) under each, in bytes of the whole image

    [train]                            # over the recipe of the data set
    balance = 0.3

    [[model]]
    name = "generated-8k"
    budget = 8192                      # bytes of the whole image; larger is no member of its class
    net = "hypertinypw"
    options = {widths = [64, 64, 64]}
    heads = {pw = "tiled:tile=32"}
    train = {aware = true}
    teacher = "teacher"                # another model, or "PLAN:MODEL" of an earlier plan; its seed is teacher_seed (0)
    start = "plain"                    # begin with this model's weights of the same seed; other heads are fitted to them
    ema = true                         # score the averaged weights too, with their own t*
    published = "225.5 kB, F1 .567"    # what others say of it, printed beside what was measured
    declared_after = "beats-aami"      # what had been seen of this test set when the model was added; a comparison has it too

    [[compare]]
    name = "generated against stored, 8 kB"
    first = "generated-8k"
    second = ["stored4-8k", "stored8-8k"]   # of several the best on validation
    primary = true

Tables and entries that this module does not know are errors: a misspelt option must not become a silent default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pyhtpw.errors import ConfigError
from pyhtpw.evaluate.choices import fingerprint
from pyhtpw.nets.toml import load_toml
from pyhtpw.recipes import RECIPES, Recipe

EXTERNAL = "external"  # as net: the model is made elsewhere, see `pyhtpw.experiment.external`
FIGURES = ("macro_f1", "accuracy", "balanced_accuracy", "auc")  # that comparisons may be about: more is better
VEB_FIGURES = ("veb_f1", "veb_sensitivity", "veb_ppv")  # on aami
MIN_SEEDS = 3  # of a comparison


@dataclass(frozen=True)
class Model:
    """One configuration; see the module. `pack` are heads fitted after training, as `pyhtpw pack --head` does; `prune` is the share of
    the weights of `start` that become 0 before it is trained on (`pyhtpw.train.sparse`)."""

    name: str
    net: str
    options: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    pack: dict[str, str] = field(default_factory=dict)
    budget: int | None = None
    steps: int | None = None
    seeds: tuple[int, ...] = ()
    teacher: str = ""
    teacher_seed: int = 0
    start: str = ""
    freeze: bool = False
    prune: float = 0.0
    ema: bool = False
    calibrate: bool = False
    note: str = ""
    published: str = ""
    declared_after: str = ""


@dataclass(frozen=True)
class Compare:
    """A paired comparison, first - second; of several models on a side the best on validation stands for it."""

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    figure: str = ""
    primary: bool = False
    declared_after: str = ""


@dataclass(frozen=True)
class Plan:
    """A declaration."""

    name: str
    title: str
    data: str
    protocol: str
    seeds: tuple[int, ...]
    models: tuple[Model, ...]
    compare: tuple[Compare, ...] = ()
    data_options: dict[str, Any] = field(default_factory=dict)
    data_seed: int = 0
    steps: int | None = None
    median: int = 1
    figure: str = "macro_f1"
    train: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    budgets: tuple[int, ...] = ()
    reference: str = ""

    def model(self, name: str) -> Model:
        """The model called so; ConfigError if there is none."""
        for model in self.models:
            if model.name == name:
                return model
        raise ConfigError(f"{self.name}: has no model {name!r}: its models are {', '.join(m.name for m in self.models)}")

    def seeds_of(self, model: Model) -> tuple[int, ...]:
        """Seeds of a model: the plan's, unless it has its own."""
        return model.seeds or self.seeds

    def recipe(self, model: Model) -> Recipe:
        """How a model is made: the data set's recipe, under the plan's and the model's own."""
        if model.net == EXTERNAL:  # its options are what its maker reads
            return Recipe(net=EXTERNAL, net_options=dict(model.options), train=dict(model.train), median=self.median)
        base = RECIPES.get((self.data, self.protocol.partition(":")[0]), Recipe())
        train = {**base.train, **self.train, **model.train}
        if model.steps or self.steps:
            train["steps"] = model.steps or self.steps
        if model.prune:
            if not model.start:
                raise ConfigError(f"{self.name}: model {model.name}: prune takes a trained network: name it with start")
            train["sparse"] = True
        if "steps" not in train:
            raise ConfigError(f"{self.name}: model {model.name}: nothing says how many steps: set steps")
        train["warmup"] = min(train.get("warmup", 100), train["steps"])
        train["eval_every"] = min(train.get("eval_every", 100), train["steps"])
        options = dict(model.options)
        if model.heads:
            options["heads"] = dict(model.heads)
        return replace(base, net=model.net, net_options=options, train=train, median=self.median)

    def configuration(self, model: Model, seed: int) -> dict[str, Any]:
        """What decides a run's result besides code and machine; its hash names the run in the test log."""
        made = self.recipe(model)
        found = {
            "plan": self.name, "model": model.name, "seed": seed, "data": self.data, "protocol": self.protocol,
            "net": made.net, "net_options": made.net_options, "train": made.train, "median": made.median,
        }  # fmt: skip
        optional = {
            "data_options": self.data_options, "data_seed": self.data_seed, "pack": model.pack, "teacher": model.teacher,
            "teacher_seed": model.teacher_seed, "start": model.start, "freeze": model.freeze, "prune": model.prune, "ema": model.ema,
            "calibrate": model.calibrate,
        }  # fmt: skip
        # What is not asked for is left out, so that an entry that later versions have does not change the hash of earlier results.
        return {**found, **{name: value for name, value in optional.items() if value}}

    def config_sha256(self, model: Model, seed: int) -> str:
        """Hash of `configuration`."""
        return fingerprint(self.configuration(model, seed))

    def needs(self, model: Model, seed: int) -> list[tuple[str, int]]:
        """Runs of this plan that must be finished before."""
        found = []
        if model.teacher and ":" not in model.teacher:
            found.append((model.teacher, model.teacher_seed))
        if model.start and ":" not in model.start:
            found.append((model.start, seed))
        return found

    def ordered(self) -> list[tuple[Model, int]]:
        """All runs, each after those it needs; ConfigError for models that wait for each other."""
        left = [(model, seed) for model in self.models for seed in self.seeds_of(model)]
        done: list[tuple[Model, int]] = []
        while left:
            names = {(model.name, seed) for model, seed in done}
            ready = [run for run in left if set(self.needs(*run)) <= names]
            if not ready:
                model, seed = left[0]
                raise ConfigError(f"{self.name}: model {model.name}, seed {seed}, waits for {self.needs(model, seed)}, which never "
                                  "comes: name other models, and seeds that they have")
            done.append(ready[0])
            left.remove(ready[0])
        return done


def made(kind: type, table: object, where: str) -> Any:
    """A dataclass from a TOML table; ConfigError names an entry that it does not have, or lacks."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} is {table!r}: give a table")
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ConfigError(f"{where}: has the unknown entry {unknown[0]!r}: its entries are {', '.join(known)}")
    missing = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in table]
    if missing:
        raise ConfigError(f"{where}: {missing[0]} is not given")
    values = {}
    for name, value in table.items():
        want = str(known[name].type)
        if want.startswith("tuple"):
            value = (value,) if isinstance(value, (str, int)) else tuple(value)
        good = {"str": str, "int": int, "bool": bool, "dict": Mapping, "float": (int, float)}.get(want.split("[")[0].split(" ")[0])
        if good is not None and (not isinstance(value, good) or (good is int and isinstance(value, bool))):
            raise ConfigError(f"{where}: {name} is {value!r}: give a value of type {want}")
        values[name] = value
    return kind(**values)


def check_training(settings: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for a setting that the trainer does not have."""
    from pyhtpw.train.trainer import TrainConfig  # the trainer takes a second to load

    known = [f.name for f in fields(TrainConfig) if f.name != "seed"]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ConfigError(f"{where}: train has the unknown entry {unknown[0]!r}: it takes {', '.join(known)}")


def load_plan(path: Path) -> Plan:
    """Read a declaration; ConfigError naming file and entry if it makes no sense."""
    path = Path(path)
    table = dict(load_toml(path))
    models = [made(Model, each, f"{path}: model {i}") for i, each in enumerate(table.pop("model", []), start=1)]
    compare = [made(Compare, each, f"{path}: compare {i}") for i, each in enumerate(table.pop("compare", []), start=1)]
    if not models:
        raise ConfigError(f"{path}: declares no [[model]]")
    plan = made(Plan, {**table, "name": path.stem, "models": models, "compare": compare}, str(path))
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1 or not name or any(c in name for c in "/:\\ "):
            raise ConfigError(f"{path}: model name {name!r} is given twice, empty, or has one of '/:\\ ' or a space in it")
    known = (*FIGURES, *(VEB_FIGURES if plan.protocol.partition(":")[0] == "aami" else ()))
    for figure in (plan.figure, *(each.figure for each in compare if each.figure)):
        if figure not in known:
            raise ConfigError(f"{path}: figure {figure!r} is not one that this protocol compares: choose {', '.join(known)}")
    for each in compare:
        for name in (*each.first, *each.second):
            model = plan.model(name)
            if each.primary and len(plan.seeds_of(model)) < MIN_SEEDS:
                raise ConfigError(f"{path}: compare {each.name!r}: model {name} has {len(plan.seeds_of(model))} seeds: a primary "
                                  f"comparison takes at least {MIN_SEEDS}")
        sets = {plan.seeds_of(plan.model(name)) for name in (*each.first, *each.second)}
        if len(sets) > 1:
            raise ConfigError(f"{path}: compare {each.name!r}: its models have other seeds than each other: pairs need the same")
    if plan.reference:
        plan.model(plan.reference)
    for budget in plan.budgets:
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise ConfigError(f"{path}: budgets has {budget!r}: give bytes, whole and above 0")
    if not plan.seeds or len(set(plan.seeds)) != len(plan.seeds):
        raise ConfigError(f"{path}: seeds {list(plan.seeds)}: give at least one, none twice")
    for model in models:
        recipe = plan.recipe(model)
        if model.net != EXTERNAL:
            check_training(recipe.train, f"{path}: model {model.name}")
    plan.ordered()
    for model in models:
        for other in (model.teacher, model.start):
            if other and ":" not in other and plan.model(other).net == EXTERNAL:
                raise ConfigError(f"{path}: model {model.name} needs {other}, which is made elsewhere and leaves no run folder")
    return plan
