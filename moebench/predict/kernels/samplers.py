"""Loads of one rank's kernels under the routing of benchmark tables, in expectation.

Measured tables say only "balanced" or "power_law_1.2", so their two samplers are rebuilt here. The
balanced one is deterministic; of the power law a fixed set of draws is averaged, because the draws
behind a table are not recorded. Rank 0 is described: the power law makes it the most loaded.

Source: ai-dynamo/aiconfigurator at 095f58a, `collector/helper.py`, as restated in the notes of
this project (cost model, section 1); nothing is copied.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from moebench.predict.arrays import Floats, Ints
from moebench.predict.kernels.loads import BLOCK_ROWS, Loads

Collector = Literal["early", "current", "vllm 0.24"]
"""How a table's routing was drawn. Early collectors give what rounding leaves over to one rank;
vllm 0.24's computes its balanced ids in bfloat16, which merges large ones."""
NUM_DRAWS = 20
REPLAYED_DRAWS = 5
"""A power-law measurement replays five draws in turn (ten in vllm 0.14)."""


class Routed(NamedTuple):
    """How a benchmark routes the tokens of one call."""

    num_tokens: int
    """Tokens that enter the layer, before expert parallelism."""
    top_k: int
    num_experts: int
    """Experts of the whole layer."""
    ranks: int = 1
    """Ranks that hold equal shares of consecutive experts."""
    distribution: str = "balanced"
    """"balanced" or "power_law_<exponent>"."""

    @property
    def exponent(self) -> float | None:
        """Exponent of the power law; None: balanced."""
        if self.distribution == "balanced":
            return None
        if not self.distribution.startswith("power_law_"):
            raise ValueError(
                f"distribution: found {self.distribution!r}, expected 'balanced' or "
                "'power_law_<exponent>'"
            )
        return float(self.distribution.removeprefix("power_law_"))


def sampled_loads(calls: Sequence[Routed], collector: Collector) -> Loads:
    """Expected loads of rank 0 as the benchmark draws routing; equal calls are computed once."""
    rows = np.array([_one_load(call, collector) for call in calls])
    rows = rows.reshape(-1, 3 + len(BLOCK_ROWS))
    return Loads(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3:])


@functools.lru_cache(maxsize=1 << 16)
def _one_load(call: Routed, collector: Collector) -> tuple[float, ...]:
    """Means over draws: distinct experts, those of all replayed calls, copies and tiles."""
    if call.exponent is None:
        counts, replayed = balanced_counts(call, collector == "vllm 0.24")[None, :], 1
    else:
        counts, replayed = power_law_counts(call, collector == "early"), REPLAYED_DRAWS
    local = counts[:, : call.num_experts // call.ranks]
    touched = local > 0
    united = touched.reshape(-1, replayed, local.shape[1]).any(axis=1)
    tiles = [-(-local // block) for block in BLOCK_ROWS]
    return tuple(float(each.sum(axis=1).mean()) for each in (touched, united, local, *tiles))


def balanced_counts(call: Routed, in_bfloat16: bool = False) -> Ints:
    """[experts] token copies under the balanced sampler; they sum to T k.

    With T tokens, k experts of N for each and the stride s = ceil(N / k), slot j of token t goes
    to expert (t + j s) mod N; when there are fewer tokens than the stride, to
    floor(t s / T + j s) mod N, which spreads them evenly. `in_bfloat16` rounds the second form
    first, as vllm 0.24's collector does: ids above 256 become even, so about a quarter fewer of 512
    experts are touched.
    """
    num_tokens, top_k, num_experts = call[:3]
    stride = -(-num_experts // top_k)
    slots = np.arange(top_k)
    if num_tokens >= stride:
        first = (np.arange(num_experts)[:, None] - slots * stride) % num_experts
        visits = (num_tokens - first + num_experts - 1) // num_experts
        return np.asarray(np.where(first < num_tokens, visits, 0).sum(axis=1))
    tokens = np.arange(num_tokens)[:, None]
    position = (tokens * stride / num_tokens + slots * stride) % num_experts
    if in_bfloat16:
        position = _rounded_to_bfloat16(position)
    experts = np.minimum(np.floor(position).astype(np.int64), num_experts - 1)
    return np.bincount(experts.ravel(), minlength=num_experts)


def _rounded_to_bfloat16(values: Floats) -> Floats:
    """Nearest bfloat16, ties to even: the upper half of a float32."""
    bits = values.astype(np.float32).view(np.uint32)
    bits = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def power_law_counts(call: Routed, to_one_rank: bool = False) -> Ints:
    """[draws, experts] token copies under the power-law sampler; each draw sums to T k.

    Weights follow a bounded Pareto law; copies in proportion are rounded, clipped to one per
    token, and what is missing or too much is dealt to the ranks in turn and inside a rank levels
    the smallest (or largest) counts. The fullest rank then changes places with rank 0.
    `to_one_rank` deals all of it to one rank, as early collectors did.
    """
    num_tokens, top_k, num_experts, ranks, _ = call
    assert call.exponent is not None
    copies = num_tokens * top_k
    low, high = (1.0, 0.8 * num_tokens) if copies > num_experts else (0.01, 2.0)
    uniform = np.random.default_rng(0).random((NUM_DRAWS, num_experts))
    power = 1.0 - call.exponent or 1e-9  # the limit of exponent 1 is log-uniform
    weights = ((high**power - low**power) * uniform + low**power) ** (1 / power)
    share = np.rint(copies * weights / weights.sum(axis=1, keepdims=True)).astype(np.int64)
    clipped = np.minimum(share, num_tokens)

    def raised(counts: Ints, amount: Ints, cap: int) -> Ints:
        """Counts and `amount` further copies of each draw, shared out over the ranks."""
        dealt = (amount[:, None] - np.arange(ranks) + ranks - 1) // ranks
        if to_one_rank:
            dealt = amount[:, None] * (np.arange(ranks) == 0)
        return _levelled_up(counts, np.maximum(dealt, 0), cap)

    counts = clipped.reshape(NUM_DRAWS, ranks, num_experts // ranks)
    counts = raised(counts, (share - clipped).sum(axis=1), num_tokens)
    missing = copies - counts.sum(axis=(1, 2))
    counts = raised(counts, np.maximum(missing, 0), num_tokens)
    top = int(counts.max(initial=0))
    counts = top - raised(top - counts, np.maximum(-missing, 0), top)
    draws, fullest = np.arange(NUM_DRAWS), counts.sum(axis=2).argmax(axis=1)
    counts[draws, 0], counts[draws, fullest] = counts[draws, fullest], counts[draws, 0]
    return counts.reshape(NUM_DRAWS, num_experts)


def _levelled_up(counts: Ints, amount: Ints, cap: int) -> Ints:
    """Add `amount` units to each row, each to its smallest entry below `cap`.

    The level is found by bisection; the remainder goes to the first entries that stand at it.
    """
    low = np.zeros(amount.shape, dtype=np.int64)
    high = np.full(amount.shape, cap + 1, dtype=np.int64)
    while np.any(high - low > 1):
        middle = (low + high) // 2
        needed = (np.maximum(counts, np.minimum(middle, cap)[..., None]) - counts).sum(axis=-1)
        fits = needed <= amount
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    level = np.minimum(low, cap)[..., None]
    filled = np.maximum(counts, level)
    left = amount - (filled - counts).sum(axis=-1)
    at_level = (filled == level) & (filled < cap)
    return np.asarray(filled + (at_level & (np.cumsum(at_level, axis=-1) <= left[..., None])))
