"""Writes the README's tables of figures from results/, so that none is typed by hand.

    python bench/readme.py           rewrites README.md
    python bench/readme.py --check   exits 1 if it is out of date
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# rows of the kernel table: text, and (cpu, group, layout) in results/kernels.json
KERNELS = [
    ("1x1, cache widened to 16 bits", ("cortex-m4", "conv1x1 W>=16", "widened")),
    ("1x1, int8 cache", ("cortex-m4", "conv1x1 W>=16", "int8")),
    ("1x1, stored weights", ("cortex-m4", "conv1x1 W>=16", "row_major")),
    ("1x1, one row, widened cache", ("cortex-m4", "conv1x1 W=1", "widened")),
    ("depthwise 1xK", ("cortex-m4", "depthwise", "-")),
    ("generator and head, as synthesis runs them", ("cortex-m4", "gemv synthesis", "best")),
    ("add", ("cortex-m4", "add", "-")),
    ("average pool", ("cortex-m4", "avgpool", "-")),
    ("1x1, int8 cache", ("cortex-m55", "conv1x1 W>=16", "int8")),
    ("depthwise 1xK", ("cortex-m55", "depthwise", "-")),
    ("1x1, stored weights", ("cortex-m3", "conv1x1 W>=16", "row_major")),
    ("depthwise 1xK, portable", ("cortex-m3", "depthwise", "-")),
    ("1x1, stored weights", ("cortex-m0", "conv1x1 W>=16", "row_major")),
    ("depthwise 1xK, portable", ("cortex-m0", "depthwise", "-")),
]


def table() -> str:
    """The table, in Markdown, of the run in results/mitdb-first.json."""
    r = json.loads((ROOT / "results" / "mitdb-first.json").read_text())
    peer = next(row for row in json.loads((ROOT / "results" / "network.json").read_text())["rows"] if row["cpu"] == "cortex-m4")
    whole = json.loads((ROOT / "results" / "size.json").read_text())["rows"][0]
    m4, plain, test, total = r["cortex_m4"], r["whole_image_if_stored"], r["test"], r["generated_total"]
    rows = [
        ("image, every byte", f"{r['image_bytes']:,} B", "size of the file; with the same kernels stored at 8 / 4 / 2 bits: "
         + " / ".join(f"{plain[b]:,}" for b in ("8", "4", "2")) + " B"),
        ("generated kernels", f"{total['stored_bytes']:,} B for {total['kernel_bytes']:,} weights",
         "codes, generator, head and their section headers (`pyhtpw bill`)"),
        ("macro-F1 / ROC-AUC, test", f"{test['macro_f1']:.3f} / {test['auc']:.3f}",
         f"MIT-BIH, `{r['protocol']}` split, {test['n']:,} windows, int8 logits of the C library, t* = {test['threshold']:.2f} from validation, "
         f"seed {r['seed']}; {'; '.join(r['test_notes'])}. Published: .567 / .962 at about 225 kB. An early network, whose recipe had been scored "
         "on test three times (docs/reproducing.md); declared runs are below"),
        ("bytes that differ", f"{r['bytes_differ']} of {r['bytes_compared']:,}",
         "kernels and logits, every pair of: " + ", ".join(dict.fromkeys(n for p in r["pairs"] for n in (p["a"], p["b"])))),
        ("Cortex-M4: boot synthesis", f"{whole['instructions']['synthesis']:,} instructions", "once; counted under the unicorn emulator, "
         f"gcc {m4['flags']}, backend `{m4['backend']}` (`bench/size.py`)"),
        ("Cortex-M4: one inference", f"{whole['instructions']['inference']:,} instructions",
         f"same; {r['network']['macs']:,} multiply-accumulates"),
        ("Cortex-M4: whole network beside CMSIS-NN", f"{peer['instructions_ratio']:.2f} of its instructions",
         f"counted under QEMU, {peer['ours']['instructions']:,} against {peer['peer']['instructions']:,}; estimated cycles "
         f"{peer['cycles_ratio_estimated']:.2f} (`bench/network.py`)"),
        ("Cortex-M4: SRAM", f"{m4['plan']['arena']:,} + {m4['plan']['cache']:,} B", "arena + kernel cache, exact (`htpw_plan_memory`); "
         f"stack seen {whole['stack']:,} B"),
        ("Cortex-M4: code", f"{whole['text'] + whole['rodata']:,} B", "the whole library with every kernel, -O3, text and rodata from the ELF"),
        *trimmed(),
        *on_a_pc(),
    ]
    lines = [f"| real ECG, seed {r['seed']} | measured | how |", "|---|---|---|"]
    return "\n".join(lines + [f"| {a} | **{b}** | {c} |" for a, b, c in rows])


def trimmed() -> list[tuple[str, str, str]]:
    """Rows of the libraries that are built for the image alone, from results/size.json."""
    found = []
    for row in json.loads((ROOT / "results" / "size.json").read_text())["rows"]:
        if row["met"] is not None:
            code, r = row["text"] + row["rodata"], row["ratios"]
            aims = ", ".join(f"{row['target']} {unit}: {'met' if met else '**missed**'}" for unit, met in row["met"].items())
            found.append((f"Cortex-M4: code for this image, `{row['code']}` {row['opt']}", f"{code:,} B", f"same build: {r['inference']:.2f} x the "
                          f"instructions of an inference of the whole library at -O3, {r['synthesis']:.2f} x those of synthesis, "
                          f"{r['inference_to_cmsis_nn']:.2f} x CMSIS-NN's inference; {aims} (text and rodata, `bench/size.py`)"))
    return found


def on_a_pc() -> list[tuple[str, str, str]]:
    """Simulation and training, wall-clock, from results/simulate.json and results/trainer.json."""
    batch = json.loads((ROOT / "results" / "simulate.json").read_text())["rows"][0]
    trainer = json.loads((ROOT / "results" / "trainer.json").read_text())
    demo, cnn = trainer["demo"], trainer["regular_cnn"]
    times = batch["times_litert"]
    return [
        ("PC: windows per second, one thread / two", f"{batch['run_batch']['1']['per_s']:,.0f} / {batch['run_batch']['2']['per_s']:,.0f}",
         f"`Image.run_batch`, backend `{batch['backend']}`; {times['1']['median']:.1f} / {times['2']['median']:.1f} x LiteRT with XNNPACK on the "
         "exported network (median of paired rounds, `bench/simulate.py`)"),
        ("PC: a training step, batch 64, T = 1800", f"{demo['ours_ms']:.1f} ms",
         f"{demo['ratio']:.2f} x faster than PyTorch {demo['torch'].split('+')[0]} eager, {demo['ratio_compile']:.2f} x than torch.compile; "
         f"`regular_cnn` {cnn['ratio']:.2f} x and {cnn['ratio_compile']:.2f} x (2 threads, paired, `bench/trainer.py`)"),
    ]


def kernel_table() -> str:
    """Ratios to CMSIS-NN, in Markdown, from results/kernels.json."""
    found = json.loads((ROOT / "results" / "kernels.json").read_text())
    rows = {(r["cpu"], r["group"], r["layout"]): r for r in found["summary"]}
    lines = ["| core | kernel | our instructions / CMSIS-NN's | estimated cycles / theirs | target for both |", "|---|---|---|---|---|"]
    for text, key in KERNELS:
        r = rows[key]
        target = "" if r["target"] is None else f"{r['target']:.2f}" + ("" if r["met"] else ", **missed**")
        cycles = "" if r["cycles_ratio"] is None else f"{r['cycles_ratio']:.2f}"
        lines.append(f"| {key[0]} | {text} | **{r['ratio']:.2f}** ({r['shapes']} shapes) | {cycles} | {target} |")
    over = [s for s in found["summary"] if s["worst"] > 1 and s["layout"] not in ("best", "int4")]
    text = "; ".join(f"{s['cpu']} {s['group']}" + (f" {s['layout']}" if s["layout"] != "-" else "") + f" {s['worst']:.2f}" for s in over)
    return "\n".join([*lines, "", f"Groups without a target in which a shape costs more than CMSIS-NN's (the worst one): {text}."])


def head_table() -> str:
    """Bytes, synthesis and SRAM of every head kind, in Markdown, from results/heads.json."""
    found = json.loads((ROOT / "results" / "heads.json").read_text())
    lines = [
        "| pointwise kernels from | demo network, B | wide network, B | synthesis M4 / M55, instructions per weight | boot, in inferences (M4) | SRAM on M4, wide: claimed / real, B |",
        "|---|---|---|---|---|---|",
    ]
    rows = {(r["network"], r["head"]): r for r in found["images"]}
    for head in dict.fromkeys(r["head"] for r in found["images"]):
        demo, wide = rows["demo", head], rows["wide", head]
        counts = wide["synthesis_instructions_per_weight"]
        per = " / ".join(f"{counts[c]:.1f}" for c in ("cortex-m4", "cortex-m55")) if counts else ""
        sram, share = wide["sram"]["cortex-m4"], wide.get("boot_inferences")
        lines.append(
            f"| {head} | {demo['image_bytes']:,} | {wide['image_bytes']:,} | {per} | {'' if share is None else f'{share:.2f}'} | {wide['sram_claim']:,} / {sram['arena'] + sram['cache']:,} |"
        )
    wide = found["summary"]["wide"]
    targets = ", ".join(f"{wide['ratios'][b]:.2f} of {b} bits (target {t['limit']:.2f})" for b, t in wide["targets"].items())
    missed = [f"{s['cpu']} {s['head']} {s['per_weight']:.1f} (target {s['target']:.1f})"
              for network in found["summary"].values() for s in network.get("synthesis", []) if not s["met"]]
    text = f"Smallest wide image with generated kernels ({wide['best']}), against the one that stores them: {targets}."
    if missed:
        text += f" Synthesis targets missed: {'; '.join(missed)}."
    return "\n".join([*lines, "", text])


# declared experiments in the README: file in results/, figure, what it is called
CLAIMS = [("beats-aami", "veb_f1", "VEB F1"), ("beats-aami-seeds", "veb_f1", "VEB F1"), ("keywords-official6", "accuracy", "accuracy"),
          ("keywords-split10", "accuracy", "accuracy")]


def _cell(row: dict, figure: str, seeds: list[int]) -> str:
    span = row["interval"]["figures"][figure]
    few = "" if row["seeds"] == seeds else ", one seed" if len(row["seeds"]) == 1 else f", {len(row['seeds'])} seeds"
    return f"{row['model']}, {row['image_bytes']:,.0f} B{few}: **{row['test'][figure]:.3f}** ({span['low']:.3f} to {span['high']:.3f})"


def _verdict(each: dict) -> str:
    """What a difference says: a primary one after Holm alone, the others by their own interval."""
    if each["primary"] and "holm" not in each:
        return "waits for the other primary comparison"
    if each["primary"] and each["holm"]["p_holm"] > 0.05:
        return "undecided"
    span = each.get("holm") or each["difference"]
    return "wins" if span["low"] > 0 else "loses" if span["high"] < 0 else "undecided"


def _against(each: dict, digits: int = 3) -> str:
    span = each.get("holm") or each["difference"]
    return f"{span['estimate']:+.{digits}f} ({span['low']:+.{digits}f} to {span['high']:+.{digits}f})" + (" after Holm" if "holm" in each else "")


def accuracy_table() -> str:
    """Generated against stored networks of the same budget, from the tables of the declared experiments."""
    lines = ["| data, figure on test | generated | best stored network of the budget (by validation) | difference | generated |", "|---|---|---|---|---|"]
    rest, waiting = [], []
    for name, figure, called in CLAIMS:
        found = json.loads((ROOT / "results" / f"{name}.json").read_text())
        rows = {row["model"]: row for row in found["models"]}
        for each in found["comparisons"]:
            primary = ", primary" if each["primary"] else ""
            if "not_run" in each:
                waiting.append(f"{each['name']} ({each['not_run']})")
            elif each["name"].startswith("generated against the best stored"):
                late = f"; declared after {each['declared_after']}" if each["declared_after"] else ""
                lines.append(f"| {name}, {called}{primary}{late} | {_cell(rows[each['first']], figure, found['seeds'])} | "
                             f"{_cell(rows[each['second']], figure, found['seeds'])} | {_against(each)} | {_verdict(each)} |")
            elif "DS-CNN" in each["name"]:
                rest.append(f"{name}: {each['first']} ({each['bytes'][0]:,.0f} B) against a DS-CNN of {rows['ds-cnn']['network']['parameters']:,} float "
                            f"parameters ({rows['ds-cnn']['test'][figure]:.3f}): {_against(each)}.")
        rest.append(f"{name}: {found['title']}; {found['part'] or 'whole set'}; {len(found['seeds'])} seeds; test was looked at "
                    f"{found['test_evaluations']} times for it, and {found['test_evaluations_of_the_set']} times in all experiments on that test set.")
    rest.append(mitdb_paper())
    if waiting:
        rest.append(f"Declared, and without a figure: {'; '.join(waiting)}.")
    return "\n".join([*lines, "", *(f"- {line}" for line in rest)])


def mitdb_paper() -> str:
    """Generated and stored networks on the published division of MIT-BIH, of whose positives one record has nearly all."""
    found = json.loads((ROOT / "results" / "rows-mitdb-paper.json").read_text())
    said = []
    for row in found["models"]:
        if row["budget"] == 8192:
            seeds = ", ".join(f"{f:.3f} / {a:.3f}" for f, a in zip(row["per_seed"]["macro_f1"], row["per_seed"]["auc"], strict=True))
            said.append(f"{row['model']}, {row['image_bytes']:,.0f} B: macro-F1 {row['test']['macro_f1']:.3f}, AUC {row['test']['auc']:.3f} (seeds: {seeds})")
    return f"MIT-BIH `paper`: {'; '.join(said)}; published .567 / .962 at 225.5 kB. {'; '.join(found['notes'])}."


def readme() -> str:
    """README.md with the tables of today's results."""
    text = (ROOT / "README.md").read_text()
    for name, content in (("figures", table()), ("heads", head_table()), ("kernels", kernel_table()), ("accuracy", accuracy_table())):
        head, rest = text.split(f"<!-- {name}:", 1)
        comment, rest = rest.split("-->\n", 1)
        end = f"<!-- /{name} -->"
        text = f"{head}<!-- {name}:{comment}-->\n{content}\n{end}{rest.split(end, 1)[1]}"
    return text


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if readme() == (ROOT / "README.md").read_text() else "README.md is out of date: run python bench/readme.py")
    (ROOT / "README.md").write_text(readme())
