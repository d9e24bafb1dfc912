"""Ratios and intervals: algebra by hand, and whether 95 % means 95 %."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from runs import manifest, measured_cell

from moebench.compare import pairs
from moebench.compare.pairs import Timed
from moebench.compare.prediction_errors import prediction_errors
from moebench.records.measurement import Sample
from moebench.records.record import Record
from moebench.records.results import Interval, Ratio


def visits(seconds: NDArray[np.float64] | list[float], num_steps: int = 1) -> tuple[Sample, ...]:
    """One sample a round, on consecutive steps of the stream."""
    return tuple(
        Sample(i, 0, i * num_steps, num_steps, float(time)) for i, time in enumerate(seconds)
    )


def correlated(rng: np.random.Generator, n: int, rho: float, spikes: bool) -> NDArray[np.float64]:
    """AR(1) noise of unit innovations after a burn-in, with rare delays if `spikes`."""
    shocks = rng.standard_normal(n + 40)
    if spikes:
        shocks += (rng.random(n + 40) < 0.08) * rng.exponential(6, n + 40)
    noise = np.zeros(n + 40)
    for i in range(1, n + 40):
        noise[i] = rho * noise[i - 1] + shocks[i]
    return noise[40:]


def test_latency_is_total_time_over_total_steps_not_a_mean_of_steps() -> None:
    samples = (Sample(0, 0, 0, 1, 4.0), Sample(1, 0, 1, 3, 6.0))
    assert pairs.latency(samples).value == 2.5


def test_samples_of_one_round_are_added_up() -> None:
    split = (Sample(0, 0, 0, 1, 1.0), Sample(0, 3, 1, 1, 3.0), Sample(1, 0, 2, 2, 4.0))
    whole = (Sample(0, 0, 0, 2, 4.0), Sample(1, 0, 2, 2, 4.0))
    assert pairs.latency(split) == pairs.latency(whole)


def working(samples: tuple[Sample, ...], work: NDArray[np.float64]) -> tuple[Sample, ...]:
    return tuple(replace(s, work=float(w)) for s, w in zip(samples, work, strict=True))


def test_speedup_is_a_ratio_of_totals_not_of_medians() -> None:
    """Most steps touch one expert, a few touch ten: the median step says nothing."""
    work = np.array([1.0, 1.0, 10.0] * 4)
    target = working(visits(0.5 + work), work)
    ratio = pairs.speedup(visits([2.0] * 12), target)
    assert ratio.value == pytest.approx(24 / (6 + 48))
    assert ratio.verdict == "slower"


def test_a_delay_of_one_round_moves_no_speedup_and_every_latency() -> None:
    seconds = np.full(24, 1.0)
    work = np.array([1.0, 2.0, 2.0, 4.0] * 6)
    target = np.where(np.arange(24) == 5, 30.0, 0.25 * work)
    for known in (visits(target), working(visits(target), work)):
        assert pairs.latency(known).value > 1.5
    ratio = pairs.speedup(visits(seconds), working(visits(target), work))
    assert ratio.value == pytest.approx(24 / (0.25 * work.sum()), rel=1e-6)


def in_parts(seconds: NDArray[np.float64], work: NDArray[np.float64] | None) -> tuple[Sample, ...]:
    """One visit a round, the parts of which were timed one by one [rounds, parts]."""
    rounds, parts = seconds.shape
    known = np.ones_like(seconds) if work is None else work
    return tuple(
        Sample(
            i, 0, i * parts, parts, float(seconds[i].sum()), float(known[i].sum()),
            tuple(seconds[i].tolist()), tuple(known[i].tolist()),
        )
        for i in range(rounds)
    )  # fmt: skip


def test_delays_of_a_third_of_all_steps_move_no_speedup_where_steps_are_timed_one_by_one() -> None:
    rng = np.random.default_rng(5)
    work = rng.integers(1, 9, (12, 10)).astype(float)
    cost, base = 0.25 + 0.5 * work, np.full((12, 10), 3.0)
    delayed = np.argsort(rng.random((12, 10)), axis=1) < 3
    target = in_parts(np.where(delayed, cost + 4.0, cost), work)
    ratio = pairs.speedup(in_parts(base, None), target)
    assert ratio.value == pytest.approx(base.sum() / cost.sum(), rel=1e-9)
    assert (ratio.low, ratio.high) == pytest.approx((ratio.value, ratio.value))
    assert pairs.latency(target).value > 1.3 * cost.mean()


def test_parts_change_no_ratio_where_nothing_is_delayed() -> None:
    rng = np.random.default_rng(6)
    drift = np.exp(0.1 * rng.standard_normal((9, 1)))
    base, target = 3.0 * drift * np.ones((9, 4)), 2.0 * drift * np.ones((9, 4))
    whole = pairs.speedup(visits(base.sum(1), 4), visits(target.sum(1), 4))
    parts = pairs.speedup(in_parts(base, None), in_parts(target, None))
    assert (parts.value, parts.low) == pytest.approx((whole.value, whole.low))


def test_the_interval_holds_the_ratio_of_expected_totals_where_the_work_varies() -> None:
    """K is geometric at batch 1: the truth is the ratio of mean costs, noise has delays."""
    rng = np.random.default_rng(4)
    held = []
    for seed in range(200):
        work = np.minimum(rng.geometric(0.6, 24), 8).astype(float)
        one, other = (np.exp(0.03 * correlated(rng, 24, 0.0, True)) for _ in range(2))
        target = working(visits((0.3 + work) * one), work)
        ratio = pairs.speedup(visits(2.3 * other), target, seed=seed)
        truth = 2.3 * 24 / (0.3 + work).sum()
        assert ratio.low is not None and ratio.high is not None
        held.append(ratio.low <= truth <= ratio.high)
    assert 0.90 <= np.mean(held) <= 0.99


def test_exchanging_the_sides_inverts_ratio_and_interval() -> None:
    rng = np.random.default_rng(1)
    a, b = visits(1 + 0.1 * rng.random(12)), visits(1.3 + 0.1 * rng.random(12))
    forth, back = pairs.speedup(a, b), pairs.speedup(b, a)
    assert forth.value == pytest.approx(1 / back.value)
    assert forth.low == pytest.approx(1 / back.high, rel=1e-3)
    assert (forth.verdict, back.verdict) == ("slower", "faster")


def test_a_drift_common_to_both_sides_cancels() -> None:
    drift = np.exp(np.linspace(0, 1, 16)) * (1 + 0.5 * (np.arange(16) % 3 == 0))
    ratio = pairs.speedup(visits(1.25 * drift), visits(drift))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.25, 1.25, 1.25))
    alone = pairs.latency(visits(drift))
    assert alone.low is not None and alone.low < 0.8 * alone.value


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (visits([1.0] * 7), r"not both ran in rounds \[7\]"),
        (visits([1.0] * 8, num_steps=2), "round 0 ran different steps"),
        (tuple(Sample(i, 0, i + 1, 1, 1.0) for i in range(8)), "round 0 ran different steps"),
    ],
)
def test_times_of_different_work_are_not_divided(target: tuple[Sample, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairs.speedup(visits([1.0] * 8), target)


def test_overhead_is_one_where_the_target_costs_what_its_mean_k_costs() -> None:
    drift = np.linspace(1, 1.2, 10)
    high, low, target = visits(2.0 * drift), visits(1.0 * drift), visits(1.4 * drift)
    ratio = pairs.overhead(
        Timed(target, 1.4, "ada-k"), (Timed(high, 2, "k=2"), Timed(low, 1, "k=1"))
    )
    assert (ratio.target, ratio.baseline) == ("ada-k", "k=2")
    assert (ratio.kind, ratio.value, ratio.verdict) == ("overhead", pytest.approx(1.0), "same")


def test_overhead_at_the_ends_is_the_plain_ratio() -> None:
    rng = np.random.default_rng(2)
    high, low = visits(2 + 0.1 * rng.random(9)), visits(1 + 0.1 * rng.random(9))
    target = visits(1.7 + 0.1 * rng.random(9))
    ends = (Timed(high, 2, "k=2"), Timed(low, 1, "k=1"))
    at_high = pairs.overhead(Timed(target, 2, "target"), ends)
    at_low = pairs.overhead(Timed(target, 1, "target"), ends)
    assert at_high.value == pytest.approx(1 / pairs.speedup(high, target).value)
    assert at_low.value == pytest.approx(1 / pairs.speedup(low, target).value)
    assert at_low.verdict == "slower" and at_high.verdict == "faster"


@pytest.mark.parametrize(
    ("low", "high", "n", "expected"),
    [
        (1.02, 1.10, 8, "faster"),
        (0.90, 0.98, 8, "slower"),
        (0.995, 1.008, 8, "same"),
        (1.002, 1.008, 8, "same"),
        (0.98, 1.05, 8, "unclear"),
        (1.02, 1.10, 7, "unclear"),
        (None, None, 1, "unclear"),
    ],
)
def test_a_verdict_needs_eight_rounds_and_an_interval_that_excludes_one(
    low: float | None, high: float | None, n: int, expected: str
) -> None:
    assert pairs.verdict(low, high, n, "faster") == expected


def test_one_round_has_a_value_and_no_interval() -> None:
    ratio = pairs.speedup(visits([3.0]), visits([2.0]))
    assert (ratio.value, ratio.low, ratio.high, ratio.verdict) == (1.5, None, None, "unclear")
    assert not pairs.precise_enough(ratio, 1.0)


def test_precision_is_the_half_width_relative_to_the_value() -> None:
    assert pairs.precise_enough(Interval(2.0, 1.98, 2.02, 0.95), 0.0101)
    assert not pairs.precise_enough(Interval(2.0, 1.98, 2.02, 0.95), 0.0099)


def test_the_same_seed_gives_the_same_interval() -> None:
    samples = visits(1 + np.random.default_rng(3).random(20))
    assert pairs.latency(samples, seed=5) == pairs.latency(samples, seed=5)


def coverage(
    n: int, rho: float, spikes: bool, experiments: int, truth: float
) -> tuple[float, float]:
    """Share of 95 % intervals that hold the true speedup, and share of faster/slower verdicts."""
    rng = np.random.default_rng([n, int(10 * rho), spikes])
    held = decided = 0
    for seed in range(experiments):
        drift = np.exp(0.03 * np.linspace(-1, 1, n) + 0.02 * correlated(rng, n, 0.8, False))
        baseline = truth * drift * (1 + 0.03 * correlated(rng, n, rho, spikes))
        target = drift * (1 + 0.03 * correlated(rng, n, rho, spikes))
        ratio = pairs.speedup(visits(baseline), visits(target), seed=seed)
        assert ratio.low is not None and ratio.high is not None
        held += ratio.low <= truth <= ratio.high
        decided += ratio.verdict in ("faster", "slower")
    return held / experiments, decided / experiments


@pytest.mark.parametrize("n", [8, 24])
@pytest.mark.parametrize(("rho", "spikes"), [(0.0, False), (0.3, False), (0.3, True)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(
    n: int, rho: float, spikes: bool
) -> None:
    held, _ = coverage(n, rho, spikes, experiments=300, truth=1.2)
    assert 0.90 <= held <= 0.985


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_a_case_against_itself_is_rarely_called_faster_or_slower(rho: float) -> None:
    _, wrong = coverage(12, rho, False, experiments=400, truth=1.0)
    assert 0.01 <= wrong <= 0.09


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 12, 24, 60])
def test_coverage_over_many_experiments(n: int) -> None:
    held, _ = coverage(n, 0.0, True, experiments=2000, truth=1.2)
    assert 0.93 <= held <= 0.985


def test_prediction_errors_are_signed_and_grouped() -> None:
    plan = manifest()
    records = [
        *measured_cell(plan, "moe", ("decode", 1, 1, 1024)),
        *measured_cell(plan, "decoder", ("prefill", 1, 128, 0)),
    ]
    summaries = prediction_errors(records)
    assert [(s.phase, s.level, s.n) for s in summaries] == [
        ("decode", "moe", 5),
        ("prefill", "decoder", 5),
        ("all", "all", 10),
    ]
    errors = [r.estimate.latency / r.measurement.latency.value - 1 for r in records[:5]]
    assert summaries[0].median == pytest.approx(sorted(errors)[2])
    assert summaries[0].median_absolute == pytest.approx(sorted(map(abs, errors))[2])
    assert prediction_errors([]) == ()


def test_of_many_rows_only_those_that_stand_up_to_the_number_of_rows_keep_a_verdict() -> None:
    """One clear row and one borderline row among 38 equal ones: the borderline one falls."""
    plan = manifest()
    record = measured_cell(plan, "moe", ("decode", 1, 1, 1024))[1]

    def row(index: int, value: float, half_width: float) -> Record:
        case = replace(record.case, router=replace(record.case.router, label=f"row {index}"))
        low, high = value - half_width, value + half_width
        said = pairs.verdict(low, high, 36, "faster")
        ratio = Ratio("speedup", "t", "b", value, low, high, said, 36)
        return replace(record, case=case, ratios=(ratio,))

    rows = [row(0, 1.5, 0.05), row(1, 1.03, 0.029)]
    rows += [row(i, 1 + 0.0005 * i, 0.03) for i in range(2, 40)]
    assert [r.ratios[0].verdict for r in rows[:2]] == ["faster", "faster"]
    verdicts = [r.ratios[0].verdict for r in pairs.corrected(rows)]
    assert verdicts[:3] == ["faster", "unclear", "unclear"]
    alone = pairs.corrected(rows[1:2])
    assert alone[0].ratios[0].verdict == "faster"


def test_the_faster_half_favours_no_case_whose_steps_vary_more() -> None:
    """Equal middles, five times the spread: the mean of the faster half would differ by 2.6 %."""
    rng = np.random.default_rng(12)
    even, uneven = (np.exp(sd * rng.standard_normal((400, 8))) for sd in (0.01, 0.05))
    ratio = pairs.speedup(in_parts(even, None), in_parts(uneven, None))
    assert ratio.value == pytest.approx(1.0, abs=0.005)
