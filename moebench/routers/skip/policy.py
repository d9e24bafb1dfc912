"""Expert skipping (Lu et al., ACL 2024): experts that weigh little are skipped."""

from dataclasses import dataclass
from typing import ClassVar

from moebench.routers.policy import CHOOSING, PublishedMean, register
from moebench.routers.threshold_policy import ThresholdPolicy
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, traffic
from moebench.spec.parameters import choices

_HALF = PublishedMean(
    1.5, "Lu et al., ACL 2024: beta is the median ratio, so half of the second experts are skipped"
)


@register
@dataclass(frozen=True)
class Skip(ThresholdPolicy):
    """Tokens skip experts whose probability is less than beta times that of their first."""

    name: ClassVar[str] = "skip"
    published: ClassVar[dict[str, PublishedMean]] = {"mixtral-8x7b": _HALF}

    beta: float | None = None
    """Smallest ratio to the first expert's probability; the paper takes each layer's median, which
    is a mean of 1.5. Left out, tokens run the model's own k until a mean is set."""

    def __post_init__(self) -> None:
        if self.beta is not None and not 0 <= self.beta <= 1:
            raise ValueError(f"beta: found {self.beta}, expected 0 to 1")

    @property
    def threshold(self) -> float | None:
        return self.beta

    @property
    def in_kernel(self) -> frozenset[str]:
        return CHOOSING

    def needs_op(self, model: ModelSpec, num_tokens: int, dtype: str) -> Op:
        """Scores, the largest of them and their ratios; sigmoid scores are divided by sums."""
        elements = num_tokens * choices(model)
        launches = 3 + 2 * (model.gate.score == "sigmoid")
        return traffic("ratios", "router", 2 * elements, 2 * elements, "float32", launches=launches)

    def k_distribution(self, model: ModelSpec) -> tuple[tuple[float, ...], str]:
        if self.mean_k is None and self.slots(model) > 2:
            raise ValueError(
                f"{self.name}: the published mean is for 2 experts at most, found "
                f"{self.slots(model)}; give mean_k"
            )
        return super().k_distribution(model)
