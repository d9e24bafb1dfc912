"""A learned operating point: what a trained router did on a text, small enough to be committed.

It says how many experts tokens take at each relative depth, which experts, and how counts go
together along the sequence and between layers, so that a benchmark without that text can route
alike.
"""

from dataclasses import dataclass
from typing import Literal

NUM_QUANTILES = 100
"""Values of a layer's quantile function of k."""


@dataclass(frozen=True)
class LearnedLayer:
    """The routing of one layer."""

    depth: float
    """Relative depth of the layer: (index + 1/2) / layers, between 0 and 1."""
    k_quantiles: tuple[float, ...]
    """k / top_k of the tokens in ascending order, as means over `NUM_QUANTILES` equal groups.

    Their mean is the layer's mean k / top_k exactly.
    """
    expert_marginals: tuple[float, ...]
    """Probability that a token runs each expert; they sum to the layer's mean k."""
    lag_correlation: float | None = None
    """Correlation of k with that of the next token; None: k is constant."""
    below_correlation: float | None = None
    """Correlation of k with that of the same token a layer below; None: none, or constant."""


@dataclass(frozen=True)
class LearnedPoint:
    """The operating point of a trained router."""

    name: str
    """How a command names it: tiny-ada-k."""
    router: str
    source: str
    """Run, base, text and windows that it was measured on, as a sentence."""
    num_experts: int
    top_k: int
    """Experts a token of the base, by which the quantiles are divided."""
    num_tokens: int
    """Tokens that it was measured on."""
    text_sha256: str
    layers: tuple[LearnedLayer, ...]
    origin: Literal["learned", "traced"] = "learned"
    """Whether it was made from a training's evaluation, or from a trace of a checkpoint."""

    def __post_init__(self) -> None:
        for index, layer in enumerate(self.layers):
            where = f"layers[{index}]"
            if len(layer.k_quantiles) != NUM_QUANTILES:
                raise ValueError(
                    f"{where}.k_quantiles: found {len(layer.k_quantiles)} values, expected "
                    f"{NUM_QUANTILES}"
                )
            if list(layer.k_quantiles) != sorted(layer.k_quantiles):
                raise ValueError(f"{where}.k_quantiles: found values that fall, expected quantiles")
            if len(layer.expert_marginals) != self.num_experts:
                raise ValueError(
                    f"{where}.expert_marginals: found {len(layer.expert_marginals)} values, "
                    f"expected num_experts = {self.num_experts}"
                )
            mean = self.top_k * sum(layer.k_quantiles) / NUM_QUANTILES
            if abs(mean - sum(layer.expert_marginals)) > 1e-3:
                raise ValueError(
                    f"{where}.expert_marginals: found a sum of {sum(layer.expert_marginals):g}, "
                    f"expected the mean k of its quantiles, {mean:g}"
                )

    @property
    def label(self) -> str:
        """What messages call it: learned:tiny-ada-k, trace:mixtral.safetensors."""
        return f"{'trace' if self.origin == 'traced' else self.origin}:{self.name}"

    @property
    def mean_k(self) -> float:
        """Mean routed experts a token and layer."""
        means = [sum(layer.k_quantiles) / NUM_QUANTILES for layer in self.layers]
        return self.top_k * sum(means) / len(means)
