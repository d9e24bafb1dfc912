"""What training an Ada-K allocator computes, on the tensors of one layer (Yue et al., ICLR 2025).

x      inputs of the router and allocator                  [tokens, hidden_size]
logits of the allocator, W_a x, and their log-softmax       [tokens, counts]
c      counts that the sampled forward drew, 1 and up      [tokens]
A      log p(next token) under c, less that under top-k    [tokens]

The state of position i predicts token i + 1: A of a position is about the token that it predicts.
Everything but the allocators is frozen and counts are stored, so x is the same in every epoch: PPO
is linear algebra on stored x, without another forward of the model. No code was ever released.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moebench.routers.ada_k.module import CountLogits
from moebench.routers.ada_k.policy import Decode
from moebench.routers.gate import gate_scores
from moebench.routers.routing import ChoiceScores
from moebench.spec.gate import Gate
from moebench.spec.schema import check_range

Advantages = Float[Tensor, " tokens"]
Counts = Int[Tensor, " tokens"]
LogProbabilities = Float[Tensor, " tokens"]


@dataclass(frozen=True, kw_only=True)
class AdaKTraining:
    """How allocators are trained; defaults are the paper's where it states them."""

    regularisation: float = 3e-3
    """Lambda: the price of one expert more in every layer, in nats per token (section 4.1)."""
    max_k: int | None = None
    """Action cap: most experts that a token can run; the paper's num_experts if left out."""
    decode: Decode = "argmax"
    """How the trained router decodes; training draws."""
    warm_start: Literal["p-warm", "k-warm", "none"] = "p-warm"
    """Labels that allocators are first fitted to; "none" starts at equal chances of all counts."""
    warm_steps: int = 160
    """Batches of the warm start: the paper's epoch of 10.2 k samples in batches of 64. K-Warm
    trained to convergence leaves no chance to any count but k, and PPO then explores nothing."""
    advantage: Literal["raw", "standardised"] = "raw"
    """Standardised: less its mean, over its deviation; lambda is divided by the deviation too."""
    clip: float = 0.2
    """Epsilon of Equation 8; not stated in the paper."""
    epochs: int = 2
    """Updates on each batch (Table 11)."""
    gamma: float = 1.0
    """Discount of Equation 9 per layer below the last; not stated in the paper."""
    learning_rate: float = 1e-3
    """AdamW, constant in PPO, a cosine to 0 in the warm start (Table 11)."""
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        check_range(self, "regularisation", "clip", "gamma", "learning_rate", "weight_decay")
        check_range(self, "epochs", least=1)
        check_range(self, "warm_steps", least=0 if self.warm_start == "none" else 1)

    @property
    def router_options(self) -> dict[str, Any]:
        """Options of the router that is trained, as `AdaK` has them; without those left out."""
        names = "regularisation", "max_k", "decode"
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}


def cumulated_probabilities(
    router_logits: ChoiceScores, gate: Gate
) -> Float[Tensor, "tokens experts"]:
    """Probabilities of each token's experts added up, most likely expert first."""
    scores = gate_scores(router_logits.float(), gate)
    probabilities = scores / scores.sum(1, keepdim=True)
    return probabilities.sort(dim=1, descending=True).values.cumsum(1)


def warm_threshold(
    cumulated: Sequence[Float[Tensor, "tokens experts"]], top_k: int
) -> Float[Tensor, ""]:
    """The p of P-Warm: one for a model, at which its layers' mean of n_i(p) is nearest to k.

    n_i(p) - 1 is how many cumulated probabilities lie below p, so p stands behind the k - 1
    smallest per token. The paper's Table 11 lists 0.3 without saying for which model.

    **Source** Equation 13.
    """
    below = torch.cat([layer[:, :-1].flatten() for layer in cumulated]).sort().values
    place = min((top_k - 1) * sum(map(len, cumulated)), len(below) - 1)
    return (below[max(0, place - 1)] + below[place]) / 2


def experts_to_reach(cumulated: Float[Tensor, "tokens experts"], p: Float[Tensor, ""]) -> Counts:
    """n_i(p): the fewest experts whose probabilities add up to p at least.

    **Source** Equation 12.
    """
    return (cumulated[:, :-1] < p).sum(1) + 1


def warm_loss(log_probabilities: CountLogits, labels: Counts) -> Float[Tensor, ""]:
    """Cross-entropy of an allocator with its warm start's labels; larger ones count as the cap."""
    capped = labels.clamp(max=log_probabilities.shape[1])
    return -probability_of_counts(log_probabilities, capped).mean()


def probability_of_counts(log_probabilities: CountLogits, counts: Counts) -> LogProbabilities:
    """The logarithm of an allocator's probability of each token's count."""
    return log_probabilities.gather(1, counts[:, None] - 1).squeeze(1)


def expected_counts(log_probabilities: CountLogits) -> Float[Tensor, " tokens"]:
    """sum_n n a_n of each token; its mean over tokens and layers is the regulariser.

    **Source** Equation 10.
    """
    counts = torch.arange(1, log_probabilities.shape[1] + 1, device=log_probabilities.device)
    return log_probabilities.exp() @ counts.to(log_probabilities.dtype)


class Signal(NamedTuple):
    """What PPO maximises and what it pays, in one unit."""

    advantages: Advantages
    regularisation: Float[Tensor, ""] | float


def signal(raw: Advantages, regularisation: float, scale: Literal["raw", "standardised"]) -> Signal:
    """Advantages and lambda in the same unit, so that an expert's price in nats stays.

    Args:
        raw: Loss under the base's top-k less that under the drawn counts, in nats.
    """
    if scale == "raw":
        return Signal(raw, regularisation)
    deviation = raw.std().clamp(min=1e-8)
    return Signal((raw - raw.mean()) / deviation, regularisation / deviation)


def advantages_of_layers(last: Advantages, num_layers: int, gamma: float) -> Float[Tensor, " rows"]:
    """Advantages of all layers, one layer after the other: gamma^(L - l) times the last layer's.

    **Source** Equation 9.
    """
    below = torch.arange(num_layers - 1, -1, -1, device=last.device)
    return (gamma ** below[:, None] * last).flatten()


class PolicyLoss(NamedTuple):
    """PPO's loss, a mean over tokens and layers."""

    loss: Float[Tensor, ""]
    clipped_share: Float[Tensor, ""]
    """Share of the tokens whose ratio is outside 1 +- clip."""


def policy_loss(
    new: LogProbabilities, old: LogProbabilities, advantages: Advantages, clip: float
) -> PolicyLoss:
    """-mean min(r A, clip(r) A), with r = p_new(c) / p_old(c).

    Args:
        new: log p of the stored counts now; the gradient goes through it alone.
        old: The same at the time of the draw.

    **Source** Equations 7 and 8.
    """
    ratio = (new - old.detach()).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
    return PolicyLoss(loss, (ratio.detach() != clipped.detach()).float().mean())
