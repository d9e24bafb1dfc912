"""Load of the host: processor time of this process and of all others, from `/proc`.

What the system does not count is None: other systems than Linux, and containers that hide `/proc`.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from moebench.measure.environment import allowed_processors, nvml_handle, read_text
from moebench.measure.nvml import answer, open_nvml, other_load
from moebench.records.host import HostLoad, RoundLoad
from moebench.units import Seconds

TICK: Seconds = 0.01
"""Unit of `/proc/stat`; the kernel reports hundredths of a second whatever its own tick is."""
LOOK: Seconds = 0.5
"""Time of a look at the load: a processor's share is seen to 2 %."""
BUSY, STOLEN = (0, 1, 2, 5, 6), 7
"""Columns of a processor in `/proc/stat`: user, nice, system, interrupts; 3 and 4 are idle."""


@dataclass(frozen=True)
class Counters:
    """Times since the machine or the process started."""

    wall: Seconds
    own: Seconds
    busy: Seconds | None
    stolen: Seconds | None
    waiting: Seconds | None


class HostMeter:
    """Reads the load of the host over stretches of time, each from `start` to `load`.

    A pair of readings takes a tenth of a millisecond on two processors.
    """

    def __init__(
        self,
        threads: int,
        root: Path = Path("/"),
        own: Callable[[], Seconds] = time.process_time,
        wall: Callable[[], Seconds] = time.perf_counter,
    ) -> None:
        self.threads = threads
        self.gpu: torch.device | None = None
        self.cpus = allowed_processors()
        self.processors = min(float(len(self.cpus)), quota(root))
        self.root, self._own, self._wall = root, own, wall
        self.start()

    def start(self) -> None:
        """Begin a stretch here."""
        self._before = self._read()

    def load(self, number: int = 0) -> RoundLoad:
        """Load since `start`, as that of round `number`."""
        a, b = self._before, self._read()
        return RoundLoad(
            number,
            round(b.wall - a.wall, 6),
            round(b.own - a.own, 6),
            _since(a.busy, b.busy),
            _since(a.stolen, b.stolen),
            _since(a.waiting, b.waiting),
        )

    def look(self, seconds: Seconds = LOOK) -> HostLoad:
        """The load while this process sleeps: all that is seen is the others'."""
        self.start()
        time.sleep(seconds)
        load = self.host_load((self.load(),))
        return replace(load, gpu_percent=gpu_use(self.gpu)) if self.gpu is not None else load

    def host_load(self, rounds: tuple[RoundLoad, ...]) -> HostLoad:
        """The load of some rounds, with the reason for what is not known."""
        absent = ["proc/stat"] * any(one.busy is None for one in rounds)
        absent += ["proc/pressure/cpu"] * any(one.waiting is None for one in rounds)
        names = " and ".join(str(self.root / name) for name in absent)
        missing = f"{names} cannot be read" if absent else None
        return HostLoad(self.processors, self.threads, rounds, missing)

    def _read(self) -> Counters:
        busy, stolen = processor_times(self.root, self.cpus)
        return Counters(self._wall(), self._own(), busy, stolen, pressure(self.root))


def meter(device: torch.device) -> HostMeter:
    """The meter for work on a device; a GPU needs the one thread that launches."""
    if device.type == "cpu":
        return HostMeter(torch.get_num_threads())
    host = HostMeter(threads=1)
    host.gpu = device
    return host


def gpu_use(device: torch.device, nvml: Any = None) -> int | None:
    """Use of a GPU in percent; None where NVML does not say."""
    nvml = open_nvml(nvml)
    handle = None if nvml is None else answer(nvml_handle, nvml, device)
    return None if handle is None else other_load(nvml, handle)[0]


def processes_time(pids: Iterable[int], root: Path = Path("/")) -> Seconds:
    """Processor time of this process and of some others; those that ended count as 0."""
    total = time.process_time()
    for pid in pids:
        # The name, in brackets, may hold blanks; user and system time are the 12th and 13th after.
        _, _, fields = (read_text(root / f"proc/{pid}/stat") or "").rpartition(")")
        total += TICK * sum(map(int, fields.split()[11:13]))
    return total


def quota(root: Path = Path("/")) -> float:
    """Processors that the container's limit allows; infinite without a limit."""
    limit, _, period = (read_text(root / "sys/fs/cgroup/cpu.max") or "max").partition(" ")
    return float("inf") if limit == "max" else float(limit) / float(period)


def processor_times(root: Path, cpus: frozenset[int]) -> tuple[Seconds | None, Seconds | None]:
    """Busy and stolen time of some processors since the start of the machine.

    Processes of lowered priority count: kernels that group processes by session let them compete
    with other sessions as equals.
    """
    names = {f"cpu{number}" for number in cpus}
    lines = [line.split() for line in (read_text(root / "proc/stat") or "").splitlines()]
    rows = [[int(ticks) for ticks in line[1:]] for line in lines if line and line[0] in names]
    if not rows or min(map(len, rows)) <= STOLEN:
        return None, None
    busy = sum(row[column] for row in rows for column in BUSY)
    return busy * TICK, sum(row[STOLEN] for row in rows) * TICK


def pressure(root: Path) -> Seconds | None:
    """Time in which some task waited for a processor, since the machine started."""
    for line in (read_text(root / "proc/pressure/cpu") or "").splitlines():
        kind, _, total = line.partition("total=")
        if kind.startswith("some") and total.strip().isdigit():
            return int(total) * 1e-6
    return None


def _since(before: Seconds | None, after: Seconds | None) -> Seconds | None:
    """The difference; some kernels let counters of stolen time run back a little."""
    return None if before is None or after is None else max(0.0, round(after - before, 6))
