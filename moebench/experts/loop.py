"""The definition, expert by expert, with which every other backend must agree."""

import torch

from moebench.experts.weights import ExpertWeights, feed_forward
from moebench.routers.routing import Hidden, Routing


def loop(x: Hidden, routing: Routing, weights: ExpertWeights) -> Hidden:
    """Run each expert on its tokens: made to be read; on a GPU the host waits once per expert."""
    y = torch.zeros_like(x)
    matrices = zip(weights.gate_up.unbind(), weights.down.unbind(), strict=True)
    for expert, (gate_up, down) in enumerate(matrices):
        mine = (routing.expert_indices == expert).nonzero().squeeze(1)
        if mine.numel() == 0:
            continue
        tokens = routing.token_indices[mine]
        further = weights.biases(expert), weights.clamp
        output = feed_forward(x[tokens], gate_up, down, *further)
        weight = routing.weights[mine].to(x.dtype)
        y = y.index_add(0, tokens, weight.unsqueeze(1) * output)
    return y
