"""Calls of attention kernels: arrays over cases."""

from dataclasses import dataclass

from moebench.predict.arrays import Floats, OverCases


@dataclass(frozen=True)
class DecodeCalls(OverCases):
    """Decode attention of one layer on one rank: one new token for each sequence."""

    batch: Floats
    """Sequences."""
    keys: Floats
    """Keys of each that are attended to, the new one included, before any window."""
    heads: Floats
    """Query heads of the rank."""
    kv_heads: Floats
    """Key-value heads of the rank."""
    head_dim: Floats
    """Width of a query or key."""
    value_dim: Floats
    """Width of a value."""
    window: Floats
    """Keys of the sliding window; 0: none."""
    kv_bytes: Floats
    """Bytes of a cached number: 2, or 1 where cache and queries are fp8."""
    kernel: str = "other"
    """Family of the kernel, see `moebench.predict.attention.kernels`."""


@dataclass(frozen=True)
class PrefillCalls(OverCases):
    """Causal attention of one layer on one rank over new tokens behind cached ones."""

    batch: Floats
    """Sequences."""
    tokens: Floats
    """New tokens of each."""
    prefix: Floats
    """Cached tokens before them."""
    heads: Floats
    """Query heads of the rank."""
    kv_heads: Floats
    """Key-value heads of the rank."""
    head_dim: Floats
    """Width of a query or key."""
    value_dim: Floats
    """Width of a value."""
    window: Floats
    """Keys of the sliding window; 0: none."""
    kv_bytes: Floats
    """Bytes of a cached number: 2, or 1 where cache and queries are fp8."""
    kernel: str = "other"
    """Family of the kernel, see `moebench.predict.attention.kernels`."""
