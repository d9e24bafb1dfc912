"""RMoE: a state that goes up through the layers and nowhere else."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moebench.experts.backends import load_backend
from moebench.experts.weights import ExpertWeights
from moebench.routers.auxiliary import auxiliary_loss
from moebench.routers.rmoe.module import RMoERouter
from moebench.routers.rmoe.policy import RMoE
from moebench.routers.routing import build_routers
from moebench.spec.model import ModelSpec


def stack(model: ModelSpec, layers: int = 3, **options: object) -> list[RMoERouter]:
    routers = build_routers(RMoE(state_size=16, **options), model, layers, torch.float32)
    return [router for router in routers if isinstance(router, RMoERouter)]


def run(routers: list[RMoERouter], xs: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    state, logits = None, []
    for router, x in zip(routers, xs, strict=True):
        score, state = router.scores(x, state)
        logits.append(score)
    assert state is not None
    return logits, state


def test_the_logits_are_equations_4_to_6_written_out(tiny: ModelSpec) -> None:
    """The cell with its gates spelled out, in torch's order reset, update, candidate."""
    routers, xs = stack(tiny), [torch.randn(5, 32) for _ in range(3)]
    cell = routers[0].cell
    wir, wiz, win = cell.weight_ih.chunk(3)
    whr, whz, whn = cell.weight_hh.chunk(3)
    bir, biz, bin_ = cell.bias_ih.chunk(3)
    bhr, bhz, bhn = cell.bias_hh.chunk(3)
    h = torch.zeros(5, 16)
    logits, state = run(routers, xs)
    for router, x, got in zip(routers, xs, logits, strict=True):
        p = x @ router.projection.T
        r = torch.sigmoid(p @ wir.T + bir + h @ whr.T + bhr)
        u = torch.sigmoid(p @ wiz.T + biz + h @ whz.T + bhz)
        n = torch.tanh(p @ win.T + bin_ + r * (h @ whn.T + bhn))
        h = (1 - u) * n + u * h
        torch.testing.assert_close(got, h @ router.recurrent_gate.T, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state, h, atol=1e-5, rtol=1e-4)


def test_the_first_layer_starts_from_zeros(tiny: ModelSpec) -> None:
    router, x = stack(tiny)[0], torch.randn(5, 32)
    torch.testing.assert_close(router.scores(x)[0], router.scores(x, torch.zeros(5, 16))[0])


def test_all_layers_share_one_cell_and_nothing_else(tiny: ModelSpec) -> None:
    routers = stack(tiny)
    assert len({id(router.cell) for router in routers}) == 1
    assert len({id(router.projection) for router in routers}) == 3
    assert len({id(router.recurrent_gate) for router in routers}) == 3


def test_permuting_tokens_permutes_logits_and_state(tiny: ModelSpec) -> None:
    routers, xs = stack(tiny), [torch.randn(7, 32) for _ in range(3)]
    order = torch.randperm(7)
    logits, state = run(routers, xs)
    permuted, permuted_state = run(routers, [x[order] for x in xs])
    torch.testing.assert_close(permuted[2], logits[2][order])
    torch.testing.assert_close(permuted_state, state[order])


def test_gradients_go_down_through_the_states(tiny: ModelSpec) -> None:
    """The state is not detached: the last layer's logits teach the first layer's projection."""
    routers = stack(tiny)
    logits, _ = run(routers, [torch.randn(7, 32) for _ in range(3)])
    logits[2].square().sum().backward()
    assert routers[0].projection.grad is not None
    assert routers[0].projection.grad.any()
    assert routers[0].recurrent_gate.grad is None


def test_the_residual_form_learns_its_gate_at_once(tiny: ModelSpec) -> None:
    """G = 0 at the start: gradients reach G, and the projection only once G has moved."""
    (router,) = stack(tiny, 1, residual=True)
    router.start_from_base(torch.randn(4, 32))
    router.scores(torch.randn(9, 32))[0].square().sum().backward()
    assert router.recurrent_gate.grad is not None
    assert router.recurrent_gate.grad.any()
    assert router.projection.grad is not None
    assert not router.projection.grad.any()


@pytest.mark.parametrize("layers", [1, 8])
def test_logits_of_normed_inputs_have_about_unit_variance(tiny: ModelSpec, layers: int) -> None:
    """With the paper's state of 128; nobody benefits from a router that starts saturated."""
    model = replace(tiny, hidden_size=352, num_experts=64)
    routers = build_routers(RMoE(), model, layers, torch.float32)
    logits, _ = run(routers, [torch.randn(256, 352) for _ in range(layers)])  # type: ignore[arg-type]
    assert 0.7 < float(logits[-1].detach().std()) < 1.3


def test_without_recurrence_the_state_below_does_not_matter(tiny: ModelSpec) -> None:
    x, state = torch.randn(5, 32), torch.randn(5, 16)
    for recurrence, matters in (("gru", True), ("tanh", True), ("none", False)):
        router = stack(tiny, 1, recurrence=recurrence)[0]
        alone, beside = router.scores(x)[0], router.scores(x, state)[0]
        assert torch.equal(alone, beside) != matters


def test_the_tanh_cell_is_its_equation(tiny: ModelSpec) -> None:
    router, x, h = stack(tiny, 1, recurrence="tanh")[0], torch.randn(5, 32), torch.randn(5, 16)
    cell = router.cell
    inner = x @ router.projection.T @ cell.weight_ih.T + cell.bias_ih
    expected = torch.tanh(inner + h @ cell.weight_hh.T + cell.bias_hh)
    torch.testing.assert_close(router.scores(x, h)[1], expected, atol=1e-5, rtol=1e-4)


def test_a_detached_state_teaches_no_layer_below(tiny: ModelSpec) -> None:
    """Logits are unchanged, and the projection of the layer below has no gradient from them."""
    xs = [torch.randn(7, 32) for _ in range(2)]
    seen = []
    for detached in (False, True):
        torch.manual_seed(3)
        routers = stack(tiny, 2, detached=detached)
        logits, _ = run(routers, xs)
        logits[1].square().sum().backward()
        assert (routers[0].projection.grad is None) == detached
        assert routers[1].projection.grad is not None
        seen.append(logits[1])
    assert torch.equal(*seen)


def test_a_shared_projector_is_one_parameter(tiny: ModelSpec) -> None:
    routers = stack(tiny, shared_projector=True)
    assert len({id(router.projection) for router in routers}) == 1
    assert len({id(router.recurrent_gate) for router in routers}) == 3


def test_a_token_whose_slots_are_all_null_gets_exactly_zero(tiny: ModelSpec) -> None:
    """RMoE's logits under AdaMoE's choice: rows of nulls that win for some tokens by far."""
    router = stack(tiny, 1, num_null_experts=4)[0].eval()
    weights = ExpertWeights(tiny, torch.float32)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(64, 32)
    logits, _ = router.scores(x)
    chosen = logits.topk(3, dim=1).indices
    routing, _ = router(x)
    true_slots = (chosen < 4).sum(1)
    assert routing.experts_per_token().tolist() == true_slots.tolist()
    with torch.no_grad():
        router.recurrent_gate[4:] *= 50
    routing, _ = router(x)
    is_idle = routing.experts_per_token() == 0
    assert is_idle.any()
    assert not is_idle.all()
    y = load_backend("loop")(x, routing, weights).detach()
    assert (y[is_idle] == 0).all()
    assert (y[~is_idle].abs().amax(1) > 0).all()


def test_the_balance_loss_over_null_experts_is_equation_6_with_rmoes_coefficient(
    tiny: ModelSpec,
) -> None:
    (router,) = stack(tiny, 1, num_null_experts=3)
    logits = torch.randn(20, 7)
    chosen = logits.topk(3, dim=1).indices
    f = [sum(i in row for row in chosen.tolist()) / 20 for i in range(7)]
    f[4:] = [sum(f[4:]) / 3] * 3
    p = logits.softmax(1).mean(0).tolist()
    expected = 0.01 * 7 * sum(a * b for a, b in zip(f, p, strict=True))
    loss = auxiliary_loss([router.balance_loss(logits, chosen)])
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_null_experts_are_for_training_from_scratch() -> None:
    with pytest.raises(ValueError, match="residual: found true with null experts"):
        RMoE(residual=True, num_null_experts=4)
    with pytest.raises(ValueError, match="num_null_experts: found -1, expected 0 to"):
        RMoE(num_null_experts=-1)
