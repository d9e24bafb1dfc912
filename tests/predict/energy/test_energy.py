"""The energy model: laws of physics and of serving, arithmetic by hand, shipped files."""

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.predict.energy.calibration import (
    LayerWork,
    energy_calibration,
    energy_interval,
    layer_energy,
    power_interval,
    shipped_energy,
)
from moebench.predict.energy.cases import PRECISIONS, TASKS, Backbone, Cases, Serving, cases_of
from moebench.predict.energy.parameters import METADATA, PARAMETERS, EnergyParameters
from moebench.predict.energy.power import (
    energy_per_token,
    limits,
    power,
    step_power,
    step_seconds,
)
from moebench.predict.energy.step import step_time, step_traffic
from moebench.spec.hardware import load_hardware

MIXTRAL = Backbone("mixtral", 32, 0, 4096, 8, 2, 14336, 32, 8, 128, 32000, 46.70e9, 12.75e9, 65536)
QWEN = Backbone("qwen", 48, 0, 2048, 128, 8, 768, 32, 4, 128, 151936, 30.53e9, 3.04e9, 49152)
DENSE = Backbone("dense", 0, 32, 4096, 0, 0, 0, 32, 8, 128, 128256, 8.03e9, 8.03e9, 65536)
GPUS = ("a100-sxm-40gb", "h100-sxm", "b200-sxm", "h200-sxm", "l40s")


def serving(**changes: Any) -> Serving:
    usual = Serving(QWEN, "bfloat16", "lm-arena-chat", 1, 64.0, 500.0)
    return dataclasses.replace(usual, **changes)


servings = st.builds(
    Serving,
    backbone=st.sampled_from([MIXTRAL, QWEN, DENSE]),
    precision=st.sampled_from(PRECISIONS),
    task=st.sampled_from(TASKS),
    num_gpus=st.sampled_from([1, 2, 4, 8]),
    batch=st.floats(1, 4096),
    output_tokens=st.floats(20, 10000),
    old_engine=st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(one=servings, gpu=st.sampled_from(GPUS), stretch=st.floats(0.01, 100))
def test_power_lies_between_idle_and_the_limit_whatever_the_throughput(
    one: Serving, gpu: str, stretch: float
) -> None:
    model = energy_calibration(gpu)
    cases = cases_of([one])
    seconds = stretch * step_seconds(model.parameters, model.hardware, cases)
    watts = power(model.parameters, model.hardware, cases, seconds)
    idle, limit = limits(model.hardware)
    assert idle < watts[0] <= limit
    for is_given in (True, False):
        low, high = power_interval(model, cases, watts, is_given)
        assert idle <= low[0] <= watts[0] <= high[0] <= limit
        assert low[0] < high[0]


@settings(deadline=None, max_examples=60)
@given(one=servings, gpu=st.sampled_from(GPUS), more=st.floats(1, 3), which=st.integers(0, 3))
def test_more_bytes_or_flops_in_the_same_time_never_need_less_energy(
    one: Serving, gpu: str, more: float, which: int
) -> None:
    model = energy_calibration(gpu)
    cases = cases_of([one])
    traffic = step_traffic(model.parameters, model.hardware, cases)
    time = step_time(model.parameters, model.hardware, traffic)
    name = ("expert_bytes", "cache_bytes", "expert_flops", "other_flops")[which]
    grown = dataclasses.replace(traffic, **{name: more * getattr(traffic, name)})

    def watts(moved: Any) -> float:
        found = step_power(model.parameters, model.hardware, moved, time, 2 * time.seconds)
        return float(found[0])

    assert watts(grown) >= watts(traffic) * (1 - 1e-12)


@settings(deadline=None, max_examples=60)
@given(one=servings, gpu=st.sampled_from(GPUS))
def test_energy_per_token_falls_when_the_batch_doubles(one: Serving, gpu: str) -> None:
    """Until the cache is full; 246 of 255 measured steps between batch sizes fall, too."""
    model = energy_calibration(gpu)
    small, large = (dataclasses.replace(one, batch=b) for b in (one.batch, 2 * one.batch))
    traffic = step_traffic(model.parameters, model.hardware, cases_of([large]))
    joules = energy_per_token(model.parameters, model.hardware, cases_of([small, large]))
    if traffic.running[0] > 0.9 * large.batch:
        assert joules[1] < 1.03 * joules[0]


@settings(deadline=None, max_examples=60)
@given(one=servings, gpu=st.sampled_from(GPUS))
def test_energy_per_token_is_at_least_what_dram_needs(one: Serving, gpu: str) -> None:
    """31 pJ a byte at the DRAM and its interface (O'Connor et al., MICRO 2017)."""
    model = energy_calibration(gpu)
    cases = cases_of([one])
    traffic = step_traffic(model.parameters, model.hardware, cases)
    joules = energy_per_token(model.parameters, model.hardware, cases)
    least = 31e-12 * traffic.bytes * cases.num_gpus / traffic.running
    assert joules[0] > least[0]


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_cost_the_same_per_token_as_one(replicas: int) -> None:
    """A replica is another run: n times the power at n times the throughput."""
    model = energy_calibration("h100-sxm")
    run = cases_of([serving()] * replicas)
    watts = power(
        model.parameters, model.hardware, run,
        step_seconds(model.parameters, model.hardware, run),
    )  # fmt: skip
    one = energy_per_token(model.parameters, model.hardware, run[:1])
    rate = (run.batch / step_seconds(model.parameters, model.hardware, run)).sum()
    assert watts.sum() / rate == pytest.approx(one[0])


def test_sparse_experts_cost_less_than_a_dense_model_of_the_same_size() -> None:
    """Measured on one B200: Qwen3-30B-A3B 0.72 J against Qwen3-32B's 1.55 J at batch 8."""
    dense = Backbone("d", 0, 64, 5120, 0, 0, 0, 64, 8, 128, 151936, 32.76e9, 32.76e9, 131072)
    model = energy_calibration("b200-sxm")
    cases = cases_of([serving(batch=8.0), serving(backbone=dense, batch=8.0)])
    sparse, full = energy_per_token(model.parameters, model.hardware, cases)
    assert sparse < 0.75 * full


def test_bytes_of_a_step_are_those_counted_by_hand() -> None:
    """Batch 1 of Mixtral without prompts reads two of eight experts in each of 32 layers."""
    cases = cases_of([serving(backbone=MIXTRAL, batch=1.0, output_tokens=1e9)])
    hardware = dataclasses.replace(load_hardware("b200-sxm"), memory_capacity=1e18)
    traffic = step_traffic(EnergyParameters(), hardware, cases)
    assert traffic.expert_bytes[0] == pytest.approx(32 * 2 * 3 * 4096 * 14336 * 2, rel=1e-6)
    others = 46.70e9 - 32 * 8 * 3 * 4096 * 14336 - 32000 * 4096
    assert traffic.other_bytes[0] == pytest.approx(2 * others)
    assert traffic.cache_bytes[0] == pytest.approx(2 * 65536 * 5e8, rel=1e-3)
    assert traffic.link_bytes[0] == 0


def drawn(skew: float, **changes: Any) -> Any:
    """Traffic of 16 sequences without prompts, with all the memory they need."""
    cases = cases_of([serving(batch=16.0, output_tokens=1e9, **changes)])
    hardware = dataclasses.replace(load_hardware("b200-sxm"), memory_capacity=1e18)
    return step_traffic(EnergyParameters(expert_skew=skew), hardware, cases)


def test_experts_and_their_most_loaded_rank_follow_an_actual_draw() -> None:
    """Even popularity; 8 ranks of 16 experts."""
    rng = np.random.default_rng(0)
    touched = np.zeros((400, 128))
    for row in touched:
        for _ in range(16):
            row[rng.choice(128, 8, replace=False)] = 1
    ranks = touched.reshape(400, 8, 16).sum(2)
    traffic = drawn(1e-6, num_gpus=8, expert_parallel=8)
    assert traffic.touched[0] == pytest.approx(touched.mean(), rel=0.01)
    excess = ranks.max(1).mean() / ranks.mean() - 1
    assert traffic.uneven_experts[0] == pytest.approx(excess, rel=0.1)


def test_distinct_experts_follow_a_draw_of_uneven_popularity() -> None:
    """A token misses an expert by a gamma-distributed rate, in the mean as often as k of E miss."""
    rng, skew = np.random.default_rng(0), 1.2
    rate = rng.gamma(1 / skew, (1 - 8 / 128) ** -skew - 1, size=200_000)
    assert np.exp(-rate).mean() == pytest.approx(1 - 8 / 128, rel=1e-3)
    traffic = drawn(skew)
    assert traffic.touched[0] == pytest.approx(-np.expm1(-16 * rate).mean(), rel=0.01)
    assert traffic.touched[0] < drawn(1e-6).touched[0]


@settings(deadline=None, max_examples=60)
@given(one=servings, gpu=st.sampled_from(GPUS), ranks=st.sampled_from([2, 4, 8]))
def test_whole_experts_on_ranks_are_never_faster_than_parts_of_each(
    one: Serving, gpu: str, ranks: int
) -> None:
    """The most loaded rank keeps the others waiting, at less power given the same time."""
    model = energy_calibration(gpu)
    parts, whole = (dataclasses.replace(one, num_gpus=ranks, expert_parallel=n) for n in (1, ranks))
    cases = cases_of([parts, whole])
    seconds = step_seconds(model.parameters, model.hardware, cases)
    assert seconds[1] >= seconds[0] * (1 - 1e-12)
    traffic = step_traffic(model.parameters, model.hardware, cases)
    time = step_time(model.parameters, model.hardware, traffic)
    assert time.seconds[1] <= time.seconds[0] + (ranks - 1) * time.experts[1] * (1 + 1e-9)


def test_ranks_of_experts_are_at_most_the_gpus() -> None:
    with pytest.raises(ValueError, match="expert_parallel: found 8, expected at most num_gpus"):
        cases_of([serving(num_gpus=4, expert_parallel=8)])


def test_a_backbone_larger_than_any_fitted_has_a_wider_interval() -> None:
    model = energy_calibration("b200-sxm")
    largest = model.fit.origin.largest
    sizes = [largest / 2, largest, 1.5 * largest, 2 * largest, 8 * largest]
    backbones = [dataclasses.replace(QWEN, total_parameters=size) for size in sizes]
    cases = cases_of([serving(backbone=one, num_gpus=8) for one in backbones])
    low, high = energy_interval(model, cases, np.ones(len(sizes)))
    width = np.log(high / low)
    assert width[0] == width[1] < width[2] < width[3] == width[4]


def test_requests_whose_cache_does_not_fit_wait() -> None:
    model = energy_calibration("b200-sxm")
    cases = cases_of([serving(batch=b, output_tokens=9000.0) for b in (8.0, 4096.0)])
    traffic = step_traffic(model.parameters, model.hardware, cases)
    assert traffic.running[0] == pytest.approx(8, rel=1e-3)
    weights = 2 * (30.53e9 - 151936 * 2048)
    room = 0.9 * model.hardware.memory_capacity - weights
    context = model.parameters.text_prompt + 4500
    fits = room / (context * 2 * 49152)
    assert 0.9 * fits < traffic.running[1] <= fits


def test_a_stalled_gpu_draws_what_it_draws_while_waiting() -> None:
    model = energy_calibration("b200-sxm")
    cases = cases_of([serving()])
    expected = step_seconds(model.parameters, model.hardware, cases)
    watts = power(model.parameters, model.hardware, cases, 1e4 * expected)[0]
    idle, limit = limits(model.hardware)
    p = model.parameters
    waiting = idle + (limit - idle) * (p.wait_power + p.busy_power * p.stall_activity)
    assert watts == pytest.approx(waiting, rel=0.01)


def test_a_layer_costs_constant_bytes_and_flops_within_its_bounds() -> None:
    model = energy_calibration("h100-sxm")
    base = layer_energy(model, LayerWork(1e6, 1e6), 1e-3)
    more_bytes = layer_energy(model, LayerWork(5e8, 1e6), 1e-3)
    more_flops = layer_energy(model, LayerWork(1e6, 1e11), 1e-3)
    endless = layer_energy(model, LayerWork(1e15, 1e6), 1e-3)
    assert base.joules < min(more_bytes.joules, more_flops.joules)
    assert endless.joules == pytest.approx(0.7, rel=1e-3)
    assert 68.5e-3 <= base.low < base.joules < base.high <= 0.7
    assert layer_energy(model, LayerWork(2e6, 2e6), 2e-3).joules == pytest.approx(2 * base.joules)
    with pytest.raises(ValueError, match="seconds"):
        layer_energy(model, LayerWork(1.0, 1.0), 0.0)


def test_small_kernels_draw_less_than_busy_multiprocessors() -> None:
    model = energy_calibration("h100-sxm")
    joules = [
        layer_energy(model, LayerWork(1e6, 1e6, small_share=share), 1e-3).joules
        for share in (0.0, 0.5, 1.0)
    ]
    assert joules[0] > joules[1] > joules[2] > 68.5e-3
    assert joules[0] - joules[1] == pytest.approx(joules[1] - joules[2], rel=0.05)


def test_a_gpu_never_measured_gets_a_wider_interval_and_says_so() -> None:
    own, shared = energy_calibration("h100-sxm"), energy_calibration("h200-sxm")
    assert own.basis == "gpu" and not own.caveats
    assert shared.basis == "device" and shared.caveats[0].kind == "uncalibrated-energy"
    cases = cases_of([serving()])
    joules = np.array([1.0])
    spread = [np.ptp(np.log(energy_interval(m, cases, joules))) for m in (own, shared)]
    assert spread[1] > spread[0]
    with pytest.raises(ValueError, match="idle_power"):
        energy_calibration("a800-sxm-80gb")  # nobody published its idle power
    with pytest.raises(ValueError, match="unknown hardware"):
        energy_calibration("h1000")


@pytest.mark.parametrize(
    ("gpu", "relative"),
    [
        ("h200-sxm", "h100-sxm"), ("a100-sxm-80gb", "a100-sxm-40gb"), ("gb200", "b200-sxm"),
        ("b300-sxm", "b200-sxm"), ("l40s", "shared"), ("rtx-pro-6000", "shared"),
    ],
)  # fmt: skip
def test_a_gpu_without_rows_takes_coefficients_of_a_relative(gpu: str, relative: str) -> None:
    found, fits = energy_calibration(gpu), shipped_energy()
    assert found.parameters == fits[relative].parameters
    assert found.fit.intervals == fits["shared"].intervals


def test_shipped_coefficients_are_physically_possible() -> None:
    for name, fit in shipped_energy().items():
        p = fit.parameters
        assert p.wait_power < 0.4 and p.wait_power + p.busy_power < 1.0, name
        assert max(p.other_bandwidth, p.cache_bandwidth, p.expert_bandwidth) < 1.1, name
        assert all(getattr(p, parameter) > 0 for parameter in PARAMETERS)
        assert len(fit.origin.sha256) == len(fit.origin.tables)


def test_every_coefficient_has_a_prior() -> None:
    assert all(METADATA[name]["spread"] > 0 for name in PARAMETERS)


def test_cases_refuse_what_is_not_positive() -> None:
    with pytest.raises(ValueError, match="batch: found 0"):
        cases_of([serving(batch=0.0)])


def test_cases_can_be_selected() -> None:
    cases = cases_of([serving(), serving(batch=8.0)])
    assert isinstance(cases[1:], Cases) and cases[1:].batch.tolist() == [8.0]


def test_energy_needs_no_torch() -> None:
    code = (
        "import sys; from moebench.predict.energy.calibration import energy_calibration; "
        "energy_calibration('h100-sxm'); assert 'torch' not in sys.modules; "
        "assert 'scipy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
