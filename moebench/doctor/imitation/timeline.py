"""Simulated time of a GPU: what a kernel takes by its datasheet, and when the device is idle.

The host's time is this machine's, less what its processor spent on computing in the device's place.
A kernel takes the time of its bytes or of its products, whichever is longer, at a fixed share of
the datasheet's peaks, then `SLOWNESS` times as long. The figures mean nothing.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from moebench.spec.hardware import HardwareSpec
from moebench.units import Bytes, Seconds

SLOWNESS = 20.0
"""How much slower than its datasheet a board is: a processor that computes for it keeps up."""
SHARE = 0.75
"""Share of the datasheet's peaks that a kernel reaches."""
LEAST_KERNEL: Seconds = 2e-6
LAUNCH: Seconds = 5e-6
"""The host's time for one launch."""
JITTER = 0.02
"""Longest random part of a kernel's time."""


class Timeline:
    """When each board has done what was launched on it, by the host's clock."""

    def __init__(self, hardware: HardwareSpec, num_boards: int) -> None:
        self.hardware = hardware
        self.free_at = [0.0] * num_boards
        self._shift: Seconds = 0.0
        self._halted: Seconds | None = None
        self._captured: Seconds | None = None
        self._random = random.Random(0)

    def now(self) -> Seconds:
        """The host's time, in which the processor's work for a board takes no time."""
        return time.perf_counter() + self._shift if self._halted is None else self._halted

    def pass_on(self, seconds: Seconds) -> None:
        """Let time pass for the host."""
        if self._halted is None:
            self._shift += seconds
        else:
            self._halted += seconds

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The processor computes for a board: the host's clock stands still."""
        if self._halted is not None:
            yield
            return
        self._halted = self.now()
        try:
            yield
        finally:
            self._shift, self._halted = self._halted - time.perf_counter(), None

    def launch(self, board: int, moved: Bytes, flops: float, dtype: str) -> None:
        """Add a kernel to what a board has to do."""
        peak = self.hardware.peak.get(dtype, min(self.hardware.peak.values()))
        seconds = max(moved / self.hardware.memory_bandwidth, flops / peak) / SHARE
        seconds = SLOWNESS * max(LEAST_KERNEL, seconds) * (1 + JITTER * self._random.random())
        if self._captured is not None:
            self._captured += seconds
            return
        self.pass_on(SLOWNESS * LAUNCH)
        self.add(board, seconds)

    def add(self, board: int, seconds: Seconds) -> None:
        """Add seconds of work to a board, which begin when it is free."""
        self.free_at[board] = self.reached(board) + seconds

    def reached(self, board: int) -> Seconds:
        """When work that is launched now begins."""
        return max(self.free_at[board], self.now())

    def wait_until(self, moment: Seconds) -> None:
        """Let the host wait, which takes no time of this machine."""
        self.pass_on(max(0.0, moment - self.now()))

    @property
    def is_capturing(self) -> bool:
        """Whether kernels are gathered."""
        return self._captured is not None

    def start_capture(self) -> None:
        """Gather the kernels launched from now on instead of running them."""
        self._captured = 0.0

    def end_capture(self) -> Seconds:
        """The time of all kernels that were gathered."""
        seconds, self._captured = self._captured or 0.0, None
        return seconds
