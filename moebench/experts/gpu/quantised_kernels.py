"""The Triton kernels of experts whose weights are stored in 8 or 4 bits.

They are the first two kernels of `moebench.experts.gpu.kernels` with packed weights: codes are read
from memory and become numbers of x's type in registers, so that fewer bytes are read where reading
weights bounds the time. Weights are always the left operand of the tensor cores. Sums, scales of
blocks, activation and weighting are in fp32. The formats are those of `moebench.experts.quantised`:

- fp8: a code is e4m3, exact in bf16 and fp16; a block of 128 x 128 has a scale in fp32, which
  multiplies the sum over the block's 128 columns;
- mxfp4 (`MXFP4`): two codes of e2m1 a byte, a scale of one byte (a power of two) for 32 elements of
  a row. Triton's `dot_scaled` makes exact bf16 of both.

`CONVERTS` is for devices that convert e4m3 by an instruction (compute capability 8.9 and newer);
elsewhere integer operations do it. `UPCAST` is for Triton's interpreter, as in `kernels`.
"""

from typing import no_type_check

import triton
import triton.language as tl

from moebench.experts.gpu.kernel_parts import (
    _activation,
    _add_bias,
    _locate_tile,
    _read_tile,
    _store_tile,
)

BLOCK: tl.constexpr = tl.constexpr(128)
"""Side of a block with one scale (fp8)."""
GROUP_SIZE: tl.constexpr = tl.constexpr(32)
"""Elements of a row with one scale (mxfp4)."""


@triton.jit
@no_type_check
def _numbers(codes, dtype: tl.constexpr, CONVERTS: tl.constexpr):
    """The exact values of e4m3 codes: sign, 4 bits of exponent with bias 7, 3 bits of mantissa."""
    if CONVERTS:
        numbers = codes.to(dtype)
    else:
        # As fp16, whose exponent has bias 15: the same bits in its places are 2^8 times smaller.
        bits = codes.to(tl.uint16)
        bits = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        numbers = (bits.to(tl.float16, bitcast=True) * 256.0).to(dtype)
    return numbers


@triton.jit
@no_type_check
def _add_product(
    total,
    rows,
    codes,
    scales,
    columns,
    num_columns,
    depth,
    size,
    MXFP4: tl.constexpr,
    CONVERTS: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add to total [N, M] the product of weights [N, K] at a depth and rows [M, K].

    `codes` and `scales` are those of one matrix [num_columns, size].
    """
    is_column = columns < num_columns
    if MXFP4:
        bytes_ = depth // 2 + tl.arange(0, BLOCK_K // 2)
        places = codes + columns[:, None] * (size // 2) + bytes_[None, :]
        packed = tl.load(places, mask=is_column[:, None] & (bytes_ < size // 2)[None, :], other=0)
        groups = depth // GROUP_SIZE + tl.arange(0, BLOCK_K // GROUP_SIZE)
        num_groups = size // GROUP_SIZE
        places = scales + columns[:, None] * num_groups + groups[None, :]
        inside = is_column[:, None] & (groups < num_groups)[None, :]
        exponents = tl.load(places, mask=inside, other=0)
        total = tl.dot_scaled(packed, exponents, "e2m1", tl.trans(rows), None, "bf16", total)
    else:
        depths = depth + tl.arange(0, BLOCK_K)
        places = codes + columns[:, None] * size + depths[None, :]
        inside = is_column[:, None] & (depths < size)[None, :]
        weight = _numbers(tl.load(places, mask=inside, other=0.0), rows.dtype, CONVERTS)
        block = tl.min(columns, 0) // BLOCK
        scale = tl.load(scales + block * tl.cdiv(size, BLOCK) + depth // BLOCK)
        if UPCAST:
            weight = weight.to(tl.float32)
            rows = rows.to(tl.float32)
        total += tl.dot(weight, tl.trans(rows), input_precision="ieee") * scale
    return total


@triton.jit
@no_type_check
def _matrix(codes, scales, matrix, rows, size, MXFP4: tl.constexpr):
    """Codes and scales of one of several matrices [rows, size]."""
    if MXFP4:
        own_codes = codes + matrix.to(tl.int64) * rows * (size // 2)
        own_scales = scales + matrix.to(tl.int64) * rows * (size // GROUP_SIZE)
    else:
        own_codes = codes + matrix.to(tl.int64) * rows * size
        own_scales = scales + matrix * tl.cdiv(rows, BLOCK) * tl.cdiv(size, BLOCK)
    return own_codes, own_scales


@triton.jit(do_not_specialize=["num_experts", "row_tiles"])
@no_type_check
def packed_up(
    x,
    token_indices,
    table,
    codes,
    scales,
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
    MXFP4: tl.constexpr,
    CONVERTS: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """hidden[i] = SiLU(gate_e x_t) * up_e x_t of assignment i = (t, e), or relu(up_e x_t)^2.

    `codes` and `scales` hold [experts, 2 or 1] matrices [intermediate_size, hidden_size], `bias`
    is [experts, 2 or 1, intermediate_size]. With `IS_CLAMPED` gpt-oss's activation with its
    `alpha` and `limit`.
    """
    row_tile, column_tile = _locate_tile(row_tiles, tl.cdiv(intermediate_size, BLOCK_N), GROUP)
    expert, first, end = _read_tile(table, row_tiles, row_tile)
    if expert >= num_experts:
        return
    rows = first + tl.arange(0, BLOCK_M)
    is_row = rows < end
    tokens = tl.load(token_indices + rows, mask=is_row, other=0).to(tl.int64)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    if IS_GATED:
        gate_codes, gate_scales = _matrix(
            codes, scales, 2 * expert, intermediate_size, hidden_size, MXFP4
        )
        up_codes, up_scales = _matrix(
            codes, scales, 2 * expert + 1, intermediate_size, hidden_size, MXFP4
        )
    else:
        up_codes, up_scales = _matrix(codes, scales, expert, intermediate_size, hidden_size, MXFP4)
    gate = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for depth in range(0, hidden_size, BLOCK_K):
        depths = depth + tl.arange(0, BLOCK_K)
        places = x + tokens[:, None] * x_stride + depths[None, :]
        inside = is_row[:, None] & (depths < hidden_size)[None, :]
        gathered = tl.load(places, mask=inside, other=0.0)
        if IS_GATED:
            gate = _add_product(
                *(gate, gathered, gate_codes, gate_scales, columns, intermediate_size),
                *(depth, hidden_size, MXFP4, CONVERTS, UPCAST, BLOCK_K),
            )
        up = _add_product(
            *(up, gathered, up_codes, up_scales, columns, intermediate_size),
            *(depth, hidden_size, MXFP4, CONVERTS, UPCAST, BLOCK_K),
        )
    column = column_tile * BLOCK_N
    if HAS_BIAS:
        own = bias + expert * (2 if IS_GATED else 1) * intermediate_size
        if IS_GATED:
            gate = _add_bias(gate, own, column, column, intermediate_size, True, True, BLOCK_N)
            own += intermediate_size
        up = _add_bias(up, own, column, column, intermediate_size, True, True, BLOCK_N)
    activated = _activation(gate, up, alpha, limit, IS_GATED, IS_CLAMPED)
    _store_tile(hidden, activated, 0, rows, end, column, intermediate_size, True, BLOCK_N)


@triton.jit(do_not_specialize=["num_experts", "row_tiles", "bound"])
@no_type_check
def packed_down(
    hidden,
    table,
    codes,
    scales,
    bias,
    outputs,
    num_experts,
    row_tiles,
    bound,
    hidden_size,
    intermediate_size,
    split_size,
    HAS_BIAS: tl.constexpr,
    MXFP4: tl.constexpr,
    CONVERTS: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """outputs[s, i] = down_e hidden[i] of assignment i = (t, e), over the s-th part of the sum.

    `codes` and `scales` hold [experts] matrices [hidden_size, intermediate_size]; `bias`
    [experts, hidden_size] is added in the first part. `outputs` is [parts, bound, hidden_size]; a
    part is `split_size` of the intermediate size.
    """
    row_tile, column_tile = _locate_tile(row_tiles, tl.cdiv(hidden_size, BLOCK_N), GROUP)
    expert, first, end = _read_tile(table, row_tiles, row_tile)
    if expert >= num_experts:
        return
    rows = first + tl.arange(0, BLOCK_M)
    is_row = rows < end
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    own_codes, own_scales = _matrix(codes, scales, expert, hidden_size, intermediate_size, MXFP4)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    first_depth = tl.program_id(1) * split_size
    last = tl.minimum(first_depth + split_size, intermediate_size)
    for depth in range(first_depth, last, BLOCK_K):
        depths = depth + tl.arange(0, BLOCK_K)
        places = hidden + rows.to(tl.int64)[:, None] * intermediate_size + depths[None, :]
        inside = is_row[:, None] & (depths < intermediate_size)[None, :]
        activated = tl.load(places, mask=inside, other=0.0)
        total = _add_product(
            *(total, activated, own_codes, own_scales, columns, hidden_size),
            *(depth, intermediate_size, MXFP4, CONVERTS, UPCAST, BLOCK_K),
        )
    column = column_tile * BLOCK_N
    if HAS_BIAS:
        is_first = tl.program_id(1) == 0
        own_bias = bias + expert * hidden_size
        total = _add_bias(total, own_bias, column, column, hidden_size, is_first, True, BLOCK_N)
    first_row = tl.program_id(1).to(tl.int64) * bound
    _store_tile(outputs, total, first_row, rows, end, column, hidden_size, True, BLOCK_N)
