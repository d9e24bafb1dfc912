"""Ragged matmul on a processor with AVX-512-BF16: our own kernels, as operations on tensors."""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from moebench.experts.cpu.build import DTYPES, call, why_not

__all__ = [
    "BLOCK",
    "DTYPES",
    "EPILOGUES",
    "Epilogue",
    "blocks",
    "combine",
    "experts",
    "ragged_linear",
    "why_not",
]

BLOCK = 64
"""Outputs whose weights are adjacent; for gated experts half of them are gate and half are up."""
Epilogue = Literal["none", "swiglu", "squared-relu"]
EPILOGUES: tuple[Epilogue, ...] = ("none", "swiglu", "squared-relu")


def blocks(
    matrices: Float[Tensor, "experts outputs inputs"], *, is_gated: bool = False
) -> Float[Tensor, "experts blocks steps 64 depth"]:
    """A zero-padded copy in blocks; `is_gated`: gate above up; inputs are multiples of `DTYPES`."""
    depth = DTYPES[matrices.dtype]
    experts, outputs, inputs = matrices.shape
    halves = 2 if is_gated else 1
    width = BLOCK // halves
    num_blocks = -(-outputs // halves // width)
    # In bf16 a step's two inputs move as one word.
    word = torch.int32 if depth == 2 else matrices.dtype
    steps = inputs // depth
    packed = matrices.new_empty(experts, num_blocks, steps, BLOCK, depth)
    for matrix, target in zip(matrices, packed, strict=True):
        parts = matrix.view(halves, outputs // halves, inputs)
        padded = functional.pad(parts, (0, 0, 0, num_blocks * width - outputs // halves))
        words = padded.contiguous().view(word).view(halves, num_blocks, width, steps)
        target.view(word).view(num_blocks, steps, halves, width).copy_(words.permute(1, 3, 0, 2))
    return packed


def ragged_linear(
    x: Float[Tensor, "rows inputs"],
    indices: Int[Tensor, " assignments"] | None,
    counts: Int[Tensor, " experts"],
    matrices: Float[Tensor, "experts blocks steps 64 depth"],
    y: Float[Tensor, "assignments outputs"],
    epilogue: Epilogue = "none",
) -> None:
    """Multiply each assignment's row of x by the matrix of its expert, into y.

    Sums and the epilogue, SiLU(gate) * up or relu(sum)^2, are in fp32 until they are rounded.
    `indices` is the row of each assignment, sorted by expert (None: each has its own), `counts` the
    assignments of each expert, both int64. `matrices` come from `blocks`, gated for "swiglu".
    Rows of x have any stride and adjacent elements; y is dense and overwritten.
    """
    rows = x if indices is None else indices
    width = BLOCK // 2 if epilogue == "swiglu" else BLOCK
    depth = DTYPES[x.dtype]
    expected = (len(counts), -(-y.shape[1] // width), x.shape[1] // depth, BLOCK, depth)
    # With a wrong size the kernel would write to memory that is not its own.
    if matrices.shape != expected or x.shape[1] % depth or len(rows) != len(y):
        raise ValueError(
            f"ragged_linear: found x {list(x.shape)}, {len(rows)} rows for y {list(y.shape)} and "
            f"matrices {list(matrices.shape)}, expected matrices {list(expected)}"
        )
    _check_types(x, (matrices, y), (counts,) if indices is None else (counts, indices))
    torch.ops.moebench.ragged_linear(x, indices, counts, matrices, y, EPILOGUES.index(epilogue))


def combine(
    rows: Float[Tensor, "assignments outputs"],
    tokens: Int[Tensor, " assignments"],
    weights: Float[Tensor, " assignments"],
    y: Float[Tensor, "tokens outputs"],
) -> None:
    """Overwrite y with each token's fp32-weighted rows, added in order in fp32; all are dense."""
    _check_types(rows, (rows, y), (tokens,))
    if not len(rows) == len(tokens) == len(weights) or rows.shape[1] != y.shape[1]:
        raise ValueError(
            f"combine: found {len(tokens)} tokens, {len(weights)} weights, rows "
            f"{list(rows.shape)} and y {list(y.shape)}"
        )
    _check_weights("combine", weights)
    torch.ops.moebench.combine(rows, tokens, weights, y)


def experts(
    x: Float[Tensor, "tokens hidden"],
    assigned: tuple[Tensor, Tensor | None, Tensor],
    matrices: tuple[Tensor, Tensor],
    scratch: tuple[Tensor, Tensor],
    y: Float[Tensor, "tokens hidden"],
    epilogue: Epilogue,
) -> None:
    """Overwrite y with a layer of experts: both matmuls, and each token's weighted sum.

    Args:
        assigned: Either a router's slots: the expert of each [tokens, slots] (`num_experts`: the
            slot is empty), None, and their weights; they are sorted by expert here. Or assignments
            that are sorted: how many each expert has, the token of each, and their weights.
            Integers are int64, weights fp32.
        matrices: both stacks from `blocks`.
        scratch: rows of the inner size and of the hidden size, as many as slots or assignments.
    """
    counts, tokens, weights = assigned
    activated, outputs = scratch
    num_experts = len(matrices[0])
    number = weights.numel()
    is_gated = epilogue == "swiglu"
    hidden, inner = x.shape[1], activated.shape[1]
    depth = DTYPES[x.dtype]
    width = BLOCK // 2 if is_gated else BLOCK
    expected = (
        (num_experts, -(-inner // width), hidden // depth, BLOCK, depth),
        (num_experts, -(-hidden // BLOCK), inner // depth, BLOCK, depth),
    )
    sizes = tuple(tuple(each.shape) for each in matrices)
    if (
        sizes != expected
        or (hidden | inner) % depth
        or y.shape != x.shape
        or outputs.shape[1] != hidden
        or min(len(activated), len(outputs)) < number
        or counts.numel() != (number if tokens is None else num_experts)
        or (len(x) and number % len(x) if tokens is None else tokens.numel() != number)
    ):
        raise ValueError(
            f"experts: found x {list(x.shape)}, matrices {list(map(list, sizes))}, scratch "
            f"{[list(each.shape) for each in scratch]} and {number} weights, expected matrices "
            f"{list(map(list, expected))}"
        )
    _check_types(x, (*matrices, *scratch, y), (counts,) if tokens is None else (counts, tokens))
    _check_weights("experts", weights)
    torch.ops.moebench.experts(
        x, counts, tokens, weights, *matrices, *scratch, y, EPILOGUES.index(epilogue)
    )


def _check_weights(name: str, weights: Tensor) -> None:
    if weights.dtype != torch.float32 or not weights.is_contiguous():
        raise ValueError(f"{name}: found weights in {weights.dtype}, expected fp32, dense")


def _check_types(x: Tensor, like_x: tuple[Tensor, ...], indices: tuple[Tensor, ...]) -> None:
    is_right = all(each.dtype == x.dtype and each.is_contiguous() for each in like_x)
    is_right &= all(each.dtype == torch.int64 and each.is_contiguous() for each in indices)
    if not is_right or x.stride(1) != 1:
        raise ValueError(
            "avx512: expected floats of one type, int64 indices and counts, and all but "
            "x's rows dense"
        )


def _ragged_linear(
    x: Tensor, indices: Tensor | None, counts: Tensor, matrices: Tensor, y: Tensor, epilogue: int
) -> None:
    rows = x, len(x), x.stride(0), indices, len(y), len(counts), counts
    call("ragged_linear", *rows, matrices, x.shape[1], y.shape[1], y, epilogue)


def _combine(rows: Tensor, tokens: Tensor, weights: Tensor, y: Tensor) -> None:
    call("combine", rows, len(rows), tokens, weights, len(y), y.shape[1], y)


def _experts(x: Tensor, counts: Tensor, tokens: Tensor | None, *others: Any) -> None:
    weights, gate_up, down, activated, outputs, y, epilogue = others
    rows = x, len(x), x.stride(0), weights.numel(), len(gate_up), counts, tokens, weights
    sizes = x.shape[1], activated.shape[1]
    call("experts", *rows, gate_up, down, *sizes, epilogue, activated, outputs, y)


SCHEMAS = {
    _ragged_linear: "ragged_linear(Tensor x, Tensor? indices, Tensor counts, Tensor matrices, "
    "Tensor(a!) y, int epilogue) -> ()",
    _experts: "experts(Tensor x, Tensor counts, Tensor? tokens, Tensor weights, "
    "Tensor gate_up, Tensor down, Tensor(a!) activated, Tensor(b!) outputs, Tensor(c!) y, "
    "int epilogue) -> ()",
    _combine: "combine(Tensor rows, Tensor tokens, Tensor weights, Tensor(a!) y) -> ()",
}
LIBRARY = torch.library.Library("moebench", "FRAGMENT")  # type: ignore[no-untyped-call]
"""The library, which defines both in `torch.ops.moebench` while it lives: profilers see them."""
for _operation, _schema in SCHEMAS.items():
    LIBRARY.impl(LIBRARY.define(_schema), _operation, "CPU")  # type: ignore[no-untyped-call]
