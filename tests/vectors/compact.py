"""Regenerate the compact copy of the CMSIS-NN vectors: ``python compact.py --source DIR``.

DIR is the folder of the original vectors (``manifest.json`` and one ``.npz`` per routine). All
cases of the int8 and int4 routines are kept; per field, the arrays of all cases of a routine are
laid end to end in one flat array, because a zip entry per array would cost more than most arrays.
The files are the same bytes on every run with the same numpy.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vectors_io import ABSENT, COMPACT, KERNELS, TIERS, Case, full_cases, scalar_vectors


def compact(kernel: str, cases: list[Case]) -> tuple[dict, dict[str, np.ndarray]]:
    """Return the manifest entry of one routine and its flat arrays.

    Scalars that are the same in all cases are stored once, as ``constant``; the others are the
    columns ``names`` of ``cases``, after the id and the index of the tier in ``TIERS``.
    """
    params = list(cases[0].params)
    constant = {
        name: cases[0].params[name]
        for name in params
        if all(case.params[name] == cases[0].params[name] for case in cases)
    }
    names = [name for name in params if name not in constant]
    fields = sorted({field for case in cases for field in case.arrays})
    store = {}
    for field in fields:
        present = [case.arrays[field] for case in cases if field in case.arrays]
        ndim = present[0].ndim
        store[f"{kernel}.{field}"] = np.concatenate([array.reshape(-1) for array in present])
        store[f"{kernel}.{field}.shape"] = np.array(
            [case.arrays[field].shape if field in case.arrays else (ABSENT,) * ndim for case in cases],
            np.int32,
        )
    rows = [[case.id, TIERS.index(case.tier), *(case.params[name] for name in names)] for case in cases]
    return {"fields": fields, "constant": constant, "names": names, "cases": rows}, store


def text(manifest: dict) -> str:
    """Return the manifest as JSON with one case per line, so that differences can be read."""
    lines = ["{", f' "format": {json.dumps(manifest["format"])},', ' "kernels": {']
    entries = []
    for kernel, entry in manifest["kernels"].items():
        rows = ",\n   ".join(json.dumps(row, separators=(",", ":")) for row in entry["cases"])
        head = ",\n   ".join(f"{json.dumps(key)}: {json.dumps(entry[key])}" for key in ("fields", "constant", "names"))
        entries.append(f'  "{kernel}": {{\n   {head},\n   "cases": [\n   {rows}]}}')
    return "\n".join([*lines, ",\n".join(entries), " }", "}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of the original vectors")
    source = parser.parse_args().source
    COMPACT.mkdir(parents=True, exist_ok=True)
    manifest: dict = {"format": "htpw compact vectors 1", "kernels": {}}
    store: dict[str, np.ndarray] = {}
    for kernel in KERNELS:
        manifest["kernels"][kernel], arrays = compact(kernel, list(full_cases(source, kernel)))
        store |= arrays
    np.savez_compressed(COMPACT / "cases.npz", **store)
    np.savez_compressed(COMPACT / "requantise.npz", **scalar_vectors(source / "requantize.npz"))
    (COMPACT / "cases.json").write_text(text(manifest))
    count = sum(len(entry["cases"]) for entry in manifest["kernels"].values())
    size = sum(path.stat().st_size for path in COMPACT.iterdir())
    print(f"{count} cases of {len(KERNELS)} routines, {size} bytes")


if __name__ == "__main__":
    main()
