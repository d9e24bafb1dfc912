"""How far predicted latencies were off, by phase and level."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from moebench.records.record import Record


@dataclass(frozen=True)
class PredictionError:
    """How far predictions were off: signed errors are predicted / measured - 1."""

    phase: str
    """ "all" for the whole run."""
    level: str
    n: int
    median: float
    """Median of the signed errors: above 0, predictions are too slow."""
    median_absolute: float
    p90_absolute: float


def prediction_error(record: Record) -> float | None:
    """Signed relative error of the predicted latency; None where nothing was measured."""
    if record.measurement is None:
        return None
    return record.estimate.latency / record.measurement.latency.value - 1


def prediction_errors(records: Sequence[Record]) -> tuple[PredictionError, ...]:
    """Errors by phase and level, in order of appearance, and over all; empty without records."""
    groups: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if (error := prediction_error(record)) is not None:
            workload = record.case.workload
            groups.setdefault((workload.phase, workload.level), []).append(error)
    if groups:
        groups["all", "all"] = [*chain(*groups.values())]
    return tuple(_summary(*group, errors) for group, errors in groups.items())


def _summary(phase: str, level: str, errors: Sequence[float]) -> PredictionError:
    absolute = np.abs(errors)
    return PredictionError(
        phase,
        level,
        len(errors),
        float(np.median(errors)),
        float(np.median(absolute)),
        float(np.quantile(absolute, 0.9)),
    )
