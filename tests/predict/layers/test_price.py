"""Estimates: laws that hold on every machine, and Mixtral's published arithmetic."""

import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.experts.catalogue import EXPERT_BACKENDS
from moebench.predict.kernels.dense import shipped_dense
from moebench.predict.layers.calibration import GRAPH_LAUNCH, from_datasheet
from moebench.predict.layers.memory import layers_memory
from moebench.predict.layers.op_price import op_price
from moebench.predict.layers.price import estimate
from moebench.records.results import Estimate
from moebench.routers.policy import policy
from moebench.spec.case import Launch, Workload
from moebench.spec.hardware import HardwareSpec
from moebench.spec.layer import layer_ops
from moebench.spec.load import ExpertLoad, fixed_k, geometric_k
from moebench.spec.model import load_model
from moebench.spec.ops import Op, total_flops, training_ops

MIXTRAL, TOP_K = load_model("mixtral-8x7b"), policy("top-k")
GPU = HardwareSpec(
    name="test-gpu",
    title="A GPU made for tests",
    kind="gpu",
    source="made for tests",
    peak={"bfloat16": 1e15},
    memory_bandwidth=3e12,
    memory_capacity=80e9,
    cache=50e6,
)
batches = st.integers(1, 4096)
levels = st.sampled_from(("moe", "decoder"))


def decode_ops(batch: int, level: str = "moe", backend: str = "grouped") -> tuple[Op, ...]:
    """A layer's ops under top-2."""
    workload = Workload("decode", level, batch, 1, 1024)  # type: ignore[arg-type]
    load = ExpertLoad.expected(batch, 8, fixed_k(2))
    router = TOP_K.ops(MIXTRAL, batch, "bfloat16")
    return layer_ops(MIXTRAL, workload, router, load, EXPERT_BACKENDS[backend])


def predict(
    batch: int,
    k_distribution: tuple[float, ...],
    level: str,
    hardware: HardwareSpec = GPU,
    launch: Launch = "eager",
) -> Estimate:
    workload = Workload("decode", level, batch, 1, 1024)  # type: ignore[arg-type]
    load = ExpertLoad.expected(batch, 8, k_distribution)
    router = TOP_K.ops(MIXTRAL, batch, "bfloat16")
    ops = layer_ops(MIXTRAL, workload, router, load, EXPERT_BACKENDS["grouped"])
    memory = layers_memory(MIXTRAL, workload, (load,), 8 * 4096)
    calibration = from_datasheet(hardware, "bfloat16")
    prices = calibration.replayed() if launch == "graph" else calibration
    return estimate(ops, load, 1, memory, prices)


@settings(max_examples=60)
@given(batch=batches, level=levels, mean=st.floats(1, 2))
def test_fewer_assignments_are_never_slower(batch: int, level: str, mean: float) -> None:
    fewer = predict(batch, geometric_k(mean, 8), level)
    assert fewer.latency <= predict(batch, fixed_k(2), level).latency * (1 + 1e-9)
    assert fewer.flops <= predict(batch, fixed_k(2), level).flops * (1 + 1e-9)


@settings(max_examples=40)
@given(batch=batches, level=levels, faster=st.floats(1, 4))
def test_a_faster_machine_is_never_slower(batch: int, level: str, faster: float) -> None:
    better = replace(
        GPU,
        peak={"bfloat16": 1e15 * faster},
        memory_bandwidth=3e12 * faster,
    )
    k = fixed_k(2)
    assert predict(batch, k, level, better).latency <= predict(batch, k, level).latency


@settings(max_examples=40)
@given(batch=batches, level=levels)
def test_never_below_the_roofline(batch: int, level: str) -> None:
    workload = Workload("decode", level, batch, 1, 1024)  # type: ignore[arg-type]
    load = ExpertLoad.expected(batch, 8, fixed_k(2))
    router = TOP_K.ops(MIXTRAL, batch, "bfloat16")
    ops = layer_ops(MIXTRAL, workload, router, load, EXPERT_BACKENDS["grouped"])
    calibration = from_datasheet(GPU, "bfloat16")
    for op in ops:
        floor = max(op.flops / 1e15, op.bytes_moved / 3e12)
        assert op_price(op, calibration).seconds >= floor


def test_stages_add_up_to_the_latency() -> None:
    result = predict(16, fixed_k(2), "decoder")
    assert sum(result.by_stage.values()) == pytest.approx(result.latency)


def test_a_single_token_is_bound_by_weights_and_a_long_prefill_by_compute() -> None:
    assert predict(1, fixed_k(2), "moe").bound == "weights"
    assert predict(65536, fixed_k(2), "moe").bound == "compute"


def test_layers_multiply_latency_and_flops() -> None:
    workload = Workload("decode", "moe", 4)
    load = ExpertLoad.expected(4, 8, fixed_k(2))
    router = TOP_K.ops(MIXTRAL, 4, "bfloat16")
    ops = layer_ops(MIXTRAL, workload, router, load, EXPERT_BACKENDS["grouped"])
    calibration = from_datasheet(GPU, "bfloat16")
    one = estimate(ops, load, 1, 0.0, calibration)
    four = estimate(ops, load, 4, 0.0, calibration)
    assert four.latency == pytest.approx(4 * one.latency)
    assert four.flops == pytest.approx(4 * one.flops)


def test_backward_does_twice_the_flops_of_forward() -> None:
    workload = Workload("train", "decoder", 1, 512)
    load = ExpertLoad.expected(512, 8, fixed_k(2))
    router = TOP_K.ops(MIXTRAL, 512, "bfloat16")
    forward = layer_ops(MIXTRAL, workload, router, load, EXPERT_BACKENDS["grouped"])
    assert total_flops(training_ops(forward)) == pytest.approx(3 * total_flops(forward))


def test_a_mixtral_layer_weighs_what_its_parameters_say() -> None:
    workload = Workload("decode", "decoder", 1, 1, 1024)
    load = ExpertLoad.expected(1, 8, fixed_k(2))
    memory = layers_memory(MIXTRAL, workload, (load,), 8 * 4096)
    attention = 2 * 4096 * 4096 + 2 * 1024 * 4096
    weights = 2 * (attention + 8 * 3 * 4096 * 14336 + 8 * 4096 + 2 * 4096)
    cache = 2 * 2 * 8 * 128 * 1025
    assert memory == pytest.approx(weights + cache, rel=1e-3)
    assert memory > weights + cache


def test_training_holds_a_gradient_for_every_weight() -> None:
    load = ExpertLoad.expected(512, 8, fixed_k(2))
    prefill = layers_memory(MIXTRAL, Workload("prefill", "moe", 1, 512), (load,), 8 * 4096)
    train = layers_memory(MIXTRAL, Workload("train", "moe", 1, 512), (load,), 8 * 4096)
    assert train > 1.9 * prefill


@pytest.mark.parametrize("backend", ["packed", "avx512"])
def test_experts_in_blocks_lie_in_memory_twice(backend: str) -> None:
    load = ExpertLoad.expected(1, 8, fixed_k(2))
    workload = Workload("decode", "decoder", 1, 1, 1024)
    plain, blocks = (
        layers_memory(MIXTRAL, workload, (load, load), 8 * 4096, calls.copied_bytes("bfloat16"))
        for calls in (EXPERT_BACKENDS["grouped"], EXPERT_BACKENDS[backend])
    )
    assert blocks - plain == 2 * 2 * 8 * 3 * 4096 * 14336


def test_prices_of_packed_weights_are_those_of_packed_experts_and_of_nothing_else() -> None:
    workload, load = Workload("decode", "decoder", 16), ExpertLoad.expected(16, 8, fixed_k(2))
    router = TOP_K.ops(MIXTRAL, 16, "bfloat16")
    calibration = from_datasheet(GPU, "bfloat16")
    packed = calibration.matmuls["packed"]
    streaming = replace(packed, bandwidth=2 * packed.bandwidth)
    faster = replace(calibration, matmuls={**calibration.matmuls, "packed": streaming})
    for name, changed in (("packed", {"experts"}), ("grouped", set()), ("avx512", set())):
        ops = layer_ops(MIXTRAL, workload, router, load, EXPERT_BACKENDS[name])
        before, after = (
            estimate(ops, load, 1, 0.0, prices).by_stage for prices in (calibration, faster)
        )
        assert {stage for stage in before if after[stage] < before[stage]} == changed


def test_without_a_calibration_the_prediction_says_so_and_has_no_interval() -> None:
    result = predict(1, fixed_k(2), "moe")
    assert result.latency_low is None and result.latency_high is None
    assert [caveat.kind for caveat in result.caveats] == ["never-calibrated"]


@settings(max_examples=40)
@given(batch=batches, level=levels, overhead=st.floats(1e-7, 1e-4))
def test_a_graph_is_never_slower_and_saves_no_more_than_its_launches(
    batch: int, level: str, overhead: float
) -> None:
    host = replace(GPU, launch_overhead=overhead)
    eager = predict(batch, fixed_k(2), level, host)
    graph = predict(batch, fixed_k(2), level, host, "graph")
    free = predict(batch, fixed_k(2), level, replace(GPU, launch_overhead=1e-12))
    assert free.latency * (1 - 1e-9) <= graph.latency < eager.latency
    assert (graph.flops, graph.bytes_moved) == (eager.flops, eager.bytes_moved)
    launches = sum(op.launches for op in decode_ops(batch, level))
    assert eager.latency - graph.latency <= overhead * (launches + 1) * (1 + 1e-9)


def test_a_graph_s_price_of_launches_is_said_to_be_an_assumption() -> None:
    kinds = [caveat.kind for caveat in predict(1, fixed_k(2), "moe", launch="graph").caveats]
    assert kinds == ["never-calibrated", "graph-launches"]


def test_the_price_of_a_graph_s_launch_is_the_median_of_fitted_gpus() -> None:
    fitted = [device.launch for device in shipped_dense().values()]
    assert statistics.median(fitted) == pytest.approx(GRAPH_LAUNCH, rel=0.1)
