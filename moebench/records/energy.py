"""The energy of one step: joules with their interval, and what they were measured under."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moebench.records.results import Caveat, Provenance
from moebench.units import Joules, Seconds, Watts


@dataclass(frozen=True)
class EnergyBudget:
    """Parts of the uncertainty of joules, each a relative standard uncertainty."""

    stamp: float
    """Uncertainty of the times of the counter's edges."""
    jitter: float
    """Uncertainty from the counter's uneven period, beyond that of the stamps."""
    broken_steps: float
    """Uncertainty from windows that end within a step whose power varies."""
    aliasing: float
    """Uncertainty from differences of windows at different phases of the sensor."""
    drift: float
    """Uncertainty from drifting power where the windows do not lie evenly in the load."""
    sampling: float
    """Uncertainty of integrating polled power; 0 for a counter."""
    gain: float
    """Uncertainty of the board's gain: cancels between routers on a board; not in the interval."""
    freedom: float
    """Degrees of freedom of `aliasing`."""
    drift_rate: float
    """Relative change of the joules from the first window to the last."""


@dataclass(frozen=True)
class Energy:
    """Energy of one step, or why there is none."""

    joules: Joules | None
    """Energy per step with idle power (gross)."""
    net_joules: Joules | None
    """Energy per step without idle power (net)."""
    method: str
    missing: str | None = None
    window: Seconds | None = None
    """Sum of the lengths of all windows."""
    num_steps: int | None = None
    low: Joules | None = None
    high: Joules | None = None
    """95 % interval of `joules`; the board's gain is not in it."""
    budget: EnergyBudget | None = None
    fault: str | None = None
    """Kind of a fault, in kebab-case: joules are missing or were measured another way."""
    net_missing: str | None = None
    """Why `net_joules` is None where `joules` is not."""
    idle_power: Watts | None = None
    """Power before the load."""
    tick: Seconds | None = None
    """Measured period of the counter."""
    num_ticks: int | None = None
    """Number of ticks in all windows."""
    windows: tuple[Joules, ...] = ()
    """Joules a step of each window."""
    residual: float | None = None
    """Energy of the counter over that of integrated power, less 1."""
    boards: Mapping[str, Joules] = field(default_factory=dict)
    """Joules a step of each board, where there are several."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """State of the board: driver, limits, clocks, temperature, throttling, calls made."""
    provenance: Provenance = "measured"
    """Provenance of the joules: "simulated" where the NVML library is a simulator."""
    caveats: tuple[Caveat, ...] = ()
