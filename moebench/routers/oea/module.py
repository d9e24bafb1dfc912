"""OEA (Oncescu et al., 2511.02237), executed: tokens of a batch share what any of them loads.

c        what competes, as of top-k                                       [tokens, num_experts]
own      the `own_k` largest c of each token
loaded   the union of own over the tokens of a batch
further  the largest c of a token among loaded without own, as many as fill `top_k` slots
own and further, weighted by the gate over both

With `own_k` = `top_k` it is top-k. A batch of one token runs its `own_k` experts.
"""

from typing import cast

import torch
from jaxtyping import Bool
from torch import Tensor

from moebench.routers.gate import (
    base_columns,
    first_of_equals,
    product_dtype,
    random_weight,
    slot_weights,
)
from moebench.routers.oea.policy import OEA
from moebench.routers.operating_point import check_point, impose_marginals
from moebench.routers.policy import Policy
from moebench.routers.routing import Choice, ChoiceScores, Router, Routing, SlotExperts, router
from moebench.routers.top_k.module import TopKRouter
from moebench.spec.case import OperatingPoint
from moebench.spec.load import fixed_k
from moebench.spec.model import ModelSpec

ExpertMask = Bool[Tensor, "tokens experts"]


class OEARouter(TopKRouter):
    """Each token's own best experts, and among those that its batch loads the next best.

    The tokens of a call lie as [steps, sequences, positions]. Tokens of one step and one position
    are a batch. As built there is one step and one position: all tokens are one batch.
    """

    num_steps: int = 1
    """Decode steps that a call holds one after another, as a suite's stream."""
    positions: int = 1
    """Positions of each sequence. To evaluate windows of a text, their length: then the tokens at
    one position of all windows are a batch, as in decoding them side by side."""

    def __init__(self, model: ModelSpec, policy: OEA, dtype: torch.dtype) -> None:
        shape, dtype = (model.num_experts, model.hidden_size), product_dtype(model.gate, dtype)
        top_k = policy.experts_per_token(model)
        super().__init__(model, top_k, random_weight(*shape, dtype))
        self.add_logit_bias()
        self.own_k, self.reduction = policy.own_experts_per_token(model), policy.aux_reduction
        self.mean_k = None

    def choose(self, scores: ChoiceScores) -> Choice:
        logits = scores.float()
        competing = self.competing(logits, self.selection_bias)
        own = self.own_experts(competing)
        # 1 and not True, which no traced graph can hold.
        is_own = torch.zeros_like(competing, dtype=torch.bool).scatter(1, own, 1)
        others = competing.masked_fill(is_own | ~self.loaded(is_own), -torch.inf)
        further = others.topk(self.top_k - self.own_k, dim=1)
        indices = torch.cat((own, further.indices), dim=1)
        keep = torch.cat((torch.ones_like(own, dtype=torch.bool), further.values > -torch.inf), 1)
        weights = slot_weights(logits, indices, self.gate, keep)
        aux_loss = self.balance_loss(logits, own) if self.training else None
        return Choice(weights, indices, self.num_experts, keep, aux_loss)

    def own_experts(self, competing: ChoiceScores) -> SlotExperts:
        """The experts that each token runs whatever the others choose, best first."""
        if self.base_top_k:
            return base_columns(competing, self.own_k, self.base_top_k)
        return competing.topk(self.own_k, dim=1).indices

    def loaded(self, is_own: ExpertMask) -> ExpertMask:
        """Experts that any token of the same batch chose for itself, for each token."""
        num_tokens, num_experts = is_own.shape
        apart = self.num_steps * self.positions
        if apart > 1 and num_tokens % apart:
            raise ValueError(
                f"oea: found {num_tokens} tokens, expected a multiple of {self.num_steps} steps "
                f"of {self.positions} positions"
            )
        shape = (self.num_steps, num_tokens // apart, self.positions, num_experts)
        batches = is_own.view(shape)
        return batches.any(1, keepdim=True).expand(shape).reshape(is_own.shape)

    def route_steps(self, scores: ChoiceScores, num_steps: int) -> Routing:
        before, self.num_steps = self.num_steps, num_steps
        try:
            return self.route(scores)
        finally:
            self.num_steps = before

    @torch.no_grad()
    def impose(self, scores: ChoiceScores, point: OperatingPoint) -> None:
        """Bring the tokens' own experts to the point's marginals; how many they are is fixed."""

        def competing(bias: Tensor) -> Tensor:
            return self.competing(scores.float(), bias)

        slots = torch.full(scores.shape[:1], self.own_k, device=scores.device)
        impose_marginals(competing, self.selection_bias, slots, point, self.num_experts)
        self.selection_bias.copy_(first_of_equals(self.selection_bias))
        self.mean_k = point.mean_k
        own = self.own_experts(competing(self.selection_bias))
        ones = torch.ones_like(own, dtype=scores.dtype)
        of_own = OperatingPoint(
            fixed_k(self.own_k), "imposed", point.source, point.skew, point.expert_shares
        )
        check_point(Routing.from_slots(ones, own, self.num_experts), of_own)


@router("oea")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    return [OEARouter(model, cast(OEA, policy), dtype) for _ in range(num_layers)]
