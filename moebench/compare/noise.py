"""What is known about the noise of a machine, kept in the user's cache beside its calibration.

Two files a machine and software (`Environment.fingerprint`): the noise floor that
`moebench.doctor --selftest` found, which reports print, and the runs of one unchanged cell that
`moebench.doctor --aa-runs` made, which say how far two runs of the same code differ.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from moebench.files import cache_directory, replace_file
from moebench.spec.schema import decode, encode

LEAST_RUNS = 10
"""Runs that the noise between runs may be estimated from."""


@dataclass(frozen=True)
class NoiseFloor:
    """What a selftest found."""

    fingerprint: str
    taken_at: str
    """UTC, ISO 8601."""
    commit: str | None
    half_width: float
    """Relative half width of the 95 % interval of the speedup of a case against itself, median."""
    rounds: int
    """That such an interval rests on."""


@dataclass(frozen=True)
class UnchangedRun:
    """One run of the cell that A/A runs repeat."""

    taken_at: str
    commit: str | None
    reference_version: int
    relative: Mapping[str, float]
    """Logarithm of latency over reference operation, by case key."""


@dataclass(frozen=True)
class UnchangedRuns:
    """Runs of the same code on the same machine."""

    fingerprint: str
    runs: tuple[UnchangedRun, ...]

    def deviation(self, reference_version: int) -> float | None:
        """Standard deviation between runs of the logarithm; None for too few runs.

        Pooled over the cases that all runs have. It contains what sampling within these short
        runs adds, and so is rather too large than too small.
        """
        runs = [run.relative for run in self.runs if run.reference_version == reference_version]
        if len(runs) < LEAST_RUNS:
            return None
        cases = set.intersection(*(set(run) for run in runs))
        if not cases:
            return None
        squares = 0.0
        for case in cases:
            values = [run[case] for run in runs]
            mean = sum(values) / len(values)
            squares += sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        return math.sqrt(squares / len(cases))


def load_noise_floor(fingerprint: str) -> NoiseFloor | None:
    """The last selftest's noise floor; None where none was kept or it cannot be read."""
    found = _load(NoiseFloor, _floor_path(fingerprint))
    return found if found and found.fingerprint == fingerprint else None


def save_noise_floor(floor: NoiseFloor) -> Path:
    """Replace what was kept; returns the file."""
    return _save(floor, _floor_path(floor.fingerprint))


def load_unchanged_runs(fingerprint: str) -> UnchangedRuns:
    """The A/A runs of a machine; none where no file can be read."""
    found = _load(UnchangedRuns, _runs_path(fingerprint))
    return found if found and found.fingerprint == fingerprint else UnchangedRuns(fingerprint, ())


def add_unchanged_run(fingerprint: str, run: UnchangedRun) -> Path:
    """Add a run to those that are kept; returns the file."""
    known = load_unchanged_runs(fingerprint)
    return _save(replace(known, runs=(*known.runs, run)), _runs_path(fingerprint))


def _floor_path(fingerprint: str) -> Path:
    return cache_directory() / f"{fingerprint}-noise-floor.json"


def _runs_path(fingerprint: str) -> Path:
    return cache_directory() / f"{fingerprint}-unchanged-runs.json"


T = TypeVar("T", NoiseFloor, UnchangedRuns)


def _load(cls: type[T], path: Path) -> T | None:
    try:
        return decode(cls, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError):
        return None


def _save(value: NoiseFloor | UnchangedRuns, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(encode(value), indent=1) + "\n").encode())
    return path
