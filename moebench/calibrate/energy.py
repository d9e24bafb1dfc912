"""Fit the energy model to measured tables and judge it on whole backbones left out.

Throughput and power are fitted together, as maximum a posteriori: every coefficient has a
log-normal prior, and so has each GPU's deviation from what all GPUs share (in ratios to their
datasheets). Errors are heavy-tailed, because hosts stall, so residuals are robust. Dense models
say as much about a GPU as MoE ones and count half.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moebench.calibrate.energy_tables import EnergyTable
from moebench.predict.arrays import Floats
from moebench.predict.energy.calibration import SHARED, EnergyErrors, EnergyIntervals
from moebench.predict.energy.cases import Cases, Names, cases_of
from moebench.predict.energy.parameters import METADATA, PARAMETERS, EnergyParameters
from moebench.predict.energy.power import energy_per_token, power, step_power, step_seconds
from moebench.predict.energy.step import step_time, step_traffic
from moebench.spec.hardware import HardwareSpec, load_hardware

POWER_SPREAD = 0.06
"""Of a good prediction of power, in logarithms: curves scatter by 5 % about their own fit."""
TIME_SPREAD = 0.15
"""The same of throughput."""
DENSE_WEIGHT = 0.5
GROUP_ROWS = 30
"""Rows of one backbone on one GPU from which on more of them count less."""
VARYING = tuple(name for name in PARAMETERS if METADATA[name]["varies"] > 0)


@dataclass(frozen=True)
class Rows:
    """Measured rows as the fit needs them; arrays over rows."""

    cases: Cases
    gpus: Names
    """Names of hardware files."""
    backbones: Names
    watts: Floats
    joules: Floats
    seconds: Floats
    is_moe: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.watts)

    def __getitem__(self, index: NDArray[np.bool_] | NDArray[np.int64]) -> "Rows":
        return Rows(*(getattr(self, entry.name)[index] for entry in dataclasses.fields(self)))


def rows_of(tables: Sequence[EnergyTable]) -> Rows:
    """All rows of some tables."""
    servings = [one for table in tables for one in table.servings]
    return Rows(
        cases_of(servings),
        np.array([load_hardware(gpu).name for t in tables for gpu in t.gpus.tolist()], dtype="U40"),
        np.array([name for t in tables for name in t.backbones.tolist()], dtype="U60"),
        np.concatenate([table.watts for table in tables]),
        np.concatenate([table.joules for table in tables]),
        np.concatenate([table.seconds for table in tables]),
        np.array([one.backbone.moe_layers > 0 for one in servings]),
    )


def fit_energy(rows: Rows) -> dict[str, EnergyParameters]:
    """Coefficients of each GPU of the rows, and `SHARED` ones for any other."""
    from scipy.optimize import least_squares

    gpus = sorted(set(rows.gpus.tolist()))
    machines = {gpu: load_hardware(gpu) for gpu in gpus}
    places = {gpu: np.flatnonzero(rows.gpus == gpu) for gpu in gpus}
    cases = {gpu: rows.cases[index] for gpu, index in places.items()}
    weight = _weights(rows)
    centre = np.log([METADATA[name]["typical"] for name in PARAMETERS])
    start = np.concatenate([centre, np.zeros(len(gpus) * len(VARYING))])
    spread = np.array(
        [METADATA[name]["spread"] for name in PARAMETERS]
        + [METADATA[name]["varies"] for name in VARYING] * len(gpus)
    )

    def residuals(x: Floats) -> Floats:
        parameters = _parameters(x, gpus)
        found = [(x - start) / spread]
        for gpu in gpus:
            here = places[gpu]
            watts, seconds = _both(parameters[gpu], machines[gpu], cases[gpu], rows.seconds[here])
            for error in (
                np.log(watts / rows.watts[here]) / POWER_SPREAD,
                np.log(seconds / rows.seconds[here]) / TIME_SPREAD,
            ):
                found.append(weight[here] * _robust(error))
        return np.concatenate(found)

    fit = least_squares(residuals, start, max_nfev=60, xtol=1e-5, ftol=1e-5)
    return _parameters(fit.x, gpus)


def _both(
    parameters: EnergyParameters, hardware: HardwareSpec, cases: Cases, measured: Floats
) -> tuple[Floats, Floats]:
    """Power given the measured seconds, and the expected seconds."""
    traffic = step_traffic(parameters, hardware, cases)
    time = step_time(parameters, hardware, traffic)
    share = traffic.running / cases.batch
    watts = step_power(parameters, hardware, traffic, time, measured * share)
    return watts, np.asarray(time.seconds / share)


def _robust(error: Floats) -> Floats:
    """Residual whose square grows like a parabola near zero and like a line far away."""
    return np.asarray(np.sign(error) * np.sqrt(2 * (np.sqrt(1 + error**2) - 1)))


def _weights(rows: Rows) -> Floats:
    """So that a backbone with many rows does not drown the others."""
    groups = np.char.add(np.char.add(rows.backbones, " on "), rows.gpus)
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    weight = np.sqrt(np.minimum(1.0, GROUP_ROWS / counts[inverse]))
    return np.asarray(np.where(rows.is_moe, 1.0, DENSE_WEIGHT) * weight)


def _parameters(x: Floats, gpus: Sequence[str]) -> dict[str, EnergyParameters]:
    """From logarithms: shared values, then each GPU's deviations."""
    shared = dict(zip(PARAMETERS, x[: len(PARAMETERS)].tolist(), strict=True))
    deviations = x[len(PARAMETERS) :].reshape(len(gpus), len(VARYING))
    found = {SHARED: shared}
    for gpu, row in zip(gpus, deviations.tolist(), strict=True):
        own = {name: shared[name] + change for name, change in zip(VARYING, row, strict=True)}
        found[gpu] = shared | own
    return {
        gpu: EnergyParameters(**{name: float(np.exp(value)) for name, value in values.items()})
        for gpu, values in found.items()
    }


@dataclass(frozen=True)
class LeftOut:
    """Errors on rows whose backbone (or GPU) was left out of the fit: log(measured / predicted)."""

    rows: Rows
    power_given_throughput: Floats
    power: Floats
    energy_per_token: Floats
    seconds: Floats
    precision_seen: NDArray[np.bool_]
    """Whether the fit had another backbone with the row's weight precision."""


def errors(parameters: Mapping[str, EnergyParameters], rows: Rows) -> dict[str, Floats]:
    """log(measured / predicted) of every row; a GPU without coefficients gets the shared ones."""
    found = {
        name: np.empty(len(rows))
        for name in ("power_given_throughput", "power", "energy_per_token", "seconds")
    }
    for gpu in sorted(set(rows.gpus.tolist())):
        here = np.flatnonzero(rows.gpus == gpu)
        own, hardware = parameters.get(gpu, parameters[SHARED]), load_hardware(gpu)
        part = rows[here]
        expected = step_seconds(own, hardware, part.cases)
        predictions = {
            "power_given_throughput": (part.watts, power(own, hardware, part.cases, part.seconds)),
            "power": (part.watts, power(own, hardware, part.cases, expected)),
            "energy_per_token": (part.joules, energy_per_token(own, hardware, part.cases)),
            "seconds": (part.seconds, expected),
        }
        for name, (measured, predicted) in predictions.items():
            found[name][here] = np.log(measured / predicted)
    return found


def leave_backbones_out(rows: Rows) -> LeftOut:
    """Predict each MoE backbone from all others; every coefficient is fitted anew."""
    return _leave_out(rows, rows.backbones)


def leave_gpus_out(rows: Rows) -> LeftOut:
    """Predict each GPU from the others and its datasheet."""
    return _leave_out(rows, rows.gpus)


def _leave_out(rows: Rows, labels: Names) -> LeftOut:
    moe = np.flatnonzero(rows.is_moe)
    names = ("power_given_throughput", "power", "energy_per_token", "seconds")
    found = {name: np.full(len(rows), np.nan) for name in names}
    seen = np.zeros(len(rows), dtype=np.bool_)
    for label in sorted(set(labels[moe].tolist())):
        out = moe[labels[moe] == label]
        rest = rows[labels != label]
        for name, error in errors(fit_energy(rest), rows[out]).items():
            found[name][out] = error
        seen[out] = np.isin(rows.cases.precision[out], rest.cases.precision[rest.is_moe])
    return LeftOut(
        rows[moe], **{name: found[name][moe] for name in names}, precision_seen=seen[moe]
    )


OTHER_GPU = 0.5
"""Weight of an error on another GPU in a GPU's interval."""


def widths(left_out: LeftOut, keep: NDArray[np.bool_], gpu: str) -> EnergyIntervals:
    """90 % intervals from the errors kept; a backbone's many rows count less than in proportion.

    Rows count where the fit had another backbone of their precision.
    """
    keep = keep & left_out.precision_seen
    _, inverse, counts = np.unique(
        np.char.add(left_out.rows.backbones[keep], left_out.rows.gpus[keep]),
        return_inverse=True,
        return_counts=True,
    )
    weight = 1 / np.sqrt(counts[inverse])
    weight = weight * np.where((left_out.rows.gpus[keep] == gpu) | (gpu == SHARED), 1, OTHER_GPU)

    def ends(error: Floats) -> tuple[float, float]:
        kept = error[keep]
        order = np.argsort(kept)
        share = np.cumsum(weight[order]) - 0.5 * weight[order]
        low, high = np.interp([0.05, 0.95], share / weight.sum(), kept[order])
        return min(float(low), 0.0), max(float(high), 0.0)

    return EnergyIntervals(
        ends(left_out.power_given_throughput),
        ends(left_out.power),
        ends(left_out.energy_per_token),
    )


def median_error(left_out: LeftOut, keep: NDArray[np.bool_]) -> EnergyErrors:
    """Median absolute error in percent."""

    def median(error: Floats) -> float:
        return round(float(100 * np.median(np.abs(np.expm1(-error[keep])))), 2)

    return EnergyErrors(
        median(left_out.power_given_throughput),
        median(left_out.power),
        median(left_out.energy_per_token),
    )
