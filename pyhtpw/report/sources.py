"""What a report is made from: the folder of a demo, a run folder, the result of an experiment's run, or an image alone.

Each becomes a `Source`: the dict that the tables print (`report.json`'s form, with whatever is known), and the image where there is
one. What a source does not know is not in its dict; the pages then say "not run". Test labels are never read here: figures of test
are those that the run wrote down when it scored test.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyhtpw.errors import ConfigError
from pyhtpw.model import Image

TARGET_BACKEND = "armv7em_dsp"  # whose memory plan is shown: a Cortex-M4's
REPORT, RUN_FILE, SUMMARY, CURVES = "report.json", "run.json", "summary.json", "curves.csv"
OUTCOME = ("steps", "seconds", "best_step", "val_macro_f1", "ema_best_step", "ema_val_macro_f1")  # of a training's summary
MODEL, INTEGER = "model.htpw", "model.npz"
REMEDY = "give the folder of 'pyhtpw demo' or 'pyhtpw train', the JSON result of 'pyhtpw results', or a .htpw image"


@dataclass(frozen=True)
class Source:
    """One thing that is reported.

    Attributes
    ----------
    label : str
        What it is called beside others.
    kind : str
        "demo", "run", "result" or "image".
    path : Path
        Where it was read.
    report : dict
        What is known, in the form of ``report.json``.
    image : Image or None
        Opened, if there is one.
    """

    label: str
    kind: str
    path: Path
    report: Mapping[str, Any]
    image: Image | None = None

    def layer_names(self) -> list[str]:
        """Names of the image's operators: the network's where the report has them, for an image stores none."""
        if self.image is None:
            return []
        ops = self.image.parsed.ops
        rows = self.report.get("layers") or ()
        named = [str(row.get("name")) for row in rows if isinstance(row, Mapping) and row.get("name")]
        return named if len(named) == len(ops) else [op.name for op in ops]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot read a report ({error}): {REMEDY}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds no report: {REMEDY}")
    return found


def load(path: str | Path, *, ema: bool = False) -> Source:
    """Reads one source.

    Parameters
    ----------
    path : path
        See the module.
    ema : bool
        Of a run folder the image of the averaged weights.

    Raises
    ------
    ConfigError
        It is none of these, or cannot be read.
    ImageError
        The image is not valid.
    """
    path = Path(path)
    if path.is_dir():
        if (path / REPORT).is_file():
            return _demo(path / REPORT)
        if (path / RUN_FILE).is_file():
            return _run(path, "ema" if ema else "raw")
        raise ConfigError(f"{path}: has neither {REPORT} nor {RUN_FILE}: cannot read a report there; {REMEDY}")
    if path.suffix == ".htpw":
        return image(path)
    found = _json(path)
    if "config_sha256" in found and "model" in found:
        return _result(path, found)
    return _demo(path)


def several(paths: Sequence[str | Path], *, ema: bool = False) -> list[Source]:
    """Reads sources and makes their labels differ."""
    found: list[Source] = []
    for path in paths:
        source = load(path, ema=ema)
        taken = [other.label for other in found]
        label, i = source.label, 2
        while label in taken:
            label, i = f"{source.label} ({i})", i + 1
        found.append(replace(source, label=label))
    return found


def _account(opened: Image, names: Sequence[str] = ()) -> dict[str, Any]:
    """Bill, memory plan and facts of an image; with `names`, operators are called by them."""
    account = dict(opened.bill(TARGET_BACKEND))
    if len(names) == len(account["layers"]):
        known = {row["name"]: name for row, name in zip(account["layers"], names, strict=True)}
        account["layers"] = [{**row, "name": known[row["name"]]} for row in account["layers"]]
        account["generated"] = {known[name]: row for name, row in account["generated"].items()}
    plan = opened.plan(TARGET_BACKEND)
    info = opened.parsed.info
    facts = {**account, "plan": vars(plan), "image_sha256": hashlib.sha256(opened.data).hexdigest()}
    if info is not None and info.classes:
        facts["classes"] = list(info.classes)
        if len(info.classes) == 2:
            facts["validation"] = {"threshold": round(float(info.threshold), 6)}
    return facts


def image(path: str | Path) -> Source:
    """An image alone: bytes, layers and kernels are known, how good it is only from data."""
    path = Path(path)
    opened = Image.open(path)
    network = {"name": _name(opened, path.stem), "macs": opened.parsed.macs, "input": list(opened.input_shape)}
    report = {
        "image": path.name,
        **_account(opened),
        "network": network,
        "not_run": ["training, test and the comparison of tellings: this source is an image alone"],
    }
    return Source(path.stem, "image", path, report, opened)


def _name(opened: Image, otherwise: str) -> str:
    info = opened.parsed.info
    return info.name if info is not None and info.name else otherwise


def _demo(path: Path) -> Source:
    """`report.json`, with the image beside it."""
    report = _json(path)
    if "image_bytes" not in report:
        raise ConfigError(f"{path}: is not a report of 'pyhtpw demo': it has no image_bytes; {REMEDY}")
    opened = None
    for beside in (path.parent / Path(str(report.get("image") or MODEL)).name, path.with_suffix(".htpw")):
        if beside.is_file() and beside.stat().st_size == report["image_bytes"]:  # another run's would be shown beside figures not its own
            opened = Image.open(beside)
            break
    label = path.resolve().parent.name if path.name == REPORT else path.stem
    return Source(label or path.stem, "demo", path, report, opened)


def _run(folder: Path, kind: str) -> Source:
    """The folder of `pyhtpw train`."""
    run = _json(folder / RUN_FILE)
    summary = _json(folder / SUMMARY) if (folder / SUMMARY).is_file() else {}
    data, network, config = (run.get(key) or {} for key in ("data", "network", "config"))
    nodes = network.get("nodes") or []
    found = folder / kind / MODEL
    opened = Image.open(found) if found.is_file() else None
    report: dict[str, Any] = {
        "command": " ".join(map(str, run.get("command") or ())) or None, "version": (run.get("versions") or {}).get("pyhtpw"),
        "machine": run.get("machine"), "data": data.get("name"), "protocol": data.get("protocol"), "synthetic": data.get("synthetic"),
        "source_sha256": data.get("source_sha256"), "seed": run.get("seed"),
        "median_filter": (run.get("recipe") or {}).get("median"),
        "network": {"name": network.get("name"), "nodes": [n for n in nodes if isinstance(n, Mapping)],
                    **({"macs": opened.parsed.macs, "input": list(opened.input_shape)} if opened else {})},
        "training": {"config": config, "checkpoint": kind, "curves": _curves(folder / CURVES),
                     **{key: summary.get(key) for key in OUTCOME}},
        "not_run": ["test: a training never scores it ('pyhtpw results run' does)", *(summary.get("not_run") or [])],
    }  # fmt: skip
    if not summary:
        report["not_run"].append("the end of the training: summary.json is not there")
    if opened is None:
        report["not_run"].append(f"image: {kind}/{MODEL} is not in {folder.name}")
    else:
        report |= {"image": f"{kind}/{MODEL}", **_account(opened, _node_names(folder / kind / INTEGER))}
        row = (summary.get("images") or {}).get(kind) or {}
        report["validation"] = {
            **(report.get("validation") or {}),
            "macro_f1": row.get("val_macro_f1_integer"),
            "threshold": row.get("threshold"),
        }
    return Source(folder.resolve().name, "run", folder, report, opened)


def _node_names(path: Path) -> list[str]:
    """The network's names of the image's operators, which the integer model beside it has; [] without one."""
    if not path.is_file():
        return []
    from pyhtpw.quant.store import load_model

    return [op.name for op in load_model(path).ops]


def _curves(path: Path) -> list[dict[str, float | None]]:
    """Rows of a training's curves; [] if there are none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: _number(value) for key, value in row.items() if key} for row in csv.DictReader(file)]


def _number(value: str | None) -> float | None:
    try:
        return float(value) if value else None
    except ValueError:
        return None


def _result(path: Path, found: dict[str, Any]) -> Source:
    """The result of an experiment's run; what it decided of each test window lies beside it as .npz, with the curves in it."""
    m4 = found.get("cortex_m4") or {}
    keep = ("command", "created", "classes", "synthetic", "seed", "machine", "image_bytes", "image_sha256", "sections", "validation",
            "test", "test_notes", "test_evaluations", "median_filter", "training")  # fmt: skip
    report = {key: found[key] for key in keep if found.get(key) is not None}
    data = found.get("data") or {}
    report |= {"data": data.get("name"), "protocol": data.get("protocol"), "source_sha256": data.get("source_sha256"),
               "network": {**(found.get("network") or {}), "name": found["model"]}, "plan": found.get("plan_m4"),
               "not_run": [*(found.get("not_run") or []), "kernels and layers: a result holds no image"]}  # fmt: skip
    if m4:
        report["cortex_m4"] = {f"{key}_instructions": m4.get(key) for key in ("open", "synthesis", "inference")} | {
            "how": f"instructions executed under the unicorn emulator, backend {m4.get('backend')}, one window"}  # fmt: skip
    decisions = path.with_suffix(".npz")
    if decisions.is_file():
        from pyhtpw.experiment.runner import Decisions
        from pyhtpw.report.curves import curves

        mine = Decisions.load(decisions).scored()
        report["curves"] = {"test": curves(mine.y, mine.p, mine.cluster)}
    return Source(f"{found['model']}, seed {found.get('seed')}", "result", path, report)
