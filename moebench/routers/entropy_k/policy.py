"""Entropy-k: tokens of which the router is unsure run more experts."""

from dataclasses import dataclass
from typing import ClassVar

from moebench.routers.policy import CHOOSING, register
from moebench.routers.threshold_policy import ThresholdPolicy
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, traffic
from moebench.spec.parameters import choices


@register
@dataclass(frozen=True)
class EntropyK(ThresholdPolicy):
    """Tokens run one expert more for every so many nats of the router's entropy."""

    name: ClassVar[str] = "entropy-k"

    nats: float | None = None
    """Entropy that adds one expert, in nats. Left out, tokens run the model's own k until a mean
    is set."""

    def __post_init__(self) -> None:
        if self.nats is not None and not 0 <= self.nats <= 100:
            raise ValueError(f"nats: found {self.nats}, expected 0 to 100")

    @property
    def threshold(self) -> float | None:
        return self.nats

    @property
    def in_kernel(self) -> frozenset[str]:
        return CHOOSING

    def needs_op(self, model: ModelSpec, num_tokens: int, dtype: str) -> Op:
        """Scores, their entropy and its shares; sigmoid scores are divided by sums."""
        elements = num_tokens * choices(model)
        launches = 4 + 2 * (model.gate.score == "sigmoid")
        return traffic(
            "entropy", "router", 3 * elements, 2 * elements, "float32", launches=launches
        )
