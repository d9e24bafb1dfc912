"""Interleaved rounds of timed cases for the benchmarks beside it, and the ratios of their times."""

from collections.abc import Mapping
from typing import Any

import torch

from moebench import terminal
from moebench.compare import pairs
from moebench.measure.clocks import clock_for
from moebench.measure.host import meter
from moebench.measure.latency import Covariates, Plan, Rounds, Visit, measure_rounds
from moebench.measure.reference import reference_operation
from moebench.records.measurement import Reference
from moebench.spec.schema import encode
from moebench.units import text

CPU = torch.device("cpu")
MUCH_SLOWER = 5.0
"""Times the fastest trial step: the first step of a process is slow, but not that much."""


def drop_slow(visits: dict[str, Visit], prefix: str, device: torch.device = CPU) -> dict[str, str]:
    """Take out cases of a prefix that cannot be its fastest, with the time of a trial step."""
    clock, theirs = clock_for(device), [name for name in visits if name.startswith(prefix)]
    trials = {name: clock.time(lambda name=name: visits[name](0, 1)) for name in theirs}
    slow = {name: t for name, t in trials.items() if t > MUCH_SLOWER * min(trials.values())}
    for name in slow:
        del visits[name]
    return {name: f"a trial step took {text(t, 'time')}: not measured" for name, t in slow.items()}


def timed_rounds(
    visits: Mapping[str, Visit], rounds: int, stream: int, device: torch.device = CPU
) -> Rounds:
    """Interleaved rounds of some cases, each visit a step where it takes 10 ms or more."""
    plan = Plan(
        budget=7200.0,
        stream_length=stream,
        min_rounds=rounds,
        max_rounds=rounds,
        max_warmup_visits=3,
    )
    with terminal.Bar(60.0) as bar:
        observed = Covariates(reference_operation(device), meter(device))
        return measure_rounds(visits, clock_for(device), plan, bar, observed)


def latencies(found: Rounds) -> dict[str, Any]:
    """Seconds a step of each case with its interval, or why it failed."""
    times = {name: encode(pairs.latency(samples)) for name, samples in found.samples.items()}
    return {**times, **{name: f"failed: {error}" for name, error in found.failures.items()}}


def fastest(found: Rounds, prefix: str) -> str:
    """The fastest of the cases whose names begin so."""
    own = [name for name in found.samples if name.startswith(prefix)]
    return min(own, key=lambda name: pairs.latency(found.samples[name]).value)


def time_ratio(
    found: Rounds, above: str, below: str
) -> tuple[float, float | None, float | None, int]:
    """Time of one case over that of another in the same rounds, its interval, and the rounds."""
    reference = Reference(reference_operation(CPU).version, found.reference, found.reading)
    names = (above, below)
    ratio = pairs.speedup(found.samples[above], found.samples[below], names, reference=reference)
    return ratio.value, ratio.low, ratio.high, ratio.n
