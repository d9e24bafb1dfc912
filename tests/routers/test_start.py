"""Plugged into a pretrained model, every adaptive router starts as that model, to the bit."""

from dataclasses import replace

import pytest
import torch

from moebench.routers.policy import policy
from moebench.routers.routing import Router, build_routers
from moebench.spec.model import Gate, ModelSpec

BASES = {
    "mixtral": (8, 2, Gate("softmax", True)),
    "qwen3": (64, 8, Gate("softmax", True)),
    "olmoe": (64, 8, Gate("softmax", False)),
    "deepseek-v3": (
        32,
        4,
        Gate("sigmoid", True, 2.5, num_groups=4, top_k_groups=2, has_correction_bias=True),
    ),
}


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest, tiny: ModelSpec) -> ModelSpec:
    num_experts, top_k, gate = BASES[request.param]
    return replace(tiny, num_experts=num_experts, top_k=top_k, gate=gate)


def exact(shape: tuple[int, ...], step: float, largest: int) -> torch.Tensor:
    """Multiples of `step`, so coarse that dot products are exact whatever order a kernel adds in.

    A plug-in's matrix is wider than the base router's, and a wider product may round differently.
    """
    return step * torch.randint(-largest, largest + 1, shape)


def plug_in(name: str, base: ModelSpec, dtype: torch.dtype = torch.float32) -> Router:
    options = {
        "top-k": {},
        "ada-k": {},
        "adamoe": {"top_k": base.top_k + 2, "num_null_experts": 5},
        "rmoe": {"residual": True},
    }[name]
    return build_routers(policy(name, options), base, 1, dtype)[0]


@pytest.mark.parametrize("name", ["ada-k", "adamoe", "rmoe"])
def test_step_zero_is_the_base_model_to_the_bit(name: str, base: ModelSpec) -> None:
    weight = exact((base.num_experts, base.hidden_size), 2**-13, 2**12)
    bias = 0.1 * torch.randn(base.num_experts) if base.gate.has_correction_bias else None
    original, plugged = plug_in("top-k", base), plug_in(name, base)
    x = exact((300, base.hidden_size), 2**-4, 2**6)
    for router in (original, plugged):
        router.start_from_base(weight, bias)
    expected, routing = original.eval()(x)[0], plugged.eval()(x)[0]
    assert torch.equal(routing.token_indices, expected.token_indices)
    assert torch.equal(routing.expert_indices, expected.expert_indices)
    assert torch.equal(routing.weights, expected.weights)


@pytest.mark.parametrize("name", ["ada-k", "adamoe", "rmoe"])
def test_step_zero_holds_in_bfloat16_where_logits_do_not_tie(name: str, base: ModelSpec) -> None:
    """Exact ties are common in bfloat16, and top-k promises no order among them."""
    weight = exact((base.num_experts, base.hidden_size), 2**-9, 2**8).bfloat16()
    original, plugged = (plug_in(router, base, torch.bfloat16) for router in ("top-k", name))
    for router in (original, plugged):
        router.start_from_base(weight)
    x = exact((3000, base.hidden_size), 2**-4, 2**6).bfloat16()
    logits = original.scores(x)[0]
    ranked = logits.sort(dim=1, descending=True).values
    x = x[(ranked.diff(dim=1)[:, : base.top_k + 1] != 0).all(1)]
    if base.gate.num_groups > 1:
        pytest.skip("groups compare sums, whose ties the filter does not see")
    assert len(x) > 100
    expected, routing = original.eval()(x)[0], plugged.eval()(x)[0]
    assert torch.equal(routing.expert_indices, expected.expert_indices)
    assert torch.equal(routing.weights, expected.weights)


def test_the_papers_rmoe_cannot_start_from_a_pretrained_router(base: ModelSpec) -> None:
    router = build_routers(policy("rmoe"), base, 1, torch.float32)[0]
    with pytest.raises(ValueError, match="residual = true"):
        router.start_from_base(torch.randn(base.num_experts, base.hidden_size))


def test_adamoe_needs_slots_for_the_base(tiny: ModelSpec) -> None:
    router = build_routers(policy("adamoe", {"top_k": 1}), tiny, 1, torch.float32)[0]
    with pytest.raises(ValueError, match="expected 2 to 10"):
        router.start_from_base(torch.randn(4, 32))
