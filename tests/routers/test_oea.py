"""OEA: a batch loads what its tokens choose for themselves, and every token may use all of it."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from moebench.routers.oea.module import OEARouter
from moebench.routers.oea.policy import OEA, expected_slots
from moebench.routers.routing import Routing
from moebench.routers.top_k.module import TopKRouter
from moebench.spec.model import ModelSpec


@pytest.fixture
def wide(tiny: ModelSpec) -> ModelSpec:
    return tiny.__class__(**{**vars(tiny), "num_experts": 16, "top_k": 4})


def built(model: ModelSpec, own_k: int) -> OEARouter:
    return OEARouter(model, OEA(own_k=own_k), torch.float32).eval()


def experts(routing: Routing, token: int) -> set[int]:
    return set(routing.expert_indices[routing.token_indices == token].tolist())


def by_definition(logits: Tensor, batches: list[list[int]], own_k: int, top_k: int) -> list[set]:
    """Experts of each token, chosen one after another."""
    preferred = logits.argsort(1, descending=True).tolist()
    chosen: list[set] = [set(row[:own_k]) for row in preferred]
    for batch in batches:
        loaded = set().union(*(set(preferred[token][:own_k]) for token in batch))
        for token in batch:
            usable = [expert for expert in preferred[token] if expert in loaded]
            chosen[token] = set(usable[:top_k])
    return chosen


@pytest.mark.parametrize(("num_steps", "positions"), [(1, 1), (1, 3), (4, 1), (2, 3)])
def test_every_token_runs_its_best_experts_among_those_its_batch_chose(
    wide: ModelSpec, num_steps: int, positions: int
) -> None:
    router, logits = built(wide, 1), torch.randn(24, 16)
    router.num_steps, router.positions = num_steps, positions
    each = 24 // num_steps
    batches = [
        [token for token in range(24) if (token // each, token % positions) == place]
        for place in product(range(num_steps), range(positions))
    ]
    expected = by_definition(logits, batches, 1, 4)
    routing = router.route(logits)
    assert [experts(routing, token) for token in range(24)] == expected
    for token in range(24):
        weights = routing.weights[routing.token_indices == token]
        assert float(weights.sum()) == pytest.approx(1), "renormalised over what runs"
    bounded = router.route(logits, bounded=True)
    assert torch.equal(bounded.tokens_per_expert, routing.tokens_per_expert)


def test_a_batch_loads_exactly_what_its_tokens_choose_for_themselves(wide: ModelSpec) -> None:
    router, logits = built(wide, 2), torch.randn(4, 16)
    loaded = set(router.route(logits).expert_indices.tolist())
    assert loaded == set(logits.topk(2, dim=1).indices.flatten().tolist())


def test_with_all_experts_its_own_it_is_top_k(wide: ModelSpec) -> None:
    router, x = built(wide, 4), torch.randn(9, 32)
    top_k = TopKRouter(wide, 4, router.weight).eval()
    own, base = router(x)[0], top_k(x)[0]
    assert torch.equal(own.expert_indices, base.expert_indices)
    torch.testing.assert_close(own.weights, base.weights)


def test_a_token_alone_runs_its_own_experts_only(wide: ModelSpec) -> None:
    router, x = built(wide, 3), torch.randn(1, 32)
    top_3 = TopKRouter(wide, 3, router.weight).eval()
    assert torch.equal(router(x)[0].expert_indices, top_3(x)[0].expert_indices)


def test_steps_of_a_stream_route_as_if_each_came_alone(wide: ModelSpec) -> None:
    router, logits = built(wide, 1), torch.randn(12, 16)
    together = router.route_steps(logits, 4)
    for step in range(4):
        alone = router.route(logits[3 * step : 3 * step + 3])
        for token in range(3):
            assert experts(together, 3 * step + token) == experts(alone, token)
    assert router.num_steps == 1


def test_tokens_that_do_not_fill_the_batches_are_refused(wide: ModelSpec) -> None:
    router = built(wide, 1)
    router.positions = 5
    with pytest.raises(ValueError, match="found 12 tokens, expected a multiple"):
        router.route(torch.randn(12, 16))
    with pytest.raises(ValueError, match="own_k: found 5, expected 1 to top_k = 4"):
        OEA(own_k=5).own_experts_per_token(wide)


@pytest.mark.parametrize(("num_tokens", "own_k"), [(1, 2), (2, 2), (3, 1), (3, 2)])
def test_the_expected_slots_are_those_of_all_equally_likely_choices(
    num_tokens: int, own_k: int
) -> None:
    """Four experts, top-3: every way in which tokens choose `own_k` of them, counted."""
    sets = [set(s) for s in product(range(4), repeat=own_k) if len(set(s)) == own_k]
    ways = [len(set().union(*chosen)) for chosen in product(sets, repeat=num_tokens)]
    mean = math.fsum(min(3, way) for way in ways) / len(ways)
    assert expected_slots(num_tokens, (own_k, 3), (4.0, 4.0)) == pytest.approx(mean)
