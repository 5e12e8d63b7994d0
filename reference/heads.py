"""Generators, heads and codes: how weights are made from a few bytes.

A **code** goes through a **generator** (a micro-MLP) and a **head**, which makes a stretch of a
kernel: all of it, or one tile. Each kind of head is one class below, with three things to say:
how its entry in HEAD is read (``parse``), how an operator's codes are read (``read_codes``), and
how weights are made from them (``make``). ``HEADS`` lists the kinds; a new kind is a class and a
line there.

Source: sections 4.5 to 4.7 and 5 of the specification.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .kernels import requantise
from .sections import Cursor, require, require_in

GENERATORS_MAX = 8
LAYERS_MAX = 3
WIDTH_MAX = 1024  # dz, rows of a layer, rows of B
HEADS_MAX = 64
ENTRIES_MAX = 256
DRAWN_MAX = 1 << 22  # weights drawn from one seed
OWN = 255  # "not shared" in b_of, a_of and of

MATRIX_WIDTHS = (4, 6, 8)
TABLE_WIDTHS = (8, 4, 2)
MULTIPLIER_MAX = 32767
SHIFT_MIN, SHIFT_MAX = -31, 30
SUM_LIMIT = 1 << 30

HIDDEN_MAX = 127
WEIGHT_MAX = 127
NARROW_MAX = 7


def require_bound(where: str, terms: int, input_max: int, bias_max: int, shift: int) -> None:
    """Require that no sum of ``terms`` products plus a bias can leave int32 (section 7)."""
    bound = (terms * input_max * 128 + bias_max) << max(shift, 0)
    require(bound < SUM_LIMIT, f"{where}: sums may reach {bound}, the limit is 2^30")


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix with its requantisation: the building block of generators and heads.

    ``weights`` is int32 (rows, cols), ``bias`` int32 (rows,), ``multiplier`` the Q31 multiplier,
    ``shift`` in [-31, 30].
    """

    weights: np.ndarray
    bias: np.ndarray
    multiplier: int
    shift: int

    @property
    def rows(self) -> int:
        return self.weights.shape[0]

    @property
    def cols(self) -> int:
        return self.weights.shape[1]

    def apply(self, x: np.ndarray, low: int, high: int) -> np.ndarray:
        """Multiply, requantise and clamp.

        Shapes   x int64 (codes, cols); returns int64 (codes, rows)
        Range    results in [low, high]
        Rounding ``requantise``, once per result
        Source   section 5, "synthesis of a tile"
        """
        sums = x @ self.weights.T.astype(np.int64) + self.bias
        scaled = requantise(sums, self.multiplier, self.shift)
        return np.minimum(np.maximum(scaled, low), high).astype(np.int64)


def read_scaling(cursor: Cursor, where: str) -> tuple[int, int]:
    """Read ``i8 shift, u16 m`` of a matrix; return the shift and the Q31 multiplier (section 2)."""
    shift, m = cursor.fields("bH", where)
    require_in(where, "shift", shift, SHIFT_MIN, SHIFT_MAX)
    require_in(where, "multiplier", m, 0, MULTIPLIER_MAX)
    return shift, m << 16


def read_matrix(cursor: Cursor, where: str, cols: int, rows_max: int = 65535) -> Matrix:
    """Read a matrix record whose columns are told by its place (section 4.5)."""
    rows, weight_bits, bias_bits = cursor.fields("HBB", where)
    require_in(where, "rows", rows, 1, rows_max)
    require(weight_bits in MATRIX_WIDTHS, f"{where}: weight_bits {weight_bits} is not 4, 6 or 8")
    require_in(where, "bias_bits", bias_bits, 0, 32)
    shift, multiplier = read_scaling(cursor, where)
    weights = cursor.bits(rows * cols, weight_bits, True, f"weights of {where}")
    bias = cursor.bits(rows, bias_bits, True, f"biases of {where}")
    require_bound(where, cols, 128, int(np.abs(bias).max()), shift)
    return Matrix(weights.astype(np.int32).reshape(rows, cols), bias.astype(np.int32), multiplier, shift)


@dataclass(frozen=True, eq=False)
class Generator:
    """A micro-MLP: codes of length ``dz`` go through ``layers``, of which there may be none."""

    dz: int
    layers: tuple[Matrix, ...]

    @property
    def width(self) -> int:
        """What the specification calls d: the length of what this makes from one code."""
        return self.layers[-1].rows if self.layers else self.dz

    def make(self, codes: np.ndarray) -> np.ndarray:
        """Return h for each code: int32 (codes, dz) to int64 (codes, width).

        In [0, 127] behind a layer; without layers h is the code itself.
        """
        h = codes.astype(np.int64)
        for layer in self.layers:
            h = layer.apply(h, 0, HIDDEN_MAX)
        return h


def read_generators(cursor: Cursor) -> tuple[Generator, ...]:
    """Read GENR (section 4.5); empty is none."""
    if cursor.empty:
        return ()
    (count,) = cursor.fields("B", "header")
    require_in("GENR", "number of generators", count, 1, GENERATORS_MAX)
    generators = []
    for index in range(count):
        where = f"GENR {index}"
        layer_count, dz = cursor.fields("BH", where)
        require_in(where, "number of layers", layer_count, 0, LAYERS_MAX)
        require_in(where, "dz", dz, 1, WIDTH_MAX)
        layers: list[Matrix] = []
        for number in range(layer_count):
            cols = layers[-1].rows if layers else dz
            layers.append(read_matrix(cursor, f"{where} layer {number}", cols, WIDTH_MAX))
        generators.append(Generator(dz, tuple(layers)))
    cursor.finish()
    return tuple(generators)


@dataclass(frozen=True)
class Entry:
    """An entry of HEAD while it is read: where it stands, and what it may refer to."""

    where: str
    cursor: Cursor
    number: int  # of the generator
    generator: Generator | None  # None for a codebook in an image without generators
    earlier: tuple[Head, ...]

    def refer(self, name: str, index: int, kinds: tuple[type, ...]) -> Head:
        """Return the earlier head ``index``, which must be one of ``kinds``."""
        require(index < len(self.earlier), f"{self.where}: {name} {index} is not an earlier head")
        head = self.earlier[index]
        require(isinstance(head, kinds), f"{self.where}: {name} {index} is a {head.name} head")
        return head


class Head(ABC):
    """What every kind of head can do.

    ``name`` is for messages. ``whole`` says that one code makes the whole kernel, whose number
    of weights must then be ``rows``; otherwise a kernel is made of tiles of ``rows`` weights and
    the last is cut off. ``coded`` says that operators have codes, of a width given in their
    records. ``generator`` is None if there are no codes at all.
    """

    name: str
    whole = False
    coded = True
    may_be_narrow = True
    generator: Generator | None

    @classmethod
    @abstractmethod
    def parse(cls, entry: Entry) -> Head:
        """Read the rest of an entry, behind kind and generator (section 4.6)."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """Weights that one code makes."""

    @abstractmethod
    def make(self, codes: np.ndarray, limit: int) -> np.ndarray:
        """Return the weights of each code: int32 as read by ``read_codes`` to int64 (tiles, rows).

        ``limit`` is 7 for a narrow kernel, else 127: what is made lies in [-limit, limit].
        """

    def read_codes(self, cursor: Cursor, tiles: int, width: int, what: str) -> np.ndarray:
        """Read an operator's part of CODE: int32 (tiles, dz), or what ``make`` wants (4.7)."""
        codes = cursor.bits(tiles * self.generator.dz, width, True, what)
        return codes.astype(np.int32).reshape(tiles, self.generator.dz)

    def tiles(self, number: int) -> int:
        """Return how many codes make a kernel of ``number`` weights."""
        return 1 if self.whole else -(-number // self.rows)


class OneMatrix(Head):
    """What heads with a single ``matrix`` (rows, d) have in common."""

    generator: Generator
    matrix: Matrix

    @property
    def rows(self) -> int:
        return self.matrix.rows

    def make(self, codes: np.ndarray, limit: int) -> np.ndarray:
        return self.matrix.apply(self.generator.make(codes), -limit, limit)


@dataclass(frozen=True, eq=False)
class Dense(OneMatrix):
    """One matrix makes the whole kernel (Eq. 2)."""

    name = "dense"
    whole = True
    generator: Generator
    matrix: Matrix  # (n, d)

    @classmethod
    def parse(cls, entry: Entry) -> Dense:
        return cls(entry.generator, read_matrix(entry.cursor, entry.where, entry.generator.width))


@dataclass(frozen=True, eq=False)
class Factorised(Head):
    """Two matrices, either of which an earlier head may lend, make the whole kernel (Eq. 3)."""

    name = "factorised"
    whole = True
    generator: Generator
    b: Matrix  # (r, d)
    a: Matrix  # (n, r)
    owns_b: bool
    owns_a: bool

    @classmethod
    def parse(cls, entry: Entry) -> Factorised:
        b_of, a_of, rank = entry.cursor.fields("BBH", entry.where)
        require_in(entry.where, "r", rank, 1, WIDTH_MAX)
        if b_of == OWN:
            b = read_matrix(entry.cursor, f"{entry.where} B", entry.generator.width, WIDTH_MAX)
        else:
            lender = entry.refer("b_of", b_of, (Factorised,))
            require(lender.owns_b, f"{entry.where}: b_of {b_of} does not hold its own B")
            require(lender.generator is entry.generator, f"{entry.where}: b_of {b_of} has another generator")
            b = lender.b
        require(b.rows == rank, f"{entry.where}: B has {b.rows} rows, r is {rank}")
        if a_of == OWN:
            a = read_matrix(entry.cursor, f"{entry.where} A", b.rows)
        else:
            lender = entry.refer("a_of", a_of, (Factorised,))
            require(lender.owns_a, f"{entry.where}: a_of {a_of} does not hold its own A")
            a = lender.a
            require(a.cols == rank, f"{entry.where}: A has {a.cols} columns, r is {rank}")
        return cls(entry.generator, b, a, b_of == OWN, a_of == OWN)

    @property
    def rows(self) -> int:
        return self.a.rows

    def make(self, codes: np.ndarray, limit: int) -> np.ndarray:
        inner = self.b.apply(self.generator.make(codes), -WEIGHT_MAX, WEIGHT_MAX)
        return self.a.apply(inner, -limit, limit)


@dataclass(frozen=True, eq=False)
class Tiled(OneMatrix):
    """A matrix makes one tile."""

    name = "tiled"
    generator: Generator
    matrix: Matrix  # (tile, d)

    @classmethod
    def parse(cls, entry: Entry) -> Tiled:
        return cls(entry.generator, read_matrix(entry.cursor, entry.where, entry.generator.width))


@dataclass(frozen=True, eq=False)
class Seeded(OneMatrix):
    """A matrix that is drawn from a seed makes one tile."""

    name = "seeded"
    generator: Generator
    tile: int
    shift: int
    multiplier: int
    seed: int

    @classmethod
    def parse(cls, entry: Entry) -> Seeded:
        (tile,) = entry.cursor.fields("H", entry.where)
        require_in(entry.where, "tile", tile, 1, DRAWN_MAX // entry.generator.width)
        shift, multiplier = read_scaling(entry.cursor, entry.where)
        (seed,) = entry.cursor.fields("I", entry.where)
        require(seed != 0, f"{entry.where}: seed must not be 0")
        require_bound(entry.where, entry.generator.width, 128, 0, shift)
        return cls(entry.generator, tile, shift, multiplier, seed)

    @property
    def rows(self) -> int:
        return self.tile

    @cached_property
    def matrix(self) -> Matrix:
        """H (tile, d), drawn at first use."""
        weights = draw(self.seed, self.tile * self.generator.width).astype(np.int32)
        weights = weights.reshape(self.tile, self.generator.width)
        return Matrix(weights, np.zeros(self.tile, np.int32), self.multiplier, self.shift)


@dataclass(frozen=True, eq=False)
class Codebook(Head):
    """A tile is one of at most 256 entries, stored or made by an earlier head.

    Either ``table`` int32 (entries, tile) of ``table_bits`` bits is there, or ``maker`` and
    ``entry_codes`` int32 (entries, dz) are.
    """

    name = "codebook"
    coded = False
    generator = None
    entries: int
    table: np.ndarray | None = None
    table_bits: int = 0
    maker: Head | None = None
    entry_codes: np.ndarray | None = None

    @classmethod
    def parse(cls, entry: Entry) -> Codebook:
        cursor, where = entry.cursor, entry.where
        of, entries = cursor.fields("BH", where)
        require_in(where, "entries", entries, 1, ENTRIES_MAX)
        if of == OWN:
            require(entry.number == 0, f"{where}: generator of a codebook with a table must be 0, not {entry.number}")
            tile, bits = cursor.fields("HB", where)
            require(tile >= 1, f"{where}: tile must be at least 1")
            require(bits in TABLE_WIDTHS, f"{where}: bits {bits} is not 8, 4 or 2")
            table = cursor.bits(entries * tile, bits, True, f"table of {where}")
            return cls(entries, table.astype(np.int32).reshape(entries, tile), bits)
        maker = entry.refer("of", of, (Tiled, Seeded))
        require(maker.generator is entry.generator, f"{where}: of {of} has another generator")
        (width,) = cursor.fields("B", where)
        require(width in MATRIX_WIDTHS, f"{where}: width {width} is not 4, 6 or 8")
        codes = maker.read_codes(cursor, entries, width, f"codes of {where}")
        return cls(entries, maker=maker, entry_codes=codes)

    @property
    def rows(self) -> int:
        return self.table.shape[1] if self.maker is None else self.maker.rows

    @property
    def may_be_narrow(self) -> bool:
        """A stored table of more than 4 bits does not fit into narrow kernels."""
        return self.maker is not None or self.table_bits <= 4

    def read_codes(self, cursor: Cursor, tiles: int, width: int, what: str) -> np.ndarray:
        """Read ids: int32 (tiles,). ``width`` is that of an operator's record, always 0 here."""
        ids = cursor.bits(tiles, (self.entries - 1).bit_length(), False, what)
        require(int(ids.max()) < self.entries, f"{cursor.name}: {what}: id {ids.max()} of {self.entries} entries")
        return ids.astype(np.int32)

    def make(self, codes: np.ndarray, limit: int) -> np.ndarray:
        """As ``Head.make``; rows of a stored table are taken as they are, ``limit`` or not."""
        if self.maker is None:
            return self.table[codes].astype(np.int64)
        return self.maker.make(self.entry_codes, limit)[codes]


HEADS: dict[int, type[Head]] = {3: Dense, 4: Factorised, 5: Tiled, 6: Seeded, 7: Codebook}


def read_heads(cursor: Cursor, generators: tuple[Generator, ...]) -> tuple[Head, ...]:
    """Read HEAD (section 4.6); empty is none."""
    if cursor.empty:
        return ()
    (count,) = cursor.fields("B", "header")
    require_in("HEAD", "number of heads", count, 1, HEADS_MAX)
    heads: list[Head] = []
    for index in range(count):
        where = f"HEAD {index}"
        kind, number = cursor.fields("BB", where)
        require(kind in HEADS, f"{where}: kind {kind} is unknown")
        generator = None
        if HEADS[kind] is not Codebook or generators:
            require(number < len(generators), f"{where}: generator {number} does not exist")
            generator = generators[number]
        heads.append(HEADS[kind].parse(Entry(where, cursor, number, generator, tuple(heads))))
    cursor.finish()
    return tuple(heads)


def draw(seed: int, count: int) -> np.ndarray:
    """Draw weights from xorshift32 (section 5, "seeded matrix").

    Parameters
    ----------
    seed : int
        The state before the first step, 1..2^32 - 1.
    count : int
        Number of weights; what is left of the last state is dropped.

    Returns
    -------
    ndarray of int8, shape (count,)
        The bytes of each new state, lowest first.
    """
    states = np.empty(-(-count // 4), "<u4")
    s = seed
    for index in range(states.size):
        s ^= s << 13 & 0xFFFFFFFF
        s ^= s >> 17
        s ^= s << 5 & 0xFFFFFFFF
        states[index] = s
    return states.view(np.int8)[:count]
