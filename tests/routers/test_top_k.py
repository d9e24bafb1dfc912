"""Gate conventions, and the base router itself."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.routers.gate import (
    balance_factors,
    base_columns,
    gate_scores,
    limit_to_groups,
    mean_probabilities,
    slot_weights,
)
from moebench.routers.policy import policy
from moebench.routers.routing import Routing, build_routers
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec

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
@given(
    seed=st.integers(0, 999),
    shift=st.sampled_from([0.0, -5.0]),
    members=st.sampled_from([("best-two", 2), ("maximum", 1)]),
)
def test_the_group_limit_is_the_slow_definition_also_for_negative_scores(
    seed: int, shift: float, members: tuple[str, int]
) -> None:
    """DeepSeek-V3: a group is as good as its two best experts, V2: as its best; two of 4 stay."""
    gate = Gate("sigmoid", True, num_groups=4, top_k_groups=2, group_score=members[0])
    scores = torch.rand(3, 12, generator=torch.Generator().manual_seed(seed)) + shift
    limited = limit_to_groups(scores, gate)
    for token in range(3):
        groups = [
            sorted(scores[token, 3 * g : 3 * g + 3].tolist())[-members[1] :] for g in range(4)
        ]
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

    def loss(logits: torch.Tensor, chosen: torch.Tensor) -> float:
        return float(balance_factors(4, chosen) @ mean_probabilities(logits, RENORMALISED))

    assert loss(torch.zeros(8, 4), torch.arange(16).view(8, 2) % 4) == pytest.approx(1)
    collapsed = torch.tensor([[50.0, 0.0, 0.0, 0.0]]).expand(8, 4)
    assert loss(collapsed, torch.zeros(8, 1, dtype=torch.long)) == pytest.approx(4)


def test_deepseek_scores_do_not_depend_on_the_correction_bias(tiny: ModelSpec) -> None:
    gate = Gate("sigmoid", False, has_correction_bias=True)
    router = build_routers(policy("top-k"), replace(tiny, gate=gate), 1, torch.float32)[0].eval()
    router.start_from_base(torch.randn(4, 32), torch.tensor([5.0, 5.0, 0.0, 0.0]))
    scores, _ = router.scores(torch.randn(20, 32))
    routing = router.route(scores)
    assert routing.tokens_per_expert.tolist() == [20, 20, 0, 0]
    expected = gate_scores(scores, gate)[routing.token_indices, routing.expert_indices]
    torch.testing.assert_close(routing.weights, expected)


def test_a_correction_bias_is_added_to_probabilities_and_not_to_logits(tiny: ModelSpec) -> None:
    """Ernie 4.5 and LongCat, by hand: .6 + 0, .3 + 0, .08 + .3, .02 + 0 choose experts 0 and 2."""
    gate = Gate("softmax", True, has_correction_bias=True)
    router = build_routers(policy("top-k"), replace(tiny, gate=gate), 1, torch.float32)[0].eval()
    router.start_from_base(torch.randn(4, 32), torch.tensor([0.0, 0.0, 0.3, 0.0]))
    routing = router.route(torch.tensor([[0.6, 0.3, 0.08, 0.02]]).log())
    assert routing.expert_indices.tolist() == [0, 2]
    torch.testing.assert_close(routing.weights, torch.tensor([0.6, 0.08]) / 0.68)


@pytest.mark.parametrize(
    ("gate", "given_biases", "message"),
    [
        (RENORMALISED, {"bias": torch.zeros(4)}, "bias: found (4,), expected none"),
        (RENORMALISED, {"logit_bias": torch.zeros(4)}, "logit_bias: found (4,), expected none"),
        (Gate("sigmoid", True, has_correction_bias=True), {}, "bias: found none, expected (4,)"),
        (Gate("softmax", True, has_bias=True), {}, "logit_bias: found none, expected (4,)"),
    ],
)
def test_a_base_that_the_gate_cannot_express_is_refused(
    gate: Gate, given_biases: dict[str, torch.Tensor], message: str, tiny: ModelSpec
) -> None:
    router = build_routers(policy("top-k"), replace(tiny, gate=gate), 1, torch.float32)[0]
    with pytest.raises(ValueError) as error:
        router.start_from_base(torch.randn(4, 32), **given_biases)
    assert str(error.value) == f"{message} by the model's gate"


@pytest.mark.parametrize(
    "changes",
    [{"identity_experts": 2}, {"gate": Gate("softmax", True, not_described="SparseMixer")}],
)
def test_a_gate_with_more_to_it_is_refused(changes: dict[str, object], tiny: ModelSpec) -> None:
    with pytest.raises(ValueError, match="tiny: its gate is not executed"):
        build_routers(policy("top-k"), replace(tiny, **changes), 1, torch.float32)


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 300.0])
def test_of_equal_scores_the_first_column_wins_in_every_router(
    size: float, tiny: ModelSpec
) -> None:
    model = replace(tiny, num_experts=16, top_k=3)
    logits = torch.tensor([[size - 1, size + 1] + [size] * 14]).expand(5, 16)
    count = torch.nn.functional.one_hot(torch.full((5,), 2), 16) * 9.0  # three experts
    nulls = torch.full((5, 4), size - 0.5)
    for name, options, scores in (
        ("top-k", {}, logits),
        ("ada-k", {}, torch.cat((logits, count), dim=1)),
        ("adamoe", {"num_null_experts": 4, "top_k": 3}, torch.cat((logits, nulls), dim=1)),
        ("rmoe", {}, logits),
    ):
        router = build_routers(policy(name, options), model, 1, torch.float32)[0].eval()
        assert router.route(scores).slots[1].sort(dim=1).values.tolist() == [[1, 2, 3]] * 5


@pytest.mark.parametrize("slots", [2, 3, 7, 12])
def test_a_bases_own_choice_goes_before_others_of_equal_score(slots: int) -> None:
    """Random ties: the result is a best set, and torch.topk's own as far as that reaches."""
    scores = torch.randint(0, 4, (50, 12)).float()
    best, own = base_columns(scores, slots, base_top_k=3), scores.topk(3, dim=1).indices
    assert torch.equal(best[:, :3], own[:, : min(slots, 3)])
    assert all(len(set(row)) == slots for row in best.tolist())
    expected = scores.sort(dim=1, descending=True).values[:, :slots]
    assert torch.equal(scores.gather(1, best), expected)


def test_logits_of_a_bf16_model_are_made_in_fp32_where_its_gate_says_so(tiny: ModelSpec) -> None:
    gate = Gate("sigmoid", True, router_dtype="float32")
    router = build_routers(policy("top-k"), replace(tiny, gate=gate), 1, torch.bfloat16)[0].eval()
    x = torch.randn(7, 32, dtype=torch.bfloat16)
    scores, _ = router.scores(x)
    assert torch.equal(scores, x.float() @ router.weight.float().T)
    assert router(x)[0].weights.dtype == torch.bfloat16


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
