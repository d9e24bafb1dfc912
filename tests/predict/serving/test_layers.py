"""Deployments of layers that differ: windows, dense ones in between, what stands beside experts."""

from dataclasses import replace

import numpy as np
import pytest

from moebench.predict.serving.decoder import AttentionCalls, attention_work
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.flops import step_flops
from moebench.predict.serving.parallelism import Parallelism
from moebench.predict.serving.ranks import rank_model
from moebench.predict.serving.speedup import speedups
from moebench.routers.policy import policy
from moebench.spec.hardware import load_hardware
from moebench.spec.model import ModelSpec, load_model

H100, TOP_K = load_hardware("h100-sxm"), policy("top-k")
MIXTRAL = load_model("mixtral-8x7b")


def windowed(step: int, window: int = 64) -> ModelSpec:
    attention = replace(MIXTRAL.attention, window=window, full_attention_step=step)
    return replace(MIXTRAL, attention=attention)


@pytest.mark.parametrize(("step", "windows"), [(0, 32), (2, 16), (3, 22), (32, 31)])
def test_attention_of_a_model_is_that_of_its_layers(step: int, windows: int) -> None:
    def attention(model: ModelSpec) -> float:
        (row,) = speedups(Deployment(model, H100, level="model", context=8192), TOP_K, [4])
        return row.estimate.by_stage["attention"]

    mixed = Deployment(windowed(step), H100, level="model", context=8192)
    assert mixed.windowed_layers == windows
    every, none = attention(windowed(0)), attention(MIXTRAL)
    expected = (windows * every + (32 - windows) * none) / 32
    assert attention(windowed(step)) == pytest.approx(expected)


def test_a_decoder_layer_is_the_mean_of_the_layers_with_experts() -> None:
    """Layers 1, 3, 5, ... have experts; every fourth, counted from 1, attends in full."""
    model = replace(windowed(4), moe_layer_step=2, dense_intermediate_size=14336)
    assert Deployment(model, H100, level="decoder").windowed_layers == 0.5
    assert Deployment(model, H100, level="model").windowed_layers == 24
    assert Deployment(model, H100).windowed_layers == 0


def test_flops_of_a_windowed_layer_are_those_of_its_window() -> None:
    """32 heads of 128 for queries and as wide for values; 1 + 1024 tokens against 64."""
    load = TOP_K.load(MIXTRAL, 1, TOP_K.operating_point(MIXTRAL))
    full, some = (
        step_flops(Deployment(model, H100, level="decoder"), TOP_K, load, 1)
        for model in (MIXTRAL, windowed(0))
    )
    assert full - some == pytest.approx(2 * (1025 - 64) * 32 * 256)


def test_a_windowed_latent_attention_reads_its_window() -> None:
    deep = load_model("deepseek-v3")
    deep = replace(deep, attention=replace(deep.attention, window=100))
    calls = AttentionCalls(np.array([5.0]), np.array([1.0]), np.array([999.0]), window=100)
    work = attention_work(Deployment(deep, H100, level="decoder"), calls)
    assert work.flops.tolist() == [2 * 5 * 100 * 128 * (576 + 512)]


def test_a_residual_network_is_split_over_ranks_and_priced() -> None:
    arctic = replace(MIXTRAL, residual_intermediate_size=4864)
    assert rank_model(arctic, Parallelism(4)).residual_intermediate_size == 1216
    with pytest.raises(ValueError, match="divisor of residual_intermediate_size = 4861"):
        Deployment(replace(arctic, residual_intermediate_size=4861), H100, parallel=Parallelism(2))
    (row,) = speedups(Deployment(arctic, H100), TOP_K, [1])
    assert row.estimate.by_stage["shared"] > 3 * 4096 * 4864 * 2 / H100.memory_bandwidth


def test_norms_beyond_two_are_priced() -> None:
    norms = [
        speedups(Deployment(model, H100, level="decoder"), TOP_K, [1])[0].estimate.by_stage["norm"]
        for model in (MIXTRAL, replace(MIXTRAL, norms_per_layer=4))
    ]
    assert norms[1] == pytest.approx(2 * norms[0])


def test_a_dense_model_has_no_layer_with_experts() -> None:
    dense = replace(MIXTRAL, num_dense_layers=32, dense_intermediate_size=14336)
    with pytest.raises(ValueError, match="mixtral-8x7b: found a dense model"):
        Deployment(dense, H100)
