"""The price of an operation: its parameters on a device, seconds of calls, and 90 % intervals."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moebench.predict.arrays import Floats
from moebench.predict.operations.fits import FOLDER, INTERVALS, OperationFit, shipped_operation_fits
from moebench.predict.operations.nearest import BASES, Basis, nearest, parameters_of
from moebench.predict.operations.operation import Calls, Operation, Software
from moebench.spec.hardware import HardwareSpec
from moebench.spec.schema import from_mapping, read_toml

REGIMES = (20e-6, 200e-6)
"""Seconds that part calls which mostly start from those which mostly work, and in between."""
ASSUMED_FACTOR = 2.0
"""Factor either way where no errors were measured, of a maker whose GPUs were; an assumption."""
RATIO_STEP = float(np.log(8 / 6))
"""Log ratio of two top-k for which the errors of ratios were measured."""
Bounds = tuple[tuple[float, float], ...]
"""5 % and 95 % quantile of log(measured / predicted) in each of the regimes of predicted time."""


@dataclass(frozen=True)
class PricedOperation:
    """An operation of one software on one device, with the parameters that price it."""

    operation: Operation
    software: Software
    hardware: HardwareSpec
    parameters: Any
    basis: Basis
    origin: str

    def seconds(self, calls: Calls, warm: bool = False) -> Floats:
        """Seconds of calls; `warm`: a benchmark's replays leave what fits in L2."""
        return self.operation.time(self.parameters, self.hardware, calls, warm)

    def interval(self, seconds: Floats) -> tuple[Floats, Floats]:
        """Ends of the 90 % interval of predicted seconds; NaN for a maker never measured."""
        ends = np.array(bounds(self.operation.name, self.basis, self.software.name))
        low, high = ends[np.searchsorted(REGIMES, seconds)].T
        return seconds * np.exp(low), seconds * np.exp(high)


def priced(
    operation: Operation,
    software: Software,
    hardware: HardwareSpec,
    fits: Sequence[OperationFit] | None = None,
) -> PricedOperation:
    """An operation with the best parameters known: its own fit's, else those of the nearest."""
    known = shipped_operation_fits(operation) if fits is None else fits
    for fit in known:
        if fit.software == software and fit.system == hardware.name:
            origin = f"{fit.rows} measured rows of {software} on {fit.system}"
            return PricedOperation(operation, software, hardware, fit.parameters, "fitted", origin)
    found = nearest(operation, software, hardware, known)
    parameters = parameters_of(operation, found.mean)
    return PricedOperation(operation, software, hardware, parameters, found.basis, found.origin)


def bounds(operation: str, basis: Basis, software: str = "") -> Bounds:
    """Ends of the interval of an operation's logarithms; NaN for a maker never measured.

    Those of a software by itself come before those of all software together.
    """
    if basis == "maker":
        return ((np.nan, np.nan),) * (len(REGIMES) + 1)
    shipped = shipped_bounds()
    known = {**shipped.get(operation, {}), **shipped.get(f"{operation}.{software}", {})}
    # A basis that was never scored is at least as unsure as every surer one.
    surer = [known[one] for one in BASES[: BASES.index(basis) + 1] if one in known]
    if not surer:
        end = float(np.log(ASSUMED_FACTOR))
        return ((-end, end),) * (len(REGIMES) + 1)
    ends = np.array(surer)
    return tuple(zip(ends[..., 0].min(0).tolist(), ends[..., 1].max(0).tolist(), strict=True))


def ratio_interval(price: PricedOperation, ratio: Floats, apart: Floats) -> tuple[Floats, Floats]:
    """90 % interval of the ratio of two calls that differ in top-k alone.

    Args:
        price: of both calls, whose common errors cancel.
        ratio: predicted time over predicted time.
        apart: logarithm of the ratio of their top-k; errors grow with its root.
    """
    ends = np.array(bounds(f"{price.operation.name}-ratio", price.basis)[0])
    low, high = np.exp(np.outer(ends, np.sqrt(np.abs(apart) / RATIO_STEP)))
    return ratio * low, ratio * high


@functools.cache
def shipped_bounds() -> Mapping[str, Mapping[Basis, Bounds]]:
    """Bounds by operation, or operation and software, and by basis: intervals.toml."""
    path = FOLDER / INTERVALS
    if not path.exists():
        return {}
    return from_mapping(_Intervals, read_toml(path), f"operations/{INTERVALS}").bounds


@dataclass(frozen=True)
class _Intervals:
    bounds: Mapping[str, Mapping[Basis, Bounds]]
    note: str = ""
