"""Time of dense matmuls on a GPU: a two-minute calibration of a device before any MoE row.

A dense matmul is priced with the same four terms as a grouped one, the fastest of a set of tiles
and depth splits. Its library is not the MoE kernel's, so only *ratios* between devices are carried
over: how much of its datasheet's peak and bandwidth this device reaches, against another one.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moebench.predict.arrays import Floats, OverCases
from moebench.predict.kernels.catalogue import mma_generation
from moebench.predict.kernels.intervals import Bounds, regime_ends
from moebench.predict.kernels.layer import processor
from moebench.predict.kernels.weights import OPERAND_BYTES, arithmetic
from moebench.predict.parameters import metadata, parameter
from moebench.spec.hardware import HardwareSpec, load_hardware
from moebench.spec.schema import from_mapping, read_toml
from moebench.spec.weight_types import stored_bytes
from moebench.version import PACKAGE

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


@dataclass(frozen=True)
class DenseParameters:
    """Parameters of one dense matmul library on one device; SI units."""

    launch: float = parameter(2e-6, 0.5, "s")
    """Start and end of the kernel."""
    bandwidth: float = parameter(0.9, 0.1, "", ceiling=1.0)
    """Share of the datasheet's bandwidth."""
    tensor: float = parameter(0.8, 0.2, "", ceiling=1.0)
    """Share of the datasheet's tensor peak."""
    block: float = parameter(1e-6, 0.5, "s")
    """Start and end of a thread block."""
    round_trip: float = parameter(0.6e-6, 0.4, "s")
    """One load from DRAM."""
    l2_round_trip: float = parameter(0.15, 0.6, "")
    """A load from L2 over one from DRAM."""
    l2_port: float = parameter(48.0, 0.5, "B/clock")
    """L2 to one SM."""
    l2_stream: float = parameter(0.3, 0.5, "")
    """Share of all SMs' ports that one pass over replayed weights reaches."""
    step: float = parameter(60.0, 0.6, "clock")
    """Part of an inner step that nothing hides."""
    overlap: float = parameter(3.0, 0.3, "")
    """Exponent of the norm over the four times."""
    fill_rows: float = parameter(8.0, 0.8, "rows")
    """Rows by which each tile costs more than its height."""
    retention: float = parameter(0.3, 0.8, "")
    """Share of L2 that replayed operands can occupy; the benchmark rotates its operands."""
    split: float = parameter(1.0, 0.7, "")
    """Cost of adding partial sums over the least possible."""


METADATA = metadata(DenseParameters)


@dataclass(frozen=True)
class MatmulShapes(OverCases):
    """Dense matmuls, m x k times k x n; arrays over cases."""

    m: Floats
    """Rows of the activations."""
    n: Floats
    """Columns of the weight."""
    k: Floats
    """Depth of both."""


def dense_time(
    p: DenseParameters,
    hardware: HardwareSpec,
    shapes: MatmulShapes,
    dtype: str = "bfloat16",
    warm: bool = True,
) -> Floats:
    """Seconds of dense matmuls whose outputs are bfloat16; measured were bfloat16 inputs alone.

    `dtype` is the type of the weights.
    `warm`: operands as a replaying benchmark leaves them in L2; False: all come from DRAM.
    """
    clock, shared_memory = processor(hardware)
    operands = arithmetic(dtype, hardware)
    peak, sms = hardware.peak_for(operands), hardware.num_processors
    operand_bytes, weight_bytes = OPERAND_BYTES[operands], stored_bytes(dtype)
    rows, columns, split, warps = TILES.T
    m, n, k = shapes.m[:, None], shapes.n[:, None], shapes.k[:, None]
    blocks = np.ceil(m / rows) * np.ceil(n / columns) * split
    steps = np.ceil(k / DEPTH / split)
    loaded = (operand_bytes * rows + weight_bytes * columns) * DEPTH
    resident = np.minimum(
        shared_memory // (3 * loaded),
        65536 // (32 * warps * (rows * columns / (32 * warps) + 64)),
    )
    waves = np.maximum(1, blocks / (sms * np.maximum(1, resident)))
    one_block = 2 * (rows + p.fill_rows) * columns * steps * DEPTH
    tensor = np.maximum(blocks / sms, 1) * one_block * sms / (peak * p.tensor)
    l2 = np.maximum(blocks / sms, 1) * steps * (p.step + loaded / p.l2_port) / clock
    moved = weight_bytes * n * k + operand_bytes * m * k + ELEMENT * m * n
    hit = warm / (1 + (moved / (p.retention * hardware.cache)) ** 4)
    stream = p.l2_stream * p.l2_port * clock * sms
    dram = moved * ((1 - hit) / (hardware.memory_bandwidth * p.bandwidth) + hit / stream)
    dram = dram + (split > 1) * p.split * split * m * n * 8 / (p.l2_port * clock * sms)
    trip = p.round_trip / (STAGES - 1) * (1 - hit + p.l2_round_trip * hit)
    latency = waves * (p.block + steps * trip)
    norm = tensor**p.overlap + l2**p.overlap + dram**p.overlap + latency**p.overlap
    seconds = p.launch + norm ** (1 / p.overlap) + (split > 1) * p.split * 1.5e-6
    return np.asarray(seconds.min(axis=1))


def shift(here: DenseParameters, there: DenseParameters) -> dict[str, float]:
    """Logarithms of a grouped kernel's parameters on this device over those on another."""
    return {
        name: share * math.log(getattr(here, name) / getattr(there, name))
        for name, share in CARRIED.items()
    }


@functools.cache
def shipped_dense() -> Mapping[str, DenseParameters]:
    """Fits of data/kernels/dense.toml by hardware name."""
    return {
        name: from_mapping(DenseParameters, values, f"kernels/dense.toml: [device.{name}]")
        for name, values in _file()["device"].items()
    }


def dense_bounds() -> Mapping[str, Bounds]:
    """Widths of intervals of dense matmuls on a "shape", or a "device", that no fit has seen."""
    bounds: Mapping[str, Bounds] = _file()["interval"]
    return bounds


@functools.cache
def _file() -> Mapping[str, Any]:
    return read_toml(PACKAGE / "data" / "kernels" / "dense.toml")


def dense_parameters(
    hardware: HardwareSpec, known: Mapping[str, DenseParameters]
) -> tuple[DenseParameters, list[str]]:
    """A device's own parameters, or the mean of its nearest relatives' and their names.

    Relatives are the devices of the same compute capability, else those whose tensor cores take
    the same instruction, else all; the names are empty where the parameters are its own.
    """
    if hardware.name in known:
        return known[hardware.name], []
    machines, instruction = [*map(load_hardware, known)], mma_generation(hardware)
    relatives = (
        [one.name for one in machines if hardware.is_built_like(one)]
        or [one.name for one in machines if mma_generation(one) == instruction]
        or [*known]
    )
    logs = np.log([dataclasses.astuple(known[one]) for one in relatives])
    return DenseParameters(*np.exp(logs.mean(axis=0)).tolist()), relatives


def dense_interval(seconds: Floats, rows: Floats, is_own: bool) -> tuple[Floats, Floats]:
    """90 % interval of dense matmuls, from errors on shapes, or on devices, left out of the fit.

    Args:
        seconds: predicted times.
        rows: rows of the activations, `MatmulShapes.m`; the width depends on their number.
        is_own: whether the device's own matmuls were fitted.
    """
    ends = dense_bounds()["shape" if is_own else "device"]
    low, high = np.exp(regime_ends([ends] * len(rows), rows))
    return seconds * low, seconds * high
