"""Clocks, temperature and throttling of a GPU's board while a cell was timed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moebench.records.results import Provenance, check_number
from moebench.units import Hertz, Seconds


@dataclass(frozen=True)
class BoardLook:
    """The board in one round, read while it worked; None where NVML refuses."""

    round: int
    sm_clock: Hertz | None
    memory_clock: Hertz | None
    celsius: float | None
    """Temperature of the GPU."""
    reasons: tuple[str, ...] | None
    """Why the clocks were not at their highest, in the names of `moebench.measure.nvml`."""

    def __post_init__(self) -> None:
        check_number(self, "round", "sm_clock", "memory_clock", "celsius")


@dataclass(frozen=True)
class BoardState:
    """The board over the rounds of a cell, the same for all its cases."""

    looks: tuple[BoardLook, ...] = ()
    throttled: Mapping[str, Seconds] = field(default_factory=dict)
    """Time of lowered clocks over the rounds, by cause; causes that the board does not count are
    left out."""
    missing: str | None = None
    """Why nobody could look."""
    provenance: Provenance = "measured"
    """Provenance of all this: "simulated" where the NVML library is a simulator."""

    @property
    def sm_clocks(self) -> tuple[Hertz, ...]:
        """The clocks that were read, round by round."""
        return tuple(look.sm_clock for look in self.looks if look.sm_clock is not None)

    @property
    def reasons(self) -> Mapping[str, float]:
        """Share of the looks in which each reason for lower clocks was active."""
        known = [look.reasons for look in self.looks if look.reasons is not None]
        names = sorted({name for reasons in known for name in reasons})
        return {name: sum(name in own for own in known) / len(known) for name in names}
