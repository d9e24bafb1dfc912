"""NVML as the instruments use it: one board, typed faults, and whether the library is real.

It imports neither torch nor numpy, since the process that reads the counters must be small.
"""

import ctypes
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

POWER_INSTANT = 186
"""Field id of instant power (from driver 530 on). Source: nvml.h, NVML_FI_DEV_POWER_INSTANT."""
SCOPE_GPU, SCOPE_MODULE = 0, 1
"""Scopes of power; a module includes the processor. Source: nvml.h, NVML_POWER_SCOPE_*."""
SM_CLOCK, MEMORY_CLOCK = 1, 2
"""Kinds of clocks. Source: nvml.h, nvmlClockType_t."""
VIOLATIONS = {74: "power", 75: "thermal", 269: "sw-thermal", 270: "hw-thermal", 271: "power-brake"}
"""Field ids of the counters of throttled nanoseconds. Source: nvml.h, NVML_FI_DEV_*."""
REASONS = {
    0x1: "idle",
    0x2: "application-clocks",
    0x4: "power-cap",
    0x8: "hw-slowdown",
    0x10: "sync-boost",
    0x20: "sw-thermal",
    0x40: "hw-thermal",
    0x80: "power-brake",
    0x100: "display-clocks",
}
"""Why the clocks are not at their highest. Source: nvml.h, nvmlClocksEventReason*."""
KINDS = {
    1: "uninitialised",
    2: "invalid-argument",
    3: "not-supported",
    4: "no-permission",
    6: "not-found",
    9: "driver-not-loaded",
    10: "timeout",
    12: "no-library",
    13: "function-not-found",
    15: "gpu-lost",
    16: "reset-required",
    18: "version-mismatch",
}
"""NVML's return codes as kinds of fault. Source: nvml.h, nvmlReturn_t."""
MOST_WATTS = 10_000.0
"""Power that no board draws: a higher reading is an error of the sensor."""


class Fault(Exception):
    """Why an instrument has no number: `kind` for programs, the text for people."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


def demand(what: str, ask: Callable[..., Any], *arguments: Any) -> Any:
    """NVML's answer to one call; where it refuses, a Fault that names `what` was asked for."""
    try:
        return ask(*arguments)
    except Exception as error:  # each binding and driver has its own exceptions
        kind = KINDS.get(getattr(error, "value", -1), "unknown")
        raise Fault(kind, f"{what}: {str(error) or type(error).__name__}") from error


def connect(nvml: Any = None) -> Any:
    """The initialised NVML binding (`pynvml` if left out); a Fault where NVML cannot be used."""
    try:
        binding = importlib.import_module("pynvml") if nvml is None else nvml
    except ImportError as error:
        raise Fault("no-library", f"the NVML binding is not installed: {error}") from error
    demand("NVML cannot be used", binding.nvmlInit)
    return binding


def open_nvml(nvml: Any = None) -> Any:
    """The initialised NVML binding, or None where there is no NVML to talk to."""
    return answer(connect, nvml)


def is_simulated(nvml: Any) -> bool:
    """Whether the library is a simulator: it exports a marker, or its driver ends in "-sim"."""
    library = getattr(nvml, "nvmlLib", None)
    if library is not None and answer(ctypes.c_int.in_dll, library, "nvmlsim_marker") is not None:
        return True
    return as_text(answer(nvml.nvmlSystemGetDriverVersion) or "").endswith("-sim")


def answer(ask: Callable[..., Any], *arguments: Any) -> Any:
    """NVML's answer to one call; None where it refuses, as boards support different subsets."""
    try:
        return ask(*arguments)
    except Exception:
        return None


def as_text(value: str | bytes) -> str:
    """Text of a binding's answer; older bindings return bytes."""
    return value.decode() if isinstance(value, bytes) else value


def foreign_processes(
    nvml: Any, handle: Any, is_ours: bool, own: Sequence[int] | None = None
) -> int:
    """Number of other processes that compute on a board; `own` are our process ids.

    `is_ours` says that this process computes on the board too. In a container NVML reports process
    ids of the host, so a single id that does not exist here is then taken for our own.
    """
    pids = [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    others = [pid for pid in pids if pid not in (own or (os.getpid(),))]
    if is_ours and len(others) == len(pids) == 1 and not Path(f"/proc/{pids[0]}").exists():
        return 0
    return len(others)


def other_load(nvml: Any, handle: Any) -> tuple[int | None, int | None]:
    """Utilisation of a board in percent, and processes on it; None where NVML refuses."""
    use = answer(nvml.nvmlDeviceGetUtilizationRates, handle)
    others = answer(foreign_processes, nvml, handle, False)
    return None if use is None else int(use.gpu), others


class Board:
    """One GPU: its energy counter, its power, and the conditions that a record of energy states."""

    def __init__(self, nvml: Any, uuid: str):
        self.nvml = nvml
        self.handle = demand(f"NVML does not know {uuid}", nvml.nvmlDeviceGetHandleByUUID, uuid)
        self.power_method = "instant power"
        self._violations = self.violations()

    def check_exclusive(self, own: Sequence[int]) -> None:
        """Check that the joules are of our work alone; a partitioned or shared board is a Fault."""
        mode = answer(self.nvml.nvmlDeviceGetMigMode, self.handle)
        if mode is not None and mode[0]:
            raise Fault("mig", "the board is partitioned (MIG): its energy is of all partitions")
        who = "NVML does not say who else uses the board"
        others = demand(who, foreign_processes, self.nvml, self.handle, True, own)
        if others:
            what = f"{others} other process(es) compute on the board"
            raise Fault("shared-board", f"{what}: its energy is not ours alone")
        if self._field(POWER_INSTANT) is None and self._field(POWER_INSTANT, SCOPE_MODULE):
            what = "this board reports power of the whole module only, the processor included"
            raise Fault("module-scope", what)

    def joules(self) -> float:
        """Energy since the driver was loaded; NVML gives millijoules."""
        ask = self.nvml.nvmlDeviceGetTotalEnergyConsumption
        return float(demand("the energy counter", ask, self.handle)) * 1e-3

    def watts(self) -> float:
        """Power at this moment, or a mean over a second where the driver has nothing else."""
        milliwatts = self._field(POWER_INSTANT)
        if milliwatts is None:
            self.power_method = "power (may be a mean over 1 s)"
            milliwatts = demand("the power reading", self.nvml.nvmlDeviceGetPowerUsage, self.handle)
        watts = float(milliwatts) * 1e-3
        if not 0 < watts < MOST_WATTS:
            raise Fault("power-implausible", f"the power sensor reads {watts:g} W")
        return watts

    def _field(self, field: int, scope: int = SCOPE_GPU) -> int | None:
        """A field's value; None where the field's own return code says that it failed."""
        values = answer(self.nvml.nvmlDeviceGetFieldValues, self.handle, [(field, scope)])
        if values is None or values[0].nvmlReturn != 0:
            return None
        value = values[0].value
        return int(value.ullVal if values[0].valueType == 3 else value.uiVal)

    def state(self) -> dict[str, Any]:
        """Clocks, temperature and reasons for lower clocks; None where NVML refuses."""
        return {
            "reasons": clock_reasons(self.nvml, self.handle),
            "sm_clock_hz": clock(self.nvml, self.handle, SM_CLOCK),
            "memory_clock_hz": clock(self.nvml, self.handle, MEMORY_CLOCK),
            "temperature_c": answer(self.nvml.nvmlDeviceGetTemperature, self.handle, 0),
        }

    def violations(self) -> dict[str, float]:
        """Seconds of lowered clocks since the driver was loaded, by cause."""
        held = {name: self._field(field) for field, name in VIOLATIONS.items()}
        return {name: value * 1e-9 for name, value in held.items() if value is not None}

    def throttled(self) -> dict[str, float]:
        """Seconds of lowered clocks since this object was made, by cause."""
        now = self.violations()
        return {name: now[name] - start for name, start in self._violations.items() if name in now}


def board_facts(nvml: Any, handle: Any) -> dict[str, Any]:
    """Driver, modes and power limits of a board; None where NVML refuses."""

    def ask(function: str, convert: Callable[[Any], Any], place: int = 0) -> Any:
        """A converted answer of the board, at `place` where it gives several; None if refused."""
        value = answer(getattr(nvml, function), handle)
        value = value[place] if isinstance(value, list | tuple) else value
        return None if value is None else convert(value)

    def watts(milliwatts: int) -> float:
        return milliwatts * 1e-3

    driver = answer(nvml.nvmlSystemGetDriverVersion)
    return {
        "driver": None if driver is None else as_text(driver),
        "vbios": ask("nvmlDeviceGetVbiosVersion", as_text),
        "cuda_driver": answer(nvml.nvmlSystemGetCudaDriverVersion),
        "persistence": ask("nvmlDeviceGetPersistenceMode", bool),
        "ecc": ask("nvmlDeviceGetEccMode", bool),
        "mig": ask("nvmlDeviceGetMigMode", bool),
        "power_limit_w": ask("nvmlDeviceGetEnforcedPowerLimit", watts),
        "default_power_limit_w": ask("nvmlDeviceGetPowerManagementDefaultLimit", watts),
        "least_power_limit_w": ask("nvmlDeviceGetPowerManagementLimitConstraints", watts),
        "most_power_limit_w": ask("nvmlDeviceGetPowerManagementLimitConstraints", watts, 1),
        "scope": "gpu",
    }


def clock(nvml: Any, handle: Any, kind: int, highest: bool = False) -> float | None:
    """A clock in Hz, now or at its highest; `kind` is `SM_CLOCK` or `MEMORY_CLOCK`."""
    ask = nvml.nvmlDeviceGetMaxClockInfo if highest else nvml.nvmlDeviceGetClockInfo
    megahertz = answer(ask, handle, kind)
    return None if megahertz is None else megahertz * 1e6


def clock_reasons(nvml: Any, handle: Any) -> list[str] | None:
    """Reasons why a board's clocks are not at their highest, in names of `REASONS`."""
    # The name changed with driver 535; the bits did not.
    new = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    reasons = None if new is None else answer(new, handle)
    if reasons is None:
        reasons = answer(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return None if reasons is None else [name for bit, name in REASONS.items() if reasons & bit]


def memory_used(nvml: Any, handle: Any) -> float | None:
    """Bytes of a board in use by any process; version 2 leaves out the driver's own reserve."""
    ask, version = nvml.nvmlDeviceGetMemoryInfo, getattr(nvml, "nvmlMemory_v2", None)
    info = (version and answer(ask, handle, version)) or answer(ask, handle)
    return None if info is None else float(info.used)
