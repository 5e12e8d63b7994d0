"""Any bytes as an image, for the two readers in Python: `pyhtpw.image` and `reference`.

    python tests/fuzz/fuzz_reader.py [libFuzzer options] corpus seeds

They may refuse by an ImageError of their own and nothing else. The numpy reader accepts exactly what the C library accepts;
`pyhtpw.image.parse`, which leaves judging to C, follows at least that. Of what is accepted and cheap, logits and kernels are compared too.

Input: CONTROL bytes, ignored, then the image; or a code pack for the image of make_seeds.base(), which is judged by C and numpy in the same
way. Needs atheris, and the repairs of repair.c as a shared library, which
tests/fuzz/run.py builds.
"""

from __future__ import annotations

import ctypes
import hashlib
import random
import struct
import sys
import zlib
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

CONTROL, PACK_HEADER = 8, 52
LIBRARY = ROOT / "build" / "fuzz" / "librepair.so"
COST_MAX = 1 << 18  # multiply-accumulates that numpy, and the seeded matrix in plain Python, do in some 10 ms


def check(data: bytes, repair: ctypes.CDLL | None = None) -> str:
    """Shows `data` (an image) to all readers. Returns what became of it; AssertionError is a finding."""
    import reference
    from pyhtpw.errors import ImageError
    from pyhtpw.image import bill, parse, read_model
    from pyhtpw.model import Image

    try:
        image, error = Image(data), None
    except ImageError as refusal:
        image, error = None, refusal
        assert refusal.code, f"the C library accepts what pyhtpw.image.parse refuses: {refusal}"
    try:
        model = reference.read(data)
    except reference.ImageError as refusal:
        assert image is None, f"the C library accepts what reference.read refuses: {refusal}"
    else:
        assert image is not None, f"reference.read accepts what the C library refuses: {error}"
    try:
        parsed = parse(data)
        bill(parsed)
        read_model(data)
    except ImageError as refusal:
        assert image is None, f"the C library accepts what pyhtpw.image refuses: {refusal}"
    if image is None:
        return "refused"
    if repair is not None and cost(data, repair) > COST_MAX:
        return "opened"
    run(image, model)
    return "run"


def check_pack(data: bytes) -> str:
    """Shows `data` (a code pack) to C, numpy and `pyhtpw.image`, which makes a new image of it for C to judge."""
    import reference
    from pyhtpw.errors import ImageError
    from pyhtpw.image.codes import apply_pack
    from pyhtpw.model import Image

    base = base_image()
    try:
        image, error = Image(base, codes=data), None
    except ImageError as refusal:
        image, error = None, refusal
    try:
        written = Image(apply_pack(base, data))
    except ImageError as refusal:
        assert image is None, f"the C library accepts what pyhtpw.image.codes refuses: {refusal}"
    else:
        assert image is not None, f"pyhtpw.image.codes accepts what the C library refuses: {error}"
        assert [k.tolist() for k in written.kernels().values()] == [k.tolist() for k in image.kernels().values()], "kernels differ"
    try:
        model = reference.apply_pack(base, data)
    except reference.PackError as refusal:
        assert image is None, f"the C library accepts what reference.apply_pack refuses: {refusal}"
        return "refused"
    assert image is not None, f"reference.apply_pack accepts what the C library refuses: {error}"
    run(image, model)
    return "run"


@cache
def base_image() -> bytes:
    """The image of all packs."""
    sys.path.insert(0, str(Path(__file__).parent))
    import make_seeds

    return make_seeds.base()


def run(image, model) -> None:
    """Logits and kernels of one window of fixed noise, here and in numpy."""
    import reference
    from reference import synthesis

    x = np.random.default_rng(0).integers(-128, 128, (1, *model.input_shape)).astype(np.int8)
    assert image.run(x[0]).tolist() == reference.run(model, x)[0].tolist(), "logits differ"
    made, expected = image.kernels(), synthesis.kernels(model)
    assert made.keys() == expected.keys(), "other operators are cached"
    for index, kernel in made.items():
        assert kernel.tolist() == expected[index].reshape(-1).tolist(), f"kernels of operator {index} differ"


def cost(data: bytes, repair: ctypes.CDLL) -> int:
    """Work of synthesis and one inference, by repair.c."""
    repair.fuzz_image_cost.restype = ctypes.c_uint64
    words = (ctypes.c_uint32 * (len(data) // 4 + 1))()
    ctypes.memmove(words, data, len(data))
    return repair.fuzz_image_cost(words, ctypes.c_size_t(len(data)))


def load_repair() -> ctypes.CDLL:
    """The shared library with what the C fuzzers repair by."""
    return ctypes.CDLL(str(LIBRARY))


def mend(data: bytes, most: int, seed: int, repair: ctypes.CDLL) -> bytes:
    """An image whose lengths, unused bits and checksums are right again."""
    repair.fuzz_image_mend.restype = ctypes.c_size_t
    size = ctypes.c_size_t
    buffer = ctypes.create_string_buffer(data, max(most, len(data)))
    done = repair.fuzz_image_mend(buffer, size(len(data)), size(most), ctypes.c_uint32(seed))
    return buffer.raw[:done]


def mend_pack(data: bytes) -> bytes:
    """A pack whose length, entries (as many as fit), base and checksum are right."""
    data += b"\0" * (-len(data) % 4)
    at, entries = PACK_HEADER, 0
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        at, entries = at + 8 + length + -length % 4, entries + 1
    body = data[PACK_HEADER:]
    head = struct.pack("<4sBBHI", b"HTPC", 1, 0, entries, len(data)) + data[12:16] + hashlib.sha256(base_image()).digest()
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


def split(data: bytes) -> list[tuple[bytes, bytes]]:
    """(tag, payload) of every section that is there."""
    if len(data) < 32:
        return []
    count, out = min(data[6], (len(data) - 16) // 16, 16), []
    for i in range(count):
        tag, offset, length = struct.unpack_from("<4sII", data, 16 + 16 * i)
        out.append((tag, data[offset : offset + length]))
    return out


def join(sections: list[tuple[bytes, bytes]]) -> bytes:
    """A file of these sections with right checksums."""
    table, body, start = b"", b"", 16 + 16 * len(sections)
    for tag, payload in sections:
        body += b"\0" * (-len(body) % 16)
        table += struct.pack("<4sIII", tag, start + len(body), len(payload), zlib.crc32(payload))
        body += payload
    body += b"\0" * (-len(body) % 16)
    head = struct.pack("<4sBBBBI", b"HTPW", 2, 1, len(sections), 0, start + len(body))
    return head + struct.pack("<I", zlib.crc32(head + table)) + table + body


def main() -> None:
    """Fuzzes until libFuzzer ends it."""
    try:
        import atheris
    except ImportError:
        sys.exit("fuzz_reader: atheris is not installed: pip install -e '.[fuzz]'")
    with atheris.instrument_imports(include=["pyhtpw.image", "reference"]):
        import reference  # noqa: F401
        from pyhtpw.image import bill, codes, parse, read_model  # noqa: F401
    repair = load_repair()

    def one_input(data: bytes) -> None:
        if data[CONTROL:].startswith(b"HTPC"):
            check_pack(data[CONTROL:])
        elif len(data) >= CONTROL:
            check(data[CONTROL:], repair)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        r = random.Random(seed)
        if data[CONTROL:].startswith(b"HTPC") and r.random() < 15 / 16:
            body = bytes(atheris.Mutate(data[CONTROL + PACK_HEADER :], most - CONTROL - PACK_HEADER))
            return data[:CONTROL] + mend_pack(data[CONTROL : CONTROL + 16] + bytes(36) + body)
        sections = split(data[CONTROL:])
        if not sections or r.random() < 1 / 16:
            return atheris.Mutate(data, most)
        for _ in range(r.choice((1, 1, 2, 3))):
            i = r.choices(range(len(sections)), [1 if tag == b"INFO" else 3 if tag == b"WGHT" else 8 for tag, _ in sections])[0]
            tag, payload = sections[i]
            sections[i] = tag, bytes(atheris.Mutate(payload, len(payload) + 256))
        if r.random() < 1 / 64:
            r.shuffle(sections)
        image = join(sections)
        if len(image) > most - CONTROL:
            return data
        return data[:CONTROL] + (mend(image, most - CONTROL, seed, repair) if r.random() < 7 / 8 else image)

    atheris.Setup(sys.argv, one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
