"""Prices of the kernels that a deployment runs: the routed experts' and the dense library's."""

from dataclasses import dataclass

from moebench.predict.kernels.dense import shipped_dense
from moebench.predict.kernels.price import Calibrated, calibrated, default_kernel, kernel_named
from moebench.predict.serving.dense import Library, library_for
from moebench.predict.serving.deployment import Deployment


@dataclass(frozen=True)
class KernelPrices:
    """Parameters that price a deployment's kernels, and what they rest on."""

    name: str
    """Short name of the expert kernel: "vllm-triton"."""
    experts: Calibrated
    dense: Library


def kernel_prices(deployment: Deployment) -> KernelPrices:
    """Parameters of the deployment's kernels on its device.

    Raises:
        ValueError: an unknown kernel.
    """
    d = deployment
    name = d.kernel or default_kernel(d.hardware)
    experts = calibrated(
        kernel_named(name, d.model.expert_matrices, d.dtype),
        d.hardware,
        dense_here=shipped_dense().get(d.hardware.name),
    )
    return KernelPrices(name, experts, library_for(d.hardware))
