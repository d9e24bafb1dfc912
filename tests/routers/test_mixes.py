"""Mixes have the distributions that they state."""

import pytest
import torch

from moebench.routers.policy import policy
from moebench.routers.routing import Routing
from moebench.routers.synthetic.draw import draw_slots
from moebench.routers.synthetic.mixes import MEAN_K, MIXES, SLOTS
from moebench.spec.load import geometric_k
from moebench.spec.model import load_model


def test_ada_k_is_the_operating_point_of_its_policy() -> None:
    point = policy("ada-k", {}, "ada-k").operating_point(load_model("mixtral-8x7b"))
    assert geometric_k(MEAN_K["ada-k"], SLOTS) == point.k_distribution


@pytest.mark.parametrize(
    ("mix", "mean", "spread"), [("geometric", 2.0, 1.3), ("ada-k", 1.4, 0.75), ("nulls", 2.0, 0.0)]
)
def test_ragged_mixes_keep_their_mean(mix: str, mean: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    routing = Routing.from_slots(*draw_slots(mix, 2, 16, 20_000, generator))
    found = routing.num_assignments / routing.num_tokens
    assert abs(found - mean) <= 4 * spread / 20_000**0.5


@pytest.mark.parametrize("mix", MIXES)
def test_no_token_visits_an_expert_twice(mix: str) -> None:
    routing = Routing.from_slots(*draw_slots(mix, 3, 9, 50, torch.Generator().manual_seed(2)))
    pairs = set(zip(routing.token_indices.tolist(), routing.expert_indices.tolist(), strict=True))
    assert len(pairs) == routing.num_assignments
    if mix in ("fixed", "k=8"):
        assert routing.experts_per_token().unique().tolist() == [8 if mix == "k=8" else 3]


def test_nulls_leave_tokens_with_no_expert_and_tokens_with_many() -> None:
    choice = draw_slots("nulls", 2, 8, 400, torch.Generator().manual_seed(3))
    per_token = Routing.from_slots(*choice).experts_per_token()
    assert per_token.min() == 0
    assert per_token.max() > 4
