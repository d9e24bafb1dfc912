"""Training: counts of the optimizer's traffic, and what more batches, GPUs or recomputing do."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.memory import rank_memory, rank_parameters
from moebench.predict.serving.no_router import baseline
from moebench.predict.serving.parallelism import Parallelism
from moebench.predict.serving.prices import kernel_prices
from moebench.predict.serving.step import StepPrice, step_price
from moebench.predict.serving.trainer import Training, trainer_kernels
from moebench.predict.serving.training import (
    STREAM,
    empty_blocks_time,
    launches_of,
    micro_batches,
    optimizer_time,
    sharing_time,
)
from moebench.spec.hardware import load_hardware
from moebench.spec.model import load_model
from moebench.spec.parameters import parameters

H100, QWEN = load_hardware("h100-sxm"), load_model("qwen3-30b-a3b")
WHOLE = Deployment(QWEN, H100, "train", "model", 4096, dtype="bfloat16", parallel=Parallelism(1, 8))
HELD = rank_parameters(WHOLE, baseline(QWEN))


def step(deployment: Deployment, batch: int = 8) -> StepPrice:
    router = baseline(deployment.model)
    point = deployment.routed_by(router)
    return step_price(deployment, kernel_prices(deployment), router, point, [batch])


def seconds(batch: int = 8, level: str = "model", **training: object) -> float:
    own = Training(**training)  # type: ignore[arg-type]
    changed = replace(WHOLE, training=own, level=level)  # type: ignore[arg-type]
    return float(step(changed, batch).seconds[0])


def test_the_optimizer_moves_thirty_bytes_of_every_parameter() -> None:
    """16 read (fp32 gradient, weight, moments), 12 written and the 16-bit weight."""
    alone = replace(WHOLE, parallel=Parallelism())
    held = rank_parameters(alone, baseline(QWEN))
    moved = optimizer_time(alone, held) * STREAM * H100.memory_bandwidth
    assert moved == pytest.approx(30 * parameters(QWEN))


def test_copies_share_out_the_optimizer_and_send_gradients() -> None:
    copied = replace(WHOLE, training=Training(copies=4))
    assert optimizer_time(copied, HELD) == pytest.approx(optimizer_time(WHOLE, HELD) / 4)
    # Alone, experts have no copy and send nothing; attention has eight in the node.
    others = 6 * (HELD.others + HELD.plain) * 7 / 8
    assert sharing_time(WHOLE, HELD) == pytest.approx(others / (0.75 * 450e9))
    assert sharing_time(copied, HELD) > 6 * HELD.experts * 3 / 4 / 50e9


def test_more_batches_between_two_steps_are_never_slower() -> None:
    times = [seconds(micro_batches=n, copies=8) for n in (1, 2, 8, 64)]
    assert times == sorted(times, reverse=True) and times[0] > times[-1]
    assert micro_batches(WHOLE, np.array([8.0, 1e6])).tolist() == [122, 1]


def test_more_micro_batches_never_leave_a_larger_bubble() -> None:
    piped = replace(WHOLE, parallel=Parallelism(1, 8, pipeline_parallel=4))
    found = []
    for batches in (1, 4, 64):
        own = step(replace(piped, training=Training(micro_batches=batches)))
        found.append(float(own.stages["bubble"][0]))
        once = ("bubble", "gradients", "optimizer")
        busy = sum(float(each[0]) for name, each in own.stages.items() if name not in once)
        assert found[-1] == pytest.approx(busy * 3 / batches)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("level", ["moe", "decoder", "model"])
def test_recomputing_is_never_faster(level: str) -> None:
    none, some, full = (
        seconds(level=level, recompute=how) for how in ("none", "selective", "full")
    )
    assert none < some < full < 1.5 * none


def test_memory_holds_fewer_states_and_activations() -> None:
    """Twelve bytes of AdamW's states, spread over the ranks that have the same weights."""

    def memory(**training: object) -> Mapping[str, float]:
        own = replace(WHOLE, training=Training(**training))  # type: ignore[arg-type]
        load = step(own).load(0)
        return rank_memory(own, baseline(QWEN), load, 4096.0 * 8, 8)

    once, copied = memory(), memory(copies=4)
    assert once["optimizer"] == 12 * (HELD.experts + (HELD.others + HELD.plain) / 8)
    assert copied["optimizer"] == once["optimizer"] / 4
    assert memory(recompute="full")["activations"] < 0.2 * once["activations"]


def test_fsdp_is_never_faster_than_a_copy_of_the_weights() -> None:
    assert seconds(copies=32, is_sharded=True) > seconds(copies=32)


def test_a_backward_pass_takes_attention_two_and_a_half_times() -> None:
    """FlashAttention (2205.14135), algorithm 4; an exchange is its own gradient's size."""
    own = step(replace(WHOLE, level="decoder")).stages
    rest = ("attention", "exchange", "backward")
    times = {name: float(each[0]) for name, each in own.items()}
    expected = 2 * sum(each for name, each in times.items() if name not in rest)
    expected += 2.5 * times["attention"] + times["exchange"]
    assert times["backward"] == pytest.approx(expected)


def test_small_batches_wait_for_the_host() -> None:
    small, large = step(replace(WHOLE, context=512), 8), step(WHOLE, 256)
    shares = [float((one.stages["host"] / one.seconds)[0]) for one in (small, large)]
    assert shares[0] > 0.2 > 0.02 > shares[1]
    fewer = replace(WHOLE, parallel=Parallelism(1, 64, nodes=8))
    assert launches_of(fewer) < launches_of(WHOLE) < launches_of(replace(WHOLE, dtype="mxfp8"))


def test_a_step_is_no_surer_than_those_that_were_left_out() -> None:
    from moebench.predict.serving.intervals import latency_interval

    low, high = latency_interval(step(WHOLE))
    assert high[0] / low[0] > 2.0


def test_blocks_without_work_grow_with_experts_and_rows() -> None:
    """VeOmni, pull request 460: 5.5 ms of 11.5 on an H100, 128 experts of width 768."""
    own = Training().trainer
    base = empty_blocks_time(QWEN, H100, own, np.array([262144.0]))[0]
    assert base == pytest.approx(5.5e-3, rel=0.15)
    twice = replace(QWEN, num_experts=256)
    assert empty_blocks_time(twice, H100, own, np.array([262144.0]))[0] == 2 * base


@pytest.mark.parametrize(
    ("framework", "kernels"),
    [
        ("VeOmni Triton group gemm", "group-gemm"),
        ("Megatron-Bridge", "grouped-mm"),
        ("torch grouped_mm", "grouped-mm"),
        ("vllm 0.11", None),
    ],
)
def test_trainers_are_known_by_their_words(framework: str, kernels: str | None) -> None:
    assert trainer_kernels(framework) == kernels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batches": 0}, "micro-batches: found 0"),
        ({"recompute": "some"}, "recompute: found 'some'"),
        ({"copies": -1}, "copies: found -1"),
    ],
)
def test_training_out_of_range_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**changes)  # type: ignore[arg-type]
