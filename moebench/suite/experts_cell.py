"""One cell of expert backends: each backend and mix takes its turn in interleaved rounds."""

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from moebench.experts.backends import takes_dtype
from moebench.experts.catalogue import EXPERT_BACKENDS, executing
from moebench.measure.host import HostMeter
from moebench.measure.latency import Plan, Progress, Rounds, Visit, measure_rounds
from moebench.records.experts_run import PROBE_WORK, ExpertsCell, ExpertsResult
from moebench.suite.experts_plan import ExpertsFile
from moebench.suite.experts_time import LEAST_ROUNDS, SLOW_ROUNDS, Entry, most_rounds
from moebench.suite.workers import Workers
from moebench.units import Seconds

QUICK_VISIT: Seconds = 0.02
"""A visit of quick steps runs as many of them as fill this."""
MOST_STEPS = 16
WARM_ALL: Seconds = 0.5
"""Quicker entries are warmed up on every step that they cycle through: oneDNN generates a kernel
for each new number of rows (0.3 ms a matrix): ragged steps have many, fixed ones few."""
LONG_STEP: Seconds = 1.0
"""Entries with a first step as long as this are warm enough."""
STOPS = (SLOW_ROUNDS, LEAST_ROUNDS)
"""Rounds after which the load of the host is asked for, and the rounds of some backends may end."""


class WorkerClock:
    """Clock whose times were taken in the workers, so that passing messages does not count."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.measured: Seconds = 0.0

    def now(self) -> Seconds:
        return time.perf_counter()

    def time(self, work: Callable[[], object]) -> Seconds:
        work()
        return self.measured

    def visit(self, turn: tuple[str, str, str], steps: int, first: int) -> Visit:
        """A visit of `steps` steps, whatever the rounds ask for, which begin at round `first`."""

        def run(first_step: int, _: int) -> None:
            self.measured = self.workers.ask(turn[0], "time", *turn, first + first_step, steps)

        return run


def measure_cell(
    file: ExpertsFile, plan: ExpertsCell, workers: Workers, allowed: Seconds, progress: Progress
) -> ExpertsResult:
    """Measure a cell: `LEAST_ROUNDS` rounds, and up to the suite's number while time allows.

    Slow backends have fewer, see `most_rounds`.

    Raises:
        RuntimeError: the process that the backends share died.
    """
    start, clock = time.perf_counter(), WorkerClock(workers)
    routers = file.routers if plan.phase == "forward" else ()
    loads_by_mix = workers.open(plan, file.seed, routers)
    result = ExpertsResult(plan, loads_by_mix, matmul_size=workers.matmul_size)
    warm = _warm_up(result, workers, _entries(plan, workers.backends, routers))
    left = allowed - (time.perf_counter() - start)
    most = most_rounds(warm, workers.backends, file.rounds, left)
    host = HostMeter(torch.get_num_threads(), own=workers.processor_time)
    loads = []
    stops = sorted({min(n, file.rounds) for n in (0, *most.values(), *STOPS, file.rounds)})
    for first, last in pairwise(stops):
        budget = math.inf
        if last > LEAST_ROUNDS:
            budget = allowed - (time.perf_counter() - start)
            if budget <= 0:
                break
        visits = {name: clock.visit((name, "", plan.phase), 1, 0) for name in PROBE_WORK}
        for (what, mix), seconds in warm.items():
            key = f"{what}, {mix}"
            if key not in result.errors and first < most[what, mix]:
                steps = math.ceil(QUICK_VISIT / max(seconds, 1e-6))
                result.num_steps[key] = max(1, min(MOST_STEPS, steps))
                turn = (what, mix, plan.phase)
                visits[key] = clock.visit(turn, result.num_steps[key], first)
        # A visit counts as one step, though it runs as many as fill `QUICK_VISIT`.
        effort = Plan(
            budget,
            seed=file.seed + first,
            stream_length=plan.num_steps,
            max_rounds=last - first,
            max_warmup_visits=0,
        )
        host.start()
        _add(result, measure_rounds(visits, clock, effort, progress), first)
        loads.append(host.load(first))
    result.load = host.host_load(tuple(loads))
    return result


def _warm_up(
    result: ExpertsResult, workers: Workers, entries: Sequence[Entry]
) -> dict[Entry, Seconds]:
    """Seconds a step of each entry once it is warm; errors go to the result."""
    warm, plan = {}, result.plan
    for what, mix in entries:
        try:
            for _ in range(2):
                seconds = workers.ask(what, "time", what, mix, plan.phase, 0, 1)
                if seconds > LONG_STEP:
                    break
            if seconds < WARM_ALL:
                for first in range(1, plan.num_steps):
                    workers.ask(what, "time", what, mix, plan.phase, first, 1)
            warm[what, mix] = seconds
        except RuntimeError as error:
            result.errors[f"{what}, {mix}"] = str(error)
    return warm


def _add(result: ExpertsResult, rounds: Rounds, first: int) -> None:
    """Add what rounds gave, the first of which is number `first` of the cell."""
    for key, failure in rounds.failures.items():
        if key in PROBE_WORK:
            raise RuntimeError(str(failure))
        result.errors[key] = str(failure)
    for key, samples in rounds.samples.items():
        if key in PROBE_WORK:
            result.limits.setdefault(key, []).extend(sample.seconds for sample in samples)
            continue
        what, mix = key.rsplit(", ", 1)
        result.samples.setdefault(what, {}).setdefault(mix, []).extend(
            (first + sample.round, first + sample.first_step, sample.seconds) for sample in samples
        )


def _entries(plan: ExpertsCell, backends: Sequence[str], routers: Sequence[str]) -> list[Entry]:
    """Every backend that can run the cell under every mix, and the routers under the first."""
    fit = [name for name in backends if takes_dtype(name, getattr(torch, plan.dtype))]
    if plan.phase == "train":
        # A backend that another stands in for would be that one once more.
        fit = [
            name
            for name in fit
            if EXPERT_BACKENDS[name].has_gradients and executing(name, "train").name == name
        ]
    entries = [(name, mix) for mix in plan.mixes for name in fit]
    return entries + [(f"router {name}", plan.mixes[0]) for name in routers]
