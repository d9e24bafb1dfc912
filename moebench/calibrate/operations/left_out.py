"""Errors of operations on shapes and devices that their fits had not used, and the intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moebench.calibrate.operations.fit import fit_groups, without
from moebench.calibrate.operations.table import OperationRows
from moebench.predict.arrays import Floats
from moebench.predict.operations.fits import OperationFit
from moebench.predict.operations.nearest import BASES, Basis
from moebench.predict.operations.price import REGIMES, Bounds, PricedOperation, priced

Holdout = Literal["shapes", "device"]
FOLDS = 4
"""A quarter of the shapes is left out at a time."""
SHAPE_SEED = 3
LEVEL = 0.90
LEAST_RESIDUALS = 60
"""Residuals of a regime below which all regimes' quantiles are used."""
SIBLING_SHARE = 0.1
"""Most development tables hold no two devices of one family, so a sibling's ends lie this far on
the way from a fitted device's to another device's. Dense matmuls, measured on H100 and H200, say
almost none of it: H200 errs by 7.16 % with H100's parameters, by 7.12 % with its own, and by 9 to
26 % with those of others."""


@dataclass(frozen=True)
class LeftOut:
    """Prices of rows that no fit behind them had used."""

    rows: OperationRows
    price: PricedOperation
    basis: Basis
    """What the prices rest on; "fitted" where only shapes were left out."""

    @property
    def log_error(self) -> Floats:
        return self.rows.log_error(self.price.parameters)

    @property
    def seconds(self) -> Floats:
        return self.price.seconds(self.rows.calls, warm=True)


def leave_out(groups: Sequence[OperationRows], holdout: Holdout) -> Iterator[LeftOut]:
    """Every row once, priced by fits that never saw its shape, or its device.

    `groups` are of one operation.
    """
    if holdout == "shapes":
        yield from _shapes(groups)
        return
    fits = fit_groups(groups)
    for rows in groups:
        others = [fit for fit in fits if fit.system != rows.hardware.name]
        if others:
            price = priced(rows.operation, rows.software, rows.hardware, others)
            yield LeftOut(rows, price, price.basis)


def _shapes(groups: Sequence[OperationRows]) -> Iterator[LeftOut]:
    shapes = sorted({shape for rows in groups for shape in rows.shapes.tolist()})
    order = np.random.default_rng(SHAPE_SEED).permutation(len(shapes))
    for fold in range(FOLDS):
        left = [shapes[index] for index in order[fold::FOLDS]]
        fits = fit_groups([without(rows, left) for rows in groups])
        for rows in groups:
            here = rows[np.isin(rows.shapes, left)]
            if len(here):
                price = priced(rows.operation, rows.software, rows.hardware, fits)
                yield LeftOut(here, price, price.basis)


def bounds_of(found: Sequence[LeftOut]) -> dict[Basis, Bounds]:
    """Bounds of every basis that left-out rows speak of; a less sure basis is never narrower.

    Rows of one device err together: bounds of an unseen device are symmetrical, and as wide as the
    software and device with the largest errors needs, if it is one of few.
    """
    by_basis: dict[Basis, Bounds] = {}
    for basis in BASES:
        members = [one for one in found if one.basis == basis]
        if members:
            by_basis[basis] = _bounds(members, is_symmetrical=basis != "fitted")
    if "sibling" not in by_basis and {"fitted", "device"} <= by_basis.keys():
        by_basis["sibling"] = tuple(
            (low + SIBLING_SHARE * (far_low - low), high + SIBLING_SHARE * (far_high - high))
            for (low, high), (far_low, far_high) in zip(
                by_basis["fitted"], by_basis["device"], strict=True
            )
        )
    return {basis: by_basis[basis] for basis in BASES if basis in by_basis}


def _bounds(members: Sequence[LeftOut], is_symmetrical: bool) -> Bounds:
    errors = np.concatenate([one.log_error[one.rows.usable] for one in members])
    seconds = np.concatenate([one.seconds[one.rows.usable] for one in members])
    # Every group counts the same, however many rows it has.
    weights = np.concatenate(
        [np.full(n, 1 / max(n, 1)) for n in (int(one.rows.usable.sum()) for one in members)]
    )
    regimes = np.searchsorted(REGIMES, seconds)
    ends = []
    for regime in range(len(REGIMES) + 1):
        here = regimes == regime
        if here.sum() < LEAST_RESIDUALS:
            here = np.ones(len(errors), dtype=bool)
        values, shares = errors[here], weights[here]
        if is_symmetrical:
            values, shares = np.concatenate([values, -values]), np.concatenate([shares, shares])
        ends.append(_quantiles(values, shares))
    return tuple(ends)


def _quantiles(values: Floats, weights: Floats) -> tuple[float, float]:
    """Weighted 5 % and 95 % quantiles; zero is always inside."""
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    low, high = np.interp([(1 - LEVEL) / 2, (1 + LEVEL) / 2], share, values[order])
    return float(min(low, -0.002)), float(max(high, 0.002))


def fits_of(groups: Sequence[OperationRows]) -> list[OperationFit]:
    """Fits of groups of several operations."""
    names = dict.fromkeys(rows.operation.name for rows in groups)
    return [
        fit
        for name in names
        for fit in fit_groups([rows for rows in groups if rows.operation.name == name])
    ]
