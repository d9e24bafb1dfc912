"""Plugged into a pretrained model, every adaptive router starts as that model, to the bit."""

from dataclasses import replace

import pytest
import torch

from moebench.routers.policy import policy
from moebench.routers.routing import Router, build_routers
from moebench.spec.gate import Gate
from moebench.spec.model import ModelSpec

PAPERS = ("ada-k", "adamoe", "rmoe")
RIVALS = ("entropy-k", "fixed-k", "random-k", "skip", "top-p")
BASES = {
    "mixtral": (8, 2, Gate("softmax", True)),
    "qwen3": (64, 8, Gate("softmax", True)),
    "olmoe": (64, 8, Gate("softmax", False)),
    "gpt-oss": (32, 4, Gate("softmax", True, has_bias=True)),
    "deepseek-v2": (
        32,
        4,
        Gate("softmax", False, 16.0, 4, 2, group_score="maximum", router_dtype="float32"),
    ),
    "deepseek-v3": (
        32,
        4,
        Gate("sigmoid", True, 2.5, num_groups=4, top_k_groups=2, has_correction_bias=True),
    ),
    "ernie-4.5": (32, 4, Gate("softmax", True, has_correction_bias=True)),
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
        "fixed-k": {},
    }.get(name, {"max_k": base.top_k + 1})
    return build_routers(policy(name, options), base, 1, dtype)[0]


def biases(base: ModelSpec) -> dict[str, torch.Tensor | None]:
    """Random biases of a base's router, where its gate has them."""
    correction = 0.1 * torch.randn(base.num_experts) if base.gate.has_correction_bias else None
    logit_bias = exact((base.num_experts,), 2**-4, 2**4) if base.gate.has_bias else None
    return {"bias": correction, "logit_bias": logit_bias}


def is_refused(name: str, base: ModelSpec) -> bool:
    return name == "adamoe" and base.gate.score == "softmax" and base.gate.has_correction_bias


@pytest.mark.parametrize("name", [*PAPERS, *RIVALS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_zero_is_the_base_model_to_the_bit(
    name: str, base: ModelSpec, dtype: torch.dtype
) -> None:
    """In bf16 the logits are coarse, so that a tenth of the tokens or more tie at place k.

    A base's experts are those of torch.topk at its k, whatever order that has among ties.
    """
    if is_refused(name, base):
        pytest.skip("refused: see the next test")
    is_coarse = dtype == torch.bfloat16
    step, largest = (2**-9, 2**8) if is_coarse else (2**-13, 2**12)
    weight = exact((base.num_experts, base.hidden_size), step, largest).to(dtype)
    original, plugged = plug_in("top-k", base, dtype), plug_in(name, base, dtype)
    x = exact((300, base.hidden_size), 2**-4, 2**6).to(dtype)
    given = biases(base)
    for router in (original, plugged):
        router.start_from_base(weight, **given)
    expected, routing = original.eval()(x)[0], plugged.eval()(x)[0]
    assert torch.equal(routing.token_indices, expected.token_indices)
    assert torch.equal(routing.expert_indices, expected.expert_indices)
    assert torch.equal(routing.weights, expected.weights)
    scores = original.competing(original.scores(x)[0].float(), original.selection_bias)
    own = scores.topk(base.top_k, dim=1).indices.sort(dim=1).values
    assert torch.equal(expected.slots[1].sort(dim=1).values, own)
    if is_coarse and base.gate.router_dtype == "model" and not base.gate.has_correction_bias:
        ranked = scores.sort(dim=1, descending=True).values
        assert (ranked[:, base.top_k - 1] == ranked[:, base.top_k]).any()


def test_ordinary_bf16_weights_start_as_the_base_too(tiny: ModelSpec) -> None:
    """OLMoE's gate, 64 experts and 8 of them: 4 to 5 % of tokens tie at place 8."""
    base = replace(tiny, num_experts=64, top_k=8, hidden_size=256, gate=Gate("softmax", False))
    weight = torch.randn(64, 256).bfloat16()
    x = torch.randn(2048, 256).bfloat16()
    original = plug_in("top-k", base, torch.bfloat16).eval()
    original.start_from_base(weight)
    scores = original.scores(x)[0].float()
    expected = original.route(scores)
    ranked = scores.sort(dim=1, descending=True).values
    assert (ranked[:, 7] == ranked[:, 8]).float().mean() > 0.02
    for name in ("ada-k", "adamoe"):
        plugged = plug_in(name, base, torch.bfloat16).eval()
        plugged.start_from_base(weight)
        # A product with the router's own rows could round otherwise: theirs is one of its own.
        assert torch.equal(plugged.scores(x)[0][:, :64].float(), scores), name
        routing = plugged(x)[0]
        assert torch.equal(routing.expert_indices, expected.expert_indices), name
        assert torch.equal(routing.token_indices, expected.token_indices), name


def test_adamoe_refuses_a_correction_bias_on_softmax_scores(tiny: ModelSpec) -> None:
    base = replace(tiny, gate=Gate("softmax", True, has_correction_bias=True))
    router = plug_in("adamoe", base)
    with pytest.raises(ValueError, match=r"gate\.has_correction_bias: found a bias on softmax"):
        router.start_from_base(torch.randn(4, 32), torch.randn(4))


def test_the_papers_rmoe_cannot_start_from_a_pretrained_router(base: ModelSpec) -> None:
    router = build_routers(policy("rmoe"), base, 1, torch.float32)[0]
    with pytest.raises(ValueError, match="residual = true"):
        router.start_from_base(torch.randn(base.num_experts, base.hidden_size))


def test_adamoe_needs_slots_for_the_base(tiny: ModelSpec) -> None:
    router = build_routers(policy("adamoe", {"top_k": 1}), tiny, 1, torch.float32)[0]
    with pytest.raises(ValueError, match="expected 2 to 10"):
        router.start_from_base(torch.randn(4, 32))


def test_adamoes_published_start_runs_one_or_two_experts_by_the_ties(tiny: ModelSpec) -> None:
    """With as many null rows as true ones and three slots: of two pairs that tie, one is cut."""
    base = replace(tiny, num_experts=8, top_k=2, gate=Gate("softmax", True))
    options = {"start": "copied-rows", "num_null_experts": 8, "top_k": 3}
    router = build_routers(policy("adamoe", options), base, 1, torch.float32)[0].eval()
    router.start_from_base(torch.randn(8, base.hidden_size))
    counts = router(torch.randn(2000, base.hidden_size))[0].experts_per_token()
    assert set(counts.tolist()) == {1, 2}
    assert 1.2 < counts.float().mean() < 1.8
