"""The three Triton kernels of a ragged mixture of experts.

`up_and_activate` gathers each expert's rows of x, multiplies them by its first matrix and ends in
the activation. `multiply_down` multiplies the activated rows by the second matrix. `combine` adds
a token's weighted rows, in the order of its slots, and the residual: no atomics, so that repeated
runs agree to the bit.

The assignments are sorted by expert. One program of the first two computes one row tile
(`moebench.routers.row_tiles`) times `BLOCK_N` columns; which rows those are it reads from the
routing's table. The grid depends on the table's length, which is an upper bound: a program behind
the last tile returns, and entries behind the last assignment are never used.

With `SWAP` the weights are the left operand: tensor cores then take 64 or more weights and 16
or 32 tokens, where they would otherwise pad the tokens to 64. Weights come through TMA tensor
descriptors where `TMA` is set, through pointers otherwise. Sums, activation and weighting are in
fp32. `UPCAST` is for Triton's interpreter only, which multiplies the bit patterns of bf16 operands.

With `PDL` (programmatic dependent launch) a kernel starts while the one before it still runs, and
waits for its results. Every program waits, and lets the next kernel start only then: so whatever
the kernel before the last one wrote may be read without waiting.
"""

from typing import no_type_check

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

PREFETCHED_STEPS: tl.constexpr = tl.constexpr(2)
"""Steps along the inner dimension whose weights are asked for before the wait."""


@triton.jit
@no_type_check
def _read_tile(table, row_tiles, row_tile):
    """The expert of a row tile, its first assignment, and the end of its assignments."""
    place = table + row_tile
    return tl.load(place), tl.load(place + row_tiles), tl.load(place + 2 * row_tiles)


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
def _multiply(rows, weight, total, SWAP: tl.constexpr, UPCAST: tl.constexpr):
    """Add rows [M, K] times the transpose of weight [N, K] to total [M, N], [N, M] with `SWAP`."""
    if UPCAST:
        rows = rows.to(tl.float32)
        weight = weight.to(tl.float32)
    if SWAP:
        total = tl.dot(weight, tl.trans(rows), total, input_precision="ieee")
    else:
        total = tl.dot(rows, tl.trans(weight), total, input_precision="ieee")
    return total


@triton.jit
@no_type_check
def _zeros(M: tl.constexpr, N: tl.constexpr, SWAP: tl.constexpr):
    """A sum that `_multiply` adds to."""
    return tl.zeros((N, M) if SWAP else (M, N), tl.float32)


@triton.jit
@no_type_check
def _wait_for_last_kernel(PDL: tl.constexpr):
    """Wait for the results of the kernel before this one, and let the next one start."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
@no_type_check
def _prefetch_tile(
    matrix,
    first_row,
    num_rows,
    first_column,
    num_columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Ask for a tile of a row-major matrix in the L2 cache, whose lines have 128 bytes."""
    LINE: tl.constexpr = 128 // (matrix.dtype.element_ty.primitive_bitwidth // 8)
    rows = tl.minimum(first_row + tl.arange(0, ROWS), num_rows - 1)
    columns = first_column + LINE * tl.arange(0, COLUMNS // LINE)
    columns = tl.minimum(columns, num_columns - 1)
    places = matrix + rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [places.to(tl.int64, bitcast=True)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit(do_not_specialize=["num_experts", "row_tiles"])
@no_type_check
def up_and_activate(
    x,
    token_indices,
    table,
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
    SWAP: tl.constexpr,
    PDL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """hidden[i] = SiLU(gate_e x_t) * up_e x_t of assignment i = (t, e), or relu(up_e x_t)^2.

    `gate_up` is [experts * width, hidden_size] row-major: a pointer, or with `TMA` a descriptor
    of tiles [BLOCK_N, BLOCK_K]. `hidden` is [bound, intermediate_size].
    """
    _wait_for_last_kernel(PDL)
    column_tiles = tl.cdiv(intermediate_size, BLOCK_N)
    row_tile, column_tile = _locate_tile(row_tiles, column_tiles, GROUP)
    expert, first, end = _read_tile(table, row_tiles, row_tile)
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
    up = _zeros(BLOCK_M, BLOCK_N, SWAP)
    gate = _zeros(BLOCK_M, BLOCK_N, SWAP)
    for depth in range(0, hidden_size, BLOCK_K):
        depths = depth + tl.arange(0, BLOCK_K)
        inside = is_row[:, None] & (depths < hidden_size)[None, :]
        gathered = tl.load(row_places + depths[None, :], mask=inside, other=0.0)
        if IS_GATED:
            weight = _load_tile(
                gate_up, gate_row, weight_rows, depth, hidden_size, TMA, BLOCK_N, BLOCK_K
            )
            gate = _multiply(gathered, weight, gate, SWAP, UPCAST)
        weight = _load_tile(gate_up, up_row, weight_rows, depth, hidden_size, TMA, BLOCK_N, BLOCK_K)
        up = _multiply(gathered, weight, up, SWAP, UPCAST)
    if IS_GATED:
        activated = gate * tl.sigmoid(gate) * up
    else:
        positive = tl.maximum(up, 0.0)
        activated = positive * positive
    if SWAP:
        activated = tl.trans(activated)
    columns = column + tl.arange(0, BLOCK_N)
    places = hidden + rows.to(tl.int64)[:, None] * intermediate_size + columns[None, :]
    inside = is_row[:, None] & (columns < intermediate_size)[None, :]
    tl.store(places, activated.to(hidden.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_experts", "row_tiles", "bound"])
@no_type_check
def multiply_down(
    hidden,
    table,
    down,
    down_memory,
    outputs,
    num_experts,
    row_tiles,
    bound,
    hidden_size,
    intermediate_size,
    split_size,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
    SWAP: tl.constexpr,
    PDL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """outputs[s, i] = down_e hidden[i] of assignment i = (t, e), over the s-th part of the sum.

    `down` is [experts * hidden_size, intermediate_size] row-major: a pointer, or with `TMA` a
    descriptor of tiles [BLOCK_N, BLOCK_K]. `hidden` [bound, intermediate_size] is likewise a
    pointer or a descriptor of tiles [BLOCK_M, BLOCK_K]. `down_memory` is the pointer of `down` in
    either case: its first tiles are prefetched. `outputs` is [parts, bound, hidden_size]; a part is
    `split_size` of the intermediate size, a multiple of `BLOCK_K`.
    """
    column_tiles = tl.cdiv(hidden_size, BLOCK_N)
    row_tile, column_tile = _locate_tile(row_tiles, column_tiles, GROUP)
    expert, first, end = _read_tile(table, row_tiles, row_tile)
    part = tl.program_id(1)
    column = column_tile * BLOCK_N
    weight_row = expert * hidden_size + column
    weight_rows = num_experts * hidden_size
    first_depth = part * split_size
    if PDL:
        # Weights depend on no kernel: they come while the hidden rows are still computed.
        _prefetch_tile(
            down_memory,
            weight_row,
            weight_rows,
            first_depth,
            intermediate_size,
            BLOCK_N,
            PREFETCHED_STEPS * BLOCK_K,
        )
    _wait_for_last_kernel(PDL)
    if expert >= num_experts:
        return
    total = _zeros(BLOCK_M, BLOCK_N, SWAP)
    for depth in range(
        first_depth, tl.minimum(first_depth + split_size, intermediate_size), BLOCK_K
    ):
        activated = _load_tile(hidden, first, end, depth, intermediate_size, TMA, BLOCK_M, BLOCK_K)
        weight = _load_tile(
            down, weight_row, weight_rows, depth, intermediate_size, TMA, BLOCK_N, BLOCK_K
        )
        total = _multiply(activated, weight, total, SWAP, UPCAST)
    if SWAP:
        total = tl.trans(total)
    rows = first + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    inside = (rows < end)[:, None] & (columns < hidden_size)[None, :]
    first_row = part.to(tl.int64) * bound
    places = outputs + (first_row + rows)[:, None] * hidden_size + columns[None, :]
    tl.store(places, total.to(outputs.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["bound", "num_slots"])
@no_type_check
def combine(
    outputs,
    places,
    routing_weights,
    residual,
    y,
    bound,
    num_slots,
    hidden_size,
    multiplier,
    HAS_RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
    PARTS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y[t] = residual[t] + multiplier * the sum over t's slots of weight_i * outputs[:, i].

    `places` [tokens, slots] has the assignment i of each slot, -1 for none. `SLOTS` slots are
    loaded at once. The sum is in fp32; a token without an assignment gets 0, or its residual.
    """
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = columns < hidden_size
    if HAS_RESIDUAL:
        added = tl.load(residual + token * hidden_size + columns, mask=is_column).to(tl.float32)
    _wait_for_last_kernel(PDL)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for first_slot in range(0, num_slots, SLOTS):
        for offset in tl.static_range(SLOTS):
            slot = first_slot + offset
            place = tl.load(places + token * num_slots + slot, mask=slot < num_slots, other=-1)
            is_used = place >= 0
            weight = tl.load(routing_weights + place, mask=is_used, other=0.0).to(tl.float32)
            output = tl.zeros((BLOCK_N,), tl.float32)
            for part in tl.static_range(PARTS):
                row = (part * bound + place).to(tl.int64) * hidden_size
                inside = is_column & is_used
                output += tl.load(outputs + row + columns, mask=inside, other=0.0).to(tl.float32)
            total += weight * output
    result = total * multiplier
    if HAS_RESIDUAL:
        result += added
    tl.store(y + token * hidden_size + columns, result.to(y.dtype.element_ty), mask=is_column)
