"""The matrix of boards and schedules: what fits is run and compared byte for byte, what does not is listed with the reason."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pyhtpw.errors import ConfigError, MissingToolError
from pyhtpw.model import Image
from pyhtpw.target import firmware, session
from pyhtpw.target.firmware import FitError, Settings, board_named, boards
from pyhtpw.verify import Native, Numpy, compare

__all__ = ["Row", "board_named", "boards", "matrix", "schedules"]


def schedules(name: str) -> list[str]:
    """The schedules that a word stands for; ConfigError for an unknown one."""
    if name == "all":
        return list(firmware.SCHEDULES)
    if name not in firmware.SCHEDULES:
        raise ConfigError(f"unknown schedule {name!r}: use all, {', '.join(firmware.SCHEDULES)}")
    return [name]


@dataclass(frozen=True)
class Row:
    """One board with one schedule: bytes compared with C here and numpy, how many differ and the first that does; or why it was
    not run: it does not fit (`refused`; `needed` and `there` are bytes)."""

    board: str
    cpu: str
    schedule: str
    backend: str = ""
    compared: int = 0
    differ: int = 0
    first: str | None = None
    stack: int = 0
    resets: int = 0
    pack: int | None = None
    refused: str | None = None
    needed: int | None = None
    there: int | None = None

    def to_dict(self) -> dict:
        """As a JSON object."""
        return asdict(self)

    def text(self) -> str:
        """One line for people."""
        begin = f"{self.board:11s} {self.cpu:10s} {self.schedule:9s}"
        if self.refused is not None:
            return f"{begin} NOT RUN: {self.refused}"
        more = "" if self.pack is None else f", code pack {self.pack} after {self.resets} resets"
        line = f"{begin} {self.backend:12s} {self.compared:,} bytes compared, {self.differ} differ, stack {self.stack:,} B{more}"
        return line if self.first is None else f"{line}\n  first: {self.first}"


class _Known:
    """A telling that has been worked out already, so that it is not worked out again for every board."""

    def __init__(self, telling, x: np.ndarray) -> None:
        self.name, self.windows = telling.name, len(x)
        self._kernels, self._logits = telling.kernels(), telling.logits(x)

    def kernels(self) -> dict[int, np.ndarray]:
        return self._kernels

    def logits(self, x: np.ndarray) -> np.ndarray:
        return self._logits[: len(x)]


def _tellings(image: Image, x: np.ndarray) -> list[_Known]:
    return [_Known(Numpy(image), x), _Known(Native(image), x)]


def matrix(
    image: Image,
    x: np.ndarray,
    names: Sequence[str],
    wanted: Sequence[str],
    settings: Settings = Settings(),  # noqa: B008 - frozen
    *,
    pack: bytes | None = None,
    cut: int = 0,
    seconds: float = 300.0,
) -> list[Row]:
    """Runs an image on boards by schedules.

    Parameters
    ----------
    x : int8 (N, H, W, C)
    names, wanted : sequence of str
        Boards and schedules.
    pack : bytes, optional
        A code pack to send to the running board: the power fails in operation `cut` of storing it, then the board starts with
        what it had, receives it again, and starts with it.
    seconds : float
        Bound on the time of each run.

    Raises
    ------
    MissingToolError, BoardError
        As `firmware.build` and `session.run`.
    """
    if not len(x):
        raise ConfigError("there are no windows to run: give at least one")
    before = _tellings(image, x)
    after = None
    if pack is not None:
        from pyhtpw.image.codes import apply_pack

        after = _tellings(Image(apply_pack(image.data, pack), "image with its code pack"), x)
    rows = []
    for name in names:
        board = board_named(name)
        for schedule in wanted:
            if pack is not None and schedule == "installed":
                rows.append(Row(name, board.cpu, schedule, refused="a new code pack makes an installed store outdated: use streamed"))
                continue
            try:
                rows.append(_row(board, image, schedule, settings, x, pack, cut, before, after, seconds))
            except FitError as error:
                rows.append(Row(name, board.cpu, schedule, refused=str(error), needed=error.needed, there=error.there))
            except ConfigError as error:  # such as a hard float ABI on a core without FPU
                if len(names) == 1:
                    raise
                rows.append(Row(name, board.cpu, schedule, refused=str(error)))
    return rows


def _row(board, image, schedule, settings, x, pack, cut, before, after, seconds) -> Row:
    built = firmware.build(board, image, schedule, settings, pack=pack)
    store = session.installed(built, image) if schedule == "installed" else None
    done = session.run(built, x, kernels=True, store=store, cut=None if pack is None else cut, seconds=seconds)
    if pack is None:
        pairs = compare(image, x, [*before, session.OnBoard(built, done)])
    else:
        pairs = compare(image, x, [*after, session.OnBoard(built, done, max(done.logits))])
        for stage in sorted(done.logits)[:-1]:  # what ran before the pack was whole: the image as it was
            old = session.OnBoard(built, done, stage)
            for telling in after if done.packs[stage] else before:
                bad = int(np.count_nonzero(telling.logits(x) != old.logits(x)))
                pairs.append(_Logits(x.shape[0] * image.plan().output, bad, f"start {stage} differs from {telling.name}" if bad else None))
    first = next((p.first for p in pairs if p.first), None)
    number = done.packs[max(done.packs)] if done.packs else None
    compared, differ = sum(p.compared for p in pairs), sum(p.differ for p in pairs)
    return Row(board.name, board.cpu, schedule, done.backend, compared, differ, first, done.stack, len(done.resets), number)


@dataclass(frozen=True)
class _Logits:
    """Logits alone, compared."""

    compared: int
    differ: int
    first: str | None


def find_tools(settings: Settings) -> str | None:
    """Why firmware cannot be built and run on this machine, or None if it can."""
    from pyhtpw.target import qemu, toolchain

    try:
        qemu.find_qemu()
        toolchain.find_compiler(settings.compiler)
    except MissingToolError as error:
        return str(error)
    return None
