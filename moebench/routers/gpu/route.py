"""Routings made by the routing kernel: what a router's form or its choice becomes in one launch."""

from dataclasses import replace

import torch

from moebench.routers.gpu import launch
from moebench.routers.routing import ChoiceScores, Router, Routing
from moebench.routers.row_tiles import rows_of_tile


def is_available(router: Router, scores: ChoiceScores, dtype: torch.dtype) -> bool:
    """Whether a router's tokens are routed by the kernel: inference on a GPU with Triton."""
    has_gradient = torch.is_grad_enabled() and scores.requires_grad
    is_inference = not (router.training or has_gradient)
    return is_inference and dtype in launch.DTYPES and launch.is_available(scores)


def by_kernel(router: Router, scores: ChoiceScores, dtype: torch.dtype) -> Routing:
    """A routing in one launch after the scores, with its row tiles; the host waits for nothing.

    Where the kernel knows the router's form it chooses too; elsewhere torch does.
    """
    form = router.fused_form()
    expected = router.expected_assignments(len(scores))
    if form is not None and launch.fits(form):
        slots, is_bound = form.slots, form.drops
        rows = _tile_rows(expected, len(scores) * slots, form.num_experts)
        found = launch.routed(form, scores, router.progress, rows, dtype)
    else:
        choice = router.choose(scores)
        slots, is_bound = choice.expert_indices.shape[1], choice.keep is not None
        rows = _tile_rows(expected, len(scores) * slots, choice.num_experts)
        found = launch.sorted_choice(choice, router.progress, rows, dtype)
    return Routing(
        *(found.token_indices, found.expert_indices, found.weights, found.tokens_per_expert),
        len(scores),
        num_slots=slots,
        places=found.places,
        expected_assignments=expected,
        row_tiles=found.row_tiles,
        is_bound=is_bound,
    )


def counted(routing: Routing) -> Routing:
    """A routing without what lies behind its last assignment; the host waits for it."""
    if not routing.is_bound:
        return routing
    count = int(routing.tokens_per_expert.sum())
    tiles = routing.row_tiles
    return replace(
        routing,
        token_indices=routing.token_indices[:count],
        expert_indices=routing.expert_indices[:count],
        weights=routing.weights[:count],
        row_tiles=None if tiles is None else tiles.up_to(count, routing.num_experts),
        is_bound=False,
    )


def _tile_rows(expected: float | None, bound: int, num_experts: int) -> int:
    """Rows of a tile by the assignments expected; where none are, by their bound."""
    return rows_of_tile((bound if expected is None else expected) / num_experts)
