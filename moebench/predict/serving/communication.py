"""Price of communication between the devices of one node: all-reduce and all-to-all.

The price is a latency for every step of a ring and the bytes that cross one device's link, as NCCL
estimates them to choose between its protocols. Frameworks have faster paths for small messages
(one-shot all-reduce, DeepEP), so the interval is wide.

**Source**: NCCL, src/graph/tuning.cc (base and per-step latencies of the ring, LL and Simple) and
src/graph/topo.h (20.0 to 20.6 GB/s of a link's 25 GB/s).
"""

from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats
from moebench.spec.hardware import HardwareSpec, Interconnect

LINK_SHARE = 0.8
"""Share of a link's raw bandwidth that payload reaches."""
UNCERTAINTY = 2.0
"""Factor by which communication may take more or less time than predicted; an assumption."""


@dataclass(frozen=True)
class Protocol:
    """Protocol of NCCL: seconds, and the share of the bandwidth that is left to payload."""

    base: float
    nvlink_step: float
    pcie_step: float
    share: float


PROTOCOLS = (
    Protocol(base=6.6e-6, nvlink_step=0.6e-6, pcie_step=1.0e-6, share=0.5),  # LL: flag with data
    Protocol(base=8.4e-6, nvlink_step=3.4e-6, pcie_step=5.7e-6, share=1.0),  # Simple
)


def link(hardware: HardwareSpec, num_devices: int) -> Interconnect | None:
    """The link that joins the devices; None for a single one.

    Raises:
        ValueError: no interconnect is known, or it does not join so many.
    """
    if num_devices == 1:
        return None
    found = hardware.interconnect
    if found is None:
        raise ValueError(
            f"{hardware.name}: no interconnect is known, so {num_devices} devices cannot be priced"
        )
    if num_devices > found.devices:
        raise ValueError(
            f"{hardware.name}: found {num_devices} devices (--tp times --ep), expected at most "
            f"{found.devices}: no link between more is known ({found.name})"
        )
    return found


def all_reduce(hardware: HardwareSpec, num_devices: int, payload: Floats) -> Floats:
    """Seconds of a ring all-reduce: every device gets the sum of all devices' `payload` bytes."""
    steps = 2 * (num_devices - 1)
    return _exchange(hardware, num_devices, steps, steps / num_devices * payload)


def all_to_all(hardware: HardwareSpec, num_devices: int, crossing: Floats) -> Floats:
    """Seconds of an all-to-all that moves `crossing` bytes through the busiest device's link."""
    return _exchange(hardware, num_devices, 1, crossing)


def _exchange(hardware: HardwareSpec, num_devices: int, steps: int, crossing: Floats) -> Floats:
    """Seconds of the fastest protocol; 0 for a single device."""
    wire = link(hardware, num_devices)
    if wire is None:
        return np.zeros_like(crossing)
    is_nvlink = "nvlink" in wire.name.lower()
    times = [
        p.base
        + steps * (p.nvlink_step if is_nvlink else p.pcie_step)
        + crossing / (wire.bandwidth * LINK_SHARE * p.share)
        for p in PROTOCOLS
    ]
    return np.asarray(np.min(times, axis=0))
