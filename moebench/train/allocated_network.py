"""Ada-K's allocators on a base that `python -m moebench.train base` made."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from moebench.routers.ada_k.module import AdaKRouter
from moebench.routers.ada_k.policy import AdaK
from moebench.routers.ada_k.train import AdaKTraining
from moebench.routers.routing import Router
from moebench.routers.top_k.module import TopKRouter
from moebench.train.ada_k import AdaKRecipe, Passes
from moebench.train.base import Network
from moebench.train.text import Windows


def ada_k_on(base: Network, options: AdaKTraining, seed: int) -> AdaKRecipe:
    """The recipe that trains allocators on a base."""
    return AdaKRecipe(AllocatedNetwork(base, AdaK(**options.router_options)), options, seed)


class AllocatedNetwork:
    """A base with an allocator beside each router; see `AllocatedModel`."""

    def __init__(self, base: Network, policy: AdaK) -> None:
        self.base, self.network = base.eval(), with_allocators(base, policy)
        self.base.requires_grad_(False)
        self.network.requires_grad_(False)

    @property
    def routers(self) -> list[AdaKRouter]:
        return [router for router in self.network.routers if isinstance(router, AdaKRouter)]

    @property
    def base_routers(self) -> list[Router]:
        return self.base.stack

    def passes(self, batch: Windows) -> Passes:
        start = self.network.start(batch)
        return lambda routers: self.network.losses(batch, routers, start)[0]

    def tensors(self) -> Mapping[str, Tensor]:
        return dict(self.network.named_weights())

    def frozen(self) -> Iterator[Tensor]:
        for name, tensor in (*self.network.named_weights(), *self.base.named_weights()):
            if not name.endswith(".allocator"):
                yield tensor


def with_allocators(base: Network, policy: AdaK) -> Network:
    """The base with an allocator beside each router, which gives all counts the same chance."""
    model, routers = base.language_model.model, []
    for router in base.stack:
        if type(router) is not TopKRouter:
            raise ValueError(
                f"ada-k: found a base with {type(router).__name__}s, expected one with top-k's "
                "routers (python -m moebench.train base)"
            )
        added = AdaKRouter(model, policy, router.weight.dtype)
        correction = router.selection_bias if model.gate.has_correction_bias else None
        added.start_from_base(router.weight.detach(), correction, router.bias)
        added.count_bias.zero_()  # the paper's allocator has none
        routers.append(added)
    return Network(base.language_model, routers).eval()
