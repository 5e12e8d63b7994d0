"""Packages that pyhtpw only needs for some of its work: which extra brings each, and what to type when one is missing."""

MODULES = {
    "rich": "cli",
    "typer": "cli",
    "numba": "train",
    "safetensors": "train",
    "scipy": "train",
    "threadpoolctl": "train",
    "soundfile": "data",
    "wfdb": "data",
    "elftools": "target",
    "unicorn": "target",
    "tomli": "target",
    "jinja2": "report",
    "matplotlib": "report",
    "nacl": "sign",
    "dask": "sweep",
    "distributed": "sweep",
    "optuna": "sweep",
    "flatbuffers": "export",
    "onnx": "export",
    "tflite": "export",
}


def remedy(error: ModuleNotFoundError) -> str | None:
    """One line for a module that an extra brings; None if none does, so that the error is no missing extra."""
    module = (error.name or "").partition(".")[0]
    if module not in MODULES:
        return None
    return f"this needs {module}, which is not installed: pip install 'pyhtpw[{MODULES[module]}]'"
