"""Commands: from a trained network to an image and its bill."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pyhtpw.cli.common import (
    CacheDir,
    Data,
    DataDir,
    Heads,
    Json,
    Protocol,
    Seed,
    Strict,
    app,
    checkpoint,
    emit,
    load_data,
    recipe_of,
    say,
)
from pyhtpw.errors import ConfigError


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
    """Calibrate on training windows, quantise, and tune the threshold t* on validation (two classes; of more the largest logit decides)."""
    from pyhtpw import pipeline
    from pyhtpw.data.hrv import for_network
    from pyhtpw.quant.store import save_model

    graph, params, aware = checkpoint(run, ema)
    dataset = load_data(data, data_dir, protocol, seed, cache_dir, aami_strict)
    dataset = for_network(graph.name, dataset, cache_dir)
    chosen = recipe_of(data, dataset)
    done = pipeline.quantise_stage(graph, params, dataset, seed=seed, median=chosen.median, aware=aware)
    save_model(done.model, output)
    summary = {"model": str(output), "threshold": done.threshold, "val_macro_f1_integer": done.macro_f1,
               "image_bytes": len(done.image.data), "synthetic": dataset.synthetic}
    if as_json:
        emit(summary)
    else:
        at = "largest logit decides" if done.threshold is None else f"t* {done.threshold:.2f}"
        print(f"{output}: {at}, validation macro-F1 {done.macro_f1:.4f} with integer logits")
        print(f"next: pyhtpw pack {output} -o model.htpw")


@app.command()
def pack(
    model: Annotated[Path, typer.Argument(help="Integer model of `pyhtpw quantise`, or the run folder of `pyhtpw train`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Image to write.")] = Path("model.htpw"),
    head: Heads = None,
    heads: Annotated[Path | None, typer.Option(help="Run folder: TOML file with a table heads.")] = None,
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
    from pyhtpw.data.hrv import for_network
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
        graph, params, aware = checkpoint(model, ema)
        dataset = load_data(data, data_dir, protocol, seed, cache_dir, aami_strict)
        dataset = for_network(graph.name, dataset, cache_dir)
        median = recipe_of(data, dataset).median
        if is_auto and budget is not None:
            packed = pack_auto(graph, params, dataset, budget, seed=seed, median=median, evaluations=evaluations,
                               progress=lambda state: _tried(state, as_json))
        else:
            packed = pack_network(graph, params, dataset, wanted, seed=seed, median=median, aware=aware)
        integer = packed.quantised.model
    image = pipeline.repack(output, integer)
    account = pipeline.name_layers(image.bill(), integer)
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

        plans = {name: vars(image.plan(name)) for name in BACKENDS}
        emit({"image": str(output), "plans": plans, **chosen, **account})
        return
    for name, spec in chosen.get("heads", {}).items():
        error = chosen["kernel_errors"].get(name)
        print(f"{name:>12}  {spec}" + (f"  (kernel error {error:.3f})" if error is not None else ""))
    plan = image.plan(pipeline.TARGET_BACKEND)
    print(f"{output}: {len(image.data):,} bytes; SRAM on a Cortex-M4: arena {plan.arena:,}, cache {plan.cache:,} bytes")
    if chosen:
        kind = " (synthetic data)" if chosen["synthetic"] else ""
        at = "the largest deciding" if chosen["threshold"] is None else f"t* {chosen['threshold']:.2f}"
        print(f"validation macro-F1 {chosen['val_macro_f1_integer']:.4f} with integer logits, {at}{kind}")


def _tried(state: dict[str, Any], quiet: bool) -> None:
    """One line of progress of the search for heads."""
    score = "too large" if state["score"] is None else f"{state['score']:.4f}"
    say(f"{state['done']:3d}/{state['of']}  {state['bytes']:7,} bytes  {score:>9}  {state['stage']}", quiet)


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
    plan = opened.plan(TARGET_BACKEND)
    figures = account(opened.parsed, {"backend": TARGET_BACKEND, "arena": plan.arena, "cache": plan.cache})
    if plot is not None:
        write_plot(figures, plot)
    emit(figures) if as_json else print_bill(figures)
