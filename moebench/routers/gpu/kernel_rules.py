"""Parts of the routing kernel that read one token's scores: gate, groups, and the count it keeps.

Tiles are [tokens, columns]; reductions go over columns. These are the definitions of
`moebench.routers.gate`, `moebench.routers.ada_k` and `moebench.routers.thresholds`, column by
column; a test holds each of them to its torch form.
"""

from typing import no_type_check

import triton
import triton.language as tl

LOWEST = tl.constexpr(float("-inf"))


@triton.jit
@no_type_check
def gate_scores(logits, inside, IS_SOFTMAX: tl.constexpr):
    """Softmax over the columns `inside`, or sigmoid; 0 elsewhere. In fp32."""
    if IS_SOFTMAX:
        largest = tl.max(tl.where(inside, logits, LOWEST), 1)
        powers = tl.where(inside, tl.exp(logits - largest[:, None]), 0.0)
        scores = powers / tl.sum(powers, 1)[:, None]
    else:
        scores = tl.where(inside, tl.sigmoid(logits), 0.0)
    return scores


@triton.jit
@no_type_check
def best_open(values, is_open, columns, NO_COLUMN: tl.constexpr):
    """The largest value among the open columns, and the first column that has it.

    Values are not NaN, so that an open column is always found where there is one.
    """
    largest = tl.max(tl.where(is_open, values, LOWEST), 1)
    is_best = is_open & (values == largest[:, None])
    return largest, tl.min(tl.where(is_best, columns[None, :], NO_COLUMN), 1)


@triton.jit
@no_type_check
def in_best_groups(
    values,
    columns,
    NUM_GROUPS: tl.constexpr,
    TOP_K_GROUPS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BEST_TWO: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Whether a column is in one of the best groups of consecutive columns."""
    NO_COLUMN: tl.constexpr = values.shape[1]
    group_of = (columns // GROUP_SIZE)[None, :]
    groups = tl.arange(0, BLOCK_G)
    group_scores = tl.full((values.shape[0], BLOCK_G), LOWEST, tl.float64)
    for group in range(NUM_GROUPS):
        largest, first = best_open(values, group_of == group, columns, NO_COLUMN)
        if BEST_TWO and GROUP_SIZE > 1:
            is_other = (group_of == group) & (columns[None, :] != first[:, None])
            largest += tl.max(tl.where(is_other, values, LOWEST), 1)
        group_scores = tl.where((groups == group)[None, :], largest[:, None], group_scores)
    is_open = (groups < NUM_GROUPS)[None, :] & (group_scores == group_scores)
    is_best = values != values
    for _ in range(TOP_K_GROUPS):
        _, best = best_open(group_scores, is_open, groups, BLOCK_G)
        is_open = is_open & (groups[None, :] != best[:, None])
        is_best = is_best | (group_of == best[:, None])
    return is_best


@triton.jit
@no_type_check
def argmax_count(rows, is_token, bias, first_column, COUNTS: tl.constexpr, BLOCK_A: tl.constexpr):
    """Ada-K: the likeliest count by the columns behind the experts' own."""
    counts = tl.arange(0, BLOCK_A)
    inside = (counts < COUNTS)[None, :] & is_token[:, None]
    places = rows[:, None] + first_column + counts[None, :]
    logits = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    logits += tl.load(bias + counts, mask=counts < COUNTS, other=0.0)[None, :]
    _, count = best_open(logits, (counts < COUNTS)[None, :] & (logits == logits), counts, BLOCK_A)
    return count + 1


@triton.jit
@no_type_check
def ranked_count(probabilities, inside, columns, thresholds, SLOTS, IS_MASS: tl.constexpr):
    """Skip and top-p: leading experts by probability whose ratio or mass before them is enough."""
    NO_COLUMN: tl.constexpr = probabilities.shape[1]
    largest, first = best_open(probabilities, inside, columns, NO_COLUMN)
    is_open = inside & (columns[None, :] != first[:, None])
    mass = largest
    is_running = largest == largest
    count = is_running.to(tl.int32)
    for slot in range(1, SLOTS):
        value, column = best_open(probabilities, is_open, columns, NO_COLUMN)
        need = -mass if IS_MASS else value / largest
        is_running = is_running & (need >= tl.load(thresholds + slot - 1))
        count += is_running.to(tl.int32)
        mass += value
        is_open = is_open & (columns[None, :] != column[:, None])
    return count


@triton.jit
@no_type_check
def share_count(amount, thresholds, SLOTS, IS_ENTROPY: tl.constexpr):
    """Entropy-k and random-k: each further expert takes a share of an amount, or one of it."""
    is_running = amount == amount
    count = is_running.to(tl.int32) * 0 + 1
    for slot in range(1, SLOTS):
        need = amount / slot if IS_ENTROPY else amount - slot
        is_running = is_running & (need >= tl.load(thresholds + slot - 1))
        count += is_running.to(tl.int32)
    return count


@triton.jit
@no_type_check
def entropy(probabilities):
    """Entropy of probabilities in nats; 0 log 0 is 0."""
    logarithms = tl.log(tl.where(probabilities > 0.0, probabilities, 1.0))
    return -tl.sum(probabilities * logarithms, 1)


@triton.jit
@no_type_check
def hashed_draw(logits, inside, columns, multipliers, NUM_EXPERTS: tl.constexpr):
    """Random-k: a uniform number in [0, 1) of a token's logits; see `RandomKRouter.needs`."""
    scaled = logits * 64.0
    down = tl.floor(scaled)
    # Halves go to the even neighbour, as in torch.
    is_up = (scaled - down > 0.5) | ((scaled - down == 0.5) & (down.to(tl.int64) % 2 != 0))
    steps = down.to(tl.int64) + is_up.to(tl.int64)
    is_expert = columns < NUM_EXPERTS
    first = tl.load(multipliers + columns, mask=is_expert, other=0)
    mixed = tl.sum(tl.where(inside, steps * first[None, :], 0), 1)
    mixed = (mixed ^ (mixed >> 29)) * tl.load(multipliers + NUM_EXPERTS)
    bits = (mixed >> 32) & 16777215
    return bits.to(tl.float32) / 16777216.0


@triton.jit
@no_type_check
def cost_count(rows, is_token, bias, thresholds, first_column, SLOTS):
    """Regression-k: leading further experts whose least predicted cost so far is enough."""
    lowest = tl.full(is_token.shape, float("inf"), tl.float32)
    is_running = is_token
    count = is_token.to(tl.int32)
    for slot in range(1, SLOTS):
        cost = tl.load(rows + first_column + slot - 1, mask=is_token, other=0.0).to(tl.float32)
        lowest = tl.minimum(lowest, cost + tl.load(bias + slot - 1))
        is_running = is_running & (lowest >= tl.load(thresholds + slot - 1))
        count += is_running.to(tl.int32)
    return count
