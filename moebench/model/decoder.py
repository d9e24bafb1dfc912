"""A stack of routed decoder layers: attention with a KV cache, experts, shared experts.

A layer has two halves, each with its residual: grouped-query attention, and a mixture of experts.
At level "moe" only the second half of each layer runs. Routers and the expert execution are
arguments of a step, so that all routers of a comparison share one set of weights.

Not part of it: embeddings, LM head, layers without experts, and what `moebench.spec.execution`
lists; a model whose attention is not executed runs at level "moe".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from moebench.experts.weights import (
    AddingExperts,
    Experts,
    ExpertWeights,
    Residual,
    added,
    feed_forward,
)
from moebench.model.attention import GroupedQueryAttention, KVCache, SequenceStates
from moebench.model.random_numbers import fill_normal
from moebench.model.rotary import Rotary, rotary_angles
from moebench.routers.auxiliary import auxiliary_loss
from moebench.routers.routing import Hidden, Router, RouterState, Routing
from moebench.spec.case import Level
from moebench.spec.execution import check_executed, unsupported
from moebench.spec.model import ModelSpec
from moebench.spec.ops import Stage
from moebench.units import Bytes

Mark = Callable[[Stage], None]


def no_mark(stage: Stage) -> None:
    """A mark that does nothing: stages are not timed."""


@dataclass(frozen=True, eq=False)
class StepMode:
    """How a step runs: level, cache, timing, and whether a CUDA graph holds it."""

    level: Level
    """Level "moe" skips every attention half."""
    cache: KVCache | None = None
    """Earlier positions, and room for the new ones; None for a step without any."""
    mark: Mark = no_mark
    """Called at each stage's end; "experts" has dispatch and combine, residuals end a stage."""
    bounded: bool = False
    """Whether routings are as long as their upper bound, as a CUDA graph needs them to be."""


class SharedExperts(nn.Module):
    """The experts that every token runs, as one feed-forward network, gated in some models.

    **Source** of the gate, sigmoid(w x): Qwen1.5-MoE.
    """

    def __init__(self, model: ModelSpec, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, inner = model.hidden_size, model.shared_intermediate_size
        width = inner * (model.expert_matrices - 1)
        self.gate_up = nn.Linear(hidden, width, bias=False, dtype=dtype)
        self.down = nn.Linear(inner, hidden, bias=False, dtype=dtype)
        self.gate = nn.Linear(hidden, 1, bias=False, dtype=dtype) if model.has_shared_gate else None

    def forward(self, x: Hidden) -> Hidden:
        y = feed_forward(x, self.gate_up.weight, self.down.weight)
        return y if self.gate is None else torch.sigmoid(self.gate(x)) * y


def hidden_norm(model: ModelSpec, dtype: torch.dtype) -> nn.Module:
    """The model's kind of norm over the hidden size."""
    hidden, epsilon = model.hidden_size, model.norm_epsilon
    if model.norm == "rms":
        return nn.RMSNorm(hidden, epsilon, dtype=dtype)
    return nn.LayerNorm(hidden, epsilon, bias=model.norm == "layer", dtype=dtype)


class Layer(nn.Module):
    """One decoder layer without its router; without attention where that is not executed."""

    def __init__(self, model: ModelSpec, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.residual_multiplier = model.residual_multiplier
        if not unsupported(model, "decoder"):
            self.attention_norm = hidden_norm(model, dtype)
            self.attention = GroupedQueryAttention(model, layer, dtype)
        self.moe_norm = hidden_norm(model, dtype)
        self.experts = ExpertWeights(model, dtype)
        self.shared = SharedExperts(model, dtype) if model.shared_intermediate_size else None

    def attend(self, x: SequenceStates, rotary: Rotary, mode: StepMode) -> SequenceStates:
        """The attention half with its residual."""
        normed = self.attention_norm(x)
        mode.mark("norm")
        y = added(self.attention(normed, rotary, mode.cache), self._residual(x))
        mode.mark("attention")
        return y

    def mix(
        self, x: SequenceStates, normed: Hidden, routing: Routing, experts: Experts, mark: Mark
    ) -> SequenceStates:
        """Routed and shared experts on the normed tokens, and the residual of the MoE half."""
        if isinstance(experts, AddingExperts):
            y = experts(normed, routing, self.experts, self._residual(x))
        else:
            y = added(experts(normed, routing, self.experts), self._residual(x))
        mark("experts")
        if self.shared is not None:
            y = added(self.shared(normed), self._residual(y))
            mark("shared")
        return y

    def _residual(self, x: SequenceStates) -> Residual:
        """The residual stream, and Granite's factor of what a half adds to it."""
        return Residual(x, self.residual_multiplier)


Start = tuple[SequenceStates, Hidden]
"""The residual stream of a layer up to its router, and its normed tokens."""


class Decoder(nn.Module):
    """A stack of decoder layers, uninitialised as built; `build_decoder` fills them."""

    def __init__(self, model: ModelSpec, num_layers: int, dtype: torch.dtype) -> None:
        check_executed(model, "moe")
        super().__init__()
        self.model, self.has_no_attention = model, bool(unsupported(model, "decoder"))
        self.layers = nn.ModuleList(Layer(model, index, dtype) for index in range(num_layers))

    def forward(
        self,
        x: SequenceStates,
        routers: Sequence[Router],
        experts: Experts,
        mode: StepMode,
        start: Start | None = None,
    ) -> tuple[SequenceStates, list[Routing]]:
        """One step of the hidden states of new positions through all layers, with a router each.

        Args:
            start: What `start` gave for the same x, whose first attention is then not run again.
        """
        assert len(routers) == len(self.layers)
        x, _, routings = self._run(x, routers, experts, mode, start)
        return x, routings

    def start(self, x: SequenceStates, mode: StepMode) -> Start:
        """The step up to its first router, which is the same whatever the routers do."""
        return self._before_router(0, x, mode)

    def router_input(
        self, x: SequenceStates, routers_below: Sequence[Router], experts: Experts, mode: StepMode
    ) -> tuple[Hidden, RouterState]:
        """Input and state of the router of layer `len(routers_below)`; its experts do not run."""
        x, state, _ = self._run(x, routers_below, experts, mode, None)
        _, normed = self._before_router(len(routers_below), x, mode)
        return normed, state

    def _run(
        self,
        x: Tensor,
        routers: Sequence[Router],
        experts: Experts,
        mode: StepMode,
        start: Start | None,
    ) -> tuple[Tensor, RouterState, list[Routing]]:
        """Run as many layers as there are routers."""
        state: RouterState = None
        routings = []
        for index, router in enumerate(routers):
            x, normed = start or self._before_router(index, x, mode)
            start = None
            routing, state = router(normed, state, mode.bounded)
            mode.mark("router")
            x = self.layer(index).mix(x, normed, routing, experts, mode.mark)
            routings.append(routing)
        return x, state, routings

    def _before_router(self, index: int, x: Tensor, mode: StepMode) -> Start:
        """The residual stream of a layer up to its router, and its normed tokens."""
        layer = self.layer(index)
        if mode.level == "decoder":
            if self.has_no_attention:
                check_executed(self.model, "decoder")
            cache, number = mode.cache, x.shape[1]
            first = cache.length if cache is not None else 0
            if cache is not None and cache.are_alternatives:
                number = 1
            positions = range(first, first + number)
            rotary = rotary_angles(positions, self.model.attention, x.dtype, x.device)
            x = layer.attend(x, rotary, mode)
        normed = layer.moe_norm(x).flatten(0, 1)
        mode.mark("norm")
        return x, normed

    def layer(self, index: int) -> Layer:
        """One layer of the stack, counted from its first."""
        layer = self.layers[index]
        assert isinstance(layer, Layer)
        return layer

    def expert_weights(self) -> list[ExpertWeights]:
        """The routed experts of each layer."""
        return [self.layer(index).experts for index in range(len(self.layers))]

    def weight_bytes(self, level: Level) -> Bytes:
        """Size of the parameters that a level runs, without routers."""
        return sum(
            parameter.nbytes
            for name, parameter in self.named_parameters()
            if level == "decoder" or ".attention" not in name
        )


def build_decoder(
    model: ModelSpec,
    num_layers: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Decoder:
    """A random normal stack: matrices 0 +- 1 / sqrt(inputs), norms 1 +- 0.1, biases 0 +- 0.1."""
    with torch.device("meta"):
        decoder = Decoder(model, num_layers, dtype)
    decoder.to_empty(device=device)
    for index, (name, parameter) in enumerate(decoder.named_parameters()):
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        std = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
        fill_normal(parameter.data, mean, std, (seed, index))
    return decoder


def training_loss(
    y: SequenceStates, routings: Sequence[Routing], target: SequenceStates
) -> Float[Tensor, ""]:
    """Mean squared error in fp32 plus auxiliary losses: its gradient reaches all that ran."""
    losses = [routing.aux_loss for routing in routings if routing.aux_loss is not None]
    error = functional.mse_loss(y.float(), target.float())
    return error + auxiliary_loss(losses) if losses else error
