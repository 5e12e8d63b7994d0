"""Commands: train a network, or take the whole path from data to report."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pyhtpw.cli.common import (
    Bar,
    CacheDir,
    Compiler,
    Data,
    DataDir,
    Heads,
    Json,
    Protocol,
    Resume,
    Seed,
    Steps,
    Strict,
    app,
    emit,
    load_data,
    recipe_of,
    say,
)
from pyhtpw.errors import ConfigError


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
    dataset = load_data(data, data_dir, protocol, seed, cache_dir, aami_strict)
    chosen = recipe_of(data, dataset)
    with Bar(as_json) as bar:
        report = pipeline.demo(
            dataset,
            chosen,
            out,
            seed=seed,
            steps=steps,
            resume=resume,
            compiler=compiler,
            progress=bar.update,
            say=lambda text: say(text, as_json),
        )
    if as_json:
        emit(report)
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
    from pyhtpw import freezing, pipeline, training
    from pyhtpw.data.hrv import for_network
    from pyhtpw.packing import parse_heads

    if not dry_run:
        pipeline.prepare_folder(out)
    dataset = load_data(data, data_dir, protocol, seed, cache_dir, aami_strict)
    chosen = training.changed(recipe_of(data, dataset), config=config, net=net, heads=parse_heads(head or []), aware=aware)
    dataset, chosen = for_network(chosen.net, dataset, cache_dir), training.on_features(chosen, recipe_of(data, dataset))
    if dry_run:
        _estimate(training.estimate(chosen, dataset, steps=steps, seed=seed), as_json)
        return
    start, errors = None, {}
    if freeze and init_from is None:
        raise ConfigError("--freeze takes the statistics of a trained network: name its run with --init-from")
    if init_from is not None:
        *start, errors = training.initial(pipeline.network(chosen, dataset), init_from, dataset, seed, frozen=freeze)
    norms = freezing.measure(init_from, dataset, seed) if freeze else None
    with Bar(as_json) as bar:
        graph, _, result = pipeline.train_stage(
            chosen, dataset, out, seed=seed, steps=steps, resume=resume, start=start, progress=bar.update
        )
    if norms is not None:
        norms = replace(norms, tuned=result.val_macro_f1)
        freezing.record(norms, out)
    summary = {
        "run": str(out),
        "network": graph.name,
        "steps": result.steps,
        "best_step": result.best_step,
        "val_macro_f1": result.val_macro_f1,
        "seconds": round(result.seconds, 1),
        "fitted_kernel_errors": {name: round(error, 4) for name, error in errors.items()},
        "synthetic": dataset.synthetic,
        "group_norm": None if norms is None else norms.to_dict(),
    }
    if as_json:
        emit(summary)
    else:
        if norms is not None:
            print(norms.text())
        kind = " (synthetic data)" if dataset.synthetic else ""
        print(f"best checkpoint: step {result.best_step}, validation macro-F1 {result.val_macro_f1:.4f}{kind}")
        print(f"next: pyhtpw quantise {out} -o model.npz --data {data}, or pyhtpw pack {out} -o model.htpw --data {data}")


def _estimate(cost, as_json: bool) -> None:
    """A dry run's figures."""
    if as_json:
        emit({**vars(cost), "hours": cost.hours})
        return
    print(f"{cost.network}: {cost.parameters:,} parameters, {cost.macs:,} multiply-accumulates, "
          f"{cost.generated_weights:,} generated weights")
    print(f"image as it starts: {cost.image_bytes:,} bytes; activations of a batch: {cost.activation_bytes / 2**20:.0f} MiB")
    print(f"{cost.steps:,} steps at {cost.ms_per_step} ms each (timed here just now): {cost.hours:.2f} hours, validation not counted")
