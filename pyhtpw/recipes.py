"""What `demo` and `train` do with each data set when no option says otherwise.

Chosen on validation data (docs/decisions.md); a recipe is plain data, so a run folder can record it whole.
"""

from dataclasses import dataclass, field
from typing import Any

from pyhtpw.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """Network options of `pyhtpw.nets.build`, fields of `pyhtpw.train.TrainConfig`, the evaluation filter's width, and the teacher.

    ``teacher`` is empty, or has ``run`` (a finished run's folder or one of its checkpoints), or ``net`` with any of ``steps``,
    ``options`` and ``train``: a network to train first.
    """

    net: str = "hypertinypw"
    net_options: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    median: int = 1  # windows; 1 is no filter
    teacher: dict[str, Any] = field(default_factory=dict)


RECIPES = {
    ("synthetic-ecg", "synthetic"): Recipe(
        net_options={"kernel": 9, "stem_kernel": 15},
        train={"steps": 3000, "eval_every": 250, "weight_decay": 0.1, "augment": {"amplitude": 0.2, "shift": 4}},
    ),
    ("mitdb", "paper"): Recipe(
        net_options={"kernel": 9, "stem_kernel": 15},
        train={"steps": 6000, "eval_every": 500, "weight_decay": 0.1, "augment": {"amplitude": 0.2}},
    ),
    ("mitdb", "aami"): Recipe(
        net_options={"kernel": 9, "stem_kernel": 15},
        train={"steps": 2000, "eval_every": 250, "balance": 0.3, "weight_decay": 0.05,
               "augment": {"amplitude": 0.4, "noise": 0.3, "stretch": 0.3, "shift": 16}},
    ),
    # `generated-8k` of results/plan/keywords-official6.toml, without its teacher.
    **dict.fromkeys(
        [("speech-commands", "official6"), ("speech-commands", "split10"), ("speech-commands", "official12")],
        Recipe(
            net_options={"kernel": 9, "stem": 72, "stem_kernel": 1, "stem_stride": 1, "widths": (72,) * 5, "strides": (2, 1, 1, 1, 1),
                         "heads": {**dict.fromkeys(("conv", "pw", "pw1"), "tiled:tile=16,dz=4,hidden=8,group=pw"),
                                   "depthwise": "tiled:tile=9,dz=4,hidden=0", "fc": "stored:bits=4"}},
            train={"steps": 3000, "eval_every": 500, "lr": 0.012, "weight_decay": 0.05, "balance": "none",
                   "augment": {"time_mask": 12, "feature_mask": 6, "shift": 5}},
        ),
    ),
    # Not tuned yet: what makes the loaders usable.
    **dict.fromkeys(
        [("apnea-ecg", "records"), ("apnea-ecg", "challenge"), ("ptb-xl", "norm"), ("ptb-xl", "superclass")],
        Recipe(net_options={"kernel": 9, "stem_kernel": 15}, train={"steps": 4000, "eval_every": 250, "augment": {"amplitude": 0.2}}),
    ),
    ("apnea-ecg", "beats"): Recipe(
        net_options={"kernel": 3, "stem": 32, "stem_kernel": 3, "stem_stride": 1, "widths": (32, 32), "strides": (1, 1)},
        train={"steps": 3000, "eval_every": 250},
    ),
}


def recipe(data: str, protocol: str) -> Recipe:
    """The recipe of a data set and protocol; raises ConfigError if there is none."""
    try:
        return RECIPES[data, protocol]
    except KeyError:
        known = ", ".join(f"{name} ({way})" for name, way in RECIPES)
        raise ConfigError(f"no recipe for {data} ({protocol}): there are recipes for {known}") from None
