"""The simulated NVML library, driven from Python, with its clock."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from moebench.doctor.imitation.nvml import UUID, bind, compile_library, has_compiler, unbind

__all__ = ["UUID", "compile_library", "has_compiler"]

TIMELINES = {"reasons": 0, "temperature": 1, "sm_clock": 2, "memory_used": 3}


class Simulator:
    """One loaded library; what it offers beyond NVML, and the virtual clock."""

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))
        self.library.nvmlsim_now.restype = ctypes.c_double
        self.library.nvmlsim_true_joules.restype = ctypes.c_double
        self.library.nvmlsim_reset()

    def binding(self) -> ModuleType:
        """The unmodified nvidia-ml-py, talking to this library."""
        return bind(self.library)

    def unbind(self) -> None:
        """Leave the binding as if nothing had been loaded."""
        unbind()

    def set(self, board: int = 0, **settings: float) -> None:
        for key, value in settings.items():
            unknown = self.library.nvmlsim_set(board, key.encode(), ctypes.c_double(value))
            assert not unknown, f"the simulator has no setting {key}"

    def trace(self, times: Sequence[float], watts: Sequence[float], board: int = 0) -> None:
        """Power over time, linear between the points."""
        self.library.nvmlsim_trace(board, len(times), _doubles(times), _doubles(watts))

    def timeline(self, name: str, times: Sequence[float], values: Sequence[float]) -> None:
        self.library.nvmlsim_timeline(
            0, TIMELINES[name], len(times), _doubles(times), _doubles(values)
        )

    def fail(self, function: str, code: int, start: float = -1e300, after: int = 0) -> None:
        self.library.nvmlsim_fail(function.encode(), -1, code, ctypes.c_double(start), after)

    def fail_field(self, field: int, code: int, start: float = -1e300) -> None:
        self.library.nvmlsim_fail_field(field, code, ctypes.c_double(start))

    def true_joules(self, begin: float, end: float, board: int = 0) -> float:
        return float(
            self.library.nvmlsim_true_joules(board, ctypes.c_double(begin), ctypes.c_double(end))
        )

    def now(self) -> float:
        return float(self.library.nvmlsim_now())

    def advance(self, seconds: float) -> None:
        self.library.nvmlsim_advance(ctypes.c_double(seconds))


class VirtualClock:
    """The simulator's clock; says stop at `until`."""

    def __init__(self, simulator: Simulator, until: float):
        self.simulator, self.until = simulator, until

    def now(self) -> float:
        return self.simulator.now()

    def wait(self, seconds: float) -> bool:
        self.simulator.advance(max(0.0, seconds))
        return self.now() >= self.until


def _doubles(values: Sequence[float]) -> Any:
    array = np.ascontiguousarray(values, dtype=np.float64)
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
