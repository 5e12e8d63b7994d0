"""ECG end to end, in Python: data, training, an image, its bill, its logits, a look at test, and the same bytes everywhere.

    python examples/ecg_end_to_end.py [--steps 3000] [--out out/ecg] [--data-dir FOLDER]

Without --data-dir the ECG is synthetic (made by a program; no figure on it says anything about patients). With it, MIT-BIH is read
from a folder that has 100.hea, 100.dat, 100.atr and so on. Needs the extra `train`, with --data-dir also `data`; the comparison with an
emulated Cortex-M4 needs `target` and says NOT RUN without it. `pyhtpw demo` does the same in one command, and writes a report.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import pyhtpw
from pyhtpw import pipeline
from pyhtpw.data import load
from pyhtpw.data.seal import seal
from pyhtpw.recipes import recipe


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="ECG end to end")
    parser.add_argument("--steps", type=int, help="training steps (default: the recipe's)")
    parser.add_argument("--out", type=Path, default=Path("out/ecg"), help="folder of everything that is written (default: out/ecg)")
    parser.add_argument("--data-dir", type=Path, help="MIT-BIH; without it the ECG is synthetic")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)

    # 1. Windows of three groups of people. Test labels are sealed: nothing can read them before the choices are on disk.
    name = "synthetic-ecg" if given.data_dir is None else "mitdb"
    data = seal(load(name, data_dir=given.data_dir, seed=given.seed))
    kind = "synthetic" if data.synthetic else data.description["part"]
    print(f"{name} ({kind}): {len(data.train):,} / {len(data.val):,} / {len(data.test):,} windows of {data.train.x.shape[1]} samples")

    # 2. A float network whose pointwise kernels come out of a generator, then integers calibrated on training windows.
    chosen = recipe(name, data.description["protocol"])
    pipeline.prepare_folder(given.out)
    graph, config, result = pipeline.train_stage(chosen, data, given.out / "run", seed=given.seed, steps=given.steps)
    print(f"trained: best step {result.best_step}, validation macro-F1 {result.val_macro_f1:.3f} ({kind})")
    quantised = pipeline.quantise_stage(graph, result.params, data, seed=given.seed, median=chosen.median)
    image = pyhtpw.pack(quantised.model, given.out / "model.htpw")

    # 3. What every byte is for, and what a device needs beside it.
    bill, plan = image.bill(), image.plan("armv7em_dsp")
    total = bill["generated_total"]
    print(f"image: {len(image.data):,} bytes; {total['kernel_bytes']:,} weights are made from {total['stored_bytes']:,} bytes")
    print(f"Cortex-M4: arena {plan.arena:,} bytes, kernel cache {plan.cache:,} bytes")

    # 4. numpy, C here and C on the emulated core make the same kernels and logits, to the byte.
    windows = pipeline.spread_windows(image, data.test.x, 32)
    proof = pipeline.verify_stage(image, windows, x86=len(windows), target=2)
    print(f"{proof.compared:,} bytes compared, {proof.differ} differ")
    for line in proof.not_run:
        print(f"NOT RUN: {line}")

    # 5. Only now test: the choices are frozen, and this look is counted in a log.
    settings = {"network": graph.to_dict(), "train": asdict(config), "seed": given.seed}
    pipeline.freeze_stage(given.out / "choices.json", quantised, data, settings, chosen.median, replace=True)
    log = (given.out if data.synthetic else Path("results")) / "test-log.jsonl"  # looks at real test data are counted in one place
    tested = pipeline.test_stage(image, data, given.out / "choices.json", run=str(given.out), log=log)
    print(f"test macro-F1 {tested.figures['macro_f1']:.3f} at t* {quantised.threshold:.2f} ({kind}), look number {tested.evaluations}")
    return int(proof.differ != 0)


if __name__ == "__main__":
    sys.exit(main())
