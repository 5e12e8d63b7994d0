"""The Apnea-ECG and PTB-XL loaders, on WFDB records written here under the published names."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

wfdb = pytest.importorskip("wfdb", reason="NOT RUN: the package wfdb is not installed")

from pyhtpw.data import apnea_ecg, load, ptb_xl  # noqa: E402
from pyhtpw.data.hrv import beat_features  # noqa: E402
from pyhtpw.errors import ConfigError, DataError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")

MINUTES = 3
LEADS = ["I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6"]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HTPW_DATA", raising=False)


def read(name: str, folder: Path, tmp_path: Path, **options):
    return load(name, data_dir=folder, cache_dir=tmp_path / "cache", **options)


# --- Apnea-ECG ----------------------------------------------------------------------------------------------------


def apnea_signal(name: str, samples: int = MINUTES * 6000 + 500) -> np.ndarray:
    return np.random.default_rng([ord(c) for c in name]).integers(-300, 300, (samples, 1)).cumsum(axis=0) % 1001 - 500


def apnea_labels(name: str) -> str:
    """One label more than there are whole minutes; records of c are normal all night."""
    return "NNNN" if name[0] == "c" and name != "c05" else "NANA" if int(name[1:]) % 2 else "AANN"


def apnea_beats(name: str) -> np.ndarray:
    """A beat every 0.7 to 0.9 s, an interval of 3 s in the second minute; samples."""
    rr = 80 + 10 * np.sin(np.arange(230) / (3 + int(name[1:])))
    beats = np.cumsum(rr).astype(np.int64)
    return beats[((beats < 6900) | (beats > 7200)) & (beats < 18400)]


def write_apnea(folder: Path, name: str, signal: np.ndarray | None = None, fs: int = 100) -> None:
    wfdb.wrsamp(name, fs=fs, units=["mV"], sig_name=["ECG"], d_signal=apnea_signal(name) if signal is None else signal, fmt=["16"],
                adc_gain=[200.0], baseline=[0], write_dir=str(folder))


@pytest.fixture(scope="session")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records") / "apnea-ecg"
    folder.mkdir()
    for name in apnea_ecg.LEARNING + apnea_ecg.WITHHELD:
        write_apnea(folder, name)
        beats = apnea_beats(name)
        wfdb.wrann(name, "qrs", beats, symbol=["|" if k == 20 else "N" for k in range(beats.size)], write_dir=str(folder))
        if name[0] != "x":
            labels = apnea_labels(name)
            wfdb.wrann(name, "apn", 6000 * np.arange(len(labels)), symbol=list(labels), write_dir=str(folder))
    lines = [f"{name}\n 0 {apnea_labels(name)}\n" for name in apnea_ecg.WITHHELD]
    (folder / "event-2-answers.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def apnea(nights: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(nights, tmp_path / "apnea-ecg"))


def test_apnea_challenge(apnea: Path, tmp_path: Path) -> None:
    data = read("apnea-ecg", apnea.parent, tmp_path, protocol="challenge")
    records = data.description["records"]
    assert records["val"] == ["a05", "a10", "a15", "a20", "b05", "c05", "c10"] and records["test"] == list(apnea_ecg.WITHHELD)
    assert sorted(records["train"] + records["val"]) == list(apnea_ecg.LEARNING)
    assert data.classes == ("normal", "apnea") and data.fs == 100 and data.train.x.shape == (28 * 9, 1800, 1)
    # 18 s three times, seconds 3 to 57 of each whole minute; the fourth label has no minute and is counted.
    assert data.test.position[:9].tolist() == [1200, 3000, 4800, 7200, 9000, 10800, 13200, 15000, 16800]
    assert data.test.y[:9].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]  # x01: NAN
    assert data.description["left_out"] == {"train": 28, "val": 7, "test": 35}
    signal = apnea_signal("x02")[:, 0] / 200
    piece = signal[3000 - 900:3000 + 900]
    at = np.flatnonzero(data.test.group == "x02")[1]
    np.testing.assert_allclose(data.test.x[at, :, 0], (piece - piece.mean()) / piece.std(), atol=1e-5)
    assert "fewer people" in data.description["warnings"][0] and data.description["licence"] == "ODC-By 1.0"
    assert json.loads(json.dumps(data.description)) == data.description


def test_apnea_records(apnea: Path, tmp_path: Path) -> None:
    """80/10/10 by record, each part with records of both kinds; the same every time."""
    for name in apnea_ecg.WITHHELD:
        (apnea / f"{name}.dat").unlink()  # not read by this protocol
    data = read("apnea-ecg", apnea, tmp_path, window=600)
    records = data.description["records"]
    assert sorted(name for part in records.values() for name in part) == list(apnea_ecg.LEARNING)
    assert [len(records[part]) for part in ("train", "val", "test")] == [27, 4, 4]
    for part in records:
        assert {apnea_labels(name) == "NNNN" for name in records[part]} == {True, False}
    assert data.val.x.shape[1:] == (600, 1)


def test_apnea_labels_from_files_or_from_the_answers(apnea: Path) -> None:
    assert apnea_ecg.minute_labels(apnea, "x03").tolist() == [0, 1, 0, 1]
    wfdb.wrann("x03", "apn", 6000 * np.arange(4), symbol=list("AAAA"), write_dir=str(apnea))
    assert apnea_ecg.minute_labels(apnea, "x03").tolist() == [1, 1, 1, 1]
    (apnea / "event-2-answers.txt").write_text("x01\n 0 " + "N" * 60 + "\n 2 AA\n")
    with pytest.raises(DataError, match="line 3: hour 2 does not follow"):
        apnea_ecg.answers(apnea)


def test_apnea_beats_without_ecg(apnea: Path, tmp_path: Path) -> None:
    for path in apnea.glob("*.dat"):
        path.unlink()
    with pytest.raises(DataError, match="not run: data not at hand"):
        read("apnea-ecg", apnea, tmp_path)
    data = read("apnea-ecg", apnea, tmp_path, protocol="beats:context=1")
    assert data.train.x.shape == (28 * 3, 3, 8) and data.fs == pytest.approx(1 / 60)
    assert "no ECG" in data.description["part"]
    middle = data.train.x[:, 1]
    np.testing.assert_allclose(middle.mean(axis=0), 0, atol=1e-5)
    # The minute before the first is no minute: the mean, which is 0. The one after is the next window's.
    assert (data.test.x[0, 0] == 0).all() and (data.test.x[0, 2] == data.test.x[1, 1]).all()
    beats = apnea_beats("x01") / 100
    beats = np.delete(beats, 20)  # the mark of an artifact is no beat
    want = beat_features(beats[(beats >= 60) & (beats < 120)], 10)
    stated = data.description["features"]
    np.testing.assert_allclose(data.test.x[1, 1], (want - stated["mean"]) / stated["deviation"], atol=1e-4)
    assert data.description["minutes_without_features"] == {"train": 0, "val": 0, "test": 0}
    assert apnea_ecg.check(apnea) == []


APNEA_BAD = {
    "missing": (lambda f: (f / "x09.dat").unlink(), "x09.dat"),
    "short": (lambda f: (f / "a07.dat").write_bytes((f / "a07.dat").read_bytes()[:999]), "a07.hea states 18500 samples"),
    "rate": (lambda f: write_apnea(f, "a08", fs=250), "sampled at 250 Hz, not 100"),
    "one bit": (lambda f: (f / "a09.dat").write_bytes(b"\x07" + (f / "a09.dat").read_bytes()[1:]), "checksum"),
    "symbol": (lambda f: wfdb.wrann("a11", "apn", np.array([0, 6000]), symbol=["N", "V"], write_dir=str(f)), "symbol 'V'"),
    "not each minute": (lambda f: wfdb.wrann("a12", "apn", np.array([0, 6001]), symbol=["N", "A"], write_dir=str(f)), "one per minute"),
    "label length": (lambda f: wfdb.wrann("a13", "apn", 6000 * np.arange(9), symbol=["N"] * 9, write_dir=str(f)), "9 labels for 3 whole"),
    "no answers": (lambda f: (f / "event-2-answers.txt").unlink(), "x01.apn"),
    "answers cut": (lambda f: (f / "event-2-answers.txt").write_text("x01\n 0 NNA\n"), "no labels of x02, x03"),
}


@pytest.mark.parametrize("case", APNEA_BAD)
def test_apnea_bad(case: str, apnea: Path, tmp_path: Path) -> None:
    change, words = APNEA_BAD[case]
    change(apnea)
    with pytest.raises(DataError, match=words) as caught:
        read("apnea-ecg", apnea, tmp_path, protocol="challenge")
    assert "\n" not in str(caught.value)


def test_apnea_beat_beyond_the_signal(apnea: Path, tmp_path: Path) -> None:
    wfdb.wrann("a07", "qrs", np.array([50, 18500]), symbol=["N", "N"], write_dir=str(apnea))
    with pytest.raises(DataError, match="a beat at sample 18500, the signal has 18500"):
        read("apnea-ecg", apnea, tmp_path, protocol="beats")
    assert any("a07.qrs has a beat" in problem for problem in apnea_ecg.check(apnea))


def test_apnea_empty_class(apnea: Path, tmp_path: Path) -> None:
    (apnea / "event-2-answers.txt").write_text("".join(f"{name}\n 0 NNN\n" for name in apnea_ecg.WITHHELD))
    with pytest.raises(DataError, match="has no minute labelled apnea"):
        read("apnea-ecg", apnea, tmp_path, protocol="challenge")
    assert apnea_ecg.check(apnea) == ["apnea-ecg, challenge: test has no minute labelled apnea: check the labels"]


def test_apnea_arguments(apnea: Path, tmp_path: Path) -> None:
    for options, words in (({"window": 2001}, "100 to 2000"), ({"context": -1}, "0 to 10"), ({"protocol": "paper"}, "no protocol")):
        with pytest.raises(ConfigError, match=words):
            read("apnea-ecg", apnea, tmp_path, **options)
    with pytest.raises(DataError, match="no a01.hea"):
        read("apnea-ecg", tmp_path / "nowhere", tmp_path)


def test_apnea_check_lists_all(apnea: Path) -> None:
    cases = [case for case in APNEA_BAD if case != "no answers"]  # they are cut already
    for case in cases:
        APNEA_BAD[case][0](apnea)
    (apnea / "c03.qrs").write_bytes(b"\0\0")
    problems = apnea_ecg.check(apnea)
    for words in [APNEA_BAD[case][1] for case in cases] + ["c03.qrs"]:
        assert sum(words in problem for problem in problems) == 1, (words, problems)
    assert len(problems) == len(cases) + 1


# --- PTB-XL -------------------------------------------------------------------------------------------------------

# (patient, fold, statements): two of each superclass in every part, one of two superclasses, one of none.
STATEMENTS = {"NORM": "NORM", "IMI": "MI", "NDT": "STTC", "LAFB": "CD", "LVH": "HYP"}
ROWS = [(f"{100 * fold + k}.0", fold, codes) for fold in (1, 8, 9, 10) for k, codes in enumerate(
    [{code: 100.0, "SR": 0.0} for code in STATEMENTS] + [{"NORM": 80.0, "IMI": 0.0}, {"SR": 0.0}])]


def ptb_signal(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(-50, 50, (1000, 12)).cumsum(axis=0) % 901 - 450


def write_statements(folder: Path) -> None:
    lines = [f"{code},some words,1.0,,,{name}" for code, name in STATEMENTS.items()]
    (folder / "scp_statements.csv").write_text("\n".join([",description,diagnostic,form,rhythm,diagnostic_class", *lines,
                                                          "SR,sinus rhythm,,,1.0,"]) + "\n")


def write_table(folder: Path, rows: list[tuple]) -> None:
    with open(folder / "ptbxl_database.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ecg_id", "patient_id", "scp_codes", "strat_fold", "filename_lr"])
        for number, (patient, fold, codes) in enumerate(rows, 1):
            writer.writerow([number, patient, codes, fold, f"records100/00000/{number:05d}_lr"])


def write_ecg(folder: Path, number: int, *, fs: int = 100, leads: list[str] = LEADS, length: int = 1000) -> None:
    (folder / "records100/00000").mkdir(parents=True, exist_ok=True)
    n = len(leads)
    wfdb.wrsamp(f"{number:05d}_lr", fs=fs, units=["mV"] * n, sig_name=leads, d_signal=ptb_signal(number)[:length, :n], fmt=["16"] * n,
                adc_gain=[1000.0] * n, baseline=[0] * n, write_dir=str(folder / "records100/00000"))


def write_arrays(folder: Path, **changes) -> None:
    n = len(ROWS)
    arrays = {"signals_uV": np.stack([ptb_signal(k) for k in range(1, n + 1)]).astype(np.int16), "leads": np.array(LEADS),
              "ecg_id": np.arange(1, n + 1, dtype=np.int32), "patient_id": np.array([float(r[0]) for r in ROWS]).astype(np.int32),
              "strat_fold": np.array([r[1] for r in ROWS], np.int8), "scp_codes": np.array([str(r[2]) for r in ROWS]), "fs": np.int32(100)}
    np.savez(folder / "ptbxl_100hz_some.npz", **{**arrays, **changes})


@pytest.fixture(scope="session")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records") / "ptb-xl"
    folder.mkdir()
    write_table(folder, ROWS)
    write_statements(folder)
    for number in range(1, len(ROWS) + 1):
        write_ecg(folder, number)
    return folder


@pytest.fixture
def ptb(hearts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hearts, tmp_path / "ptb-xl"))


def test_ptb_norm(ptb: Path, tmp_path: Path) -> None:
    data = read("ptb-xl", ptb.parent, tmp_path)
    assert data.classes == ("normal", "diagnostic") and data.fs == 100
    # NORM with another superclass is diagnostic; no superclass is left out and counted.
    assert data.test.y.tolist() == [0, 1, 1, 1, 1, 1] and data.train.y.tolist() == [0, 1, 1, 1, 1, 1] * 2
    assert data.description["left_out"]["test"] == {"no superclass": 1, "several superclasses": 0}
    assert data.test.group.tolist() == ["1000", "1001", "1002", "1003", "1004", "1005"]
    signal = ptb_signal(22)[:, 1] / 1000.0  # record 22 is the first of fold 10; lead II
    np.testing.assert_allclose(data.test.x[0, :, 0], (signal - signal.mean()) / signal.std(), atol=1e-5)
    assert data.description["part"] == "the first 28 records of PTB-XL" and "too few" in data.description["warnings"][0]
    assert json.loads(json.dumps(data.description)) == data.description


def test_ptb_superclass(ptb: Path, tmp_path: Path) -> None:
    data = read("ptb-xl", ptb, tmp_path, protocol="superclass")
    assert data.classes == ("NORM", "MI", "STTC", "CD", "HYP") and data.val.y.tolist() == [0, 1, 2, 3, 4]
    assert data.description["left_out"]["train"] == {"no superclass": 2, "several superclasses": 2}


def test_ptb_arrays_and_tree_are_the_same(ptb: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    write_statements(part)
    write_arrays(part)
    for options in ({}, {"protocol": "superclass"}, {"lead": "aVR"}):
        tree, array = read("ptb-xl", ptb, tmp_path, **options), read("ptb-xl", part, tmp_path, **options)
        for one, other in ((tree.train, array.train), (tree.test, array.test)):
            assert one.x.tobytes() == other.x.tobytes() and (one.y == other.y).all() and (one.group == other.group).all()
    assert ptb_xl.check(part) == [] and ptb_xl.check(ptb) == []
    write_arrays(part, superclass=np.zeros((len(ROWS), 5), np.uint8))
    assert len(ptb_xl.check(part)) == len(ROWS) - 4  # four have none


def test_ptb_names_what_it_is() -> None:
    def rows(numbers):
        return [ptb_xl.Row(k, "1", 1, "{}", "") for k in numbers]
    assert ptb_xl.part_name(rows(range(1, 21800))) == "PTB-XL"
    assert ptb_xl.part_name(rows(range(1, 501))) == "the first 500 records of PTB-XL"
    assert ptb_xl.part_name(rows([3, 9])) == "2 records of PTB-XL"


def changed_rows(k: int, **fields):
    def apply(folder: Path) -> None:
        rows = [list(row) for row in ROWS]
        rows[k] = [fields.get(name, value) for name, value in zip(("patient", "fold", "codes"), rows[k], strict=True)]
        write_table(folder, rows)
    return apply


PTB_BAD = {
    "missing": (lambda f: (f / "records100/00000/00023_lr.hea").unlink(), "00023_lr.hea"),
    "no signal": (lambda f: (f / "records100/00000/00023_lr.dat").unlink(), "00023_lr.dat"),
    "rate": (lambda f: write_ecg(f, 23, fs=500), "500 Hz, not 100"),
    "lead": (lambda f: write_ecg(f, 23, leads=["I"]), "no lead 'II', it has I"),
    "length": (lambda f: write_ecg(f, 23, length=900), "900 samples, not 1000"),
    "patient in two splits": (changed_rows(0, patient="1001.0"), "patient 1001 is in train and in test"),
    "statements": (changed_rows(0, codes="NORM"), "record 1: scp_codes 'NORM' is no dictionary"),
    "fold": (changed_rows(0, fold=11), "strat_fold 11"),
    "no number": (changed_rows(0, patient=""), "line 2 is malformed"),
    "table cut": (lambda f: (f / "ptbxl_database.csv").write_text("ecg_id\n"), "has no rows"),
    "superclass": (lambda f: (f / "scp_statements.csv").write_text(",diagnostic,diagnostic_class\nX,1.0,ODD\n"), "'ODD' is none of"),
    "an empty class": (lambda f: write_table(f, [row for row in ROWS if not (row[1] == 10 and "NORM" in row[2])]), "test has no record of"),
}


@pytest.mark.parametrize("case", PTB_BAD)
def test_ptb_bad(case: str, ptb: Path, tmp_path: Path) -> None:
    change, words = PTB_BAD[case]
    change(ptb)
    with pytest.raises(DataError, match=words) as caught:
        read("ptb-xl", ptb, tmp_path)
    assert "\n" not in str(caught.value)
    assert any(words in problem for problem in ptb_xl.check(ptb))


@pytest.mark.parametrize("changes, words", [
    ({"fs": np.int32(500)}, "500.0 Hz"), ({"signals_uV": np.zeros((28, 900, 12), np.int16)}, r"\(28, 900, 12\)"),
    ({"strat_fold": np.ones(3, np.int8)}, "strat_fold has 3 entries"), ({"leads": np.array(LEADS[:1])}, "1 leads"),
    ({"leads": np.array(["X" + name for name in LEADS])}, "no lead 'II'"),
])
def test_ptb_bad_arrays(changes: dict, words: str, tmp_path: Path) -> None:
    write_statements(tmp_path)
    write_arrays(tmp_path, **changes)
    with pytest.raises(DataError, match=words):
        read("ptb-xl", tmp_path, tmp_path)
    assert len(ptb_xl.check(tmp_path)) == 1
    (tmp_path / "ptbxl_100hz_some.npz").write_bytes(b"PK no")
    with pytest.raises(DataError, match="cannot be read"):
        read("ptb-xl", tmp_path, tmp_path)
