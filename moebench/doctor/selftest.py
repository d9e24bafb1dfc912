"""The harness measured by itself: how often it is wrong on this machine.

What is done. A unit of work of about 1 ms, and one of 100 ms, runs twice in every round, as two
cases with nothing between them but their names; rounds, their random order and the clock are
those of every cell (`measure_rounds`). That gives long recordings of real times. An *experiment*
is a stretch of a recording played to the very code that ends a cell and judges a speedup: the
stopping rule is on, at most 96 rounds (36 for 5 %).

- 1 ms unit: at least 400 experiments on *disjoint* stretches, so their counts have an exact
  binomial interval (Clopper and Pearson).
- 100 ms unit: ten minutes hold too few disjoint stretches. Experiments start anywhere, and within
  each round the two names are dealt again at random, which is what the design itself does. Such
  experiments share noise; the interval is that of the number of disjoint stretches.
- Slowdowns are planted by multiplying the times of one case, so that the effect is exact and the
  noise real; and, on the 1 ms unit, by real extra work too (more products of the same size).
- Drift: the same experiments with times that grow by 3 % from first to last round.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch.nn.functional import linear

from moebench.compare import pairs
from moebench.measure.clocks import clock_for
from moebench.measure.latency import Plan, Progress, measure_rounds
from moebench.records.results import Ratio, Sample
from moebench.units import Seconds

EXPERIMENTS = 400
MANY_ROUNDS, FEW_ROUNDS = 96, 36
"""Rounds at most for a slowdown of 2 %, and for one of 5 %."""
TARGET = 0.01
"""Relative half width that ends a cell: the suites' own."""
DRIFT = 0.03
QUICK_SHARE, SLOW_SHARE, REAL_SHARE = 0.38, 0.32, 0.04
"""Of the budget for recording the quick unit, the slow unit, and each slowdown planted as real
work; the rest is for playing the experiments."""
SHARED_EXPERIMENTS = 200
"""On the 100 ms unit, where experiments overlap."""
BANDS: Mapping[str, tuple[float, float]] = {
    "aa_rate": (0.02, 0.07),
    "power_2": (0.80, 1.0),
    "power_5": (0.95, 1.0),
    "coverage": (0.93, 0.97),
}
"""What is required, with and without drift."""

Times = NDArray[np.float64]
"""Seconds of two cases in every round [2, rounds]."""


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
    """What was found on one unit of work, with or without drift."""

    aa_rate: Rate
    """Intervals of a case against itself that leave 1 out, when the rounds end."""
    false_verdicts: Rate
    """"faster" or "slower" said of a case against itself."""
    coverage: Rate
    """Intervals that hold the planted truth, over all planted slowdowns and none."""
    power_2: Rate
    """ "slower" said of a slowdown of 2 %."""
    power_5: Rate
    """The same of 5 %."""
    mean_rounds: float
    """Of the experiments without a slowdown."""
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
    """The 1 ms unit."""
    quick_drift: UnitRates
    slow: UnitRates
    """The 100 ms unit."""
    slow_drift: UnitRates
    real_power_2: Rate
    """2 % more products, seen as "slower" on the 1 ms unit."""
    real_power_5: Rate
    unit: Seconds
    """Of the quick unit, median."""
    visit: Seconds
    """Of the quick unit: a visit repeats it, as visits of quick cases do."""
    slow_unit: Seconds
    rounds: int
    """Recorded of the quick unit."""
    slow_rounds: int
    duration: Seconds
    missed: tuple[str, ...]
    """What lies outside its required band."""
    undecided: tuple[str, ...] = ()
    """What lies outside, but rests on too few experiments to say that the rate does."""


class Tape:
    """A clock that plays recorded times."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> Seconds:
        return self.seconds

    def time(self, work: Callable[[], None]) -> Seconds:
        start = self.seconds
        work()
        return self.seconds - start

    def case(self, times: NDArray[np.float64]) -> Callable[[int, int], None]:
        """A visit that takes the next of some recorded times."""
        left = iter(times.tolist())

        def visit(first_step: int, num_steps: int) -> None:
            self.seconds += next(left)

        return visit


def exact_rate(count: float, n: int, value: float | None = None) -> Rate:
    """A share with the interval of Clopper and Pearson (Biometrika 26, 1934)."""
    low = float(betaincinv(count, n - count + 1, 0.025)) if count > 0 else 0.0
    high = float(betaincinv(count + 1, n - count, 0.975)) if count < n else 1.0
    return Rate(count / n if value is None else value, low, high, n)


def experiment(times: Times, most: int, seed: int) -> Ratio:
    """The speedup of the second case, from rounds that end as those of a cell do."""
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


def drifting(times: Times, drift: float) -> Times:
    """The times as they are on a machine that slows down evenly from first to last round."""
    return np.asarray(times * (1 + drift * np.linspace(0, 1, times.shape[1])))


def rates(stretches: Sequence[Times], drift: float, independent: int | None = None) -> UnitRates:
    """Error rates over experiments on stretches of at least `MANY_ROUNDS` rounds.

    Args:
        stretches: recorded times of two equal cases.
        drift: relative slowdown of the machine over a stretch.
        independent: disjoint stretches behind them; None: all are disjoint.
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
    # The three planted effects share their noise: they count once.
    coverage = share(held)
    widths = [experiment(t[:, :FEW_ROUNDS], FEW_ROUNDS, i) for i, t in enumerate(stretches)]
    return UnitRates(
        aa_rate=share([not h for h in held]),
        false_verdicts=share([r.verdict in ("faster", "slower") for r in equal]),
        coverage=Rate(float(np.mean(covered)), coverage.low, coverage.high, coverage.n),
        power_2=share([r.verdict == "slower" for r in two]),
        power_5=share([r.verdict == "slower" for r in five], FEW_ROUNDS),
        mean_rounds=float(np.mean([r.n for r in equal])),
        half_width=float(np.median([((r.high or 0) - (r.low or 0)) / 2 for r in widths])),
    )


def holds(ratio: Ratio, truth: float) -> bool:
    """Whether the 95 % interval of a ratio holds the truth."""
    return ratio.low is not None and ratio.high is not None and ratio.low <= truth <= ratio.high


def cut(times: Times, length: int) -> list[Times]:
    """Disjoint stretches, one behind the other."""
    return [times[:, i : i + length] for i in range(0, times.shape[1] - length + 1, length)]


def shuffled(times: Times, length: int, n: int, seed: int = 0) -> list[Times]:
    """Stretches that start anywhere, with the two names dealt again in every round."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        start = int(rng.integers(0, times.shape[1] - length + 1))
        swap = rng.random(length) < 0.5
        stretch = times[:, start : start + length]
        found.append(np.where(swap, stretch[::-1], stretch))
    return found


def verdict(name: str, rate: Rate) -> Literal["reached", "missed", "undecided"]:
    """Whether a rate is what is required.

    The required number of experiments decides. Fewer, with an interval that meets the band, cannot
    tell.
    """
    low, high = BANDS[name]
    if low <= rate.value <= high:
        return "reached"
    if rate.n < EXPERIMENTS and rate.low <= high and low <= rate.high:
        return "undecided"
    return "missed"


def selftest(device: torch.device, budget: Seconds, progress: Progress) -> Selftest:
    """Measure the harness on this machine.

    Args:
        device: where units compute.
        budget: wall time, experiments included.
        progress: told the share that is done.
    """
    clock = clock_for(device)
    start = clock.now()

    def tell(what: str) -> None:
        progress(min(1.0, (clock.now() - start) / budget), what)

    quick, slow = quick_unit(device), slow_unit(device)
    repeats = max(1, int(QUICK_SHARE * budget / (2 * EXPERIMENTS * MANY_ROUNDS * quick.seconds)))
    visit = partial(quick.run, quick.products * repeats)
    limit = QUICK_SHARE * budget * 1.2
    quick_times = record(
        visit, visit, device, limit, EXPERIMENTS * MANY_ROUNDS, lambda: tell("1 ms unit")
    )
    slow_visit = partial(slow.run, slow.products)
    slow_times = record(
        slow_visit, slow_visit, device, SLOW_SHARE * budget, 10**6, lambda: tell("100 ms unit")
    )
    real = []
    for slowdown, most in ((0.02, MANY_ROUNDS), (0.05, FEW_ROUNDS)):
        more = partial(quick.run, round((1 + slowdown) * quick.products) * repeats)
        times = record(
            visit, more, device, REAL_SHARE * budget, 10**6, lambda: tell("extra work, 1 ms unit")
        )
        stretches = cut(times, most)
        seen = [experiment(t, most, i).verdict == "slower" for i, t in enumerate(stretches)]
        real.append(exact_rate(sum(seen), len(seen)))
    found = {}
    disjoint = slow_times.shape[1] // MANY_ROUNDS
    for drift in (0.0, DRIFT):
        tell(f"experiments with a drift of {drift:.0%}")
        stretches = cut(quick_times, MANY_ROUNDS)
        found["1 ms", drift] = rates(stretches, drift)
        shared = shuffled(slow_times, MANY_ROUNDS, SHARED_EXPERIMENTS)
        found["100 ms", drift] = rates(shared, drift, disjoint)
    aa = max((f.aa_rate.value for f in found.values()), key=lambda v: abs(v - 0.05))
    coverage = max((f.coverage.value for f in found.values()), key=lambda v: abs(v - 0.95))
    power_2 = min(f.power_2.value for f in found.values())
    power_5 = min(f.power_5.value for f in found.values())
    judged: dict[str, list[str]] = {"reached": [], "missed": [], "undecided": []}
    for (unit, drift), unit_rates in found.items():
        for name in BANDS:
            rate = getattr(unit_rates, name)
            where = f"{name} on the {unit} unit{' with drift' if drift else ''}"
            judged[verdict(name, rate)].append(f"{where}: {rate.value:.1%}")
    return Selftest(
        aa_rate=aa,
        power_2=power_2,
        power_5=power_5,
        coverage=coverage,
        noise_floor=max(f.half_width for f in found.values()),
        quick=found["1 ms", 0.0],
        quick_drift=found["1 ms", DRIFT],
        slow=found["100 ms", 0.0],
        slow_drift=found["100 ms", DRIFT],
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


@dataclass(frozen=True)
class Unit:
    """Some matrix products that together take a given time."""

    run: Callable[[int], None]
    """Runs a number of products."""
    products: int
    """That fill the unit."""
    seconds: Seconds
    """Of the unit."""


def quick_unit(device: torch.device) -> Unit:
    """About 1 ms of small products (a hundred or so), from the cache."""
    return _unit(device, rows=16, size=256, weights=4, seconds=1e-3)


def slow_unit(device: torch.device) -> Unit:
    """About 100 ms of large products whose 128 MiB of weights are in no cache."""
    return _unit(device, rows=64, size=2048, weights=16, seconds=0.1)


def _unit(device: torch.device, rows: int, size: int, weights: int, seconds: Seconds) -> Unit:
    generator = torch.Generator(device).manual_seed(0)
    x = torch.empty(rows, size, dtype=torch.bfloat16, device=device).normal_(generator=generator)
    pool = x.new_empty(weights, size, size).normal_(generator=generator)

    @torch.inference_mode()
    def run(products: int) -> None:
        for i in range(products):
            linear(x, pool[i % weights])

    clock, trial = clock_for(device), 4 * weights
    run(trial)
    each = float(np.median([clock.time(partial(run, trial)) for _ in range(9)])) / trial
    products = max(20, round(seconds / each))
    return Unit(run, products, products * each)


def record(
    first: Callable[[], None],
    second: Callable[[], None],
    device: torch.device,
    budget: Seconds,
    most: int,
    told: Callable[[], None],
) -> Times:
    """Times of two visits in interleaved rounds, for some time or a number of rounds.

    Raises:
        ValueError: the time did not hold one experiment.
    """
    clock = clock_for(device)
    end, parts, done = clock.now() + budget, [], 0
    while done < most and clock.now() < end:
        rounds = measure_rounds(
            {"first": lambda step, n: first(), "second": lambda step, n: second()},
            clock,
            Plan(
                budget=end - clock.now(),
                seed=done,
                max_warmup_visits=0,
                max_rounds=min(MANY_ROUNDS, most - done),
            ),
        )
        parts.append([[s.seconds for s in rounds.samples[key]] for key in ("first", "second")])
        done += rounds.num_rounds
        told()
    if done < MANY_ROUNDS:
        raise ValueError(
            f"selftest: found time for {done} rounds of a unit, expected at least {MANY_ROUNDS}; "
            "give it more (--time-budget), or stop what else runs here"
        )
    return np.concatenate([np.array(part) for part in parts], axis=1)
