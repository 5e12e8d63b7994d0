"""Windows on disk: written once, as a stream; opened as read-only memory maps.

An entry is a folder ``<root>/<name>-<key>`` of ``.npy`` files, five per split, perhaps ``notes.json`` (what else was
found while making it), and ``manifest.json``, which states size and CRC-32 of each. The key is a SHA-256 of all that
decides the content, so an entry is never updated: another source or another option is another entry.

A damaged entry is never used. An entry is written under a temporary name and renamed when complete, so what has the
final name was once whole; and every file is compared with the manifest each time it is opened, so that whatever
happened to it since (a full disk, a crash, an editor) is seen. That costs one read of the files, about a second per
gigabyte, which training would do anyway.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import DataError
from .dataset import SPLITS, Split

_MANIFEST = "manifest.json"
_NOTES = "notes.json"
_LABELS = ("y", "group", "position", "score_mask")
_READ_BYTES = 1 << 22
# A temporary folder this old belongs to a process that was killed: nothing takes a day to write.
_ABANDONED_SECONDS = 24 * 3600


def cache_root(cache_dir: str | os.PathLike[str] | None) -> Path:
    """The folder that holds the entries.

    Parameters
    ----------
    cache_dir : path, optional
        Given: it. Else the environment variable ``HTPW_CACHE``, else ``$XDG_CACHE_HOME/pyhtpw``, else
        ``~/.cache/pyhtpw``. Empty variables count as unset.

    Returns
    -------
    Path
        It need not exist yet.
    """
    if cache_dir is not None:
        return Path(cache_dir)
    if os.environ.get("HTPW_CACHE"):
        return Path(os.environ["HTPW_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "pyhtpw"
    return Path.home() / ".cache" / "pyhtpw"


def fetch(entry: Path) -> dict[str, Split] | None:
    """Open an entry.

    Parameters
    ----------
    entry : Path
        The entry's folder.

    Returns
    -------
    dict of 'train', 'val', 'test' to Split, or None
        `Split.x` is a read-only memory map. None: there is no entry, or it is not what its manifest says; make it anew.
    """
    try:
        manifest = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))
        names = {_file(part, field) for part in SPLITS for field in ("x", *_LABELS)}
        if set(manifest) - {_NOTES} != names:
            return None
        for name, stated in manifest.items():
            if [(entry / name).stat().st_size, _crc_of(entry / name)] != stated:
                return None
        return {part: _open(entry, part) for part in SPLITS}
    except (OSError, ValueError, TypeError, AttributeError):
        # Absent, cut short, not JSON, JSON of another form, not an array: all the same to the caller.
        return None


def opened(entry: Path, make: Callable[[], None]) -> dict[str, Split]:
    """`fetch`, after `make` has stored the entry where there is none; DataError if it then reads back otherwise."""
    splits = fetch(entry)
    if splits is None:
        make()
        splits = fetch(entry)
    if splits is None:
        raise DataError(f"the cache entry {entry} reads back other than it was written: check the disk, or choose "
                        "another folder with cache_dir or HTPW_CACHE")
    return splits


def notes(entry: Path) -> dict[str, Any]:
    """What `store` was given as `notes`, of an entry that `fetch` has opened; empty if it was given none."""
    path = entry / _NOTES
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def store(entry: Path, shape: tuple[int, int], labels: Mapping[str, Mapping[str, np.ndarray]],
          chunks: Iterable[tuple[str, np.ndarray]], notes: Mapping[str, Any] | None = None) -> None:
    """Write an entry, replacing one of the same name.

    Parameters
    ----------
    entry : Path
        The entry's folder; its parent is made if needed.
    shape : (int, int)
        T and C, samples and channels per window.
    labels : mapping of split name to mapping of 'y', 'group', 'position', 'score_mask' to (N,) array
        As in `Split`.
    chunks : iterable of (split name, (n, T) or (n, T, C) float32)
        The windows; those of one split come in the order of its labels, and are N in all. Only one chunk is held.
    notes : mapping, optional
        What can be written as JSON; looked at after the last chunk, so that making the chunks may fill it.

    Raises
    ------
    DataError
        The folder cannot be written (permission, full disk), or `chunks` raised it. No temporary file is left.
    """
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        _sweep(entry.parent)
        temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=entry.parent))
    except OSError as error:
        raise _unwritable(entry.parent, error) from error
    try:
        _fill(temporary, shape, labels, chunks, notes)
        _rename(temporary, entry)
    except OSError as error:
        raise _unwritable(entry.parent, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _file(part: str, field: str) -> str:
    return f"{part}.{field}.npy"


def _open(entry: Path, part: str) -> Split:
    x = np.load(entry / _file(part, "x"), mmap_mode="r", allow_pickle=False)
    return Split(x, *(np.load(entry / _file(part, field), allow_pickle=False) for field in _LABELS))


def _crc_of(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


class _NpyStream:
    """An ``.npy`` file written piece by piece.

    Plain writes and not a memory map: a full disk is then an error that can be caught, and not a bus error.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.file: BinaryIO = open(path, "wb")
        self.size = self.crc = 0
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": np.lib.format.dtype_to_descr(dtype),
                                                      "fortran_order": False, "shape": shape})
        self._put(header.getvalue())

    def _put(self, data: bytes | memoryview) -> None:
        self.file.write(data)
        self.crc = zlib.crc32(data, self.crc)
        self.size += len(data)

    def write(self, values: np.ndarray) -> None:
        if values.size:
            self._put(memoryview(np.ascontiguousarray(values)).cast("B"))


def _fill(folder: Path, shape: tuple[int, int], labels: Mapping[str, Mapping[str, np.ndarray]],
          chunks: Iterable[tuple[str, np.ndarray]], notes: Mapping[str, Any] | None) -> None:
    streams = {}
    try:
        for part in SPLITS:
            streams[_file(part, "x")] = _NpyStream(folder / _file(part, "x"), (len(labels[part]["y"]), *shape),
                                                   np.dtype(np.float32))
        for part, x in chunks:
            streams[_file(part, "x")].write(x)
        for part in SPLITS:
            for field in _LABELS:
                values = labels[part][field]
                stream = streams[_file(part, field)] = _NpyStream(folder / _file(part, field), values.shape,
                                                                  values.dtype)
                # Bytes, because text has no buffer that memoryview could cast.
                stream.write(np.frombuffer(values.tobytes(), np.uint8))
    finally:
        for stream in streams.values():
            stream.file.close()
    manifest = {name: [stream.size, stream.crc] for name, stream in streams.items()}
    if notes is not None:
        text = json.dumps(notes).encode()
        (folder / _NOTES).write_bytes(text)
        manifest[_NOTES] = [len(text), zlib.crc32(text)]
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _rename(temporary: Path, entry: Path) -> None:
    try:
        os.replace(temporary, entry)
    except OSError:
        if not entry.exists():
            raise
        # A damaged entry, or one that another process has just finished. A folder cannot replace one with files in it,
        # so it steps aside; a process that has it mapped keeps its files.
        aside = Path(tempfile.mkdtemp(prefix=".partial-", dir=entry.parent))
        try:
            os.replace(entry, aside / "old")
            os.replace(temporary, entry)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove what killed processes left behind."""
    for path in root.glob(".partial-*"):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            # Its owner has just finished.
            continue


def _unwritable(root: Path, error: OSError) -> DataError:
    return DataError(f"cannot write windows to the cache {root}: {error.strerror or error}: free space there, or "
                     "choose another folder with cache_dir or HTPW_CACHE")
