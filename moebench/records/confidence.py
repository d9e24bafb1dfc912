"""Textbook statistics, each with its source: intervals of 95 % and tests.

`scipy.special` takes a quarter of a second to import, so only the functions that need it do.
"""

import math
import statistics
from collections.abc import Sequence

from moebench.records.results import Interval

LEVEL = 0.95


def t_quantile(freedom: float) -> float:
    """Half width of a 95 % interval in standard errors, by Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def p_value(point: float, low: float, high: float, freedom: float) -> float:
    """Two-sided p-value of "the true value is 0", from a 95 % interval around `point`.

    Below 5 % exactly when the interval leaves 0 out: the side of the interval that faces 0 is
    taken for t standard errors.
    """
    from scipy.special import stdtr

    facing = point - low if point > 0 else high - point
    if facing <= 0:
        return 0.0 if point else 1.0
    return float(2 * stdtr(freedom, -abs(point) / facing * t_quantile(freedom)))


def effective_freedom(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of estimated variances, each with its own; infinite: known.

    **Source** Satterthwaite, Biometrics Bulletin 2, 1946, equation 17.
    """
    below = sum(variance**2 / freedom for variance, freedom in parts)
    return sum(variance for variance, _ in parts) ** 2 / below if below else math.inf


def share_limits(count: float, n: int) -> tuple[float, float]:
    """Exact interval of the share that `count` of `n` trials estimate.

    **Source** Clopper and Pearson, Biometrika 26, 1934.
    """
    from scipy.special import betaincinv

    tail = (1 - LEVEL) / 2
    low = float(betaincinv(count, n - count + 1, tail)) if count > 0 else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - tail)) if count < n else 1.0
    return low, high


def median_interval(values: Sequence[float]) -> Interval:
    """The median with an interval of at least 95 % from order statistics; six values at least.

    The k-th smallest and the k-th largest of n values enclose the median unless fewer than k of
    them lie on one side of it, which is a matter of n fair coins: nothing is assumed of the noise.
    """
    n, ordered = len(values), sorted(values)
    missed, k = 0.0, 0
    while (missed := missed + 2 * math.comb(n, k) / 2**n) <= 1 - LEVEL:
        k += 1
    middle = statistics.median(ordered)
    if k == 0:
        return Interval(middle, None, None, LEVEL)
    return Interval(middle, ordered[k - 1], ordered[-k], LEVEL)


def rejected(p_values: Sequence[float]) -> list[bool]:
    """Which null hypotheses are rejected at a false-discovery rate of 5 %.

    Not counted: dependence between the p-values other than positive.

    **Source** Benjamini and Hochberg, J. Royal Statistical Society B 57, 1995, procedure (1).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    last = max(
        (rank for rank, i in enumerate(order, 1) if p_values[i] <= rank / len(order) * (1 - LEVEL)),
        default=0,
    )
    chosen = set(order[:last])
    return [i in chosen for i in range(len(p_values))]
