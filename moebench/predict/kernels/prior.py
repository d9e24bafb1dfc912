"""Priors of a kernel's parameters on a device, before any row of it is fitted.

Kernels of one family share their matmul code, so what is known of one on one device says much
about the others: their weighted mean and spread are a log-normal prior of every parameter.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from moebench.predict.kernels.catalogue import Kernel, KernelFit, mma_generation
from moebench.predict.kernels.parameters import METADATA, PARAMETERS, Parameters
from moebench.spec.hardware import HardwareSpec

STRANGER_WEIGHT = 0.02
"""Weight of a fit of another family in a kernel's own parameters, of one of the same being 1."""
FRAMEWORK_STRANGER_WEIGHT = 0.2
"""Weight of a fit of another family in the overheads of the framework."""
FLOOR_SPREAD = 0.2
"""Least spread of a prior, as far as the parameter's own generic spread is not smaller."""
SAME_GENERATION = 3.0
"""Weight of a fit whose device feeds its tensor cores by the same instruction."""
SAME_CAPABILITY = 10.0
"""Weight of a fit on a device of the same compute capability: the multiprocessors are equal."""
SAME_KERNEL = 3.0
"""Weight of a fit of this very kernel, on any device."""
SAME_CODE = 10.0
"""Further weight of this very kernel on the same compute capability.

The same instructions run on the same multiprocessors, so what differs is in the spec sheet. Dense
matmuls say so too: the shares of peak and bandwidth that H100 and H200 reach differ by less than
0.5 %.
"""
CLOCK_EXPONENT = -1.0
"""Overheads are chains of instructions: they take as many clocks on one device as on another."""


@dataclass(frozen=True)
class Prior:
    """Independent log-normal priors of a kernel's parameters."""

    mean: Mapping[str, float]
    """Means of the logarithms, SI units."""
    spread: Mapping[str, float]
    """Standard deviations of the logarithms."""

    @property
    def parameters(self) -> Parameters:
        """The median of the prior."""
        return Parameters(
            **{n: min(math.exp(self.mean[n]), METADATA[n]["ceiling"]) for n in PARAMETERS}
        )


def generic_prior() -> Prior:
    """The prior of any kernel on any GPU, before anything was measured."""
    return Prior(
        {name: math.log(METADATA[name]["typical"]) for name in PARAMETERS},
        {name: METADATA[name]["spread"] for name in PARAMETERS},
    )


def prior_for(
    kernel: Kernel,
    hardware: HardwareSpec,
    fits: Iterable[KernelFit],
    machines: Mapping[str, HardwareSpec],
    dense_shift: Mapping[str, Mapping[str, float]] | None = None,
) -> Prior:
    """Weighted mean and spread of what other fits found, carried over to this device.

    Args:
        kernel: what is asked for.
        hardware: the device.
        fits: of any kernels on any devices; near ones weigh more.
        machines: spec sheets of the fits' systems.
        dense_shift: for each system, the logarithms of parameters on this device over those
            on that system, as its dense matmuls tell them.
    """
    found = list(fits)
    if not found:
        return generic_prior()
    own = mma_generation(hardware)
    clock = hardware.clock or 1.0
    mean, spread = {}, {}
    for name in PARAMETERS:
        meta = METADATA[name]
        is_framework = meta.get("scope") == "framework"
        weights, spread_weights, values = [], [], []
        for fit in found:
            machine = machines[fit.system]
            value = math.log(getattr(fit.parameters, name))
            if meta.get("paced"):
                value += CLOCK_EXPONENT * math.log(clock / (machine.clock or clock))
            if dense_shift:
                value += dense_shift.get(fit.system, {}).get(name, 0.0)
            values.append(value)
            is_equal = machine.compute_capability == hardware.compute_capability
            weight = _nearness(kernel, fit.kernel, is_framework)
            if not is_framework and mma_generation(machine) == own:
                weight *= SAME_GENERATION
            if fit.kernel == kernel:
                weight *= SAME_KERNEL * (SAME_CODE if is_equal else 1)
            spread_weights.append(weight)
            if not is_framework and is_equal:
                weight *= SAME_CAPABILITY
            weights.append(weight)
        w, around = (np.array(each) / np.sum(each) for each in (weights, spread_weights))
        mean[name] = float(w @ np.array(values))
        # How much kernels differ is not known better because one device's weigh more.
        variance = float(around @ (np.array(values) - mean[name]) ** 2)
        floor = min(0.5 * meta["spread"], FLOOR_SPREAD)
        spread[name] = math.sqrt(variance + floor**2)
    return Prior(mean, spread)


def _nearness(one: Kernel, other: Kernel, is_framework: bool) -> float:
    """How much a fit of `other` says about `one`."""
    same_family = one.family == other.family
    same_framework = one.generation == other.generation
    nearness = 3.0 if one.dtype == other.dtype else 1.0
    if is_framework:
        nearness *= 1.0 if same_family else FRAMEWORK_STRANGER_WEIGHT
        return (
            nearness * (6 if same_framework else 1) * (2 if one.matrices == other.matrices else 1)
        )
    nearness *= 1.0 if same_family else STRANGER_WEIGHT
    nearness *= 2 if same_family and same_framework else 1
    return nearness * (1.5 if one.matrices == other.matrices else 1)
