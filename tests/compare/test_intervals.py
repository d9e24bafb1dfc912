"""Intervals that rest on order alone."""

import pytest

from moebench.compare.intervals import median_interval


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
