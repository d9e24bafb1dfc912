"""Fitting a kernel's parameters to measured rows: few rows, so a prior and a forgiving loss.

The error is that of log latency; soft-L1 keeps a failed tactic from dragging the rest along.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moebench.calibrate.rows import Measured
from moebench.predict.arrays import Floats, Ints
from moebench.predict.kernels.catalogue import FitError, KernelFit
from moebench.predict.kernels.dense import DenseParameters
from moebench.predict.kernels.intervals import REGIMES
from moebench.predict.kernels.parameters import METADATA, PARAMETERS, Parameters
from moebench.predict.kernels.prior import Prior, generic_prior, prior_for

NOISE = 0.06
"""Log error of the model's form that the loss takes for granted."""
PARALLEL_NOISE = 0.12
"""Log error under expert parallelism, where the load of the fullest rank is one draw of many."""
ROWS = 1000
"""Rows of a group that a full fit uses, on one rank."""
PARALLEL_ROWS = 250
"""Rows of a group that a full fit uses, under expert parallelism."""
LEAST_ROWS = 100
"""Rows on one rank below which a group is not fitted by itself."""
SIBLING_SPREAD = 0.15
"""Spread of logarithms between gated and two-matrix experts of one source."""


def most_probable(
    errors: Callable[[Floats], Floats],
    mean: Floats,
    spread: Floats,
    *,
    weight: Floats | float = 1.0,
    ceiling: Floats | float = np.inf,
    starts: Sequence[Floats] = (),
    **solver: Any,
) -> Floats:
    """The most probable logarithms of parameters, given measurements and a log-normal prior.

    Args:
        errors: log errors at some logarithms, each over its noise; large ones count linearly
            (soft-L1), so that one failed measurement does not drag the fit along.
        mean: of the prior, where the first search starts.
        spread: standard deviations of the prior.
        weight: of each error.
        ceiling: upper bounds of the logarithms.
        starts: where further searches start; the most probable of all ends counts.
        solver: options of `scipy.optimize.least_squares`.
    """
    from scipy.optimize import least_squares  # a quarter of a second that predictions never need

    def residuals(logs: Floats) -> Floats:
        error = errors(np.minimum(logs, ceiling))
        soft = np.sign(error) * np.sqrt(2 * (np.sqrt(1 + error**2) - 1))
        return np.concatenate([weight * soft, (logs - mean) / spread])

    found = [
        least_squares(residuals, np.minimum(start, ceiling), **solver) for start in (mean, *starts)
    ]
    best = min(found, key=lambda one: float(one.cost))
    return np.asarray(np.minimum(best.x, ceiling))


def fit_parameters(rows: Measured, prior: Prior) -> Parameters:
    """The most probable parameters given the rows and the prior; all of them are free."""
    return _fit([rows], prior)


def fit_siblings(groups: Sequence[Measured], priors: Sequence[Prior]) -> list[Parameters]:
    """Parameters of kernels of one source on one device, gated and two-matrix experts.

    They run the same code, so what all their rows say together is the prior of each. A kernel
    without rows has its prior's parameters, or those of all.
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
    shared = Prior(mean, spread)
    return [fit_parameters(rows, shared) if len(rows) else common for rows in groups]


def _fit(groups: Sequence[Measured], prior: Prior) -> Parameters:
    mean = np.array([prior.mean[name] for name in PARAMETERS])
    spread = np.array([prior.spread[name] for name in PARAMETERS])
    ceiling = np.log([METADATA[name]["ceiling"] for name in PARAMETERS])
    parallel = np.concatenate([rows.is_parallel for rows in groups])
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
    chosen = [
        rng.choice(group, min(most, len(group)), replace=False)
        for group, most in (
            (np.flatnonzero(~rows.is_parallel), count),
            (np.flatnonzero(rows.is_parallel), parallel_count),
        )
    ]
    return rows[np.sort(np.concatenate(chosen))]


def stratified(num_tokens: Floats, count: int, rng: np.random.Generator) -> Ints:
    """Indices of `count` rows, as many from each token regime as it has to give."""
    groups = [np.flatnonzero((num_tokens > low) & (num_tokens <= high)) for low, high in REGIMES]
    chosen: list[int] = []
    for left, group in zip(range(len(groups), 0, -1), sorted(groups, key=len), strict=True):
        share = min(len(group), -(-(count - len(chosen)) // left))
        chosen += rng.choice(group, share, replace=False).tolist()
    return np.array(sorted(chosen), dtype=np.int64)


def percentage_errors(log_error: Floats) -> FitError:
    """Mean, median and 90th percentile of |predicted / measured - 1| in percent."""
    ape = 100 * np.abs(np.expm1(-log_error))
    return FitError(float(ape.mean()), float(np.median(ape)), float(np.percentile(ape, 90)))


def full_fit(rows: Measured, count: int = ROWS) -> Parameters:
    """Fit of a group with many rows, from the generic prior."""
    return fit_parameters(thinned(rows, count, min(PARALLEL_ROWS, count)), generic_prior())


def shared_fits(
    groups: Sequence[Measured], relatives: Sequence[KernelFit] = ()
) -> list[Parameters]:
    """Fits of all groups, each with what the others found as its prior.

    A group with few model shapes leaves some parameters open; `relatives`, fits made before, close
    them.
    """
    alone = [as_fit(rows, full_fit(rows)) for rows in groups]
    found = []
    for number, rows in enumerate(groups):
        others = [*alone[:number], *alone[number + 1 :], *relatives]
        found.append(fit_parameters(thinned(rows, ROWS, PARALLEL_ROWS), prior_from(rows, others)))
    return found


def as_fit(rows: Measured, parameters: Parameters, table: str = "", sha256: str = "") -> KernelFit:
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
    )


def prior_from(
    rows: Measured, fits: Sequence[KernelFit], dense: Mapping[str, DenseParameters] | None = None
) -> Prior:
    """The prior of a kernel on its device, given other fits, and dense matmuls if known."""
    known = dense or {}
    return prior_for(rows.kernel, rows.hardware, fits, known.get(rows.hardware.name), known)
