"""Energy of one step: a counter followed by a process of its own while the same work runs.

Counters of energy move in steps (about 100 ms on a GPU), so the difference of two readings around
a piece of work is wrong by up to a step at each end. Here a reader stamps the counter's edges, and
a window runs from edge to edge *inside* a continuous load. Several loads start at different phases
of the counter's beat, since a sensor that looks part of the time can beat with the load.

There is never a guess: what cannot be measured is None with the reason.

Source: long continuous loads, start-up dropped and phases shifted are the practices of Yang,
Adamek and Armour (arXiv 2312.02741).
"""

import contextlib
import math
import os
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moebench.measure.energy.process import Reader
from moebench.measure.energy.rapl import Rapl, rapl_packages
from moebench.measure.energy.result import AVERAGED, FULL, QUICK, EnergyPlan, energy_of, no_energy
from moebench.measure.energy.window import Stamps, trace
from moebench.measure.environment import describe_cpu
from moebench.measure.latency import Visit
from moebench.measure.nvml import Fault
from moebench.records.results import Energy, Provenance
from moebench.units import Seconds

__all__ = ["FULL", "QUICK", "EnergyPlan", "measure_energy"]

CHUNK: Seconds = 0.05
"""Steps are stamped in chunks of about this length."""
SENSOR_PERIOD: Seconds = 0.1
"""Of part-time sensors. Source: Yang, Adamek and Armour, for A100 and H100."""


def measure_energy(
    visit: Visit,
    device: torch.device,
    plan: EnergyPlan = QUICK,
    boards: Sequence[str] = (),
    powercap: Path = Path("/sys/class/powercap"),
) -> Energy:
    """Energy of one step, gross and net of idle power.

    Args:
        visit: runs consecutive steps of the stream.
        device: where it runs.
        plan: `QUICK` takes about 9 s, `FULL` about 40 s.
        boards: UUIDs of all boards that work; the device's own if left out. Their joules are added,
            and one that fails is named.
        powercap: root of Linux's powercap tree.
    """
    try:
        sources = _boards(device, boards) if device.type == "cuda" else [_packages(powercap)]
    except Fault as error:
        return no_energy(error)
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(Reader(source)) for source in sources]
        try:
            idle, loads = _run(visit, device, readers, plan)
        except Fault as error:
            idle, loads = (0.0, 0.0), []
            early: Fault | None = error
        else:
            early = None
        for reader in readers:
            reader.stop()
    if early is not None:
        return no_energy(early, provenance=_provenance(readers))
    found = [energy_of(trace(reader.rows), loads, idle, plan) for reader in readers]
    names = [source[1] for source in sources]
    return found[0] if len(found) == 1 else _together(dict(zip(names, found, strict=True)))


def _boards(device: torch.device, boards: Sequence[str]) -> list[list[str]]:
    torch.cuda.synchronize(device)
    named = boards or [f"GPU-{torch.cuda.get_device_properties(device).uuid}"]
    return [["gpu", uuid, str(os.getpid())] for uuid in named]


def _packages(root: Path) -> list[str]:
    """RAPL.

    Raises:
        Fault: it is not there, or not for us.
    """
    try:
        if rapl_packages(root):
            Rapl(root)
            return ["rapl", str(root)]
    except OSError as error:
        raise Fault("rapl-unreadable", f"RAPL cannot be read: {error}") from error
    if describe_cpu().hypervisor is not None:
        text = "virtualised: the hypervisor gives this guest no RAPL counters"
        raise Fault("virtualised", text)
    raise Fault("no-powercap", "no_powercap: this system has no RAPL package domain")


def _run(
    visit: Visit, device: torch.device, readers: Sequence[Reader], plan: EnergyPlan
) -> tuple[tuple[Seconds, Seconds], list[Stamps]]:
    """Idle, then the loads; the span of the one and the stamps of the others.

    Raises:
        Fault: a reader has nothing to read.
    """
    _wait(readers, lambda: all(reader.rows for reader in readers), math.inf)
    begin = time.monotonic()
    _wait(readers, lambda: False, plan.idle)
    # A slow counter needs longer for edges that give idle power and its tick.
    _wait(
        readers,
        lambda: all(_num_edges(reader) > 3 for reader in readers),
        plan.patience - plan.idle,
    )
    idle = begin, time.monotonic()
    settle = max(plan.settle, AVERAGED) if any(map(_needs_average, readers)) else plan.settle
    rng = random.Random(0)
    order = rng.sample(range(plan.windows), plan.windows)
    shift, done = rng.random(), 0
    loads: list[Stamps] = []
    deadline = time.monotonic() + plan.budget
    for place in order:
        phase = (place + shift) / plan.windows * SENSOR_PERIOD
        time.sleep((phase - time.monotonic()) % SENSOR_PERIOD)
        stamps = _run_load(visit, device, readers, done, replace(plan, settle=settle), deadline)
        loads.append(stamps)
        done = int(stamps[-1][1])
    return idle, loads


def _wait(readers: Sequence[Reader], ready: Callable[[], bool], longest: Seconds) -> None:
    """Listen to the readers until they are ready or the time is up.

    Raises:
        Fault: one has failed.
    """
    deadline = time.monotonic() + longest
    while True:
        _listen(readers)
        left = deadline - time.monotonic()
        if ready() or left <= 0:
            return
        time.sleep(min(0.01, left))


def _listen(readers: Sequence[Reader]) -> None:
    for reader in readers:
        reader.update()
        failure = reader.failure()
        if failure is not None:
            which = f"{reader.name}: " if len(readers) > 1 else ""
            raise Fault(failure.kind, f"{which}{failure}")


def _provenance(readers: Sequence[Reader]) -> Provenance:
    facts = [row[1] for reader in readers for row in reader.rows if row[0] == "facts"]
    return "simulated" if any(fact.get("simulated") for fact in facts) else "measured"


def _num_edges(reader: Reader) -> int:
    return sum(row[0] == "edge" for row in reader.rows)


def _needs_average(reader: Reader) -> bool:
    """Whether the board has nothing but a mean of power over a second."""
    facts: dict[str, Any] = next((row[1] for row in reader.rows if row[0] == "facts"), {})
    failed = any(row[0] == "fault" and row[2] == "counter" for row in reader.rows)
    return failed and "mean over" in facts.get("power_method", "")


def _run_load(
    visit: Visit,
    device: torch.device,
    readers: Sequence[Reader],
    first_step: int,
    plan: EnergyPlan,
    deadline: Seconds,
) -> Stamps:
    """Run steps without a gap, and stamp how many were finished when.

    On a GPU the next chunk is launched before the last one is waited for.

    Raises:
        Fault: a reader has failed.
    """
    start = time.monotonic()
    stamps: list[tuple[Seconds, float]] = []
    in_flight: deque[tuple[Callable[[], object], int]] = deque()
    ahead = 1 if device.type == "cuda" else 0
    done, num_steps = first_step, 1
    while True:
        visit(done, num_steps)
        done += num_steps
        in_flight.append((_fence(device), done))
        while len(in_flight) > ahead:
            wait, finished = in_flight.popleft()
            wait()
            stamps.append((time.monotonic(), float(finished)))
        if len(stamps) < 2:
            continue
        per_step = (stamps[-1][0] - stamps[0][0]) / (stamps[-1][1] - stamps[0][1])
        num_steps = max(1, round(CHUNK / per_step)) if per_step > 0 else 1
        is_late = stamps[-1][0] > deadline
        if stamps[-1][0] - stamps[0][0] < plan.settle + plan.length and not is_late:
            continue  # no window fits yet, and listening takes time from work on this processor
        _listen(readers)
        if is_late or _is_enough(readers, start, stamps, per_step, plan):
            break
    for wait, finished in in_flight:
        wait()
        stamps.append((time.monotonic(), float(finished)))
    return stamps


def _is_enough(
    readers: Sequence[Reader], start: Seconds, stamps: Stamps, per_step: Seconds, plan: EnergyPlan
) -> bool:
    """Whether every counter has edges for a window of whole steps; without one, time decides."""
    begin, now = stamps[0][0] + plan.settle, stamps[-1][0]
    needed = plan.length + min(per_step, plan.length)
    for reader in readers:
        if any(row[0] == "fault" and row[2] == "counter" for row in reader.rows):
            if now - begin < needed:
                return False
            continue
        inside = [row[2] for row in reader.rows if row[0] == "edge" and begin <= row[1] <= now]
        if len(inside) < 3 or inside[-1] - inside[0] < needed:
            # A counter that has stopped will not get there: do not spend the budget on it.
            return now - begin > needed + plan.patience and not inside
    return True


def _fence(device: torch.device) -> Callable[[], object]:
    """Waits for the work that has been launched so far."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def _together(found: dict[str, Energy]) -> Energy:
    """The sum over boards; None if one of them has none, and it is named."""
    for name, energy in found.items():
        if energy.joules is None:
            return replace(energy, missing=f"{name}: {energy.missing}")
    joules = {name: energy.joules or 0.0 for name, energy in found.items()}
    total = sum(joules.values())
    nets = [energy.net_joules for energy in found.values()]
    half = math.hypot(*((e.high or 0.0) - (e.joules or 0.0) for e in found.values()))
    one = next(iter(found.values()))
    return replace(
        one,
        joules=total,
        net_joules=None if None in nets else sum(net for net in nets if net is not None),
        low=total - half,
        high=total + half,
        budget=None,
        boards=joules,
        windows=(),
        residual=None,
        caveats=tuple(c for energy in found.values() for c in energy.caveats),
        conditions={name: energy.conditions for name, energy in found.items()},
        fault=next((energy.fault for energy in found.values() if energy.fault), None),
    )
