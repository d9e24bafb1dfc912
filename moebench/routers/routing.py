"""Routers as torch modules: the executed half of each router, readable beside its paper.

A router is a cell: `forward(x, state) -> (Routing, state)`. State goes up through the layers
(RMoE's recurrent state) and is None for routers without one; nothing is accumulated on the side.
What is registered is a builder for the whole stack, so that layers can share a module.

`Routing` is flat: an *assignment* is one (token, expert) pair that costs compute. A token may
have none, one or many. That makes the papers alike: dense slots `(weights, indices)` and a
boolean `keep` go in, a `Routing` comes out, and what an adaptive router saves is the number of
assignments. There are no padded slots and no sentinels further down, but for the tail of a
`Routing.bounded`, whose length a CUDA graph has to know beforehand.

Words used here and nowhere else replaced: `router_logits` (scores before softmax), `weights`
(kept, normalised), `slots` (candidates before `keep`), `tokens_per_expert` (the histogram).
"""

import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moebench.routers.policy import Policy, import_routers
from moebench.spec.case import OperatingPoint
from moebench.spec.model import ModelSpec
from moebench.units import nearest

Builder = Callable[..., "list[Router]"]
_BUILDERS: dict[str, Builder] = {}

_IS_BOUNDED = ContextVar("is_bounded", default=False)


@contextmanager
def bounded_routings() -> Iterator[None]:
    """Within, every router routes by `Routing.bounded`: what a CUDA graph needs.

    A mode and no argument, as torch's `no_grad` is: no router has to know about it.
    """
    before = _IS_BOUNDED.set(True)
    try:
        yield
    finally:
        _IS_BOUNDED.reset(before)


@dataclass(frozen=True, eq=False)
class Routing:
    """Which token visits which expert, sorted by expert."""

    token_indices: Int[Tensor, " assignments"]
    expert_indices: Int[Tensor, " assignments"]
    weights: Float[Tensor, " assignments"]
    tokens_per_expert: Int[Tensor, " experts"]
    num_tokens: int
    aux_loss: Float[Tensor, ""] | None = None
    """The router's auxiliary training loss, scaled by its coefficient; only in training mode.
    The sum over the layers is the paper's loss."""

    @property
    def num_assignments(self) -> int:
        return self.token_indices.shape[0]

    @property
    def num_experts(self) -> int:
        return self.tokens_per_expert.shape[0]

    def experts_per_token(self) -> Int[Tensor, " tokens"]:
        """How many experts each token runs."""
        return torch.bincount(self.token_indices, minlength=self.num_tokens)

    @functools.cached_property
    def slots(self) -> tuple[Float[Tensor, "tokens slots"], Int[Tensor, "tokens slots"]]:
        """Weights and experts as dense slots, for kernels that know nothing else.

        As many slots as the token with the most experts has. Empty ones come last, with weight 0
        and the sentinel `num_experts` for an expert. Asks the device for the width.
        """
        counts = self.experts_per_token()
        by_token = self.token_indices.argsort(stable=True)
        tokens = self.token_indices[by_token]
        first = counts.cumsum(0) - counts
        places = torch.arange(len(tokens), device=tokens.device) - first[tokens]
        shape = (self.num_tokens, int(counts.max()) if self.num_tokens else 0)
        weights = self.weights.new_zeros(shape)
        weights = weights.index_put((tokens, places), self.weights[by_token])
        experts = self.expert_indices.new_full(shape, self.num_experts)
        experts = experts.index_put((tokens, places), self.expert_indices[by_token])
        return weights, experts

    @classmethod
    def from_slots(
        cls,
        weights: Float[Tensor, "tokens slots"],
        expert_indices: Int[Tensor, "tokens slots"],
        num_experts: int,
        keep: Bool[Tensor, "tokens slots"] | None = None,
        aux_loss: Float[Tensor, ""] | None = None,
    ) -> "Routing":
        """Flatten dense slots, dropping those that are not kept.

        Tokens of one expert stay in token order. On a GPU the host waits for the histogram, and
        with `keep` for the number of assignments; within `bounded_routings` for nothing.
        """
        if _IS_BOUNDED.get():
            return cls.bounded(weights, expert_indices, num_experts, keep, aux_loss)
        num_tokens, slots = expert_indices.shape
        experts = expert_indices.reshape(-1)
        if keep is None:
            experts, positions = experts.sort(stable=True)
        else:
            kept = keep.reshape(-1).nonzero().squeeze(1)
            experts, order = experts[kept].sort(stable=True)
            positions = kept[order]
        return cls(
            positions // slots,
            experts,
            weights.reshape(-1)[positions],
            torch.bincount(experts, minlength=num_experts),
            num_tokens,
            aux_loss,
        )

    @classmethod
    def bounded(
        cls,
        weights: Float[Tensor, "tokens slots"],
        expert_indices: Int[Tensor, "tokens slots"],
        num_experts: int,
        keep: Bool[Tensor, "tokens slots"] | None = None,
        aux_loss: Float[Tensor, ""] | None = None,
    ) -> "Routing":
        """`from_slots` at its upper bound, tokens times slots: no shape depends on the data.

        Nothing waits for the device. Slots that are not kept are sorted behind all others: they
        are in `token_indices` and `weights` still, with `num_experts` for an expert, but not in
        `tokens_per_expert`. Only backends with `is_capturable` (`moebench.spec.ops`) take it,
        outside training.
        """
        num_tokens, slots = expert_indices.shape
        candidates = expert_indices
        if keep is not None:
            candidates = torch.where(keep, expert_indices, num_experts)
        experts, positions = candidates.reshape(-1).sort(stable=True)
        bounds = torch.arange(num_experts + 1, dtype=experts.dtype, device=experts.device)
        return cls(
            positions // slots,
            experts,
            weights.reshape(-1)[positions],
            torch.searchsorted(experts, bounds).diff(),
            num_tokens,
            aux_loss,
        )


RouterState = Tensor | None


class Router(nn.Module, ABC):
    """Decides, for every token of one layer, which experts it visits."""

    @abstractmethod
    def scores(
        self, x: Float[Tensor, "tokens hidden"], state: RouterState = None
    ) -> tuple[Float[Tensor, "tokens choices"], RouterState]:
        """Everything that reads x: one fused matmul where the method allows it."""

    @abstractmethod
    def route(self, scores: Float[Tensor, "tokens choices"]) -> Routing:
        """The choice that the scores imply."""

    @abstractmethod
    def impose(
        self,
        scores: Float[Tensor, "tokens choices"],
        point: OperatingPoint,
        tolerance: float = 0.03,
    ) -> None:
        """Set the biases so that the stream behind `scores` shows the operating point.

        Mean k (within 1 %) and the experts' marginals (within `tolerance`) then hold over that
        stream, see `moebench.routers.operating_point`. The biases are buffers, 0 as built: then
        the router is the paper's.

        Raises:
            ValueError: the point cannot be reached on this stream; says what was reached.
        """

    def start_from_base(
        self,
        weight: Float[Tensor, "experts hidden"],
        correction_bias: Float[Tensor, " experts"] | None = None,
    ) -> None:
        """Become a plug-in for a pretrained router that changes nothing yet.

        Routing and weights are then those of the base model's own top-k, to the bit, and training
        starts from there.

        Raises:
            ValueError: this router cannot start that way.
        """
        raise ValueError(f"{type(self).__name__} cannot start from a pretrained router")

    def forward(
        self, x: Float[Tensor, "tokens hidden"], state: RouterState = None
    ) -> tuple[Routing, RouterState]:
        scores, state = self.scores(x, state)
        return self.route(scores), state


def router(name: str) -> Callable[[Builder], Builder]:
    """Decorator: register a builder `(model, policy, num_layers, dtype) -> list[Router]`."""

    def add(build: Builder) -> Builder:
        _BUILDERS[name] = build
        return build

    return add


def build_routers(
    policy: Policy, model: ModelSpec, num_layers: int, dtype: torch.dtype
) -> list[Router]:
    """One router a layer, on torch's default device; weights are random.

    Raises:
        ValueError: nothing executes this policy.
    """
    if policy.builder:
        module, _, name = policy.builder.partition(":")
        build: Builder = getattr(importlib.import_module(module), name)
        return build(model, policy, num_layers, dtype)
    if policy.name not in known_builders():
        raise ValueError(f"unknown router {policy.name!r}{nearest(policy.name, known_builders())}")
    return known_builders()[policy.name](model, policy, num_layers, dtype)


def known_builders() -> dict[str, Builder]:
    """Every builder by its router's name; the first call imports them."""
    import_routers("module")
    return _BUILDERS
