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
from moebench.routers.auxiliary import AuxiliaryLoss
from moebench.routers.gate import (
    base_columns,
    mean_probabilities,
    product_dtype,
    random_weight,
    slot_weights,
)
from moebench.routers.gpu.form import FusedForm
from moebench.routers.operating_point import NEVER
from moebench.routers.policy import Policy
from moebench.routers.routing import Choice, ChoiceScores, Router, SlotExperts, router
from moebench.routers.top_k.module import TopKRouter
from moebench.spec.model import ModelSpec


class NullExpertRouter(TopKRouter):
    """Top-k over the columns of true and null experts, whatever made their logits.

    The loss of a language model never reads a null column: the weights are those of true experts
    alone. Logits of null experts learn from the balance loss and from nothing else.
    """

    alpha: float
    """Coefficient of Equation 6; a builder sets the policy's, and a schedule may change it."""
    weights_of_columns: tuple[float, float] = (1.0, 1.0)
    """Weights of true and of null columns in Equation 6, see `column_weights`."""

    def choose(self, scores: ChoiceScores) -> Choice:
        logits = scores.float()
        indices = self.best(logits)
        is_true = indices < self.num_experts
        # A null slot reads the last true expert's score, which its mask then removes.
        readable = indices.clamp(max=self.num_experts - 1)
        weights = slot_weights(self.true_logits(logits), readable, self.gate, is_true)
        aux_loss = self.balance_loss(logits, indices) if self.training else None
        return Choice(weights, readable, self.num_experts, is_true, aux_loss)

    def fused_form(self) -> FusedForm | None:
        return self.base_form()

    def best(self, logits: ChoiceScores) -> SlotExperts:
        """The best columns; on a checkpoint, true experts of equal score go by the base's choice.

        The base chose among true experts alone: as many of its choice as slots hold true ones.
        """
        competing = self.competing(logits, self.selection_bias)
        if not self.base_top_k:
            return competing.topk(self.top_k, dim=1).indices
        indices = competing.sort(dim=1, descending=True, stable=True).indices[:, : self.top_k]
        true_slots = min(self.top_k, self.num_experts)
        own = base_columns(competing[:, : self.num_experts], true_slots, self.base_top_k)
        is_true = indices < self.num_experts
        places = (is_true.cumsum(1) - 1).clamp(min=0)
        return torch.where(is_true, own.gather(1, places), indices)

    def balance_loss(self, logits: ChoiceScores, indices: SlotExperts) -> AuxiliaryLoss:
        """The sum alpha (n + m) w_i f_i P_i over columns, null experts' f replaced by their mean.

        f_i is the share of tokens that select i, so f sums to top_k. The mean makes the loss blind
        to which null expert a token takes: they are not balanced against one another. The column
        weights w are 1, as published, or those of the target load (`column_weights`).

        **Source** Equation 6. The released Mixtral code averages over an empty slice, which leaves
        plain balancing of all n + m columns; this is the equation.
        """
        n, choices = self.num_experts, logits.shape[1]
        counts = torch.bincount(indices.flatten(), minlength=choices)
        shares = counts / max(1, logits.shape[0])
        shares[n:] = shares[n:].mean()
        true_weight, null_weight = self.weights_of_columns
        shares[:n] *= true_weight
        shares[n:] *= null_weight
        probabilities = mean_probabilities(logits, self.gate)
        return AuxiliaryLoss(self.alpha * choices * shares, probabilities, self.reduction)


def column_weights(
    target_load: float, slots: int, num_experts: int, num_null_experts: int
) -> tuple[float, float]:
    """Weights of true and of null columns under which the balance loss is least at a target load.

    With n true and m null experts, K slots and the target r, the weight of a true column is
    (K / (n + m)) / (r / n), and of a null one (K / (n + m)) / ((K - r) / m): a column's share f at
    perfect balance over its share at the target. All w f are then equal at the target, so that the
    softmax behind P has no gradient left, and the loss is alpha K as at perfect balance. At
    r = K n / (n + m) both weights are 1, which is Equation 6.

    **Source** Our own; the paper has one target for all layers, that of perfect balance.
    """
    if not 0 < target_load < slots:
        raise ValueError(
            f"adamoe: target_loads: found {target_load:g}, expected more than 0 and less than the "
            f"{slots} slots of a token"
        )
    at_balance = slots / (num_experts + num_null_experts)
    true, null = target_load / num_experts, (slots - target_load) / num_null_experts
    return at_balance / true, at_balance / null


class AdaMoERouter(NullExpertRouter):
    """One linear map to true and null experts, then top-k over both."""

    def __init__(self, model: ModelSpec, policy: AdaMoE, dtype: torch.dtype) -> None:
        nulls, dtype = policy.null_experts(model), product_dtype(model.gate, dtype)
        weight = random_weight(model.num_experts + nulls, model.hidden_size, dtype)
        super().__init__(model, policy.slots(model), weight, nulls)
        self.add_logit_bias()
        self.alpha, self.reduction = policy.alpha, policy.aux_reduction
        self.copies_rows = policy.start == "copied-rows"

    @torch.no_grad()
    def start_from_base(
        self,
        weight: Float[Tensor, "experts hidden"],
        bias: Float[Tensor, " experts"] | None = None,
        logit_bias: Float[Tensor, " experts"] | None = None,
    ) -> None:
        """Fill the surplus slots with null experts that every token chooses, forbid the others.

        Null rows are copies of the true ones, as published; but the published start, without
        biases (`start` "copied-rows"), is not the base model: ties between a row and its copy
        decide what runs. Moving the biases to 0 during training frees the choice
        (`moebench.routers.adamoe.train`).
        """
        if self.gate.has_correction_bias and self.gate.score == "softmax":
            raise ValueError(
                "adamoe: gate.has_correction_bias: found a bias on softmax scores, expected none "
                "to start from: null experts change the scores that it is added to"
            )
        n, surplus = self.num_experts, self.top_k - self.model_top_k
        if not self.copies_rows and not 0 <= surplus <= self.num_null_experts:
            raise ValueError(
                f"adamoe: top_k: found {self.top_k}, expected {self.model_top_k} to "
                f"{self.model_top_k + self.num_null_experts} to start from a top-{self.model_top_k}"
                f" model with {self.num_null_experts} null experts"
            )
        super().start_from_base(weight, bias, logit_bias)
        copies = torch.arange(self.num_null_experts, device=weight.device) % n
        self.weight[n:].copy_(weight[copies])
        if self.bias is not None and logit_bias is not None:
            self.bias[n:].copy_(logit_bias[copies])
        if self.copies_rows:
            self.base_top_k = 0  # as in the released code, torch.topk decides among equals
            return
        self.selection_bias[n : n + surplus] = -NEVER
        self.selection_bias[n + surplus :] = NEVER


@router("adamoe")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    options = cast(AdaMoE, policy)
    routers = [AdaMoERouter(model, options, dtype) for _ in range(num_layers)]
    sizes = options.slots(model), model.num_experts, options.null_experts(model)
    for built, target in zip(routers, options.targets(num_layers), strict=True):
        if target is not None:
            built.weights_of_columns = column_weights(target, *sizes)
    return list(routers)
