"""Prepacked by oneDNN: `grouped` with weights laid out once, as the matmul kernels want them.

A plain matmul copies the weight into blocks on its way, each time: cheap beside a thousand rows,
half of the time beside a few. Here the blocks are kept. That is a second copy of the weights in
memory, and it knows no gradients: with gradients `grouped` runs.

Kernels for one to three rows stream the weights no faster than those for four do, by and large
slower: they load a block for too little work. A short slice therefore borrows the rows next to
its own; what they give is dropped.

Nothing large is allocated: rows are gathered expert by expert, and the memory of the outputs is
kept from call to call. More than 32 MiB of new memory comes from the kernel, page by page, at less
than 1 GB/s on a virtual machine: a third of the time of 1024 tokens of Qwen3-30B-A3B.
"""

import math
import threading
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from moebench.experts import ExpertWeights, activation, backend
from moebench.experts.grouped import combine, grouped, slices
from moebench.onednn import LEAST_ROWS, can_pack, linear, packed_weight
from moebench.routing import Routing

DTYPES = tuple(t for t in (torch.float32, torch.bfloat16, torch.float16) if can_pack(t))
"""Types that oneDNN packs on this processor."""


def missing(device: torch.device) -> str | None:
    if device.type != "cpu":
        return "it is for processors"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch was built without oneDNN"
    return None if DTYPES else "oneDNN packs no weights on this processor"


def lay_out(weights: ExpertWeights) -> Sequence[tuple[Tensor, Tensor]]:
    return weights.laid_out("packed", pack)


@backend("packed", missing=missing, dtypes=DTYPES, hides_flops=True, lay_out=lay_out)
def packed(
    x: Float[Tensor, "tokens hidden"], routing: Routing, weights: ExpertWeights
) -> Float[Tensor, "tokens hidden"]:
    """Run each touched expert's packed matrices on its slice of the gathered rows.

    With gradients, and for a type that oneDNN does not pack on this processor, `grouped` runs.
    """
    if torch.is_grad_enabled() or x.dtype not in DTYPES:
        return grouped(x, routing, weights)
    total = routing.num_assignments
    if total == 0:
        return torch.zeros_like(x)
    matrices = lay_out(weights)
    inner = weights.down.shape[2]
    is_single = routing.num_tokens == 1
    if is_single:
        x = x.expand(LEAST_ROWS, -1).contiguous()
    outputs = kept.empty((total, x.shape[1]), x.dtype)
    for expert, mine in slices(routing.tokens_per_expert.tolist()):
        gate_up, down = matrices[expert]
        first, rows = mine.start, x
        if not is_single:
            first = max(0, min(mine.start, total - LEAST_ROWS))
            last = max(mine.stop, first + LEAST_ROWS)
            rows = x.index_select(0, routing.token_indices[first:last])
        output = linear(activation(linear(rows, gate_up), inner), down)
        outputs[mine] = output[mine.start - first : mine.stop - first]
    return combine(outputs, routing)


class Kept(threading.local):
    """Memory that a thread's next call may overwrite."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor in it."""
        need = math.prod(shape) * dtype.itemsize
        if self.buffer.numel() < need:
            with torch.inference_mode(False):
                self.buffer = torch.empty(need, dtype=torch.uint8)
        return self.buffer[:need].view(dtype).view(shape)


kept = Kept()


def pack(weights: ExpertWeights) -> Sequence[tuple[Tensor, Tensor]]:
    """Each expert's first and second matrix in oneDNN's blocks."""
    return [
        (packed_weight(gate_up), packed_weight(down))
        for gate_up, down in zip(weights.gate_up, weights.down, strict=True)
    ]
