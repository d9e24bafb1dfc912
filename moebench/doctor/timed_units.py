"""Times of units of work: how they are recorded, cut into stretches and played again."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import linear

from moebench.measure.clocks import clock_for
from moebench.measure.latency import Plan, measure_rounds
from moebench.units import Seconds

MANY_ROUNDS, FEW_ROUNDS = 96, 36
"""Rounds at most for a slowdown of 2 %, and for one of 5 %."""
Times = NDArray[np.float64]
"""Seconds of two cases in every round [2, rounds]."""
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
    each = float(np.median([clock.time(partial(run, trial)) for _ in range(9)])) / trial
    products = max(20, round(seconds / each))
    return Unit(run, products, products * each)


def record_times(
    pair: tuple[Work, Work],
    device: torch.device,
    budget: Seconds,
    most: int,
    progress: Callable[[], None],
) -> Times:
    """Times of a pair of works in interleaved rounds, as many as `most` and `budget` allow.

    `progress` is called after every `MANY_ROUNDS` rounds, the least that `budget` must hold.
    """
    first, second = pair
    visits = {"first": lambda step, n: first(), "second": lambda step, n: second()}
    clock = clock_for(device)
    end, parts, done = clock.now() + budget, [], 0
    while done < most and clock.now() < end:
        at_most = min(MANY_ROUNDS, most - done)
        plan = Plan(end - clock.now(), seed=done, max_warmup_visits=0, max_rounds=at_most)
        rounds = measure_rounds(visits, clock, plan)
        parts.append([[s.seconds for s in rounds.samples[key]] for key in ("first", "second")])
        done += rounds.num_rounds
        progress()
    if done < MANY_ROUNDS:
        raise ValueError(
            f"selftest: found time for {done} rounds of a unit, expected at least {MANY_ROUNDS}; "
            "give it more (--time-budget), or stop what else runs here"
        )
    return np.concatenate([np.array(part) for part in parts], axis=1)


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

    def case(self, times: NDArray[np.float64]) -> Callable[[int, int], None]:
        """A visit that takes the next of some recorded times."""
        left = iter(times.tolist())

        def visit(first_step: int, num_steps: int) -> None:
            self.seconds += next(left)

        return visit


def drifting(times: Times, drift: float) -> Times:
    """Times of a machine that slows down evenly from first to last round."""
    return np.asarray(times * (1 + drift * np.linspace(0, 1, times.shape[1])))


def cut(times: Times, length: int) -> list[Times]:
    """Disjoint stretches of a recording, in order."""
    return [times[:, i : i + length] for i in range(0, times.shape[1] - length + 1, length)]


def shuffled(times: Times, length: int, n: int, seed: int = 0) -> list[Times]:
    """Stretches that start anywhere, with the two names assigned at random in every round."""
    rng = np.random.default_rng(seed)
    stretches = []
    for _ in range(n):
        start = int(rng.integers(0, times.shape[1] - length + 1))
        swap = rng.random(length) < 0.5
        stretch = times[:, start : start + length]
        stretches.append(np.where(swap, stretch[::-1], stretch))
    return stretches
