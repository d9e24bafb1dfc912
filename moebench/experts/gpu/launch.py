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
    KernelTile,
    KernelTiles,
    choose_phase,
    choose_tiles,
    row_tiles,
)
from moebench.routers.routing import Hidden

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED_CAPABILITY = 90
"""Capability whose tiles Triton's interpreter runs, on CPU tensors."""


def ragged_up(
    x: Hidden,
    token_indices: Int[Tensor, " bound"],
    tokens_per_expert: Int[Tensor, " experts"],
    gate_up: Float[Tensor, "experts width hidden"],
    intermediate_size: int,
) -> Float[Tensor, "bound intermediate"]:
    """The activated hidden row of each assignment, sorted by expert; uninitialised behind the last.

    `gate_up` is gate above up, or up alone (squared ReLU): `intermediate_size` tells which.
    """
    from moebench.experts.gpu import kernels

    bound, num_experts = len(token_indices), len(tokens_per_expert)
    tile = _tiles(x, bound, num_experts).up
    x = x if x.stride(1) == 1 else x.contiguous()
    hidden = x.new_empty(bound, intermediate_size)
    use_tma = _uses_tma(gate_up)
    grid_rows = row_tiles(bound, num_experts, tile.rows)
    grid = (grid_rows * -(-intermediate_size // tile.columns),)
    kernels.up_and_activate[grid](
        *(x, token_indices, tokens_per_expert, _matrix(gate_up, tile, tile.columns, use_tma)),
        *(hidden, num_experts, grid_rows, x.shape[1], intermediate_size, x.stride(0)),
        IS_GATED=gate_up.shape[1] != intermediate_size,
        TMA=use_tma,
        **_constants(tile, num_experts, x),
    )
    return hidden


def ragged_down(
    hidden: Float[Tensor, "bound intermediate"],
    token_indices: Int[Tensor, " bound"],
    routing_weights: Float[Tensor, " bound"],
    tokens_per_expert: Int[Tensor, " experts"],
    down: Float[Tensor, "experts hidden intermediate"],
    y: Hidden,
) -> None:
    """Add each token's weighted expert outputs to y, which is fp32.

    Atomics add them in an order that the device chooses: a token of up to two experts gets the same
    bits every time (0 + a + b is 0 + b + a), a token of more may differ in the last bit.
    """
    from moebench.experts.gpu import kernels

    bound, num_experts = len(token_indices), len(tokens_per_expert)
    hidden_size, intermediate_size = down.shape[1:]
    if y.numel() >= 2**31:
        raise ValueError(
            f"{y.shape[0]} tokens of {hidden_size} are too many for one call: 2**31 elements"
        )
    tile = _tiles(hidden, bound, num_experts).down
    use_tma = _uses_tma(down) and _uses_tma(hidden)
    grid_rows = row_tiles(bound, num_experts, tile.rows)
    grid = (grid_rows * -(-hidden_size // tile.columns),)
    kernels.down_and_combine[grid](
        *(_matrix(hidden, tile, tile.rows, use_tma), token_indices, routing_weights),
        *(tokens_per_expert, _matrix(down, tile, tile.columns, use_tma), y),
        *(num_experts, grid_rows, hidden_size, intermediate_size),
        TMA=use_tma,
        **_constants(tile, num_experts, hidden),
    )


def _tiles(x: Tensor, bound: int, num_experts: int) -> KernelTiles:
    return choose_tiles(_capability(x), choose_phase(bound, num_experts), x.element_size())


def _constants(tile: KernelTile, num_experts: int, x: Tensor) -> dict[str, int | bool]:
    """Compile-time constants of both kernels; a power of two holds the experts' counts."""
    return {
        "UPCAST": not x.is_cuda and x.dtype == torch.bfloat16,
        "BLOCK_E": max(16, 1 << (num_experts - 1).bit_length()),
        **tile.constants(x.element_size()),
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


def _matrix(stack: Tensor, tile: KernelTile, block_rows: int, use_tma: bool) -> Any:
    """A stack of matrices as the kernels take it: one matrix, or a TMA descriptor of its blocks."""
    rows = stack.contiguous().view(-1, stack.shape[-1])
    if not use_tma:
        return rows
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(rows, [block_rows, tile.depth(stack.element_size())])


SCHEMAS = {
    ragged_up: "ragged_up(Tensor x, Tensor token_indices, Tensor tokens_per_expert,"
    " Tensor gate_up, int intermediate_size) -> Tensor",
    ragged_down: "ragged_down(Tensor hidden, Tensor token_indices, Tensor routing_weights,"
    " Tensor tokens_per_expert, Tensor down, Tensor(a!) y) -> ()",
}


LIBRARY = torch.library.Library("moebench", "FRAGMENT")  # type: ignore[no-untyped-call]
"""The library, which defines `torch.ops.moebench.ragged_up` and `ragged_down` while it lives."""
_KEY = "CompositeExplicitAutograd"
for _launch, _schema in SCHEMAS.items():
    LIBRARY.impl(LIBRARY.define(_schema), _launch, _KEY)  # type: ignore[no-untyped-call]
OPERATIONS = torch.ops.moebench
