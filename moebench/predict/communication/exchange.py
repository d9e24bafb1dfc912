"""Exchange of tokens under expert parallelism by DeepEP: its low-latency and its normal kernels.

Low latency, for decode, sends every copy of a token by itself; the normal kernels, for prefill,
send a token once to each rank that holds some of its experts, and over the network once to each
node. Dispatch sends tokens to experts, combine their outputs back.

**Source**: DeepEP, csrc/kernels/internode_ll.cu (as many multiprocessors as the experts need, one
group of warps an expert), intranode.cu and internode.cu (channels over given multiprocessors).
"""

from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats, OverCases
from moebench.predict.communication.paths import distinct_groups, joined, paths
from moebench.predict.operations.operation import Operation
from moebench.predict.parameters import parameter
from moebench.spec.hardware import HardwareSpec

DEFAULT_SMS = 20
"""Multiprocessors that DeepEP gives to its normal kernels where nothing else is set."""
OVERLAP = 1.5
"""Power of the norm of the low-latency kernels, whose parts overlap in part."""
BINDING = 4.0
"""Power of the norm of the normal kernels: long pipelines run at the rate of the slowest part."""
TYPICAL_HIDDEN = 4096.0
"""Hidden size at which the time of a token on a multiprocessor is stated."""
SCALE_SHARE = 1 / 32
"""Bytes of scales beside each byte of float8: one of 4 bytes for 128 values."""


@dataclass(frozen=True)
class ExchangeCalls(OverCases):
    """Dispatches, or combines, of one MoE layer."""

    tokens: Floats
    """Tokens of one rank."""
    hidden: Floats
    experts: Floats
    """Over all ranks."""
    top_k: Floats
    """Mean number of copies of a token; that of an adaptive router need not be whole."""
    ranks: Floats
    nodes: Floats
    """Nodes over which the ranks lie evenly; more are assumed where the link joins fewer ranks."""
    width: Floats
    """Bytes of a value on the way, scales included: 2 for bfloat16 (see `value_bytes`)."""
    sms: Floats
    """Multiprocessors given to the normal kernels; 0: DeepEP's default."""
    load: Floats
    """Copies of the fullest rank over the mean rank's: 1 without skew."""
    is_combine: Floats
    """1 for a combine, 0 for a dispatch."""


def value_bytes(dtype: str) -> float:
    """Bytes of a value on the way with its share of the scales."""
    known = {"fp8": 1 + SCALE_SHARE, "nvfp4": 0.5 + 1 / 16, "fp4": 0.5 + 1 / 16}
    return known.get(dtype.lower(), 2.0)


@dataclass(frozen=True)
class LowLatencyParameters:
    """Parameters of the kernels that send every copy."""

    start: float = parameter(13e-6, 0.6, "s")
    """A call that moves nothing; with a framework around it, the host's work."""
    group: float = parameter(2e-6, 0.8, "s")
    """More for every further group of warps on a multiprocessor, of more experts than those."""
    link_share: float = parameter(0.55, 0.3, "", ceiling=1.0)
    """Share of the link that payload reaches."""
    token: float = parameter(2.5e-6, 0.8, "s")
    """One token after another on a multiprocessor, at a hidden size of 4096."""
    hiding: float = parameter(1.1, 0.3, "")
    """Power of the norm that joins start and work: 1 adds them, more hides one behind the other."""
    network_start: float = parameter(20e-6, 0.5, "s")
    """More where every copy leaves its node."""
    network_share: float = parameter(0.93, 0.15, "", ceiling=1.0)
    """Share of the network that payload reaches."""


def low_latency_time(
    parameters: LowLatencyParameters,
    hardware: HardwareSpec,
    calls: ExchangeCalls,
    warm: bool = False,
) -> Floats:
    """Seconds of a dispatch or combine that sends every copy of a token."""
    p, ways = parameters, paths(hardware, calls.ranks, calls.nodes)
    groups = np.ceil(calls.experts / hardware.num_processors)
    processors = np.ceil(calls.experts / groups)
    # A combine has few tokens for many groups: the last ones wait for nothing.
    waiting = np.where(calls.is_combine > 0, 1 - 1 / groups, groups - 1)
    sent = calls.tokens * calls.top_k * calls.hidden * calls.width * calls.load
    inside = sent * (ways.local - 1) / calls.ranks / (ways.link * p.link_share)
    outside = sent * (1 - 1 / ways.domains) / (ways.network * p.network_share)
    rounds = np.ceil(calls.tokens / processors) - 1
    slow = p.token * (calls.hidden / TYPICAL_HIDDEN) ** 0.25
    start = p.start + p.group * waiting + p.network_start * (1 - 1 / ways.domains)
    work = joined(inside, outside, rounds * slow, power=OVERLAP)
    return joined(start, work, power=p.hiding)


@dataclass(frozen=True)
class NormalParameters:
    """Parameters of the kernels that send a token once to each rank."""

    start: float = parameter(27e-6, 0.6, "s")
    """A call that moves nothing; with a framework around it, the host's work."""
    latency: float = parameter(1e-9, 0.7, "s/B")
    """The first token's way through one warp, for each of its bytes."""
    sm_rate: float = parameter(20e9, 0.25, "B/s")
    """What one multiprocessor copies, of 8 ranks."""
    copy_bytes: float = parameter(1500.0, 0.6, "B")
    """Work of a copy beside its bytes, as bytes."""
    token_copies: float = parameter(1.5, 0.7, "")
    """Work of a token before it is copied, or after, in copies."""
    token_bytes: float = parameter(3000.0, 0.7, "B")
    """Work of a token beside its bytes, as bytes: finding the ranks of its experts."""
    token_hiding: float = parameter(2.0, 0.5, "", ceiling=8.0)
    """Power of the norm that joins the work of tokens and of copies, by different warps: 1 adds."""
    rank_power: float = parameter(0.6, 0.3, "")
    """Power of the number of ranks with which a multiprocessor's rate grows: each has its warps."""
    link_share: float = parameter(0.8, 0.15, "", ceiling=1.0)
    """Share of the link that payload reaches."""
    fill: float = parameter(10e-6, 0.5, "s")
    """Until all channels are full."""
    fill_tokens: float = parameter(150.0, 0.6, "tokens")
    """Tokens with which they are half full."""
    network_start: float = parameter(12e-6, 0.7, "s")
    """For every doubling of the nodes."""
    network_share: float = parameter(0.9, 0.2, "", ceiling=1.0)
    """Share of the network that payload reaches, on a network that is not congested."""
    relay: float = parameter(2.5, 0.4, "")
    """Work of what crosses the network, in copies: multiprocessors at both ends pass it on."""


def normal_time(
    parameters: NormalParameters,
    hardware: HardwareSpec,
    calls: ExchangeCalls,
    warm: bool = False,
) -> Floats:
    """Seconds of a dispatch or combine that sends a token once to each rank and node."""
    p, ways = parameters, paths(hardware, calls.ranks, calls.nodes)
    tokens, ranks = calls.tokens, calls.ranks
    payload = calls.hidden * calls.width
    copies = np.minimum(distinct_groups(ranks, calls.experts, calls.top_k) * calls.load, ranks)
    nodes = distinct_groups(ways.domains, calls.experts, calls.top_k) * calls.load
    leaving = np.minimum(nodes, ways.domains) * (1 - 1 / ways.domains)
    sms = np.where(calls.sms > 0, calls.sms, DEFAULT_SMS)
    rate = sms * p.sm_rate * (np.minimum(ways.local, 8) / 8) ** p.rank_power
    per_token = p.token_copies * payload + p.token_bytes
    per_copy = (copies + p.relay * leaving) * (payload + p.copy_bytes)
    copied = joined(per_copy, per_token, power=p.token_hiding)
    inside = copies * (1 - 1 / ways.local) * payload / (ways.link * p.link_share)
    outside = leaving * payload / (ways.network * p.network_share)
    work = tokens * joined(copied / rate, inside, outside, power=BINDING)
    start = p.start + p.latency * payload + p.network_start * np.log2(ways.domains)
    return np.asarray(start + work + p.fill * tokens / (tokens + p.fill_tokens))


LOW_LATENCY = Operation(
    "low-latency-exchange", LowLatencyParameters, low_latency_time, over_link=True
)
NORMAL = Operation("normal-exchange", NormalParameters, normal_time, over_link=True)
