"""Laws of the price over many random cases at once: shapes, loads, devices, shipped parameters.

Where `test_kernel.py` lets hypothesis look for a counterexample among parameters, this draws
thousands of cases from a seed and prices them as a user's question is priced.
"""

import dataclasses
import functools

import numpy as np
import pytest
from numpy.typing import NDArray

from moebench.predict.kernels.catalogue import Kernel
from moebench.predict.kernels.layer import LayerCalls, LayerCases, layer_time, roofline
from moebench.predict.kernels.loads import Loads, expected_loads
from moebench.predict.kernels.price import (
    KERNELS,
    Calibrated,
    calibrated,
    kernel_named,
    price,
    ratio_interval,
)
from moebench.spec.hardware import HardwareSpec, hardware_names, load_hardware
from moebench.spec.load import ExpertLoad, fixed_k, geometric_k, null_expert_k

GPUS = tuple(name for name in hardware_names() if load_hardware(name).kind == "gpu")
SWITCH = 1.03
"""A change of tile may bend a law by this much."""
ROUNDING = 1 + 1e-9
COUNT = 250
"""Cases of each kernel and device."""
Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Random calls of a layer; arrays over cases."""

    tokens: Floats
    hidden: Floats
    inner: Floats
    top_k: Floats
    experts: Floats

    def loads(self, share: float) -> Loads:
        """Loads of that share of the assignments of top-k, spread evenly."""
        counts = share * self.tokens * self.top_k / self.experts
        marginals = [np.full(int(n), each) for n, each in zip(self.experts, counts, strict=True)]
        return expected_loads(marginals, [int(tokens) for tokens in self.tokens])

    def cases(self, kernel: Kernel, hardware: HardwareSpec, loads: Loads) -> LayerCases:
        calls = LayerCalls(
            num_tokens=self.tokens,
            hidden_size=self.hidden,
            inner_size=self.inner,
            top_k=self.top_k,
            num_experts=self.experts,
            expert_parallel=np.ones(len(self.tokens)),
        )
        return kernel.cases(hardware, loads, calls)


@functools.cache
def draw(count: int = COUNT) -> Drawn:
    rng = np.random.default_rng(1)
    experts = rng.choice([8.0, 16, 64, 128, 160, 256, 512], count)
    return Drawn(
        np.rint(2 ** rng.uniform(0, 15, count)),
        rng.choice([1024.0, 2048, 2880, 4096, 5120, 6144, 7168, 8192], count),
        np.rint(2 ** rng.uniform(5, 14, count)),
        np.minimum(rng.choice([1.0, 2, 4, 6, 8, 10], count), experts),
        experts,
    )


FULL, SHARE = 1.0, 0.7


@functools.cache
def loads(share: float, count: int = COUNT) -> Loads:
    return draw(count).loads(share)


def priced(name: str, gpu: str, dtype: str = "bfloat16") -> Calibrated:
    return calibrated(kernel_named(name, dtype=dtype), load_hardware(gpu))


PAIRS = [(sorted(KERNELS)[number % len(KERNELS)], gpu) for number, gpu in enumerate(GPUS)]
"""Every device, and every kernel on some of them."""


@pytest.mark.parametrize(("name", "gpu"), PAIRS)
def test_more_bandwidth_or_peak_or_fewer_assignments_are_never_slower(name: str, gpu: str) -> None:
    chosen = priced(name, gpu)
    hardware, parameters = chosen.hardware, chosen.parameters
    cases = draw().cases(chosen.kernel, hardware, loads(FULL))
    base = layer_time(parameters, hardware, cases).seconds
    wider = dataclasses.replace(hardware, memory_bandwidth=1.2 * hardware.memory_bandwidth)
    peak = {dtype: 1.2 * value for dtype, value in hardware.peak.items()}
    higher = dataclasses.replace(hardware, peak=peak)
    for better in (wider, higher):
        assert (layer_time(parameters, better, cases).seconds <= ROUNDING * base).all()
    fewer = draw().cases(chosen.kernel, hardware, loads(SHARE))
    assert (layer_time(parameters, hardware, fewer).seconds <= SWITCH * base).all()


@pytest.mark.parametrize(("name", "gpu"), PAIRS)
def test_a_price_lies_above_the_roofline_and_inside_its_interval(name: str, gpu: str) -> None:
    chosen = priced(name, gpu)
    cases = draw().cases(chosen.kernel, chosen.hardware, loads(FULL))
    shapes = ["unseen"] * COUNT
    found = price(chosen, cases, shapes)
    warm = layer_time(chosen.parameters, chosen.hardware, cases, warm=True)
    assert (found.seconds * ROUNDING >= roofline(chosen.hardware, cases)).all()
    assert (found.seconds * ROUNDING >= warm.seconds).all()
    if chosen.basis == "maker":
        assert np.isnan([found.low, found.high]).all()
        return
    assert (found.low > 0).all() and np.isfinite(found.high).all()
    assert ((found.low < found.seconds) & (found.seconds < found.high)).all()
    fewer = draw().cases(chosen.kernel, chosen.hardware, loads(SHARE))
    ratio = found.seconds / layer_time(chosen.parameters, chosen.hardware, fewer).seconds
    low, high = ratio_interval(chosen, fewer, cases, shapes, ratio)
    assert ((low > 0) & (low < ratio) & (ratio < high) & np.isfinite(high)).all()


@pytest.mark.parametrize("mean", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 7, 64, 1000])
def test_adaptive_routing_never_touches_fewer_experts_than_a_fixed_k_of_its_mean(
    mean: int, tokens: int
) -> None:
    fixed = ExpertLoad.expected(tokens, 64, fixed_k(mean)).distinct_experts
    for adaptive in (geometric_k(mean, 8), null_expert_k(mean, 6, 64, 64)):
        touched = ExpertLoad.expected(tokens, 64, adaptive).distinct_experts
        assert touched >= fixed * (1 - 1e-9)


@pytest.mark.parametrize("gpu", GPUS)
def test_every_kernel_has_a_price_on_every_gpu(gpu: str) -> None:
    hardware = load_hardware(gpu)
    unknown = Kernel("novel", "9.9", "brand_new_experts")
    for dtype in {"bfloat16", "float8"} & set(hardware.peak):
        for kernel in (*KERNELS.values(), unknown):
            chosen = calibrated(dataclasses.replace(kernel, dtype=dtype), hardware)
            cases = draw(20).cases(chosen.kernel, hardware, loads(FULL, 20))
            found = price(chosen, cases, [""] * 20)
            assert np.isfinite(found.seconds).all()
            is_stranger = any(caveat.kind == "unknown-kernel" for caveat in found.caveats)
            assert is_stranger == (kernel is unknown)


def test_scales_of_fp8_activations_take_time_in_proportion_to_their_number() -> None:
    chosen, drawn = priced("vllm-triton", "h100-sxm", "float8"), draw()
    dear = dataclasses.replace(chosen.parameters, quantise=2 * chosen.parameters.quantise)
    cases = drawn.cases(chosen.kernel, chosen.hardware, loads(FULL))
    times = [layer_time(p, chosen.hardware, cases).seconds for p in (chosen.parameters, dear)]
    elements = drawn.tokens * (drawn.hidden + drawn.top_k * drawn.inner)
    share = (times[1] - times[0]) / elements
    assert share == pytest.approx(np.full(COUNT, share[0]), rel=1e-6)
