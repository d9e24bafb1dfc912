"""TensorRT-LLM's exchange of tokens inside one NVLink domain, up to a rack.

Every rank writes its tokens into other ranks' memory, a token once to each rank that holds some of
its experts. A call of `prepare` exchanges counts before; a low-precision combine quantises first.
"""

from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.communication.exchange import ExchangeCalls
from moebench.predict.communication.paths import distinct_groups, joined, paths
from moebench.predict.operations.operation import Operation
from moebench.predict.parameters import parameter
from moebench.spec.hardware import HardwareSpec


@dataclass(frozen=True)
class NvlinkParameters:
    """Parameters of one phase of the exchange on one device."""

    start: float = parameter(12e-6, 0.4, "s")
    """A call between two ranks that moves nothing."""
    doubling: float = parameter(1.2e-6, 0.8, "s")
    """More for every doubling of the ranks."""
    link_share: float = parameter(0.6, 0.4, "", ceiling=1.0)
    """Share of the link that payload reaches."""
    own_share: float = parameter(0.5, 0.6, "")
    """Rate of what one rank is sent, itself included, over that of all ranks together."""
    copy_bytes: float = parameter(1000.0, 1.0, "B")
    """Work of a copy beside its bytes, as bytes."""
    token: float = parameter(8e-9, 1.0, "s")
    """Work of a token before it is sent, or after."""
    network_start: float = parameter(15e-6, 0.5, "s")
    """For every doubling of the domains."""
    network_share: float = parameter(0.8, 0.2, "", ceiling=1.0)
    """Share of the network that payload reaches."""


def nvlink_time(
    parameters: NvlinkParameters,
    hardware: HardwareSpec,
    calls: ExchangeCalls,
    warm: bool = False,
) -> Floats:
    """Seconds of one phase; a `prepare` has a width of 0 and moves no payload."""
    p, ways = parameters, paths(hardware, calls.ranks, calls.nodes)
    ranks = calls.ranks
    copies = np.minimum(distinct_groups(ranks, calls.experts, calls.top_k) * calls.load, ranks)
    payload = calls.hidden * calls.width
    moved = np.where(payload > 0, payload + p.copy_bytes, 0.0)
    rate = ways.link * p.link_share
    inside = copies * (1 - 1 / ways.local) * moved / rate
    own = copies / ranks * moved / (rate * p.own_share)
    outside = copies * (1 - 1 / ways.domains) * payload / (ways.network * p.network_share)
    start = p.start + p.doubling * np.log2(np.maximum(ranks / 2, 1))
    start = start + p.network_start * np.log2(ways.domains)
    work = joined(inside, own, outside, power=2.0) + p.token
    return np.asarray(start + calls.tokens * work)


NVLINK = Operation("nvlink-exchange", NvlinkParameters, nvlink_time, over_link=True)
