"""Conditions that joules were measured under, and the reasons to doubt them."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from moebench.measure.board import throttling
from moebench.measure.energy.window import Stamps, Trace
from moebench.measure.nvml import Fault
from moebench.records.energy import Energy
from moebench.records.results import Caveat

RESIDUAL_DOUBTED = 0.03
"""Relative difference of counter and integrated power that is worth a caveat."""


def conditions(trace: Trace, loads: Sequence[Stamps]) -> Mapping[str, Any]:
    """What is fixed about the board, and its clocks, temperature and throttling under load."""
    begin, end = (loads[0][0][0], loads[-1][-1][0]) if loads else (0.0, math.inf)
    states = [state for state in trace.states if begin <= state["time"] <= end]
    held: dict[str, Any] = {}
    for key in ("sm_clock_hz", "memory_clock_hz", "temperature_c"):
        values = [state[key] for state in states if state.get(key) is not None]
        if values:
            span = {"min": min(values), "max": max(values)}
            held[key] = {"start": values[0], "end": values[-1], **span}
    reasons = [state["reasons"] for state in states if state.get("reasons") is not None]
    if reasons:
        looks = Counter(chain.from_iterable(reasons))
        held["throttle_share"] = {name: looks[name] / len(reasons) for name in sorted(looks)}
    facts = {key: value for key, value in trace.facts.items() if key != "simulated"}
    return {**facts, **trace.end, **held}


def caveats(energy: Energy, failed: Fault | None) -> Iterator[Caveat]:
    """Reasons to doubt the joules; `failed` is why the counter was not believed."""
    if failed is not None:
        yield Caveat(
            "polled-power",
            str(failed),
            "energy is polled power, integrated: published errors are 2 to 5 % over 6 s",
            "none on this board or driver",
        )
    if energy.residual is not None and abs(energy.residual) > RESIDUAL_DOUBTED:
        yield Caveat(
            "energy-residual",
            f"the energy counter differs from integrated power by {energy.residual:+.1%}",
            "one of two readings of the same board is off by that much",
            "repeat with --energy full; compare joules only on this board",
        )
    if failed is None and energy.residual is None and "power_method" in energy.conditions:
        yield Caveat(
            "energy-unchecked",
            "power could not be polled beside the energy counter",
            "nothing but the counter itself says that it is right",
            "none on this board or driver; --energy full where power is a mean over 1 s",
        )
    known = energy.conditions
    yield from throttling(known.get("throttle_share", {}), known.get("throttled_s", {}))
    assert energy.budget is not None
    if energy.budget.aliasing > 0.01:
        yield Caveat(
            "energy-aliasing",
            f"windows at different phases differ: {energy.budget.aliasing:.1%} of uncertainty",
            "the sensor looks part of the time and beats with the load",
            "--energy full averages it out further",
        )
