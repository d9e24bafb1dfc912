"""The simulated NVML library: compiled once, driven from Python, with its clock."""

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pynvml

SOURCE = Path(__file__).with_name("nvmlsim.c")
UUID = "GPU-00000000-0000-0000-0000-00000000000{}"
TIMELINES = {"reasons": 0, "temperature": 1, "sm_clock": 2, "memory_used": 3}


def has_compiler() -> bool:
    return shutil.which("gcc") is not None


def compile_library(folder: Path, *defines: str) -> Path:
    """Build `libnvidia-ml.so.1` in a folder; 0.5 s."""
    library = folder / "libnvidia-ml.so.1"
    # No soname: loaded in a test's process, it must not answer to a later dlopen by NVML's name.
    flags = ["-O1", "-shared", "-fPIC", *defines]
    subprocess.run(["gcc", *flags, "-o", library, SOURCE, "-lm"], check=True, timeout=60)
    return library


class Simulator:
    """One loaded library; what it offers beyond NVML, and the virtual clock."""

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))
        self.library.nvmlsim_now.restype = ctypes.c_double
        self.library.nvmlsim_true_joules.restype = ctypes.c_double
        self.library.nvmlsim_reset()

    def binding(self) -> ModuleType:
        """The unmodified nvidia-ml-py, talking to this library."""
        pynvml.nvmlLib = self.library
        pynvml._nvmlGetFunctionPointer_cache.clear()
        return pynvml

    def unbind(self) -> None:
        """Leave the binding as if nothing had been loaded."""
        pynvml.nvmlLib = None
        pynvml._nvmlLib_refcount = 0
        pynvml._nvmlGetFunctionPointer_cache.clear()

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
