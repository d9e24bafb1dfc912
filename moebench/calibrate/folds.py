"""Hold-outs of a fit: devices one by one, model shapes by the quarter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moebench.calibrate.fit import prior_from
from moebench.calibrate.rows import Measured
from moebench.calibrate.widths import Residuals
from moebench.predict.arrays import Floats
from moebench.predict.kernels.catalogue import KernelFit
from moebench.predict.kernels.intervals import UNSEEN, Basis

FOLDS = 4
"""A quarter of the model shapes is left out at a time."""
FOLD_ROWS = 500
"""Rows of a group that a fit without some shapes uses, on one rank."""
SHAPE_SEED = 3
"""Seed of the order in which shapes are dealt to the folds."""
UNSEEN_DEVICE: Mapping[Basis, str] = {
    "device": "unseen device, spec sheet only",
    "relative": "unseen device and kernel",
    "stranger": "unseen device and kernel family",
}


@dataclass(frozen=True)
class HeldOut:
    """Errors of one group in one experiment."""

    experiment: str
    """What the fit had not used, in words."""
    basis: Basis | None
    """The basis whose intervals these errors calibrate."""
    rows: Measured
    """Rows that were predicted."""
    log_error: Floats
    """log(measured / predicted)."""

    @property
    def residuals(self) -> Residuals:
        return Residuals.of(self.basis, self.rows, self.log_error)


def shape_folds(groups: Sequence[Measured]) -> list[list[str]]:
    """The model shapes of all groups, dealt to `FOLDS` folds in a random order that is fixed."""
    shapes = sorted({shape for rows in groups for shape in rows.shapes.tolist()})
    order = np.random.default_rng(SHAPE_SEED).permutation(len(shapes))
    return [[shapes[index] for index in order[fold::FOLDS]] for fold in range(FOLDS)]


def unseen_devices(groups: Sequence[Measured], fits: Sequence[KernelFit]) -> list[HeldOut]:
    """Every group from its spec sheet and fits of other devices.

    Of all of them, of those of other kernels, and of those of other families.
    """
    found = []
    for rows in groups:
        kernel = rows.kernel
        others = [fit for fit in fits if fit.system != rows.hardware.name]
        families = [fit for fit in others if fit.kernel.family == kernel.family]
        is_known = any(fit.kernel == kernel for fit in others)
        used = (
            others if is_known else [],
            [fit for fit in others if fit.kernel != kernel] if families else [],
            [fit for fit in others if fit.kernel.family != kernel.family],
        )
        for basis, some in zip(UNSEEN, used, strict=True):
            if some:
                error = rows.log_error(prior_from(rows, some).parameters)
                found.append(HeldOut(UNSEEN_DEVICE[basis], basis, rows, error))
    return found
