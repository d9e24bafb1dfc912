"""What dense matmuls of a device say about it: a two-minute calibration before any MoE row.

A dense matmul is priced with the same four terms as a grouped one, the fastest of a set of tiles
and depth splits. Its library is not the MoE kernel's, so only *ratios* between devices are carried
over: how much of its datasheet's peak and bandwidth this device reaches, against another one.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moebench.predict.kernels.samplers import Floats
from moebench.spec.hardware import HardwareSpec
from moebench.spec.schema import from_mapping, read_toml
from moebench.units import BYTES_PER_ELEMENT

ELEMENT = 2
"""Bytes of a bfloat16 output; partial sums of split products are fp32."""
STAGES = 4
DEPTH = 64
TILES = np.array(
    [
        (rows, columns, split, warps)
        for rows, columns, warps in (
            (16, 64, 4), (32, 64, 4), (64, 64, 4), (64, 128, 4),
            (128, 128, 4), (128, 256, 8), (256, 128, 8),
        )
        for split in (1, 2, 4, 8)
    ],
    dtype=float,
)  # fmt: skip
CARRIED = {"tensor": 1.0, "bandwidth": 0.25}
"""Share of a dense ratio (of logarithms) that is carried over to the grouped matmul. Streaming
weights through a dense matmul depends on the library more than on the device: A100's reaches
three quarters of the bandwidth where grouped kernels reach nine tenths."""
OWN = ("launch", "bandwidth", "tensor")
"""Parameters that are fitted for each device; all others are the library's."""


@dataclass(frozen=True)
class DenseParameters:
    """Of one dense matmul library on one device; SI units."""

    launch: float = 2e-6
    """Start and end of the kernel, seconds."""
    bandwidth: float = 0.9
    """Share of the datasheet's bandwidth."""
    tensor: float = 0.8
    """Share of the datasheet's tensor peak."""
    block: float = 1e-6
    """Start and end of a thread block, seconds."""
    round_trip: float = 0.6e-6
    """One load from DRAM, seconds."""
    l2_round_trip: float = 0.15
    """A load from L2 over one from DRAM."""
    l2_port: float = 48.0
    """L2 to one SM, bytes per clock."""
    l2_stream: float = 0.3
    """Share of all SMs' ports that one pass over replayed weights reaches."""
    step: float = 60.0
    """Clocks of an inner step that nothing hides."""
    overlap: float = 3.0
    """Exponent of the norm over the four times."""
    fill_rows: float = 8.0
    """Rows by which each tile costs more than its height."""
    retention: float = 0.3
    """Share of L2 that replayed operands can occupy; the benchmark rotates its operands."""
    split: float = 1.0
    """Cost of adding partial sums over the least possible."""


SPREAD = {
    "launch": 0.5, "bandwidth": 0.1, "tensor": 0.2, "block": 0.5, "round_trip": 0.4,
    "l2_round_trip": 0.6, "l2_port": 0.5, "l2_stream": 0.5, "step": 0.6, "overlap": 0.3,
    "fill_rows": 0.8, "retention": 0.8, "split": 0.7,
}  # fmt: skip
"""Standard deviations of the logarithms, around the defaults."""
NAMES = tuple(entry.name for entry in dataclasses.fields(DenseParameters))


@dataclass(frozen=True)
class DenseRows:
    """Measured dense matmuls (m x k times k x n) of one device."""

    hardware: HardwareSpec
    m: Floats
    n: Floats
    k: Floats
    seconds: Floats

    def thinned(self, count: int) -> "DenseRows":
        """At most `count` of the rows, always the same ones."""
        if len(self.m) <= count:
            return self
        return self[np.random.default_rng(0).choice(len(self.m), count, replace=False)]

    def __getitem__(self, index: NDArray[np.int64]) -> "DenseRows":
        arrays = (self.m, self.n, self.k, self.seconds)
        return DenseRows(self.hardware, *(array[index] for array in arrays))


def dense_time(
    p: DenseParameters,
    hardware: HardwareSpec,
    m: Floats,
    n: Floats,
    k: Floats,
    *,
    dtype: str = "bfloat16",
    warm: bool = True,
) -> Floats:
    """Seconds of dense matmuls.

    Args:
        p: of the library on the device.
        hardware: its spec sheet.
        m: rows of the activations; outputs are bfloat16.
        n: columns of the weight.
        k: depth.
        dtype: of weights and inputs; the library was measured in bfloat16 alone.
        warm: operands as a replaying benchmark leaves them in L2; False: all come from DRAM.

    Raises:
        ValueError: the spec sheet lacks a figure that the model needs.
    """
    if hardware.clock is None or hardware.shared_memory is None:
        raise ValueError(f"{hardware.name}: clock or shared_memory is missing")
    peak, clock, sms = hardware.peak_for(dtype), hardware.clock, hardware.num_processors
    size = BYTES_PER_ELEMENT[dtype]
    rows, columns, split, warps = TILES.T
    m, n, k = m[:, None], n[:, None], k[:, None]
    blocks = np.ceil(m / rows) * np.ceil(n / columns) * split
    steps = np.ceil(k / DEPTH / split)
    loaded = (rows + columns) * DEPTH * size
    resident = np.minimum(
        hardware.shared_memory // (3 * loaded),
        65536 // (32 * warps * (rows * columns / (32 * warps) + 64)),
    )
    waves = np.maximum(1, blocks / (sms * np.maximum(1, resident)))
    one_block = 2 * (rows + p.fill_rows) * columns * steps * DEPTH
    tensor = np.maximum(blocks / sms, 1) * one_block * sms / (peak * p.tensor)
    l2 = np.maximum(blocks / sms, 1) * steps * (p.step + loaded / p.l2_port) / clock
    operands = size * (n * k + m * k) + ELEMENT * m * n
    hit = warm / (1 + (operands / (p.retention * hardware.cache)) ** 4)
    stream = p.l2_stream * p.l2_port * clock * sms
    dram = operands * ((1 - hit) / (hardware.memory_bandwidth * p.bandwidth) + hit / stream)
    dram = dram + (split > 1) * p.split * split * m * n * 8 / (p.l2_port * clock * sms)
    trip = p.round_trip / (STAGES - 1) * (1 - hit + p.l2_round_trip * hit)
    latency = waves * (p.block + steps * trip)
    norm = tensor**p.overlap + l2**p.overlap + dram**p.overlap + latency**p.overlap
    seconds = p.launch + norm ** (1 / p.overlap) + (split > 1) * p.split * 1.5e-6
    return np.asarray(seconds.min(axis=1))


def fit_library(devices: Mapping[str, DenseRows], rows: int = 250) -> dict[str, DenseParameters]:
    """Fit one library on several devices: `OWN` parameters for each, the others shared.

    Args:
        devices: measured rows of each device.
        rows: of each device that are used.
    """
    thin = {name: device.thinned(rows) for name, device in devices.items()}
    shared = [name for name in NAMES if name not in OWN]
    names = shared + [name for _ in thin for name in OWN]
    found = _fit(names, DenseParameters(), thin, len(shared))
    return dict(zip(thin, found, strict=True))


def fit_device(rows: DenseRows, library: DenseParameters) -> DenseParameters:
    """Fit a device's `OWN` parameters, all others being the library's."""
    return _fit(list(OWN), library, {"": rows.thinned(400)}, 0)[0]


def _fit(
    names: list[str], start: DenseParameters, devices: Mapping[str, DenseRows], num_shared: int
) -> list[DenseParameters]:
    from scipy.optimize import least_squares  # a quarter of a second that predictions never need

    mean = np.log([getattr(start, name) for name in names])
    spread = np.array([SPREAD[name] for name in names])
    ceiling = np.array([0.0 if name in ("bandwidth", "tensor") else np.inf for name in names])

    def unpack(logs: Floats) -> list[DenseParameters]:
        values = np.exp(np.minimum(logs, ceiling)).tolist()
        shared = dict(zip(names[:num_shared], values[:num_shared], strict=True))
        own = [
            dict(zip(OWN, values[at : at + len(OWN)], strict=True))
            for at in range(num_shared, len(values), len(OWN))
        ]
        return [dataclasses.replace(start, **shared, **table) for table in own]

    def residuals(logs: Floats) -> Floats:
        errors = [
            np.log(dense_time(p, r.hardware, r.m, r.n, r.k) / r.seconds) / 0.1
            for p, r in zip(unpack(logs), devices.values(), strict=True)
        ]
        error = np.concatenate(errors)
        soft = np.sign(error) * np.sqrt(2 * (np.sqrt(1 + error**2) - 1))
        return np.concatenate([soft, (logs - mean) / spread])

    return unpack(least_squares(residuals, mean, x_scale=spread, max_nfev=30).x)


def shift(here: DenseParameters, there: DenseParameters) -> dict[str, float]:
    """Logarithms of a grouped kernel's parameters on this device over those on another."""
    return {
        name: share * math.log(getattr(here, name) / getattr(there, name))
        for name, share in CARRIED.items()
    }


@functools.cache
def shipped_dense() -> Mapping[str, DenseParameters]:
    """Fits of data/kernels/dense.toml by hardware name; empty if there are none."""
    entry = files("moebench") / "data" / "kernels" / "dense.toml"
    if not entry.is_file():
        return {}
    table = read_toml(Path(str(entry)))
    return {
        name: from_mapping(DenseParameters, values, f"kernels/dense.toml: [device.{name}]")
        for name, values in table["device"].items()
    }
