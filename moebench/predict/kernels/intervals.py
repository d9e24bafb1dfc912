"""90 % intervals of latencies and of ratios, from errors on rows that the fit had not used.

The width depends on what the calibration knew: the shape on that device, the device alone, or
neither; on the kernel's family; and on the token regime. Widths are quantiles of cross-validated
errors (data/kernels/intervals.toml), so that 90 % means 90 %.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from moebench.predict.arrays import Floats
from moebench.spec.schema import from_mapping, read_toml
from moebench.units import nearest
from moebench.version import PACKAGE

REGIMES = ((0, 16), (16, 256), (256, 4096), (4096, 1 << 62))
"""Token ranges (from exclusive, to inclusive) over which rows are stratified and scores split."""
REGIME_NAMES = ("1-16", "17-256", "257-4096", ">4096")
Basis = Literal["seen", "rows", "shape", "sibling", "device", "relative", "stranger"]
"""Rows that the parameters rest on: many of the kernel on the device, the shape among them; a few
such rows; such rows without the shape; this kernel on a device of the same compute
capability; on other devices; other kernels of its family; kernels of other families."""
BASES: tuple[Basis, ...] = (
    "seen", "rows", "shape", "sibling", "device", "relative", "stranger",
)  # fmt: skip
UNSEEN: tuple[Basis, ...] = ("device", "relative", "stranger")
"""Bases without a row of the kernel on such a device, from the surest to the least sure."""
WIDEST = 20.0
"""Largest logarithm in a file; beyond it, an interval says nothing at all."""
RATIO_STEP = float(np.log(8 / 6))
"""Log ratio of assignments for which the errors of ratios were measured."""


Bounds = Mapping[str, tuple[float, float]]
"""Token regime to the 5 % and 95 % quantile of log(measured / predicted)."""


@dataclass(frozen=True)
class Widths:
    """Calibrated quantiles."""

    latency: Mapping[str, Mapping[str, Bounds]]
    """Quantiles of latencies by basis, then by family ("any" pools them)."""
    ratio: Mapping[str, Bounds]
    """Quantiles by basis, of log ratios of two loads `RATIO_STEP` apart."""
    parallel_ratio: Mapping[str, Bounds]
    """Quantiles of such ratios under expert parallelism."""

    def latency_factors(
        self, basis: Basis, family: str, num_tokens: Floats
    ) -> tuple[Floats, Floats]:
        """Factors from a prediction to the ends of its interval; arrays over cases."""
        table = self.latency[basis]
        low, high = _by_regime(table.get(family, table["any"]), num_tokens)
        return np.exp(low), np.exp(high)

    def ratio_factors(
        self,
        basis: Basis,
        num_tokens: Floats,
        assignment_ratio: Floats,
        is_parallel: bool = False,
    ) -> tuple[Floats, Floats]:
        """Factors from a ratio of two latencies on one device to the ends of its interval.

        Args:
            basis: of both predictions.
            num_tokens: tokens of the step, the same in both.
            assignment_ratio: token copies of one over those of the other: the errors of two
                equal loads cancel, and part as the loads part.
            is_parallel: under expert parallelism.
        """
        table = self.parallel_ratio if is_parallel else self.ratio
        low, high = _by_regime(table[basis], num_tokens)
        apart = np.sqrt(np.abs(np.log(assignment_ratio)) / RATIO_STEP)
        return np.exp(low * apart), np.exp(high * apart)


def _by_regime(bounds: Bounds, num_tokens: Floats) -> tuple[Floats, Floats]:
    edges = np.array([high for _, high in REGIMES[:-1]])
    place = np.searchsorted(edges, num_tokens, side="left")
    table = np.array([bounds[name] for name in REGIME_NAMES])
    return table[place, 0], table[place, 1]


@functools.cache
def shipped_widths() -> Widths:
    """The calibrated widths of data/kernels/intervals.toml."""
    return read_widths(PACKAGE / "data" / "kernels" / "intervals.toml")


@dataclass(frozen=True)
class _File:
    """Contents of intervals.toml."""

    latency: Mapping[str, Mapping[str, Mapping[str, tuple[float, ...]]]]
    ratio: Mapping[str, Mapping[str, tuple[float, ...]]]
    parallel_ratio: Mapping[str, Mapping[str, tuple[float, ...]]]
    note: str = ""


def read_widths(path: Path) -> Widths:
    """The calibrated widths of a file such as data/kernels/intervals.toml.

    Raises:
        ValueError: a basis, "any" family or token regime that is unknown or missing, or bounds
            that are not around 0.
    """
    where = f"{path.parent.name}/{path.name}"
    file = from_mapping(_File, read_toml(path), where)
    for kind, table in (
        ("latency", file.latency),
        ("ratio", file.ratio),
        ("parallel_ratio", file.parallel_ratio),
    ):
        _check_keys(table, BASES, f"{where}: {kind}")
    latency = {}
    for basis, families in file.latency.items():
        if "any" not in families:
            raise ValueError(f"{where}: latency.{basis}: missing key 'any', expected all families")
        latency[basis] = {
            family: _bounds(bounds, f"{where}: latency.{basis}.{family}")
            for family, bounds in families.items()
        }
    ratio, parallel_ratio = (
        {basis: _bounds(bounds, f"{where}: {kind}.{basis}") for basis, bounds in table.items()}
        for kind, table in (("ratio", file.ratio), ("parallel_ratio", file.parallel_ratio))
    )
    return Widths(latency, ratio, parallel_ratio)


def _bounds(table: Mapping[str, tuple[float, ...]], where: str) -> Bounds:
    _check_keys(table, REGIME_NAMES, where)
    for regime, ends in table.items():
        if len(ends) != 2 or not -WIDEST <= ends[0] <= 0 <= ends[1] <= WIDEST:
            raise ValueError(
                f"{where}: {regime!r}: found {list(ends)!r:.80}, expected two logarithms around 0"
            )
    return {regime: (ends[0], ends[1]) for regime, ends in table.items()}


def _check_keys(table: Mapping[str, object], known: Iterable[str], where: str) -> None:
    """Exactly the known keys."""
    names = list(known)
    for key in table:
        if key not in names:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, names)}")
    for name in names:
        if name not in table:
            raise ValueError(f"{where}: missing key {name!r}")
