"""Choices drawn under a mix, as a router would make them: experts, weights and slots to keep."""

import torch

from moebench.routers.routing import Choice
from moebench.routers.synthetic.mixes import MEAN_K, NULLS_K, SLOTS
from moebench.spec.load import geometric_k


def draw_slots(
    mix: str, top_k: int, num_experts: int, num_tokens: int, generator: torch.Generator
) -> Choice:
    """Slots of one step under a mix: `top_k` a token under "fixed", else `SLOTS`."""
    keep = None
    if mix in MEAN_K:
        probabilities = torch.tensor(geometric_k(MEAN_K[mix], SLOTS), dtype=torch.float64)
        counts = torch.multinomial(probabilities, num_tokens, True, generator=generator)
        keep = torch.arange(SLOTS) < counts.unsqueeze(1)
    elif mix == "nulls":  # the mean holds exactly over the step
        chosen = torch.randperm(num_tokens * SLOTS, generator=generator)
        keep = torch.zeros(num_tokens * SLOTS, dtype=torch.bool)
        keep[chosen[: num_tokens * NULLS_K]] = True
        keep = keep.view(num_tokens, SLOTS)
    width = top_k if mix == "fixed" else SLOTS
    order = torch.rand(num_tokens, num_experts, generator=generator).argsort(dim=1)
    weights = torch.rand(num_tokens, width, generator=generator)
    return Choice(weights, order[:, :width].contiguous(), num_experts, keep)
