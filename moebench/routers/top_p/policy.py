"""Top-p (Huang et al., 2024): experts until their probabilities add up to more than P."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from moebench.routers.policy import CHOOSING, register
from moebench.routers.threshold_policy import ThresholdPolicy
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, traffic
from moebench.spec.parameters import choices


@register
@dataclass(frozen=True)
class TopP(ThresholdPolicy):
    """Tokens run the fewest experts whose probabilities add up to more than P."""

    name: ClassVar[str] = "top-p"

    p: float | None = None
    """P, the mass that must be exceeded; the paper trains with 0.4. Left out, tokens run the
    model's own k until a mean is set. In the paper `max_k` is the number of experts."""
    weights: Literal["base", "paper"] = "base"
    """Weights of the chosen experts: the base model's convention, or the paper's, which are the
    probabilities as they are, never renormalised."""

    def __post_init__(self) -> None:
        if self.p is not None and not 0 <= self.p <= 1:
            raise ValueError(f"p: found {self.p}, expected 0 to 1")

    @property
    def threshold(self) -> float | None:
        return None if self.p is None else -self.p

    def weights_gate(self, model: ModelSpec) -> Gate:
        return replace(model.gate, renormalise=model.gate.renormalise and self.weights == "base")

    @property
    def in_kernel(self) -> frozenset[str]:
        return CHOOSING

    def needs_op(self, model: ModelSpec, num_tokens: int, dtype: str) -> Op:
        """Scores, the largest of them, running sum and sign; sigmoid scores are divided by sums."""
        elements = num_tokens * choices(model)
        launches = 4 + 2 * (model.gate.score == "sigmoid")
        return traffic("mass", "router", 2 * elements, 2 * elements, "float32", launches=launches)
