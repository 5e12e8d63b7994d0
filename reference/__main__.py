"""Command line: ``python -m reference model.htpw input.npy`` prints one line of logits per window.

``input.npy`` holds int8 windows, (N, H, W, C). ``--pack codes.htpc`` applies a code pack first. The
exit status is 1 if the image, the pack or the input is refused, with one line on standard error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from . import apply_pack, read, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reference", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model image (.htpw)")
    parser.add_argument("input", type=Path, help="int8 windows (N, H, W, C), .npy")
    parser.add_argument("--pack", type=Path, help="code pack to apply to the image (.htpc)")
    arguments = parser.parse_args()
    try:
        data = arguments.model.read_bytes()
        model = apply_pack(data, arguments.pack.read_bytes()) if arguments.pack else read(data)
        logits = run(model, np.load(arguments.input, allow_pickle=False))
    except (OSError, ValueError) as error:
        print(f"reference: {error}", file=sys.stderr)
        return 1
    for row in logits:
        print(" ".join(str(int(value)) for value in row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
