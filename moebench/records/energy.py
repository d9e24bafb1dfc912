"""The energy of one step: joules with their interval, and what they were measured under."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moebench.records.results import Caveat, Provenance
from moebench.units import Joules, Seconds, Watts


@dataclass(frozen=True)
class EnergyBudget:
    """Relative standard uncertainties of joules: each part alone."""

    stamp: float
    """From when the counter's edges were."""
    jitter: float
    """From the counter's uneven beat, as far as the stamps do not know it."""
    broken_steps: float
    """From windows that end within a step whose power varies."""
    aliasing: float
    """From what windows at different phases of the sensor differ by."""
    drift: float
    """From power that drifts while the windows do not lie evenly in the load."""
    sampling: float
    """From integrating polled power; 0 for a counter."""
    gain: float
    """Of the board: systematic, cancels between routers on one board, not in the interval."""
    freedom: float
    """Degrees of freedom of `aliasing`."""
    drift_rate: float
    """Relative change of the joules from the first window to the last."""


@dataclass(frozen=True)
class Energy:
    """Energy of one step, or why there is none."""

    joules: Joules | None
    """Per step, gross (idle power included)."""
    net_joules: Joules | None
    """Per step, idle power subtracted."""
    method: str
    missing: str | None = None
    window: Seconds | None = None
    """Length of all windows together."""
    num_steps: int | None = None
    low: Joules | None = None
    high: Joules | None = None
    """95 % interval of `joules`; the board's gain is not in it."""
    budget: EnergyBudget | None = None
    fault: str | None = None
    """Kind of what went wrong, in kebab-case: joules are missing or were had another way."""
    net_missing: str | None = None
    """Why `net_joules` is None where `joules` is not."""
    idle_power: Watts | None = None
    """Before the load."""
    tick: Seconds | None = None
    """Of the counter, as measured."""
    num_ticks: int | None = None
    """In all windows together."""
    windows: tuple[Joules, ...] = ()
    """Joules a step of each window."""
    residual: float | None = None
    """Counter over integrated power, less 1."""
    boards: Mapping[str, Joules] = field(default_factory=dict)
    """Joules a step of each board, where there are several."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """Of the board meanwhile: driver, limits, clocks, temperature, throttling, calls made."""
    provenance: Provenance = "measured"
    """ "simulated" where the library was a simulator."""
    caveats: tuple[Caveat, ...] = ()
