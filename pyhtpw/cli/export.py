"""Commands `pyhtpw export ...`: images and networks in the forms that other tools read."""

from pathlib import Path
from typing import Annotated

import typer

from pyhtpw.cli.common import Json, Seed, app, emit

export_app = typer.Typer(no_args_is_help=True, help="Write an image or a network in a form that other tools read.")
app.add_typer(export_app, name="export")


@export_app.command("c")
def export_c(
    image: Annotated[Path, typer.Argument(help="Image.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="C file, the header beside it. Default: as the image.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Part of the library to have although the image works without it, such as "
        "PACKS (code packs), HOOK (partial runs and the hook) or LAZY (schedule); repeatable.")] = None,
    code: Annotated[str, typer.Option(help="Library code to spend on speed: fast, compact (one loop for each kernel), or small (portable "
        "kernels).")] = "fast",
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """A .c/.h pair: the image as a constant array, memory sizes, and the parts of the library it needs. --seed changes nothing."""
    from pyhtpw.export import c
    from pyhtpw.model import Image

    opened = Image.open(image)
    to = output or image.with_name(c.identifier(image.stem) + ".c")
    source, header = c.export_c(opened, to, keep or (), code)
    chosen = c.switches(opened, keep or (), code)
    if as_json:
        emit({"source": str(source), "header": str(header), "image_bytes": len(opened.data), "parts": chosen})
    else:
        print(f"{source}, {header}: {len(opened.data):,} bytes of image")
        print(f"parts of the library: {', '.join(name for name, on in chosen.items() if on)}")
        print(f"next: compile the library with -DHTPW_CONFIG='\"{header.name}\"' -I{header.parent}")
