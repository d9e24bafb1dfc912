"""Tables of multi-head latent attention: decode and prefill kernels, and whole blocks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moebench.calibrate.operations.table import (
    COUNT,
    MICROSECONDS,
    NAME,
    Chosen,
    OperationKind,
)
from moebench.predict.arrays import Floats
from moebench.predict.attention.mla import (
    MLA_DECODE,
    MLA_PREFILL,
    MlaDecodeCalls,
    MlaPrefillCalls,
)
from moebench.predict.attention.mla_block import (
    MLA_DECODE_BLOCK,
    MLA_PREFILL_BLOCK,
)
from moebench.predict.attention.mla_products import MlaBlockCalls
from moebench.predict.attention.mla_software import (
    decode_variant,
    is_absorbed,
    prefill_variant,
    splits_sequences,
    with_weights,
)
from moebench.predict.operations.operation import Software
from moebench.spec.hardware import load_hardware
from moebench.spec.weight_types import stored_bytes, weight_type

HIDDEN_SIZE, QUERY_RANK, KV_RANK = 7168.0, 1536.0, 512.0
PLAIN_WIDTH, ROPE_WIDTH, VALUE_WIDTH = 128.0, 64.0, 128.0
"""Sizes of DeepSeek-V3 (2412.19437), section 4.2: every table is of its blocks."""
BLOCKWISE = {"fp8_block": "float8"}
"""Names of weight types that only these tables use."""
PHASES = ("decode", "prefill")


def read_type(text: str) -> str:
    """Read a type of weights or cache by any of its names."""
    return weight_type(BLOCKWISE.get(text.lower(), text), "name of a type").name


def read_phase(text: str) -> str:
    """Read a phase."""
    if text not in PHASES:
        raise ValueError(" or ".join(PHASES))
    return text


KERNEL_COLUMNS: Mapping[str, Any] = {
    **dict.fromkeys(("system", "framework", "version", "kernel_source"), NAME),
    "kv_dtype": read_type,
    **dict.fromkeys(("heads", "batch", "seq"), COUNT),
    "latency_us": MICROSECONDS,
}


def _software(names: Mapping[str, Any], variant: str) -> Software:
    return Software(names["framework"].lower(), names["version"], variant)


def _decode_variant(names: Mapping[str, Any]) -> str:
    framework, hardware = names["framework"].lower(), load_hardware(names["system"])
    return decode_variant(framework, hardware, names["kv_dtype"], int(names["heads"]))


def _prefill_variant(names: Mapping[str, Any]) -> str:
    return prefill_variant(load_hardware(names["system"]), names["kv_dtype"])


def _decode(names: Mapping[str, Any]) -> Chosen:
    return Chosen(MLA_DECODE, _software(names, _decode_variant(names)))


def _prefill(names: Mapping[str, Any]) -> Chosen:
    return Chosen(MLA_PREFILL, _software(names, _prefill_variant(names)))


def _block(names: Mapping[str, Any]) -> Chosen:
    framework, source = names["framework"].lower(), names["kernel_source"].upper()
    if is_absorbed(framework, names["phase"], source):
        variant = with_weights(_decode_variant(names), names["gemm_type"])
        return Chosen(MLA_DECODE_BLOCK, _software(names, variant))
    ragged = ", ragged" if "RAGGED" in source else ""
    variant = with_weights(_prefill_variant(names) + ragged, names["gemm_type"])
    return Chosen(MLA_PREFILL_BLOCK, _software(names, variant))


def _floats(columns: Mapping[str, Any], name: str) -> Floats:
    return np.asarray(columns[name], dtype=np.float64)


def _cache_bytes(columns: Mapping[str, Any]) -> Floats:
    return np.array([stored_bytes(name) for name in columns["kv_dtype"].tolist()])


def _splits(columns: Mapping[str, Any]) -> Floats:
    """Whether kernels part sequences; rows of one group run one variant."""
    first = {name: column[0] for name, column in columns.items() if len(column)}
    splits = not first or splits_sequences(_decode_variant(first))
    return np.full(len(columns["batch"]), float(splits))


def _decode_calls(columns: Mapping[str, Any]) -> MlaDecodeCalls:
    batch, seq = _floats(columns, "batch"), _floats(columns, "seq")
    one = np.ones(len(batch))
    return MlaDecodeCalls(
        batch,
        one,
        seq,
        _floats(columns, "heads"),
        (KV_RANK + ROPE_WIDTH) * one,
        KV_RANK * one,
        _cache_bytes(columns),
        _splits(columns),
        0 * one,
    )


def _prefill_calls(columns: Mapping[str, Any]) -> MlaPrefillCalls:
    batch, seq = _floats(columns, "batch"), _floats(columns, "seq")
    one = np.ones(len(batch))
    return MlaPrefillCalls(
        batch,
        seq,
        0 * one,
        _floats(columns, "heads"),
        (PLAIN_WIDTH + ROPE_WIDTH) * one,
        VALUE_WIDTH * one,
        _cache_bytes(columns),
    )


def _block_calls(columns: Mapping[str, Any]) -> MlaBlockCalls:
    batch, seq = _floats(columns, "batch"), _floats(columns, "seq")
    one, is_decode = np.ones(len(batch)), columns["phase"] == "decode"
    return MlaBlockCalls(
        batch,
        np.where(is_decode, 1, seq),
        np.where(is_decode, seq - 1, 0),
        _floats(columns, "heads"),
        HIDDEN_SIZE * one,
        QUERY_RANK * one,
        KV_RANK * one,
        PLAIN_WIDTH * one,
        ROPE_WIDTH * one,
        VALUE_WIDTH * one,
        _cache_bytes(columns),
        _splits(columns),
        columns["gemm_type"].astype(np.str_),
    )


KERNEL_KEYS = ("framework", "version", "kernel_source", "kv_dtype", "heads")
GROUPS = ("system", "framework", "version")
KINDS = (
    OperationKind(
        "mla-decode",
        KERNEL_COLUMNS,
        KERNEL_KEYS,
        _decode,
        _decode_calls,
        ("heads",),
        (*GROUPS, "kv_dtype"),
        "seq",
    ),
    OperationKind(
        "mla-prefill",
        KERNEL_COLUMNS,
        KERNEL_KEYS,
        _prefill,
        _prefill_calls,
        ("heads",),
        (*GROUPS, "kv_dtype"),
        "seq",
    ),
    OperationKind(
        "mla-block",
        {**KERNEL_COLUMNS, "phase": read_phase, "gemm_type": read_type},
        (*KERNEL_KEYS, "phase", "gemm_type"),
        _block,
        _block_calls,
        ("heads",),
        (*GROUPS, "phase", "gemm_type"),
        "seq",
    ),
)
