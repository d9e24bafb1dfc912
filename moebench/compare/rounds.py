"""The samples of one case by round, and the time that each round's work explains."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from moebench.compare.intervals import Vector
from moebench.records.measurement import Sample

MIN_ROUNDS = 8
"""Fewest rounds that allow a verdict."""
LEAST_EXPECTED = 0.1
"""Least share of the median time that a line through few and noisy steps may predict."""


@dataclass(frozen=True)
class RoundTotals:
    """The samples of one case, added up by round."""

    numbers: tuple[int, ...]
    seconds: Vector
    steps: Vector
    work: Vector | None
    """Distinct experts touched in each round; None where a sample does not say."""
    visits: tuple[tuple[tuple[int, int], ...], ...]
    """First step and number of steps of each sample, by round."""

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "RoundTotals":
        """Samples in the order of their rounds."""
        if not samples:
            raise ValueError("samples: found none, expected at least one round")
        ordered = sorted(samples, key=lambda sample: sample.round)
        rounds = {n: [*group] for n, group in groupby(ordered, key=lambda sample: sample.round)}
        by_round = rounds.values()
        is_known = all(sample.work is not None for sample in samples)
        return cls(
            tuple(rounds),
            np.array([sum(s.seconds for s in group) for group in by_round]),
            np.array([float(sum(s.num_steps for s in group)) for group in by_round]),
            np.array([sum(s.work or 0 for s in g) for g in by_round]) if is_known else None,
            tuple(tuple(sorted((s.first_step, s.num_steps) for s in g)) for g in by_round),
        )


def expected_seconds(rounds: RoundTotals) -> Vector:
    """The time of each round that its work explains.

    A line through (experts touched, seconds) a step: the slope is the median of the slopes between
    all pairs of rounds, at least 0 and at most proportional, so that delays do not tilt it. Equal
    steps are expected to take equal times.

    **Source** Sen, Journal of the American Statistical Association 63, 1968.
    """
    seconds = rounds.seconds / rounds.steps
    middle = float(np.median(seconds))
    if rounds.work is None or np.ptp(rounds.work / rounds.steps) == 0:
        return middle * rounds.steps
    work = rounds.work / rounds.steps
    run = work[:, None] - work
    differs = run > 0
    slopes = (seconds[:, None] - seconds)[differs] / run[differs]
    steepest = middle / float(np.median(work)) if np.median(work) else math.inf
    slope = min(max(0.0, float(np.median(slopes))), steepest)
    line = middle + slope * (work - float(np.median(work)))
    return np.asarray(np.maximum(line, LEAST_EXPECTED * middle) * rounds.steps)
