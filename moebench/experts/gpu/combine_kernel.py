"""The Triton kernel that adds a token's weighted expert outputs, in the order of its slots.

It gathers: no atomics, so that repeated runs agree to the bit, and no memory to fill with zeros.
"""

from typing import no_type_check

import triton
import triton.language as tl

from moebench.experts.gpu.kernel_parts import _wait_for_last_kernel


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
