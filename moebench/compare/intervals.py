"""Intervals by resampling blocks of rounds.

On two cores of a shared server the middle half of paired logarithmic ratios lay within 3 % while
their standard deviation was 17 %. A mean follows such delays, so the estimate is the trimmed mean
of the rounds' logarithmic ratios, without the highest and the lowest 35 %: bursts hit up to a third
of 36 rounds there, and with 25 % trimmed their mean spread 1.4 times as far (1.1 % against 0.8 %).

The interval comes from circular blocks of b = ceil(n^(1/4)) consecutive rounds, the best rate for a
one-sided limit (Hall, Horowitz and Jing, Biometrika 82, 1995), drawn until there are n rounds. The
quantiles of `RESAMPLES` such draws, as distances from the estimate, are widened by

    t(n/b - 1) / 1.96 * sqrt(n / (n - b))

because n/b blocks are few and the plain percentile interval ignores that their spread is estimated.
In simulations (tests) the coverage is 94 to 98 % for independent noise with and without delays, and
92 to 95 % where the ratios of consecutive rounds correlate with 0.3; random order within rounds
keeps that correlation near 0.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moebench.records.confidence import LEVEL, t_quantile

RESAMPLES = 1000
TRIM = 0.35
"""Share of the values left out at either end."""

Vector = NDArray[np.float64]
LimitPair = tuple[float, float] | tuple[None, None]


def block_length(num_rounds: int) -> int:
    """Rounds in a block, ceil(n^(1/4)); see the module's text."""
    return math.ceil(round(math.sqrt(math.sqrt(num_rounds)), 9))


def degrees_of_freedom(num_rounds: int) -> float:
    """Degrees of freedom of the spread between blocks; below 1 there is no interval."""
    return num_rounds / block_length(num_rounds) - 1


def standard_errors(num_rounds: int) -> float:
    """Half width of the 95 % interval in standard errors; see the module's text."""
    n, block = num_rounds, block_length(num_rounds)
    return t_quantile(degrees_of_freedom(n)) * math.sqrt(n / (n - block))


def trimmed_mean(values: Vector) -> Vector:
    """Mean along the last axis without the `TRIM` highest and lowest values."""
    n = values.shape[-1]
    cut = int(TRIM * n)
    middle = np.sort(values, axis=-1)[..., cut : n - cut]
    return np.asarray(middle.mean(axis=-1))


def center_limits(values: Vector, seed: int) -> LimitPair:
    """95 % interval of the trimmed mean of correlated values."""
    return _limits(trimmed_mean, (values,), seed)


def ratio_limits(numerator: Vector, denominator: Vector, seed: int) -> LimitPair:
    """95 % interval of the logarithm of sum(numerator) / sum(denominator)."""
    return _limits(lambda a, b: np.log(a.sum(-1) / b.sum(-1)), (numerator, denominator), seed)


def _limits(statistic: Callable[..., Vector], values: tuple[Vector, ...], seed: int) -> LimitPair:
    """95 % interval of a statistic of rounds; None for too few blocks."""
    n = len(values[0])
    freedom, block = degrees_of_freedom(n), block_length(n)
    if freedom < 1:
        return None, None
    starts = np.random.default_rng(seed).integers(0, n, (RESAMPLES, math.ceil(n / block), 1))
    drawn = ((starts + np.arange(block)) % n).reshape(RESAMPLES, -1)[:, :n]
    point, resampled = float(statistic(*values)), statistic(*(each[drawn] for each in values))
    low, high = map(float, np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    widening = standard_errors(n) / t_quantile(math.inf)
    return point - widening * max(0.0, point - low), point + widening * max(0.0, high - point)
