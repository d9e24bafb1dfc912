"""90 % intervals of latencies and of ratios, from errors on rows that the fit had not used.

The width depends on the rows that the parameters rest on (`Basis`), the kernel's family and the
token regime: quantiles of cross-validated errors (data/kernels/intervals.toml).
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from moebench.predict.arrays import Floats
from moebench.spec.schema import from_mapping, read_toml
from moebench.units import nearest
from moebench.version import PACKAGE

REGIMES = ((0, 16), (16, 256), (256, 4096), (4096, 1 << 62))
"""Token ranges (from exclusive, to inclusive) over which rows are stratified and scores split."""
REGIME_NAMES = ("1-16", "17-256", "257-4096", ">4096")
Basis = Literal["seen", "rows", "shape", "sibling", "device", "relative", "stranger", "maker"]
"""Rows that the parameters rest on: many of the kernel on the device, the shape among them; a few
such rows; such rows without the shape; this kernel on a device of the same compute
capability; on other devices; other kernels of its family; kernels of other families; kernels on
GPUs of other makers."""
BASES: tuple[Basis, ...] = tuple(basis for basis in get_args(Basis) if basis != "maker")
"""Bases whose errors were measured; "maker" has no interval."""
UNSEEN: tuple[Basis, ...] = ("device", "relative", "stranger")
"""Bases without a row of the kernel on such a device, from the surest to the least sure."""
WIDEST = 20.0
"""Largest logarithm in a file; beyond it, an interval says nothing at all."""
RATIO_STEP = float(np.log(8 / 6))
"""Log ratio of assignments for which the errors of ratios were measured."""
Bounds = Mapping[str, tuple[float, float]]
"""Token regime to the 5 % and 95 % quantile of log(measured / predicted)."""
NO_BOUNDS: Bounds = dict.fromkeys(REGIME_NAMES, (float("nan"), float("nan")))
"""Bounds of a basis without measured errors: ends of intervals become NaN."""


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
        self, bases: Sequence[Basis], family: str, num_tokens: Floats
    ) -> tuple[Floats, Floats]:
        """[cases] factors from a prediction to the ends of its interval."""
        tables = [self.latency.get(basis, {"any": NO_BOUNDS}) for basis in bases]
        low, high = regime_ends([t.get(family, t["any"]) for t in tables], num_tokens)
        return np.exp(low), np.exp(high)


def regime_ends(bounds: Sequence[Bounds], num_tokens: Floats) -> Floats:
    """[2, cases] logarithms of an interval's ends, each case from its own bounds."""
    regimes = np.searchsorted([high for _, high in REGIMES[:-1]], num_tokens, side="left")
    ends = [one[REGIME_NAMES[regime]] for one, regime in zip(bounds, regimes, strict=True)]
    return np.array(ends).reshape(-1, 2).T


@functools.cache
def shipped_widths() -> Widths:
    """The calibrated widths of data/kernels/intervals.toml."""
    return read_widths(PACKAGE / "data" / "kernels" / "intervals.toml")


def read_widths(path: Path) -> Widths:
    """The calibrated widths of a file such as data/kernels/intervals.toml."""
    file, table = f"{path.parent.name}/{path.name}", read_toml(path)
    table.pop("note", None)
    widths = from_mapping(Widths, table, file)
    for kind, by_basis in vars(widths).items():
        _check_keys(by_basis, BASES, f"{file}: {kind}")
        for basis, found in by_basis.items():
            where = f"{file}: {kind}.{basis}"
            tables = {where: found}
            if kind == "latency":
                tables = {f"{where}.{family}": bounds for family, bounds in found.items()}
                if "any" not in found:
                    raise ValueError(f"{where}: missing key 'any', expected all families")
            for place, bounds in tables.items():
                _check_keys(bounds, REGIME_NAMES, place)
                for regime, (low, high) in bounds.items():
                    if not -WIDEST <= low <= 0 <= high <= WIDEST:
                        raise ValueError(
                            f"{place}: {regime!r}: found {[low, high]!r:.80}, "
                            "expected two logarithms around 0"
                        )
    return widths


def _check_keys(table: Mapping[str, object], names: Sequence[str], where: str) -> None:
    """Refuse a table that has not exactly these keys."""
    for key in table:
        if key not in names:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, names)}")
    for name in names:
        if name not in table:
            raise ValueError(f"{where}: missing key {name!r}")
