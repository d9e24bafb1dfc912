"""The samples of one case by round, the time that their work explains, and delays left out."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import NormalDist

import numpy as np

from moebench.compare.intervals import Vector
from moebench.records.measurement import Sample

MIN_ROUNDS = 8
"""Fewest rounds that allow a verdict."""
LEAST_EXPECTED = 0.1
"""Least share of the median time that a line through few and noisy steps may predict."""
MOST_POINTS = 500
"""Most points of a line, all pairs of which give a slope: more take too long."""


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
    part_seconds: Vector | None = None
    """Times of equally long parts of each round [rounds, parts]; None where not timed."""
    part_work: Vector | None = None

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "RoundTotals":
        """Samples in the order of their rounds."""
        if not samples:
            raise ValueError("samples: found none, expected at least one round")
        ordered = sorted(samples, key=lambda sample: sample.round)
        rounds = {n: [*group] for n, group in groupby(ordered, key=lambda sample: sample.round)}
        by_round = rounds.values()
        is_known = all(sample.work is not None for sample in samples)
        parts = [sample.part_seconds for sample in ordered]
        part_work = [sample.part_work for sample in ordered]
        # A round of several samples, or of one that was cut short, is taken as a whole.
        has_parts = len(rounds) == len(parts) and {*map(len, parts)} == {max(2, len(parts[0]))}
        return cls(
            tuple(rounds),
            np.array([sum(s.seconds for s in group) for group in by_round]),
            np.array([float(sum(s.num_steps for s in group)) for group in by_round]),
            np.array([sum(s.work or 0 for s in g) for g in by_round]) if is_known else None,
            tuple(tuple(sorted((s.first_step, s.num_steps) for s in g)) for g in by_round),
            np.array(parts) if has_parts else None,
            np.array(part_work) if has_parts and all(part_work) else None,
        )


def expected_seconds(rounds: RoundTotals) -> Vector:
    """The time of each round that its work explains."""
    if rounds.part_seconds is not None:
        return np.asarray(_expected_parts(rounds, rounds.part_seconds).sum(-1))
    work = None if rounds.work is None else rounds.work / rounds.steps
    return _explained(rounds.seconds / rounds.steps, work) * rounds.steps


def undelayed_seconds(rounds: RoundTotals) -> Vector:
    """The time of each round without the delays of single parts, where parts were timed.

    Where other processes want the same processors, one step in three waits for one and the others
    do not. So only the faster half of the parts counts, and says where the middle of all would be
    without delays: a straight line through the logarithms of time over expected time, against the
    normal scores of their ranks, is read at 0. The plain mean of that half would favour the case
    whose steps vary more.

    **Source** Gupta, Biometrika 39, 1952, section 6: the middle of a normal sample of which only
    the smallest values are known. Scores: Blom, Statistical Estimates, 1958.
    """
    if rounds.part_seconds is None:
        return rounds.seconds
    expected = _expected_parts(rounds, rounds.part_seconds)
    ordered = np.sort(np.log(rounds.part_seconds / expected), axis=-1)
    weights = _weights_of_faster_half(ordered.shape[1])
    return np.asarray(np.exp(ordered[:, : len(weights)] @ weights) * expected.sum(-1))


@functools.cache
def _weights_of_faster_half(parts: int) -> Vector:
    """Weights of the smallest values, in order; of two parts neither is known to be delayed."""
    half = max(2, math.ceil(parts / 2))
    places = (np.arange(1, half + 1) - 0.375) / (parts + 0.25)
    scores = np.array([NormalDist().inv_cdf(place) for place in places])
    distance = scores - scores.mean()
    return np.asarray(1 / half - scores.mean() * distance / (distance @ distance))


def _expected_parts(rounds: RoundTotals, seconds: Vector) -> Vector:
    work = None if rounds.part_work is None else rounds.part_work.ravel()
    return _explained(seconds.ravel(), work).reshape(seconds.shape)


def _explained(seconds: Vector, work: Vector | None) -> Vector:
    """The times that a line through (experts touched, seconds) gives for the work.

    The slope is the median of the slopes between all pairs of points, at least 0 and at most
    proportional, and the line has as many points above as below: delays neither tilt nor lift it.
    Equal work is expected to take equal times.

    **Source** Sen, Journal of the American Statistical Association 63, 1968.
    """
    middle = float(np.median(seconds))
    if work is None or np.ptp(work) == 0:
        return np.full_like(seconds, middle)
    some = slice(None, None, math.ceil(len(work) / MOST_POINTS))
    run = work[some, None] - work[some]
    differs = run > 0
    slopes = (seconds[some, None] - seconds[some])[differs] / run[differs]
    steepest = middle / float(np.median(work)) if np.median(work) else math.inf
    slope = min(max(0.0, float(np.median(slopes))), steepest) if len(slopes) else 0.0
    line = float(np.median(seconds - slope * work)) + slope * work
    return np.asarray(np.maximum(line, LEAST_EXPECTED * middle))
