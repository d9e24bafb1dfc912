"""Prepacked by oneDNN: `grouped` with weights laid out once, as the matmul kernels want them.

A plain matmul copies the weight into blocks on its way, each time: cheap beside a thousand rows,
half of the time beside a few. Here the blocks are kept. That is a second copy of the weights in
memory, and it knows no gradients: with gradients `grouped` runs.

Kernels for one to three rows stream the weights no faster than those for four do, by and large
slower: they load a block for too little work. A short slice therefore borrows the rows next to
its own; what they give is dropped.

Experts of few rows are taken together: their rows are gathered, activated and written in one
operation each, and only the matmuls are theirs alone. Beside weights that stream through the
caches every operation finds its code evicted, and costs tens of microseconds where an expert of
Qwen3-30B-A3B has 300: 16 tokens of it are 6 to 11 % faster together. All threads share every
matmul all the same. An expert a thread would save the waiting behind each of them, but OpenMP's
threads spin for milliseconds after their last work and keep other threads from the cores: 16
tokens of OLMoE were 13 % slower, and faster only with that spinning switched off.

Nothing large is allocated: experts of many rows come one by one, and the memory of the outputs is
kept from call to call.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from moebench.experts.cpu.onednn import LEAST_ROWS, can_pack, linear, packed_weight
from moebench.experts.cpu.scratch import kept, let_go
from moebench.experts.grouped import combine, grouped, slices
from moebench.experts.weights import ExpertWeights, activation, backend
from moebench.routers.routing import Routing

DTYPES = tuple(t for t in (torch.float32, torch.bfloat16, torch.float16) if can_pack(t))
"""Types that oneDNN packs on this processor."""
MOST_TOGETHER = 1 << 18
"""Elements that the first matmul of experts taken together may have: half of a core's second cache
in bf16. Longer ones are not worth joining: 128 tokens of Mixtral / 4 were 2 % slower."""


def missing(device: torch.device) -> str | None:
    if device.type != "cpu":
        return "it is for processors"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch was built without oneDNN"
    return None if DTYPES else "oneDNN packs no weights on this processor"


def lay_out(weights: ExpertWeights) -> Sequence[tuple[Tensor, Tensor]]:
    return weights.laid_out("packed", pack)


@backend(
    "packed",
    missing=missing,
    dtypes=DTYPES,
    hides_flops=True,
    lay_out=lay_out,
    let_go=let_go,
)
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
    width, inner = weights.gate_up.shape[1], weights.down.shape[2]
    # The last expert of all borrows rows as well.
    tokens = functional.pad(routing.token_indices, (0, LEAST_ROWS - 1))
    outputs = kept.empty((total, x.shape[1]), x.dtype)
    for group in groups(routing.tokens_per_expert.tolist(), MOST_TOGETHER // width):
        (_, first), (_, last) = group[0], group[-1]
        end = max(last.stop, last.start + LEAST_ROWS)
        rows = x.index_select(0, tokens[first.start : end])
        starts = [mine.start - first.start for _, mine in group]
        stops = [*starts[1:], len(rows)]
        gate_ups, downs = zip(*(matrices[expert] for expert, _ in group), strict=True)
        activated = activation(join(products(rows, starts, stops, gate_ups)), inner)
        results = products(activated, starts, stops, downs)
        results[-1] = results[-1][: last.stop - last.start]
        torch.cat(results, out=outputs[first.start : last.stop])
    return combine(outputs, routing)


def groups(counts: Sequence[int], most_rows: int) -> Iterator[list[tuple[int, slice]]]:
    """Touched experts with their rows: as many together as have that many rows, or one."""
    group: list[tuple[int, slice]] = []
    for expert, mine in slices(counts):
        if group and mine.stop - group[0][1].start > most_rows:
            yield group
            group = []
        group.append((expert, mine))
    yield group


def products(
    rows: Float[Tensor, "rows inputs"],
    starts: Sequence[int],
    stops: Sequence[int],
    matrices: Sequence[Tensor],
) -> list[Tensor]:
    """Each slice of the rows times its own matrix; short ones borrow the rows that follow."""
    return [
        linear(rows[start : max(stop, start + LEAST_ROWS)], matrix)[: stop - start]
        for start, stop, matrix in zip(starts, stops, matrices, strict=True)
    ]


def join(parts: list[Tensor]) -> Tensor:
    """One below the other; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def pack(weights: ExpertWeights) -> Sequence[tuple[Tensor, Tensor]]:
    """Each expert's first and second matrix in oneDNN's blocks."""
    return [
        (packed_weight(gate_up), packed_weight(down))
        for gate_up, down in zip(weights.gate_up, weights.down, strict=True)
    ]
