"""The bill: what every byte of an image is for, beside what the same kernels cost stored plainly.

The sums are asserted to equal the file, so a byte can be neither forgotten nor counted twice. Eq. 4 and Eq. 6 of the paper
(bytes of a weight tensor; flash as the sum over the weight tensors) stand beside them, with what they leave out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pyhtpw.image import heads as heads_of
from pyhtpw.image.integer import TABLE, Codebook, Factorised, Matrix, bits_bytes
from pyhtpw.image.reader import Parsed, ParsedOp
from pyhtpw.image.writer import ENTRY

PLAIN_BITS = (8, 4, 2)
GENERATION = ("GENR", "HEAD", "CODE")  # sections that exist only because kernels are generated
_OPS_HEADER = 8


def bill(parsed: Parsed, sram: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Accounts for every byte of an image.

    Parameters
    ----------
    parsed : Parsed
    sram : mapping, optional
        The memory plan of a backend: backend, arena and cache bytes. It comes back with the published claim beside it.

    Returns
    -------
    dict
        image_bytes : int
        sections : name -> bytes; "header" is header and section table, "padding" the zeros that align sections
        layers : list of dicts (name, kind, source, weights, bytes per section, metadata_bytes) for every operator
        generated : name -> dict(kernel_bytes: weights made, stored_bytes: what is stored for them, codes_bytes, shared_bytes,
            metadata_bytes, stored_at: {"8","4","2": bytes}, costs_more_than_storing: widths, layer_bytes).
            `stored_bytes` is the layer's codes and its share of everything that exists only because kernels are generated:
            of each generator and each head that it uses, by weights made with it, and of counts, section table rows and
            padding likewise. `metadata_bytes` are its multipliers and shifts as they stand in QUAN; they are the same
            either way and in `layer_bytes` only: {"generated","8","4","2"}, the whole layer in each case.
        generated_total : the same figures for all generated layers together, None without one
        whole_image_if_stored : {"8","4","2"}: bytes of this image with its generated kernels stored instead, padding included
        eq6_bytes : int, Eq. 6: generator + heads + codes + PW1 + backbone, each the sum of Eq. 4 over its weight tensors
        eq6 : what Eq. 6 sums
        eq6_omits : dict: `total` = image_bytes - eq6_bytes, and what it consists of
        sram : None, or `sram` with `activation`, `workspace` and `published`: max(activation, workspace)
    """
    sections = {tag.strip(): length for tag, (_, length) in parsed.sections.items()}
    sections["header"] = 16 + ENTRY * len(parsed.sections)
    sections["padding"] = parsed.total - sum(sections.values())
    layers = [
        {
            "name": op.name,
            "kind": op.kind,
            "source": op.source,
            "weights": op.weights,
            "bytes": {tag.strip(): n for tag, n in op.bytes.items()},
            "metadata_bytes": _metadata(op),
        }
        for op in parsed.ops
    ]
    for tag in ("OPS ", "QUAN", "WGHT", "CODE"):
        owned = sum(op.bytes.get(tag, 0) for op in parsed.ops) + (_OPS_HEADER if tag == "OPS " else 0)
        if owned != _length(parsed, tag):
            raise AssertionError(f"section {tag}: operators own {owned} bytes of {_length(parsed, tag)}")
    if sections["padding"] < 0 or sum(sections.values()) != parsed.total:
        raise AssertionError("the bill does not add up to the file")

    made = [op for op in parsed.ops if op.generated]
    shares = _shares(parsed, made)
    rows = {op.name: _figures([op], shares[op.index]) for op in made}
    eq6, omits = _eq6(parsed, sections["padding"])
    return {
        "image_bytes": parsed.total,
        "sections": sections,
        "layers": layers,
        "generated": rows,
        "generated_total": _figures(made, sum(shares.values())) if made else None,
        "whole_image_if_stored": {str(b): _stored_image(parsed, b) for b in PLAIN_BITS},
        "eq6_bytes": sum(eq6.values()),
        "eq6": eq6,
        "eq6_omits": omits,
        "sram": _sram(parsed, sram),
    }


def _length(parsed: Parsed, tag: str) -> int:
    return parsed.sections.get(tag, (0, 0))[1]


def _metadata(op: ParsedOp) -> int:
    """Bytes of multipliers and shifts."""
    return sum(op.quan.lengths[:2]) if op.quan else 0


def split(amount: int, weights: Sequence[int]) -> list[int]:
    """`amount` in whole parts in proportion to `weights`, whose sum is exactly `amount`."""
    whole, before, parts = sum(weights), 0, []
    for weight in weights:
        parts.append(amount * (before + weight) // whole - amount * before // whole)
        before += weight
    return parts


def _pieces(parsed: Parsed, index: int) -> set[tuple[int, str]]:
    """The entries that head `index` draws on, as (head, piece): its own, and the matrices and heads that it shares."""
    head = parsed.heads[index]
    pieces = {(index, "rest")}
    if isinstance(head, Factorised):
        pieces |= {(index if isinstance(head.b, Matrix) else head.b, "b"), (index if isinstance(head.a, Matrix) else head.a, "a")}
    if isinstance(head, Codebook) and head.of is not None:
        pieces |= _pieces(parsed, head.of)
    return pieces


def _generator_of(parsed: Parsed, index: int) -> int | None:
    """The generator behind head `index`; None for a stored codebook."""
    head = parsed.heads[index]
    if isinstance(head, Codebook):
        return None if head.of is None else _generator_of(parsed, head.of)
    return head.generator


def _shares(parsed: Parsed, made: list[ParsedOp]) -> dict[int, int]:
    """Operator -> its share of all that exists only because kernels are generated, codes not counted.

    What no generated layer uses is shared by all of them: it is there because kernels are generated.
    """
    if not made:
        return {}
    users: dict[tuple[Any, ...], list[ParsedOp]] = {}
    for op in made:
        generator = _generator_of(parsed, op.head)
        for piece in _pieces(parsed, op.head):
            users.setdefault(("head", *piece), []).append(op)
        if generator is not None:
            users.setdefault(("generator", generator), []).append(op)
            users.setdefault(("GENR",), []).append(op)
    pieces: dict[tuple[Any, ...], int] = {("generator", i): n for i, n in enumerate(parsed.generator_bytes)}
    for i, (head, length) in enumerate(zip(parsed.heads, parsed.head_bytes, strict=True)):
        own = {}
        if isinstance(head, Factorised):
            own = {key: heads_of.matrix_bytes(m) for key, m in (("b", head.b), ("a", head.a)) if isinstance(m, Matrix)}
        pieces |= {("head", i, key): n for key, n in own.items()}
        pieces["head", i, "rest"] = length - sum(own.values())
    for tag in GENERATION:  # the table row, the padding and the count, which is a byte
        length = _length(parsed, tag)
        if length:
            pieces[(tag,)] = ENTRY + -length % 16 + (1 if tag != "CODE" else 0)
    shares = {op.index: 0 for op in made}
    for piece, amount in pieces.items():
        sharers = users.get(piece, made)
        for op, part in zip(sharers, split(amount, [op.weights for op in sharers]), strict=True):
            shares[op.index] += part
    spent = sum(ENTRY + n + -n % 16 for n in (_length(parsed, tag) for tag in GENERATION) if n)
    if sum(shares.values()) + _length(parsed, "CODE") != spent:
        raise AssertionError("the shares of generators and heads do not add up to their sections")
    return shares


def _figures(made: list[ParsedOp], shared: int) -> dict[str, Any]:
    codes, metadata = sum(op.bytes["CODE"] for op in made), sum(map(_metadata, made))
    stored_at = {str(b): sum(bits_bytes(op.weights, b) for op in made) for b in PLAIN_BITS}
    return {
        "kernel_bytes": sum(op.weights for op in made),
        "stored_bytes": codes + shared,
        "codes_bytes": codes,
        "shared_bytes": shared,
        "metadata_bytes": metadata,
        "stored_at": stored_at,
        "costs_more_than_storing": [b for b in stored_at if codes + shared > stored_at[b]],
        "layer_bytes": {"generated": codes + shared + metadata} | {b: n + metadata for b, n in stored_at.items()},
    }


def _stored_image(parsed: Parsed, bits: int) -> int:
    """Size of the image if its generated kernels were stored at `bits`, everything else as it is (SPEC 4.4)."""
    lengths = {tag: length for tag, (_, length) in parsed.sections.items() if tag not in GENERATION}
    weights = 0
    for op in parsed.ops:
        width = bits if op.generated else op.stored_bits
        if op.kind == "table":
            weights += -weights % 4 + TABLE
        elif width:
            weights += (-weights % 4 if width == 8 else 0) + bits_bytes(op.weights, width)
    if weights:
        lengths["WGHT"] = weights
    return 16 + sum(ENTRY + length + -length % 16 for length in lengths.values())


def _eq6(parsed: Parsed, padding: int) -> tuple[dict[str, int], dict[str, int]]:
    """What Eq. 6 sums, each tensor by Eq. 4, ceil(N*b/8); and every byte that it leaves out."""
    stored = {op.index: bits_bytes(op.weights, op.stored_bits) for op in parsed.ops if op.stored_bits}
    first = next((op.index for op in parsed.ops if op.kind == "conv1x1"), None)
    tables = [(m.weights.size, m.bits) for g in parsed.generators for m in g.layers]
    eq6 = {
        "generator": sum(bits_bytes(*t) for t in tables),
        "heads": sum(bits_bytes(*t) for head in parsed.heads for t in heads_of.kind_of(head).tensors(head)),
        "codes": _length(parsed, "CODE"),
        "pw1": 0 if first is None else stored.get(first, 0),
        "backbone": sum(n for index, n in stored.items() if index != first),
    }
    quan = [op.quan.lengths for op in parsed.ops if op.quan]
    tabulated = TABLE * sum(op.kind == "table" for op in parsed.ops)
    omits = {
        "biases": sum(biases for _, _, biases in quan),
        "multipliers_and_shifts": sum(m + s for m, s, _ in quan),
        "operator_records": _length(parsed, "OPS "),
        "header_and_section_table": 16 + ENTRY * len(parsed.sections),
        "info": _length(parsed, "INFO"),
        "tables": tabulated,
        "padding": padding + _length(parsed, "WGHT") - sum(stored.values()) - tabulated,
        "generator_and_head_scales": _length(parsed, "GENR") + _length(parsed, "HEAD") - eq6["generator"] - eq6["heads"],
    }
    total = parsed.total - sum(eq6.values())
    if sum(omits.values()) != total or min(omits.values()) < 0:
        raise AssertionError("what Eq. 6 leaves out does not add up to the rest of the file")
    return eq6, {"total": total, **omits}


def _sram(parsed: Parsed, plan: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The published claim, max(activation, workspace), beside a real plan.

    `activation` is the most that the inputs and the output of one operator take; `workspace` the largest kernel that is made
    or unpacked, at a byte per weight. The claim takes the greater of the two; a device holds both at the same time.
    """
    if plan is None:
        return None
    activation = max(sum(t.size for t in dict(zip(op.reads, op.inputs, strict=True)).values()) + op.out.size for op in parsed.ops)
    workspace = max((op.weights for op in parsed.ops if op.cached), default=0)
    return {
        **plan,
        "total": plan["arena"] + plan["cache"],
        "activation": activation,
        "workspace": workspace,
        "published": max(activation, workspace),
    }
