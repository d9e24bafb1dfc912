"""Shipped coefficients of the energy model, GPU by GPU, with intervals; energy of one layer.

`energy_calibration("h100-sxm")` gives a GPU's own coefficients if its rows were fitted. Any other
GPU gets those of a GPU of the same architecture or with the same tensor instruction, else the
shared ones, with a wider interval.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.energy.cases import Cases
from moebench.predict.energy.parameters import EnergyParameters
from moebench.predict.energy.power import bounded, limits
from moebench.predict.kernels.catalogue import mma_generation
from moebench.records.results import Caveat
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.spec.schema import from_mapping, read_toml
from moebench.units import Bytes, Flops, Joules, Seconds, Watts
from moebench.version import PACKAGE

SHARED = "shared"
"""Name of the fit for GPUs without rows of their own."""
LARGEST = 1e12
"""Upper bound of a coefficient, in its own unit."""
WIDEST = 20.0
"""Upper bound of an interval's ends, in logarithms."""
BEYOND = 0.5
"""Share by which an interval grows, in logarithms, for a backbone twice as large as the largest one
that was fitted; growth stops there. Assumed: left-out backbones show no trend with size."""


@dataclass(frozen=True)
class Origin:
    """Tables and rows that a fit rests on."""

    rows: int
    largest: float
    """Weights of the largest backbone with routed experts."""
    backbones: tuple[str, ...]
    precisions: tuple[str, ...]
    tables: tuple[str, ...]
    sha256: tuple[str, ...]
    date: str


@dataclass(frozen=True)
class EnergyErrors:
    """Median absolute errors in percent, on backbones left out of the fit."""

    power_given_throughput: float
    power: float
    energy_per_token: float


@dataclass(frozen=True)
class EnergyIntervals:
    """90 % intervals of log(measured / predicted) for a backbone that was not fitted."""

    power_given_throughput: tuple[float, ...]
    power: tuple[float, ...]
    energy_per_token: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, ends in dataclasses.asdict(self).items():
            if len(ends) != 2 or not -WIDEST <= ends[0] <= ends[1] <= WIDEST:
                raise ValueError(
                    f"{name}: found {list(ends)!r:.80}, expected two logarithms, the smaller first"
                )


@dataclass(frozen=True)
class EnergyFit:
    """Coefficients of one GPU, or the shared ones: one file of data/energy."""

    gpu: str
    mean_power: Watts
    """Mean power of the fitted MoE rows: the baseline of a prediction."""
    origin: Origin
    parameters: EnergyParameters
    unseen_backbone: EnergyErrors
    intervals: EnergyIntervals
    note: str = ""
    """How the file was made, and power and energy in watts and picojoules, for people."""

    def __post_init__(self) -> None:
        if self.gpu != SHARED:
            limits(load_hardware(self.gpu))
        numbers = {"mean_power": self.mean_power, **dataclasses.asdict(self.parameters)}
        for name, value in numbers.items():
            if not 0 < value <= LARGEST:
                raise ValueError(f"{name}: found {value:g}, expected more than 0")


@dataclass(frozen=True)
class EnergyCalibration:
    """Energy model of one GPU."""

    hardware: HardwareSpec
    basis: Literal["gpu", "device"]
    """Whether the GPU's own rows were fitted, or ratios to datasheets come from other GPUs."""
    fit: EnergyFit

    @property
    def parameters(self) -> EnergyParameters:
        return self.fit.parameters

    @property
    def caveats(self) -> tuple[Caveat, ...]:
        """Caveats of every prediction with these coefficients."""
        if self.basis == "gpu":
            return ()
        return (
            Caveat(
                "uncalibrated-energy",
                f"no energy was measured on {self.hardware.name}",
                "coefficients are ratios to the datasheet, taken from other GPUs",
                "measure it on the GPU itself: moebench.suite records joules",
            ),
        )


@functools.cache
def shipped_energy() -> Mapping[str, EnergyFit]:
    """Fits of data/energy by name of the GPU, and the shared one under `SHARED`."""
    fits = [read_energy_fit(path) for path in sorted((PACKAGE / "data" / "energy").glob("*.toml"))]
    return {fit.gpu: fit for fit in fits}


def read_energy_fit(path: Path) -> EnergyFit:
    """Fit of one file; an error names the key, what was found and what was expected."""
    return from_mapping(EnergyFit, read_toml(path), f"{path.parent.name}/{path.name}")


def energy_calibration(name: str) -> EnergyCalibration:
    """Energy model of a GPU by its name.

    Raises:
        ValueError: It is unknown, lacks idle power or limit, or nothing of its maker was measured.
    """
    hardware, fits = load_hardware(name), shipped_energy()
    makers = {load_hardware(gpu).gpu_maker for gpu in fits if gpu != SHARED}
    if hardware.gpu_maker not in makers:
        maker = hardware.gpu_maker or "an unknown maker"
        raise ValueError(f"{hardware.name}: no energy was ever measured on a GPU of {maker}")
    limits(hardware)
    if hardware.name in fits:
        return EnergyCalibration(hardware, "gpu", fits[hardware.name])
    shared = fits[SHARED]
    own = {gpu: load_hardware(gpu) for gpu in fits if gpu != SHARED}
    relatives = [gpu for gpu, one in own.items() if one.architecture == hardware.architecture]
    instruction = mma_generation(hardware)
    if instruction != "mma.sync":  # It serves chips as unlike as A100 and RTX.
        relatives += [gpu for gpu, one in own.items() if mma_generation(one) == instruction]
    fit = fits[relatives[0]] if relatives else shared
    return EnergyCalibration(
        hardware, "device", dataclasses.replace(fit, intervals=shared.intervals)
    )


def widening(cases: Cases, largest: Floats | float) -> Floats:
    """[cases] factor on the logarithms of an interval's ends, beyond the sizes that were fitted."""
    return np.asarray(1 + BEYOND * np.clip(np.log2(cases.parameters / largest), 0.0, 1.0))


def power_interval(
    calibration: EnergyCalibration, cases: Cases, watts: Floats, is_given: bool
) -> tuple[Floats, Floats]:
    """90 % interval of a GPU's power; `is_given`: `watts` rest on the measured throughput."""
    ends = calibration.fit.intervals
    chosen = ends.power_given_throughput if is_given else ends.power
    low, high = np.exp(np.outer(chosen, widening(cases, calibration.fit.origin.largest)))
    idle, limit = limits(calibration.hardware)
    return np.clip(watts * low, idle, watts), np.clip(watts * high, watts, limit)


def energy_interval(
    calibration: EnergyCalibration, cases: Cases, joules: Floats
) -> tuple[Floats, Floats]:
    """90 % interval of energy per token, predicted without a measured throughput."""
    ends = calibration.fit.intervals.energy_per_token
    low, high = np.exp(np.outer(ends, widening(cases, calibration.fit.origin.largest)))
    return joules * low, joules * high


@dataclass(frozen=True)
class LayerWork:
    """Work of one MoE layer on one GPU, as far as energy depends on it."""

    bytes_moved: Bytes
    """Bytes from and to DRAM."""
    flops: Flops
    dtype: str = "bfloat16"
    """Dtype whose datasheet peak prices the FLOPs."""
    small_share: float = 0.0
    """Share of the time spent in small kernels and collectives, which draw less."""


@dataclass(frozen=True)
class LayerEnergy:
    """Energy of one MoE layer on one GPU."""

    joules: Joules
    low: Joules
    high: Joules
    """Upper end of the 90 % interval given the layer's true latency."""
    caveats: tuple[Caveat, ...]


def layer_energy(calibration: EnergyCalibration, work: LayerWork, seconds: Seconds) -> LayerEnergy:
    """Energy of kernels that run all the time: E = P t + e_byte bytes + e_flop FLOPs.

    Not counted: waiting between steps, communication, CPU, memory of the host.
    """
    if not seconds > 0:
        raise ValueError(f"seconds: found {seconds}, expected a positive number")
    p, hardware, small = calibration.parameters, calibration.hardware, min(1.0, work.small_share)
    idle, limit = limits(hardware)
    running = (1 - small) * p.busy_power + small * p.layer_power
    constant = idle + (limit - idle) * (p.wait_power + running)
    per_byte = p.byte_energy * limit / hardware.memory_bandwidth
    per_flop = p.flop_energy * limit / hardware.peak_for(work.dtype)
    demand = constant + (per_byte * work.bytes_moved + per_flop * work.flops) / seconds
    watts = float(bounded(hardware, np.array([demand]))[0])
    low, high = np.exp(calibration.fit.intervals.power_given_throughput).tolist()
    return LayerEnergy(
        joules=watts * seconds,
        low=max(idle, watts * low) * seconds,
        high=min(limit, watts * high) * seconds,
        caveats=calibration.caveats,
    )
