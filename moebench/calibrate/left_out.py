"""Predictions of rows of devices or model shapes that nothing was fitted to, priors included.

Unlike `cross_validation`, which makes the shipped intervals, every interval here comes from errors
on the other devices (or the other shapes) alone, so its coverage is honest too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moebench.calibrate.fit import (
    LEAST_ROWS,
    PARALLEL_ROWS,
    ROWS,
    as_fit,
    fit_parameters,
    fit_siblings,
    full_fit,
    prior_from,
    stratified,
    thinned,
)
from moebench.calibrate.folds import FOLD_ROWS, HeldOut, shape_folds, unseen_devices
from moebench.calibrate.rows import Measured, by_source
from moebench.calibrate.widths import bounds_of, unseen_bounds
from moebench.predict.arrays import Floats, Ints, Mask
from moebench.predict.kernels.catalogue import KernelFit
from moebench.predict.kernels.dense import DenseParameters
from moebench.predict.kernels.intervals import UNSEEN, Basis, Bounds, Widths, shipped_widths
from moebench.predict.kernels.parameters import Parameters
from moebench.predict.kernels.price import unseen_basis

Holdout = Literal["device", "shapes", "both"]
"""Each device in turn, a quarter of the model shapes at a time, or both at once."""


@dataclass(frozen=True)
class LeaveOut:
    """Every group predicted from fits without its device, its shapes, or both."""

    groups: Sequence[Measured]
    holdout: Holdout
    rows: int | None
    """Rows of the device (and of the other shapes) that are fitted all the same; None: all of them
    where only shapes are left out, else none."""
    seed: int
    """Seed of the rows drawn."""
    dense: Mapping[str, DenseParameters]
    """Fits of devices' dense matmuls, if predictions may use them."""

    @property
    def folds(self) -> list[list[str]]:
        """The shapes that are left out at a time."""
        return [[]] if self.holdout == "device" else shape_folds(self.groups)

    @property
    def num_steps(self) -> int:
        """Number of calls of `tell` in `predict`."""
        return len(self.folds) * (len(self.groups) + len(by_source(self.groups)))

    def predict(self, tell: Callable[[str], None]) -> list[tuple[Ints, Floats, Floats, Floats]]:
        """Every row, predicted from fits that used neither its device nor its shape.

        Some rows at a time: indices into the table's well-formed rows, predicted seconds, and both
        ends of their intervals. `tell` is called with what will be done next.
        """
        parts: list[HeldOut] = []
        unseen: dict[str, Mapping[Basis, Bounds]] = {}
        for number, left_out in enumerate(self.folds):
            fits = self._fits(left_out, tell)
            if self.holdout != "shapes" and self.rows is None and number == 0:
                unseen = self._unseen_by_device(fits)
            for members in by_source(self.groups):
                rows = members[0]
                tell(f"predicting {rows.kernel.label} on {rows.hardware.name}")
                unit = f"fold {number}" if self.holdout == "shapes" else rows.hardware.name
                parts += self._parts(members, fits, left_out, unit)
        return [_with_interval(part, parts, unseen) for part in parts]

    def _fits(
        self, left_out: Sequence[str], tell: Callable[[str], None]
    ) -> list[tuple[Measured, KernelFit]]:
        """Each group that has enough rows, and its fit by itself."""
        found = []
        for group in self.groups:
            tell(f"fitting {group.kernel.label} on {group.hardware.name}")
            rows = group[group.may_be_fitted(left_out)]
            if (~rows.is_parallel).sum() >= LEAST_ROWS:
                count = ROWS if self.holdout == "device" else FOLD_ROWS
                found.append((group, as_fit(rows, full_fit(rows, count))))
        return found

    def _parts(
        self,
        members: Sequence[Measured],
        fits: Sequence[tuple[Measured, KernelFit]],
        left_out: Sequence[str],
        unit: str,
    ) -> Iterator[HeldOut]:
        """The members of one source, predicted."""
        known = [
            [
                fit
                for group, fit in fits
                if group is not rows
                and (self.holdout == "shapes" or fit.system != rows.hardware.name)
            ]
            for rows in members
        ]
        priors = [
            prior_from(rows, some, self.dense) for rows, some in zip(members, known, strict=True)
        ]
        taken = [np.zeros(len(rows), dtype=bool) for rows in members]
        parameters: list[Parameters] = [prior.parameters for prior in priors]
        bases: list[Basis] = ["shape" if left_out else "rows"] * len(members)
        if self.rows is not None:
            taken = drawn(members, (self.rows, self.seed), left_out)
            own = [rows[some] for rows, some in zip(members, taken, strict=True)]
            parameters = fit_siblings(own, priors)
        elif self.holdout == "shapes":
            for place, (rows, prior) in enumerate(zip(members, priors, strict=True)):
                own_rows = thinned(rows[rows.may_be_fitted(left_out)], FOLD_ROWS, PARALLEL_ROWS)
                if len(own_rows):
                    parameters[place] = fit_parameters(own_rows, prior)
        else:
            bases = [
                unseen_basis(rows.kernel, rows.hardware, some)
                for rows, some in zip(members, known, strict=True)
            ]
        for rows, some, found, basis in zip(members, taken, parameters, bases, strict=True):
            scored = rows[np.isin(rows.shapes, left_out) if left_out else ~some]
            if len(scored):
                yield HeldOut(unit, basis, scored, scored.log_error(found))

    def _unseen_by_device(
        self, fits: Sequence[tuple[Measured, KernelFit]]
    ) -> dict[str, Mapping[Basis, Bounds]]:
        """Bounds for each device from the errors of the other devices on one another."""
        found: dict[str, Mapping[Basis, Bounds]] = {}
        for system in {group.hardware.name for group in self.groups}:
            others = [(group[group.works], fit) for group, fit in fits if fit.system != system]
            held_out = unseen_devices([group for group, _ in others], [fit for _, fit in others])
            if held_out:
                found[system] = unseen_bounds([one.residuals for one in held_out])
        return found


def drawn(
    members: Sequence[Measured],
    draw: tuple[int, int],
    left_out: Sequence[str] = (),
    mixed: bool = False,
) -> list[Mask]:
    """Rows that calibrate groups of one source: as many from each token regime as it has to give.

    Args:
        members: groups of one source.
        draw: rows of all groups together, and the seed.
        left_out: shapes that are not drawn.
        mixed: whether rows are drawn in the order of the table rather than group by group.
    """
    count, seed = draw
    may = [rows.may_be_fitted(left_out) for rows in members]
    rows = np.concatenate([group.rows for group in members])
    order = np.argsort(rows) if mixed else np.arange(len(rows))
    candidates = order[np.concatenate(may)[order]]
    tokens = np.concatenate([group.cases.num_tokens for group in members])[candidates]
    taken = np.zeros(len(rows), dtype=bool)
    taken[candidates[stratified(tokens, count, np.random.default_rng(seed))]] = True
    return np.split(taken, np.cumsum([len(each) for each in may])[:-1])


def _with_interval(
    part: HeldOut, parts: Sequence[HeldOut], unseen: Mapping[str, Mapping[Basis, Bounds]]
) -> tuple[Ints, Floats, Floats, Floats]:
    """The interval that errors on everything but this part's device or fold would give it."""
    own, basis = part.residuals, part.basis
    assert basis is not None
    if basis in UNSEEN or basis == "sibling":
        asked: Basis = "device" if basis == "sibling" else basis
        known = unseen.get(part.experiment)
        bounds = known[asked] if known else shipped_widths().latency[asked]["any"]
    else:
        others = [one.residuals for one in parts if one.experiment != part.experiment]
        alike = [one for one in others if one.family == own.family]
        bounds = bounds_of(alike or others)
    widths = Widths({basis: {"any": bounds}}, {}, {})
    low, high = widths.latency_factors([basis] * len(own.num_tokens), own.family, own.num_tokens)
    seconds = part.rows.seconds / np.exp(own.log_error)
    return part.rows.rows, seconds, seconds * low, seconds * high
