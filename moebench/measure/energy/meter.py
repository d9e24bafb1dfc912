"""Energy of one step: a process follows the energy counter while the same work runs on.

Counters of energy move in steps (about 100 ms on a GPU), so the difference of two readings around
a piece of work is wrong by up to a step at each end. Here a reader stamps the counter's edges, and
a window runs from edge to edge *inside* a continuous load. Several loads start at different phases
of the counter's beat: a sensor that samples part of the time can beat with the load.

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
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from moebench.measure.energy.process import ReaderProcess
from moebench.measure.energy.rapl import Rapl
from moebench.measure.energy.result import AVERAGED, FULL, QUICK, EnergyPlan, energy_of, no_energy
from moebench.measure.energy.window import Stamps, trace
from moebench.measure.environment import describe_cpu
from moebench.measure.latency import Visit
from moebench.measure.nvml import Fault
from moebench.records.energy import Energy
from moebench.units import Seconds

__all__ = ["FULL", "QUICK", "EnergyPlan", "measure_energy"]

POWERCAP = Path("/sys/class/powercap")
CHUNK: Seconds = 0.05
"""Length of the chunks of steps that are stamped."""
SENSOR_PERIOD: Seconds = 0.1
"""Period of sensors that sample part of the time. Source: Yang et al., for A100 and H100."""


def measure_energy(
    visit: Visit,
    device: torch.device,
    plan: EnergyPlan = QUICK,
    boards: Sequence[str] = (),
    powercap: Path = POWERCAP,
) -> Energy:
    """Energy of one step, gross and net of idle power; None with the reason, never a guess.

    `QUICK` takes about 9 s, `FULL` about 40 s. `boards` are the UUIDs of all boards that work (the
    device's own if left out): their joules are added, and a board that fails is named. `powercap`
    is the root of Linux's tree of that name.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        named = boards or [f"GPU-{torch.cuda.get_device_properties(device).uuid}"]
        sources = [["gpu", uuid, str(os.getpid())] for uuid in named]
    else:
        try:
            sources = [_packages(powercap)]
        except Fault as error:
            return no_energy(error)
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(ReaderProcess(source)) for source in sources]
        try:
            idle, loads = Session(visit, device, readers, plan).run()
        except Fault as error:
            provenances = {trace(reader.rows).provenance for reader in readers}
            return no_energy(error, provenance=max(provenances))  # "simulated" if any is
    energies = {reader.name: energy_of(trace(reader.rows), loads, idle, plan) for reader in readers}
    return next(iter(energies.values())) if len(energies) == 1 else _sum_of_boards(energies)


def has_energy_counter(device: torch.device) -> bool:
    """Whether an energy pass will find a counter; a GPU is taken to have one."""
    if device.type != "cuda":
        try:
            _packages(POWERCAP)
        except Fault:
            return False
    return True


def _packages(root: Path) -> list[str]:
    """Arguments of a reader of RAPL's counter; a Fault where there is none to read."""
    if Rapl(root).domains:
        return ["rapl", str(root)]
    if describe_cpu().hypervisor is not None:
        raise Fault("virtualised", "virtualised: the hypervisor gives this guest no RAPL counters")
    raise Fault("no-powercap", "no_powercap: this system has no RAPL package domain")


@dataclass
class Session:
    """Continuous loads on one device while readers follow their counters."""

    visit: Visit
    device: torch.device
    readers: Sequence[ReaderProcess]
    plan: EnergyPlan

    def run(self) -> tuple[tuple[Seconds, Seconds], list[Stamps]]:
        """Stay idle, then run the loads; returns the idle span and the stamps of each load."""
        plan = self.plan
        self.wait(lambda: all(reader.rows for reader in self.readers), math.inf)
        begin = time.monotonic()
        self.wait(lambda: False, plan.idle)
        # A slow counter needs longer for edges that give idle power and its tick.
        self.wait(lambda: all(num_edges(r) > 3 for r in self.readers), plan.patience - plan.idle)
        idle = begin, time.monotonic()
        if any(_has_no_counter(r) and trace(r.rows).is_averaged for r in self.readers):
            self.plan = replace(plan, settle=max(plan.settle, AVERAGED))
        rng = random.Random(0)
        order, shift = rng.sample(range(plan.windows), plan.windows), rng.random()
        loads: list[Stamps] = []
        deadline = time.monotonic() + plan.budget
        for place in order:
            phase = (place + shift) / plan.windows * SENSOR_PERIOD
            time.sleep((phase - time.monotonic()) % SENSOR_PERIOD)
            done = int(loads[-1][-1][1]) if loads else 0
            loads.append(self.run_load(done, deadline))
        return idle, loads

    def run_load(self, first_step: int, deadline: Seconds) -> Stamps:
        """Run steps without a gap, a chunk ahead on a GPU; stamp how many were finished when."""
        stamps: list[tuple[Seconds, float]] = []
        in_flight: deque[tuple[Callable[[], object], int]] = deque()
        ahead = 1 if self.device.type == "cuda" else 0
        done, num_steps = first_step, 1
        while True:
            self.visit(done, num_steps)
            done += num_steps
            in_flight.append((_fence(self.device), done))
            while len(in_flight) > ahead:
                wait, finished = in_flight.popleft()
                wait()
                stamps.append((time.monotonic(), float(finished)))
            if len(stamps) < 2:
                continue
            length = stamps[-1][0] - stamps[0][0]
            per_step = length / (stamps[-1][1] - stamps[0][1])
            num_steps = max(1, round(CHUNK / per_step)) if per_step > 0 else 1
            is_late = stamps[-1][0] > deadline
            if length < self.plan.settle + self.plan.length and not is_late:
                continue  # no window fits yet; listening takes time from work on this processor
            self.listen()
            if is_late or self._is_enough(stamps, per_step):
                break
        for wait, finished in in_flight:
            wait()
            stamps.append((time.monotonic(), float(finished)))
        return stamps

    def _is_enough(self, stamps: Stamps, per_step: Seconds) -> bool:
        """Whether every counter has edges for a window of whole steps; time decides without one."""
        plan = self.plan
        begin, now = stamps[0][0] + plan.settle, stamps[-1][0]
        needed = plan.length + min(per_step, plan.length)
        for reader in self.readers:
            if _has_no_counter(reader):
                if now - begin < needed:
                    return False
                continue
            inside = [row[2] for row in reader.rows if row[0] == "edge" and begin <= row[1] <= now]
            if len(inside) < 3 or inside[-1] - inside[0] < needed:
                # A counter that has stopped gives no more edges: the budget is not spent on it.
                return now - begin > needed + plan.patience and not inside
        return True

    def wait(self, is_ready: Callable[[], bool], longest: Seconds) -> None:
        """Listen to the readers until they are ready or the time is up."""
        deadline = time.monotonic() + longest
        while True:
            self.listen()
            left = deadline - time.monotonic()
            if is_ready() or left <= 0:
                return
            time.sleep(min(0.01, left))

    def listen(self) -> None:
        """Take in what the readers have written; one that has failed is a Fault."""
        for reader in self.readers:
            reader.update()
            failure = reader.failure()
            if failure is not None:
                which = f"{reader.name}: " if len(self.readers) > 1 else ""
                raise Fault(failure.kind, f"{which}{failure}")


def num_edges(reader: ReaderProcess) -> int:
    return sum(row[0] == "edge" for row in reader.rows)


def _has_no_counter(reader: ReaderProcess) -> bool:
    return any(row[0] == "fault" and row[2] == "counter" for row in reader.rows)


def _fence(device: torch.device) -> Callable[[], object]:
    """A function that waits for the work launched so far."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def _sum_of_boards(energies: dict[str, Energy]) -> Energy:
    """Sum over boards; None, with the board's name, if a board has no joules."""
    for name, energy in energies.items():
        if energy.joules is None:
            return replace(energy, missing=f"{name}: {energy.missing}")
    every = [*energies.values()]
    joules = {name: energy.joules or 0.0 for name, energy in energies.items()}
    total = sum(joules.values())
    nets = [energy.net_joules for energy in every if energy.net_joules is not None]
    half = math.hypot(*((e.high or 0.0) - (e.joules or 0.0) for e in every))
    return replace(
        every[0],
        joules=total,
        net_joules=sum(nets) if len(nets) == len(every) else None,
        low=total - half,
        high=total + half,
        budget=None,
        boards=joules,
        windows=(),
        residual=None,
        caveats=tuple(caveat for energy in every for caveat in energy.caveats),
        conditions={name: energy.conditions for name, energy in energies.items()},
        fault=next((energy.fault for energy in every if energy.fault), None),
    )
