"""Calibration of a machine: the few numbers that price an op, fitted or from a datasheet.

A dense matmul of `rows` by a weight [n, k] that is in no cache takes

    t = overhead + (memory^p + compute^p)^(1/p)
    memory  = (weight + activation bytes) / bandwidth
    compute = 2 (rows + row_overhead) n k / rate

`row_overhead` is work that does not depend on the rows: packing weights into the kernel's layout,
filling the pipeline. p = 1: memory traffic and arithmetic do not overlap; large p: perfectly.

Each layout of the weights has prices of its own: weights packed once need no packing, and their
blocks stream at another bandwidth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moebench.predict.arrays import Floats
from moebench.records.measurement import READ_BYTES
from moebench.records.results import Caveat
from moebench.records.timings import MatmulSample, Microbenchmarks
from moebench.spec.case import Launch
from moebench.spec.hardware import HardwareSpec
from moebench.spec.ops import LAYOUTS, Layout, Op
from moebench.units import BYTES_PER_ELEMENT, BytesPerSecond, FlopsPerSecond, Seconds, text

IN_STATE = "; priced for memory that is read at"
LEAST_SAMPLES = 5
"""Fewest matmuls of a layout that are fitted: a fit has five parameters."""
GRAPH_LAUNCH: Seconds = 3e-6
"""Time of a kernel of a replayed graph beside its work: the median of that constant over the six
GPUs of data/kernels/dense.toml, whose matmuls were timed in replayed graphs."""


@dataclass(frozen=True)
class MatmulPrices:
    """Prices of matmuls whose weights have one layout."""

    rate: FlopsPerSecond
    """Sustained rate at many rows."""
    bandwidth: BytesPerSecond
    """Bytes a second that a matmul streams from memory."""
    row_overhead: float
    """Work per weight element that does not depend on the rows, in rows."""
    overlap: float
    """Exponent p of memory against compute."""
    launch_overhead: Seconds
    """Time of one call beside its work."""
    block: int
    """Rows of a grouped-matmul tile; every touched expert's rows are rounded up to it."""
    num_samples: int = 0
    """Timed matmuls that the prices were fitted to."""
    median_error: float | None = None
    p90_error: float | None = None
    """Median and 90th percentile of absolute relative errors on them; None: never compared."""

    def parts(self, op: Op) -> tuple[Seconds, Seconds, Seconds]:
        """Overhead, memory and compute time of a matrix product, before they overlap.

        Each group has a weight of its own. Below one block of rows a whole block is computed.
        """
        overhead, rows = op.launches * self.launch_overhead, op.rows
        if not op.groups or not rows:
            return overhead, 0.0, 0.0
        padded = max(rows, self.block) if rows <= 1 else rows + (self.block - 1) / 2
        worked = op.flops * (max(padded, op.least_rows) + self.row_overhead) / rows
        return overhead, op.bytes_moved / self.bandwidth, worked / self.rate

    def overlapped(self, memory: Seconds, compute: Seconds) -> Seconds:
        """Time of memory traffic and arithmetic that run at the same time."""
        largest = max(memory, compute)
        if largest == 0:
            return 0.0
        p = self.overlap
        return float(largest * ((memory / largest) ** p + (compute / largest) ** p) ** (1 / p))


@dataclass(frozen=True)
class Calibration:
    """Prices for one machine and one dtype."""

    name: str
    """Title for tables, with the calibration's own error."""
    hardware: str
    dtype: str
    matmuls: Mapping[Layout, MatmulPrices]
    """Prices by layout of the weights; those of plain weights where a layout was not timed."""
    attention_rate: FlopsPerSecond
    """Rate of attention scores of many queries at once."""
    attention_bandwidth: BytesPerSecond
    """Bytes of a KV cache that the scores of few queries stream a second."""
    copy_bandwidth: BytesPerSecond
    """Bytes read plus bytes written by elementwise work."""
    launch_overhead: Seconds
    """Time of one call of anything but a matmul, beside its work: of a GPU, the device's part."""
    fresh_bandwidth: BytesPerSecond | None
    """Mapping newly allocated memory, on top of writing it; None: costs nothing here."""
    reference: Seconds | None = None
    """Time of the reference operation when the machine was calibrated; None: not known."""
    host_launch: Seconds | None = None
    """Time in which the host launches one operation ahead of a GPU; None: nothing runs ahead, on a
    processor and in a graph, whose operations are launched together."""
    assumes_launch: bool = False
    """Whether the device's part of a launch is `GRAPH_LAUNCH`, for want of a measurement."""
    launch: Launch = "eager"
    reference_reading: Seconds | None = None
    """Part of `reference` that its pass over memory takes in the state that is priced; None: not
    known."""
    doubts: tuple[Caveat, ...] = ()
    """Caveats of every estimate with these prices."""

    @property
    def p90_error(self) -> float:
        """The worst own error of its layouts; 0 where none was compared with a measurement."""
        return max(prices.p90_error or 0.0 for prices in self.matmuls.values())

    def in_state(self, reading: Seconds) -> "Calibration":
        """Prices while the reference operation's pass over memory takes `reading`.

        A host may read memory at half its speed for minutes: all that streams from memory follows.
        """
        if self.reference is None or self.reference_reading is None:
            return self
        factor = self.reference_reading / reading
        matmuls = {
            layout: replace(one, bandwidth=factor * one.bandwidth)
            for layout, one in self.matmuls.items()
        }
        name = self.name.partition(IN_STATE)[0]
        return replace(
            self,
            name=f"{name}{IN_STATE} {text(READ_BYTES / reading, 'bandwidth')}",
            matmuls=matmuls,
            attention_bandwidth=factor * self.attention_bandwidth,
            copy_bandwidth=factor * self.copy_bandwidth,
            reference=self.reference - self.reference_reading + reading,
            reference_reading=reading,
        )

    def replayed(self) -> "Calibration":
        """Prices inside a CUDA graph, where no host launches anything: the device's part stays."""
        return replace(self, launch="graph", host_launch=None)


def _launches(hardware: HardwareSpec, call: Seconds, on_device: Seconds | None) -> dict[str, Any]:
    """Fields of a calibration about launches: of a call from the host, and its part on a GPU.

    The part on a GPU is `GRAPH_LAUNCH` where it was not measured, and no more than the call.
    """
    if hardware.kind == "cpu":
        return {"launch_overhead": call}
    overhead = min(GRAPH_LAUNCH, call) if on_device is None else on_device
    is_assumed = on_device is None
    return {"launch_overhead": overhead, "host_launch": call, "assumes_launch": is_assumed}


def fit_calibration(hardware: HardwareSpec, benchmarks: Microbenchmarks, dtype: str) -> Calibration:
    """Fit the matmul prices of each layout to this machine's microbenchmarks."""
    fits: dict[Layout, MatmulPrices] = {}
    for layout in LAYOUTS:
        samples = [s for s in benchmarks.matmuls if (s.dtype, s.layout) == (dtype, layout)]
        if len(samples) >= LEAST_SAMPLES:
            fits[layout] = fit_matmuls(samples, benchmarks.read_bandwidth)
        elif layout == "plain":
            raise ValueError(
                f"calibration of {hardware.name}: found {len(samples)} matmuls in {dtype}, "
                f"expected at least {LEAST_SAMPLES}"
            )
    errors = "; ".join(
        f"median error {fit.median_error:.0%}, P90 {fit.p90_error:.0%} on {fit.num_samples} "
        f"{layout} matmuls"
        for layout, fit in fits.items()
    )
    return Calibration(
        name=f"measured here, {benchmarks.taken_at[:10]}: {errors}",
        hardware=hardware.name,
        dtype=dtype,
        matmuls={layout: fits.get(layout, fits["plain"]) for layout in LAYOUTS},
        attention_rate=benchmarks.attention_rate or fits["plain"].rate,
        attention_bandwidth=benchmarks.attention_bandwidth or benchmarks.copy_bandwidth,
        copy_bandwidth=benchmarks.copy_bandwidth,
        **_launches(hardware, benchmarks.small_op, benchmarks.small_kernel),
        fresh_bandwidth=benchmarks.fresh_bandwidth,
        reference=benchmarks.reference,
        reference_reading=benchmarks.reference_reading,
    )


def fit_matmuls(samples: Sequence[MatmulSample], read_bandwidth: BytesPerSecond) -> MatmulPrices:
    """Prices fitted to timed matmuls of one dtype and one layout."""
    from scipy.optimize import least_squares

    rows, n, k, seconds = np.array([(s.rows, s.n, s.k, s.seconds) for s in samples], dtype=float).T
    moved = BYTES_PER_ELEMENT[samples[0].dtype] * (n * k + rows * (n + k))
    fastest = float((2 * rows * n * k / seconds).max())
    start = np.log([fastest, read_bandwidth, 8.0, 2.0, 5e-6])
    low = np.log([fastest / 3, read_bandwidth / 5, 0.05, 1.0, 1e-7])
    high = np.log([fastest * 3, read_bandwidth * 5, 500.0, 8.0, 1e-3])

    def log_error(parameters: Floats) -> Floats:
        rate, bandwidth, row_overhead, overlap, overhead = np.exp(parameters)
        compute = 2 * (rows + row_overhead) * n * k / rate
        norm = (compute**overlap + (moved / bandwidth) ** overlap) ** (1 / overlap)
        return np.asarray(np.log((overhead + norm) / seconds))

    fit = least_squares(log_error, start, bounds=(low, high), loss="soft_l1", f_scale=0.1)
    rate, bandwidth, row_overhead, overlap, overhead = np.exp(fit.x).tolist()
    median, p90 = np.quantile(np.abs(np.expm1(log_error(fit.x))), (0.5, 0.9)).tolist()
    return MatmulPrices(
        rate, bandwidth, row_overhead, overlap, overhead, 1, len(samples), median, p90
    )


def from_datasheet(hardware: HardwareSpec, dtype: str) -> Calibration:
    """Prices of a machine without measurements: datasheet peaks times typical efficiencies.

    The efficiencies are those of measured MoE kernels on A100, H100 and B200: 85 % of the memory
    bandwidth, 60 % of the dense peak at many rows, 64-row tiles. A recent host launches an
    operation of eager PyTorch in about 5 microseconds, a GPU begins and ends it in `GRAPH_LAUNCH`.
    Every layout has the same prices. A dtype without a peak is refused.

    **Source**: NVIDIA/aiconfigurator tables (Apache-2.0), as read in this project's reference data.
    """
    rate, bandwidth = 0.60 * hardware.peak_for(dtype), 0.85 * hardware.memory_bandwidth
    launches = _launches(hardware, hardware.launch_overhead or 5e-6, None)
    matmuls = MatmulPrices(
        rate,
        bandwidth,
        row_overhead=0.0,
        overlap=3.0,
        launch_overhead=launches["launch_overhead"],
        block=64,
    )
    return Calibration(
        name="datasheet with typical efficiencies, never compared with a measurement here",
        hardware=hardware.name,
        dtype=dtype,
        matmuls=dict.fromkeys(LAYOUTS, matmuls),
        attention_rate=rate,
        attention_bandwidth=bandwidth,
        copy_bandwidth=bandwidth,
        **launches,
        fresh_bandwidth=None,
    )
