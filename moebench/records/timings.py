"""How long elementary operations take on a machine: what a calibration is fitted to."""

from dataclasses import dataclass

from moebench.spec.ops import Layout
from moebench.units import BytesPerSecond, FlopsPerSecond, Seconds


@dataclass(frozen=True)
class MatmulSample:
    """Time of one dense matmul [rows, k] x [k, n] whose weights were not in any cache."""

    rows: int
    n: int
    k: int
    dtype: str
    seconds: Seconds
    """Median of the repetitions."""
    layout: Layout = "plain"
    """Of the weights; packing them is not part of the time."""


@dataclass(frozen=True)
class Microbenchmarks:
    """What this machine did in the microbenchmarks: the input of a calibration."""

    fingerprint: str
    """Identifies machine and software; equal fingerprints may share a calibration."""
    taken_at: str
    """UTC, ISO 8601."""
    matmuls: tuple[MatmulSample, ...]
    read_bandwidth: BytesPerSecond
    """Reading an array far beyond the last-level cache."""
    copy_bandwidth: BytesPerSecond
    """Bytes read plus bytes written when copying such an array."""
    fresh_bandwidth: BytesPerSecond | None
    """Writing memory that was allocated for it, which the system maps page by page; None on a
    device whose allocator keeps what is freed."""
    small_op: Seconds
    """One framework call on a tensor of a few elements; on a processor its first after memory far
    larger than the caches was read."""
    duration: Seconds
    """How long the microbenchmarks took."""
    reference: Seconds | None = None
    """The reference operation in the same passes, median: how fast the machine was."""
    commit: str | None = None
    """Of the code that measured; None outside a checkout."""
    attention_rate: FlopsPerSecond | None = None
    """Scores and values of as many queries as keys, causal; None in those that had none."""
    attention_bandwidth: BytesPerSecond | None = None
    """What a few queries stream of keys and values that are in no cache; None: the same."""
