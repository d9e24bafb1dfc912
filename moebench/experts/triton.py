"""Two Triton kernels: gather, matmul and activation; matmul, weighting and combine.

Inference on NVIDIA GPUs of compute capability 8.0 and newer, in bf16, fp16 and fp32 (fp32 without
tensor cores, as torch does by default). In training the layer is `grouped`'s, in torch. The grid
depends on shapes alone: a CUDA graph can hold a step of bounded routings. Atomics add up in fp32:
repeated runs agree to the bit for up to two experts per token, to a rounding of fp32 for more.

**Verified without a GPU only**: numbers by Triton's interpreter (where bf16 is multiplied in
fp32), and by compiling ahead of time for sm_80, sm_90, sm_100 and sm_120
(`python -m moebench.experts.gpu.report`). No GPU has run it: its time, its bf16 results on a
device and its capture in a graph are unverified.
"""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from moebench.experts.gpu.launch import DTYPES
from moebench.experts.gpu.tiles import TABLE
from moebench.experts.grouped import grouped
from moebench.experts.weights import ExpertWeights
from moebench.routers.routing import Hidden, Routing


def missing(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install 'moebench[triton]')"
    if device.type == "cuda":
        capability, oldest = torch.cuda.get_device_capability(device), divmod(min(TABLE), 10)
        if capability < oldest:
            return "it needs compute capability 8.0 or newer"
    elif device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    else:
        return "it needs a GPU (TRITON_INTERPRET=1 interprets it on the CPU, for checks)"
    # Triton builds a launcher in C, which includes Python's headers.
    if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))):
        return "Triton needs a C compiler (gcc or clang, or the variable CC names one)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        return f"Triton needs Python's headers, and there is no {header.name} (python3-dev)"
    return None


def triton(x: Hidden, routing: Routing, weights: ExpertWeights) -> Hidden:
    """Launch both kernels; `routing` may be longer than its assignments."""
    trained = (x, routing.weights, weights.gate_up, weights.down)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in trained):
        return grouped(x, routing, weights)
    if routing.num_assignments == 0:
        return torch.zeros_like(x)
    if x.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"expert backend 'triton' computes in {names}; x is {x.dtype}")
    operations = torch.ops.moebench
    tokens, counts = routing.token_indices, routing.tokens_per_expert
    hidden = operations.ragged_up(x, tokens, counts, weights.gate_up, weights.down.shape[2])
    y = x.new_zeros(x.shape, dtype=torch.float32)
    operations.ragged_down(hidden, tokens, routing.weights, counts, weights.down, y)
    return y.to(x.dtype)
