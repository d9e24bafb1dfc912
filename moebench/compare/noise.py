"""The noise of a machine and its software, in the user's cache under `Environment.fingerprint`.

`moebench.doctor --selftest` measures the noise floor, which reports print; `--aa-runs` makes runs
of one unchanged cell, which say how far two runs of the same code differ.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, variance
from typing import TypeVar

import numpy as np

from moebench.compare.intervals import standard_errors
from moebench.compare.rounds import MIN_ROUNDS
from moebench.files import cache_directory, make_folder, replace_file
from moebench.records.results import Ratio
from moebench.spec.schema import decode, encode

MOST_ROUNDS = 100_000
"""Rounds beyond which nobody would wait for a verdict."""
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


def rounds_needed(ratios: Sequence[Ratio], effect: float, power: float) -> int | None:
    """Fewest rounds that show an effect (0.02: 2 %) in a share `power` of cells.

    The noise is that of the ratios' intervals, each taken for one kind of cell; a cell shows the
    effect where its interval leaves out 1. None where `MOST_ROUNDS` rounds are too few.
    """
    from scipy.special import ndtr

    known = [(r.low, r.high, r.n) for r in ratios if r.low is not None and r.high is not None]
    of_a_round = np.array(
        [math.log(high / low) / 2 / standard_errors(n) * math.sqrt(n) for low, high, n in known]
    )
    n = MIN_ROUNDS
    while known and n <= MOST_ROUNDS:
        errors = np.maximum(of_a_round / math.sqrt(n), 1e-12)
        if float(ndtr(math.log1p(effect) / errors - standard_errors(n)).mean()) >= power:
            return n
        n = max(n + 1, math.ceil(1.02 * n))
    return None


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
