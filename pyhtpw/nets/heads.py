"""Where kernels come from: head specifications, and the generators and heads that the specifications of a graph add
up to.

A specification is one line of text, ``kind`` or ``kind:key=value,key=value,flag``:

==============  ====================================================================================================
``stored``      ``bits`` 8, 4 or 2; flags ``narrow`` (run as packed 4-bit weights) and ``per_tensor``; ``rule`` of 2 bits: best
                (-2 to 1, the least squared error), or ternary, where |w| is over 0.7 of the largest (max) or mean (mean) |w|
``dense``       Eq. 2, one code and one matrix (n, d) per kernel; flag ``published`` (see below)
``factorised``  Eq. 3, ``rank``; ``share`` = b (one B for all layers), a (one A for kernels of equal size) or none
``tiled``       one matrix (``tile``, d) for all tiles of all kernels, a code per tile
``seeded``      tiled, with a matrix drawn from ``seed``
``codebook``    tiles pick one of ``entries``; table stored at ``bits`` (8, 4, 2) or ``of=generated``, by a tiled head
==============  ====================================================================================================

All but ``stored`` (and a codebook of a stored table) have a generator: codes of ``dz`` integers of ``code_bits``,
then the ``hidden`` layers ("16", "16+16", up to three; 0 for none), both it and the head's matrices in
``generator_bits`` and ``head_bits``.

Kernels of one ``group`` share a generator, and those whose specifications also agree in everything share a head.
Without ``group`` the whole specification takes its place: what is written the same is shared. The matrices of dense
and factorised heads that belong to one kernel are never shared.

``published`` is the form that the published code has: LayerNorm in front of the ReLU of every hidden layer but the last,
which has no bias (it is the first of two layers of the published head), and kernels `BOUND` * tanh of what the matrix
makes.  An image knows neither; both fold away where the generator has one code (`pyhtpw.quant.fold`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import prod

from pyhtpw.errors import ConfigError

KINDS = ("stored", "dense", "factorised", "tiled", "seeded", "codebook")
MAX_GENERATORS, MAX_HEADS = 8, 64  # docs/SPEC.md 4.5, 4.6
BOUND = 0.05
"""Largest weight of a published kernel."""
DEFAULT_TILE = {"tiled": 32, "seeded": 32, "codebook": 16}

_GENERATOR = ("dz", "hidden", "code_bits", "generator_bits")
_KEYS = {
    "stored": ("bits", "rule", "narrow", "per_tensor"),
    "dense": (*_GENERATOR, "head_bits", "narrow", "published", "group"),
    "factorised": (*_GENERATOR, "head_bits", "rank", "share", "narrow", "group"),
    "tiled": ("tile", *_GENERATOR, "head_bits", "narrow", "group"),
    "seeded": ("tile", *_GENERATOR, "seed", "narrow", "group"),
    "codebook": ("entries", "tile", "of", "bits", *_GENERATOR, "head_bits", "narrow", "group"),
}
# (dz, hidden) of a kind whose specification says nothing; a seeded matrix wants more numbers per tile, a hidden layer
# gives it nothing
_DEFAULTS = {
    "dense": (4, (12,)),
    "factorised": (4, (12,)),
    "tiled": (4, (16,)),
    "seeded": (8, ()),
    "codebook": (4, (16,)),
}
_RANGES = {
    "dz": (1, 1024),
    "tile": (1, 65535),
    "rank": (1, 1024),
    "entries": (1, 256),
    "seed": (1, 2**32 - 1),
}
_CHOICES = {
    "bits": (8, 4, 2),
    "code_bits": (4, 6, 8),
    "head_bits": (4, 6, 8),
    "generator_bits": (4, 6, 8),
    "share": ("b", "a", "none"),
    "of": ("stored", "generated"),
    "rule": ("best", "max", "mean"),
}
_FLAGS = ("narrow", "per_tensor", "published")


@dataclass(frozen=True)
class HeadSpec:
    """Where a kernel comes from; see the module's text for what each field means to which kind.

    ``tile`` 0 stands for the default, which `resolved` puts in: the taps of a depthwise kernel (a tile per filter),
    else `DEFAULT_TILE`. ``dz`` 0 and ``hidden`` None stand for the kind's own. Raises ConfigError for a field out of
    range or of no use to the kind.
    """

    kind: str = "stored"
    bits: int = 8
    tile: int = 0
    dz: int = 0
    hidden: tuple[int, ...] | None = None
    code_bits: int = 4
    head_bits: int = 8
    generator_bits: int = 8
    rank: int = 4
    share: str = "b"
    seed: int = 1
    entries: int = 64
    of: str = "stored"
    narrow: bool = False
    per_tensor: bool = False
    group: str = ""
    published: bool = False
    rule: str = "best"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"unknown head {self.kind!r}; choose one of {', '.join(KINDS)}")
        keys = self.keys
        dz, hidden = _DEFAULTS[self.kind] if "dz" in keys else (0, ())
        object.__setattr__(self, "dz", self.dz or dz)
        object.__setattr__(self, "hidden", hidden if self.hidden is None else tuple(self.hidden))
        for entry in fields(self):
            name, value = entry.name, getattr(self, entry.name)
            if name in keys:
                self._check(name, value)
            elif name not in ("kind", "of") and value not in (entry.default, dz, hidden):
                raise self._fail(f"has no key {name!r}{self._of()}; its keys are {', '.join(keys)}")
        if self.kind == "codebook" and self.of == "stored" and self.narrow and self.bits == 8:
            raise self._fail("narrow kernels take 4-bit values; set bits to 4 or 2")
        if self.rule != "best" and self.bits != 2:
            raise self._fail(f"rule {self.rule} makes ternary kernels; set bits to 2")
        if self.published and len(self.hidden) < 2:
            raise self._fail("published has its own last layer; give two or three hidden ones, like 96+96+96")
        if self.kind == "stored" and self.narrow and self.bits == 8:
            raise self._fail("narrow kernels take 4-bit values; set bits to 4 or 2")

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the fields that mean something to this kind."""
        without = ()
        if self.kind == "codebook":
            without = ("bits",) if self.of == "generated" else (*_GENERATOR, "head_bits")
        return tuple(key for key in _KEYS[self.kind] if key not in without)

    def _of(self) -> str:
        return f" with of={self.of}" if self.kind == "codebook" else ""

    def _fail(self, problem: str) -> ConfigError:
        return ConfigError(f"head {self.kind!r} {problem}")

    def _check(self, name: str, value: object) -> None:
        if name in _RANGES:
            low, high = _RANGES[name]
            low = 0 if name == "tile" else low  # 0 is the default
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise self._fail(f"{name} is {value!r}; give a whole number from {_RANGES[name][0]} to {high}")
        elif name in _CHOICES:
            if isinstance(value, bool) or value not in _CHOICES[name]:
                raise self._fail(f"{name} is {value!r}; choose one of {', '.join(map(str, _CHOICES[name]))}")
        elif name in _FLAGS:
            if not isinstance(value, bool):
                raise self._fail(f"{name} is {value!r}; it is a flag: name it or leave it out")
        elif name == "hidden":
            whole = all(isinstance(h, int) and not isinstance(h, bool) and 1 <= h <= 1024 for h in self.hidden)
            if len(self.hidden) > 3 or not whole:
                raise self._fail(
                    f"hidden is {'+'.join(map(str, self.hidden))!r}; give up to three layers of 1 to 1024 units, "
                    "like 16 or 16+16, or 0"
                )
        elif name == "group" and (not isinstance(value, str) or any(c in value for c in ",=: ")):
            raise self._fail(f"group is {value!r}; give a name without commas, colons, blanks and equal signs")

    # -- text ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def parse(text: str | HeadSpec) -> HeadSpec:
        """The specification that ``text`` stands for; ConfigError naming the bad key, the known ones or the range."""
        if isinstance(text, HeadSpec):
            return text
        if not isinstance(text, str):
            raise ConfigError(f"head specification is {text!r}; give text like 'tiled:tile=32,dz=4'")
        kind, _, rest = (part.strip() for part in text.partition(":"))
        if kind not in KINDS:
            raise ConfigError(f"unknown head {kind!r}; choose one of {', '.join(KINDS)}")
        values: dict[str, object] = {}
        for item in filter(None, (item.strip() for item in rest.split(","))):
            key, equals, value = (part.strip() for part in item.partition("="))
            if key not in _KEYS[kind]:
                raise ConfigError(f"head {kind!r} has no key {key!r}; its keys are {', '.join(_KEYS[kind])}")
            if key in values:
                raise ConfigError(f"head {kind!r} gives {key} twice; leave one out")
            values[key] = _value(kind, key, value, bool(equals))
        for key in ("dz", "tile"):
            if values.get(key) == 0:  # which stands for the default only where nobody has written it
                raise ConfigError(f"head {kind!r} {key} is 0; give a whole number from 1 to {_RANGES[key][1]}")
        spec = HeadSpec(kind, **values)
        for key in values:
            if key not in spec.keys:
                raise spec._fail(f"has no key {key!r}{spec._of()}; its keys are {', '.join(spec.keys)}")
        return spec

    def text(self) -> str:
        """The shortest text that `parse` reads back as this specification; its keys in a fixed order."""
        default = HeadSpec(self.kind, of=self.of) if self.kind == "codebook" else HeadSpec(self.kind)
        parts = ["of=generated"] if self.of == "generated" else []
        for key in self.keys:
            value = getattr(self, key)
            if value == getattr(default, key):
                continue
            if key in _FLAGS:
                parts.append(key)
            else:
                parts.append(f"{key}={('+'.join(map(str, value)) or '0') if key == 'hidden' else value}")
        return self.kind + (":" + ",".join(parts) if parts else "")

    def __str__(self) -> str:
        return self.text()

    # -- meaning ------------------------------------------------------------------------------------------------------

    @property
    def generated(self) -> bool:
        """Whether kernels are made from something shared, rather than stored one by one."""
        return self.kind != "stored"

    @property
    def has_generator(self) -> bool:
        """Whether codes and a generator stand behind it."""
        return self.generated and (self.kind != "codebook" or self.of == "generated")

    @property
    def tiles(self) -> bool:
        """Whether kernels are made tile by tile."""
        return self.kind in DEFAULT_TILE

    @property
    def width(self) -> int:
        """d: elements of what the generator makes."""
        return self.hidden[-1] if self.hidden else self.dz

    def resolved(self, op: str, shape: Sequence[int]) -> HeadSpec:
        """With the default tile of a kernel of ``op`` and logical ``shape`` in place."""
        if not self.tiles or self.tile:
            return self
        return replace(self, tile=shape[0] if op == "depthwise" else DEFAULT_TILE[self.kind])


def _value(kind: str, key: str, text: str, given: bool) -> object:
    if key in _FLAGS:
        if given:
            raise ConfigError(f"head {kind!r}: {key} is a flag; write it without '='")
        return True
    if key in ("share", "of", "group", "rule"):
        return text
    try:
        if key == "hidden":
            layers = tuple(int(part) for part in text.split("+")) if text else ()
            return () if layers == (0,) else layers
        return int(text, 0)
    except ValueError:
        raise ConfigError(f"head {kind!r}: {key} is {text!r}; give a whole number") from None


# -- what the specifications of a graph add up to ----------------------------------------------------------------------


@dataclass(frozen=True)
class GeneratorPlan:
    """A generator: ``name`` starts its parameters' names; ``sources`` are the arrays of codes (their names) and rows,
    in order."""

    name: str
    dz: int
    hidden: tuple[int, ...]
    bits: int
    code_bits: int
    sources: tuple[tuple[str, int], ...]
    published: bool = False

    @property
    def width(self) -> int:
        """d: elements of what it makes."""
        return self.hidden[-1] if self.hidden else self.dz

    def is_plain(self, layer: int) -> bool:
        """Whether a layer is a matrix alone, without bias and LayerNorm: the last of a published generator."""
        return self.published and layer + 1 == len(self.hidden)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its own parameters."""
        found: dict[str, tuple[int, ...]] = {}
        before = self.dz
        for i, units in enumerate(self.hidden):
            found[f"{self.name}.{i}.weight"] = (units, before)
            if not self.is_plain(i):
                found[f"{self.name}.{i}.bias"] = (units,)
                if self.published:
                    found[f"{self.name}.{i}.gamma"] = found[f"{self.name}.{i}.beta"] = (units,)
            before = units
        return found


@dataclass(frozen=True)
class HeadPlan:
    """A head: ``name`` starts its parameters' names, ``nodes`` are those whose kernels it makes, ``rows`` what it
    makes at once.

    ``generator`` is an index, None for a codebook of a stored table. ``b_of`` and ``a_of`` are indices of the
    factorised heads whose matrices it shares. ``codes`` are the names of its arrays of codes.
    """

    name: str
    spec: HeadSpec
    rows: int
    nodes: tuple[str, ...]
    generator: int | None = None
    b_of: int | None = None
    a_of: int | None = None

    @property
    def codes(self) -> tuple[str, ...]:
        """Names of the arrays of codes, in order."""
        if not self.spec.has_generator:
            return ()
        if self.spec.kind == "codebook":
            return (f"{self.name}.codes",)
        return tuple(f"{node}.codes" for node in self.nodes)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its own parameters."""
        spec = self.spec
        if spec.kind == "seeded":
            return {f"{self.name}.gain": (1,)}
        if spec.kind == "factorised":
            found = {} if self.b_of is not None else {f"{self.name}.b.weight": (spec.rank, spec.width)}
            return found if self.a_of is not None else {**found, f"{self.name}.a.weight": (self.rows, spec.rank)}
        if spec.kind == "codebook" and spec.of == "stored":
            return {f"{self.name}.table.weight": (spec.entries, spec.tile)}
        found = {f"{self.name}.weight": (self.rows, spec.width)}
        return {f"{self.name}.codes": (spec.entries, spec.dz), **found} if spec.kind == "codebook" else found


@dataclass(frozen=True)
class Plan:
    """Generators and heads of a graph, and the head (an index) of every generated node."""

    generators: tuple[GeneratorPlan, ...] = ()
    heads: tuple[HeadPlan, ...] = ()
    head_of: Mapping[str, int] = field(default_factory=dict)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters that belong to no single node."""
        found: dict[str, tuple[int, ...]] = {}
        for part in (*self.generators, *self.heads):
            found.update(part.shapes())
        return found


def make_plan(kernels: Mapping[str, tuple[HeadSpec, tuple[int, ...]]]) -> Plan:
    """Who shares what, from the *resolved* specification and the logical shape of every generated kernel, in running
    order.

    Raises ConfigError if kernels of one group want different generators, or the image format has no room for so many.
    """
    groups: dict[str, list[str]] = {}
    for name, (spec, _) in kernels.items():
        if spec.has_generator:
            groups.setdefault(_group(spec), []).append(name)
    numbers = {key: i for i, key in enumerate(groups)}
    for members in groups.values():
        first = kernels[members[0]][0]
        for name in members[1:]:
            for key in (*_GENERATOR, "published"):
                if getattr(kernels[name][0], key) != getattr(first, key):
                    raise ConfigError(
                        f"nodes {members[0]!r} and {name!r} share the generator of group {first.group!r} "
                        f"but differ in {key}; make them equal"
                    )

    heads: list[HeadPlan] = []
    shared: dict[tuple, int] = {}
    head_of: dict[str, int] = {}
    for name, (spec, shape) in kernels.items():
        key = (spec,) if spec.tiles else (spec, name)
        if key in shared:
            at = shared[key]
            heads[at] = replace(heads[at], nodes=(*heads[at].nodes, name))
        else:
            at = shared[key] = len(heads)
            b_of = a_of = None
            if spec.kind == "factorised":
                b_of = shared.setdefault((spec, "b"), at) if spec.share == "b" else at
                a_of = shared.setdefault((spec, "a", prod(shape)), at) if spec.share == "a" else at
            heads.append(
                HeadPlan(
                    _numbered("head", at),
                    spec,
                    spec.tile if spec.tiles else prod(shape),
                    (name,),
                    numbers[_group(spec)] if spec.has_generator else None,
                    None if b_of == at else b_of,
                    None if a_of == at else a_of,
                )
            )
        head_of[name] = at

    def rows(source: str) -> int:
        owner = source.rpartition(".")[0]
        spec, shape = kernels[owner] if owner in kernels else (heads_by_name[owner].spec, ())
        if not shape:
            return spec.entries
        return -(-prod(shape) // spec.tile) if spec.tiles else 1

    heads_by_name = {head.name: head for head in heads}
    generators = []
    for key, at in numbers.items():
        spec = kernels[groups[key][0]][0]
        sources = [source for head in heads if head.generator == at for source in head.codes]
        order = {name: i for i, name in enumerate(kernels)}  # codes of nodes in running order, as they are in the image
        sources.sort(key=lambda source: order.get(source.rpartition(".")[0], len(order)))
        pairs = tuple((source, rows(source)) for source in sources)
        generators.append(
            GeneratorPlan(
                _numbered("generator", at), spec.dz, spec.hidden, spec.generator_bits, spec.code_bits, pairs, spec.published
            )
        )
    # a generated codebook is two heads in the image: the one that makes its table, and itself
    entries = len(heads) + sum(head.spec.kind == "codebook" and head.spec.has_generator for head in heads)
    limits = ((len(generators), MAX_GENERATORS, "generators"), (entries, MAX_HEADS, "heads"))
    for count, most, what in limits:
        if count > most:
            raise ConfigError(
                f"the specifications make {count} {what}, an image holds {most}; let more kernels share one"
            )
    return Plan(tuple(generators), tuple(heads), head_of)


def _group(spec: HeadSpec) -> str:
    return f"group {spec.group}" if spec.group else spec.text()


def _numbered(word: str, at: int) -> str:
    """ "head", "head-2", ...: no node can be called so, and the first keeps the name it has had all along."""
    return word if at == 0 else f"{word}-{at + 1}"


# -- by kind and by layer ----------------------------------------------------------------------------------------------

NODE_KINDS = {
    "pw": "pointwise, all but the first",
    "pw1": "the first pointwise",
    "depthwise": "depthwise",
    "conv": "convolutions",
    "fc": "the classifier",
}
_ALIASES = {"dw": "depthwise", "stem": "conv"}


def node_kind(op: str, first_pointwise: bool) -> str | None:
    """The kind of `NODE_KINDS` that a node is; None for one without a kernel."""
    if op == "pointwise":
        return "pw1" if first_pointwise else "pw"
    return op if op in ("depthwise", "conv", "fc") else None


def flatten(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """TOML reads the bare key ``block3.pw`` as a table in a table; this makes one key of it again."""
    found: dict[str, object] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found.update(flatten(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def resolve_keys(heads: Mapping[str, object], kinds: Mapping[str, str]) -> dict[str, HeadSpec]:
    """Node -> specification, from ``heads`` by kind, node name or ``block3.pw`` (the node pw3), and ``kinds`` of all
    nodes with kernels.

    A node's own entry is stronger than that of its kind. Raises ConfigError for keys that name nothing.
    """
    by_kind: dict[str, HeadSpec] = {}
    by_node: dict[str, HeadSpec] = {}
    for key, text in flatten(heads).items():
        try:
            spec = HeadSpec.parse(text)
        except ConfigError as error:
            raise ConfigError(f"heads: {key!r}: {error}") from error
        block, dot, part = key.partition(".")
        name = {"depthwise": "dw"}.get(part, part) + block[5:] if dot and block.startswith("block") else key
        kind = _ALIASES.get(key, key) if key not in kinds else key
        # pw1 is a kind and usually also a node: both mean the same
        if kind in NODE_KINDS and (key not in kinds or key == "fc"):
            if kind not in kinds.values():
                raise ConfigError(f"heads: {key!r}: the network has no such kernel; its nodes are {', '.join(kinds)}")
            by_kind[kind] = spec
        elif name in kinds:
            by_node[name] = spec
        else:
            raise ConfigError(f"heads: {key!r} is no kind ({', '.join(NODE_KINDS)}) and no node ({', '.join(kinds)})")
    return {
        node: by_node.get(node, by_kind.get(kind)) for node, kind in kinds.items() if node in by_node or kind in by_kind
    }
