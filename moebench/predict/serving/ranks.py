"""One rank's work in a deployment: a narrower model, and its share of the experts' load."""

import heapq
import math
from dataclasses import replace

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.serving.parallelism import Parallelism
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec

DENSE_WIDTHS = (
    "shared_intermediate_size",
    "residual_intermediate_size",
    "dense_intermediate_size",
)
"""Inner widths that the ranks of attention split."""
WIDTHS = ("intermediate_size", *DENSE_WIDTHS)
"""Inner widths that ranks split; an expert's over the ranks of its group."""


def split_of(parallel: Parallelism, width: str) -> int:
    """Ranks that split one of `WIDTHS`."""
    is_expert = width == "intermediate_size"
    return parallel.expert_tensor if is_expert else parallel.tensor_parallel


def rank_model(model: ModelSpec, parallel: Parallelism, group: int = 1) -> ModelSpec:
    """Model that one rank computes: fewer heads, narrower feed-forward networks.

    The router and MLA's compressions are on every rank; key-value heads are copied where there
    are fewer of them than ranks. The fullest rank's share of an expert is whole groups of columns.
    """
    a, tp = model.attention, parallel.tensor_parallel
    heads = a.num_heads // tp
    kv_heads = math.gcd(heads, max(1, a.num_kv_heads // tp))
    inner = model.intermediate_size / parallel.expert_tensor
    return replace(
        model,
        attention=replace(a, num_heads=heads, num_kv_heads=kv_heads),
        vocab_size=math.ceil(model.vocab_size / tp),
        **{width: getattr(model, width) // tp for width in DENSE_WIDTHS}
        | {"intermediate_size": math.ceil(inner / group) * group},
    )


def most_loaded_rank(
    load: ExpertLoad, k_distribution: tuple[float, ...], parallel: Parallelism
) -> Floats:
    """Expected assignments [experts of the rank] of the most loaded group of experts.

    Groups are consecutive experts, the first ones larger where the number does not divide. In
    every step one of several groups with equal expectations has the most assignments. Its lead is
    the expected maximum of as many normals, whose variance is that of a rank's share of k experts
    drawn without replacement; `k_distribution` has the chances of 0, 1, 2, ... experts.
    """
    counts, groups = np.array(load.tokens_per_expert), parallel.expert_parallel
    local = _fullest_group(counts, groups, parallel.redundant_experts)
    expected = float(local.sum())
    if groups == 1 or not expected:
        return local
    num_experts, tokens = len(counts), load.num_tokens
    k, chance = np.arange(len(k_distribution)), np.array(k_distribution)
    share, mean_k = expected / load.num_assignments, float(chance @ k)
    within = k * share * (1 - share) * (num_experts - k) / (num_experts - 1)
    variance = tokens * float(chance @ within + share**2 * (chance @ (k - mean_k) ** 2))
    from statistics import NormalDist  # with fractions and decimal, which nothing else needs

    # Blom's approximation of the expected maximum of n standard normals.
    normals = NormalDist().inv_cdf((groups - 0.375) / (groups + 0.25))
    ahead = expected + normals * math.sqrt(max(variance, 0.0))
    most = tokens * float(chance @ np.minimum(k, len(local)))
    factor = min(ahead, most, load.num_assignments) / expected
    return np.minimum(local * max(factor, 1.0), tokens)


def _fullest_group(counts: Floats, groups: int, redundant: int) -> Floats:
    """Expected assignments of the experts in the group with the most of them.

    With redundant experts, each further copy goes to the expert whose copies are busiest, and
    copies are dealt to the groups from the busiest on, as DeepSeek's EPLB does.

    **Source**: github.com/deepseek-ai/EPLB, `replicate_experts` and `balanced_packing`.
    """
    if not redundant:
        parts = np.array_split(counts, groups)
        return parts[int(np.argmax([part.sum() for part in parts]))]
    copies = np.ones(len(counts))
    busiest = [(-count, i) for i, count in enumerate(counts.tolist())]
    heapq.heapify(busiest)
    for _ in range(redundant):
        _, i = heapq.heappop(busiest)
        copies[i] += 1
        heapq.heappush(busiest, (-counts[i] / copies[i], i))
    each = np.repeat(counts / copies, copies.astype(int))
    room = math.ceil(len(each) / groups)
    packed: list[list[float]] = [[] for _ in range(groups)]
    least = [(0.0, group) for group in range(groups)]
    for count in np.sort(each)[::-1].tolist():
        total, group = heapq.heappop(least)
        packed[group].append(count)
        if len(packed[group]) < room:
            heapq.heappush(least, (total + count, group))
    return np.array(max(packed, key=sum))
