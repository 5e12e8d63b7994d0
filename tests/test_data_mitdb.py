"""The MIT-BIH loader, on records written here with wfdb: right names and annotations, a few seconds each."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

wfdb = pytest.importorskip("wfdb", reason="NOT RUN: the package wfdb is not installed")

from pyhtpw.data import cache, load, mitdb  # noqa: E402
from pyhtpw.errors import ConfigError, DataError  # noqa: E402

# Deprecations inside wfdb, not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")

REAL = os.environ.get("HTPW_DATA")
LENGTH = 900
WINDOW = 64
# Every record: rhythm mark, then beats, the last three F, Q and paced. The first and last windows leave the record.
MARKS = [(5, "+"), (30, "N"), (150, "V"), (260, "L"), (370, "E"), (480, "~"), (590, "A"), (700, "F"), (800, "Q"),
         (890, "/")]


def digital(name: str) -> np.ndarray:
    """Two leads of a record, (LENGTH, 2), different for every record."""
    rng = np.random.default_rng(int(name))
    return 1024 + rng.integers(-200, 200, (LENGTH, 2)).cumsum(axis=0) % 701 - 350


def leads(name: str) -> list[str]:
    return {"102": ["V5", "V2"], "104": ["V5", "V2"], "114": ["V5", "MLII"]}.get(name, ["MLII", "V5"])


def write_record(folder: Path, name: str, *, fmt: str = "212", fs: int = 360, marks: list[tuple[int, str]] = MARKS,
                 signal: np.ndarray | None = None) -> None:
    signal = digital(name) if signal is None else signal
    wfdb.wrsamp(name, fs=fs, units=["mV", "mV"], sig_name=leads(name), d_signal=signal, fmt=[fmt, fmt],
                adc_gain=[200.0, 200.0], baseline=[1024, 1024], write_dir=str(folder))
    if marks:
        wfdb.wrann(name, "atr", np.array([m[0] for m in marks]), symbol=[m[1] for m in marks], write_dir=str(folder))


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records") / "mitdb"
    folder.mkdir()
    for name in mitdb.RECORDS:
        write_record(folder, name)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "mitdb"))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's folders have no part in these tests; the one on the real records names them itself."""
    monkeypatch.delenv("HTPW_DATA", raising=False)
    monkeypatch.delenv("HTPW_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def read(folder: Path, tmp_path: Path, **options):
    options.setdefault("window", WINDOW)
    return load("mitdb", data_dir=folder, cache_dir=tmp_path / "cache", **options)


def naive_window(signal: np.ndarray, centre: int, window: int) -> np.ndarray:
    """The definition, one sample at a time."""
    first = centre - window // 2
    inside = [signal[i] for i in range(first, first + window) if 0 <= i < len(signal)]
    mean = sum(inside) / len(inside)
    std = max((sum((v - mean) ** 2 for v in inside) / len(inside)) ** 0.5, 0.01)
    return np.array([(signal[i] - mean) / std if 0 <= i < len(signal) else 0.0 for i in range(first, first + window)])


def test_paper_protocol(folder: Path, tmp_path: Path) -> None:
    calls = []
    data = read(folder, tmp_path, progress=lambda *a: calls.append(a))
    assert (data.name, data.synthetic, data.fs, data.classes) == ("mitdb", False, 360.0, ("other", "ventricular"))
    records = data.description["records"]
    assert [len(records[part]) for part in ("train", "val", "test")] == [38, 5, 5]
    assert records["val"] == ["220", "221", "222", "223", "228"]
    assert records["test"] == ["230", "231", "232", "233", "234"]
    for split, count in ((data.train, 38), (data.val, 5), (data.test, 5)):
        assert len(split) == count * len(MARKS)
        assert split.score_mask.all()
        assert split.y.tolist() == [int(symbol in "VE") for _, symbol in MARKS] * count
        assert split.position.tolist() == [sample for sample, _ in MARKS] * count
    assert data.test.group.tolist() == [name for name in records["test"] for _ in MARKS]
    assert data.description["test_counts"]["233"] == {"other": 8, "ventricular": 2, "unscored": 0}
    assert data.description["warnings"] == []
    assert [c[0] for c in calls] == list(range(1, 49)) and calls[0][1:] == (48, "record 100")
    assert json.loads(json.dumps(data.description)) == data.description


def test_windows_are_the_definition(folder: Path, tmp_path: Path) -> None:
    data = read(folder, tmp_path)
    for split in (data.val, data.test):
        assert isinstance(split.x, np.memmap) and not split.x.flags.writeable
        for i in range(len(split)):
            signal = (digital(split.group[i])[:, 0] - 1024) / 200
            want = naive_window(signal.tolist(), int(split.position[i]), WINDOW)
            np.testing.assert_allclose(split.x[i, :, 0], want, atol=2e-6)
    # Padding is 0: before the first sample, and after the last.
    assert (data.test.x[0, :WINDOW // 2 - 5] == 0).all() and (data.test.x[9, WINDOW // 2 + 10:] == 0).all()


def test_flat_signal_stays_flat(folder: Path, tmp_path: Path) -> None:
    signal = np.full((LENGTH, 2), 1024)
    signal[::2] += 1  # 5 uV: below the floor of 10 uV
    write_record(folder, "234", signal=signal)
    data = read(folder, tmp_path)
    assert np.abs(data.test.x[data.test.group == "234"]).max() < 0.3


def test_aami_protocol(folder: Path, tmp_path: Path) -> None:
    data = read(folder, tmp_path, protocol="aami")
    records = data.description["records"]
    assert tuple(records["val"]) == mitdb.AAMI_VAL and tuple(records["test"]) == mitdb.DS2
    assert sorted(records["train"] + records["val"] + ["201"]) == sorted(mitdb.DS1)
    # N V L E A; in validation and test also F Q and paced, not scored.
    assert data.train.y.tolist() == [0, 1, 0, 1, 0] * 16 and data.train.score_mask.all()
    assert data.test.y.tolist() == [0, 1, 0, 1, 0, 0, 0, 0] * 22
    assert data.test.score_mask.tolist() == [True] * 5 + [False] * 3 + ([True] * 5 + [False] * 3) * 21
    assert data.description["counts"]["test"] == {"other": 66, "ventricular": 44, "unscored": 66}
    # Lead MLII is the second one of record 114.
    at = np.flatnonzero(data.train.group == "114")[0]
    want = naive_window(((digital("114")[:, 1] - 1024) / 200).tolist(), 30, WINDOW)
    np.testing.assert_allclose(data.train.x[at, :, 0], want, atol=2e-6)


def test_aami_strict_keeps_201_and_says_so(folder: Path, tmp_path: Path) -> None:
    data = read(folder, tmp_path, protocol="aami", aami_strict=True)
    assert "201" in data.description["records"]["train"] and "202" in data.description["records"]["test"]
    assert len(data.description["warnings"]) == 1 and "201" in data.description["warnings"][0]


def test_lists_are_whole() -> None:
    assert len(mitdb.RECORDS) == 48 and list(mitdb.RECORDS) == sorted(set(mitdb.RECORDS))
    assert sorted(mitdb.DS1 + mitdb.DS2 + ("102", "104", "107", "217")) == list(mitdb.RECORDS)
    assert set(mitdb.AAMI_VAL) < set(mitdb.DS1) - {"201"}


def test_default_windows_and_leads(folder: Path, tmp_path: Path) -> None:
    assert read(folder, tmp_path, window=None).test.x.shape[1] == 1800
    assert read(folder, tmp_path, window=None, protocol="aami").test.x.shape[1] == 512
    second = read(folder, tmp_path, lead=1)
    want = naive_window(((digital("233")[:, 1] - 1024) / 200).tolist(), 5, WINDOW)
    np.testing.assert_allclose(second.test.x[second.test.group == "233"][0, :, 0], want, atol=2e-6)


def test_flac_gives_the_same_windows(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="NOT RUN: the package soundfile, which format 516 needs, is not installed")
    plain = read(folder, tmp_path)
    for name in ("220", "234"):
        write_record(folder, name, fmt="516")
    assert "516" in (folder / "220.hea").read_text()
    flac = read(folder, tmp_path)
    assert flac.description["source_sha256"] != plain.description["source_sha256"]
    assert flac.val.x.tobytes() == plain.val.x.tobytes() and flac.test.x.tobytes() == plain.test.x.tobytes()


def test_folder_above_and_environment(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTPW_DATA", str(folder.parent))
    monkeypatch.setenv("HTPW_CACHE", str(tmp_path / "elsewhere"))
    data = load("mitdb", window=WINDOW)
    assert len(data.test) == 50
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


# --- bad input ----------------------------------------------------------------------------------------------------


def drop(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(name: str, keep: int):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def edit(name: str, old: str, new: str):
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))
    return change


def flip(folder: Path) -> None:
    data = bytearray((folder / "231.dat").read_bytes())
    data[300] ^= 1
    (folder / "231.dat").write_bytes(bytes(data))


def gap(folder: Path) -> None:
    signal = digital("231")
    signal[77] = -2048
    write_record(folder, "231", signal=signal)


def odd_flac(folder: Path) -> None:
    (folder / "231.hea").write_text((folder / "231.hea").read_text().replace(" 212 ", " 516 "))


BAD = {
    "missing files, all named": (drop("100.dat", "233.atr", "234.hea"), ["lacks 3 of 144", "100.dat 233.atr 234.hea"]),
    "short signal": (cut("231.dat", 1200), ["record 231", "900 samples", "holds 400"]),
    "long signal": (lambda f: (f / "231.dat").write_bytes((f / "231.dat").read_bytes() * 2), ["231", "holds 1800"]),
    "empty signal": (cut("231.dat", 0), ["record 231", "holds 0"]),
    "one bit wrong": (flip, ["record 231", "checksum"]),
    "no header line": (cut("231.hea", 0), ["record 231", "231.hea cannot be read"]),
    "garbled header": (lambda f: (f / "231.hea").write_bytes(b"\xff\xfe\x00garbage"), ["231.hea cannot be read"]),
    "segments": (lambda f: (f / "231.hea").write_text("231/2 2 360 900\n100 450\n101 450\n"), ["231", "segments"]),
    "not FLAC": (odd_flac, ["record 231", "FLAC"]),
    "rate": (edit("231.hea", "360", "250"), ["record 231", "250", "not 360"]),
    "length": (edit("231.hea", "900", "901"), ["record 231", "901 samples"]),
    "gap": (gap, ["record 231", "sample 77"]),
    "no annotations": (lambda f: (f / "231.atr").write_bytes(b"\0\0"), ["record 231", "231.atr"]),
    "annotation beyond": (lambda f: write_record(f, "231", marks=[(5, "N"), (905, "N")]), ["231", "905", "900"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_records(case: str, folder: Path, tmp_path: Path) -> None:
    change, words = BAD[case]
    change(folder)
    with pytest.raises(DataError) as caught:
        read(folder, tmp_path)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


def test_bad_arguments(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="HTPW_DATA"):
        load("mitdb")
    with pytest.raises(DataError, match="no folder .*nowhere"):
        load("mitdb", data_dir=tmp_path / "nowhere")
    for options, word in (({"protocol": "other"}, "'paper' or 'aami'"), ({"window": 15}, "16 to 21600"),
                          ({"window": 64.0}, "16 to 21600"), ({"lead": -1}, "neither"), ({"windows": 3}, "it has"),
                          ({"aami_strict": True}, "'aami'")):
        with pytest.raises(ConfigError, match=word):
            read(folder, tmp_path, **options)
    with pytest.raises(DataError, match="record 102: has no lead 'MLII', it has V5, V2"):
        read(folder, tmp_path, lead="MLII")
    with pytest.raises(DataError, match="record 100: has no lead 2"):
        read(folder, tmp_path, lead=2)


def test_a_split_without_beats(folder: Path, tmp_path: Path) -> None:
    for name in mitdb.AAMI_VAL:
        write_record(folder, name, marks=[(5, "+")])
    with pytest.raises(DataError, match="val records .* no beats"):
        read(folder, tmp_path, protocol="aami")


# --- cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def signals_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The records whose signal was read, in order: empty on a cache hit."""
    names: list[str] = []
    real = mitdb._signal
    monkeypatch.setattr(mitdb, "_signal", lambda folder, name, lead: (names.append(name), real(folder, name, lead))[1])
    return names


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").iterdir())


def test_cache_hit_and_miss(folder: Path, tmp_path: Path, signals_read: list[str]) -> None:
    first = read(folder, tmp_path)
    assert len(signals_read) == 48
    again = read(folder, tmp_path)
    assert len(signals_read) == 48 and again.description == first.description
    for part in ("train", "val", "test"):
        for field in ("x", "y", "group", "position", "score_mask"):
            assert np.array_equal(getattr(getattr(again, part), field), getattr(getattr(first, part), field))
    read(folder, tmp_path, window=WINDOW + 1)
    read(folder, tmp_path, protocol="aami")
    assert len(signals_read) == 48 + 48 + 43 and len(entries(tmp_path)) == 3
    write_record(folder, "234", signal=digital("233"))
    assert read(folder, tmp_path).description["source_sha256"] != first.description["source_sha256"]
    assert len(entries(tmp_path)) == 4


def one_byte(entry: Path) -> None:
    path = entry / "test.x.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 16
    path.write_bytes(bytes(data))


DAMAGE = {
    "one bit": one_byte,
    "cut short": lambda e: (e / "train.x.npy").write_bytes((e / "train.x.npy").read_bytes()[:-4]),
    "a file gone": lambda e: (e / "val.group.npy").unlink(),
    "no manifest": lambda e: (e / "manifest.json").unlink(),
    "manifest cut": lambda e: (e / "manifest.json").write_text((e / "manifest.json").read_text()[:40]),
    "manifest empty": lambda e: (e / "manifest.json").write_text("{}"),
    "manifest of another form": lambda e: (e / "manifest.json").write_text("[1]"),
    "an empty folder": lambda e: [f.unlink() for f in e.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_cache_is_made_anew(damage: str, folder: Path, tmp_path: Path, signals_read: list[str]) -> None:
    first = read(folder, tmp_path)
    want = first.test.x.tobytes()
    del first
    entry, = entries(tmp_path)
    DAMAGE[damage](entry)
    assert cache.fetch(entry) is None
    assert read(folder, tmp_path).test.x.tobytes() == want
    assert len(signals_read) == 96
    assert entries(tmp_path) == [entry] and cache.fetch(entry) is not None


def test_killed_writers_are_swept(folder: Path, tmp_path: Path) -> None:
    old, young = tmp_path / "cache" / ".partial-old", tmp_path / "cache" / ".partial-young"
    for path in (old, young):
        path.mkdir(parents=True)
    os.utime(old, (0, 0))
    read(folder, tmp_path)
    assert not old.exists() and young.exists()


def test_unwritable_cache(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(DataError, match="HTPW_CACHE"):
        read(folder, tmp_path)


def test_full_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self, data):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(cache._NpyStream, "_put", full)
    with pytest.raises(DataError, match="No space left.*free space"):
        read(folder, tmp_path)
    assert entries(tmp_path) == []


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.cache_root(tmp_path) == tmp_path
    assert cache.cache_root(None) == tmp_path / "xdg" / "pyhtpw"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_root(None) == Path.home() / ".cache" / "pyhtpw"
    monkeypatch.setenv("HTPW_CACHE", str(tmp_path / "other"))
    assert cache.cache_root(None) == tmp_path / "other"


# --- the real records ---------------------------------------------------------------------------------------------


def test_real_records(tmp_path: Path) -> None:
    """Counts that are published, or follow from the published annotation counts."""
    if not REAL:
        pytest.skip("NOT RUN: set HTPW_DATA to a folder with the MIT-BIH Arrhythmia Database to check its real counts")
    # Short windows: the counts do not depend on them, and they keep the cache small.
    paper = load("mitdb", data_dir=REAL, window=16, cache_dir=tmp_path)
    counts = paper.description["counts"]
    assert sum(counts[part][name] for part in counts for name in paper.classes) == 112647
    assert [counts[part]["ventricular"] for part in ("train", "val", "test")] == [5168, 1231, 837]
    assert paper.description["test_counts"]["233"]["ventricular"] == 831
    aami = {"data_dir": REAL, "protocol": "aami", "window": 16, "cache_dir": tmp_path}
    strict = load("mitdb", aami_strict=True, **aami).description["counts"]
    # de Chazal et al. 2004: 3788 ventricular beats in DS1, 3221 in DS2.
    assert strict["train"]["ventricular"] + strict["val"]["ventricular"] == 3788
    assert strict["test"] == {"other": 46096, "ventricular": 3221, "unscored": 395}
    person = load("mitdb", **aami).description["counts"]
    assert [person[part]["ventricular"] for part in ("train", "val", "test")] == [2836, 754, 3221]
