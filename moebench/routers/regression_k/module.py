"""Regression-k, executed: a linear prediction of what each further expert is worth to a token.

z   router logits, W_r x                                                   [tokens, num_experts]
c   W_c x + b: predicted rise of the token's own loss without its 2nd, 3rd, ... expert, in nats
expert j + 1 runs where c_1 to c_j all reach the threshold                 [tokens, max_k - 1]

As built W_c is random. `moebench.routers.regression_k.train` fits it to measured rises.
"""

from typing import cast

import torch
from torch import Tensor, nn

from moebench.routers.gate import random_weight
from moebench.routers.gpu.form import FusedForm
from moebench.routers.policy import Policy
from moebench.routers.regression_k.policy import RegressionK
from moebench.routers.routing import ChoiceScores, Hidden, Router, RouterState, router
from moebench.routers.stacked import Stacked
from moebench.routers.thresholds import Needs, ThresholdRouter
from moebench.spec.model import ModelSpec


class RegressionKRouter(ThresholdRouter):
    """Runs a further expert where its predicted worth reaches the threshold."""

    no_bias: Tensor

    def __init__(self, model: ModelSpec, policy: RegressionK, dtype: torch.dtype) -> None:
        super().__init__(model, policy, dtype)
        further, dtype = self.top_k - 1, self.weight.dtype
        cost_weight = random_weight(further, model.hidden_size, dtype)
        # A count has no gradient, and the fit needs none.
        self.cost_weight = cost_weight.requires_grad_(False)
        self.cost_bias = nn.Parameter(torch.zeros(further), requires_grad=False)
        self.stacked, self.stacked_bias = Stacked(), Stacked()
        self.register_buffer("no_bias", torch.zeros(further), persistent=False)

    def scores(self, x: Hidden, state: RouterState = None) -> tuple[ChoiceScores, RouterState]:
        """Router logits and predicted costs side by side, from one product where it may be."""
        weight = self.stacked(self.weight, self.cost_weight)
        bias = None if self.bias is None else self.stacked_bias(self.bias, self.no_bias)
        return self.product(x, weight, bias), state

    def fused_form(self) -> FusedForm | None:
        return self.form_by("costs", self.cost_bias)

    def needs(self, scores: ChoiceScores) -> Needs:
        """Predicted costs in nats; that of a further expert counts at most as the one before it."""
        costs: Tensor = scores[:, self.num_experts :].float() + self.cost_bias
        return costs.cummin(1).values

    @torch.no_grad()
    def set_costs(self, weight: Tensor, bias: Tensor) -> None:
        """Take over a fit: weights [max_k - 1, hidden] and intercepts [max_k - 1]."""
        self.cost_weight.copy_(weight)
        self.cost_bias.copy_(bias)


@router("regression-k")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    options = cast(RegressionK, policy)
    return [RegressionKRouter(model, options, dtype) for _ in range(num_layers)]
