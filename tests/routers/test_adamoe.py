"""AdaMoE: null experts take slots and cost nothing."""

from dataclasses import replace

import pytest
import torch

from moebench.experts.backends import load_backend
from moebench.experts.weights import ExpertWeights
from moebench.routers.adamoe.module import AdaMoERouter
from moebench.routers.adamoe.policy import AdaMoE
from moebench.routers.auxiliary import auxiliary_loss
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec


@pytest.fixture
def router(tiny: ModelSpec) -> AdaMoERouter:
    return AdaMoERouter(tiny, AdaMoE(num_null_experts=3, top_k=3), torch.float32).eval()


def balance_loss(router: AdaMoERouter, logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The loss of a stack of this one layer."""
    return auxiliary_loss([router.balance_loss(logits, chosen)])


def test_weights_are_the_softmax_of_the_selected_true_logits(router: AdaMoERouter) -> None:
    """Section 3.4. Four true and three null columns; one null is among the best three."""
    logits = torch.tensor([[2.0, -1.0, 0.5, -3.0, 1.0, -4.0, -5.0]])
    routing = router.route(logits)
    assert routing.expert_indices.tolist() == [0, 2]
    torch.testing.assert_close(routing.weights, torch.tensor([2.0, 0.5]).softmax(0))


def test_a_base_that_does_not_renormalise_keeps_its_probabilities(tiny: ModelSpec) -> None:
    model = replace(tiny, gate=Gate("softmax", False))
    router = AdaMoERouter(model, AdaMoE(num_null_experts=3, top_k=3), torch.float32).eval()
    logits = torch.tensor([[2.0, -1.0, 0.5, -3.0, 1.0, -4.0, -5.0]])
    expected = logits[0, :4].softmax(0)[[0, 2]]
    torch.testing.assert_close(router.route(logits).weights, expected)


def test_an_all_null_token_has_no_assignment_and_a_finite_gradient(router: AdaMoERouter) -> None:
    logits = torch.tensor([[0.0] * 4 + [9.0] * 3, [9.0] * 4 + [0.0] * 3], requires_grad=True)
    routing = router.route(logits)
    assert routing.experts_per_token().tolist() == [0, 3]
    assert routing.tokens_per_expert.shape == (4,)
    (routing.weights * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_load_is_the_number_of_true_slots(router: AdaMoERouter) -> None:
    logits = torch.randn(50, 7)
    true_slots = sum(
        sum(column < 4 for column in row) for row in logits.topk(3, dim=1).indices.tolist()
    )
    assert router.route(logits).num_assignments == true_slots


def test_the_balance_loss_is_equation_6_written_out(router: AdaMoERouter) -> None:
    logits = torch.randn(20, 7)
    chosen = logits.topk(3, dim=1).indices
    f = [sum(i in row for row in chosen.tolist()) / 20 for i in range(7)]
    f[4:] = [sum(f[4:]) / 3] * 3
    p = logits.softmax(1).mean(0).tolist()
    expected = 0.02 * 7 * sum(a * b for a, b in zip(f, p, strict=True))
    assert float(balance_loss(router, logits, chosen)) == pytest.approx(expected, rel=1e-5)


def test_the_balance_loss_does_not_see_which_null_expert_is_taken(router: AdaMoERouter) -> None:
    """At fixed P. The released Mixtral code, which averages an empty slice, would fail this."""
    logits = torch.randn(6, 7)
    one_null = torch.tensor([[0, 1, 4]] * 6)
    split = torch.tensor([[0, 1, 4], [0, 1, 5], [0, 1, 6]] * 2)
    loss = balance_loss(router, logits, one_null)
    torch.testing.assert_close(balance_loss(router, logits, split), loss)
    true_split = torch.tensor([[0, 1, 4], [2, 3, 4]] * 3)
    assert not torch.isclose(balance_loss(router, logits, true_split), loss)


def test_the_balance_loss_does_not_depend_on_the_order_of_nulls(router: AdaMoERouter) -> None:
    logits = torch.randn(6, 7)
    order = torch.tensor([0, 1, 2, 3, 6, 4, 5])
    chosen, permuted = (x.topk(3, dim=1).indices for x in (logits, logits[:, order]))
    torch.testing.assert_close(
        balance_loss(router, logits[:, order], permuted), balance_loss(router, logits, chosen)
    )


@pytest.mark.parametrize("backend", ["loop", "grouped"])
def test_an_all_null_token_gets_exactly_zero_from_the_experts(
    backend: str, router: AdaMoERouter, tiny: ModelSpec
) -> None:
    weights = ExpertWeights(tiny, torch.float32)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter)
    routing = router.route(torch.tensor([[0.0] * 4 + [9.0] * 3, [9.0] * 4 + [0.0] * 3]))
    y = load_backend(backend)(torch.randn(2, tiny.hidden_size), routing, weights)
    assert torch.equal(y[0], torch.zeros(tiny.hidden_size))
    assert float(y[1].detach().abs().min()) > 0
