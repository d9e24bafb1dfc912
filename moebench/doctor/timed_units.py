"""Times of units of work: how they are recorded, cut into stretches and played again."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import linear

from moebench.measure.clocks import clock_for
from moebench.measure.latency import Plan, Visit, measure_rounds
from moebench.records.measurement import Sample
from moebench.units import Seconds

MANY_ROUNDS, FEW_ROUNDS = 96, 36
"""Rounds at most for a slowdown of 2 %, and for one of 5 %."""
Times = NDArray[np.float64]
"""Seconds of two cases in every round, each visit in parts [2, rounds, parts]."""
Work = Callable[[], None]


@dataclass(frozen=True)
class Unit:
    """A number of matrix products that take a given time."""

    run: Callable[[int], None]
    products: int
    seconds: Seconds
    """Time of these products."""


def quick_unit(device: torch.device) -> Unit:
    """A unit of about 1 ms: a hundred or so small products whose weights are in the cache."""
    return _unit(device, rows=16, size=256, weights=4, seconds=1e-3)


def slow_unit(device: torch.device) -> Unit:
    """A unit of about 100 ms: large products whose 128 MiB of weights are in no cache."""
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
    # The least: beside other work the median is that of an interrupted trial.
    each = min(clock.time(partial(run, trial)) for _ in range(20)) / trial
    products = max(20, round(seconds / each))
    return Unit(run, products, products * each)


@dataclass(frozen=True)
class Amount:
    """How much of a pair of works is recorded at most."""

    parts: int
    """Times that a visit repeats the work, each timed by itself, as a visit's steps are."""
    rounds: int = 10**6
    least: int = FEW_ROUNDS
    """Rounds that the budget must hold."""


def record_times(
    pair: tuple[Work, Work],
    device: torch.device,
    budget: Seconds,
    amount: Amount,
    progress: Callable[[], None],
) -> Times:
    """Times of a pair of works in interleaved rounds, as many as `budget` allows.

    `progress` is called after every `MANY_ROUNDS` rounds.
    """
    first, second = pair
    visits = {"first": _repeated(first), "second": _repeated(second)}
    clock = clock_for(device)
    end, chunks, done = clock.now() + budget, [], 0
    while done < amount.rounds and clock.now() < end:
        at_most = min(MANY_ROUNDS, amount.rounds - done)
        plan = played(amount.parts, at_most, seed=done, budget=end - clock.now())
        rounds = measure_rounds(visits, clock, plan)
        chunks.append([[_parts(s) for s in rounds.samples[key]] for key in visits])
        done += rounds.num_rounds
        progress()
    if done < amount.least:
        raise ValueError(
            f"selftest: found time for {done} rounds of a unit, expected at least {amount.least}; "
            "give it more (--time-budget), or stop what else runs here"
        )
    return np.concatenate([np.array(chunk) for chunk in chunks], axis=1)


def played(parts: int, rounds: int, seed: int, budget: Seconds = 1e9) -> Plan:
    """The plan of a cell whose cases are warm: visits of some parts, each timed by itself."""
    plan = Plan(budget, seed, max_warmup_visits=0, max_rounds=rounds)
    return replace(plan, warm_steps=parts, in_parts=True)


def _repeated(work: Work) -> Visit:
    def visit(first_step: int, num_steps: int) -> None:
        for _ in range(num_steps):
            work()

    return visit


def _parts(sample: Sample) -> tuple[Seconds, ...]:
    return sample.part_seconds or (sample.seconds,)


class Tape:
    """A clock that plays recorded times."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> Seconds:
        return self.seconds

    def time(self, work: Callable[[], object]) -> Seconds:
        start = self.seconds
        work()
        return self.seconds - start

    def case(self, times: NDArray[np.float64]) -> Visit:
        """A visit whose steps take the next of some recorded times."""
        left = iter(times.ravel().tolist())

        def visit(first_step: int, num_steps: int) -> None:
            self.seconds += sum(islice(left, num_steps))

        return visit


def drifting(times: Times, drift: float) -> Times:
    """Times of a machine that slows down evenly from first to last round."""
    return np.asarray(times * (1 + drift * np.linspace(0, 1, times.shape[1]))[:, None])


def cut(times: Times, length: int) -> list[Times]:
    """Disjoint stretches of a recording, in order."""
    return [times[:, i : i + length] for i in range(0, times.shape[1] - length + 1, length)]
