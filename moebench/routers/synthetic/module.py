"""Synthetic routers, executed; "skewed" is a top-k router at an operating point of its own."""

from typing import cast

import torch

from moebench.routers.operating_point import check_point
from moebench.routers.policy import Policy
from moebench.routers.routing import Choice, ChoiceScores, Hidden, Router, RouterState, router
from moebench.routers.synthetic.policy import Balanced
from moebench.spec.case import OperatingPoint
from moebench.spec.model import ModelSpec


class BalancedRouter(Router):
    """Experts take turns, token after token; the first token's features pick the first expert."""

    def __init__(self, model: ModelSpec, top_k: int) -> None:
        super().__init__()
        self.num_experts, self.top_k = model.num_experts, top_k
        self.weight_of_slot = model.gate.scale / top_k

    def scores(self, x: Hidden, state: RouterState = None) -> tuple[ChoiceScores, RouterState]:
        """The first features of each token, of which only the first token's are read."""
        return x[:, : self.num_experts], state

    def choose(self, scores: ChoiceScores) -> Choice:
        tokens = scores.shape[0]
        start = scores[:1].argmax(1, keepdim=True)
        turns = torch.arange(tokens * self.top_k, device=scores.device).view(tokens, self.top_k)
        weights = scores.new_full((tokens, self.top_k), self.weight_of_slot)
        return Choice(weights, (turns + start) % self.num_experts, self.num_experts)

    def impose(self, scores: ChoiceScores, point: OperatingPoint) -> None:
        """Check the point; there is nothing to set, since turns have only one operating point."""
        check_point(self.route(scores), point)


@router("balanced")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    top_k = cast(Balanced, policy).experts_per_token(model)
    return [BalancedRouter(model, top_k) for _ in range(num_layers)]
