"""AdaMoE: null experts take slots and cost nothing."""

from dataclasses import replace

import pytest
import torch

from moebench.experts.backends import load_backend
from moebench.experts.weights import ExpertWeights
from moebench.routers.adamoe.module import AdaMoERouter, column_weights
from moebench.routers.adamoe.policy import AdaMoE
from moebench.routers.auxiliary import auxiliary_loss
from moebench.routers.routing import build_routers
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


def test_null_rows_learn_from_the_balance_loss_alone(tiny: ModelSpec) -> None:
    """No language-model loss reaches a null column, whatever the gate does with weights."""
    for renormalise in (True, False):
        model = replace(tiny, gate=Gate("softmax", renormalise))
        router = AdaMoERouter(model, AdaMoE(num_null_experts=3, top_k=3), torch.float32).train()
        x = torch.randn(50, tiny.hidden_size)
        routing, _ = router(x)
        assert routing.num_assignments < 150, "some nulls are chosen"
        (routing.weights * torch.randn(routing.num_assignments)).sum().backward(retain_graph=True)
        assert router.weight.grad is not None
        assert (router.weight.grad[4:] == 0).all()
        assert (router.weight.grad[:4] != 0).all()
        assert routing.aux_loss is not None
        auxiliary_loss([routing.aux_loss]).backward()
        assert (router.weight.grad[4:] != 0).all()


@pytest.mark.parametrize("target", [0.5, 3 * 4 / 7, 2.5])
def test_the_balance_loss_is_least_at_its_target_load(target: float, tiny: ModelSpec) -> None:
    """Logits of one token in common, to which choices in the same shares belong: no gradient.

    A load that is off is pushed back: with more true slots the gradient lowers true logits.
    """
    policy = AdaMoE(num_null_experts=3, top_k=3, target_loads=(target,))
    (router,) = build_routers(policy, tiny, 1, torch.float32)
    assert isinstance(router, AdaMoERouter)
    gradients = []
    for load in (target, target + 0.4, target - 0.4):
        shares = torch.tensor([load / 4] * 4 + [(3 - load) / 3] * 3)
        logits = shares.log().requires_grad_()
        true, null = router.weights_of_columns
        factors = 0.02 * 7 * shares * torch.tensor([true] * 4 + [null] * 3)
        (factors @ logits.softmax(0)).backward()
        assert logits.grad is not None
        gradients.append(logits.grad)
        if load == target:
            assert float(factors @ (shares / 3)) == pytest.approx(0.02 * 3, rel=1e-5)
    assert gradients[0].abs().max() < 1e-7
    assert (gradients[1][:4] > 0).all()
    assert (gradients[2][:4] < 0).all()


def test_the_target_of_perfect_balance_is_equation_6() -> None:
    assert column_weights(3 * 4 / 7, 3, 4, 3) == pytest.approx((1.0, 1.0))


def test_the_column_weights_are_in_the_balance_loss(router: AdaMoERouter) -> None:
    logits = torch.randn(20, 7)
    chosen = logits.topk(3, dim=1).indices
    router.weights_of_columns = (2.0, 0.0)
    f = [sum(i in row for row in chosen.tolist()) / 20 for i in range(4)]
    p = logits.softmax(1).mean(0).tolist()
    expected = 0.02 * 7 * 2 * sum(a * b for a, b in zip(f, p, strict=False))
    assert float(balance_loss(router, logits, chosen)) == pytest.approx(expected, rel=1e-5)


def test_target_loads_that_cannot_be_are_refused(tiny: ModelSpec) -> None:
    def built(loads: tuple[float, ...], **options: object) -> None:
        policy = AdaMoE(num_null_experts=3, top_k=3, target_loads=loads, **options)  # type: ignore[arg-type]
        build_routers(policy, tiny, 2, torch.float32)

    built((1.0, 2.0), aux_reduction="mean")
    with pytest.raises(ValueError, match="found 3, expected more than 0 and less than the 3 slots"):
        built((3.0,))
    with pytest.raises(ValueError, match="found 3, expected none, one, or one for each of 2"):
        built((1.0, 2.0, 1.0), aux_reduction="mean")
    with pytest.raises(ValueError, match="loads of two layers can cancel"):
        built((1.0, 2.0))
