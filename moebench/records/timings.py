"""Times of elementary operations on a machine, to which a calibration is fitted."""

from dataclasses import dataclass

from moebench.records.host import HostLoad
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
    """Layout of the weights; packing them is not part of the time."""


@dataclass(frozen=True)
class Microbenchmarks:
    """Results of the microbenchmarks on this machine, the input of a calibration."""

    fingerprint: str
    """Hash of machine and software; equal fingerprints may share a calibration."""
    taken_at: str
    """UTC, ISO 8601."""
    matmuls: tuple[MatmulSample, ...]
    read_bandwidth: BytesPerSecond
    """Bandwidth of reading an array far larger than the last-level cache."""
    copy_bandwidth: BytesPerSecond
    """Bandwidth of copying such an array, bytes read plus bytes written."""
    fresh_bandwidth: BytesPerSecond | None
    """Bandwidth of writing new memory, mapped page by page; None where freed memory is reused."""
    small_op: Seconds
    """Time of one framework call on a few elements: on a GPU the host's, which launches it; on a
    CPU the first with cold caches."""
    duration: Seconds
    reference: Seconds | None = None
    """Median time of the reference operation in the same passes: how fast the machine was."""
    reference_reading: Seconds | None = None
    """Part of `reference` that its pass over memory took; None in older files."""
    load: HostLoad | None = None
    """Load of the host, one round a pass; None in older files."""
    attempts: int = 1
    """Times that the machine was measured; these are the times of the best fit."""
    commit: str | None = None
    """Commit of the code that measured; None outside a checkout."""
    attention_rate: FlopsPerSecond | None = None
    """Rate of causal attention with as many queries as keys; None in older files."""
    attention_bandwidth: BytesPerSecond | None = None
    """Bandwidth of keys and values, in no cache, under a few queries; None in older files."""
    small_kernel: Seconds | None = None
    """The device's part of `small_op`, from a replayed graph; None on a processor."""
