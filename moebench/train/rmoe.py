"""RMoE from scratch, and the top-k twin that it is compared with.

Both are trained as the base is, on the same batches; all weights outside the routers start from the
same random numbers. The twin, recipe `rmoe-twin`, has RMoE's balance loss, so that the router is
the only difference: its coefficient is RMoE's times top_k, since RMoE's code sums f over the slots.
"""

from dataclasses import dataclass
from typing import Any

from moebench.routers.rmoe.policy import RMoE
from moebench.spec.model import ModelSpec
from moebench.train.base import BaseOptions


@dataclass(frozen=True)
class RMoEOptions(BaseOptions):
    """RMoE's router with the paper's ablations; see `moebench.routers.rmoe.policy`."""

    state_size: int = 48
    """Width of the state: the paper's 128 at a width of 352, in proportion at 128. With 128 the
    router would cost more than the experts of the tiny model."""
    recurrence: str = RMoE.recurrence
    detached: bool = RMoE.detached
    shared_projector: bool = RMoE.shared_projector
    num_null_experts: int = RMoE.num_null_experts

    def router_options(self) -> dict[str, Any]:
        """Options of the router's policy."""
        return {
            "state_size": self.state_size,
            "recurrence": self.recurrence,
            "detached": self.detached,
            "shared_projector": self.shared_projector,
            "num_null_experts": self.num_null_experts,
        }


RMOE_FLAGS = {
    "state_size": "width of the recurrent state",
    "recurrence": "what takes the state up through the layers: gru, tanh or none",
    "detached": "stop gradients at the state of the layer below",
    "shared_projector": "one projection for all layers",
    "num_null_experts": "AdaMoE's null experts beside the true ones",
}


def twin_options(model: ModelSpec) -> dict[str, Any]:
    """Options of a top-k router whose balance loss is RMoE's."""
    return {
        "aux_reduction": RMoE.aux_reduction,
        "balance_coefficient": RMoE.balance_coefficient * model.top_k,
    }
