"""Test labels under seal: a run sees the windows of test, and their labels only when its choices are frozen on disk.

`seal` gives a data set whose ``test`` is a `SealedSplit`. What is needed to run a network (windows) and to filter in time
(group, position) is open; ``y`` and ``score_mask`` raise `SealedError`. `pyhtpw.evaluate.choices.unseal` is the one place
that opens the seal, after it has read the frozen choices back from disk and compared them with what is to be scored.

This guards against mistakes, not against a program that means to cheat: the labels are in the same process, and their
counts per class are in the data set's description.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np

from ..errors import SealedError
from .dataset import Dataset, Split


class SealedSplit:
    """A `Split` without its labels: ``x``, ``group`` and ``position`` as there."""

    __slots__ = ("x", "group", "position", "_labels")

    def __init__(self, split: Split) -> None:
        self.x, self.group, self.position = split.x, split.group, split.position
        self._labels: Callable[[], Split] = lambda: split

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def y(self) -> np.ndarray:
        raise SealedError("test labels are sealed: freeze the run's choices first (pyhtpw.evaluate.choices.freeze), then "
                          "open them with unseal")

    score_mask = y


def seal(data: Dataset) -> Dataset:
    """The data set with its test labels sealed; as it is if they are already."""
    if isinstance(data.test, SealedSplit):
        return data
    sealed = copy.copy(data)  # without the constructor: it would look at the labels, which the original has checked
    object.__setattr__(sealed, "test", SealedSplit(data.test))
    return sealed
