"""90 % intervals of latencies and of ratios, from errors on rows that the fit had not seen.

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
"""What the parameters rest on: many rows of the kernel on the device, and the shape among them;
a few such rows; the same without the shape; this kernel on a device of the same compute
capability; on other devices; other kernels of its family; kernels of other families."""
BASES: tuple[Basis, ...] = (
    "seen", "rows", "shape", "sibling", "device", "relative", "stranger",
)  # fmt: skip
UNSEEN: tuple[Basis, ...] = ("device", "relative", "stranger")
"""Bases without a row of the kernel on such a device, from the surest to the least sure."""
SIBLING_SHARE = 0.25
"""No two devices of the development tables have one compute capability, so a sibling's widths
are assumed: this far on the way from an unseen shape's to an unseen device's."""
LEVEL = 0.90
LEAST_ROWS = 60
"""Residuals below which a family's own quantiles are not trusted and all families' are used."""
WIDEST = 20.0
"""Of the logarithms in a file: beyond it, an interval says nothing at all."""
RATIO_STEP = float(np.log(8 / 6))
"""Log ratio of assignments for which the errors of ratios were measured."""


@dataclass(frozen=True)
class Residuals:
    """Errors of one group under one basis."""

    basis: Basis
    family: str
    system: str
    """Hardware name."""
    num_tokens: Floats
    log_error: Floats
    """log(measured / predicted)."""
    is_parallel: bool = False
    """Ratios under expert parallelism, where the load of the fullest rank is one draw of many."""


Bounds = Mapping[str, tuple[float, float]]
"""Token regime to the 5 % and 95 % quantile of log(measured / predicted)."""


@dataclass(frozen=True)
class Widths:
    """Calibrated quantiles."""

    latency: Mapping[str, Mapping[str, Bounds]]
    """By basis, then by family ("any" pools them)."""
    ratio: Mapping[str, Bounds]
    """By basis: of log ratios of two loads `RATIO_STEP` apart."""
    parallel_ratio: Mapping[str, Bounds]
    """The same under expert parallelism."""

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
        """The same for the ratio of two latencies of one kernel on one device.

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


def bounds_of(residuals: Iterable[Residuals]) -> Bounds:
    """Quantiles of pooled residuals in each regime; zero is always inside."""
    found = list(residuals)
    tokens = np.concatenate([one.num_tokens for one in found])
    errors = np.concatenate([one.log_error for one in found])
    bounds = {}
    for name, (low, high) in zip(REGIME_NAMES, REGIMES, strict=True):
        here = errors[(tokens > low) & (tokens <= high)]
        ends = np.quantile(here if len(here) else errors, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        bounds[name] = (float(min(ends[0], -0.002)), float(max(ends[1], 0.002)))
    return bounds


def calibrate_widths(latency: Iterable[Residuals], ratio: Iterable[Residuals]) -> Widths:
    """Quantiles for every basis and family that has enough residuals."""
    rows, ratios = list(latency), list(ratio)
    by_basis: dict[str, dict[str, Bounds]] = {}
    for basis in BASES:
        if basis == "sibling" or basis in UNSEEN:
            continue
        members = [one for one in rows if one.basis == basis]
        table = {"any": bounds_of(members)}
        for family in sorted({one.family for one in members}):
            own = [one for one in members if one.family == family]
            if sum(len(one.log_error) for one in own) >= LEAST_ROWS:
                table[family] = bounds_of(own)
        by_basis[basis] = table
    by_basis |= {basis: {"any": bounds} for basis, bounds in unseen_bounds(rows).items()}
    alone = _ratio_bounds(one for one in ratios if not one.is_parallel)
    parallel = _ratio_bounds(one for one in ratios if one.is_parallel)
    by_basis["sibling"] = {
        family: _towards(bounds, by_basis["device"]["any"])
        for family, bounds in by_basis["shape"].items()
    }
    return Widths(by_basis, alone, parallel)


def _ratio_bounds(residuals: Iterable[Residuals]) -> dict[str, Bounds]:
    ratios = list(residuals)
    found: dict[str, Bounds] = {
        basis: bounds_of(one for one in ratios if one.basis == basis)
        for basis in BASES
        if basis != "sibling"
    }
    return found | {"sibling": _towards(found["shape"], found["device"])}


def unseen_bounds(residuals: Iterable[Residuals]) -> dict[Basis, Bounds]:
    """Bounds of predictions for devices without a row of the kernel.

    Rows of one device err together, so what counts is the number of devices, not of rows: bounds
    are as wide as the device with the largest errors needs for 90 % of its rows. They are
    symmetrical: whether the next device is faster or slower than its spec sheet says is not
    known. Knowing less is never narrower.
    """
    rows = list(residuals)
    found: dict[Basis, Bounds] = {}
    before: Bounds = dict.fromkeys(REGIME_NAMES, (-0.002, 0.002))
    for basis in UNSEEN:
        members = [one for one in rows if one.basis == basis]
        for system in sorted({one.system for one in members}):
            own = bounds_of(
                Residuals(basis, one.family, system, one.num_tokens, sign * np.abs(one.log_error))
                for one in members
                for sign in (-1, 1)
                if one.system == system
            )
            before = _wider(before, own)
        found[basis] = before
    return found


def _wider(one: Bounds, other: Bounds) -> Bounds:
    return {
        name: (min(low, other[name][0]), max(high, other[name][1]))
        for name, (low, high) in one.items()
    }


def _towards(one: Bounds, other: Bounds) -> Bounds:
    """Bounds `SIBLING_SHARE` of the way from one to the other."""
    return {
        name: (
            low + SIBLING_SHARE * (other[name][0] - low),
            high + SIBLING_SHARE * (other[name][1] - high),
        )
        for name, (low, high) in one.items()
    }


def write_widths(widths: Widths, path: Path, note: str) -> None:
    """Write data/kernels/intervals.toml.

    Args:
        widths: what to write.
        path: the file.
        note: provenance, one line of a comment.
    """
    lines = [f"# {note}", "# [5 %, 95 %] quantiles of log(measured / predicted) by token regime."]
    tables: list[tuple[str, Bounds]] = [
        (f"latency.{basis}.{family}", bounds)
        for basis, families in widths.latency.items()
        for family, bounds in families.items()
    ]
    for kind, by_basis in (("ratio", widths.ratio), ("parallel_ratio", widths.parallel_ratio)):
        tables += [(f"{kind}.{basis}", bounds) for basis, bounds in by_basis.items()]
    for name, bounds in tables:
        lines += ["", f"[{name}]"]
        lines += [f'"{regime}" = [{low:.4f}, {high:.4f}]' for regime, (low, high) in bounds.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@functools.cache
def shipped_widths() -> Widths:
    """The calibrated widths of data/kernels/intervals.toml."""
    return read_widths(PACKAGE / "data" / "kernels" / "intervals.toml")


@dataclass(frozen=True)
class _File:
    """What intervals.toml holds."""

    latency: Mapping[str, Mapping[str, Mapping[str, tuple[float, ...]]]]
    ratio: Mapping[str, Mapping[str, tuple[float, ...]]]
    parallel_ratio: Mapping[str, Mapping[str, tuple[float, ...]]]


def read_widths(path: Path) -> Widths:
    """Calibrated widths as `write_widths` wrote them.

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
