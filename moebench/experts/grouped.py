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

from moebench.experts.weights import (
    Bias,
    Clamp,
    ExpertWeights,
    activation,
    clamped,
    feed_forward,
    gate_and_up,
    of_expert,
)
from moebench.routers.routing import Hidden, Routing


def grouped(x: Hidden, routing: Routing, weights: ExpertWeights) -> Hidden:
    """Run each touched expert on its slice of the gathered rows; a GPU waits once a layer."""
    if routing.num_assignments == 0:
        return torch.zeros_like(x)
    rows = dispatch(x, routing)
    counts = routing.tokens_per_expert.tolist()
    if torch.is_grad_enabled():
        tensors = weights.gate_up, weights.down, weights.gate_up_bias, weights.down_bias
        outputs: Tensor = FeedForwards.apply(  # type: ignore[no-untyped-call]
            rows, counts, weights.clamp, *tensors
        )
    else:
        gate_up, down = weights.gate_up, weights.down
        results = (
            feed_forward(
                rows[mine], gate_up[expert], down[expert], weights.biases(expert), weights.clamp
            )
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
        ctx: Any, rows: Tensor, counts: Sequence[int], clamp: Clamp | None, *tensors: Tensor | None
    ) -> Tensor:
        """Outputs of the sorted rows; `tensors` are both matrices and both biases."""
        gate_up, down, *biases = tensors
        assert gate_up is not None and down is not None
        hidden = rows.new_empty(rows.shape[0], gate_up.shape[1])
        outputs = rows.new_empty(rows.shape[0], down.shape[1])
        for expert, mine in slices(counts):
            multiply(rows[mine], gate_up[expert], of_expert(biases[0], expert), hidden[mine])
            activated = activation(hidden[mine], down.shape[2], clamp)
            multiply(activated, down[expert], of_expert(biases[1], expert), outputs[mine])
        ctx.save_for_backward(rows, hidden, *tensors)
        ctx.counts, ctx.clamp = counts, clamp
        return outputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the rows and of those tensors that are not frozen."""
        rows, hidden, *tensors = ctx.saved_tensors
        gate_up, down = tensors[:2]
        grad = grad.contiguous()
        grad_rows = torch.empty_like(rows)
        needed = ctx.needs_input_grad[-4:]
        grads = [
            torch.empty_like(tensor) if needs and tensor is not None else None
            for tensor, needs in zip(tensors, needed, strict=True)
        ]
        for expert, count in enumerate(ctx.counts):
            if count == 0:
                for one in grads:
                    if one is not None:
                        one[expert].zero_()
        for expert, mine in slices(ctx.counts):
            grad_activated = torch.mm(grad[mine], down[expert])
            activated, grad_hidden = activation_backward(grad_activated, hidden[mine], ctx.clamp)
            torch.mm(grad_hidden, gate_up[expert], out=grad_rows[mine])
            for one, left, right in zip(
                grads[:2], (grad_hidden, grad[mine]), (rows[mine], activated), strict=True
            ):
                if one is not None:
                    torch.mm(left.t(), right, out=one[expert])
            for one, left in zip(grads[2:], (grad_hidden, grad[mine]), strict=True):
                if one is not None:
                    torch.sum(left, 0, out=one[expert])
        return grad_rows, None, None, *grads


def multiply(rows: Tensor, matrix: Tensor, bias: Bias, out: Tensor) -> None:
    """Write the rows times a matrix [outputs, inputs], plus its bias."""
    torch.mm(rows, matrix.t(), out=out)
    if bias is not None:
        out.add_(bias)


def activation_backward(
    grad: Float[Tensor, "tokens intermediate"],
    hidden: Float[Tensor, "tokens width"],
    clamp: Clamp | None = None,
) -> tuple[Float[Tensor, "tokens intermediate"], Float[Tensor, "tokens width"]]:
    """The activation (`moebench.experts.weights.activation`), and the gradient of its input."""
    if hidden.shape[1] == grad.shape[1]:
        positive = functional.relu(hidden)
        return positive.square(), 2 * positive * grad
    if clamp is not None:
        return clamped_backward(grad, hidden, clamp)
    gate, up = hidden.chunk(2, dim=-1)
    silu = functional.silu(gate)
    grad_hidden = torch.empty_like(hidden)
    grad_gate, grad_up = grad_hidden.chunk(2, dim=-1)
    torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
    torch.mul(grad, silu, out=grad_up)
    return silu.mul_(up), grad_hidden


def clamped_backward(
    grad: Float[Tensor, "tokens intermediate"],
    hidden: Float[Tensor, "tokens width"],
    clamp: Clamp,
) -> tuple[Float[Tensor, "tokens intermediate"], Float[Tensor, "tokens width"]]:
    """The clamped activation, and the gradient of its input; it is 0 beyond a limit."""
    gate, up = clamped(hidden, clamp)
    share = torch.sigmoid(clamp.alpha * gate)
    glu = gate * share
    slope = share + clamp.alpha * glu * (1 - share)
    raw_gate, raw_up = gate_and_up(hidden, clamp)
    grad_hidden = torch.empty_like(hidden)
    grad_gate, grad_up = gate_and_up(grad_hidden, clamp)
    grad_gate.copy_(grad * (up + 1) * slope * (raw_gate <= clamp.limit))
    grad_up.copy_(grad * glu * (raw_up.abs() <= clamp.limit))
    return (up + 1) * glu, grad_hidden


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
