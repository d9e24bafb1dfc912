"""Fixed-k, executed: top-k routers of the base's order, each layer with its own k."""

from dataclasses import replace
from typing import cast

import torch

from moebench.routers.fixed_k.policy import FixedK
from moebench.routers.gate import product_dtype, random_weight
from moebench.routers.policy import Policy
from moebench.routers.routing import ChoiceScores, Router, router
from moebench.routers.top_k.module import TopKRouter
from moebench.spec.case import OperatingPoint
from moebench.spec.load import fixed_k
from moebench.spec.model import ModelSpec


class FixedKRouter(TopKRouter):
    """One layer's top-k of a stack whose layers may differ in k."""

    of_layers: tuple[int, ...] = ()
    """The k of all layers, whose mean an operating point of the stack has."""

    def impose(self, scores: ChoiceScores, point: OperatingPoint) -> None:
        """Set the marginals; the mean is checked of the stack, since a layer has a k of its own."""
        mean = sum(self.of_layers) / len(self.of_layers)
        if abs(point.mean_k - mean) < 1e-6:
            point = replace(point, k_distribution=fixed_k(self.top_k))
        super().impose(scores, point)


@router("fixed-k")
def build(model: ModelSpec, policy: Policy, num_layers: int, dtype: torch.dtype) -> list[Router]:
    ks = cast(FixedK, policy).of_layers(model)
    if len(ks) not in (1, num_layers):
        raise ValueError(
            f"fixed-k: k: found {len(ks)} values, expected 1, or {num_layers}: one for each layer"
        )
    shape, dtype = (model.num_experts, model.hidden_size), product_dtype(model.gate, dtype)
    routers = []
    for k in ks if len(ks) == num_layers else ks * num_layers:
        built = FixedKRouter(model, k, random_weight(*shape, dtype))
        built.add_logit_bias()
        built.of_layers = ks
        routers.append(built)
    return list(routers)
