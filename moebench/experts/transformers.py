"""Adapters for transformers' experts: its `eager` loop and its default, `grouped_mm`.

Both take dense slots. Unused slots carry the sentinel of expert parallelism, so that their matmuls
are left out; gather, masks, activation and reduction still run over every slot (version 5.23).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from moebench.experts.weights import ExpertWeights, not_installed
from moebench.routers.routing import Hidden, Routing


def missing(device: torch.device) -> str | None:
    return not_installed("transformers")


def _run(x: Hidden, routing: Routing, weights: ExpertWeights, implementation: str) -> Hidden:
    if routing.num_assignments == 0:  # neither implementation takes tokens without slots
        return torch.zeros_like(x)
    slot_weights, experts = routing.slots
    backend_name = f"transformers-{implementation.replace('_', '-')}"
    module = weights.cached_layout(backend_name, lambda w: _module(w, implementation))
    y: Tensor = module(x, experts, slot_weights.to(x.dtype))
    return y


transformers_eager = partial(_run, implementation="eager")
"""The execution expert by expert, with a one-hot mask over all slots."""
transformers_grouped_mm = partial(_run, implementation="grouped_mm")
"""The execution sorted by expert: `functional.grouped_mm` twice, reduced over the slots."""


def _module(weights: ExpertWeights, implementation: str) -> Any:
    """Mixtral's experts of transformers, with our parameters in place of its own."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    experts, hidden, inner = weights.down.shape
    config = MixtralConfig(
        hidden_size=hidden, intermediate_size=inner, num_local_experts=experts, hidden_act="silu"
    )
    config._experts_implementation = implementation
    with torch.device("meta"):
        module = MixtralExperts(config)
    module.gate_up_proj, module.down_proj = weights.gate_up, weights.down
    # Sentinels are masked only under expert parallelism, of which this is the case of one rank.
    module._is_expert_parallel = True
    return module
