"""Writes csrc/htpw_selftest_image.h: the example image of the tests, with the CRCs of what numpy makes of it.

    python tests/make_selftest.py [--check]

The numbers come from reference/, so that no run of the C library judges itself.
"""

import argparse
import sys
import zlib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import random_images  # noqa: E402

import reference  # noqa: E402
from pyhtpw.image import write  # noqa: E402
from reference import synthesis  # noqa: E402

HEADER = ROOT / "csrc" / "htpw_selftest_image.h"
WINDOWS = 4


def windows(size: int) -> np.ndarray:
    """The windows that htpw_selftest.c makes: int8 (WINDOWS, size)."""
    state, out = 1, []
    for _ in range(WINDOWS * size):
        state = (state * 1664525 + 1013904223) % 2**32
        out.append((state >> 24) - (256 if state >> 31 else 0))
    return np.array(out, np.int8).reshape(WINDOWS, size)


def header() -> str:
    """The text of the header."""
    data = write(random_images.example())
    model = reference.read(data)
    kernels = [np.ravel(k).tobytes() for _, k in sorted(synthesis.kernels(model).items())]
    logits = reference.run(model, windows(int(np.prod(model.input_shape))).reshape(-1, *model.input_shape))
    rows = [", ".join(f"0x{b:02x}" for b in data[i : i + 20]) for i in range(0, len(data), 20)]
    return "\n".join(
        [
            "/* Made by tests/make_selftest.py: the image that htpw_selftest runs, and what must come of it. */",
            "#ifndef HTPW_SELFTEST_IMAGE_H",
            "#define HTPW_SELFTEST_IMAGE_H",
            "",
            "#include <stdint.h>",
            "",
            f"#define HTPW_SELFTEST_WINDOWS {WINDOWS}",
            f"#define HTPW_SELFTEST_INPUT {int(np.prod(model.input_shape))}",
            f"#define HTPW_SELFTEST_OUTPUT {model.classes}",
            f"#define HTPW_SELFTEST_KERNEL {max(map(len, kernels))} /* bytes of the largest kernel */",
            f"#define HTPW_SELFTEST_KERNELS_CRC 0x{zlib.crc32(b''.join(kernels)):08x}u",
            f"#define HTPW_SELFTEST_LOGITS_CRC 0x{zlib.crc32(logits.tobytes()):08x}u",
            "",
            "static const union {",
            f"    uint8_t bytes[{len(data)}];",
            "    uint32_t aligned;",
            "} htpw_selftest_image = {{",
            *(f"    {row}," for row in rows),
            "}};",
            "",
            "#endif",
            "",
        ]
    )


def main() -> int:
    """Writes or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    text = header()
    if parser.parse_args().check:
        return 0 if HEADER.read_text() == text else 1
    HEADER.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
