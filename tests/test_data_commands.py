"""`pyhtpw data list|check|fetch`: the command line, and downloads from a server on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import re
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pyhtpw import cli
from pyhtpw.data import catalogue, fetch
from pyhtpw.data.dataset import NAMES
from pyhtpw.errors import ConfigError, DataError

# Deprecations inside wfdb, not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")


class Server:
    """Files by path, with ranges; `asked` has every (path, range) that was answered."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}  # path -> bytes after which the connection breaks, once
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self, body: bool) -> None:
                span = self.headers.get("Range") if outer.ranges else None
                outer.asked.append((self.path, span))
                content = outer.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                total, first = len(content), 0
                if span and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", span)):
                    first = int(match[1])
                    content = content[first:int(match[2]) + 1 if match[2] else total]
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{total}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Accept-Ranges", "bytes")
                self.end_headers()
                if body:
                    self.wfile.write(content[:outer.cut.pop(self.path, len(content))])

            def do_GET(self) -> None:
                self.answer(True)

            def do_HEAD(self) -> None:
                self.answer(False)

            def log_message(self, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HTPW_DATA", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):  # the server is on this machine
        monkeypatch.delenv(name, raising=False)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of a command."""
    monkeypatch.setattr(sys, "argv", ["pyhtpw", *map(str, arguments)])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        cli.main()
        sys.exit(0)
    return caught.value.code or 0, out.getvalue(), err.getvalue()


def test_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, out, _ = run(monkeypatch, "data", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)["data_sets"]}
    assert code == 0 and tuple(rows) == NAMES == tuple(catalogue.SOURCES)
    assert rows["synthetic-ecg"]["at_hand"] == "yes" and rows["mitdb"]["at_hand"] == "no"
    assert rows["mitdb"]["protocols"] == ["paper", "aami"] and rows["ptb-xl"]["licence"] == "CC BY 4.0"
    (tmp_path / "apnea-ecg").mkdir()
    (tmp_path / "apnea-ecg" / "a01.hea").write_text("a01 1 100 600\n")
    (tmp_path / "ptb-xl").mkdir()
    (tmp_path / "ptb-xl" / "ptbxl_100hz_first9.npz").write_bytes(b"")
    (tmp_path / "speech-commands").mkdir()
    (tmp_path / "speech-commands" / "index.csv").write_text("")
    _, out, _ = run(monkeypatch, "data", "list", "--json", "--data-dir", tmp_path)
    at_hand = {row["name"]: row["at_hand"] for row in json.loads(out)["data_sets"]}
    assert at_hand == {"synthetic-ecg": "yes", "mitdb": "no", "apnea-ecg": "beats and labels, no ECG",
                       "ptb-xl": "a part (ptbxl_100hz_first9)", "speech-commands": "a part (official6, split10)"}
    code, out, _ = run(monkeypatch, "data", "list")
    assert code == 0 and all(name in out for name in NAMES)


def test_check_status_and_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "speech-commands").mkdir()
    (tmp_path / "speech-commands" / "index.csv").write_text("file\n")
    code, out, _ = run(monkeypatch, "data", "check", "speech-commands", "--data-dir", tmp_path, "--json")
    told = json.loads(out)
    assert code == 2 and told["data"] == "speech-commands" and any("index.csv has no rows" in p for p in told["problems"])
    code, out, _ = run(monkeypatch, "data", "check", "speech-commands", "--data-dir", tmp_path)
    assert code == 2 and f"{len(told['problems'])} problems" in out
    for arguments, words in ((("speech", "--data-dir", tmp_path), "unknown data set 'speech'"), (("mitdb",), "HTPW_DATA"),
                             (("synthetic-ecg",), "no files to check"), (("ptb-xl", "--data-dir", tmp_path), "neither")):
        code, _, err = run(monkeypatch, "data", "check", *arguments)
        assert code == 2 and words in err, err


def test_check_of_records_passes_and_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The check of MIT-BIH: clean on records as the loader's tests write them, and every problem of damaged ones."""
    pytest.importorskip("wfdb", reason="NOT RUN: the package wfdb is not installed")
    from test_data_mitdb import MARKS, digital, write_record

    from pyhtpw.data import mitdb

    folder = tmp_path / "mitdb"
    folder.mkdir()
    for name in mitdb.RECORDS:
        write_record(folder, name)
    assert catalogue.check("mitdb", tmp_path) == []
    write_record(folder, "101", fs=250)
    write_record(folder, "103", marks=[*MARKS, (905, "N")])
    (folder / "105.atr").unlink()
    (folder / "106.dat").write_bytes(b"")
    write_record(folder, "115", signal=digital("115"))
    (folder / "115.hea").write_text((folder / "115.hea").read_text().replace("MLII", "II"))
    for name in mitdb.AAMI_VAL:
        if name != "101":
            write_record(folder, name, marks=[(5, "N")])
    problems = catalogue.check("mitdb", tmp_path)
    (folder / "101.atr").unlink()
    problems += catalogue.check("mitdb", tmp_path)
    for words in ("record 101: sampled at 250", "record 103: an annotation at sample 905", "105.atr is missing", "106.dat holds 0",
                  "record 115: has no lead 'MLII'", "aami: the val records have no annotation of class ventricular"):
        assert any(words in problem for problem in problems), (words, problems)


# --- fetch: PhysioNet ---------------------------------------------------------------------------------------------


@pytest.fixture
def physionet(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """MIT-BIH's folder at a server, as PhysioNet serves it, for wfdb's own downloader."""
    wfdb = pytest.importorskip("wfdb", reason="NOT RUN: the package wfdb is not installed")
    rng = np.random.default_rng(0)
    files = {f"{name}.{ending}": rng.bytes(3000 + 7 * k) for k, name in enumerate(("100", "101")) for ending in ("hea", "dat", "atr")}
    files["RECORDS"] = b"100\n101\n"
    files["100.xws"] = b"not wanted"
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    server.files = {f"/files/mitdb/1.0.0/{name}": content for name, content in files.items()}
    server.files["/files/mitdb/1.0.0/SHA256SUMS.txt"] = sums.encode()
    server.files["/content/mitdb/"] = b"<p>\nVersion: 1.0.0</p>\n"
    server.files["/content/mitdb/1.0.0/"] = b"there"
    monkeypatch.setattr(wfdb.io.download, "PN_CONTENT_URL", f"{server.url}/content/")
    wfdb.set_db_index_url(f"{server.url}/files/")
    yield server
    wfdb.set_db_index_url()


def content(server: Server, name: str) -> bytes:
    return server.files[f"/files/mitdb/1.0.0/{name}"]


def test_fetch_of_records(physionet: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run(monkeypatch, "data", "fetch", "mitdb", "--data-dir", tmp_path, "--json")
    assert code == 0, err
    assert json.loads(out) == {"data": "mitdb", "folder": str(tmp_path / "mitdb"), "files": 7, "downloaded": 7}
    for name in ("100.hea", "101.dat", "RECORDS"):
        assert (tmp_path / "mitdb" / name).read_bytes() == content(physionet, name)
    assert not (tmp_path / "mitdb" / "100.xws").exists() and "100.dat" in (tmp_path / "mitdb" / "SHA256SUMS").read_text()
    assert not list((tmp_path / "mitdb").glob(".fetch-*"))

    # Again: what is whole stays, what is cut goes on, what is damaged comes anew.
    half = content(physionet, "100.dat")[:1000]
    (tmp_path / "mitdb" / "100.dat").write_bytes(half)
    (tmp_path / "mitdb" / "101.atr").write_bytes(b"\0" * len(content(physionet, "101.atr")))
    physionet.asked.clear()
    result = fetch.fetch("mitdb", tmp_path)
    assert result["downloaded"] == 2
    asked = {path.rsplit("/", 1)[-1] for path, _ in physionet.asked}
    assert {"100.dat", "101.atr"} <= asked and "100.hea" not in asked
    assert any(path.endswith("100.dat") and span and span.startswith("bytes=1000-") for path, span in physionet.asked)
    for name in ("100.dat", "101.atr"):
        assert (tmp_path / "mitdb" / name).read_bytes() == content(physionet, name)


def test_fetch_refuses_what_the_sums_do_not_say(physionet: Server, tmp_path: Path) -> None:
    physionet.files["/files/mitdb/1.0.0/101.dat"] = b"something else"
    with pytest.raises(DataError, match=r"101\.dat: not what the published SHA256SUMS"):
        fetch.fetch("mitdb", tmp_path)
    assert not (tmp_path / "mitdb" / "SHA256SUMS").exists()
    physionet.files["/files/mitdb/1.0.0/SHA256SUMS.txt"] = b"<html>\n"
    with pytest.raises(DataError, match="names none of the files"):
        fetch.fetch("mitdb", tmp_path)


def test_fetch_without_a_server(physionet: Server, tmp_path: Path) -> None:
    physionet.files.clear()
    with pytest.raises(DataError, match="download failed.*goes on where it stopped") as caught:
        fetch.fetch("mitdb", tmp_path)
    assert "\n" not in str(caught.value)


def test_fetch_keeps_folders(physionet: Server, tmp_path: Path) -> None:
    """PTB-XL lies in folders, of which the 100 Hz records are taken."""
    files = {"records100/00000/00001_lr.dat": b"12", "records100/01000/01001_lr.hea": b"34", "records500/00000/00001_hr.dat": b"56",
             "ptbxl_database.csv": b"78"}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()} {name}\n" for name, content in files.items())
    physionet.files = {f"/files/ptb-xl/1.0.3/{name}": content for name, content in {**files, "SHA256SUMS.txt": sums.encode()}.items()}
    physionet.files.update({"/content/ptb-xl/": b"Version: 1.0.3</p>\n", "/content/ptb-xl/1.0.3/": b"there"})
    told = []
    assert fetch.fetch("ptb-xl", tmp_path, lambda *state: told.append(state))["files"] == 3 == told[-1][0]
    assert (tmp_path / "ptb-xl/records100/01000/01001_lr.hea").read_bytes() == b"34"
    assert not (tmp_path / "ptb-xl/records500").exists()


def test_fetch_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="nothing to download"):
        fetch.fetch("synthetic-ecg", tmp_path)
    with pytest.raises(ConfigError, match="unknown data set"):
        fetch.fetch("cifar", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="it goes on where it stopped"):
        fetch.fetch("mitdb", tmp_path / "file")
    assert catalogue.target("mitdb", tmp_path) == tmp_path / "mitdb" == catalogue.target("mitdb", tmp_path / "mitdb")


def test_wanted_files() -> None:
    for name, yes, no in (("mitdb", ["100.dat", "RECORDS"], ["100.xws", "mitdbdir/100.hea", "x_100.hea"]),
                          ("apnea-ecg", ["a01.dat", "x35.qrs", "event-2-answers.txt"], ["a01r.dat", "a01.xws"]),
                          ("ptb-xl", ["records100/00000/00001_lr.dat", "ptbxl_database.csv"], ["records500/00000/00001_hr.dat"])):
        assert all(catalogue.wanted(name, file) for file in yes) and not any(catalogue.wanted(name, file) for file in no)


# --- fetch: archives ----------------------------------------------------------------------------------------------


def packed(members: dict[str, bytes | None], kind: bytes = tarfile.REGTYPE) -> bytes:
    """A .tar.gz; a member without content is of `kind`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = kind, "/etc/passwd"
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()


@pytest.fixture
def archive(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    data = packed({"./yes/a_nohash_0.wav": np.random.default_rng(0).bytes(50_000), "./testing_list.txt": b"yes/a_nohash_0.wav\n"})
    server.files["/words.tar.gz"] = data
    made = catalogue.Archive(f"{server.url}/words.tar.gz", len(data), hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(catalogue.SOURCES, "speech-commands", catalogue.Source("t", "l", "s", archives=(made,)))
    return server


def test_fetch_of_an_archive(archive: Server, tmp_path: Path) -> None:
    told = []
    result = fetch.fetch("speech-commands", tmp_path, lambda *state: told.append(state))
    folder = tmp_path / "speech-commands"
    assert result["downloaded"] == 1 and (folder / "testing_list.txt").read_bytes() == b"yes/a_nohash_0.wav\n"
    assert (folder / "yes/a_nohash_0.wav").stat().st_size == 50_000 and not list(folder.glob("*.part"))
    assert told[0][1] == len(archive.files["/words.tar.gz"]) and told[-1][2] == "unpacking words.tar.gz"
    archive.files.clear()
    assert fetch.fetch("speech-commands", tmp_path)["downloaded"] == 0


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(ranges: bool, archive: Server, tmp_path: Path) -> None:
    archive.ranges = ranges
    archive.cut["/words.tar.gz"] = 20_000
    with pytest.raises(DataError, match="goes on there|goes on where it stopped"):
        fetch.fetch("speech-commands", tmp_path)
    kept = (tmp_path / "speech-commands" / "words.tar.gz.part").stat().st_size
    assert 0 < kept <= 20_000 and not (tmp_path / "speech-commands" / "yes").exists()
    assert fetch.fetch("speech-commands", tmp_path)["downloaded"] == 1
    assert archive.asked[-1][1] == (f"bytes={kept}-" if ranges else None)
    assert (tmp_path / "speech-commands/yes/a_nohash_0.wav").exists()


def test_another_archive_is_refused(archive: Server, tmp_path: Path) -> None:
    good = archive.files["/words.tar.gz"]
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), good + b"more"):
        archive.files["/words.tar.gz"] = bad
        with pytest.raises(DataError, match="is not the published archive"):
            fetch.fetch("speech-commands", tmp_path)
        assert not list((tmp_path / "speech-commands").iterdir())


@pytest.mark.parametrize("data", [packed({"a": b"x", "../evil": b"x"}), packed({"a": b"x", "/evil": b"x"}),
                                  packed({"a": b"x", "link": None}, tarfile.SYMTYPE), packed({"a": b"x", "hard": None}, tarfile.LNKTYPE),
                                  packed({"a": b"x", "device": None}, tarfile.CHRTYPE), b"no archive", packed({"a": b"x" * 9000})[:40]])
def test_archives_that_are_not_unpacked(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "some.tar.gz").write_bytes(data)
    with pytest.raises(DataError, match="some.tar.gz"):
        fetch.unpack(tmp_path / "some.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "evil").exists()
