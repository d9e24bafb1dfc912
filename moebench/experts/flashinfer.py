"""Adapter for FlashInfer's CUTLASS experts: vLLM's first choice on some GPUs of Blackwell.

Not verified, for want of a GPU: the call follows flashinfer-python 0.7.4 and vLLM 0.32, which calls
it with up above gate. It compiles its kernels at the first call, which needs CUDA's compiler.
"""

import importlib.util
import inspect
import shutil

import torch
from torch import Tensor

from moebench.experts.slots import run_slots
from moebench.experts.weights import ExpertWeights, not_installed
from moebench.routers.routing import Hidden, Routing

CAPABILITIES = ((8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1))
"""Compute capabilities that its kernels are written for."""
EXPECTED = (
    *("input", "token_selected_experts", "token_final_scales", "fc1_expert_weights"),
    *("fc2_expert_weights", "output_dtype", "quant_scales", "output"),
)


def missing(device: torch.device) -> str | None:
    if why := not_installed("flashinfer"):
        return why
    if device.type != "cuda":
        return "it needs a GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability not in CAPABILITIES:
        known = ", ".join(f"{major}.{minor}" for major, minor in CAPABILITIES)
        return f"compute capability {capability[0]}.{capability[1]}: its kernels are for {known}"
    if shutil.which("nvcc") is None and importlib.util.find_spec("flashinfer_jit_cache") is None:
        return "it needs nvcc of the CUDA toolkit, or flashinfer-jit-cache"
    import flashinfer.fused_moe as kernels

    function = getattr(kernels, "cutlass_fused_moe", None)
    found = () if function is None else tuple(inspect.signature(function).parameters)
    if not set(EXPECTED) <= set(found):
        expected = ", ".join(EXPECTED)
        return f"cutlass_fused_moe: found ({', '.join(found)}), expected {expected} among them"
    return None


def build_layout(weights: ExpertWeights) -> None:
    """Copy the first matrix with up above gate."""
    weights.cached_layout("flashinfer", up_above_gate)


def flashinfer(x: Hidden, routing: Routing, weights: ExpertWeights) -> Hidden:
    """Pass dense slots where every token has the same number of experts, else rows of one slot."""
    return run_slots(_fused, x, routing, weights)


def _fused(x: Tensor, slot_weights: Tensor, experts: Tensor, weights: ExpertWeights) -> Tensor:
    from flashinfer.fused_moe import cutlass_fused_moe

    y = torch.empty_like(x)
    cutlass_fused_moe(
        input=x.contiguous(),
        token_selected_experts=experts.int(),
        token_final_scales=slot_weights.float(),
        fc1_expert_weights=weights.cached_layout("flashinfer", up_above_gate),
        fc2_expert_weights=weights.down,
        output_dtype=x.dtype,
        quant_scales=[],
        output=y,
    )
    return y


def up_above_gate(weights: ExpertWeights) -> Tensor:
    """The first matrix with its halves exchanged, [experts, 2 * intermediate, hidden]."""
    gate, up = weights.gate_up.detach().chunk(2, dim=1)
    return torch.cat((up, gate), dim=1)
