"""Predicted against measured, row by row: errors, coverage of intervals, correlation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moebench.predict.arrays import Floats, Ints, OverCases
from moebench.predict.kernels.intervals import REGIME_NAMES, REGIMES
from moebench.predict.operations.price import REGIMES as REGIMES_OF_TIME

Skipped = Mapping[str, Ints]
"""Rows that have no price, by reason."""


@dataclass(frozen=True)
class Scores(OverCases):
    """Predicted against measured, row by row; arrays over rows."""

    predicted: Floats
    measured: Floats
    low: Floats
    high: Floats
    num_tokens: Floats

    @classmethod
    def waiting(cls, measured: Floats, num_tokens: Floats) -> "Scores":
        """Rows whose predictions are still to be filled in."""
        predicted, low, high = (np.full(len(measured), np.nan) for _ in range(3))
        return cls(predicted, measured, low, high, num_tokens)

    def fill(self, index: Ints, predicted: Floats, low: Floats, high: Floats) -> None:
        """Write the predictions of some rows."""
        self.predicted[index], self.low[index], self.high[index] = predicted, low, high

    def figures(self, with_correlation: bool = False) -> dict[str, float | int | None]:
        """Number of rows, errors and coverage in percent; None where there are none to score."""
        n = len(self.measured)
        names = ("mape", "median_ape", "p90_ape", "bias", "coverage90")
        if not n:
            empty: dict[str, float | int | None] = {"n": 0, **dict.fromkeys(names)}
            return empty | ({"correlation": None} if with_correlation else {})
        error = 100 * (self.predicted / self.measured - 1)
        inside = (self.low <= self.measured) & (self.measured <= self.high)
        ape = np.abs(error)
        values = (ape.mean(), np.median(ape), np.percentile(ape, 90), error.mean())
        found: dict[str, float | int | None] = {"n": n}
        found |= {
            name: round(float(value), 4) for name, value in zip(names[:-1], values, strict=True)
        }
        has_interval = bool(np.isfinite(self.low).all())
        found["coverage90"] = round(float(100 * inside.mean()), 4) if has_interval else None
        if with_correlation:
            logs = np.log(self.predicted), np.log(self.measured)
            is_constant = n < 2 or logs[0].std() < 1e-12 or logs[1].std() < 1e-12
            correlation = None if is_constant else float(np.corrcoef(*logs)[0, 1])
            found["correlation"] = None if correlation is None else round(correlation, 4)
        return found

    def by_regime(self, with_correlation: bool = False) -> dict[str, dict[str, Any]]:
        return {
            name: self[(self.num_tokens > low) & (self.num_tokens <= high)].figures(
                with_correlation
            )
            for name, (low, high) in zip(REGIME_NAMES, REGIMES, strict=True)
        }

    def by_time(self, with_correlation: bool = False) -> dict[str, dict[str, Any]]:
        """Figures by measured time: calls that mostly start, calls that mostly work, and others."""
        regimes = np.searchsorted(REGIMES_OF_TIME, self.measured)
        names = ("under 20 us", "20 to 200 us", "over 200 us")
        return {
            name: self[regimes == regime].figures(with_correlation)
            for regime, name in enumerate(names)
        }


def mean_over_groups(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of every figure over groups, so that a kernel with many rows counts no more."""
    names = ("mape", "median_ape", "p90_ape", "bias", "coverage90", "correlation")
    found: dict[str, Any] = {"n": sum(group["n"] for group in groups)}
    for name in names:
        values = [group[name] for group in groups if group.get(name) is not None]
        if any(name in group for group in groups):
            found[name] = round(float(np.mean(values)), 4) if values else None
    return found
