"""The launches of one layer's routed experts, and the share of the roofline that they reach."""

from dataclasses import dataclass

import numpy as np

from moebench.experts.gpu.tiles import parts_of_sum
from moebench.predict.kernels.loads import BLOCK_ROWS, Loads, expected_loads
from moebench.predict.roofline.assumptions import Assumptions
from moebench.predict.roofline.compiled import CompiledTile, own_tile
from moebench.predict.roofline.matmul import ELEMENT, GroupedMatmul, MatmulTime, matmul_time
from moebench.spec.hardware import HardwareSpec
from moebench.spec.model import ModelSpec
from moebench.spec.tile_rows import most_row_tiles, rows_of_tile

FP32 = 4
"""Bytes of a term of a sum that several programs share."""


@dataclass(frozen=True)
class ExpertLayer:
    """Sizes of a layer's routed experts, gated, and the tokens of a call."""

    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    tokens: int

    @classmethod
    def of(cls, model: ModelSpec, tokens: int) -> "ExpertLayer":
        """The layer of a model."""
        sizes = model.hidden_size, model.intermediate_size, model.num_experts, model.top_k
        return cls(*sizes, tokens)

    @property
    def rows(self) -> int:
        """Assignments."""
        return self.tokens * self.top_k

    def uniform_load(self) -> Loads:
        """Expected load where tokens choose their experts independently and uniformly."""
        each = np.full(self.num_experts, self.rows / self.num_experts)
        return expected_loads([each], [self.tokens])

    def roofline(self, device: HardwareSpec, distinct: float) -> float:
        """Seconds for the weights of `distinct` experts once, or for the useful FLOPs."""
        weights = 3 * self.hidden_size * self.intermediate_size
        memory = ELEMENT * weights * distinct / device.memory_bandwidth
        return max(memory, 2 * weights * self.rows / device.peak_for("bfloat16"))


@dataclass(frozen=True)
class LayerTime:
    """Predicted time of one layer's routed experts, from sorted assignments to the sum."""

    seconds: float
    share: float
    """The roofline's time over it."""
    matmuls: tuple[MatmulTime, MatmulTime]
    tiles: tuple[CompiledTile, CompiledTile]
    parts: int
    padding: float
    """Rows of all row tiles over assignments."""


def own_layer(layer: ExpertLayer, device: HardwareSpec, assumed: Assumptions) -> LayerTime:
    """Our three kernels: up with activation, down, combine."""
    capability = capability_of(device)
    wanted = rows_of_tile(layer.rows / layer.num_experts)
    up, down = (own_tile(capability, kernel, wanted) for kernel in ("up, gated", "down"))
    bound = most_row_tiles(layer.rows, layer.num_experts, down.rows)
    column_tiles = -(-layer.hidden_size // down.columns)
    steps = -(-layer.intermediate_size // down.depth)
    loads = bound, column_tiles, steps
    parts = 1 if down.is_persistent else parts_of_sum(*loads, device.num_processors)
    if parts > 1:
        down = own_tile(capability, "down in parts", wanted)
    load = layer.uniform_load()
    times = _matmul_times(layer, load, (up, down), parts, (device, assumed))
    term = FP32 if parts > 1 else ELEMENT
    combined = layer.hidden_size * (layer.rows * parts * term + layer.tokens * ELEMENT)
    seconds = sum(time.seconds for time in times) + elementwise_time(combined, device, assumed)
    share = layer.roofline(device, float(load.distinct[0])) / seconds
    padding = _row_tiles(load, up.rows) * up.rows / layer.rows
    return LayerTime(seconds, share, times, (up, down), parts, padding)


def vllm_layer(
    layer: ExpertLayer,
    load: Loads,
    tiles: tuple[CompiledTile, CompiledTile],
    device: HardwareSpec,
    assumed: Assumptions,
) -> float:
    """Seconds of vLLM's fused_moe: align and sort, gate and up, activation, down, sum."""
    times = _matmul_times(layer, load, tiles, 1, (device, assumed))
    activation = 3 * ELEMENT * layer.rows * layer.intermediate_size
    combined = ELEMENT * layer.hidden_size * (layer.rows + layer.tokens)
    apart = [elementwise_time(moved, device, assumed) for moved in (activation, combined, 0, 0)]
    return sum(time.seconds for time in times) + sum(apart)


def elementwise_time(moved: float, device: HardwareSpec, assumed: Assumptions) -> float:
    """Seconds of a kernel that streams this many bytes and computes little."""
    stream = moved / (device.memory_bandwidth * assumed.bandwidth)
    return assumed.launch + assumed.block_start + assumed.dram_latency + stream


def capability_of(device: HardwareSpec) -> int:
    """Compute capability, 90 for 9.0."""
    if device.compute_capability is None:
        raise ValueError(f"{device.name}: compute_capability is missing; our kernels need NVIDIA's")
    return round(10 * float(device.compute_capability))


def _matmul_times(
    layer: ExpertLayer,
    load: Loads,
    tiles: tuple[CompiledTile, CompiledTile],
    parts: int,
    on: tuple[HardwareSpec, Assumptions],
) -> tuple[MatmulTime, MatmulTime]:
    first, second = tiles
    width = layer.intermediate_size * (2 // first.products)
    experts, rows = float(load.distinct[0]), float(load.copies[0])
    shared = experts, rows
    up = GroupedMatmul(
        first,
        layer.hidden_size,
        width,
        _row_tiles(load, first.rows),
        *shared,
        min(rows, layer.tokens),
    )
    down = GroupedMatmul(
        second,
        layer.intermediate_size,
        layer.hidden_size,
        _row_tiles(load, second.rows),
        *shared,
        rows,
        parts,
    )
    return matmul_time(up, *on), matmul_time(down, *on)


def _row_tiles(load: Loads, rows: int) -> float:
    return float(load.tiles[0, BLOCK_ROWS.index(rows)])
