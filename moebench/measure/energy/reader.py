"""The process that follows an energy counter: `python -m moebench.measure.energy.reader`.

It is small (no torch, no numpy) and shares nothing with the load, so that neither the interpreter
lock nor the load's memory delays a stamp. It writes rows, one JSON list a line, to a file that the
parent reads. It stops when its standard input has a byte or ends, as on the parent's death.

    ["facts", {...}]                    what does not change; the first row
    ["edge", before, after, joules]     the counter moved to `joules` between these two moments
    ["power", time, watts]
    ["state", time, {...}]              clocks, temperature, throttling
    ["fault", time, what, kind, text]   `what` (counter, power, board) has no readings from now on
    ["end", {...}]                      number and duration of the calls

Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

import contextlib
import json
import os
import random
import select
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from moebench.measure.energy.rapl import Rapl
from moebench.measure.nvml import Board, Fault, board_facts, connect, is_simulated

Emit = Callable[[list[Any]], None]
Source = Board | Rapl
"""An instrument with a counter of joules, and perhaps a reading of power."""

POLL = 0.001
"""Seconds between two reads where an edge is expected: the error of a stamp beside the call's."""
POWER_INTERVAL = 0.025
STATE_INTERVAL = 0.5
LEARN = 6
"""Number of edges after which the tick is taken as known."""
FAST_TICK = 0.004
"""Tick in seconds below which a counter is read at `FAST_INTERVAL`, each reading as an edge."""
FAST_INTERVAL = 0.02


@runtime_checkable
class Timekeeper(Protocol):
    """A clock that can wait."""

    def now(self) -> float: ...

    def wait(self, seconds: float) -> bool:
        """Wait some seconds; True when it is time to stop."""


class UntilInput:
    """The machine's clock, which waits for the parent's sign to stop."""

    now = staticmethod(time.monotonic)

    def wait(self, seconds: float) -> bool:
        return bool(select.select([sys.stdin], [], [], max(0.0, seconds))[0])


class EdgeSchedule:
    """Times to look at a counter: without a pause until its tick is known, then near its edges."""

    def __init__(self) -> None:
        self.steps: deque[float] = deque(maxlen=32)
        self.surprises: deque[float] = deque(maxlen=32)
        self.last: float | None = None
        # Looks in step with the counter would err alike at every edge; scattered ones average out.
        self.scatter = random.Random(0)

    @property
    def tick(self) -> float | None:
        return statistics.median(self.steps) if len(self.steps) >= LEARN else None

    def note(self, before: float, after: float) -> None:
        """Note an edge between these two moments."""
        moment, tick = (before + after) / 2, self.tick
        if self.last is not None:
            self.steps.append(moment - self.last)
            if tick is not None:
                # An edge that came before the first look is at least that much too early.
                self.surprises.append(abs(moment - self.last - tick) + (after - before) / 2)
        self.last = moment

    def next_look(self, now: float) -> float:
        tick, poll = self.tick, POLL * self.scatter.uniform(0.5, 1.5)
        if tick is None or self.last is None:
            return now + poll
        if tick < FAST_TICK:
            return now + FAST_INTERVAL
        guard = min(tick / 2, 2 * max(self.surprises, default=tick / 2) + 2 * POLL)
        return max(now + poll, self.last + tick - guard * self.scatter.uniform(0.8, 1.2))


def follow(source: Source, clock: Timekeeper, emit: Emit) -> None:
    """Emit edges, power and states until the clock says stop or the source has failed."""
    schedule = EdgeSchedule()
    counting = polling = True
    value: float | None = None
    looked = due_power = due_state = look = clock.now()
    calls, busy, longest = 0, 0.0, 0.0
    while counting or polling:
        now = clock.now()
        if counting and now >= look:
            try:
                joules = source.joules()
                if value is not None and joules < value:
                    how = f"from {value:.3f} J to {joules:.3f} J"
                    raise Fault("counter-reset", f"the energy counter went back {how}")
            except Fault as error:
                counting = False
                emit(["fault", now, "counter", error.kind, str(error)])
                continue
            end = clock.now()
            middle = (now + end) / 2
            calls, busy, longest = calls + 1, busy + end - now, max(longest, end - now)
            if value is not None and joules > value:
                tick = schedule.tick
                if tick is not None and tick < FAST_TICK:
                    looked = max(looked, middle - 1.5 * tick)
                    schedule.last = middle
                else:
                    schedule.note(looked, middle)
                emit(["edge", looked, middle, joules])
            value, looked = joules, middle
            look = schedule.next_look(end)
        elif polling and now >= due_power:
            due_power = now + POWER_INTERVAL
            try:
                emit(["power", now, source.watts()])
            except Fault as error:
                polling = False
                emit(["fault", now, "power", error.kind, str(error)])
        elif now >= due_state and (not counting or look - now > 0.01 or now > due_state + 0.2):
            due_state = now + STATE_INTERVAL
            emit(["state", now, source.state()])
        else:
            due = [due_state if due_state > now else now + POLL]
            due += [look] * counting + [due_power] * polling
            if clock.wait(min(due) - now):
                break
    mean_call, longest_call = (busy / calls, longest) if calls else (None, None)
    spent = {"calls": calls, "mean_call_s": mean_call, "longest_call_s": longest_call}
    emit(["end", {**spent, "throttled_s": source.throttled()}])


def open_board(uuid: str, own: Sequence[int], nvml: Any = None) -> tuple[Board, dict[str, Any]]:
    """A board whose joules are ours, and its facts; `own` are our process ids."""
    nvml = connect(nvml)
    board = Board(nvml, uuid)
    board.check_exclusive(own)
    with contextlib.suppress(Fault):  # the first reading tells how power is read
        board.watts()
    facts = board_facts(nvml, board.handle) | {"power_method": board.power_method}
    return board, facts | {"simulated": is_simulated(nvml)}


def main(arguments: list[str]) -> int:
    """`gpu FD UUID PID...` or `rapl FD ROOT`: follow a board, or the processor's packages."""
    kind, descriptor, name, *own = arguments

    def emit(row: list[Any]) -> None:
        os.write(int(descriptor), (json.dumps(row) + "\n").encode())

    facts: dict[str, Any] = {"simulated": False}
    try:
        source: Source
        if kind == "gpu":
            nvml = connect()
            facts = {"simulated": is_simulated(nvml)}
            source, facts = open_board(name, [int(pid) for pid in own], nvml)
        else:
            source = Rapl(Path(name))
    except Fault as error:
        # A simulated board that refuses is simulated too.
        emit(["facts", facts])
        emit(["fault", time.monotonic(), "board", error.kind, str(error)])
        return 1
    emit(["facts", facts])
    follow(source, UntilInput(), emit)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
