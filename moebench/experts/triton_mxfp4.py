"""`triton` with weights in mxfp4: e2m1, and a power of two for each 32 elements of a row (gpt-oss).

For inference in bf16. The codes are a copy beside the parameters, made by the first call; codes
become bf16 in registers, exactly. **No GPU has run it**: see `triton`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from moebench.experts import triton
from moebench.experts.gpu.quantised import quantised_layer
from moebench.experts.quantised import PackedExperts, pack_experts
from moebench.experts.weights import ExpertWeights, Residual
from moebench.routers.routing import Hidden, Routing


def missing(device: torch.device) -> str | None:
    why = triton.missing(device)
    if why is None and device.type == "cpu":
        return "Triton's interpreter has no products of scaled 4-bit operands"
    return why


def build_layout(weights: ExpertWeights) -> PackedExperts:
    """Both stacks of matrices in mxfp4, from the cache or made now."""
    return weights.cached_layout("triton-mxfp4", lambda w: pack_experts(w, "mxfp4"))


def triton_mxfp4(
    x: Hidden, routing: Routing, weights: ExpertWeights, residual: Residual | None = None
) -> Float[Tensor, "*tokens hidden"]:
    """Launch the three kernels on packed weights."""
    return quantised_layer(x, routing, build_layout(weights), weights, residual)
