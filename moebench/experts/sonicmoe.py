"""Adapter for SonicMoE: fused kernels for Hopper and later GPUs, ragged by themselves.

Not verified, for want of such a GPU: the call follows transformers 5.23.

**Source**: Guo et al., SonicMoE (2512.14080).
"""

import inspect

import torch
from torch import Tensor

from moebench.experts.weights import ExpertWeights, not_installed
from moebench.routers.routing import Hidden, Routing


def missing(device: torch.device) -> str | None:
    if why := not_installed("sonicmoe"):
        return why
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return "it needs a GPU of compute capability 9.0 or later"
    import sonicmoe as kernels

    function = getattr(kernels, "moe_general_routing_inputs", None)
    if function is None or "concat_layout" not in inspect.signature(function).parameters:
        # Without it gate and up may be interleaved: the layer would compute something else.
        return "this SonicMoE does not take gate and up one above the other (concat_layout)"
    return None


def sonicmoe(x: Hidden, routing: Routing, weights: ExpertWeights) -> Hidden:
    """Pass assignments in the order of their tokens, as its general interface takes them."""
    import sonicmoe as kernels
    from sonicmoe.enums import ActivationType

    if routing.num_assignments == 0:
        return torch.zeros_like(x)
    by_token = routing.token_indices.argsort(stable=True)
    y: Tensor = kernels.moe_general_routing_inputs(
        *(x, routing.weights[by_token].to(x.dtype)),
        *(routing.token_indices[by_token].int(), routing.expert_indices[by_token].int()),
        *(weights.gate_up.permute(1, 2, 0), None, weights.down.permute(1, 2, 0), None),
        E=weights.num_experts,
        activation_type=ActivationType.SWIGLU,
        is_inference_mode_enabled=not torch.is_grad_enabled(),
        concat_layout=True,
        stream_id=None,
    )[0]
    return y
