"""The state of the machine taken out of ratios: exact where it explains all, silent elsewhere."""

import numpy as np
import pytest
from numpy.typing import NDArray

from moebench.compare import pairs
from moebench.compare.covariates import reference_times
from moebench.records.measurement import Reference, Sample

Vector = NDArray[np.float64]


def visits(seconds: Vector) -> tuple[Sample, ...]:
    return tuple(Sample(i, 0, i, 1, float(time)) for i, time in enumerate(seconds))


def reference(reading: Vector, product: Vector) -> Reference:
    """The reference operation of each round, from the times of its two parts."""
    whole = enumerate(reading + product)
    samples = tuple(Sample(i, 2, 0, 1, float(seconds)) for i, seconds in whole)
    return Reference(1, samples, tuple(map(float, reading)))


def two_states(n: int, slow_from: int) -> Vector:
    """Logarithm of the time of a pass over memory that is read at 48 GB/s and later at 27."""
    return np.where(np.arange(n) < slow_from, 0.0, np.log(48 / 27))


@pytest.mark.parametrize("n", [12, 24])
def test_a_state_that_explains_the_whole_difference_leaves_the_exact_ratio(n: int) -> None:
    """The baseline reads nothing; the target's time follows the reading reference to the 0.3."""
    state = two_states(n, n // 2)
    known = reference(np.exp(state), np.full(n, 3.0))
    target = visits(0.5 * np.exp(0.3 * state))
    ratio = pairs.speedup(visits(np.ones(n)), target, reference=known)
    truth = 2.0 * np.exp(-0.3 * state.mean())
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((truth, truth, truth))
    blind = pairs.speedup(visits(np.ones(n)), target)
    assert blind.low is not None and blind.high is not None
    assert blind.high / blind.low > 1.05


def test_a_factor_common_to_all_cases_of_a_round_moves_nothing() -> None:
    rng = np.random.default_rng(8)
    common = np.exp(0.2 * rng.standard_normal(24))
    base, target = (np.exp(0.02 * rng.standard_normal(24)) for _ in range(2))
    slow = two_states(24, 9)
    known = reference(np.exp(slow), np.full(24, 3.0))
    still = pairs.speedup(visits(base), visits(1.1 * target), reference=known)
    moved = pairs.speedup(visits(base * common), visits(1.1 * target * common), reference=known)
    for name in ("value", "low", "high"):
        assert getattr(moved, name) == pytest.approx(getattr(still, name))


def test_a_reference_that_explains_nothing_or_lacks_a_round_changes_nothing() -> None:
    rng = np.random.default_rng(9)
    base, target, reading, product = (np.exp(0.02 * rng.standard_normal(16)) for _ in range(4))
    alone = pairs.speedup(visits(base), visits(target))
    known = reference(reading, product)
    assert pairs.speedup(visits(base), visits(target), reference=known) == alone
    strong = reference(base / target, product)
    cut_short = Reference(1, strong.samples[:-1], (strong.reading or ())[:-1])
    assert pairs.speedup(visits(base), visits(target), reference=cut_short) == alone
    assert len(reference_times(strong, range(16))) == 2
    assert len(reference_times(Reference(1, strong.samples), range(16))) == 1


def test_delays_of_single_references_are_no_state() -> None:
    """Four rounds delay target and reference alike; the ranks alone would call that a state."""
    rng = np.random.default_rng(10)
    base, target = (np.exp(0.02 * rng.standard_normal(24)) for _ in range(2))
    reading, delayed = np.ones(24), [3, 8, 14, 20]
    target[delayed] *= 5.0
    reading[delayed] = 5.0
    known = reference(reading, np.ones(24))
    ratio = pairs.speedup(visits(base), visits(target), reference=known)
    assert ratio == pairs.speedup(visits(base), visits(target))


@pytest.mark.parametrize("kind", ["two states", "drift"])
def test_a_case_against_itself_errs_as_rarely_as_without_references(kind: str) -> None:
    """Both cases feel the state alike, so that a reference can only find what is not there."""
    rng, wrong, experiments, n = np.random.default_rng(11), 0, 250, 16
    for seed in range(experiments):
        state = two_states(n, int(rng.integers(0, n)))
        if kind == "drift":
            state = 0.05 * np.cumsum(rng.standard_normal(n))
        base, target = (np.exp(state + 0.02 * rng.standard_normal(n)) for _ in range(2))
        known = reference(np.exp(state + 0.01 * rng.standard_normal(n)), np.exp(0.3 * state))
        ratio = pairs.speedup(visits(base), visits(target), seed=seed, reference=known)
        assert ratio.low is not None and ratio.high is not None
        wrong += not ratio.low <= 1 <= ratio.high
    assert wrong <= 0.08 * experiments  # 1 in 100 such counts is larger if 5 % is the truth
