"""Textbook intervals against the tables that were printed of them."""

import math

import pytest

from moebench.records.confidence import (
    effective_freedom,
    median_interval,
    rejected,
    share_limits,
    t_quantile,
)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (4, 2.776), (10, 2.228), (math.inf, 1.960)]
)
def test_the_quantile_of_t_is_the_printed_one(freedom: float, quantile: float) -> None:
    """**Source**: Student, Metron 5 (1925), the tables of every textbook."""
    assert t_quantile(freedom) == pytest.approx(quantile, abs=5e-4)


def test_freedoms_of_equal_variances_add_up_and_a_known_variance_adds_certainty() -> None:
    assert effective_freedom([(2.0, 5), (2.0, 5)]) == 10
    assert effective_freedom([(1.0, 4), (1.0, math.inf)]) == 16
    assert effective_freedom([(1.0, math.inf)]) == math.inf


def test_the_interval_of_a_share_is_the_exact_one() -> None:
    """**Source**: Clopper and Pearson, Biometrika 26 (1934), the chart for n = 10 at 95 %."""
    assert share_limits(0, 10) == (0, pytest.approx(1 - 0.025**0.1))
    assert share_limits(3, 10) == (pytest.approx(0.067, abs=1e-3), pytest.approx(0.652, abs=1e-3))
    assert share_limits(10, 10) == (pytest.approx(0.025**0.1), 1)


def test_benjamini_and_hochberg_reject_the_four_of_their_example() -> None:
    """**Source**: Benjamini and Hochberg 1995, section 3.2: fifteen p-values, four rejected."""
    p_values = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p_values += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    assert rejected(p_values[::-1])[::-1] == [True] * 4 + [False] * 11


@pytest.mark.parametrize(
    ("n", "place"), [(5, None), (6, 1), (8, 1), (9, 2), (12, 3), (17, 5), (25, 8)]
)
def test_the_interval_of_a_median_is_that_of_the_sign_test(n: int, place: int | None) -> None:
    """Places of the limits in the tables of the sign test at 5 %, two-sided, plus one.

    **Source**: Dixon and Mood, JASA 41 (1946), table 1: critical numbers 0 at n = 6 to 8, 1 at 9,
    2 at 12, 4 at 17, 7 at 25.
    """
    found = median_interval([float(i) for i in range(n, 0, -1)])
    assert found.value == (n + 1) / 2
    assert (found.low, found.high) == ((None, None) if place is None else (place, n + 1 - place))
