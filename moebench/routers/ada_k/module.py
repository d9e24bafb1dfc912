"""Ada-K (Yue et al., ICLR 2025), executed: an allocator beside the base router.

z   router logits, W_r x                                    [tokens, num_experts]
a   allocator logits, W_a x; a_n is the logit of n experts  [tokens, num_experts]
k   argmax(a), counted from 1                               [tokens]
the k largest z of each token

The published inference samples k from softmax(a); by default it is the argmax, so that a benchmark
repeats. With an action cap, `max_k`, the allocator has that many rows. Training draws counts,
stores them and routes by them (`choose_counts`). Weights follow the base model's convention, or
Equation 2 of the paper, which renormalises over the chosen experts and changes Qwen1.5-MoE and
DeepSeek-MoE even where k is their own.
"""

from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moebench.routers.ada_k.policy import AdaK, Decode
from moebench.routers.auxiliary import AuxiliaryLoss
from moebench.routers.gate import product_dtype, random_weight, slot_weights
from moebench.routers.gpu.form import FusedForm
from moebench.routers.operating_point import impose_counts
from moebench.routers.policy import Policy
from moebench.routers.routing import Choice, ChoiceScores, Hidden, Router, RouterState, router
from moebench.routers.stacked import Stacked
from moebench.routers.top_k.module import TopKRouter
from moebench.spec.case import OperatingPoint
from moebench.spec.model import ModelSpec

CountLogits = Float[Tensor, "tokens counts"]
OWN_K_BIAS = 12.0
"""Bias on the base model's k: against logits of 0 every token runs k experts."""


def decoded_counts(
    logits: CountLogits, decode: Decode, generator: torch.Generator | None = None
) -> Int[Tensor, " tokens"]:
    """Experts per token by the logits of an allocator: the likeliest count, a draw, or the mean.

    A draw compares one uniform number a token with the cumulated probabilities; the mean is
    rounded to the nearest count.
    """
    if decode == "argmax":
        return logits.argmax(1) + 1
    probabilities = logits.softmax(1)
    if decode == "rounded-mean":
        counts = torch.arange(1, logits.shape[1] + 1, device=logits.device)
        return (probabilities * counts).sum(1).round().long()
    below = probabilities[:, :-1].cumsum(1)
    draws = torch.rand(len(logits), 1, device=logits.device, generator=generator)
    return (below <= draws).sum(1) + 1


class AdaKRouter(TopKRouter):
    """The base router chooses which experts, the allocator how many: 1 to num_experts."""

    count_bias: Tensor
    no_bias: Tensor

    def __init__(self, model: ModelSpec, policy: AdaK, dtype: torch.dtype) -> None:
        hidden, dtype = model.hidden_size, product_dtype(model.gate, dtype)
        weight = random_weight(model.num_experts, hidden, dtype)
        super().__init__(model, policy.slots(model), weight)
        self.add_logit_bias()
        self.num_counts, self.decode = policy.num_counts(model), policy.decode
        self.generator: torch.Generator | None = None
        """Where draws come from, for decode "sampled"; None: torch's own."""
        self.allocator = random_weight(self.num_counts, hidden, dtype)
        self.stacked, self.stacked_bias = Stacked(), Stacked()
        self.register_buffer("no_bias", torch.zeros(self.num_counts), persistent=False)
        self.register_buffer("count_bias", torch.zeros(self.num_counts))
        self.weights_gate, self.regularisation = policy.weights_gate(model), policy.regularisation
        self.mean_k = None

    def scores(self, x: Hidden, state: RouterState = None) -> tuple[ChoiceScores, RouterState]:
        """Router logits and allocator logits side by side, from one product where it may be."""
        # While it is trained beside a base in 16 bits, the allocator is kept in fp32.
        weight = self.stacked(self.weight, self.allocator)
        bias = None if self.bias is None else self.stacked_bias(self.bias, self.no_bias)
        return self.product(x, weight, bias), state

    def choose(self, scores: ChoiceScores) -> Choice:
        return self.choose_counts(scores, self.slots_of_token(scores))

    def fused_form(self) -> FusedForm | None:
        """None where counts are drawn or rounded means."""
        form = self.base_form()
        if form is None or self.decode != "argmax":
            return None
        return replace(
            form, weights_gate=self.weights_gate, rule="argmax", rule_values=self.count_bias
        )

    def choose_counts(self, scores: ChoiceScores, counts: Int[Tensor, " tokens"]) -> Choice:
        """The choice with given counts, such as the stored ones of a sampled forward."""
        fp32 = scores.float()
        logits = self.true_logits(fp32)
        indices = self.best(logits)
        keep = torch.arange(self.top_k, device=scores.device) < counts[:, None]
        weights = slot_weights(logits, indices, self.weights_gate, keep)
        aux_loss = self.expected_count_loss(fp32) if self.training else None
        return Choice(weights, indices, self.num_experts, keep, aux_loss)

    def allocator_logits(self, scores: ChoiceScores) -> CountLogits:
        """Logits of running 1, 2, ... experts, biased."""
        return scores.float()[:, self.num_experts :] + self.count_bias

    def slots_of_token(self, scores: ChoiceScores) -> Int[Tensor, " tokens"]:
        """Experts that each token runs, k; at most as many as its gate's groups hold."""
        counts = decoded_counts(self.allocator_logits(scores), self.decode, self.generator)
        return counts.clamp(max=self.top_k) if self.top_k < self.num_counts else counts

    def expected_count_loss(self, scores: ChoiceScores) -> AuxiliaryLoss:
        """Lambda times the mean expected count, of which Equation 10 takes the mean over layers."""
        probabilities = self.allocator_logits(scores).softmax(1).sum(0) / max(1, scores.shape[0])
        counts = torch.arange(1, self.num_counts + 1, device=scores.device)
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
        if self.decode != "argmax":
            raise ValueError(
                f"ada-k: decode: found {self.decode!r}, expected 'argmax', the only one that an "
                "operating point can be imposed on"
            )
        impose_counts(scores.float()[:, self.num_experts :], self.count_bias, point)
        super().impose(scores, point)


@router("ada-k")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    options = cast(AdaK, policy)
    return [AdaKRouter(model, options, dtype) for _ in range(num_layers)]
