"""The harness measured by itself: how often its verdicts are wrong on this machine.

A unit of work of about 1 ms, and one of 100 ms, runs twice in every round of `measure_rounds`, as
two cases that differ only by name. An *experiment* plays a stretch of the recorded times to the
code that ends a cell and judges a speedup, for at most 96 rounds (36 for a slowdown of 5 %).

- 1 ms unit: at least 400 experiments on *disjoint* stretches, so that their counts have an exact
  binomial interval (Clopper and Pearson).
- 100 ms unit: ten minutes hold too few disjoint stretches. Experiments start anywhere, and the two
  names are assigned at random in each round, as the order of a round is. Such experiments share
  noise; the interval counts the disjoint stretches.
- Slowdowns are planted by multiplying the times of one case: the effect is exact, the noise real.
  On the 1 ms unit real extra work (more products of the same size) is planted too.
- Drift: the experiments are repeated with times that grow by 3 % from first to last round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from moebench.compare import pairs
from moebench.doctor.timed_units import (
    FEW_ROUNDS,
    MANY_ROUNDS,
    Tape,
    Times,
    Work,
    cut,
    drifting,
    quick_unit,
    record_times,
    shuffled,
    slow_unit,
)
from moebench.measure.clocks import clock_for
from moebench.measure.latency import Plan, Progress, measure_rounds
from moebench.records.confidence import share_limits
from moebench.records.measurement import Sample
from moebench.records.results import Ratio
from moebench.units import Seconds

LEAST_BUDGET: Seconds = 90.0
"""Shortest selftest: less time holds no experiment on the 100 ms unit."""
EXPERIMENTS = 400
TARGET = 0.01
"""Relative half width that ends a cell, as in the suites."""
DRIFT = 0.03
QUICK_SHARE, SLOW_SHARE, REAL_SHARE = 0.38, 0.32, 0.04
"""Shares of the budget for recording the quick unit, the slow unit, and each slowdown planted as
real work; the rest is for playing the experiments."""
SHARED_EXPERIMENTS = 200
"""Experiments on the 100 ms unit, which overlap."""
BANDS = {
    "aa_rate": (0.02, 0.07),
    "power_2": (0.80, 1.0),
    "power_5": (0.95, 1.0),
    "coverage": (0.93, 0.97),
}
"""Required lowest and highest rate, with and without drift."""


@dataclass(frozen=True)
class Rate:
    """A share of experiments with its exact 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    """Independent experiments that the interval counts."""


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


@dataclass(frozen=True)
class Selftest:
    """All rates; the keys without a unit are the worst over units and drift."""

    aa_rate: float
    power_2: float
    power_5: float
    coverage: float
    noise_floor: float
    quick: UnitRates
    quick_drift: UnitRates
    """Rates on the 1 ms unit."""
    slow: UnitRates
    slow_drift: UnitRates
    """Rates on the 100 ms unit."""
    real_power_2: Rate
    real_power_5: Rate
    """Shares of experiments with 2 or 5 % more products on the 1 ms unit that are "slower"."""
    unit: Seconds
    """Median time of the quick unit."""
    visit: Seconds
    """Median time of a visit, which repeats the quick unit as visits of quick cases do."""
    slow_unit: Seconds
    rounds: int
    slow_rounds: int
    """Recorded rounds of both units."""
    duration: Seconds
    missed: tuple[str, ...]
    """Rates outside their required bands."""
    undecided: tuple[str, ...] = ()
    """Rates outside their bands that rest on too few experiments to be judged."""


def exact_rate(count: float, n: int, value: float | None = None) -> Rate:
    """A share with the interval of Clopper and Pearson (Biometrika 26, 1934)."""
    return Rate(count / n if value is None else value, *share_limits(count, n), n)


def experiment(times: Times, most: int, seed: int) -> Ratio:
    """Speedup of the second case, from rounds that end by the rule of every cell."""
    tape = Tape()

    def precise(samples: Mapping[str, tuple[Sample, ...]]) -> bool:
        ratio = pairs.speedup(samples["first"], samples["second"])
        return pairs.precise_enough(ratio, TARGET)

    rounds = measure_rounds(
        {"first": tape.case(times[0]), "second": tape.case(times[1])},
        tape,
        Plan(1e9, seed, max_warmup_visits=0, max_rounds=most, precise_enough=precise),
    )
    return pairs.speedup(rounds.samples["first"], rounds.samples["second"], seed=seed)


def rates(stretches: Sequence[Times], drift: float, independent: int | None = None) -> UnitRates:
    """Error rates over experiments on stretches, each slowed down by `drift` from end to end.

    `independent` is the number of disjoint stretches (None: all).
    """

    def ratios(slowdown: float, most: int) -> list[Ratio]:
        planted = np.array([[1.0], [1.0 + slowdown]])
        return [
            experiment(planted * drifting(times[:, :most], drift), most, seed)
            for seed, times in enumerate(stretches)
        ]

    def share(hits: Sequence[bool], most: int = MANY_ROUNDS) -> Rate:
        n = len(hits)
        if independent is None:
            return exact_rate(sum(hits), n)
        disjoint = max(1, independent * MANY_ROUNDS // most)
        return exact_rate(sum(hits) / n * disjoint, disjoint, sum(hits) / n)

    equal = ratios(0.0, MANY_ROUNDS)
    two, five = ratios(0.02, MANY_ROUNDS), ratios(0.05, FEW_ROUNDS)
    held = [holds(r, 1.0) for r in equal]
    covered = [*held, *(holds(r, 1 / 1.02) for r in two), *(holds(r, 1 / 1.05) for r in five)]
    widths = [experiment(t[:, :FEW_ROUNDS], FEW_ROUNDS, i) for i, t in enumerate(stretches)]
    return UnitRates(
        aa_rate=share([not h for h in held]),
        false_verdicts=share([r.verdict in ("faster", "slower") for r in equal]),
        # The three planted effects share their noise: they count once.
        coverage=replace(share(held), value=float(np.mean(covered))),
        power_2=share([r.verdict == "slower" for r in two]),
        power_5=share([r.verdict == "slower" for r in five], FEW_ROUNDS),
        mean_rounds=float(np.mean([r.n for r in equal])),
        half_width=float(np.median([((r.high or 0) - (r.low or 0)) / 2 for r in widths])),
    )


def holds(ratio: Ratio, truth: float) -> bool:
    """Whether the 95 % interval of a ratio holds the truth."""
    return ratio.low is not None and ratio.high is not None and ratio.low <= truth <= ratio.high


def verdict(name: str, rate: Rate) -> Literal["reached", "missed", "undecided"]:
    """Whether a rate lies in its band; undecided if its interval, of few experiments, meets it."""
    low, high = BANDS[name]
    if low <= rate.value <= high:
        return "reached"
    if rate.n < EXPERIMENTS and rate.low <= high and low <= rate.high:
        return "undecided"
    return "missed"


def selftest(device: torch.device, budget: Seconds, progress: Progress) -> Selftest:
    """Measure the harness on this machine in a budget of wall time, experiments included."""
    clock = clock_for(device)
    start = clock.now()

    def tell(what: str) -> None:
        progress(min(1.0, (clock.now() - start) / budget), what)

    def recorded(first: Work, second: Work, share: float, what: str, most: int = 10**6) -> Times:
        return record_times((first, second), device, share * budget, most, partial(tell, what))

    quick, slow = quick_unit(device), slow_unit(device)
    most = EXPERIMENTS * MANY_ROUNDS
    repeats = max(1, int(QUICK_SHARE * budget / (2 * most * quick.seconds)))
    visit = partial(quick.run, quick.products * repeats)
    slow_visit = partial(slow.run, slow.products)
    quick_times = recorded(visit, visit, 1.2 * QUICK_SHARE, "1 ms unit", most)
    slow_times = recorded(slow_visit, slow_visit, SLOW_SHARE, "100 ms unit")
    real = []
    for slowdown, rounds in ((0.02, MANY_ROUNDS), (0.05, FEW_ROUNDS)):
        more = partial(quick.run, round((1 + slowdown) * quick.products) * repeats)
        stretches = cut(recorded(visit, more, REAL_SHARE, "extra work, 1 ms unit"), rounds)
        slower = [experiment(t, rounds, i).verdict == "slower" for i, t in enumerate(stretches)]
        real.append(exact_rate(sum(slower), len(slower)))
    by_unit: dict[str, UnitRates] = {}
    disjoint = slow_times.shape[1] // MANY_ROUNDS
    for drift, where in ((0.0, ""), (DRIFT, " with drift")):
        tell(f"experiments with a drift of {drift:.0%}")
        by_unit[f"1 ms unit{where}"] = rates(cut(quick_times, MANY_ROUNDS), drift)
        shared = shuffled(slow_times, MANY_ROUNDS, SHARED_EXPERIMENTS)
        by_unit[f"100 ms unit{where}"] = rates(shared, drift, disjoint)
    judged: dict[str, list[str]] = {"reached": [], "missed": [], "undecided": []}
    for unit, unit_rates in by_unit.items():
        for name in BANDS:
            rate = getattr(unit_rates, name)
            judged[verdict(name, rate)].append(f"{name} on the {unit}: {rate.value:.1%}")
    every = by_unit.values()
    return Selftest(
        aa_rate=max((r.aa_rate.value for r in every), key=lambda value: abs(value - 0.05)),
        power_2=min(r.power_2.value for r in every),
        power_5=min(r.power_5.value for r in every),
        coverage=max((r.coverage.value for r in every), key=lambda value: abs(value - 0.95)),
        noise_floor=max(r.half_width for r in every),
        quick=by_unit["1 ms unit"],
        quick_drift=by_unit["1 ms unit with drift"],
        slow=by_unit["100 ms unit"],
        slow_drift=by_unit["100 ms unit with drift"],
        real_power_2=real[0],
        real_power_5=real[1],
        unit=float(np.median(quick_times)) / repeats,
        visit=float(np.median(quick_times)),
        slow_unit=float(np.median(slow_times)),
        rounds=quick_times.shape[1],
        slow_rounds=slow_times.shape[1],
        duration=clock.now() - start,
        missed=tuple(judged["missed"]),
        undecided=tuple(judged["undecided"]),
    )
