"""Fixed top-k, executed: the base model's own router, which the routers of the papers extend.

z   router logits, W_r x                                    [tokens, num_experts]
b   selection bias: 0 as built, or the base model's own     [num_experts]
c   what competes: z + b, or sigmoid(z) + b                 [tokens, num_experts]
the `top_k` largest c; their weights are scores of z alone, in the convention of the gate
"""

from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from moebench.routers.gate import balance_loss, choice_scores, random_weight, slot_weights
from moebench.routers.operating_point import check_point, impose_marginals
from moebench.routers.policy import Policy
from moebench.routers.routing import Choice, ChoiceScores, Hidden, Router, RouterState, router
from moebench.routers.top_k.policy import TopK
from moebench.spec.case import OperatingPoint
from moebench.spec.model import ModelSpec

BALANCE_COEFFICIENT = 0.01
"""Coefficient of the Switch balance loss in training, as in OLMoE and RMoE."""


class TopKRouter(Router):
    """One linear map, then the `top_k` best; columns beyond `num_experts` are null experts."""

    weight: nn.Parameter
    selection_bias: Tensor

    def __init__(
        self, model: ModelSpec, top_k: int, weight: nn.Parameter | None, num_null_experts: int = 0
    ) -> None:
        super().__init__()
        self.gate, self.num_experts, self.top_k = model.gate, model.num_experts, top_k
        self.register_parameter("weight", weight)
        self.register_buffer("selection_bias", torch.zeros(self.num_experts + num_null_experts))

    def scores(self, x: Hidden, state: RouterState = None) -> tuple[ChoiceScores, RouterState]:
        return linear(x, self.weight), state

    def choose(self, scores: ChoiceScores) -> Choice:
        logits = scores.float()
        indices = self.best(logits)
        weights = slot_weights(logits, indices, self.gate)
        aux_loss = None
        if self.training:
            aux_loss = BALANCE_COEFFICIENT * balance_loss(logits, indices, self.gate)
        return Choice(weights, indices, self.num_experts, aux_loss=aux_loss)

    def best(self, logits: ChoiceScores) -> Int[Tensor, "tokens slots"]:
        """Columns with the `top_k` largest biased scores, largest first."""
        return self.competing(logits, self.selection_bias).topk(self.top_k, dim=1).indices

    def competing(self, logits: ChoiceScores, bias: Float[Tensor, " choices"]) -> ChoiceScores:
        """Scores that compete for the slots under a selection bias."""
        return choice_scores(logits, bias, self.gate, self.num_experts)

    def slots_of_token(self, scores: ChoiceScores) -> Int[Tensor, " tokens"]:
        """How many columns each token takes."""
        return torch.full(scores.shape[:1], self.top_k, device=scores.device)

    @torch.no_grad()
    def start_from_base(
        self, weight: Float[Tensor, "experts hidden"], bias: Float[Tensor, " experts"] | None = None
    ) -> None:
        """Take over the base router's weight, and its correction bias where the model has one."""
        self.weight[: self.num_experts].copy_(weight)
        self.selection_bias.zero_()
        if bias is not None:
            self.selection_bias[: self.num_experts].copy_(bias)

    @torch.no_grad()
    def impose(self, scores: ChoiceScores, point: OperatingPoint) -> None:
        logits = scores.float()[:, : len(self.selection_bias)]
        competing, slots = partial(self.competing, logits), self.slots_of_token(scores)
        impose_marginals(competing, self.selection_bias, slots, point, self.num_experts)
        check_point(self.route(scores), point)


@router("skewed")
@router("top-k")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    top_k = cast(TopK, policy).experts_per_token(model)
    shape = (model.num_experts, model.hidden_size)
    return [TopKRouter(model, top_k, random_weight(*shape, dtype)) for _ in range(num_layers)]
