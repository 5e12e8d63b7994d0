"""Google Speech Commands v0.02: one-second clips of single words, by speaker; keyword spotting on MFCC.

Source: Warden P, "Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition", arXiv:1804.03209, 2018;
licence CC BY 4.0. Not part of this package. Two folders are understood, and told apart by the file ``index.csv``:

the published archive
    ``WORD/HASH_nohash_N.wav`` (or .flac), ``validation_list.txt``, ``testing_list.txt``, ``_background_noise_``; beside
    them, if the user has put it there, the published test archive in ``test12`` or ``speech_commands_test_set_v0.02``,
    one folder per class. Protocol ``official12``.
a part of it
    The complete official test set and the official training and validation clips that were at hand, in ``test12``,
    ``extra/train``, ``extra/val``, ``extra/train_more`` (coded with loss, training only), ``background_noise``, with
    ``index.csv``. Protocols ``official6`` and ``split10``.

Protocols:

``official12``
    Ten words, unknown, silence, by the official lists. As in the script published with the data set, unknown words are
    a tenth of the ten words' clips in each split, drawn here by `data_seed`, and so is silence. With the test archive
    the test set is that archive, unknown and silence included, as in published figures.
``official6``
    yes, no, up, down, unknown, silence, in the official parts: train on ``extra/train`` (and ``extra/train_more``
    unless ``lossy=False``), validate on ``extra/val``, test on those classes of ``test12``. No speaker is in two parts.
``split10``
    All twelve classes. Hardly any training clips of six of the words were at hand, so ``test12`` itself is divided by
    speaker: first 8 hexadecimal digits of SHA-256 of the speaker, modulo 10: 0 and 1 test, 2 validation, else training
    (silence: by file name); ``extra`` adds to training and validation. **A figure on it is not the official test
    accuracy.**

The input is `pyhtpw.data.mfcc.Mfcc`, 101 frames of 40 coefficients, each coefficient at mean 0 and standard deviation 1
over the training clips (unchanged copies only); `Dataset.fs` is the frame rate, 100 Hz. The front end runs on the host.

Silence for training and validation is cut from the noise recordings at random places and volumes (uniform from 0 to
1); training and validation never cut the same samples. The official test set has silence from the same recordings, and
from which places is not told: that is so in all published figures too. It is counted as the ten words are on average,
which is the published rule.

A clip's group is its speaker; silence of a test set is a group per file, silence cut here one per split and recording.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from . import cache
from .audio import CLIP, Cut, Noise, changed, fit, read_audio
from .checks import Problems, check_sums, two_sides
from .dataset import SPLITS, Dataset, describe
from .mfcc import Mfcc

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
CLASSES = {"official12": (*WORDS, "unknown", "silence"), "split10": (*WORDS, "unknown", "silence"),
           "official6": (*WORDS[:4], "unknown", "silence")}
SOURCE = "Speech Commands v0.02, Warden 2018, arXiv:1804.03209"
LICENCE = "CC BY 4.0"
PART = {
    "official12": "Speech Commands v0.02, 12 classes, official lists",
    "official6": "Speech Commands, official parts for yes/no/up/down/unknown/silence only; not the 12-class task",
    "split10": "Speech Commands, official 12-class test set divided by speaker (split10); not the official test accuracy",
}
LOSSY = "; training includes clips coded with loss (Opus)"
TEST_FOLDERS = ("test12", "speech_commands_test_set_v0.02")
NOISE_FOLDER = {True: "background_noise", False: "_background_noise_"}  # of a part, of the archive
# Stretch of every noise recording that a split may cut. The middle two are only for `official12` without test archive.
SPANS = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0)}
FRONT_END = Mfcc()

# Part of the cache key: raise it whenever the windows made from the same files and options change.
_CACHE_VERSION = 1
_CHUNK = 64  # clips transformed together: 30 MB in double precision
_INDEX_FIELDS = ("file", "label", "word", "speaker", "official_split", "n_samples", "pcm_sha256_16", "split10", "codec")


@dataclass(frozen=True)
class Clip:
    """A file, or a cut of noise.

    `file` is relative to the folder (of a cut: the recording's); `pcm` as in `audio.read_audio`.
    """

    file: str
    label: int
    group: str
    pcm: str | None = None
    cut: Cut | None = None


def read(*, data_dir: str | os.PathLike[str], protocol: str = "official6",
         cache_dir: str | os.PathLike[str] | None = None, lossy: bool = True, copies: int = 0, data_seed: int = 0,
         progress: Callable[[int, int, str], None] | None = None) -> Dataset:
    """Read the data set from a folder; see the module for folders and protocols.

    Parameters
    ----------
    data_dir : path
        The folder, or one that has it as its subfolder ``speech-commands``.
    protocol : {'official6', 'split10', 'official12'}
    cache_dir : path, optional
        See `pyhtpw.data.cache.cache_root`. A clip takes 16 kB.
    lossy : bool
        ``official6`` and ``split10``: train on the clips of ``extra/train_more`` too, which are coded with loss.
    copies : int
        Changed copies of each training clip beside it, 0 to 20: shifted by up to 100 ms, with noise (`audio.changed`);
        of silence another cut.
    data_seed : int
        Of what is drawn: places and volumes of silence, unknown words (``official12``), copies. Apart from the seed of
        a training, so that runs of several seeds are validated on the same clips.
    progress : callable, optional
        ``progress(done, total, what)``; never called on a cache hit.

    Returns
    -------
    Dataset
        x (N, 101, 40). ``description["features"]`` has the front end's parameters, mean and deviation.

    Raises
    ------
    ConfigError
        An option out of range.
    DataError
        A file is missing, unreadable, not at 16 kHz, or contradicts the index; a speaker is on two sides; a class is
        empty; or the cache cannot be written.
    """
    if protocol not in CLASSES:
        raise ConfigError(f"speech-commands has no protocol {protocol!r}: choose {', '.join(CLASSES)}")
    for name, value, most in (("copies", copies, 20), ("data_seed", data_seed, 2**31 - 1)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise ConfigError(f"speech-commands: {name} {value!r} is out of range: give an integer from 0 to {most}")
    if not isinstance(lossy, bool):
        raise ConfigError(f"speech-commands: lossy {lossy!r} is neither True nor False")
    folder, part_only = find(data_dir)
    if part_only != (protocol != "official12"):
        fits = "official6 and split10" if part_only else "official12"
        raise ConfigError(f"speech-commands: {folder} {'has' if part_only else 'has no'} index.csv, so its protocols are "
                          f"{fits}, not {protocol}: choose among these, or another folder")
    noise_files = recordings(folder, part_only)
    audio = [read_audio(folder / name, name) for name in noise_files]
    noises = {part: Noise(audio, noise_files, SPANS[part]) for part in SPLITS}
    clips = plan(folder, protocol, lossy, noises, data_seed)

    options: dict[str, Any] = {"copies": copies, "data_seed": data_seed}
    if part_only:
        options["lossy"] = lossy
    source, key = _hashes(folder, clips, noise_files, {
        "version": _CACHE_VERSION, "protocol": protocol, "front end": repr(FRONT_END), **options})
    entry = cache.cache_root(cache_dir) / f"speech-commands-{protocol}-{key[:32]}"
    splits = cache.opened(entry, lambda: _build(entry, folder, clips, noises, copies, data_seed, progress))
    part = PART[protocol] + (LOSSY if part_only and lossy else "")
    if protocol == "official12" and published_test(folder) is None:
        part += "; unknown and silence of test drawn here, not those of the published test archive"
    description = describe(
        CLASSES[protocol], splits, protocol=protocol, options=options, source_sha256=source, warnings=[],
        same_person={}, part=part, source=SOURCE, licence=LICENCE, front_end="on the host, not on the device",
        features=cache.notes(entry))
    return Dataset("speech-commands", False, FRONT_END.rate / FRONT_END.hop, CLASSES[protocol], splits["train"],
                   splits["val"], splits["test"], description)


# --- which clips --------------------------------------------------------------------------------------------------


def find(data_dir: str | os.PathLike[str]) -> tuple[Path, bool]:
    """The folder, and whether it is a part with an index; DataError if it is neither that nor the archive."""
    given = Path(data_dir)
    for folder in (given / "speech-commands", given):
        if (folder / "index.csv").is_file():
            return folder, True
        if (folder / "testing_list.txt").is_file():
            return folder, False
    raise DataError(f"speech-commands: {given} has neither index.csv nor testing_list.txt: give the folder of the data set, "
                    "or download it with `pyhtpw data fetch speech-commands`")


def recordings(folder: Path, part_only: bool) -> list[str]:
    """The noise recordings, sorted."""
    where = NOISE_FOLDER[part_only]
    return sorted(f"{where}/{path.name}" for path in (folder / where).glob("*") if path.suffix in (".wav", ".flac"))


def plan(folder: Path, protocol: str, lossy: bool, noises: dict[str, Noise], data_seed: int) -> dict[str, list[Clip]]:
    """The clips of each split; DataError where a class has none or a file is not there."""
    classes = CLASSES[protocol]
    rng = np.random.default_rng(np.random.SeedSequence(data_seed, spawn_key=(0,)))
    if protocol == "official12":
        clips = _official12(folder, rng)
    else:
        clips = {part: [] for part in SPLITS}
        for row in index(folder):
            part, label = side(row, protocol), row["label"].strip("_")
            if part is not None and label in classes and (lossy or row["codec"] != "opus"):
                # Of an opus file the index has the samples before coding, which it does not give back.
                pcm = row["pcm_sha256_16"] if row["codec"] == "flac" else None
                clips[part].append(Clip(row["file"], classes.index(label), speaker(row), pcm))
    silence = classes.index("silence")
    for part in SPLITS:
        counts = Counter(classes[clip.label] for clip in clips[part])
        present = counts["silence"]
        words = [counts[name] for name in classes if name not in ("unknown", "silence")]
        # A test set brings its silence, and so does what split10 takes of it for validation; training is filled up.
        if part == "train" or not present:
            for _ in range(max(0, round(sum(words) / len(words)) - present)):
                cut = noises[part].draw(rng, 1.0)
                name = noises[part].names[cut.recording]
                clips[part].append(Clip(name, silence, f"silence/{part}/{Path(name).stem}", cut=cut))
        empty = [name for k, name in enumerate(classes) if not any(clip.label == k for clip in clips[part])]
        if empty:
            raise DataError(f"speech-commands: {part} has no clip of {', '.join(empty)}: copy the data set anew")
    missing = [clip.file for part in SPLITS for clip in clips[part] if not (folder / clip.file).is_file()]
    if missing:
        raise DataError(f"speech-commands: {folder} lacks {len(missing)} files, {', '.join(missing[:3])}"
                        f"{', ...' if len(missing) > 3 else ''}: copy the data set anew (`pyhtpw data check "
                        "speech-commands` names all)")
    return clips


def index(folder: Path) -> list[dict[str, str]]:
    """The rows of ``index.csv``; DataError if it is malformed."""
    try:
        with open(folder / "index.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"speech-commands: index.csv cannot be read ({' '.join(str(error).split())}): copy it anew") from error
    for at, row in enumerate(rows, 2):
        if any(row.get(field) is None for field in _INDEX_FIELDS):
            raise DataError(f"speech-commands: index.csv line {at} lacks one of {', '.join(_INDEX_FIELDS)}: copy it anew")
    if not rows:
        raise DataError("speech-commands: index.csv has no rows: copy it anew")
    return rows


def side(row: dict[str, str], protocol: str) -> str | None:
    """The split of a row of the index under `official6` or `split10`; None if it is in none (noise recordings)."""
    part = row["official_split"] if protocol == "official6" else row["split10"]
    return part if part in SPLITS else None


def speaker(row: dict[str, str]) -> str:
    """The group of a row of the index: the speaker, or the silence clip's own name."""
    return row["speaker"] or f"silence/{Path(row['file']).stem}"


def split10_of(name: str) -> str:
    """The split of a speaker of the test set (of silence: the file's name) under ``split10``."""
    tenth = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 10
    return "test" if tenth < 2 else "val" if tenth == 2 else "train"


def _official12(folder: Path, rng: np.random.Generator) -> dict[str, list[Clip]]:
    classes = CLASSES["official12"]
    listed = {part: official_list(folder, name) for part, name in (("val", "validation_list.txt"), ("test", "testing_list.txt"))}
    words: dict[str, list[Clip]] = {part: [] for part in SPLITS}
    others: dict[str, list[Clip]] = {part: [] for part in SPLITS}
    for name in archive_files(folder):
        word, stem = name.split("/")
        plain = f"{word}/{Path(stem).stem}"
        part = next((part for part in ("val", "test") if plain in listed[part]), "train")
        label = classes.index(word) if word in WORDS else classes.index("unknown")
        (words if word in WORDS else others)[part].append(Clip(name, label, stem.split("_nohash_")[0]))
        listed.get(part, set()).discard(plain)
    lacking = sorted(listed["val"] | listed["test"])
    if lacking:
        raise DataError(f"speech-commands: {len(lacking)} clips of the official lists are missing, {', '.join(lacking[:3])}"
                        f"{', ...' if len(lacking) > 3 else ''}: unpack the archive anew")
    clips = {}
    for part in SPLITS:
        share = min(len(others[part]), -(-len(words[part]) // 10))
        drawn = np.sort(rng.permutation(len(others[part]))[:share])
        clips[part] = words[part] + [others[part][k] for k in drawn]
    archive = published_test(folder)
    return clips if archive is None else {**clips, "test": archive}


def published_test(folder: Path) -> list[Clip] | None:
    """The clips of the published test archive, one folder per class; None if it is not there."""
    classes = CLASSES["official12"]
    where = next((name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if where is None:
        return None
    clips = []
    for path in sorted((folder / where).glob("*/*")):
        label = path.parent.name.strip("_")
        if label in classes and path.suffix in (".wav", ".flac"):
            # HASH_nohash_N, WORD_HASH_nohash_N for unknown words, or the name of a piece of noise
            named = "_nohash_" in path.stem
            who = path.stem.split("_nohash_")[0].split("_")[-1] if named else f"silence/{path.stem}"
            clips.append(Clip(f"{where}/{path.parent.name}/{path.name}", classes.index(label), who))
    return clips


def official_list(folder: Path, name: str) -> set[str]:
    """Clips of an official list as WORD/HASH_nohash_N."""
    try:
        return {line.strip().removesuffix(".wav") for line in (folder / name).read_text("utf-8").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"speech-commands: {name} cannot be read ({' '.join(str(error).split())}): unpack the archive anew") from error


def archive_files(folder: Path) -> list[str]:
    """Every clip of the archive's layout, WORD/HASH_nohash_N.wav or .flac, sorted."""
    skip = (*TEST_FOLDERS, NOISE_FOLDER[False])
    return sorted(f"{path.parent.name}/{path.name}" for path in folder.glob("*/*_nohash_*")
                  if path.suffix in (".wav", ".flac") and path.parent.name not in skip)


# --- check --------------------------------------------------------------------------------------------------------


def check(data_dir: str | os.PathLike[str], progress: Callable[[int, int, str], None] | None = None) -> list[str]:
    """Every problem, for ``pyhtpw data check``; every file is decoded."""
    folder, part_only = find(data_dir)
    problems = Problems()
    check_sums(folder, problems, progress)
    noise_files = recordings(folder, part_only)
    audio = [problems.attempt(read_audio, folder / name, name) for name in noise_files]
    problems.attempt(Noise, [a for a in audio if a is not None],
                     [n for n, a in zip(noise_files, audio, strict=True) if a is not None], SPANS["test"])
    groups: dict[str, dict[str, set[str]]] = {name: {part: set() for part in SPLITS} for name in CLASSES}
    held: dict[str, dict[str, set[str]]] = {name: {part: set() for part in SPLITS} for name in CLASSES}
    if part_only:
        protocols = ("official6", "split10")
        rows = problems.attempt(index, folder) or []
        for done, row in enumerate(rows, 1):
            problems.attempt(_check_row, folder, row)
            for name in protocols:
                if side(row, name) is not None:
                    groups[name][side(row, name)].add(speaker(row))
                    held[name][side(row, name)].add(row["label"].strip("_"))
            if progress is not None and done % 100 == 0:
                progress(done, len(rows), row["file"])
        indexed = {row["file"] for row in rows}
        for path in sorted([*folder.glob("**/*.flac"), *folder.glob("**/*.opus")]):
            name = path.relative_to(folder).as_posix()
            if rows and name not in indexed:
                problems.add(f"{name} is not in index.csv: remove it, or copy the index anew")
    else:
        protocols = ("official12",)
        names = archive_files(folder)
        listed = {part: problems.attempt(official_list, folder, name) or set()
                  for part, name in (("val", "validation_list.txt"), ("test", "testing_list.txt"))}
        there = {f"{name.split('/')[0]}/{Path(name).stem}" for name in names}
        for part, file in (("val", "validation_list.txt"), ("test", "testing_list.txt")):
            for name in sorted(listed[part] - there):
                problems.add(f"{name}.wav is missing, but {file} names it: unpack the archive anew")
        for name in sorted(listed["val"] & listed["test"]):
            problems.add(f"{name} is in both official lists: copy them anew")
        for done, name in enumerate(names, 1):
            problems.attempt(lambda name=name: fit(read_audio(folder / name, name), name))
            plain = f"{name.split('/')[0]}/{Path(name).stem}"
            part = next((part for part in ("val", "test") if plain in listed[part]), "train")
            groups["official12"][part].add(Path(name).stem.split("_nohash_")[0])
            held["official12"][part].add(name.split("/")[0] if name.split("/")[0] in WORDS else "unknown")
            if progress is not None and done % 100 == 0:
                progress(done, len(names), name)
        archive = published_test(folder)
        if archive is not None:  # it is the test set then
            held["official12"]["test"] = {CLASSES["official12"][clip.label] for clip in archive}
            for clip in archive:
                problems.attempt(_audio, folder, clip, None)
                groups["official12"]["test"].add(clip.group)
    for name in protocols:
        for message in two_sides(groups[name], f"speech-commands, {name}", "speaker"):
            problems.add(message)
        for part in SPLITS:
            drawn = part != "test" or (name == "official12" and published_test(folder) is None)  # silence cut from recordings
            empty = [c for c in CLASSES[name] if c not in held[name][part] and not (c == "silence" and drawn)]
            if empty:
                problems.add(f"speech-commands, {name}: {part} has no clip of {', '.join(empty)}: copy the data set anew")
    return problems


def _check_row(folder: Path, row: dict[str, str]) -> None:
    """What the index says of a file against the file; DataError names the first contradiction."""
    name = row["file"]
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"index.csv names {name!r}, which leaves the folder: copy the index anew")
    audio = read_audio(folder / name, name, pcm=row["pcm_sha256_16"] if row["codec"] == "flac" else None)
    if str(audio.size) != row["n_samples"]:
        raise DataError(f"{name} has {audio.size} samples, index.csv states {row['n_samples']}: copy it anew")
    if not row["official_split"]:  # a noise recording
        return
    fit(audio, name)
    if Path(name).parent.name != row["label"]:
        raise DataError(f"{name} lies in another folder than its label {row['label']}: copy it and index.csv anew")
    # The rule divides the test set; `extra` goes to training and validation, whatever the hash says.
    rule = split10_of(row["speaker"] or Path(name).name) if row["official_split"] == "test" else row["official_split"]
    if row["split10"] != rule:
        raise DataError(f"{name}: index.csv has it in the split10 part {row['split10']!r}, the rule in {rule!r}: copy the index "
                        "anew")


# --- windows ------------------------------------------------------------------------------------------------------


def _hashes(folder: Path, clips: dict[str, list[Clip]], noise_files: list[str], options: dict[str, Any]) -> tuple[str, str]:
    """SHA-256 of the source files with their place in the splits, and of them with the options (the cache key)."""
    source = hashlib.sha256()
    names = [(part, clip.file) for part in SPLITS for clip in clips[part] if clip.cut is None]
    for part, name in names + [("noise", name) for name in noise_files]:
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"{name} cannot be read ({error.strerror}): correct its permissions or copy it anew") from error
        source.update(f"{part} {name} {len(content)}\n".encode())
        source.update(content)
    key = hashlib.sha256(source.digest() + json.dumps(options, sort_keys=True).encode())
    return source.hexdigest(), key.hexdigest()


def _audio(folder: Path, clip: Clip, noise: Noise | None) -> np.ndarray:
    if clip.cut is not None and noise is not None:
        return noise.cut(clip.cut)
    return fit(read_audio(folder / clip.file, clip.file, pcm=clip.pcm), clip.file)


def _variants(folder: Path, clip: Clip, noise: Noise, copies: int, data_seed: int, number: int) -> Iterator[np.ndarray]:
    """A training clip and its changed copies; the draws belong to (seed, clip, copy)."""
    audio = _audio(folder, clip, noise)
    yield audio
    name = f"{clip.file} {number}" if clip.cut else clip.file
    key = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    for copy in range(copies):
        rng = np.random.default_rng(np.random.SeedSequence(data_seed, spawn_key=(1, key, copy)))
        yield noise.cut(noise.draw(rng, 1.0)) if clip.cut else changed(audio, noise, rng)


def _build(entry: Path, folder: Path, clips: dict[str, list[Clip]], noises: dict[str, Noise], copies: int,
           data_seed: int, progress: Callable[[int, int, str], None] | None) -> None:
    """Transform all clips and store them as a cache entry: once over training for the statistics, then over all."""
    total = len(clips["train"]) + sum(map(len, clips.values()))
    done = 0

    def told(what: str, more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total, what)

    count, sums, squares = 0, 0.0, 0.0
    for start in range(0, len(clips["train"]), _CHUNK):
        chosen = clips["train"][start:start + _CHUNK]
        x = FRONT_END(np.stack([_audio(folder, clip, noises["train"]) for clip in chosen])).astype(np.float64)
        count += x.shape[0] * x.shape[1]
        sums, squares = sums + x.sum(axis=(0, 1)), squares + (x * x).sum(axis=(0, 1))
        told("statistics of train", len(chosen))
    mean = sums / count
    deviation = np.sqrt(np.maximum(squares / count - mean * mean, 0))
    # A coefficient that never moves stays 0.
    deviation = np.where(deviation > 1e-6, deviation, 1.0)

    labels = {}
    for part in SPLITS:
        repeat = 1 + copies if part == "train" else 1
        middle = [CLIP // 2 + (clip.cut.start if clip.cut else 0) for clip in clips[part]]
        labels[part] = {
            "y": np.repeat(np.array([clip.label for clip in clips[part]], np.int64), repeat),
            "group": np.repeat(np.array([clip.group for clip in clips[part]], dtype=str), repeat),
            "position": np.repeat(np.array(middle, np.int64), repeat),
            "score_mask": np.ones(len(clips[part]) * repeat, bool),
        }

    def chunks() -> Iterator[tuple[str, np.ndarray]]:
        for part in SPLITS:
            for start in range(0, len(clips[part]), _CHUNK):
                chosen = clips[part][start:start + _CHUNK]
                for rows in _in_chunks(folder, part, chosen, noises[part], copies, data_seed, start):
                    yield part, ((FRONT_END(rows) - mean) / deviation).astype(np.float32)
                told(part, len(chosen))

    shape = (FRONT_END.frames(CLIP), FRONT_END.coefficients)
    notes = {"front_end": vars_of(FRONT_END), "mean": mean.tolist(), "deviation": deviation.tolist()}
    cache.store(entry, shape, labels, chunks(), notes)


def _in_chunks(folder: Path, part: str, chosen: list[Clip], noise: Noise, copies: int, data_seed: int,
               first: int) -> Iterator[np.ndarray]:
    """The audio of some clips of a split with their copies, (up to _CHUNK, CLIP) at a time."""
    rows: list[np.ndarray] = []
    for number, clip in enumerate(chosen, first):
        rows += (_variants(folder, clip, noise, copies, data_seed, number) if part == "train"
                 else [_audio(folder, clip, noise)])
        if len(rows) >= _CHUNK:
            yield np.stack(rows)
            rows = []
    if rows:
        yield np.stack(rows)


def vars_of(front_end: Mfcc) -> dict[str, Any]:
    """The parameters of a front end, for JSON."""
    return {name: getattr(front_end, name) for name in Mfcc.__dataclass_fields__}
