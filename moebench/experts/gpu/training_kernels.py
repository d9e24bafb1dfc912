"""The Triton kernels that a ragged mixture of experts needs for training only, without atomics.

`up_and_keep` is the first matmul as in inference (`moebench.experts.gpu.kernels`, whose second
matmul and combination training runs too), but keeps its products, which the backward pass needs.
`activation_backward` multiplies the gathered gradients of y by the second matrices and ends in the
gradient of those products. `rows_backward` multiplies that by the first matrices.
`matrices_backward` sums, for each expert, the outer products of its rows.

Each sum has one program and one order: the same inputs give the same bits. Sums are in fp32. The
rows of a program are those of one entry of the row tiles' table (`moebench.routers.row_tiles`).
`UPCAST` is for Triton's interpreter only, which multiplies the bit patterns of bf16 operands.
"""

from typing import no_type_check

import triton
import triton.language as tl

from moebench.experts.gpu.kernel_parts import _locate_tile, _read_tile


@triton.jit
@no_type_check
def _block(matrix, rows, is_row, stride, columns, num_columns):
    """The elements at these rows and columns of a row-major matrix; zeros outside."""
    places = matrix + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(places, mask=is_row[:, None] & (columns < num_columns)[None, :], other=0.0)


@triton.jit
@no_type_check
def _store(matrix, value, rows, is_row, columns, num_columns):
    """Write a block of a contiguous matrix, in its type."""
    places = matrix + rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    inside = is_row[:, None] & (columns < num_columns)[None, :]
    tl.store(places, value.to(matrix.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _dot(left, right, total, UPCAST: tl.constexpr):
    """Add left [M, K] times right [K, N] to total [M, N]."""
    if UPCAST:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit(do_not_specialize=["num_experts", "tiles"])
@no_type_check
def up_and_keep(
    x,
    token_indices,
    table,
    gate_up,
    products,
    activated,
    num_experts,
    tiles,
    hidden_size,
    intermediate_size,
    x_stride,
    IS_GATED: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """products[i] = gate_up_e x_t and its activation, of assignment i = (t, e).

    `gate_up` is [experts, width, hidden_size], `products` [bound, width] and `activated`
    [bound, intermediate_size]; the width is twice the intermediate size with `IS_GATED`.
    """
    row_tile, column_tile = _locate_tile(tiles, tl.cdiv(intermediate_size, BLOCK_N), GROUP)
    expert, first, end = _read_tile(table, tiles, row_tile)
    if expert >= num_experts:
        return
    rows = first + tl.arange(0, BLOCK_M)
    is_row = rows < end
    tokens = tl.load(token_indices + rows, mask=is_row, other=0)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = columns < intermediate_size
    if IS_GATED:
        matrix = gate_up + expert.to(tl.int64) * 2 * hidden_size * intermediate_size
        up_columns = columns + intermediate_size
    else:
        matrix = gate_up + expert.to(tl.int64) * hidden_size * intermediate_size
        up_columns = columns
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for depth in range(0, hidden_size, BLOCK_K):
        depths = depth + tl.arange(0, BLOCK_K)
        gathered = _block(x, tokens, is_row, x_stride, depths, hidden_size)
        if IS_GATED:
            weight = _block(matrix, columns, is_column, hidden_size, depths, hidden_size)
            gate = _dot(gathered, tl.trans(weight), gate, UPCAST)
        weight = _block(matrix, up_columns, is_column, hidden_size, depths, hidden_size)
        up = _dot(gathered, tl.trans(weight), up, UPCAST)
    places = rows.to(tl.int64)[:, None] * intermediate_size + columns[None, :]
    inside = is_row[:, None] & is_column[None, :]
    element = products.dtype.element_ty
    if IS_GATED:
        kept = products + 2 * rows.to(tl.int64)[:, None] * intermediate_size + columns[None, :]
        tl.store(kept, gate.to(element), mask=inside)
        tl.store(kept + intermediate_size, up.to(element), mask=inside)
        result = gate * tl.sigmoid(gate) * up
    else:
        tl.store(products + places, up.to(element), mask=inside)
        positive = tl.maximum(up, 0.0)
        result = positive * positive
    tl.store(activated + places, result.to(element), mask=inside)


@triton.jit(do_not_specialize=["num_experts", "tiles"])
@no_type_check
def rows_backward(
    grad_products,
    table,
    matrices,
    grad_rows,
    num_experts,
    tiles,
    inputs,
    outputs,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """grad_rows[i] = grad_products[i] times matrix_e [inputs, outputs] of assignment i = (t, e)."""
    row_tile, column_tile = _locate_tile(tiles, tl.cdiv(outputs, BLOCK_N), GROUP)
    expert, first, end = _read_tile(table, tiles, row_tile)
    if expert >= num_experts:
        return
    places = first + tl.arange(0, BLOCK_M)
    is_row = places < end
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    matrix = matrices + expert.to(tl.int64) * inputs * outputs
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for depth in range(0, inputs, BLOCK_K):
        depths = depth + tl.arange(0, BLOCK_K)
        left = _block(grad_products, places, is_row, inputs, depths, inputs)
        right = _block(matrix, depths, depths < inputs, outputs, columns, outputs)
        total = _dot(left, right, total, UPCAST)
    _store(grad_rows, total, places, is_row, columns, outputs)


@triton.jit(do_not_specialize=["num_experts", "tiles", "bound"])
@no_type_check
def activation_backward(
    grad_y,
    token_indices,
    routing_weights,
    table,
    down,
    products,
    grad_products,
    weighted,
    grad_weights,
    num_experts,
    tiles,
    bound,
    hidden_size,
    intermediate_size,
    grad_stride,
    IS_GATED: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """From the gradient of y to those of the first matmul's products and the routing weights.

    `down` is [experts, hidden_size, intermediate_size]. Besides, the activation times its routing
    weight [bound, intermediate_size], which the gradient of `down` needs, and the products of
    activation and gradient, summed over this program's columns: `grad_weights` [columns, bound].
    """
    row_tile, column_tile = _locate_tile(tiles, tl.cdiv(intermediate_size, BLOCK_N), GROUP)
    expert, first, end = _read_tile(table, tiles, row_tile)
    if expert >= num_experts:
        return
    rows = first + tl.arange(0, BLOCK_M)
    is_row = rows < end
    tokens = tl.load(token_indices + rows, mask=is_row, other=0)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    matrix = down + expert.to(tl.int64) * hidden_size * intermediate_size
    grad = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for depth in range(0, hidden_size, BLOCK_K):
        depths = depth + tl.arange(0, BLOCK_K)
        gathered = _block(grad_y, tokens, is_row, grad_stride, depths, hidden_size)
        weight = _block(
            matrix, depths, depths < hidden_size, intermediate_size, columns, intermediate_size
        )
        grad = _dot(gathered, weight, grad, UPCAST)
    weights = tl.load(routing_weights + rows, mask=is_row, other=0.0).to(tl.float32)
    inside = is_row[:, None] & (columns < intermediate_size)[None, :]
    scaled = grad * weights[:, None]
    element = grad_products.dtype.element_ty
    if IS_GATED:
        places = 2 * rows.to(tl.int64)[:, None] * intermediate_size + columns[None, :]
        gate = tl.load(products + places, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(products + places + intermediate_size, mask=inside, other=0.0).to(tl.float32)
        share = tl.sigmoid(gate)
        silu = gate * share
        grad_gate = scaled * up * (share + silu * (1 - share))
        tl.store(grad_products + places, grad_gate.to(element), mask=inside)
        grad_up = (scaled * silu).to(element)
        tl.store(grad_products + places + intermediate_size, grad_up, mask=inside)
        activated = silu * up
    else:
        places = rows.to(tl.int64)[:, None] * intermediate_size + columns[None, :]
        up = tl.load(products + places, mask=inside, other=0.0).to(tl.float32)
        positive = tl.maximum(up, 0.0)
        tl.store(grad_products + places, (2 * positive * scaled).to(element), mask=inside)
        activated = positive * positive
    _store(weighted, activated * weights[:, None], rows, is_row, columns, intermediate_size)
    tl.store(grad_weights + column_tile * bound + rows, tl.sum(grad * activated, 1), mask=is_row)


@triton.jit
@no_type_check
def matrices_backward(
    left,
    right,
    token_indices,
    ends,
    gradients,
    left_columns,
    right_columns,
    left_stride,
    right_stride,
    GATHERS_LEFT: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """gradients[e] = sum over the rows i of expert e of left[i] right[i]^T; 0 without rows.

    One of the two has a row for each token, of which that of the assignment's token is read: left
    with `GATHERS_LEFT`, else right. The other is sorted by expert. `ends` [experts] are the ends
    of the experts' assignments, `gradients` [experts, left_columns, right_columns].
    """
    left_tiles, right_tiles = tl.cdiv(left_columns, BLOCK_M), tl.cdiv(right_columns, BLOCK_N)
    expert = tl.program_id(1)
    left_tile, right_tile = _locate_tile(left_tiles, right_tiles, GROUP)
    end = tl.load(ends + expert)
    first = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    ms = left_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    ns = right_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    rows = first + tl.arange(0, BLOCK_K)
    tokens = tl.load(token_indices + rows, mask=rows < end, other=0)
    for start in range(first, end, BLOCK_K):
        rows = start + tl.arange(0, BLOCK_K)
        is_row = rows < end
        if GATHERS_LEFT:
            one = _block(left, tokens, is_row, left_stride, ms, left_columns)
            other = _block(right, rows, is_row, right_stride, ns, right_columns)
        else:
            one = _block(left, rows, is_row, left_stride, ms, left_columns)
            other = _block(right, tokens, is_row, right_stride, ns, right_columns)
        # Those of the next step, so that no load of this one waits for another.
        rows += BLOCK_K
        tokens = tl.load(token_indices + rows, mask=rows < end, other=0)
        total = _dot(tl.trans(one), other, total, UPCAST)
    matrix = gradients + expert.to(tl.int64) * left_columns * right_columns
    _store(matrix, total, ms, ms < left_columns, ns, right_columns)
