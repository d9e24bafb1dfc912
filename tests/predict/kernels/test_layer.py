"""Laws of the GPU model over random parameters, devices, shapes and loads."""

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.predict.kernels.catalogue import Kernel
from moebench.predict.kernels.layer import LayerCalls, LayerCases, layer_time, roofline
from moebench.predict.kernels.loads import expected_loads
from moebench.predict.kernels.parameters import METADATA, Parameters
from moebench.predict.kernels.price import KERNELS
from moebench.predict.kernels.samplers import Routed, sampled_loads
from moebench.spec.hardware import HardwareSpec, load_hardware

SWITCH = 1.03
"""A change of tile may bend a law by this much."""

devices = st.sampled_from(["a100-sxm-80gb", "h100-sxm", "h200-sxm", "b200-sxm", "l40s"])
kernels = st.sampled_from(sorted(KERNELS)).map(KERNELS.__getitem__)
shapes = st.sampled_from(
    [(4096, 14336, 2, 8), (2048, 768, 8, 128), (7168, 256, 8, 256), (4096, 84, 22, 512)]
)


@st.composite
def parameters(draw: st.DrawFn) -> Parameters:
    values = {}
    for name, meta in METADATA.items():
        factor = np.exp(meta["spread"] * draw(st.floats(-1.5, 1.5)))
        values[name] = float(min(meta["typical"] * factor, meta["ceiling"]))
    return Parameters(**values)


def one_case(
    kernel: Kernel,
    hardware: HardwareSpec,
    shape: tuple[int, int, int, int],
    tokens: int,
    mean_k: float | None = None,
    ranks: int = 1,
) -> LayerCases:
    hidden, inner, top_k, experts = shape
    k = float(top_k if mean_k is None else mean_k)
    loads = expected_loads([np.full(experts // ranks, tokens * k / experts)], [tokens])
    calls = LayerCalls(
        num_tokens=np.array([float(tokens)]),
        hidden_size=np.array([float(hidden)]),
        inner_size=np.array([float(inner)]),
        top_k=np.array([float(top_k)]),
        num_experts=np.array([float(experts)]),
        expert_parallel=np.array([float(ranks)]),
    )
    return kernel.cases(hardware, loads, calls)


@settings(max_examples=50, deadline=None)
@given(parameters(), devices, kernels, shapes, st.integers(1, 20000), st.booleans())
def test_more_bandwidth_or_peak_is_never_slower(
    p: Parameters,
    device: str,
    kernel: Kernel,
    shape: tuple[int, int, int, int],
    tokens: int,
    warm: bool,
) -> None:
    hardware = load_hardware(device)
    cases = one_case(kernel, hardware, shape, tokens)
    base = layer_time(p, hardware, cases, warm).seconds[0]
    wider = dataclasses.replace(hardware, memory_bandwidth=1.3 * hardware.memory_bandwidth)
    peak = {name: 1.3 * value for name, value in hardware.peak.items()}
    faster = dataclasses.replace(hardware, peak=peak)
    assert layer_time(p, wider, cases, warm).seconds[0] <= base * (1 + 1e-9)
    assert layer_time(p, faster, cases, warm).seconds[0] <= base * (1 + 1e-9)


@settings(max_examples=50, deadline=None)
@given(parameters(), devices, kernels, shapes, st.integers(1, 20000), st.floats(0.3, 0.99))
def test_fewer_assignments_are_never_slower(
    p: Parameters,
    device: str,
    kernel: Kernel,
    shape: tuple[int, int, int, int],
    tokens: int,
    share: float,
) -> None:
    hardware = load_hardware(device)
    full = layer_time(p, hardware, one_case(kernel, hardware, shape, tokens)).seconds[0]
    less = one_case(kernel, hardware, shape, tokens, share * shape[2])
    assert layer_time(p, hardware, less).seconds[0] <= SWITCH * full


@settings(max_examples=50, deadline=None)
@given(parameters(), devices, kernels, shapes, st.integers(1, 20000), st.sampled_from([1, 2, 8]))
def test_cold_is_never_faster_than_warm_nor_than_the_roofline(
    p: Parameters,
    device: str,
    kernel: Kernel,
    shape: tuple[int, int, int, int],
    tokens: int,
    ranks: int,
) -> None:
    hardware = load_hardware(device)
    cases = one_case(kernel, hardware, shape, tokens, ranks=ranks)
    cold = layer_time(p, hardware, cases)
    assert cold.seconds[0] >= layer_time(p, hardware, cases, warm=True).seconds[0] * (1 - 1e-9)
    assert cold.seconds[0] >= roofline(hardware, cases)[0]
    assert sum(cold.stages.values())[0] == pytest.approx(cold.seconds[0])


def test_fp8_weights_are_faster_where_weights_bound() -> None:
    hardware = load_hardware("h100-sxm")
    kernel = KERNELS["trtllm-cutlass"]
    half = dataclasses.replace(kernel, dtype="float8")
    times = [
        layer_time(Parameters(), hardware, one_case(k, hardware, (4096, 14336, 2, 8), 16)).seconds
        for k in (kernel, half)
    ]
    assert times[1][0] < 0.65 * times[0][0]


def test_a_machine_without_the_needed_figure_is_refused() -> None:
    hardware = dataclasses.replace(load_hardware("h100-sxm"), shared_memory=None)
    cases = one_case(KERNELS["vllm-triton"], hardware, (4096, 14336, 2, 8), 16)
    with pytest.raises(ValueError, match="h100-sxm: shared_memory is missing"):
        layer_time(Parameters(), hardware, cases)


@pytest.mark.slow
def test_a_million_cases_in_seconds() -> None:
    hardware = load_hardware("h100-sxm")
    count = 1_000_000
    tokens = np.tile(2.0 ** np.arange(10), count // 10)
    few = sampled_loads([Routed(int(t), 8, 128) for t in tokens[:10]], "current")
    loads = few[np.tile(np.arange(10), count // 10)]
    constants = {"hidden_size": 2048.0, "inner_size": 768.0, "top_k": 8.0, "num_experts": 128.0}
    columns = {name: np.full(count, value) for name, value in constants.items()}
    calls = LayerCalls(num_tokens=tokens, expert_parallel=np.ones(count), **columns)
    cases = KERNELS["vllm-triton"].cases(hardware, loads, calls)
    start = time.process_time()
    layer_time(Parameters(), hardware, cases)
    assert time.process_time() - start < 10
