"""Expert skipping (Lu et al., ACL 2024), executed: small ratios to the first expert are skipped.

p   scores of the gate as probabilities, largest first              [tokens, max_k]
expert j + 1 runs where p_(j+1) >= beta p_1

The paper and its code skip the second of two experts and set beta in each layer to the median of
p_2 / p_1 on a calibration text: `set_mean` with 1.5. Other means, and a third and further expert by
the same ratio, are our generalisation. Skipped experts leave the sum that weights are divided by.

**Source** Lu et al. (2402.14800); Lucky-Lance/Expert_Sparsity.
"""

from typing import cast

import torch

from moebench.routers.gpu.form import FusedForm
from moebench.routers.policy import Policy
from moebench.routers.routing import ChoiceScores, Router, router
from moebench.routers.skip.policy import Skip
from moebench.routers.thresholds import Needs, ThresholdRouter
from moebench.spec.model import ModelSpec


class SkipRouter(ThresholdRouter):
    """Runs a further expert where its probability is not far below that of the first."""

    def fused_form(self) -> FusedForm | None:
        return self.form_by("ratio")

    def needs(self, scores: ChoiceScores) -> Needs:
        """Ratios of further experts' probabilities to the first one's; the threshold is beta."""
        probabilities = self.ranked_probabilities(scores)
        return probabilities[:, 1:] / probabilities[:, :1]


@router("skip")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    options = cast(Skip, policy)
    return [SkipRouter(model, options, dtype) for _ in range(num_layers)]
