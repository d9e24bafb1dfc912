"""AdaMoE (Zeng et al., EMNLP Findings 2024), executed: some slots go to experts that do nothing.

n, m   true and null experts
z      logits of true and null experts, W_r x               [tokens, n + m], null ones last
the `top_k` largest z; slots of null experts are dropped

Weights are those of the base model's convention over the true experts alone; where it
renormalises, that is the paper's softmax over the selected true logits (section 3.4). A token
whose slots are all null has no assignment, and the layer gives it zero.
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from moebench.routers.adamoe.policy import AdaMoE
from moebench.routers.gate import mean_probabilities, random_weight, slot_weights
from moebench.routers.operating_point import NEVER
from moebench.routers.policy import Policy
from moebench.routers.routing import Choice, ChoiceScores, Router, SlotExperts, router
from moebench.routers.top_k.module import TopKRouter
from moebench.spec.model import ModelSpec


class AdaMoERouter(TopKRouter):
    """One linear map to true and null experts, then top-k over both."""

    def __init__(self, model: ModelSpec, policy: AdaMoE, dtype: torch.dtype) -> None:
        nulls = policy.null_experts(model)
        weight = random_weight(model.num_experts + nulls, model.hidden_size, dtype)
        super().__init__(model, policy.slots(model), weight, nulls)
        self.num_null_experts, self.base_top_k, self.alpha = nulls, model.top_k, policy.alpha

    def choose(self, scores: ChoiceScores) -> Choice:
        logits = scores.float()
        indices = self.best(logits)
        is_true = indices < self.num_experts
        # A null slot reads the last true expert's score, which its mask then removes.
        readable = indices.clamp(max=self.num_experts - 1)
        weights = slot_weights(logits[:, : self.num_experts], readable, self.gate, is_true)
        aux_loss = self.balance_loss(logits, indices) if self.training else None
        return Choice(weights, readable, self.num_experts, is_true, aux_loss)

    def balance_loss(self, logits: ChoiceScores, indices: SlotExperts) -> Float[Tensor, ""]:
        """The sum alpha (n + m) f_i P_i over columns, null experts' f replaced by their mean.

        f_i is the share of tokens that select i, so f sums to top_k. The mean makes the loss blind
        to which null expert a token takes: they are not balanced against one another.

        **Source** Equation 6. The released Mixtral code averages over an empty slice, which leaves
        plain balancing of all n + m columns; this is the equation.
        """
        n, choices = self.num_experts, logits.shape[1]
        counts = torch.bincount(indices.flatten(), minlength=choices)
        shares = counts / max(1, logits.shape[0])
        shares[n:] = shares[n:].mean()
        return self.alpha * choices * shares @ mean_probabilities(logits, self.gate)

    @torch.no_grad()
    def start_from_base(
        self, weight: Float[Tensor, "experts hidden"], bias: Float[Tensor, " experts"] | None = None
    ) -> None:
        """Fill the surplus slots with null experts that every token chooses, forbid the others.

        Null rows are copies of the true ones, as published; but the published start, without
        biases, is not the base model: ties between a row and its copy decide what runs. Moving the
        biases to 0 during training frees the choice.
        """
        n, surplus = self.num_experts, self.top_k - self.base_top_k
        if not 0 <= surplus <= self.num_null_experts:
            raise ValueError(
                f"adamoe: top_k: found {self.top_k}, expected {self.base_top_k} to "
                f"{self.base_top_k + self.num_null_experts} to start from a top-{self.base_top_k}"
                f" model with {self.num_null_experts} null experts"
            )
        super().start_from_base(weight, bias)
        copies = torch.arange(self.num_null_experts, device=weight.device) % n
        self.weight[n:].copy_(weight[copies])
        self.selection_bias[n : n + surplus] = -NEVER
        self.selection_bias[n + surplus :] = NEVER


@router("adamoe")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    options = cast(AdaMoE, policy)
    return [AdaMoERouter(model, options, dtype) for _ in range(num_layers)]
