"""Launches of the kernels that read packed weights, as operations that torch dispatches.

Each token's outputs are then combined as those of plain weights are. The host never waits for a
value of the device.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moebench.experts.gpu.launch import (
    LIBRARY,
    OPERATIONS,
    capability_of,
    device_of,
    multiprocessors_of,
)
from moebench.experts.gpu.quantised_tiles import FIRST_CONVERTING_CAPABILITY, quantised_tiles
from moebench.experts.gpu.tiles import KernelTile, parts_of_sum
from moebench.experts.gpu.training_tiles import constants
from moebench.experts.quantised import PackedExperts, PackedMatrices
from moebench.experts.weights import Bias, ExpertWeights, Residual, added
from moebench.routers.routing import Hidden, Routing
from moebench.routers.row_tiles import most_row_tiles


def quantised_layer(
    x: Hidden,
    routing: Routing,
    packed: PackedExperts,
    weights: ExpertWeights,
    residual: Residual | None = None,
) -> Float[Tensor, "*tokens hidden"]:
    """Launch the three kernels; `routing` may be longer than its assignments.

    Args:
        weights: Only its biases and its clamp are read.
    """
    if weights.clamp is not None and weights.clamp.is_interleaved:
        raise ValueError(
            "expert backends with packed weights: found gate and up in turns, expected gate above "
            "up; only these take it: loop, grouped"
        )
    if routing.num_assignments == 0:
        return added(torch.zeros_like(x), residual)
    tiles, expected = routing.cut_rows()
    hidden_size, intermediate_size = x.shape[1], packed.gate_up.codes.shape[1]
    clamp = () if weights.clamp is None else weights.clamp[:2]
    hidden = OPERATIONS.ragged_packed_up(
        *(x, routing.token_indices, tiles.table, _with(packed.gate_up, weights.gate_up_bias)),
        *(routing.num_experts, tiles.rows, clamp),
    )
    tile = quantised_tiles(capability_of(x), tiles.rows).down
    parts = parts_of_sum(
        max(1, most_row_tiles(round(expected), routing.num_experts, tiles.rows)),
        -(-hidden_size // tile.columns),
        -(-intermediate_size // tile.depth(2)),
        multiprocessors_of(x),
    )
    down = _with(packed.down, weights.down_bias)
    outputs = OPERATIONS.ragged_packed_down(hidden, tiles.table, down, tiles.rows, parts)
    stream, multiplier = residual or (None, 1.0)
    y: Tensor = OPERATIONS.ragged_combine(
        outputs, routing.slot_places(), routing.weights, x, stream, multiplier
    )
    return y


def packed_up(
    x: Hidden,
    token_indices: Int[Tensor, " bound"],
    table: Int[Tensor, "3 tiles"],
    gate_up: list[Tensor],
    num_experts: int,
    tile_rows: int,
    clamp: list[float],
) -> Float[Tensor, "bound intermediate"]:
    """The activated hidden row of each assignment.

    Args:
        gate_up: Codes and scales of matrices, and their bias if there is one. There is one matrix
            an expert (squared ReLU), or two: gate, then up.
        clamp: alpha and limit of gpt-oss's activation, or nothing.
    """
    from moebench.experts.gpu import quantised_kernels

    packed, bias = PackedMatrices(*gate_up[:2]), _bias(gate_up)
    num_matrices, intermediate_size = packed.codes.shape[:2]
    tile = quantised_tiles(capability_of(x), tile_rows).up
    x = x if x.stride(1) == 1 else x.contiguous()
    hidden = x.new_empty(len(token_indices), intermediate_size)
    grid = (table.shape[1] * -(-intermediate_size // tile.columns),)
    with device_of(x):
        quantised_kernels.packed_up[grid](
            *(x, token_indices, table, _codes(packed), packed.scales, bias, hidden),
            *(num_experts, table.shape[1], x.shape[1], intermediate_size, x.stride(0)),
            *(clamp or (0.0, 0.0)),
            IS_GATED=num_matrices != num_experts,
            IS_CLAMPED=bool(clamp),
            HAS_BIAS=len(gate_up) > 2,
            **_options(tile, x, packed),
        )
    return hidden


def packed_down(
    hidden: Float[Tensor, "bound intermediate"],
    table: Int[Tensor, "3 tiles"],
    down: list[Tensor],
    tile_rows: int,
    parts: int,
) -> Float[Tensor, "parts bound hidden"]:
    """The expert output of each assignment; several parts are terms of it, in fp32.

    Args:
        down: Codes and scales of the matrices, and their bias if there is one.
    """
    from moebench.experts.gpu import quantised_kernels

    packed, bias = PackedMatrices(*down[:2]), _bias(down)
    bound, intermediate_size = hidden.shape
    num_experts, hidden_size = packed.codes.shape[:2]
    tile = quantised_tiles(capability_of(hidden), tile_rows).down
    dtype = hidden.dtype if parts == 1 else torch.float32
    outputs = hidden.new_empty(parts, bound, hidden_size, dtype=dtype)
    depth = tile.depth(2)
    split_size = -(-intermediate_size // (depth * parts)) * depth
    grid = (table.shape[1] * -(-hidden_size // tile.columns), parts)
    with device_of(hidden):
        quantised_kernels.packed_down[grid](
            *(hidden, table, _codes(packed), packed.scales, bias, outputs, num_experts),
            *(table.shape[1], bound, hidden_size, intermediate_size, split_size),
            HAS_BIAS=len(down) > 2,
            **_options(tile, hidden, packed),
        )
    return outputs


def _with(packed: PackedMatrices, bias: Bias) -> list[Tensor]:
    """Codes, scales and bias, as far as there is one."""
    return [*packed] if bias is None else [*packed, bias.contiguous()]


def _bias(stack: list[Tensor]) -> Tensor:
    """The bias, or something in its place that is not read."""
    return stack[-1]


def _converts(x: Tensor) -> bool:
    return x.is_cuda and capability_of(x) >= FIRST_CONVERTING_CAPABILITY


def _codes(packed: PackedMatrices) -> Tensor:
    """Codes as numbers where the device converts them, as bytes elsewhere."""
    return packed.codes if _converts(packed.codes) else packed.codes.view(torch.uint8)


def _options(tile: KernelTile, x: Tensor, packed: PackedMatrices) -> dict[str, int | bool]:
    """Compile-time constants and warps of a kernel."""
    return {
        "MXFP4": packed.is_mxfp4,
        "CONVERTS": _converts(x),
        "UPCAST": not x.is_cuda and x.dtype == torch.bfloat16,
        **constants(tile, 2),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


SCHEMAS = {
    packed_up: "ragged_packed_up(Tensor x, Tensor token_indices, Tensor table, Tensor[] gate_up,"
    " int num_experts, int tile_rows, float[] clamp) -> Tensor",
    packed_down: "ragged_packed_down(Tensor hidden, Tensor table, Tensor[] down, int tile_rows,"
    " int parts) -> Tensor",
}
for _launch, _schema in SCHEMAS.items():
    _name = LIBRARY.define(_schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(_name, _launch, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
