"""What ran on the processors of the host while a cell was timed, round by round."""

from collections.abc import Iterable
from dataclasses import dataclass

from moebench.records.results import check_number
from moebench.units import Seconds

SPARE = 0.25
"""Processors that others may use beyond those that are free: daemons and the reading itself."""
BUSY_GPU_PERCENT = 5
"""Use of an idle GPU by others beyond this disturbs."""
MOST_STOLEN = 0.05
"""Share of the processors' time that a host may take before every latency shows it."""


@dataclass(frozen=True)
class RoundLoad:
    """Processor time in one round; None where the system does not count it."""

    round: int
    seconds: Seconds
    """Wall time of the round."""
    own: Seconds
    """Processor time of this process, all threads together."""
    busy: Seconds | None
    """Processor time of all processes, this one included, on the processors it may use."""
    stolen: Seconds | None
    """Time in which the host ran something else, added up over the same processors."""
    waiting: Seconds | None
    """Time in which some task of the system was ready and waited for a processor."""

    def __post_init__(self) -> None:
        check_number(self, "round", "seconds", "own", "busy", "stolen", "waiting")


@dataclass(frozen=True)
class HostLoad:
    """Load of the host in the rounds of a cell, the same for all its cases."""

    processors: float
    """Processors that this process may use, by its affinity and its quota."""
    threads: int
    """Threads that compute: those of torch on a processor, the one that launches on a GPU."""
    rounds: tuple[RoundLoad, ...]
    missing: str | None = None
    """Why some of the rounds' numbers are None."""
    gpu_percent: int | None = None
    """Use of the GPU by others, while this process left it idle; None where nobody looked."""

    def __post_init__(self) -> None:
        check_number(self, "processors", "threads", "gpu_percent")

    @property
    def seconds(self) -> Seconds:
        return sum(one.seconds for one in self.rounds)

    @property
    def share(self) -> float | None:
        """Processor time that the process got over that of its threads without any wait.

        A quiet machine shows less than 1 where a step is not parallel.
        """
        whole = self.seconds * self.threads
        return sum(one.own for one in self.rounds) / whole if whole else None

    @property
    def others(self) -> float | None:
        """Processors that other processes used, on average."""
        busy = _total(one.busy for one in self.rounds)
        if busy is None or not self.seconds:
            return None
        # Ticks of 10 ms and exact seconds of the own process differ by chance.
        return max(0.0, (busy - sum(one.own for one in self.rounds)) / self.seconds)

    @property
    def stolen(self) -> float | None:
        """Share of the processors' time that the host took."""
        whole, stolen = self.seconds * self.processors, _total(o.stolen for o in self.rounds)
        return None if stolen is None or not whole else stolen / whole

    @property
    def waiting(self) -> float | None:
        """Share of the time in which some task of the system waited for a processor."""
        waiting = _total(one.waiting for one in self.rounds)
        return None if waiting is None or not self.seconds else waiting / self.seconds

    @property
    def wanted(self) -> float:
        """Processors that this process and the others wanted; one for each own thread."""
        return self.threads + (self.others or 0.0)

    @property
    def is_busy(self) -> bool:
        """Whether other load or the host took time that the process wanted."""
        is_stolen = (self.stolen or 0.0) > MOST_STOLEN
        is_used = (self.gpu_percent or 0) > BUSY_GPU_PERCENT
        return self.wanted > self.processors + SPARE or is_stolen or is_used

    @property
    def finding(self) -> str:
        """What makes the machine busy, with figures."""
        if self.wanted > self.processors + SPARE:
            return f"{self.wanted:.1f} of {self.processors:g} processors wanted"
        if (self.gpu_percent or 0) > BUSY_GPU_PERCENT:
            return f"others use {self.gpu_percent}% of the GPU"
        return f"the host took {self.stolen or 0.0:.0%} of the processors' time"

    @property
    def warning(self) -> str:
        """What a run says at its start on a busy machine."""
        return f"this machine is busy: {self.finding}; numbers will be poor"


def _total(values: Iterable[float | None]) -> float | None:
    """The sum; None if one is None."""
    known = list(values)
    numbers = [value for value in known if value is not None]
    return sum(numbers) if len(numbers) == len(known) else None
