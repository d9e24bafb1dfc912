"""Entropy-k, executed: thresholds on the entropy of the router's probabilities.

H   entropy of the gate's scores as probabilities, in nats          [tokens]
k   1 + floor(H / t), at most max_k

An entropy threshold for adaptive k is in a preprint that we could not verify. This form, whose one
parameter t serves every max_k, is ours; for max_k = 2 it is the plain rule, two experts where
H >= t.
"""

from typing import cast

import torch
from torch import Tensor

from moebench.routers.entropy_k.policy import EntropyK
from moebench.routers.gpu.form import FusedForm
from moebench.routers.policy import Policy
from moebench.routers.routing import ChoiceScores, Router, router
from moebench.routers.thresholds import Needs, ThresholdRouter
from moebench.spec.model import ModelSpec


class EntropyKRouter(ThresholdRouter):
    """Runs a further expert for each share of entropy that reaches the threshold."""

    places: Tensor

    def __init__(self, model: ModelSpec, policy: EntropyK, dtype: torch.dtype) -> None:
        super().__init__(model, policy, dtype)
        self.register_buffer("places", torch.arange(1, self.top_k), persistent=False)

    def fused_form(self) -> FusedForm | None:
        return self.form_by("entropy")

    def needs(self, scores: ChoiceScores) -> Needs:
        """H / 1, H / 2, ... for the 2nd, 3rd, ... expert; the threshold is t."""
        entropy: Tensor = torch.special.entr(self.probabilities(scores)).sum(1, keepdim=True)
        return entropy / self.places


@router("entropy-k")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    options = cast(EntropyK, policy)
    return [EntropyKRouter(model, options, dtype) for _ in range(num_layers)]
