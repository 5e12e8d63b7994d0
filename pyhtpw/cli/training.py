"""Commands: train a network, or take the whole path from data to report."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

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
    counter,
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
    test_log: Annotated[Path | None, typer.Option(help="File that every look at test is appended to; default: results/test-log.jsonl for "
        "real data, OUT/test-log.jsonl for synthetic.")] = None,
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
            test_log=test_log,
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
    out: Annotated[Path, typer.Option(help="Run folder: configuration, checkpoints, curves, images.")] = Path("out/train"),
    net: Annotated[str | None, typer.Option(help="Network by name (pyhtpw.nets); default: the recipe's.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with tables net, train, teacher, heads and evaluate.")] = None,
    head: Heads = None,
    init_from: Annotated[Path | None, typer.Option(help="Begin with the best checkpoint of this run; other heads are fitted to its "
        "kernels.")] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="With --init-from: GroupNorm with the statistics that its image will have, to be "
        "tuned.")] = False,
    aware: Annotated[bool | None, typer.Option("--aware/--no-aware", help="Train on the kernels that the image will hold, "
        "made by the integer generator.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Learn from this run's best checkpoint too (or a checkpoint).")] = None,
    teacher_net: Annotated[str | None, typer.Option(help="Train this network first, in OUT/teacher, and learn from it.")] = None,
    teacher_steps: Annotated[int | None, typer.Option(help="Steps of --teacher-net; default: as many as the recipe's.", min=1)] = None,
    kd: Annotated[float | None, typer.Option(help="Weight of distillation; default with a teacher: 1, as published.")] = None,
    kd_alpha: Annotated[float | None, typer.Option(help="Share of the teacher beside the labels; default: 0.7.")] = None,
    kd_temperature: Annotated[float | None, typer.Option(help="Temperature of the distillation; default: 2.")] = None,
    feature_weight: Annotated[float | None, typer.Option("--feature", help="Weight of matching the teacher's features.")] = None,
    images: Annotated[bool, typer.Option("--images/--no-images", help="Write the final images of raw and averaged weights.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print network, bytes, memory and hours; train nothing.")] = False,
    steps: Steps = None,
    resume: Resume = False,
    aami_strict: Strict = False,
    cache_dir: CacheDir = None,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Train the recipe's network, or the one you describe, keep what validation chose, and pack it."""
    from pyhtpw import freezing, pipeline, runs, training
    from pyhtpw.data.hrv import for_network
    from pyhtpw.packing import parse_heads

    if not dry_run:
        pipeline.prepare_folder(out)
    dataset = load_data(data, data_dir, protocol, seed, cache_dir, aami_strict)
    terms = {"kd": kd, "kd_alpha": kd_alpha, "kd_temperature": kd_temperature, "feature": feature_weight}
    chosen = training.changed(
        recipe_of(data, dataset),
        config=config,
        net=net,
        heads=parse_heads(head or []),
        aware=aware,
        teacher=_teacher(teacher, teacher_net, teacher_steps),
        objective={name: value for name, value in terms.items() if value is not None},
    )
    chosen = training.on_features(chosen, recipe_of(data, dataset))
    with counter(as_json) as count:
        dataset = for_network(chosen.net, dataset, cache_dir, jobs=os.cpu_count() or 1, progress=count)
    if dry_run:
        _estimate(training.estimate(chosen, dataset, steps=steps, seed=seed), as_json)
        return
    start: Any = None
    errors: dict[str, float] = {}
    told = None
    if freeze and init_from is None:
        raise ConfigError("--freeze takes the statistics of a trained network: name its run with --init-from")
    graph, settings = pipeline.network(chosen, dataset), pipeline.configuration(chosen, seed=seed, steps=steps)
    if init_from is not None:
        *start, errors = training.initial(graph, init_from, dataset, seed, frozen=freeze)
        graph = start[0]
    norms = freezing.measure(init_from, dataset, seed) if freeze and init_from is not None else None
    if chosen.teacher:
        say("teacher", as_json)
        with Bar(as_json) as bar:
            told = training.distil(chosen, dataset, out, seed=seed, progress=bar.update)
    origin = None if told is None else {**chosen.teacher, "network": told[0].graph.name, "sha256": told[0].key}
    if not (resume and (out / runs.RUN_FILE).is_file()):
        runs.begin(runs.describe(chosen, graph, settings, dataset, origin), out)
    with Bar(as_json) as bar:
        graph, _, result = pipeline.train_stage(
            chosen,
            dataset,
            out,
            seed=seed,
            steps=steps,
            resume=resume,
            start=start,
            teacher=None if told is None else told[1],
            progress=bar.update,
        )
    say("quantising, tuning t* on validation" if images else "drawing the curves", as_json)
    summary = runs.finish(graph, result, dataset, out, seed=seed, median=chosen.median, images=images, aware=settings.aware)
    summary["fitted_kernel_errors"] = {name: round(error, 4) for name, error in errors.items()}
    if norms is not None:
        norms = replace(norms, tuned=result.val_macro_f1)
        freezing.record(norms, out)
    summary["group_norm"] = None if norms is None else norms.to_dict()
    if as_json:
        emit(summary)
        return
    if norms is not None:
        print(norms.text())
    kind = " (synthetic data)" if dataset.synthetic else ""
    print(f"best checkpoint: step {result.best_step}, validation macro-F1 {result.val_macro_f1:.4f}{kind}")
    for name, row in summary["images"].items():
        cut = "" if row["threshold"] is None else f"t* {row['threshold']:.2f}, "
        print(f"{out / row['image']} ({name}): {row['bytes']:,} bytes, {cut}validation macro-F1 {row['val_macro_f1_integer']:.4f} "
              "with integer logits")
    for line in summary["not_run"]:
        print(f"NOT RUN: {line}")
    print(f"next: pyhtpw verify {out / 'raw' / pipeline.MODEL}, or pyhtpw pack {out} -o model.htpw --data {data} with other heads")


def _teacher(run: Path | None, net: str | None, steps: int | None) -> dict[str, Any]:
    """The teacher of the options; {} if they name none."""
    if run is not None and net is not None:
        raise ConfigError("--teacher is a run that is there, --teacher-net a network to train first: give one of them")
    if steps is not None and net is None:
        raise ConfigError("--teacher-steps is the budget of --teacher-net: name a network")
    if run is not None:
        return {"run": str(run)}
    return {} if net is None else {"net": net, **({} if steps is None else {"steps": steps})}


def _estimate(cost: Any, as_json: bool) -> None:
    """A dry run's figures."""
    if as_json:
        emit({**vars(cost), "hours": cost.hours})
        return
    print(f"{cost.network}: {cost.parameters:,} parameters, {cost.macs:,} multiply-accumulates, "
          f"{cost.generated_weights:,} generated weights")
    grown = "" if cost.memory_bytes is None else f", {cost.memory_bytes / 2**20:.0f} MiB at most with gradients, scratch and code"
    print(f"image as it starts: {cost.image_bytes:,} bytes; a batch keeps {cost.activation_bytes / 2**20:.0f} MiB of activations{grown}")
    print(f"{cost.steps:,} steps at {cost.ms_per_step} ms each (timed here just now): {cost.hours:.2f} hours, validation not counted")
