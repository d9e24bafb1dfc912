"""Ada-K (Yue et al., ICLR 2025): an allocator sets each token's k; no code was ever released."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from moebench.routers.policy import CHOOSING, SORTING, Policy, PublishedMean, register
from moebench.routers.top_k.policy import choice_op, flatten_op, logits_op, reachable_experts
from moebench.spec.gate import Gate
from moebench.spec.load import geometric_k
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, traffic
from moebench.spec.parameters import choices, router_parameters

_TABLE = "Yue et al., ICLR 2025, Table 3 (Act)"
Decode = Literal["argmax", "sampled", "rounded-mean"]
"""How an allocator's distribution becomes a token's k; the paper writes sampling (Equation 4)."""


@register
@dataclass(frozen=True)
class AdaK(Policy):
    """Tokens run 1 to num_experts experts: k is geometric, since the paper reports means only."""

    name: ClassVar[str] = "ada-k"
    is_adaptive: ClassVar[bool] = True
    published: ClassVar[dict[str, PublishedMean]] = {
        "mixtral-8x22b": PublishedMean(1.31, _TABLE),
        "mixtral-8x7b": PublishedMean(1.40, _TABLE),
        "qwen1.5-moe-a2.7b": PublishedMean(2.58, _TABLE),
        "deepseek-moe-16b": PublishedMean(3.61, _TABLE),
    }

    mean_k: float | None = None
    """Mean experts per token to impose; the paper's for this model if left out."""
    regularisation: float = 3e-3
    """Lambda, the coefficient of the expected count in the training loss (section 4.1)."""
    weights: Literal["base", "paper"] = "base"
    """Weights of the chosen experts: the base model's convention, or Equation 2, which renormalises
    for every base. They differ where the base does not (OLMoE, Qwen1.5-MoE, DeepSeek), which a
    router with the paper's weights therefore does not start as."""
    decode: Decode = "argmax"
    """The most likely count, so that a benchmark repeats; a draw; or the rounded expectation."""
    max_k: int | None = None
    """Most experts that a token can run; the paper's num_experts if left out (section 4.4)."""

    def num_counts(self, model: ModelSpec) -> int:
        """Counts that the allocator chooses from: 1 to this many experts."""
        if self.max_k is None:
            return choices(model)
        if not 1 <= self.max_k <= model.num_experts:
            raise ValueError(
                f"{self.name}: max_k: found {self.max_k}, expected 1 to num_experts = "
                f"{model.num_experts}"
            )
        return self.max_k

    def slots(self, model: ModelSpec) -> int:
        """Most experts that a token runs: its allocator's counts, and the gate's groups, end it."""
        return min(reachable_experts(model), self.num_counts(model))

    def weights_gate(self, model: ModelSpec) -> Gate:
        """The gate convention that makes the weights."""
        return replace(model.gate, renormalise=model.gate.renormalise or self.weights == "paper")

    @property
    def in_kernel(self) -> frozenset[str]:
        return CHOOSING if self.decode == "argmax" else SORTING

    def parameters(self, model: ModelSpec) -> int:
        """Parameters of the base router, and an allocator of a row per count in each layer."""
        allocators = model.num_moe_layers * self.num_counts(model) * model.hidden_size
        return router_parameters(model) + allocators

    def ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        """Router and allocator are one product, of weights that inference keeps stacked."""
        n, counts, h = choices(model), self.num_counts(model), model.hidden_size
        slots, gate = self.slots(model), self.weights_gate(model)
        product = logits_op(gate, "router-and-allocator", (num_tokens, n + counts, h), dtype)
        # Bias, argmax, first count is 1, slot numbers, comparison, masking; guards as configured.
        launches = 6 + gate.renormalise + (slots < counts)
        launches += {"argmax": 0, "sampled": 4, "rounded-mean": 4}[self.decode]
        read, written = 3 * num_tokens * counts, num_tokens * counts
        return (
            product,
            traffic("count", "router", read, written, dtype, launches=launches),
            choice_op(gate, num_tokens, n, slots, dtype),
            flatten_op(num_tokens * slots, drops=True),
        )

    def k_distribution(self, model: ModelSpec) -> tuple[tuple[float, ...], str]:
        mean, source = self.mean_or_published(self.mean_k, model)
        return geometric_k(mean, self.slots(model)), f"{source}; geometric with that mean"
