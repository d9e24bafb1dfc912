"""Random-k, executed: a hash of the token's own logits draws its k.

u   a uniform number in [0, 1) of each token                        [tokens]
k   floor(u + mean)

The draw is a function of the token alone: a generator would give a token another k in another
batch and could not be replayed token by token. Logits are rounded to 1/64 before they are hashed,
so that the last bits, which a kernel may round differently for another batch size, hardly ever
change the draw. Equal tokens draw the same k.
"""

from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor

from moebench.routers.gpu.form import FusedForm
from moebench.routers.policy import Policy
from moebench.routers.random_k.policy import RandomK
from moebench.routers.routing import ChoiceScores, Router, router
from moebench.routers.thresholds import Needs, ThresholdRouter
from moebench.spec.model import ModelSpec

STEPS = 64.0
"""Steps of a logit that the hash tells apart."""
BITS = 24
"""Bits of a draw: as many as an fp32 number below 1 has."""


class RandomKRouter(ThresholdRouter):
    """Runs a random number of the base's best experts."""

    multipliers: Tensor
    places: Tensor

    def __init__(
        self,
        model: ModelSpec,
        policy: RandomK,
        dtype: torch.dtype,
        multipliers: Int[Tensor, "2 experts"],
    ) -> None:
        super().__init__(model, policy, dtype)
        self.register_buffer("multipliers", multipliers.to(self.weight.device))
        self.register_buffer("places", torch.arange(1, self.top_k), persistent=False)

    def fused_form(self) -> FusedForm | None:
        return self.form_by("hash", self.multipliers)

    def needs(self, scores: ChoiceScores) -> Needs:
        """U - 1, u - 2, ... for the 2nd, 3rd, ... expert; the threshold is 1 - mean k."""
        steps = (scores[:, : self.num_experts] * STEPS).round().long()
        first, second = self.multipliers
        # Two multiply-and-shift rounds; integers of 64 bits wrap around on every device.
        mixed = (steps * first).sum(1, keepdim=True)
        mixed = (mixed ^ (mixed >> 29)) * second[:1]
        bits = (mixed >> (64 - BITS - 8)) & (2**BITS - 1)
        uniform: Tensor = bits.float() / 2**BITS
        return uniform - self.places


@router("random-k")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    options = cast(RandomK, policy)
    generator = torch.Generator("cpu").manual_seed(options.seed)
    shape = (num_layers, 2, model.num_experts)
    # Odd, so that no logit's bits are lost; layers draw independently of one another.
    odd = 2 * torch.randint(2**62, shape, generator=generator, device="cpu") + 1
    return [RandomKRouter(model, options, dtype, multipliers) for multipliers in odd]
