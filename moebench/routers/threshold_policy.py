"""ThresholdPolicy: what routers share that compare a token's needs with thresholds, computed half.

`moebench.routers.thresholds` is the executed half.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from moebench.routers.policy import Policy
from moebench.routers.top_k.policy import choice_op, flatten_op, logits_op, reachable_experts
from moebench.spec.gate import Gate
from moebench.spec.load import geometric_k
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, traffic
from moebench.spec.parameters import choices, router_parameters


@dataclass(frozen=True)
class ThresholdPolicy(Policy):
    """Tokens run the first 1 to `max_k` of the base's experts, as many as their needs ask for."""

    is_adaptive: ClassVar[bool] = True

    mean_k: float | None = None
    """Mean experts per token to impose."""
    max_k: int | None = None
    """Most experts of a token; the model's own k if left out. A network that was trained at its k
    gets worse above it: its experts were never used together."""

    def slots(self, model: ModelSpec) -> int:
        """Most experts of a token; an error below the model's own k, or where it cannot be."""
        found, largest = self.max_k or model.top_k, reachable_experts(model)
        if not model.top_k <= found <= largest or self.max_k == 0:
            raise ValueError(
                f"{self.name}: max_k: found {self.max_k}, expected {model.top_k} to {largest}"
            )
        return found

    @property
    def threshold(self) -> float | None:
        """The one threshold of all slots, if an option gives it."""
        return None

    def weights_gate(self, model: ModelSpec) -> Gate:
        """The gate convention that makes the weights."""
        return model.gate

    @abstractmethod
    def needs_op(self, model: ModelSpec, num_tokens: int, dtype: str) -> Op:
        """The work that makes a token's needs out of what the router reads."""

    def parameters(self, model: ModelSpec) -> int:
        return router_parameters(model)

    def ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        n, slots, gate = choices(model), self.slots(model), self.weights_gate(model)
        pairs = num_tokens * slots
        return (
            logits_op(gate, "router", (num_tokens, n, model.hidden_size), dtype),
            self.needs_op(model, num_tokens, dtype),
            # Comparison, product of the leading ones, sum, first expert; slot numbers, comparison,
            # masking; a guard where the weights are divided by their sum.
            traffic(
                "count", "router", 3 * pairs, 3 * pairs, "float32", launches=7 + gate.renormalise
            ),
            choice_op(gate, num_tokens, n, slots, dtype),
            flatten_op(pairs, drops=True),
        )

    def k_distribution(self, model: ModelSpec) -> tuple[tuple[float, ...], str]:
        mean, source = self.mean_or_published(self.mean_k, model)
        return geometric_k(mean, self.slots(model)), f"{source}; geometric with that mean"
