"""Predicting rows of devices or model shapes that nothing was fitted to, priors included.

Unlike `crossval`, which makes the shipped intervals, every interval here comes from errors on the
other devices (or the other shapes) alone, so its coverage is honest too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moebench.calibrate.cross_validation import (
    FOLD_ROWS,
    FOLDS,
    PARALLEL_ROWS,
    ROWS,
    as_fit,
    full_fit,
    unseen_devices,
)
from moebench.calibrate.fit import (
    Measured,
    fit_parameters,
    fit_siblings,
    residuals_on,
    stratified,
    thinned,
)
from moebench.calibrate.widths import bounds_of, unseen_bounds
from moebench.predict.arrays import Floats, Ints
from moebench.predict.kernels.catalogue import KernelFit
from moebench.predict.kernels.dense import DenseParameters, shift
from moebench.predict.kernels.intervals import UNSEEN, Basis, Bounds, Widths, shipped_widths
from moebench.predict.kernels.parameters import Parameters
from moebench.predict.kernels.price import unseen_basis
from moebench.predict.kernels.prior import Prior, generic_prior, prior_for
from moebench.spec.hardware import HardwareSpec

LeftOut = Literal["device", "shapes", "both"]
LEAST_ROWS = 100
"""Rows of a group below which it is predicted and does not predict others."""
SHAPE_SEED = 3
"""Of the order in which shapes are dealt to the folds."""


@dataclass(frozen=True)
class LeftOutGroup:
    """Rows of one kernel on one device, all of which are predicted."""

    rows: Measured
    works: NDArray[np.bool_]
    """Rows that may be fitted: no failed tactics."""
    together: object
    """Groups with equal marks are gated and two-matrix experts of one source."""

    def fitted(self, left_out: Sequence[str]) -> Measured:
        """The rows that may be fitted when some shapes are left out."""
        return self.rows[self.works & ~np.isin(self.rows.shapes, list(left_out))]


@dataclass(frozen=True)
class Predicted:
    """Some rows of one group, predicted from what was not left out."""

    group: int
    index: Ints
    """Which rows of the group."""
    seconds: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class _Part:
    """Rows predicted by one set of parameters, before intervals."""

    group: int
    index: Ints
    unit: str
    """What was left out: a device, or a fold of shapes."""
    basis: Basis
    rows: Measured
    log_error: Floats


def predict_left_out(
    groups: Sequence[LeftOutGroup],
    what: LeftOut,
    rows: int | None = None,
    seed: int = 0,
    dense: Mapping[str, DenseParameters] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Predicted]:
    """Predict every row from fits that saw neither its device nor its shape, whichever is left out.

    Args:
        groups: measured rows.
        what: leave out each device in turn, a quarter of the shapes at a time, or both at once.
        rows: of the device (and of the other shapes) that are fitted all the same; None: all of
            them where only shapes are left out, else none.
        seed: of the rows drawn.
        dense: fits of devices' dense matmuls, if predictions may use them.
        tell: called with what is being done.
    """
    shapes = sorted({shape for group in groups for shape in set(group.rows.shapes.tolist())})
    order = np.random.default_rng(SHAPE_SEED).permutation(len(shapes))
    folds: list[list[str]] = [[]]
    if what != "device":
        folds = [[shapes[index] for index in order[fold::FOLDS]] for fold in range(FOLDS)]
    parts: list[_Part] = []
    unseen: dict[str, dict[Basis, Bounds]] = {}
    for number, left_out in enumerate(folds):
        fits = _fits(groups, left_out, what, tell)
        if what != "shapes" and rows is None and number == 0:
            unseen = _unseen_by_device(groups, fits)
        parts += _parts(groups, fits, left_out, number, what, rows, seed, dense or {}, tell)
    return [_with_interval(part, parts, unseen) for part in parts]


def _fits(
    groups: Sequence[LeftOutGroup],
    left_out: Sequence[str],
    what: LeftOut,
    tell: Callable[[str], None],
) -> dict[int, KernelFit]:
    """Fit of each group that has enough rows, by itself."""
    found = {}
    for number, group in enumerate(groups):
        kept = group.fitted(left_out)
        if (kept.cases.expert_parallel == 1).sum() >= LEAST_ROWS:
            tell(f"fitting {kept.kernel.label} on {kept.hardware.name}")
            found[number] = as_fit(kept, full_fit(kept, ROWS if what == "device" else FOLD_ROWS))
    return found


def _parts(
    groups: Sequence[LeftOutGroup],
    fits: Mapping[int, KernelFit],
    left_out: Sequence[str],
    fold: int,
    what: LeftOut,
    rows: int | None,
    seed: int,
    dense: Mapping[str, DenseParameters],
    tell: Callable[[str], None],
) -> Iterator[_Part]:
    machines = {group.rows.hardware.name: group.rows.hardware for group in groups}
    sets: dict[object, list[int]] = {}
    for number, group in enumerate(groups):
        sets.setdefault(group.together, []).append(number)
    for members in sets.values():
        hardware = groups[members[0]].rows.hardware
        tell(f"predicting {groups[members[0]].rows.kernel.label} on {hardware.name}")
        known = [
            [
                fit
                for other, fit in fits.items()
                if other != number and (what == "shapes" or fit.system != hardware.name)
            ]
            for number in members
        ]
        priors = [
            _prior(groups[number].rows, some, machines, dense)
            for number, some in zip(members, known, strict=True)
        ]
        drawn = _drawn(groups, members, left_out, rows, seed)
        own = [groups[n].rows[index] for n, index in zip(members, drawn, strict=True)]
        parameters, bases = _calibrated(groups, members, own, priors, known, left_out, what, rows)
        for number, taken, found, basis in zip(members, drawn, parameters, bases, strict=True):
            every = groups[number].rows
            is_scored = np.isin(every.shapes, list(left_out)) if left_out else ~taken
            index = np.flatnonzero(is_scored)
            if len(index):
                unit = f"fold {fold}" if what == "shapes" else hardware.name
                error = every[index].log_error(found)
                yield _Part(number, index, unit, basis, every[index], error)


def _drawn(
    groups: Sequence[LeftOutGroup],
    members: Sequence[int],
    left_out: Sequence[str],
    rows: int | None,
    seed: int,
) -> list[NDArray[np.bool_]]:
    """Which rows of each member are fitted, if only a few of them all are."""
    may = [
        groups[number].works & ~np.isin(groups[number].rows.shapes, list(left_out))
        for number in members
    ]
    if rows is None:
        return [np.zeros_like(each) for each in may]
    places = np.concatenate(may)
    tokens = np.concatenate([groups[number].rows.cases.num_tokens for number in members])
    candidates = np.flatnonzero(places)
    chosen = stratified(tokens[candidates], rows, np.random.default_rng(seed))
    taken = np.zeros_like(places)
    taken[candidates[chosen]] = True
    return np.split(taken, np.cumsum([len(each) for each in may])[:-1])


def _calibrated(
    groups: Sequence[LeftOutGroup],
    members: Sequence[int],
    own: Sequence[Measured],
    priors: Sequence[Prior],
    known: Sequence[Sequence[KernelFit]],
    left_out: Sequence[str],
    what: LeftOut,
    rows: int | None,
) -> tuple[list[Parameters], list[Basis]]:
    """Parameters of each member, and what they rest on."""
    if rows is not None:
        basis: Basis = "shape" if left_out else "rows"
        return fit_siblings(own, priors), [basis] * len(members)
    if what != "shapes":
        bases = [
            unseen_basis(groups[number].rows.kernel, groups[number].rows.hardware, some)
            for number, some in zip(members, known, strict=True)
        ]
        return [prior.parameters for prior in priors], bases
    found = []
    for number, prior in zip(members, priors, strict=True):
        kept = groups[number].fitted(left_out)
        some = thinned(kept, FOLD_ROWS, PARALLEL_ROWS)
        found.append(fit_parameters(some, prior) if len(some) else prior.parameters)
    return found, ["shape"] * len(members)


def _prior(
    rows: Measured,
    fits: Sequence[KernelFit],
    machines: Mapping[str, HardwareSpec],
    dense: Mapping[str, DenseParameters],
) -> Prior:
    if not fits:
        return generic_prior()
    here = dense.get(rows.hardware.name)
    shifts = {name: shift(here, dense[name]) for name in machines if name in dense} if here else {}
    return prior_for(rows.kernel, rows.hardware, fits, machines, shifts)


def _unseen_by_device(
    groups: Sequence[LeftOutGroup], fits: Mapping[int, KernelFit]
) -> dict[str, dict[Basis, Bounds]]:
    """For each device, what the others' errors on one another say of an unseen device."""
    found = {}
    for system in {group.rows.hardware.name for group in groups}:
        others = [number for number, fit in fits.items() if fit.system != system]
        held_out = unseen_devices(
            [groups[number].fitted(()) for number in others], [fits[number] for number in others]
        )
        if held_out:
            found[system] = unseen_bounds(one.residuals for one in held_out)
    return found


def _with_interval(
    part: _Part, parts: Sequence[_Part], unseen: Mapping[str, Mapping[Basis, Bounds]]
) -> Predicted:
    """The interval that errors on everything but this part's device or fold would give it."""
    family = part.rows.kernel.family
    if part.basis in UNSEEN or part.basis == "sibling":
        basis: Basis = "device" if part.basis == "sibling" else part.basis
        known = unseen.get(part.unit)
        bounds = known[basis] if known else shipped_widths().latency[basis]["any"]
    else:
        others = [
            residuals_on(one.basis, one.rows, one.log_error)
            for one in parts
            if one.unit != part.unit
        ]
        alike = [one for one in others if one.family == family]
        bounds = bounds_of(alike or others)
    widths = Widths({part.basis: {"any": bounds}}, {}, {})
    low, high = widths.latency_factors(part.basis, family, part.rows.cases.num_tokens)
    seconds = part.rows.seconds / np.exp(part.log_error)
    return Predicted(part.group, part.index, seconds, seconds * low, seconds * high)
