"""Kernels of others that take dense slots: as they are, or an assignment a row."""

from collections.abc import Callable

import torch
from torch import Tensor

from moebench.experts.grouped import combine
from moebench.experts.weights import ExpertWeights
from moebench.routers.routing import Hidden, Routing

Fused = Callable[[Tensor, Tensor, Tensor, ExpertWeights], Tensor]
"""A layer on rows of x [rows, hidden] with weights and experts in slots [rows, slots]."""


def run_slots(fused: Fused, x: Hidden, routing: Routing, weights: ExpertWeights) -> Hidden:
    """Pass dense slots where every token has the same number of experts, else rows of one slot."""
    if routing.num_assignments == 0:
        return torch.zeros_like(x)
    slot_weights, experts = routing.slots
    if experts.numel() == routing.num_assignments:
        return fused(x, slot_weights, experts, weights)
    rows = x.index_select(0, routing.token_indices)
    ones = rows.new_ones(len(rows), 1)
    return combine(fused(rows, ones, routing.expert_indices.unsqueeze(1), weights), routing)
