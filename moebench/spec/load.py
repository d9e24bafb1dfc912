"""The load of a layer's experts: tokens per expert, and number of experts with a token.

Below a few hundred tokens an MoE layer's time is the weight traffic of the *distinct* experts. For
independent tokens their number follows from the experts' inclusion probabilities alone.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moebench.spec.schema import MOST

TYPICAL_SKEW = 0.7
"""Skew of real text on trained models: busiest quarters of the experts take 0.41 to 0.67 of the
assignments in OLMoE-1B-7B and 0.43 to 0.51 in Granite-3.0-1B (58 and 49 % at this skew; Gini 0.27
to 0.56 and 0.29 to 0.41, here 0.41 and 0.35). Source: MakazhanAlpamys/Soup, pull request 992,
18 combinations of model, corpus and batch."""


@dataclass(frozen=True)
class ExpertLoad:
    """The work of one step for the experts of one layer, as the hardware sees it."""

    tokens_per_expert: tuple[float, ...]
    """Assignments of each routed expert; fractional where it is an expectation."""
    num_tokens: int
    """Tokens that enter the layer, also those without an expert."""
    distinct_experts: float
    """Experts with at least one token (expected, where the load is an expectation)."""

    @property
    def num_assignments(self) -> float:
        """Number of (token, expert) pairs."""
        return float(sum(self.tokens_per_expert))

    @property
    def mean_k(self) -> float:
        """Mean routed experts per token; 0 for an empty step."""
        return self.num_assignments / self.num_tokens if self.num_tokens else 0.0

    @classmethod
    def observed(cls, tokens_per_expert: Sequence[int], num_tokens: int) -> "ExpertLoad":
        """The load that a router produced."""
        distinct = sum(count > 0 for count in tokens_per_expert)
        return cls(tuple(map(float, tokens_per_expert)), num_tokens, float(distinct))

    @classmethod
    def expected(
        cls,
        num_tokens: int,
        num_experts: int,
        k_distribution: Sequence[float],
        skew: float = 0.0,
        shares: tuple[float, ...] = (),
    ) -> "ExpertLoad":
        """The expected load of independent tokens that choose k experts without replacement.

        Arguments are those of an `OperatingPoint`: probabilities of 0, 1, 2, ... experts, skew or
        the experts' shares.
        """
        marginal = marginals(num_experts, tuple(k_distribution), skew, shares)
        distinct = float((1.0 - (1.0 - marginal) ** num_tokens).sum())
        return cls(tuple((num_tokens * marginal).tolist()), num_tokens, distinct)


@functools.lru_cache(maxsize=256)
def marginals(
    num_experts: int, k_distribution: tuple[float, ...], skew: float, shares: tuple[float, ...] = ()
) -> NDArray[np.float64]:
    """Probability that a token runs each expert; arguments as of `ExpertLoad.expected`."""
    popularity = np.arange(1, num_experts + 1, dtype=np.float64) ** -skew
    if shares:
        assert len(shares) == num_experts
        popularity = np.array(shares, dtype=np.float64)
    inclusion = [inclusion_probabilities(popularity, k) for k in range(len(k_distribution))]
    marginal = np.asarray(k_distribution, dtype=float) @ np.stack(inclusion)
    marginal.flags.writeable = False  # one array serves every caller
    return np.asarray(marginal)


def inclusion_probabilities(popularity: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Probability that each expert is among the k that a token chooses; they sum to k.

    Proportional to popularity [experts] of any scale, and at most 1, since no expert can take a
    token twice. Experts over that limit are always chosen and the others share the rest, as in
    sampling proportional to size.
    """
    num_experts = len(popularity)
    if not 0 <= k <= num_experts:
        raise ValueError(f"k: found {k}, expected 0 to num_experts = {num_experts}")
    result, free = np.zeros(num_experts), np.ones(num_experts, dtype=bool)
    while (left := k - (~free).sum()) and free.any():
        result[free] = left * popularity[free] / popularity[free].sum()
        over = free & (result >= 1.0)
        if not over.any():
            break
        result[over] = 1.0
        free &= ~over
    else:
        result[free] = 0.0
    return result


def skew_of_distinct(
    distinct: float, num_tokens: int, num_experts: int, k_distribution: Sequence[float]
) -> float:
    """Skew at which tokens with these counts of experts touch that many distinct ones, expected.

    Of all ways in which traffic shares experts this is the one-parameter family of power laws. A
    number that no skew gives is refused.
    """

    def expected(skew: float) -> float:
        load = ExpertLoad.expected(num_tokens, num_experts, k_distribution, skew)
        return load.distinct_experts

    low, high = 0.0, MOST["skew"]
    most, least = expected(low), expected(high)
    if not least <= distinct <= most:
        mean = sum(k * chance for k, chance in enumerate(k_distribution))
        raise ValueError(
            f"found {distinct:g}, expected {least:.4g} to {most:.4g}: what {num_tokens} tokens of "
            f"{mean:g} experts touch of {num_experts}, from all alike to uniform routing"
        )
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) > distinct else (low, middle)
    return (low + high) / 2


def geometric_k(mean: float, largest: int) -> tuple[float, ...]:
    """Probabilities of 0, 1, ..., largest experts: truncated geometric on 1..largest with a mean.

    The least structured distribution with that mean on that range (maximum entropy). For Ada-K's
    mean of 1.40 on 1..8 it puts 8 % of the tokens above k = 2; the paper reports about 10 % above
    the default k (Yue et al., ICLR 2025, section 4.4). A mean outside 1..largest is refused.
    """
    if not 1 <= mean <= largest:
        raise ValueError(f"mean k: found {mean}, expected 1 to {largest}")
    k = np.arange(1, largest + 1)
    return (0.0, *_tilted(np.zeros(len(k)), k, mean).tolist())


def null_expert_k(
    mean: float, top_k: int, num_experts: int, num_null_experts: int
) -> tuple[float, ...]:
    """Distribution of the true experts among AdaMoE's top_k slots, given their mean number.

    Top-k over exchangeable true and exchangeable null logits: Fisher's noncentral hypergeometric
    distribution, whose one free parameter (how much likelier a true expert is) is set by the mean.
    A mean outside what the slots allow is refused.
    """
    smallest, largest = max(0, top_k - num_null_experts), min(top_k, num_experts)
    if not smallest <= mean <= largest:
        raise ValueError(f"mean load: found {mean}, expected {smallest} to {largest}")
    k = np.arange(smallest, largest + 1)

    def log_choose(n: int, r: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(r + 1) - math.lgamma(n - r + 1)

    log_ways = np.array(
        [log_choose(num_experts, r) + log_choose(num_null_experts, top_k - r) for r in k.tolist()]
    )
    return (*([0.0] * smallest), *_tilted(log_ways, k, mean).tolist())


def _tilted(
    log_base: NDArray[np.float64], k: NDArray[np.int64], mean: float
) -> NDArray[np.float64]:
    """The distribution proportional to exp(log_base + c k) whose mean is `mean`, by bisection."""
    low, high = -60.0, 60.0
    while True:
        middle = (low + high) / 2
        logs = log_base + middle * k
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        if high - low < 1e-13:
            return np.asarray(weights)
        low, high = (middle, high) if float(weights @ k) < mean else (low, middle)


def floor_or_ceiling_k(mean: float, largest: int) -> tuple[float, ...]:
    """Probabilities of 0, 1, ... experts: the mean rounded down or up, and nothing else.

    Of all distributions with that mean it has the least variance. A mean outside 1..largest is
    refused.
    """
    if not 1 <= mean <= largest:
        raise ValueError(f"mean k: found {mean}, expected 1 to {largest}")
    below = math.floor(mean)
    more = (mean - below,) if mean > below else ()
    return (*([0.0] * below), 1 - sum(more), *more)


def fixed_k(k: int) -> tuple[float, ...]:
    """Distribution in which every token runs exactly k experts."""
    return (*([0.0] * k), 1.0)
