"""Fixed top-k, executed: the base model's own router, which the routers of the papers extend.

z   router logits, W_r x, or W_r x + a bias where the gate has one    [tokens, num_experts]
b   selection bias: 0 as built, or the base model's own               [num_experts]
c   what competes: z + b, or the scores of z + b                      [tokens, num_experts]
the `top_k` largest c; their weights are scores of z alone, in the convention of the gate
"""

from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from moebench.routers.auxiliary import AuxiliaryLoss
from moebench.routers.gate import (
    balance_factors,
    base_columns,
    choice_scores,
    first_of_equals,
    mean_probabilities,
    product_dtype,
    random_weight,
    slot_weights,
)
from moebench.routers.gpu.form import FusedForm
from moebench.routers.operating_point import check_point, impose_marginals
from moebench.routers.policy import Policy, Reduction
from moebench.routers.routing import (
    Choice,
    ChoiceScores,
    Hidden,
    Router,
    RouterState,
    SlotExperts,
    router,
)
from moebench.routers.top_k.policy import TopK
from moebench.spec.case import OperatingPoint
from moebench.spec.model import ModelSpec


def take_over(name: str, own: Tensor | None, base: Tensor | None) -> None:
    """Copy a base router's tensor over our own; both are None where the gate has none."""
    wanted, found = ("none" if t is None else tuple(t.shape) for t in (own, base))
    if wanted != found:
        raise ValueError(f"{name}: found {found}, expected {wanted} by the model's gate")
    if own is not None and base is not None:
        own.copy_(base)


class TopKRouter(Router):
    """One linear map, then the `top_k` best; columns beyond `num_experts` are null experts."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    selection_bias: Tensor
    reduction: Reduction = "mean"
    """How its auxiliary loss is reduced over the layers; a builder sets the policy's choice."""
    balance_coefficient: float = TopK.balance_coefficient
    """See `TopK`; a builder sets the policy's."""

    def __init__(
        self, model: ModelSpec, top_k: int, weight: nn.Parameter | None, num_null_experts: int = 0
    ) -> None:
        super().__init__()
        self.gate, self.num_experts, self.top_k = model.gate, model.num_experts, top_k
        self.model_top_k, self.base_top_k = model.top_k, 0
        self.num_null_experts = num_null_experts
        self.mean_k = None if num_null_experts else float(top_k)
        columns = self.num_experts + num_null_experts
        self.register_parameter("weight", weight)
        self.register_parameter("bias", None)
        self.register_buffer("selection_bias", first_of_equals(torch.zeros(columns)))

    def add_logit_bias(self) -> None:
        """Add the bias that some gates have on their logits, for routers whose logits are W_r x."""
        if self.gate.has_bias:
            zeros = torch.zeros(len(self.selection_bias), dtype=self.weight.dtype)
            self.bias = nn.Parameter(zeros)

    def scores(self, x: Hidden, state: RouterState = None) -> tuple[ChoiceScores, RouterState]:
        return self.product(x, self.weight, self.bias), state

    def product(
        self, x: Hidden, weight: Float[Tensor, "columns hidden"], bias: Tensor | None
    ) -> ChoiceScores:
        """Logits of the base's rows and of further ones below them.

        On a checkpoint these are two products: a wider one may round otherwise, and the base's
        logits would no longer be its own to the bit.
        """
        x, n = x.to(weight.dtype), self.num_experts
        if not self.base_top_k or len(weight) == n:
            return linear(x, weight, bias)
        own, further = (None, None) if bias is None else (bias[:n], bias[n:])
        return torch.cat((linear(x, weight[:n], own), linear(x, weight[n:], further)), dim=1)

    def true_logits(self, scores: ChoiceScores) -> Float[Tensor, "tokens experts"]:
        """Logits of the true experts among all that a router computes.

        On a checkpoint they are copied out: torch's sigmoid of strided numbers may round otherwise,
        and the weights would no longer be the base's own to the bit.
        """
        columns = scores[:, : self.num_experts]
        return columns.contiguous() if self.base_top_k else columns

    def choose(self, scores: ChoiceScores) -> Choice:
        logits = scores.float()
        indices = self.best(logits)
        weights = slot_weights(logits, indices, self.gate)
        aux_loss = self.balance_loss(logits, indices) if self.training else None
        return Choice(weights, indices, self.num_experts, aux_loss=aux_loss)

    def fused_form(self) -> FusedForm | None:
        return self.base_form()

    def base_form(self) -> FusedForm | None:
        """The form of top-k; None on a checkpoint, where torch.topk decides among equals."""
        if self.selection_bias.dtype != torch.float64:
            return None
        return FusedForm(self.gate, self.gate, self.num_experts, self.top_k, self.selection_bias)

    def balance_loss(
        self, logits: ChoiceScores, indices: Int[Tensor, "chosen slots"]
    ) -> AuxiliaryLoss:
        """The Switch balance loss of the chosen experts: its coefficient at balance."""
        factors = self.balance_coefficient * balance_factors(self.num_experts, indices)
        return AuxiliaryLoss(factors, mean_probabilities(logits, self.gate), self.reduction)

    def best(self, logits: ChoiceScores) -> SlotExperts:
        """Columns with the `top_k` largest biased scores, largest first."""
        competing = self.competing(logits, self.selection_bias)
        if self.base_top_k:
            return base_columns(competing, self.top_k, self.base_top_k)
        return competing.topk(self.top_k, dim=1).indices

    def competing(self, logits: ChoiceScores, bias: Float[Tensor, " choices"]) -> ChoiceScores:
        """Scores that compete for the slots under a selection bias."""
        return choice_scores(logits, bias, self.gate, self.num_experts)

    def slots_of_token(self, scores: ChoiceScores) -> Int[Tensor, " tokens"]:
        """How many columns each token takes."""
        return torch.full(scores.shape[:1], self.top_k, device=scores.device)

    @torch.no_grad()
    def start_from_base(
        self,
        weight: Float[Tensor, "experts hidden"],
        bias: Float[Tensor, " experts"] | None = None,
        logit_bias: Float[Tensor, " experts"] | None = None,
    ) -> None:
        n, has_correction_bias = self.num_experts, self.gate.has_correction_bias
        self.selection_bias = torch.zeros_like(self.selection_bias, dtype=torch.float32)
        take_over("weight", self.weight[:n], weight)
        take_over("bias", self.selection_bias[:n] if has_correction_bias else None, bias)
        take_over("logit_bias", None if self.bias is None else self.bias[:n], logit_bias)
        self.base_top_k = self.model_top_k

    @torch.no_grad()
    def impose(self, scores: ChoiceScores, point: OperatingPoint) -> None:
        logits = scores.float()[:, : len(self.selection_bias)]
        competing, slots = partial(self.competing, logits), self.slots_of_token(scores)
        impose_marginals(competing, self.selection_bias, slots, point, self.num_experts)
        self.selection_bias.copy_(first_of_equals(self.selection_bias))
        self.mean_k = point.mean_k
        check_point(self.route(scores), point)


@router("skewed")
@router("top-k")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    options, dtype = cast(TopK, policy), product_dtype(model.gate, dtype)
    shape, top_k = (model.num_experts, model.hidden_size), options.experts_per_token(model)
    routers = [TopKRouter(model, top_k, random_weight(*shape, dtype)) for _ in range(num_layers)]
    for built in routers:
        built.reduction = options.aux_reduction
        built.balance_coefficient = options.balance_coefficient
        built.add_logit_bias()
    return list(routers)
