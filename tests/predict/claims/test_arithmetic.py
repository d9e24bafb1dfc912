"""Counting against the papers' own tables: what agrees, and what no count can give."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.predict.claims.arithmetic import (
    claim_point,
    claim_policy,
    flops_saved,
    model_flops,
    time_ratio,
)
from moebench.predict.claims.papers import Claim, Layers, Paper, load_papers
from moebench.predict.claims.verdict import flops_verdict
from moebench.routers.policy import policy
from moebench.spec.model import load_model
from moebench.spec.ops import total_flops

PAPERS = {paper.name: paper for paper in load_papers()}
FLOPS = [
    (paper, claim)
    for paper in PAPERS.values()
    for claim in paper.claim
    if claim.quantity == "flops-saved"
]


def answer(paper: Paper, claim: Claim) -> str:
    counted, claimed = flops_saved(paper, claim), claim.value
    assert claimed is not None
    return flops_verdict(claimed, counted.low, counted.high, counted.ceiling).answer


@pytest.mark.parametrize(
    ("model", "k", "teraflop"),
    [
        ("mixtral-8x22b", 2, 20.04),
        ("mixtral-8x22b", 1, 11.38),
        ("mixtral-8x7b", 2, 6.56),
        ("mixtral-8x7b", 1, 3.68),
        ("qwen1.5-moe-a2.7b", 4, 1.23),
        ("deepseek-moe-16b", 6, 1.36),
    ],
)
def test_a_fixed_k_costs_the_published_flops(model: str, k: int, teraflop: float) -> None:
    """Yue et al., Table 3, one sample of 256 tokens, to the digits printed."""
    count = model_flops(load_model(model), policy("top-k", {"top_k": k}), 256)
    assert count / 1e12 == pytest.approx(teraflop, abs=0.0051)


def test_every_published_count_of_a_models_own_top_k_is_ours() -> None:
    published = [(p, c) for p, c in FLOPS if c.full_flops is not None]
    assert len(published) == 4
    for paper, claim in published:
        counted = flops_saved(paper, claim).full_flops
        assert counted == pytest.approx(claim.full_flops, abs=0.0051e12)


def test_the_count_of_mixtral_is_the_sum_one_writes_down() -> None:
    """Projections, experts, router, scores and head of Mixtral-8x7B, term by term."""
    s, h, layers, kv = 256, 4096, 32, 1024
    attention = h * h * 2 + h * kv * 2
    per_token = layers * (attention + 2 * 3 * h * 14336 + 8 * h) + 32000 * h
    scores = 4 * s * s * h * layers
    count = model_flops(load_model("mixtral-8x7b"), policy("top-k"), s)
    assert count == pytest.approx(2 * s * per_token + scores, rel=1e-12)


@pytest.mark.parametrize(
    ("model", "percent"),
    [
        ("mixtral-8x22b", 29.8),
        ("mixtral-8x7b", 26.4),
        ("qwen1.5-moe-a2.7b", 12.3),
        ("deepseek-moe-16b", 21.1),
    ],
)
def test_ada_k_saves_what_its_mean_k_allows(model: str, percent: float) -> None:
    """Without the allocator, which takes up to 0.2 points of it."""
    paper = PAPERS["Ada-K"]
    (claim,) = (c for c in paper.claim if c.model == model and c.quantity == "flops-saved")
    saved = 100 * flops_saved(paper, claim).value
    assert percent - 0.2 < saved < percent + 0.05


def test_the_arithmetic_contradicts_three_of_four_rows_of_ada_k_and_none_of_adamoe() -> None:
    answers = [(p.name, c.model, answer(p, c)) for p, c in FLOPS]
    ada_k = {model: said for paper, model, said in answers if paper == "Ada-K"}
    assert ada_k == {
        "mixtral-8x22b": "holds",
        "mixtral-8x7b": "cannot hold",
        "qwen1.5-moe-a2.7b": "cannot hold",
        "deepseek-moe-16b": "cannot hold",
    }
    adamoe = [said for paper, _, said in answers if paper == "AdaMoE"]
    assert adamoe == ["holds"] * 8


def test_a_claim_beyond_the_experts_alone_is_called_that() -> None:
    """32.6 % of Mixtral-8x7B at 1.40 of 2 experts: no way of counting gives more than 30 %."""
    paper = PAPERS["Ada-K"]
    (claim,) = (c for c in paper.claim if c.printed == "32.6 %")
    counted = flops_saved(paper, claim)
    assert claim.value is not None and counted.ceiling == pytest.approx(0.30)
    verdict = flops_verdict(claim.value, counted.low, counted.high, counted.ceiling)
    assert "30.0 %" in verdict.reason


@settings(max_examples=15, deadline=None)
@given(k=st.floats(1.01, 2.0))
def test_no_router_saves_more_than_its_experts(k: float) -> None:
    claim = Claim(
        "flops-saved", "a law", "ada-k", printed="1 %", model="mixtral-8x7b", k=f"{k:.3f}"
    )
    counted = flops_saved(PAPERS["Ada-K"], claim)
    assert counted.ceiling is not None
    assert counted.low <= counted.value <= counted.high
    assert counted.value < counted.ceiling + 1e-9


def test_rmoe_adds_the_published_work() -> None:
    """5.8 M multiply-adds a token to the 0.91 B model, 1.8 % of its layers."""
    claims = [c for c in PAPERS["RMoE"].claim if c.layers and c.layers.hidden_size == 1280]
    counted = time_ratio(claims[0])
    assert counted is not None and counted.value == pytest.approx(1.018, abs=0.001)
    layers = claims[0].layers
    assert isinstance(layers, Layers)
    attention = 4 * layers.hidden_size**2
    experts = layers.top_k * 3 * layers.hidden_size * layers.intermediate_size
    assert (counted.value - 1) * 24 * (attention + experts) == pytest.approx(5.8e6, rel=0.02)


def test_a_claim_is_priced_at_its_printed_k() -> None:
    for paper in PAPERS.values():
        for claim in paper.claim:
            if claim.model and claim.mean_k:
                model = load_model(claim.model)
                point = claim_point(claim) or claim_policy(claim).operating_point(model)
                assert point.mean_k == pytest.approx(claim.mean_k.value, abs=1e-6)


def test_nulls_cost_router_flops_and_no_expert_flops() -> None:
    model = load_model("mixtral-8x7b")
    same_k = policy("adamoe", {"mean_k": 2.0, "top_k": 3})
    more = model_flops(model, same_k, 1) - model_flops(model, policy("top-k"), 1)
    router = total_flops(policy("top-k").ops(model, 1, "bfloat16"))
    assert more == pytest.approx(model.num_layers * router, rel=1e-3)
