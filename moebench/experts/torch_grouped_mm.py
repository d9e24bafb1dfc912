"""Torch's own grouped matmul, twice, on rows sorted by expert: what a fused kernel must beat.

Expert ends stay on the device, so nothing waits and a CUDA graph can hold it. Torch takes rows and
matrices whose rows begin at multiples of 16 bytes, on a GPU in bf16 only.

**Source**: torch 2.13, `torch.nn.functional.grouped_mm`. Not verified: a GPU's path.
"""

import inspect

import torch
from torch import Tensor
from torch.nn import functional

from moebench.experts.weights import ExpertWeights, activation
from moebench.routers.routing import Hidden, Routing

EXPECTED = ("mat_a", "mat_b", "offs")
ALIGNMENT = 16
"""Bytes at whose multiples rows begin."""


def missing(device: torch.device) -> str | None:
    function = getattr(functional, "grouped_mm", None)
    if function is None:
        return f"torch {torch.__version__} has no torch.nn.functional.grouped_mm"
    found = tuple(inspect.signature(function).parameters)
    if not set(EXPECTED) <= set(found):
        return f"grouped_mm: found {', '.join(found)}, expected {', '.join(EXPECTED)} among them"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0 or newer"
    return None


def torch_grouped_mm(x: Hidden, routing: Routing, weights: ExpertWeights) -> Hidden:
    """Gather, multiply, activate, multiply, combine; rows behind the last assignment are unused."""
    if routing.num_assignments == 0:
        return torch.zeros_like(x)
    if x.is_cuda and x.dtype != torch.bfloat16:
        raise ValueError(f"torch-grouped-mm: found {x.dtype} on a GPU, expected torch.bfloat16")
    for matrix in (weights.gate_up, weights.down):
        if matrix.shape[2] * matrix.element_size() % ALIGNMENT:
            raise ValueError(
                f"torch-grouped-mm: found rows of {matrix.shape[2]} elements of {matrix.dtype}, "
                f"expected multiples of {ALIGNMENT} bytes"
            )
    ends = routing.tokens_per_expert.cumsum(0).to(torch.int32)
    rows = x.index_select(0, routing.token_indices.clamp(0, routing.num_tokens - 1))
    hidden = functional.grouped_mm(rows, weights.gate_up.transpose(1, 2), offs=ends)
    activated = activation(hidden, weights.down.shape[2])
    outputs = functional.grouped_mm(activated, weights.down.transpose(1, 2), offs=ends)
    return combine_slots(outputs, routing)


def combine_slots(outputs: Tensor, routing: Routing, row_of: Tensor | None = None) -> Hidden:
    """Each token's weighted outputs in fp32, in the order of its slots, without a wait.

    Args:
        row_of: The row of outputs of each assignment, if they are not in the routing's order.
    """
    places = routing.slot_places()
    is_used = places >= 0
    chosen = places.clamp(min=0)
    weights = routing.weights[chosen].float().masked_fill(~is_used, 0.0)
    rows = outputs[chosen if row_of is None else row_of[chosen]]
    rows = rows.float().masked_fill(~is_used.unsqueeze(2), 0.0)
    return (weights.unsqueeze(2) * rows).sum(1).to(outputs.dtype)
