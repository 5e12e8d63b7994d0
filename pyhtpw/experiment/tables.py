"""Tables and figures of a plan, from its result files alone: nothing is typed and nothing is run.

Figures are means over seeds; intervals and differences come from `pyhtpw.evaluate.bootstrap` over the decisions that each run
left beside its JSON, people and seeds drawn jointly. Holm's correction covers the primary comparisons of the plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyhtpw.errors import ConfigError
from pyhtpw.evaluate.bootstrap import Interval, Scored, holm_intervals, intervals, paired
from pyhtpw.experiment.plan import Compare, Model, Plan
from pyhtpw.experiment.runner import Decisions, Folders, done, read_result

NOT_MEANINGFUL = "CI not meaningful"
_SPREAD = ("image_bytes", "deflate_bytes")  # means of whole numbers


class Results:
    """The runs of a plan that are on disk; ConfigError for one made with another configuration."""

    def __init__(self, plan: Plan, folders: Folders) -> None:
        self.plan, self.folders = plan, folders
        self.runs: dict[str, list[dict[str, Any]]] = {}
        for model in plan.models:
            found = [read_result(folders.result(plan.name, model.name, seed))
                     for seed in plan.seeds_of(model) if done(plan, model, seed, folders)]
            if found:
                self.runs[model.name] = found
        if not self.runs:
            raise ConfigError(f"{plan.name}: has no results in {folders.results / 'runs' / plan.name}: run it first")

    def complete(self, name: str) -> bool:
        """Whether every seed of a model is scored on test."""
        found = self.runs.get(name, [])
        return len(found) == len(self.plan.seeds_of(self.plan.model(name))) and all(run["test"] for run in found)

    def scored(self, name: str) -> list[Scored]:
        """Decisions of a model's seeds, each compared with what its JSON says."""
        out = []
        for run in self.runs[name]:
            path = self.folders.result(self.plan.name, name, run["seed"]).with_suffix(".npz")
            scored = Decisions.load(path).scored()
            accuracy = float(np.mean(scored.y == scored.decided))
            if abs(accuracy - run["test"]["accuracy"]) > 1e-9:
                raise ConfigError(f"{path}: its decisions have accuracy {accuracy:.6f}, {path.stem}.json says "
                                  f"{run['test']['accuracy']:.6f}: the two are not of one run")
            out.append(scored)
        return out

    def mean(self, name: str, *keys: str) -> float | None:
        """Mean over seeds of a number in the results; None if it is missing in any."""
        values = [_get(run, *keys) for run in self.runs[name]]
        return None if any(value is None for value in values) else float(np.mean(values))

    def over_budget(self, name: str) -> bool:
        """Whether any seed's image is larger than the model's budget: such a model stands for nothing in a comparison."""
        return any(run["over_budget"] for run in self.runs[name])

    def best(self, names: Sequence[str], figure: str) -> str:
        """Of several models the one with the best mean validation figure; ConfigError if one has not got there, or all are too large."""
        missing = [n for n in names if len(self.runs.get(n, [])) < len(self.plan.seeds_of(self.plan.model(n)))]
        if missing:
            raise ConfigError(f"{self.plan.name}: {missing[0]} has not been run with all its seeds: a comparison takes all of them")
        fits = [n for n in names if not self.over_budget(n)]
        if not fits:
            raise ConfigError(f"{self.plan.name}: {', '.join(names)}: every one is larger than its budget")
        key = ("validation", "veb", figure.removeprefix("veb_")) if figure.startswith("veb_") else ("validation", figure)
        return max(fits, key=lambda n: (self.mean(n, *key), n))


def _get(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def looks(folders: Folders, plan: Plan) -> tuple[int, int]:
    """Lines of the test log that belong to a plan, and those of the same test set, whatever the plan."""
    own = same = 0
    for number, text in enumerate(folders.log.read_text().splitlines() if folders.log.is_file() else (), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            own += line["run"].startswith(f"{plan.name}/")
            same += (line["data"], line["protocol"]) == (plan.data, plan.protocol)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folders.log}: line {number} is no evaluation ({error}): restore it") from error
    return own, same


def build(plan: Plan, folders: Folders) -> dict[str, Any]:
    """Everything that tables and figures show, as JSON."""
    results = Results(plan, folders)
    veb = plan.protocol.partition(":")[0] == "aami"
    notes = sorted({note for runs in results.runs.values() for run in runs for note in run.get("test_notes") or []})
    meaningful = not any(NOT_MEANINGFUL in note for note in notes)
    first = next(iter(results.runs.values()))[0]
    own, same = looks(folders, plan)
    rows = [_row(results, model, veb, meaningful) for model in plan.models if model.name in results.runs]
    for row, model in zip(rows, (plan.model(row["model"]) for row in rows), strict=True):
        whole = _whole(results, model)
        if whole is not None and row.get("test"):
            row["retention"] = row["test"]["macro_f1"] / whole
    return {
        "plan": plan.name, "title": plan.title, "note": plan.note, "data": first["data"], "part": first.get("part"),
        "synthetic": first["synthetic"], "classes": first["classes"], "seeds": list(plan.seeds), "median_filter": plan.median,
        "reference": plan.reference,
        "test_evaluations": own, "test_evaluations_of_the_set": same, "notes": notes, "counts": first.get("counts"),
        "models": rows, "not_run": [m.name for m in plan.models if m.name not in results.runs],
        "incomplete": [m.name for m in plan.models if m.name in results.runs and not results.complete(m.name)],
        "comparisons": _comparisons(results, veb, meaningful), "best_under": best_under(plan, rows),
        "sources": _sources(results),
    }  # fmt: skip


def _whole(results: Results, model: Model) -> float | None:
    """What is 100 % of a model's retention: test macro-F1 of the plan's reference, else of the run that taught it; None without either."""
    plan = results.plan
    if plan.reference:
        return results.mean(plan.reference, "test", "macro_f1") if plan.reference in results.runs else None
    if not model.teacher:
        return None
    other, colon, own = model.teacher.partition(":")
    path = (results.folders.result(other, own, model.teacher_seed) if colon else
            results.folders.result(plan.name, model.teacher, model.teacher_seed))
    return _get(read_result(path), "test", "macro_f1") if path.is_file() else None


def _row(results: Results, model: Model, veb: bool, meaningful: bool) -> dict[str, Any]:
    name = model.name
    run = results.runs[name][0]
    row: dict[str, Any] = {
        "model": name, "note": model.note, "published": model.published, "declared_after": model.declared_after, "network": run["network"],
        "generator": "GENR" in (run.get("sections") or {}), "budget": model.budget,
        "seeds": [each["seed"] for each in results.runs[name]],
        "over_budget": any(each["over_budget"] for each in results.runs[name]),
        **{key: results.mean(name, key) for key in _SPREAD},
        "if_stored": {bits: results.mean(name, "if_stored", bits) for bits in ("8", "4", "2")},
        "arena": results.mean(name, "plan_m4", "arena"), "cache": results.mean(name, "plan_m4", "cache"),
        "cortex_m4": {key: results.mean(name, "cortex_m4", key) for key in ("synthesis", "inference", "generating_every_time")},
        "validation": {key: results.mean(name, "validation", key) for key in ("macro_f1", "auc", "accuracy", "balanced_accuracy")},
        "training_seconds": results.mean(name, "training", "seconds"),
    }  # fmt: skip
    if veb:
        row["validation"] |= {f"veb_{key}": results.mean(name, "validation", "veb", key) for key in ("sensitivity", "ppv", "f1")}
    if not results.complete(name):
        row["test"] = None
        return row
    keys = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "brier", "ece")
    row["test"] = {key: results.mean(name, "test", key) for key in keys}
    row["per_seed"] = {key: [each["test"][key] for each in results.runs[name]] for key in keys}
    row["recall"] = np.mean([[c["recall"] for c in each["test"]["per_class"]] for each in results.runs[name]], axis=0).tolist()
    if veb:
        row["test"] |= {f"veb_{key}": results.mean(name, "test", "veb", key) for key in ("sensitivity", "ppv", "f1")}
    if all(each.get("ema") for each in results.runs[name]):
        row["ema"] = {key: results.mean(name, "ema", "test", key) for key in keys}
    if all(each.get("calibration_test") for each in results.runs[name]):
        row["calibration"] = {key: results.mean(name, "calibration_test", key)
                              for key in ("ece", "ece_temperature", "macro_f1_class_thresholds")}
    if all(_get(each, "calibration_test", "subjects") for each in results.runs[name]):
        row["subjects"] = {key: {figure: results.mean(name, "calibration_test", "subjects", key, figure) for figure in ("macro_f1", "f1")}
                           for key in ("t_star", "subject")}
        row["subjects"] |= {key: results.mean(name, "calibration_test", "subjects", key)
                            for key in ("adapted_s", "windows", "records", "records_with_another_threshold")}
    row["interval"] = intervals(results.scored(name), veb=veb).to_dict() if meaningful else NOT_MEANINGFUL
    return row


def best_under(plan: Plan, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each of the plan's budgets the model that validation prefers among those whose images fit; None if none does."""
    found = []
    for budget in plan.budgets:
        fits = [row for row in rows if row["test"] and row["image_bytes"] and row["image_bytes"] <= budget]
        best = max(fits, key=lambda row: (row["validation"][plan.figure], row["model"]), default=None)
        found.append({"budget": budget, "model": best and best["model"], "image_bytes": best and best["image_bytes"],
                      "validation": best and best["validation"][plan.figure], "test": best and best["test"][plan.figure]})
    return found


def _comparisons(results: Results, veb: bool, meaningful: bool) -> list[dict[str, Any]]:
    """Paired differences; those declared primary with Holm's correction over all of them that were declared."""
    plan, rows = results.plan, []
    found: dict[str, Interval] = {}
    for each in plan.compare:
        figure = each.figure or plan.figure
        try:
            sides = [results.best(names, figure) for names in (each.first, each.second)]
        except ConfigError as error:
            rows.append({**_described(each, figure), "not_run": str(error)})
            continue
        row = {**_described(each, figure), "first": sides[0], "second": sides[1],
               "left_out": [name for name in (*each.first, *each.second) if results.over_budget(name)],
               "bytes": [results.mean(side, "image_bytes") for side in sides]}
        if not all(results.complete(side) for side in sides):
            row["not_run"] = "not scored on test yet"
        else:
            boot = paired(results.scored(sides[0]), results.scored(sides[1]), veb=veb)
            row |= {"difference": boot.figures[figure].to_dict() if meaningful else
                    {"estimate": boot.figures[figure].estimate, "low": None, "high": None},
                    "clusters": boot.clusters, "seeds": boot.seeds, "resamples": boot.resamples, "redrawn": boot.redrawn}
            if each.primary and meaningful:
                found[each.name] = boot.figures[figure]
        rows.append(row)
    waiting = [row["name"] for row in rows if row["primary"] and row["name"] not in found]
    if found and not waiting:  # a correction over fewer comparisons than were declared would be too kind
        for name, corrected in holm_intervals(found).items():
            next(row for row in rows if row["name"] == name)["holm"] = corrected
    return rows


def _described(each: Compare, figure: str) -> dict[str, Any]:
    return {"name": each.name, "figure": figure, "primary": each.primary, "declared_after": each.declared_after,
            "candidates": [list(each.first), list(each.second)]}


def _sources(results: Results) -> dict[str, str]:
    """SHA-256 of every result file that the tables were built from."""
    found = {}
    for name, runs in results.runs.items():
        for run in runs:
            path = results.folders.result(results.plan.name, name, run["seed"])
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


# -- markdown ----------------------------------------------------------------------------------------------------------


def _n(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _f(value: float | None, digits: int = 3) -> str:
    return "not run" if value is None else f"{value:.{digits}f}"


def _stored(row: dict[str, Any]) -> str:
    """What the image would take with its generated kernels stored: the same function, byte for byte at 8 bits."""
    sizes = [row["if_stored"][bits] for bits in ("8", "4", "2")]
    return "-" if None in sizes or not row["network"]["generated_weights"] else " / ".join(map(_n, sizes))


def _with_interval(row: dict[str, Any], figure: str) -> str:
    if not row["test"]:
        return "not run"
    found = row["interval"]
    inside = NOT_MEANINGFUL if isinstance(found, str) else " to ".join(_f(found["figures"][figure][k]) for k in ("low", "high"))
    return f"{_f(row['test'][figure])} ({inside})"


def markdown(found: dict[str, Any]) -> str:
    """The tables as text."""
    figures = ["macro_f1", "auc", "accuracy", "balanced_accuracy"]
    if any((row["test"] or {}).get("veb_f1") is not None for row in found["models"]):
        figures.insert(0, "veb_f1")
    data = found["data"]
    out = [f"# {found['title']}", "", f"{data['name']} ({data['protocol']}), {found['part'] or 'whole set'}; seeds "
           f"{', '.join(map(str, found['seeds']))}; median filter {found['median_filter']}. {found['note']}".rstrip(), ""]
    if found["synthetic"]:
        out += ["**Synthetic data: no figure here says anything about people.**", ""]
    for part, counts in (found["counts"] or {}).items():
        total = sum(n for name, n in counts.items() if name != "unscored")
        shares = ", ".join(f"{name} {100 * n / max(1, total):.1f} %" for name, n in counts.items() if name != "unscored")
        out += [f"- {part}: {total:,} scored windows ({shares})"]
    out += [""]
    out += [f"Evaluations of test for this plan, all told: {found['test_evaluations']}; of the same test set in all plans: "
            f"{found['test_evaluations_of_the_set']}.", ""]
    out += [f"- {note}" for note in found["notes"]] + ([""] if found["notes"] else [])
    published = any(row["published"] for row in found["models"])
    heads = ["model", "image, bytes", "stored at 8 / 4 / 2 bits", "DEFLATE", "SRAM, bytes", "M4 instructions", "generating each time",
             *(figure.replace("_", " ") for figure in figures), "Brier", "ECE", "retention", "validation macro-F1"]
    heads += ["published"] if published else []
    out += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in found["models"]:
        sram = None if row["arena"] is None else row["arena"] + row["cache"]
        test = row["test"] or {}
        own = "" if row["seeds"] == found["seeds"] else ", seed " + ", ".join(map(str, row["seeds"])) + " alone"
        late = f", declared after {row['declared_after']}" if row["declared_after"] else ""
        cells = [row["model"] + (f" ({row['note']})" if row["note"] else "") + own + late + (", OVER BUDGET" if row["over_budget"] else ""),
                 _n(row["image_bytes"]), _stored(row), _n(row["deflate_bytes"]), _n(sram), _n(row["cortex_m4"]["inference"]),
                 _n(row["cortex_m4"]["generating_every_time"]), *(_with_interval(row, figure) for figure in figures),
                 _f(test.get("brier")), _f(test.get("ece")),
                 f"{100 * row['retention']:.1f} %" if "retention" in row else "-", _f(row["validation"]["macro_f1"])]
        cells += [row["published"] or "-"] if published else []
        out.append("| " + " | ".join(cells) + " |")
    drawn = {row["interval"]["clusters"] for row in found["models"] if isinstance(row.get("interval"), dict)}
    clusters = f", {_n(drawn.pop())} clusters of test windows" if len(drawn) == 1 else ""
    out += ["", "Figures are means over seeds; in brackets 95 % intervals of the cluster bootstrap, people (or files of no person, such as "
            f"silence) and seeds drawn jointly{clusters}. Retention: macro-F1 over that of "
            f"{found['reference'] or 'the run that taught the model'}.", ""]
    for row in found["models"]:
        if row.get("ema"):
            averaged = ", ".join(f"{name} {_f(row['ema'][key])}" for name, key in (("macro-F1", "macro_f1"), ("AUC", "auc")))
            out += [f"- {row['model']}, averaged weights with their own t*: {averaged}"]
        if row.get("calibration"):
            c = row["calibration"]
            out += [f"- {row['model']}, calibrated on validation: ECE {_f(c['ece'])}, with temperature {_f(c['ece_temperature'])}; "
                    f"macro-F1 with a threshold per class {_f(c['macro_f1_class_thresholds'])}"]
        if row.get("subjects"):
            c = row["subjects"]
            out += [f"- {row['model']}, a threshold per record from the labels of its first {c['adapted_s'] / 60:.0f} minutes, the rest "
                    f"scored ({_n(round(c['windows']))} windows): macro-F1 {_f(c['subject']['macro_f1'])}, with t* of validation "
                    f"{_f(c['t_star']['macro_f1'])}; F1 of the second class {_f(c['subject']['f1'])}, {_f(c['t_star']['f1'])}; "
                    f"{c['records_with_another_threshold']:.1f} of {c['records']:.0f} records get another threshold"]
    out += [""]
    if found["comparisons"]:
        heads = ["comparison", "figure", "first - second", "difference (95 %)", "Holm interval", "p (Holm)"]
        out += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for row in found["comparisons"]:
            out.append("| " + " | ".join(_compared(row)) + " |")
        out.append("")
    if found["best_under"]:
        out += ["| budget, bytes | best on validation | image, bytes | test |", "|---|---|---|---|"]
        out += [f"| {_n(row['budget'])} | {row['model'] or 'none fits'} | {_n(row['image_bytes'])} | "
                f"{'-' if row['test'] is None else _f(row['test'])} |" for row in found["best_under"]]
        out.append("")
    if found["not_run"]:
        out += ["Not run: " + ", ".join(found["not_run"]) + ".", ""]
    if found["incomplete"]:
        out += ["Not scored on test with all seeds: " + ", ".join(found["incomplete"]) + ".", ""]
    return "\n".join(out)


def _compared(row: dict[str, Any]) -> list[str]:
    name = row["name"] + (" (primary)" if row["primary"] else "") + (
        f", declared after {row['declared_after']}" if row["declared_after"] else "")
    if "not_run" in row:
        return [name, row["figure"], "", f"not run: {row['not_run']}", "", ""]
    sides = f"{row['first']} ({_n(row['bytes'][0])}) - {row['second']} ({_n(row['bytes'][1])})"
    sides += f"; over budget and left out: {', '.join(row['left_out'])}" if row["left_out"] else ""
    d, h = row["difference"], row.get("holm")
    inside = NOT_MEANINGFUL if d["low"] is None else f"{d['low']:+.4f} to {d['high']:+.4f}"
    return [name, row["figure"], sides, f"{d['estimate']:+.4f} ({inside})",
            f"{h['low']:+.4f} to {h['high']:+.4f}" if h else "-", f"{h['p_holm']:.4f}" if h else "-"]


# -- figures -----------------------------------------------------------------------------------------------------------


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the Pareto front of (bytes, figure): fewest bytes, best figure; by rising bytes."""
    order, best, kept = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])), -np.inf, []
    for i in order:
        if points[i][1] > best:
            kept.append(i)
            best = points[i][1]
    return kept


def _apart(points: Sequence[tuple[float, float]], gap: float) -> list[float]:
    """Heights for the labels of points, near their own, `gap` apart from those of points with about as many bytes."""
    heights = [y for _, y in points]
    order = sorted(range(len(points)), key=lambda i: points[i][1])
    for at, i in enumerate(order):
        beside = [heights[j] for j in order[:at] if abs(np.log2(points[i][0] / points[j][0])) < 0.4]
        heights[i] = max([heights[i], *(h + gap for h in beside)])
    return heights


def draw(found: dict[str, Any], figure: str) -> Any:
    """Figure against image bytes, with intervals, and the Pareto front; None if nothing is scored on test."""
    from matplotlib.figure import Figure

    from pyhtpw.report.plots import BLUE, GREEN, MUTED, VERMILLION, style

    rows = [row for row in found["models"] if row["test"] and row["test"].get(figure) is not None and row["image_bytes"]]
    if not rows:
        return None
    with style():
        plot = Figure(figsize=(8.4, 5.2), layout="constrained")
        axes = plot.add_subplot()
        points = [(row["image_bytes"], row["test"][figure]) for row in rows]
        for generated, colour, marker, label in ((True, VERMILLION, "o", "generated kernels"), (False, BLUE, "s", "stored kernels")):
            mine = [i for i, row in enumerate(rows) if row["generator"] is generated]
            if not mine:
                continue
            x, y = zip(*(points[i] for i in mine), strict=True)
            axes.plot(x, y, marker, color=colour, label=label)
            for i in mine:
                if not isinstance(rows[i]["interval"], str):
                    span = rows[i]["interval"]["figures"][figure]
                    axes.plot([points[i][0]] * 2, [span["low"], span["high"]], "-", color=colour, linewidth=0.8, alpha=0.6)
        line = [points[i] for i in front(points)]
        axes.plot(*zip(*line, strict=True), "-", color=GREEN, linewidth=1, label="Pareto front", zorder=0)
        axes.set(xscale="log", xlabel="whole image, bytes", ylabel=f"{figure.replace('_', ' ')} on test",
                 title=found["title"] + (" (synthetic data)" if found["synthetic"] else ""))
        low, high = min(x for x, _ in points), max(x for x, _ in points)
        ticks = [2**k for k in range(6, 24) if low / 2 <= 2**k <= 2 * high]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlim(low / 1.3, high * 1.6)
        top, bottom = axes.get_ylim()[1], axes.get_ylim()[0]
        for (x, y), row, height in zip(points, rows, _apart(points, (top - bottom) / 45), strict=True):
            line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.3} if abs(height - y) > (top - bottom) / 90 else None
            axes.annotate(row["model"], (x, y), xytext=(x * 1.03, height), fontsize=6.5, color=MUTED, va="center", arrowprops=line)
        axes.legend(loc="lower right")
        return plot


def draw_budgets(found: dict[str, Any], figure: str) -> Any:
    """Test figure of the best model under each budget; None if the plan has none, or nothing fits."""
    from matplotlib.figure import Figure

    from pyhtpw.report.plots import BLUE, MUTED, VERMILLION, style

    rows = [row for row in found["best_under"] if row["model"]]
    if not rows:
        return None
    made = {row["model"] for row in found["models"] if row["generator"]}
    with style():
        plot = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = plot.add_subplot()
        bars = axes.bar(range(len(rows)), [row["test"] for row in rows],
                        color=[VERMILLION if row["model"] in made else BLUE for row in rows], width=0.6)
        axes.bar_label(bars, [f"{row['model']}\n{row['test']:.3f}" for row in rows], fontsize=7, color=MUTED)
        axes.set_xticks(range(len(rows)), [f"{row['budget'] / 1024:g} KiB" for row in rows])
        axes.set(xlabel="largest image; red: generated kernels, blue: stored", ylabel=f"{figure.replace('_', ' ')} on test",
                 ylim=(0, 1.1), title=found["title"] + (" (synthetic data)" if found["synthetic"] else ""))
        return plot


def write(plan: Plan, folders: Folders) -> list[Path]:
    """PLAN.json, PLAN.md, and PLAN-FIGURE.svg and .png in the results folder; their paths."""
    import io

    from pyhtpw.report.files import write_atomically

    found = build(plan, folders)
    base = folders.results / plan.name
    out = [base.with_name(f"{plan.name}.json"), base.with_name(f"{plan.name}.md")]
    write_atomically(out[0], (json.dumps(found, indent=1) + "\n").encode())
    write_atomically(out[1], markdown(found).encode())
    plots = {figure: draw(found, figure) for figure in dict.fromkeys((plan.figure, "macro_f1"))}
    for figure, plot in {**plots, "budgets": draw_budgets(found, plan.figure)}.items():
        for ending in ("svg", "png") if plot is not None else ():
            data = io.BytesIO()
            plot.savefig(data, format=ending, dpi=160, metadata={"Date": None} if ending == "svg" else {"Software": None})
            out.append(base.with_name(f"{plan.name}-{figure}.{ending}"))
            write_atomically(out[-1], data.getvalue())
    return out
