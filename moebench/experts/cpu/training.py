"""Forward and backward passes of our own kernels, which read the parameters themselves.

A copy of the weights in blocks would have to be made again after every step of an optimiser. A
thread puts each stretch of a matrix in order just before it multiplies with it.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moebench.experts.cpu.build import call
from moebench.experts.cpu.library import EPILOGUES
from moebench.experts.cpu.scratch import buffer, recycled
from moebench.experts.weights import ExpertWeights
from moebench.routers.routing import Hidden, Routing


def train_experts(x: Hidden, routing: Routing, weights: ExpertWeights) -> Hidden:
    """A layer's output, with gradients for x, the routing's weights and the parameters."""
    tensors = routing.weights.float(), weights.gate_up, weights.down
    counts, tokens = routing.tokens_per_expert, routing.token_indices
    y: Tensor = Layer.apply(x, counts, tokens, *tensors)  # type: ignore[no-untyped-call]
    return y


class Layer(torch.autograd.Function):
    """A layer of experts; the backward pass activates the first matmul's saved sums again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "tokens hidden"],
        counts: Int[Tensor, " experts"],
        tokens: Int[Tensor, " assignments"],
        weights: Float[Tensor, " assignments"],
        *stacks: Tensor,
    ) -> Float[Tensor, "tokens hidden"]:
        """The output; `stacks` are both parameters."""
        x = x if x.stride(1) == 1 else x.contiguous()
        gate_up, down = stacks
        total, (hidden, inner) = len(tokens), down.shape[1:]
        sums = x.new_empty(total, gate_up.shape[1])
        activated, outputs = _scratch(x, total, inner, hidden)
        y = x.new_empty(x.shape)
        given = _given(x, counts, tokens, weights, stacks)
        call("train_forward", *given, sums, activated, outputs, y)
        ctx.save_for_backward(x, counts, tokens, weights, *stacks, sums)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, the routing's weights and those parameters that are not frozen."""
        x, counts, tokens, weights, gate_up, down, sums = ctx.saved_tensors
        stacks = gate_up, down
        total, width, (hidden, inner) = len(tokens), gate_up.shape[1], down.shape[1:]
        grads = [
            recycled(stack) if needs else None
            for stack, needs in zip(stacks, ctx.needs_input_grad[4:], strict=True)
        ]
        # Each expert's transposed rows may end with one of zeros.
        transposed = (total + len(counts)) * max(width, hidden) // max(total, 1) + 1
        scratch = _scratch(x, total, inner, width, hidden, transposed)
        grad_x, grad_weights = x.new_empty(x.shape), torch.empty_like(weights)
        given = _given(x, counts, tokens, weights, stacks)
        call(
            "train_backward",
            *given,
            sums,
            grad.contiguous(),
            *scratch,
            grad_x,
            grad_weights,
            *grads,
        )
        return grad_x, None, None, grad_weights, *grads


def _given(
    x: Tensor, counts: Tensor, tokens: Tensor, weights: Tensor, stacks: tuple[Tensor, ...]
) -> tuple[Tensor, *tuple[Tensor | int, ...]]:
    """The first arguments of both kernels, whose memory has been checked."""
    gate_up, down = stacks
    experts, hidden, inner = down.shape
    is_gated = gate_up.shape[1] == 2 * inner
    dense = (counts, tokens, weights, *stacks)
    is_right = all(each.is_contiguous() for each in dense) and x.stride(1) == 1
    is_right &= counts.dtype == tokens.dtype == torch.int64 and len(weights) == len(tokens)
    is_right &= x.dtype == gate_up.dtype == down.dtype and x.shape[1] == hidden
    is_right &= (
        gate_up.shape
        == (experts, (1 + is_gated) * inner, hidden)
        == (len(counts), *gate_up.shape[1:])
    )
    if not is_right:
        raise ValueError(
            f"avx512: found x {list(x.shape)} in {x.dtype}, parameters {list(gate_up.shape)} and "
            f"{list(down.shape)} in {down.dtype} for {len(counts)} experts, expected dense ones "
            "that belong together, and int64 indices"
        )
    epilogue = EPILOGUES.index("swiglu" if is_gated else "squared-relu")
    sizes = len(x), x.stride(0), len(tokens), experts
    return x, *sizes, counts, tokens, weights, gate_up, down, hidden, inner, epilogue


def _scratch(x: Tensor, total: int, *widths: int) -> tuple[Tensor, ...]:
    """Uninitialised rows of some widths, which the thread's next call overwrites."""
    sizes = [total * width for width in widths]
    return torch.split(buffer((sum(sizes),), x.dtype), sizes)
