"""How wrong the model is on what its fit has not seen: whole shapes and whole devices left out.

Also from the priors: nothing of a left-out device or shape enters any fit that prices it. The
errors make the intervals, and the report that says what to expect of the model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moebench.calibrate.fit import (
    Measured,
    fit_parameters,
    percentage_errors,
    residuals_on,
    stratified,
    thinned,
)
from moebench.calibrate.widths import Residuals
from moebench.predict.arrays import Floats
from moebench.predict.kernels.catalogue import Error, KernelFit
from moebench.predict.kernels.dense import DenseParameters, shift
from moebench.predict.kernels.intervals import UNSEEN, Basis
from moebench.predict.kernels.parameters import Parameters
from moebench.predict.kernels.prior import Prior, generic_prior, prior_for
from moebench.spec.hardware import HardwareSpec, load_hardware

ROWS = 1000
"""Rows of a group that a full fit uses, on one rank."""
PARALLEL_ROWS = 250
"""The same under expert parallelism."""
FOLD_ROWS = 500
FEW_ROWS = 40
UNSEEN_DEVICE: Mapping[Basis, str] = {
    "device": "unseen device, spec sheet only",
    "relative": "unseen device and kernel",
    "stranger": "unseen device and kernel family",
}
FOLDS = 4
"""A quarter of the model shapes is left out at a time."""


@dataclass(frozen=True)
class HeldOut:
    """Errors of one group in one experiment."""

    experiment: str
    """What the fit had not seen, in words."""
    basis: Basis | None
    """The basis whose intervals these errors calibrate."""
    rows: Measured
    """What was predicted."""
    log_error: Floats
    """log(measured / predicted)."""

    @property
    def residuals(self) -> Residuals:
        """For the calibration of intervals.

        Raises:
            ValueError: the experiment belongs to no basis.
        """
        if self.basis is None:
            raise ValueError(f"{self.experiment!r} belongs to no basis")
        return residuals_on(self.basis, self.rows, self.log_error)


def full_fit(rows: Measured, count: int = ROWS) -> Parameters:
    """Fit of a group with many rows, from the generic prior."""
    return fit_parameters(thinned(rows, count, min(PARALLEL_ROWS, count)), generic_prior())


def shared_fits(
    groups: Sequence[Measured], relatives: Sequence[KernelFit] = ()
) -> list[Parameters]:
    """Fits of all groups, each with what the others found as its prior.

    A group with few model shapes leaves some parameters open; its relatives close them.

    Args:
        groups: measured rows, one entry for each kernel and device.
        relatives: fits made before, of the same devices.
    """
    alone = [as_fit(rows, full_fit(rows)) for rows in groups]
    machines = {rows.hardware.name: rows.hardware for rows in groups}
    machines |= {fit.system: load_hardware(fit.system) for fit in relatives}
    found = []
    for number, rows in enumerate(groups):
        others = [*alone[:number], *alone[number + 1 :], *relatives]
        prior = _prior(rows, others, machines)
        found.append(fit_parameters(thinned(rows, ROWS, PARALLEL_ROWS), prior))
    return found


def as_fit(
    rows: Measured, parameters: Parameters, table: str = "", sha256: str = "", date: str = ""
) -> KernelFit:
    """A fit with its provenance and its error on all rows."""
    tokens = rows.cases.num_tokens
    return KernelFit(
        rows.kernel,
        rows.hardware.name,
        parameters,
        len(rows),
        tuple(sorted(set(rows.shapes.tolist()))),
        int(tokens.min()),
        int(tokens.max()),
        percentage_errors(rows.log_error(parameters)),
        table,
        sha256,
        date,
    )


def cross_validate(
    groups: Sequence[Measured], dense: Mapping[str, DenseParameters] | None = None
) -> list[HeldOut]:
    """Every experiment on every group.

    Args:
        groups: measured rows, one entry for each kernel and device.
        dense: fits of the devices' dense matmuls, for the experiment that may use them.
    """
    found = [
        HeldOut("many rows (training error)", "seen", rows, rows.log_error(parameters))
        for rows, parameters in zip(groups, shared_fits(groups), strict=True)
    ]
    fits = [as_fit(rows, full_fit(rows)) for rows in groups]
    found += unseen_devices(groups, fits)
    found += _devices_with_help(groups, fits, dense or {})
    found += _shapes_left_out(groups)
    return found


def unseen_devices(groups: Sequence[Measured], fits: Sequence[KernelFit]) -> list[HeldOut]:
    """Every group from its spec sheet and fits of other devices.

    Of all of them, of those of other kernels, and of those of other families.

    Args:
        groups: measured rows.
        fits: of each group by itself.
    """
    machines = {rows.hardware.name: rows.hardware for rows in groups}
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
                prior = prior_for(kernel, rows.hardware, some, machines)
                error = rows.log_error(prior.parameters)
                found.append(HeldOut(UNSEEN_DEVICE[basis], basis, rows, error))
    return found


def _devices_with_help(
    groups: Sequence[Measured],
    fits: Sequence[KernelFit],
    dense: Mapping[str, DenseParameters],
) -> Iterator[HeldOut]:
    """Unseen devices with their dense matmuls, and with a few rows of each kernel.

    And kernels left out of a device of which others are known.
    """
    machines = {rows.hardware.name: rows.hardware for rows in groups}
    for number, (rows, own) in enumerate(zip(groups, fits, strict=True)):
        here = rows.hardware.name
        others = [fit for fit in fits if fit.system != here]
        if not others:
            continue
        prior = prior_for(rows.kernel, rows.hardware, others, machines)
        if here in dense:
            shifts = {name: shift(dense[here], dense[name]) for name in machines if name in dense}
            told = prior_for(rows.kernel, rows.hardware, others, machines, shifts)
            error = rows.log_error(told.parameters)
            yield HeldOut("unseen device, its dense matmuls", None, rows, error)
        few, rest = _few_and_rest(rows, number)
        error = rest.log_error(fit_parameters(few, prior))
        yield HeldOut(f"{FEW_ROWS} rows of an unseen device", "rows", rest, error)
        prior = _prior(rows, [fit for fit in fits if fit is not own], machines)
        error = rows.log_error(prior.parameters)
        yield HeldOut("unseen kernel, calibrated device", None, rows, error)


def _shapes_left_out(groups: Sequence[Measured]) -> Iterator[HeldOut]:
    """Some model shapes left out everywhere, with many and with a few rows of the others."""
    shapes = sorted({shape for rows in groups for shape in set(rows.shapes.tolist())})
    order = np.random.default_rng(3).permutation(len(shapes))
    machines = {rows.hardware.name: rows.hardware for rows in groups}
    for fold in range(FOLDS):
        left_out = [shapes[index] for index in order[fold::FOLDS]]
        kept = [rows[~np.isin(rows.shapes, left_out)] for rows in groups]
        usable = [index for index, rows in enumerate(kept) if len(rows) >= FEW_ROWS]
        fits = {i: as_fit(kept[i], full_fit(kept[i], FOLD_ROWS)) for i in usable}
        for index in usable:
            rows = groups[index][np.isin(groups[index].shapes, left_out)]
            if not len(rows):
                continue
            siblings = [fit for other, fit in fits.items() if other != index]
            prior = _prior(rows, siblings, machines)
            own = thinned(kept[index], FOLD_ROWS, PARALLEL_ROWS)
            error = rows.log_error(fit_parameters(own, prior))
            yield HeldOut("unseen shape, calibrated device", "shape", rows, error)
            few, _ = _few_and_rest(kept[index], index)
            error = rows.log_error(fit_parameters(few, prior))
            yield HeldOut(f"unseen shape, {FEW_ROWS} rows", None, rows, error)
            strangers = [fit for fit in siblings if fit.system != rows.hardware.name]
            prior = _prior(rows, strangers, machines)
            error = rows.log_error(fit_parameters(few, prior))
            yield HeldOut(f"unseen shape, {FEW_ROWS} rows of an unseen device", None, rows, error)


def _prior(
    rows: Measured, fits: Sequence[KernelFit], machines: Mapping[str, HardwareSpec]
) -> Prior:
    if not fits:
        return generic_prior()
    return prior_for(rows.kernel, rows.hardware, fits, machines)


def _few_and_rest(rows: Measured, seed: int) -> tuple[Measured, Measured]:
    few = stratified(rows.cases.num_tokens, FEW_ROWS, np.random.default_rng(seed))
    return rows[few], rows[np.setdiff1d(np.arange(len(rows)), few)]


def summary(held_out: Sequence[HeldOut]) -> list[tuple[str, str, Error, tuple[float, ...]]]:
    """For each experiment, on one rank and under expert parallelism: the mean over groups.

    Returns:
        Experiment, "1" or ">1" ranks, mean errors, and each group's mean absolute error.
    """
    table = []
    for experiment in dict.fromkeys(one.experiment for one in held_out):
        for ranks in ("1", ">1"):
            pooled: dict[str, list[Floats]] = {}
            for one in held_out:
                if one.experiment == experiment:
                    here = (one.rows.cases.expert_parallel > 1) == (ranks == ">1")
                    label = f"{one.rows.kernel.label} {one.rows.hardware.name}"
                    pooled.setdefault(label, []).append(one.log_error[here])
            joined = [np.concatenate(parts) for parts in pooled.values()]
            errors = [percentage_errors(log_error) for log_error in joined if len(log_error)]
            if not errors:
                continue
            mean = Error(
                float(np.mean([error.mape for error in errors])),
                float(np.mean([error.median_ape for error in errors])),
                float(np.mean([error.p90_ape for error in errors])),
            )
            table.append((experiment, ranks, mean, tuple(error.mape for error in errors)))
    return table
