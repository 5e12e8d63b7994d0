"""Models of other frameworks under the same protocol: a PyTorch baseline that a comparison needs.

Their maker declares them in the plan (``net = "external"``; ``options`` are for the maker to read), trains them, and hands over
probabilities of validation and test windows, which need no label. Threshold, filter, frozen choices, log and figures are those
of every other model.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone
from typing import Any

import numpy as np

from pyhtpw import pipeline
from pyhtpw.data import Dataset
from pyhtpw.data.seal import seal
from pyhtpw.errors import ConfigError
from pyhtpw.evaluate import score, smoothed, tune
from pyhtpw.evaluate.choices import Choices, data_identity, freeze
from pyhtpw.experiment.plan import EXTERNAL, Plan
from pyhtpw.experiment.runner import Decisions, Folders, done
from pyhtpw.image.writer import save


def score_external(plan: Plan, name: str, seed: int, data: Dataset, folders: Folders, *, checkpoint: bytes, p_val: np.ndarray,
                   p_test: np.ndarray, parameters: int, training: dict[str, Any], command: str = "") -> dict[str, Any]:
    """Tune on validation, freeze, score test once, and write the result of one trained seed.

    Parameters
    ----------
    plan, name, seed
        The declaration, its external model, and the seed it was trained with.
    data : Dataset
        Sealed, or it is sealed here.
    folders : Folders
    checkpoint : bytes
        The trained model: its hash is what is frozen.
    p_val, p_test : (N, C) float
        Probabilities of all windows of validation and test, unfiltered, rows summing to 1.
    parameters : int
    training : dict
        Facts of the training, JSON: ``steps``, ``seconds``, versions.
    command : str
        What was typed.

    Returns
    -------
    dict
        As on disk. A result that is there already is returned as it is: test is scored once.

    Raises
    ------
    ConfigError
        The model is not an external one, or its result belongs to another configuration.
    """
    model, data = plan.model(name), seal(data)
    if model.net != EXTERNAL:
        raise ConfigError(f"{plan.name}: model {name} is made by pyhtpw: set net = {EXTERNAL!r} for one that is made elsewhere")
    path = folders.result(plan.name, name, seed)
    if done(plan, model, seed, folders):
        return json.loads(path.read_text())
    folder = pipeline.prepare_folder(folders.run(plan.name, name, seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    filtered = smoothed(np.asarray(p_val, np.float64), data.val, plan.median)
    threshold, _ = tune(filtered, data.val)
    configuration = plan.configuration(model, seed)
    freeze(folder / "choices.json", Choices.of(checkpoint, data, configuration, threshold=threshold, median=plan.median))
    tested = pipeline.score_test(np.asarray(p_test, np.float64), checkpoint, threshold, data, folder / "choices.json",
                                 run=f"{plan.name}/{name}-s{seed}", log=folders.log)
    save(Decisions.of(tested, threshold, data).to_bytes(), path.with_suffix(".npz"))
    result = {
        "plan": plan.name, "model": name, "seed": seed, "command": command, "external": True,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config_sha256": plan.config_sha256(model, seed), "configuration": configuration, "data": data_identity(data),
        "synthetic": data.synthetic, "part": data.description.get("part"), "counts": data.description.get("counts"),
        "classes": list(data.classes), "note": model.note, "machine": pipeline.machine(),
        "network": {"name": name, "parameters": parameters, "macs": None, "generated_weights": 0},
        "training": training, "checkpoint_sha256": hashlib.sha256(checkpoint).hexdigest(), "over_budget": False,
        "threshold": threshold, "median_filter": plan.median,
        "validation": score(filtered, data.val, threshold, name="validation", protocol=plan.protocol.partition(":")[0]),
        "test": tested.figures, "test_notes": tested.notes, "test_evaluations": tested.evaluations,
    }  # fmt: skip
    save((json.dumps(result, indent=1) + "\n").encode(), path)
    return result
