"""Top-p (Huang et al., 2024), executed: the mass before an expert says whether it still runs.

p   scores of the gate as probabilities, largest first              [tokens, max_k]
c   their running sum                                               [tokens, max_k]
expert j + 1 runs where c_j <= P, so that the one that crosses P is kept

The comparison is strict in the released code: the last expert is the first with c > P. Where no sum
exceeds P, all `max_k` experts run.

**Source** Huang et al. (2403.07652); ZhenweiAn/Dynamic_MoE, modeling/modeling_moe.py.
"""

from typing import cast

import torch

from moebench.routers.gpu.form import FusedForm
from moebench.routers.policy import Policy
from moebench.routers.routing import ChoiceScores, Router, router
from moebench.routers.thresholds import Needs, ThresholdRouter
from moebench.routers.top_p.policy import TopP
from moebench.spec.model import ModelSpec


class TopPRouter(ThresholdRouter):
    """Runs a further expert as long as those before it have a mass of P or less."""

    def fused_form(self) -> FusedForm | None:
        return self.form_by("mass")

    def needs(self, scores: ChoiceScores) -> Needs:
        """Minus the mass of the experts before it, for each further one; the threshold is -P."""
        return -self.ranked_probabilities(scores)[:, :-1].cumsum(1)


@router("top-p")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    options = cast(TopP, policy)
    return [TopPRouter(model, options, dtype) for _ in range(num_layers)]
