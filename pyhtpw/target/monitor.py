"""The streaming ECG monitor (`examples/firmware/ecg_monitor`) on an emulated board, beside the host, decision for decision."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyhtpw.errors import ConfigError, DataError
from pyhtpw.evaluate import probabilities
from pyhtpw.model import Image
from pyhtpw.target import firmware, measure, session
from pyhtpw.target.firmware import Board, Settings
from reference import ecg

APPLICATION = ("ecg_monitor/monitor.c", "ecg_monitor/ecg_front.c")
UNITS_PER_MV, ZERO = 200, 1024
NO_DECISION = 2


@dataclass(frozen=True)
class Constants:
    """What the monitor's firmware is compiled with: see docs/SPEC.md section 12."""

    rate: int
    gain: int
    zero_point: int
    margin: int

    @classmethod
    def of(cls, image: Image) -> "Constants":
        """Of an image; ConfigError for one that no ECG monitor can use."""
        info, shape = image.parsed.info, image.parsed.input
        if info is None or len(info.classes) != 2 or not info.sample_rate or shape.h * shape.c != 1:
            raise ConfigError(f"{image.name}: a monitor needs an image of one lead and two classes with an INFO section")
        rate, gain = round(info.sample_rate), round(2**20 / info.input_scale)
        if shape.w > min(4096, 8 * rate) or gain >= 1 << 31:
            raise ConfigError(f"{image.name}: windows of {shape.w} samples at {rate} per second are more than a monitor takes")
        margins = np.arange(-255, 256)
        p = probabilities(np.stack([np.zeros_like(margins), margins], 1), info.logit_scale)[:, 1]
        reached = margins[p >= info.threshold]
        return cls(rate, gain, shape.zero_point, int(reached[0]) if len(reached) else 256)


def samples_of(millivolts: np.ndarray) -> np.ndarray:
    """Codes (n,) int16 of an 11-bit converter of 200 steps per mV around 1024, as the published records have them."""
    return np.clip(np.rint(millivolts * UNITS_PER_MV) + ZERO, 0, 2047).astype(np.int16)


def record(data_dir: Path, name: str) -> np.ndarray:
    """Codes of the first lead of a record of the MIT-BIH Arrhythmia Database. Raises DataError if it is not there."""
    from pyhtpw.data import mitdb

    if not Path(data_dir, f"{name}.hea").is_file():
        raise DataError(f"{data_dir}: has no record {name} ({name}.hea, {name}.dat): copy it there or give another folder")
    return samples_of(mitdb._signal(Path(data_dir), name, 0))


def synthetic(seconds: int, seed: int = 0) -> np.ndarray:
    """Codes of a synthetic ECG with a loose lead, a rail and a noisy stretch in it. It says nothing about patients."""
    from pyhtpw.data import synthetic_ecg

    rng = np.random.default_rng([seed, 0x4D4F4E])
    signal = synthetic_ecg._record(rng, 4 + 3 * seconds, 0.15, 720)[0][: seconds * 360]
    x = samples_of(signal)
    third = len(x) // 3
    x[third : third + 400] = x[third]
    x[2 * third : 2 * third + 200] = 2047
    noisy = x[-900:-500]
    x[-900:-500] = np.clip(noisy + rng.integers(-120, 121, len(noisy)), 0, 2047)
    return x


def host(image: Image, x: np.ndarray) -> Iterator[tuple[int, ...]]:
    """(second, decision, quality, logits) of every second by numpy and C here; logits are 0 where there is no decision."""
    known = Constants.of(image)
    for due in ecg.decisions(x, image.plan().input, known.rate, known.gain, known.zero_point):
        if due.quality:
            yield due.second, NO_DECISION, due.quality, 0, 0
            continue
        low, high = (int(v) for v in image.run(due.window))
        yield due.second, int(high - low >= known.margin), 0, low, high


def build(image: Image, board: Board, settings: Settings) -> firmware.Firmware:
    """The monitor's firmware. Raises FitError if it does not fit."""
    known = Constants.of(image)
    sizes = {"RATE": known.rate, "GAIN": known.gain, "ZERO_POINT": known.zero_point, "MARGIN": known.margin}
    return firmware.build(board, image, "boot", settings, application=APPLICATION, sizes=sizes)


def run(image: Image, board: Board, settings: Settings, x: np.ndarray, *, seconds: float = 3600.0) -> dict[str, Any]:
    """Runs the monitor on samples and compares it with the host.

    Returns a JSON object: decisions on both sides that differ, how many of each kind, and the front end's bill: flash and SRAM from the
    ELF, instructions per sample and per window counted on the first windows.
    """
    built = build(image, board, settings)
    done = session.run(built, np.empty(0, np.int8), samples=x, seconds=seconds)
    expected = list(host(image, x))
    differ = [(a, b) for a, b in zip(done.decisions, expected, strict=False) if a != b]
    kinds = [decision for _, decision, *_ in done.decisions]
    return {
        "image": image.name, "board": board.name, "cpu": board.cpu, "backend": done.backend, "seconds": len(x) // Constants.of(image).rate,
        "decisions": len(done.decisions), "expected": len(expected),
        "differ": len(differ) + abs(len(done.decisions) - len(expected)),
        "first": None if not differ else f"board {differ[0][0]}, host {differ[0][1]} (second, decision, quality, logits)",
        "ventricular": kinds.count(1), "other": kinds.count(0), "no_decision": kinds.count(NO_DECISION),
        "bill": bill(image, built, x, done.stack),
    }


def bill(image: Image, built: firmware.Firmware, x: np.ndarray, stack: int) -> dict[str, Any]:
    """What the front end takes beside the network."""
    rate, window = Constants.of(image).rate, image.plan().input
    few = x[: (-(-window // rate) + 2) * rate]
    counted = session.run(built, np.empty(0, np.int8), samples=few, count=True)
    seconds = [p.cost.instructions for p in counted.phases if p.name == "second"]
    windows = [p.cost.instructions for p in counted.phases if p.name == "window"]
    runs = [p.cost.instructions for p in counted.phases if p.name == "run"]
    front = [s for s in built.elf.symbols.values() if s.name.startswith("ecg_")]
    ram = [built.elf.symbols[name] for name in ("app_ring", "app_front")]
    flash = measure.flash(built)
    return {
        "front_end_flash": sum(s.size for s in front), "front_end_sram": sum(s.size for s in ram),
        "flash": flash["total"], "stack_seen": stack,
        "instructions_per_sample": round(seconds[-1] / rate, 1),
        "instructions_per_window": windows[-1] if windows else None,
        "instructions_per_inference": runs[-1] if runs else None,
        "instructions_per_second": seconds[-1] + (windows[-1] + runs[-1] if windows else 0),
    }
