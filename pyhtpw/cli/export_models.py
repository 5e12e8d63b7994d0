"""Commands: models to and from TensorFlow Lite and ONNX, and smaller ones of models that have no float network."""

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pyhtpw.cli.common import DataDir, Heads, Json, Seed, app, emit, load_data, say
from pyhtpw.cli.export import export_app
from pyhtpw.cli.packing import _tried
from pyhtpw.cli.running import read_windows
from pyhtpw.errors import ConfigError, ImageError, MissingToolError

import_app = typer.Typer(help="Read a model of another format.", no_args_is_help=True)
app.add_typer(import_app, name="import")

Source = Annotated[Path, typer.Argument(help="Image.")]
Windows = Annotated[int, typer.Option(help="Random int8 windows that are compared.", min=1)]


def windows_of(image: Any, count: int, seed: int):
    """Uniform int8 windows (count, H, W, C): they reach every branch of the arithmetic, and stand for no data."""
    import numpy as np

    t = image.parsed.input
    return np.random.default_rng(seed).integers(-128, 128, (count, t.h, t.w, t.c)).astype(np.int8)


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot read the file: {error.strerror}") from error


def _differ(text: str) -> NoReturn:
    """Two tellings differ: status 1."""
    say(f"pyhtpw: {text}", False)
    raise typer.Exit(1)


@export_app.command("tflite")
def export_tflite(
    image: Source,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: the image's name with .tflite.")] = None,
    windows: Windows = 32,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """INT8 .tflite with every kernel expanded, whose logits are those of the image to the bit.

    What is written is read back and run by TensorFlow Lite's arithmetic in numpy on random windows; a differing logit is status 1.
    Operators that TensorFlow Lite cannot express to the bit are refused by name.
    """
    import numpy as np

    from pyhtpw.export import interpreter, schema
    from pyhtpw.export.tflite import to_tflite
    from pyhtpw.image.writer import save
    from pyhtpw.model import Image

    opened, output = Image.open(image), output or image.with_suffix(".tflite")
    data = to_tflite(opened)
    x = windows_of(opened, windows, seed)
    differing = int(np.count_nonzero(interpreter.run(schema.read(data, str(output)), x) != opened.run_batch(x)))
    if differing:
        _differ(f"{output}: {differing} logits of {windows} random windows differ from the image's; nothing was written")
    save(data, output)
    if as_json:
        emit({"tflite": str(output), "bytes": len(data), "image_bytes": len(opened.data), "windows": windows, "differing": differing})
        return
    print(f"{output}: {len(data):,} bytes (image {len(opened.data):,}); {windows} random windows: 0 differing logits")
    say("in LiteRT use the reference kernels (OpResolverType.BUILTIN_REF): its default ones round otherwise", as_json)


@import_app.command("tflite")
def import_tflite(
    model: Annotated[Path, typer.Argument(help="INT8 .tflite file.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Image to write; default: the model's name with .htpw.")] = None,
    windows: Windows = 64,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Image with stored kernels of an INT8 .tflite network: convolutions (1-D and 2-D), pools, MEAN, ADD, MUL, FULLY_CONNECTED.

    All but FULLY_CONNECTED keep their arithmetic to the bit; differing logits of random windows are counted and printed. Operators
    without a counterpart are refused by name. Next: `pyhtpw compress`.
    """
    from pyhtpw.export.from_tflite import compare, from_tflite
    from pyhtpw.image import write
    from pyhtpw.image.writer import save
    from pyhtpw.model import Image

    output = output or model.with_suffix(".htpw")
    data = read_file(model)
    imported = from_tflite(data, str(model))
    image = Image(write(imported.model), str(output))
    found = compare(imported, image, windows_of(image, windows, seed))
    if found["differing"] and not imported.approximate:
        _differ(f"{model}: {found['differing']} of {found['logits']} logits differ; nothing was written")
    save(image.data, output)
    if as_json:
        emit({"image": str(output), "bytes": len(image.data), "tflite_bytes": len(data), "operators": len(imported.model.ops),
              "approximate": imported.approximate, "dropped": imported.dropped, "compared": found})
        return
    print(f"{output}: {len(image.data):,} bytes ({model.name} {len(data):,}), {len(imported.model.ops)} operators, kernels stored")
    if imported.dropped:
        print(f"dropped: {', '.join(imported.dropped)} (logits are what comes before)")
    print(f"{found['differing']} of {found['logits']} logits differ from TensorFlow Lite's reference on {windows} random windows")
    for name in imported.approximate:
        print(f"  {name} is rounded once there, twice here: differences of 1 are right")
    print(f"next: pyhtpw compress {output} --budget BYTES -o small.htpw")




@app.command()
def compress(
    image: Source,
    budget: Annotated[int, typer.Option(help="Bytes of the whole new image.", min=1)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Image to write.")] = Path("small.htpw"),
    head: Heads = None,
    source: Annotated[Path | None, typer.Option("--input", help="Training windows from a .npy file: int8, or floats to quantise.")] = None,
    data: Annotated[str | None, typer.Option(help="Training windows of a data set instead: synthetic-ecg or mitdb.")] = None,
    data_dir: DataDir = None,
    evaluations: Annotated[int, typer.Option(help="Mixes of heads that are scored.", min=2)] = 24,
    steps: Annotated[int, typer.Option(help="Updates of fine-tuning where windows are given; 0: none.", min=0)] = 300,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Map the pointwise kernels of an image onto heads, or onto fewer bits, within a budget; the float network is not needed.

    With training windows, multipliers and biases of the new layers are fitted to what the old ones made, the logits choose among mixes, and
    networks over time are fine-tuned on what the original says; without, the error of the kernels chooses. --head insists on one head (or
    stored:bits=4, ...) instead of searching.
    """
    import numpy as np

    try:
        from pyhtpw import pipeline
        from pyhtpw.export.compress import compress as compressed
        from pyhtpw.packing import parse_heads
    except ModuleNotFoundError as error:
        raise MissingToolError(f"compressing needs {error.name}: pip install 'pyhtpw[train]'") from error
    from pyhtpw.image import bill as account
    from pyhtpw.model import Image

    opened, windows = Image.open(image), None
    if source is not None and data is not None:
        raise ConfigError("--input and --data are two sources of windows: give one of them")
    if source is not None:
        windows = read_windows(opened, source, 0, seed)
    elif data is not None:
        dataset = load_data(data, data_dir, None, seed, None, False)
        x = pipeline.calibration_windows(dataset, seed)
        if x[0].size != opened.plan().input:
            raise ConfigError(f"{data}: windows have {x[0].size} samples, the network takes {opened.plan().input}")
        windows = opened.quantise(x)
    if windows is not None:
        windows = np.random.default_rng(seed).permutation(windows)
    made = compressed(opened, budget, windows, heads=parse_heads(head or []), evaluations=evaluations, seed=seed,
                      steps=steps if windows is not None else 0,
                      progress=lambda state: _tried(state, as_json))
    small = pipeline.repack(output, made.model)
    before, after = account(opened.parsed), account(small.parsed)
    errors = {name: round(value, 6) for name, value in made.errors.items()}
    if as_json:
        emit({"image": str(output), "heads": dict(made.heads), "kernel_errors": errors, "agreement": made.agreement, "tuned": made.tuned,
              "before": before, "after": after, "tried": [vars(trial) for trial in made.tried]})
        return
    for name, error in errors.items():
        print(f"{name:>12}  {made.sources[name]:<40}  kernel error {error:.4f}")
    for tag in after["sections"]:
        print(f"{tag:>12}  {before['sections'].get(tag, 0):>9,} -> {after['sections'][tag]:>9,} bytes")
    print(f"{output}: {len(opened.data):,} -> {len(small.data):,} bytes")
    if made.tuned:
        print(f"fine-tuning: {made.tuned}")
    if made.agreement is None:
        print("no windows were given: what this does to the accuracy is unknown; give training windows with --input or --data")
    else:
        print(f"same class as before on {100 * made.agreement:.1f} % of the windows held out, which chose among mixes")


@export_app.command("onnx")
def export_onnx(
    image: Source,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: the image's name with .onnx.")] = None,
    windows: Windows = 256,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """ONNX in QDQ form, kernels expanded: near the image's logits, not equal, since it requantises in float.

    Where onnxruntime is installed, differing logits of random windows are counted and printed.
    """
    from pyhtpw.export.onnx import compare, to_onnx
    from pyhtpw.image.writer import save
    from pyhtpw.model import Image

    opened, output = Image.open(image), output or image.with_suffix(".onnx")
    data = to_onnx(opened)
    try:
        found: dict[str, Any] | None = compare(data, opened, windows_of(opened, windows, seed))
        why = ""
    except MissingToolError as error:
        found, why = None, str(error)
    save(data, output)
    if as_json:
        emit({"onnx": str(output), "bytes": len(data), "compared": found, "not_run": why})
    elif found is None:
        print(f"{output}: {len(data):,} bytes; comparison NOT RUN: {why}")
    else:
        print(f"{output}: {len(data):,} bytes; {found['differing']} of {found['logits']} logits of {windows} random windows differ in "
              f"onnxruntime, by {found['largest_difference']} at most; same class on {found['same_class']}")
