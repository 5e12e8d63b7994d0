"""The data sets that are known: what they are, where they come from, how to look at and how to download them."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from .dataset import PROTOCOLS, source_folder

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Archive:
    """A published .tar.gz: where, its bytes and SHA-256, and the folder it is unpacked in, relative to the data set's."""

    url: str
    size: int
    sha256: str
    folder: str = "."


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes
    ----------
    title, licence, size : str
        `size` is that of a download.
    physionet : str
        Its name at PhysioNet; '' if it is not from there.
    files : str
        Regular expression: which of its files there `fetch` takes.
    archives : tuple of Archive
        What `fetch` takes of a set that is not from PhysioNet.
    tells : str
        A file that is there if anything is.
    """

    title: str
    licence: str
    size: str
    physionet: str = ""
    files: str = ""
    archives: tuple[Archive, ...] = ()


# No list of checksums is published beside the archives: these are the ones that other public loaders of them state.
_SPEECH = "https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_"
SOURCES = {
    "synthetic-ecg": Source("synthetic ECG with ventricular beats; figures on it say nothing about patients", "Apache-2.0",
                            "made at run time"),
    "mitdb": Source("MIT-BIH Arrhythmia Database 1.0.0", "ODC-By 1.0", "98 MB", "mitdb",
                    r"(\d{3}\.(hea|dat|atr)|RECORDS|ANNOTATORS)"),
    "apnea-ecg": Source("Apnea-ECG Database 1.0.0", "ODC-By 1.0", "580 MB", "apnea-ecg",
                        r"([abcx]\d\d\.(hea|dat|apn|qrs)|RECORDS|event-2-answers(\.txt)?|additional-information\.txt)"),
    "ptb-xl": Source("PTB-XL, 100 Hz records", "CC BY 4.0", "560 MB", "ptb-xl",
                     r"(records100/.*\.(hea|dat)|ptbxl_database\.csv|scp_statements\.csv|LICENSE\.txt)"),
    "speech-commands": Source("Speech Commands v0.02", "CC BY 4.0", "2.5 GB", archives=(
        Archive(_SPEECH + "v0.02.tar.gz", 2428923189, "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"),
        Archive(_SPEECH + "test_set_v0.02.tar.gz", 112563277,
                "cc2a00c1147c2254e9be3fa0f779d8c17421dc349b86366567a8edfa9acd51df", "test12"))),
}


def module_of(name: str) -> Any:
    """The loader's module; ConfigError for an unknown name."""
    if name not in SOURCES:
        raise ConfigError(f"unknown data set {name!r}: choose one of {', '.join(SOURCES)}")
    return importlib.import_module("." + name.replace("-", "_"), __package__)


def listing(data_dir: str | os.PathLike[str] | None) -> list[dict[str, Any]]:
    """A row per data set: name, title, licence, size, protocols, and what of it is at hand under `data_dir`."""
    rows = []
    for name, source in SOURCES.items():
        rows.append({"name": name, "title": source.title, "licence": source.licence, "download": source.size,
                     "protocols": list(PROTOCOLS[name]), "at_hand": at_hand(name, data_dir)})
    return rows


def at_hand(name: str, data_dir: str | os.PathLike[str] | None) -> str:
    """'yes', 'no', or what there is of it; looks for files and reads none."""
    if name == "synthetic-ecg":
        return "yes"
    try:
        folder = source_folder(name, data_dir)
        module = module_of(name)
        if name == "mitdb":
            return "yes" if (module._inner(folder) / "100.hea").is_file() else "no"
        found = module.find(folder)
    except DataError:
        return "no"
    if name == "apnea-ecg":
        return "yes" if (found / "a01.dat").is_file() else "beats and labels, no ECG"
    _, part = found
    if name == "ptb-xl":
        return "yes" if part is None else f"a part ({part.stem})"
    return "a part (official6, split10)" if part else "yes (official12)"


def check(name: str, data_dir: str | os.PathLike[str] | None, progress: Progress | None = None) -> list[str]:
    """All problems of a data set's files, each a line that names it and the remedy; empty if there are none.

    Raises
    ------
    ConfigError
        Unknown name, or one that has no files.
    DataError
        There is no such folder, or it is not this data set's.
    """
    module = module_of(name)
    if name == "synthetic-ecg":
        raise ConfigError("synthetic-ecg is made at run time: it has no files to check")
    return list(module.check(source_folder(name, data_dir), progress))


def wanted(name: str, file: str) -> bool:
    """Whether `fetch` takes a file of a PhysioNet set."""
    return re.fullmatch(SOURCES[name].files, file) is not None


def target(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder that `fetch` fills: the data set's own below `data_dir`."""
    folder = source_folder(name, data_dir)
    return folder if folder.name == name else folder / name
