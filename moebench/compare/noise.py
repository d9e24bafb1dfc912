"""The noise of a machine and its software, in the user's cache under `Environment.fingerprint`.

`moebench.doctor --selftest` measures the noise floor, which reports print; `--aa-runs` makes runs
of one unchanged cell, which say how far two runs of the same code differ.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, variance
from typing import TypeVar

from moebench.files import cache_directory, make_folder, replace_file
from moebench.spec.schema import decode, encode

LEAST_RUNS = 10
"""Fewest runs from which the noise between runs is estimated."""


@dataclass(frozen=True)
class NoiseFloor:
    """How exactly speedups are measured on a machine, by its last selftest."""

    fingerprint: str
    taken_at: str
    """UTC, ISO 8601."""
    commit: str | None
    half_width: float
    """Relative half width of the 95 % interval of a case's speedup over itself, median."""
    rounds: int


@dataclass(frozen=True)
class UnchangedRun:
    """One run of the cell that A/A runs repeat."""

    taken_at: str
    commit: str | None
    reference_version: int
    relative: Mapping[str, float]
    """Logarithm of latency over reference operation, by case key."""
    by_parts: bool = False
    """Whether each case was divided by its mixture of the operation's two parts."""


@dataclass(frozen=True)
class UnchangedRuns:
    """A/A runs: the same code on the same machine."""

    fingerprint: str
    runs: tuple[UnchangedRun, ...]

    def deviation(self, reference_version: int, by_parts: bool = False) -> float | None:
        """Standard deviation between runs of the logarithm; None for too few runs.

        Pooled over shared cases; with the sampling error within runs, so rather too large.
        """
        asked = (reference_version, by_parts)
        runs = [r.relative for r in self.runs if (r.reference_version, r.by_parts) == asked]
        if len(runs) < LEAST_RUNS:
            return None
        cases = set.intersection(*map(set, runs))
        variances = [variance(run[case] for run in runs) for case in cases]
        return math.sqrt(fmean(variances)) if variances else None


T = TypeVar("T", NoiseFloor, UnchangedRuns)


def load_noise_floor(fingerprint: str) -> NoiseFloor | None:
    """The last selftest's noise floor; None where no file can be read."""
    return _load(NoiseFloor, fingerprint)


def save_noise_floor(floor: NoiseFloor) -> Path:
    """Replace the noise floor of a machine; returns the file."""
    return _save(floor)


def load_unchanged_runs(fingerprint: str) -> UnchangedRuns:
    """The A/A runs of a machine; none where no file can be read."""
    return _load(UnchangedRuns, fingerprint) or UnchangedRuns(fingerprint, ())


def add_unchanged_run(fingerprint: str, run: UnchangedRun) -> Path:
    """Add an A/A run to those of its machine; returns the file."""
    known = load_unchanged_runs(fingerprint)
    return _save(replace(known, runs=(*known.runs, run)))


def _path(cls: type[T], fingerprint: str) -> Path:
    name = "noise-floor" if cls is NoiseFloor else "unchanged-runs"
    return cache_directory() / f"{fingerprint}-{name}.json"


def _load(cls: type[T], fingerprint: str) -> T | None:
    path = _path(cls, fingerprint)
    try:
        found = decode(cls, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError):
        return None
    return found if found.fingerprint == fingerprint else None


def _save(value: T) -> Path:
    path = _path(type(value), value.fingerprint)
    make_folder(path.parent)
    replace_file(path, (json.dumps(encode(value), indent=1) + "\n").encode())
    return path
