"""A checkpoint of transformers with a router put in, of which all weights are trained.

Decoder layers are run again in the backward pass (gradient checkpointing), so that of each only its
input is kept. There is no dropout, whatever the config has: a training that was killed goes through
the same states as one that was not.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from moebench.model.huggingface.apply import AppliedRouter, apply_router
from moebench.model.huggingface.dispatch import input_device
from moebench.model.huggingface.gates import PluggedRouter
from moebench.model.language_model import token_losses
from moebench.routers.routing import Router, Routing
from moebench.train.checkpoint_network import check_type, plugged
from moebench.train.text import Windows


class TunedCheckpoint(nn.Module):
    """A model of transformers with a router applied; see `TrainedNetwork`."""

    def __init__(self, model: Any, router: str, options: Mapping[str, Any]) -> None:
        super().__init__()
        check_type(model)
        offloaded = [name for name, p in model.named_parameters() if p.device.type == "meta"]
        if offloaded:
            raise ValueError(
                f"{offloaded[0]}: found it outside the devices' memory, expected room for all "
                "weights, their gradients and the optimiser, since all are trained"
            )
        self.model = model
        self.applied: AppliedRouter = apply_router(model, router, **options)
        model.activation_checkpointing_enable({"use_reentrant": False})
        for block in self.applied.blocks:  # the router put in has its own copy
            for parameter in block.gate.parameters(recurse=False):
                parameter.requires_grad_(False)
            block.gate.register_forward_hook(self._keep)
        self._routings: list[Routing] = []

    @property
    def stack(self) -> list[Router]:
        return list(self.applied.routers)

    def losses(
        self, windows: Windows, routers: Sequence[Router] | None = None
    ) -> tuple[Tensor, list[Routing]]:
        windows = windows.to(input_device(self.model))
        self._routings = []
        with plugged(self.applied, routers or self.applied.routers):
            logits = self.model(input_ids=windows[:, :-1], use_cache=False).logits
        # Layers that are run again in the backward pass add theirs to the old list.
        routings, self._routings = self._routings[:], []
        return token_losses(logits, windows[:, 1:]), routings

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """What is trained, and buffers of the routers; other buffers are never changed."""
        yield from ((name, p) for name, p in self.named_parameters() if p.requires_grad)
        for layer, router in enumerate(self.applied.routers):
            yield from ((f"routers.{layer}.{name}", b) for name, b in router.named_buffers())

    def train(self, mode: bool = True) -> "TunedCheckpoint":
        """Only decoder layers themselves, which are run again, and routers are in training."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        in_training = (TunedCheckpoint, GradientCheckpointingLayer, PluggedRouter, Router)
        for module in self.modules():
            module.training = mode and isinstance(module, in_training)
        return self

    def _keep(self, _: nn.Module, __: Any, output: tuple[Any, Routing, Routing]) -> None:
        self._routings.append(output[1])
