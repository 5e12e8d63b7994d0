"""Commands: look inside. What every layer writes, and where two tellings or two images part."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pyhtpw.cli.common import CacheDir, Compiler, DataDir, Json, Protocol, Seed, Strict, app, emit, load_data, say
from pyhtpw.cli.running import read_windows
from pyhtpw.errors import ConfigError

Input = Annotated[Path | None, typer.Option("--input", help="Windows from a .npy file: int8 as they are, floats quantised.")]


def _signals(data: str, n: int, data_dir: Path | None, protocol: str | None, seed: int, cache_dir: Path | None, strict: bool) -> Any:
    """The first windows of a data set's validation split."""
    return load_data(data, data_dir, protocol, seed, cache_dir, strict).val.x[:n]


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="Image.")],
    b: Annotated[Path, typer.Argument(help="Image to compare with it.")],
    source: Input = None,
    data: Annotated[str | None, typer.Option(help="Windows of a data set's validation split: synthetic-ecg or mitdb.")] = None,
    data_dir: DataDir = None,
    protocol: Protocol = None,
    aami_strict: Strict = False,
    cache_dir: CacheDir = None,
    windows: Annotated[int, typer.Option(help="Windows compared.", min=1)] = 16,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Compare two images: structure, kernels, metadata and, layer by layer, what they write for the same windows.

    Without --input or --data the windows are seeded (synthetic). Floats are quantised by each image. Exit status 1 if they differ.
    """
    from pyhtpw.compare import diff as compare
    from pyhtpw.model import Image

    first, second = Image.open(a), Image.open(b)
    if source is not None and data is not None:
        raise ConfigError("--input and --data are two ways to give windows: give one of them")
    if first.input_shape != second.input_shape:
        x: Any = None  # no window fits both; what else differs is still said
    elif data is not None:
        signals = _signals(data, windows, data_dir, protocol, seed, cache_dir, aami_strict)
        x = first.quantise(signals), second.quantise(signals)
    else:
        x = tuple(read_windows(image, source, windows, seed)[:windows] for image in (first, second if source else first))
    found = compare(first, second, x)
    if as_json:
        emit({"a": str(a), "b": str(b), "input": str(source or data or "seeded windows (synthetic)"), **found.to_dict()})
    else:
        print(f"{a}: {found.bytes_a:,} bytes; {b}: {found.bytes_b:,} bytes")
        for line in found.structure:
            print(f"structure: {line}")
        for name, fields in found.metadata:
            print(f"metadata of {name}: {fields}")
        for kernel in found.kernels:
            print(f"kernel of {kernel.name}: {kernel.differ:,} of {kernel.of:,} weights, by at most {kernel.largest}")
        for tensor in found.tensors:
            print(f"output of {tensor.name}: {tensor.differ:,} of {tensor.of:,} bytes")
        if found.first is not None:
            print(f"first: {found.first}")
        print(f"{found.windows} windows; the images " + ("say the same" if found.is_same else "differ"))
    raise typer.Exit(0 if found.is_same else 1)


@app.command()
def trace(
    image: Annotated[Path, typer.Argument(help="Image.")],
    telling: Annotated[list[str] | None, typer.Option(help="numpy, c, m4, m0, m3, m7, m33, or a backend (portable, x86_avx2, "
        "...); several are compared with the first. Default: c.")] = None,
    source: Input = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write: input, and TELLING/NN-LAYER.")] = None,
    against: Annotated[Path | None, typer.Option(help="Compare with a file that `pyhtpw trace` wrote, on another machine say.")] = None,
    windows: Annotated[int, typer.Option(help="Windows traced.", min=1)] = 4,
    compiler: Compiler = "auto",
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Write what every layer gives, in any telling, and name the first byte in which tellings differ.

    Without --input the windows are seeded (synthetic). Exit status 1 if tellings differ.
    """
    from pyhtpw.compare import differences
    from pyhtpw.compare import trace as traced
    from pyhtpw.model import Image

    opened = Image.open(image)
    names = list(dict.fromkeys(telling or ["c"]))
    old = {} if against is None else _load(against)
    x = read_windows(opened, source, windows, seed)[:windows]
    if old and (source is None and "input" in old):
        x = old["input"]
    traces = {name: traced(opened, x, name, compiler=compiler) for name in names}
    files = {layer.index: f"{layer.index:02d}-{layer.name}" for layer in opened.layers}
    reference, expected = names[0], traces[names[0]]
    others = {name: traces[name] for name in names[1:]}
    if against is not None:
        for name in dict.fromkeys(key.partition("/")[0] for key in old if "/" in key):
            found = {i: old[f"{name}/{file}"] for i, file in files.items() if f"{name}/{file}" in old}
            if len(found) != len(files) or any(found[i].shape != expected[i].shape for i in files):
                raise ConfigError(f"{against}: is not a trace of {image} on these windows: its layers have other names or shapes")
            others[f"{against}:{name}"] = found
    if output is not None:
        _save({"input": x, **{f"{name}/{files[i]}": y for name, t in traces.items() for i, y in t.items()}}, output)
    parted = {name: differences(opened, expected, other) for name, other in others.items()}
    if as_json:
        layers = [{"layer": layer.index, "name": layer.name, "shape": [len(x), *layer.output_shape],
                   "crc32": {name: _crc(t[layer.index]) for name, t in traces.items()}} for layer in opened.layers]
        emit({"image": str(image), "output": str(output) if output else None, "windows": len(x), "layers": layers,
              "compared": {f"{reference} / {name}": [vars(d) for d in found] for name, found in parted.items()}})
    else:
        for layer in opened.layers:
            y = expected[layer.index]
            print(f"{layer.index:3d}  {layer.name:14} {'x'.join(map(str, layer.output_shape)):>12}  "
                  f"{int(y.min()):4d} .. {int(y.max()):3d}  crc32 {_crc(y)}")
        for name, parts in parted.items():
            print(f"{reference} / {name}: " + (f"first difference: {parts[0]}" if parts else "every byte of every layer is the same"))
        if output is not None:
            print(f"{output}: {len(x)} windows, {len(traces)} x {len(files)} tensors")
    if source is None and against is None and not as_json:
        say("no --input given: seeded synthetic windows", False)
    raise typer.Exit(1 if any(parted.values()) else 0)


def _crc(y: Any) -> str:
    import zlib

    return f"{zlib.crc32(y.tobytes()):08x}"


def _save(arrays: dict[str, Any], path: Path) -> None:
    """Writes an .npz all at once."""
    import io

    import numpy as np

    from pyhtpw.image.writer import save

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    save(buffer.getvalue(), path)


def _load(path: Path) -> dict[str, Any]:
    import zipfile

    import numpy as np

    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("one array, not several")
        with file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: cannot read a trace ({error}): make one with 'pyhtpw trace -o'") from error
    if any(array.dtype != np.int8 for array in found.values()):
        raise ConfigError(f"{path}: is not a trace: it holds arrays that are not int8")
    return found
