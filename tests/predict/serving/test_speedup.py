"""Speedups of whole steps: laws over random deployments, and parts that add up."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.predict.serving.break_even import break_even
from moebench.predict.serving.decoder import AttentionCalls, attention_work, ops_by_stage
from moebench.predict.serving.deployment import LEVELS, Deployment
from moebench.predict.serving.experts import EXPERT_STAGES
from moebench.predict.serving.parallelism import Parallelism
from moebench.predict.serving.prices import kernel_prices
from moebench.predict.serving.speedup import Speedup, speedups
from moebench.predict.serving.step import step_price
from moebench.routers.policy import known_policies, policy
from moebench.spec.hardware import hardware_names, load_hardware
from moebench.spec.model import load_model
from moebench.spec.ops import total_flops

MIXTRAL, H100 = load_model("mixtral-8x7b"), load_hardware("h100-sxm")
MODELS = ("mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "qwen1.5-moe-a2.7b")
MACHINES = ("h100-sxm", "a100-sxm-80gb", "b200-sxm", "l40s")
BATCHES = [1, 3, 16, 64, 300, 2048]
TILE_SWITCH = 1.03
"""What a declared switch of tiles may cost."""

asked = st.fixed_dictionaries(
    {
        "model": st.sampled_from(MODELS),
        "hardware": st.sampled_from(MACHINES),
        "phase": st.sampled_from(["decode", "prefill", "train"]),
        "level": st.sampled_from(LEVELS),
        "context": st.sampled_from([1, 128, 2048]),
        "tensor_parallel": st.sampled_from([1, 2, 4]),
        "expert_parallel": st.sampled_from([1, 2]),
        "skew": st.sampled_from([0.0, 0.6]),
    }
)
means = st.floats(1.0, 2.0)


def deployed(fields: Mapping[str, Any]) -> Deployment:
    names = {"model": load_model(fields["model"]), "hardware": load_hardware(fields["hardware"])}
    own = {**fields, **names}
    parallel = Parallelism(own.pop("tensor_parallel"), own.pop("expert_parallel"))
    return Deployment(**own, dtype="bfloat16", parallel=parallel)


def latencies(deployment: Deployment, mean: float) -> np.ndarray:
    rows = speedups(deployment, policy("ada-k", {"mean_k": mean}), BATCHES)
    return np.array([row.estimate.latency for row in rows])


@settings(max_examples=12, deadline=None)
@given(asked, means, st.floats(1.0, 3.0))
def test_more_bandwidth_or_more_peak_is_never_slower(
    fields: dict[str, Any], mean: float, factor: float
) -> None:
    deployment = deployed(fields)
    machine = deployment.hardware
    peaks = {name: factor * peak for name, peak in machine.peak.items()}
    before = latencies(deployment, mean)
    for better in (
        replace(machine, memory_bandwidth=factor * machine.memory_bandwidth),
        replace(machine, peak=peaks),
    ):
        after = latencies(replace(deployment, hardware=better), mean)
        assert (after <= before * TILE_SWITCH).all()


@settings(max_examples=12, deadline=None)
@given(asked, means, means)
def test_fewer_experts_are_never_slower(fields: dict[str, Any], one: float, other: float) -> None:
    deployment = deployed(fields)
    fewer, more = sorted((one, other))
    assert (latencies(deployment, fewer) <= latencies(deployment, more) * TILE_SWITCH).all()


@settings(max_examples=12, deadline=None)
@given(asked, means)
def test_a_step_is_never_below_its_roofline(fields: dict[str, Any], mean: float) -> None:
    """FLOPs at the peak, or each weight and cached token once; the same loads."""
    deployment = deployed(fields)
    router = policy("ada-k", {"mean_k": mean})
    point = router.operating_point(deployment.model, deployment.skew)
    priced = step_price(deployment, kernel_prices(deployment), router, point, BATCHES)
    machine = deployment.hardware
    compute = priced.flops / machine.peak_for("bfloat16")
    shape = deployment.rank.expert_parameters
    assert priced.routed is not None
    weights = 2 * shape * priced.routed.cases.loads.distinct
    read = deployment.moe_layers * weights
    if deployment.level != "moe":
        works = [deployment.rank_workload(batch) for batch in BATCHES]
        sizes = [(w.batch, w.sequence_length, w.context_length) for w in works]
        ops = [ops_by_stage(deployment, w.num_tokens, 1)["projections"] for w in works]
        read = read + deployment.layers * np.array([sum(op.bytes_read for op in o) for o in ops])
        calls = AttentionCalls(*np.array(sizes, dtype=float).T)
        read = read + deployment.layers * attention_work(deployment, calls).bytes_moved
    assert (priced.seconds >= compute).all()
    assert (priced.seconds >= read / machine.memory_bandwidth).all()


@settings(max_examples=12, deadline=None)
@given(asked, st.sampled_from(sorted(known_policies())))
def test_parts_add_up_and_intervals_hold_their_value(fields: dict[str, Any], name: str) -> None:
    deployment = deployed(fields)
    options = {"mean_k": 1.5} if known_policies()[name].is_adaptive else {}
    for row in speedups(deployment, policy(name, options), BATCHES):
        own, energy = row.estimate, row.energy
        assert sum(own.by_stage.values()) == pytest.approx(own.latency)
        assert sum(row.memory.values()) == own.peak_memory
        assert own.latency_low is not None and own.latency_high is not None
        assert 0 < own.latency_low < own.latency < own.latency_high < np.inf
        assert 0 < row.low <= row.value <= row.high < np.inf
        assert row.calibration_error[0] < 0 < row.calibration_error[1]
        if energy.joules is not None:
            machine, n = deployment.hardware, deployment.num_devices
            assert machine.idle_power is not None and machine.power_limit is not None
            watts = energy.joules / own.latency / n
            assert machine.idle_power <= watts <= machine.power_limit
            assert energy.low is not None and energy.high is not None
            assert energy.low <= energy.joules <= energy.high


@settings(max_examples=12, deadline=None)
@given(asked, st.sampled_from([64, 128, 256, 512]))
def test_a_recurrent_router_with_as_much_work_is_never_faster(
    fields: dict[str, Any], state: int
) -> None:
    """Where p C + 6 p^2 + p N >= N C, its products are no smaller than the plain router's."""
    deployment, p = deployed(fields), state
    model = deployment.model
    n, c = model.num_experts, model.hidden_size
    if p * c + 6 * p * p + p * n < n * c:
        return
    for row in speedups(deployment, policy("rmoe", {"state_size": p}), BATCHES):
        # A whole model's prefill waits for the host, which hides some of the router's work.
        assert row.value <= 1 and row.high <= (1.01 if deployment.level == "model" else 1 + 1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_top_k_over_itself_is_one_with_an_interval_of_nothing(level: str) -> None:
    whole = Deployment(MIXTRAL, H100, level=level)  # type: ignore[arg-type]
    for row in speedups(whole, policy("top-k"), BATCHES):
        assert row.value == row.flops_promise == 1.0
        assert (row.low, row.high) == pytest.approx((1.0, 1.0))


def part(rows: tuple[Speedup, ...], names: tuple[str, ...]) -> np.ndarray:
    return np.array([sum(row.estimate.by_stage.get(name, 0.0) for name in names) for row in rows])


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3"])
def test_tensor_parallel_ranks_hold_less_and_compute_less(name: str) -> None:
    """Everything but communication; what one rank does is a narrower model's work."""
    computing = (*EXPERT_STAGES, "shared", "projections", "attention", "dense layers", "head")
    before: tuple[Speedup, ...] | None = None
    for tp in (1, 2, 4, 8):
        whole = Deployment(load_model(name), H100, level="model", parallel=Parallelism(tp))
        rows = speedups(whole, policy("top-k"), BATCHES)
        if before:
            assert (part(rows, computing) <= part(before, computing) * TILE_SWITCH).all()
            assert all(
                a.estimate.peak_memory < b.estimate.peak_memory
                for a, b in zip(rows, before, strict=True)
            )
            # Large messages of more ranks are added up in the switches (NVLink SHARP).
            summed = part(rows, ("all-reduce",)), part(before, ("all-reduce",))
            assert (summed[0] >= 0.9 * summed[1]).all()
        before = rows


def test_expert_parallel_groups_hold_less_and_the_matmuls_of_a_rank_shrink() -> None:
    matmuls = ("first matmul", "second matmul")
    before: tuple[Speedup, ...] | None = None
    for ep in (1, 2, 4, 8):
        whole = Deployment(
            load_model("deepseek-v3"), H100, level="model", parallel=Parallelism(1, ep)
        )
        rows = speedups(whole, policy("top-k"), BATCHES)
        if before:
            assert (part(rows, matmuls) <= part(before, matmuls) * TILE_SWITCH).all()
            assert (part(rows, matmuls)[-2:] < 0.8 * part(before, matmuls)[-2:]).all()
            assert all(
                a.estimate.peak_memory < b.estimate.peak_memory
                for a, b in zip(rows, before, strict=True)
            )
        before = rows


def test_a_model_is_its_layers_and_its_head() -> None:
    """61 attention layers, 58 MoE layers, 3 dense ones of DeepSeek-V3."""
    deep = Deployment(
        load_model("deepseek-v3"), load_hardware("b200-sxm"), level="model", dtype="bf16"
    )
    whole = speedups(deep, policy("top-k"), BATCHES)
    layer = speedups(replace(deep, level="decoder"), policy("top-k"), BATCHES)
    for row, other in zip(whole, layer, strict=True):
        a, b = row.estimate.by_stage, other.estimate.by_stage
        for name, count in (("attention", 61), ("projections", 61), ("launch", 58)):
            assert a[name] == pytest.approx(count * b[name])
        assert a["shared"] < 58 * b["shared"], "they run beside the routed experts"
        assert {"head", "dense layers", "engine"} == set(a) - set(b)
    fewer = speedups(replace(deep, num_layers=4), policy("top-k"), BATCHES)
    assert fewer[0].estimate.by_stage["launch"] == pytest.approx(
        layer[0].estimate.by_stage["launch"]
    )


def test_prefill_of_many_tokens_is_decode_of_as_many_sequences_in_the_moe_layer() -> None:
    prefill = Deployment(MIXTRAL, H100, phase="prefill", context=128)
    decode = Deployment(MIXTRAL, H100, phase="decode")
    a = speedups(prefill, policy("ada-k"), [1, 4])
    b = speedups(decode, policy("ada-k"), [128, 512])
    assert [row.estimate.latency for row in a] == [row.estimate.latency for row in b]


def test_a_training_step_is_three_forward_passes() -> None:
    forward = Deployment(MIXTRAL, H100, phase="prefill", context=128)
    a = speedups(forward, policy("ada-k"), [2])[0].estimate
    b = speedups(replace(forward, phase="train"), policy("ada-k"), [2])[0].estimate
    assert b.latency == pytest.approx(3 * a.latency)
    assert a.latency_high is not None and b.latency_high is not None
    assert b.latency_high / b.latency > a.latency_high / a.latency
    assert "backward-not-measured" in {caveat.kind for caveat in b.caveats}


def test_latent_attention_decodes_on_compressed_vectors() -> None:
    """DeepSeek-V3: 128 heads, each 576 wide against the cache and 512 wide on the way out."""
    deep = Deployment(load_model("deepseek-v3"), H100, level="decoder", context=999)
    work = attention_work(deep, AttentionCalls(*np.array([[5.0], [1.0], [999.0]])))
    assert work.flops.tolist() == [2 * 5 * 1000 * 128 * (576 + 512)]
    a, h = deep.model.attention, 7168
    down = h * (a.query_rank + 576)
    up = 128 * (1536 * (128 + 64) + 512 * (128 + 128) + 128 * h)
    assert total_flops(ops_by_stage(deep, 5, 5)["projections"]) == 2 * 5 * (down + up)


def test_a_step_that_does_not_fit_says_so() -> None:
    whole = Deployment(MIXTRAL, H100, level="model")
    for ranks, fits in ((1, False), (2, True)):
        (row,) = speedups(replace(whole, parallel=Parallelism(ranks)), policy("ada-k"), [1])
        kinds = {caveat.kind for caveat in row.estimate.caveats}
        assert ("out-of-memory" not in kinds) == fits


def test_energy_is_missing_with_a_reason_where_idle_power_is_unknown() -> None:
    china = Deployment(MIXTRAL, load_hardware("a800-sxm-80gb"))
    (row,) = speedups(china, policy("ada-k"), [1])
    assert row.estimate.energy is None and "idle_power" in (row.estimate.energy_missing or "")


@pytest.mark.parametrize("name", hardware_names())
def test_adaptive_routing_gains_at_both_ends_and_little_in_between(name: str) -> None:
    """FLOPs promise 1.43 everywhere; where a batch touches all experts, weights are read anyway.

    A switch of tiles may help or hurt single batches in between.
    """
    layer = Deployment(MIXTRAL, load_hardware(name))
    rows = speedups(layer, policy("ada-k"), [1, 16, 32, 64, 16384])
    assert all(1.40 < row.flops_promise < 1.44 for row in rows)
    assert rows[0].value > 1.2 and rows[-1].value > 1.2
    assert min(row.value for row in rows[1:4]) < 1.1
    assert rows[0].estimate.distinct_experts == pytest.approx(1.4, rel=1e-3)


@pytest.mark.parametrize("level", ["moe", "model"])
@pytest.mark.parametrize("router", ["ada-k", "adamoe"])
def test_a_break_even_is_where_the_speedup_reaches_the_target(level: str, router: str) -> None:
    whole = Deployment(MIXTRAL, H100, level=level)  # type: ignore[arg-type]
    batches = [1, 8, 64, 2048]
    found = break_even(whole, router, batches, 1.10)
    assert any(row.mean_k is not None for row in found)
    for row in found:
        if row.mean_k is None:
            assert row.largest_speedup < 1.10
            continue

        def speedup(mean: float, batch: int = row.batch) -> float:
            own = policy(router, {"mean_k": mean})
            return speedups(whole, own, [batch])[0].value

        assert speedup(row.mean_k) >= 1.10
        assert speedup(row.mean_k + 0.01) < 1.10 + 1e-3


def test_a_whole_model_breaks_even_at_fewer_experts_than_its_layer() -> None:
    options: Mapping[str, Deployment] = {
        level: Deployment(MIXTRAL, H100, level=level) for level in LEVELS
    }
    means = [break_even(options[level], "ada-k", [1], 1.10)[0].mean_k or 0.0 for level in LEVELS]
    assert means[0] > means[1] >= means[2]
