"""Command: a search over configurations with Optuna and Dask."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pyhtpw.cli.common import CacheDir, DataDir, Json, Stopped, app, emit


@app.command()
def sweep(
    declaration: Annotated[Path, typer.Argument(metavar="SWEEP", help="TOML file: data, base, space, trials.")],
    out: Annotated[Path | None, typer.Option(help="Folder of study, images, sweep.json and pareto.svg; default: out/sweep/NAME.")] = None,
    storage: Annotated[str | None, typer.Option(help="RDB of the study, as Optuna takes it; default: SQLite in OUT.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Dask scheduler, tcp://host:port; default: a local cluster.")] = None,
    workers: Annotated[int, typer.Option(help="Processes of the local cluster.", min=1)] = 2,
    trials: Annotated[int | None, typer.Option(help="Trials in all, instead of the file's.", min=1)] = None,
    allow_mixed: Annotated[bool, typer.Option("--allow-mixed", help="Take workers of other CPU types and versions; results then need not "
        "repeat to the byte.")] = False,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
    seed: Annotated[int | None, typer.Option(help="Instead of the file's: of training and of the sampler.", min=0)] = None,
) -> None:
    """Search for the best validation macro-F1 with the fewest bytes and instructions; type it again to go on. Never touches test."""
    from dataclasses import replace

    from pyhtpw.experiment.sweep import load_sweep, run_sweep

    declared = load_sweep(declaration)
    changes = {name: value for name, value in (("trials", trials), ("seed", seed)) if value is not None}
    declared = replace(declared, **changes)
    folder = out or Path("out/sweep") / declared.name
    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def progress(found: dict) -> None:
        if not as_json:
            complete = [row for row in found["trials"] if row["state"] == "complete"]
            best = max((row["val_macro_f1"] for row in complete), default=float("nan"))
            front = sum(row["pareto"] for row in complete)
            console.print(f"{len(complete)} of {declared.trials} trials scored, best validation macro-F1 {best:.4f}, {front} on the "
                          f"Pareto front ({folder}/pareto.svg)")

    try:
        found = run_sweep(declared, folder, storage=storage, scheduler=scheduler, workers=workers, allow_mixed=allow_mixed,
                          data_dir=data_dir, cache_dir=cache_dir, progress=progress)
    except KeyboardInterrupt as error:
        raise Stopped("stopped: type the same command again to go on") from error
    if as_json:
        emit(found)
        return
    for row in sorted((r for r in found["trials"] if r["pareto"]), key=lambda r: r["image_bytes"]):
        print(f"trial {row['trial']:>4}  {row['image_bytes']:>8,.0f} bytes  {row['m4_instructions']:>12,.0f} instructions  validation "
              f"macro-F1 {row['val_macro_f1']:.4f}  {row['params']}")
    failed = sum(row["state"] == "fail" for row in found["trials"])
    print(f"{len(found['trials'])} trials, {failed} failed; files: {folder}/sweep.json, {folder}/pareto.svg, {folder}/images")
