"""The two Triton kernels of a ragged mixture of experts.

Both multiply the rows of each expert by that expert's matrix. `up_and_activate` gathers the rows
of x itself and ends in the activation; `down_and_combine` weights its rows and adds them to their
tokens. The activated hidden rows are all that is written between x and y.

The assignments are sorted by expert. One program computes one tile of `BLOCK_M` of one expert's
rows times `BLOCK_N` columns. Which rows those are is read from `tokens_per_expert` on the device,
so that the grid depends on an upper bound alone (`moebench.experts.gpu.tiles.row_tiles`). A
program behind the last tile returns, and entries behind the last assignment are never used.

Weights come through TMA tensor descriptors where `TMA` is set, through pointers otherwise. Sums,
activation and weighting are in fp32. `UPCAST` is for Triton's interpreter only, which multiplies
the bit patterns of bf16 operands.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _locate_rows(
    tokens_per_expert, tile, num_experts, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr
):
    """The expert of a row tile, the tile's first assignment, and the expert's end.

    All counts are read as one vector: E is a few hundred at most, and a search would be a chain
    of dependent loads. Behind the last tile, the expert returned is `BLOCK_E`.
    """
    experts = tl.arange(0, BLOCK_E)
    counts = tl.load(tokens_per_expert + experts, mask=experts < num_experts, other=0)
    counts = counts.to(tl.int32)
    tiles = tl.cdiv(counts, BLOCK_M)
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    is_before = experts < expert
    start = tl.sum(tl.where(is_before, counts, 0), 0)
    first_tile = tl.sum(tl.where(is_before, tiles, 0), 0)
    end = start + tl.sum(tl.where(experts == expert, counts, 0), 0)
    return expert, start + (tile - first_tile) * BLOCK_M, end


@triton.jit
@no_type_check
def _locate_tile(row_tiles, column_tiles, GROUP: tl.constexpr):
    """Row tile and column tile of this program.

    Consecutive programs share the columns of up to `GROUP` row tiles, so that an expert's weights
    are read once into the L2 cache for all of them, while their rows stay there.
    """
    program = tl.program_id(0)
    group = program // (GROUP * column_tiles)
    first = group * GROUP
    size = tl.minimum(row_tiles - first, GROUP)
    within = program % (GROUP * column_tiles)
    return first + within % size, within // size


@triton.jit
@no_type_check
def _load_tile(
    matrix,
    first_row,
    num_rows,
    first_column,
    num_columns,
    TMA: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A tile [ROWS, COLUMNS] of a row-major matrix; zeros beyond its columns.

    Rows beyond `num_rows` are zeros, or with `TMA` anything.
    """
    if TMA:
        tile = matrix.load([first_row, first_column])
    else:
        rows = first_row + tl.arange(0, ROWS)
        columns = first_column + tl.arange(0, COLUMNS)
        places = matrix + rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
        inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
        tile = tl.load(places, mask=inside, other=0.0)
    return tile


@triton.jit
@no_type_check
def _multiply(rows, weight, total, UPCAST: tl.constexpr):
    """Add rows [M, K] times the transpose of weight [N, K] to total [M, N]."""
    if UPCAST:
        rows = rows.to(tl.float32)
        weight = weight.to(tl.float32)
    return tl.dot(rows, tl.trans(weight), total, input_precision="ieee")


@triton.jit
@no_type_check
def up_and_activate(
    x,
    token_indices,
    tokens_per_expert,
    gate_up,
    hidden,
    num_experts,
    row_tiles,
    hidden_size,
    intermediate_size,
    x_stride,
    IS_GATED: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """hidden[i] = SiLU(gate_e x_t) * up_e x_t of assignment i = (t, e), or relu(up_e x_t)^2.

    `gate_up` is [experts * width, hidden_size] row-major: a pointer, or with `TMA` a descriptor
    of tiles [BLOCK_N, BLOCK_K]. `hidden` is [bound, intermediate_size].
    """
    column_tiles = tl.cdiv(intermediate_size, BLOCK_N)
    row_tile, column_tile = _locate_tile(row_tiles, column_tiles, GROUP)
    expert, first, end = _locate_rows(tokens_per_expert, row_tile, num_experts, BLOCK_E, BLOCK_M)
    if expert >= num_experts:
        return
    rows = first + tl.arange(0, BLOCK_M)
    is_row = rows < end
    tokens = tl.load(token_indices + rows, mask=is_row, other=0).to(tl.int64)
    row_places = x + tokens[:, None] * x_stride
    column = column_tile * BLOCK_N
    # The first row of weights: of this expert, of these columns of `hidden`.
    if IS_GATED:
        gate_row = expert * 2 * intermediate_size + column
        up_row = gate_row + intermediate_size
        weight_rows = num_experts * 2 * intermediate_size
    else:
        up_row = expert * intermediate_size + column
        weight_rows = num_experts * intermediate_size
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for depth in range(0, hidden_size, BLOCK_K):
        depths = depth + tl.arange(0, BLOCK_K)
        inside = is_row[:, None] & (depths < hidden_size)[None, :]
        gathered = tl.load(row_places + depths[None, :], mask=inside, other=0.0)
        if IS_GATED:
            weight = _load_tile(
                gate_up, gate_row, weight_rows, depth, hidden_size, TMA, BLOCK_N, BLOCK_K
            )
            gate = _multiply(gathered, weight, gate, UPCAST)
        weight = _load_tile(gate_up, up_row, weight_rows, depth, hidden_size, TMA, BLOCK_N, BLOCK_K)
        up = _multiply(gathered, weight, up, UPCAST)
    if IS_GATED:
        activated = gate * tl.sigmoid(gate) * up
    else:
        positive = tl.maximum(up, 0.0)
        activated = positive * positive
    columns = column + tl.arange(0, BLOCK_N)
    places = hidden + rows.to(tl.int64)[:, None] * intermediate_size + columns[None, :]
    inside = is_row[:, None] & (columns < intermediate_size)[None, :]
    tl.store(places, activated.to(hidden.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def down_and_combine(
    hidden,
    token_indices,
    routing_weights,
    tokens_per_expert,
    down,
    y,
    num_experts,
    row_tiles,
    hidden_size,
    intermediate_size,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """y[t] += weight_i * down_e hidden[i] for each assignment i = (t, e), atomically, in fp32.

    `down` is [experts * hidden_size, intermediate_size] row-major: a pointer, or with `TMA` a
    descriptor of tiles [BLOCK_N, BLOCK_K]. `hidden` [bound, intermediate_size] is likewise a
    pointer or a descriptor of tiles [BLOCK_M, BLOCK_K]. `y` [tokens, hidden_size] starts as 0.
    """
    column_tiles = tl.cdiv(hidden_size, BLOCK_N)
    row_tile, column_tile = _locate_tile(row_tiles, column_tiles, GROUP)
    expert, first, end = _locate_rows(tokens_per_expert, row_tile, num_experts, BLOCK_E, BLOCK_M)
    if expert >= num_experts:
        return
    column = column_tile * BLOCK_N
    weight_row = expert * hidden_size + column
    weight_rows = num_experts * hidden_size
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for depth in range(0, intermediate_size, BLOCK_K):
        activated = _load_tile(hidden, first, end, depth, intermediate_size, TMA, BLOCK_M, BLOCK_K)
        weight = _load_tile(
            down, weight_row, weight_rows, depth, intermediate_size, TMA, BLOCK_N, BLOCK_K
        )
        total = _multiply(activated, weight, total, UPCAST)
    rows = first + tl.arange(0, BLOCK_M)
    is_row = rows < end
    tokens = tl.load(token_indices + rows, mask=is_row, other=0).to(tl.int32)
    weights = tl.load(routing_weights + rows, mask=is_row, other=0.0).to(tl.float32)
    columns = column + tl.arange(0, BLOCK_N)
    inside = is_row[:, None] & (columns < hidden_size)[None, :]
    places = y + tokens[:, None] * hidden_size + columns[None, :]
    tl.atomic_add(places, total * weights[:, None], mask=inside, sem="relaxed")
