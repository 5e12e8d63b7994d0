"""Commands: run an image, and prove that all tellings give the same bytes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pyhtpw.cli.common import Compiler, Json, Seed, app, emit, say
from pyhtpw.errors import ConfigError


def read_windows(image: Any, source: Path | None, n: int, seed: int) -> Any:
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
    size = image.plan().input
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
    x = read_windows(opened, source, windows, seed)
    result = pipeline.verify_stage(opened, x, x86=windows, target=target_windows, compiler=compiler)
    if as_json:
        emit({
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
    logits = opened.run_batch(read_windows(opened, source, n, seed))
    rows: list[dict[str, Any]] = [{"window": i, "logits": [int(v) for v in row]} for i, row in enumerate(logits)]
    if info is not None:
        p = probabilities(logits, info.logit_scale)
        for row, probability in zip(rows, p, strict=True):
            decided = probability[-1] >= info.threshold if len(probability) == 2 else None
            best = int(decided) if decided is not None else int(probability.argmax())
            row["probabilities"] = [round(float(v), 6) for v in probability]
            row["class"] = info.classes[best] if best < len(info.classes) else str(best)
    if as_json:
        emit({"image": str(image), "input": str(source) if source else "seeded windows (synthetic)", "windows": rows})
        return
    if source is None:
        say("no WINDOWS file given: running seeded synthetic windows", False)
    for row in rows:
        chance = "".join(f" {v:.4f}" for v in row.get("probabilities", []))
        print(f"{row['window']:5d}  logits {row['logits']}  p{chance}  {row.get('class', '')}")
