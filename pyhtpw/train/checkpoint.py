"""Checkpoints: named arrays and a JSON description in one safetensors file.

A file is written under a temporary name, flushed to the disk and renamed, so that a reader or a power cut sees the old
file or the new one, never half of one.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
import safetensors
import safetensors.numpy
import scipy

from pyhtpw.errors import TrainError


def cpu_model() -> str:
    """The processor's name as the system tells it; results repeat to the byte only on the same type."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def environment() -> dict[str, str]:
    """What, besides the inputs, the bytes of a result depend on."""
    return {
        "numpy": np.__version__,
        "scipy": scipy.__version__,  # whose BLAS the kernels call
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "cpu": cpu_model(),
    }


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step; TrainError if the directory cannot be written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise TrainError(f"cannot write {path}: {error.strerror}; choose a writable directory with room") from error


def save_checkpoint(path: Path, arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> None:
    """Write ``arrays`` and the JSON-able ``description``; TrainError if the file cannot be written.

    The description is one JSON text under the metadata key "htpw", with sorted keys: equal states give equal bytes.
    """
    plain = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    metadata = {"htpw": json.dumps(description, sort_keys=True, allow_nan=False)}
    write_atomically(path, safetensors.numpy.save(plain, metadata))


def load_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and description that `save_checkpoint` wrote; TrainError if there is no such file or it is damaged."""
    if not path.is_file():
        raise TrainError(f"there is no checkpoint {path}; give the directory of an earlier run, or start a new one")
    try:
        with safetensors.safe_open(path, framework="numpy") as stream:
            description = json.loads((stream.metadata() or {})["htpw"])
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  not a mapping
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise TrainError(f"checkpoint {path} is damaged ({error}); delete it and start the run anew") from error
    return arrays, description
