"""The fit with its prior lies between measurement and prior by their precisions."""

import numpy as np
import pytest

from moebench.calibrate.fit import most_probable
from moebench.predict.arrays import Floats

MEAN, SPREAD = np.array([1.0, -2.0]), np.array([0.5, 0.1])


def test_nothing_measured_leaves_the_prior() -> None:
    found = most_probable(lambda logs: np.zeros(3), MEAN, SPREAD)
    assert found == pytest.approx(MEAN)


def test_a_small_error_is_weighed_by_precision() -> None:
    """Two normal densities multiply; soft-L1 is a parabola near zero."""
    noise, measured = 0.2, MEAN + 0.01
    found = most_probable(lambda logs: (logs - measured) / noise, MEAN, SPREAD)
    share = SPREAD**2 / (SPREAD**2 + noise**2)
    assert found == pytest.approx(MEAN + 0.01 * share, abs=1e-4)


def test_an_outlier_pulls_no_harder_than_a_near_miss_and_a_ceiling_holds() -> None:
    def pulled(distance: float, ceiling: float = np.inf) -> float:
        def errors(logs: Floats) -> Floats:
            return (logs[:1] - MEAN[0] - distance) / 0.1

        return float(most_probable(errors, MEAN, SPREAD, ceiling=ceiling)[0] - MEAN[0])

    assert pulled(100.0) == pytest.approx(SPREAD[0] ** 2 / 0.1, rel=0.01)
    assert pulled(100.0, ceiling=1.3) == pytest.approx(0.3)
