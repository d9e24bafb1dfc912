"""Rivals without training: how many experts they run, by vectors of released code and by laws."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from moebench.routers.policy import policy
from moebench.routers.random_k.module import STEPS
from moebench.routers.routing import Router, build_routers
from moebench.routers.thresholds import ThresholdRouter, threshold_for
from moebench.routers.top_p.policy import TopP
from moebench.spec.case import OperatingPoint
from moebench.spec.model import ModelSpec, load_model

Z1, Z2, Z3 = [2.0, 1.0, 0.0, -1.0], [0.5, 0.4, 0.3, 0.2], [-1.0, 3.0, 3.0, 0.0]
RIVALS = ["top-p", "skip", "entropy-k", "random-k"]


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


def test_skipping_by_hand(tiny: ModelSpec) -> None:
    """Beta = 1/2: second experts of .3 against .5 stay, of .1 against .4 are skipped."""
    logits = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.4, 0.1, 0.1, 0.1]]).log()
    routing = rival(tiny, "skip", beta=0.5).route(logits)
    assert routing.experts_per_token().tolist() == [2, 1]
    weights = routing.slots[0]
    torch.testing.assert_close(weights, torch.tensor([[0.625, 0.375], [1.0, 0.0]]))


def test_a_second_expert_is_skipped_strictly_below_beta(tiny: ModelSpec) -> None:
    """The released code has p_2 < beta p_1; for z1 the ratio is exp(-1)."""
    router, z1 = rival(tiny, "skip"), torch.tensor([Z1])
    ratio = router.needs(z1)[0, 0]
    assert float(ratio) == pytest.approx(0.36788, abs=1e-5)
    for beta, k in ((ratio, 2), (torch.nextafter(ratio, torch.tensor(1.0)), 1)):
        router.thresholds.fill_(beta)
        assert counts(router, [Z1]) == [k]


def test_skipping_half_is_the_median_ratio(tiny: ModelSpec) -> None:
    """The paper's beta of a layer, from logits: exp(z_2 - z_1) is the ratio of probabilities."""
    router, scores = rival(tiny, "skip"), torch.randn(1001, 4)
    router.set_mean(scores, 1.5)
    best = scores.topk(2, dim=1).values
    ratios = (best[:, 1] - best[:, 0]).exp().sort().values
    assert ratios[499] < router.thresholds[0] <= ratios[501]


def test_entropy_adds_an_expert_for_every_so_many_nats(tiny: ModelSpec) -> None:
    """Four equal experts have log 4 nats, two log 2, a certain one 0: 1 + floor(H / t)."""
    logits = [[0.0] * 4, [0.0, 0.0, -90.0, -90.0], [0.0, -90.0, -90.0, -90.0]]
    assert counts(rival(tiny, "entropy-k", nats=0.6, max_k=4), logits) == [3, 2, 1]
    assert counts(rival(tiny, "entropy-k", nats=0.4, max_k=4), logits) == [4, 2, 1]
    assert counts(rival(tiny, "entropy-k", nats=0.6), logits) == [2, 2, 1], "at most max_k"


def test_random_counts_are_even_and_know_nothing_of_the_token(tiny: ModelSpec) -> None:
    """Uniform draws, without correlation to the token's best logit, layer, or seed."""
    build = lambda seed: build_routers(policy("random-k", {"seed": seed}), tiny, 2, torch.float32)  # noqa: E731
    scores = torch.randn(20_000, 4)
    own, other = (
        [router.needs(scores)[:, 0] + 1 for router in build(seed)]  # type: ignore[operator]
        for seed in (0, 1)
    )
    draws = torch.stack([*own, *other])
    assert float(draws.min()) >= 0 and float(draws.max()) < 1
    for draw in draws:
        tenths = torch.histc(draw, 10, 0, 1) / len(draw)
        assert float((tenths - 0.1).abs().max()) < 0.01, "5 standard deviations"
    seen = torch.stack((scores.amax(1), scores[:, 0], scores.softmax(1).square().sum(1)))
    correlations = torch.corrcoef(torch.cat((draws, seen)))[: len(draws)]
    assert float((correlations - torch.eye(4, 7)).abs().max()) < 0.035, "5 standard deviations"


def test_tokens_that_differ_by_one_step_of_the_hash_draw_independently(tiny: ModelSpec) -> None:
    """The difference of their draws, on a circle, has no direction: a linear hash has only one."""
    router = rival(tiny, "random-k")
    scores = torch.randint(-128, 128, (20_000, 4)) / STEPS
    step = torch.tensor([1 / STEPS, 0.0, 0.0, 0.0])
    turns = router.needs(scores + step)[:, 0] - router.needs(scores)[:, 0]
    direction = torch.polar(torch.ones(len(turns)), 2 * torch.pi * turns).mean()
    assert float(direction.abs()) < 0.035, "5 standard deviations"


def test_random_counts_are_those_below_and_above_the_mean(tiny: ModelSpec) -> None:
    router, scores = rival(tiny, "random-k", max_k=4), torch.randn(1000, 4)
    router.set_mean(scores, 2.3)
    assert torch.bincount(router.slots_of_token(scores)).tolist() == [0, 0, 700, 300]
    assert policy("random-k", {"mean_k": 2.25, "max_k": 4}).k_distribution(tiny)[0] == (
        *(0.0, 0.0, 0.75, 0.25),
    )


def test_a_random_count_survives_the_rounding_of_another_kernel(tiny: ModelSpec) -> None:
    """Relative errors of 1e-7 change the draw of fewer than one token in a thousand."""
    router, scores = rival(tiny, "random-k"), torch.randn(20_000, 4)
    changed = router.needs(scores) != router.needs(scores * (1 + 1e-7 * torch.randn(20_000, 4)))
    assert float(changed.float().mean()) < 1e-3


def test_a_layer_may_have_a_k_of_its_own(tiny: ModelSpec) -> None:
    fixed = policy("fixed-k", {"k": [1, 3]})
    routers = [router.eval() for router in build_routers(fixed, tiny, 2, torch.float32)]
    point, scores = fixed.operating_point(tiny), torch.randn(4096, 4)
    assert point.k_distribution == (0.0, 0.5, 0.0, 0.5)
    for router, k in zip(routers, (1, 3), strict=True):
        router.impose(scores, point)
        assert set(router.route(scores).experts_per_token().tolist()) == {k}
        with pytest.raises(ValueError, match="mean k is"):
            router.impose(scores, OperatingPoint((0.0, 0.5, 0.5), "imposed", "for a test"))
    assert fixed.load(tiny, 1, point).distinct_experts == pytest.approx(2)
    alone = [policy("fixed-k", {"k": [k]}) for k in (1, 3)]
    distinct = [one.load(tiny, 4, one.operating_point(tiny)).distinct_experts for one in alone]
    assert fixed.load(tiny, 4, point).distinct_experts == pytest.approx(sum(distinct) / 2)


def test_a_k_for_some_of_the_layers_is_refused(tiny: ModelSpec) -> None:
    with pytest.raises(ValueError, match="k: found 3 values, expected 1, or 2"):
        build_routers(policy("fixed-k", {"k": [1, 2, 1]}), tiny, 2, torch.float32)
    with pytest.raises(ValueError, match=r"k\[1\]: found 5, expected 1 to 4"):
        policy("fixed-k", {"k": [1, 5]}).k_distribution(tiny)


def test_the_same_k_in_every_layer_is_top_k(tiny: ModelSpec) -> None:
    scores = torch.randn(50, 4)
    found, expected = (
        build_routers(policy(name, options), tiny, 2, torch.float32)[1].eval().route(scores)
        for name, options in (("fixed-k", {"k": [1]}), ("top-k", {"top_k": 1}))
    )
    assert torch.equal(found.expert_indices, expected.expert_indices)
    assert torch.equal(found.weights, expected.weights)


def test_the_published_mean_of_skipping_is_of_two_experts() -> None:
    mixtral = load_model("mixtral-8x7b")
    assert policy("skip").operating_point(mixtral).mean_k == pytest.approx(1.5)
    with pytest.raises(ValueError, match="2 experts at most, found 4; give mean_k"):
        policy("skip", {"max_k": 4}).operating_point(mixtral)


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


def test_an_expert_runs_only_if_those_before_it_do(tiny: ModelSpec) -> None:
    """Needs that rise again count no further: of (-1, 5, 5) none, of (5, -1, 5) one."""

    class Given(ThresholdRouter):
        def needs(self, scores: torch.Tensor) -> torch.Tensor:
            return scores[:, :3]

    router = Given(tiny, TopP(max_k=4), torch.float32).eval()
    scores = torch.tensor([[-1.0, 5.0, 5.0, 0.0], [5.0, -1.0, 5.0, 0.0], [5.0, 5.0, 1.0, 0.0]])
    router.thresholds.fill_(0.0)
    assert router.slots_of_token(scores).tolist() == [1, 2, 4]
    router.set_mean(scores, 2.0)
    assert router.slots_of_token(scores).tolist() == [1, 2, 3]


def test_a_group_limit_caps_how_many(tiny: ModelSpec) -> None:
    grouped = replace(tiny, gate=replace(tiny.gate, num_groups=2, top_k_groups=1))
    with pytest.raises(ValueError, match="max_k: found 3, expected 2 to 2"):
        rival(grouped, "top-p", max_k=3)
