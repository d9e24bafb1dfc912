"""Which links join some ranks, and how many ranks or nodes a token visits."""

from typing import NamedTuple

import numpy as np

from moebench.predict.arrays import Floats
from moebench.spec.hardware import HardwareSpec, Interconnect

ASSUMED_LINK = Interconnect("PCIe 4 x16", 32e9)
"""Link of a machine whose file names none: its slot; an assumption."""
ASSUMED_NETWORK = 12.5e9
"""B/s that one device sends to other nodes where the machine's file names no network: 100 Gb/s
Ethernet; an assumption."""


class Paths(NamedTuple):
    """What joins the ranks of each case."""

    link: float
    """B/s between devices of one domain, one way."""
    network: float
    """B/s from one device to other domains."""
    domains: Floats
    """Groups of ranks that the link joins: nodes, or racks."""
    local: Floats
    """Ranks in a domain."""
    is_direct: bool
    """Whether every device of a domain reads every other's memory: not so over PCIe."""


def paths(hardware: HardwareSpec, ranks: Floats, nodes: Floats) -> Paths:
    """Links of ranks on some nodes; nodes that the link joins are one domain."""
    wire = hardware.interconnect or ASSUMED_LINK
    network = hardware.network.bandwidth if hardware.network else ASSUMED_NETWORK
    needed = np.ceil(ranks / wire.devices)
    domains = np.where(ranks <= wire.devices, 1.0, np.maximum(nodes, needed))
    is_direct = "pcie" not in wire.name.lower()
    return Paths(wire.bandwidth, network, domains, ranks / domains, is_direct)


def distinct_groups(groups: Floats, experts: Floats, top_k: Floats) -> Floats:
    """Mean number of groups of experts that a token's `top_k` different experts lie in.

    groups (1 - C(experts - size, k) / C(experts, k)), experts chosen evenly and each group holding
    size = experts / groups. A `top_k` between two counts is a mixture of both.
    """
    size = experts / groups
    missed = np.ones(np.broadcast(groups, experts, top_k).shape)
    for chosen in range(int(np.ceil(np.max(top_k, initial=0.0)))):
        share = np.minimum(size / np.maximum(experts - chosen, 1.0), 1.0)
        missed = missed * (1 - share * np.clip(top_k - chosen, 0.0, 1.0))
    return np.asarray(groups * (1 - missed))


def joined(*times: Floats, power: float) -> Floats:
    """Seconds of work that overlaps in part: a power norm, 1 for none and infinite for all."""
    powers = [np.asarray(time) ** power for time in times]
    return np.asarray(np.sum(powers, axis=0) ** (1 / power))
