"""NCCL's collectives: all-reduce, all-gather, reduce-scatter and all-to-all.

NCCL chooses between three protocols (LL, LL128 and Simple, each with a start, a time for every step
and a share of the link) and, for all-reduce, in-switch reduction (NVLink SHARP). Several nodes add
what crosses the network and a start for every doubling of their number.

**Source**: NCCL, src/graph/tuning.cc (protocols, steps of a ring) and src/transport/nvls.cc.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from moebench.predict.arrays import Floats, OverCases
from moebench.predict.communication.paths import Paths, joined, paths
from moebench.predict.operations.operation import Operation
from moebench.predict.parameters import parameter
from moebench.spec.hardware import HardwareSpec

SWITCH_LINK = 450e9
"""B/s of the first NVLink whose switches reduce: NVLink 4, third generation of NVSwitch."""
OVERLAP = 1.5
"""Power of the norm that joins what moves at the same time over different paths."""


@dataclass(frozen=True)
class CollectiveCalls(OverCases):
    """Calls of a collective."""

    size: Floats
    """Bytes that one rank passes, as nccl-tests counts them: the whole send buffer of all-to-all,
    the gathered output of all-gather, the whole input of reduce-scatter."""
    ranks: Floats
    nodes: Floats
    """Nodes over which the ranks lie evenly; more are assumed where the link joins fewer ranks."""


@dataclass(frozen=True)
class CollectiveParameters:
    """Parameters of a collective of NCCL on one device."""

    ll_start: float = parameter(6e-6, 0.5, "s")
    """Start of the LL protocol, which sends a flag with every 4 bytes."""
    ll_step: float = parameter(1e-6, 0.7, "s")
    """Each step of its ring, or each peer of an all-to-all."""
    ll_share: float = parameter(0.05, 0.8, "", ceiling=1.0)
    """Share of the link that its payload reaches."""
    ll128_start: float = parameter(8e-6, 0.5, "s")
    """Start of LL128, which sends a flag with every 120 bytes."""
    ll128_step: float = parameter(1.3e-6, 0.7, "s")
    ll128_share: float = parameter(0.25, 0.6, "", ceiling=1.0)
    simple_start: float = parameter(18e-6, 0.5, "s")
    """Start of the Simple protocol, which waits for whole chunks."""
    simple_step: float = parameter(1.7e-6, 0.7, "s")
    simple_share: float = parameter(0.7, 0.3, "", ceiling=1.0)
    own_share: float = parameter(0.9, 0.6, "")
    """Rate of a rank's own part, and of one peer's, over that of all peers together: with two ranks
    half of the channels copy within the device."""
    host_power: float = parameter(0.35, 0.5, "")
    """Power with which a PCIe link slows as more than two ranks send through the same hosts."""
    switch_start: float = parameter(60e-6, 0.5, "s")
    """Start of an all-reduce inside the switches."""
    switch_share: float = parameter(0.6, 0.3, "", ceiling=1.0)
    """Share of the link that it reaches."""
    network_start: float = parameter(10e-6, 0.5, "s")
    """For every doubling of the nodes."""
    network_share: float = parameter(0.8, 0.2, "", ceiling=1.0)
    """Share of the network's bandwidth that payload reaches."""


def all_reduce_time(
    parameters: CollectiveParameters,
    hardware: HardwareSpec,
    calls: CollectiveCalls,
    warm: bool = False,
) -> Floats:
    """Seconds until every rank has the sum of all ranks' buffers."""
    p, ways = parameters, paths(hardware, calls.ranks, calls.nodes)
    local, size = ways.local, calls.size
    crossing = 2 * size * (local - 1) / local
    network = 2 * size / local * (1 - 1 / ways.domains)
    ring = _ring(p, ways, 2 * (local - 1), (crossing, np.zeros_like(size)), network)
    if ways.link < SWITCH_LINK:
        return ring + _network_start(p, ways)
    # Every rank sends its buffer, and its part of the sum once for all: 1 + 1 / ranks.
    moved = size * (1 + 1 / local) / (ways.link * p.switch_share)
    other = network / (ways.network * p.network_share)
    switched = p.switch_start + joined(moved, other, power=OVERLAP)
    return np.where(local > 2, np.minimum(ring, switched), ring) + _network_start(p, ways)


def half_reduce_time(
    parameters: CollectiveParameters,
    hardware: HardwareSpec,
    calls: CollectiveCalls,
    warm: bool = False,
) -> Floats:
    """Seconds of an all-gather or a reduce-scatter, the two halves of a ring's all-reduce."""
    ways = paths(hardware, calls.ranks, calls.nodes)
    local, size = ways.local, calls.size
    moved = (size * (local - 1) / local, size / local)
    network = size / local * (1 - 1 / ways.domains)
    ring = _ring(parameters, ways, local - 1, moved, network)
    return ring + _network_start(parameters, ways)


def all_to_all_time(
    parameters: CollectiveParameters,
    hardware: HardwareSpec,
    calls: CollectiveCalls,
    warm: bool = False,
) -> Floats:
    """Seconds until every rank has a part of every other rank's buffer."""
    ways = paths(hardware, calls.ranks, calls.nodes)
    size, ranks = calls.size, calls.ranks
    moved = (size * (ways.local - 1) / ranks, size / ranks)
    network = size * (ranks - ways.local) / ranks
    times = _ring(parameters, ways, ranks - 1, moved, network)
    return times + _network_start(parameters, ways)


def _ring(
    p: CollectiveParameters,
    ways: Paths,
    steps: Floats,
    moved: tuple[Floats, Floats],
    network: Floats,
) -> Floats:
    """Seconds of the fastest protocol; `moved` crosses the link, and is a rank's own part."""
    crossing, own = moved
    crowd = 1.0 if ways.is_direct else (2 / np.maximum(ways.local, 2)) ** p.host_power
    outside = network / (ways.network * p.network_share)
    times = []
    for start, step, share in (
        (p.ll_start, p.ll_step, p.ll_share),
        (p.ll128_start, p.ll128_step, p.ll128_share),
        (p.simple_start, p.simple_step, p.simple_share),
    ):
        rate = ways.link * share * crowd
        work = joined(crossing / rate, own / (rate * p.own_share), outside, power=OVERLAP)
        times.append(start + steps * step + work)
    return np.asarray(np.min(times, axis=0))


def _network_start(p: CollectiveParameters, ways: Paths) -> Floats:
    return np.asarray(p.network_start * np.log2(ways.domains))


_nccl = partial(Operation, parameters=CollectiveParameters, over_link=True)
ALL_REDUCE = _nccl("all-reduce", time=all_reduce_time)
ALL_GATHER = _nccl("all-gather", time=half_reduce_time)
REDUCE_SCATTER = _nccl("reduce-scatter", time=half_reduce_time)
ALL_TO_ALL = _nccl("all-to-all", time=all_to_all_time)
