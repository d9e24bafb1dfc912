"""Errors of operations on shapes and devices that their fits had not used, and the intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moebench.calibrate.operations.fit import fit_groups, without
from moebench.calibrate.operations.table import OperationRows
from moebench.predict.arrays import Floats
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
    """Bounds of every basis that left-out rows speak of.

    Errors on unseen shapes count by row. Rows of one device err together, so errors on unseen
    devices count by group, and their bounds are symmetrical: whether the next device is faster or
    slower than its data sheet says is not known.
    """
    by_basis: dict[Basis, Bounds] = {}
    for basis in BASES:
        members = [one for one in found if one.basis == basis and one.rows.usable.any()]
        if members:
            by_basis[basis] = _bounds(members, is_own=basis == "fitted")
    if "sibling" not in by_basis and {"fitted", "device"} <= by_basis.keys():
        by_basis["sibling"] = tuple(
            (low + SIBLING_SHARE * (far_low - low), high + SIBLING_SHARE * (far_high - high))
            for (low, high), (far_low, far_high) in zip(
                by_basis["fitted"], by_basis["device"], strict=True
            )
        )
    return {basis: by_basis[basis] for basis in BASES if basis in by_basis}


def bounds_by_software(operation: str, found: Sequence[LeftOut]) -> dict[str, dict[Basis, Bounds]]:
    """Bounds of an operation, and of each software that runs it by itself.

    A software with rows of one device alone takes the bounds of unseen devices from all.
    """
    together = bounds_of(found)
    bounds = {operation: together}
    names = sorted({one.rows.software.name for one in found})
    for name in names if len(names) > 1 else []:
        own = [one for one in found if one.rows.software.name == name]
        if not any(one.basis == "device" for one in own):
            own += [one for one in found if one.basis == "device"]
        bounds[f"{operation}.{name}"] = bounds_of(own)
    return bounds


def _bounds(members: Sequence[LeftOut], is_own: bool) -> Bounds:
    counts = [int(one.rows.usable.sum()) for one in members]
    errors = np.concatenate([one.log_error[one.rows.usable] for one in members])
    seconds = np.concatenate([one.seconds[one.rows.usable] for one in members])
    weights = np.concatenate([np.full(n, 1.0 if is_own else 1 / max(n, 1)) for n in counts])
    regimes = np.searchsorted(REGIMES, seconds)
    ends = []
    for regime in range(len(REGIMES) + 1):
        here = regimes == regime
        if here.sum() < LEAST_RESIDUALS:
            here = np.ones(len(errors), dtype=bool)
        values, shares = errors[here], weights[here]
        if not is_own:
            values, shares = np.concatenate([values, -values]), np.concatenate([shares, shares])
        ends.append(_quantiles(values, shares))
    return tuple(ends)


def _quantiles(values: Floats, weights: Floats) -> tuple[float, float]:
    """Weighted 5 % and 95 % quantiles; zero is always inside."""
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    low, high = np.interp([(1 - LEVEL) / 2, (1 + LEVEL) / 2], share, values[order])
    return float(min(low, -0.002)), float(max(high, 0.002))
