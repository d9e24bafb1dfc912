"""Experiments on recorded times: how often a verdict of a cell is wrong, or misses an effect."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moebench.compare import pairs
from moebench.compare.noise import rounds_needed
from moebench.doctor.timed_units import (
    FEW_ROUNDS,
    MANY_ROUNDS,
    Tape,
    Times,
    cut,
    drifting,
    played,
)
from moebench.measure.latency import measure_rounds
from moebench.records.confidence import share_limits
from moebench.records.measurement import Sample
from moebench.records.results import Ratio

EXPERIMENTS = 400
"""Fewest experiments that give a rate: its interval is then 5 to 10 points wide."""
TARGET = 0.01
"""Relative half width that ends a cell, as in the suites."""
BANDS = {
    "aa_rate": (0.02, 0.07),
    "power_2": (0.80, 1.0),
    "power_5": (0.95, 1.0),
    "coverage": (0.93, 0.97),
}
"""Required lowest and highest rate, with and without drift."""


@dataclass(frozen=True)
class Rate:
    """A share of experiments with its exact 95 % interval; None for fewer than `EXPERIMENTS`."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Independent experiments."""


@dataclass(frozen=True)
class UnitRates:
    """Error rates on one unit of work, with or without drift."""

    aa_rate: Rate
    """Share of intervals of a case against itself that do not hold 1, when the rounds end."""
    false_verdicts: Rate
    """Share of cases against themselves that are judged "faster" or "slower"."""
    coverage: Rate
    """Share of intervals that hold the planted truth, over all planted slowdowns and none."""
    power_2: Rate
    power_5: Rate
    """Shares of slowdowns of 2 % and of 5 % that are judged "slower"."""
    mean_rounds: float
    """Mean number of rounds in the experiments without a slowdown."""
    half_width: float
    """Median relative half width of a case against itself after `FEW_ROUNDS` rounds."""
    rounds_2: int | None = None
    rounds_5: int | None = None
    """Rounds that show 2 % and 5 % as often as required, by the noise of the stretches.

    None in older records, and where 100,000 rounds are too few.
    """


def exact_rate(count: float, n: int) -> Rate:
    """A share with the interval of Clopper and Pearson (Biometrika 26, 1934)."""
    return Rate(count / n, *share_limits(count, n), n)


def experiment(times: Times, most: int, seed: int, target: float = TARGET) -> Ratio:
    """Speedup of the second case, from rounds that end by the rule of every cell."""
    tape = Tape()

    def precise(samples: Mapping[str, tuple[Sample, ...]]) -> bool:
        return pairs.precise_enough(pairs.speedup(samples["first"], samples["second"]), target)

    rounds = measure_rounds(
        {"first": tape.case(times[0]), "second": tape.case(times[1])},
        tape,
        replace(played(times.shape[2], most, seed), precise_enough=precise),
    )
    return pairs.speedup(rounds.samples["first"], rounds.samples["second"], seed=seed)


def rates(recorded: Times, drift: float, fewest: int = EXPERIMENTS) -> UnitRates:
    """Error rates over the disjoint stretches of a recording, each slowed down by `drift`.

    Fewer than `fewest` stretches give no rate.
    """
    stretches = cut(recorded, min(MANY_ROUNDS, recorded.shape[1]))

    def ratios(slowdown: float, most: int) -> list[Ratio]:
        planted = np.array([[[1.0]], [[1.0 + slowdown]]])
        return [
            experiment(planted * drifting(times[:, :most], drift), most, seed)
            for seed, times in enumerate(stretches)
        ]

    def share(hits: Sequence[bool]) -> Rate:
        n = len(hits)
        return Rate(None, None, None, n) if n < fewest else exact_rate(sum(hits), n)

    equal = ratios(0.0, MANY_ROUNDS)
    two, five = ratios(0.02, MANY_ROUNDS), ratios(0.05, FEW_ROUNDS)
    held = [holds(r, 1.0) for r in equal]
    covered = [*held, *(holds(r, 1 / 1.02) for r in two), *(holds(r, 1 / 1.05) for r in five)]
    coverage = share(held)
    if coverage.value is not None:
        # The three planted effects share their noise: they count once.
        coverage = replace(coverage, value=float(np.mean(covered)))
    short = cut(recorded, FEW_ROUNDS)[: max(fewest, EXPERIMENTS)]
    widths = [experiment(times, FEW_ROUNDS, i, target=0.0) for i, times in enumerate(short)]
    return UnitRates(
        aa_rate=share([not h for h in held]),
        false_verdicts=share([r.verdict in ("faster", "slower") for r in equal]),
        coverage=coverage,
        power_2=share([r.verdict == "slower" for r in two]),
        power_5=share([r.verdict == "slower" for r in five]),
        mean_rounds=float(np.mean([r.n for r in equal])),
        half_width=float(np.median([((r.high or 0) - (r.low or 0)) / 2 for r in widths])),
        rounds_2=rounds_needed(widths, 0.02, BANDS["power_2"][0]),
        rounds_5=rounds_needed(widths, 0.05, BANDS["power_5"][0]),
    )


def holds(ratio: Ratio, truth: float) -> bool:
    """Whether the 95 % interval of a ratio holds the truth."""
    return ratio.low is not None and ratio.high is not None and ratio.low <= truth <= ratio.high
