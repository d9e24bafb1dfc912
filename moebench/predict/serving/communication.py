"""Price of communication between the devices of one node: all-reduce and all-to-all.

The price is a latency for every step of a ring and the bytes that cross one device's link, as NCCL
estimates them to choose between its protocols. Frameworks have faster paths for small messages
(one-shot all-reduce, DeepEP), so the interval is wide.

**Source**: NCCL, src/graph/tuning.cc (base and per-step latencies of the ring, LL and Simple) and
src/graph/topo.h (20.0 to 20.6 GB/s of a link's 25 GB/s).
"""

from typing import NamedTuple

import numpy as np

from moebench.predict.arrays import Floats
from moebench.spec.hardware import HardwareSpec, Interconnect
from moebench.units import Seconds

LINK_SHARE = 0.8
"""Share of a link's raw bandwidth that payload reaches."""
UNCERTAINTY = 2.0
"""Factor by which communication may take more or less time than predicted; an assumption."""


class Protocol(NamedTuple):
    """Protocol of NCCL: seconds, and the share of the bandwidth that is left to payload."""

    base: Seconds
    step: tuple[Seconds, Seconds]
    """Time of a ring step over NVLink, and over PCIe."""
    share: float


PROTOCOLS = (
    Protocol(base=6.6e-6, step=(0.6e-6, 1.0e-6), share=0.5),  # LL: a flag with each datum
    Protocol(base=8.4e-6, step=(3.4e-6, 5.7e-6), share=1.0),  # Simple
)


def link(hardware: HardwareSpec, num_devices: int) -> Interconnect | None:
    """The link that joins the devices; None for a single one, refused where none is known."""
    if num_devices == 1:
        return None
    wire, name = hardware.interconnect, hardware.name
    if wire is None:
        raise ValueError(
            f"{name}: no interconnect is known, so {num_devices} devices cannot be priced"
        )
    if num_devices > wire.devices:
        raise ValueError(
            f"{name}: found {num_devices} devices (--tp times --ep), expected at most "
            f"{wire.devices}: no link between more is known ({wire.name})"
        )
    return wire


def all_reduce(hardware: HardwareSpec, num_devices: int, payload: Floats) -> Floats:
    """Seconds of a ring all-reduce: every device gets the sum of all devices' `payload` bytes."""
    steps = 2 * (num_devices - 1)
    return _exchange(hardware, num_devices, steps, steps / num_devices * payload)


def all_to_all(hardware: HardwareSpec, num_devices: int, crossing: Floats) -> Floats:
    """Seconds of an all-to-all that moves `crossing` bytes through the busiest device's link."""
    return _exchange(hardware, num_devices, 1, crossing)


def _exchange(hardware: HardwareSpec, num_devices: int, steps: int, crossing: Floats) -> Floats:
    """Seconds of a collective of some ring steps in its fastest protocol; 0 for one device."""
    wire = link(hardware, num_devices)
    if wire is None:
        return np.zeros_like(crossing)
    column, bandwidth = 0 if "nvlink" in wire.name.lower() else 1, LINK_SHARE * wire.bandwidth
    times = [p.base + steps * p.step[column] + crossing / (bandwidth * p.share) for p in PROTOCOLS]
    return np.asarray(np.min(times, axis=0))
