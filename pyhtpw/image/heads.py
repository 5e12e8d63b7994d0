"""GENR and HEAD (docs/SPEC.md 4.5 and 4.6): one definition of each record, for writing and for reading.

A new kind of head is a class in `pyhtpw.image.integer`, a row there in `HEADS`, and a row of `KINDS` here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pyhtpw.errors import ImageError
from pyhtpw.image.fields import SHIFTS, Cursor, integers, pack_bits, put, signed_range, signed_width, whole
from pyhtpw.image.integer import HEADS, Codebook, Dense, Factorised, Generator, Head, Matrix, Seeded, Tiled, bits_bytes

GENERATORS_MAX, HEADS_MAX, LAYERS_MAX, WIDTH_MAX = 8, 64, 3, 1024
FIELD_WIDTHS = (4, 6, 8)  # of codes and of the weights of generators and heads
TABLE_WIDTHS = (8, 4, 2)  # of a codebook's stored table
MATRIX_HEADER = 7
DRAWN_MAX = 1 << 22  # weights drawn from one seed
OWN = 255  # in b_of, a_of, of: the matrix or table is this head's own
_INT32 = (-(1 << 31), (1 << 31) - 1)


@dataclass(frozen=True)
class Context:
    """What a head's record may refer to: all generators, and the heads before it."""

    where: str
    generators: tuple[Generator, ...]
    heads: tuple[Head, ...]

    def generator(self, index: int) -> Generator:
        """Generator `index`, or ImageError."""
        if not 0 <= index < len(self.generators):
            raise ImageError(f"{self.where}: generator is {index}, there are {len(self.generators)}")
        return self.generators[index]

    def earlier(self, name: str, index: int, *kinds: type) -> Any:
        """Earlier head `index` of one of `kinds`, or ImageError."""
        whole(self.where, name, index, 0, len(self.heads) - 1)
        if not isinstance(self.heads[index], kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ImageError(f"{self.where}: {name} is head {index}, a {type(self.heads[index]).__name__}, not a {wanted}")
        return self.heads[index]

    def own(self, name: str, index: int) -> Matrix:
        """Matrix "a" or "b" of factorised head `index`, which must be that head's own."""
        matrix = getattr(self.earlier(f"{name}_of", index, Factorised), name)
        if not isinstance(matrix, Matrix):
            raise ImageError(f"{self.where}: {name}_of is head {index}, which has no {name.upper()} of its own")
        return matrix


def one_of(where: str, name: str, value: int, allowed: Sequence[int]) -> int:
    """`value`, or ImageError if it is not among `allowed`."""
    if value not in allowed:
        raise ImageError(f"{where}: {name} is {value}, not one of {', '.join(map(str, allowed))}")
    return int(value)


# Matrices.


def matrix_bytes(matrix: Matrix) -> int:
    """Bytes of a matrix record."""
    rows, bias_bits = len(matrix.weights), signed_width(matrix.biases)
    return MATRIX_HEADER + bits_bytes(matrix.weights.size, matrix.bits) + bits_bytes(rows, bias_bits)


def _upper_half(where: str, multiplier: int) -> int:
    """u16 m of a Q31 multiplier whose low half must be 0."""
    if whole(where, "multiplier", multiplier, 0, (1 << 31) - 1) & 0xFFFF:
        raise ImageError(f"{where}: multiplier is {multiplier}, whose low 16 bits are not 0")
    return int(multiplier) >> 16


def write_matrix(where: str, matrix: Matrix, cols: int, rows_max: int = 65535) -> bytes:
    """A matrix record; `cols` is what its place asks for."""
    if not isinstance(matrix, Matrix):
        raise ImageError(f"{where}: is a {type(matrix).__name__}, not a Matrix")
    bits = one_of(where, "bits", matrix.bits, FIELD_WIDTHS)
    weights = integers(where, "weights", matrix.weights, (None, cols), *signed_range(bits))
    biases = integers(where, "biases", matrix.biases, (len(weights),), *_INT32)
    width = signed_width(biases)
    header = put(
        where,
        ("H", "rows", len(weights), 1, rows_max),
        ("B", "bits", bits),
        ("B", "bias_bits", width),
        ("b", "shift", matrix.shift, *SHIFTS),
        ("H", "multiplier", _upper_half(where, matrix.multiplier)),
    )
    return header + pack_bits(weights, bits) + pack_bits(biases, width)


def read_matrix(cursor: Cursor, where: str, cols: int, rows_max: int = 65535) -> Matrix:
    """The inverse of `write_matrix`."""
    rows, bits, bias_bits, shift, m = cursor.fields("HBBbH", where)
    whole(where, "rows", rows, 1, rows_max)
    one_of(where, "weight_bits", bits, FIELD_WIDTHS)
    whole(where, "bias_bits", bias_bits, 0, 32)
    whole(where, "shift", shift, *SHIFTS)
    whole(where, "multiplier", m, 0, 32767)
    weights = cursor.bits(rows * cols, bits, f"weights of {where}").reshape(rows, cols)
    return Matrix(weights, cursor.bits(rows, bias_bits, f"biases of {where}"), m << 16, shift, bits)


# Generators.


def write_generators(generators: Sequence[Generator]) -> list[bytes]:
    """GENR: the count, then one entry per generator; nothing if there are none."""
    if not generators:
        return []
    out = [put("GENR", ("B", "number of generators", len(generators), 1, GENERATORS_MAX))]
    for i, generator in enumerate(generators):
        where = f"generator {i}"
        data = put(
            where, ("B", "number of layers", len(generator.layers), 0, LAYERS_MAX), ("H", "dz", generator.dz, 1, WIDTH_MAX)
        )
        cols = generator.dz
        for j, layer in enumerate(generator.layers):
            data += write_matrix(f"{where}, layer {j}", layer, cols, WIDTH_MAX)
            cols = len(layer.weights)
        out.append(data)
    return out


def read_generators(cursor: Cursor) -> list[tuple[Generator, int]]:
    """Generators and the bytes of each entry."""
    (count,) = cursor.fields("B", "count")
    whole("GENR", "number of generators", count, 1, GENERATORS_MAX)
    out = []
    for i in range(count):
        where, start = f"generator {i}", cursor.place
        layers, dz = cursor.fields("BH", where)
        whole(where, "number of layers", layers, 0, LAYERS_MAX)
        cols, made = whole(where, "dz", dz, 1, WIDTH_MAX), []
        for j in range(layers):
            made.append(read_matrix(cursor, f"{where}, layer {j}", cols, WIDTH_MAX))
            cols = len(made[-1].weights)
        out.append((Generator(dz, tuple(made)), cursor.place - start))
    cursor.finish()
    return out


# Heads, kind by kind: what follows the bytes `kind` and `generator`.


def _write_matrix_head(head: Dense | Tiled, at: Context) -> bytes:
    return write_matrix(at.where, head.matrix, at.generator(head.generator).width)


def _read_dense(cursor: Cursor, at: Context, generator: int) -> Dense:
    return Dense(read_matrix(cursor, at.where, at.generator(generator).width), generator)


def _read_tiled(cursor: Cursor, at: Context, generator: int) -> Tiled:
    return Tiled(read_matrix(cursor, at.where, at.generator(generator).width), generator)


def _shared_b(at: Context, index: int, generator: int) -> Matrix:
    matrix = at.own("b", index)
    if at.earlier("b_of", index, Factorised).generator != generator:
        raise ImageError(f"{at.where}: b_of is head {index}, whose generator is another")
    return matrix


def _shared_a(at: Context, index: int, rank: int) -> Matrix:
    matrix = at.own("a", index)
    if matrix.weights.shape[1] != rank:
        raise ImageError(f"{at.where}: a_of is head {index}, whose A has {matrix.weights.shape[1]} columns, not {rank}")
    return matrix


def _write_factorised(head: Factorised, at: Context) -> bytes:
    b_of = a_of = OWN
    if isinstance(head.b, Matrix):
        b, data = head.b, write_matrix(f"{at.where}, B", head.b, at.generator(head.generator).width, WIDTH_MAX)
    else:
        b_of, b, data = head.b, _shared_b(at, head.b, head.generator), b""
    rank = len(b.weights)
    if isinstance(head.a, Matrix):
        data += write_matrix(f"{at.where}, A", head.a, rank)
    else:
        a_of, _ = head.a, _shared_a(at, head.a, rank)
    first = bytes([b_of, a_of])
    return first + put(at.where, ("H", "rank", rank, 1, WIDTH_MAX)) + data


def _read_factorised(cursor: Cursor, at: Context, generator: int) -> Factorised:
    b_of, a_of, rank = cursor.fields("BBH", at.where)
    whole(at.where, "rank", rank, 1, WIDTH_MAX)
    if b_of == OWN:
        b = matrix_b = read_matrix(cursor, f"{at.where}, B", at.generator(generator).width, WIDTH_MAX)
    else:
        b, matrix_b = b_of, _shared_b(at, b_of, generator)
    if len(matrix_b.weights) != rank:
        raise ImageError(f"{at.where}: B has {len(matrix_b.weights)} rows, not {rank}")
    if a_of == OWN:
        return Factorised(b, read_matrix(cursor, f"{at.where}, A", rank), generator)
    _shared_a(at, a_of, rank)
    return Factorised(b, a_of, generator)


def _tile_max(at: Context, generator: int) -> int:
    return min(65535, DRAWN_MAX // at.generator(generator).width)


def _write_seeded(head: Seeded, at: Context) -> bytes:
    return put(
        at.where,
        ("H", "tile", head.tile, 1, _tile_max(at, head.generator)),
        ("b", "shift", head.shift, *SHIFTS),
        ("H", "multiplier", _upper_half(at.where, head.multiplier)),
        ("I", "seed", head.seed, 1, (1 << 32) - 1),
    )


def _read_seeded(cursor: Cursor, at: Context, generator: int) -> Seeded:
    tile, shift, m, seed = cursor.fields("HbHI", at.where)
    whole(at.where, "tile", tile, 1, _tile_max(at, generator))
    whole(at.where, "shift", shift, *SHIFTS)
    whole(at.where, "multiplier", m, 0, 32767)
    whole(at.where, "seed", seed, 1, (1 << 32) - 1)
    return Seeded(tile, seed, m << 16, shift, generator)


def _write_codebook(head: Codebook, at: Context) -> bytes:
    if head.of is None:
        bits = one_of(at.where, "bits of the table", head.bits, TABLE_WIDTHS)
        table = integers(at.where, "entries", head.entries, (None, None), *signed_range(bits))
        rest = put(at.where, ("H", "tile", table.shape[1], 1, 65535), ("B", "bits", bits))
    else:
        maker = at.earlier("of", head.of, Tiled, Seeded)
        bits = one_of(at.where, "width of the codes", head.bits, FIELD_WIDTHS)
        dz = at.generator(maker.generator).dz
        table = integers(at.where, "entries", head.entries, (None, dz), *signed_range(bits))
        rest = put(at.where, ("B", "width", bits))
    first = bytes([OWN if head.of is None else head.of])
    return first + put(at.where, ("H", "number of entries", len(table), 1, 256)) + rest + pack_bits(table, bits)


def _read_codebook(cursor: Cursor, at: Context, generator: int) -> Codebook:
    of, entries = cursor.fields("BH", at.where)
    whole(at.where, "number of entries", entries, 1, 256)
    if of == OWN:
        whole(at.where, "generator", generator, 0, 0)
        cols, bits = cursor.fields("HB", at.where)
        whole(at.where, "tile", cols, 1, 65535)
        one_of(at.where, "bits of the table", bits, TABLE_WIDTHS)
    else:
        whole(at.where, "generator", generator, *[at.earlier("of", of, Tiled, Seeded).generator] * 2)
        cols = at.generator(generator).dz
        (bits,) = cursor.fields("B", at.where)
        one_of(at.where, "width of the codes", bits, FIELD_WIDTHS)
    table = cursor.bits(entries * cols, bits, f"entries of {at.where}").reshape(entries, cols)
    return Codebook(table, bits, None if of == OWN else of)


@dataclass(frozen=True)
class HeadKind:
    """One kind of head: its source's name, its record, and what the bill counts of it.

    What takes a head takes one of this kind. `tensors`: its own weight tensors as (values, bits), those of Eq. 4 of the paper.
    """

    name: str
    write: Callable[[Any, Context], bytes]
    read: Callable[[Cursor, Context, int], Head]
    tensors: Callable[[Any], list[tuple[int, int]]]


def _sizes(*matrices: object) -> list[tuple[int, int]]:
    return [(m.weights.size, m.bits) for m in matrices if isinstance(m, Matrix)]


KINDS: dict[type, HeadKind] = {
    Dense: HeadKind("dense", _write_matrix_head, _read_dense, lambda h: _sizes(h.matrix)),
    Factorised: HeadKind("factorised", _write_factorised, _read_factorised, lambda h: _sizes(h.b, h.a)),
    Tiled: HeadKind("tiled", _write_matrix_head, _read_tiled, lambda h: _sizes(h.matrix)),
    Seeded: HeadKind("seeded", _write_seeded, _read_seeded, lambda h: []),
    Codebook: HeadKind("codebook", _write_codebook, _read_codebook, lambda h: [(h.entries.size, h.bits)]),
}
_NUMBERS = {HEADS[kind.name]: kind for kind in KINDS.values()}


def kind_of(head: Head) -> HeadKind:
    """The row of a head, or ImageError for what is no head."""
    if type(head) not in KINDS:
        raise ImageError(f"a {type(head).__name__} is not a head")
    return KINDS[type(head)]


def _generator(head: Head, at: Context) -> int:
    """The index of a head's generator; 0 for a codebook of a stored table."""
    if isinstance(head, Codebook):
        return 0 if head.of is None else at.earlier("of", head.of, Tiled, Seeded).generator
    return head.generator


def write_heads(heads: Sequence[Head], generators: Sequence[Generator]) -> list[bytes]:
    """HEAD: the count, then one entry per head; nothing if there are none."""
    if not heads:
        return []
    out = [put("HEAD", ("B", "number of heads", len(heads), 1, HEADS_MAX))]
    for i, head in enumerate(heads):
        kind = kind_of(head)
        at = Context(f"head {i} ({kind.name})", tuple(generators), tuple(heads[:i]))
        out.append(
            bytes([HEADS[kind.name]]) + put(at.where, ("B", "generator", _generator(head, at))) + kind.write(head, at)
        )
    return out


def read_heads(cursor: Cursor, generators: Sequence[Generator]) -> list[tuple[Head, int]]:
    """Heads and the bytes of each entry."""
    (count,) = cursor.fields("B", "count")
    whole("HEAD", "number of heads", count, 1, HEADS_MAX)
    out: list[tuple[Head, int]] = []
    for i in range(count):
        start = cursor.place
        number, generator = cursor.fields("BB", f"head {i}")
        if number not in _NUMBERS:
            raise ImageError(f"head {i}: kind {number} is unknown")
        kind = _NUMBERS[number]
        at = Context(f"head {i} ({kind.name})", tuple(generators), tuple(head for head, _ in out))
        if kind.name != "codebook":
            at.generator(generator)
        out.append((kind.read(cursor, at, generator), cursor.place - start))
    cursor.finish()
    return out


# What a head asks of the operators that use it.


def dz(head: Head, generators: Sequence[Generator]) -> int:
    """Length of a code; 0 for a codebook, whose operators have ids."""
    return 0 if isinstance(head, Codebook) else generators[head.generator].dz


def made(head: Head, heads: Sequence[Any]) -> int:
    """Weights that one code or id makes."""
    if isinstance(head, Factorised):
        matrix = head.a if isinstance(head.a, Matrix) else heads[head.a].a
        return len(matrix.weights)
    if isinstance(head, Codebook):
        return head.entries.shape[1] if head.of is None else made(heads[head.of], heads)
    return head.tile if isinstance(head, Seeded) else len(head.matrix.weights)


def tiles(where: str, head: Head, heads: Sequence[Head], weights: int) -> int:
    """Number of codes or ids of an operator with `weights` weights; ImageError if the head does not make that many."""
    one = made(head, heads)
    if isinstance(head, Dense | Factorised):
        if one != weights:
            raise ImageError(f"{where}: the head makes {one} weights, the kernel has {weights}")
        return 1
    return -(-weights // one)


def code_field(head: Head, generators: Sequence[Generator], bits: int) -> tuple[int, int]:
    """(values per tile, bits of each) of an operator's codes."""
    if isinstance(head, Codebook):
        return 1, (len(head.entries) - 1).bit_length()
    return dz(head, generators), bits
