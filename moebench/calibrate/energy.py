"""Fit of the energy model to measured tables, and its errors on backbones or GPUs left out.

Throughput and power are fitted together. Every coefficient has a log-normal prior, and so has each
GPU's deviation from the coefficients that all GPUs share (in ratios to their datasheets). Dense
models say as much about a GPU as MoE models and have half their weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from moebench.calibrate.energy_tables import EnergyRows
from moebench.calibrate.fit import most_probable
from moebench.predict.arrays import Floats, Mask, OverCases
from moebench.predict.energy.calibration import (
    SHARED,
    EnergyErrors,
    EnergyIntervals,
    widening,
)
from moebench.predict.energy.cases import Names
from moebench.predict.energy.parameters import METADATA, PARAMETERS, EnergyParameters
from moebench.predict.energy.power import energy_per_token, power, step_power, step_seconds
from moebench.predict.energy.step import step_time, step_traffic
from moebench.spec.hardware import load_hardware

POWER_SPREAD = 0.06
"""Log error of a good prediction of power: curves scatter by 5 % about their own fit."""
TIME_SPREAD = 0.15
"""Log error of a good prediction of throughput."""
DENSE_WEIGHT = 0.5
GROUP_ROWS = 30
"""Number of rows of one backbone on one GPU above which each row has less weight."""
OTHER_GPU = 0.5
"""Weight of an error on another GPU in a GPU's interval."""
VARYING = tuple(name for name in PARAMETERS if METADATA[name]["varies"] > 0)
QUANTITIES = ("power_given_throughput", "power", "energy_per_token")
"""Predicted quantities that have an interval."""


def fit_energy(rows: EnergyRows) -> dict[str, EnergyParameters]:
    """Coefficients of each GPU of the rows, and `SHARED` ones for any other GPU."""
    gpus = sorted(set(rows.gpus.tolist()))
    own = {gpu: (load_hardware(gpu), rows[rows.gpus == gpu]) for gpu in gpus}
    weight = np.sqrt(np.minimum(1.0, GROUP_ROWS / rows.group_sizes))
    weight *= np.where(rows.is_moe, 1.0, DENSE_WEIGHT)

    def errors(logs: Floats) -> Floats:
        parameters = _parameters(logs, gpus)
        ratios = []
        for gpu, (hardware, measured) in own.items():
            traffic = step_traffic(parameters[gpu], hardware, measured.cases)
            time = step_time(parameters[gpu], hardware, traffic)
            share = traffic.running / measured.cases.batch
            given = measured.seconds * share
            watts = step_power(parameters[gpu], hardware, traffic, time, given)
            ratios.append(np.log(watts / measured.watts) / POWER_SPREAD)
            ratios.append(np.log(time.seconds / share / measured.seconds) / TIME_SPREAD)
        return np.concatenate(ratios)

    typical, spread = np.array([(m["typical"], m["spread"]) for m in METADATA.values()]).T
    varies = np.array([METADATA[name]["varies"] for name in VARYING] * len(gpus))
    fitted = most_probable(
        errors,
        mean=np.concatenate([np.log(typical), np.zeros(len(varies))]),
        spread=np.concatenate([spread, varies]),
        weight=np.concatenate([np.tile(weight[rows.gpus == gpu], 2) for gpu in gpus]),
        max_nfev=60,
        xtol=1e-5,
        ftol=1e-5,
    )
    return _parameters(fitted, gpus)


def _parameters(logs: Floats, gpus: Sequence[str]) -> dict[str, EnergyParameters]:
    """Coefficients from logarithms: shared values first, then each GPU's deviations."""
    shared = dict(zip(PARAMETERS, logs[: len(PARAMETERS)].tolist(), strict=True))
    deviations = logs[len(PARAMETERS) :].reshape(len(gpus), len(VARYING))
    by_gpu = {SHARED: shared}
    for gpu, row in zip(gpus, deviations.tolist(), strict=True):
        own = {name: shared[name] + change for name, change in zip(VARYING, row, strict=True)}
        by_gpu[gpu] = shared | own
    return {
        gpu: EnergyParameters(**{name: float(np.exp(value)) for name, value in values.items()})
        for gpu, values in by_gpu.items()
    }


@dataclass(frozen=True)
class EnergyLeftOut(OverCases):
    """Errors on MoE rows whose backbone (or GPU) was left out of the fit."""

    rows: EnergyRows
    errors: Mapping[str, Floats]
    """log(measured / predicted) of `QUANTITIES` and of `seconds`."""
    largest: Floats
    """Weights of the largest backbone that was fitted on the row's GPU, else on any."""

    @property
    def narrowed(self) -> Mapping[str, Floats]:
        """Errors as they would be within the sizes that were fitted."""
        factor = widening(self.rows.cases, self.largest)
        return {name: error / factor for name, error in self.errors.items()}


def log_errors(parameters: Mapping[str, EnergyParameters], rows: EnergyRows) -> dict[str, Floats]:
    """log(measured / predicted) of every row; a GPU without coefficients has the shared ones."""
    errors = {name: np.empty(len(rows)) for name in (*QUANTITIES, "seconds")}
    for gpu in sorted(set(rows.gpus.tolist())):
        here = np.flatnonzero(rows.gpus == gpu)
        own, hardware = parameters.get(gpu, parameters[SHARED]), load_hardware(gpu)
        part = rows[here]
        expected = step_seconds(own, hardware, part.cases)
        ratios = {
            "power_given_throughput": part.watts / power(own, hardware, part.cases, part.seconds),
            "power": part.watts / power(own, hardware, part.cases, expected),
            "energy_per_token": part.joules / energy_per_token(own, hardware, part.cases),
            "seconds": part.seconds / expected,
        }
        for name, ratio in ratios.items():
            errors[name][here] = np.log(ratio)
    return errors


def leave_out(rows: EnergyRows, labels: Names) -> EnergyLeftOut:
    """Errors on MoE rows, each predicted from the rows with other labels alone.

    Labels are backbones or GPUs; every coefficient is fitted anew. A GPU left out is predicted
    from the other GPUs and its own datasheet.
    """
    errors = {name: np.full(len(rows), np.nan) for name in (*QUANTITIES, "seconds")}
    largest = np.empty(len(rows))
    for label in sorted(set(labels[rows.is_moe].tolist())):
        out = rows.is_moe & (labels == label)
        rest = rows[labels != label]
        for name, error in log_errors(fit_energy(rest), rows[out]).items():
            errors[name][out] = error
        for gpu in set(rows.gpus[out].tolist()):
            largest[out & (rows.gpus == gpu)] = largest_backbone(rest, gpu)
    return EnergyLeftOut(rows, errors, largest)[rows.is_moe]


def largest_backbone(rows: EnergyRows, gpu: str) -> float:
    """Weights of the largest backbone with experts on a GPU, else on any."""
    moe = rows[rows.is_moe]
    here = moe.gpus == gpu
    return float(moe.cases.parameters[here if here.any() else slice(None)].max())


def error_intervals(left_out: EnergyLeftOut, gpu: str) -> EnergyIntervals:
    """90 % intervals for predictions on a GPU, from the errors on rows left out.

    Many rows of one backbone count less than in proportion. On which side the next backbone lies
    is not known, so an interval is symmetrical. Few groups show little of how groups differ, so it
    is widened as that of a further draw from a normal sample of n: t sqrt(1 + 1 / n) over the
    quantile of a known distribution.
    """
    n = len(set(left_out.rows.groups.tolist()))
    wide = float(stdtrit(n - 1, 0.95) / ndtri(0.95)) * np.sqrt(1 + 1 / n)
    weight = 1 / np.sqrt(left_out.rows.group_sizes)
    weight *= np.where((left_out.rows.gpus == gpu) | (gpu == SHARED), 1, OTHER_GPU)

    def ends(error: Floats) -> tuple[float, float]:
        size = np.abs(error)
        order = np.argsort(size)
        share = np.cumsum(weight[order]) - 0.5 * weight[order]
        end = float(wide * np.interp(0.9, share / weight.sum(), size[order]))
        return -end, end

    return EnergyIntervals(**{name: ends(left_out.narrowed[name]) for name in QUANTITIES})


def left_out_ends(left_out: EnergyLeftOut, quantity: str) -> tuple[Floats, Floats]:
    """Ends of each row's 90 % interval of log(measured / predicted), from the other backbones."""
    rows = left_out.rows
    low, high = np.zeros(len(rows)), np.zeros(len(rows))
    for group in set(rows.groups.tolist()):
        here = rows.groups == group
        name, gpu = rows.backbones[here][0], str(rows.gpus[here][0])
        others = left_out[(rows.backbones != name) & has_company(rows)]
        low[here], high[here] = getattr(error_intervals(others, gpu), quantity)
    factor = widening(rows.cases, left_out.largest)
    return low * factor, high * factor


def has_company(rows: EnergyRows) -> Mask:
    """Rows whose GPU has another backbone; errors of a lone one say nothing of the GPU."""
    names = {gpu: set(rows.backbones[rows.gpus == gpu].tolist()) for gpu in set(rows.gpus.tolist())}
    return np.array([len(names[gpu]) > 1 for gpu in rows.gpus.tolist()])


def median_errors(left_out: EnergyLeftOut) -> EnergyErrors:
    """Median absolute errors in percent."""
    errors = {name: 100 * np.abs(np.expm1(-left_out.errors[name])) for name in QUANTITIES}
    return EnergyErrors(**{name: round(float(np.median(e)), 2) for name, e in errors.items()})


def mean_of_others(rows: EnergyRows) -> Floats:
    """Baseline of each row: mean power of the other backbones on its GPU; NaN if there are none."""
    means = np.full(len(rows), np.nan)
    for group in set(rows.groups.tolist()):
        here = rows.groups == group
        others = (rows.gpus == rows.gpus[here][0]) & (rows.backbones != rows.backbones[here][0])
        if others.any():
            means[here] = rows.watts[others].mean()
    return means
