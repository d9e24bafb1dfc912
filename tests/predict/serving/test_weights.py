"""Types of weights: their bytes, the arithmetic on a device, and how sure a price of them is."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from moebench.predict.kernels.catalogue import KernelFit, shipped_fits
from moebench.predict.kernels.intervals import shipped_widths
from moebench.predict.kernels.layer import LayerCalls, layer_time
from moebench.predict.kernels.loads import expected_loads
from moebench.predict.kernels.weights import MEASURED, arithmetic, nearest_measured
from moebench.predict.serving.decoder import ops_by_stage
from moebench.predict.serving.deployment import Deployment
from moebench.predict.serving.memory import rank_memory
from moebench.predict.serving.prices import kernel_prices
from moebench.predict.serving.speedup import Speedup, speedups
from moebench.routers.policy import policy
from moebench.spec.hardware import load_hardware
from moebench.spec.load import ExpertLoad, fixed_k
from moebench.spec.model import load_model
from moebench.spec.weight_types import ALIASES, WEIGHT_TYPES, stored_bytes

H100, B200, TOP_K = load_hardware("h100-sxm"), load_hardware("b200-sxm"), policy("top-k")
MIXTRAL, QWEN = load_model("mixtral-8x7b"), load_model("qwen3-30b-a3b")
PRICED = [name for name in WEIGHT_TYPES if name != "float32"]


def row(dtype: str | None, batch: int = 64, **more: object) -> Speedup:
    deployment = Deployment(QWEN, H100, dtype=dtype, **more)  # type: ignore[arg-type]
    return speedups(deployment, policy("ada-k", {"mean_k": 5.0}), [batch])[0]


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_an_alias_is_its_type(alias: str) -> None:
    by_alias = Deployment(QWEN, H100, dtype=alias.upper()) if alias != "fp32" else None
    assert by_alias is None or by_alias.expert_weights == ALIASES[alias]


def test_float16_is_priced_as_bfloat16() -> None:
    assert row("fp16").estimate == row("bf16").estimate


@pytest.mark.parametrize("level", ["moe", "model"])
def test_narrower_weights_are_read_faster(level: str) -> None:
    """64 tokens wait for weights: fewer bits a weight take less time."""
    kinds = [name for name in PRICED if level == "moe" or not WEIGHT_TYPES[name].experts_only]
    order = sorted(kinds, key=stored_bytes)
    latencies = [row(name, level=level).estimate.latency for name in order]
    # Types of about as many bits run other kernels, which differ by less than 2 %; in an engine
    # those of nvfp4 take a fifth more than their bytes.
    least = 0.98 if level == "moe" else 0.8
    assert all(more > least * less for less, more in itertools.pairwise(latencies))
    assert latencies[0] < 0.5 * latencies[-1]


@pytest.mark.parametrize("name", PRICED)
def test_a_price_is_at_least_the_bytes_at_full_bandwidth(name: str) -> None:
    found = row(name)
    read = found.estimate.distinct_experts * QWEN.expert_parameters * stored_bytes(name)
    assert found.estimate.latency > read / H100.memory_bandwidth
    assert found.estimate.bytes_moved is not None and found.estimate.bytes_moved > read


@pytest.mark.parametrize("name", PRICED)
def test_what_was_never_measured_says_so_and_is_less_sure(name: str) -> None:
    found, plain = row(name).estimate, row("bfloat16").estimate
    said = [caveat for caveat in found.caveats if caveat.kind == "uncalibrated"]
    assert found.latency_high is not None and plain.latency_high is not None
    wider = found.latency_high / found.latency > 1.1 * plain.latency_high / plain.latency
    assert bool(said) == wider == (name not in MEASURED)
    if said:
        assert said[0].seen == f"no layer of {name} weights was ever measured"
        assert row(name).basis == "relative"


@pytest.mark.parametrize(("name", "known"), [("mxfp4", True), ("fp8", True), ("int4", False)])
def test_energy_of_weights_whose_power_was_never_measured_is_missing(
    name: str, known: bool
) -> None:
    """Rows of gpt-oss, in mxfp4, are among those of data/energy."""
    energy = row(name).energy
    assert (energy.joules is not None) == known
    assert known or energy.missing == f"no energy of {name} weights was measured on such a GPU"


@pytest.mark.parametrize(
    ("name", "machine", "expected"),
    [
        ("mxfp4", H100, "bfloat16"),
        ("mxfp4", B200, "float8"),
        ("nvfp4", H100, "bfloat16"),
        ("nvfp4", replace(B200, peak={**B200.peak, "float4": 9e15}), "float4"),
        ("int4", B200, "bfloat16"),
        ("int8", replace(H100, peak={**H100.peak, "int8": 2e15}), "int8"),
        ("int8", replace(H100, peak={"bfloat16": 1e15}), "bfloat16"),
        ("int8", load_hardware("b300-sxm"), "bfloat16"),
        ("float8", H100, "float8"),
    ],
)
def test_arithmetic_is_what_the_tensor_cores_have(
    name: str, machine: object, expected: str
) -> None:
    assert arithmetic(name, machine) == expected  # type: ignore[arg-type]
    is_wide = expected == "bfloat16"
    assert nearest_measured(name, machine) == ("bfloat16" if is_wide else "float8")  # type: ignore[arg-type]


def test_compute_at_many_tokens_is_that_of_the_arithmetic() -> None:
    """int4 is widened: with 16,384 tokens it gains a fifth at most, on the way from L2."""
    wide, narrow = (row(name, 16384).estimate.latency for name in ("bfloat16", "int4"))
    assert 0.8 * wide < narrow <= wide


def test_an_fp8_cache_is_half_as_large_and_read_in_little_more_than_half_the_time() -> None:
    plain, half = (row("bf16", level="model", context=32768, kv_dtype=kv) for kv in ("bf16", "fp8"))
    assert half.memory["cache"] == plain.memory["cache"] / 2
    windows = replace(MIXTRAL, attention=replace(MIXTRAL.attention, window=64))
    load = TOP_K.load(windows, 1, TOP_K.operating_point(windows))
    short = Deployment(windows, H100, level="model", kv_dtype="fp8")
    assert rank_memory(short, TOP_K, load, 2.0, 1)["cache"] == 32 * 64 * 2 * 8 * 128
    stages = [found.estimate.by_stage["attention"] for found in (plain, half)]
    assert 0.5 * 0.98 < stages[1] / stages[0] < 0.7  # a kernel's start is not halved


def test_types_of_the_checkpoint_are_the_default_and_training_is_bfloat16() -> None:
    mixed = replace(MIXTRAL, expert_weights="mxfp4", other_weights="fp8")
    own = Deployment(mixed, H100, level="model")
    assert (own.expert_weights, own.other_weights) == ("mxfp4", "float8")
    load = TOP_K.load(mixed, 1, TOP_K.operating_point(mixed))
    experts, h = 32 * 8 * mixed.expert_parameters, 4096
    attention = 32 * (2 * h * h + 2 * h * 1024)
    plain = 46_702_792_704 - experts - attention
    assert rank_memory(own, TOP_K, load, 2.0, 1)["weights"] == pytest.approx(
        experts * 4.25 / 8 + attention * (1 + 4 / 16384) + 2 * plain
    )
    assert replace(own, phase="train").expert_weights == "bfloat16"
    assert replace(own, dtype="mxfp4").other_weights == "bfloat16"
    assert replace(own, dtype="nvfp4").other_weights == "nvfp4"


def test_a_checkpoint_that_a_gpu_cannot_multiply_is_converted_and_says_so() -> None:
    deep = load_model("deepseek-v3")
    for name, expected in (("h100-sxm", "float8"), ("a100-sxm-80gb", "bfloat16")):
        (found,) = speedups(Deployment(deep, load_hardware(name)), TOP_K, [1])
        assert found.deployment.expert_weights == found.deployment.other_weights == expected
        kinds = {caveat.kind for caveat in found.estimate.caveats}
        assert ("converted-weights" in kinds) == (expected == "bfloat16")
    half = replace(deep, expert_weights="int4")
    (found,) = speedups(Deployment(half, load_hardware("a100-sxm-80gb")), TOP_K, [1])
    assert (found.deployment.expert_weights, found.deployment.other_weights) == ("int4", "bfloat16")
    assert [one.kind for one in found.estimate.caveats].count("converted-weights") == 1


def test_other_weights_are_read_in_their_own_bytes() -> None:
    """Query, key, value and output projections of Mixtral, in groups of 128 with 20 bits."""
    plain, packed = (
        ops_by_stage(Deployment(MIXTRAL, H100, level="decoder", dtype=name), 1, 1)["projections"]
        for name in ("bf16", "int4")
    )
    read = [sum(op.bytes_read for op in ops) for ops in (plain, packed)]
    weights = 2 * 4096 * 4096 + 2 * 4096 * 1024
    assert read[0] - read[1] == pytest.approx(weights * (2 - (4 + 20 / 128) / 8))
    seconds = [
        speedups(Deployment(MIXTRAL, H100, level="decoder", dtype=name), TOP_K, [1])[0]
        for name in ("bf16", "int4")
    ]
    wide, narrow = (found.estimate.by_stage["projections"] for found in seconds)
    assert narrow < 0.6 * wide


def test_dense_matmuls_of_unmeasured_weights_are_less_sure() -> None:
    plain, packed, experts_alone = (
        kernel_prices(Deployment(MIXTRAL, H100, dtype=name)).dense.uncertainty
        for name in ("bf16", "int4", "mxfp4")
    )
    assert plain == experts_alone < packed


def gap(target: KernelFit, source: KernelFit, tokens: list[int]) -> np.ndarray:
    """Log of float8 latencies over those that bfloat16 parameters give for the same bytes."""
    sizes = [(4096, 14336, 2, 8), (2048, 768, 8, 128), (7168, 2048, 8, 256), (4096, 1408, 6, 64)]
    hardware, found = load_hardware(target.system), []
    for h, inner, k, n in sizes:
        shape = (np.full(len(tokens), float(size)) for size in (h, inner, k, n, 1))
        loads = [ExpertLoad.expected(t, n, fixed_k(k)).tokens_per_expert for t in tokens]
        calls = LayerCalls(np.array(tokens, dtype=float), *shape)
        cases = target.kernel.cases(
            hardware, expected_loads([np.array(load) for load in loads], tokens), calls
        )
        own, other = (
            layer_time(fit.parameters, hardware, cases).seconds for fit in (target, source)
        )
        found.append(np.log(own / other))
    return np.array(found)


def test_the_interval_holds_where_the_same_replacement_can_be_checked() -> None:
    """Measured fp8 kernels, priced from their framework's bf16 kernel with the bytes replaced."""
    tokens = [1, 8, 64, 200, 1024, 4000, 8192, 16384]
    fits = shipped_fits()
    logs = [
        gap(target, source, tokens)
        for target in fits
        for source in fits
        if (target.kernel.dtype, source.kernel.dtype) == ("float8", "bfloat16")
        and target.system == source.system
        and target.kernel.family == source.kernel.family
        and target.kernel.framework == source.kernel.framework
        and target.kernel.matrices == source.kernel.matrices
    ]
    assert len(logs) >= 3
    ends = shipped_widths().latency_factors(["relative"] * 8, "any", np.array(tokens, dtype=float))
    inside = [(np.log(ends[0]) <= log) & (log <= np.log(ends[1])) for log in logs]
    assert np.mean(inside) >= 0.9
