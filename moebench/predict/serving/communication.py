"""Price of communication between the devices of one node: all-reduce and all-to-all.

The price is a latency for every step of a ring and the bytes that cross one device's link, as NCCL
estimates them to choose between its protocols. Frameworks have faster paths for small messages
(one-shot all-reduce, DeepEP), so the interval is wide.

**Source**: NCCL, src/graph/tuning.cc (base and per-step latencies of the ring, LL and Simple) and
src/graph/topo.h (20.0 to 20.6 GB/s of a link's 25 GB/s).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moebench.predict.arrays import Floats, OverCases
from moebench.predict.serving.parallelism import Exchange
from moebench.spec.hardware import HardwareSpec
from moebench.units import Seconds

LINK_SHARE = 0.8
"""Share of a link's raw bandwidth that payload reaches."""
BYTES = 2
"""Bytes of an activation, in bfloat16."""
SCALE_BYTES = 4 / 128
"""Bytes of scale for each fp8 activation: a float32 for 128 of them (DeepEP)."""
NETWORK_BANDWIDTH = 50e9
"""Bytes a second and GPU between nodes: 400 Gb/s InfiniBand, as in NVIDIA's DGX H100."""
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


@dataclass(frozen=True)
class ExchangeCalls(OverCases):
    """Dispatch and combine of expert parallelism in one layer; arrays over cases."""

    kind: Exchange
    ranks: int
    nodes: int
    hidden_size: int
    dispatch_dtype: str
    """Type of the activations on their way to the experts; they come back in bfloat16."""
    tokens: Floats
    """Tokens of one rank."""
    rows: Floats
    """Tokens that need one of the most loaded rank's experts at least, its own included."""
    copies: Floats
    """Assignments to the most loaded rank's experts, its own tokens' included."""


def all_reduce(hardware: HardwareSpec, num_devices: int, payload: Floats, nodes: int = 1) -> Floats:
    """Seconds of a ring all-reduce: every device gets the sum of all devices' `payload` bytes."""
    steps = 2 * (num_devices - 1)
    return _collective(hardware, num_devices, steps, steps / num_devices * payload, nodes)


def all_to_all(
    hardware: HardwareSpec, num_devices: int, crossing: Floats, nodes: int = 1
) -> Floats:
    """Seconds of an all-to-all that moves `crossing` bytes through the busiest device's link."""
    return _collective(hardware, num_devices, 1, crossing, nodes)


def exchange(hardware: HardwareSpec, calls: ExchangeCalls) -> Floats:
    """Seconds of dispatch and combine together."""
    n, size = calls.ranks, float(calls.hidden_size * BYTES)
    if calls.kind == "allgather":
        crossing = calls.tokens * (n - 1) * size
        return 2 * _collective(hardware, n, n - 1, crossing, calls.nodes)
    if calls.kind == "deepep-ll":
        narrow = calls.hidden_size * (1 + SCALE_BYTES)
        there = narrow if calls.dispatch_dtype == "float8" else size
        crossing = calls.copies * (1 - 1 / n)
        times = (all_to_all(hardware, n, crossing * each, calls.nodes) for each in (there, size))
        return np.asarray(sum(times))
    crossing = calls.rows * (1 - 1 / n) * size
    return 2 * all_to_all(hardware, n, crossing, calls.nodes)


def send(hardware: HardwareSpec, payload: Floats, nodes: int = 1) -> Floats:
    """Seconds in which one device sends its bytes to another, the next stage of a pipeline."""
    return _collective(hardware, 2, 1, payload, nodes)


def _collective(
    hardware: HardwareSpec, num_devices: int, steps: int, crossing: Floats, nodes: int
) -> Floats:
    """Seconds of a collective of some ring steps in its fastest protocol; 0 for one device."""
    wire = hardware.interconnect
    if num_devices == 1 or wire is None:
        return np.zeros_like(crossing)
    column, bandwidth = 0 if "nvlink" in wire.name.lower() else 1, LINK_SHARE * wire.bandwidth
    if nodes > 1:
        column, bandwidth = 1, LINK_SHARE * NETWORK_BANDWIDTH
    times = [p.base + steps * p.step[column] + crossing / (bandwidth * p.share) for p in PROTOCOLS]
    return np.asarray(np.min(times, axis=0))
