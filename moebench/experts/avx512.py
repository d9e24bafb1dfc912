"""Our own kernels for processors with AVX-512-BF16: one call a layer, however many experts.

It sorts a router's slots by expert, multiplies with gate and up matrices and activates, multiplies
with the down matrix, and adds up the rows of each token. `packed` starts the threads twice
for every touched expert, which streams some 200 microseconds of Qwen3-30B-A3B's weights only. The
copy of the weights in the kernels' own blocks has no gradients.
"""

import torch
from torch import Tensor

from moebench.experts.cpu import library
from moebench.experts.cpu.library import DTYPES, Epilogue, blocks, why_not
from moebench.experts.cpu.scratch import buffer, free_scratch
from moebench.experts.cpu.training import train_experts
from moebench.experts.packed import packed
from moebench.experts.weights import ExpertWeights
from moebench.routers.routing import Hidden, Routing

__all__ = ["avx512", "build_layout", "free_scratch", "missing"]


def missing(device: torch.device) -> str | None:
    return "it is for processors" if device.type != "cpu" else why_not()


def build_layout(weights: ExpertWeights) -> tuple[Tensor, Tensor]:
    """Both stacks of matrices in the kernels' blocks, from the cache or made now."""
    return weights.cached_layout(
        "avx512", lambda w: (blocks(w.gate_up, is_gated=w.is_gated), blocks(w.down))
    )


def avx512(x: Hidden, routing: Routing, weights: ExpertWeights) -> Hidden:
    """Run all assignments through both matrices of their experts; `packed` runs the other cases."""
    hidden, inner = weights.down.shape[1:]
    if x.dtype not in DTYPES or (hidden | inner) % DTYPES[x.dtype]:
        return packed(x, routing, weights)
    if routing.num_assignments == 0:
        return torch.zeros_like(x)
    if torch.is_grad_enabled():
        return train_experts(x, routing, weights)
    assigned = _assigned(routing)
    total = assigned[2].numel()
    both = buffer((total * (inner + hidden),), x.dtype)
    parts = torch.split(both, [total * inner, total * hidden])
    activated, outputs = (part.view(total, -1) for part in parts)
    x = x if x.stride(1) == 1 else x.contiguous()
    y = x.new_empty(x.shape)
    epilogue: Epilogue = "swiglu" if weights.is_gated else "squared-relu"
    library.experts(x, assigned, build_layout(weights), (activated, outputs), y, epilogue)
    return y


def _assigned(routing: Routing) -> tuple[Tensor, Tensor | None, Tensor]:
    """The dense slots, if they are there, which the kernel sorts; else the sorted assignments."""
    if "slots" in vars(routing):
        weights, experts = routing.slots
        return experts, None, weights.float()
    return routing.tokens_per_expert, routing.token_indices, routing.weights.float()
