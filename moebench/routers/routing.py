"""Routing: which token visits which expert; and Router, the torch module that decides it.

A router is a cell: `forward(x, state) -> (Routing, state)`. The state goes up through the layers
(RMoE's recurrent state) and is None for routers without one. What is registered is a builder for
the whole stack, so that layers can share a module.

`Routing` is flat: an *assignment* is one (token, expert) pair that costs compute. A token may have
none, one or many. That makes the papers alike: a router's `choose` gives dense slots with their
weights and a boolean `keep`, and an adaptive router saves the assignments that it does not keep.

x          hidden states of one layer's tokens               [tokens, hidden_size]
scores     everything that a router computes from x          [tokens, choices]
slots      experts that a token may visit, best first        [tokens, slots]
keep       whether a slot costs compute                      [tokens, slots]
weights    factors of the experts' outputs, normalised       [tokens, slots], then [assignments]
"""

import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moebench.routers.auxiliary import AuxiliaryLoss
from moebench.routers.counts import counts
from moebench.routers.gpu.form import FusedForm
from moebench.routers.policy import Policy, import_routers
from moebench.routers.row_tiles import RowTiles, row_tiles, rows_of_tile
from moebench.spec.case import OperatingPoint
from moebench.spec.model import ModelSpec
from moebench.units import nearest

Hidden = Float[Tensor, "tokens hidden"]
ChoiceScores = Float[Tensor, "tokens choices"]
SlotWeights = Float[Tensor, "tokens slots"]
SlotExperts = Int[Tensor, "tokens slots"]
SlotMask = Bool[Tensor, "tokens slots"]
RouterState = Tensor | None
Builder = Callable[..., "list[Router]"]
_BUILDERS: dict[str, Builder] = {}
CHOOSING = {"choose", "best", "competing", "slots_of_token", "needs"}
"""Methods whose definition a router's fused form must know."""


class Choice(NamedTuple):
    """A router's choice: the slots of each token, before those that are not kept are dropped."""

    weights: SlotWeights
    expert_indices: SlotExperts
    num_experts: int
    keep: SlotMask | None = None
    """Slots that cost compute; None: all do."""
    aux_loss: AuxiliaryLoss | None = None
    """This layer's part of the auxiliary loss, in training only."""

    def to(self, device: torch.device) -> "Choice":
        """The choice with its tensors on a device."""
        return Choice._make(x.to(device) if isinstance(x, Tensor) else x for x in self)


@dataclass(frozen=True, eq=False)
class Routing:
    """Which token visits which expert, sorted by expert."""

    token_indices: Int[Tensor, " assignments"]
    expert_indices: Int[Tensor, " assignments"]
    weights: Float[Tensor, " assignments"]
    tokens_per_expert: Int[Tensor, " experts"]
    num_tokens: int
    aux_loss: AuxiliaryLoss | None = None
    """See `Choice`."""
    positions: Int[Tensor, " assignments"] | None = None
    """Where each assignment stood among the flattened slots; None: it does not come from slots."""
    num_slots: int = 0
    """Slots of a token, where the routing comes from slots."""
    places: Int[Tensor, "tokens slots"] | None = None
    """Where each slot's assignment stands among all, -1 if it has none; see `slot_places`."""
    expected_assignments: float | None = None
    """Assignments that the operating point implies, known before the step; None: there is none."""
    row_tiles: RowTiles | None = None
    """The rows of each expert, cut into the tiles of a GPU kernel, where the router did that."""
    is_bound: bool = False
    """Whether it may be longer than its assignments, as that of `bounded`."""

    @property
    def num_assignments(self) -> int:
        return self.token_indices.shape[0]

    @property
    def num_experts(self) -> int:
        return self.tokens_per_expert.shape[0]

    def slot_places(self) -> Int[Tensor, "tokens slots"]:
        """Place of each slot's assignment in the order by experts, -1 for a slot without one.

        A kernel that combines expert outputs gathers a token's rows by it. No wait for the device.
        """
        if self.places is not None:
            return self.places
        if self.positions is None:
            raise ValueError("a routing that was not made from slots has no places of slots")
        places = torch.arange(self.num_assignments, device=self.positions.device)
        places = places.masked_fill(places >= self.tokens_per_expert.sum(), -1)
        of_slots = places.new_full((self.num_tokens * self.num_slots,), -1)
        return of_slots.scatter(0, self.positions, places).view(self.num_tokens, self.num_slots)

    def cut_rows(self) -> tuple[RowTiles, float]:
        """Its row tiles, cut here if no fused router did it, and the assignments to expect."""
        expected = self.expected_assignments
        expected = float(self.num_assignments if expected is None else expected)
        if self.row_tiles is not None:
            return self.row_tiles, expected
        rows = rows_of_tile(expected / self.num_experts)
        return row_tiles(self.tokens_per_expert, self.num_assignments, rows), expected

    def experts_per_token(self) -> Int[Tensor, " tokens"]:
        """How many experts each token runs."""
        return counts(self.token_indices, self.num_tokens)

    @functools.cached_property
    def slots(self) -> tuple[SlotWeights, SlotExperts]:
        """Weights and experts as dense slots, as many as the token with the most experts has.

        Empty ones come last: weight 0, expert `num_experts`. The host waits for the width.
        """
        counts = self.experts_per_token()
        by_token = self.token_indices.argsort(stable=True)
        tokens = self.token_indices[by_token]
        first = counts.cumsum(0) - counts
        places = torch.arange(len(tokens), device=tokens.device) - first[tokens]
        shape = (self.num_tokens, int(counts.max()) if self.num_tokens else 0)
        slots = tokens, places
        weights = self.weights.new_zeros(shape).index_put(slots, self.weights[by_token])
        experts = self.expert_indices.new_full(shape, self.num_experts)
        return weights, experts.index_put(slots, self.expert_indices[by_token])

    @classmethod
    def from_slots(
        cls,
        weights: SlotWeights,
        expert_indices: SlotExperts,
        num_experts: int,
        keep: SlotMask | None = None,
        aux_loss: AuxiliaryLoss | None = None,
    ) -> "Routing":
        """Flatten a `Choice`'s kept slots, in token order; the host waits for how many are kept."""
        num_tokens, slots = expert_indices.shape
        experts = expert_indices.reshape(-1)
        if keep is None:
            experts, positions = experts.sort(stable=True)
        else:
            kept = keep.reshape(-1).nonzero().squeeze(1)
            experts, order = experts[kept].sort(stable=True)
            positions = kept[order]
        histogram = counts(experts, num_experts)
        weights = weights.reshape(-1)[positions]
        flat = positions // slots, experts, weights, histogram, num_tokens, aux_loss
        return cls(*flat, positions, slots)

    @classmethod
    def bounded(cls, choice: Choice) -> "Routing":
        """Flatten all slots, so that no shape depends on the data: what a CUDA graph needs.

        The host never waits. Slots that are not kept are sorted behind all others: they stay in
        `token_indices` and `weights`, with `num_experts` for an expert, but not in
        `tokens_per_expert`. `num_assignments` is then a bound, not a count. Only backends with
        `is_capturable` (`moebench.experts.catalogue`) take such a routing, outside training.
        """
        weights, candidates, num_experts, keep, aux_loss = choice
        num_tokens, slots = candidates.shape
        if keep is not None:
            candidates = torch.where(keep, candidates, num_experts)
        experts, positions = candidates.reshape(-1).sort(stable=True)
        bounds = torch.arange(num_experts + 1, dtype=experts.dtype, device=experts.device)
        histogram = torch.searchsorted(experts, bounds).diff()
        weights = weights.reshape(-1)[positions]
        flat = positions // slots, experts, weights, histogram, num_tokens, aux_loss
        return cls(*flat, positions, slots, is_bound=keep is not None)


class Router(nn.Module, ABC):
    """Decides, for every token of one layer, which experts it visits."""

    progress: Tensor
    mean_k: float | None = None
    """Experts per token that its operating point implies; None: it is at none."""

    def __init__(self) -> None:
        super().__init__()
        # Counters of the routing kernel, which leaves them at 0.
        self.register_buffer("progress", torch.zeros(2, dtype=torch.int32), persistent=False)

    def __init_subclass__(cls) -> None:
        """A class that chooses in a way of its own has no form of its parent's."""
        super().__init_subclass__()
        if CHOOSING & cls.__dict__.keys() and "fused_form" not in cls.__dict__:
            cls.fused_form = Router.fused_form  # type: ignore[method-assign]

    @abstractmethod
    def scores(self, x: Hidden, state: RouterState = None) -> tuple[ChoiceScores, RouterState]:
        """Everything that reads x: one fused matmul where the method allows it."""

    @abstractmethod
    def choose(self, scores: ChoiceScores) -> Choice:
        """The experts that the scores imply, without waiting for the device."""

    @abstractmethod
    def impose(self, scores: ChoiceScores, point: OperatingPoint) -> None:
        """Set the biases so that the stream behind `scores` shows the operating point.

        Mean k (within 1 %) and the experts' marginals (within 3 %) then hold over that stream, or
        an error says what was reached. The biases are 0 as built: then the router is the paper's.
        """

    def start_from_base(
        self,
        weight: Float[Tensor, "experts hidden"],
        bias: Float[Tensor, " experts"] | None = None,
        logit_bias: Float[Tensor, " experts"] | None = None,
    ) -> None:
        """Take over a pretrained router's weights, so that training starts at the base model.

        Routing and weights are then those of the base model's own top-k, to the bit.

        Args:
            bias: The base's correction bias, where its gate has one.
            logit_bias: Its bias on the logits, where its gate has one.
        """
        raise ValueError(f"{type(self).__name__} cannot start from a pretrained router")

    def route(
        self, scores: ChoiceScores, bounded: bool = False, dtype: torch.dtype | None = None
    ) -> Routing:
        """The choice as a flat routing; `bounded` for a CUDA graph, see `Routing.bounded`.

        Args:
            dtype: Type of the weights, the model's own; None: that of the scores.
        """
        from moebench.routers.gpu import route  # which makes routings, and so imports this module

        dtype = dtype or scores.dtype
        if route.is_available(self, scores, dtype):
            routing = route.by_kernel(self, scores, dtype)
            return routing if bounded else route.counted(routing)
        choice = self.choose(scores)
        choice = choice._replace(weights=choice.weights.to(dtype))
        routing = Routing.bounded(choice) if bounded else Routing.from_slots(*choice)
        return replace(routing, expected_assignments=self.expected_assignments(len(scores)))

    def expected_assignments(self, num_tokens: int) -> float | None:
        """Assignments of a step that the operating point implies; None: the router is at none."""
        return None if self.mean_k is None else self.mean_k * num_tokens

    def fused_form(self) -> FusedForm | None:
        """The choice as the routing kernel makes it; None: torch chooses, and the kernel sorts."""
        return None

    def route_steps(self, scores: ChoiceScores, num_steps: int) -> Routing:
        """The routing of a stream of steps of equally many tokens, each as if it came alone.

        It differs from `route` only where a token's experts depend on the others of its step.
        """
        return self.route(scores)

    def forward(
        self, x: Hidden, state: RouterState = None, bounded: bool = False
    ) -> tuple[Routing, RouterState]:
        scores, state = self.scores(x, state)
        return self.route(scores, bounded, x.dtype), state


def router(name: str) -> Callable[[Builder], Builder]:
    """Decorator: register a builder `(model, policy, num_layers, dtype) -> list[Router]`."""

    def add(build: Builder) -> Builder:
        _BUILDERS[name] = build
        return build

    return add


def build_routers(
    policy: Policy, model: ModelSpec, num_layers: int, dtype: torch.dtype
) -> list[Router]:
    """One router a layer, on torch's default device; weights are random."""
    missing = model.gate.not_described or (model.num_free_experts and "experts without a matmul")
    if missing:
        raise ValueError(f"{model.name}: its gate is not executed: {missing}")
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
