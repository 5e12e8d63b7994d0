"""Keyword spotting: clips of a second, MFCC on the host, a network of generated kernels, the same logits everywhere.

    python examples/keyword_spotting.py [--steps 300] [--out out/keywords] [--data-dir FOLDER [--protocol official6]]

With --data-dir it reads Google's Speech Commands (`pyhtpw data list`; extras `train` and `data`). Without it the "words" are tones that
rise, fall or stay, and noise, made here: SYNTHETIC, which shows that everything runs and says nothing about speech. The front end is
float and runs on the host; figures of the image do not include it.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np

import pyhtpw
from pyhtpw import pipeline
from pyhtpw.data import Dataset, Split, load
from pyhtpw.data.dataset import describe
from pyhtpw.data.mfcc import Mfcc
from pyhtpw.data.seal import seal
from pyhtpw.recipes import recipe

WORDS = ("rising", "falling", "steady", "noise")
SPEAKERS = {"train": range(24), "val": range(24, 32), "test": range(32, 44)}  # nobody is on two sides
CLIPS = 4  # of each word, of each speaker


def clip(word: str, pitch: float, rng: np.random.Generator, front_end: Mfcc) -> np.ndarray:
    """One second of a gliding tone with three harmonics, or of noise; full scale 1."""
    time = np.arange(front_end.rate) / front_end.rate
    noise = rng.normal(0, 0.05, len(time))
    if word == "noise":
        return 4 * noise
    glide = {"rising": 1.2, "falling": -1.2, "steady": 0.0}[word] + rng.normal(0, 0.15)
    phase = 2 * np.pi * np.cumsum(pitch * 2.0 ** (glide * (time - 0.5))) / front_end.rate
    envelope = np.exp(-0.5 * ((time - rng.uniform(0.4, 0.6)) / 0.2) ** 2)
    return 0.3 * envelope * sum(np.sin(k * phase) / k for k in (1, 2, 3)) + noise


def synthetic(seed: int = 0) -> Dataset:
    """The tones as a data set, divided by made-up speakers of different pitch; coefficients normalised by the training clips."""
    front_end, splits = Mfcc(coefficients=20), {}
    for part, speakers in SPEAKERS.items():
        audio, y, group = [], [], []
        for speaker in speakers:
            rng = np.random.default_rng([seed, speaker])
            pitch = rng.uniform(150, 500)
            for label, word in enumerate(WORDS):
                audio += [clip(word, pitch, rng, front_end) for _ in range(CLIPS)]
                y += [label] * CLIPS
                group += [f"speaker{speaker:02d}"] * CLIPS
        splits[part] = [front_end(np.array(audio)), np.array(y, np.int64), np.array(group)]
    mean, deviation = splits["train"][0].mean((0, 1)), splits["train"][0].std((0, 1))
    for part, (x, y, group) in splits.items():
        position = np.arange(len(y), dtype=np.int64) * front_end.rate
        splits[part] = Split(((x - mean) / deviation).astype(np.float32), y, group, position, np.ones(len(y), bool))
    source = hashlib.sha256(b"".join(split.x.tobytes() for split in splits.values())).hexdigest()
    description = describe(WORDS, splits, protocol="tones", options={"seed": seed}, source_sha256=source,
                           warnings=["synthetic tones: no figure on them says anything about speech"], same_person={})
    return Dataset("synthetic-tones", True, front_end.rate / front_end.hop, WORDS, **splits, description=description)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="keyword spotting")
    parser.add_argument("--steps", type=int, default=300, help="training steps (default 300)")
    parser.add_argument("--out", type=Path, default=Path("out/keywords"), help="folder of everything that is written")
    parser.add_argument("--data-dir", type=Path, help="Speech Commands; without it the words are synthetic tones")
    parser.add_argument("--protocol", default="official6", help="of Speech Commands (default official6)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)

    if given.data_dir is None:
        data = synthetic(given.seed)
        kind = "synthetic tones"
    else:
        data = load("speech-commands", data_dir=given.data_dir, protocol=given.protocol)
        kind = data.description["part"]
    data = seal(data)
    print(f"{kind}: {len(data.train):,} / {len(data.val):,} / {len(data.test):,} clips of {len(data.classes)} classes")
    for line in data.description["warnings"]:
        print(f"warning: {line}")

    chosen = recipe("speech-commands", "official6" if data.synthetic else data.description["protocol"])
    pipeline.prepare_folder(given.out)
    graph, _, result = pipeline.train_stage(chosen, data, given.out / "run", seed=given.seed, steps=given.steps)
    quantised = pipeline.quantise_stage(graph, result.params, data, seed=given.seed)
    image = pyhtpw.pack(quantised.model, given.out / "keywords.htpw")
    print(f"validation macro-F1 {result.val_macro_f1:.3f} in float, {quantised.macro_f1:.3f} with integer logits ({kind})")
    print(f"image: {len(image.data):,} bytes; the MFCC front end is not on the device and not in that number")

    # A few validation clips: what the network says, and that numpy and C say it alike.
    windows = image.quantise(np.asarray(data.val.x[:8]))
    for label, said in zip(data.val.y[:8], image.run_batch(windows).argmax(1), strict=True):
        print(f"  {data.classes[label]:>8} taken for {data.classes[said]}")
    proof = pipeline.verify_stage(image, windows, x86=len(windows), target=1)
    print(f"{proof.compared:,} bytes compared, {proof.differ} differ")
    for line in proof.not_run:
        print(f"NOT RUN: {line}")
    return int(proof.differ != 0)


if __name__ == "__main__":
    sys.exit(main())
