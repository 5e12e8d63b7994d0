"""Writes the fuzzers' seeds: images and code packs of every operator and head kind, the same ones each time.

    python tests/fuzz/make_seeds.py [folder]

`<folder>/image` holds images, `<folder>/codes` packs, `<folder>/reader` both, each behind the control bytes that tests/fuzz/fuzz.h tells
of; `<folder>/base.h` the image that fuzz_codes is compiled with. The folder is build/fuzz/seeds if none is given.
"""

from __future__ import annotations

import argparse
import hashlib
import struct
import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import random_images  # noqa: E402
import reference_images  # noqa: E402
import test_reference_network  # noqa: E402

import reference  # noqa: E402
from pyhtpw.image import write  # noqa: E402

FOLDER = ROOT / "build" / "fuzz" / "seeds"
CONTROL = 8  # bytes, as FUZZ_CONTROL in fuzz.h
CODE, QUAN = 0, 1


def images() -> dict[str, bytes]:
    """Name -> image."""
    out = {f"example{seed}": write(random_images.example(seed)) for seed in range(4)}
    for i, variant in enumerate(test_reference_network.VARIANTS):
        out[f"network{i}"] = reference_images.image(reference_images.network(**variant))
    out["stored"] = reference_images.image(reference_images.stored_network())
    for path in sorted((ROOT / "tests" / "vectors" / "images").glob("*.htpw")):
        out[path.stem] = path.read_bytes()
    return out


def base() -> bytes:
    """The image that fuzz_codes applies packs to."""
    return images()["network0"]


def pack(image: bytes, entries: list[tuple[int, int, bytes]], number: int) -> bytes:
    """A code pack of (operator, part, bytes), as docs/SPEC.md section 10 has it."""
    body = b"".join(struct.pack("<BBHI", op, part, 0, len(new)) + new + b"\0" * (-len(new) % 4) for op, part, new in entries)
    head = struct.pack("<4sBBHII", b"HTPC", 1, 0, len(entries), 52 + len(body), number) + hashlib.sha256(image).digest()
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


def packs(image: bytes) -> dict[str, bytes]:
    """Name -> pack that repeats parts of the image itself: one part each, and all of them."""
    model, payloads = reference.read(image), reference.sections.sections(image)
    parts = []
    for index, op in enumerate(model.operators):
        if op.linear is None:
            continue
        if op.linear.code_part is not None:
            parts.append((index, CODE, payloads[b"CODE"][op.linear.code_part]))
        parts.append((index, QUAN, payloads[b"QUAN"][op.linear.quan_part]))
    out = {f"part{i}": pack(image, [part], i) for i, part in enumerate(parts)}
    return out | {"all": pack(image, parts, 7), "codes": pack(image, [p for p in parts if p[1] == CODE], 8)}


def header(image: bytes) -> str:
    """base.h."""
    rows = [", ".join(f"0x{b:02x}" for b in image[i : i + 20]) for i in range(0, len(image), 20)]
    lines = ["/* Made by tests/fuzz/make_seeds.py */", "#include <stdint.h>", "", "static const union {"]
    lines += [f"    uint8_t bytes[{len(image)}];", "    uint32_t aligned;", "} fuzz_base = {{", *(f"    {row}," for row in rows), "}};", ""]
    return "\n".join(lines)


def write_all(folder: Path = FOLDER) -> None:
    """Writes every seed."""
    for target, seeds in (("image", images()), ("reader", images() | packs(base())), ("codes", packs(base()))):
        (folder / target).mkdir(parents=True, exist_ok=True)
        for i, (name, data) in enumerate(seeds.items()):
            control = bytes((i, 0, 0, 9 * i % 64, i % 2, 3 * i, i, 0))
            (folder / target / name).write_bytes(control + data)
    text = header(base())
    if not (folder / "base.h").exists() or (folder / "base.h").read_text() != text:  # objects are made again if it is younger
        (folder / "base.h").write_text(text)


def main() -> int:
    """Writes every seed below the folder of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    write_all(parser.parse_args().folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
