"""`grouped` with weights in oneDNN's blocks, which its matmul kernels read without repacking.

Repacking costs half of the time beside a few rows. The blocks are cached: a second copy of the
weights, without gradients. Slices of one to three rows are padded to four with the rows that follow
them, because oneDNN's kernels for fewer rows are no faster.

Experts of few rows are gathered, activated and written in one operation each, which makes 16 tokens
of Qwen3-30B-A3B 6 to 11 % faster. Experts of many rows come one by one, so that nothing large is
allocated. All threads share every matmul: with one expert per thread 16 tokens of OLMoE were 13 %
slower, because OpenMP's threads spin after their last work and take the cores from others.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from moebench.experts.cpu.onednn import LEAST_ROWS, can_pack, linear, packed_weight
from moebench.experts.cpu.scratch import buffer, free_scratch
from moebench.experts.grouped import combine, grouped, slices
from moebench.experts.weights import ExpertWeights, activation
from moebench.routers.routing import Hidden, Routing

__all__ = ["build_layout", "free_scratch", "missing", "packed", "takes_dtype"]

MOST_ELEMENTS = 1 << 18
"""Largest first matmul of a group, in elements of its output: half of a core's L2 cache in bf16.
Larger groups do not pay: 128 tokens of Mixtral / 4 were 2 % slower."""

takes_dtype = can_pack


def missing(device: torch.device) -> str | None:
    if device.type != "cpu":
        return "it is for processors"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch was built without oneDNN"
    if not any(map(can_pack, (torch.float32, torch.bfloat16, torch.float16))):
        return "oneDNN packs no weights on this processor"
    return None


def build_layout(weights: ExpertWeights) -> Sequence[tuple[Tensor, Tensor]]:
    """Each expert's first and second matrix in oneDNN's blocks, from the cache or made now."""
    return weights.cached_layout(
        "packed",
        lambda w: [*zip(map(packed_weight, w.gate_up), map(packed_weight, w.down), strict=True)],
    )


def packed(x: Hidden, routing: Routing, weights: ExpertWeights) -> Hidden:
    """Run each touched expert's packed matrices on its slice; `grouped` runs other cases."""
    if torch.is_grad_enabled() or not can_pack(x.dtype):
        return grouped(x, routing, weights)
    total = routing.num_assignments
    if total == 0:
        return torch.zeros_like(x)
    matrices = build_layout(weights)
    width, inner = weights.gate_up.shape[1], weights.down.shape[2]
    # The slice of the last touched expert may need padding too.
    tokens = functional.pad(routing.token_indices, (0, LEAST_ROWS - 1))
    outputs = buffer((total, x.shape[1]), x.dtype)
    for group in groups(routing.tokens_per_expert.tolist(), MOST_ELEMENTS // width):
        (_, first), (_, last) = group[0], group[-1]
        end = max(last.stop, last.start + LEAST_ROWS)
        rows = x.index_select(0, tokens[first.start : end])
        starts = [mine.start - first.start for _, mine in group]
        stops = [*starts[1:], len(rows)]
        gate_ups, downs = zip(*(matrices[expert] for expert, _ in group), strict=True)
        hidden = products(rows, starts, stops, gate_ups)
        # The result of a single expert is not copied.
        activated = activation(torch.cat(hidden) if len(hidden) > 1 else hidden[0], inner)
        results = products(activated, starts, stops, downs)
        results[-1] = results[-1][: last.stop - last.start]
        torch.cat(results, out=outputs[first.start : last.stop])
    return combine(outputs, routing)


def groups(counts: Sequence[int], most_rows: int) -> Iterator[list[tuple[int, slice]]]:
    """Groups of touched experts with their rows: up to `most_rows` rows, or a single expert."""
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
    """Each slice of the rows times its own matrix; short ones are padded by the rows behind."""
    return [
        linear(rows[start : max(stop, start + LEAST_ROWS)], matrix)[: stop - start]
        for start, stop, matrix in zip(starts, stops, matrices, strict=True)
    ]
