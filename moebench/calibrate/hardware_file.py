"""A machine without a file in `data/hardware`: one made of its microbenchmarks."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import torch

from moebench.measure.environment import Environment
from moebench.records.timings import Microbenchmarks
from moebench.spec.hardware import HardwareSpec, Interconnect, Network
from moebench.units import BASE_UNIT, Kind, text


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


def _table(facts: HardwareSpec | Interconnect | Network) -> dict[str, Any]:
    """Fields with a value; quantities become strings with the unit of their annotation."""
    hints = typing.get_type_hints(type(facts), include_extras=True)
    known = {key: value for key, value in vars(facts).items() if value not in (None, "", ())}
    return {key: _written(value, hints[key]) for key, value in known.items()}


def _written(value: Any, hint: Any) -> Any:
    if isinstance(value, Interconnect | Network):
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
