"""Functions of the Triton kernels: where a program's tile is, its loads, product and stores."""

from typing import no_type_check

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


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
    return _place_of(tl.program_id(0), row_tiles, column_tiles, GROUP)


@triton.jit
@no_type_check
def _place_of(program, row_tiles, column_tiles, GROUP: tl.constexpr):
    """Row tile and column tile of one of `row_tiles * column_tiles` numbers; see `_locate_tile`."""
    group = program // (GROUP * column_tiles)
    first = group * GROUP
    size = tl.minimum(row_tiles - first, GROUP)
    within = program % (GROUP * column_tiles)
    return first + within % size, within // size


@triton.jit
@no_type_check
def _used_tiles(table, row_tiles, num_experts):
    """How many row tiles are not behind the last one."""
    CHUNK: tl.constexpr = 256
    places = tl.arange(0, CHUNK)
    used = tl.zeros((CHUNK,), tl.int32)
    for first in range(0, row_tiles, CHUNK):
        inside = first + places < row_tiles
        expert = tl.load(table + first + places, mask=inside, other=num_experts)
        used += (expert < num_experts).to(tl.int32)
    return tl.sum(used, 0)


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
def _activation(gate, up, alpha, limit, IS_GATED: tl.constexpr, IS_CLAMPED: tl.constexpr):
    """SiLU(gate) * up, gpt-oss's clamped activation, or relu(up)^2."""
    if IS_CLAMPED:
        gate = tl.minimum(gate, limit)
        up = tl.maximum(tl.minimum(up, limit), -limit)
        activated = (up + 1) * (gate * tl.sigmoid(alpha * gate))
    elif IS_GATED:
        activated = gate * tl.sigmoid(gate) * up
    else:
        positive = tl.maximum(up, 0.0)
        activated = positive * positive
    return activated


@triton.jit
@no_type_check
def _add_bias(
    tile, bias, first, column, num_columns, is_added, SWAP: tl.constexpr, COLUMNS: tl.constexpr
):
    """A tile of `_multiply` plus the biases of its columns, of which `first` is the first one's."""
    places = column + tl.arange(0, COLUMNS)
    inside = (places < num_columns) & is_added
    values = tl.load(bias + first + tl.arange(0, COLUMNS), mask=inside, other=0.0).to(tl.float32)
    return tile + (values[:, None] if SWAP else values[None, :])


@triton.jit
@no_type_check
def _store_tile(
    matrix,
    tile,
    first_row,
    rows,
    end,
    column,
    num_columns,
    SWAP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write a tile of `_multiply` to rows before `end`, counted from `first_row`, of a matrix."""
    if SWAP:
        tile = tl.trans(tile)
    columns = column + tl.arange(0, COLUMNS)
    places = matrix + (first_row + rows.to(tl.int64))[:, None] * num_columns + columns[None, :]
    inside = (rows < end)[:, None] & (columns < num_columns)[None, :]
    tl.store(places, tile.to(matrix.dtype.element_ty), mask=inside)


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
