"""The harness's error rates on simulated noise whose truth is known, with the stopping rule on.

Counts of errors are held against exact binomial bounds: `rate_within` fails when the true rate
would have to lie outside the band for such a count to be likely.
"""

import functools
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import betaincinv

from moebench.compare import pairs
from moebench.compare.noise import rounds_needed
from moebench.doctor.timed_units import Tape
from moebench.measure.latency import Plan, measure_rounds
from moebench.records.confidence import p_value, rejected
from moebench.records.measurement import Sample
from moebench.records.results import Ratio

EXPERIMENTS = 200
NOISES = ("even", "server", "correlated")


def rate_within(count: int, n: int, low: float, high: float) -> bool:
    """Whether the exact 99 % interval of a rate meets [low, high]."""
    lowest = betaincinv(count, n - count + 1, 0.005) if count else 0.0
    highest = betaincinv(count + 1, n - count, 0.995) if count < n else 1.0
    return bool(lowest <= high and highest >= low)


def times_of_two_cases(
    rng: np.random.Generator, n: int, noise: str, drift: float
) -> NDArray[np.float64]:
    """Times of two equal cases [2, n].

    "server" is what two shared cores showed: 2 to 3 % between neighbours, a slow component that
    both cases feel, and delays in one visit of twelve, some of them manyfold. "correlated" gives
    each case a slow component of its own, which random order cannot cancel.
    """

    def autoregressive(rho: float, *shape: int) -> NDArray[np.float64]:
        values = rng.standard_normal((*shape, n + 30))
        for i in range(1, n + 30):
            values[..., i] += rho * values[..., i - 1]
        return np.asarray(values[..., 30:])

    slow = np.exp(0.03 * autoregressive(0.9) + np.log1p(drift) * np.linspace(0, 1, n))
    if noise == "even":
        return np.asarray(slow * np.exp(0.01 * rng.standard_normal((2, n))))
    if noise == "correlated":
        return np.asarray(slow * np.exp(0.02 * autoregressive(0.2, 2)))
    delays = (rng.random((2, n)) < 1 / 12) * 0.15 * rng.pareto(1.2, (2, n))
    return np.asarray(slow * np.exp(0.025 * np.abs(rng.standard_normal((2, n)))) * (1 + delays))


@functools.cache
def experiments(
    slowdown: float, noise: str, drift: float = 0.0, most: int = 96, target: float = 0.01
) -> tuple[Ratio, ...]:
    """Speedups of a case over one that is slower, in cells that end by the rule of real cells."""
    rng = np.random.default_rng([int(1000 * slowdown), NOISES.index(noise), int(drift * 100)])
    ratios = []
    for seed in range(EXPERIMENTS):
        base, target_times = times_of_two_cases(rng, most + 1, noise, drift)
        tape = Tape()

        def precise(samples: Mapping[str, tuple[Sample, ...]]) -> bool:
            return pairs.precise_enough(pairs.speedup(samples["a"], samples["b"]), target)

        rounds = measure_rounds(
            {"a": tape.case(base), "b": tape.case((1 + slowdown) * target_times)},
            tape,
            Plan(1e9, seed, max_warmup_visits=0, max_rounds=most, precise_enough=precise),
        )
        ratios.append(pairs.speedup(rounds.samples["a"], rounds.samples["b"], seed=seed))
    return tuple(ratios)


def visits(seconds: NDArray[np.float64]) -> tuple[Sample, ...]:
    return tuple(Sample(i, 0, i, 1, float(time)) for i, time in enumerate(seconds))


def called(ratios: tuple[Ratio, ...], *verdicts: str) -> int:
    return sum(ratio.verdict in verdicts for ratio in ratios)


@pytest.mark.slow
@pytest.mark.parametrize("drift", [0.0, 0.03])
@pytest.mark.parametrize("noise", NOISES)
def test_a_case_against_itself_differs_in_one_experiment_of_twenty(
    noise: str, drift: float
) -> None:
    ratios = experiments(0.0, noise, drift)
    misses = sum(not (r.low or 0.0) <= 1.0 <= (r.high or 0.0) for r in ratios)
    assert rate_within(misses, len(ratios), 0.03, 0.07)
    assert rate_within(called(ratios, "faster", "slower"), len(ratios), 0.0, 0.07)


@pytest.mark.slow
@pytest.mark.parametrize("drift", [0.0, 0.03])
@pytest.mark.parametrize(("slowdown", "most", "power"), [(0.02, 96, 0.8), (0.05, 36, 0.95)])
def test_planted_slowdowns_are_seen(slowdown: float, most: int, power: float, drift: float) -> None:
    ratios = experiments(slowdown, "server", drift, most)
    assert rate_within(called(ratios, "slower"), len(ratios), power, 1.0)
    assert called(ratios, "faster") <= 1


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
def test_intervals_that_end_by_the_stopping_rule_hold_the_truth_nineteen_times_of_twenty(
    noise: str,
) -> None:
    ratios = experiments(0.02, noise)
    held = sum((r.low or 0.0) <= 1 / 1.02 <= (r.high or 0.0) for r in ratios)
    assert rate_within(held, len(ratios), 0.93, 0.97)


@pytest.mark.parametrize("noise", ["server", "correlated"])
def test_as_many_rounds_as_forecast_show_an_effect_as_often_as_asked(noise: str) -> None:
    """The forecast knows cells of 36 rounds only; new cells of that many rounds are its test."""
    rng = np.random.default_rng([41, NOISES.index(noise)])

    def cells(n: int, rounds: int, slowdown: float) -> list[Ratio]:
        factors = np.array([[1.0], [1 + slowdown]])
        times = (factors * times_of_two_cases(rng, rounds, noise, 0.0) for _ in range(n))
        return [pairs.speedup(visits(a), visits(b), seed=i) for i, (a, b) in enumerate(times)]

    rounds = rounds_needed(cells(40, 36, 0.0), 0.015, 0.8)
    assert rounds is not None and 20 < rounds < 80
    assert rate_within(called(tuple(cells(120, rounds, 0.015)), "slower"), 120, 0.75, 0.85)


def test_rounds_needed_grow_as_the_square_of_the_noise_and_may_be_beyond_reach() -> None:
    def cell(half_width: float) -> Ratio:
        limits = (float(np.exp(-half_width)), float(np.exp(half_width)))
        return Ratio("speedup", "a", "a", 1.0, *limits, "unclear", 36)

    few, many = (rounds_needed([cell(width)], 0.02, 0.8) for width in (0.05, 0.1))
    assert few is not None and many is not None and many == pytest.approx(4 * few, rel=0.06)
    assert rounds_needed([cell(2.0)], 0.02, 0.8) is None
    assert rounds_needed([], 0.02, 0.8) is None
    assert rounds_needed([cell(1e-6)], 0.02, 0.8) == 8


def test_the_rule_waits_for_two_looks_in_a_row() -> None:
    asked: list[int] = []
    tape = Tape()

    def precise(samples: Mapping[str, tuple[Sample, ...]]) -> bool:
        asked.append(len(samples["a"]))
        return len(samples["a"]) != 10

    plan = Plan(budget=1e9, max_warmup_visits=0, max_rounds=96, precise_enough=precise)
    rounds = measure_rounds({"a": tape.case(np.ones(99))}, tape, plan)
    assert (asked, rounds.stopped, rounds.num_rounds) == ([8, 10, 13, 17], "precise", 17)


def test_of_forty_equal_rows_almost_no_suite_calls_one_different() -> None:
    """Uncorrected, 87 % of such suites would call at least one row faster or slower."""
    rng = np.random.default_rng(1)
    suites = rng.uniform(size=(1000, 40))
    assert (suites < 0.05).any(axis=1).mean() > 0.8
    wrong = sum(any(rejected(row.tolist())) for row in suites)
    assert rate_within(wrong, 1000, 0.04, 0.06)


@pytest.mark.parametrize(("low", "is_small"), [(0.001, True), (-0.001, False)])
def test_a_p_value_is_below_five_per_cent_just_when_the_interval_leaves_zero_out(
    low: float, is_small: bool
) -> None:
    assert (p_value(0.1, low, 0.3, 7.0) < 0.05) is is_small
    assert (p_value(-0.1, -0.3, -low, 7.0) < 0.05) is is_small
