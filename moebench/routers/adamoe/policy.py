"""AdaMoE (Zeng et al., EMNLP Findings 2024): null experts make a fixed top-k adaptive."""

from dataclasses import dataclass
from typing import ClassVar

from moebench.routers.policy import Policy, PublishedMean, register
from moebench.routers.top_k.policy import choice_op, flatten_op, reachable_experts
from moebench.spec.load import null_expert_k
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, linear, traffic
from moebench.spec.parameters import router_parameters

MOST_NULL_EXPERTS = 4096


@register
@dataclass(frozen=True)
class AdaMoE(Policy):
    """Tokens choose `top_k` of true and null experts; k is the number of true ones, down to 0.

    Perfect balance over all columns would give top_k n / (n + m) true experts per token; the
    trained Mixtral models of the paper do not obey that rule, so the mean is stated.
    """

    name: ClassVar[str] = "adamoe"
    is_adaptive: ClassVar[bool] = True
    published: ClassVar[dict[str, PublishedMean]] = {
        "mixtral-8x7b": PublishedMean(
            1.66, "Zeng et al., EMNLP Findings 2024, Table 1 (average load at m = 8, k = 3)"
        ),
    }

    num_null_experts: int = 8
    top_k: int = 3
    """Slots per token, for true and null experts."""
    mean_k: float | None = None
    """Mean true experts per token to impose; the paper's for this model if left out."""
    alpha: float = 0.02
    """Coefficient of the balance loss; the paper's second epoch uses 1e-4 (Table 5)."""

    def slots(self, model: ModelSpec) -> int:
        """Slots per token; an error where there is no null expert or a token cannot fill them."""
        if not 1 <= self.num_null_experts <= MOST_NULL_EXPERTS:
            raise ValueError(
                f"{self.name}: num_null_experts: found {self.num_null_experts}, "
                f"expected 1 to {MOST_NULL_EXPERTS}"
            )
        largest = reachable_experts(model) + self.num_null_experts
        if not 1 <= self.top_k <= largest:
            raise ValueError(f"{self.name}: top_k: found {self.top_k}, expected 1 to {largest}")
        return self.top_k

    def parameters(self, model: ModelSpec) -> int:
        nulls = model.num_moe_layers * self.num_null_experts * model.hidden_size
        return router_parameters(model) + nulls

    def ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        choices, slots = model.num_experts + self.num_null_experts, self.slots(model)
        pairs = num_tokens * slots
        # Comparison, readable indices, masking; guards as configured.
        guards = model.gate.renormalise + (model.gate.num_groups > 1)
        return (
            linear("router", "router", num_tokens, choices, model.hidden_size, dtype),
            choice_op(model.gate, num_tokens, choices, slots, dtype),
            flatten_op(pairs, drops=True),
            traffic("drop-nulls", "router", 3 * pairs, 3 * pairs, "float32", launches=3 + guards),
        )

    def k_distribution(self, model: ModelSpec) -> tuple[tuple[float, ...], str]:
        if self.mean_k is None and (self.num_null_experts, self.top_k) != (8, 3):
            raise ValueError(
                f"{self.name}: the published mean is for 8 null experts and top_k = 3, found "
                f"{self.num_null_experts} and {self.top_k}; give mean_k"
            )
        mean, source = self.mean_or_published(self.mean_k, model)
        distribution = null_expert_k(
            mean, self.slots(model), reachable_experts(model), self.num_null_experts
        )
        return distribution, f"{source}; slots drawn from true and null experts with that mean"
