"""Mixes have the distributions that they state."""

import pytest
import torch

from moebench.suite.execution.mixes import GEOMETRIC_RATIO, RAGGED, draw_slots, mix_names


def test_the_truncated_geometric_has_mean_two() -> None:
    weights = [GEOMETRIC_RATIO**k for k in range(8)]
    mean = sum(k * w for k, w in enumerate(weights, 1)) / sum(weights)
    assert mean == pytest.approx(2.0, abs=1e-12)


@pytest.mark.parametrize(
    ("mix", "mean", "spread"), [("geometric", 2.0, 1.3), ("ada-k", 1.4, 0.5), ("nulls", 2.0, 0.0)]
)
def test_ragged_mixes_keep_their_mean(mix: str, mean: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    routing = draw_slots(mix, 2, 16, 20_000, generator).routing()
    found = routing.num_assignments / routing.num_tokens
    assert abs(found - mean) <= 4 * spread / 20_000**0.5


@pytest.mark.parametrize("mix", mix_names())
def test_no_token_visits_an_expert_twice(mix: str) -> None:
    routing = draw_slots(mix, 3, 9, 50, torch.Generator().manual_seed(2)).routing()
    pairs = set(zip(routing.token_indices.tolist(), routing.expert_indices.tolist(), strict=True))
    assert len(pairs) == routing.num_assignments
    if mix not in RAGGED:
        assert routing.experts_per_token().unique().tolist() == [8 if mix == "k=8" else 3]


def test_nulls_leave_tokens_with_no_expert_and_tokens_with_many() -> None:
    counts = draw_slots("nulls", 2, 8, 400, torch.Generator().manual_seed(3)).routing()
    per_token = counts.experts_per_token()
    assert per_token.min() == 0
    assert per_token.max() > 4
