"""Intervals of losses: coverage, gain from pairing, and where a router's gain comes from."""

import numpy as np
import pytest
from scipy import stats

from moebench.compare.loss_intervals import (
    gain_split,
    rank_correlation,
    rank_correlation_interval,
    seeds_for,
    text_loss,
    window_interval,
)
from moebench.records.quality import SignedInterval


def width(interval: SignedInterval) -> float:
    assert interval.low is not None and interval.high is not None
    return interval.high - interval.low


def covers(interval: SignedInterval, truth: float) -> bool:
    assert interval.low is not None and interval.high is not None
    return interval.low <= truth <= interval.high


def test_a_planted_difference_is_covered_and_the_paired_interval_is_narrower() -> None:
    rng = np.random.default_rng(1)
    base = 1.3 + 0.4 * rng.standard_normal(512)
    found = 0
    for _ in range(200):
        router = base + 0.01 + 0.02 * rng.standard_normal(512)
        loss = text_loss(router, base, (1,))
        paired = loss.over_base_nats_per_byte
        assert paired is not None
        found += covers(paired, 0.01)
        assert width(paired) < width(loss.nats_per_byte) / 5
    assert 180 <= found <= 199


@pytest.mark.parametrize("files", [1, 16])
def test_a_mean_is_covered_where_windows_of_a_file_are_alike(files: int) -> None:
    rng = np.random.default_rng(2)
    found = sum(
        covers(
            window_interval(
                np.repeat(rng.standard_normal(512 // files), files) + rng.standard_normal(512)
            ),
            0.0,
        )
        for _ in range(400)
    )
    assert found >= 0.92 * 400


def test_seeds_that_differ_widen_the_interval_and_it_covers() -> None:
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(300):
        windows = 0.3 * rng.standard_normal(256)
        seeds = 0.1 * rng.standard_normal((3, 1)) + windows + 0.1 * rng.standard_normal((3, 256))
        found += covers(window_interval(seeds), 0.0)
        assert width(window_interval(seeds)) >= width(window_interval(seeds.mean(axis=0)))
    assert found >= 0.93 * 300


def test_seeds_for_is_the_count_at_which_students_interval_fits() -> None:
    """Seeds at -0.001, 0 and 0.001 with no noise of windows: t(n - 1) 0.001 / sqrt(n) is known."""
    losses = np.array([-1e-3, 0.0, 1e-3])[:, None] + np.zeros((3, 64))
    for half in (2.6e-3, 1e-3, 3e-4):
        count = seeds_for(losses, half)
        assert count is not None
        halves = [stats.t.ppf(0.975, n - 1) * 1e-3 / n**0.5 for n in (count - 1, count) if n > 1]
        assert halves[-1] <= half < halves[0]
    assert seeds_for(losses, 1e-6) is None
    assert seeds_for(losses[:1], 1e-3) is None
    windows = losses + np.random.default_rng(1).normal(0, 0.1, 64)  # wider than any half asked for
    assert seeds_for(windows, 1e-3) is None


def test_the_base_has_no_difference_and_one_window_no_interval() -> None:
    loss = text_loss(np.array([1.0]), None, (7,))
    assert loss.over_base_missing == "this is the base"
    assert loss.nats_per_byte.missing == "one window has no spread"


def test_rank_correlation_is_spearmans_with_ties() -> None:
    rng = np.random.default_rng(4)
    first, second = rng.integers(0, 9, 300).astype(float), rng.standard_normal(300)
    second += 0.2 * first
    expected = stats.spearmanr(first, second).statistic
    assert rank_correlation(first, second) == pytest.approx(expected)
    interval = rank_correlation_interval(first, second)
    assert covers(interval, expected) and not covers(interval, 0.0)


def test_a_gain_is_split_into_layers_and_tokens() -> None:
    rng = np.random.default_rng(5)
    own = rng.standard_normal(64) + 2
    split = gain_split(own + 0.3, own + 0.1, own, (1.5, 1.5, 1.501))
    assert split.about_layers_nats.value == pytest.approx(0.2)
    assert split.about_tokens_nats.value == pytest.approx(0.1)
    with pytest.raises(ValueError, match="three equal mean k"):
        gain_split(own, own, own, (1.5, 1.5, 1.6))
