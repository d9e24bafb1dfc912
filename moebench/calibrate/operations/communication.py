"""Tables of communication: collectives, DeepEP and its pairs, TensorRT-LLM's NVLink exchange."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moebench.calibrate.cells import Conflict, number_between
from moebench.calibrate.operations.table import (
    COUNT,
    COUNT_OR_ZERO,
    FLAG,
    MICROSECONDS,
    NAME,
    Chosen,
    OperationKind,
)
from moebench.predict.communication.collectives import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
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
from moebench.predict.operations.operation import Operation, Software
from moebench.units import nearest

COLLECTIVES: Mapping[str, Operation] = {
    "all_reduce": ALL_REDUCE,
    "all_gather": ALL_GATHER,
    "reduce_scatter": REDUCE_SCATTER,
    "all_to_all": ALL_TO_ALL,
    "alltoall": ALL_TO_ALL,
}
LIBRARY = "nccl"
GRAPH = "graph"
"""Mode of a framework's all-reduce that is the kernel alone; `eager` adds the host's work."""
BYTES = number_between(1, 1e15, whole=True)
DEVICES_OF_A_NODE = 8
"""Where a table says nothing of nodes: what servers hold (a rack's NVLink joins more by itself)."""
CONGESTED_NODES = 8
FOUR_BIT = ("nvfp4", "fp4")


def _collective(row: Mapping[str, Any]) -> Chosen:
    library, op = row["library"].lower(), row["op"].lower().replace("-", "_")
    if op not in COLLECTIVES:
        raise ValueError(f"op: found {op!r}, expected a collective{nearest(op, COLLECTIVES)}")
    operation = COLLECTIVES[op]
    if library == LIBRARY:
        return Chosen(operation, Software(library, row["version"]))
    if operation is ALL_REDUCE:
        operation = CUSTOM_ALL_REDUCE
    mode = row["mode"].lower()
    return Chosen(operation, Software(library, row["version"], "" if mode == GRAPH else mode))


def _collective_calls(columns: Mapping[str, Any]) -> CollectiveCalls:
    ranks = columns["ranks"].astype(float)
    return CollectiveCalls(
        columns["bytes"].astype(float), ranks, np.ceil(ranks / DEVICES_OF_A_NODE)
    )


def _deepep(row: Mapping[str, Any]) -> Chosen:
    backend, phase, dtype = (row[name].lower() for name in ("backend", "phase", "dtype"))
    is_low_latency = any(word in backend for word in ("_ll", "low", "generation"))
    # Only the four-bit kernels quantise by themselves.
    variant = " ".join([backend, phase] + ["fp4"] * (dtype in FOUR_BIT))
    operation = LOW_LATENCY if is_low_latency else NORMAL
    return Chosen(operation, Software(row["framework"].lower(), row["version"], variant))


def _deepep_calls(columns: Mapping[str, Any]) -> ExchangeCalls:
    return _exchange_calls(columns, columns["nodes"].astype(float), columns["sms"].astype(float))


def _nvlink(row: Mapping[str, Any]) -> Chosen:
    variant = f"{row['kernel_source']} {row['phase']}"
    return Chosen(NVLINK, Software(row["framework"].lower(), row["version"], variant))


def _nvlink_calls(columns: Mapping[str, Any]) -> ExchangeCalls:
    return _exchange_calls(columns, np.ones(len(columns["ranks"])), np.zeros(len(columns["ranks"])))


def _exchange_calls(columns: Mapping[str, Any], nodes: Any, sms: Any) -> ExchangeCalls:
    phases = [str(phase).lower() for phase in columns["phase"]]
    dtypes = [str(dtype).lower() for dtype in columns["dtype"]]
    numbers = {
        name: columns[name].astype(float) for name in ("tokens", "hidden", "experts", "ranks")
    }
    return ExchangeCalls(
        **numbers,
        top_k=columns["topk"].astype(float),
        nodes=nodes,
        width=np.array([_width(*each) for each in zip(phases, dtypes, strict=True)]),
        sms=sms,
        load=np.ones(len(nodes)),
        is_combine=np.array([float(phase.startswith("combine")) for phase in phases]),
    )


def _width(phase: str, dtype: str) -> float:
    """Bytes of a value; a plain combine returns bfloat16 whatever the experts' weights are."""
    if phase == "prepare":
        return 0.0
    return 2.0 if phase == "combine" and dtype not in ("fp4", "fp8") else value_bytes(dtype)


def _uncongested(columns: Mapping[str, Any]) -> Any:
    """Rows that show a law: the one network of 8 nodes was congested."""
    is_low_latency = np.array(["_ll" in str(backend) for backend in columns["backend"]])
    return is_low_latency | (columns["nodes"].astype(float) < CONGESTED_NODES)


def _too_many(name: str) -> Any:
    def conflict(row: Mapping[str, Any]) -> Conflict | None:
        if row[name] > row["experts"]:
            return name, f"{row[name]:g}", f"at most {row['experts']:g}, the experts"
        return None

    return conflict


_EXCHANGE = {
    "system": NAME, "framework": NAME, "version": NAME, "phase": NAME, "dtype": NAME,
    "ranks": COUNT, "hidden": COUNT, "experts": COUNT, "tokens": COUNT,
}  # fmt: skip
_DEEPEP = {"backend": NAME, "nodes": COUNT, "sms": COUNT_OR_ZERO}

KINDS = (
    OperationKind(
        name="collectives",
        columns={
            "system": NAME, "op": NAME, "library": NAME, "version": NAME, "mode": NAME,
            "ranks": COUNT, "bytes": BYTES, "latency_us": MICROSECONDS, "suspect": FLAG,
        },
        keys=("op", "library", "version", "mode"),
        choose=_collective,
        calls=_collective_calls,
        shape=("ranks", "bytes"),
        groups=("library", "op", "mode", "ranks"),
        size="bytes",
        assumed={"suspect": "0", "mode": "graph"},
    ),
    OperationKind(
        name="deepep",
        columns={**_EXCHANGE, **_DEEPEP, "topk": COUNT, "latency_us": MICROSECONDS},
        keys=("framework", "version", "backend", "phase", "dtype"),
        choose=_deepep,
        calls=_deepep_calls,
        shape=("hidden", "experts", "ranks"),
        groups=("framework", "backend", "phase", "ranks"),
        size="tokens",
        conflict=_too_many("topk"),
        fitted=_uncongested,
    ),
    OperationKind(
        name="deepep-pairs",
        columns={
            **_EXCHANGE, **_DEEPEP, "topk_low": COUNT, "topk_high": COUNT,
            "latency_us_low": MICROSECONDS, "latency_us_high": MICROSECONDS,
        },
        keys=("framework", "version", "backend", "phase", "dtype"),
        choose=_deepep,
        calls=_deepep_calls,
        shape=("hidden", "experts", "ranks"),
        groups=("framework", "backend", "phase", "ranks"),
        size="tokens",
        conflict=_too_many("topk_high"),
        members=(
            {"topk_high": "topk", "latency_us_high": "latency_us"},
            {"topk_low": "topk", "latency_us_low": "latency_us"},
        ),
    ),
    OperationKind(
        name="nvlink-alltoall",
        columns={**_EXCHANGE, "kernel_source": NAME, "topk": COUNT, "latency_us": MICROSECONDS},
        keys=("framework", "version", "kernel_source", "phase"),
        choose=_nvlink,
        calls=_nvlink_calls,
        shape=("ranks",),
        groups=("kernel_source", "phase", "ranks"),
        size="tokens",
        conflict=_too_many("topk"),
    ),
)  # fmt: skip
"""Every kind of table of communication."""
