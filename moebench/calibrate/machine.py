"""This machine as a HardwareSpec with a calibration: measured once, saved, checked at each start.

A machine with a file in `data/hardware` keeps its datasheet and gets measured prices; for any
other, what the microbenchmarks showed *is* the datasheet.
"""

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from moebench.calibrate.microbenchmark import microbenchmarks, recheck
from moebench.calibrate.products import layouts
from moebench.files import cache_directory, make_folder, replace_file
from moebench.measure.environment import Environment, describe_machine
from moebench.measure.latency import Progress
from moebench.measure.memory import available_memory
from moebench.predict.layers.calibration import Calibration, fit_calibration
from moebench.records.timings import Microbenchmarks
from moebench.spec.hardware import HardwareSpec, Interconnect, hardware_aliases, load_hardware
from moebench.spec.schema import decode, encode
from moebench.units import BASE_UNIT, Bytes, Kind, Seconds, text

CALIBRATION_BUDGET: Seconds = 110.0
RECHECK_TOLERANCE = 0.20
"""A matmul that is this far from its calibrated time makes the calibration stale."""


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
    recalibrate: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
) -> Machine:
    """Describe and calibrate the machine, or load its saved calibration unless `recalibrate`.

    `say` is called with a line about each decision.
    """
    environment = describe_machine(device)
    path = calibration_path(environment, dtype)
    benchmarks = None if recalibrate else _saved(path, environment)
    untimed = _untimed(benchmarks, device, dtype)
    if untimed:
        say(f"recalibrating: the saved calibration has no {untimed}")
        benchmarks = None
    if benchmarks is not None:
        ratio = recheck(device, benchmarks)
        if abs(ratio - 1) > RECHECK_TOLERANCE:
            say(
                f"recalibrating: a matmul took {ratio:.2f} of its calibrated time, "
                f"tolerance {RECHECK_TOLERANCE:.0%}"
            )
            benchmarks = None
        else:
            say(f"the calibration of {benchmarks.taken_at} still holds (a matmul: {ratio:.2f})")
    if benchmarks is None:
        say("calibrating this machine once (under two minutes) ...")
        benchmarks = microbenchmarks(device, dtype, budget=CALIBRATION_BUDGET, progress=progress)
        try:
            make_folder(path.parent)
            replace_file(path, json.dumps(encode(benchmarks), indent=1).encode())
        except (OSError, ValueError) as error:
            say(f"the calibration cannot be saved for the next run: {error}")
    hardware = known_hardware(environment) or measured_hardware(environment, benchmarks, dtype)
    return Machine(
        device,
        environment,
        hardware,
        fit_calibration(hardware, benchmarks, dtype),
        benchmarks,
        available_memory(device),
    )


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


def calibration_path(environment: Environment, dtype: str) -> Path:
    """File of the microbenchmarks of this machine and software."""
    return cache_directory() / f"{environment.fingerprint}-{dtype}.json"


def _saved(path: Path, environment: Environment) -> Microbenchmarks | None:
    """The saved microbenchmarks; a file that cannot be read is as good as none."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        found = decode(Microbenchmarks, table, str(path))
    except (OSError, ValueError):
        return None
    return found if found.fingerprint == environment.fingerprint else None


def _untimed(benchmarks: Microbenchmarks | None, device: torch.device, dtype: str) -> str:
    """Measurements that a calibration of this machine needs and a saved one lacks, in words."""
    if benchmarks is None:
        return ""
    timed = {sample.layout for sample in benchmarks.matmuls}
    absent = [layout for layout in layouts(device, dtype) if layout not in timed]
    found = [f"matmuls with {' and '.join(absent)} weights"] if absent else []
    return " and no ".join(found + ["attention"] * (benchmarks.attention_rate is None))


def known_hardware(environment: Environment) -> HardwareSpec | None:
    """The shipped file for this GPU, by the name that NVML gives it."""
    if environment.gpu is None:
        return None
    name = hardware_aliases().get(environment.gpu.name)
    return None if name is None else load_hardware(name)


def measured_hardware(
    environment: Environment, benchmarks: Microbenchmarks, dtype: str
) -> HardwareSpec:
    """A machine without a file: its peak is the best matmul that was measured."""
    cpu, gpu = environment.cpu, environment.gpu
    maker = None if gpu is None else "AMD" if torch.version.hip else "NVIDIA"
    return HardwareSpec(
        name=environment.slug,
        title=gpu.name if gpu else f"{cpu.model}, {cpu.num_cores} cores",
        kind="gpu" if gpu else "cpu",
        source=f"measured here by moebench's microbenchmarks, {benchmarks.taken_at}",
        peak={dtype: max(2 * s.rows * s.n * s.k / s.seconds for s in benchmarks.matmuls)},
        memory_bandwidth=benchmarks.read_bandwidth,
        memory_capacity=gpu.memory if gpu else cpu.memory or 0.0,
        cache=(gpu.l2_cache if gpu else cpu.l3_cache or cpu.l2_cache) or 0.0,
        nvml_names=(gpu.name,) if gpu else (),
        num_processors=gpu.num_processors if gpu else cpu.num_cores,
        clock=gpu.max_sm_clock if gpu else cpu.max_clock,
        maker=maker,
        compute_capability=gpu.compute_capability if gpu and maker == "NVIDIA" else None,
        power_limit=gpu.power_limit if gpu else None,
        launch_overhead=benchmarks.small_op,
        note="Peak and bandwidth are the best that this machine showed, not a datasheet's.",
    )


def hardware_toml(hardware: HardwareSpec, name: str) -> str:
    """A hardware file to contribute, under a name of one's own."""
    import tomli_w  # only what writes a file needs it

    return tomli_w.dumps(_table(dataclasses.replace(hardware, name=name)))


def _table(facts: HardwareSpec | Interconnect) -> dict[str, Any]:
    """Fields with a value; quantities become strings with the unit of their annotation."""
    hints = typing.get_type_hints(type(facts), include_extras=True)
    known = {key: value for key, value in vars(facts).items() if value not in (None, "", ())}
    return {key: _written(value, hints[key]) for key, value in known.items()}


def _written(value: Any, hint: Any) -> Any:
    if isinstance(value, Interconnect):
        return _table(value)
    kinds = [
        part.__metadata__[0]
        for part in (hint, *typing.get_args(hint))
        if typing.get_origin(part) is typing.Annotated
    ]
    if not kinds:
        return value
    if isinstance(value, Mapping):
        return {key: _quantity(item, kinds[0]) for key, item in value.items()}
    return _quantity(value, kinds[0])


def _quantity(value: float, kind: Kind) -> str:
    """Four digits where that is exact enough, else the full number in the base unit."""
    return f"{value:.0f} {BASE_UNIT[kind]}" if kind == "size" else text(value, kind, digits=4)
