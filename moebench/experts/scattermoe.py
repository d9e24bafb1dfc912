"""Adapter for ScatterMoE: two matmuls in Triton that gather and scatter rows themselves.

Not verified, for want of a GPU: the calls follow the package's source.

**Source**: Tan et al., Scattered Mixture-of-Experts Implementation (2403.08245), section 3.
"""

from functools import partial

import torch

from moebench.experts.grouped import combine
from moebench.experts.weights import ExpertWeights, activation, not_installed
from moebench.routers.routing import Hidden, Routing


def missing(device: torch.device) -> str | None:
    needs_gpu = None if device.type == "cuda" else "it needs a GPU"
    return not_installed("scattermoe") or needs_gpu


def scattermoe(x: Hidden, routing: Routing, weights: ExpertWeights) -> Hidden:
    """Gather rows of one slot each, sorted by expert, since its own interface has a fixed k."""
    from scattermoe.parallel_experts import parallel_linear

    if routing.num_assignments == 0:
        return torch.zeros_like(x)
    rows = x.index_select(0, routing.token_indices)
    order = torch.arange(len(rows), device=rows.device)
    offsets = routing.tokens_per_expert.cumsum(0)
    sorted_rows = (1, routing.expert_indices, order, offsets)
    multiply = partial(parallel_linear, grouped_in=True, grouped_out=True)
    hidden = multiply(rows, weights.gate_up.transpose(1, 2), *sorted_rows)
    activated = activation(hidden, weights.down.shape[2])
    return combine(multiply(activated, weights.down.transpose(1, 2), *sorted_rows), routing)
