"""Calibration: recovers a machine that obeys its own formula, and its prices obey the laws."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebench.predict.layers.calibration import (
    GRAPH_LAUNCH,
    Calibration,
    MatmulPrices,
    fit_calibration,
    from_datasheet,
)
from moebench.records.timings import MatmulSample, Microbenchmarks
from moebench.spec.hardware import HardwareSpec
from moebench.spec.ops import LAYOUTS, Layout, Op, linear

CPU = HardwareSpec(
    name="test-cpu",
    title="A CPU made for tests",
    kind="cpu",
    source="made for tests",
    peak={"bfloat16": 1e12},
    memory_bandwidth=20e9,
    memory_capacity=24e9,
    cache=32e6,
)
PLAIN = MatmulPrices(4e11, 15e9, 6.0, 2.0, 8e-6, 1, 0, 0.0, 0.0)
PACKED = replace(PLAIN, bandwidth=18e9, row_overhead=0.5)
TRUTH = Calibration(
    name="truth",
    hardware="test-cpu",
    dtype="bfloat16",
    matmuls={"plain": PLAIN, "packed": PACKED, "avx512": replace(PACKED, bandwidth=25e9)},
    attention_rate=1e11,
    attention_bandwidth=8e9,
    copy_bandwidth=10e9,
    launch_overhead=3e-6,
    fresh_bandwidth=None,
)


def product(rows: float, n: int = 14336, k: int = 4096, groups: float = 1) -> Op:
    op = linear("product", "experts", rows, n, k, "bfloat16", groups=groups)
    return replace(op, launches=groups)


def seconds(prices: MatmulPrices, rows: int, n: int, k: int) -> float:
    overhead, memory, compute = prices.parts(product(rows, n, k))
    return overhead + prices.overlapped(memory, compute)


def benchmarks_of(calibration: Calibration, noise: float) -> Microbenchmarks:
    random = np.random.default_rng(0)
    samples = tuple(
        MatmulSample(
            rows,
            n,
            k,
            "bfloat16",
            seconds(calibration.matmuls[layout], rows, n, k) * np.exp(noise * z),
            layout,
        )
        for layout in LAYOUTS
        for (n, k) in ((28672, 4096), (4096, 14336), (1024, 2048))
        for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
        for z in [random.standard_normal()]
    )
    return Microbenchmarks(
        "f", "2026-01-01T00:00:00Z", samples, 15e9, 10e9, None, 3e-6, duration=1.0
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_machine_that_obeys_the_formula_is_recovered(layout: Layout) -> None:
    fitted = fit_calibration(CPU, benchmarks_of(TRUTH, noise=0.0), "bfloat16").matmuls[layout]
    for rows in (1, 3, 24, 700):
        for n, k in ((14336, 4096), (4096, 4096)):
            assert seconds(fitted, rows, n, k) == pytest.approx(
                seconds(TRUTH.matmuls[layout], rows, n, k), rel=0.01
            )
    assert fitted.median_error is not None and fitted.median_error < 0.005


def test_the_stated_error_is_the_noise_that_was_there() -> None:
    fitted = fit_calibration(CPU, benchmarks_of(TRUTH, noise=0.1), "bfloat16")
    for layout in LAYOUTS:
        error = fitted.matmuls[layout].median_error
        assert error is not None and 0.03 < error < 0.12


def test_of_a_gpu_the_host_s_launches_and_the_device_s_part_are_told_apart() -> None:
    gpu, found = replace(CPU, kind="gpu"), replace(benchmarks_of(TRUTH, 0.0), small_op=6e-6)
    measured = fit_calibration(gpu, replace(found, small_kernel=2e-6), "bfloat16")
    assert (measured.host_launch, measured.launch_overhead) == (6e-6, 2e-6)
    assert not measured.assumes_launch
    assumed = fit_calibration(gpu, found, "bfloat16")
    assert (assumed.host_launch, assumed.launch_overhead) == (6e-6, GRAPH_LAUNCH)
    assert assumed.assumes_launch
    processor = fit_calibration(CPU, found, "bfloat16")
    assert (processor.host_launch, processor.launch_overhead) == (None, 6e-6)


def test_packed_weights_that_nobody_timed_are_priced_as_plain_ones() -> None:
    """So do calibrations that were kept before there were any."""
    both = benchmarks_of(TRUTH, noise=0.0)
    plain = replace(both, matmuls=tuple(s for s in both.matmuls if s.layout == "plain"))
    fitted = fit_calibration(CPU, plain, "bfloat16")
    own = fit_calibration(CPU, both, "bfloat16").matmuls["plain"]
    assert all(fitted.matmuls[layout] == own for layout in LAYOUTS)


def test_too_few_matmuls_are_refused() -> None:
    few = replace(benchmarks_of(TRUTH, 0.0), matmuls=benchmarks_of(TRUTH, 0.0).matmuls[:4])
    with pytest.raises(ValueError, match="found 4 matmuls in bfloat16, expected at least 5"):
        fit_calibration(CPU, few, "bfloat16")


def test_a_dtype_without_a_peak_is_refused_with_the_near_miss() -> None:
    with pytest.raises(ValueError, match="did you mean 'bfloat16'"):
        from_datasheet(CPU, "bflaot16")


@given(rows=st.floats(1, 4), more=st.floats(1, 1000))
def test_rows_that_are_borrowed_take_the_time_of_own_ones(rows: float, more: float) -> None:
    def compute(rows: float, least_rows: float = 1.0) -> float:
        return PACKED.parts(replace(product(rows, groups=3), least_rows=least_rows))[2]

    assert compute(rows, 4) == pytest.approx(compute(4))
    assert compute(4 + more, 4) == compute(4 + more)


positive = st.floats(1e-3, 1e3)


@given(rows=st.floats(1, 4096), groups=st.floats(1, 64), faster=st.floats(1, 10))
def test_more_rate_or_bandwidth_is_never_slower(rows: float, groups: float, faster: float) -> None:
    def total(prices: MatmulPrices) -> float:
        overhead, memory, compute = prices.parts(product(rows, groups=groups))
        return overhead + prices.overlapped(memory, compute)

    before = total(PLAIN)
    assert total(replace(PLAIN, rate=PLAIN.rate * faster)) <= before
    assert total(replace(PLAIN, bandwidth=PLAIN.bandwidth * faster)) <= before


@given(memory=positive, compute=positive, p=st.floats(1, 8))
def test_overlap_lies_between_the_larger_part_and_the_sum(
    memory: float, compute: float, p: float
) -> None:
    together = replace(PLAIN, overlap=p).overlapped(memory, compute)
    assert max(memory, compute) * (1 - 1e-9) <= together <= (memory + compute) * (1 + 1e-9)
