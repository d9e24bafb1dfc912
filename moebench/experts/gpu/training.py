"""A ragged mixture of experts with gradients, by our own Triton kernels, without atomics.

Kept for the backward pass are x and the products of the first matmul [assignments, width] in the
model's type. The activation is computed again from them. No gathered copy of x is kept, and no
output of an expert: the gradient of a routing weight is the product of the activation and its own
gradient. `grouped` keeps both, two more rows of the hidden size for each assignment. Keeping x
alone would need the first matmul again, two ninths more FLOPs a step.

Every sum has one order: the same inputs give the same bits, forward and backward. The launches are
operations that torch dispatches, under `torch.ops.moebench`, so that its counter of FLOPs sees
them. The host never waits for the device.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moebench.experts.gpu.launch import LIBRARY, OPERATIONS, device_of
from moebench.experts.gpu.tiles import KernelTile
from moebench.experts.gpu.training_tiles import TrainingTiles, constants, training_tiles
from moebench.experts.weights import ExpertWeights
from moebench.routers.routing import Hidden, Routing
from moebench.routers.row_tiles import RowTiles


class Assignments(NamedTuple):
    """The assignments of a routing as the kernels read them, sorted by expert."""

    token_indices: Int[Tensor, " bound"]
    routing_weights: Float[Tensor, " bound"]
    table: Int[Tensor, "3 tiles"]
    """Row tiles, see `moebench.routers.row_tiles`."""
    ends: Int[Tensor, " experts"]
    """End of each expert's assignments."""
    places: Int[Tensor, "tokens slots"]
    """Assignment of each slot of a token, or -1."""


def trained_layer(x: Hidden, routing: Routing, weights: ExpertWeights, tiles: RowTiles) -> Hidden:
    """The layer's output, whose gradients reach x, routing weights and both stacks of matrices."""
    fixed = tiles.table, routing.tokens_per_expert.cumsum(0), routing.slot_places()
    y: Tensor = TrainedLayer.apply(  # type: ignore[no-untyped-call]
        x, routing.weights, weights.gate_up, weights.down, routing.token_indices, fixed, tiles.rows
    )
    return y


class TrainedLayer(torch.autograd.Function):
    """Both matmuls, the activation and the weighted sum, with the gradients of all their inputs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, routing_weights: Tensor, gate_up: Tensor, down: Tensor, *routed: Any
    ) -> Tensor:
        """Run the layer; `routed` are token indices, then table, ends and places, then rows."""
        token_indices, fixed, rows = routed
        given = Assignments(token_indices, routing_weights, *fixed)
        x = x if x.stride(1) == 1 else x.contiguous()
        products, activated = OPERATIONS.ragged_up_and_keep(x, gate_up, down.shape[2], given, rows)
        outputs = OPERATIONS.ragged_down(activated, given.table, down, rows, 1)
        ctx.save_for_backward(x, gate_up, down, products, *given)
        ctx.rows = rows
        y: Tensor = OPERATIONS.ragged_combine(outputs, given.places, routing_weights, x, None, 1.0)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, routing weights and matrices; None for what is frozen."""
        x, gate_up, down, products, *saved = ctx.saved_tensors
        given, rows = Assignments(*saved), ctx.rows
        grad_y = grad_y if grad_y.stride(1) == 1 else grad_y.contiguous()
        grad_products, weighted, parts = OPERATIONS.ragged_activation_backward(
            grad_y, down, products, given, rows
        )
        needs_x, needs_weights, needs_gate_up, needs_down = ctx.needs_input_grad[:4]
        grad_x = grad_weights = grad_gate_up = grad_down = None
        if needs_weights:
            grad_weights = parts.sum(0).to(given.routing_weights.dtype)
        if needs_x:
            grad_rows = OPERATIONS.ragged_rows_backward(grad_products, gate_up, given, rows)
            ones = torch.ones_like(given.routing_weights)
            grad_x = OPERATIONS.ragged_combine(grad_rows, given.places, ones, x, None, 1.0)
        if needs_gate_up:
            grad_gate_up = OPERATIONS.ragged_matrices_backward(grad_products, x, False, given)
        if needs_down:
            grad_down = OPERATIONS.ragged_matrices_backward(grad_y, weighted, True, given)
        return grad_x, grad_weights, grad_gate_up, grad_down, None, None, None


def up_and_keep(
    x: Hidden,
    gate_up: Float[Tensor, "experts width hidden"],
    intermediate_size: int,
    assignments: list[Tensor],
    rows: int,
) -> tuple[Float[Tensor, "bound width"], Float[Tensor, "bound intermediate"]]:
    """The products of each assignment's row with its expert's first matrix, and the activation.

    `gate_up` is gate above up, or up alone (squared ReLU): `intermediate_size` tells which.
    """
    from moebench.experts.gpu import training_kernels

    given = Assignments(*assignments)
    bound, (num_experts, width, hidden_size) = len(given.token_indices), gate_up.shape
    products = x.new_empty(bound, width)
    activated = x.new_empty(bound, intermediate_size)
    tile, grid_rows = _tiles(x, rows).up, given.table.shape[1]
    with device_of(x):
        training_kernels.up_and_keep[(grid_rows * -(-intermediate_size // tile.columns),)](
            *(x, given.token_indices, given.table, gate_up.contiguous(), products, activated),
            *(num_experts, grid_rows, hidden_size, intermediate_size, x.stride(0)),
            IS_GATED=width != intermediate_size,
            **_options(tile, x),
        )
    return products, activated


def activation_backward(
    grad_y: Hidden,
    down: Float[Tensor, "experts hidden intermediate"],
    products: Float[Tensor, "bound width"],
    assignments: list[Tensor],
    rows: int,
) -> tuple[
    Float[Tensor, "bound width"], Float[Tensor, "bound intermediate"], Float[Tensor, "parts bound"]
]:
    """Gradient of the products, weighted activation, and parts of the routing weights' gradient.

    The parts [column tiles, bound] are in fp32, and 0 behind the last assignment.
    """
    from moebench.experts.gpu import training_kernels

    given = Assignments(*assignments)
    bound, (num_experts, hidden_size, inner) = len(given.token_indices), down.shape
    tile, grid_rows = _tiles(grad_y, rows).activation, given.table.shape[1]
    column_tiles = -(-inner // tile.columns)
    grad_products = torch.empty_like(products)
    weighted = products.new_empty(bound, inner)
    parts = products.new_zeros(column_tiles, bound, dtype=torch.float32)
    with device_of(grad_y):
        training_kernels.activation_backward[(grid_rows * column_tiles,)](
            *(grad_y, given.token_indices, given.routing_weights, given.table, down.contiguous()),
            *(products, grad_products, weighted, parts),
            *(num_experts, grid_rows, bound, hidden_size, inner, grad_y.stride(0)),
            IS_GATED=products.shape[1] != inner,
            **_options(tile, grad_y),
        )
    return grad_products, weighted, parts


def rows_backward(
    grad_products: Float[Tensor, "bound width"],
    gate_up: Float[Tensor, "experts width hidden"],
    assignments: list[Tensor],
    rows: int,
) -> Float[Tensor, "1 bound hidden"]:
    """Gradient of the row of x that each assignment read; uninitialised behind the last."""
    from moebench.experts.gpu import training_kernels

    table, (num_experts, width, hidden_size) = Assignments(*assignments).table, gate_up.shape
    grad_rows = grad_products.new_empty(1, len(grad_products), hidden_size)
    tile, grid_rows = _tiles(grad_products, rows).rows, table.shape[1]
    with device_of(grad_products):
        training_kernels.rows_backward[(grid_rows * -(-hidden_size // tile.columns),)](
            *(grad_products, table, gate_up.contiguous(), grad_rows),
            *(num_experts, grid_rows, width, hidden_size),
            **_options(tile, grad_products),
        )
    return grad_rows


def matrices_backward(
    left: Float[Tensor, "_ outputs"],
    right: Float[Tensor, "_ inputs"],
    gathers_left: bool,
    assignments: list[Tensor],
) -> Float[Tensor, "experts outputs inputs"]:
    """Gradient of each expert's matrix: the sum over its assignments of left^T right, or 0.

    One of the two has a row an assignment, the other a row a token: left where `gathers_left`.
    """
    from moebench.experts.gpu import training_kernels

    given = Assignments(*assignments)
    shape = len(given.ends), left.shape[1], right.shape[1]
    gradients = left.new_empty(shape)
    tile = _tiles(left, 128).matrices
    grid = -(-shape[1] // tile.rows) * -(-shape[2] // tile.columns), shape[0]
    with device_of(left):
        training_kernels.matrices_backward[grid](
            *(left, right, given.token_indices, given.ends, gradients),
            *(*shape[1:], left.stride(0), right.stride(0)),
            GATHERS_LEFT=gathers_left,
            **_options(tile, left),
        )
    return gradients


def _options(tile: KernelTile, x: Tensor) -> dict[str, int | bool]:
    """Compile-time constants and warps of a kernel."""
    return {
        "UPCAST": not x.is_cuda and x.dtype == torch.bfloat16,
        **constants(tile, x.element_size()),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _tiles(x: Tensor, rows: int) -> TrainingTiles:
    return training_tiles(rows, x.element_size())


SCHEMAS = {
    up_and_keep: "ragged_up_and_keep(Tensor x, Tensor gate_up, int intermediate_size,"
    " Tensor[] assignments, int rows) -> (Tensor, Tensor)",
    activation_backward: "ragged_activation_backward(Tensor grad_y, Tensor down, Tensor products,"
    " Tensor[] assignments, int rows) -> (Tensor, Tensor, Tensor)",
    rows_backward: "ragged_rows_backward(Tensor grad_products, Tensor gate_up,"
    " Tensor[] assignments, int rows) -> Tensor",
    matrices_backward: "ragged_matrices_backward(Tensor left, Tensor right, bool gathers_left,"
    " Tensor[] assignments) -> Tensor",
}
for _launch, _schema in SCHEMAS.items():
    _name = LIBRARY.define(_schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(_name, _launch, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
