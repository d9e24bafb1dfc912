"""RMoE (Qiu et al., ICLR 2025), executed: a recurrent state goes up through the layers.

The state belongs to a token and ends with it: nothing is kept from step to step. It is not
detached between layers, which the paper found worse than no recurrence (Table 5).
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from moebench.routers.gate import random_weight
from moebench.routers.operating_point import check_point, impose_marginals
from moebench.routers.policy import Policy
from moebench.routers.rmoe.policy import RMoE
from moebench.routers.routing import Router, RouterState, Routing, router
from moebench.routers.top_k.module import copy_base, route_top_k
from moebench.spec.case import OperatingPoint
from moebench.spec.model import ModelSpec

STATE_SCALE = 0.28
"""Root mean square of the state under a GRU cell's default initialisation, about."""


class RMoERouter(Router):
    """Projection and gate of one layer around the cell that all layers share."""

    selection_bias: Tensor

    def __init__(
        self, model: ModelSpec, policy: RMoE, cell: nn.GRUCell, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.gate, self.top_k = model.gate, policy.experts_per_token(model)
        self.projection = random_weight(policy.state_size, model.hidden_size, dtype)
        self.cell = cell
        self.recurrent_gate = random_weight(model.num_experts, policy.state_size, dtype)
        self.weight: nn.Parameter | None = None
        with torch.no_grad():
            self.recurrent_gate.div_(STATE_SCALE)
            if policy.residual:
                self.weight = random_weight(model.num_experts, model.hidden_size, dtype)
                self.recurrent_gate.zero_()
        self.register_buffer("selection_bias", torch.zeros(model.num_experts))

    @torch.no_grad()
    def start_from_base(
        self,
        weight: Float[Tensor, "experts hidden"],
        correction_bias: Float[Tensor, " experts"] | None = None,
    ) -> None:
        """Only the residual form: z = W_r x + G h with G = 0.

        Gradients reach G at once, and the cell and the projection after its first step.

        Raises:
            ValueError: the paper's form, which replaces the base router and is trained from
                scratch.
        """
        if self.weight is None:
            raise ValueError(
                "rmoe: the paper's form replaces the pretrained router; use residual = true"
            )
        copy_base(self.weight, self.selection_bias, weight, correction_bias)
        self.recurrent_gate.zero_()

    def scores(
        self, x: Float[Tensor, "tokens hidden"], state: RouterState = None
    ) -> tuple[Float[Tensor, "tokens choices"], RouterState]:
        """Logits, and the state for the layer above; no state means zeros (the first layer)."""
        state = self.cell(linear(x, self.projection), state)
        logits = linear(state, self.recurrent_gate)
        if self.weight is not None:
            logits = linear(x, self.weight) + logits
        return logits, state

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


@router("rmoe")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    options = cast(RMoE, policy)
    cell = nn.GRUCell(options.state_size, options.state_size, dtype=dtype)
    return [RMoERouter(model, options, cell, dtype) for _ in range(num_layers)]
