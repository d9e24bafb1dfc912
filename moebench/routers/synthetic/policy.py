"""Synthetic routers: the two ends of what a top-k router's load can be.

They bound the effect of the load alone: every expert's turn in order, or popularity by a power
law. No paper proposes them.
"""

from dataclasses import dataclass
from typing import ClassVar

from moebench.routers.policy import Policy, register
from moebench.routers.top_k.policy import TopK, check_top_k, flatten_op
from moebench.spec.case import OperatingPoint
from moebench.spec.load import ExpertLoad, fixed_k
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, traffic


@register
@dataclass(frozen=True)
class Balanced(Policy):
    """Experts take turns: as even as can be, and as many distinct experts as there can be."""

    name: ClassVar[str] = "balanced"

    top_k: int | None = None
    """Experts per token; the model's own if left out."""

    def experts_per_token(self, model: ModelSpec) -> int:
        return check_top_k(self.name, self.top_k, model)

    def parameters(self, model: ModelSpec) -> int:
        """None: nothing is learned."""
        return 0

    def ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        pairs = num_tokens * self.experts_per_token(model)
        turns = traffic("turns", "router", pairs, 4 * pairs, "float32", launches=5)
        return turns, flatten_op(pairs, drops=False)

    def k_distribution(self, model: ModelSpec) -> tuple[tuple[float, ...], str]:
        k = self.experts_per_token(model)
        return fixed_k(k), f"fixed k = {k}"

    def load(self, model: ModelSpec, num_tokens: int, point: OperatingPoint) -> ExpertLoad:
        """Turns in order touch min(N, T k) experts; which ones come first differs by step."""
        n, assignments = model.num_experts, num_tokens * self.experts_per_token(model)
        return ExpertLoad((assignments / n,) * n, num_tokens, float(min(n, assignments)))


@register
@dataclass(frozen=True)
class Skewed(TopK):
    """Top-k whose experts' popularity follows a power law, whatever the cell's own skew is."""

    name: ClassVar[str] = "skewed"

    skew: float = 1.0
    """Expert e has a marginal proportional to (e + 1) ** -skew, capped at one token each."""

    def __post_init__(self) -> None:
        if not 0 <= self.skew <= 16:
            raise ValueError(f"skew: found {self.skew}, expected 0 to 16")

    def operating_point(self, model: ModelSpec, skew: float = 0.0) -> OperatingPoint:
        return super().operating_point(model, self.skew)
