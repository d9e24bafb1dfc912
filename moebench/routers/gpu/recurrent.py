"""Launch of RMoE's cell and gate, as one operation that torch dispatches."""

import torch
from torch import Tensor

from moebench.routers.gpu.launch import define, is_available, power_of_two
from moebench.routers.rmoe.policy import WIDEST_CELL

LEAST = 16
"""Least size of each side of a product in Triton."""


def fits(x: Tensor, cell: torch.nn.RNNCellBase, gate: Tensor) -> bool:
    """Whether the kernel runs for these tokens: inference on a GPU with Triton."""
    is_inference = not torch.is_grad_enabled()
    return is_inference and max(cell.hidden_size, len(gate)) <= WIDEST_CELL and is_available(x)


def recurrent_scores(
    projected: Tensor,
    below: Tensor | None,
    cell: torch.nn.RNNCellBase,
    gate: Tensor,
    base: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Logits of a layer and its state, from the projected tokens and the state below."""
    weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh, gate]
    run = torch.ops.moebench.recurrent_scores
    logits, state = run(projected, below, weights, base)
    return logits, state


def _outputs(projected: Tensor, weights: list[Tensor]) -> list[Tensor]:
    gate = weights[4]
    logits = projected.new_empty(len(projected), len(gate), dtype=gate.dtype)
    return [logits, torch.empty_like(projected, memory_format=torch.contiguous_format)]


def _launch(
    projected: Tensor, below: Tensor | None, weights: list[Tensor], base: Tensor | None
) -> list[Tensor]:
    from moebench.routers.gpu.kernel_recurrent import recurrent_scores as kernel

    projected = projected.contiguous()
    logits, state = _outputs(projected, weights)
    below, base = (None if x is None else x.contiguous() for x in (below, base))
    num_tokens, size = projected.shape
    kernel[(-(-num_tokens // LEAST),)](
        *(projected, projected if below is None else below, *(w.contiguous() for w in weights)),
        *(logits if base is None else base, state, logits, num_tokens),
        **constants(size, len(weights[4]), len(weights[0])),
        HAS_BELOW=below is not None,
        HAS_BASE=base is not None,
        UPCAST=not projected.is_cuda and projected.dtype == torch.bfloat16,
        num_warps=4,
    )
    return [logits, state]


def constants(size: int, columns: int, rows: int) -> dict[str, int | bool]:
    """Compile-time constants of a cell of a state of some size, whose matrices have some rows."""
    return {
        "SIZE": size,
        "COLUMNS": columns,
        "IS_GRU": rows != size,
        "BLOCK_T": LEAST,
        "BLOCK_P": max(LEAST, power_of_two(size)),
        "BLOCK_N": LEAST,
        "BLOCK_C": max(LEAST, power_of_two(columns)),
    }


def _fake(
    projected: Tensor, below: Tensor | None, weights: list[Tensor], base: Tensor | None
) -> list[Tensor]:
    return _outputs(projected, weights)


define(
    "recurrent_scores(Tensor projected, Tensor? below, Tensor[] weights, Tensor? base) -> Tensor[]",
    _launch,
    _fake,
)
