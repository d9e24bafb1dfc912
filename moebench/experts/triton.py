"""Three Triton kernels: gather, matmul and activation; matmul; weighting, combine and residual.

On NVIDIA GPUs of compute capability 8.0 and newer, in bf16, fp16 and fp32 (fp32 without tensor
cores, as torch does by default). Training has further kernels (`gpu/training.py`); experts with
biases or a clamp train in `grouped`. The grid depends on shapes alone: a CUDA graph can hold a step
of bounded routings. No atomics: repeated runs agree to the bit. Expert outputs are rounded to the
type of x, then weighted and added in fp32.

**Verified without a GPU only**: numbers by Triton's interpreter (where bf16 is multiplied in
fp32), and by compiling ahead of time for sm_80, sm_90, sm_100 and sm_120
(`python -m moebench.experts.gpu.report`), the launcher's own arguments among that. No GPU has run
it: its time, its bf16 results on a device, its capture in a graph, and that a kernel which starts
before the last one ends reads nothing too early, are unverified.
"""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from moebench.experts.gpu.launch import DTYPES, choose_parts
from moebench.experts.gpu.tiles import TABLE
from moebench.experts.gpu.training import trained_layer
from moebench.experts.grouped import grouped
from moebench.experts.weights import ExpertWeights, Residual, added
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


def triton(
    x: Hidden, routing: Routing, weights: ExpertWeights, residual: Residual | None = None
) -> Float[Tensor, "*tokens hidden"]:
    """Launch the three kernels; `routing` may be longer than its assignments.

    A routing that has no row tiles or places of slots, as a fused router gives them, gets them
    here, in some twenty small operations more.
    """
    if x.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"expert backend 'triton' computes in {names}; x is {x.dtype}")
    if weights.clamp is not None and weights.clamp.is_interleaved:
        raise ValueError(
            "expert backend 'triton': found gate and up in turns, expected gate above up; only "
            "these take it: loop, grouped"
        )
    if routing.num_assignments == 0:
        return added(torch.zeros_like(x), residual)
    operations = torch.ops.moebench
    tiles, expected = routing.cut_rows()
    biases = weights.gate_up_bias, weights.down_bias
    trained = (x, routing.weights, weights.gate_up, weights.down, *biases)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in trained):
        if not weights.is_plain:
            return added(grouped(x, routing, weights), residual)
        return added(trained_layer(x, routing, weights, tiles), residual)
    clamp = () if weights.clamp is None else weights.clamp[:2]
    parts = choose_parts(x, weights.down, tiles.rows, expected)
    inner, rows = weights.down.shape[2], tiles.rows
    first = weights.gate_up, rows, inner, biases[0], clamp
    hidden = operations.ragged_up(x, routing.token_indices, tiles.table, *first)
    second = weights.down, rows, parts, biases[1]
    outputs = operations.ragged_down(hidden, tiles.table, *second)
    stream, multiplier = residual or (None, 1.0)
    places = routing.slot_places()
    y: Tensor = operations.ragged_combine(outputs, places, routing.weights, x, stream, multiplier)
    return y
