"""How far predicted latencies were off, by phase and level."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    """Of the signed errors: above 0, predictions are too slow."""
    median_absolute: float
    p90_absolute: float


def prediction_error(record: Record) -> float | None:
    """Signed relative error of the predicted latency; None where nothing was measured."""
    if record.measurement is None:
        return None
    return record.estimate.latency / record.measurement.latency.value - 1


def prediction_errors(records: Sequence[Record]) -> tuple[PredictionError, ...]:
    """Errors by phase and level, in order of appearance, and over all; empty without records."""
    errors = [
        (record.case.workload.phase, record.case.workload.level, error)
        for record in records
        if (error := prediction_error(record)) is not None
    ]
    groups = dict.fromkeys((phase, level) for phase, level, _ in errors)
    parts = [
        _summary(phase, level, [e for p, v, e in errors if (p, v) == (phase, level)])
        for phase, level in groups
    ]
    return (*parts, _summary("all", "all", [e for *_, e in errors])) if errors else ()


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
