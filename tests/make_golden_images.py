"""Makes the golden images: one tiny network per weight source, and one per operator without weights that it would not use, 1-D
and 2-D, with kernels and logits.

Usage, from the root of the repository::

    python tests/make_golden_images.py           writes tests/vectors/images/NAME.htpw and NAME.json
    python tests/make_golden_images.py --check   compares instead; exit status 1 if anything differs

The kernels and logits are those of ``reference``, the slow telling in numpy; tests/test_golden_images.py holds everything
else against these files. Values come from xorshift32, so the files depend on no library's random numbers.
"""

import argparse
import base64
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from random_images import lively, seed_words  # noqa: E402

from pyhtpw.image import heads as heads_of  # noqa: E402
from pyhtpw.image import write  # noqa: E402
from pyhtpw.image.integer import (  # noqa: E402
    AddScalars,
    AttendScalars,
    Codebook,
    Dense,
    Factorised,
    Generated,
    Generator,
    Info,
    IntegerModel,
    Matrix,
    MulScalars,
    Op,
    Requant,
    Seeded,
    Stored,
    Tensor,
    Tiled,
    Window,
)

FOLDER = Path(__file__).parent / "vectors" / "images"
SIZE_LIMIT = 3 * 1024
WINDOWS = 4


class Numbers:
    """Uniform integers from xorshift32, with the one method of numpy's Generator that is needed here."""

    def __init__(self, seed: int) -> None:
        self._state = seed or 1

    def integers(self, low: int, high: int, size: int | tuple[int, ...]) -> np.ndarray:
        """int64 in [low, high)."""
        count = int(np.prod(size))
        words = seed_words(self._state, 4 * count).astype(np.uint8).view("<u4").astype(np.int64)
        self._state = int(words[-1])
        return (low + words % (high - low)).reshape(size)


class Book:
    """The generators and heads of one golden image, made while its operators are."""

    def __init__(self, seed: int) -> None:
        self.rng = Numbers(seed)
        self.generators = (
            Generator(3, (lively(self.rng, 8, 3, 4, 8), lively(self.rng, 6, 8, 35, 6))),
            Generator(4, (lively(self.rng, 7, 4, 18, 4),)),
            Generator(5),
        )
        self.heads: list = []

    def add(self, head) -> int:
        """Index of a new head."""
        self.heads.append(head)
        return len(self.heads) - 1

    def matrix(self, rows: int, cols: int, rms: float, narrow: bool = False) -> Matrix:
        """A matrix whose results use [-127, 127], or [-7, 7]."""
        return lively(self.rng, rows, cols, rms, 8, 4 if narrow else 60)

    def coded(self, head: int, shape: tuple[int, ...], bits: int, narrow: bool = False) -> Generated:
        """Random codes or ids for a kernel of a head."""
        kind = self.heads[head]
        tiles = heads_of.tiles("a golden image", kind, self.heads, int(np.prod(shape)))
        if isinstance(kind, Codebook):
            return Generated(self.rng.integers(0, len(kind.entries), tiles), shape, head, 0, narrow)
        top = (1 << (bits - 1)) - 1
        codes = self.rng.integers(-top - 1, top + 1, (tiles, heads_of.dz(kind, self.generators)))
        return Generated(codes, shape, head, bits, narrow)


Weights = Callable[[Book, int, tuple[int, ...]], "Stored | Generated"]  # (book, number of the operator, shape) -> weights


def _stored(bits: int, narrow: bool = False) -> Weights:
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    return lambda book, _, shape: Stored(book.rng.integers(low, high, shape).astype(np.int8), bits, narrow)


def _dense(narrow: bool = False) -> Weights:
    def make(book: Book, number: int, shape: tuple[int, ...]) -> Generated:
        generator, rms, bits = ((0, 35, 4), (1, 35, 6), (2, 60, 8))[number % 3]
        cols = book.generators[generator].width
        return book.coded(book.add(Dense(book.matrix(int(np.prod(shape)), cols, rms, narrow), generator)), shape, bits, narrow)

    return make


def _factorised(narrow: bool = False, share: str = "") -> Weights:
    """`share`: "b" for one B in all heads, "a" for one A in heads of kernels of one size."""

    def make(book: Book, number: int, shape: tuple[int, ...]) -> Generated:
        n, b, a = int(np.prod(shape)), None, None
        generator = 0 if share == "b" else number % 2
        for i, head in enumerate(book.heads):
            if share == "b" and isinstance(head.b, Matrix):
                b = i
            if share == "a" and isinstance(head.a, Matrix) and len(head.a.weights) == n:
                a = i
        if b is None:
            b = book.matrix(3, book.generators[generator].width, 35)
        if a is None:
            a = book.matrix(n, 3, 60, narrow)
        return book.coded(book.add(Factorised(b, a, generator)), shape, 6, narrow)

    return make


def _tile_head(book: Book, kind: str, narrow: bool) -> int:
    """The one tiled or seeded head of a book."""
    if book.heads:
        return 0
    if kind == "seeded":
        return book.add(Seeded(7, 0x9E3779B9, 20000 << 16, -8 if narrow else -4, 1))
    return book.add(Tiled(book.matrix(10, book.generators[0].width, 35, narrow), 0))


def _tiles(kind: str, narrow: bool = False) -> Weights:
    return lambda book, number, shape: book.coded(_tile_head(book, kind, narrow), shape, (4, 6, 8)[number % 3], narrow)


def _codebook(bits: int, of: str = "", narrow: bool = False) -> Weights:
    """A stored table of `bits`, or one made by a tiled or seeded head `of` from codes of `bits`."""

    def make(book: Book, number: int, shape: tuple[int, ...]) -> Generated:
        books = [i for i, head in enumerate(book.heads) if isinstance(head, Codebook)]
        if not books:
            maker = _tile_head(book, of, narrow) if of else None
            columns = book.generators[book.heads[maker].generator].dz if of else 6
            top = (1 << (bits - 1)) - 1
            books = [book.add(Codebook(book.rng.integers(-top - 1, top + 1, (11, columns)), bits, maker))]
        return book.coded(books[0], shape, 0, narrow)

    return make


SOURCES: dict[str, Weights] = {
    "stored8": _stored(8),
    "stored4": _stored(4),
    "stored4_narrow": _stored(4, True),
    "stored2": _stored(2),
    "stored2_narrow": _stored(2, True),
    "dense": _dense(),
    "dense_narrow": _dense(True),
    "factorised": _factorised(),
    "factorised_narrow": _factorised(True),
    "factorised_shared_a": _factorised(share="a"),
    "factorised_shared_b": _factorised(share="b"),
    "tiled": _tiles("tiled"),
    "tiled_narrow": _tiles("tiled", True),
    "seeded": _tiles("seeded"),
    "seeded_narrow": _tiles("seeded", True),
    "codebook_stored": _codebook(8),
    "codebook_stored_narrow": _codebook(4, narrow=True),
    "codebook_stored2": _codebook(2),
    "codebook_made": _codebook(6, "tiled"),
    "codebook_made_seeded": _codebook(6, "seeded"),
    "codebook_made_narrow": _codebook(8, "tiled", True),
}
PLAIN = ("table", "mul", "mul_broadcast", "attend")  # behind the sources, whose seeds are their places
NAMES = tuple(f"{what}_{dimensions}d" for what in (*SOURCES, *PLAIN) for dimensions in (1, 2))


def _weight_rms(weights: Stored | Generated, heads: list) -> float:
    """About the root mean square of the weights, so that what they make uses int8."""
    head = None if isinstance(weights, Stored) else heads[weights.head]
    if head is not None and not (isinstance(head, Codebook) and head.of is None):
        return 4.0 if weights.narrow else 60.0
    values = weights.values if head is None else head.entries
    return max(float(np.sqrt((values.astype(float) ** 2).mean())), 1.0)


def _plain(kind: str, x: Tensor, emit: Callable, rng: Numbers) -> Tensor:
    """An operator without weights on tensor 1, which is `x`, and what it needs; returns its output."""
    same = replace(x, zero_point=-20)
    if kind == "table":  # any function at all, clamped
        emit("table", (1,), same, table=rng.integers(-128, 128, 256).astype(np.int8), act_min=-100, act_max=90)
        return same
    if kind == "mul":  # with itself turned round by a kernel
        emit("conv1x1", (1,), replace(x, zero_point=7), (x.c, x.c), x.c)
        emit("mul", (1, 2), same, mul=MulScalars(0x5A5A5A5A, -6))
        return same
    if kind == "mul_broadcast":  # squeeze and excite
        emit("avgpool", (1,), Tensor(1, 1, x.c, x.zero_point), window=Window((x.h, x.w)))
        emit("conv1x1", (2,), Tensor(1, 1, x.c, -128), (x.c, x.c), x.c)
        emit("mul", (1, 3), same, mul=MulScalars(0x7A5A5A5A, -5), act_max=101)
        return same
    emit("conv1x1", (1,), Tensor(x.h, x.w, 1, 3), (1, x.c), x.c)
    pooled = Tensor(1, 1, x.c, -100)
    emit("attend", (1, 2), pooled, attend=AttendScalars(0x66666666, 21, 200, 0x7FFFFFFF, -8))
    return pooled


def build(name: str) -> IntegerModel:
    """The golden network `name`: conv, then depthwise, conv1x1, add, conv1x1 and a pool with all kernels of one source, or an
    operator of PLAIN; then fc."""
    source, _, dimensions = name.rpartition("_")
    flat, number = dimensions == "1d", NAMES.index(name)
    book, make = Book(0x1234567 + 7919 * number), SOURCES[source if source in SOURCES else "stored8"]
    rng, ops = book.rng, []

    def emit(kind: str, inputs: tuple[int, ...], out: Tensor, shape: tuple[int, ...] = (), products: int = 0, **more) -> None:
        weights = requant = None
        if shape:
            weights = make(book, len(ops), shape)
            spread = products**0.5 * _weight_rms(weights, book.heads) * 70
            shift = int(np.floor(np.log2(60 / spread))) + 1
            count = 1 if len(ops) == 2 else out.c  # one operator is per tensor
            form = (number + len(ops)) % 3
            multipliers = (1 << 30) + (rng.integers(0, 256, count) << 22)
            multipliers += (0, 1, 0)[form] * (rng.integers(0, 64, count) << 16) + (0, 0, 1)[form] * rng.integers(
                0, 1 << 16, count
            )
            shifts = shift - rng.integers(0, 2, count)
            requant = Requant(multipliers, shifts, rng.integers(-int(spread) // 2, int(spread) // 2 + 1, out.c))
        ops.append(Op(f"{kind}{len(ops)}", kind, inputs, out, weights=weights, requant=requant, **more))

    x = Tensor(1, 14, 2, -7) if flat else Tensor(6, 5, 2, -7)
    first, kernel = (Tensor(1, 7, 4, -128), (1, 3)) if flat else (Tensor(3, 5, 4, -128), (3, 2))
    area = kernel[0] * kernel[1]
    pad = ((kernel[0] - 1) // 2, 1)
    window = Window(kernel, (1, 2) if flat else (2, 1), pad)
    emit("conv", (0,), first, (4, *kernel, 2), 2 * area, window=window)
    if source in PLAIN:
        last = _plain(source, first, emit, rng)
        emit("fc", (len(ops),), Tensor(1, 1, 3, 10), (3, last.size), last.size)
        return IntegerModel(x, tuple(ops), Info(0.05, 0.1, 0.5, 360.0, name, ("a", "b", "c")))
    emit("depthwise", (1,), first, (*kernel, 4), area, window=Window(kernel, (1, 1), pad))
    emit("conv1x1", (2,), Tensor(first.h, first.w, 4, 5), (4, 4), 4)
    emit("add", (1, 3), first, add=AddScalars(20, (1 << 30, 0x5A5A5A5A, 25000 << 16), (0, 0, -18)))
    emit("conv1x1", (4,), Tensor(first.h, first.w, 6, -100), (6, 4), 4)
    size = (1, 3) if flat else (2, 2)
    emit("maxpool", (5,), Tensor(*size, 6, -100), window=Window((1, 2) if flat else (2, 3), (1, 2)))
    emit("fc", (6,), Tensor(1, 1, 3, 10), (3, 6 * size[0] * size[1]), 6 * size[0] * size[1])
    info = Info(0.05, 0.1, 0.5, 360.0, name, ("a", "b", "c"))
    generators = book.generators if any(not isinstance(h, Codebook) for h in book.heads) else ()
    return IntegerModel(x, tuple(ops), info, generators, tuple(book.heads))


def windows(name: str) -> np.ndarray:
    """int8 windows (WINDOWS, H, W, C) of a golden image; the first is all -128."""
    t = build(name).input
    x = Numbers(0xC0FFEE + NAMES.index(name)).integers(-128, 128, (WINDOWS, t.h, t.w, t.c)).astype(np.int8)
    x[0] = -128
    return x


def text(array: np.ndarray) -> str:
    """int8 values in row-major order as base64."""
    return base64.b64encode(np.ascontiguousarray(array, np.int8).tobytes()).decode()


def expected(image: bytes, x: np.ndarray) -> dict:
    """Windows, the kernel of every operator that has one, and logits, by `reference`."""
    import reference
    from reference import synthesis

    model = reference.read(image)
    with_weights = [i for i, operator in enumerate(model.operators) if operator.linear is not None]
    return {
        "windows": {"shape": list(x.shape), "int8_base64": text(x)},
        "kernels": {
            str(i): {"shape": list(w.shape), "int8_base64": text(w)} for i in with_weights for w in [synthesis.weights(model, i)]
        },
        "logits": reference.run(model, x).tolist(),
    }


def files(name: str) -> dict[str, bytes]:
    """File name -> bytes of one golden image."""
    image = write(build(name))
    if len(image) >= SIZE_LIMIT:
        raise SystemExit(f"{name}: {len(image)} bytes are too many for a golden image")
    told = {"name": name, **expected(image, windows(name))}
    return {f"{name}.htpw": image, f"{name}.json": (json.dumps(told, indent=1) + "\n").encode()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files are")
    options = parser.parse_args(arguments)
    differ = []
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        for file, data in files(name).items():
            path = options.folder / file
            if not options.check:
                path.write_bytes(data)
            elif not path.exists() or path.read_bytes() != data:
                differ.append(file)
    known = {f"{name}.{ending}" for name in NAMES for ending in ("htpw", "json")}
    differ += sorted(p.name for p in options.folder.iterdir() if p.name not in known)
    for file in differ:
        print(f"differs or does not belong: {file}", file=sys.stderr)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
