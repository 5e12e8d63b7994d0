"""The browser's telling: `csrc/` compiled to WebAssembly, and what a page needs to run an image and compare it with this machine.

The clang of the ``ziglang`` wheel compiles for wasm32 without a C library; the module imports nothing, so a page can only hand it
bytes. What the page shows as the host's are bytes that the C library made here.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from pyhtpw.errors import ConfigError, ToolError
from pyhtpw.model import Image
from pyhtpw.report.files import write_atomically
from pyhtpw.report.sources import Source

FLAGS = ("-target", "wasm32-freestanding", "-std=c99", "-O2", "-g0", "-fno-sanitize=all", "-fno-strict-aliasing", "-nostdlib",
         "-Wl,--no-entry", "-Wl,--strip-all", "-Wl,--gc-sections")  # fmt: skip
WINDOWS = 16  # embedded when nobody says otherwise


@functools.cache
def wasm() -> bytes:
    """The library as a WebAssembly module; compiled once and kept in the cache of built programs.

    Raises
    ------
    MissingToolError
        The ``ziglang`` wheel is not installed.
    ToolError
        The C files are not there, or do not compile.
    """
    from pyhtpw.target import toolchain

    compiler, files = toolchain.find_compiler("clang"), toolchain.sources()
    with tempfile.TemporaryDirectory() as name, resources.as_file(resources.files("pyhtpw.report") / "browser.c") as glue:
        cache = toolchain.cache_folder()
        final = cache / f"browser-{toolchain._fingerprint(FLAGS, compiler, [glue, *files])}.wasm"
        if final.is_file():
            return final.read_bytes()
        out, zig = Path(name) / "htpw.wasm", str(cache / "zig")
        environment = {"ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig, **os.environ}
        command = [*compiler.command, *FLAGS, f"-I{toolchain.CSRC}", str(glue), *map(str, files), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=name, env=environment)
        if done.returncode or not out.is_file():
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            raise ToolError(f"the library does not compile to WebAssembly: {said}")
        data = out.read_bytes()
        write_atomically(final, data)
        return data


@dataclass(frozen=True)
class Told:
    """What a page embeds of one source: `data` for its script, and the host's figures as rows for those without one."""

    data: dict[str, Any]
    kernels: list[dict[str, Any]]
    windows: list[dict[str, Any]]
    origin: str


def text(data: bytes | np.ndarray) -> str:
    """Base64 of bytes or of an int8 array."""
    return base64.b64encode(data if isinstance(data, bytes) else np.ascontiguousarray(data, np.int8).tobytes()).decode()


def host(source: Source, section: str, windows: np.ndarray, origin: str) -> Told:
    """The host's telling of an image: every cached kernel, and the logits of int8 windows (N, H, W, C).

    Raises ConfigError if the source has no image, or there are no windows.
    """
    image = source.image
    if image is None or not len(windows):
        raise ConfigError(f"{source.label}: {'no windows' if image is not None else 'has no image'}: nothing can run in a browser")
    kernels, names = image.kernels(), source.layer_names()
    logits = image.run_batch(windows)
    rows = []
    for op, weights in kernels.items():
        shape = image.parsed.ops[op].weight_shape
        rows.append(
            {
                "name": names[op],
                "shape": " x ".join(map(str, shape)),
                "columns": int(np.prod(shape[1:])) if len(shape) > 1 else 1,
                "bytes": weights.size,
                "weights": text(weights),
                "sha256": hashlib.sha256(weights.tobytes()).hexdigest(),
            }
        )
    info, first = image.parsed.info, image.parsed.input
    data = {
        "section": section, "image": text(image.data), "kernels": [{k: v for k, v in row.items() if k != "bytes"} for row in rows],
        "windows": text(windows), "count": len(windows), "logits": text(logits), "zero_point": first.zero_point, "channels": first.c,
        "logit_scale": None if info is None else float(info.logit_scale), "classes": [] if info is None else list(info.classes),
    }  # fmt: skip
    shown = [
        {"logits": ", ".join(map(str, row)), "sha256": hashlib.sha256(x.tobytes()).hexdigest()}
        for row, x in zip(logits, windows, strict=True)
    ]
    return Told(data, rows, shown, origin)


def embed(told: Sequence[Told]) -> dict[str, Any]:
    """What the page's script reads: the module and every source."""
    return {"wasm": text(wasm()), "sources": [each.data for each in told]}


def sampled(image: Image, n: int = WINDOWS) -> np.ndarray:
    """Seeded windows (n, H, W, C) for an image without data."""
    from pyhtpw.verify import sample_windows

    return sample_windows(image, n)


def script() -> str:
    """The page's script."""
    return resources.files("pyhtpw.report").joinpath("browser.js").read_text(encoding="utf-8")
