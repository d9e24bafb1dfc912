"""Ranks of a deployment: hand counts of Mixtral's memory, ranks that add up."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.flops import step_flops
from moebench.predict.serving.memory import rank_memory, rank_parameters
from moebench.predict.serving.no_router import baseline
from moebench.predict.serving.parallelism import Parallelism
from moebench.predict.serving.ranks import most_loaded_rank, rank_model
from moebench.routers.policy import policy
from moebench.spec.hardware import load_hardware
from moebench.spec.load import ExpertLoad, fixed_k, geometric_k
from moebench.spec.model import load_model, model_names
from moebench.spec.parameters import parameters

MIXTRAL, H100 = load_model("mixtral-8x7b"), load_hardware("h100-sxm")
WIDE = H100.interconnect and replace(H100.interconnect, devices=72)
RACK = replace(H100, interconnect=WIDE)
TOP_K = policy("top-k")
WHOLE = Deployment(MIXTRAL, H100, level="model", context=1024)


def test_mixtrals_weights_are_its_published_parameters_in_two_bytes() -> None:
    """46,702,792,704 parameters: 46.7 B (Jiang et al., 2401.04088, section 1)."""
    load = TOP_K.load(MIXTRAL, 1, TOP_K.operating_point(MIXTRAL))
    assert rank_memory(WHOLE, TOP_K, load, 2.0, 1)["weights"] == 2 * 46_702_792_704


def test_mixtrals_cache_is_counted_by_hand() -> None:
    """Two vectors of 8 heads of 128 in bfloat16, in 32 layers: 131,072 bytes a token."""
    load = TOP_K.load(MIXTRAL, 16, TOP_K.operating_point(MIXTRAL))
    assert rank_memory(WHOLE, TOP_K, load, 32.0, 16)["cache"] == 16 * (1024 + 1) * 131_072


def test_one_moe_layer_of_mixtral_is_counted_by_hand() -> None:
    """Eight experts of three 4096 x 14336 matrices, and an 8 x 4096 router."""
    layer = replace(WHOLE, level="moe")
    assert rank_parameters(layer, TOP_K) == (8 * 3 * 4096 * 14336, 0, 8 * 4096)
    half = replace(layer, dtype="float8")
    load = TOP_K.load(MIXTRAL, 1, TOP_K.operating_point(MIXTRAL))
    weights = rank_memory(half, TOP_K, load, 2.0, 1)["weights"]
    scales = 8 * 3 * (4096 // 128) * (14336 // 128)
    assert weights == 8 * 3 * 4096 * 14336 + 4 * scales + 2 * 8 * 4096


@pytest.mark.parametrize("name", [n for n in model_names() if not load_model(n).moe_level_only])
def test_a_single_rank_holds_every_parameter_of_the_model(name: str) -> None:
    model = load_model(name)
    whole = replace(WHOLE, model=model)
    assert sum(rank_parameters(whole, baseline(model))) == parameters(model)


def test_training_adds_fourteen_bytes_a_parameter() -> None:
    """Two of gradients, twelve of AdamW's states (ZeRO, 1910.02054, section 3.1)."""
    train = replace(WHOLE, phase="train", context=16)
    load = TOP_K.load(MIXTRAL, 16, TOP_K.operating_point(MIXTRAL))
    memory = rank_memory(train, TOP_K, load, 32.0, 1)
    assert memory["gradients"] + memory["optimizer"] == 14 * 46_702_792_704
    assert "cache" not in memory


@pytest.mark.parametrize(("tp", "ep"), [(2, 1), (8, 1), (1, 8), (2, 4), (4, 2)])
def test_ranks_share_out_the_experts_and_each_holds_less(tp: int, ep: int) -> None:
    split = replace(WHOLE, parallel=Parallelism(tp, ep))
    layer = replace(split, level="moe")
    assert rank_parameters(layer, TOP_K)[0] * tp * ep == 8 * MIXTRAL.expert_parameters
    assert sum(rank_parameters(split, TOP_K)) < sum(rank_parameters(WHOLE, TOP_K))


def test_multi_head_latent_attention_caches_the_same_on_every_tensor_parallel_rank() -> None:
    """512 + 64 elements a token and layer (DeepSeek-V3's config)."""
    deep = Deployment(load_model("deepseek-v3"), H100, level="model", context=100)
    load = ExpertLoad.expected(3, 256, fixed_k(8))
    for ranks in (1, 8):
        whole = replace(deep, parallel=Parallelism(ranks))
        assert rank_memory(whole, TOP_K, load, 24.0, 3)["cache"] == 61 * 3 * 101 * 576 * 2


def test_more_ranks_than_key_value_heads_copy_them() -> None:
    assert rank_model(MIXTRAL, Parallelism(8)).attention.num_kv_heads == 1
    assert rank_model(MIXTRAL, Parallelism(32)).attention.num_kv_heads == 1
    assert rank_model(MIXTRAL, Parallelism(32)).attention.num_heads == 1


@pytest.mark.parametrize(("top_k", "teraflops"), [(2, 6.56), (1, 3.68)])
def test_mixtrals_flops_on_256_tokens_are_the_published_ones(top_k: int, teraflops: float) -> None:
    """Yue et al., ICLR 2025, Table 3; a forward pass with the head on every position."""
    train = replace(WHOLE, phase="train", context=256)
    router = policy("top-k", {"top_k": top_k})
    load = router.load(MIXTRAL, 256, router.operating_point(MIXTRAL))
    assert step_flops(train, router, load, 1) / 3e12 == pytest.approx(teraflops, rel=0.01)


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("tokens", [1, 4, 64, 1024])
def test_the_most_loaded_rank_is_that_of_simulated_routing(tokens: int, ranks: int) -> None:
    experts, k = 64, 6
    load = ExpertLoad.expected(tokens, experts, fixed_k(k))
    predicted = most_loaded_rank(load, fixed_k(k), Parallelism(1, ranks)).sum()
    draws = np.random.default_rng(0).random((200, tokens, experts)).argsort(axis=2)[:, :, :k]
    shares = [[(draws // (experts // ranks) == r).sum(axis=(1, 2))] for r in range(ranks)]
    simulated = np.max(shares, axis=0).mean()
    assert predicted == pytest.approx(simulated, rel=0.12)


@settings(deadline=None)
@given(st.integers(1, 4096), st.sampled_from([1, 2, 4, 8]), st.floats(1.0, 4.0), st.floats(0, 1.5))
def test_the_most_loaded_rank_waits_for_no_more_than_everything(
    tokens: int, ranks: int, mean: float, skew: float
) -> None:
    chances = geometric_k(mean, 16)
    load = ExpertLoad.expected(tokens, 16, chances, skew)
    local = most_loaded_rank(load, chances, Parallelism(1, ranks))
    assert len(local) == 16 // ranks and (local <= tokens * (1 + 1e-9)).all()
    assert load.num_assignments / ranks * (1 - 1e-9) <= local.sum()
    assert local.sum() <= load.num_assignments * (1 + 1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 0}, "context: found 0"),
        ({"parallel": Parallelism(3)}, "expected a divisor of attention heads = 32"),
        ({"parallel": Parallelism(1, 9), "hardware": RACK}, "expected at most 8 experts"),
        ({"parallel": Parallelism(4, 4, nodes=1)}, "nodes: found 1 of h100-sxm for 16 GPUs"),
        ({"num_layers": 33, "level": "model"}, "layers: found 33, expected 1 to 32"),
        ({"num_layers": 3}, "they belong to --level model"),
        ({"skew": -1.0}, "skew: found -1.0"),
        ({"skew": math.nan}, "skew: found nan"),
        ({"phase": "train", "dtype": "int8"}, "expected bfloat16, float8 or mxfp8 in"),
        ({"dtype": "int5"}, "dtype: found 'int5'"),
        ({"kv_dtype": "int4"}, "kv_dtype: found 'int4', expected bfloat16 or float16 or float8"),
        ({"dtype": "float32"}, "no peak for dtype 'float32'"),
        ({"dtype": "fp8", "hardware": load_hardware("a100-sxm-80gb")}, "for dtype 'float8'"),
        (
            {"hardware": replace(H100, interconnect=None), "parallel": Parallelism(2)},
            "no interconnect is known",
        ),
        (
            {"hardware": load_hardware("h100-pcie"), "parallel": Parallelism(4)},
            "expected at least 2",
        ),
    ],
)
def test_what_cannot_be_deployed_is_refused_with_the_reason(
    changes: dict[str, object], message: str
) -> None:
    fields = {"model": MIXTRAL, "hardware": H100, **changes}
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Deployment(**fields)  # type: ignore[arg-type]
