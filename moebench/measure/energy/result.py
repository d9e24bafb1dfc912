"""Joules a step from a reader's rows, or the reason why there are none.

The counter is believed if it never went back, stood still or jumped, and agrees with the power that
was polled beside it. Where the counter failed and power did not, polled power is integrated instead
and the method says so. There is never a guess.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moebench.measure.energy.caveats import caveats, conditions
from moebench.measure.energy.uncertainty import energy_budget, half_width
from moebench.measure.energy.window import (
    Stamped,
    Stamps,
    Trace,
    Window,
    edge_window,
    power_integral,
    stamped,
)
from moebench.measure.nvml import Fault
from moebench.records.energy import Energy
from moebench.units import Seconds, Watts, text

MIN_TICKS, MIN_WINDOWS = 10, 3
"""Fewest ticks over all windows, and fewest windows: fewer say nothing about their scatter."""
RESIDUAL_FATAL = 0.25
"""Relative difference of counter and integrated power from which one of the two is wrong."""
POLL_MARGIN: Seconds = 0.05
"""Two polls of power: time before a load's end after which a poll may be missing."""
AVERAGED: Seconds = 1.1
"""Time after a change of power until a reading that is a mean over 1 s is right again."""


@dataclass(frozen=True)
class EnergyPlan:
    """Windows and times of a measurement; each window lies in a load of its own."""

    windows: int
    length: Seconds
    """Least length of a window."""
    idle: Seconds
    """Time before the loads in which idle power is measured."""
    settle: Seconds
    """Start of each load that is left out while power rises."""
    budget: Seconds
    """Longest time of all loads."""
    patience: Seconds = 4.0
    """Time after which a counter that has not moved is given up."""


QUICK = EnergyPlan(windows=5, length=1.0, idle=1.0, settle=0.3, budget=30.0)
FULL = EnergyPlan(windows=5, length=5.0, idle=10.0, settle=0.5, budget=180.0)


def no_energy(fault: Fault, **known: Any) -> Energy:
    """An `Energy` without joules, and the reason."""
    return Energy(None, None, method="none", missing=str(fault), fault=fault.kind, **known)


def energy_of(
    trace: Trace, loads: Sequence[Stamps], idle: tuple[Seconds, Seconds], plan: EnergyPlan
) -> Energy:
    """Joules a step of one source, or the reason why not; `idle` is a span without work."""
    held = conditions(trace, loads)
    known: dict[str, Any] = {"conditions": held, "provenance": trace.provenance}
    if "board" in trace.faults:
        return no_energy(Fault(*trace.faults["board"]), **known)
    edges = stamped(trace.edges)
    failed: Fault | None = None
    try:
        windows = _counter_windows(trace, edges, loads, plan)
        method = "energy counter, windows from edge to edge"
    except Fault as error:
        failed = error
        if failed.kind == "sources-disagree":
            return no_energy(failed, **known)
        try:
            windows = _power_windows(trace, loads, plan)
        except Fault as second:
            both = Fault(failed.kind, f"{failed}; and {second}")
            return no_energy(both, tick=None if edges is None else edges.tick, **known)
        method = f"{trace.facts.get('power_method', 'power')}, polled and integrated"
    assert all(window.joules > 0 and window.steps > 0 for window in windows)
    steps = sum(window.steps for window in windows)
    seconds = sum(window.seconds for window in windows)
    value = sum(window.joules for window in windows) / steps
    budget = energy_budget(
        windows,
        centre=float(np.mean([(load[0][0] + plan.settle + load[-1][0]) / 2 for load in loads])),
        swing=_swing(trace, windows),
        jitter_share=0.0 if edges is None else edges.jitter_share,
        polled=failed is not None,
    )
    half = half_width(budget) * value
    idle_power = _idle_power(trace, None if failed else edges, idle)
    net, net_missing = None, "idle power could not be measured"
    if idle_power is not None:
        net = value - idle_power * seconds / steps
        if net <= 0:
            net, net_missing = None, f"the load draws no more than idle ({idle_power:.0f} W)"
    energy = Energy(
        joules=value,
        net_joules=net,
        method=method,
        window=seconds,
        num_steps=round(steps),
        low=value - half,
        high=value + half,
        budget=budget,
        fault=None if failed is None else failed.kind,
        net_missing=net_missing if net is None else None,
        idle_power=idle_power,
        tick=None if edges is None else edges.tick,
        num_ticks=None if failed else sum(window.ticks for window in windows),
        windows=tuple(window.joules_per_step for window in windows),
        residual=None if failed else _residual(trace, windows, loads),
        **known,
    )
    return replace(energy, caveats=tuple(caveats(energy, failed)))


def _counter_windows(
    trace: Trace, edges: Stamped | None, loads: Sequence[Stamps], plan: EnergyPlan
) -> list[Window]:
    """One window of the counter for each load; a Fault where the counter is not believed."""
    if "counter" in trace.faults:
        raise Fault(*trace.faults["counter"])
    begin, end = loads[0][0][0], loads[-1][-1][0]
    inside = [edge for edge in trace.edges if begin <= edge.after <= end]
    if not inside:
        raise Fault("counter-frozen", "the energy counter did not move during the load")
    if edges is None or len(inside) < 3:
        moves = f"the energy counter moved {len(inside)} times during the load"
        raise Fault("window-too-short", f"{moves}, at least {MIN_TICKS} needed")
    silence = end - inside[-1].after
    if silence > max(0.5, 5 * edges.tick):
        raise Fault("counter-frozen", f"the energy counter stood still for {text(silence, 'time')}")
    _check_jumps(trace, edges)
    each = [edge_window(edges, load, plan.settle, 0.95 * plan.length) for load in loads]
    windows = [window for window in each if window is not None]
    ticks = sum(window.ticks for window in windows)
    if len(windows) < max(MIN_WINDOWS, len(loads)) or ticks < MIN_TICKS:
        raise Fault(
            "window-too-short",
            f"the energy counter moved {ticks} times in {len(windows)} windows of at least "
            f"{text(plan.length, 'time')}; {MIN_TICKS} times in {len(loads)} needed "
            f"(it moves every {text(edges.tick, 'time')})",
        )
    residual = _residual(trace, windows, loads)
    if residual is not None and abs(residual) > RESIDUAL_FATAL:
        what = f"the counter says {residual:+.0%} against integrated power"
        raise Fault("sources-disagree", f"{what}: one of them is wrong")
    return windows


def _check_jumps(trace: Trace, edges: Stamped) -> None:
    """Check that the counter never rose as if the board drew far more than its limit."""
    limit = trace.facts.get("most_power_limit_w") or trace.facts.get("power_limit_w")
    highest = max((watts for _, watts in trace.powers), default=None)
    bounds = [b for b in (limit and 2 * limit, highest and 4 * highest) if b]
    if not bounds:
        return
    joules, times = np.diff(edges.joules), np.diff(edges.times)
    # The stamps of short ticks are uncertain: the tick is lengthened by that uncertainty.
    watts = joules / (times + 3 * np.hypot(edges.sd[1:], edges.sd[:-1]))
    worst = float(watts.max())
    if worst > max(bounds):
        how = f"as if the board drew {text(worst, 'power')}"
        raise Fault("counter-jumped", f"the energy counter rose {how}")


def _power_windows(trace: Trace, loads: Sequence[Stamps], plan: EnergyPlan) -> list[Window]:
    """Polled power over whole steps of each load; a Fault where polls are missing."""
    if "power" in trace.faults:
        raise Fault(*trace.faults["power"])
    settle = max(plan.settle, AVERAGED) if trace.is_averaged else plan.settle
    windows = []
    for load in loads:
        first, last = load[0][0] + settle, load[-1][0] - POLL_MARGIN
        stamps = [stamp for stamp in load if first <= stamp[0] <= last]
        if len(stamps) < 2 or stamps[-1][0] - stamps[0][0] < 0.5 * plan.length:
            raise Fault("window-too-short", "the load is too short for a mean of power")
        begin, end = stamps[0][0], stamps[-1][0]
        joules = power_integral(trace.powers, begin, end)
        if not math.isfinite(joules):
            raise Fault("power-gap", "power was not read all through the load")
        steps = stamps[-1][1] - stamps[0][1]
        windows.append(Window(begin, end, joules, steps, ticks=0, stamp=0.0, broken=0.0))
    if len(windows) < MIN_WINDOWS:
        raise Fault("window-too-short", f"{len(windows)} loads, at least {MIN_WINDOWS} needed")
    return windows


def _residual(trace: Trace, windows: Sequence[Window], loads: Sequence[Stamps]) -> float | None:
    """Counter over integrated power less 1; None where power was not polled all through."""
    begun = zip(windows, loads, strict=True)
    if trace.is_averaged and any(w.begin < load[0][0] + AVERAGED for w, load in begun):
        return None
    polled = sum(power_integral(trace.powers, w.begin, w.end) for w in windows)
    if not math.isfinite(polled) or polled <= 0:
        return None
    return sum(window.joules for window in windows) / polled - 1


def _swing(trace: Trace, windows: Sequence[Window]) -> float:
    """Relative standard deviation of polled power in the windows; 1 where there is none."""
    watts = [p for t, p in trace.powers if any(w.begin <= t <= w.end for w in windows)]
    return float(np.std(watts) / np.mean(watts)) if len(watts) > 1 else 1.0


def _idle_power(trace: Trace, edges: Stamped | None, idle: tuple[Seconds, Seconds]) -> Watts | None:
    if edges is not None:
        inside = (edges.times > idle[0]) & (edges.times < idle[1])
        if np.count_nonzero(inside) >= 3:
            return float(np.ptp(edges.joules[inside]) / np.ptp(edges.times[inside]))
    watts = [p for t, p in trace.powers if idle[0] < t < idle[1]]
    return float(np.mean(watts)) if watts else None
