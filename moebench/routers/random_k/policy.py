"""Random-k: every token draws how many experts it runs, whatever it is."""

from dataclasses import dataclass
from typing import ClassVar

from moebench.routers.policy import CHOOSING, register
from moebench.routers.threshold_policy import ThresholdPolicy
from moebench.spec.load import floor_or_ceiling_k
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, traffic
from moebench.spec.parameters import choices
from moebench.spec.schema import check_range


@register
@dataclass(frozen=True)
class RandomK(ThresholdPolicy):
    """Tokens run the mean rounded down or up, drawn for each: what adaptivity alone is worth."""

    name: ClassVar[str] = "random-k"

    seed: int = 0
    """Another seed is another draw for every token."""

    def __post_init__(self) -> None:
        check_range(self, "seed")

    @property
    def in_kernel(self) -> frozenset[str]:
        return CHOOSING

    def needs_op(self, model: ModelSpec, num_tokens: int, dtype: str) -> Op:
        """A hash of the logits in integers of 8 bytes, each declared as two fp32 numbers."""
        elements = 8 * num_tokens * choices(model)
        return traffic("hash", "router", elements, elements, "float32", launches=15)

    def k_distribution(self, model: ModelSpec) -> tuple[tuple[float, ...], str]:
        mean, source = self.mean_or_published(self.mean_k, model)
        return floor_or_ceiling_k(mean, self.slots(model)), f"{source}; rounded down or up by lot"
