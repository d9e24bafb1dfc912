"""What a router tells the routing kernel, so that one kernel stands for its `choose`."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from moebench.spec.gate import Gate

Rule = Literal["all", "argmax", "ratio", "mass", "entropy", "hash", "costs"]
"""How many of its best columns a token keeps: all slots (null experts cost nothing), Ada-K's
likeliest count, or as many as needs reach thresholds: ratios of skip, mass of top-p, entropy-k,
random-k's hash, costs of regression-k."""
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True, eq=False)
class FusedForm:
    """A choice of the best biased columns under a rule, as the routing kernel makes it."""

    gate: Gate
    """Convention of what competes."""
    weights_gate: Gate
    """Convention of the weights; it differs from `gate` in `renormalise` at most."""
    num_experts: int
    slots: int
    selection_bias: Tensor
    """[columns] in fp64; the columns beyond `num_experts` are null experts."""
    rule: Rule = "all"
    rule_values: Tensor | None = None
    """Biases of Ada-K's counts, or the thresholds of further experts."""
    further_values: Tensor | None = None
    """Multipliers of the hash, or biases of the costs."""

    @property
    def drops(self) -> bool:
        """Whether a token may run fewer experts than it has slots."""
        return self.rule != "all" or len(self.selection_bias) > self.num_experts
