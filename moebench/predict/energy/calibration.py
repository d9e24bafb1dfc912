"""The shipped coefficients of the energy model, GPU by GPU, with intervals and a hook for layers.

`energy_calibration("h100-sxm")` gives a GPU's own coefficients where its rows were fitted, else
those of a GPU with the same chip or the ones that all fitted GPUs share, as ratios to datasheets
and with a wider interval.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np

from moebench.predict.energy.cases import PRECISIONS, Cases, Floats
from moebench.predict.energy.power import EnergyParameters, bounded, limits
from moebench.records.results import Caveat
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.spec.schema import from_mapping, read_toml
from moebench.units import Bytes, Flops, Joules, Seconds, Watts

SHARED = "shared"
"""File of the coefficients for GPUs without rows of their own."""
LARGEST = 1e12
"""Of a coefficient, in its own unit."""
WIDEST = 20.0
"""Of the logarithms of an interval's ends."""


@dataclass(frozen=True)
class Origin:
    """What a fit rests on."""

    rows: int
    backbones: tuple[str, ...]
    precisions: tuple[str, ...]
    tables: tuple[str, ...]
    sha256: tuple[str, ...]
    date: str


@dataclass(frozen=True)
class Error:
    """Median absolute error in percent, on backbones that were left out of the fit."""

    power_given_throughput: float
    power: float
    energy_per_token: float


@dataclass(frozen=True)
class Widths:
    """Quantiles of log(measured / predicted), 5 % and 95 %, on backbones left out of the fit."""

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
    """One file of data/energy."""

    gpu: str
    mean_power: float
    """Of the fitted MoE rows, watts: the baseline that any model has to beat."""
    origin: Origin
    parameters: EnergyParameters
    unseen_backbone: Error
    intervals: Widths

    def __post_init__(self) -> None:
        if self.gpu != SHARED:
            limits(load_hardware(self.gpu))
        numbers = {"mean_power": self.mean_power, **dataclasses.asdict(self.parameters)}
        for name, value in numbers.items():
            if not 0 < value <= LARGEST:
                raise ValueError(f"{name}: found {value:g}, expected more than 0")


@dataclass(frozen=True)
class EnergyCalibration:
    """Coefficients for one GPU and what they rest on."""

    hardware: HardwareSpec
    parameters: EnergyParameters
    basis: Literal["gpu", "device"]
    """Own rows, or ratios to the datasheet taken from other GPUs."""
    widths: Widths
    origin: Origin
    mean_power: Watts

    @property
    def caveats(self) -> tuple[Caveat, ...]:
        """Why predictions should be read with care."""
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
    """The fits in data/energy by hardware name, and the shared one under `SHARED`."""
    found = {}
    for entry in sorted(files("moebench").joinpath("data/energy").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".toml"):
            fit = read_energy_fit(Path(str(entry)))
            found[fit.gpu] = fit
    return found


def read_energy_fit(path: Path) -> EnergyFit:
    """The coefficients of one file.

    Raises:
        ValueError: a key that is unknown, missing or ill-typed, or a number that cannot be.
    """
    return from_mapping(EnergyFit, read_toml(path), f"{path.parent.name}/{path.name}")


def energy_calibration(name: str) -> EnergyCalibration:
    """Coefficients for a GPU by the name of its hardware file.

    Raises:
        ValueError: unknown hardware, or a datasheet without idle power or power limit.
    """
    hardware = load_hardware(name)
    limits(hardware)
    fits = shipped_energy()
    shared = fits[SHARED]
    if hardware.name in fits:
        own = fits[hardware.name]
        return EnergyCalibration(
            hardware, own.parameters, "gpu", own.intervals, own.origin, own.mean_power
        )
    relatives = [
        fit
        for name, fit in fits.items()
        if name != SHARED and load_hardware(name).architecture == hardware.architecture
    ]
    nearest_fit = relatives[0] if relatives else shared
    return EnergyCalibration(
        hardware, nearest_fit.parameters, "device", shared.intervals, nearest_fit.origin,
        nearest_fit.mean_power,
    )  # fmt: skip


def power_interval(
    calibration: EnergyCalibration, cases: Cases, watts: Floats, is_given: bool
) -> tuple[Floats, Floats]:
    """90 % interval of the power of one GPU, within idle power and power limit.

    Args:
        calibration: of the GPU.
        cases: what is served.
        watts: predicted.
        is_given: the prediction was told the measured throughput.
    """
    widths = calibration.widths
    low, high = widths.power_given_throughput if is_given else widths.power
    idle, limit = limits(calibration.hardware)
    factor = _stretch(calibration, cases)
    return (
        np.clip(watts * np.exp(low * factor), idle, watts),
        np.clip(watts * np.exp(high * factor), watts, limit),
    )


def energy_interval(
    calibration: EnergyCalibration, cases: Cases, joules: Floats
) -> tuple[Floats, Floats]:
    """90 % interval of energy per token when nobody measured the throughput."""
    low, high = calibration.widths.energy_per_token
    factor = _stretch(calibration, cases)
    return joules * np.exp(low * factor), joules * np.exp(high * factor)


UNSEEN_PRECISION = 2.0
"""How much wider an interval is, in logarithms, where no kernel of the precision was fitted."""


def _stretch(calibration: EnergyCalibration, cases: Cases) -> Floats:
    seen = np.array([name in calibration.origin.precisions for name in PRECISIONS])
    return np.where(seen[cases.precision], 1.0, UNSEEN_PRECISION)


@dataclass(frozen=True)
class LayerEnergy:
    """Energy of one MoE layer on one GPU."""

    joules: Joules
    low: Joules
    high: Joules
    """90 % interval given the layer's true latency."""
    watts: Watts
    caveats: tuple[Caveat, ...]


def layer_energy(
    calibration: EnergyCalibration,
    seconds: Seconds,
    bytes_moved: Bytes,
    flops: Flops,
    dtype: str = "bfloat16",
    small_seconds: Seconds = 0.0,
) -> LayerEnergy:
    """Energy of kernels that run all the time: E = P t + e_byte bytes + e_flop FLOPs.

    Not counted: waiting between steps, communication, CPU, memory of the host.

    Args:
        calibration: of the GPU.
        seconds: latency of the layer, predicted or measured.
        bytes_moved: from and to DRAM.
        flops: 2 for each multiply-add.
        dtype: whose datasheet peak prices the FLOPs.
        small_seconds: of the latency, in small kernels and collectives, which draw less.

    Raises:
        ValueError: a time that is not positive, a dtype without a peak.
    """
    if not seconds > 0:
        raise ValueError(f"seconds: found {seconds}, expected a positive number")
    small = min(1.0, small_seconds / seconds)
    p, hardware = calibration.parameters, calibration.hardware
    idle, limit = limits(hardware)
    running = (1 - small) * p.busy_power + small * p.layer_power
    constant = idle + (limit - idle) * (p.wait_power + running)
    per_byte = p.byte_energy * limit / hardware.memory_bandwidth
    per_flop = p.flop_energy * limit / hardware.peak_for(dtype)
    demand = constant + (per_byte * bytes_moved + per_flop * flops) / seconds
    watts = float(bounded(hardware, np.array([demand]))[0])
    low, high = (float(np.exp(w)) for w in calibration.widths.power_given_throughput)
    return LayerEnergy(
        joules=watts * seconds,
        low=max(idle, watts * low) * seconds,
        high=min(limit, watts * high) * seconds,
        watts=watts,
        caveats=calibration.caveats,
    )
