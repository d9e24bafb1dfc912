"""The solver that brings a router to its operating point, and what a stream looks like there."""

from dataclasses import replace

import pytest
import torch

from moebench.routers.operating_point import (
    check_point,
    distances_to_choice,
    k_histogram,
    lag1_correlation,
    shift_to_target,
    step_loads,
    whole_counts,
)
from moebench.routers.policy import policy
from moebench.routers.routing import Router, Routing, build_routers
from moebench.spec.case import OperatingPoint
from moebench.spec.model import ModelSpec


def router_and_scores(
    model: ModelSpec, name: str, tokens: int, dtype: torch.dtype = torch.float32, **options: float
) -> tuple[Router, torch.Tensor, OperatingPoint]:
    chosen = policy(name, options)
    router = build_routers(chosen, model, 1, dtype)[0].eval()
    scores, _ = router.scores(torch.randn(tokens, model.hidden_size).to(dtype))
    return router, scores.detach(), chosen.operating_point(model)


@pytest.mark.parametrize(
    ("name", "options"),
    [("top-k", {}), ("ada-k", {"mean_k": 5.16}), ("adamoe", {"mean_k": 6.64, "top_k": 10})],
)
@pytest.mark.parametrize("num_experts", [64, 128])
def test_many_experts_are_balanced_over_a_stream_in_bfloat16(
    tiny: ModelSpec, name: str, options: dict[str, float], num_experts: int
) -> None:
    model = replace(tiny, num_experts=num_experts, top_k=8)
    router, scores, point = router_and_scores(model, name, 4096, torch.bfloat16, **options)
    router.impose(scores, point)
    routing = router.route(scores)
    assert routing.num_assignments / 4096 == pytest.approx(point.mean_k, rel=0.01)
    loads = routing.tokens_per_expert
    assert float((loads / loads.double().mean() - 1).abs().max()) <= 0.03


def test_a_skewed_point_makes_experts_popular_by_a_power_law(tiny: ModelSpec) -> None:
    """Expert e of 16 has a marginal proportional to 1 / (e + 1) where no cap is reached."""
    model = replace(tiny, num_experts=16)
    router, scores, point = router_and_scores(model, "top-k", 4096, top_k=1)
    router.impose(scores, replace(point, skew=1.0))
    marginals = router.route(scores).tokens_per_expert / 4096
    law = 1 / torch.arange(1, 17)
    torch.testing.assert_close(marginals, law / law.sum(), rtol=0.03, atol=0)


def test_imposing_twice_gives_the_same_biases(tiny: ModelSpec) -> None:
    router, scores, point = router_and_scores(tiny, "ada-k", 4096, mean_k=1.4)
    seen = []
    for _ in range(2):
        router.impose(scores, point)
        seen.append([buffer.clone() for buffer in router.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_a_stream_that_cannot_balance_is_refused(tiny: ModelSpec) -> None:
    """Six tokens cannot share four experts evenly."""
    router, scores, point = router_and_scores(tiny, "top-k", 6, top_k=1)
    with pytest.raises(ValueError, match="stream of 6 tokens and 4 experts.*0.667 to 1.333"):
        router.impose(scores, point)
    assert sorted(router.route(scores).tokens_per_expert.tolist()) == [1, 1, 2, 2]


@pytest.mark.parametrize(("rare", "is_accepted"), [(4, True), (5, False)])
def test_a_rare_expert_may_be_off_by_one_token(rare: int, is_accepted: bool) -> None:
    """Of 1,003 tokens 3.2 should run it: 4 is 25 % more, and no token from it."""
    experts = torch.tensor([0] * rare + [1] * (503 - rare) + [2] * 500)[:, None]
    routing = Routing.from_slots(torch.ones(1003, 1), experts, 3)
    point = OperatingPoint(
        (0.0, 1.0), "imposed", "made for a test", expert_shares=(3.2, 499.9, 499.9)
    )
    if is_accepted:
        check_point(routing, point)
    else:
        with pytest.raises(ValueError, match="operating point not reached"):
            check_point(routing, point)


@pytest.mark.parametrize("name", ["top-k", "balanced", "rmoe"])
def test_a_fixed_k_cannot_be_brought_to_another_mean(tiny: ModelSpec, name: str) -> None:
    router, scores, _ = router_and_scores(tiny, name, 512)
    with pytest.raises(ValueError, match="mean k is 2, expected 1.5"):
        router.impose(scores, OperatingPoint((0.0, 0.5, 0.5), "imposed", "made for a test"))


def test_ada_k_refuses_tokens_without_an_expert(tiny: ModelSpec) -> None:
    router, scores, _ = router_and_scores(tiny, "ada-k", 512, mean_k=1.5)
    with pytest.raises(ValueError, match="expected probabilities of 1 to 4"):
        router.impose(scores, OperatingPoint((0.5, 0.5), "imposed", "made for a test"))


def test_a_margin_says_what_a_score_must_still_beat() -> None:
    """One token of two slots, one of none: 5 and 3 are in, 4th best of nothing never is."""
    scores = torch.tensor([[5.0, 1.0, 3.0], [5.0, 1.0, 3.0]])
    margins, selected = distances_to_choice(scores, torch.tensor([2, 0]))
    assert selected.tolist() == [[True, False, True], [False, False, False]]
    assert margins[0].tolist() == [4.0, -2.0, 2.0]
    assert (margins[1] == -torch.inf).all()


def test_a_shift_leaves_exactly_the_target_above_zero() -> None:
    margins = torch.randn(6, 50)
    targets = torch.tensor([0, 1, 10, 25, 49, 50])
    shift = shift_to_target(margins, targets, spread=1.0)
    above = (margins + shift[:, None] > 0).sum(1)
    assert above[1:].tolist() == targets[1:].tolist()
    assert shift[0] == 0


def test_whole_counts_keep_the_sum_and_are_within_one() -> None:
    shares = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    counts = whole_counts(shares, 11)
    assert int(counts.sum()) == 11
    assert float((counts - 11 * shares).abs().max()) < 1


@pytest.fixture
def routing() -> Routing:
    """Four tokens with 1, 2, 0 and 2 of three experts."""
    return Routing.from_slots(
        torch.ones(4, 2),
        torch.tensor([[0, 1], [0, 1], [0, 1], [0, 2]]),
        3,
        torch.tensor([[True, False], [True, True], [False, False], [True, True]]),
    )


def test_what_a_stream_looks_like_by_hand(routing: Routing) -> None:
    assert k_histogram(routing) == (0.25, 0.25, 0.5)
    assert routing.tokens_per_expert.tolist() == [3, 1, 1]
    assert step_loads(routing, 4).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert step_loads(routing, 2).tolist() == [[2, 1, 0], [1, 0, 1]]
    with pytest.raises(ValueError, match="found 3, expected a divisor of 4 tokens"):
        step_loads(routing, 3)


def test_lag_1_correlation_is_that_of_consecutive_counts(routing: Routing) -> None:
    """K is 1, 2, 0, 2: the pairs (1, 2), (2, 0), (0, 2) correlate by -sqrt(3) / 2."""
    assert lag1_correlation(routing) == pytest.approx(-(3**0.5) / 2)
    constant = Routing.from_slots(torch.ones(9, 1), torch.zeros(9, 1, dtype=torch.long), 3)
    assert lag1_correlation(constant) is None


def test_checking_a_point_notices_imbalance_at_the_right_mean() -> None:
    lopsided = Routing.from_slots(torch.ones(100, 1), torch.zeros(100, 1, dtype=torch.long), 2)
    with pytest.raises(ValueError, match="0.000 to 2.000 of their share"):
        check_point(lopsided, OperatingPoint((0.0, 1.0), "imposed", "made for a test"))
