"""Prepacked by oneDNN: `grouped` with weights laid out once, as the matmul kernels want them.

A plain matmul copies the weight into blocks on its way, each time: cheap beside a thousand rows,
half of the time beside a few. Here the blocks are kept. That is a second copy of the weights in
memory, and it knows no gradients: with gradients `grouped` runs.

Kernels for one to three rows stream the weights no faster than those for four do, by and large
slower: they load a block for too little work. A short slice therefore borrows the rows next to
its own; what they give is dropped.
"""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from moebench.experts import ExpertWeights, activation, backend
from moebench.experts.grouped import combine, grouped, slices
from moebench.routing import Routing

LEAST_ROWS = 4


def missing(device: torch.device) -> str | None:
    if device.type != "cpu":
        return "it is for processors"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch was built without oneDNN"
    return None


@backend("packed", missing=missing)
def packed(
    x: Float[Tensor, "tokens hidden"], routing: Routing, weights: ExpertWeights
) -> Float[Tensor, "tokens hidden"]:
    """Run each touched expert's packed matrices on its slice of the gathered rows.

    With gradients, and for a type that oneDNN does not pack on this processor, `grouped` runs.
    """
    if torch.is_grad_enabled() or not can_pack(x.dtype):
        return grouped(x, routing, weights)
    total = routing.num_assignments
    if total == 0:
        return torch.zeros_like(x)
    matrices = weights.laid_out("packed", pack)
    inner = weights.down.shape[2]
    rows = gathered(x, routing)
    outputs = []
    for expert, mine in slices(routing.tokens_per_expert.tolist()):
        gate_up, down = matrices[expert]
        start = max(0, min(mine.start, len(rows) - LEAST_ROWS))
        stop = max(mine.stop, min(start + LEAST_ROWS, len(rows)))
        hidden = linear(rows[start:stop], gate_up)
        output = linear(activation(hidden, inner), down)
        outputs.append(output[mine.start - start : mine.stop - start])
    return combine(torch.cat(outputs), routing)


def gathered(x: Float[Tensor, "tokens hidden"], routing: Routing) -> Float[Tensor, "rows hidden"]:
    """The row of each assignment; of a single token, `LEAST_ROWS` at least."""
    if routing.num_tokens == 1:
        return x.expand(max(routing.num_assignments, LEAST_ROWS), -1).contiguous()
    return x.index_select(0, routing.token_indices)


def pack(weights: ExpertWeights) -> Sequence[tuple[Tensor, Tensor]]:
    """Each expert's first and second matrix in oneDNN's blocks."""
    reorder = torch.ops.mkldnn._reorder_linear_weight
    return [
        (reorder(gate_up.detach(), LEAST_ROWS), reorder(down.detach(), LEAST_ROWS))
        for gate_up, down in zip(weights.gate_up, weights.down, strict=True)
    ]


def linear(x: Float[Tensor, "rows inputs"], packed: Tensor) -> Float[Tensor, "rows outputs"]:
    """Multiply by a packed weight."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return product


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this type on this processor."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype))
    except RuntimeError:  # fp16 without the instructions for it
        return False
    return True
