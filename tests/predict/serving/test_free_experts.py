"""Experts that a token can choose and that cost no matmul, as LongCat's copies do."""

from dataclasses import replace

import pytest

from moebench.predict.serving.break_even import break_even
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.memory import rank_parameters
from moebench.predict.serving.speedup import speedups
from moebench.routers.policy import known_policies, policy
from moebench.spec.hardware import load_hardware
from moebench.spec.model import load_model
from moebench.spec.ops import shared_expert_ops
from moebench.spec.parameters import parameters, router_parameters

H200, TOP_K = load_hardware("h200-sxm"), policy("top-k")
LONGCAT = load_model("longcat-flash")


def test_a_layer_runs_the_mean_of_its_true_experts() -> None:
    """All of 12 slots may be true ones or none; on average 8 of 512 are."""
    point = TOP_K.operating_point(LONGCAT)
    assert len(point.k_distribution) == 13 and min(point.k_distribution) > 0
    assert point.mean_k == pytest.approx(8)
    (found,) = speedups(Deployment(LONGCAT, H200), TOP_K, [64])
    assert found.estimate.assignments == pytest.approx(64 * 8)
    # A token misses an expert with 1 - 8/512, whatever the other 255 slots hold.
    assert found.estimate.distinct_experts == pytest.approx(512 * (1 - (1 - 8 / 512) ** 64))
    assert "ragged-routing" in {caveat.kind for caveat in found.estimate.caveats}


def test_a_layer_costs_less_than_with_twelve_true_experts() -> None:
    all_true = replace(LONGCAT, identity_experts=0, mean_top_k=0.0)
    (free,), (full,) = (speedups(Deployment(m, H200), TOP_K, [8]) for m in (LONGCAT, all_true))
    assert 0.6 < free.estimate.latency / full.estimate.latency < 0.8  # 8 / 12, and overheads


def test_a_break_even_starts_at_the_true_experts_of_the_base() -> None:
    (row,) = break_even(Deployment(LONGCAT, H200), "ada-k", [8], 1.05)
    assert row.base_mean_k == pytest.approx(8)
    assert row.mean_k is not None and 7 < row.mean_k < 8


def test_fewer_slots_keep_the_share_of_true_ones() -> None:
    half = policy("top-k", {"top_k": 6}).operating_point(LONGCAT)
    assert half.mean_k == pytest.approx(4) and len(half.k_distribution) == 7


@pytest.mark.parametrize("name", sorted(known_policies()))
def test_every_router_scores_the_free_experts_too(name: str) -> None:
    """256 more columns in each router, of ops and of parameters, as in the base's 768."""
    own = policy(name)
    plain = replace(LONGCAT, identity_experts=0)
    wide, narrow = (
        sum((op.n or 0) * (op.k or 0) for op in own.ops(model, 1, "bfloat16"))
        for model in (LONGCAT, plain)
    )
    grown = own.parameters(LONGCAT) - own.parameters(plain)
    if name == "adamoe":  # it adds as many null experts as there are true ones, in both
        assert grown == router_parameters(LONGCAT) - router_parameters(plain)
    assert grown == pytest.approx(28 * (wide - narrow))
    assert (name == "balanced") == (grown == 0)


def test_without_the_published_mean_it_is_refused() -> None:
    silent = replace(LONGCAT, mean_top_k=0.0)
    with pytest.raises(ValueError, match=r"longcat-flash: mean_top_k: found 0, expected.*12 slots"):
        speedups(Deployment(silent, H200), TOP_K, [1])
    own = policy("ada-k", {"mean_k": 4.0})
    with pytest.raises(ValueError, match="mean_top_k: found 0"):
        speedups(Deployment(silent, H200), own, [1])


def test_copies_are_one_pass_over_the_tokens_and_nothing_is_none() -> None:
    (op,) = shared_expert_ops(LONGCAT, 5, "bfloat16")
    assert (op.bytes_read, op.bytes_written) == (2 * 2 * 5 * 6144, 2 * 5 * 6144)
    zeros = replace(LONGCAT, identity_experts=0, zero_experts=256)
    assert not shared_expert_ops(zeros, 5, "bfloat16")
    assert router_parameters(zeros) == 28 * 768 * 6144


def test_a_rank_holds_every_parameter_of_a_model_with_everything() -> None:
    mixtral = load_model("mixtral-8x7b")
    everything = replace(
        mixtral,
        identity_experts=4,
        mean_top_k=1.5,
        zero_experts=1,
        constant_experts=2,
        num_dense_layers=1,
        moe_layer_step=3,
        dense_intermediate_size=4096,
        shared_intermediate_size=2048,
        has_shared_gate=True,
        residual_intermediate_size=1024,
        has_expert_bias=True,
        norm="layer",
        norms_per_layer=4,
        gate=replace(mixtral.gate, has_bias=True, has_correction_bias=True),
        attention=replace(
            mixtral.attention,
            value_head_dim=64,
            has_bias=True,
            has_output_bias=True,
            has_sinks=True,
            norm="per-head",
        ),
    )
    deployment = Deployment(everything, H200, level="model")
    assert sum(rank_parameters(deployment, TOP_K)) == parameters(everything)


@pytest.mark.parametrize("level", ["decoder", "model"])
def test_a_hybrid_network_is_priced_as_its_moe_layer_alone(level: str) -> None:
    hybrid = replace(load_model("qwen3-30b-a3b"), moe_level_only="linear attention in 36 layers")
    assert speedups(Deployment(hybrid, H200), TOP_K, [1])
    with pytest.raises(ValueError, match="this is not understood: linear attention in 36 layers"):
        Deployment(hybrid, H200, level=level)  # type: ignore[arg-type]
