"""Time of DeepSeek's multi-head latent attention (MLA) on a GPU: the attention kernel alone.

Decode is *absorbed*: all heads of a rank attend one cached vector a token, 512 compressed numbers
and a rotary key of 64, and their values are the same 512 numbers. Prefill expands the compressed
vectors into full heads, 192 wide for queries and keys and 128 for values.

**Source**: DeepSeek-V2 (2405.04434), section 2.1. Every rate is a share of the datasheet.
"""

from dataclasses import dataclass

import numpy as np

from moebench.predict.arrays import Floats, OverCases
from moebench.predict.kernels.layer import processor
from moebench.predict.operations.operation import Operation
from moebench.predict.parameters import parameter
from moebench.spec.hardware import HardwareSpec

ELEMENT = 2
"""Bytes of a bfloat16 query or output."""
PARTIAL = 4
"""Bytes of a float32 partial sum."""
NARROW = 32
"""Query rows up to which trtllm-gen exchanges the operands, so that keys fill the wide side."""
HARD = 4
"""Exponent of the norm over memory and tensor cores, which work side by side."""


@dataclass(frozen=True)
class MlaDecodeParameters:
    """Parameters of one absorbed decode kernel on one device; SI units."""

    start: float = parameter(8e-6, 0.5, "s")
    """Start and end of the call, with the kernel that adds partial results."""
    bandwidth: float = parameter(0.85, 0.15, "", ceiling=1.0)
    """Share of the datasheet's bandwidth that reading the cache reaches."""
    tensor: float = parameter(0.6, 0.4, "", ceiling=1.0)
    """Share of the datasheet's tensor peak, for whole tiles of query rows."""
    rows: float = parameter(64.0, 0.5, "rows")
    """Query rows of one thread block: fewer heads cost as much, more read the cache again."""
    narrow: float = parameter(24.0, 0.4, "rows")
    """Query rows of one thread block up to 32 of them, where some kernels have a smaller tile."""
    tile: float = parameter(80.0, 0.4, "keys")
    """Keys that are read at once: fewer cost as much."""
    chunk: float = parameter(128.0, 1.5, "keys")
    """Least keys that a part of a split sequence has."""
    resident: float = parameter(1.0, 1.0, "")
    """Thread blocks on one SM, up to which sequences are split."""
    ahead: float = parameter(1.5, 0.2, "")
    """How much faster a thread block is while few SMs are busy than when all are."""
    block: float = parameter(2e-6, 0.6, "s")
    """Start and end of a thread block."""
    reduce: float = parameter(0.5e-6, 0.8, "s")
    """Adding the partial results of split sequences."""
    step: float = parameter(0.3e-6, 0.8, "s")
    """Latency of one tile of keys, which nothing hides where a thread block has few."""
    l2_port: float = parameter(25.0, 0.5, "B/clock")
    """L2 to one SM."""
    retention: float = parameter(0.6, 0.4, "")
    """Share of L2 that a replayed cache can occupy."""
    overlap: float = parameter(0.4, 0.6, "")
    """How far work hides latency: the exponent, less 1, of the norm over both (0: they add up)."""


@dataclass(frozen=True)
class MlaDecodeCalls(OverCases):
    """Absorbed attention calls on one rank; arrays over cases."""

    batch: Floats
    """Sequences."""
    new_tokens: Floats
    """Query tokens of each sequence: 1, more with speculation or for a short prefill."""
    keys: Floats
    """Keys of each sequence, its new tokens included."""
    heads: Floats
    """Query heads of the rank."""
    key_width: Floats
    """Width of a cached vector: compressed part and rotary key."""
    value_width: Floats
    """Width of its compressed part."""
    kv_bytes: Floats
    """Bytes of a cached number: 2 for bfloat16, 1 for fp8."""
    splits: Floats
    """1 where the kernel parts long sequences among thread blocks, 0 where it does not."""
    beside: Floats
    """Bytes of other data that each replay reads: the weights of a whole block, else 0."""


def mla_decode_time(
    p: MlaDecodeParameters, hardware: HardwareSpec, calls: MlaDecodeCalls, warm: bool = False
) -> Floats:
    """Seconds of absorbed attention; `warm`: a replayed cache may still lie in L2.

    New tokens of a sequence attend causally; the rows of all of them share its cache.
    """
    clock, _ = processor(hardware)
    sms, c = hardware.num_processors, calls
    peak = product_peak(hardware, c.kv_bytes)
    query_rows = c.heads * c.new_tokens
    rows = np.where(query_rows > NARROW, p.rows, np.minimum(p.narrow, p.rows))
    groups = np.maximum(1, query_rows / rows)
    padded = np.maximum(c.keys - (c.new_tokens - 1) / 2, p.tile)
    whole = c.batch * groups
    most = np.where(c.splits > 0, np.maximum(1, c.keys / p.chunk), 1)
    split = np.clip(sms * p.resident / whole, 1, most)
    active = np.minimum(1, whole * split / sms)
    busy = np.minimum(1, p.ahead * active)
    cached = c.batch * padded * c.key_width * c.kv_bytes
    hit = warm / (1 + ((cached + c.beside) / (p.retention * hardware.cache)) ** 4)
    port = sms * p.l2_port * clock * active
    stream = hardware.memory_bandwidth * p.bandwidth
    dram = cached * (1 - hit) / (stream * busy)
    memory = dram + cached * (groups - 1 + hit) / port
    flops = 2 * whole * rows * padded * (c.key_width + c.value_width)
    tensor = flops / (peak * p.tensor * busy)
    waves = np.maximum(1, whole * split / (sms * np.maximum(1, p.resident)))
    waves = waves + np.minimum(waves - 1, 1) / 2
    latency = waves * (p.block + padded / split / p.tile * p.step)
    stream_time = (memory**HARD + tensor**HARD) ** (1 / HARD)
    sharp = 1 + p.overlap
    norm = (stream_time**sharp + latency**sharp) ** (1 / sharp)
    rows_moved = c.batch * query_rows * (c.key_width + c.value_width) * ELEMENT
    partial = (split > 1) * c.batch * query_rows * c.value_width * PARTIAL * 2 * split
    seconds = p.start + norm + np.log2(split) * p.reduce
    return np.asarray(seconds + rows_moved / stream + partial / (sms * p.l2_port * clock))


def product_peak(hardware: HardwareSpec, kv_bytes: Floats) -> Floats:
    """Tensor peak of attention's products: that of fp8 for an fp8 cache, where there is one."""
    wide = hardware.peak_for("bfloat16")
    narrow = hardware.peak.get("float8", wide)
    return np.where(kv_bytes < ELEMENT, narrow, wide)


@dataclass(frozen=True)
class MlaPrefillParameters:
    """Parameters of one prefill kernel with full heads on one device; SI units."""

    start: float = parameter(12e-6, 0.4, "s")
    """Start and end of the call, with the kernels that prepare its operands."""
    tensor: float = parameter(0.55, 0.3, "", ceiling=1.0)
    """Share of the datasheet's tensor peak with all SMs busy, exponentials included."""
    tile: float = parameter(160.0, 0.4, "rows")
    """Query rows of one thread block."""
    block: float = parameter(2e-6, 0.6, "s")
    """Start and end of a thread block."""
    ahead: float = parameter(1.3, 0.2, "")
    """How much faster a thread block is while few SMs are busy than when all are."""
    passes: float = parameter(1.2, 0.5, "")
    """Times that queries, keys, values and outputs are moved at the datasheet's bandwidth."""
    shared: float = parameter(2.0, 0.7, "heads")
    """What all heads share (rotary key, cache write), in heads that would move as much."""
    l2_port: float = parameter(40.0, 0.5, "B/clock")
    """L2 to one SM, where a replay left the operands there."""
    retention: float = parameter(0.6, 0.4, "")
    """Share of L2 that replayed operands can occupy."""
    overlap: float = parameter(2.0, 0.4, "")
    """How far thread blocks even out: the exponent, less 1, of the norm over sum and longest."""
    hidden: float = parameter(1.0, 0.6, "")
    """How far work hides moving the heads: the exponent, less 1, of the norm over both."""


@dataclass(frozen=True)
class MlaPrefillCalls(OverCases):
    """Causal attention calls with full heads on one rank; arrays over cases."""

    batch: Floats
    """Sequences."""
    new_tokens: Floats
    """Query tokens of each sequence."""
    prefix: Floats
    """Keys of each sequence before its new tokens."""
    heads: Floats
    """Heads of the rank, of queries, keys and values alike."""
    key_width: Floats
    """Width of a query or key head."""
    value_width: Floats
    """Width of a value head."""
    kv_bytes: Floats
    """Bytes of a cached number: 2 for bfloat16, 1 for fp8."""


def mla_prefill_time(
    p: MlaPrefillParameters, hardware: HardwareSpec, calls: MlaPrefillCalls, warm: bool = False
) -> Floats:
    """Seconds of causal attention with full heads; `warm`: operands may still lie in L2."""
    clock, _ = processor(hardware)
    sms, c = hardware.num_processors, calls
    width = c.key_width + c.value_width
    rate = product_peak(hardware, c.kv_bytes) * p.tensor / sms
    tiles = np.maximum(1, c.new_tokens / p.tile)
    blocks = c.batch * c.heads * tiles
    rows = np.minimum(c.new_tokens, p.tile)
    longest = c.prefix + c.new_tokens
    mean = c.prefix + (c.new_tokens + rows) / 2
    fixed = np.maximum(1, blocks / sms) * p.block
    spread = blocks / sms * (2 * rows * mean * width / rate)
    alone = 2 * rows * longest * width / rate / p.ahead
    even = 1 + p.overlap
    work = (spread**even + alone**even) ** (1 / even)
    moved = c.batch * (c.heads + p.shared) * (c.new_tokens + longest) * width * ELEMENT
    hit = warm / (1 + (moved / (p.retention * hardware.cache)) ** 4)
    port = np.maximum(hardware.memory_bandwidth, sms * p.l2_port * clock)
    memory = p.passes * moved * ((1 - hit) / hardware.memory_bandwidth + hit / port)
    sharp = 1 + p.hidden
    norm = (work**sharp + memory**sharp) ** (1 / sharp)
    return np.asarray(p.start + fixed + norm)


MLA_DECODE = Operation("mla-decode", MlaDecodeParameters, mla_decode_time)
MLA_PREFILL = Operation("mla-prefill", MlaPrefillParameters, mla_prefill_time)
