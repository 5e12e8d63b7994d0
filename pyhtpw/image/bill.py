"""The bill: what every byte of an image is for, beside what the same kernels cost stored plainly.

The sums are asserted to equal the file, so a byte can be neither forgotten nor counted twice.
"""

from pyhtpw.image.integer import bits_bytes
from pyhtpw.image.reader import Parsed

PLAIN_BITS = (8, 4, 2)
GENERATION = ("GENR", "HEAD", "CODE")  # sections that exist only because kernels are generated
_ENTRY = 16  # bytes of one row of the section table


def bill(parsed: Parsed) -> dict:
    """Accounts for every byte of an image.

    Returns
    -------
    dict
        image_bytes : int
        sections : name -> bytes; "header" is header and section table, "padding" the zeros that align sections
        layers : list of dicts (name, kind, weights, bytes per section) for every operator
        generated : name -> dict(kernel_bytes, stored_bytes, codes_bytes, shared_bytes, stored_at: {"8","4","2": bytes},
            costs_more_than_storing). `stored_bytes` is the layer's codes plus its share, by weights, of everything that
            exists only because kernels are generated: generator, heads, their section table rows and padding. Requantisation
            metadata is the same either way and is in neither figure.
        generated_total : the same figures for all generated layers together
        whole_image_if_stored : {"8","4","2"}: bytes of this image with its generated kernels stored instead, padding included
    """
    sections = {tag.strip(): length for tag, (_, length) in parsed.sections.items()}
    sections["header"] = 16 + _ENTRY * len(parsed.sections)
    sections["padding"] = parsed.total - sum(sections.values())
    layers = [{"name": op.name, "kind": op.kind, "weights": op.weights, "bytes": dict(op.bytes)} for op in parsed.ops]
    for tag in ("OPS ", "QUAN", "WGHT", "CODE"):
        owned = sum(op.bytes.get(tag, 0) for op in parsed.ops) + (8 if tag == "OPS " else 0)
        if owned != parsed.sections.get(tag, (0, 0))[1]:
            raise AssertionError(f"section {tag}: operators own {owned} bytes of {parsed.sections.get(tag)}")
    if sections["padding"] < 0 or sum(sections.values()) != parsed.total:
        raise AssertionError("the bill does not add up to the file")

    generated = [op for op in parsed.ops if op.generated]
    kernel = sum(op.weights for op in generated)
    codes = sum(op.bytes["CODE"] for op in generated)
    spent = sum(_ENTRY + length + -length % 16 for tag in GENERATION for length in [parsed.sections.get(tag, (0, 0))[1]] if length)
    shared = spent - codes
    rows = {}
    for i, op in enumerate(generated):
        before = sum(o.weights for o in generated[:i])
        share = shared * (before + op.weights) // kernel - shared * before // kernel  # integers that sum to `shared`
        rows[op.name] = _figures(op.weights, op.bytes["CODE"], share, [op.weights])
    total = _figures(kernel, codes, shared, [op.weights for op in generated]) if generated else None
    return {
        "image_bytes": parsed.total,
        "sections": sections,
        "layers": layers,
        "generated": rows,
        "generated_total": total,
        "whole_image_if_stored": {str(b): _stored_image(parsed, b) for b in PLAIN_BITS},
    }


def _figures(kernel: int, codes: int, shared: int, weights: list[int]) -> dict:
    stored_at = {str(b): sum(bits_bytes(n, b) for n in weights) for b in PLAIN_BITS}
    return {
        "kernel_bytes": kernel,
        "stored_bytes": codes + shared,
        "codes_bytes": codes,
        "shared_bytes": shared,
        "stored_at": stored_at,
        "costs_more_than_storing": [b for b in stored_at if codes + shared > stored_at[b]],
    }


def _stored_image(parsed: Parsed, bits: int) -> int:
    """Size of the image if its generated kernels were stored at `bits`, everything else as it is."""
    lengths = {tag: length for tag, (_, length) in parsed.sections.items() if tag not in GENERATION}
    weights = lengths.get("WGHT", 0)
    for op in parsed.ops:
        if op.generated:
            weights += -weights % 4 + bits_bytes(op.weights, bits)
    if weights:
        lengths["WGHT"] = weights
    return 16 + sum(_ENTRY + length + -length % 16 for length in lengths.values())
