"""Fixed top-k, executed: the base model's own router."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from moebench.routers.gate import balance_loss, choice_scores, random_weight, slot_weights
from moebench.routers.operating_point import check_point, impose_marginals
from moebench.routers.policy import Policy
from moebench.routers.routing import Router, RouterState, Routing, router
from moebench.routers.top_k.policy import TopK
from moebench.spec.case import OperatingPoint
from moebench.spec.model import Gate, ModelSpec

BALANCE_COEFFICIENT = 0.01
"""Of the Switch balance loss, as in OLMoE and RMoE."""


def route_top_k(
    scores: Float[Tensor, "tokens experts"],
    selection_bias: Float[Tensor, " experts"],
    top_k: int,
    gate: Gate,
    is_training: bool,
) -> Routing:
    """The `top_k` best of every token, weighted as the base model does."""
    router_logits, num_experts = scores.float(), scores.shape[1]
    choice = choice_scores(router_logits, selection_bias, gate, num_experts)
    indices = choice.topk(top_k, dim=1).indices
    weights = slot_weights(router_logits, indices, gate).to(scores.dtype)
    aux_loss = None
    if is_training:
        aux_loss = BALANCE_COEFFICIENT * balance_loss(router_logits, indices, gate)
    return Routing.from_slots(weights, indices, num_experts, aux_loss=aux_loss)


class TopKRouter(Router):
    """One linear map without bias, then top-k."""

    selection_bias: Tensor

    def __init__(self, model: ModelSpec, top_k: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate, self.top_k = model.gate, top_k
        self.weight = random_weight(model.num_experts, model.hidden_size, dtype)
        self.register_buffer("selection_bias", torch.zeros(model.num_experts))

    def start_from_base(
        self,
        weight: Float[Tensor, "experts hidden"],
        correction_bias: Float[Tensor, " experts"] | None = None,
    ) -> None:
        copy_base(self.weight, self.selection_bias, weight, correction_bias)

    def scores(
        self, x: Float[Tensor, "tokens hidden"], state: RouterState = None
    ) -> tuple[Float[Tensor, "tokens choices"], RouterState]:
        return linear(x, self.weight), state

    def route(self, scores: Float[Tensor, "tokens choices"]) -> Routing:
        return route_top_k(scores, self.selection_bias, self.top_k, self.gate, self.training)

    @torch.no_grad()
    def impose(
        self,
        scores: Float[Tensor, "tokens choices"],
        point: OperatingPoint,
        tolerance: float = 0.03,
    ) -> None:
        impose_marginals(scores.float(), self.selection_bias, self.top_k, self.gate, point)
        check_point(self.route(scores), point, tolerance)


@torch.no_grad()
def copy_base(
    weight: nn.Parameter,
    selection_bias: Tensor,
    base_weight: Float[Tensor, "experts hidden"],
    correction_bias: Float[Tensor, " experts"] | None,
) -> None:
    """Take over the base router's weight, and its correction bias where the model has one."""
    weight.copy_(base_weight)
    selection_bias.zero_()
    if correction_bias is not None:
        selection_bias.copy_(correction_bias)


@router("skewed")
@router("top-k")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    top_k = cast(TopK, policy).experts_per_token(model)
    return [TopKRouter(model, top_k, dtype) for _ in range(num_layers)]
