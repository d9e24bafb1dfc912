"""Communication of a step: all-reduce, exchange of tokens between experts, pipeline transfers.

Prices are those of fitted operations. DeepEP is priced as its kernels alone take, whatever the
engine: in a replayed graph no host stands between them.
"""

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.communication.collectives import (
    ALL_GATHER,
    REDUCE_SCATTER,
    CollectiveCalls,
)
from moebench.predict.communication.custom import CUSTOM_ALL_REDUCE
from moebench.predict.communication.exchange import (
    LOW_LATENCY,
    NORMAL,
    ExchangeCalls,
    value_bytes,
)
from moebench.predict.communication.nvlink import NVLINK
from moebench.predict.communication.paths import ASSUMED_LINK, ASSUMED_NETWORK
from moebench.predict.serving.choices import engine_of
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.experts import Exchanged
from moebench.predict.serving.operations import Release, Span, nothing, operation_of, span_of

BYTES = 2
"""Bytes of an activation, in bfloat16."""
DEEPEP = Release("sglang")
"""Whose rows of DeepEP are the kernels alone."""
TRANSFER_START = 1e-5
"""Seconds of a transfer between pipeline stages before its first byte: NCCL's send and receive in
its LL protocol; an assumption."""
TRANSFER_SHARE = 0.8
"""Share of the link that such a transfer reaches; an assumption."""
TRANSFER_UNCERTAINTY = 2.0
"""Factor either way; nothing like it was measured."""


def all_reduce_time(deployment: Deployment, ranks: int, tokens: Floats) -> Span:
    """Seconds in which ranks of one replica add up the hidden states of their tokens."""
    d = deployment
    if ranks == 1:
        return nothing(len(tokens))
    operation = operation_of(CUSTOM_ALL_REDUCE, Release(*engine_of(d)), "", d.hardware)
    return span_of(operation, _collective(d, ranks, tokens))


def exchange_time(deployment: Deployment, exchanged: Exchanged) -> Span:
    """Seconds of one layer's dispatch and combine."""
    d, kind = deployment, exchanged.kind
    if kind == "allgather":
        calls = _collective(d, d.parallel.exchange_ranks, exchanged.tokens)
        nccl = (
            operation_of(one, Release("nccl"), "", d.hardware)
            for one in (ALL_GATHER, REDUCE_SCATTER)
        )
        gather, scatter = (span_of(one, calls) for one in nccl)
        return gather.and_then(scatter)
    if kind == "nvlink":
        operation, release, variant = NVLINK, Release("trtllm"), "NVLinkOneSided"
    elif kind == "deepep-ll":
        operation, release, variant = LOW_LATENCY, DEEPEP, "deepep_ll"
    else:
        operation, release, variant = NORMAL, DEEPEP, "deepep_normal"
    narrow = d.expert_weights == "float8"
    dispatch, combine = (
        span_of(
            operation_of(operation, release, f"{variant} {phase}", d.hardware),
            _exchange_calls(d, exchanged, dtype, phase == "combine"),
        )
        for phase, dtype in (("dispatch", "fp8" if narrow else "bf16"), ("combine", "bf16"))
    )
    return dispatch.and_then(combine)


def pipeline_time(deployment: Deployment, tokens: Floats) -> Span:
    """Seconds in which hidden states pass from each stage of a pipeline to the next."""
    d, p = deployment, deployment.parallel
    wire = d.hardware.interconnect or ASSUMED_LINK
    bandwidth = wire.bandwidth
    if p.nodes_on(d.hardware) > 1:
        bandwidth = d.hardware.network.bandwidth if d.hardware.network else ASSUMED_NETWORK
    payload = tokens * d.model.hidden_size * BYTES
    each = TRANSFER_START + payload / (TRANSFER_SHARE * bandwidth)
    seconds = (p.pipeline_parallel - 1) * each
    return Span(seconds, seconds / TRANSFER_UNCERTAINTY, seconds * TRANSFER_UNCERTAINTY)


def _collective(d: Deployment, ranks: int, tokens: Floats) -> CollectiveCalls:
    """A collective whose whole buffer holds the hidden states of some tokens."""
    size = np.maximum(tokens * d.model.hidden_size * BYTES, 1.0)
    nodes = d.parallel.nodes_of(ranks, d.hardware)
    return CollectiveCalls(size, np.full(len(size), float(ranks)), np.full(len(size), float(nodes)))


def _exchange_calls(
    d: Deployment, exchanged: Exchanged, dtype: str, is_combine: bool
) -> ExchangeCalls:
    p, tokens = d.parallel, exchanged.tokens
    shared = {
        "hidden": float(d.model.hidden_size),
        "experts": float(d.model.num_experts + p.redundant_experts),
        "top_k": exchanged.mean_k,
        "ranks": float(p.exchange_ranks),
        "nodes": float(p.nodes_of(p.stage_devices, d.hardware)),
        "width": value_bytes(dtype),
        "sms": 0.0,
        "is_combine": float(is_combine),
    }
    mean_copies = np.maximum(tokens * exchanged.mean_k / p.exchange_ranks, 1e-9)
    return ExchangeCalls(
        tokens=tokens / p.exchange_ranks,
        load=np.maximum(exchanged.copies / mean_copies, 1.0),
        **{name: np.full(len(tokens), value) for name, value in shared.items()},
    )
