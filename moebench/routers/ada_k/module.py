"""Ada-K (Yue et al., ICLR 2025), executed: an allocator beside the base router.

The published inference samples the count; here it is the allocator's argmax, so that a benchmark
repeats. Weights follow the base model's convention: Equation 2 renormalises over the chosen
experts, which Mixtral does and Qwen1.5-MoE and DeepSeek-MoE do not, and dividing there would
change the model even where the count is its own k.
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from moebench.routers.ada_k.policy import AdaK
from moebench.routers.gate import choice_scores, random_weight, slot_weights
from moebench.routers.operating_point import check_point, impose_counts, impose_marginals
from moebench.routers.policy import Policy
from moebench.routers.routing import Router, RouterState, Routing, router
from moebench.routers.top_k.module import copy_base
from moebench.routers.top_k.policy import reachable_experts
from moebench.spec.case import OperatingPoint
from moebench.spec.model import ModelSpec


class AdaKRouter(Router):
    """The base router chooses which experts, the allocator how many: 1 to num_experts."""

    selection_bias: Tensor
    count_bias: Tensor

    def __init__(self, model: ModelSpec, policy: AdaK, num_layers: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate, self.base_top_k = model.gate, model.top_k
        self.num_experts, self.largest_count = model.num_experts, reachable_experts(model)
        self.regularisation = policy.regularisation / num_layers
        self.weight = random_weight(model.num_experts, model.hidden_size, dtype)
        self.allocator = random_weight(model.num_experts, model.hidden_size, dtype)
        self.register_buffer("selection_bias", torch.zeros(model.num_experts))
        self.register_buffer("count_bias", torch.zeros(model.num_experts))

    @torch.no_grad()
    def start_from_base(
        self,
        weight: Float[Tensor, "experts hidden"],
        correction_bias: Float[Tensor, " experts"] | None = None,
    ) -> None:
        """A bias of 12 on the base's own k against logits of 0: every token runs k experts."""
        copy_base(self.weight, self.selection_bias, weight, correction_bias)
        self.allocator.zero_()
        self.count_bias.zero_()
        self.count_bias[self.base_top_k - 1] = 12.0

    def scores(
        self, x: Float[Tensor, "tokens hidden"], state: RouterState = None
    ) -> tuple[Float[Tensor, "tokens choices"], RouterState]:
        """Router logits and allocator logits side by side, from one product.

        The weights stay two parameters, because training freezes one of them; stacking them costs
        one small copy.
        """
        return linear(x, torch.cat((self.weight, self.allocator))), state

    def allocator_logits(
        self, scores: Float[Tensor, "tokens choices"]
    ) -> Float[Tensor, "tokens counts"]:
        """Column n - 1 is the logit of running n experts."""
        return scores[:, self.num_experts :] + self.count_bias

    def counts(self, scores: Float[Tensor, "tokens choices"]) -> Int[Tensor, " tokens"]:
        """Experts of each token; no more than the group limit leaves it."""
        counts = self.allocator_logits(scores).argmax(1) + 1
        if self.largest_count < self.num_experts:
            counts = counts.clamp(max=self.largest_count)
        return counts

    def route(self, scores: Float[Tensor, "tokens choices"]) -> Routing:
        fp32 = scores.float()
        logits, counts = fp32[:, : self.num_experts], self.counts(fp32)
        choice = choice_scores(logits, self.selection_bias, self.gate, self.num_experts)
        indices = choice.topk(self.largest_count, dim=1).indices
        keep = torch.arange(self.largest_count, device=scores.device) < counts[:, None]
        weights = slot_weights(logits, indices, self.gate, keep).to(scores.dtype)
        aux_loss = self.expected_count_loss(fp32) if self.training else None
        return Routing.from_slots(weights, indices, self.num_experts, keep, aux_loss)

    def expected_count_loss(self, scores: Float[Tensor, "tokens choices"]) -> Float[Tensor, ""]:
        """Lambda / L times the mean expected count, so that layers add up to lambda L_reg.

        **Source** Equation 10.
        """
        probabilities = self.allocator_logits(scores).softmax(1)
        counts = torch.arange(1, self.num_experts + 1, device=scores.device)
        expected = (probabilities * counts).sum() / max(1, scores.shape[0])
        return self.regularisation * expected

    @torch.no_grad()
    def impose(
        self,
        scores: Float[Tensor, "tokens choices"],
        point: OperatingPoint,
        tolerance: float = 0.03,
    ) -> None:
        fp32 = scores.float()
        logits, allocator_logits = fp32[:, : self.num_experts], fp32[:, self.num_experts :]
        impose_counts(allocator_logits, self.count_bias, point)
        impose_marginals(logits, self.selection_bias, self.counts(fp32), self.gate, point)
        check_point(self.route(scores), point, tolerance)


@router("ada-k")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    options = cast(AdaK, policy)
    return [AdaKRouter(model, options, num_layers, dtype) for _ in range(num_layers)]
