"""What a router does on a text: how many experts each byte takes, and which.

All of it is measured over the test windows, on the router as it decodes. k is the number of routed
experts that a token runs in a layer. A correlation of something that does not vary is None.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from moebench.records.quality import SignedInterval


@dataclass(frozen=True)
class DistinctExperts:
    """Distinct experts that a decode batch touches in a layer."""

    batch_tokens: int
    """Tokens of a step: one of each window, at the same position."""
    measured_experts: float
    """Mean over steps."""
    independent_experts: float
    """Expected for independent tokens with this layer's experts (`moebench.spec.load`)."""


@dataclass(frozen=True)
class SharedInformation:
    """Mutual information of the routing of two adjacent layers, in nats.

    Routing is here the expert of the largest weight, or none. 0: the layers route independently;
    the entropy of either: one follows from the other.
    """

    nats: float
    """Plug-in estimate less `shuffled_nats`."""
    shuffled_nats: float
    """The estimate's bias: its mean with the tokens of one layer shuffled."""
    entropy_nats: float
    """Entropy of this layer's routing."""
    below_entropy_nats: float


@dataclass(frozen=True)
class LayerUse:
    """What a router does in one layer."""

    mean_k: float
    k_histogram: tuple[float, ...]
    """Share of the tokens that run 0, 1, 2, ... experts."""
    mean_k_by_class: Mapping[str, float]
    """Mean k of the tokens of a class (`RouterUse.class_shares`); empty where none was given."""
    mean_k_by_position: tuple[float, ...]
    """Mean k in equal parts of the window, from its start."""
    expert_shares: tuple[float, ...]
    """Share of the assignments that each expert takes."""
    distinct: tuple[DistinctExperts, ...]
    lag_correlation: float | None
    """Correlation of k with that of the next token of the window; None: k is constant."""
    below_correlation: float | None
    """Correlation of k with that of the same token a layer below; None: none, or constant."""
    below_information: SharedInformation | None
    """Information about the routing of the layer below; None for the lowest layer."""
    expert_cosine: float | None
    """Mean cosine between two different experts' outputs on the same inputs."""


@dataclass(frozen=True)
class KAgainstLoss:
    """Whether harder text takes more experts: a window's mean k against its own loss.

    The loss is that of the base on the same text (of the model itself where it has no base), so
    that experts which a router saves do not make text look harder. Ada-K claims a positive
    correlation.
    """

    spearman: SignedInterval
    """Rank correlation over windows with a 95 % interval."""
    mean_k_by_loss: tuple[float, ...]
    """Mean k per layer of windows in equal groups from the lowest to the highest loss."""
    token_spearman: float
    """Rank correlation over single tokens of k, summed over layers, and the next byte's loss."""


@dataclass(frozen=True)
class GainSplit:
    """Where a router's gain comes from, at equal mean k: what it learnt of layers, and of tokens.

    `about_layers_nats` is the loss of one mean k for all layers less that of the router's own mean
    k in each layer, both at tokens drawn at random; `about_tokens_nats` is that of the latter less
    the router's. Their sum is the whole gain over a random k of the same mean.
    """

    about_layers_nats: SignedInterval
    about_tokens_nats: SignedInterval
    same_k_nats_per_byte: float
    """Loss with one mean k for all layers."""
    layer_k_nats_per_byte: float
    """Loss with the router's mean k of each layer."""
    mean_k: tuple[float, float, float]
    """Mean k reached: one for all layers, one a layer, and the router itself."""


@dataclass(frozen=True)
class RouterUse:
    """What a router does on the test windows."""

    num_tokens: int
    mean_k: float
    """Mean over layers."""
    layers: tuple[LayerUse, ...]
    class_shares: Mapping[str, float]
    """Share of the tokens of each class; empty where the text was not classified."""
    against_loss: KAgainstLoss | None
    against_loss_missing: str | None
    """Why k was not compared with the loss: "k is constant"."""
    gain: GainSplit | None = None
    gain_missing: str | None = "not measured"


@dataclass(frozen=True)
class ColouredText:
    """A piece of test text with the experts of each byte, for a page coloured by k."""

    text: str
    """The bytes as text, one character a byte (Latin-1), so that k lies beside it."""
    first_byte: int
    """Place of its first byte in the part."""
    k: tuple[tuple[int, ...], ...]
    """Experts of each byte, by layer: [layers][bytes]."""
    losses_nats: tuple[float, ...]
    """-log p of the byte that follows."""
    largest_k: int
