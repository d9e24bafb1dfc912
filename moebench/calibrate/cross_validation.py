"""Errors of the model on shapes and devices that its fit had not used; they make the intervals.

Nothing of a left-out device or shape enters any fit that prices it, priors included.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple

import numpy as np

from moebench.calibrate.fit import (
    PARALLEL_ROWS,
    as_fit,
    fit_parameters,
    full_fit,
    percentage_errors,
    prior_from,
    shared_fits,
    stratified,
    thinned,
)
from moebench.calibrate.folds import FOLD_ROWS, HeldOut, shape_folds, unseen_devices
from moebench.calibrate.rows import Measured
from moebench.predict.kernels.catalogue import FitError, KernelFit
from moebench.predict.kernels.dense import DenseParameters

FEW_ROWS = 40
"""Rows that stand for a quick calibration of a device."""


def cross_validate(
    groups: Sequence[Measured], dense: Mapping[str, DenseParameters]
) -> list[HeldOut]:
    """Every experiment on every group; `dense` has fits of the devices' dense matmuls."""
    found = [
        HeldOut("many rows (training error)", "seen", rows, rows.log_error(parameters))
        for rows, parameters in zip(groups, shared_fits(groups), strict=True)
    ]
    fits = [as_fit(rows, full_fit(rows)) for rows in groups]
    found += unseen_devices(groups, fits)
    found += _devices_with_help(groups, fits, dense)
    found += _shapes_left_out(groups)
    return found


def _devices_with_help(
    groups: Sequence[Measured],
    fits: Sequence[KernelFit],
    dense: Mapping[str, DenseParameters],
) -> Iterator[HeldOut]:
    """Unseen devices, helped by their dense matmuls or by a few rows; unseen kernels."""
    for number, (rows, own) in enumerate(zip(groups, fits, strict=True)):
        here = rows.hardware.name
        others = [fit for fit in fits if fit.system != here]
        if not others:
            continue
        if here in dense:
            error = rows.log_error(prior_from(rows, others, dense).parameters)
            yield HeldOut("unseen device, its dense matmuls", None, rows, error)
        few, rest = _few_and_rest(rows, number)
        error = rest.log_error(fit_parameters(few, prior_from(rows, others)))
        yield HeldOut(f"{FEW_ROWS} rows of an unseen device", "rows", rest, error)
        prior = prior_from(rows, [fit for fit in fits if fit is not own])
        error = rows.log_error(prior.parameters)
        yield HeldOut("unseen kernel, calibrated device", None, rows, error)


def _shapes_left_out(groups: Sequence[Measured]) -> Iterator[HeldOut]:
    """Some model shapes left out everywhere, with many and with a few rows of the others."""
    for left_out in shape_folds(groups):
        remaining = [rows[~np.isin(rows.shapes, left_out)] for rows in groups]
        usable = [index for index, rows in enumerate(remaining) if len(rows) >= FEW_ROWS]
        fits = {i: as_fit(remaining[i], full_fit(remaining[i], FOLD_ROWS)) for i in usable}
        for index in usable:
            rows = groups[index][np.isin(groups[index].shapes, left_out)]
            if not len(rows):
                continue
            siblings = [fit for other, fit in fits.items() if other != index]
            prior = prior_from(rows, siblings)
            own = thinned(remaining[index], FOLD_ROWS, PARALLEL_ROWS)
            error = rows.log_error(fit_parameters(own, prior))
            yield HeldOut("unseen shape, calibrated device", "shape", rows, error)
            few, _ = _few_and_rest(remaining[index], index)
            error = rows.log_error(fit_parameters(few, prior))
            yield HeldOut(f"unseen shape, {FEW_ROWS} rows", None, rows, error)
            strangers = [fit for fit in siblings if fit.system != rows.hardware.name]
            error = rows.log_error(fit_parameters(few, prior_from(rows, strangers)))
            yield HeldOut(f"unseen shape, {FEW_ROWS} rows of an unseen device", None, rows, error)


def _few_and_rest(rows: Measured, seed: int) -> tuple[Measured, Measured]:
    few = stratified(rows.cases.num_tokens, FEW_ROWS, np.random.default_rng(seed))
    return rows[few], rows[np.setdiff1d(np.arange(len(rows)), few)]


def summary(held_out: Sequence[HeldOut]) -> list[tuple[str, str, FitError, tuple[float, ...]]]:
    """Experiment, "1" or ">1" ranks, mean errors over groups, each group's mean absolute error."""
    table = []
    for experiment in dict.fromkeys(one.experiment for one in held_out):
        for ranks in ("1", ">1"):
            pooled = collections.defaultdict(list)
            for one in held_out:
                if one.experiment == experiment:
                    here = one.rows.is_parallel == (ranks == ">1")
                    group = one.rows.kernel, one.rows.hardware.name
                    pooled[group].append(one.log_error[here])
            joined = [np.concatenate(parts) for parts in pooled.values()]
            errors = [percentage_errors(log_error) for log_error in joined if len(log_error)]
            if not errors:
                continue
            mean = FitError(*np.mean([astuple(error) for error in errors], axis=0).tolist())
            table.append((experiment, ranks, mean, tuple(error.mape for error in errors)))
    return table
