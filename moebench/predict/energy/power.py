"""Power and energy of serving an MoE model: one decode step on n equal GPUs.

Energy of one GPU over a step of `t` seconds (time: `moebench.predict.energy.step`), bounded by
idle power and power limit:

    E = P_wait t + P_busy t_busy + P_layer t_layers + e_byte bytes + e_flop FLOPs

Time beyond the expected one is mostly waiting: slow hosts stall GPUs.

**Source** of the form: the energy roofline (Choi, Bedard, Fowler, Vuduc, IPDPS 2013), with the
constant split as in AccelWattch (Kandiah et al., MICRO 2021).
"""

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.energy.cases import Cases
from moebench.predict.energy.parameters import EnergyParameters
from moebench.predict.energy.step import (
    StepTime,
    StepTraffic,
    peaks,
    rescales,
    step_time,
    step_traffic,
)
from moebench.spec.hardware import HardwareSpec

CAP_SHARPNESS = 8.0
"""Exponent of the smooth minimum of demand and limit: clocks drop before the limit is reached."""


def bounded(hardware: HardwareSpec, watts: Floats) -> Floats:
    """Demanded power after the GPU's limits: above idle power and below the power limit."""
    idle, limit = limits(hardware)
    room, demand = limit - idle, np.maximum(watts - idle, 1e-9)
    norm = (room**CAP_SHARPNESS + demand**CAP_SHARPNESS) ** (1 / CAP_SHARPNESS)
    # Rounding may carry the sum past the limit by one unit in the last place.
    return np.asarray(np.minimum(idle + room * demand / norm, limit))


def limits(hardware: HardwareSpec) -> tuple[float, float]:
    """Idle power and power limit in watts; an error if the datasheet lacks one of them."""
    if hardware.idle_power is None or hardware.power_limit is None:
        raise ValueError(f"{hardware.name}: energy needs idle_power and power_limit")
    return hardware.idle_power, hardware.power_limit


def step_power(
    parameters: EnergyParameters,
    hardware: HardwareSpec,
    traffic: StepTraffic,
    time: StepTime,
    seconds: Floats,
) -> Floats:
    """Mean power of one GPU in watts over a step that takes `seconds`.

    If `seconds` exceeds the expected `time`, the rest is waiting except for the share
    `stall_activity`; if it is less, every part was shorter.
    """
    p, precision = parameters, traffic.cases.precision
    idle, limit = limits(hardware)
    room, faster = limit - idle, np.minimum(seconds / time.seconds, 1.0)
    stall = np.maximum(seconds - time.seconds, 0.0) * min(p.stall_activity, 1.0)
    factor = np.where(rescales(hardware), p.scaled_power, 1.0)[precision]
    busy = p.busy_power * ((factor * time.experts + time.others) * faster + stall)
    small = p.layer_power * time.layers * faster
    moved = p.byte_energy * limit / hardware.memory_bandwidth * traffic.bytes
    worked = p.flop_energy * limit / peaks(hardware)[precision] * traffic.flops
    watts = idle + room * (p.wait_power + (busy + small) / seconds) + (moved + worked) / seconds
    return bounded(hardware, watts)


def step_seconds(parameters: EnergyParameters, hardware: HardwareSpec, cases: Cases) -> Floats:
    """Expected seconds in which all sequences get a token; several steps if memory is too small."""
    traffic = step_traffic(parameters, hardware, cases)
    seconds = step_time(parameters, hardware, traffic).seconds
    return np.asarray(seconds * cases.batch / traffic.running)


def power(
    parameters: EnergyParameters, hardware: HardwareSpec, cases: Cases, seconds: Floats
) -> Floats:
    """Watts of one GPU, mean over the `seconds` in which every sequence gets one token."""
    traffic = step_traffic(parameters, hardware, cases)
    time = step_time(parameters, hardware, traffic)
    step = seconds * traffic.running / cases.batch
    return step_power(parameters, hardware, traffic, time, step)


def energy_per_token(parameters: EnergyParameters, hardware: HardwareSpec, cases: Cases) -> Floats:
    """Joules of one output token, summed over GPUs, its share of prefill included.

    Not counted: CPU, host memory, fans, power supplies.
    """
    seconds = step_seconds(parameters, hardware, cases)
    watts = power(parameters, hardware, cases, seconds)
    return np.asarray(watts * cases.num_gpus * seconds / cases.batch)
