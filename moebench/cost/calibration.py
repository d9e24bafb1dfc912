"""How fast a machine really is: the few numbers that price an op, fitted or from a datasheet.

A dense matmul of `rows` by a weight [n, k] that is in no cache takes

    t = overhead + (memory^p + compute^p)^(1/p)
    memory  = (weight + activation bytes) / bandwidth
    compute = 2 (rows + row_overhead) n k / rate

Each term is physical. `rate` is the sustained matmul rate at many rows. `row_overhead` is work per
weight element that does not depend on the rows - packing weights into the layout of the kernel,
filling the pipeline - expressed in rows. `bandwidth` is what the matmul really streams from
memory. The p-norm says how well memory traffic and arithmetic overlap: p = 1 not at all, large p
perfectly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moebench.results import MatmulSample, Microbenchmarks
from moebench.spec import HardwareSpec
from moebench.units import (
    BYTES_PER_ELEMENT,
    Bytes,
    BytesPerSecond,
    Flops,
    FlopsPerSecond,
    Seconds,
)


@dataclass(frozen=True)
class Calibration:
    """Prices for one machine and one dtype."""

    name: str
    """What tables call it, with its own error."""
    hardware: str
    dtype: str
    rate: FlopsPerSecond
    """Sustained dense matmul rate at many rows."""
    bandwidth: BytesPerSecond
    """What a matmul streams from memory."""
    row_overhead: float
    """Work per weight element that does not depend on the rows, in rows."""
    overlap: float
    """Exponent p of memory against compute."""
    matmul_overhead: Seconds
    """One matmul call."""
    copy_bandwidth: BytesPerSecond
    """Bytes read plus written by elementwise work."""
    launch_overhead: Seconds
    """One call of anything else."""
    fresh_bandwidth: BytesPerSecond | None
    """Mapping newly allocated memory, on top of writing it; None: costs nothing here."""
    block: int
    """Rows of a grouped-matmul tile; every touched expert's rows are rounded up to it."""
    median_error: float | None
    """Median absolute relative error on its own microbenchmarks; None: never compared."""
    p90_error: float | None
    """The 90th percentile of the same."""
    reference: Seconds | None = None
    """The reference operation when the machine was calibrated; None: not known."""

    def matmul(
        self, groups: float, rows: float, flops: Flops, moved: Bytes, launches: float
    ) -> tuple[Seconds, Seconds, Seconds]:
        """Overhead, memory and compute time of matmuls, before they overlap.

        Args:
            groups: matmuls with a weight of their own.
            rows: of each; below one block a whole block is computed.
            flops: of all groups together.
            moved: bytes of all groups together.
            launches: calls.
        """
        if groups == 0 or rows == 0:
            return launches * self.matmul_overhead, 0.0, 0.0
        padded = max(rows, self.block) if rows <= 1 else rows + (self.block - 1) / 2
        worked = flops * (padded + self.row_overhead) / rows
        return launches * self.matmul_overhead, moved / self.bandwidth, worked / self.rate

    def overlapped(self, memory: Seconds, compute: Seconds) -> Seconds:
        """Time of memory traffic and arithmetic that run at the same time."""
        largest = max(memory, compute)
        if largest == 0:
            return 0.0
        p = self.overlap
        return float(largest * ((memory / largest) ** p + (compute / largest) ** p) ** (1 / p))


def calibrate(hardware: HardwareSpec, benchmarks: Microbenchmarks, dtype: str) -> Calibration:
    """Fit the matmul curve to this machine's microbenchmarks.

    Raises:
        ValueError: fewer than five matmuls of this dtype.
    """
    from scipy.optimize import least_squares

    samples = [sample for sample in benchmarks.matmuls if sample.dtype == dtype]
    if len(samples) < 5:
        raise ValueError(
            f"calibration of {hardware.name}: found {len(samples)} matmuls in {dtype}, "
            "expected at least 5"
        )
    columns = _columns(samples)
    fastest = max(2 * s.rows * s.n * s.k / s.seconds for s in samples)
    start = np.log([fastest, benchmarks.read_bandwidth, 8.0, 2.0, 5e-6])
    low = np.log([fastest / 3, benchmarks.read_bandwidth / 5, 0.05, 1.0, 1e-7])
    high = np.log([fastest * 3, benchmarks.read_bandwidth * 5, 500.0, 8.0, 1e-3])

    def log_error(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.log(_matmul_times(parameters, *columns[:-1]) / columns[-1]))

    fit = least_squares(log_error, start, bounds=(low, high), loss="soft_l1", f_scale=0.1)
    rate, bandwidth, row_overhead, overlap, overhead = np.exp(fit.x).tolist()
    errors = np.abs(np.expm1(log_error(fit.x)))
    median, p90 = float(np.median(errors)), float(np.quantile(errors, 0.9))
    return Calibration(
        name=f"measured here, {benchmarks.taken_at[:10]}: median error {median:.0%}, "
        f"P90 {p90:.0%} on {len(samples)} matmuls",
        hardware=hardware.name,
        dtype=dtype,
        rate=rate,
        bandwidth=bandwidth,
        row_overhead=row_overhead,
        overlap=overlap,
        matmul_overhead=overhead,
        copy_bandwidth=benchmarks.copy_bandwidth,
        launch_overhead=benchmarks.small_op,
        fresh_bandwidth=benchmarks.fresh_bandwidth,
        block=1,
        median_error=median,
        p90_error=p90,
        reference=benchmarks.reference,
    )


def _columns(samples: Sequence[MatmulSample]) -> tuple[NDArray[np.float64], ...]:
    """Rows, weight elements, bytes moved and seconds of the samples."""
    rows = np.array([s.rows for s in samples], dtype=np.float64)
    weights = np.array([s.n * s.k for s in samples], dtype=np.float64)
    size = BYTES_PER_ELEMENT[samples[0].dtype]
    moved = size * (weights + rows * np.array([s.n + s.k for s in samples], dtype=np.float64))
    return rows, weights, moved, np.array([s.seconds for s in samples], dtype=np.float64)


def _matmul_times(
    log_parameters: NDArray[np.float64],
    rows: NDArray[np.float64],
    weights: NDArray[np.float64],
    moved: NDArray[np.float64],
) -> NDArray[np.float64]:
    rate, bandwidth, row_overhead, overlap, overhead = np.exp(log_parameters)
    compute = 2 * (rows + row_overhead) * weights / rate
    memory = moved / bandwidth
    return np.asarray(overhead + (compute**overlap + memory**overlap) ** (1 / overlap))


def from_datasheet(hardware: HardwareSpec, dtype: str) -> Calibration:
    """Prices for a machine that nobody has calibrated: datasheet peaks times typical efficiencies.

    The efficiencies are what measured MoE kernels of A100, H100 and B200 show: 85 % of the memory
    bandwidth, 60 % of the dense peak at many rows, 64-row tiles (NVIDIA/aiconfigurator tables,
    Apache-2.0; read in this project's development data). Launches are those of eager PyTorch on
    a recent host, about 5 microseconds each.

    Raises:
        ValueError: the datasheet has no peak for the dtype.
    """
    return Calibration(
        name="datasheet with typical efficiencies, never compared with a measurement here",
        hardware=hardware.name,
        dtype=dtype,
        rate=0.60 * hardware.peak_for(dtype),
        bandwidth=0.85 * hardware.memory_bandwidth,
        row_overhead=0.0,
        overlap=3.0,
        matmul_overhead=hardware.launch_overhead or 5e-6,
        copy_bandwidth=0.85 * hardware.memory_bandwidth,
        launch_overhead=hardware.launch_overhead or 5e-6,
        fresh_bandwidth=None,
        block=64,
        median_error=None,
        p90_error=None,
    )
