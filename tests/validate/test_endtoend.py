"""Tables of published points: units, metrics as sums of steps, coverage, lines of --rows."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from published_rows import ROW, table

from moebench.calibrate.published.points import model_of, weights_of
from moebench.calibrate.published.prices import METRIC_PRICES, point_price
from moebench.calibrate.published.tables import METRICS, SECONDS, Point, read_published
from moebench.validate import cli as validate


def point(tmp_path: Path, **changes: str) -> Point:
    (found,) = read_published(table(tmp_path / "t.csv", [ROW | changes])).points
    return found


@pytest.mark.parametrize(
    ("framework", "note", "engine"),
    [
        ("sglang (lmsysorg/sglang:v0.5.6-cu129-amd64)", "", "sglang:0.5.6"),
        ("VLLM 0.3-0.4", "", "vllm:0.3"),
        ("TensorRT-LLM 0.9", "", "trtllm:0.9"),
        ("trt", "closed loop; median of 3 runs 1.1.0rc2.post2, half", "trtllm:1.1.0rc2.post2"),
        ("sglang", "median over 5 runs, spread 8.67..8.79 ms", "sglang"),
        ("novel", "", "novel"),
    ],
)
def test_the_engine_is_the_first_word_and_its_version_may_stand_in_the_note(
    framework: str, note: str, engine: str, tmp_path: Path
) -> None:
    assert point(tmp_path, framework=framework, note=note).engine == engine


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_priced_in_each_of_its_units(metric: str, tmp_path: Path) -> None:
    rates = {"tok/s": 1.0, "tok/s/GPU": 1 / 2, "tok/s/8 GPUs": 8 / 2}
    units = {u: 1 / s for u, s in SECONDS.items()} if METRICS[metric] == "s" else rates
    own = {"dtype": "bfloat16"} if "train" in metric else {}
    own |= {"tp": "1", "ep": "2"} if "dispatch" in metric else {}
    found = {}
    for unit, factor in units.items():
        price = point_price(point(tmp_path, metric=metric, unit=unit, **own))
        assert 0 < price.low < price.value < price.high
        found[unit] = price.value / factor
    assert max(found.values()) == pytest.approx(min(found.values()))
    assert metric in METRIC_PRICES


def test_a_static_batch_is_its_prefill_and_its_steps(tmp_path: Path) -> None:
    def seconds(metric: str, **changes: str) -> float:
        return point_price(point(tmp_path, metric=metric, unit="s", **changes)).value

    whole, prefill = seconds("e2e_latency"), seconds("prefill_time")
    one = {"batch_or_concurrency": "64", "metric": "decode_rate", "unit": "tok/s"}
    step = 64 / point_price(point(tmp_path, **one)).value
    assert whole == pytest.approx(prefill + 127 * step)
    rate = point_price(point(tmp_path)).value
    assert rate == pytest.approx(64 * 128 / whole / 2), "per GPU"
    assert seconds("tpot_mean") > step, "prefills of other sequences are mixed in"


def test_types_of_weights_have_stand_ins_that_are_named() -> None:
    assert not weights_of("int8-weight-only").stand_in
    assert not weights_of("FP8").stand_in and not weights_of("").stand_in
    assert weights_of("fp8 dynamic").name == "float8" and weights_of("fp8 dynamic").stand_in
    assert weights_of("nvfp4", is_trained=True).name == "mxfp8"
    with pytest.raises(ValueError, match="column dtype: found 'ternary'"):
        weights_of("ternary")


def test_a_layer_is_named_by_its_sizes_or_by_its_model() -> None:
    layer = model_of("moe-4096-1024-128-8")
    sizes = (layer.hidden_size, layer.intermediate_size, layer.num_experts, layer.top_k)
    assert sizes == (4096, 1024, 128, 8)
    assert model_of("qwen3-next-moe-layer").name == "qwen3-next-80b-a3b"


def test_a_kernel_alone_takes_less_than_its_layer(tmp_path: Path) -> None:
    own: dict[str, Any] = {"model": "moe-4096-1024-128-8", "num_gpus": "1", "unit": "us"}
    own |= {"framework": "vllm triton", "phase": "moe-layer", "input_len": "", "output_len": ""}
    kernel, layer = (
        point_price(point(tmp_path, metric=metric, **own)).value
        for metric in ("moe_kernel_time", "moe_layer_latency")
    )
    assert 0.5 * layer < kernel < layer


def test_points_without_a_price_have_a_reason_and_keep_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ROW,
        ROW | {"model": "gpt-9"},
        ROW | {"value": "fast"},
        ROW | {"hardware": "h9000"},
        ROW | {"unit": "ms"},
        ROW | {"metric": "tpot", "unit": "ms", "output_len": ""},
        ROW | {"dtype": "fp8 dynamic"},
    ]
    path, written = table(tmp_path / "t.csv", rows), tmp_path / "r.csv"
    assert validate.main([str(path), "--json", "--rows", str(written)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["covered"]) == (2, 1) and len(found["stand_ins"]) == 1
    assert sum(found["skipped"].values()) == 3
    assert set(found["metrics"]) == {"output_throughput_per_gpu, prefill+decode"}
    with written.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == [str(i) for i in range(1, 8)]
    whys = ["", "gpt-9", "fast", "h9000", "unit", "output_len", ""]
    for line, why in zip(lines, whys, strict=True):
        assert why in line["reason"] and bool(line["reason"]) == bool(why)
        assert bool(line["predicted"] and line["low"] and line["high"]) != bool(why)
    assert float(lines[0]["measured"]) == 3000 and 300 < float(lines[0]["predicted"]) < 30000


def test_a_batch_of_one_expert_group_is_priced_on_that_group(tmp_path: Path) -> None:
    own = {"phase": "train", "metric": "train_tokens_per_gpu", "dtype": "bfloat16", "tp": "1"}
    own |= {"num_gpus": "64", "ep": "8", "batch_or_concurrency": "32"}
    group = point(tmp_path, note="MBS 4; batch given for one EP group of 8", **own)
    every = point(tmp_path, **own | {"batch_or_concurrency": "256"})
    assert (group.num_gpus, group.copies, group.batch) == (8, 8, 32)
    assert (every.num_gpus, every.copies, every.batch) == (8, 8, 32)
    assert point_price(group).value == pytest.approx(point_price(every).value)
    # Copies send each other their gradients.
    alone = point(tmp_path, **own | {"num_gpus": "8"})
    assert alone.copies == 1 and point_price(group).value <= point_price(alone).value


@pytest.mark.parametrize(
    ("gpus", "note", "found"),
    [
        ("64", "", (8, 1, 8, 32.0)),
        ("64", "MBS 1; PP 4", (32, 4, 2, 8.0)),
        ("64", "MBS 2, PP 3", (8, 1, 8, 16.0)),
        ("64", "MBS 4; batch given for one EP group of 8; PP 2", (16, 2, 4, 256.0)),
        ("12", "", (12, 1, 1, 256.0)),
    ],
)
def test_the_gpus_of_a_training_row_are_copies_of_a_group(
    gpus: str, note: str, found: tuple[float, ...], tmp_path: Path
) -> None:
    own = {"phase": "train", "metric": "train_tokens_per_gpu", "tp": "1", "ep": "8"}
    own |= {"batch_or_concurrency": "256", "num_gpus": gpus, "note": note}
    one = point(tmp_path, **own)
    assert (one.num_gpus, one.pp, one.copies, one.batch) == found


def test_a_trainers_experts_take_longer_than_an_engines(tmp_path: Path) -> None:
    """VeOmni, pull request 460: 28.9 ms in Triton, 11.4 with grouped_mm."""
    layer = {"model": "qwen3-next-moe-layer", "num_gpus": "1", "tp": "1", "ep": "1", "unit": "ms"}
    layer |= {"dtype": "bfloat16", "batch_or_concurrency": "32768", "metric": "moe_kernel_time"}
    layer |= {"hardware": "h100-sxm"}
    own = {
        framework: point_price(point(tmp_path, framework=framework, **layer))
        for framework in ("VeOmni Triton group gemm", "torch grouped_mm", "vllm")
    }
    triton, torch, engine = own.values()
    assert triton.value == pytest.approx(28.9, rel=0.1)
    assert torch.value == pytest.approx(11.4, rel=0.1)
    assert engine.value < torch.low < torch.value < torch.high


def test_eight_bits_on_a_gpu_without_their_rate_are_widened(tmp_path: Path) -> None:
    fp8, int8 = (
        point_price(point(tmp_path, hardware="a100-sxm-80gb", dtype=dtype)).value
        for dtype in ("fp8", "int8-weight-only")
    )
    assert fp8 == int8
