"""What a run has chosen, frozen on disk before it may see a test label, and the log of every look at test.

    choices = Choices(...)                    from training and validation
    freeze(folder / CHOICES, choices)         written whole, to the disk
    split = unseal(data, folder / CHOICES, image)   read back; the image and the data must be those that were frozen
    append(log, ...)                          every evaluation is a line, never taken back

`pyhtpw.pipeline.test_stage` is the path that all models take.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..data.dataset import Dataset, Split
from ..data.seal import SealedSplit
from ..errors import ConfigError, SealedError

CHOICES = "choices.json"
LOG = "test-log.jsonl"
FORMAT = 1


def fingerprint(value: Any) -> str:
    """SHA-256, in hexadecimal, of a value's JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


def data_identity(data: Dataset) -> dict[str, Any]:
    """What tells a data set from any other: name, protocol, options, and the hash of its source."""
    return {"name": data.name, **{key: data.description.get(key) for key in ("protocol", "options", "source_sha256")}}


@dataclass(frozen=True)
class Choices:
    """All that is chosen before test: which image, at which operating point, and from which configuration it came.

    Attributes
    ----------
    image_sha256 : str
        Of the whole image file.
    config_sha256 : str
        `fingerprint` of `config`.
    config : dict
        Network, training, heads, seed: what would have to be told to make the run again.
    data : dict
        `data_identity`.
    threshold : float or None
        t* of two classes, from validation; None with more, where the largest logit decides.
    median : int
        Width of the median filter, windows.
    checkpoint : str
        "raw" or "ema".
    """

    image_sha256: str
    config_sha256: str
    config: dict[str, Any]
    data: dict[str, Any]
    threshold: float | None
    median: int
    checkpoint: str = "raw"

    @classmethod
    def of(cls, image: bytes, data: Dataset, config: Mapping[str, Any], *, threshold: float | None, median: int,
           checkpoint: str = "raw") -> Choices:
        """The choices of a run that ends in `image`."""
        plain: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
        return cls(hashlib.sha256(image).hexdigest(), fingerprint(plain), plain,
                   json.loads(json.dumps(data_identity(data), default=str)), threshold, median, checkpoint)


def freeze(path: Path, choices: Choices, *, replace: bool = False) -> None:
    """Write choices to disk, whole and through to the device, before test is looked at.

    Parameters
    ----------
    path : Path
    choices : Choices
    replace : bool
        Let a run that begins anew in the same folder replace what an earlier one froze. Without it other choices than
        those on disk are refused: they would have been made after test was seen.

    Raises
    ------
    SealedError
        Other choices are frozen there already.
    ConfigError
        The file cannot be written.
    """
    path = Path(path)
    if path.exists() and not replace:
        if load(path) != choices:
            raise SealedError(f"{path}: other choices are frozen there: a run chooses once. Begin a new run in another folder")
        return
    text = json.dumps({"format": FORMAT, "frozen": _now(), **asdict(choices)}, indent=1) + "\n"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"{path}: choices cannot be frozen there ({error.strerror}): choose a folder that can be written") from error


def load(path: Path) -> Choices:
    """Frozen choices; SealedError if there are none, or the file is no such thing or contradicts itself."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}")
        choices = Choices(**{field.name: found[field.name] for field in fields(Choices)})
    except OSError as error:
        raise SealedError(f"{path}: no choices are frozen there ({error.strerror}): freeze them before test is scored") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SealedError(f"{path}: holds no frozen choices ({error}): make the run anew") from error
    if fingerprint(choices.config) != choices.config_sha256:
        raise SealedError(f"{path}: its configuration is not the one that was hashed: the file was changed, make the run anew")
    return choices


def unseal(data: Dataset, path: Path, image: bytes, *, threshold: float | None) -> tuple[Split, Choices]:
    """The test split with its labels, for the image whose choices are frozen in `path`.

    Parameters
    ----------
    data : Dataset
        Sealed (`pyhtpw.data.seal.seal`).
    path : Path
        The frozen choices.
    image : bytes
        The image that is to be scored.
    threshold : float or None
        t* as the image's INFO has it; it must be the frozen one (in float32, as an image stores it).

    Returns
    -------
    split : Split
    choices : Choices
        As they are on disk: what to score with.

    Raises
    ------
    SealedError
        Nothing is frozen, or it was frozen for another image, another data set or another threshold; or `data` was never
        sealed, so that nobody can say what was looked at before.
    """
    if not isinstance(data.test, SealedSplit):
        raise SealedError(f"{data.name}: its test labels were never sealed: load it through pyhtpw.data.seal.seal")
    choices = load(path)
    if hashlib.sha256(image).hexdigest() != choices.image_sha256:
        raise SealedError(f"{path}: was frozen for another image: freeze the choices of the one that is to be scored")
    if json.loads(json.dumps(data_identity(data), default=str)) != choices.data:
        raise SealedError(f"{path}: was frozen for other data ({choices.data.get('name')}, {choices.data.get('protocol')})")
    frozen = choices.threshold
    if (threshold is None) != (frozen is None) or (threshold is not None and frozen is not None and abs(threshold - frozen) > 1e-6):
        raise SealedError(f"{path}: the threshold {frozen} was frozen, the image has {threshold}")
    return data.test.opened(), choices


def append(log: Path, run: str, choices: Choices, figures: Mapping[str, Any]) -> int:
    """Add one evaluation to a test log; the number of evaluations that the log now has.

    A line of JSON: ``run``, ``config_sha256``, ``image_sha256``, ``data``, ``date``, ``figures`` (single numbers). Several
    processes may append at once.

    Raises ConfigError if the log cannot be written: a look at test that leaves no trace does not happen.
    """
    kept = {key: value for key, value in figures.items() if isinstance(value, (int, float)) or key == "veb"}
    line = json.dumps({"run": run, "config_sha256": choices.config_sha256, "image_sha256": choices.image_sha256,
                       "data": choices.data["name"], "protocol": choices.data["protocol"], "date": _now(), "figures": kept})
    try:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            before = file.read()
            file.write(("" if before.endswith("\n") or not before else "\n") + line + "\n")  # a line cut off stays a line of its own
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            return sum(1 for each in file if each.strip())
    except OSError as error:
        raise ConfigError(f"{log}: the evaluation cannot be logged there ({error.strerror}): choose another file with "
                          "--test-log") from error


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
