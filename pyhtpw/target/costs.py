"""Estimates: cycles from counted instruction classes, and energy from cycles, with constants that a user edits (`costs.toml`).

Nothing here is measured. Where it can be, the likely figure of Cortex-M4 is that of `qemu.estimate`, which looks at the order of
instructions and not only at their classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyhtpw.errors import ConfigError
from pyhtpw.nets.toml import load_toml
from pyhtpw.target.session import Cost

CONSTANTS = Path(__file__).with_name("costs.toml")
CLASSES = ("load", "store", "mac", "simd_unpack", "branch", "it", "div", "loop_start", "loop_end", "mve_load", "mve_store", "mve_mac",
           "mve_pred", "mve_other", "other")


@dataclass(frozen=True)
class Estimate:
    """Cycles: the likely number and its error bars."""

    low: int
    likely: int
    high: int


class Costs:
    """The constants of one file.

    Parameters
    ----------
    path : Path, optional
        A file like `costs.toml`, which is the default.

    Raises
    ------
    ConfigError
        If it cannot be read, lacks a constant or has one that is not a number.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or CONSTANTS
        self._tables = load_toml(self.path)

    def _table(self, kind: str, cpu: str) -> Mapping[str, Any] | None:
        table = self._tables.get(kind, {})
        return table.get(cpu) if isinstance(table, dict) else None

    def cycles(self, cost: Cost, cpu: str) -> Estimate | None:
        """Estimated cycles of counted instructions; None for a core that the file has no model of."""
        model = self._table("cycles", cpu)
        if model is None:
            return None
        sums = [0.0, 0.0, 0.0]
        for kind, n in cost.classes.items():
            for i, each in enumerate(self._triple(model, kind if kind in model else "other", cpu)):
                sums[i] += n * each
        moved = self._triple(model, "multiple", cpu)
        taken, waits = self._triple(model, "taken", cpu), self._triple(model, "wait_states", cpu)
        for i in range(3):
            sums[i] += cost.moved * moved[i] + cost.taken * (taken[i] + waits[i])
        likely = cost.cycles + cost.taken * waits[1] if cpu == "cortex-m4" and self.path == CONSTANTS else sums[1]
        return Estimate(round(sums[0]), round(likely), round(sums[2]))

    def _triple(self, model: Mapping[str, Any], name: str, cpu: str) -> tuple[float, float, float]:
        value = model.get(name)
        good = isinstance(value, list) and len(value) == 3 and all(isinstance(v, int | float) and v >= 0 for v in value)
        if not good or not value[0] <= value[1] <= value[2]:
            raise ConfigError(f"{self.path}: [cycles.{cpu}] {name} must be three ascending numbers [low, likely, high], not {value!r}")
        return tuple(value)

    def energy(self, cycles: Estimate, cpu: str) -> dict[str, float] | None:
        """Millijoules of so many cycles, and milliseconds; None for a core that the file has no table of."""
        table = self._table("energy", cpu)
        if table is None:
            return None
        for name in ("frequency_mhz", "current_ma", "voltage"):
            if not isinstance(table.get(name), int | float) or table[name] <= 0:
                raise ConfigError(f"{self.path}: [energy.{cpu}] {name} must be a number above 0, not {table.get(name)!r}")
        power = table["current_ma"] * table["voltage"]  # mW
        found = {}
        for name in ("low", "likely", "high"):
            ms = getattr(cycles, name) / table["frequency_mhz"] / 1000
            found[f"{name}_ms"], found[f"{name}_mj"] = round(ms, 4), round(ms * power / 1000, 5)
        return found | {name: table[name] for name in ("frequency_mhz", "current_ma", "voltage")}
