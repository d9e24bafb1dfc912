"""Parameter counts and means against the papers' own tables."""

from dataclasses import replace

import pytest

from moebench.routers.policy import policy
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec, load_model, scaled_down
from moebench.spec.ops import total_flops
from moebench.spec.parameters import router_parameters

MIXTRAL = load_model("mixtral-8x7b")


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("mixtral-8x7b", 1.05),
        ("mixtral-8x22b", 2.75),
        ("deepseek-moe-16b", 3.54),
        ("qwen1.5-moe-a2.7b", 2.95),
    ],
)
def test_ada_k_allocators_have_the_published_parameters(name: str, millions: float) -> None:
    """Yue et al., Table 2."""
    model = load_model(name)
    extra = policy("ada-k").parameters(model) - router_parameters(model)
    assert extra / 1e6 == pytest.approx(millions, abs=0.005)


def test_small_rmoe_has_the_published_router_parameters(tiny: ModelSpec) -> None:
    """Qiu et al., Table 1: 0.47 M for 8 layers of width 352 with 16 experts; 0.476 M unrounded."""
    model = replace(tiny, num_layers=8, hidden_size=352, num_experts=16)
    assert policy("rmoe").parameters(model) / 1e6 == pytest.approx(0.476, abs=0.0005)
    residual = policy("rmoe", {"residual": True})
    assert residual.parameters(model) - policy("rmoe").parameters(model) == 8 * 16 * 352


def test_adamoe_with_as_many_null_as_true_experts_doubles_the_router() -> None:
    assert policy("adamoe").parameters(MIXTRAL) == 2 * router_parameters(MIXTRAL)


def test_ada_k_adds_two_megaflop_per_token_to_mixtral() -> None:
    """Yue et al.: 2.1 MFLOP per token over all layers of Mixtral-8x7B."""
    extra = total_flops(policy("ada-k").ops(MIXTRAL, 1, "bfloat16")) - total_flops(
        policy("top-k").ops(MIXTRAL, 1, "bfloat16")
    )
    assert 32 * extra == pytest.approx(2.1e6, rel=0.01)


@pytest.mark.parametrize(
    ("router", "mean"), [("top-k", 2.0), ("ada-k", 1.40), ("adamoe", 1.66), ("rmoe", 2.0)]
)
def test_mixtral_routes_at_the_published_means(router: str, mean: float) -> None:
    point = policy(router).operating_point(MIXTRAL)
    assert point.mean_k == pytest.approx(mean, abs=1e-6)
    narrow = scaled_down(MIXTRAL, 16)
    assert policy(router).operating_point(narrow).mean_k == pytest.approx(mean, abs=1e-6)


def test_adamoe_never_leaves_a_token_more_experts_than_slots() -> None:
    distribution, _ = policy("adamoe").k_distribution(MIXTRAL)
    assert len(distribution) == 4
    assert distribution[0] > 0, "some tokens run no expert at all"


@pytest.mark.parametrize("router", ["ada-k", "adamoe"])
def test_a_mean_that_nobody_published_must_be_given(router: str, tiny: ModelSpec) -> None:
    with pytest.raises(ValueError, match="mean_k"):
        policy(router).operating_point(tiny)


@pytest.mark.parametrize(
    ("router", "options", "message"),
    [
        ("top-k", {"top_k": 5}, "top_k: found 5, expected 1 to num_experts = 4"),
        ("adamoe", {"num_null_experts": 0, "mean_k": 1.0}, "num_null_experts: found 0"),
        ("adamoe", {"top_k": 13, "mean_k": 1.0}, "top_k: found 13, expected 1 to 12"),
        ("adamoe", {"num_null_experts": 4}, "give mean_k"),
        ("ada-k", {"mean_k": 9.0}, "mean k: found 9.0"),
        ("rmoe", {"state": 3}, "did you mean 'state_size'"),
    ],
)
def test_impossible_options_say_what_was_found(
    router: str, options: dict[str, float], message: str, tiny: ModelSpec
) -> None:
    with pytest.raises(ValueError, match=message):
        policy(router, options).k_distribution(tiny)


def test_the_group_limit_bounds_how_many_experts_a_token_can_have(tiny: ModelSpec) -> None:
    gate = Gate(score="sigmoid", renormalise=True, num_groups=2, top_k_groups=1)
    limited = replace(tiny, gate=gate)
    with pytest.raises(ValueError, match="experts of the kept groups = 2"):
        policy("top-k", {"top_k": 3}).k_distribution(limited)
    assert len(policy("ada-k", {"mean_k": 1.5}).k_distribution(limited)[0]) == 3


def test_the_skewed_router_brings_its_own_skew(tiny: ModelSpec) -> None:
    assert policy("skewed", {"skew": 0.7}).operating_point(tiny, skew=0.0).skew == 0.7


def test_turns_in_order_touch_as_many_experts_as_can_be(tiny: ModelSpec) -> None:
    balanced = policy("balanced")
    point = balanced.operating_point(tiny)
    touched = [balanced.load(tiny, tokens, point).distinct_experts for tokens in (0, 1, 2, 9)]
    assert touched == [0, 2, 4, 4]
