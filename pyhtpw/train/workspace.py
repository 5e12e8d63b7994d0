"""Scratch memory of the trainer."""

from __future__ import annotations

from math import prod

import numpy as np


class Workspace:
    """Scratch arrays that are allocated once and reused by every step."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = np.dtype(dtype)
        self._flat: dict[str, np.ndarray] = {}

    def get(self, tag: str, *shape: int) -> np.ndarray:
        """An array of ``shape`` with arbitrary content; the memory behind ``tag`` grows to the largest use."""
        size = prod(shape)
        flat = self._flat.get(tag)
        if flat is None or flat.size < size:
            flat = self._flat[tag] = np.empty(size, self.dtype)
        return flat[:size].reshape(shape)
