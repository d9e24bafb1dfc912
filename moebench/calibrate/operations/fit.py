"""Fitting operations to measured rows: each group by itself, then with what the others found."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from moebench.calibrate.fit import most_probable, percentage_errors
from moebench.calibrate.operations.table import OperationRows
from moebench.predict.arrays import Floats
from moebench.predict.operations.fits import OperationFit
from moebench.predict.operations.nearest import Nearest, generic, logarithms, nearest, parameters_of

ROWS = 800
"""Rows of a group that a fit uses."""
LEAST_ROWS = 20
"""Rows below which a group is not fitted: the nearest fits price it."""
NOISE = 0.08
"""Log error that the forms have even with their best parameters."""
STEP = 0.04
"""Step of the derivatives, of logarithms: tiles and splits are steps that smaller ones miss."""


def fit_rows(rows: OperationRows, prior: Nearest, starts: Sequence[Floats] = ()) -> Any:
    """The most probable parameters of a group, given a prior.

    `starts`: logarithms where further searches start, beside the prior's mean.
    """
    operation, thin = rows.operation, thinned(rows, ROWS)
    ceiling = np.log([facts["ceiling"] for facts in operation.facts.values()])

    def errors(logs: Floats) -> Floats:
        return thin.log_error(parameters_of(operation, logs)) / NOISE

    found = most_probable(
        errors,
        prior.mean,
        prior.spread,
        ceiling=ceiling,
        starts=starts,
        x_scale=prior.spread,
        max_nfev=30,
        diff_step=STEP,
    )
    return parameters_of(operation, found)


def thinned(rows: OperationRows, count: int) -> OperationRows:
    """At most `count` of the rows that may be fitted, always the same ones."""
    use = np.flatnonzero(rows.usable)
    if len(use) > count:
        use = np.sort(np.random.default_rng(0).choice(use, count, replace=False))
    return rows[use]


def fit_groups(
    groups: Sequence[OperationRows], tables: Sequence[tuple[str, str]] = ()
) -> list[OperationFit]:
    """Fits of all groups of one operation with enough rows, of which some are others' priors.

    The prior of a fit is what the same kernel has in other releases, software and devices; another
    kernel, a combine beside a dispatch, has other parameters, and as a prior it misleads.

    The second fit also starts where the first ended: the others may run a kernel of another kind,
    from whose parameters no search finds this one's.

    `tables` are names and checksums of the tables that the rows are of.
    """
    used = [rows for rows in groups if rows.usable.sum() >= LEAST_ROWS]
    alone = [as_fit(rows, fit_rows(rows, generic(rows.operation)), tables) for rows in used]
    found = []
    for number, rows in enumerate(used):
        others = [
            fit
            for fit in (*alone[:number], *alone[number + 1 :])
            if fit.software.variant == rows.software.variant
        ]
        if not others:
            found.append(alone[number])
            continue
        prior = nearest(rows.operation, rows.software, rows.hardware, others)
        own = np.array(logarithms(rows.operation, alone[number].parameters))
        found.append(as_fit(rows, fit_rows(rows, prior, (own,)), tables))
    return found


def as_fit(
    rows: OperationRows, parameters: Any, tables: Sequence[tuple[str, str]] = ()
) -> OperationFit:
    """A fit with its provenance and its error on all rows that may be fitted."""
    good = rows[rows.usable]
    return OperationFit(
        rows.software,
        rows.hardware.name,
        parameters,
        len(good),
        percentage_errors(good.log_error(parameters)),
        ", ".join(name for name, _ in tables),
        ", ".join(sha256[:12] for _, sha256 in tables),
    )


def joined(groups: Sequence[OperationRows]) -> list[OperationRows]:
    """Groups with equal operation, software and device as one group."""
    found: dict[Any, list[OperationRows]] = {}
    for rows in groups:
        found.setdefault((rows.operation, rows.software, rows.hardware.name), []).append(rows)
    return [OperationRows.concatenate(parts) for parts in found.values()]


def without(rows: OperationRows, shapes: Sequence[str]) -> OperationRows:
    """The rows with some shapes marked as not to be fitted."""
    return dataclasses.replace(rows, usable=rows.usable & ~np.isin(rows.shapes, list(shapes)))
