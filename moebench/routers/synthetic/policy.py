"""Synthetic routers, of no paper, bound the effect of the load alone: even, or by a power law."""

from dataclasses import dataclass
from typing import ClassVar

from moebench.routers.policy import SORTING, register
from moebench.routers.top_k.policy import TopK, flatten_op
from moebench.spec.case import OperatingPoint
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, traffic


@register
@dataclass(frozen=True)
class Balanced(TopK):
    """Experts take turns: the most even load, with as many distinct experts as possible."""

    name: ClassVar[str] = "balanced"

    def __post_init__(self) -> None:
        for option in ("aux_reduction", "balance_coefficient"):
            if getattr(self, option) != getattr(TopK, option):
                raise ValueError(f"{option}: found one for balanced, which learns nothing")

    @property
    def in_kernel(self) -> frozenset[str]:
        return SORTING

    def parameters(self, model: ModelSpec) -> int:
        """No parameters: nothing is learned."""
        return 0

    def ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        pairs = num_tokens * self.experts_per_token(model)
        turns = traffic("turns", "router", pairs, 4 * pairs, "float32", launches=5)
        return turns, flatten_op(pairs, drops=False)

    def load(self, model: ModelSpec, num_tokens: int, point: OperatingPoint) -> ExpertLoad:
        """Turns touch min(N, T k) of N experts in a step of T tokens; the first differs by step."""
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
