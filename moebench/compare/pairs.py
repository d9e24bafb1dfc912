"""Two cases of one cell compared: latencies and ratios with intervals, and verdicts.

Consecutive timings are not independent, because clocks, heat and neighbours drift over seconds.
Every round runs all cases of a cell in random order, so that a common drift cancels in a ratio.
Intervals come from resampling *blocks* of consecutive rounds (`moebench.compare.intervals`).

A ratio is that of total times without the delays of single rounds: the logarithm of each round's
ratio, less the part that different work explains (`moebench.compare.rounds`), gives residuals. The
value is their trimmed mean times the ratio of the expected totals: a delay that hits one router in
fewer than a third of its rounds is trimmed away. Latencies are plain means and contain all delays.

Where the steps of a visit were timed one by one, the delays of single steps are left out first.
What the machine's state explains (`moebench.compare.covariates`) is taken out of the residuals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from moebench.compare.covariates import at_mean_state, reference_times
from moebench.compare.intervals import (
    LimitPair,
    Vector,
    center_limits,
    degrees_of_freedom,
    ratio_limits,
    trimmed_mean,
)
from moebench.compare.rounds import (
    MIN_ROUNDS,
    RoundTotals,
    expected_seconds,
    undelayed_seconds,
)
from moebench.records.confidence import LEVEL, p_value, rejected
from moebench.records.measurement import Reference, Sample
from moebench.records.record import Record
from moebench.records.results import Interval, Ratio, Verdict

SAME_MARGIN = 0.01
"""Ratios within 1 ± this are called the same."""


def latency(samples: Sequence[Sample], seed: int = 0) -> Interval:
    """Seconds a step: total time over total steps, with a 95 % interval from two blocks on."""
    rounds = RoundTotals.of(samples)
    low, high = _exponentials(ratio_limits(rounds.seconds, rounds.steps, seed))
    return Interval(float(rounds.seconds.sum() / rounds.steps.sum()), low, high, LEVEL)


def speedup(
    baseline: Sequence[Sample],
    target: Sequence[Sample],
    names: tuple[str, str] = ("baseline", "target"),
    seed: int = 0,
    reference: Reference | None = None,
) -> Ratio:
    """Total time of baseline over target (titles in `names`) on the same steps, less delays.

    The reference operation of the same rounds says what state the machine was in.
    """
    base, other = RoundTotals.of(baseline), RoundTotals.of(target)
    _same_work(base, other, names)
    above, below = ((undelayed_seconds(one), expected_seconds(one)) for one in (base, other))
    value, low, high = _ratio(above, below, reference_times(reference, base.numbers), seed)
    n = len(base.numbers)
    return Ratio("speedup", *names[::-1], value, low, high, verdict(low, high, n, "faster"), n)


@dataclass(frozen=True)
class Timed:
    """The samples of one case, and the mean number of experts that its tokens ran in them."""

    samples: Sequence[Sample]
    mean_k: float
    title: str


def overhead(
    target: Timed,
    between: tuple[Timed, Timed],
    seed: int = 0,
    reference: Reference | None = None,
) -> Ratio:
    """Time of an adaptive router over that of a fixed k with the same mean number of experts.

    No fixed router runs 1.4 experts, so its time is interpolated, round by round, between the two
    of a larger and a smaller k in `between`: what routing itself costs, with the saving in experts
    taken out. Time is not linear in k where few tokens touch few experts; there the interpolation
    is a convention and no prediction.
    """
    above, below = between
    if above.mean_k <= below.mean_k:
        raise ValueError(f"k: found {above.mean_k} at most, expected more than {below.mean_k}")
    other, upper, lower = (RoundTotals.of(one.samples) for one in (target, above, below))
    _same_work(upper, other, (above.title, target.title))
    _same_work(lower, other, (below.title, target.title))
    weight = (target.mean_k - below.mean_k) / (above.mean_k - below.mean_k)
    seconds = weight * undelayed_seconds(upper) + (1 - weight) * undelayed_seconds(lower)
    if seconds.min() <= 0:
        raise ValueError(
            f"mean k: found {target.mean_k}, too far outside {below.mean_k} to {above.mean_k}"
        )
    expected = weight * expected_seconds(upper) + (1 - weight) * expected_seconds(lower)
    own = (undelayed_seconds(other), expected_seconds(other))
    interpolated = (seconds, np.maximum(expected, 1e-12))
    references = reference_times(reference, other.numbers)
    value, low, high = _ratio(own, interpolated, references, seed)
    n, names = len(other.numbers), (target.title, above.title)
    return Ratio("overhead", *names, value, low, high, verdict(low, high, n, "slower"), n)


def verdict(
    low: float | None, high: float | None, n: int, above_one: Literal["faster", "slower"]
) -> Verdict:
    """Verdict on a ratio from its 95 % interval and number of rounds; `above_one` if above 1."""
    if low is None or high is None or n < MIN_ROUNDS:
        return "unclear"
    if low >= 1 - SAME_MARGIN and high <= 1 + SAME_MARGIN:
        return "same"
    if low > 1:
        return above_one
    if high < 1:
        return "slower" if above_one == "faster" else "faster"
    return "unclear"


def corrected(records: Sequence[Record]) -> tuple[Record, ...]:
    """The records of a run, the verdicts on their speedups corrected for the number of rows.

    After Benjamini and Hochberg's procedure at most 5 % *of those called faster or slower* are
    expected to be wrong; rows that it does not reject become "unclear". "same" needs none.
    """
    ratios = [r for record in records for r in record.ratios if r.kind == "speedup"]
    differs = iter(rejected(list(map(ratio_p_value, ratios))))

    def judged(ratio: Ratio) -> Ratio:
        if ratio.kind != "speedup" or next(differs) or ratio.verdict == "same":
            return ratio
        return replace(ratio, verdict="unclear")

    return tuple(replace(r, ratios=tuple(map(judged, r.ratios))) for r in records)


def ratio_p_value(ratio: Ratio) -> float:
    """Probability of a ratio as far from 1 if the truth were 1; 1 where there is no interval."""
    if ratio.low is None or ratio.high is None or ratio.n < MIN_ROUNDS:
        return 1.0
    value, low, high = (math.log(x) for x in (ratio.value, ratio.low, ratio.high))
    return p_value(value, low, high, degrees_of_freedom(ratio.n))


def precise_enough(result: Interval | Ratio, relative_half_width: float) -> bool:
    """Whether an interval is as narrow as asked for; by chance it may be, so two in a row count."""
    is_short = isinstance(result, Ratio) and result.n < MIN_ROUNDS
    if result.low is None or result.high is None or is_short:
        return False
    return (result.high - result.low) / (2 * result.value) <= relative_half_width


def _same_work(first: RoundTotals, second: RoundTotals, names: tuple[str, str]) -> None:
    if first.numbers != second.numbers:
        differing = sorted(set(first.numbers) ^ set(second.numbers))
        raise ValueError(f"{names[0]} and {names[1]}: not both ran in rounds {differing}")
    for number, one, other in zip(first.numbers, first.visits, second.visits, strict=True):
        if one != other:
            raise ValueError(
                f"{names[0]} and {names[1]}: round {number} ran different steps "
                f"(first step, number of steps): {list(one)} and {list(other)}"
            )


def _ratio(
    numerator: tuple[Vector, Vector],
    denominator: tuple[Vector, Vector],
    references: Sequence[Vector],
    seed: int,
) -> tuple[float, float | None, float | None]:
    """Ratio of two cases with its 95 % limits, from (seconds, expected seconds) of their rounds."""
    (above, expected_above), (below, expected_below) = numerator, denominator
    residuals = np.log(above / expected_above) - np.log(below / expected_below)
    residuals = at_mean_state(residuals, references)
    totals = expected_above.sum() / expected_below.sum()
    limits = _exponentials(center_limits(residuals, seed), totals)
    return float(totals * math.exp(trimmed_mean(residuals))), *limits


def _exponentials(limits: LimitPair, factor: float = 1.0) -> LimitPair:
    low, high = limits
    if low is None or high is None:
        return None, None
    return float(factor * math.exp(low)), float(factor * math.exp(high))
