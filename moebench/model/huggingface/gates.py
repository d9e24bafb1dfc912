"""A transformers router that lets one of moebench's decide, and the state of a recurrent one."""

from typing import Any

import torch
from torch import Tensor, nn

from moebench.model.huggingface.replace import replacement
from moebench.routers.routing import ChoiceScores, Hidden, Router, RouterState, Routing


class Pass:
    """One forward of a model: the state that each MoE layer left, and whether gradients were on."""

    def __init__(self) -> None:
        self.states: dict[int, Tensor] = {}
        self.has_gradients = torch.is_grad_enabled()


class DepthStates:
    """States of a recurrent router within one forward of the model, by MoE layer.

    The first MoE layer starts afresh. With gradients the states of all layers are kept until the
    next forward, because gradient checkpointing runs a layer a second time; the backward pass of a
    layer's output makes the states of its own forward the current ones again (`ReturnTo`), so that
    two forwards may wait for their backward passes at once.
    """

    def __init__(self) -> None:
        self.current = Pass()
        self.are_used = False
        """Whether the routers have states at all; most have none."""

    def below(self, layer: int, device: torch.device) -> RouterState:
        """The state that the layer below left in this forward; None below the first one."""
        if layer == 0:
            self.current = Pass()
        if layer == 0 or not self.are_used:
            return None
        state = self.current.states.get(layer - 1)
        if state is None or self.current.has_gradients != torch.is_grad_enabled():
            raise ValueError(
                f"MoE layer {layer}: found no state of the layer below in this forward; layers run "
                "one after another, and gradient checkpointing needs use_reentrant=False"
            )
        return state.to(device)

    def leave(self, layer: int, state: Tensor) -> None:
        """Keep the state for the layer above, and for a second run of it."""
        self.are_used = True
        if not self.current.has_gradients:
            self.current.states.clear()
        self.current.states.setdefault(layer, state)

    def hook(self, layer: nn.Module, _: Any, output: Any) -> Any:
        """Forward hook of a decoder layer: mark its output with the states of this forward."""
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        if self.are_used and torch.is_grad_enabled() and hidden.requires_grad:
            hidden = ReturnTo.apply(hidden, self, self.current)  # type: ignore[no-untyped-call]
        return (hidden, *rest) if isinstance(output, tuple) else hidden


class ReturnTo(torch.autograd.Function):
    """The identity; its backward pass makes the states of its own forward the current ones."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, states: DepthStates, current: Pass) -> Tensor:
        ctx.states, ctx.current = states, current
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ctx.states.current = ctx.current
        return grad, None, None


class PluggedRouter(nn.Module):
    """The router of one MoE layer; a model's state dict leaves it out, as it is no part of a base.

    `moebench.save_router` saves it apart, so that `save_pretrained` writes the base as it was.
    """

    def __init__(self, router: Router, layer: int, states: DepthStates) -> None:
        super().__init__()
        self.router, self.layer, self.states = router, layer, states
        self.register_load_state_dict_post_hook(_not_missing)  # type: ignore[no-untyped-call]

    def forward(self, x: Hidden) -> tuple[ChoiceScores, Routing]:
        """Router logits of the true experts, and the routing."""
        scores, state = self.router.scores(x, self.states.below(self.layer, x.device))
        if state is not None:
            self.states.leave(self.layer, state)
        routing = self.router.route(scores, dtype=x.dtype)
        return scores[:, : routing.num_experts], routing

    def state_dict(self, *_: Any, destination: Any = None, **__: Any) -> Any:
        """Nothing: see the class."""
        return {} if destination is None else destination


def _not_missing(module: nn.Module, found: Any) -> None:
    """Post hook of loading a base's state dict: a router's tensors are not expected in it."""
    found.missing_keys[:] = [key for key in found.missing_keys if f".{PLACE}." not in key]


PLACE = "moebench"
"""Name of the plugged router among the children of the base's own."""


class RoutedGate(nn.Module):
    """Routes in the place of a family's router; stands before the family's class in its bases."""

    moebench: PluggedRouter
    base_dtype: torch.dtype
    weight: Tensor

    def forward(self, hidden_states: Tensor) -> tuple[ChoiceScores, Routing, Routing]:
        """Logits, and the routing in the places of the slots' weights and experts.

        Every family's block passes these two on to its experts. Padded positions are tokens like
        others, as they are for the families' own routers.
        """
        if self.weight.dtype != self.base_dtype:
            raise ValueError(
                f"model: found it cast to {self.weight.dtype} after apply_router, expected "
                f"{self.base_dtype}; remove_router, cast, and apply again"
            )
        logits, routing = self.moebench(hidden_states.reshape(-1, hidden_states.shape[-1]))
        return logits, routing, routing


def routed_gate(module: nn.Module, plugged: PluggedRouter) -> RoutedGate:
    """The router of a family's module, which asks ours."""
    gate = replacement(module, RoutedGate)
    gate.base_dtype = gate.weight.dtype
    setattr(gate, PLACE, plugged)
    return gate
