"""Layers of experts whose gradients are compared: rows, a routing and weights of some sizes."""

from dataclasses import replace

import torch
from torch import Tensor

from moebench.experts.weights import Experts, ExpertWeights
from moebench.routers.routing import Routing
from moebench.spec.model import ModelSpec


def made(
    tiny: ModelSpec, sizes: tuple[int, int, int, int], dtype: torch.dtype, is_gated: bool = True
) -> tuple[Tensor, Routing, ExpertWeights]:
    """Rows, a routing of two of four slots on average with an untouched expert, and weights."""
    num_tokens, hidden, inner, num_experts = sizes
    model = replace(
        tiny,
        hidden_size=hidden,
        intermediate_size=inner,
        num_experts=num_experts,
        is_gated=is_gated,
    )
    weights = ExpertWeights(model, dtype)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[2] ** -0.5)
    slots = min(4, num_experts - 1)
    experts = torch.stack([torch.randperm(num_experts - 1)[:slots] for _ in range(num_tokens)])
    keep = torch.rand(num_tokens, slots) < 0.5
    keep[0, 0] = True
    shares = torch.rand(num_tokens, slots).to(dtype)
    routing = Routing.from_slots(shares, experts, num_experts, keep)
    return torch.randn(num_tokens, hidden + 2).to(dtype)[:, :hidden], routing, weights


def gradients(
    run: Experts, x: Tensor, routing: Routing, weights: ExpertWeights, direction: Tensor
) -> list[Tensor]:
    leaves = [each.detach().requires_grad_() for each in (x, routing.weights)]
    y = run(leaves[0], replace(routing, weights=leaves[1]), weights)
    wanted = [p for p in weights.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, [*leaves, *wanted], direction)]
