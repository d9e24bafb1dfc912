"""Adapter for DeepGEMM: bf16 matmuls over rows sorted by expert, for Hopper and Blackwell.

Its kernels take the expert of a block of rows from the block's first row and check nothing, so each
expert's rows begin a block of their own. Expert ends stay on the device, and nothing waits.

Not verified, for want of a GPU: the call follows DeepGEMM 2.8 (csrc/apis/gemm.hpp). It compiles its
kernels at the first call, which needs CUDA's compiler.
"""

import inspect
import os
import re
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moebench.experts.torch_grouped_mm import combine_slots
from moebench.experts.weights import ExpertWeights, activation, not_installed
from moebench.routers.routing import Hidden, Routing
from moebench.routers.row_tiles import row_tiles

MAJORS = (9, 10)
"""Compute capabilities before the point that its kernels are written for."""
PRODUCT, BLOCK_ROWS = "m_grouped_bf16_gemm_nt_contiguous", "get_mk_alignment_for_contiguous_layout"
EXPECTED = ("a", "b", "d")
"""The first arguments of the product: rows, matrices, result; then comes each row's expert."""


def missing(device: torch.device) -> str | None:
    if why := not_installed("deep_gemm"):
        return why
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] not in MAJORS:
        return "it needs a GPU of compute capability 9.0 or 10.x"
    homes = os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"
    places = [os.environ.get("PATH", os.defpath), *(f"{home}/bin" for home in homes if home)]
    if shutil.which("nvcc", path=os.pathsep.join(places)) is None:
        return "it needs nvcc of the CUDA toolkit (on the path, or below CUDA_HOME)"
    import deep_gemm

    for name in (PRODUCT, BLOCK_ROWS):
        if not hasattr(deep_gemm, name):
            return f"this DeepGEMM has no {name}"
    found = argument_names(getattr(deep_gemm, PRODUCT))
    if found[:3] != EXPECTED or len(found) < 4:
        return f"{PRODUCT}: found ({', '.join(found)}), expected ({', '.join(EXPECTED)}, experts)"
    return None


def argument_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of a function's arguments; one of C++ (pybind11) has them in its first line of text."""
    try:
        return tuple(inspect.signature(function).parameters)
    except ValueError:
        return tuple(re.findall(r"(\w+): ", (function.__doc__ or "").partition("\n")[0]))


def deepgemm(x: Hidden, routing: Routing, weights: ExpertWeights) -> Hidden:
    """Gather each expert's rows into whole blocks, multiply, activate, multiply, combine."""
    import deep_gemm

    if routing.num_assignments == 0:
        return torch.zeros_like(x)
    rows = int(getattr(deep_gemm, BLOCK_ROWS)())
    tiles = row_tiles(routing.tokens_per_expert, routing.num_assignments, rows)
    expert, first, end = tiles.table.long().unsqueeze(2)
    assignments = first + torch.arange(rows, device=x.device)  # [tiles, rows]
    is_used = assignments < end
    experts = torch.where(is_used, expert, -1).flatten().int()
    behind = routing.num_assignments
    assignments = assignments.masked_fill(~is_used, behind).flatten()
    tokens = routing.token_indices[assignments.clamp(max=behind - 1)]
    gathered = x.index_select(0, tokens.clamp(0, routing.num_tokens - 1))
    hidden = _product(gathered, weights.gate_up, experts)
    outputs = _product(activation(hidden, weights.down.shape[2]), weights.down, experts)
    row_of = assignments.new_zeros(behind + 1)
    row_of.scatter_(0, assignments, torch.arange(len(assignments), device=x.device))
    return combine_slots(outputs, routing, row_of)


def _product(rows: Tensor, matrices: Tensor, experts: Tensor) -> Tensor:
    """Rows times their expert's matrix [outputs, inputs], transposed; anything where it is -1."""
    import deep_gemm

    product = rows.new_empty(len(rows), matrices.shape[1])
    getattr(deep_gemm, PRODUCT)(rows, matrices, product, experts)
    return product
