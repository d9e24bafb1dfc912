"""The slow definitions that tests hold the fast code against, in float64 and plain loops."""

import math

import torch
from torch import Tensor

from moebench.routers.routing import Routing


def expert(x: Tensor, gate_up: Tensor, down: Tensor, is_gated: bool) -> Tensor:
    """One expert on one token [hidden]."""
    width = down.shape[1]
    if not is_gated:
        return down @ torch.clamp(gate_up @ x, min=0) ** 2
    gate, up = gate_up[:width] @ x, gate_up[width:] @ x
    return down @ (gate / (1 + torch.exp(-gate)) * up)


def moe_layer(
    x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, is_gated: bool = True
) -> Tensor:
    """The double sum over tokens and over the experts each of them visits."""
    rows = []
    for token in range(x.shape[0]):
        row = torch.zeros(x.shape[1], dtype=x.dtype)
        for index in range(routing.num_assignments):
            if routing.token_indices[index] == token:
                e = int(routing.expert_indices[index])
                output = expert(x[token], gate_up[e], down[e], is_gated)
                row = row + routing.weights[index] * output
        rows.append(row)
    return torch.stack(rows) if rows else torch.zeros_like(x)


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float = 0.0, window: int = 0
) -> Tensor:
    """One head: query [new, head], key and value [all, head]; the new positions are the last."""
    past = key.shape[0] - query.shape[0]
    rows = []
    for position in range(query.shape[0]):
        end = past + position + 1
        seen = slice(max(0, end - window) if window else 0, end)
        scores = key[seen] @ query[position] * (scale or 1 / math.sqrt(query.shape[1]))
        shares = torch.exp(scores - scores.max())
        rows.append(shares / shares.sum() @ value[seen])
    return torch.stack(rows)


def rotate(x: Tensor, position: int, theta: float) -> Tensor:
    """Rotary embedding of one head [head]: dimension i turns together with i + head / 2."""
    half = x.shape[0] // 2
    turned = x.clone()
    for i in range(half):
        angle = position * theta ** (-i / half)
        cos, sin = math.cos(angle), math.sin(angle)
        turned[i] = x[i] * cos - x[i + half] * sin
        turned[i + half] = x[i + half] * cos + x[i] * sin
    return turned


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | float, epsilon: float) -> Tensor:
    """One vector [hidden]."""
    centred = x - x.mean()
    return centred / torch.sqrt((centred * centred).mean() + epsilon) * weight + bias


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """One vector [hidden]."""
    return x / torch.sqrt((x * x).mean() + epsilon) * weight
