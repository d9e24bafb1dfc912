"""Priors of a kernel's parameters on a device, before any row of it is fitted.

Kernels of one family share their matmul code, so what is known of one on one device says much
about the others: their weighted mean and spread are a log-normal prior of every parameter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moebench.predict.kernels.catalogue import Kernel, KernelFit, mma_generation
from moebench.predict.kernels.dense import DenseParameters, shift
from moebench.predict.kernels.parameters import METADATA, PARAMETERS, Parameters
from moebench.spec.hardware import HardwareSpec, load_hardware

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
"""Further weight of this very kernel on the same compute capability: the same instructions on the
same multiprocessors differ by the spec sheet alone. Dense matmuls say so too: the shares of peak
and bandwidth that H100 and H200 reach differ by less than 0.5 %."""


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
    spread = {name: METADATA[name]["spread"] for name in PARAMETERS}
    return Prior({name: math.log(METADATA[name]["typical"]) for name in PARAMETERS}, spread)


def prior_for(
    kernel: Kernel,
    hardware: HardwareSpec,
    fits: Sequence[KernelFit],
    dense_here: DenseParameters | None = None,
    dense: Mapping[str, DenseParameters] | None = None,
) -> Prior:
    """Weighted mean and spread of fits of any kernels on any devices, carried over to this one.

    `dense_here`, a fit of this device's dense matmuls, says what share of its tensor peak and
    bandwidth it reaches; it is compared with `dense`, the fits of other devices.
    """
    if not fits:
        return generic_prior()
    machines = {system: load_hardware(system) for system in {fit.system for fit in fits}}
    shifts = {}
    if dense_here is not None:
        shifts = {name: shift(dense_here, there) for name, there in (dense or {}).items()}
    clock = hardware.clock or 1.0
    mean, spread = {}, {}
    for name in PARAMETERS:
        meta = METADATA[name]
        is_framework = meta.get("scope") == "framework"
        weights, spread_weights, values = [], [], []
        for fit in fits:
            machine = machines[fit.system]
            value = math.log(getattr(fit.parameters, name))
            if meta.get("paced"):  # as many clocks on one device as on another
                value -= math.log(clock / (machine.clock or clock))
            values.append(value + shifts.get(fit.system, {}).get(name, 0.0))
            is_equal = hardware.is_built_like(machine)
            weight = _nearness(kernel, fit.kernel, is_framework)
            if not is_framework and mma_generation(machine) == mma_generation(hardware):
                weight *= SAME_GENERATION
            if fit.kernel == kernel:
                weight *= SAME_KERNEL * (SAME_CODE if is_equal else 1)
            spread_weights.append(weight)
            weights.append(weight * (SAME_CAPABILITY if is_equal and not is_framework else 1))
        w, around = (np.array(each) / np.sum(each) for each in (weights, spread_weights))
        mean[name] = float(w @ np.array(values))
        # How much kernels differ is not known better because one device's weigh more.
        variance = float(around @ (np.array(values) - mean[name]) ** 2)
        floor = min(0.5 * meta["spread"], FLOOR_SPREAD)
        spread[name] = math.sqrt(variance + floor**2)
    return Prior(mean, spread)


def _nearness(one: Kernel, other: Kernel, is_framework: bool) -> float:
    """Weight of what a fit of `other` says about `one`."""
    is_family = one.family == other.family
    stranger, framework, matrices = STRANGER_WEIGHT, 2.0 if is_family else 1.0, 1.5
    if is_framework:
        stranger, framework, matrices = FRAMEWORK_STRANGER_WEIGHT, 6.0, 2.0
    nearness = 3.0 if one.dtype == other.dtype else 1.0
    nearness *= 1.0 if is_family else stranger
    nearness *= framework if one.generation == other.generation else 1.0
    return nearness * (matrices if one.matrices == other.matrices else 1.0)
