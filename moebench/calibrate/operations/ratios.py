"""Widths of predicted ratios of top-k: errors that two calls of an operation do not have in common.

Errors are those of pairs whose shape, or whose device, the fits had not used, each divided by the
root of the distance of the two top-k in logarithms, in units of `RATIO_STEP`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moebench.calibrate.operations.fit import fit_groups, without
from moebench.calibrate.operations.left_out import LEVEL
from moebench.calibrate.operations.table import OperationRows, OperationTable, groups_of
from moebench.predict.arrays import Floats
from moebench.predict.operations.fits import OperationFit
from moebench.predict.operations.nearest import BASES, Basis
from moebench.predict.operations.price import RATIO_STEP, REGIMES, Bounds, priced


@dataclass(frozen=True)
class Pairs:
    """Pairs of calls of one operation, software and device that differ in top-k alone."""

    larger: OperationRows
    smaller: OperationRows
    apart: Floats
    """Logarithm of the larger top-k over the smaller."""

    def error(self, fits: Sequence[OperationFit]) -> tuple[Basis, Floats]:
        """What prices by these fits rest on, and log errors of the ratio for one `RATIO_STEP`."""
        rows, fewer = self.larger, self.smaller
        price = priced(rows.operation, rows.software, rows.hardware, fits)
        errors = rows.log_error(price.parameters) - fewer.log_error(price.parameters)
        return price.basis, np.asarray(errors / np.sqrt(np.abs(self.apart) / RATIO_STEP))


def pairs_of(table: OperationTable) -> list[Pairs]:
    """The pairs of a table, by operation, software and device."""
    apart = np.log(table.member(0)["topk"] / table.member(1)["topk"])
    groups = zip(groups_of(table, 0)[0], groups_of(table, 1)[0], strict=True)
    found = []
    for larger, smaller in groups:
        differ = apart[larger.rows] != 0
        found.append(Pairs(larger[differ], smaller[differ], apart[larger.rows[differ]]))
    return [one for one in found if len(one.larger)]


def ratio_bounds(groups: Sequence[OperationRows], pairs: Sequence[Pairs]) -> dict[Basis, Bounds]:
    """Bounds of ratios by what prices rest on; the same in every regime of time.

    Args:
        groups: all rows of one operation.
        pairs: those of this operation.
    """
    found: dict[Basis, list[Floats]] = {}
    for basis, errors in _errors(groups, pairs):
        found.setdefault(basis, []).append(errors)
    bounds: dict[Basis, Bounds] = {}
    for basis in BASES:
        if basis in found:
            # Every group counts the same, however many pairs it has.
            ends = np.mean([_ends(errors) for errors in found[basis]], axis=0)
            bounds[basis] = ((float(ends[0]), float(ends[1])),) * (len(REGIMES) + 1)
    return bounds


def _ends(errors: Floats) -> Floats:
    """Symmetrical 90 % quantile of a group: the sign of the next one's error is not known."""
    width = np.quantile(np.abs(errors), LEVEL)
    return np.array([-width, width])


def _errors(
    groups: Sequence[OperationRows], pairs: Sequence[Pairs]
) -> Iterator[tuple[Basis, Floats]]:
    shapes = sorted({shape for one in pairs for shape in one.larger.shapes.tolist()})
    unseen = fit_groups([without(rows, shapes) for rows in groups])
    fits = fit_groups(groups)
    for one in pairs:
        yield one.error(unseen)
        others = [fit for fit in fits if fit.system != one.larger.hardware.name]
        if others:
            yield one.error(others)
