"""`triton` with weights in fp8: e4m3, and a scale for each block of 128 x 128 (DeepSeek-V3).

For inference. The codes are a copy beside the parameters, made by the first call; x stays in its
own type, and codes become numbers of that type in registers. **No GPU has run it**: see `triton`.
"""

from jaxtyping import Float
from torch import Tensor

from moebench.experts.gpu.quantised import quantised_layer
from moebench.experts.quantised import PackedExperts, pack_experts
from moebench.experts.triton import missing
from moebench.experts.weights import ExpertWeights, Residual
from moebench.routers.routing import Hidden, Routing

__all__ = ["build_layout", "missing", "triton_fp8"]


def build_layout(weights: ExpertWeights) -> PackedExperts:
    """Both stacks of matrices in fp8, from the cache or made now."""
    return weights.cached_layout("triton-fp8", lambda w: pack_experts(w, "fp8"))


def triton_fp8(
    x: Hidden, routing: Routing, weights: ExpertWeights, residual: Residual | None = None
) -> Float[Tensor, "*tokens hidden"]:
    """Launch the three kernels on packed weights."""
    return quantised_layer(x, routing, build_layout(weights), weights, residual)
