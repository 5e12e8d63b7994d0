"""An integer model as one .npz file: what `pyhtpw quantise` leaves and `pyhtpw pack` reads.

The structure is a JSON string inside the file, the arrays are beside it; nothing is pickled.
"""

import io
import json
import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from pyhtpw.errors import ConfigError
from pyhtpw.image import integer
from pyhtpw.image.integer import IntegerModel
from pyhtpw.image.writer import save

_CLASSES = {
    c.__name__: c
    for c in (
        integer.IntegerModel,
        integer.Tensor,
        integer.Window,
        integer.Requant,
        integer.Stored,
        integer.Generated,
        integer.AddScalars,
        integer.MulScalars,
        integer.AttendScalars,
        integer.Op,
        integer.Matrix,
        integer.Generator,
        integer.Dense,
        integer.Factorised,
        integer.Tiled,
        integer.Seeded,
        integer.Codebook,
        integer.Info,
    )
}


def _encode(value, arrays: dict[str, np.ndarray]):
    if isinstance(value, np.ndarray):
        key = f"a{len(arrays)}"
        arrays[key] = value
        return {"array": key}
    if is_dataclass(value):
        name = type(value).__name__
        return {"class": name, "fields": {f.name: _encode(getattr(value, f.name), arrays) for f in fields(value)}}
    if isinstance(value, (tuple, list)):
        return {"items": [_encode(v, arrays) for v in value]}
    if isinstance(value, dict):
        return {"dict": {k: _encode(v, arrays) for k, v in value.items()}}
    return value.item() if isinstance(value, np.generic) else value


def _decode(value, arrays):
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "class" in value:
        return _CLASSES[value["class"]](**{k: _decode(v, arrays) for k, v in value["fields"].items()})
    if "items" in value:
        return tuple(_decode(v, arrays) for v in value["items"])
    return {k: _decode(v, arrays) for k, v in value["dict"].items()}


def save_model(model: IntegerModel, path: str | os.PathLike) -> None:
    """Writes the model whole or not at all; raises ImageError if the folder can't be written."""
    arrays: dict[str, np.ndarray] = {}
    structure = json.dumps(_encode(model, arrays))
    stream = io.BytesIO()
    np.savez_compressed(stream, structure=np.array(structure), **arrays)
    save(stream.getvalue(), path)


def load_model(path: str | os.PathLike) -> IntegerModel:
    """Reads what `save_model` wrote; raises ConfigError naming the file otherwise."""
    try:
        with np.load(Path(path), allow_pickle=False) as arrays:
            model = _decode(json.loads(str(arrays["structure"])), arrays)
    except (OSError, KeyError, ValueError, TypeError, EOFError, BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"{path}: not an integer model of 'pyhtpw quantise' ({reason})") from error
    if not isinstance(model, IntegerModel):
        raise ConfigError(f"{path}: not an integer model of 'pyhtpw quantise'")
    return model
