"""`torch.cuda` of an imitated machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from moebench.doctor.imitation.device import Boards
from moebench.doctor.imitation.graphs import CUDAGraph, Streams
from moebench.doctor.imitation.nvml import UUID
from moebench.units import Bytes, Seconds

RESERVE: Bytes = 2.0**21
"""Granule of the memory that torch reserves for tensors."""


class Event:
    """A moment in the simulated time of the current board."""

    boards: Boards

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self.at: Seconds = 0.0

    def record(self, stream: Any = None) -> None:
        """Note when the work launched so far will be done."""
        self.at = self.boards.time.reached(self.boards.current)

    def synchronize(self) -> None:
        """Wait for that moment."""
        self.boards.check()
        self.boards.time.wait_until(self.at)

    def wait(self, stream: Any = None) -> None:
        """Do nothing: all work of a board is done in the order of its launch."""

    def query(self) -> bool:
        """Whether the moment has passed."""
        return self.at <= self.boards.time.now()

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds from this event to another."""
        return 1e3 * (end.at - self.at)


class TimedGraph(CUDAGraph):  # type: ignore[no-untyped-call]
    """A graph whose replay is one launch and takes the time of its kernels, one after the other."""

    boards: Boards

    def __enter__(self) -> Any:
        self.boards.time.start_capture()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        self.seconds = self.boards.time.end_capture()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def replay(self) -> None:
        """Run the recorded operations again, in the time that they took in the capture."""
        time = self.boards.time
        self.boards.check()
        time.start_capture()
        try:
            with time.computing():
                super().replay()
        finally:
            time.end_capture()
        time.add(self.boards.current, self.seconds)


class Cuda(Streams):
    """Stands in for `torch.cuda`: every public method here takes the place of its namesake."""

    def __init__(self, boards: Boards) -> None:
        super().__init__()
        self._boards = boards
        self._sync_debug = 0
        self.Event = type("Event", (Event,), {"boards": boards})
        self.CUDAGraph = type("CUDAGraph", (TimedGraph,), {"boards": boards})

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return True

    def is_current_stream_capturing(self) -> bool:
        return self._boards.time.is_capturing

    def device_count(self) -> int:
        return len(self._boards.peak)

    def current_device(self) -> int:
        return self._boards.current

    def set_device(self, device: Any) -> None:
        self._boards.current = self._boards.index(device)

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        """Make a board the current one, and the one before at the end."""
        before = self._boards.current
        self.set_device(device)
        try:
            yield
        finally:
            self._boards.current = before

    def get_device_properties(self, device: Any = None) -> Any:
        """What torch knows of a board."""
        hardware, index = self._boards.time.hardware, self._boards.index(device)
        major, minor = map(int, (hardware.compute_capability or "0.0").split("."))
        return SimpleNamespace(
            name=hardware.nvml_names[0],
            uuid=UUID.format(index).removeprefix("GPU-"),
            total_memory=int(self._boards.capacity),
            L2_cache_size=int(hardware.cache),
            multi_processor_count=hardware.num_processors,
            major=major,
            minor=minor,
            shared_memory_per_block_optin=232448,
            regs_per_multiprocessor=65536,
            warp_size=32,
        )

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        found = self.get_device_properties(device)
        return found.major, found.minor

    def get_device_name(self, device: Any = None) -> str:
        return str(self.get_device_properties(device).name)

    def synchronize(self, device: Any = None) -> None:
        self._boards.wait(self._boards.index(device))

    def empty_cache(self) -> None:
        """Do nothing: no memory is kept for later tensors."""

    def memory_allocated(self, device: Any = None) -> int:
        return int(self._boards.allocated(self._boards.index(device)))

    def max_memory_allocated(self, device: Any = None) -> int:
        return int(self._boards.peak[self._boards.index(device)])

    def max_memory_reserved(self, device: Any = None) -> int:
        return int(-(-self.max_memory_allocated(device) // RESERVE) * RESERVE)

    def memory_reserved(self, device: Any = None) -> int:
        return int(-(-self.memory_allocated(device) // RESERVE) * RESERVE)

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        index = self._boards.index(device)
        self._boards.peak[index] = self._boards.allocated(index)

    def memory_stats(self, device: Any = None) -> dict[str, int]:
        return {
            "allocated_bytes.all.current": self.memory_allocated(device),
            "allocated_bytes.all.peak": self.max_memory_allocated(device),
            "num_alloc_retries": 0,
            "num_ooms": 0,
        }

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        capacity = int(self._boards.capacity)
        return capacity - self.memory_allocated(device), capacity

    def set_sync_debug_mode(self, mode: int | str) -> None:
        levels = {"default": 0, "warn": 1, "error": 2}
        self._sync_debug = mode if isinstance(mode, int) else levels[mode]

    def get_sync_debug_mode(self) -> int:
        return self._sync_debug

    def manual_seed(self, seed: int) -> None:
        """Do nothing: numbers of a board come from the CPU's generator."""

    manual_seed_all = manual_seed

    def _lazy_init(self) -> None:
        """Do nothing: there is no driver to start."""
