"""Commands: models to and from TensorFlow Lite and ONNX, and smaller ones of models that have no float network."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pyhtpw.cli.common import Json, Seed, app, emit, say
from pyhtpw.cli.export import export_app
from pyhtpw.errors import ImageError, VerifyError

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
        raise VerifyError(f"{output}: {differing} logits of {windows} random windows differ from the image's; nothing was written")
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
    from pyhtpw import pipeline
    from pyhtpw.export.from_tflite import compare, from_tflite
    from pyhtpw.image import write
    from pyhtpw.model import Image

    output = output or model.with_suffix(".htpw")
    data = read_file(model)
    imported = from_tflite(data, str(model))
    image = Image(write(imported.model), str(output))
    found = compare(imported, image, windows_of(image, windows, seed))
    if found["differing"] and not imported.approximate:
        raise VerifyError(f"{model}: {found['differing']} of {found['logits']} logits differ; nothing was written")
    image = pipeline.repack(output, imported.model)
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


