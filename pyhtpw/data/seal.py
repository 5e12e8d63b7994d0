"""Test labels under seal: a run sees the windows of test, and their labels only when its choices are frozen on disk.

`seal` gives a data set whose ``test`` is a `SealedSplit`. What is needed to run a network (windows) and to filter in time
(group, position) is open; ``y`` and ``score_mask`` raise `SealedError`. `pyhtpw.evaluate.choices.unseal` is the one place
that opens the seal, after it has read the frozen choices back from disk and compared them with what is to be scored.

This guards against mistakes, not against a program that means to cheat: the labels are in the same process, and their
counts per class are in the data set's description.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import numpy as np

from ..errors import SealedError
from .dataset import Dataset, Split


@dataclass(frozen=True)
class SealedSplit:
    """A `Split` without its labels: ``x``, ``group`` and ``position`` as there. A copy with other windows (`dataclasses.replace`)
    is as sealed as the original."""

    x: np.ndarray
    group: np.ndarray
    position: np.ndarray
    _labels: Callable[[], Split] = field(repr=False)

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def y(self) -> np.ndarray:
        raise SealedError("test labels are sealed: freeze the run's choices first (pyhtpw.evaluate.choices.freeze), then "
                          "open them with unseal")

    score_mask = y

    def taken(self, at: np.ndarray) -> SealedSplit:
        """The windows at the indices `at`, as sealed."""
        return SealedSplit(self.x[at], self.group[at], self.position[at], lambda: self._labels().taken(at))

    def opened(self) -> Split:
        """The split with its labels; for `pyhtpw.evaluate.choices.unseal` alone."""
        return replace(self._labels(), x=self.x)


class SealedDataset(Dataset):
    """A `Dataset` whose test is sealed; what the constructor of a data set says of labels was checked before."""

    def __post_init__(self) -> None:
        self._check_disjoint()


def seal(data: Dataset) -> Dataset:
    """The data set with its test labels sealed; as it is if they are already."""
    if isinstance(data.test, SealedSplit):
        return data
    test = data.test
    sealed = SealedSplit(test.x, test.group, test.position, lambda: test)
    return SealedDataset(**{f.name: getattr(data, f.name) for f in fields(data)} | {"test": sealed})
