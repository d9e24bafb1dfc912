"""Random loads on the simulated board, measured in virtual time by the real reader.

`measure` is what `measure_energy` does, with the loads known beforehand: idle, then loads that
start at different phases, followed by `follow` and judged by `energy_of`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from nvml.simulator import UUID, Simulator, VirtualClock

from moebench.measure.energy.reader import follow, open_board
from moebench.measure.energy.result import EnergyPlan, energy_of, no_energy
from moebench.measure.energy.window import Stamps, trace
from moebench.measure.nvml import Fault
from moebench.records.energy import Energy

QUICK = EnergyPlan(windows=5, length=1.0, idle=1.0, settle=0.3, budget=30.0)
IDLE_WATTS = 90.0


@dataclass(frozen=True)
class Load:
    """Power of one continuous load as a function of the time since the first one began."""

    kind: str
    """steady, drift, periodic or bursts."""
    step: float
    """Seconds a step."""
    watts: float
    swing: float = 0.0
    """Relative amplitude of what varies within a step."""
    duty: float = 0.5
    noise: float = 0.0
    """Relative standard deviation of power from millisecond to millisecond."""
    drift: float = 0.0
    """Relative change a second."""


@dataclass(frozen=True)
class Case:
    """One measurement on the simulator."""

    load: Load
    settings: dict[str, float] = field(default_factory=dict)
    plan: EnergyPlan = QUICK
    seed: int = 0


def random_case(seed: int, kind: str, plan: EnergyPlan = QUICK, tick: float | None = None) -> Case:
    """A load and a board, drawn.

    Ticks of 10 ms to 1 s, calls of up to 7 ms, sensors that look all or a quarter of the time.
    """
    r = np.random.default_rng(seed)
    tick = 10 ** r.uniform(-2, 0) if tick is None else tick
    settings = {
        "seed": seed,
        "tick": tick,
        "jitter": r.uniform(0, 0.05),
        "phase": r.uniform(0, tick),
        "energy_latency": r.uniform(0, 0.0065),
        "energy_latency_spread": 0.0005,
        "sample_at": r.uniform(0, 1),
    }
    if r.random() < 0.5:
        settings |= {"sensor_window": 0.025, "sensor_phase": r.uniform(0, 0.1)}
    load = Load(
        kind=kind,
        step=r.uniform(0.03, 0.3) if kind == "periodic" else 10 ** r.uniform(-3, -1),
        watts=r.uniform(200, 600),
        swing={"periodic": r.uniform(0.1, 0.45), "bursts": 0.3}.get(kind, 0.0),
        duty=r.uniform(0.3, 0.7),
        noise=0.03 if kind == "steady" else 0.0,
        drift=r.uniform(-0.01, 0.01) if kind == "drift" else 0.0,
    )
    return Case(load, settings, plan, seed)


def power_curve(load: Load, begin: float, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Points (time, watts) of one load that begins at `begin`."""
    end = begin + steps * load.step
    if load.kind == "periodic":
        starts = begin + load.step * np.arange(steps)
        split = starts + load.duty * load.step
        high, low = load.watts * (1 + load.swing), load.watts * (1 - load.swing)
        times = np.stack([starts, split, split, starts + load.step], axis=1).ravel()
        return np.stack([times, np.tile([high, high, low, low], steps)], axis=1)
    if load.kind == "bursts":  # every step alike; a few milliseconds of high power at its begin
        starts = begin + load.step * np.arange(steps)
        width = min(0.005, load.step / 4)
        times = np.stack([starts, starts + width, starts + width, starts + load.step], axis=1)
        high, low = load.watts * (1 + load.swing), load.watts
        return np.stack([times.ravel(), np.tile([high, high, low, low], steps)], axis=1)
    times = np.linspace(begin, end, max(2, int((end - begin) / 0.001)))
    watts = load.watts * (1 + load.drift * times + load.noise * rng.standard_normal(len(times)))
    return np.stack([times, watts], axis=1)


def schedule(case: Case) -> tuple[list[Stamps], np.ndarray, float]:
    """Stamps of the loads, the power of the whole measurement, and when it ends."""
    rng = np.random.default_rng(case.seed + 10**6)
    plan, load, tick = case.plan, case.load, case.settings.get("tick", 0.1)
    order, shift = rng.permutation(plan.windows), rng.random()
    now = max(plan.idle, min(4.0, 4.2 * tick))
    points, loads = [np.array([[0.0, IDLE_WATTS], [now, IDLE_WATTS]])], []
    length = plan.settle + plan.length + min(load.step, plan.length) + 2 * tick
    length = max(length, plan.settle + 3.2 * tick)
    for place in order:
        now += ((place + shift) / plan.windows * 0.1 - now) % 0.1
        steps = math.ceil(length / load.step)
        points.append(np.array([[now, IDLE_WATTS]]))
        points.append(power_curve(load, now, steps, rng))
        loads.append([(now + i * load.step, float(i)) for i in range(steps + 1)])
        now += steps * load.step
        points.append(np.array([[now, IDLE_WATTS]]))
    return loads, np.concatenate(points), now + 0.3


def measure(
    simulator: Simulator,
    case: Case,
    loads: Sequence[Stamps],
    until: float,
    uuid: str = UUID.format(0),
) -> Energy:
    """The real reader and the real judgement, in virtual time."""
    rows: list[list[object]] = []
    begin = simulator.now()
    try:
        board, facts = open_board(uuid, [1], simulator.binding())
    except Fault as error:
        return no_energy(error)
    rows.append(["facts", facts])
    follow(board, VirtualClock(simulator, until), rows.append)
    return energy_of(trace(rows), loads, (begin, loads[0][0][0]), case.plan)


@dataclass(frozen=True)
class Outcome:
    energy: Energy
    truth: float
    """Joules a step."""

    @property
    def error(self) -> float:
        assert self.energy.joules is not None
        return self.energy.joules / self.truth - 1

    @property
    def covers(self) -> bool:
        assert self.energy.low is not None and self.energy.high is not None
        return self.energy.low <= self.truth <= self.energy.high


def play(simulator: Simulator, case: Case) -> Outcome:
    """Measure a case from a fresh simulator; the truth is the exact integral over the loads."""
    simulator.library.nvmlsim_reset()
    simulator.set(**case.settings)
    loads, points, until = schedule(case)
    simulator.trace(points[:, 0], points[:, 1])
    energy = measure(simulator, case, loads, until)
    # Whole steps after the power has risen: what one step of this load takes.
    joules = steps = 0.0
    for load in loads:
        late = [stamp for stamp in load if stamp[0] >= load[0][0] + case.plan.settle]
        joules += simulator.true_joules(late[0][0], late[-1][0])
        steps += late[-1][1] - late[0][1]
    return Outcome(energy, joules / steps)
