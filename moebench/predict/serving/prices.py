"""Prices of the kernels that a deployment runs: routed experts, dense matmuls, small kernels.

Weights come from DRAM: since the last step the whole model was read. Dense matmuls have fitted
parameters for the devices of data/kernels/dense.toml; other devices take those of the nearest
relative, which are shares of the datasheet's peak and bandwidth.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.kernels.dense import (
    DenseParameters,
    MatmulShapes,
    dense_parameters,
    dense_time,
    shipped_dense,
)
from moebench.predict.kernels.price import Calibrated, calibrated, kernel_named
from moebench.predict.kernels.weights import MEASURED, nearest_measured
from moebench.predict.serving.choices import kernel_of
from moebench.predict.serving.deployment import Deployment
from moebench.spec.hardware import HardwareSpec
from moebench.spec.ops import Op

DENSE_UNCERTAINTY = 1.25
"""Factor for dense matmuls on a fitted device, whose mean errors are 7 to 11 %: 90 % of normal
errors lie within 2.06 times the mean absolute one."""
RELATIVE_UNCERTAINTY = 1.4
"""Factor for dense matmuls on a device, or of a type of weights, that took a relative's
parameters."""


@dataclass(frozen=True)
class Library:
    """Dense kernels on one device."""

    hardware: HardwareSpec
    parameters: DenseParameters
    origin: str
    """Devices whose parameters these are, in words."""
    uncertainty: float
    """Factor by which dense matmuls may take more or less time than predicted."""


@dataclass(frozen=True)
class KernelPrices:
    """Parameters that price a deployment's kernels, and what they rest on."""

    name: str
    """Short name of the expert kernel: "vllm-triton"; empty for a dense model."""
    experts: Calibrated | None
    """Prices of the routed experts; None for a dense model."""
    dense: Library

    @property
    def description(self) -> str:
        """What the prices rest on, in words: the experts' where there are some."""
        return self.dense.origin if self.experts is None else self.experts.description


def kernel_prices(deployment: Deployment) -> KernelPrices:
    """Parameters of the deployment's kernels on its device; an unknown kernel is refused.

    Dense parameters are the device's own or its relatives': see `dense_parameters`.
    """
    d, hardware, known = deployment, deployment.hardware, shipped_dense()
    own = known.get(hardware.name)
    name, experts = ("", None) if d.is_dense else expert_prices(d)
    if own is not None:
        origin = f"dense matmuls of {hardware.name}"
        factor = DENSE_UNCERTAINTY if d.other_weights in MEASURED else RELATIVE_UNCERTAINTY
        return KernelPrices(name, experts, Library(hardware, own, origin, factor))
    mean, relatives = dense_parameters(hardware, known)
    origin = f"dense matmuls of {', '.join(relatives)}, as shares of the datasheet"
    return KernelPrices(name, experts, Library(hardware, mean, origin, RELATIVE_UNCERTAINTY))


def expert_prices(deployment: Deployment) -> tuple[str, Calibrated]:
    """Short name of the deployment's expert kernel, and its calibration."""
    d, hardware, name = deployment, deployment.hardware, kernel_of(deployment)
    dense_here = shipped_dense().get(hardware.name)
    kernel_type = nearest_measured(d.expert_weights, hardware)
    kernel = kernel_named(name, d.model.expert_matrices, kernel_type)
    if hardware.gpu_maker not in (None, "NVIDIA") and kernel.family != "triton":
        raise ValueError(
            f"--kernel: found {name!r}, which runs on NVIDIA GPUs alone; expected vllm-triton or "
            f"sglang-triton on {hardware.name}, a GPU of {hardware.gpu_maker}"
        )
    experts = calibrated(kernel, hardware, dense_here=dense_here)
    if d.expert_weights not in MEASURED:
        experts = dataclasses.replace(experts, weights=d.expert_weights)
    return name, experts


@dataclass(frozen=True)
class OpsPrice:
    """Price of some ops, one kernel of a replayed graph each; arrays over numbers of tokens."""

    seconds: Floats
    flops: Floats
    bytes_moved: Floats


def ops_price(library: Library, ops: Callable[[int], Sequence[Op]], tokens: Floats) -> OpsPrice:
    """Price of the ops of so many tokens, all of whose figures are linear in the tokens.

    A matrix product is priced with its tiles; anything else starts once and moves its bytes.
    """
    hardware, p = library.hardware, library.parameters
    stream = hardware.memory_bandwidth * p.bandwidth
    seconds, flops, moved = np.zeros((3, len(tokens)))
    for one, two in zip(ops(1), ops(2), strict=True):
        flops = flops + one.flops + (tokens - 1) * (two.flops - one.flops)
        each = one.bytes_moved + (tokens - 1) * (two.bytes_moved - one.bytes_moved)
        moved = moved + each
        if one.rows is None or one.n is None or one.k is None:
            seconds = seconds + p.launch + each / stream
            continue
        sizes = (one.rows * tokens, np.full(len(tokens), one.n), np.full(len(tokens), one.k))
        seconds = seconds + dense_time(p, hardware, MatmulShapes(*sizes), one.dtype, warm=False)
    return OpsPrice(seconds, flops, moved)
