"""AdaMoE on a trained base: null experts are added, and all weights are trained further.

The model starts as the base to the bit. Its twin, recipe `adamoe-twin`, is the base trained further
for the same tokens at the same learning rate: what more training alone does.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch

from moebench.routers.adamoe.module import AdaMoERouter
from moebench.routers.adamoe.train import AdaMoESchedule
from moebench.routers.policy import policy
from moebench.routers.routing import Router, build_routers
from moebench.routers.top_k.module import TopKRouter
from moebench.train.base import BaseOptions, BaseRecipe, Network, TrainedNetwork, load_network
from moebench.train.run import Trained
from moebench.train.text import Windows


@dataclass(frozen=True)
class FineTuningOptions(BaseOptions):
    """How a trained model is trained further, with AdaMoE's null experts or without."""

    learning_rate: float = 5e-4
    """Peak of the schedule: a quarter of the base's, which has fallen to a tenth at its end."""
    warmup_steps: int = 20


@dataclass(frozen=True)
class AdaMoEOptions(FineTuningOptions):
    """AdaMoE's router and its schedules; defaults are the paper's for Mixtral, 8 and 3 of 16."""

    num_null_experts: int = 8
    top_k: int = 3
    """Slots of a token, for true and null experts."""
    first_alpha: float = AdaMoESchedule.first_alpha
    last_alpha: float = AdaMoESchedule.last_alpha
    first_bias: float = AdaMoESchedule.first_bias
    annealed_share: float = AdaMoESchedule.annealed_share
    target_loads: str = ""
    """Mean true experts per token to aim at, one or one a layer, with commas; empty: Equation 6."""
    aux_reduction: str = "pooled"
    """How the balance loss is reduced over layers, see `moebench.routers.policy.Reduction`."""

    def router_options(self) -> dict[str, Any]:
        """Options of the router's policy."""
        try:
            targets = [float(load) for load in self.target_loads.split(",") if load.strip()]
        except ValueError as error:
            raise ValueError(
                f"adamoe: target_loads: found {self.target_loads!r}, expected numbers with commas"
            ) from error
        return {
            "num_null_experts": self.num_null_experts,
            "top_k": self.top_k,
            "alpha": self.first_alpha,
            "aux_reduction": self.aux_reduction,
            "target_loads": targets,
        }


ADAMOE_FLAGS = {
    "num_null_experts": "experts that do nothing",
    "top_k": "slots of a token, for true and null experts",
    "first_alpha": "coefficient of the balance loss in the first half",
    "last_alpha": "the same in the second half",
    "annealed_share": "share of the steps after which null experts have no biases",
    "target_loads": "mean true experts per token to aim at, one or one a layer, with commas",
    "aux_reduction": "how the balance loss is reduced over layers: sum, mean or pooled",
}


class AdaMoERecipe(BaseRecipe):
    """Trains all weights of a network with null experts, under AdaMoE's schedules."""

    def __init__(self, network: TrainedNetwork, options: AdaMoEOptions, num_steps: int) -> None:
        super().__init__(network, options, num_steps)
        self.schedule = AdaMoESchedule(
            num_steps,
            options.first_alpha,
            options.last_alpha,
            options.first_bias,
            annealed_share=options.annealed_share,
        )

    def step(self, batch: Windows, step: int) -> dict[str, float]:
        routers = cast("list[AdaMoERouter]", self.network.stack)
        self.schedule.apply(routers, step)
        metrics = super().step(batch, step)
        return metrics | {"alpha": self.schedule.alpha(step)}


def with_null_experts(base: Trained, options: AdaMoEOptions) -> Network:
    """The base's network with AdaMoE's routers in place of its own, which they start as."""
    network = load_network(base)
    model = base.manifest.model
    routers: list[Router] = []
    built = build_routers(
        policy("adamoe", options.router_options()), model, model.num_layers, torch.float32
    )
    for router, own in zip(built, network.stack, strict=True):
        if type(own) is not TopKRouter:
            raise ValueError(
                f"{base.folder}: router: found {base.manifest.router}, expected a base with top-k"
            )
        correction = own.selection_bias[: model.num_experts].float()
        bias = correction if model.gate.has_correction_bias else None
        router.start_from_base(own.weight, bias, own.bias)
        routers.append(router)
    return Network(network.language_model, routers)
