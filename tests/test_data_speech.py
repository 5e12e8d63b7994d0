"""The Speech Commands loader, on folders of both layouts written here: synthetic sounds under the published names."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile", reason="NOT RUN: the package soundfile is not installed")

from pyhtpw.data import load, speech_commands  # noqa: E402
from pyhtpw.data.audio import CLIP, Cut, Noise, changed  # noqa: E402
from pyhtpw.data.mfcc import Mfcc  # noqa: E402
from pyhtpw.errors import ConfigError, DataError  # noqa: E402

TEN = speech_commands.WORDS
OPUS = "OPUS" in soundfile.available_subtypes("OGG")


def sound(name: str, samples: int = 4000) -> np.ndarray:
    """A tone in noise, another for every name: int16."""
    rng = np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    t = np.arange(samples) / 16000
    return (6000 * np.sin(2 * np.pi * rng.uniform(200, 3000) * t) + rng.normal(0, 300, samples)).astype(np.int16)


def write(folder: Path, name: str, samples: np.ndarray | None = None, rate: int = 16000) -> np.ndarray:
    """A clip in the format of its ending; returns its int16 samples."""
    samples = sound(name) if samples is None else samples
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    kind = {".flac": ("FLAC", "PCM_16"), ".wav": ("WAV", "PCM_16"), ".opus": ("OGG", "OPUS")}[Path(name).suffix]
    soundfile.write(str(folder / name), samples, rate, format=kind[0], subtype=kind[1])
    return samples


def noise(name: str) -> np.ndarray:
    return np.random.default_rng(len(name)).normal(0, 3000, 170_000).astype(np.int16)


def speakers(part: str, count: int, ending: str = "") -> list[str]:
    """Names that the rule of split10 puts into a part."""
    names = (hashlib.sha256(f"{part}{ending}{k}".encode()).hexdigest()[:8] + ending for k in range(10_000))
    return [name for name in names if speech_commands.split10_of(name) == part][:count]


def make_part(folder: Path) -> Path:
    rows = []

    def add(name: str, label: str, who: str, official: str, split10: str) -> None:
        samples = write(folder, name)
        rows.append({"file": name, "label": label, "word": label, "speaker": who, "official_split": official,
                     "n_samples": samples.size, "pcm_sha256_16": hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()[:16],
                     "source": "made here", "split10": split10, "codec": "opus" if name.endswith(".opus") else "flac"})

    for part, count in (("train", 2), ("val", 1), ("test", 1)):
        for label in (*TEN, "_unknown_"):
            for who in speakers(part, count):
                add(f"test12/{label}/{'cat_' if label == '_unknown_' else ''}{who}_nohash_0.flac", label, who, "test", part)
        for name in speakers(part, count, ".flac"):
            add(f"test12/_silence_/{name}", "_silence_", "", "test", part)
    for official, count in (("train", 3), ("val", 2)):
        for label in (*TEN[:4], "_unknown_"):
            for k in range(count):
                who = f"{official[0]}{k:07d}"
                word = "dog_" if label == "_unknown_" else ""
                add(f"extra/{official}/{label}/{word}{who}_nohash_1.flac", label, who, official, official)
    if OPUS:
        for label in (*TEN[:4], "_unknown_"):
            word = "bed_" if label == "_unknown_" else ""
            add(f"extra/train_more/{label}/{word}m0000000_nohash_0.opus", label, "m0000000", "train", "train")
    for name in ("pink", "tap"):
        samples = noise(name)
        write(folder, f"background_noise/{name}.flac", samples)
        rows.append({**dict.fromkeys(rows[0], ""), "file": f"background_noise/{name}.flac", "label": "_background_noise_", "codec": "flac",
                     "n_samples": samples.size, "pcm_sha256_16": hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()[:16]})
    write_index(folder, rows)
    return folder


def write_index(folder: Path, rows: list[dict]) -> None:
    with open(folder / "index.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def rows_of(folder: Path) -> list[dict]:
    with open(folder / "index.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def make_archive(folder: Path) -> Path:
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for word in (*TEN, "cat", "bed"):
        for k, part in enumerate(["train", "train", "train", "validation_list.txt", "testing_list.txt"]):
            name = f"{word}/{part[0]}{k:07d}_nohash_0.wav"
            write(folder, name)
            if part in lists:
                lists[part].append(name)
    for file, names in lists.items():
        (folder / file).write_text("\n".join(names) + "\n")
    for name in ("pink", "tap"):
        write(folder, f"_background_noise_/{name}.wav", noise(name))
    return folder


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_part(tmp_path_factory.mktemp("speech") / "speech-commands")


@pytest.fixture
def part(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "speech-commands"))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HTPW_DATA", raising=False)


def read(folder: Path, tmp_path: Path, **options):
    return load("speech-commands", data_dir=folder, cache_dir=tmp_path / "cache", **options)


def labels(data, part: str) -> dict[str, int]:
    counts = dict(data.description["counts"][part])
    assert counts.pop("unscored") == 0
    return counts


def test_official6(part: Path, tmp_path: Path) -> None:
    data = read(part.parent, tmp_path)
    more = int(OPUS)
    assert (data.name, data.synthetic, data.fs) == ("speech-commands", False, 100.0)
    assert data.classes == ("yes", "no", "up", "down", "unknown", "silence")
    assert labels(data, "train") == dict.fromkeys(data.classes, 3 + more)  # silence: as many as the words on average
    assert labels(data, "val") == dict.fromkeys(data.classes, 2)
    assert labels(data, "test") == dict.fromkeys(data.classes, 4)
    assert data.train.x.shape[1:] == (101, 40) and data.train.x.dtype == np.float32
    assert "yes/no/up/down/unknown/silence only" in data.description["part"] and "Opus" in data.description["part"]
    assert data.description["licence"] == "CC BY 4.0"
    assert json.loads(json.dumps(data.description)) == data.description


def test_lossless_only(part: Path, tmp_path: Path) -> None:
    data = read(part, tmp_path, protocol="official6:lossy=false")
    assert labels(data, "train") == dict.fromkeys(data.classes, 3) and "Opus" not in data.description["part"]
    assert data.description["options"] == {"lossy": False, "copies": 0, "data_seed": 0}


def test_split10(part: Path, tmp_path: Path) -> None:
    data = read(part, tmp_path, protocol="split10", lossy=False)
    assert data.classes == (*TEN, "unknown", "silence")
    train = labels(data, "train")
    assert [train[name] for name in TEN] == [5] * 4 + [2] * 6 and train["unknown"] == 5
    assert train["silence"] == 3  # two clips of the test set, filled up to the mean of the words, 3.2
    assert labels(data, "val") == {name: 3 if name in (*TEN[:4], "unknown") else 1 for name in data.classes}
    assert labels(data, "test") == dict.fromkeys(data.classes, 1)
    assert "not the official test accuracy" in data.description["part"]
    words = set(data.test.group[data.test.y < 11])
    assert words == set(speakers("test", 1)) and not words & set(data.train.group)


def test_features_are_those_of_the_clips(part: Path, tmp_path: Path) -> None:
    """Padded with zeros at the end, transformed, and scaled by the statistics of the training clips."""
    data = read(part, tmp_path, lossy=False)
    stated = data.description["features"]
    front = Mfcc(**stated["front_end"])
    mean, deviation = np.array(stated["mean"]), np.array(stated["deviation"])
    for split, where in ((data.train, "train"), (data.val, "val")):
        at = int(np.flatnonzero((split.y == 2) & (split.group == f"{where[0]}0000001"))[0])
        samples = sound(f"extra/{where}/up/{where[0]}0000001_nohash_1.flac")
        audio = np.concatenate([samples, np.zeros(CLIP - samples.size, np.int16)]) / np.float32(32768)
        np.testing.assert_allclose(split.x[at], (front(audio[None])[0] - mean) / deviation, atol=1e-4)
        assert split.position[at] == 8000
    np.testing.assert_allclose(data.train.x.mean(axis=(0, 1)), 0, atol=1e-4)
    np.testing.assert_allclose(data.train.x.std(axis=(0, 1)), 1, atol=1e-3)


def test_silence_is_cut_from_its_own_stretch(part: Path, tmp_path: Path) -> None:
    data = read(part, tmp_path)
    for split, low, high in ((data.train, 0, 0.8), (data.val, 0.8, 0.9)):
        cut = split.y == 5
        assert (split.position[cut] >= low * 170_000 + 8000).all() and (split.position[cut] <= high * 170_000 - 8000).all()
        assert all(name.startswith("silence/") for name in split.group[cut])
    again = read(part, tmp_path, data_seed=1)
    assert again.train.x.tobytes() != data.train.x.tobytes()


def test_copies(part: Path, tmp_path: Path) -> None:
    plain, data = read(part, tmp_path, lossy=False), read(part, tmp_path, protocol="official6:lossy=false,copies=2")
    assert len(data.train) == 3 * len(plain.train)
    assert data.val.x.tobytes() == plain.val.x.tobytes() and data.test.x.tobytes() == plain.test.x.tobytes()
    assert data.train.x[::3].tobytes() == plain.train.x.tobytes()  # each clip, then its copies, on the same scale
    assert (data.train.y[1::3] == plain.train.y).all() and (data.train.group[2::3] == plain.train.group).all()
    x = data.train.x.reshape(-1, 3, 101 * 40)
    assert (np.abs(x[:, 1] - x[:, 2]).max(axis=1) > 0.1).all() and (np.abs(x[:, 0] - x[:, 1]).max(axis=1) > 0.1).all()
    shutil.rmtree(tmp_path / "cache")
    assert read(part, tmp_path, lossy=False, copies=2).train.x.tobytes() == data.train.x.tobytes()


def test_changed_copies_shift_and_add_noise() -> None:
    quiet = Noise([np.zeros(20_000, np.float32)], ["none"], (0, 1))
    audio = np.arange(1, CLIP + 1, dtype=np.float32) / (2 * CLIP)
    moves = set()
    for seed in range(40):
        out = changed(audio, quiet, np.random.default_rng(seed))
        kept = np.flatnonzero(out)
        move = int(kept[0] - round(float(out[kept[0]]) * 2 * CLIP - 1))
        assert abs(move) <= 1600 and kept.size == CLIP - abs(move)
        assert (out[kept] == audio[kept - move]).all()
        moves.add(move)
    assert min(moves) < -300 and max(moves) > 300
    loud = Noise([np.ones(20_000, np.float32)], ["hum"], (0, 1))
    levels = np.array([changed(np.zeros(CLIP, np.float32), loud, np.random.default_rng(seed)).max() for seed in range(200)])
    assert levels.max() <= 0.1 and 0.1 < (levels == 0).mean() < 0.3
    assert (loud.cut(Cut(0, 5, 0.25)) == 0.25).all()


def test_cache(part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(part, tmp_path)
    monkeypatch.setattr(speech_commands, "_build", None)  # a hit builds nothing
    again = read(part, tmp_path)
    assert again.description == first.description and again.train.x.tobytes() == first.train.x.tobytes()
    assert isinstance(again.train.x, np.memmap)


def test_official12(tmp_path: Path) -> None:
    folder = make_archive(tmp_path / "v2")
    data = read(folder, tmp_path, protocol="official12")
    assert data.classes == (*TEN, "unknown", "silence")
    assert labels(data, "train") == {**dict.fromkeys(TEN, 3), "unknown": 3, "silence": 3}  # a tenth of the words' 30
    for name in ("val", "test"):
        assert labels(data, name) == dict.fromkeys(data.classes, 1)
    assert set(data.val.group[data.val.y < 11]) == {"v0000003"} and set(data.test.group[data.test.y < 11]) == {"t0000004"}
    assert "not those of the published test archive" in data.description["part"]
    assert speech_commands.check(folder) == []

    for label in (*TEN, "_unknown_", "_silence_"):
        name = {"_unknown_": "cat_t0000009_nohash_0", "_silence_": "0017"}.get(label, "t0000009_nohash_0")
        write(folder, f"test12/{label}/{name}.wav")
    data = read(folder, tmp_path, protocol="official12")
    assert labels(data, "test") == dict.fromkeys(data.classes, 1)
    assert set(data.test.group) == {"t0000009", "silence/0017"} and "drawn" not in data.description["part"]
    assert speech_commands.check(folder) == []
    (folder / "test12/up/t0000009_nohash_0.wav").write_bytes(b"no")
    (folder / "test12/_silence_/0017.wav").unlink()
    (folder / "test12/go/t0000009_nohash_0.wav").rename(folder / "test12/go/v0000003_nohash_0.wav")
    problems = speech_commands.check(folder)
    for words in ("test12/up/t0000009_nohash_0.wav cannot be read", "test has no clip of silence",
                  "speaker v0000003 is in val and in test"):
        assert any(words in problem for problem in problems), words


def test_wrong_protocol_for_the_folder(part: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="official6 and split10, not official12"):
        read(part, tmp_path, protocol="official12")
    with pytest.raises(ConfigError, match="no protocol 'other'"):
        read(part, tmp_path, protocol="other")
    with pytest.raises(DataError, match="neither index.csv nor testing_list.txt"):
        read(tmp_path / "nowhere", tmp_path)
    with pytest.raises(DataError, match="HTPW_DATA"):
        load("speech-commands")


@pytest.mark.parametrize("options, words", [
    ({"copies": 21}, "0 to 20"), ({"copies": True}, "0 to 20"), ({"data_seed": -1}, "data_seed"), ({"lossy": 1}, "neither True"),
    ({"protocol": "official6:copies"}, "is no option"), ({"protocol": "official6:lossy=maybe"}, "'maybe'"),
    ({"protocol": "official6:window=9"}, "no option window"), ({"protocol": "official6:copies=1", "copies": 2}, "given twice"),
])
def test_bad_options(options: dict, words: str, part: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        read(part, tmp_path, **options)


# --- bad input ----------------------------------------------------------------------------------------------------


def an_up(folder: Path) -> str:
    return next(row["file"] for row in rows_of(folder) if row["file"].startswith("extra/train/up/"))


def reindex(change):
    def apply(folder: Path) -> None:
        rows = rows_of(folder)
        change(rows)
        write_index(folder, rows)
    return apply


def move_speaker(rows: list[dict]) -> None:
    row = next(row for row in rows if row["file"].startswith("extra/val/up/"))
    row["speaker"] = "t0000001"


def other_tenth(rows: list[dict]) -> None:
    row = next(row for row in rows if row["file"].startswith("test12/go/") and row["split10"] == "test")
    row["split10"] = "val"


BAD = {
    "missing": (lambda f: (f / an_up(f)).unlink(), ["extra/train/up/"], "missing"),
    "not audio": (lambda f: (f / an_up(f)).write_bytes(b"RIFF no"), ["cannot be read as audio"], "extra/train/up/"),
    "cut short": (lambda f: (f / an_up(f)).write_bytes((f / an_up(f)).read_bytes()[:900]), ["extra/train/up/"], "extra/train/up/"),
    "rate": (lambda f: write(f, an_up(f), rate=8000), ["8000 Hz, not 16000"], "8000 Hz"),
    "stereo": (lambda f: write(f, an_up(f), np.stack([sound("a")] * 2, 1)), ["2 channels"], "2 channels"),
    "other samples": (lambda f: write(f, an_up(f), sound("other")), ["holds other samples"], "holds other samples"),
    "too long": (lambda f: write(f, an_up(f), sound(an_up(f), 17000)), ["extra/train/up/"], "extra/train/up/"),
    "a speaker on two sides": (reindex(move_speaker), ["share t0000001"], "speaker t0000001 is in train and in val"),
    "no index rows": (lambda f: (f / "index.csv").write_text("file,label\n"), ["no rows"], "no rows"),
    "index columns": (lambda f: (f / "index.csv").write_text("file,label\na,b\n"), ["line 2 lacks"], "line 2 lacks"),
    "an empty class": (reindex(lambda rows: rows.__setitem__(slice(None), [r for r in rows if "extra/val/no/" not in r["file"]])),
                       ["val has no clip of no"], "val has no clip of no"),
    "no noise": (lambda f: shutil.rmtree(f / "background_noise"), ["no recordings of background noise"], "no recordings"),
    "short noise": (lambda f: write(f, "background_noise/tap.flac", sound("tap", 20_000)), ["too short"], "too short"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders(case: str, part: Path, tmp_path: Path) -> None:
    """The loader refuses in one line and leaves no cache entry; `check` names it too."""
    change, words, found = BAD[case]
    change(part)
    with pytest.raises(DataError) as caught:
        read(part, tmp_path)
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message, message
    assert any(found in problem for problem in speech_commands.check(part))


def test_check_lists_all_at_once(part: Path) -> None:
    assert speech_commands.check(part) == []
    reindex(other_tenth)(part)
    write(part, "extra/train/no/ffffffff_nohash_0.flac")
    BAD["not audio"][0](part)
    BAD["a speaker on two sides"][0](part)
    problems = speech_commands.check(part)
    for words in ("the rule in 'test'", "ffffffff_nohash_0.flac is not in index.csv", "cannot be read as audio", "speaker t0000001"):
        assert any(words in problem for problem in problems), words


def test_check_compares_checksums(part: Path) -> None:
    name = an_up(part)
    good = hashlib.sha256((part / name).read_bytes()).hexdigest()
    (part / "SHA256SUMS").write_text(f"{good}  {name}\n{good}  index.csv\n{good}  gone.flac\nno sum\n")
    problems = speech_commands.check(part)
    assert len(problems) == 3
    assert "index.csv is not what SHA256SUMS says" in problems[0] and "gone.flac is missing" in problems[1] and "line 4" in problems[2]


def test_archive_problems(tmp_path: Path) -> None:
    folder = make_archive(tmp_path / "v2")
    (folder / "yes/v0000003_nohash_0.wav").unlink()
    (folder / "no/t0000000_nohash_0.wav").write_bytes(b"")
    shutil.copy(folder / "up/t0000000_nohash_0.wav", folder / "up/v0000003_nohash_5.wav")  # a validation speaker, not listed
    with pytest.raises(DataError, match="1 clips of the official lists are missing, yes/v0000003_nohash_0"):
        read(folder, tmp_path, protocol="official12")
    problems = speech_commands.check(folder)
    for words in ("yes/v0000003_nohash_0.wav is missing", "no/t0000000_nohash_0.wav", "speaker v0000003 is in train and in val",
                  "val has no clip of yes"):
        assert any(words in problem for problem in problems), words
