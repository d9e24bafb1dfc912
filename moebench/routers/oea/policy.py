"""OEA, Opportunistic Expert Activation (Oncescu et al., 2511.02237): routing that sees the batch.

In decoding a layer's time is the weights of its distinct experts. So each token insists on its
best `own_k` experts only, their union over the batch is loaded, and each token fills its further
slots from what is loaded anyway. It saves distinct experts rather than assignments. This is the
form without a probability threshold and without a limit on how far down a token may look.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from moebench.routers.policy import SORTING, register
from moebench.routers.top_k.policy import TopK, choice_op, flatten_op, logits_op, reachable_experts
from moebench.spec.case import OperatingPoint
from moebench.spec.load import ExpertLoad, fixed_k, marginals
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, traffic
from moebench.spec.parameters import choices


@register
@dataclass(frozen=True)
class OEA(TopK):
    """Tokens run their `own_k` best experts, and up to `top_k` with those that others loaded.

    A token's route depends on the tokens of its step: other sequences in decoding, and in prefill
    also later tokens of its own. So a sequence's loss depends on what it is batched with.
    """

    name: ClassVar[str] = "oea"
    is_causal: ClassVar[bool] = False

    own_k: int | None = None
    """Experts that each token gets whatever the others choose, k0; half of `top_k`, rounded up, if
    left out (the paper tunes it for each model)."""

    def identity_options(self, model: ModelSpec) -> Mapping[str, Any]:
        return {"own_k": model.top_k}

    def own_experts_per_token(self, model: ModelSpec) -> int:
        """The given `own_k`, or its default; an error where it is not 1 to `top_k`."""
        k = self.experts_per_token(model)
        found = -(-k // 2) if self.own_k is None else self.own_k
        if not 1 <= found <= k:
            raise ValueError(f"{self.name}: own_k: found {found}, expected 1 to top_k = {k}")
        return found

    @property
    def in_kernel(self) -> frozenset[str]:
        return SORTING

    def ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        n, k = choices(model), self.experts_per_token(model)
        pairs = num_tokens * n
        guards = model.gate.renormalise + (model.gate.num_groups > 1)
        return (
            logits_op(model.gate, "router", (num_tokens, n, model.hidden_size), dtype),
            choice_op(model.gate, num_tokens, n, k, dtype),
            traffic("union", "router", 4 * pairs, 3 * pairs, "float32", launches=11 + guards),
            flatten_op(num_tokens * k, drops=True),
        )

    def k_distribution(self, model: ModelSpec) -> tuple[tuple[float, ...], str]:
        """`top_k` for every token, which a batch reaches once it loads that many; else fewer."""
        if model.num_free_experts:
            raise ValueError(f"{self.name}: {model.name} has experts without a matmul to load")
        k, own = self.experts_per_token(model), self.own_experts_per_token(model)
        return fixed_k(k), f"{own} of {k} experts a token's own, the others among those loaded"

    def load(self, model: ModelSpec, num_tokens: int, point: OperatingPoint) -> ExpertLoad:
        """Expected load: as many distinct experts as independent tokens of `own_k` experts touch.

        The point's marginals are those of a token's own experts. All tokens of a step run the same
        number of experts: as many as are loaded, at most `top_k`.
        """
        own, k = self.own_experts_per_token(model), self.experts_per_token(model)
        of_experts = point.skew, point.expert_shares
        loaded = ExpertLoad.expected(num_tokens, model.num_experts, fixed_k(own), *of_experts)
        marginal = marginals(model.num_experts, fixed_k(own), *of_experts)
        # Two tokens of k0 experts share k0^2 / N of N equally popular ones.
        popular = own**2 / float((marginal**2).sum())
        reachable = popular * reachable_experts(model) / model.num_experts
        run = num_tokens * expected_slots(num_tokens, (own, k), (popular, reachable))
        shares = marginals(model.num_experts, fixed_k(k), *of_experts) / k
        return ExpertLoad(tuple((run * shares).tolist()), num_tokens, loaded.distinct_experts)


@functools.lru_cache(maxsize=1024)
def expected_slots(
    num_tokens: int, own_and_top_k: tuple[int, int], experts: tuple[float, float]
) -> float:
    """Expected experts that a token runs: what its batch loads within its reach, at most `top_k`.

    The number loaded is a Markov chain over the other tokens. With d loaded, the next of a token's
    experts, after j others of which a were new, is new with probability (R - d - a) / (N - j). It
    is exact for equally popular experts that are all within reach.

    Args:
        experts: N, equally popular ones, and R, those that the groups of one token's gate hold.
    """
    (own_k, top_k), (num_experts, reachable) = own_and_top_k, experts
    if not num_tokens:
        return 0.0
    step = np.zeros((top_k + 1, top_k + 1))
    for loaded in range(top_k + 1):
        new = np.zeros(own_k + 1)
        new[0] = 1.0
        for drawn in range(own_k):
            left = max(num_experts - drawn, 1e-9)
            chance = ((reachable - loaded - np.arange(own_k + 1)) / left).clip(0.0, 1.0)
            new = new * (1 - chance) + np.concatenate(([0.0], (new * chance)[:-1]))
        np.add.at(step[loaded], np.minimum(loaded + np.arange(own_k + 1), top_k), new)
    of_others = np.linalg.matrix_power(step, num_tokens - 1)
    return float(of_others[own_k] @ np.arange(top_k + 1))
