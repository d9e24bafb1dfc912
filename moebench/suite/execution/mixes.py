"""Mixes: how many experts each token has, drawn from a stated distribution.

A mix is drawn as a router would hand it over: dense slots with distinct experts, weights, and
which slots are kept. Experts are uniform; only the number of assignments differs between mixes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moebench.routers.routing import Routing

GEOMETRIC_RATIO = 0.5088733676937969
"""Of the geometric distribution truncated to 1..8 whose mean is 2; a test solves for it."""


@dataclass(frozen=True, eq=False)
class Slots:
    """What a router hands over."""

    weights: Float[Tensor, "tokens slots"]
    experts: Int[Tensor, "tokens slots"]
    keep: Bool[Tensor, "tokens slots"] | None
    num_experts: int

    def routing(self) -> Routing:
        return Routing.from_slots(self.weights, self.experts, self.num_experts, self.keep)


Draw = Callable[[int, torch.Generator], Tensor]


def _geometric(num_tokens: int, generator: torch.Generator) -> Tensor:
    """P(k) proportional to r^(k-1) on 1..8, mean 2: four times fewer than k = 8."""
    probabilities = GEOMETRIC_RATIO ** torch.arange(8, dtype=torch.float64)
    counts = 1 + torch.multinomial(probabilities, num_tokens, True, generator=generator)
    return torch.arange(8) < counts.unsqueeze(1)


def _ada_k(num_tokens: int, generator: torch.Generator) -> Tensor:
    """One or two experts, mean 1.40: what the Ada-K paper reports for Mixtral-8x7B."""
    second = torch.rand(num_tokens, 1, generator=generator) < 0.40
    return torch.cat((torch.ones_like(second), second), dim=1)


def _nulls(num_tokens: int, generator: torch.Generator) -> Tensor:
    """AdaMoE heavy in nulls: of 8 slots, 6 are null on average, exactly so over a batch."""
    kept = torch.zeros(num_tokens * 8, dtype=torch.bool)
    kept[torch.randperm(num_tokens * 8, generator=generator)[: num_tokens * 2]] = True
    return kept.view(num_tokens, 8)


RAGGED: dict[str, Draw] = {"geometric": _geometric, "ada-k": _ada_k, "nulls": _nulls}
FIXED = {"k=8": 8}
REFERENCE = {"geometric": "k=8", "ada-k": "fixed", "nulls": "fixed"}
"""What each ragged mix is compared with."""


def mix_names() -> tuple[str, ...]:
    return ("fixed", *FIXED, *RAGGED)


def draw_slots(
    mix: str, top_k: int, num_experts: int, num_tokens: int, generator: torch.Generator
) -> Slots:
    """Slots of one step under a mix; "fixed" has `top_k` of them, all kept."""
    keep = RAGGED[mix](num_tokens, generator) if mix in RAGGED else None
    width = keep.shape[1] if keep is not None else FIXED.get(mix, top_k)
    order = torch.rand(num_tokens, num_experts, generator=generator).argsort(dim=1)
    weights = torch.rand(num_tokens, width, generator=generator)
    return Slots(weights, order[:, :width].contiguous(), keep, num_experts)
