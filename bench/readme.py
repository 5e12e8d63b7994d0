"""Writes the README's table of figures from results/, so that none is typed by hand.

    python bench/readme.py           rewrites README.md
    python bench/readme.py --check   exits 1 if it is out of date
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- figures:", "<!-- /figures -->"


def table() -> str:
    """The table, in Markdown, of the run in results/mitdb-first.json."""
    r = json.loads((ROOT / "results" / "mitdb-first.json").read_text())
    m4, plain, test, total = r["cortex_m4"], r["whole_image_if_stored"], r["test"], r["generated_total"]
    rows = [
        ("image, every byte", f"{r['image_bytes']:,} B", "size of the file; with the same kernels stored at 8 / 4 / 2 bits: "
         + " / ".join(f"{plain[b]:,}" for b in ("8", "4", "2")) + " B"),
        ("generated kernels", f"{total['stored_bytes']:,} B for {total['kernel_bytes']:,} weights",
         "codes, generator, head and their section headers (`pyhtpw bill`)"),
        ("macro-F1 / ROC-AUC, test", f"{test['macro_f1']:.3f} / {test['auc']:.3f}",
         f"MIT-BIH, `{r['protocol']}` split, {test['n']:,} windows, int8 logits of the C library, t* = {test['threshold']:.2f} from validation, "
         f"seed {r['seed']}; {'; '.join(r['test_notes'])}. Published: .567 / .962 at about 225 kB"),
        ("bytes that differ", f"{r['bytes_differ']} of {r['bytes_compared']:,}",
         "kernels and logits, every pair of: " + ", ".join(dict.fromkeys(n for p in r["pairs"] for n in (p["a"], p["b"])))),
        ("Cortex-M4: boot synthesis", f"{m4['synthesis_instructions']:,} instructions", "once; counted under the unicorn emulator, "
         f"gcc {m4['flags']}, backend `{m4['backend']}`"),
        ("Cortex-M4: one inference", f"{m4['inference_instructions']:,} instructions",
         f"same; {r['network']['macs']:,} multiply-accumulates"),
        ("Cortex-M4: SRAM", f"{m4['plan']['arena']:,} + {m4['plan']['cache']:,} B", "arena + kernel cache, exact (`htpw_plan_memory`); "
         f"stack seen {m4['stack_bytes']} B"),
        ("Cortex-M4: code", f"{m4['text_bytes']:,} B", "the whole library with every kernel, -O3, from the ELF"),
    ]
    lines = [f"| real ECG, seed {r['seed']} | measured | how |", "|---|---|---|"]
    return "\n".join(lines + [f"| {a} | **{b}** | {c} |" for a, b, c in rows])


def readme() -> str:
    """README.md with the table of today's results."""
    text = (ROOT / "README.md").read_text()
    head, rest = text.split(BEGIN, 1)
    comment, rest = rest.split("-->\n", 1)
    return f"{head}{BEGIN}{comment}-->\n{table()}\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if readme() == (ROOT / "README.md").read_text() else "README.md is out of date: run python bench/readme.py")
    (ROOT / "README.md").write_text(readme())
