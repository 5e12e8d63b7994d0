"""Commands: results of a declared experiment (`pyhtpw results run PLAN`, `pyhtpw results table PLAN`)."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pyhtpw.cli.common import CacheDir, Compiler, DataDir, Json, Stopped, app, emit, say

results = typer.Typer(no_args_is_help=True, help="Declared experiments: run them, resume them, and build tables and figures.")
app.add_typer(results, name="results")

Plan = Annotated[Path, typer.Argument(metavar="PLAN", help="Declaration (TOML): data, seeds, models, comparisons.")]
Out = Annotated[Path, typer.Option(help="Results folder: runs/PLAN/*.json, PLAN.json, PLAN.md, figures.")]
TestLog = Annotated[Path | None, typer.Option(help="File that every look at test is appended to; default: OUT/test-log.jsonl.")]
Work = Annotated[Path, typer.Option(help="Folder of checkpoints and images; large, not to be committed.")]


def _folders(out: Path, work: Path, log: Path | None) -> Any:
    from pyhtpw.evaluate.choices import LOG
    from pyhtpw.experiment.runner import Folders

    return Folders(work, out, log or out / LOG)


@results.command("run")
def run(
    plan: Plan,
    data_dir: DataDir = None,
    out: Out = Path("results"),
    work: Work = Path("out/results"),
    test_log: TestLog = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="MODEL or MODEL-sSEED, and what it needs; repeatable.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time; results do not depend on it.", min=1)] = 1,
    validation_only: Annotated[bool, typer.Option("--validation-only", help="A pilot: never touches test.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and the hours they would take; run nothing.")] = False,
    compiler: Compiler = "auto",
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Make every run of a plan that is not done: train or resume, pack, tune on validation, freeze, look at test once."""
    from pyhtpw.experiment import schedule
    from pyhtpw.experiment.plan import load_plan
    from pyhtpw.experiment.runner import load_dataset

    folders = _folders(out, work, test_log)
    if dry_run:
        declared = load_plan(plan)
        rows = schedule.table(declared, folders, only, load_dataset(declared, data_dir, cache_dir), cache_dir)
        if as_json:
            emit({"runs": rows, "hours": sum(row["hours"] for row in rows)})
            return
        for row in rows:
            budget = f" of {row['budget']:,}" if row["budget"] else ""
            print(f"{row['model']:>24} s{row['seed']}  {row['state']:>9}  {row['steps']:>6,} steps  {row['hours']:6.2f} h  "
                  f"image as it starts {row['image_bytes']:,}{budget} bytes")
        print(f"{len(rows)} runs, {sum(row['hours'] for row in rows):.1f} hours of training left, one at a time")
        return
    command = shlex.join(["pyhtpw", *(Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:])])
    try:
        done = schedule.run_all(plan, schedule.Source(data_dir, cache_dir), folders, only=only, jobs=jobs, compiler=compiler,
                                validation_only=validation_only, command=command, say=lambda text: say(text, as_json))
    except KeyboardInterrupt as error:
        raise Stopped("stopped: type the same command again to go on") from error
    if as_json:
        emit({"runs": done})
        return
    for row in done:
        test = f"test macro-F1 {row['test']['macro_f1']:.4f}" if row["test"] else "test not looked at"
        print(f"{row['model']:>24} s{row['seed']}  {row['image_bytes']:>8,} bytes  validation macro-F1 "
              f"{row['validation']['macro_f1']:.4f}  {test}")


@results.command("table")
def table(
    plan: Plan,
    out: Out = Path("results"),
    test_log: TestLog = None,
    as_json: Json = False,
) -> None:
    """Build tables (JSON, markdown) and figures (SVG, PNG) of a plan from its result files alone."""
    from pyhtpw.experiment import tables
    from pyhtpw.experiment.plan import load_plan

    declared, folders = load_plan(plan), _folders(out, Path(), test_log)
    written = tables.write(declared, folders)
    if as_json:
        emit({"files": [str(path) for path in written]})
        return
    print(written[1].read_text())
    print("files: " + ", ".join(map(str, written)))
