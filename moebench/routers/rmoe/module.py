"""RMoE (Qiu et al., ICLR 2025), executed: a recurrent state goes up through the layers.

h   state of a token; zeros below the first layer           [tokens, state_size]
P   projection of a layer: x' = P x                         [state_size, hidden_size]
    h = GRU(x', h), one cell for all layers
G   gate of a layer: z = G h, or z = W_r x + G h            [num_experts, state_size]
then top-k over z as usual

The state belongs to a token and ends with it: nothing is carried from step to step. It is not
detached between layers, which the paper found worse than no recurrence (Table 5); that and its
other ablations are options of the policy. No code was released for any but the tanh cell.
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from moebench.routers.adamoe.module import NullExpertRouter
from moebench.routers.auxiliary import AuxiliaryLoss
from moebench.routers.gate import product_dtype, random_weight
from moebench.routers.gpu import recurrent
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
        self, model: ModelSpec, policy: RMoE, cell: nn.RNNCellBase, projection: nn.Parameter
    ) -> None:
        logits_dtype, nulls = product_dtype(model.gate, projection.dtype), policy.num_null_experts
        gate = random_weight(model.num_experts + nulls, policy.state_size, logits_dtype)
        shape = model.num_experts, model.hidden_size
        weight = random_weight(*shape, logits_dtype) if policy.residual else None
        super().__init__(model, policy.experts_per_token(model), weight, nulls)
        self.reduction, self.balance_coefficient = policy.aux_reduction, policy.balance_coefficient
        self.is_residual, self.is_detached = policy.residual, policy.detached
        self.is_recurrent = policy.recurrence != "none"
        self.cell, self.projection, self.recurrent_gate = cell, projection, gate
        if policy.residual:
            self.add_logit_bias()
        with torch.no_grad():
            gate.div_(STATE_SCALE)
            if policy.residual:
                gate.zero_()

    def scores(self, x: Hidden, state: RouterState = None) -> tuple[ChoiceScores, RouterState]:
        """Logits, and the state for the layer above; no state means zeros (the first layer)."""
        below = state if self.is_recurrent else None
        if below is not None and self.is_detached:
            below = below.detach()
        projected, gate = linear(x, self.projection), self.recurrent_gate
        base = super().scores(x)[0] if self.is_residual else None
        if recurrent.fits(x, self.cell, gate):
            return recurrent.recurrent_scores(projected, below, self.cell, gate, base)
        state = self.cell(projected, below)
        logits = linear(state.to(gate.dtype), gate)
        return logits if base is None else base + logits, state

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


class RMoENullExpertRouter(RMoERouter, NullExpertRouter):
    """Logits of a recurrent state over true and null experts, chosen and balanced as in AdaMoE.

    The balance loss is Equation 6 of AdaMoE with the coefficient of RMoE's, which it is without
    null experts: both sum f over the slots.
    """

    balance_loss = NullExpertRouter.balance_loss

    def __init__(
        self, model: ModelSpec, policy: RMoE, cell: nn.RNNCellBase, projection: nn.Parameter
    ) -> None:
        super().__init__(model, policy, cell, projection)
        self.alpha = policy.balance_coefficient


@router("rmoe")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    options = cast(RMoE, policy)
    size, kind = options.state_size, RMoERouter
    cell_kind = nn.RNNCell if options.recurrence == "tanh" else nn.GRUCell
    cell = cell_kind(size, size, dtype=dtype)
    projections = [
        random_weight(size, model.hidden_size, dtype)
        for _ in range(1 if options.shared_projector else num_layers)
    ]
    if options.shared_projector:
        projections *= num_layers
    if options.num_null_experts:
        kind = RMoENullExpertRouter
    return [kind(model, options, cell, projection) for projection in projections]
