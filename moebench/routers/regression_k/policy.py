"""Counterfactual regression: the measured cost of one expert fewer, predicted from the input.

It is in no paper that we know. It is as much as a linear count of experts on the router's input
can learn, Ada-K's allocator included, without reinforcement learning.
"""

from dataclasses import dataclass
from typing import ClassVar

from moebench.routers.policy import CHOOSING, register
from moebench.routers.threshold_policy import ThresholdPolicy
from moebench.routers.top_k.policy import choice_op, flatten_op, logits_op
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op, traffic
from moebench.spec.parameters import choices, router_parameters


@register
@dataclass(frozen=True)
class RegressionK(ThresholdPolicy):
    """Tokens run a further expert where the loss without it is predicted to rise enough."""

    name: ClassVar[str] = "regression-k"

    least_cost: float | None = None
    """Predicted rise of a token's own loss, in nats, from which on the expert runs; one for all
    layers. Left out, tokens run the model's own k until a mean is set."""

    @property
    def threshold(self) -> float | None:
        return self.least_cost

    def parameters(self, model: ModelSpec) -> int:
        """Those of the base router, and a weight and an intercept for each further expert."""
        further = self.slots(model) - 1
        return router_parameters(model) + model.num_moe_layers * further * (model.hidden_size + 1)

    @property
    def in_kernel(self) -> frozenset[str]:
        return CHOOSING

    def needs_op(self, model: ModelSpec, num_tokens: int, dtype: str) -> Op:
        """Predicted costs are columns of the router's product: intercepts and running minimum."""
        pairs = num_tokens * (self.slots(model) - 1)
        return traffic("cost", "router", 2 * pairs, 2 * pairs, "float32", launches=2)

    def ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        """Router and costs are one product, of weights that inference keeps stacked."""
        n, h, slots = choices(model), model.hidden_size, self.slots(model)
        columns = n + slots - 1
        product = logits_op(model.gate, "router-and-costs", (num_tokens, columns, h), dtype)
        pairs = num_tokens * slots
        guards = model.gate.renormalise + (model.gate.num_groups > 1)
        return (
            product,
            self.needs_op(model, num_tokens, dtype),
            traffic("count", "router", 3 * pairs, 3 * pairs, "float32", launches=6 + guards),
            choice_op(model.gate, num_tokens, n, slots, dtype),
            flatten_op(pairs, drops=True),
        )
