"""What the commands share: the application, options that mean the same everywhere, progress, and loading."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Neural networks whose weights are generated at boot, equal to the bit on every machine.",
    epilog="Exit status: 0 done; 1 tellings or images differ (verify, demo, trace, diff); 2 bad input, or something that is not installed: "
    "one line on stderr says what to do; 130 stopped by Ctrl-C (--resume goes on to the same bytes). NO_COLOR is respected; with "
    "--json stdout carries one JSON object.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random; the same seed gives the same bytes.", min=0)]
Data = Annotated[str, typer.Option(help="Data set: synthetic-ecg (embedded, made at run time), or a real one: `pyhtpw data list`.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of a real data set's files (or set HTPW_DATA).")]
Protocol = Annotated[str | None, typer.Option(help="One of the data set's protocols (`pyhtpw data list`; default: its first); "
    "options of the loader may follow: official6:copies=2,lossy=false.")]
Strict = Annotated[bool, typer.Option("--aami-strict", help="aami: keep record 201, the same person as 202 in the test set.")]
CacheDir = Annotated[Path | None, typer.Option(help="Where windows of real data are cached (or set HTPW_CACHE).")]
Steps = Annotated[int | None, typer.Option(help="Training steps; default: the recipe's.", min=1)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint of a stopped run.")]
Heads = Annotated[list[str] | None, typer.Option("--head", help="Head of the pointwise kernels (tiled:tile=32,dz=4,code_bits=4), "
    "or KIND=HEAD or LAYER=HEAD; repeatable. `pack --head auto` searches within --budget.")]
Compiler = Annotated[str, typer.Option(help="Cross compiler for the Cortex-M4: auto, gcc or clang.")]


def say(text: str, quiet: bool) -> None:
    """Progress and remarks go to stderr, so that stdout stays clean."""
    if not quiet:
        Console(stderr=True, highlight=False).print(text)


def emit(value: Any) -> None:
    print(json.dumps(value, indent=1))


@contextmanager
def counter(quiet: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """A callback (done, total, what) that moves a bar on stderr, which appears with the first call and goes at the end."""
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
        tasks: list[Any] = []

        def count(done: int, total: int, what: str) -> None:
            if not tasks:
                tasks.append(progress.add_task(""))
            progress.update(tasks[0], completed=done, total=total, description=what[-40:])

        yield count


def load_data(data: str, data_dir: Path | None, protocol: str | None, seed: int, cache_dir: Path | None, strict: bool) -> Any:
    from pyhtpw.data import load
    from pyhtpw.data.seal import seal

    options = {"aami_strict": True} if strict else {}
    with counter() as count:
        dataset = load(data, data_dir=data_dir, protocol=protocol, seed=seed, cache_dir=cache_dir, progress=count, **options)
    if "part" in dataset.description:
        say(f"data: {dataset.description['part']}", False)
    for warning in dataset.description.get("warnings", []):
        say(f"warning: {warning}", False)
    return seal(dataset)


def recipe_of(data: str, dataset: Any) -> Any:
    """What the project does with a data set."""
    from pyhtpw.recipes import recipe

    return recipe(data, dataset.description["protocol"])


def checkpoint(run: Path, ema: bool) -> tuple[Any, dict[str, Any], bool]:
    """Network and parameters of a run folder, and whether it was trained on the image's kernels (`TrainConfig.aware`)."""
    from pyhtpw.nets import Graph
    from pyhtpw.train.checkpoint import load_checkpoint
    from pyhtpw.train.trainer import BEST, BEST_EMA

    params, description = load_checkpoint(run / (BEST_EMA if ema else BEST))
    return Graph.from_dict(description["graph"]), params, bool(description["config"]["aware"])


class Stopped(Exception):
    """Ctrl-C during a training, whose state is saved."""


class Bar:
    """Progress bar of a training on stderr; a context manager whose `update` is the trainer's callback."""

    def __init__(self, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  validation macro-F1 {task.fields[f1]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), disable=quiet)
        self._task: Any = None
        self._loss: float | None = None
        self._f1: float | None = None

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        self._progress.stop()
        if isinstance(error, KeyboardInterrupt):  # the trainer has saved its state by now
            raise Stopped(f"{error or 'stopped'}: type the same command with --resume") from error

    def update(self, state: dict[str, Any]) -> None:
        """Takes the trainer's state after a step."""
        if self._task is None:
            self._task = self._progress.add_task("", total=state["steps"], loss="", f1="-")
        self._loss = state["loss"] if self._loss is None else 0.98 * self._loss + 0.02 * state["loss"]
        if state["val_macro_f1"] is not None:
            self._f1 = state["val_macro_f1"]
        f1 = "-" if self._f1 is None else f"{self._f1:.3f}"
        self._progress.update(self._task, completed=state["step"], loss=f"{self._loss:.3f}", f1=f1)
