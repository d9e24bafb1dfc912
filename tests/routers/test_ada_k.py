"""Ada-K: the allocator counts, the base router chooses."""

from dataclasses import replace

import pytest
import torch

from moebench.routers.ada_k.module import AdaKRouter
from moebench.routers.ada_k.policy import AdaK
from moebench.routers.auxiliary import auxiliary_loss
from moebench.routers.policy import policy
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec


@pytest.fixture
def router(tiny: ModelSpec) -> AdaKRouter:
    return AdaKRouter(tiny, AdaK(), dtype=torch.float32).eval()


def regulariser(router: AdaKRouter, scores: torch.Tensor) -> torch.Tensor:
    """The loss of a stack of this one layer."""
    return auxiliary_loss([router.expected_count_loss(scores)])


def test_the_allocator_says_how_many_and_the_router_which(router: AdaKRouter) -> None:
    """Three tokens with the same router logits and the allocator at 1, 3 and 4 experts."""
    router_logits = torch.tensor([0.0, 3.0, 1.0, 2.0]).expand(3, 4)
    allocator = torch.full((3, 4), -1.0)
    allocator[torch.arange(3), torch.tensor([0, 2, 3])] = 1.0
    routing = router.route(torch.cat((router_logits, allocator), dim=1))
    visited = [
        set(routing.expert_indices[routing.token_indices == token].tolist()) for token in range(3)
    ]
    assert visited == [{1}, {1, 2, 3}, {0, 1, 2, 3}]
    for token in range(3):
        assert float(routing.weights[routing.token_indices == token].sum()) == pytest.approx(1)


def test_no_token_is_left_without_an_expert(router: AdaKRouter) -> None:
    routing, _ = router(torch.randn(200, 32))
    assert int(routing.experts_per_token().min()) >= 1


def test_the_regulariser_is_the_mean_expected_count(router: AdaKRouter) -> None:
    """Equation 10 as a double sum over two layers, with lambda = 3e-3."""
    scores = [torch.randn(5, 8), torch.randn(5, 8)]
    rows = torch.cat(scores)[:, 4:].softmax(1).tolist()
    expected = sum(n * a for row in rows for n, a in enumerate(row, start=1)) / 5
    loss = auxiliary_loss([router.expected_count_loss(layer) for layer in scores])
    assert float(loss) == pytest.approx(3e-3 / 2 * expected)


def test_the_regularisers_gradient_is_that_of_finite_differences(router: AdaKRouter) -> None:
    router.double()
    scores = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda scores: regulariser(router, scores), scores, eps=1e-3), (
        "logits are fp32, whose rounding smaller steps would see"
    )


def test_the_regulariser_reaches_only_the_allocator(router: AdaKRouter) -> None:
    scores, _ = router.scores(torch.randn(16, 32))
    regulariser(router, scores).backward()
    assert router.weight.grad is not None
    assert not router.weight.grad.any()
    assert router.allocator.grad is not None
    assert router.allocator.grad.any()


def test_a_frozen_base_router_gets_no_gradient(router: AdaKRouter) -> None:
    """The paper trains the allocators alone."""
    router.weight.requires_grad_(False)
    routing, _ = router.train()(torch.randn(16, 32))
    assert routing.aux_loss is not None
    auxiliary_loss([routing.aux_loss]).backward()
    assert router.weight.grad is None
    assert router.allocator.grad is not None


@pytest.mark.parametrize(
    ("weights", "expected"), [("base", [0.5, 0.25]), ("paper", [2 / 3, 1 / 3])]
)
def test_equation_2_renormalises_where_the_base_does_not(
    weights: str, expected: list[float], tiny: ModelSpec
) -> None:
    model = replace(tiny, gate=Gate("softmax", renormalise=False))
    router = AdaKRouter(model, AdaK(weights=weights), dtype=torch.float32).eval()
    router_logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    two = torch.tensor([[0.0, 9.0, 0.0, 0.0]])
    routing = router.route(torch.cat((router_logits, two), dim=1))
    torch.testing.assert_close(routing.weights, torch.tensor(expected))


def test_the_mean_is_the_papers_where_it_reports_one(tiny: ModelSpec) -> None:
    with pytest.raises(ValueError, match="no published mean k for 'tiny'"):
        policy("ada-k").k_distribution(tiny)
