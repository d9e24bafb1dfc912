"""Ada-K (Yue et al., ICLR 2025), executed: an allocator beside the base router.

z   router logits, W_r x                                    [tokens, num_experts]
a   allocator logits, W_a x; a_n is the logit of n experts  [tokens, num_experts]
k   argmax(a), counted from 1                               [tokens]
the k largest z of each token

The published inference samples k from softmax(a); here it is the argmax, so that a benchmark
repeats. Weights follow the base model's convention, or Equation 2 of the paper, which renormalises
over the chosen experts and changes Qwen1.5-MoE and DeepSeek-MoE even where k is their own.
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear, pad

from moebench.routers.ada_k.policy import AdaK
from moebench.routers.auxiliary import AuxiliaryLoss
from moebench.routers.gate import product_dtype, random_weight, slot_weights
from moebench.routers.operating_point import impose_counts
from moebench.routers.policy import Policy
from moebench.routers.routing import Choice, ChoiceScores, Hidden, Router, RouterState, router
from moebench.routers.top_k.module import TopKRouter
from moebench.routers.top_k.policy import reachable_experts
from moebench.spec.case import OperatingPoint
from moebench.spec.model import ModelSpec

OWN_K_BIAS = 12.0
"""Bias on the base model's k: against logits of 0 every token runs k experts."""


class AdaKRouter(TopKRouter):
    """The base router chooses which experts, the allocator how many: 1 to num_experts."""

    count_bias: Tensor

    def __init__(self, model: ModelSpec, policy: AdaK, dtype: torch.dtype) -> None:
        shape, dtype = (model.num_experts, model.hidden_size), product_dtype(model.gate, dtype)
        super().__init__(model, reachable_experts(model), random_weight(*shape, dtype))
        self.add_logit_bias()
        self.allocator = random_weight(*shape, dtype)
        self.register_buffer("count_bias", torch.zeros(model.num_experts))
        self.weights_gate, self.regularisation = policy.weights_gate(model), policy.regularisation

    def scores(self, x: Hidden, state: RouterState = None) -> tuple[ChoiceScores, RouterState]:
        """Router logits and allocator logits side by side, from one product."""
        # Two parameters, because training freezes one of them; stacking them costs a small copy.
        weight = torch.cat((self.weight, self.allocator))
        bias = None if self.bias is None else pad(self.bias, (0, self.num_experts))
        return linear(x.to(weight.dtype), weight, bias), state

    def choose(self, scores: ChoiceScores) -> Choice:
        fp32 = scores.float()
        logits, counts = fp32[:, : self.num_experts], self.slots_of_token(fp32)
        indices = self.best(logits)
        keep = torch.arange(self.top_k, device=scores.device) < counts[:, None]
        weights = slot_weights(logits, indices, self.weights_gate, keep)
        aux_loss = self.expected_count_loss(fp32) if self.training else None
        return Choice(weights, indices, self.num_experts, keep, aux_loss)

    def allocator_logits(self, scores: ChoiceScores) -> Float[Tensor, "tokens counts"]:
        """Logits of running 1, 2, ... experts, biased."""
        return scores.float()[:, self.num_experts :] + self.count_bias

    def slots_of_token(self, scores: ChoiceScores) -> Int[Tensor, " tokens"]:
        """Experts that each token runs, k; at most as many as its gate's groups hold."""
        counts = self.allocator_logits(scores).argmax(1) + 1
        return counts.clamp(max=self.top_k) if self.top_k < self.num_experts else counts

    def expected_count_loss(self, scores: ChoiceScores) -> AuxiliaryLoss:
        """Lambda times the mean expected count, of which Equation 10 takes the mean over layers."""
        probabilities = self.allocator_logits(scores).softmax(1).sum(0) / max(1, scores.shape[0])
        counts = torch.arange(1, self.num_experts + 1, device=scores.device)
        factors = (self.regularisation * counts).to(probabilities.dtype)
        return AuxiliaryLoss(factors, probabilities, "mean")

    @torch.no_grad()
    def start_from_base(
        self,
        weight: Float[Tensor, "experts hidden"],
        bias: Float[Tensor, " experts"] | None = None,
        logit_bias: Float[Tensor, " experts"] | None = None,
    ) -> None:
        super().start_from_base(weight, bias, logit_bias)
        self.allocator.zero_()
        self.count_bias.zero_()
        self.count_bias[self.model_top_k - 1] = OWN_K_BIAS

    @torch.no_grad()
    def impose(self, scores: ChoiceScores, point: OperatingPoint) -> None:
        impose_counts(scores.float()[:, self.num_experts :], self.count_bias, point)
        super().impose(scores, point)


@router("ada-k")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    options = cast(AdaK, policy)
    return [AdaKRouter(model, options, dtype) for _ in range(num_layers)]
