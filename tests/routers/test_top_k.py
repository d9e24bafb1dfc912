"""Gate conventions, and the base router itself."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.routers.gate import balance_loss, gate_scores, limit_to_groups, slot_weights
from moebench.routers.policy import policy
from moebench.routers.routing import Routing, build_routers
from moebench.spec.model import Gate, ModelSpec

RENORMALISED = Gate(score="softmax", renormalise=True)
RAW = Gate(score="softmax", renormalise=False)


@settings(deadline=None)
@given(seed=st.integers(0, 999), experts=st.integers(1, 64), scale=st.floats(0.01, 30.0))
def test_softmax_then_top_k_then_sum_is_top_k_then_softmax(
    seed: int, experts: int, scale: float
) -> None:
    logits = scale * torch.randn(5, experts, generator=torch.Generator().manual_seed(seed))
    top = logits.topk(max(1, experts // 3), dim=1)
    weights = slot_weights(logits, top.indices, RENORMALISED)
    torch.testing.assert_close(weights, top.values.softmax(1), atol=1e-6, rtol=1e-5)


@settings(deadline=None)
@given(seed=st.integers(0, 999), experts=st.integers(1, 64))
def test_without_renormalisation_the_weights_sum_to_the_kept_mass(seed: int, experts: int) -> None:
    logits = torch.randn(5, experts, generator=torch.Generator().manual_seed(seed))
    k = max(1, experts // 3)
    kept = logits.softmax(1).sort(dim=1, descending=True).values[:, :k].sum(1)
    weights = slot_weights(logits, logits.topk(k, dim=1).indices, RAW)
    torch.testing.assert_close(weights.sum(1), kept)


def test_sigmoid_gates_weigh_with_scores_and_scale() -> None:
    """Worked by hand: sigmoid(0) = 1/2 and sigmoid(log 3) = 3/4 share 2.5 as 2 to 3."""
    gate = Gate(score="sigmoid", renormalise=True, scale=2.5)
    logits = torch.tensor([[0.0, 3.0, -9.0]]).clamp(max=torch.tensor(3.0).log())
    weights = slot_weights(logits, torch.tensor([[1, 0]]), gate)
    torch.testing.assert_close(weights, torch.tensor([[1.5, 1.0]]))


@settings(deadline=None)
@given(seed=st.integers(0, 999), shift=st.sampled_from([0.0, -5.0]))
def test_the_group_limit_is_the_slow_definition_also_for_negative_scores(
    seed: int, shift: float
) -> None:
    """DeepSeek-V3: a group is as good as its two best experts; the best two of four stay."""
    gate = Gate(score="sigmoid", renormalise=True, num_groups=4, top_k_groups=2)
    scores = torch.rand(3, 12, generator=torch.Generator().manual_seed(seed)) + shift
    limited = limit_to_groups(scores, gate)
    for token in range(3):
        groups = [sorted(scores[token, 3 * g : 3 * g + 3].tolist())[-2:] for g in range(4)]
        ranked = sorted(range(4), key=lambda g: -sum(groups[g]))
        for expert in range(12):
            is_kept = expert // 3 in ranked[:2]
            expected = scores[token, expert] if is_kept else -torch.inf
            assert limited[token, expert] == expected


def test_a_selection_bias_chooses_and_does_not_weigh(tiny: ModelSpec) -> None:
    router = build_routers(policy("top-k"), tiny, 1, torch.float32)[0].eval()
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    router.selection_bias.copy_(torch.tensor([0.0, 0.0, 0.0, 9.0]))
    routing = router.route(logits)
    assert routing.expert_indices.tolist() == [0, 3]
    torch.testing.assert_close(routing.weights, torch.tensor([3.0, 0.0]).softmax(0))


def test_the_balance_loss_is_one_at_balance_and_n_at_collapse() -> None:
    """Switch: N sum f P, with f the share of assignments."""
    even = torch.zeros(8, 4)
    turns = torch.arange(16).view(8, 2) % 4
    assert float(balance_loss(even, turns, RENORMALISED)) == pytest.approx(1)
    collapsed = torch.tensor([[50.0, 0.0, 0.0, 0.0]]).expand(8, 4)
    one = torch.zeros(8, 1, dtype=torch.long)
    assert float(balance_loss(collapsed, one, RENORMALISED)) == pytest.approx(4)


def test_deepseek_scores_do_not_depend_on_the_correction_bias(tiny: ModelSpec) -> None:
    gate = Gate("sigmoid", False, has_correction_bias=True)
    router = build_routers(policy("top-k"), replace(tiny, gate=gate), 1, torch.float32)[0].eval()
    router.start_from_base(torch.randn(4, 32), torch.tensor([5.0, 5.0, 0.0, 0.0]))
    scores, _ = router.scores(torch.randn(20, 32))
    routing = router.route(scores)
    assert routing.tokens_per_expert.tolist() == [20, 20, 0, 0]
    expected = gate_scores(scores, gate)[routing.token_indices, routing.expert_indices]
    torch.testing.assert_close(routing.weights, expected)


def test_flattening_keeps_token_order_within_an_expert() -> None:
    weights = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    experts = torch.tensor([[1, 0], [0, 1], [1, 2]])
    keep = torch.tensor([[True, False], [True, True], [True, False]])
    routing = Routing.from_slots(weights, experts, 4, keep)
    assert routing.token_indices.tolist() == [1, 0, 1, 2]
    assert routing.expert_indices.tolist() == [0, 1, 1, 1]
    torch.testing.assert_close(routing.weights, torch.tensor([0.3, 0.1, 0.4, 0.5]))
    assert routing.tokens_per_expert.tolist() == [1, 3, 0, 0]
    assert routing.experts_per_token().tolist() == [1, 2, 1]
