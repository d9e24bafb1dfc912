"""The router of a dense model: none, so that every token runs everything."""

from dataclasses import dataclass
from typing import ClassVar

from moebench.routers.policy import Policy
from moebench.spec.case import OperatingPoint
from moebench.spec.load import ExpertLoad
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Op


@dataclass(frozen=True)
class NoRouter(Policy):
    """What a dense model has in place of a router: no work, no parameters, no experts."""

    name: ClassVar[str] = "none"

    def parameters(self, model: ModelSpec) -> int:
        return 0

    def ops(self, model: ModelSpec, num_tokens: int, dtype: str) -> tuple[Op, ...]:
        return ()

    def k_distribution(self, model: ModelSpec) -> tuple[tuple[float, ...], str]:
        return (1.0,), "a dense model"

    def load(self, model: ModelSpec, num_tokens: int, point: OperatingPoint) -> ExpertLoad:
        return ExpertLoad((), num_tokens, 0.0)


NO_ROUTER = NoRouter()


def baseline(model: ModelSpec) -> Policy:
    """The router that a model has by itself: top-k, or none if it is dense."""
    from moebench.routers.policy import policy

    return policy("top-k") if model.num_moe_layers else NO_ROUTER
