"""Rivals without training: how many experts they run, by vectors of released code and by laws."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from moebench.routers.policy import policy
from moebench.routers.routing import Router, build_routers
from moebench.routers.thresholds import ThresholdRouter, threshold_for
from moebench.spec.case import OperatingPoint
from moebench.spec.model import ModelSpec

Z1, Z2, Z3 = [2.0, 1.0, 0.0, -1.0], [0.5, 0.4, 0.3, 0.2], [-1.0, 3.0, 3.0, 0.0]
RIVALS = ["top-p"]


def rival(model: ModelSpec, name: str, **options: Any) -> ThresholdRouter:
    router: Router = build_routers(policy(name, options), model, 1, torch.float32)[0].eval()
    assert isinstance(router, ThresholdRouter)
    return router


def counts(router: Router, logits: list[list[float]]) -> list[int]:
    return router.route(torch.tensor(logits)).experts_per_token().tolist()


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.3, [1, 2, 1]),
        (0.4, [1, 2, 1]),
        (0.6, [1, 3, 2]),
        (0.7, [2, 3, 2]),
        (0.95, [3, 4, 2]),
        (1.0, [4, 4, 4]),
    ],
)
def test_top_p_keeps_the_expert_that_crosses_p(
    p: float, expected: list[int], tiny: ModelSpec
) -> None:
    """What the released function (ZhenweiAn/Dynamic_MoE) printed for these logits."""
    assert counts(rival(tiny, "top-p", p=p, max_k=4), [Z1, Z2, Z3]) == expected


def test_top_p_with_the_papers_weights_does_not_renormalise(tiny: ModelSpec) -> None:
    """Released function: 0.64391 and 0.23688, which sum to 0.88080."""
    paper = rival(tiny, "top-p", p=0.7, weights="paper").route(torch.tensor([Z1]))
    torch.testing.assert_close(paper.weights, torch.tensor([0.64391, 0.23688]), atol=1e-5, rtol=0)
    base = rival(tiny, "top-p", p=0.7).route(torch.tensor([Z1]))
    assert float(base.weights.sum()) == pytest.approx(1)


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("mean", [1.0, 1.3, 2.0, 2.7, 4.0])
def test_a_mean_is_reached_to_one_token(name: str, mean: float, tiny: ModelSpec) -> None:
    router = rival(tiny, name, max_k=4)
    scores = torch.randn(1000, 4)
    router.set_mean(scores, mean)
    assert int(router.slots_of_token(scores).sum()) == round(1000 * mean)
    assert len(set(router.thresholds.tolist())) == 1, "one parameter"


@pytest.mark.parametrize("name", RIVALS)
def test_more_experts_never_remove_one(name: str, tiny: ModelSpec) -> None:
    """Sets are nested in the mean: what runs at a small one runs at every larger one."""
    router, scores = rival(tiny, name, max_k=4), torch.randn(500, 4)
    seen: set[tuple[int, int]] = set()
    for mean in (1.0, 1.2, 1.5, 2.0, 3.0, 3.9):
        router.set_mean(scores, mean)
        found = router.route(scores)
        pairs = set(zip(found.token_indices.tolist(), found.expert_indices.tolist(), strict=True))
        assert seen < pairs
        seen = pairs


@pytest.mark.parametrize("name", RIVALS)
def test_the_experts_are_the_bases_best(name: str, tiny: ModelSpec) -> None:
    router, scores = rival(tiny, name, max_k=4), torch.randn(200, 4)
    router.set_mean(scores, 2.2)
    routing, order = router.route(scores), scores.argsort(dim=1, descending=True)
    for token, k in enumerate(routing.experts_per_token().tolist()):
        own = routing.expert_indices[routing.token_indices == token]
        assert set(own.tolist()) == set(order[token, :k].tolist())


@pytest.mark.parametrize("name", RIVALS)
def test_a_distribution_of_k_is_imposed_count_by_count(name: str, tiny: ModelSpec) -> None:
    router, scores = rival(tiny, name, max_k=4), torch.randn(2000, 4)
    router.impose(scores, OperatingPoint((0.0, 0.4, 0.1, 0.2, 0.3), "imposed", "made for a test"))
    histogram = torch.bincount(router.slots_of_token(scores), minlength=5)
    assert histogram.tolist() == [0, 800, 200, 400, 600]


@pytest.mark.parametrize("name", RIVALS)
def test_impossible_means_and_caps_are_refused(name: str, tiny: ModelSpec) -> None:
    with pytest.raises(ValueError, match="max_k: found 1, expected 2 to 4"):
        rival(tiny, name, max_k=1)
    router = rival(tiny, name)
    with pytest.raises(ValueError, match="mean_k: found 2.5, expected 1 to max_k = 2"):
        router.set_mean(torch.randn(50, 4), 2.5)
    with pytest.raises(ValueError, match="stream of 0 tokens"):
        router.set_mean(torch.randn(0, 4), 1.5)
    none = OperatingPoint((0.5, 0.5), "imposed", "made for a test")
    with pytest.raises(ValueError, match="expected probabilities of 1 to 2"):
        router.impose(torch.randn(50, 4), none)


def test_tokens_of_equal_need_stay_together_on_the_nearer_side() -> None:
    needs = torch.tensor([5.0, 3.0, 3.0, 3.0, 1.0])

    def reaching(count: int) -> int:
        return int((needs >= threshold_for(needs, count)).sum())

    assert [reaching(count) for count in range(6)] == [0, 1, 1, 4, 4, 5]


def test_a_group_limit_caps_how_many(tiny: ModelSpec) -> None:
    grouped = replace(tiny, gate=replace(tiny.gate, num_groups=2, top_k_groups=1))
    with pytest.raises(ValueError, match="max_k: found 3, expected 2 to 2"):
        rival(grouped, "top-p", max_k=3)
