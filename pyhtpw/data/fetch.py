"""Downloading data sets: what is there and right is kept, what was begun goes on, every file is compared with its sum.

PhysioNet sets come through wfdb's own downloader, with the ``SHA256SUMS.txt`` that is published beside them. Archives
come over HTTPS and are unpacked only once their size and SHA-256 are the published ones.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import os
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ConfigError, DataError
from .catalogue import SOURCES, Archive, Progress, module_of, target, wanted
from .checks import SUMS, sha256_of
from .records import one_line, wfdb

_BATCH = 20  # files asked for together, between two reports of progress
_BLOCK = 1 << 20


def fetch(name: str, data_dir: str | os.PathLike[str] | None, progress: Progress | None = None) -> dict[str, Any]:
    """Download a data set into its folder below `data_dir`; run again, it goes on where it stopped.

    Returns
    -------
    dict
        ``folder``, ``files`` (in all) and ``downloaded`` (now).

    Raises
    ------
    ConfigError
        Unknown name, or nothing to download.
    DataError
        No connection, no space, or a file is not what its checksum says after a second try.
    """
    module_of(name)
    source = SOURCES[name]
    if not source.physionet and not source.archives:
        raise ConfigError(f"{name} is made at run time: there is nothing to download")
    folder = target(name, data_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if source.physionet:
            return _physionet(name, folder, progress)
        fetched = [_archive(archive, folder, progress) for archive in source.archives]
        return {"folder": str(folder), "files": len(fetched), "downloaded": sum(fetched)}
    except OSError as error:
        raise DataError(f"fetch {name}: {folder}: {error.strerror or one_line(error)}: see that it can be written and has space "
                        f"({source.size}), then run the command again; it goes on where it stopped") from error


# --- PhysioNet ----------------------------------------------------------------------------------------------------


def _physionet(name: str, folder: Path, progress: Progress | None) -> dict[str, Any]:
    download = _downloader(name)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as fresh:
        download(Path(fresh), [f"{SUMS}.txt"], True)
        text = (Path(fresh) / f"{SUMS}.txt").read_text("utf-8", "replace")
    sums = {}
    for line in text.splitlines():
        digest, _, file = line.partition(" ")
        file = file.strip().lstrip("*").removeprefix("./")
        if len(digest) == 64 and wanted(name, file) and ".." not in PurePosixPath(file).parts:
            sums[file] = digest.lower()
    if not sums:
        raise DataError(f"fetch {name}: the published {SUMS}.txt names none of the files wanted: the set has another layout now; "
                        "download it by hand")

    def wrong(files: list[str]) -> list[str]:
        return [file for file in files if not (folder / file).is_file() or sha256_of(folder / file) != sums[file]]

    todo = wrong(sorted(sums))
    for start in range(0, len(todo), _BATCH):
        batch = todo[start:start + _BATCH]
        download(folder, batch, False)  # goes on with files that are too short
        again = wrong(batch)
        if again:  # right size, wrong bytes: an interrupted write, or a cache on the way
            download(folder, again, True)
        bad = wrong(again)
        if bad:
            raise DataError(f"fetch {name}: {', '.join(bad)}: not what the published {SUMS}.txt says after two downloads: something "
                            "on the way changes them, or the set was updated meanwhile; run the command again")
        if progress is not None:
            progress(start + len(batch), len(todo), batch[-1])
    lines = "".join(f"{sums[file]}  {file}\n" for file in sorted(sums))
    _write(folder / SUMS, lines.encode())
    return {"folder": str(folder), "files": len(sums), "downloaded": len(todo)}


def _downloader(name: str) -> Callable[[Path, list[str], bool], None]:
    library = wfdb(name)

    def download(folder: Path, files: list[str], overwrite: bool) -> None:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # wfdb talks; stdout is for results
                library.dl_files(SOURCES[name].physionet, str(folder), files, keep_subdirs=True, overwrite=overwrite)
        except OSError as error:
            if error.errno and not isinstance(error, (ConnectionError, TimeoutError)) and error.filename:
                raise  # this machine's disk, which `fetch` names
            raise _unreachable(name, error) from error
        except Exception as error:  # wfdb's own, and those of the packages it calls
            raise _unreachable(name, error) from error

    return download


# --- archives -----------------------------------------------------------------------------------------------------


def _archive(archive: Archive, folder: Path, progress: Progress | None) -> bool:
    """Download and unpack; False if that was done before."""
    file = archive.url.rsplit("/", 1)[-1]
    done = folder / f".{file}.unpacked"
    if done.is_file() and done.read_text() == archive.sha256:
        return False
    partial = folder / f"{file}.part"
    _download(archive, partial, progress)
    if progress is not None:
        progress(archive.size, archive.size, f"unpacking {file}")
    unpack(partial, folder / archive.folder)
    _write(done, archive.sha256.encode())
    partial.unlink()
    return True


def _download(archive: Archive, partial: Path, progress: Progress | None) -> None:
    file = archive.url.rsplit("/", 1)[-1]
    have = partial.stat().st_size if partial.exists() else 0
    if have > archive.size:
        partial.unlink()
        have = 0
    if have < archive.size:
        request = urllib.request.Request(archive.url, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                # 206 is the rest; a server that knows no ranges answers 200 and begins anew.
                goes_on = answer.status == 206
                have = have if goes_on else 0
                with open(partial, "ab" if goes_on else "wb") as out:
                    while block := answer.read(_BLOCK):
                        out.write(block)
                        have += len(block)
                        if progress is not None:
                            progress(have, archive.size, file)
                        if have > archive.size:
                            break
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise _unreachable(archive.url, error) from error
    if have < archive.size:
        raise DataError(f"fetch: {archive.url} ended after {have} of {archive.size} bytes: run the command again; it goes on there")
    if have > archive.size or sha256_of(partial) != archive.sha256:
        partial.unlink()
        raise DataError(f"fetch: {archive.url} is not the published archive (size or SHA-256 differ); what came was removed: run "
                        "the command again")


def unpack(path: Path, folder: Path) -> None:
    """Unpack a .tar.gz of plain files and folders.

    Raises
    ------
    DataError
        It is no such archive, or a member is a link, a device, or would leave the folder; nothing is unpacked then.
    """
    try:
        with tarfile.open(path, "r:gz") as tar:
            members = tar.getmembers()
            for member in members:
                parts = PurePosixPath(member.name).parts
                if not (member.isfile() or member.isdir()) or member.name.startswith("/") or ".." in parts:
                    raise DataError(f"{path.name}: member {member.name!r} is no plain file inside the folder: this is not the "
                                    "published archive, remove it and download it anew")
            folder.mkdir(parents=True, exist_ok=True)
            for member in members:
                at = folder / member.name
                if member.isdir():
                    at.mkdir(parents=True, exist_ok=True)
                    continue
                at.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                with open(at, "wb") as out:
                    shutil.copyfileobj(content, out, _BLOCK)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path.name} cannot be unpacked ({one_line(error)}): remove it and download it anew") from error


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _unreachable(what: str, error: Exception) -> DataError:
    return DataError(f"fetch {what}: the download failed ({one_line(error)}): see that this machine reaches the server, then run "
                     "the command again; it goes on where it stopped")
