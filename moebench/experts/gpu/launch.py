"""Launches of the two Triton kernels, as operations that torch dispatches.

They are registered under `torch.ops.moebench`, so that counters of FLOPs and of launches count
them. The host never waits for a value of the device: the grid depends on shapes alone.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moebench.experts.gpu.tiles import (
    FIRST_TMA_CAPABILITY,
    ROW_TILES_PER_GROUP,
    KernelTile,
    KernelTiles,
    choose_phase,
    choose_tiles,
    row_tiles,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED_CAPABILITY = 90
"""Capability whose tiles Triton's interpreter runs, on CPU tensors."""


def ragged_up(
    x: Float[Tensor, "tokens hidden"],
    token_indices: Int[Tensor, " bound"],
    tokens_per_expert: Int[Tensor, " experts"],
    gate_up: Float[Tensor, "experts width hidden"],
    intermediate_size: int,
) -> Float[Tensor, "bound intermediate"]:
    """The activated hidden row of each assignment.

    Assignments are sorted by expert. Indices behind the last assignment are not used, and the rows
    returned for them are uninitialised.

    Args:
        gate_up: gate above up of each expert, or up alone (squared ReLU); `intermediate_size`
            tells the two apart.
    """
    from moebench.experts.gpu import kernels

    bound, num_experts = token_indices.shape[0], tokens_per_expert.shape[0]
    hidden_size = x.shape[1]
    tile = _tiles(x, bound, num_experts).up
    depth = tile.depth(x.element_size())
    x = x if x.stride(1) == 1 else x.contiguous()
    hidden = x.new_empty(bound, intermediate_size)
    use_tma = _uses_tma(gate_up)
    grid_rows = row_tiles(bound, num_experts, tile.rows)
    grid = (grid_rows * -(-intermediate_size // tile.columns),)
    kernels.up_and_activate[grid](
        x,
        token_indices,
        tokens_per_expert,
        _matrix(gate_up, (tile.columns, depth), use_tma),
        hidden,
        num_experts,
        grid_rows,
        hidden_size,
        intermediate_size,
        x.stride(0),
        IS_GATED=gate_up.shape[1] != intermediate_size,
        TMA=use_tma,
        **_constants(tile, depth, num_experts, x),
    )
    return hidden


def ragged_down(
    hidden: Float[Tensor, "bound intermediate"],
    token_indices: Int[Tensor, " bound"],
    routing_weights: Float[Tensor, " bound"],
    tokens_per_expert: Int[Tensor, " experts"],
    down: Float[Tensor, "experts hidden intermediate"],
    y: Float[Tensor, "tokens hidden"],
) -> None:
    """Add each token's weighted expert outputs to y, which is fp32.

    Atomics add them in an order that the device chooses: a token of up to two experts gets the same
    bits every time (0 + a + b is 0 + b + a), a token of more may differ in the last bit.

    Raises:
        ValueError: y has 2**31 elements or more.
    """
    from moebench.experts.gpu import kernels

    bound, num_experts = token_indices.shape[0], tokens_per_expert.shape[0]
    hidden_size, intermediate_size = down.shape[1:]
    if y.numel() >= 2**31:
        raise ValueError(
            f"{y.shape[0]} tokens of {hidden_size} are too many for one call: 2**31 elements"
        )
    tile = _tiles(hidden, bound, num_experts).down
    depth = tile.depth(hidden.element_size())
    use_tma = _uses_tma(down) and _uses_tma(hidden)
    grid_rows = row_tiles(bound, num_experts, tile.rows)
    grid = (grid_rows * -(-hidden_size // tile.columns),)
    kernels.down_and_combine[grid](
        _matrix(hidden, (tile.rows, depth), use_tma),
        token_indices,
        routing_weights,
        tokens_per_expert,
        _matrix(down, (tile.columns, depth), use_tma),
        y,
        num_experts,
        grid_rows,
        hidden_size,
        intermediate_size,
        TMA=use_tma,
        **_constants(tile, depth, num_experts, hidden),
    )


def block_of_experts(num_experts: int) -> int:
    """The power of two that holds the experts' counts."""
    return max(16, 1 << (num_experts - 1).bit_length())


def _tiles(x: Tensor, bound: int, num_experts: int) -> KernelTiles:
    """The tiles of the table for this device, this type and so many assignments."""
    return choose_tiles(_capability(x), choose_phase(bound, num_experts), x.element_size())


def _constants(tile: KernelTile, depth: int, num_experts: int, x: Tensor) -> dict[str, int | bool]:
    """Compile-time constants of both kernels."""
    return {
        "UPCAST": not x.is_cuda and x.dtype == torch.bfloat16,
        "BLOCK_E": block_of_experts(num_experts),
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_K": depth,
        "GROUP": ROW_TILES_PER_GROUP,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _capability(x: Tensor) -> int:
    """Compute capability of the tensor's device, 90 for 9.0."""
    if not x.is_cuda:
        return INTERPRETED_CAPABILITY
    major, minor = torch.cuda.get_device_capability(x.device)
    return 10 * major + minor


def _uses_tma(matrix: Tensor) -> bool:
    """Whether the device has a tensor memory accelerator, and the matrix is aligned for it."""
    row_bytes = matrix.shape[-1] * matrix.element_size()
    is_aligned = row_bytes % 16 == 0 and matrix.data_ptr() % 16 == 0
    return is_aligned and _capability(matrix) >= FIRST_TMA_CAPABILITY


def _matrix(stack: Tensor, block: tuple[int, int], use_tma: bool) -> Any:
    """A stack of matrices as one matrix or TMA descriptor, as the kernels take it."""
    rows = stack.contiguous().view(-1, stack.shape[-1])
    if not use_tma:
        return rows
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(rows, list(block))


SCHEMAS = {
    ragged_up: "ragged_up(Tensor x, Tensor token_indices, Tensor tokens_per_expert,"
    " Tensor gate_up, int intermediate_size) -> Tensor",
    ragged_down: "ragged_down(Tensor hidden, Tensor token_indices, Tensor routing_weights,"
    " Tensor tokens_per_expert, Tensor down, Tensor(a!) y) -> ()",
}


def register_operations() -> torch.library.Library:
    """Define `torch.ops.moebench.ragged_up` and `ragged_down` while the result lives."""
    library = torch.library.Library("moebench", "FRAGMENT")  # type: ignore[no-untyped-call]
    for launch, schema in SCHEMAS.items():
        library.define(schema)  # type: ignore[no-untyped-call]
        name = schema.partition("(")[0]
        library.impl(name, launch, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    return library


LIBRARY = register_operations()
OPERATIONS = torch.ops.moebench
