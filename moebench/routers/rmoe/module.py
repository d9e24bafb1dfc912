"""RMoE (Qiu et al., ICLR 2025), executed: a recurrent state goes up through the layers.

h   state of a token; zeros below the first layer           [tokens, state_size]
P   projection of a layer: x' = P x                         [state_size, hidden_size]
    h = GRU(x', h), one cell for all layers
G   gate of a layer: z = G h, or z = W_r x + G h            [num_experts, state_size]
then top-k over z as usual

The state belongs to a token and ends with it: nothing is carried from step to step. It is not
detached between layers, which the paper found worse than no recurrence (Table 5).
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from moebench.routers.auxiliary import AuxiliaryLoss
from moebench.routers.gate import product_dtype, random_weight
from moebench.routers.policy import Policy
from moebench.routers.rmoe.policy import RMoE
from moebench.routers.routing import (
    ChoiceScores,
    Hidden,
    Router,
    RouterState,
    SlotExperts,
    router,
)
from moebench.routers.top_k.module import TopKRouter
from moebench.spec.model import ModelSpec

STATE_SCALE = 0.28
"""Approximate root mean square of the state under a GRU cell's default initialisation."""


class RMoERouter(TopKRouter):
    """Projection and gate of one layer around the shared cell; the paper's form has no `weight`."""

    def __init__(
        self, model: ModelSpec, policy: RMoE, cell: nn.GRUCell, dtype: torch.dtype
    ) -> None:
        logits_dtype = product_dtype(model.gate, dtype)
        projection = random_weight(policy.state_size, model.hidden_size, dtype)
        gate = random_weight(model.num_experts, policy.state_size, logits_dtype)
        shape = model.num_experts, model.hidden_size
        weight = random_weight(*shape, logits_dtype) if policy.residual else None
        super().__init__(model, policy.experts_per_token(model), weight)
        self.reduction = policy.aux_reduction
        self.is_residual, self.cell = policy.residual, cell
        self.projection, self.recurrent_gate = projection, gate
        if policy.residual:
            self.add_logit_bias()
        with torch.no_grad():
            gate.div_(STATE_SCALE)
            if policy.residual:
                gate.zero_()

    def scores(self, x: Hidden, state: RouterState = None) -> tuple[ChoiceScores, RouterState]:
        """Logits, and the state for the layer above; no state means zeros (the first layer)."""
        state = self.cell(linear(x, self.projection), state)
        logits = linear(state.to(self.recurrent_gate.dtype), self.recurrent_gate)
        if self.is_residual:
            logits = super().scores(x)[0] + logits
        return logits, state

    def balance_loss(self, logits: ChoiceScores, indices: SlotExperts) -> AuxiliaryLoss:
        """Top-k's balance loss times k: the released code sums f over the slots."""
        loss = super().balance_loss(logits, indices)
        return loss._replace(factors=self.top_k * loss.factors)

    @torch.no_grad()
    def start_from_base(
        self,
        weight: Float[Tensor, "experts hidden"],
        bias: Float[Tensor, " experts"] | None = None,
        logit_bias: Float[Tensor, " experts"] | None = None,
    ) -> None:
        """Start the residual form as z = W_r x + G h with G = 0; the paper's form cannot start so.

        Gradients reach G at once, and the cell and the projection after its first step.
        """
        if not self.is_residual:
            raise ValueError(
                "rmoe: the paper's form replaces the pretrained router; use residual = true"
            )
        super().start_from_base(weight, bias, logit_bias)
        self.recurrent_gate.zero_()


@router("rmoe")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    options = cast(RMoE, policy)
    cell = nn.GRUCell(options.state_size, options.state_size, dtype=dtype)
    return [RMoERouter(model, options, cell, dtype) for _ in range(num_layers)]
