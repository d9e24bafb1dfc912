"""Traces of checkpoints that transformers loads, by hooks on the experts of each MoE block.

A block passes what its router returns on to its experts, so that what arrives there is what runs:
also with a router of moebench applied, and with slots that transformers leaves empty.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moebench.model.huggingface.apply import applied_router, apply_router
from moebench.model.huggingface.blocks import described, moe_blocks
from moebench.model.huggingface.dispatch import Placement, input_device
from moebench.model.huggingface.loading import load_model
from moebench.model.huggingface.router_file import base_hash, load_router
from moebench.model.huggingface.tokens import tokeniser_of
from moebench.records.trace import Trace
from moebench.routers.routing import Routing
from moebench.spec.schema import encode
from moebench.trace.recording import Extent, Subject, experts_by_weight, record, routing_experts
from moebench.trace.texts import read_text


def trace_checkpoint(
    name: str, texts: Sequence[Path], extent: Extent, router: str | None, place: Placement
) -> Trace:
    """The routing of a checkpoint on some texts.

    Args:
        name: its folder, or its id on a hub.
        texts: files of UTF-8 text.
        extent: how much of each is run.
        router: of moebench, applied to it, or a file of `moebench.save_router`; None: its own.
        place: where it runs.
    """
    folder, model = load_model(name, place)
    tokenise = tokeniser_of(folder, described(model).vocab_size)
    read = [read_text(path, tokenise) for path in texts]
    return record(_subject(model, folder.name, router), read, extent, RecordingModel(model))


def _subject(model: nn.Module, name: str, router: str | None) -> Subject:
    """What is traced, after the router was applied."""
    spec, blocks = described(model), moe_blocks(model)
    base, own = base_hash(blocks), "top-k"
    options: Mapping[str, Any] = {}
    if router is not None:
        if router.endswith(".safetensors"):
            load_router(model, router)
        else:
            apply_router(model, router)
        applied = applied_router(model).policy
        if not applied.is_causal:
            raise ValueError(
                f"--router: {applied.name} chooses experts by the other tokens of a step, so that "
                "a trace says nothing of it"
            )
        own, options = applied.name, encode(applied)
    layers = spec.moe_layers_among(spec.num_layers)
    return Subject(spec, name, base, own, options, layers)


class RecordingModel:
    """A model whose forward passes give the experts of every MoE layer; see `Forward`."""

    def __init__(self, model: Any) -> None:
        self._base, self._device = model.base_model, input_device(model)
        self._num_experts = described(model).num_experts
        self._experts = [block.experts for block in moe_blocks(model)]
        self._rows: list[NDArray[np.int64]] = []

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> list[NDArray[np.int64]]:
        """Run sequences, [batch, length]; what the experts of each layer were given."""
        self._rows = []
        keep = self._keep
        hooks = [e.register_forward_pre_hook(keep, with_kwargs=True) for e in self._experts]
        try:
            self._base(input_ids=ids.to(self._device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return self._rows

    def _keep(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook: keep the experts that a block hands to its experts beside the hidden states."""
        _hidden, *given = (*args, *kwargs.values())
        routings = [value for value in given if isinstance(value, Routing)]
        if routings:
            self._rows.append(routing_experts(routings[0]))
            return
        indices, weights = (
            next(t for t in given if isinstance(t, Tensor) and t.is_floating_point() == is_weight)
            for is_weight in (False, True)
        )
        self._rows.append(experts_by_weight(weights, indices, self._num_experts))
