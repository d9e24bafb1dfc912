"""The routing kernels: from scores, or from a choice in slots, to a routing sorted by expert.

A program chooses for `BLOCK_T` tokens; `kernel_rules` has the parts of that, and `kernel_order`
brings what was chosen to its places. With `PDL` the next kernel may start before this one ends, and
waits for its results by itself.
"""

from typing import no_type_check

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

from moebench.routers.gpu import kernel_order as order
from moebench.routers.gpu import kernel_rules as rules

INTEGERS = ["num_tokens", "score_stride", "bound", "num_tiles"]
"""Arguments whose values make no variants of a kernel."""


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
        order.scatter(
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
    PDL: tl.constexpr,
):
    """Choose by scores [tokens, columns and more] and sort, as a router's form says.

    `selection_bias` [columns] is fp64; `rule_values` and `further_values` are what `RULE` reads.
    """
    if PDL:
        gdc_launch_dependents()
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
    order.sort_block(
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
    PDL: tl.constexpr,
):
    """Sort a choice that was made elsewhere: slots [tokens, SLOTS] of distinct experts."""
    if PDL:
        gdc_launch_dependents()
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
    order.sort_block(
        *(kept, slots, factors, tokens, token_indices, expert_indices, weights),
        *(tokens_per_expert, places, table, workspace, list_weights, progress, bound, num_tiles),
        *(NUM_EXPERTS, SLOTS, TILE_ROWS, BLOCK_T, BLOCK_C, ONE_BLOCK, TWO_GRIDS, STEP),
    )
