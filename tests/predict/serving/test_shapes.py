"""Shapes that kernels refuse, with the tp that they take; each width by its own arithmetic."""

from dataclasses import replace
from typing import Any

import pytest

from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.parallelism import Parallelism
from moebench.predict.serving.prices import kernel_prices
from moebench.predict.serving.shapes import shape_caveats, unaligned
from moebench.predict.serving.step import step_price
from moebench.routers.policy import policy
from moebench.spec.hardware import load_hardware
from moebench.spec.model import ModelSpec, load_model

H100 = load_hardware("h100-sxm")
TOP_K = policy("top-k")
QWEN, MIXTRAL = load_model("qwen3-30b-a3b"), load_model("mixtral-8x7b")
OSS = replace(
    QWEN,
    hidden_size=2880,
    intermediate_size=2880,
    attention=replace(QWEN.attention, num_heads=64, num_kv_heads=8, head_dim=64),
)
POINT = TOP_K.operating_point(OSS)


def of(model: ModelSpec, dtype: str, tp: int, ep: int = 1, **more: Any) -> Deployment:
    return Deployment(model, H100, dtype=dtype, parallel=Parallelism(tp, ep), **more)


@pytest.mark.parametrize(
    ("model", "dtype", "tp", "level", "widths", "remedy"),
    [
        (QWEN, "fp8", 8, "moe", ["intermediate_size 768 / tp 8 = 96"], "--tp 2,"),
        (QWEN, "fp8", 4, "moe", ["intermediate_size 768 / tp 4 = 192"], "--tp 2,"),
        (QWEN, "int4", 4, "moe", ["intermediate_size 768 / tp 4 = 192"], "--tp 2,"),
        (QWEN, "nvfp4", 8, "moe", [], ""),
        (QWEN, "mxfp4", 8, "moe", [], ""),
        (QWEN, "int8", 8, "model", [], ""),
        (QWEN, "bf16", 8, "model", [], ""),
        (replace(QWEN, intermediate_size=640), "int4", 2, "moe",  # vllm 57792
         ["intermediate_size 640 / tp 2 = 320"], "--tp 1,"),
        (replace(QWEN, intermediate_size=1856), "nvfp4", 8, "moe",  # vllm 49949
         ["intermediate_size 1856 / tp 8 = 232"], "--tp 4,"),
        (OSS, "mxfp4", 1, "model", [], ""),
        (OSS, "mxfp4", 8, "model", ["intermediate_size 2880 / tp 8 = 360"], "--tp 2,"),
        (OSS, "nvfp4", 8, "moe", ["intermediate_size 2880 / tp 8 = 360"], "--tp 4,"),
        (OSS, "fp8", 1, "moe", ["intermediate_size 2880", "hidden_size 2880"], "--dtype bf16"),
        (MIXTRAL, "fp8", 8, "model", [], ""),
        (replace(MIXTRAL, shared_intermediate_size=1536), "fp8", 8, "moe",
         ["shared_intermediate_size 1536 / tp 8 = 192"], "--tp 4,"),
        (replace(MIXTRAL, residual_intermediate_size=1536), "int4", 8, "moe",
         ["residual_intermediate_size 1536 / tp 8 = 192"], "--tp 4,"),
        (replace(MIXTRAL, num_dense_layers=1, dense_intermediate_size=1536), "fp8", 8, "model",
         ["dense_intermediate_size 1536 / tp 8 = 192"], "--tp 4,"),
        (replace(MIXTRAL, num_dense_layers=1, dense_intermediate_size=1536), "fp8", 8, "decoder",
         [], ""),
        (replace(MIXTRAL, attention=replace(MIXTRAL.attention, head_dim=64)), "fp8", 8, "decoder",
         ["keys 512 / tp 8 = 64"], "--tp 4,"),
        (replace(MIXTRAL, attention=replace(MIXTRAL.attention, head_dim=64)), "int4", 8, "decoder",
         [], ""),
    ],
)  # fmt: skip
def test_a_width_that_is_not_aligned_is_named_with_the_nearest_tp(
    model: ModelSpec, dtype: str, tp: int, level: str, widths: list[str], remedy: str
) -> None:
    deployment = of(model, dtype, tp, level=level)
    assert [width for _, width in unaligned(deployment)] == widths
    said = shape_caveats(deployment)
    assert len(said) == bool(widths)
    assert all(remedy in caveat.remedy for caveat in said)


def test_the_tp_that_is_named_raises_no_caveat() -> None:
    for dtype in ("fp8", "int4", "mxfp4", "nvfp4"):
        for model in (QWEN, OSS, MIXTRAL):
            for tp in (1, 2, 4, 8):
                for caveat in shape_caveats(of(model, dtype, tp, level="model")):
                    if caveat.remedy.startswith("--tp"):
                        named = int(caveat.remedy.removeprefix("--tp ").partition(",")[0])
                        assert not shape_caveats(of(model, dtype, named, level="model"))


def test_experts_of_parallel_groups_are_not_split() -> None:
    assert not shape_caveats(of(QWEN, "fp8", 1, 8))


@pytest.mark.parametrize(("kv", "tp", "fine"), [(4, 8, True), (8, 4, True), (8, 5, False)])
def test_key_value_heads_are_split_or_copied(kv: int, tp: int, fine: bool) -> None:
    """40 heads: 8 key-value heads over five ranks are neither."""
    attention = replace(MIXTRAL.attention, num_heads=40, num_kv_heads=kv)
    model = replace(MIXTRAL, attention=attention, intermediate_size=14400)
    said = shape_caveats(of(model, "bf16", tp, level="decoder"))
    assert [caveat.seen for caveat in said] == [
        f"num_kv_heads = {kv} and tp = {tp}: neither is a multiple of the other"
    ] * (not fine)


def test_mxfp4_gives_the_fullest_rank_whole_groups() -> None:
    """2880 columns are 90 groups of 32; the fullest of eight ranks has 12 of them, 384 columns."""
    assert of(OSS, "mxfp4", 8).rank.intermediate_size == 384
    assert of(OSS, "mxfp4", 2).rank.intermediate_size == 1440
    assert of(OSS, "bf16", 8).rank.intermediate_size == 360
    step = step_price(of(OSS, "mxfp4", 8), kernel_prices(of(OSS, "mxfp4", 8)), TOP_K, POINT, [8])
    assert step.routed is not None and step.routed.cases.inner_size.tolist() == [384]
