"""Fitting a kernel's parameters to measured rows: few rows, so a prior and a forgiving loss.

The error is that of log latency; soft-L1 keeps a failed tactic from dragging the rest along.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moebench.calibrate.widths import Residuals
from moebench.predict.arrays import Floats, Ints, OverCases
from moebench.predict.kernels.catalogue import Error, Kernel
from moebench.predict.kernels.intervals import REGIMES, Basis
from moebench.predict.kernels.layer import LayerCases, layer_time
from moebench.predict.kernels.parameters import METADATA, PARAMETERS, Parameters
from moebench.predict.kernels.prior import Prior
from moebench.spec.hardware import HardwareSpec

NOISE = 0.06
"""Log error of the model's form that the loss takes for granted."""
PARALLEL_NOISE = 0.12
"""The same under expert parallelism, where the load of the fullest rank is one draw of many."""
SIBLING_SPREAD = 0.15
"""Spread of logarithms between gated and two-matrix experts of one source."""


def most_probable(
    errors: Callable[[Floats], Floats],
    mean: Floats,
    spread: Floats,
    *,
    weight: Floats | float = 1.0,
    ceiling: Floats | float = np.inf,
    **solver: Any,
) -> Floats:
    """The most probable logarithms of parameters, given measurements and a log-normal prior.

    Args:
        errors: log errors at some logarithms, each over its noise; large ones count linearly
            (soft-L1), so that one failed measurement does not drag the fit along.
        mean: of the prior, where the search starts.
        spread: standard deviations of the prior.
        weight: of each error.
        ceiling: upper bounds of the logarithms.
        solver: options of `scipy.optimize.least_squares`.
    """
    from scipy.optimize import least_squares  # a quarter of a second that predictions never need

    def residuals(logs: Floats) -> Floats:
        error = errors(np.minimum(logs, ceiling))
        soft = np.sign(error) * np.sqrt(2 * (np.sqrt(1 + error**2) - 1))
        return np.concatenate([weight * soft, (logs - mean) / spread])

    found = least_squares(residuals, np.minimum(mean, ceiling), **solver)
    return np.asarray(np.minimum(found.x, ceiling))


@dataclass(frozen=True)
class Measured(OverCases):
    """Rows of one kernel on one device."""

    kernel: Kernel
    hardware: HardwareSpec
    cases: LayerCases
    shapes: NDArray[Any]
    """Model shape of each row."""
    seconds: Floats
    """Measured latency of each row."""

    def log_error(self, parameters: Parameters) -> Floats:
        """log(measured / predicted), warm, as tables are measured."""
        predicted = layer_time(parameters, self.hardware, self.cases, warm=True).seconds
        return np.log(self.seconds / predicted)


def residuals_on(basis: Basis, rows: Measured, log_error: Floats) -> Residuals:
    """Errors on measured rows of one kernel on one device, as intervals are made of."""
    tokens = rows.cases.num_tokens
    return Residuals(basis, rows.kernel.family, rows.hardware.name, tokens, log_error)


def fit_parameters(rows: Measured, prior: Prior) -> Parameters:
    """The most probable parameters given the rows and the prior; all of them are free."""
    return _fit([rows], prior)


def fit_siblings(groups: Sequence[Measured], priors: Sequence[Prior]) -> list[Parameters]:
    """Parameters of kernels of one source on one device, gated and two-matrix experts.

    They run the same code, so what all their rows say together is the prior of each.

    Args:
        groups: the rows of each, maybe none of some.
        priors: of each.
    """
    filled = [rows for rows in groups if len(rows)]
    if len(filled) < 2:
        return [
            fit_parameters(rows, prior) if len(rows) else prior.parameters
            for rows, prior in zip(groups, priors, strict=True)
        ]
    largest = max(range(len(groups)), key=lambda index: len(groups[index]))
    common = _fit(filled, priors[largest])
    mean = {name: math.log(getattr(common, name)) for name in PARAMETERS}
    spread = {name: min(SIBLING_SPREAD, priors[largest].spread[name]) for name in PARAMETERS}
    prior = Prior(mean, spread)
    return [fit_parameters(rows, prior) if len(rows) else common for rows in groups]


def _fit(groups: Sequence[Measured], prior: Prior) -> Parameters:
    mean, spread = (
        np.array([table[name] for name in PARAMETERS]) for table in (prior.mean, prior.spread)
    )
    ceiling = np.log([METADATA[name]["ceiling"] for name in PARAMETERS])
    parallel = np.concatenate([rows.cases.expert_parallel > 1 for rows in groups])
    noise = np.where(parallel, PARALLEL_NOISE, NOISE)

    def parameters(logs: Floats) -> Parameters:
        return Parameters(**dict(zip(PARAMETERS, np.exp(logs).tolist(), strict=True)))

    def errors(logs: Floats) -> Floats:
        return np.concatenate([rows.log_error(parameters(logs)) for rows in groups]) / noise

    return parameters(
        most_probable(errors, mean, spread, ceiling=ceiling, x_scale=spread, max_nfev=40)
    )


def thinned(rows: Measured, count: int, parallel_count: int) -> Measured:
    """At most `count` rows on one rank and `parallel_count` under expert parallelism."""
    rng = np.random.default_rng(0)
    is_parallel = rows.cases.expert_parallel > 1
    chosen = [
        rng.choice(group, min(most, len(group)), replace=False)
        for group, most in (
            (np.flatnonzero(~is_parallel), count),
            (np.flatnonzero(is_parallel), parallel_count),
        )
    ]
    return rows[np.sort(np.concatenate(chosen))]


def stratified(num_tokens: Floats, count: int, rng: np.random.Generator) -> Ints:
    """Ints of `count` rows, as many from each token regime as it has to give."""
    tokens = np.asarray(num_tokens)
    groups = [np.flatnonzero((tokens > low) & (tokens <= high)) for low, high in REGIMES]
    chosen: list[int] = []
    for left, group in zip(range(len(groups), 0, -1), sorted(groups, key=len), strict=True):
        share = min(len(group), -(-(count - len(chosen)) // left))
        chosen += rng.choice(group, share, replace=False).tolist()
    return np.array(sorted(chosen), dtype=np.int64)


def percentage_errors(log_error: Floats) -> Error:
    """Mean, median and 90th percentile of |predicted / measured - 1| in percent."""
    ape = 100 * np.abs(np.expm1(-log_error))
    return Error(float(ape.mean()), float(np.median(ape)), float(np.percentile(ape, 90)))
