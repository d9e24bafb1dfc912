"""Order by expert without sorting: the second half of the routing kernels.

A program ranks its own assignments by expert. If it is the only one, it knows every count, and
writes the routing. If there are several, each leaves its counts and its assignments in a list, and
the last to end adds the counts up and scatters the list; beyond a number of tokens a second kernel
scatters (`TWO_GRIDS`). An assignment's place is its expert's start, plus that expert's tokens in
earlier blocks, plus its rank in its own block: by expert, then by token, whichever program is last.

`progress` holds two counters, 0 before and after each launch: length of the list, programs ended.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def fill(token_indices, expert_indices, weights, start, end, expert, STEP: tl.constexpr):
    """Mark places from `start` to `end` as behind the last assignment."""
    for first in range(start, end, STEP):
        places = first + tl.arange(0, STEP)
        zeros = places * 0
        tl.store(token_indices + places, zeros, mask=places < end)
        tl.store(expert_indices + places, zeros + expert, mask=places < end)
        tl.store(weights + places, zeros.to(weights.dtype.element_ty), mask=places < end)


@triton.jit
@no_type_check
def fill_table(table, start, end, num_tiles, expert, STEP: tl.constexpr):
    """Mark row tiles from `start` to `end` as behind the last one."""
    for first in range(start, end, STEP):
        places = first + tl.arange(0, STEP)
        zeros = places * 0
        tl.store(table + places, zeros + expert, mask=places < end)
        tl.store(table + num_tiles + places, zeros, mask=places < end)
        tl.store(table + 2 * num_tiles + places, zeros, mask=places < end)


@triton.jit
@no_type_check
def write_table(table, counts, starts, num_tiles, TILE_ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write the row tiles of all experts; returns how many there are."""
    experts = tl.arange(0, BLOCK_C)
    tiles = (counts + TILE_ROWS - 1) // TILE_ROWS
    first_tiles = table + tl.cumsum(tiles, 0) - tiles
    ends = starts + counts
    for tile in range(0, tl.max(tiles, 0)):
        first = starts + tile * TILE_ROWS
        inside = tile < tiles
        tl.store(first_tiles + tile, experts, mask=inside)
        tl.store(first_tiles + tile + num_tiles, first, mask=inside)
        end = tl.minimum(first + TILE_ROWS, ends)
        tl.store(first_tiles + tile + 2 * num_tiles, end, mask=inside)
    return tl.sum(tiles, 0)


@triton.jit
@no_type_check
def scatter(
    first,
    total,
    codes,
    keys,
    list_weights,
    earlier,
    starts,
    token_indices,
    expert_indices,
    weights,
    places,
    SLOTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEP: tl.constexpr,
):
    """Bring `STEP` assignments of the list to their places."""
    numbers = first + tl.arange(0, STEP)
    inside = numbers < total
    code = tl.load(codes + numbers, mask=inside, other=0, cache_modifier=".cg")
    key = tl.load(keys + numbers, mask=inside, other=0, cache_modifier=".cg")
    weight = tl.load(list_weights + numbers, mask=inside, other=0.0, cache_modifier=".cg")
    token, expert = code // SLOTS, key // BLOCK_T
    before = earlier + token // BLOCK_T * BLOCK_C + expert
    place = tl.load(before, mask=inside, other=0, cache_modifier=".cg") + key % BLOCK_T
    place += tl.load(starts + expert, mask=inside, other=0, cache_modifier=".cg")
    tl.store(token_indices + place, token, mask=inside)
    tl.store(expert_indices + place, expert, mask=inside)
    tl.store(weights + place, weight.to(weights.dtype.element_ty), mask=inside)
    tl.store(places + code, place, mask=inside)


@triton.jit
@no_type_check
def sort_block(
    kept,
    slots,
    factors,
    tokens,
    token_indices,
    expert_indices,
    weights,
    tokens_per_expert,
    places,
    table,
    workspace,
    list_weights,
    progress,
    bound,
    num_tiles,
    NUM_EXPERTS: tl.constexpr,
    SLOTS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    TWO_GRIDS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Bring this block's kept columns [tokens, columns] to their places in the routing."""
    columns = tl.arange(0, BLOCK_C)
    ones = kept.to(tl.int32)
    ranks = tl.cumsum(ones, 0) - ones
    counts = tl.sum(ones, 0)
    total = tl.sum(counts, 0)
    starts = tl.cumsum(counts, 0) - counts
    codes = tokens[:, None] * SLOTS + slots
    if ONE_BLOCK:
        here = starts[None, :] + ranks
        tl.store(token_indices + here, tokens[:, None], mask=kept)
        tl.store(expert_indices + here, columns[None, :], mask=kept)
        tl.store(weights + here, factors.to(weights.dtype.element_ty), mask=kept)
        tl.store(places + codes, here, mask=kept)
        tl.store(tokens_per_expert + columns, counts, mask=columns < NUM_EXPERTS)
        used = write_table(table, counts, starts, num_tiles, TILE_ROWS, BLOCK_C)
        fill(token_indices, expert_indices, weights, total, bound, NUM_EXPERTS, STEP)
        fill_table(table, used, num_tiles, num_tiles, NUM_EXPERTS, STEP)
    else:
        program, programs = tl.program_id(0), tl.num_programs(0)
        histograms = workspace
        earlier = histograms + programs * BLOCK_C
        all_starts = earlier + programs * BLOCK_C
        all_codes = all_starts + 2 * BLOCK_C
        all_keys = all_codes + bound
        here = tl.atomic_add(progress, total, sem="relaxed") + starts[None, :] + ranks
        tl.store(all_codes + here, codes, mask=kept)
        tl.store(all_keys + here, columns[None, :] * BLOCK_T + ranks, mask=kept)
        tl.store(list_weights + here, factors, mask=kept)
        tl.store(histograms + program * BLOCK_C + columns, counts)
        # Marked by all programs together, before the last one writes over what is used.
        share = BLOCK_T * SLOTS
        start, end = program * share, tl.minimum(bound, (program + 1) * share)
        fill(token_indices, expert_indices, weights, start, end, NUM_EXPERTS, STEP)
        share = (num_tiles + programs - 1) // programs
        start, end = program * share, tl.minimum(num_tiles, (program + 1) * share)
        fill_table(table, start, end, num_tiles, NUM_EXPERTS, STEP)
        tl.debug_barrier()
        if tl.atomic_add(progress + 1, 1, sem="acq_rel") == programs - 1:
            ROWS: tl.constexpr = max(1, 2048 // BLOCK_C)
            sums = tl.zeros((BLOCK_C,), tl.int32)
            for first in range(0, programs, ROWS):
                blocks = first + tl.arange(0, ROWS)
                rows = blocks[:, None] * BLOCK_C + columns[None, :]
                inside = (blocks < programs)[:, None] & (columns < BLOCK_C)[None, :]
                tile = tl.load(histograms + rows, mask=inside, other=0, cache_modifier=".cg")
                tl.store(earlier + rows, sums[None, :] + tl.cumsum(tile, 0) - tile, mask=inside)
                sums += tl.sum(tile, 0)
            everything = tl.sum(sums, 0)
            starts = tl.cumsum(sums, 0) - sums
            tl.store(all_starts + columns, starts)
            tl.store(all_starts + BLOCK_C, everything)
            tl.store(tokens_per_expert + columns, sums, mask=columns < NUM_EXPERTS)
            write_table(table, sums, starts, num_tiles, TILE_ROWS, BLOCK_C)
            tl.store(progress, 0)
            tl.store(progress + 1, 0)
            if not TWO_GRIDS:
                tl.debug_barrier()
                for first in range(0, everything, STEP):
                    scatter(
                        *(first, everything, all_codes, all_keys, list_weights, earlier),
                        *(all_starts, token_indices, expert_indices, weights, places),
                        *(SLOTS, BLOCK_T, BLOCK_C, STEP),
                    )
