"""Intervals of losses and of their differences, over the windows of a text and over seeds.

Windows of a text are not independent: those of one file lie side by side. They are therefore left
out in `NUM_BLOCKS` blocks of neighbours, one block at a time (the jackknife), and the spread of
what remains gives the variance. For a mean this is the variance between the means of blocks. The
interval is Student's t with one degree of freedom less than there are blocks.

With several seeds there are two sources of chance, the windows and the trainings. Their variances
are estimated apart, that of windows from the mean over seeds, and added; what belongs to both is
then counted twice, which makes the interval slightly too wide. Degrees of freedom follow
Satterthwaite: with three seeds that differ much they are hardly more than two, and the interval is
4.3 standard errors wide on either side.

**Source** of the jackknife: Quenouille, Biometrika 43, 1956; by blocks: Künsch, Annals of
Statistics 17, 1989.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moebench.records.confidence import effective_freedom, t_quantile
from moebench.records.quality import SeedSpread, SignedInterval, TextLoss
from moebench.records.router_use import GainSplit

NUM_BLOCKS = 32
"""Blocks of neighbouring windows: t of 31 degrees of freedom is 4 % wider than a normal law."""
MOST_SEEDS = 100
"""More trainings than anybody makes of one setting."""

Losses = NDArray[np.float64]
"""Mean loss of each window in nats a byte: [windows], or [seeds, windows]."""


def window_interval(losses: Losses) -> SignedInterval:
    """Mean over windows (and seeds, if there are any) with its interval of 95 %."""
    by_seed = np.atleast_2d(losses)
    seeds, windows = by_seed.shape
    mean = float(by_seed.mean())
    if windows < 2:
        return SignedInterval(mean, None, None, "one window has no spread")
    over_windows = by_seed.mean(axis=0)
    parts = [(_variance(np.mean, over_windows), _num_blocks(windows) - 1.0)]
    if seeds > 1:
        parts.append((float(by_seed.mean(axis=1).var(ddof=1)) / seeds, seeds - 1.0))
    return _interval(mean, parts)


def seeds_for(losses: Losses, half: float) -> int | None:
    """Fewest seeds with which the interval reaches `half` to either side, if all spread as these.

    None: one seed has no spread, or the windows alone, or `MOST_SEEDS` seeds, leave it wider.
    """
    seeds, windows = losses.shape
    if seeds < 2 or windows < 2 or half <= 0:
        return None
    freedom = _num_blocks(windows) - 1.0
    over_windows = _variance(np.mean, losses.mean(axis=0))
    of_one = float(losses.mean(axis=1).var(ddof=1))
    for count in range(2, MOST_SEEDS + 1):
        found = _interval(0.0, [(over_windows, freedom), (of_one / count, count - 1.0)])
        if found.high is not None and found.high <= half:
            return count
    return None


def text_loss(losses: Losses, base: Losses | None, seeds: tuple[int, ...]) -> TextLoss:
    """Loss of a router's seeds [seeds, windows] and its difference to the base's [windows].

    Args:
        base: Losses of the base on the same windows; None: these are the base's own.
    """
    by_seed = np.atleast_2d(losses)
    assert len(by_seed) == len(seeds), (by_seed.shape, seeds)
    means = tuple(by_seed.mean(axis=1).tolist())
    if base is None:
        spread = SeedSpread(seeds, means, ())
        return TextLoss(window_interval(by_seed), None, "this is the base", spread)
    assert base.shape == by_seed.shape[1:], (base.shape, by_seed.shape)
    differences = by_seed - base
    spread = SeedSpread(seeds, means, tuple(differences.mean(axis=1).tolist()))
    return TextLoss(window_interval(by_seed), window_interval(differences), None, spread)


def gain_split(
    same_k: Losses, layer_k: Losses, own: Losses, mean_k: tuple[float, ...]
) -> GainSplit:
    """How much of a router's gain over a random k a fixed k per layer has, and what is left.

    Args:
        same_k: Losses with one mean k for all layers, at tokens drawn at random.
        layer_k: Losses with the router's own mean k in each layer, at tokens drawn at random.
        own: Losses of the router.
        mean_k: Mean k that the three reached; more than 1 % apart is refused.
    """
    if len(mean_k) != 3 or max(mean_k) > 1.01 * min(mean_k):
        raise ValueError(f"mean_k: found {mean_k}, expected three equal mean k (within 1 %)")
    return GainSplit(
        window_interval(same_k - layer_k),
        window_interval(layer_k - own),
        float(same_k.mean()),
        float(layer_k.mean()),
        (mean_k[0], mean_k[1], mean_k[2]),
    )


def rank_correlation(first: Losses, second: Losses) -> float:
    """Spearman's rank correlation of two vectors, with mean ranks for equal values.

    It is 0 where one of them does not vary.
    """
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def rank_correlation_interval(first: Losses, second: Losses) -> SignedInterval:
    """Spearman's rank correlation over windows with its interval of 95 %."""
    value, windows = rank_correlation(first, second), len(first)
    variance = _variance(rank_correlation, first, second)
    interval = _interval(value, [(variance, _num_blocks(windows) - 1.0)])
    assert interval.low is not None and interval.high is not None
    return SignedInterval(value, max(-1.0, interval.low), min(1.0, interval.high))


def _num_blocks(windows: int) -> int:
    return min(NUM_BLOCKS, windows)


def _variance(statistic: Callable[..., float], *values: Losses) -> float:
    """Variance of a statistic of windows, by leaving out one block of neighbours at a time."""
    windows = len(values[0])
    blocks = np.array_split(np.arange(windows), _num_blocks(windows))
    left = np.array([statistic(*(np.delete(v, block) for v in values)) for block in blocks])
    return float((len(blocks) - 1) * left.var())


def _interval(value: float, parts: list[tuple[float, float]]) -> SignedInterval:
    """Student's interval from variances that add up, each with its degrees of freedom."""
    error = math.sqrt(sum(variance for variance, _ in parts))
    half = t_quantile(effective_freedom(parts)) * error if error else 0.0
    return SignedInterval(value, value - half, value + half)


def _ranks(values: Losses) -> Losses:
    """Rank of each value from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[inverse])
