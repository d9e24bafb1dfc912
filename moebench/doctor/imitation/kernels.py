"""What our Triton kernels compute, in torch: for an imitated GPU without Triton's interpreter.

Each takes the arguments of an operation (`STAND_INS`); see `moebench.experts.gpu.launch` and
`moebench.experts.gpu.training`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moebench.experts.gpu.launch import OPERATIONS
from moebench.experts.gpu.training import Assignments
from moebench.experts.grouped import activation_backward
from moebench.experts.weights import Clamp, activation, of_expert, plus


def up(
    x: Tensor,
    tokens: Tensor,
    table: Tensor,
    gate_up: Tensor,
    tile_rows: int,
    intermediate: int,
    bias: Tensor | None = None,
    clamp: Sequence[float] = (),
) -> Tensor:
    """The activated hidden row of each assignment."""
    hidden = x.new_zeros(len(tokens), intermediate)
    limits = Clamp(clamp[0], clamp[1]) if clamp else None
    for expert, rows in _tiles(table, len(gate_up)):
        products = plus(x[tokens[rows]] @ gate_up[expert].t(), of_expert(bias, expert))
        hidden[rows] = activation(products, intermediate, limits)
    return hidden


def down(
    hidden: Tensor,
    table: Tensor,
    weights: Tensor,
    tile_rows: int,
    parts: int,
    bias: Tensor | None = None,
) -> Tensor:
    """The expert output of each assignment, all of it in the first part."""
    dtype = hidden.dtype if parts == 1 else torch.float32
    outputs = torch.zeros(parts, len(hidden), weights.shape[1], dtype=dtype)
    for expert, rows in _tiles(table, len(weights)):
        products = plus(hidden[rows] @ weights[expert].t(), of_expert(bias, expert))
        outputs[0, rows] = products.to(dtype)
    return outputs


def combine(
    outputs: Tensor,
    places: Tensor,
    shares: Tensor,
    like: Tensor,
    residual: Tensor | None,
    multiplier: float,
) -> Tensor:
    """Each token's weighted sum of its outputs times a factor, plus its residual."""
    weights = shares[places.clamp(min=0)].float().masked_fill(places < 0, 0.0)
    rows = outputs.sum(0, dtype=torch.float32)[places.clamp(min=0)]
    y = multiplier * (weights.unsqueeze(2) * rows).sum(1)
    if residual is None:
        return y.view(like.shape).to(like.dtype)
    return (residual + y.view(residual.shape)).to(residual.dtype)


def up_and_keep(
    x: Tensor, gate_up: Tensor, intermediate: int, assignments: Sequence[Tensor], tile_rows: int
) -> tuple[Tensor, Tensor]:
    """The first products of each assignment, and the activated row."""
    given = Assignments(*assignments)
    products = x.new_zeros(len(given.token_indices), gate_up.shape[1])
    for expert, rows in _tiles(given.table, len(gate_up)):
        products[rows] = x[given.token_indices[rows]] @ gate_up[expert].t()
    return products, activation(products, intermediate)


def of_activation(
    grad_y: Tensor,
    down_weights: Tensor,
    products: Tensor,
    assignments: Sequence[Tensor],
    tile_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the first products, weighted activation, gradient of the routing weights."""
    given = Assignments(*assignments)
    grad = products.new_zeros(len(products), down_weights.shape[2])
    for expert, rows in _tiles(given.table, len(down_weights)):
        grad[rows] = grad_y[given.token_indices[rows]] @ down_weights[expert]
    shares = given.routing_weights.to(products.dtype).unsqueeze(1)
    activated, grad_products = activation_backward(shares * grad, products)
    return grad_products, shares * activated, (activated * grad).float().sum(1).unsqueeze(0)


def of_rows(
    grad_products: Tensor, gate_up: Tensor, assignments: Sequence[Tensor], tile_rows: int
) -> Tensor:
    """Gradient of the row of x that each assignment read."""
    grad = grad_products.new_zeros(1, len(grad_products), gate_up.shape[2])
    for expert, rows in _tiles(Assignments(*assignments).table, len(gate_up)):
        grad[0, rows] = grad_products[rows] @ gate_up[expert]
    return grad


def of_matrices(
    left: Tensor, right: Tensor, gathers_left: bool, assignments: Sequence[Tensor]
) -> Tensor:
    """Gradient of each expert's matrix."""
    given = Assignments(*assignments)
    grad = left.new_zeros(len(given.ends), left.shape[1], right.shape[1])
    for expert, rows in _tiles(given.table, len(given.ends)):
        tokens = given.token_indices[rows]
        one, other = (left[tokens], right[rows]) if gathers_left else (left[rows], right[tokens])
        grad[expert] += one.t() @ other
    return grad


STAND_INS: Mapping[Any, Callable[..., Any]] = {
    OPERATIONS.ragged_up.default: up,
    OPERATIONS.ragged_down.default: down,
    OPERATIONS.ragged_combine.default: combine,
    OPERATIONS.ragged_up_and_keep.default: up_and_keep,
    OPERATIONS.ragged_activation_backward.default: of_activation,
    OPERATIONS.ragged_rows_backward.default: of_rows,
    OPERATIONS.ragged_matrices_backward.default: of_matrices,
}


def _tiles(table: Tensor, num_experts: int) -> Iterator[tuple[int, slice]]:
    """Expert and rows of each row tile that is not empty."""
    for expert, first, end in table.t().tolist():
        if expert < num_experts and first < end:
            yield expert, slice(first, end)
