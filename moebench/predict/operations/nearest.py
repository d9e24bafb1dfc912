"""Parameters of an operation for any software on any device, from the nearest fits.

Parameters are shares of the data sheet or times, so a weighted mean of fits' logarithms speaks for
a device that was never measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.kernels.catalogue import mma_generation
from moebench.predict.operations.fits import OperationFit
from moebench.predict.operations.operation import Operation, Software
from moebench.spec.hardware import HardwareSpec, load_hardware

Basis = Literal["fitted", "version", "sibling", "device", "software", "maker"]
"""What parameters rest on: fits of this very kernel on the device; of another release of it there;
of this kernel on a sibling of the device (see `is_sibling`); on other devices; of other software or
kernels; on GPUs of other makers, for which no error was ever measured."""
BASES: tuple[Basis, ...] = get_args(Basis)

OTHER_VERSION = 0.1
"""Weight of a fit of another release of the same kernel, of the very release being 1."""
OTHER_SOFTWARE = 0.0015
"""Weight of a fit of the same variant of other software: often one library that both call."""
OTHER_VARIANT = 0.001
"""Weight of a fit of another kernel of the same software."""
STRANGER = 0.0002
"""Weight of a fit of another kernel of other software."""
SAME_DEVICE = 300.0
SAME_CAPABILITY = 100.0
SAME_GENERATION = 10.0
"""Weights of fits on this device, on one of its compute capability, and on one whose tensor cores
take the same instruction; those on any other device count 1. So a dozen far fits do not drown a
near one: priced from all fits but as a device of H100's capability, H100's own rows err by 4 to 7 %
with these weights and by 8 to 15 % with tenths of them."""
SAME_LINK = 10.0
"""Factor where as many devices are joined by as fast a link: servers of one kind, host included."""
FLOOR_SPREAD = 0.15
"""Least spread of a prior from other fits, as far as the generic one is not smaller."""


@dataclass(frozen=True)
class Nearest:
    """Log-normal prior of an operation's parameters for one software on one device."""

    mean: Floats
    """Means of the parameters' logarithms, in the order of the fields."""
    spread: Floats
    basis: Basis
    origin: str
    """What the parameters rest on, in words."""


def generic(operation: Operation) -> Nearest:
    """The prior before anything was measured."""
    facts = operation.facts.values()
    mean = np.log([each["typical"] for each in facts])
    return Nearest(mean, np.array([each["spread"] for each in facts]), "software", "typical values")


def nearest(
    operation: Operation, software: Software, hardware: HardwareSpec, fits: Sequence[OperationFit]
) -> Nearest:
    """Weighted mean and spread of the fits, by how near software and device are."""
    if not fits:
        return generic(operation)
    machines = {system: load_hardware(system) for system in {fit.system for fit in fits}}
    weights = np.array(
        [
            software_weight(software, fit.software) * _device_weight(hardware, machines[fit.system])
            for fit in fits
        ]
    )
    share = weights / weights.sum()
    logs = np.array([logarithms(operation, fit.parameters) for fit in fits])
    mean = share @ logs
    typical = generic(operation)
    floor = np.minimum(0.5 * typical.spread, FLOOR_SPREAD)
    spread = np.sqrt(share @ (logs - mean) ** 2 + floor**2)
    closest = fits[int(weights.argmax())]
    others = f" and {len(fits) - 1} more fits" if len(fits) > 1 else ""
    origin = f"{closest.software} on {closest.system}{others}, as shares of the data sheet"
    basis = basis_of(software, hardware, fits, over_link=operation.over_link)
    return Nearest(mean, spread, basis, origin)


def basis_of(
    software: Software,
    hardware: HardwareSpec,
    fits: Sequence[OperationFit],
    *,
    over_link: bool = False,
) -> Basis:
    """How near the nearest fits come; `over_link`: a sibling is joined by the same link, too."""
    machines = {system: load_hardware(system) for system in {fit.system for fit in fits}}
    if fits and hardware.gpu_maker not in {one.gpu_maker for one in machines.values()}:
        return "maker"
    kernel = (software.name, software.variant)
    own = [fit for fit in fits if (fit.software.name, fit.software.variant) == kernel]
    if not own:
        return "software"
    here = [fit for fit in own if fit.system == hardware.name]
    if any(fit.software == software for fit in here):
        return "fitted"
    if here:
        return "version"
    siblings = [machines[fit.system] for fit in own if is_sibling(hardware, machines[fit.system])]
    if over_link:
        siblings = [one for one in siblings if _link(one) == _link(hardware)]
    return "sibling" if siblings else "device"


def is_sibling(one: HardwareSpec, other: HardwareSpec) -> bool:
    """Whether libraries run the same kernels on both: one compute capability, or one instruction.

    `mma.sync` is no sign of it: it serves chips from A100 to RTX Blackwell, of unlike libraries.
    """
    instruction = mma_generation(one)
    is_one_family = instruction in ("wgmma", "tcgen05") and instruction == mma_generation(other)
    return one.is_built_like(other) or is_one_family


def software_weight(one: Software, other: Software) -> float:
    """Weight of what a fit of `other` says about `one`."""
    if one.name != other.name:
        return OTHER_SOFTWARE if one.variant == other.variant else STRANGER
    if one.variant != other.variant:
        return OTHER_VARIANT
    return 1.0 if one.version == other.version else OTHER_VERSION


def _device_weight(one: HardwareSpec, other: HardwareSpec) -> float:
    if one.name == other.name:
        return SAME_DEVICE * SAME_LINK
    factor = SAME_LINK if _link(one) == _link(other) else 1.0
    if one.is_built_like(other):
        return SAME_CAPABILITY * factor
    return factor * (SAME_GENERATION if mma_generation(one) == mma_generation(other) else 1.0)


def _link(one: HardwareSpec) -> tuple[float, int] | None:
    wire = one.interconnect
    return (wire.bandwidth, wire.devices) if wire else None


def logarithms(operation: Operation, parameters: Any) -> list[float]:
    """Logarithms of parameters in the order of their fields."""
    return [math.log(getattr(parameters, name)) for name in operation.facts]


def parameters_of(operation: Operation, logs: Floats) -> Any:
    """The operation's parameters at some logarithms, none above its ceiling."""
    pairs = zip(operation.facts.items(), np.exp(logs).tolist(), strict=True)
    return operation.parameters(
        **{name: min(value, facts["ceiling"]) for (name, facts), value in pairs}
    )
