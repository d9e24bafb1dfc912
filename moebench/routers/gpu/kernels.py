"""The routing kernels: from scores, or from a choice in slots, to a routing sorted by expert.

A program chooses for `BLOCK_T` tokens and ranks its own assignments by expert. If it is the only
one, it knows every count, and writes the routing. If there are several, each leaves its counts and
its assignments in a list, and the last to end adds the counts up and scatters the list; beyond a
number of tokens a second kernel scatters (`TWO_GRIDS`). Nothing is sorted: an assignment's place is
its expert's start, plus that expert's tokens in earlier blocks, plus its rank in its own block.
The order is by expert and then by token, whichever program ends last.

`progress` holds two counters, 0 before and after each launch: length of the list, programs ended.
"""

from typing import no_type_check

import triton
import triton.language as tl

from moebench.routers.gpu import kernel_rules as rules

INTEGERS = ["num_tokens", "score_stride", "bound", "num_tiles"]
"""Arguments whose values make no variants of a kernel."""


@triton.jit
@no_type_check
def _fill(token_indices, expert_indices, weights, start, end, expert, STEP: tl.constexpr):
    """Mark places from `start` to `end` as behind the last assignment."""
    for first in range(start, end, STEP):
        places = first + tl.arange(0, STEP)
        zeros = places * 0
        tl.store(token_indices + places, zeros, mask=places < end)
        tl.store(expert_indices + places, zeros + expert, mask=places < end)
        tl.store(weights + places, zeros.to(weights.dtype.element_ty), mask=places < end)


@triton.jit
@no_type_check
def _fill_table(table, start, end, num_tiles, expert, STEP: tl.constexpr):
    """Mark row tiles from `start` to `end` as behind the last one."""
    for first in range(start, end, STEP):
        places = first + tl.arange(0, STEP)
        zeros = places * 0
        tl.store(table + places, zeros + expert, mask=places < end)
        tl.store(table + num_tiles + places, zeros, mask=places < end)
        tl.store(table + 2 * num_tiles + places, zeros, mask=places < end)


@triton.jit
@no_type_check
def _write_table(table, counts, starts, num_tiles, TILE_ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
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
def _scatter(
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
def _sort_block(
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
        used = _write_table(table, counts, starts, num_tiles, TILE_ROWS, BLOCK_C)
        _fill(token_indices, expert_indices, weights, total, bound, NUM_EXPERTS, STEP)
        _fill_table(table, used, num_tiles, num_tiles, NUM_EXPERTS, STEP)
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
        _fill(token_indices, expert_indices, weights, start, end, NUM_EXPERTS, STEP)
        share = (num_tiles + programs - 1) // programs
        start, end = program * share, tl.minimum(num_tiles, (program + 1) * share)
        _fill_table(table, start, end, num_tiles, NUM_EXPERTS, STEP)
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
            _write_table(table, sums, starts, num_tiles, TILE_ROWS, BLOCK_C)
            tl.store(progress, 0)
            tl.store(progress + 1, 0)
            if not TWO_GRIDS:
                tl.debug_barrier()
                for first in range(0, everything, STEP):
                    _scatter(
                        *(first, everything, all_codes, all_keys, list_weights, earlier),
                        *(all_starts, token_indices, expert_indices, weights, places),
                        *(SLOTS, BLOCK_T, BLOCK_C, STEP),
                    )


@triton.jit(do_not_specialize=["bound", "programs"])
@no_type_check
def scatter_list(
    workspace,
    list_weights,
    token_indices,
    expert_indices,
    weights,
    places,
    bound,
    programs,
    SLOTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEP: tl.constexpr,
):
    """Bring a part of the list that `programs` programs left to its places: the second grid."""
    earlier = workspace + programs * BLOCK_C
    starts = earlier + programs * BLOCK_C
    codes = starts + 2 * BLOCK_C
    total = tl.load(starts + BLOCK_C)
    first = tl.program_id(0) * STEP
    if first < total:
        _scatter(
            *(first, total, codes, codes + bound, list_weights, earlier, starts),
            *(token_indices, expert_indices, weights, places, SLOTS, BLOCK_T, BLOCK_C, STEP),
        )


@triton.jit(do_not_specialize=INTEGERS)
@no_type_check
def route_scores(
    scores,
    selection_bias,
    rule_values,
    further_values,
    token_indices,
    expert_indices,
    weights,
    tokens_per_expert,
    places,
    table,
    workspace,
    list_weights,
    progress,
    num_tokens,
    score_stride,
    bound,
    num_tiles,
    NUM_EXPERTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
    RULE: tl.constexpr,
    COUNTS: tl.constexpr,
    BLOCK_A: tl.constexpr,
    IS_SOFTMAX: tl.constexpr,
    LOGITS_COMPETE: tl.constexpr,
    RENORMALISE: tl.constexpr,
    SCALE: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    TOP_K_GROUPS: tl.constexpr,
    BEST_TWO: tl.constexpr,
    BLOCK_G: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    TWO_GRIDS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Choose by scores [tokens, columns and more] and sort, as a router's form says.

    `selection_bias` [columns] is fp64; `rule_values` and `further_values` are what `RULE` reads.
    """
    columns = tl.arange(0, BLOCK_C)
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_token = tokens < num_tokens
    rows = scores + tokens.to(tl.int64) * score_stride
    inside = is_token[:, None] & (columns < COLUMNS)[None, :]
    logits = tl.load(rows[:, None] + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(selection_bias + columns, mask=columns < COLUMNS, other=0.0)
    is_expert = inside & (columns < NUM_EXPERTS)[None, :]
    of_experts = rules.gate_scores(logits, is_expert, IS_SOFTMAX)
    values = logits
    if not LOGITS_COMPETE:
        values = of_experts
        if COLUMNS > NUM_EXPERTS:
            values = rules.gate_scores(logits, inside, IS_SOFTMAX)
    values = values.to(tl.float64) + bias[None, :]
    values = tl.where(values == values, values, rules.LOWEST)
    if NUM_GROUPS > 1:
        is_best = rules.in_best_groups(
            *(values, columns, NUM_GROUPS, TOP_K_GROUPS, NUM_EXPERTS // NUM_GROUPS, BEST_TWO),
            BLOCK_G,
        )
        values = tl.where(is_best | (columns >= NUM_EXPERTS)[None, :], values, rules.LOWEST)
    if RULE == "all":
        count = is_token.to(tl.int32) * SLOTS
    elif RULE == "argmax":
        count = rules.argmax_count(rows, is_token, rule_values, NUM_EXPERTS, COUNTS, BLOCK_A)
    elif RULE == "costs":
        count = rules.cost_count(rows, is_token, further_values, rule_values, NUM_EXPERTS, SLOTS)
    elif RULE == "hash":
        draw = rules.hashed_draw(logits, is_expert, columns, further_values, NUM_EXPERTS)
        count = rules.share_count(draw, rule_values, SLOTS, False)
    else:
        chances = of_experts
        if not IS_SOFTMAX:
            chances = of_experts / tl.sum(of_experts, 1)[:, None]
        if RULE == "entropy":
            count = rules.share_count(rules.entropy(chances), rule_values, SLOTS, True)
        else:
            is_mass = RULE == "mass"
            count = rules.ranked_count(chances, is_expert, columns, rule_values, SLOTS, is_mass)
    count = tl.where(is_token, tl.minimum(count, SLOTS), 0)

    slots = tl.full((BLOCK_T, BLOCK_C), -1, tl.int32)
    is_open = inside
    for slot in range(0, tl.max(count, 0)):
        _, column = rules.best_open(values, is_open, columns, BLOCK_C)
        hit = columns[None, :] == column[:, None]
        slots = tl.where(hit & (slot < count)[:, None], slot, slots)
        is_open = is_open & (columns[None, :] != column[:, None])
        if COLUMNS > NUM_EXPERTS:
            is_null = is_token & (column >= NUM_EXPERTS)
            tl.store(places + tokens.to(tl.int64) * SLOTS + slot, tokens * 0 - 1, mask=is_null)
    if RULE != "all":
        rest = tl.arange(0, BLOCK_A)
        is_dropped = (rest[None, :] >= count[:, None]) & (rest < SLOTS)[None, :]
        there = tokens[:, None] * SLOTS + rest[None, :]
        tl.store(places + there, there * 0 - 1, mask=is_dropped & is_token[:, None])
    kept = (slots >= 0) & is_expert
    factors = tl.where(kept, of_experts, 0.0)
    if RENORMALISE:
        sums = tl.sum(factors.to(tl.float64), 1).to(tl.float32)
        factors = factors / (sums + 1e-20)[:, None]
    _sort_block(
        *(kept, slots, factors * SCALE, tokens, token_indices, expert_indices, weights),
        *(tokens_per_expert, places, table, workspace, list_weights, progress, bound, num_tiles),
        *(NUM_EXPERTS, SLOTS, TILE_ROWS, BLOCK_T, BLOCK_C, ONE_BLOCK, TWO_GRIDS, STEP),
    )


@triton.jit(do_not_specialize=INTEGERS)
@no_type_check
def sort_choice(
    given_weights,
    given_experts,
    given_keep,
    token_indices,
    expert_indices,
    weights,
    tokens_per_expert,
    places,
    table,
    workspace,
    list_weights,
    progress,
    num_tokens,
    bound,
    num_tiles,
    NUM_EXPERTS: tl.constexpr,
    SLOTS: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    TWO_GRIDS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Sort a choice that was made elsewhere: slots [tokens, SLOTS] of distinct experts."""
    columns = tl.arange(0, BLOCK_C)
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_token = tokens < num_tokens
    slots = tl.full((BLOCK_T, BLOCK_C), -1, tl.int32)
    factors = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for slot in range(0, SLOTS):
        codes = tokens * SLOTS + slot
        column = tl.load(given_experts + codes, mask=is_token, other=0).to(tl.int32)
        weight = tl.load(given_weights + codes, mask=is_token, other=0.0).to(tl.float32)
        is_kept = is_token
        if HAS_KEEP:
            is_kept = tl.load(given_keep + codes, mask=is_token, other=0) != 0
            tl.store(places + codes, codes * 0 - 1, mask=is_token & (is_kept == 0))
        hit = (columns[None, :] == column[:, None]) & is_kept[:, None]
        slots = tl.where(hit, slot, slots)
        factors = tl.where(hit, weight[:, None], factors)
    kept = slots >= 0
    _sort_block(
        *(kept, slots, factors, tokens, token_indices, expert_indices, weights),
        *(tokens_per_expert, places, table, workspace, list_weights, progress, bound, num_tiles),
        *(NUM_EXPERTS, SLOTS, TILE_ROWS, BLOCK_T, BLOCK_C, ONE_BLOCK, TWO_GRIDS, STEP),
    )
