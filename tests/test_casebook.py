"""Situations of public bug reports, each with its right value; the numbers are the casebook's."""

from dataclasses import replace

import pytest

from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.memory import rank_memory
from moebench.predict.serving.speedup import speedups
from moebench.routers.policy import policy
from moebench.spec.hardware import load_hardware
from moebench.spec.model import Attention, Gate, ModelSpec

H100, TOP_K = load_hardware("h100-sxm"), policy("top-k")
SOFTMAX = Gate("softmax", renormalise=True)
GPT_OSS_120B = ModelSpec(
    name="gpt-oss-120b",
    source="https://huggingface.co/openai/gpt-oss-120b/blob/main/config.json",
    num_layers=36,
    hidden_size=2880,
    intermediate_size=2880,
    num_experts=128,
    top_k=4,
    vocab_size=201088,
    attention=Attention("gqa", 64, 8, 64, window=128, full_attention_step=2),
    gate=SOFTMAX,
)
MAVERICK = ModelSpec(
    name="llama-4-maverick",
    source="https://huggingface.co/meta-llama/Llama-4-Maverick-17B-128E/blob/main/config.json",
    num_layers=48,
    moe_layer_step=2,
    dense_intermediate_size=16384,
    hidden_size=5120,
    intermediate_size=8192,
    shared_intermediate_size=8192,
    num_experts=128,
    top_k=1,
    vocab_size=202048,
    attention=Attention("gqa", 40, 8, 128),
    gate=Gate("sigmoid", renormalise=False),
)


def whole(model: ModelSpec, **more: object) -> Deployment:
    return Deployment(model, H100, level="model", **more)  # type: ignore[arg-type]


def test_f08_windowed_layers_read_and_keep_their_window() -> None:
    """Each token has 2 KiB a layer; 18 layers keep 131,073 tokens, 18 keep 128: 4.50 GiB."""
    deployment = whole(GPT_OSS_120B, context=131072)
    load = TOP_K.load(GPT_OSS_120B, 1, TOP_K.operating_point(GPT_OSS_120B))
    cache = rank_memory(deployment, TOP_K, load, 4.0, 1)["cache"]
    assert cache == 18 * 2048 * (131073 + 128)
    assert cache / 2**30 == pytest.approx(4.50, abs=0.01)
    full = replace(GPT_OSS_120B, attention=replace(GPT_OSS_120B.attention, full_attention_step=1))
    (some,), (every,) = (
        speedups(whole(model, context=131072), TOP_K, [1]) for model in (GPT_OSS_120B, full)
    )
    ratio = every.estimate.by_stage["attention"] / some.estimate.by_stage["attention"]
    assert 1.9 < ratio < 2.0


def test_f11_every_second_layer_has_experts() -> None:
    """The first eight of Maverick's layers are four dense ones and four with experts."""
    eight = whole(MAVERICK, num_layers=8)
    assert (eight.dense_layers, eight.moe_layers) == (4, 4)
    (few,), (two,) = (speedups(whole(MAVERICK, num_layers=n), TOP_K, [1]) for n in (8, 2))
    for stage in ("dense layers", "first matmul", "projections"):
        assert few.estimate.by_stage[stage] == pytest.approx(4 * two.estimate.by_stage[stage])
    with pytest.raises(ValueError, match="layers: found 1, expected 2 to 48"):
        whole(MAVERICK, num_layers=1)
