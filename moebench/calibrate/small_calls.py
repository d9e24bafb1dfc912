"""What a call on a few elements takes: kinds of calls that an eager layer makes around its matmuls.

On a processor each is made once after the pool was read, as in a layer after its weights: they have
driven its code from the caches, and it takes five to eight times as long as in a loop. On a GPU two
times count, the host's for launching a call and the device's for executing it.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch

from moebench.calibrate.products import Pool
from moebench.measure.clocks import Clock
from moebench.measure.graph import recorded
from moebench.units import Seconds

ROUNDS, COLD_ROUNDS = 50, 10
"""Rounds of all kinds: on a GPU fewer kernels than can be launched ahead, about a thousand."""


def cold_call(pool: Pool, clock: Clock) -> Seconds:
    """Mean time of one call on a processor whose caches hold something else."""
    calls = _calls(pool)
    times = []
    for _ in range(COLD_ROUNDS):
        pool.elements.view(torch.float32).sum()
        times.append(clock.time(partial(_run, calls, 1)))
    return statistics.median(times) / len(calls)


def host_launch(pool: Pool, clock: Clock) -> Seconds:
    """Mean time in which the host launches one call on a GPU that is idle at first."""
    calls = _calls(pool)
    torch.cuda.synchronize(pool.elements.device)
    start = clock.now()
    _run(calls, ROUNDS)
    seconds = clock.now() - start
    torch.cuda.synchronize(pool.elements.device)
    return seconds / (ROUNDS * len(calls))


def small_kernel(pool: Pool, clock: Clock) -> Seconds:
    """Mean time in which a GPU executes one call, of many that are replayed as a graph."""
    calls = _calls(pool)
    launch, _ = recorded(partial(_run, calls, ROUNDS), pool.elements.device, warm_ups=1)
    return clock.time(launch) / (ROUNDS * len(calls))


def _calls(pool: Pool) -> tuple[Callable[[], object], ...]:
    x = pool.elements[:4]
    index = torch.arange(len(x), device=x.device)
    return (
        lambda: torch.add(x, x),
        lambda: torch.softmax(x, 0),
        lambda: torch.sort(x),
        lambda: x.index_select(0, index),
        lambda: x.sum(),
        lambda: x.to(torch.float64),
    )


def _run(calls: Sequence[Callable[[], object]], rounds: int) -> None:
    for _ in range(rounds):
        for call in calls:
            call()
