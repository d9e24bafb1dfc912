"""The two Triton kernels of a ragged mixture of experts that multiply.

`up_and_activate` gathers each expert's rows of x, multiplies them by its first matrix and ends in
the activation. `multiply_down` multiplies the activated rows by the second matrix. A third one,
`moebench.experts.gpu.combine_kernel`, adds each token's rows.

The assignments are sorted by expert. One program computes one row tile
(`moebench.routers.row_tiles`) times `BLOCK_N` columns; which rows those are it reads from the
routing's table. The grid depends on the table's length, which is an upper bound: a program behind
the last tile returns, and entries behind the last assignment are never used.

With `SWAP` the weights are the left operand: tensor cores then take 64 or more weights and 16
or 32 tokens, where they would otherwise pad the tokens to 64. Weights come through TMA tensor
descriptors where `TMA` is set, through pointers otherwise. Sums, activation and weighting are in
fp32. `UPCAST` is for Triton's interpreter only, which multiplies the bit patterns of bf16 operands.

With `PERSISTENT` as many programs as the device holds take tiles in turn, in the same order: the
next tile's loads run under the last one's stores. `SPECIALISE` gives loads, products and stores
warps of their own, on Blackwell. `GATHER` gathers the rows of x through TMA, where the device can.

With `PDL` (programmatic dependent launch) a kernel starts while the one before it still runs, and
waits for its results. Every program waits, and lets the next kernel start only then: so whatever
the kernel before the last one wrote may be read without waiting.
"""

from typing import no_type_check

import triton
import triton.language as tl

from moebench.experts.gpu.kernel_parts import (
    _activation,
    _add_bias,
    _load_tile,
    _locate_tile,
    _multiply,
    _place_of,
    _prefetch_tile,
    _read_tile,
    _store_tile,
    _used_tiles,
    _wait_for_last_kernel,
    _zeros,
)

PREFETCHED_STEPS: tl.constexpr = tl.constexpr(2)
"""Steps along the inner dimension whose weights are asked for before the wait."""


@triton.jit
@no_type_check
def _up_tile(
    x,
    token_indices,
    gate_up,
    bias,
    hidden,
    expert,
    first,
    end,
    column,
    weight_rows,
    hidden_size,
    intermediate_size,
    x_stride,
    alpha,
    limit,
    IS_GATED: tl.constexpr,
    IS_CLAMPED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TMA: tl.constexpr,
    GATHER: tl.constexpr,
    UPCAST: tl.constexpr,
    SWAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of `up_and_activate`."""
    rows = first + tl.arange(0, BLOCK_M)
    is_row = rows < end
    tokens = tl.load(token_indices + rows, mask=is_row, other=0)
    if not GATHER:
        row_places = x + tokens.to(tl.int64)[:, None] * x_stride
    # The first row of weights: of this expert, of these columns of `hidden`.
    if IS_GATED:
        gate_row = expert * 2 * intermediate_size + column
        up_row = gate_row + intermediate_size
    else:
        up_row = expert * intermediate_size + column
    up = _zeros(BLOCK_M, BLOCK_N, SWAP)
    gate = _zeros(BLOCK_M, BLOCK_N, SWAP)
    for depth in range(0, hidden_size, BLOCK_K):
        if GATHER:
            gathered = x.gather(tokens.to(tl.int32), depth)
        else:
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
    if HAS_BIAS:
        up = _add_bias(up, bias, up_row, column, intermediate_size, True, SWAP, BLOCK_N)
        if IS_GATED:
            gate = _add_bias(gate, bias, gate_row, column, intermediate_size, True, SWAP, BLOCK_N)
    activated = _activation(gate, up, alpha, limit, IS_GATED, IS_CLAMPED)
    _store_tile(hidden, activated, 0, rows, end, column, intermediate_size, SWAP, BLOCK_N)


@triton.jit(do_not_specialize=["num_experts", "row_tiles"])
@no_type_check
def up_and_activate(
    x,
    token_indices,
    table,
    gate_up,
    bias,
    hidden,
    num_experts,
    row_tiles,
    hidden_size,
    intermediate_size,
    x_stride,
    alpha,
    limit,
    IS_GATED: tl.constexpr,
    IS_CLAMPED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TMA: tl.constexpr,
    GATHER: tl.constexpr,
    UPCAST: tl.constexpr,
    SWAP: tl.constexpr,
    PDL: tl.constexpr,
    PERSISTENT: tl.constexpr,
    SPECIALISE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """hidden[i] = SiLU(gate_e x_t) * up_e x_t of assignment i = (t, e), or relu(up_e x_t)^2.

    `IS_CLAMPED`: gpt-oss's activation with its `alpha` and `limit`, gate above up.
    `gate_up` is [experts * width, hidden_size] row-major: a pointer, or with `TMA` a descriptor
    of tiles [BLOCK_N, BLOCK_K]. `x` is a pointer, or with `GATHER` a descriptor of [1, BLOCK_K].
    `hidden` is [bound, intermediate_size].
    """
    _wait_for_last_kernel(PDL)
    column_tiles = tl.cdiv(intermediate_size, BLOCK_N)
    weight_rows = num_experts * intermediate_size * (2 if IS_GATED else 1)
    if PERSISTENT:
        used = _used_tiles(table, row_tiles, num_experts)
        for number in tl.range(
            tl.program_id(0),
            used * column_tiles,
            tl.num_programs(0),
            flatten=True,
            warp_specialize=SPECIALISE,
        ):
            row_tile, column_tile = _place_of(number, used, column_tiles, GROUP)
            expert, first, end = _read_tile(table, row_tiles, row_tile)
            _up_tile(
                *(x, token_indices, gate_up, bias, hidden, expert, first, end),
                *(column_tile * BLOCK_N, weight_rows, hidden_size, intermediate_size),
                *(x_stride, alpha, limit, IS_GATED, IS_CLAMPED, HAS_BIAS),
                *(TMA, GATHER, UPCAST, SWAP, BLOCK_M, BLOCK_N, BLOCK_K),
            )
    else:
        row_tile, column_tile = _locate_tile(row_tiles, column_tiles, GROUP)
        expert, first, end = _read_tile(table, row_tiles, row_tile)
        if expert >= num_experts:
            return
        _up_tile(
            *(x, token_indices, gate_up, bias, hidden, expert, first, end),
            *(column_tile * BLOCK_N, weight_rows, hidden_size, intermediate_size),
            *(x_stride, alpha, limit, IS_GATED, IS_CLAMPED, HAS_BIAS),
            *(TMA, GATHER, UPCAST, SWAP, BLOCK_M, BLOCK_N, BLOCK_K),
        )


@triton.jit
@no_type_check
def _down_tile(
    hidden,
    down,
    bias,
    outputs,
    expert,
    first,
    end,
    column,
    weight_rows,
    first_output,
    hidden_size,
    intermediate_size,
    first_depth,
    end_depth,
    HAS_BIAS: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
    SWAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of `multiply_down`."""
    weight_row = expert * hidden_size + column
    total = _zeros(BLOCK_M, BLOCK_N, SWAP)
    for depth in range(first_depth, end_depth, BLOCK_K):
        activated = _load_tile(hidden, first, end, depth, intermediate_size, TMA, BLOCK_M, BLOCK_K)
        weight = _load_tile(
            down, weight_row, weight_rows, depth, intermediate_size, TMA, BLOCK_N, BLOCK_K
        )
        total = _multiply(activated, weight, total, SWAP, UPCAST)
    if HAS_BIAS:
        is_first = first_depth == 0
        total = _add_bias(total, bias, weight_row, column, hidden_size, is_first, SWAP, BLOCK_N)
    rows = first + tl.arange(0, BLOCK_M)
    _store_tile(outputs, total, first_output, rows, end, column, hidden_size, SWAP, BLOCK_N)


@triton.jit(do_not_specialize=["num_experts", "row_tiles", "bound"])
@no_type_check
def multiply_down(
    hidden,
    table,
    down,
    down_memory,
    bias,
    outputs,
    num_experts,
    row_tiles,
    bound,
    hidden_size,
    intermediate_size,
    split_size,
    HAS_BIAS: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
    SWAP: tl.constexpr,
    PDL: tl.constexpr,
    PERSISTENT: tl.constexpr,
    SPECIALISE: tl.constexpr,
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
    `split_size` of the intermediate size, a multiple of `BLOCK_K`; `PERSISTENT` takes one part.
    """
    column_tiles = tl.cdiv(hidden_size, BLOCK_N)
    weight_rows = num_experts * hidden_size
    if PERSISTENT:
        _wait_for_last_kernel(PDL)
        used = _used_tiles(table, row_tiles, num_experts)
        for number in tl.range(
            tl.program_id(0),
            used * column_tiles,
            tl.num_programs(0),
            flatten=True,
            warp_specialize=SPECIALISE,
        ):
            row_tile, column_tile = _place_of(number, used, column_tiles, GROUP)
            expert, first, end = _read_tile(table, row_tiles, row_tile)
            _down_tile(
                *(hidden, down, bias, outputs, expert, first, end, column_tile * BLOCK_N),
                *(weight_rows, 0, hidden_size, intermediate_size, 0, intermediate_size),
                *(HAS_BIAS, TMA, UPCAST, SWAP, BLOCK_M, BLOCK_N, BLOCK_K),
            )
    else:
        row_tile, column_tile = _locate_tile(row_tiles, column_tiles, GROUP)
        expert, first, end = _read_tile(table, row_tiles, row_tile)
        part, column = tl.program_id(1), column_tile * BLOCK_N
        first_depth = part * split_size
        if PDL:
            # Weights depend on no kernel: they come while the hidden rows are still computed.
            _prefetch_tile(
                *(down_memory, expert * hidden_size + column, weight_rows),
                *(first_depth, intermediate_size, BLOCK_N, PREFETCHED_STEPS * BLOCK_K),
            )
        _wait_for_last_kernel(PDL)
        if expert >= num_experts:
            return
        end_depth = tl.minimum(first_depth + split_size, intermediate_size)
        _down_tile(
            *(hidden, down, bias, outputs, expert, first, end, column, weight_rows),
            *(part.to(tl.int64) * bound, hidden_size, intermediate_size, first_depth, end_depth),
            *(HAS_BIAS, TMA, UPCAST, SWAP, BLOCK_M, BLOCK_N, BLOCK_K),
        )
