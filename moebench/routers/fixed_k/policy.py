"""Fixed-k: the base model with fewer experts for every token, by one k or by one for each layer."""

from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar

from moebench.routers.policy import CHOOSING, Policy, register
from moebench.routers.top_k.policy import (
    TopK,
    choice_op,
    flatten_op,
    logits_op,
    reachable_experts,
)
from moebench.spec.case import OperatingPoint
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op
from moebench.spec.parameters import choices, router_parameters


@register
@dataclass(frozen=True)
class FixedK(Policy):
    """Every token of a layer runs the same number of the base's best experts."""

    name: ClassVar[str] = "fixed-k"

    k: tuple[int, ...] = ()
    """Experts per token: one number for all layers, or one for each layer that is run; the model's
    own if left out."""

    def of_layers(self, model: ModelSpec) -> tuple[int, ...]:
        """The given k, checked: one for all layers, or one for each."""
        largest = reachable_experts(model) + model.num_free_experts
        for place, k in enumerate(self.k):
            if not 1 <= k <= largest:
                raise ValueError(f"{self.name}: k[{place}]: found {k}, expected 1 to {largest}")
        return self.k or (model.top_k,)

    def distributions(self, model: ModelSpec) -> tuple[tuple[float, ...], ...]:
        """Probabilities of 0, 1, 2, ... routed experts per token in each of these layers."""
        return tuple(TopK(k).k_distribution(model)[0] for k in self.of_layers(model))

    @property
    def in_kernel(self) -> frozenset[str]:
        return CHOOSING

    def parameters(self, model: ModelSpec) -> int:
        return router_parameters(model)

    def ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        """One layer's work, with the mean of the layers' k."""
        n, ks = choices(model), self.of_layers(model)
        mean = sum(ks) / len(ks)
        return (
            logits_op(model.gate, "router", (num_tokens, n, model.hidden_size), dtype),
            choice_op(model.gate, num_tokens, n, mean, dtype),
            flatten_op(num_tokens * mean, drops=False),
        )

    def k_distribution(self, model: ModelSpec) -> tuple[tuple[float, ...], str]:
        """The mean of the layers' distributions."""
        ks, of_layers = self.of_layers(model), self.distributions(model)
        columns = zip_longest(*of_layers, fillvalue=0.0)
        listed = ", ".join(map(str, ks))
        source = f"fixed k = {listed}" + " in the layers" * (len(ks) > 1)
        return tuple(sum(column) / len(ks) for column in columns), source

    def load(self, model: ModelSpec, num_tokens: int, point: OperatingPoint) -> ExpertLoad:
        """The mean load of the layers, which touch fewer experts than one of the mean k would."""
        of_layers = self.distributions(model)
        if len(of_layers) == 1:
            return super().load(model, num_tokens, point)
        shares = point.skew, point.expert_shares
        loads = [
            ExpertLoad.expected(num_tokens, model.num_experts, distribution, *shares)
            for distribution in of_layers
        ]
        each = zip(*(load.tokens_per_expert for load in loads), strict=True)
        distinct = sum(load.distinct_experts for load in loads) / len(loads)
        return ExpertLoad(tuple(sum(one) / len(loads) for one in each), num_tokens, distinct)
