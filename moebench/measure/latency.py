"""Latency: paired visits in randomly interleaved rounds.

On a shared machine that drifts, identical code measured block after block is judged different in
about a quarter of the runs. Here every round visits every case once, in random order and on the
same steps of the stream: drift affects all cases alike, and the load of the tokens cancels in the
ratio.
"""

import gc
import math
import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from moebench.measure.board import BoardWatch
from moebench.measure.clocks import Clock
from moebench.measure.host import HostMeter
from moebench.records.board import BoardState
from moebench.records.host import HostLoad, RoundLoad
from moebench.records.measurement import Sample, Stop
from moebench.units import Seconds

Visit = Callable[[int, int], None]
"""`visit(first_step, num_steps)` runs steps (first_step + i) modulo the length of the stream."""
Samples = Mapping[str, tuple[Sample, ...]]
Progress = Callable[[float, str], None]
"""Callback with the finished share of the work, 0 to 1, and what runs now."""

WARMUP_AGREEMENT = 0.1
"""Largest relative difference of two consecutive visits of a case that is warm."""
WARMUP_SHARE = 0.25
"""Share of the budget that warm-up may take beyond two visits of each case."""
LOOK_AGAIN = 1.25
"""Growth between checks of precision (8, 10, 13, ... rounds): few checks, since each can err."""
MOST_PARTS = 16
"""Parts of a visit that are timed one by one; more would only lengthen the records."""
SETTLED: Seconds = 0.1
"""Length of visits in which refilling the last-level cache (milliseconds) does not show."""


@dataclass(frozen=True)
class Plan:
    """How long and how finely a cell is measured."""

    budget: Seconds
    """Wall time of the cell, warm-up included; one round runs even if warm-up used it up."""
    most: Seconds = 0.0
    """Wall time, if more than the budget, until which rounds go on to reach `min_rounds`."""
    seed: int = 0
    """Seeds the order of the cases in each round."""
    stream_length: int = 1
    """Steps in the cell's stream; rounds walk through it and start again."""
    min_rounds: int = 8
    """Rounds before precision may stop the cell; time can stop it earlier."""
    max_rounds: int = 400
    min_visit: Seconds = 0.010
    """Least length of the fastest case's visit, where a round still fits the budget."""
    max_warmup_visits: int = 6
    """Visits of a case before the rounds; 0: the cases are warm, and a visit is `warm_steps`."""
    warm_steps: int = 1
    """Steps of a visit where no warm-up says how many fill `min_visit`."""
    in_parts: bool = False
    """Whether parts of a visit are timed one by one; a GPU, which launches ahead, would wait."""
    precise_enough: Callable[[Samples], bool] | None = None
    """Two answers of True in a row end the cell: one interval may be narrow by chance."""


class FixedOperation(Protocol):
    """An operation that is the same in every round and every run."""

    repeats: int
    """Times that a call runs it; times are of one."""

    def __call__(self) -> None: ...

    def time(self, clock: Clock) -> Seconds: ...

    def reading(self) -> Seconds: ...


@dataclass(frozen=True)
class Covariates:
    """Observed in every round beside the cases: how fast the machine was, and how busy."""

    reference: FixedOperation
    host: HostMeter
    board: BoardWatch | None = None
    """None on a processor."""


@dataclass(frozen=True)
class Rounds:
    """Samples and failures of the rounds of one cell."""

    samples: Samples
    """Samples of the cases that did not fail, in the order of the rounds."""
    failures: Mapping[str, Exception]
    """Errors of the cases that were dropped, without their frames."""
    warmup: Mapping[str, tuple[Seconds, ...]]
    """Seconds a step in each warm-up visit; part of no result."""
    num_steps: int
    """Steps of every visit."""
    stopped: Stop
    duration: Seconds
    reference: tuple[Sample, ...] = ()
    """Samples of the reference operation, one a round."""
    reading: tuple[Seconds, ...] = ()
    """Time of each reference sample that its pass over memory took."""
    host: HostLoad | None = None
    """Load of the host in each round; None where it was not read."""
    board: BoardState | None = None
    """The GPU's board in each round; None on a processor."""
    referring: Seconds = 0.0
    """Mean time that the reference operation took of a round, with all of its repeats."""

    @property
    def num_rounds(self) -> int:
        return max(map(len, self.samples.values()), default=0)

    @property
    def round_time(self) -> Seconds:
        """Mean time of a round: the visits of all cases, and the reference operation."""
        timed = sum(s.seconds for own in self.samples.values() for s in own)
        return timed / self.num_rounds + self.referring if self.num_rounds else 0.0


def measure_rounds(
    visits: Mapping[str, Visit],
    clock: Clock,
    plan: Plan,
    progress: Progress = lambda share, what: None,
    covariates: Covariates | None = None,
) -> Rounds:
    """Time the cases of one cell in randomly interleaved rounds.

    Every round runs every case once, in random order, on the same `num_steps` steps of the
    stream; the next round takes the next steps. A case that raises is dropped and the others go
    on; only what is not an `Exception` (KeyboardInterrupt) passes through.

    `covariates` are observed in every round: the load of the host over all of it, and a reference
    operation at its end. That fills the caches with its own data, so a quick case (the round's
    last, a random one) then runs again, untimed.
    """
    start = clock.now()
    failures: dict[str, Exception] = {}
    warmup: dict[str, tuple[Seconds, ...]] = {}
    for place, (case, visit) in enumerate(visits.items()):
        progress(0.0, f"warm-up {case}")
        allowed = plan.budget * WARMUP_SHARE * (place + 1) / len(visits)
        try:
            warmup[case] = _warm_up(visit, clock, plan, start + allowed)
        except Exception as error:
            failures[case] = without_frames(error)
    cases = [case for case in visits if case not in failures]
    referring = 0.0
    if covariates is not None:
        covariates.reference()
        referring = plan.min_rounds * clock.time(covariates.reference)
    num_steps = _steps_per_visit(
        [warmup[case] for case in cases if warmup[case]],
        plan,
        plan.budget - referring - (clock.now() - start),
    )
    part_steps = num_steps
    if plan.in_parts:
        part_steps = math.ceil(num_steps / MOST_PARTS)
        num_steps -= num_steps % part_steps
    collected: dict[str, list[Sample]] = {case: [] for case in cases}
    referred: list[Sample] = []
    reading: list[Seconds] = []
    loads: list[RoundLoad] = []
    order, next_look, was_precise = random.Random(plan.seed), plan.min_rounds, False
    stopped: Stop = "max-rounds"
    for number in range(plan.max_rounds):
        round_start = clock.now()
        if covariates is not None:
            covariates.host.start()
        first_step = number * num_steps % plan.stream_length
        order.shuffle(cases)
        for position, case in enumerate(tuple(cases)):
            try:
                starts = range(first_step, first_step + num_steps, part_steps)
                with _without_garbage_collection():
                    times = [clock.time(partial(visits[case], at, part_steps)) for at in starts]
                parts = tuple(round(part, 9) for part in times) if len(times) > 1 else ()
                collected[case].append(
                    Sample(number, position, first_step, num_steps, sum(times), part_seconds=parts)
                )
            except Exception as error:
                failures[case] = without_frames(error)
                cases.remove(case)
                del collected[case]
        if covariates is not None and cases:
            with _without_garbage_collection():
                seconds = covariates.reference.time(clock)
            referred.append(Sample(number, len(cases), 0, 1, seconds))
            reading.append(covariates.reference.reading())
            loads.append(covariates.host.load(number))
            if covariates.board is not None:
                covariates.reference()  # clocks fall while a board is idle
                covariates.board.look(number)
            if collected[cases[-1]][-1].seconds < SETTLED:
                with suppress(Exception):  # a failure shows in the next round, where it is timed
                    visits[cases[-1]](first_step, num_steps)
        now, done = clock.now(), number + 1
        is_over = now - start >= plan.budget
        progress(1.0 if is_over else (now - start) / plan.budget, f"round {done}")
        if not cases:
            stopped = "no-case-left"
            break
        if done >= next_look and plan.precise_enough is not None:
            next_look = math.ceil(done * LOOK_AGAIN)
            is_precise = plan.precise_enough(_frozen(collected))
            if is_precise and was_precise:
                stopped = "precise"
                break
            was_precise = is_precise
        limit = plan.budget if done >= plan.min_rounds else max(plan.budget, plan.most)
        if clock.now() - start + (now - round_start) > limit:
            stopped = "budget"
            break
    rounds = Rounds(_frozen(collected), failures, warmup, num_steps, stopped, clock.now() - start)
    if covariates is None:
        return rounds
    return replace(
        rounds,
        reference=tuple(referred),
        reading=tuple(reading),
        host=covariates.host.host_load(tuple(loads)),
        board=None if covariates.board is None else covariates.board.state(),
        referring=covariates.reference.repeats
        * sum(sample.seconds for sample in referred)
        / max(1, len(referred)),
    )


def _warm_up(visit: Visit, clock: Clock, plan: Plan, deadline: Seconds) -> tuple[Seconds, ...]:
    """Seconds a step of each visit of a case, until two consecutive visits agree."""
    per_step: list[Seconds] = []
    num_steps, earlier = 1, math.inf
    while len(per_step) < plan.max_warmup_visits:
        seconds = clock.time(partial(visit, 0, num_steps)) / num_steps
        per_step.append(seconds)
        is_settled = abs(seconds - earlier) <= WARMUP_AGREEMENT * earlier
        if len(per_step) >= 2 and (is_settled or clock.now() > deadline):
            break
        earlier = seconds
        num_steps = max(1, math.ceil(plan.min_visit / seconds)) if seconds > 0 else 1
    return tuple(per_step)


def _steps_per_visit(per_step: list[tuple[Seconds, ...]], plan: Plan, budget_left: Seconds) -> int:
    """Number of steps that lets the fastest case fill `min_visit` and `min_rounds` rounds fit.

    The fastest warm-up visit says what a step takes, the last one how busy the machine is.
    """
    fastest = min((seconds for visits in per_step for seconds in visits), default=0.0)
    if fastest <= 0:
        return plan.warm_steps
    wanted = math.ceil(plan.min_visit / fastest)
    affordable = int(budget_left / (plan.min_rounds * sum(visits[-1] for visits in per_step)))
    return max(1, min(wanted, affordable))


def _frozen(collected: Mapping[str, list[Sample]]) -> Samples:
    return {case: tuple(samples) for case, samples in collected.items()}


def without_frames(error: Exception) -> Exception:
    """The error with its frames as notes: the frames keep a failed step's tensors alive."""
    for frame in traceback.extract_tb(error.__traceback__):
        error.add_note(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}")
    error.__traceback__ = error.__context__ = error.__cause__ = None
    torch.cuda.empty_cache()
    return error


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Switch Python's collector off: it would stop one visit in many for milliseconds."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
