"""All-reduce of the serving frameworks: one shot, two shots, and NCCL for what is large.

In one shot every rank reads all other ranks' buffers; in two, a reduce-scatter and an all-gather
move fewer bytes for a later start. The kernels read other devices' memory, so more than two ranks
that are joined by PCIe use NCCL.

**Source**: vllm, csrc/custom_all_reduce.cuh (one shot below 512 KB for four ranks and 256 KB for
eight) and vllm/distributed/device_communicators/custom_all_reduce.py (8 MB, then NCCL).
"""

from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.communication.collectives import (
    CollectiveCalls,
    CollectiveParameters,
    all_reduce_time,
)
from moebench.predict.communication.paths import paths
from moebench.predict.operations.operation import Operation
from moebench.predict.parameters import parameter
from moebench.spec.hardware import HardwareSpec

SHARPNESS = 6.0
"""Power of the ratio to a limit: releases differ in their limits, and a fit needs a slope."""


@dataclass(frozen=True)
class CustomAllReduceParameters(CollectiveParameters):
    """Parameters of a framework's all-reduce on one device; the others are NCCL's behind it."""

    one_start: float = parameter(4.5e-6, 0.5, "s")
    """Start and barrier of one shot."""
    one_peer: float = parameter(0.1e-6, 0.7, "s")
    """Every further rank at its barrier."""
    one_share: float = parameter(0.5, 0.5, "", ceiling=1.0)
    """Share of the link at which buffers are read."""
    two_start: float = parameter(8.5e-6, 0.5, "s")
    """Start of two shots, with their barrier in between."""
    two_peer: float = parameter(0.3e-6, 0.7, "s")
    two_share: float = parameter(0.55, 0.4, "", ceiling=1.0)
    one_limit: float = parameter(2e6, 0.8, "B")
    """Bytes of all ranks' buffers together up to which one shot is taken; of two ranks always."""
    two_limit: float = parameter(8e6, 0.8, "B")
    """Bytes of a buffer up to which the framework's own kernels are taken."""


def custom_all_reduce_time(
    parameters: CustomAllReduceParameters,
    hardware: HardwareSpec,
    calls: CollectiveCalls,
    warm: bool = False,
) -> Floats:
    """Seconds of a framework's all-reduce until every rank has the sum."""
    p, ways = parameters, paths(hardware, calls.ranks, calls.nodes)
    size, ranks = calls.size, calls.ranks
    peers = ranks - 1
    one = p.one_start + p.one_peer * peers + peers * size / (ways.link * p.one_share)
    moved = 2 * size * peers / ranks
    two = p.two_start + p.two_peer * peers + moved / (ways.link * p.two_share)
    own = _switched(one, two, np.where(ranks > 2, ranks * size / p.one_limit, 0.0))
    nccl = all_reduce_time(p, hardware, calls)
    is_own = (ways.domains == 1) & ((ranks <= 2) | ways.is_direct)
    return np.where(is_own, _switched(own, nccl, size / p.two_limit), nccl)


def _switched(below: Floats, above: Floats, ratio: Floats) -> Floats:
    """Geometric mean whose weight goes from one to the other where the ratio passes 1."""
    weight = 1 / (1 + ratio**SHARPNESS)
    return np.asarray(below**weight * above ** (1 - weight))


CUSTOM_ALL_REDUCE = Operation(
    "custom-all-reduce", CustomAllReduceParameters, custom_all_reduce_time, over_link=True
)
