"""How AdaMoE (Zeng et al., EMNLP Findings 2024) is trained on a base: two schedules over the steps.

alpha  coefficient of the balance loss: 0.02 in the first half and 1e-4 in the second (Table 5,
       where the halves are epochs); how it is reduced over layers is the policy's `aux_reduction`
b      bias on the null experts' choice: +b on as many as there are surplus slots, -b on the others

Step 0 runs under the biases of `start_from_base`, and so is the base model to the bit. From step 1
on b falls geometrically, and from `annealed_share` of the steps on it is 0. It starts at 10, since
router logits of an RMS-normed input differ by a few units: of a linear fall from 1e4 all but the
last thousandth changes nothing. The paper starts without biases, and so not at the base model.

Null rows have no gradient from the language-model loss, exactly: the weights are normalised over
true experts. The balance loss alone moves them, and so the load follows from alpha, from the
target loads and from the true rows; that is why alpha is annealed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moebench.routers.adamoe.module import AdaMoERouter
from moebench.routers.operating_point import NEVER


@dataclass(frozen=True)
class AdaMoESchedule:
    """Coefficient of the balance loss and bias of the null experts in each step, from 0."""

    num_steps: int
    first_alpha: float = 0.02
    last_alpha: float = 1e-4
    first_bias: float = 10.0
    last_bias: float = 0.01
    """The bias just before it is 0."""
    annealed_share: float = 0.5
    """Share of the steps after which the bias is 0."""

    def __post_init__(self) -> None:
        if not 0 < self.last_bias <= self.first_bias:
            raise ValueError(
                f"adamoe: first_bias: found {self.first_bias:g}, expected at least the last, "
                f"{self.last_bias:g}, and that above 0"
            )
        if not 0 <= self.annealed_share < 1:
            raise ValueError(
                f"adamoe: annealed_share: found {self.annealed_share:g}, expected 0 to less than "
                "1: the trained router has no biases"
            )

    def alpha(self, step: int) -> float:
        """Coefficient of the balance loss."""
        return self.first_alpha if 2 * step < self.num_steps else self.last_alpha

    def null_bias(self, step: int) -> float:
        """How much is added to null experts for surplus slots, and taken from the others."""
        if step == 0:
            return -NEVER
        annealed = self.annealed_share * self.num_steps
        if step >= annealed:
            return 0.0
        ratio: float = (self.last_bias / self.first_bias) ** (step / annealed)
        return self.first_bias * ratio

    @torch.no_grad()
    def apply(self, routers: Sequence[AdaMoERouter], step: int) -> None:
        """Set coefficient and biases of the routers for a step."""
        bias = self.null_bias(step)
        for router in routers:
            first = router.num_experts
            surplus = first + router.top_k - router.model_top_k
            router.alpha = self.alpha(step)
            router.selection_bias[first:surplus] = bias
            router.selection_bias[surplus:] = -bias
