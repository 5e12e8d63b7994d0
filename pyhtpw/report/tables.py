"""The facts of a report as tables of text, for the HTML page and the terminal alike.

A report is the dict of `report.json`; any key may be missing or None. Then the cell, or the whole table, says "not run":
nothing here computes a figure that the report does not hold, sums and differences of its bytes aside.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT_RUN = "not run"
NOT_STATED = "not stated"
BITS = ("8", "4", "2")  # plain storage that generation is compared with
THIS = "this image"
KERNELS = "generated kernels, stored"
REST = "header, padding"

HOLDS = {
    "header": "header and section table",
    "INFO": "name, classes, threshold, scales",
    "OPS": "operators and tensor shapes",
    "QUAN": "requantisation: multipliers, shifts, biases",
    "WGHT": "stored kernels",
    KERNELS: "only if they were not generated",
    "GENR": "generators",
    "HEAD": "heads",
    "CODE": "codes and ids of the kernels",
    "padding": "zeros that align the sections",
}
GENERATION = ("GENR", "HEAD", "CODE")  # sections that exist only because kernels are generated


@dataclass(frozen=True)
class Column:
    """Heading of a column; `number` is aligned right, `spare` is the first to go where room is short."""

    label: str
    number: bool = True
    spare: bool = False


@dataclass(frozen=True)
class Row:
    """Cells of a row; `kind` is "", "total", "warn" or "total warn"."""

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table of finished text. `note` says what the figures mean; `warning` what is wrong with them, if anything."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""
    warning: str = ""


def clean(value: object) -> str:
    """Text in one line, without control characters, direction marks or lone surrogates, whatever it came from."""
    text = str(value)
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text)


def get(report: object, *keys: str) -> Any:
    """`report[key][key]...`, None as soon as a key is missing."""
    for key in keys:
        report = report.get(key) if isinstance(report, Mapping) else None
    return report


def integer(value: object) -> int | None:
    """`value` if it is a whole number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def number(value: object) -> float | None:
    """`value` if it is a finite number, else None."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def whole(value: object) -> str:
    """A count, with thousands separators."""
    if value is None:
        return NOT_RUN
    return clean(value) if number(value) is None else f"{value:,.0f}"


def decimal(value: object, form: str = ".3f") -> str:
    """A measure, in the given format."""
    if value is None:
        return NOT_RUN
    return clean(value) if number(value) is None else format(value, form)


def text(value: object, absent: str = NOT_STATED) -> str:
    """Anything else: numbers with separators, lists joined, mappings as "key value"."""
    if value is None or value == "":
        return absent
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return whole(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(k)} {text(v)}" for k, v in value.items()) or absent
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(text(v) for v in value) or absent
    return clean(value)


def is_synthetic(report: Mapping[str, Any]) -> bool:
    """Whether the report's figures come from made-up signals, by its flag or by the name of its data."""
    return bool(report.get("synthetic")) or str(report.get("data")).startswith("synthetic")


def threshold(report: Mapping[str, Any]) -> str:
    """The operating point t*, as text."""
    for part in ("test", "validation"):
        if number(get(report, part, "threshold")) is not None:
            return f"{report[part]['threshold']:g}"
    return NOT_RUN


def is_multiclass(report: Mapping[str, Any]) -> bool:
    """Whether the report tells more than two classes apart: there is then no t*, the largest logit decides."""
    return len(report.get("classes") or ()) > 2


def operating_point(report: Mapping[str, Any]) -> str:
    """How decisions were made, as words: "at t* = 0.35", or that the largest logit decides."""
    return "the largest logit decides" if is_multiclass(report) else f"at t* = {threshold(report)}"


def _class_name(report: Mapping[str, Any], i: int) -> str:
    names = report.get("classes") or ()
    return clean(names[i]) if i < len(names) else f"class {i}"


def result(report: Mapping[str, Any]) -> Table | None:
    """Scores on test, and on validation where t* was chosen."""
    test, validation = (report.get(part) or {} for part in ("test", "validation"))
    if not test and not validation:
        return None
    measures = [
        ("macro-F1", "macro_f1", ".3f"),
        ("balanced accuracy", "balanced_accuracy", ".3f"),
        ("accuracy", "accuracy", ".3f"),
        ("ROC-AUC, mean over classes" if is_multiclass(report) else "ROC-AUC", "auc", ".3f"),
        ("Brier score, summed over classes" if is_multiclass(report) else "Brier score", "brier", ".4f"),
        ("calibration error", "ece", ".4f"),
    ]
    rows = [
        Row((label, decimal(test.get(key), form), decimal(validation.get(key), form)))
        for label, key, form in measures
        if key != "ece" or key in test or key in validation  # reports of before it was taken
    ]
    for label, key in (
        ("sensitivity, ventricular", "sensitivity"),
        ("PPV, ventricular", "ppv"),
        ("F1, ventricular", "f1"),
    ):
        if test.get("veb"):
            rows.append(Row((label, decimal(test["veb"].get(key)), decimal(get(validation, "veb", key)))))
    for label, key in (("scored windows", "n"), ("of them positive", "positives")):
        if key == "n" or not is_multiclass(report):
            rows.append(Row((label, whole(test.get(key)), whole(validation.get(key)))))
    note = "t* was chosen on validation and then applied to test." if test and validation and not is_multiclass(report) else ""
    if integer(report.get("test_evaluations")) is not None:
        log = f" in the log {clean(report['test_log'])}" if report.get("test_log") else ""
        note += f" Evaluations of test{log}, this one included: {whole(report['test_evaluations'])}."
    return Table(
        "Result, the largest logit decides" if is_multiclass(report) else f"Result {operating_point(report)}",
        (Column("Measure", False), Column("Test"), Column("Validation")),
        tuple(rows),
        note.strip(),
    )


def confusion(report: Mapping[str, Any]) -> Table | None:
    """Confusion matrix of test: a row per true class."""
    matrix = get(report, "test", "confusion")
    if not matrix:
        return None
    names = [_class_name(report, i) for i in range(len(matrix))]
    columns = (Column("True class", False), *(Column(f"decided {name}") for name in names))
    rows = tuple(Row((name, *map(whole, row))) for name, row in zip(names, matrix, strict=True))
    return Table("Confusion on test, in windows", columns, rows)


def per_class(report: Mapping[str, Any]) -> Table | None:
    """Precision, recall and F1 of each class of test."""
    found = get(report, "test", "per_class")
    if not found:
        return None
    if isinstance(found, Mapping):
        found = [(clean(name), row) for name, row in found.items()]
    else:
        found = [(_class_name(report, i), row) for i, row in enumerate(found)]
    rows = tuple(
        Row((name, *(decimal(get(row, key)) for key in ("precision", "recall", "f1")), whole(get(row, "support"))))
        for name, row in found
    )
    labels = ("Precision", "Recall", "F1", "Windows")
    return Table("Test by class", (Column("Class", False), *map(Column, labels)), rows)


def breakdown(report: Mapping[str, Any]) -> dict[str, dict[str, int | None]]:
    """Bytes by section of this image, and of the image if its generated kernels were stored at 8, 4 and 2 bits.

    Returns
    -------
    dict
        column -> section -> bytes; every column sums to its image. The columns for 8, 4 and 2 bits are there if kernels
        are generated. `REST` is what remains of an image besides payloads; None if the report's figures leave less than
        nothing for it.
    """
    sections = {clean(k): n for k, n in (report.get("sections") or {}).items() if integer(n) is not None}
    if not sections:
        return {}
    payload = {name: n for name, n in sections.items() if name not in ("header", "padding")}
    rest = sections.get("header", 0) + sections.get("padding", 0)
    stored = get(report, "generated_total", "stored_at") or {}
    totals = report.get("whole_image_if_stored") or {}
    bits = [b for b in BITS if integer(stored.get(b)) is not None and integer(totals.get(b)) is not None]
    columns: dict[str, dict[str, int | None]] = {THIS: {**payload, **({KERNELS: 0} if bits else {}), REST: rest}}
    for b in bits:
        column = {name: 0 if name in GENERATION else n for name, n in payload.items()}
        column[KERNELS] = stored[b]
        left = totals[b] - sum(column.values())
        columns[b] = {**column, REST: left if left >= 0 else None}
    return columns


def sections(report: Mapping[str, Any]) -> Table | None:
    """Bytes of the image by section, beside the same image with its generated kernels stored."""
    columns = breakdown(report)
    if not columns:
        return None
    total = sum(columns[THIS].values())
    order = [name for name in ("INFO", "OPS", "QUAN", "WGHT", KERNELS, *GENERATION) if name in columns[THIS]]
    order += [name for name in columns[THIS] if name not in (*order, REST)] + [REST]
    header, padding = (get(report, "sections", name) for name in ("header", "padding"))
    holds = {**HOLDS, REST: f"header {text(header)}, padding {text(padding)}"}
    rows = []
    for name in order:
        cells = ["does not add up" if column[name] is None else whole(column[name]) for column in columns.values()]
        share = f"{columns[THIS][name] / total:.1%}" if total else NOT_STATED
        rows.append(Row((name, holds.get(name, ""), cells[0], share, *cells[1:])))
    sums = [whole(report["whole_image_if_stored"][b]) for b in list(columns)[1:]]
    rows.append(Row(("sum", "", whole(total), "100.0%" if total else NOT_STATED, *sums), "total"))
    heads = (
        Column("Section", False),
        Column("Holds", False, True),
        Column("This image"),
        Column("Share", True, True),
        *(Column(f"Stored at {b} bits") for b in list(columns)[1:]),
    )
    return Table("Bytes by section", heads, tuple(rows), _file_note(report, total), _file_warning(report, total))


def _file_note(report: Mapping[str, Any], total: int) -> str:
    return f"The sum {total:,} is the file, {total:,} bytes." if report.get("image_bytes") == total else ""


def _file_warning(report: Mapping[str, Any], total: int) -> str:
    size = report.get("image_bytes")
    if size == total:
        return ""
    return f"The sum {total:,} is not the size of the file, {text(size)} bytes."


def bits_words(bits: Sequence[object]) -> str:
    """E.g. "4 and 2 bits"."""
    words = [clean(b) for b in bits]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words) + " bits"


def costs_more(report: Mapping[str, Any]) -> str:
    """The warning that generation does not pay, "" where it does."""
    found = get(report, "generated_total", "costs_more_than_storing")
    if found:
        at = bits_words(found)
        return f"Costs more than storing: all generated kernels together take fewer bytes stored plainly at {at}."
    layers = [
        clean(name) for name, row in (report.get("generated") or {}).items() if get(row, "costs_more_than_storing")
    ]
    if layers:
        return f"Costs more than storing: {', '.join(layers)}, at the widths marked in the table."
    return ""


def generated(report: Mapping[str, Any]) -> Table | None:
    """What each generated kernel costs, beside the same kernel stored."""
    found = report.get("generated")
    if not found:
        return None
    figures = [(clean(name), row, []) for name, row in found.items()]
    if report.get("generated_total"):
        figures.append(("all", report["generated_total"], ["total"]))
    rows = []
    for name, row, kind in figures:
        more = get(row, "costs_more_than_storing") or ()
        cells = [whole(get(row, key)) for key in ("kernel_bytes", "stored_bytes", "codes_bytes", "shared_bytes")]
        cells.append(text(get(row, "metadata_bytes")))
        cells += [whole(get(row, "stored_at", b)) for b in BITS]
        if get(row, "costs_more_than_storing") is None:
            verdict = NOT_STATED
        else:
            verdict = f"costs more than storing at {bits_words(more)}" if more else "costs no more"
        rows.append(Row((name, *cells, verdict), " ".join(kind + ["warn"] * bool(more))))
    heads = (
        Column("Layer", False),
        Column("Weights"),
        Column("Bytes for it"),
        Column("Codes", True, True),
        Column("Share", True, True),
        Column("Metadata", True, True),
        *(Column(f"At {b} bits") for b in BITS),
        Column("Generating it", False),
    )
    note = (
        "Bytes for it: the layer's codes and its share, by weights, of all that exists only because kernels are generated. "
        "Metadata: its multipliers and shifts, the same either way and in no other column."
    )
    return Table("Generated kernels beside the same kernels stored", heads, tuple(rows), note, costs_more(report))


def layers(report: Mapping[str, Any], total: bool = False) -> Table | None:
    """Bytes that each operator owns, by section; with `total` a row of sums."""
    found = report.get("layers")
    if not found:
        return None
    owned = [{clean(tag).strip(): n for tag, n in (get(row, "bytes") or {}).items() if integer(n)} for row in found]
    tags = [tag for tag in ("OPS", "QUAN", "WGHT", "CODE") if any(tag in o for o in owned)]
    tags += sorted({tag for o in owned for tag in o} - set(tags))
    rows = [
        Row(
            (
                text(get(row, "name")),
                text(get(row, "kind")),
                whole(get(row, "weights")),
                *(whole(o.get(tag, 0)) for tag in tags),
                whole(sum(o.values())),
            )
        )
        for row, o in zip(found, owned, strict=True)
    ]
    if total:
        weights = whole(sum(integer(get(row, "weights")) or 0 for row in found))
        sums = [sum(o.get(tag, 0) for o in owned) for tag in tags]
        rows.append(Row(("sum", "", weights, *map(whole, sums), whole(sum(sums))), "total"))
    heads = (
        Column("Layer", False),
        Column("Kind", False, True),
        Column("Weights"),
        *(Column(tag) for tag in tags),
        Column("Bytes"),
    )
    return Table(
        "Bytes by layer", heads, tuple(rows), "What an operator owns; the rest of the file serves all."
    )


def stored_sections(bill: Mapping[str, Any]) -> Table | None:
    """Sections of an image alone, header and padding apart, with their sum."""
    found = {clean(name): n for name, n in (bill.get("sections") or {}).items()}
    if not found:
        return None
    total = sum(found.values())
    order = sorted(found, key=lambda name: list(HOLDS).index(name) if name in HOLDS else len(HOLDS) - 1)
    rows = [
        Row((name, HOLDS.get(name, ""), whole(found[name]), f"{found[name] / total:.1%}" if total else NOT_STATED))
        for name in order
    ]
    rows.append(Row(("sum", "", whole(total), "100.0%" if total else NOT_STATED), "total"))
    heads = (Column("Section", False), Column("Holds", False, True), Column("Bytes"), Column("Share"))
    return Table("Bytes by section", heads, tuple(rows), _file_note(bill, total), _file_warning(bill, total))


def whole_image(report: Mapping[str, Any]) -> Table | None:
    """This image beside itself with the generated kernels stored, and the difference."""
    size, totals = integer(report.get("image_bytes")), report.get("whole_image_if_stored")
    if size is None or not totals or not report.get("generated"):
        return None
    rows = [Row(("kernels generated (this image)", whole(size), ""))]
    for b in BITS:
        total = integer(totals.get(b))
        change = f"{(total - size) / size:+.1%}" if total is not None and size else ""
        rows.append(
            Row(
                (f"kernels stored at {b} bits", whole(total), change),
                "warn" if total is not None and total < size else "",
            )
        )
    return Table("Whole image", (Column("Image", False), Column("Bytes"), Column("Against this image")), tuple(rows))


def verdict(report: Mapping[str, Any]) -> tuple[str, bool | None]:
    """How the comparison of the tellings ended: a sentence, and whether it is good (None: nothing was compared)."""
    compared, differ = (integer(report.get(key)) for key in ("bytes_compared", "bytes_differ"))
    if not compared:
        return ("no byte was compared" if compared == 0 else NOT_RUN), None
    if differ is None:
        return f"{compared:,} bytes compared; how many differ is not stated", None
    by_pair = sum(integer(get(row, "differ")) or 0 for row in report.get("pairs") or ())
    apart = f", but {by_pair:,} by the list of pairs" if by_pair != differ else ""
    return f"{compared:,} bytes compared, {differ:,} differ{apart}", differ == by_pair == 0


def pairs(report: Mapping[str, Any]) -> Table | None:
    """Equality of the tellings of the arithmetic, pair by pair."""
    found = report.get("pairs")
    if not found:
        return None
    keys = ("windows", "kernel_bytes", "logit_bytes", "differ")
    rows = [
        Row(
            (
                f"{text(get(row, 'a'))} = {text(get(row, 'b'))}"
                if get(row, "differ") == 0
                else f"{text(get(row, 'a'))} / {text(get(row, 'b'))}",
                *(whole(get(row, key)) for key in keys),
                text(get(row, "first"), "" if get(row, "differ") == 0 else NOT_STATED),
            ),
            "warn" if get(row, "differ") else "",
        )
        for row in found
    ]
    heads = [Column("Pair", False), Column("Windows"), Column("Kernel bytes"), Column("Logit bytes"), Column("Differ")]
    if any(get(row, "differ") != 0 for row in found):
        heads.append(Column("First difference", False))
    rows = [Row(row.cells[: len(heads)], row.kind) for row in rows]
    said, good = verdict(report)
    said = "The total of bytes compared is not stated." if said == NOT_RUN else f"{said[0].upper()}{said[1:]}."
    return Table(
        "Equality of the tellings",
        tuple(heads),
        tuple(rows),
        "" if good is False else said,
        said if good is False else "",
    )


def cortex(report: Mapping[str, Any]) -> Table | None:
    """The image on an emulated Cortex-M4."""
    found = report.get("cortex_m4")
    if not found:
        return None
    counts = (
        ("open: validate the image", "open_instructions", "instructions"),
        ("synthesis: make the kernels, once", "synthesis_instructions", "instructions"),
        ("one inference", "inference_instructions", "instructions"),
        ("stack", "stack_bytes", "bytes"),
        ("code (text)", "text_bytes", "bytes"),
    )
    rows = tuple(Row((label, whole(found.get(key)), unit)) for label, key, unit in counts)
    how = [
        f"{label}: {text(found[key])}."
        for label, key in (("How", "how"), ("Compiler", "compiler"), ("Flags", "flags"))
        if found.get(key)
    ]
    return Table("Cortex-M4", (Column("", False), Column("Count"), Column("Unit", False)), rows, " ".join(how))


def splits(report: Mapping[str, Any]) -> Table | None:
    """Windows of each split, and the share of each class among those that are scored."""
    found = report.get("splits")
    if not found:
        return None
    many = is_multiclass(report)
    priors = all(isinstance(get(row, "priors"), Sequence) for row in found.values())
    rows = []
    for name, row in found.items():
        groups = get(row, "groups")
        if isinstance(groups, Sequence) and not isinstance(groups, str):
            groups = len(groups)
        cells = [clean(name), whole(get(row, "windows"))]
        cells += [] if many else [whole(get(row, "positives"))]
        cells.append(whole(groups))
        if priors:
            cells.append(" ".join(f"{100 * share:.1f}" for share in row["priors"] if number(share) is not None))
        rows.append(Row(tuple(cells)))
    heads = [Column("Split", False), Column("Windows"), *([] if many else [Column("Positive")]), Column("Records")]
    if priors:
        heads.append(Column("Classes, %", False, True))
    return Table("Splits", tuple(heads), tuple(rows))


def nodes(report: Mapping[str, Any]) -> Table | None:
    """Operators of the network."""
    found = get(report, "network", "nodes")
    if not found:
        return None

    def shape(value: object) -> str:
        return " x ".join(map(whole, value)) if isinstance(value, (list, tuple)) else text(value, "")

    rows = tuple(
        Row(
            (
                text(get(row, "name")),
                text(get(row, "op")),
                text(get(row, "head"), ""),
                *(text(get(row, key), "") for key in ("kernel", "stride", "cout")),
                shape(get(row, "shape")),
            )
        )
        for row in found
    )
    heads = (
        Column("Node", False),
        Column("Operator", False),
        Column("Kernel is", False),
        Column("Width"),
        Column("Stride"),
        Column("Channels"),
        Column("Output"),
    )
    return Table("Operators, output as steps x channels", heads, rows)


def pairs_of(mapping: object, absent: str = NOT_STATED) -> list[tuple[str, str]]:
    """A mapping as (key, text) for a description list."""
    return (
        [(clean(k).replace("_", " "), text(v, absent)) for k, v in mapping.items()]
        if isinstance(mapping, Mapping)
        else []
    )


def lines(value: object) -> list[str]:
    """A list of sentences, or one sentence, as lines."""
    if not value:
        return []
    return [clean(value)] if isinstance(value, str) else [clean(line) for line in value]
