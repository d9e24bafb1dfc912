"""This machine as a HardwareSpec with a calibration: measured once, saved, checked at each start.

A machine with a file in `data/hardware` keeps its datasheet and gets measured prices; for any
other, what the microbenchmarks showed *is* the datasheet.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from moebench.calibrate.hardware_file import measured_hardware
from moebench.calibrate.microbenchmark import reading_now
from moebench.calibrate.saved import POOR, Site, When, calibration_doubts, usable_benchmarks
from moebench.compare.state import STATE_TOLERANCE
from moebench.files import cache_directory, replace_file
from moebench.measure.environment import Environment, describe_machine
from moebench.measure.host import meter
from moebench.measure.latency import Progress
from moebench.measure.memory import available_memory
from moebench.predict.layers.calibration import Calibration, fit_calibration, from_datasheet
from moebench.records.host import BUSY_GPU_PERCENT, HostLoad
from moebench.records.measurement import READ_BYTES
from moebench.records.results import Caveat
from moebench.records.timings import Microbenchmarks
from moebench.spec.hardware import HardwareSpec, hardware_aliases, load_hardware
from moebench.spec.schema import encode
from moebench.units import Bytes, Seconds, text


@dataclass(frozen=True)
class Machine:
    """Where a run happens, and what its predictions are priced on."""

    device: torch.device
    environment: Environment
    hardware: HardwareSpec
    calibration: Calibration
    benchmarks: Microbenchmarks
    available_memory: Bytes
    """Free when the run started."""


def prepare_machine(
    device: torch.device,
    dtype: str,
    *,
    calibrate: When = "stale",
    budget: Seconds = math.inf,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda share, what: None,
) -> Machine:
    """Describe the machine, look at its load, and calibrate it or use its saved calibration.

    `say` is called with a line about each decision. `budget` is the time for waiting and
    calibrating together; what it does not hold is cut short.
    """
    environment = describe_machine(device)
    end = time.monotonic() + budget
    site = Site(device, dtype, environment, meter(device), say, progress, end)
    load = site.host.look()
    if load.is_busy:
        say(load.warning)
    benchmarks, doubts = usable_benchmarks(site, load, calibrate)
    known = known_hardware(environment)
    hardware = known or measured_hardware(environment, benchmarks, dtype)
    calibration = fit_calibration(hardware, benchmarks, dtype)
    doubts += tuple(calibration_doubts(benchmarks, calibration, known))
    doubts += (busy_gpu(load),) if (load.gpu_percent or 0) > BUSY_GPU_PERCENT else ()
    if known is not None and calibration.p90_error > POOR and dtype in known.peak:
        calibration = from_datasheet(known, dtype)
    if not load.is_busy:
        calibration = in_present_state(calibration, device, say)
    return Machine(
        device,
        environment,
        hardware,
        replace(calibration, doubts=doubts),
        benchmarks,
        available_memory(device),
    )


def busy_gpu(load: HostLoad) -> Caveat:
    """The caveat of a run on a GPU that others used when it started."""
    return Caveat(
        "busy-gpu",
        f"others used {load.gpu_percent}% of the GPU when the run started",
        "kernels of others run in between: latencies are too long, speedups may be chance",
        "wait, or choose another GPU with --device cuda:N",
    )


def in_present_state(
    calibration: Calibration, device: torch.device, say: Callable[[str], None]
) -> Calibration:
    """The calibration, its bandwidths scaled where memory is read at another speed than then.

    Only a quiet machine shows its state: on a busy one a pass over memory waits for a processor.
    """
    then = calibration.reference_reading
    if then is None:
        return calibration
    now = reading_now(device)
    if abs(then / now - 1) <= STATE_TOLERANCE:
        return calibration
    speeds = [text(READ_BYTES / seconds, "bandwidth") for seconds in (now, then)]
    say(f"memory is read at {speeds[0]} now and was at {speeds[1]}: predictions are for now")
    return calibration.in_state(now)


def keep_fit(machine: Machine) -> Path:
    """Write the fit beside its microbenchmarks, for people to read; returns the file."""
    benchmarks, dtype = machine.benchmarks, machine.calibration.dtype
    fit = {
        "fitted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "measured_at": benchmarks.taken_at,
        "commit": benchmarks.commit,
        "fingerprint": benchmarks.fingerprint,
        "calibration": machine.calibration,
    }
    path = cache_directory() / f"{benchmarks.fingerprint}-{dtype}-fit.json"
    replace_file(path, (json.dumps(encode(fit), indent=1) + "\n").encode())
    return path


def known_hardware(environment: Environment) -> HardwareSpec | None:
    """The shipped file for this GPU, by the name that NVML gives it."""
    if environment.gpu is None:
        return None
    name = hardware_aliases().get(environment.gpu.name)
    return None if name is None else load_hardware(name)
