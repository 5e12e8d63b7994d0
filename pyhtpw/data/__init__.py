"""Data sets: windows of a signal with a label, a group and a position, split so that no person is on two sides.

`load` is the one entry point:

>>> from pyhtpw.data import load
>>> data = load("synthetic-ecg", seed=0)
>>> data.train.x.shape[1:], data.classes
((720, 1), ('other', 'ventricular'))

Two data sets are known:

``synthetic-ecg``
    The embedded default, made at run time from a seed (`pyhtpw.data.synthetic_ecg`). Nothing to download. Figures
    measured on it say nothing about patients, and every `Dataset` made from it carries ``synthetic=True``.
``mitdb``
    The MIT-BIH Arrhythmia Database, read from a directory the user has (`pyhtpw.data.mitdb`).
"""

from __future__ import annotations

from .dataset import NAMES, Dataset, Split, load

__all__ = ["NAMES", "Dataset", "Split", "load"]
