"""Data sets: windows of a signal with a label, a group and a position, split so that no person is on two sides.

`load` is the one entry point:

>>> from pyhtpw.data import load
>>> data = load("synthetic-ecg", seed=0)
>>> data.train.x.shape[1:], data.classes
((720, 1), ('other', 'ventricular'))

The data sets (`PROTOCOLS` names the protocols of each; the modules tell them):

``synthetic-ecg``
    The embedded default, made at run time from a seed (`pyhtpw.data.synthetic_ecg`). Nothing to download. Figures
    measured on it say nothing about patients, and every `Dataset` made from it carries ``synthetic=True``.
``mitdb``
    The MIT-BIH Arrhythmia Database (`pyhtpw.data.mitdb`).
``apnea-ecg``
    The Apnea-ECG Database: the ECG in windows of 18 s, or heart-rate variability per minute (`pyhtpw.data.apnea_ecg`).
``ptb-xl``
    PTB-XL, one lead at 100 Hz, as published or a part as one array (`pyhtpw.data.ptb_xl`).
``speech-commands``
    Speech Commands v0.02, keywords on MFCC, as published or the parts at hand (`pyhtpw.data.speech_commands`).

The real ones are read from a folder that the user has; ``pyhtpw data list``, ``check`` and ``fetch`` tell what is
there, what is wrong with it, and download it. `docs/adding-a-data-set.md` says how to add one.
"""

from __future__ import annotations

from .dataset import NAMES, PROTOCOLS, Dataset, Split, load

__all__ = ["NAMES", "PROTOCOLS", "Dataset", "Split", "load"]
