"""Grouped by expert: one gather, two matmuls for each touched expert, one combine.

`Routing` is sorted by expert, so an expert's rows are a slice. `embedding_bag` combines in one
weighted pass, in fp32; `index_add`, row by row, would be 10 times slower on a CPU in bf16.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from moebench.experts.weights import ExpertWeights, activation, feed_forward
from moebench.routers.routing import Hidden, Routing


def grouped(x: Hidden, routing: Routing, weights: ExpertWeights) -> Hidden:
    """Run each touched expert on its slice of the gathered rows; a GPU waits once a layer."""
    if routing.num_assignments == 0:
        return torch.zeros_like(x)
    rows = dispatch(x, routing)
    counts = routing.tokens_per_expert.tolist()
    if torch.is_grad_enabled():
        outputs: Tensor = FeedForwards.apply(  # type: ignore[no-untyped-call]
            rows, weights.gate_up, weights.down, counts
        )
    else:
        results = (
            feed_forward(rows[mine], weights.gate_up[expert], weights.down[expert])
            for expert, mine in slices(counts)
        )
        outputs = torch.cat([*results])
    return combine(outputs, routing)


def slices(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Each touched expert with its rows, which are sorted by expert."""
    start = 0
    for expert, count in enumerate(counts):
        if count:
            yield expert, slice(start, start + count)
            start += count


class FeedForwards(torch.autograd.Function):
    """All experts' feed-forward networks, with weight gradients written into the stacked tensors.

    Autograd would allocate every expert's weight gradient and copy it into the stacked one: a third
    of a training step at Mixtral's size. The backward pass computes the activation again from the
    first matmul's saved result.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, gate_up: Tensor, down: Tensor, counts: Sequence[int]
    ) -> Tensor:
        hidden = rows.new_empty(rows.shape[0], gate_up.shape[1])
        outputs = rows.new_empty(rows.shape[0], down.shape[1])
        for expert, mine in slices(counts):
            torch.mm(rows[mine], gate_up[expert].t(), out=hidden[mine])
            activated = activation(hidden[mine], down.shape[2])
            torch.mm(activated, down[expert].t(), out=outputs[mine])
        ctx.save_for_backward(rows, hidden, gate_up, down)
        ctx.counts = counts
        return outputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows, hidden, gate_up, down = ctx.saved_tensors
        grad = grad.contiguous()
        grad_rows = torch.empty_like(rows)
        grad_gate_up, grad_down = torch.empty_like(gate_up), torch.empty_like(down)
        for expert, count in enumerate(ctx.counts):
            if count == 0:
                grad_gate_up[expert].zero_()
                grad_down[expert].zero_()
        for expert, mine in slices(ctx.counts):
            grad_activated = torch.mm(grad[mine], down[expert])
            activated, grad_hidden = activation_backward(grad_activated, hidden[mine])
            torch.mm(grad[mine].t(), activated, out=grad_down[expert])
            torch.mm(grad_hidden.t(), rows[mine], out=grad_gate_up[expert])
            torch.mm(grad_hidden, gate_up[expert], out=grad_rows[mine])
        return grad_rows, grad_gate_up, grad_down, None


def activation_backward(
    grad: Float[Tensor, "tokens intermediate"], hidden: Float[Tensor, "tokens width"]
) -> tuple[Float[Tensor, "tokens intermediate"], Float[Tensor, "tokens width"]]:
    """The activation (`moebench.experts.weights.activation`), and the gradient of its input."""
    if hidden.shape[1] == grad.shape[1]:
        positive = functional.relu(hidden)
        return positive.square(), 2 * positive * grad
    gate, up = hidden.chunk(2, dim=-1)
    silu = functional.silu(gate)
    grad_hidden = torch.empty_like(hidden)
    grad_gate, grad_up = grad_hidden.chunk(2, dim=-1)
    torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
    torch.mul(grad, silu, out=grad_up)
    return silu.mul_(up), grad_hidden


def dispatch(x: Hidden, routing: Routing) -> Float[Tensor, "assignments hidden"]:
    """The row of each assignment; a single token's row is shared, not copied."""
    if routing.num_tokens == 1:
        return x.expand(routing.num_assignments, -1)
    return x.index_select(0, routing.token_indices)


def combine(outputs: Float[Tensor, "assignments hidden"], routing: Routing) -> Hidden:
    """Add up the weighted outputs of each token."""
    weights = routing.weights.to(outputs.dtype)
    if routing.num_tokens == 1:
        order = torch.arange(routing.num_assignments, device=outputs.device)
        first = order.new_zeros(1)
    else:
        order = routing.token_indices.argsort(stable=True)
        counts = routing.experts_per_token()
        first = counts.cumsum(0) - counts
        weights = weights[order]
    return functional.embedding_bag(order, outputs, first, mode="sum", per_sample_weights=weights)
