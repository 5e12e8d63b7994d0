"""Scratch memory of the trainer."""

from __future__ import annotations

import weakref
from math import prod

import numpy as np


class Workspace:
    """Scratch arrays that are allocated once and reused by every step."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = np.dtype(dtype)
        self._flat: dict[str, np.ndarray] = {}
        self._idle: list[np.ndarray] = []

    def get(self, tag: str, *shape: int) -> np.ndarray:
        """An array of ``shape`` with arbitrary content; the memory behind ``tag`` grows to the largest use."""
        size = prod(shape)
        flat = self._flat.get(tag)
        if flat is None or flat.size < size:
            flat = self._flat[tag] = np.empty(size, self.dtype)
        return flat[:size].reshape(shape)

    @property
    def kept_bytes(self) -> int:
        """Bytes of all arrays that are not lent."""
        return sum(flat.nbytes for flat in self._flat.values())

    def lend(self, *shape: int) -> np.ndarray:
        """An array of ``shape`` with arbitrary content, whose memory serves again once nobody holds it or a view of it.

        Gradients live for a layer or two: they take turns in the memory of a few, where one array for each would take
        as much as all activations together.
        """
        size = prod(shape)
        idle = self._idle
        best = min((i for i, flat in enumerate(idle) if flat.size >= size), key=lambda i: idle[i].size, default=-1)
        if best < 0:
            if idle:  # grow one instead of adding one
                del idle[max(range(len(idle)), key=lambda i: idle[i].size)]
            flat = np.empty(size, self.dtype)
        else:
            flat = idle.pop(best)
        # Through the buffer, since a view of a view would hold ``flat`` itself, and not tell when it is done with.
        lent = np.frombuffer(memoryview(flat), self.dtype, size)
        weakref.finalize(lent, self._idle.append, flat).atexit = False
        return lent.reshape(shape)
