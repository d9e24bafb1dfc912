"""RMoE's cell and gate in one kernel: the state of a layer, and the logits that it gives.

Products are added up in fp32, and nothing between the projection and the state is rounded. The
state is rounded to its type, and the logits are of the rounded state, as in torch.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _multiply(rows, matrix, first_row, units, depths, SIZE: tl.constexpr, UPCAST: tl.constexpr):
    """Rows [tokens, SIZE] times the transpose of a part of a matrix [.., SIZE]."""
    inside = (units < SIZE)[:, None] & (depths < SIZE)[None, :]
    places = matrix + (first_row + units)[:, None] * SIZE + depths[None, :]
    part = tl.load(places, mask=inside, other=0.0)
    if UPCAST:
        part = part.to(tl.float32)
        rows = rows.to(tl.float32)
    return tl.dot(rows, tl.trans(part), input_precision="ieee")


@triton.jit
@no_type_check
def _bias(bias, first_row, units, SIZE: tl.constexpr):
    values = tl.load(bias + first_row + units, mask=units < SIZE, other=0.0)
    return values.to(tl.float32)[None, :]


@triton.jit
@no_type_check
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit(do_not_specialize=["num_tokens"])
@no_type_check
def recurrent_scores(
    projected,
    below,
    weight_ih,
    weight_hh,
    bias_ih,
    bias_hh,
    gate,
    base,
    state,
    logits,
    num_tokens,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    IS_GRU: tl.constexpr,
    HAS_BELOW: tl.constexpr,
    HAS_BASE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """State = cell(projected, below); logits = gate state, and `base` on top where there is one.

    All matrices are row-major. `below` is zeros where it is left out.
    """
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_token = tokens < num_tokens
    depths, columns = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_C)
    places = tokens.to(tl.int64)[:, None] * SIZE + depths[None, :]
    inside = is_token[:, None] & (depths < SIZE)[None, :]
    x = tl.load(projected + places, mask=inside, other=0.0)
    h = x
    if HAS_BELOW:
        h = tl.load(below + places, mask=inside, other=0.0)
    total = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for first in range(0, SIZE, BLOCK_N):
        units = first + tl.arange(0, BLOCK_N)
        here = tokens.to(tl.int64)[:, None] * SIZE + units[None, :]
        is_unit = is_token[:, None] & (units < SIZE)[None, :]
        if IS_GRU:
            reset = _bias(bias_ih, 0, units, SIZE) + _bias(bias_hh, 0, units, SIZE)
            reset += _multiply(x, weight_ih, 0, units, depths, SIZE, UPCAST)
            update = _bias(bias_ih, SIZE, units, SIZE) + _bias(bias_hh, SIZE, units, SIZE)
            update += _multiply(x, weight_ih, SIZE, units, depths, SIZE, UPCAST)
            new = _multiply(x, weight_ih, 2 * SIZE, units, depths, SIZE, UPCAST)
            new += _bias(bias_ih, 2 * SIZE, units, SIZE)
            own = _bias(bias_hh, 2 * SIZE, units, SIZE)
            if HAS_BELOW:
                reset += _multiply(h, weight_hh, 0, units, depths, SIZE, UPCAST)
                update += _multiply(h, weight_hh, SIZE, units, depths, SIZE, UPCAST)
                own += _multiply(h, weight_hh, 2 * SIZE, units, depths, SIZE, UPCAST)
            update = tl.sigmoid(update)
            new = (1.0 - update) * _tanh(new + tl.sigmoid(reset) * own)
            if HAS_BELOW:
                before = tl.load(below + here, mask=is_unit, other=0.0)
                new += update * before.to(tl.float32)
        else:
            new = _bias(bias_ih, 0, units, SIZE) + _bias(bias_hh, 0, units, SIZE)
            new += _multiply(x, weight_ih, 0, units, depths, SIZE, UPCAST)
            if HAS_BELOW:
                new += _multiply(h, weight_hh, 0, units, depths, SIZE, UPCAST)
            new = _tanh(new)
        rounded = new.to(state.dtype.element_ty)
        tl.store(state + here, rounded, mask=is_unit)
        rounded = tl.where(is_unit, rounded, 0.0).to(gate.dtype.element_ty)
        of_gate = (columns < COLUMNS)[:, None] & (units < SIZE)[None, :]
        part = gate + columns[:, None] * SIZE + units[None, :]
        part = tl.load(part, mask=of_gate, other=0.0)
        if UPCAST:
            part = part.to(tl.float32)
            rounded = rounded.to(tl.float32)
        total = tl.dot(rounded, tl.trans(part), total, input_precision="ieee")
    places = tokens.to(tl.int64)[:, None] * COLUMNS + columns[None, :]
    inside = is_token[:, None] & (columns < COLUMNS)[None, :]
    if HAS_BASE:
        total += tl.load(base + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(logits + places, total.to(logits.dtype.element_ty), mask=inside)
