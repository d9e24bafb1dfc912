"""Tables of attention kernels: columns, which software a row is of, and its calls."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moebench.calibrate.cells import Conflict, read_name
from moebench.calibrate.operations.table import (
    COUNT,
    COUNT_OR_ZERO,
    FLAG,
    MICROSECONDS,
    Chosen,
    OperationKind,
)
from moebench.predict.arrays import Floats
from moebench.predict.attention.calls import DecodeCalls, PrefillCalls
from moebench.predict.attention.decode import DECODE
from moebench.predict.attention.kernels import decode_family, decodes_one, family_of, variant_of
from moebench.predict.attention.prefill import PREFILL
from moebench.predict.operations.operation import Software
from moebench.spec.hardware import load_hardware
from moebench.units import nearest

KV_TYPES = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "bf16",
    "float16": "bf16",
    "half": "bf16",
    "auto": "bf16",
    "fp8": "fp8",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "float8": "fp8",
}
"""Types of the cache as tables spell them; 16 bits are read alike."""
NARROW_VALUES = {("sglang", 192): 128}
"""Width of value heads, by framework and width of query heads, where it is another: SGLang's rows
with 192 would exceed the bandwidth of DRAM otherwise (README-serving.md, trap 5)."""


KV_BYTES = {"bf16": 2.0, "fp8": 1.0}


def _text(text: str) -> str:
    """A name that may be left empty: a kernel's or a release's."""
    return read_name(text, may_be_empty=True)


COLUMNS = {
    "system": read_name,
    "framework": read_name,
    "version": _text,
    "kernel_source": _text,
    "heads": COUNT,
    "kv_heads": COUNT,
    "head_dim": COUNT,
    "window": COUNT_OR_ZERO,
    "kv_dtype": read_name,
    "batch": COUNT,
    "seq": COUNT,
    "latency_us": MICROSECONDS,
    "suspect": FLAG,
}
ASSUMED = {"version": "", "kernel_source": "", "window": "0", "kv_dtype": "bf16", "suspect": "0"}
KEYS = ("framework", "version", "kernel_source", "kv_dtype", "window", "heads", "kv_heads")


def choose_decode(row: Mapping[str, Any]) -> Chosen:
    """The decode kernel that a row is of."""
    return Chosen(DECODE, _software(row, _decode_family(row)))


def choose_prefill(row: Mapping[str, Any]) -> Chosen:
    """The kernel that a row of prefill is of: of one new token it may be a decode kernel."""
    if row["seq"] == 1 and decodes_one(row["framework"].lower(), _family(row)):
        return choose_decode(row)
    return Chosen(PREFILL, _software(row, _family(row)))


def decode_calls(columns: Mapping[str, NDArray[Any]]) -> DecodeCalls:
    """Decode calls of rows that are all of one software on one device."""
    return DecodeCalls(
        keys=_floats(columns["seq"]), **_heads(columns), kernel=_decode_family(_first(columns))
    )


def prefill_calls(columns: Mapping[str, NDArray[Any]]) -> PrefillCalls | DecodeCalls:
    """Calls of rows of prefill that are all of one kernel on one device; nothing is cached."""
    if choose_prefill(_first(columns)).operation is DECODE:
        return decode_calls(columns)
    tokens = _floats(columns["seq"])
    return PrefillCalls(
        tokens=tokens, prefix=0 * tokens, **_heads(columns), kernel=_family(_first(columns))
    )


def _heads(columns: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
    """Columns of calls that decode and prefill have in common."""
    frameworks, dims = columns["framework"].tolist(), columns["head_dim"].tolist()
    values = [
        NARROW_VALUES.get((framework.lower(), int(dim)), dim)
        for framework, dim in zip(frameworks, dims, strict=True)
    ]
    kinds = [KV_BYTES[_kv_type(name)] for name in columns["kv_dtype"].tolist()]
    names = ("batch", "heads", "kv_heads", "head_dim", "window")
    return {
        **{name: _floats(columns[name]) for name in names},
        "value_dim": np.array(values, dtype=float),
        "kv_bytes": np.array(kinds),
    }


def _family(row: Mapping[str, Any]) -> str:
    return family_of(row["framework"], row["kernel_source"], load_hardware(row["system"]))


def _decode_family(row: Mapping[str, Any]) -> str:
    kv_dtype, group = _kv_type(row["kv_dtype"]), row["heads"] / row["kv_heads"]
    return decode_family(_family(row), kv_dtype, group, load_hardware(row["system"]))


def _software(row: Mapping[str, Any], family: str) -> Software:
    variant = variant_of(family, _kv_type(row["kv_dtype"]), row["window"] > 0)
    return Software(row["framework"].lower(), row["version"], variant)


def _first(columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """A row that speaks for all, which are of one software."""
    return {name: column[0] for name, column in columns.items()}


def _kv_type(name: str) -> str:
    if name.lower() not in KV_TYPES:
        raise ValueError(f"kv_dtype: found {name!r}{nearest(name, KV_TYPES)}")
    return KV_TYPES[name.lower()]


def _floats(column: NDArray[Any]) -> Floats:
    return column.astype(float)


def _conflict(row: Mapping[str, Any]) -> Conflict | None:
    if row["kv_heads"] > row["heads"]:
        found = f"{row['kv_heads']:g} of {row['heads']:g} heads"
        return ("kv_heads", found, "at most as many key-value heads as query heads")
    return None


KINDS: tuple[OperationKind, ...] = tuple(
    OperationKind(
        name=f"attention-{phase}",
        columns=COLUMNS,
        keys=keys,
        choose=choose,
        calls=calls,
        shape=("heads", "kv_heads", "head_dim"),
        groups=("system", "framework", "version", "kernel_source", "kv_dtype", "window"),
        size="seq",
        assumed=ASSUMED,
        conflict=_conflict,
    )
    for phase, keys, choose, calls in (
        ("decode", KEYS, choose_decode, decode_calls),
        ("prefill", (*KEYS, "seq"), choose_prefill, prefill_calls),
    )
)
"""Kinds of tables of attention kernels."""
