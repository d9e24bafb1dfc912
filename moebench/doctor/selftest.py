"""The harness measured by itself: how often its verdicts are wrong on this machine.

A unit of work of about 1 ms, and one of 100 ms, runs twice in every round of `measure_rounds`, as
two cases that differ only by name. An *experiment* plays a stretch of the recorded times to the
code that ends a cell and judges a speedup, for at most 96 rounds (36 for a slowdown of 5 %).

- 1 ms unit: a visit repeats it and times it in parts, as the visits of quick cases do. At least 400
  experiments on *disjoint* stretches, so that their counts have an exact binomial interval (Clopper
  and Pearson).
- 100 ms unit: ten minutes hold too few disjoint stretches for a rate. Its noise says how many
  rounds it takes to see an effect.
- Slowdowns are planted by multiplying the times of one case: the effect is exact, the noise real.
  On the 1 ms unit real extra work (more products of the same size) is measured too.
- Drift: the experiments are repeated with times that grow by 3 % from first to last round.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from moebench.compare.rounds import MIN_ROUNDS
from moebench.doctor.experiments import BANDS, EXPERIMENTS, Rate, UnitRates, experiment, rates
from moebench.doctor.timed_units import (
    MANY_ROUNDS,
    Amount,
    Times,
    Work,
    quick_unit,
    record_times,
    slow_unit,
)
from moebench.measure.clocks import Clock, clock_for
from moebench.measure.latency import Progress
from moebench.records.results import Ratio
from moebench.units import Seconds

LEAST_BUDGET: Seconds = 90.0
"""Shortest selftest: less time holds no interval of the 100 ms unit."""
DRIFT = 0.03
QUICK_SHARE, SLOW_SHARE, REAL_SHARE = 0.6, 0.14, 0.02
"""Shares of the budget for recording the quick unit, the slow unit, and each slowdown planted as
real work; the rest is for playing the experiments."""
LEAST_UNITS, MOST_UNITS = 2, 4
"""Repetitions of the quick unit in a visit, each timed in `QUARTERS`; the suites' visits of 10 ms
have up to 16 parts and are longer, so that their ratios are rather more exact."""
QUARTERS = 4
TRIAL: Seconds = 0.5
"""Time in which the pace of the quick unit is found, delays included."""


@dataclass(frozen=True)
class RealWork:
    """More products in one of two cases: planted as real work, measured over all rounds."""

    planted: float
    """Number of products over that of the other case."""
    measured: Ratio
    """Time over that of the other case."""


@dataclass(frozen=True)
class Selftest:
    """All rates; the keys without a unit are the worst over units and drift.

    They are None where no unit has `EXPERIMENTS` experiments.
    """

    aa_rate: float | None
    power_2: float | None
    power_5: float | None
    coverage: float | None
    noise_floor: float
    quick: UnitRates
    quick_drift: UnitRates
    """Rates on the 1 ms unit."""
    slow: UnitRates
    slow_drift: UnitRates
    """Rates on the 100 ms unit."""
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
    """Units with too few experiments for a rate."""
    real_work: tuple[RealWork, ...] = ()
    real_power_2: Rate | None = None
    real_power_5: Rate | None = None
    """In older records only: shares of real extra work that were seen, of few experiments."""


def selftest(device: torch.device, budget: Seconds, progress: Progress) -> Selftest:
    """Measure the harness on this machine in a budget of wall time, experiments included."""
    clock = clock_for(device)
    start = clock.now()

    def tell(what: str) -> None:
        progress(min(1.0, (clock.now() - start) / budget), what)

    def recorded(pair: tuple[Work, Work], share: float, what: str, amount: Amount) -> Times:
        return record_times(pair, device, share * budget, amount, partial(tell, what))

    quick, slow = quick_unit(device), slow_unit(device)
    unit = partial(quick.run, quick.products)
    quarter = partial(quick.run, max(1, quick.products // QUARTERS))
    slow_visit = partial(slow.run, slow.products)
    slow_times = recorded((slow_visit, slow_visit), SLOW_SHARE, "100 ms unit", Amount(1))
    most = EXPERIMENTS * MANY_ROUNDS
    units = int(QUICK_SHARE * budget / (2 * most * _pace(unit, clock)))
    units = min(MOST_UNITS, max(LEAST_UNITS, units))
    # A machine that becomes busier while it is recorded may take a little longer.
    times = recorded(
        (quarter, quarter), 1.15 * QUICK_SHARE, "1 ms unit", Amount(QUARTERS * units, most)
    )
    real = []
    for slowdown in (1.02, 1.05):
        products = round(slowdown * quick.products)
        more = (partial(quick.run, products), unit)
        amount = Amount(MOST_UNITS, least=1)
        extra = recorded(more, REAL_SHARE, "extra work, 1 ms unit", amount)
        measured = experiment(extra, extra.shape[1], 0, target=0.0)
        if measured.n >= MIN_ROUNDS:
            real.append(RealWork(products / quick.products, measured))
    by_unit: dict[str, UnitRates] = {}
    for drift, where in ((0.0, ""), (DRIFT, " with drift")):
        tell(f"experiments with a drift of {drift:.0%}")
        by_unit[f"1 ms unit{where}"] = rates(times, drift)
        by_unit[f"100 ms unit{where}"] = rates(slow_times, drift)
    every = tuple(by_unit.values())
    return Selftest(
        aa_rate=worst("aa_rate", every),
        power_2=worst("power_2", every),
        power_5=worst("power_5", every),
        coverage=worst("coverage", every),
        noise_floor=max(r.half_width for r in every),
        quick=by_unit["1 ms unit"],
        quick_drift=by_unit["1 ms unit with drift"],
        slow=by_unit["100 ms unit"],
        slow_drift=by_unit["100 ms unit with drift"],
        unit=QUARTERS * float(np.median(times)),
        visit=float(np.median(times.sum(-1))),
        slow_unit=float(np.median(slow_times)),
        rounds=times.shape[1],
        slow_rounds=slow_times.shape[1],
        duration=clock.now() - start,
        missed=tuple(
            f"{name} on the {unit}: {rate.value:.1%}{_rounds_text(name, unit_rates)}"
            for unit, unit_rates in by_unit.items()
            for name in BANDS
            if (rate := getattr(unit_rates, name)) and is_missed(name, rate)
        ),
        undecided=tuple(
            f"{unit}: {unit_rates.aa_rate.n} of {EXPERIMENTS} experiments"
            for unit, unit_rates in by_unit.items()
            if unit_rates.aa_rate.value is None
        ),
        real_work=tuple(real),
    )


def is_missed(name: str, rate: Rate) -> bool:
    """Whether a rate lies outside its band; without enough experiments there is no rate."""
    low, high = BANDS[name]
    return rate.value is not None and not low <= rate.value <= high


def _rounds_text(name: str, unit: UnitRates) -> str:
    """How many rounds would reach a required power; empty for other rates."""
    if not name.startswith("power"):
        return ""
    rounds = getattr(unit, name.replace("power", "rounds"))
    share = f"{BANDS[name][0]:.0%}"
    if rounds is None:
        return f"; no number of rounds would reach {share}"
    return f"; about {rounds} rounds would reach {share}"


def worst(name: str, units: Sequence[UnitRates]) -> float | None:
    """The rate that is the furthest from the one asked for, or the lowest power."""
    values = [getattr(unit, name).value for unit in units]
    known = [value for value in values if value is not None]
    asked = {"aa_rate": 0.05, "coverage": 0.95}.get(name, 1.0)
    return max(known, key=lambda value: abs(value - asked), default=None)


def _pace(work: Callable[[], None], clock: Clock) -> Seconds:
    """Mean time of a piece of work now, with the delays that other processes cause."""
    start, n = clock.now(), 0
    while clock.now() - start < TRIAL:
        clock.time(work)
        n += 1
    return (clock.now() - start) / n
