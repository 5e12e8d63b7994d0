"""The command line: `pyhtpw demo|train|quantise|pack|bill|verify|run|report|pack-codes|keygen|sign|verify-signature`.

Exit status: 0 done; 1 the tellings differ (`verify`, `demo`); 2 bad input, one line on stderr that names it and the remedy; 130
stopped by Ctrl-C. With `--json` stdout carries one JSON object and nothing else.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pyhtpw.errors import ConfigError, HtpwError

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Neural networks whose weights are generated at boot, equal to the bit on every machine.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random; the same seed gives the same bytes.", min=0)]
Data = Annotated[str, typer.Option(help="Data set: synthetic-ecg (embedded, made at run time) or mitdb.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of a real data set's files (or set HTPW_DATA).")]
Protocol = Annotated[str | None, typer.Option(help="mitdb: paper (default) or aami.")]
Strict = Annotated[bool, typer.Option("--aami-strict", help="aami: keep record 201, the same person as 202 in the test set.")]
CacheDir = Annotated[Path | None, typer.Option(help="Where windows of real data are cached (or set HTPW_CACHE).")]
Steps = Annotated[int | None, typer.Option(help="Training steps; default: the recipe's.", min=1)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint of a stopped run.")]
Heads = Annotated[list[str] | None, typer.Option("--head", help="Head of the pointwise kernels (tiled:tile=32,dz=4,code_bits=4), or KIND=HEAD "
    "or LAYER=HEAD; repeatable. `pack --head auto` searches within --budget.")]
Compiler = Annotated[str, typer.Option(help="Cross compiler for the Cortex-M4: auto, gcc or clang.")]


def _say(text: str, quiet: bool) -> None:
    """Progress and remarks go to stderr, so that stdout stays clean."""
    if not quiet:
        Console(stderr=True, highlight=False).print(text)


def _emit(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _load(data: str, data_dir: Path | None, protocol: str | None, seed: int, cache_dir: Path | None, strict: bool):
    from pyhtpw.data import load

    options = {"aami_strict": True} if strict else {}
    dataset = load(data, data_dir=data_dir, protocol=protocol, seed=seed, cache_dir=cache_dir, **options)
    for warning in dataset.description.get("warnings", []):
        _say(f"warning: {warning}", False)
    return dataset


def _recipe(data: str, dataset):
    """What the project does with a data set."""
    from pyhtpw.recipes import recipe

    return recipe(data, dataset.description["protocol"])


def _checkpoint(run: Path, ema: bool):
    """Network and parameters of a run folder."""
    from pyhtpw.nets import Graph
    from pyhtpw.train.checkpoint import load_checkpoint
    from pyhtpw.train.trainer import BEST, BEST_EMA

    params, description = load_checkpoint(run / (BEST_EMA if ema else BEST))
    return Graph.from_dict(description["graph"]), params


class _Stopped(Exception):
    """Ctrl-C during a training, whose state is saved."""


class _Bar:
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
        self._task = None
        self._loss = self._f1 = None

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        self._progress.stop()
        if isinstance(error, KeyboardInterrupt):  # the trainer has saved its state by now
            raise _Stopped(f"{error or 'stopped'}: type the same command with --resume") from error

    def update(self, state: dict) -> None:
        """Takes the trainer's state after a step."""
        if self._task is None:
            self._task = self._progress.add_task("", total=state["steps"], loss="", f1="-")
        self._loss = state["loss"] if self._loss is None else 0.98 * self._loss + 0.02 * state["loss"]
        if state["val_macro_f1"] is not None:
            self._f1 = state["val_macro_f1"]
        f1 = "-" if self._f1 is None else f"{self._f1:.3f}"
        self._progress.update(self._task, completed=state["step"], loss=f"{self._loss:.3f}", f1=f1)


@app.command()
def demo(
    data: Data = "synthetic-ecg",
    data_dir: DataDir = None,
    protocol: Protocol = None,
    out: Annotated[Path, typer.Option(help="Folder for model.htpw, report.json, report.html and the run.")] = Path("out/demo"),
    steps: Steps = None,
    resume: Resume = False,
    aami_strict: Strict = False,
    cache_dir: CacheDir = None,
    compiler: Compiler = "auto",
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Train, quantise, pack, open in C, synthesise, run, compare the tellings, report."""
    from pyhtpw import pipeline

    pipeline.prepare_folder(out)
    dataset = _load(data, data_dir, protocol, seed, cache_dir, aami_strict)
    chosen = _recipe(data, dataset)
    with _Bar(as_json) as bar:
        report = pipeline.demo(
            dataset,
            chosen,
            out,
            seed=seed,
            steps=steps,
            resume=resume,
            compiler=compiler,
            progress=bar.update,
            say=lambda text: _say(text, as_json),
        )
    if as_json:
        _emit(report)
    else:
        from pyhtpw.report import print_report

        print_report(report)
        print(f"files: {out / pipeline.MODEL}, {out / pipeline.REPORT}, {out / pipeline.HTML}")
    raise typer.Exit(1 if report["bytes_differ"] else 0)


@app.command()
def train(
    data: Data = "synthetic-ecg",
    data_dir: DataDir = None,
    protocol: Protocol = None,
    out: Annotated[Path, typer.Option(help="Run folder: checkpoints and curves.")] = Path("out/train"),
    net: Annotated[str | None, typer.Option(help="Network by name (pyhtpw.nets); default: the recipe's.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with tables [net], [train], [heads], [evaluate].")] = None,
    head: Heads = None,
    init_from: Annotated[Path | None, typer.Option(help="Begin with the best checkpoint of this run; other heads are fitted to its "
        "kernels.")] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="With --init-from: GroupNorm with the statistics that its image will have, to be "
        "tuned.")] = False,
    aware: Annotated[bool | None, typer.Option("--aware/--no-aware", help="Train on the kernels that the image will hold, "
        "made by the integer generator.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print network, bytes, memory and hours; train nothing.")] = False,
    steps: Steps = None,
    resume: Resume = False,
    aami_strict: Strict = False,
    cache_dir: CacheDir = None,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Train the recipe's network, or the one you describe, and keep the checkpoint that validation chose."""
    from pyhtpw import pipeline, training
    from pyhtpw.packing import parse_heads

    if not dry_run:
        pipeline.prepare_folder(out)
    dataset = _load(data, data_dir, protocol, seed, cache_dir, aami_strict)
    chosen = training.changed(_recipe(data, dataset), config=config, net=net, heads=parse_heads(head or []), aware=aware)
    if dry_run:
        _estimate(training.estimate(chosen, dataset, steps=steps, seed=seed), as_json)
        return
    start, errors = None, {}
    if freeze and init_from is None:
        raise ConfigError("--freeze takes the statistics of a trained network: name its run with --init-from")
    if init_from is not None:
        *start, errors = training.initial(pipeline.network(chosen, dataset), init_from, dataset, seed, frozen=freeze)
    with _Bar(as_json) as bar:
        graph, _, result = pipeline.train_stage(
            chosen, dataset, out, seed=seed, steps=steps, resume=resume, start=start, progress=bar.update
        )
    summary = {
        "run": str(out),
        "network": graph.name,
        "steps": result.steps,
        "best_step": result.best_step,
        "val_macro_f1": result.val_macro_f1,
        "seconds": round(result.seconds, 1),
        "fitted_kernel_errors": {name: round(error, 4) for name, error in errors.items()},
        "synthetic": dataset.synthetic,
    }
    if as_json:
        _emit(summary)
    else:
        kind = " (synthetic data)" if dataset.synthetic else ""
        print(f"best checkpoint: step {result.best_step}, validation macro-F1 {result.val_macro_f1:.4f}{kind}")
        print(f"next: pyhtpw quantise {out} -o model.npz --data {data}, or pyhtpw pack {out} -o model.htpw --data {data}")


def _estimate(cost, as_json: bool) -> None:
    """A dry run's figures."""
    if as_json:
        _emit({**vars(cost), "hours": cost.hours})
        return
    print(f"{cost.network}: {cost.parameters:,} parameters, {cost.macs:,} multiply-accumulates, "
          f"{cost.generated_weights:,} generated weights")
    print(f"image as it starts: {cost.image_bytes:,} bytes; activations of a batch: {cost.activation_bytes / 2**20:.0f} MiB")
    print(f"{cost.steps:,} steps at {cost.ms_per_step} ms each (timed here just now): {cost.hours:.2f} hours, validation not counted")


@app.command()
def quantise(
    run: Annotated[Path, typer.Argument(help="Run folder of `pyhtpw train` (or RUN of a demo: out/demo/run).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Integer model to write.")] = Path("model.npz"),
    data: Data = "synthetic-ecg",
    data_dir: DataDir = None,
    protocol: Protocol = None,
    ema: Annotated[bool, typer.Option("--ema", help="Quantise the moving average instead of the raw checkpoint.")] = False,
    aami_strict: Strict = False,
    cache_dir: CacheDir = None,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Calibrate on training windows, quantise, and tune the threshold t* on validation."""
    from pyhtpw import pipeline
    from pyhtpw.quant.store import save_model

    graph, params = _checkpoint(run, ema)
    dataset = _load(data, data_dir, protocol, seed, cache_dir, aami_strict)
    chosen = _recipe(data, dataset)
    done = pipeline.quantise_stage(graph, params, dataset, seed=seed, median=chosen.median)
    save_model(done.model, output)
    summary = {"model": str(output), "threshold": done.threshold, "val_macro_f1_integer": done.macro_f1,
               "image_bytes": len(done.image.data), "synthetic": dataset.synthetic}
    if as_json:
        _emit(summary)
    else:
        print(f"{output}: t* {done.threshold:.2f}, validation macro-F1 {done.macro_f1:.4f} with integer logits")
        print(f"next: pyhtpw pack {output} -o model.htpw")


@app.command()
def pack(
    model: Annotated[Path, typer.Argument(help="Integer model of `pyhtpw quantise`, or the run folder of `pyhtpw train`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Image to write.")] = Path("model.htpw"),
    head: Heads = None,
    heads: Annotated[Path | None, typer.Option(help="Run folder: TOML file with a table [heads].")] = None,
    budget: Annotated[int | None, typer.Option(help="Bytes of the whole image that --head auto may use.", min=1)] = None,
    evaluations: Annotated[int, typer.Option(help="Mixes that --head auto scores on validation.", min=2)] = 60,
    ema: Annotated[bool, typer.Option("--ema", help="Run folder: the moving average instead of the raw checkpoint.")] = False,
    data: Data = "synthetic-ecg",
    data_dir: DataDir = None,
    protocol: Protocol = None,
    aami_strict: Strict = False,
    cache_dir: CacheDir = None,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Write the image, after the C library has opened it; from a run folder with any heads, fitted to its kernels.

    Data are needed for run folders alone: training windows calibrate, validation windows choose.
    """
    from pyhtpw import pipeline
    from pyhtpw.quant.store import load_model, save_model

    given = {"--head": head, "--heads": heads, "--budget": budget, "--ema": ema or None}
    if not model.is_dir():
        wrong = [name for name, value in given.items() if value is not None]
        if wrong:
            raise ConfigError(f"{model}: {wrong[0]} takes the float network: give the run folder of 'pyhtpw train'")
        integer, packed = load_model(model), None
    else:
        from pyhtpw.packing import AUTO, pack_auto, pack_network, parse_heads

        wanted = parse_heads(head or [])
        if heads is not None:
            from pyhtpw.nets.toml import load_heads

            if wanted:
                raise ConfigError("--head and --heads are two ways to say the same: give one of them")
            wanted = load_heads(heads)
        is_auto = AUTO in wanted.values()
        if is_auto != (budget is not None):
            raise ConfigError("--head auto and --budget belong together: give both, for example --head auto --budget 8192")
        graph, params = _checkpoint(model, ema)
        dataset = _load(data, data_dir, protocol, seed, cache_dir, aami_strict)
        median = _recipe(data, dataset).median
        if is_auto:
            packed = pack_auto(graph, params, dataset, budget, seed=seed, median=median, evaluations=evaluations,
                               progress=lambda state: _tried(state, as_json))
        else:
            packed = pack_network(graph, params, dataset, wanted, seed=seed, median=median)
        integer = packed.quantised.model
    image = pipeline.repack(output, integer)
    account = pipeline.name_layers(pipeline.bill(image.parsed), integer)
    chosen: dict[str, Any] = {}
    if packed is not None:
        save_model(integer, output.with_suffix(".npz"))
        chosen = {
            "heads": dict(packed.heads),
            "kernel_errors": {name: round(float(e), 6) for name, e in packed.errors.items()},
            "threshold": packed.quantised.threshold,
            "val_macro_f1_integer": packed.quantised.macro_f1,
            "tried": [vars(trial) for trial in packed.tried],
            "synthetic": dataset.synthetic,
        }
    if as_json:
        from pyhtpw._native import BACKENDS

        plans = {name: vars(image.plan_for(name)) for name in BACKENDS}
        _emit({"image": str(output), "plans": plans, **chosen, **account})
        return
    for name, spec in chosen.get("heads", {}).items():
        error = chosen["kernel_errors"].get(name)
        print(f"{name:>12}  {spec}" + (f"  (kernel error {error:.3f})" if error is not None else ""))
    plan = image.plan_for(pipeline.TARGET_BACKEND)
    print(f"{output}: {len(image.data):,} bytes; SRAM on a Cortex-M4: arena {plan.arena:,}, cache {plan.cache:,} bytes")
    if chosen:
        kind = " (synthetic data)" if chosen["synthetic"] else ""
        print(f"validation macro-F1 {chosen['val_macro_f1_integer']:.4f} with integer logits at t* {chosen['threshold']:.2f}{kind}")


def _tried(state: dict[str, Any], quiet: bool) -> None:
    """One line of progress of the search for heads."""
    score = "too large" if state["score"] is None else f"{state['score']:.4f}"
    _say(f"{state['done']:3d}/{state['of']}  {state['bytes']:7,} bytes  {score:>9}  {state['stage']}", quiet)


@app.command()
def bill(
    image: Annotated[Path, typer.Argument(help="Image.")],
    plot: Annotated[Path | None, typer.Option(help="Draw the bill as a figure too: a .png or .svg file.")] = None,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """What every byte of an image is for, beside what the same kernels cost stored. --seed changes nothing."""
    from pyhtpw.image import bill as account
    from pyhtpw.model import Image
    from pyhtpw.report import print_bill
    from pyhtpw.report.bill import TARGET_BACKEND, write_plot

    opened = Image.open(image)
    plan = opened.plan_for(TARGET_BACKEND)
    figures = account(opened.parsed, {"backend": TARGET_BACKEND, "arena": plan.arena, "cache": plan.cache})
    if plot is not None:
        write_plot(figures, plot)
    _emit(figures) if as_json else print_bill(figures)


@app.command("pack-codes")
def pack_codes(
    base: Annotated[Path, typer.Argument(help="Image that devices have.")],
    personalised: Annotated[Path, typer.Argument(help="Image with the codes and requantisation that they shall have.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Code pack to write.")] = Path("codes.htpc"),
    number: Annotated[int, typer.Option(help="Packs are ordered by it; devices refuse a lower one than before.", min=0)] = 1,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Write what turns one image into another, the codes and requantisation that differ. --seed changes nothing."""
    from pyhtpw.image.codes import apply_pack, make_pack, parse_pack
    from pyhtpw.image.writer import save
    from pyhtpw.model import Image

    first = Image.open(base)
    data = make_pack(first.data, Image.open(personalised).data, number)
    Image(apply_pack(first.data, data), str(output))  # what a device will run must open
    save(data, output)
    entries = [{"operator": e.op, "part": e.part, "bytes": len(e.data)} for e in parse_pack(data).entries]
    if as_json:
        _emit({"pack": str(output), "number": number, "bytes": len(data), "entries": entries})
    else:
        print(f"{output}: {len(data):,} bytes, pack {number}, new parts of {len({e['operator'] for e in entries})} operators")


@app.command()
def keygen(
    output: Annotated[Path, typer.Option("--output", "-o", help="Private key to write; + .pub: public.")] = Path("htpw.key"),
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Make a key pair for signatures. Keys come from the system's randomness: --seed changes nothing."""
    from pyhtpw import sign as signing

    public = signing.keygen(output)
    if as_json:
        _emit({"private_key": str(output), "public_key": str(public)})
    else:
        print(f"{output}: private key, keep it secret\n{public}: public key, for devices and verify-signature")


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="Image or code pack.")],
    key: Annotated[Path, typer.Option(help="Private key of `pyhtpw keygen`.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Signature to write; default: FILE.sig.")] = None,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Write the detached Ed25519 signature of a file. --seed changes nothing."""
    from pyhtpw.sign import sign_file

    signature = sign_file(file, key, output)
    _emit({"file": str(file), "signature": str(signature)}) if as_json else print(f"{signature}: signature of {file}")


@app.command("verify-signature")
def verify_signature(
    file: Annotated[Path, typer.Argument(help="Image or code pack.")],
    public_key: Annotated[Path, typer.Option(help="Public key of `pyhtpw keygen`.")],
    signature: Annotated[Path | None, typer.Option(help="Signature; default: FILE.sig.")] = None,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Check a detached signature; exit status 2 if it is not that of the file and the key. --seed changes nothing."""
    from pyhtpw.sign import verify_file

    chosen = signature or file.with_name(file.name + ".sig")
    verify_file(file, chosen, public_key)
    _emit({"file": str(file), "signature": str(chosen), "valid": True}) if as_json else print(f"{file}: the signature is right")


def _windows(image, source: Path | None, n: int, seed: int):
    """int8 windows of a .npy file (int8 as they are, floats quantised), or seeded ones."""
    import numpy as np

    from pyhtpw.verify import sample_windows

    if source is None:
        return sample_windows(image, n, seed)
    try:
        x = np.load(source, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a .npy array"
        raise ConfigError(f"{source}: cannot read windows ({reason}): save them with numpy.save") from error
    size = image.plan.input
    if x.size == size:
        x = x.reshape(1, -1)
    if x.ndim < 2 or x[0].size != size or not len(x):
        shape = image.parsed.input
        raise ConfigError(
            f"{source}: windows have shape {x.shape[1:] if x.ndim > 1 else x.shape}, the network takes {size} samples "
            f"({shape.h}, {shape.w}, {shape.c}): cut or pad them"
        )
    if x.dtype == np.int8:
        return x.reshape(len(x), image.parsed.input.h, image.parsed.input.w, image.parsed.input.c)
    if not np.issubdtype(x.dtype, np.floating):
        raise ConfigError(f"{source}: windows are {x.dtype}: give int8 (as they are) or floats (quantised here)")
    if not np.isfinite(x).all():
        at = np.argwhere(~np.isfinite(x))[0]
        raise ConfigError(f"{source}: window {at[0]} holds NaN or infinity at sample {at[1]}: clean the signal first")
    return image.quantise(x)


@app.command()
def verify(
    image: Annotated[Path, typer.Argument(help="Image.")],
    windows: Annotated[int, typer.Option(help="Windows compared on this machine.", min=1)] = 256,
    target_windows: Annotated[int, typer.Option(help="Windows compared on the emulated Cortex-M4.", min=1)] = 16,
    source: Annotated[Path | None, typer.Option("--input", help="Windows from a .npy file instead of seeded ones.")] = None,
    compiler: Compiler = "auto",
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Compare numpy, C and the emulated Cortex-M4 on every generated kernel and on logits, byte for byte."""
    from pyhtpw import pipeline
    from pyhtpw.model import Image

    opened = Image.open(image)
    x = _windows(opened, source, windows, seed)
    result = pipeline.verify_stage(opened, x, x86=windows, target=target_windows, compiler=compiler)
    if as_json:
        _emit({
            "image": str(image), "bytes_compared": result.compared, "bytes_differ": result.differ,
            "pairs": [p.to_dict() for p in result.pairs], "cortex_m4": result.cortex_m4, "not_run": result.not_run,
        })
    else:
        for pair in result.pairs:
            print(f"{pair.a} / {pair.b}: {pair.kernel_bytes:,} kernel bytes, {pair.logit_bytes:,} logit bytes of "
                  f"{pair.windows} windows: {pair.differ} differ")
            if pair.first:
                print(f"  first: {pair.first}")
        for line in result.not_run:
            print(f"NOT RUN: {line}")
        print(f"{result.compared:,} bytes compared, {result.differ} differ")
    raise typer.Exit(1 if result.differ else 0)


@app.command()
def run(
    image: Annotated[Path, typer.Argument(help="Image.")],
    source: Annotated[Path | None, typer.Argument(metavar="WINDOWS", help="Windows as .npy (int8, or floats to quantise).")] = None,
    n: Annotated[int, typer.Option("--count", help="How many seeded windows to run when no file is given.", min=1)] = 4,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Run windows through the C library and print logits, probabilities and decisions."""
    from pyhtpw.evaluate import probabilities
    from pyhtpw.model import Image

    opened = Image.open(image)
    info = opened.parsed.info
    logits = opened.run_batch(_windows(opened, source, n, seed))
    rows = [{"window": i, "logits": [int(v) for v in row]} for i, row in enumerate(logits)]
    if info is not None:
        p = probabilities(logits, info.logit_scale)
        for row, probability in zip(rows, p, strict=True):
            decided = probability[-1] >= info.threshold if len(probability) == 2 else None
            best = int(decided) if decided is not None else int(probability.argmax())
            row["probabilities"] = [round(float(v), 6) for v in probability]
            row["class"] = info.classes[best] if best < len(info.classes) else str(best)
    if as_json:
        _emit({"image": str(image), "input": str(source) if source else "seeded windows (synthetic)", "windows": rows})
        return
    if source is None:
        _say("no WINDOWS file given: running seeded synthetic windows", False)
    for row in rows:
        chance = "".join(f" {v:.4f}" for v in row.get("probabilities", []))
        print(f"{row['window']:5d}  logits {row['logits']}  p{chance}  {row.get('class', '')}")


@app.command()
def report(
    source: Annotated[Path, typer.Argument(help="report.json, or the folder of a demo that holds it.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file; default: beside the JSON.")] = None,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Write the HTML report of a run again and print its tables. --seed changes nothing."""
    from pyhtpw.report import print_report, write_html

    path = source / "report.json" if source.is_dir() else source
    try:
        figures = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot read a report ({error}): make one with 'pyhtpw demo'") from error
    if not isinstance(figures, dict) or "image_bytes" not in figures:
        raise ConfigError(f"{path}: is not a report of 'pyhtpw demo': it has no image_bytes")
    target = output or path.with_suffix(".html")
    write_html(figures, target)
    if as_json:
        _emit(figures)
    else:
        print_report(figures)
        print(f"file: {target}")


def main() -> None:
    """Entry point: runs the command and turns known errors into one line and their status."""
    try:
        app()
    except (HtpwError, _Stopped) as error:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"pyhtpw: {error}")
        sys.exit(130 if isinstance(error, _Stopped) else 2)


if __name__ == "__main__":
    main()
