"""Launches of the three Triton kernels, as operations that torch dispatches.

They are registered under `torch.ops.moebench`, so that counters of FLOPs and of launches count
them. The host never waits for a value of the device: the grid depends on shapes alone.
"""

from collections.abc import MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from moebench.experts.gpu.fingerprint import device_fingerprint
from moebench.experts.gpu.tiles import (
    COMBINE_WARPS,
    COMBINED_COLUMNS,
    COMBINED_SLOTS,
    FIRST_PDL_CAPABILITY,
    FIRST_TMA_CAPABILITY,
    NO_TMA_CAPABILITY,
    KernelTile,
    parts_of_sum,
)
from moebench.experts.gpu.tuned import ChosenTiles, LayerSizes, chosen_tiles
from moebench.routers.routing import Hidden
from moebench.routers.row_tiles import most_row_tiles

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED_CAPABILITY = 90
"""Capability whose tiles Triton's interpreter runs, on CPU tensors."""
INTERPRETED_MULTIPROCESSORS = 132


def ragged_up(
    x: Hidden,
    token_indices: Int[Tensor, " bound"],
    table: Int[Tensor, "3 tiles"],
    gate_up: Float[Tensor, "experts width hidden"],
    tile_rows: int,
    intermediate_size: int,
    bias: Float[Tensor, "experts width"] | None = None,
    clamp: Sequence[float] = (),
) -> Float[Tensor, "bound intermediate"]:
    """The activated hidden row of each assignment, sorted by expert; uninitialised behind the last.

    `gate_up` is gate above up, or up alone (squared ReLU): `intermediate_size` tells which.

    Args:
        table: See `moebench.routers.row_tiles.RowTiles`, as `tile_rows`.
        clamp: alpha and limit of gpt-oss's activation, or nothing.
    """
    from moebench.experts.gpu import kernels

    use_tma = _uses_tma(gate_up)
    sizes = len(gate_up), x.shape[1], intermediate_size
    tile = tiles_of(gate_up, sizes, tile_rows, use_tma).tiles.up
    if x.stride(1) != 1 or tile.gathers_by_tma and not x.is_contiguous():
        x = x.contiguous()
    hidden = x.new_empty(len(token_indices), intermediate_size)
    programs = table.shape[1] * -(-intermediate_size // tile.columns)
    with device_of(x):
        kernels.up_and_activate[(_programs(programs, tile, x),)](
            *(_descriptor(x, 1, tile) if tile.gathers_by_tma else x, token_indices, table),
            *(_weights(gate_up, tile, use_tma), gate_up if bias is None else bias.contiguous()),
            *(hidden, len(gate_up), table.shape[1]),
            *(x.shape[1], intermediate_size, x.stride(0), *(clamp or (0.0, 0.0))),
            IS_GATED=gate_up.shape[1] != intermediate_size,
            IS_CLAMPED=bool(clamp),
            HAS_BIAS=bias is not None,
            TMA=use_tma,
            GATHER=tile.gathers_by_tma,
            **_constants(tile, x),
        )
    return hidden


def ragged_down(
    hidden: Float[Tensor, "bound intermediate"],
    table: Int[Tensor, "3 tiles"],
    down: Float[Tensor, "experts hidden intermediate"],
    tile_rows: int,
    parts: int,
    bias: Float[Tensor, "experts hidden"] | None = None,
) -> Float[Tensor, "parts bound hidden"]:
    """The expert output of each assignment; uninitialised behind the last.

    One part is the output, rounded to the type of `hidden`. Several are terms of it, in fp32.

    Args:
        table: As for `ragged_up`; it must not come from the kernel that was launched last.
    """
    from moebench.experts.gpu import kernels

    bound, (hidden_size, intermediate_size) = len(hidden), down.shape[1:]
    use_tma = _uses_tma(down)
    tile = tiles_of(down, down.shape, tile_rows, use_tma).tiles.down
    assert parts == 1 or not tile.is_persistent
    dtype = hidden.dtype if parts == 1 else torch.float32
    outputs = hidden.new_empty(parts, bound, hidden_size, dtype=dtype)
    rows = _descriptor(hidden, tile.rows, tile) if use_tma else hidden
    depth = tile.depth(hidden.element_size())
    split_size = -(-_steps(intermediate_size, tile, hidden) // parts) * depth
    programs = table.shape[1] * -(-hidden_size // tile.columns)
    with device_of(hidden):
        kernels.multiply_down[(_programs(programs, tile, hidden), parts)](
            *(rows, table, _weights(down, tile, use_tma), down),
            *(down if bias is None else bias.contiguous(), outputs),
            *(len(down), table.shape[1], bound, hidden_size, intermediate_size, split_size),
            HAS_BIAS=bias is not None,
            TMA=use_tma,
            **_constants(tile, hidden),
        )
    return outputs


def ragged_combine(
    outputs: Float[Tensor, "parts bound hidden"],
    places: Int[Tensor, "tokens slots"],
    routing_weights: Float[Tensor, " bound"],
    like: Hidden,
    residual: Float[Tensor, "*tokens hidden"] | None,
    multiplier: float,
) -> Float[Tensor, "*tokens hidden"]:
    """Each token's weighted sum of its outputs times a factor, plus its residual if there is one.

    The sum is in fp32, in the order of the token's slots, and rounded once.

    Args:
        places: See `moebench.routers.routing.Routing.slot_places`.
        like: Tensor whose shape and type the result has without a residual.
    """
    from moebench.experts.gpu import combine_kernel

    num_tokens, num_slots = places.shape
    hidden_size = outputs.shape[2]
    like = like if residual is None else residual
    y = torch.empty_like(like, memory_format=torch.contiguous_format)
    columns = min(COMBINED_COLUMNS, 1 << (hidden_size - 1).bit_length())
    slots = min(COMBINED_SLOTS, 1 << (num_slots - 1).bit_length())
    grid = (num_tokens, -(-hidden_size // columns))
    with device_of(outputs):
        combine_kernel.combine[grid](
            *(outputs, places.contiguous(), routing_weights),
            *(y if residual is None else residual.contiguous(), y),
            *(outputs.shape[1], num_slots, hidden_size, multiplier),
            HAS_RESIDUAL=residual is not None,
            PARTS=outputs.shape[0],
            SLOTS=slots,
            BLOCK_N=columns,
            num_warps=COMBINE_WARPS,
            **_dependent(outputs),
        )
    return y


def choose_parts(x: Tensor, down: Tensor, tile_rows: int, expected_assignments: float) -> int:
    """Parts of the second matmul's sum for a load that is expected; see `parts_of_sum`."""
    chosen = tiles_of(down, down.shape, tile_rows, _uses_tma(down))
    tile = chosen.tiles.down
    if tile.is_persistent:
        return 1
    row_tiles = most_row_tiles(round(expected_assignments), len(down), tile_rows)
    column_tiles = -(-down.shape[1] // tile.columns)
    steps = _steps(down.shape[2], tile, x)
    loads = max(1, row_tiles), column_tiles, steps
    return parts_of_sum(*loads, multiprocessors_of(x), chosen.programs)


def tiles_of(
    weights: Tensor, sizes: Sequence[int], tile_rows: int, use_tma: bool = True
) -> ChosenTiles:
    """The tiles of a layer of experts; `sizes` are experts, hidden and intermediate size.

    Matrices that TMA cannot read on a device that has it run the tiles of one that has not.
    """
    experts, hidden_size, intermediate_size = sizes
    layer = LayerSizes(experts, hidden_size, intermediate_size, tile_rows, weights.element_size())
    capability = capability_of(weights)
    if not use_tma and capability >= FIRST_TMA_CAPABILITY:
        return chosen_tiles(None, NO_TMA_CAPABILITY, layer)
    return chosen_tiles(device_fingerprint(weights.device), capability, layer)


def _programs(tiles: int, tile: KernelTile, x: Tensor) -> int:
    """Programs that compute so many tiles: one each, or as many as the device holds at once."""
    return min(tiles, multiprocessors_of(x)) if tile.is_persistent else tiles


def _steps(intermediate_size: int, tile: KernelTile, x: Tensor) -> int:
    return -(-intermediate_size // tile.depth(x.element_size()))


def _constants(tile: KernelTile, x: Tensor) -> dict[str, int | bool]:
    """Compile-time constants of both kernels that multiply."""
    return {
        "UPCAST": not x.is_cuda and x.dtype == torch.bfloat16,
        **tile.constants(x.element_size()),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **_dependent(x),
    }


def _dependent(x: Tensor) -> dict[str, bool]:
    """Constants and options of a kernel that may start before the last one ends, where it can."""
    if x.is_cuda and capability_of(x) >= FIRST_PDL_CAPABILITY:
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}


def device_of(x: Tensor) -> AbstractContextManager[None]:
    """The tensor's GPU as the current device, which is the one that Triton launches on."""
    guard: AbstractContextManager[None] = torch.cuda.device_of(x)  # type: ignore[no-untyped-call]
    return guard


def capability_of(x: Tensor) -> int:
    """Compute capability of the tensor's device, 90 for 9.0."""
    if not x.is_cuda:
        return INTERPRETED_CAPABILITY
    major, minor = torch.cuda.get_device_capability(x.device)
    return 10 * major + minor


def multiprocessors_of(x: Tensor) -> int:
    """Multiprocessors of the tensor's device."""
    if not x.is_cuda:
        return INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(x.device).multi_processor_count


def _uses_tma(matrix: Tensor) -> bool:
    """Whether the device has a tensor memory accelerator, and the matrix is aligned for it."""
    row_bytes = matrix.shape[-1] * matrix.element_size()
    is_aligned = row_bytes % 16 == 0 and matrix.data_ptr() % 16 == 0
    return is_aligned and capability_of(matrix) >= FIRST_TMA_CAPABILITY


_DESCRIPTORS: MutableMapping[Tensor, dict[Any, Any]] = WeakTensorKeyDictionary()
"""The TMA descriptors of each tensor of weights by their block, with the memory they describe."""


def _weights(stack: Tensor, tile: KernelTile, use_tma: bool) -> Any:
    """A stack of matrices as the kernels take it: a pointer, or a TMA descriptor of its blocks.

    A descriptor is kept until the tensor is freed or its memory is another.
    """
    if not use_tma:
        return stack.contiguous()
    if not stack.is_contiguous():
        return _descriptor(stack.contiguous(), tile.columns, tile)
    known = _DESCRIPTORS.setdefault(stack, {})
    block = tile.columns, tile.depth_bytes
    memory, descriptor = known.get(block, (None, None))
    if memory != (stack.data_ptr(), stack.shape):
        descriptor = _descriptor(stack, tile.columns, tile)
        known[block] = (stack.data_ptr(), stack.shape), descriptor
    return descriptor


def _descriptor(stack: Tensor, block_rows: int, tile: KernelTile) -> Any:
    """A TMA descriptor of a stack of matrices, which are one below the other."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    # Without `detach`, the view would keep its base: a descriptor would never be freed.
    rows = stack.detach().view(-1, stack.shape[-1])
    return TensorDescriptor.from_tensor(rows, [block_rows, tile.depth(stack.element_size())])


SCHEMAS = {
    ragged_up: "ragged_up(Tensor x, Tensor token_indices, Tensor table, Tensor gate_up,"
    " int tile_rows, int intermediate_size, Tensor? bias=None, float[] clamp=[]) -> Tensor",
    ragged_down: "ragged_down(Tensor hidden, Tensor table, Tensor down, int tile_rows, int parts,"
    " Tensor? bias=None) -> Tensor",
    ragged_combine: "ragged_combine(Tensor outputs, Tensor places, Tensor routing_weights,"
    " Tensor like, Tensor? residual, float multiplier) -> Tensor",
}


LIBRARY = torch.library.Library("moebench", "FRAGMENT")  # type: ignore[no-untyped-call]
"""The library, which defines the launches as `torch.ops.moebench.ragged_up` ... while it lives."""
_KEY = "CompositeExplicitAutograd"
for _launch, _schema in SCHEMAS.items():
    LIBRARY.impl(LIBRARY.define(_schema), _launch, _KEY)  # type: ignore[no-untyped-call]
OPERATIONS = torch.ops.moebench
