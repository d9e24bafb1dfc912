"""Clocks that time work on a host or a GPU, and the time of each stage of a pass."""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch

from moebench.units import Seconds

FILLED: Seconds = 5e-3
"""Device time that a repeated piece of work fills on a GPU: the launch of the first and the wait
for the last take 10 to 20 microseconds, 0.4 % of it. **Source**: the arithmetic of the audit of
2026-11-28, from datasheets; no GPU has timed it."""
MOST_REPEATS = 1000


@runtime_checkable
class Clock(Protocol):
    """A clock times a piece of work; `now` is monotonic and counts time budgets."""

    def now(self) -> Seconds: ...

    def time(self, work: Callable[[], object]) -> Seconds: ...


class HostClock:
    """Wall-clock time of the host, for work that is done when the call returns."""

    now = staticmethod(time.perf_counter)

    def time(self, work: Callable[[], object]) -> Seconds:
        start = time.perf_counter_ns()
        work()
        return (time.perf_counter_ns() - start) * 1e-9


class CudaClock:
    """Time on the device between two CUDA events around the work, with one wait at its end.

    The device is idle at the first event, so gaps while the host launches are part of the time.
    """

    now = staticmethod(time.perf_counter)

    def __init__(self, device: torch.device):
        self.device = device

    def time(self, work: Callable[[], object]) -> Seconds:
        with torch.cuda.device(self.device):
            torch.cuda.synchronize(self.device)
            start = _recorded_event()
            work()
            end = _recorded_event()
            end.synchronize()
            return float(start.elapsed_time(end)) * 1e-3


def _recorded_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def clock_for(device: torch.device) -> Clock:
    """The clock that times the work of a device."""
    return CudaClock(device) if device.type == "cuda" else HostClock()


def repeats_to_fill(work: Callable[[], object], clock: Clock) -> int:
    """How often a piece of work is run in a row, so that its launches do not show in its time.

    Once on a host, whose work is done when the call returns; until `FILLED` is full on a GPU.
    """
    if not isinstance(clock, CudaClock):
        return 1
    work()  # the first call loads kernels
    repeats = 1
    while repeats < MOST_REPEATS:
        seconds = clock.time(partial(_repeat, work, repeats))
        if seconds >= FILLED:
            break
        wanted = math.ceil(repeats * FILLED / seconds) if seconds > 0 else MOST_REPEATS
        repeats = min(MOST_REPEATS, max(repeats + 1, wanted))
    return repeats


def mean_time(work: Callable[[], object], clock: Clock) -> Seconds:
    """Mean time of a piece of work over as many runs as `repeats_to_fill` asks for."""
    repeats = repeats_to_fill(work, clock)
    return clock.time(partial(_repeat, work, repeats)) / repeats


def _repeat(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


class StageTimer:
    """Seconds per stage of an instrumented pass; latency comes from another pass.

    `mark(stage)` ends a stretch of work of that stage; the stretch began at the previous mark or
    `start`. On a GPU marks are events in the stream: nothing waits until `seconds` is called.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._marks: list[tuple[str | None, Any]] = []  # time: host's seconds or a CUDA event
        self.start()

    def start(self) -> None:
        """Leave out the time since the last mark: the next stage begins now."""
        self.mark(None)

    def mark(self, stage: str | None) -> None:
        if self.device.type != "cuda":
            self._marks.append((stage, time.perf_counter()))
            return
        with torch.cuda.device(self.device):
            self._marks.append((stage, _recorded_event()))

    def seconds(self) -> dict[str, Seconds]:
        """Total time of each stage so far."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        totals: defaultdict[str, Seconds] = defaultdict(float)
        for (_, before), (stage, after) in pairwise(self._marks):
            if stage is None:
                continue
            is_host = isinstance(before, float)
            totals[stage] += after - before if is_host else before.elapsed_time(after) * 1e-3
        return dict(totals)
