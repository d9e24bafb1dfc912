"""`python -m moebench.validate --run RUN [--earlier RUN]`: how good a suite run's predictions were.

A shared machine's speed changes between its calibration and a run, and no formula can know by how
much. So a prediction is held against two things: an *earlier measurement of the same cases*, which
is the best predictor there can be and suffers from the same changes; and the latency after both
sides are divided by the reference operation - the run's latency by that of its own rounds, the
prediction by that of the calibration, the earlier measurement by that of the earlier run. Where all
of them know the operation's two parts, each case is divided by its own mixture of the two.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moebench import terminal
from moebench.compare.runs import differences, relative_latency
from moebench.compare.state import Footprint, footprints, load_label
from moebench.predict.arrays import Floats
from moebench.records.measurement import Measurement
from moebench.records.record import Record
from moebench.records.run import Run, load_run
from moebench.spec.schema import encode

MOST_RATIO = 1.3
"""Largest allowed ratio of the median error of predictions to that of an earlier measurement."""
MOST_DIVIDED = 0.12
"""Median error after both sides are divided by the reference operation."""


@dataclass(frozen=True)
class RunErrors:
    """Relative errors, |predicted / measured - 1|."""

    n: int
    median: float
    p90: float
    bias: float
    """Median of the signed errors."""


@dataclass(frozen=True)
class RunScore:
    """Predictions of a run beside an earlier measurement of its cases."""

    run: str
    earlier: str | None
    predicted: RunErrors
    """Latencies as they are, of the cases that both runs have."""
    predicted_divided: RunErrors | None
    """Both divided by the reference operation; None: the calibration or the run has none."""
    measured_earlier: RunErrors | None
    measured_earlier_divided: RunErrors | None
    ratio: float | None
    """Median error of the predictions over that of the earlier measurement."""
    missed: tuple[str, ...]
    """Required figures that were not reached."""
    notes: tuple[str, ...] = ()
    """What the errors should be read with."""


def validate_run(directory: Path, earlier: Path | None, as_json: bool) -> int:
    """Score a run's own predictions; 0 done, 1 a required figure was missed."""
    score = score_run(load_run(directory), load_run(earlier) if earlier else None)
    if as_json:
        terminal.show_json({"schema": 1, **encode(score)})
    else:
        terminal.show(score_text(score))
    return 1 if score.missed else 0


def score_run(run: Run, earlier: Run | None) -> RunScore:
    """Score the predictions that a run wrote before it measured.

    Raises:
        ValueError: nothing was measured, or the earlier run is of another machine or suite.
    """
    records = {r.case.key: r for r in run.records if _is_as_planned(r)}
    before: dict[str, Record] = {}
    if earlier is not None:
        reasons = differences(earlier, run)
        if reasons:
            raise ValueError("the earlier run is not of the same cases: " + "; ".join(reasons))
        before = {r.case.key: r for r in earlier.records if _is_as_planned(r)}
        records = {key: record for key, record in records.items() if key in before}
    if not records:
        raise ValueError(f"{run.directory}: no measured case to score")
    measured = [_measured(record) for record in records.values()]
    predicted = _error(
        [
            math.log(record.estimate.latency / own.latency.value)
            for record, own in zip(records.values(), measured, strict=True)
        ]
    )
    reference = run.manifest.calibration.get("reference")
    reading = run.manifest.calibration.get("reference_reading")
    mixtures = footprints(records) if reference and reading else None
    divided = again = again_divided = ratio = None
    if reference and all(own.reference for own in measured):
        logs = []
        for key, record in records.items():
            divisor = float(reference)
            if mixtures is not None and reading:
                priced = record.estimate.reference_reading or reading
                parts = np.array([priced]), np.array([reference - reading])
                divisor = float(mixtures[key].seconds(*parts)[0])
            logs.append(math.log(record.estimate.latency / divisor))
        divided = _error(np.subtract(logs, _relative(records, mixtures)))
    if before:
        again = _error(
            [
                math.log(_measured(before[key]).latency.value / own.latency.value)
                for key, own in zip(records, measured, strict=True)
            ]
        )
        ratio = predicted.median / again.median if again.median else None
        before = {key: before[key] for key in records}
        if all(_measured(r).reference for r in (*records.values(), *before.values())):
            mixtures = footprints(records, before)
            both = _relative(before, mixtures), _relative(records, mixtures)
            again_divided = _error(np.subtract(*both))
    loads = [("the run", records.values()), ("the earlier run", before.values())]
    missed = []
    if ratio is not None and ratio > MOST_RATIO:
        missed.append(f"{ratio:.2f} times the error of an earlier measurement, {MOST_RATIO} asked")
    if divided is not None and divided.median > MOST_DIVIDED:
        missed.append(f"median error {divided.median:.1%} after division, {MOST_DIVIDED:.0%} asked")
    return RunScore(
        run.manifest.run,
        None if earlier is None else earlier.manifest.run,
        predicted,
        divided,
        again,
        again_divided,
        ratio,
        tuple(missed),
        tuple(filter(None, (load_label(*each) for each in loads))),
    )


def score_text(score: RunScore) -> str:
    """The score for people."""
    rows = {
        "prediction": score.predicted,
        "prediction, divided": score.predicted_divided,
        "earlier measurement": score.measured_earlier,
        "earlier measurement, divided": score.measured_earlier_divided,
    }
    cells = [
        [title, "-", "not known", "", ""]
        if e is None
        else [title, str(e.n), f"{e.median:.1%}", f"{e.p90:.1%}", f"{e.bias:+.1%}"]
        for title, e in rows.items()
    ]
    lines = [terminal.text_table(["error of", "cases", "median", "P90", "bias"], cells)]
    if score.ratio is not None:
        lines.append(f"prediction over earlier measurement: {score.ratio:.2f} (median errors)")
    lines += [f"note: {note}" for note in score.notes]
    return "\n".join([*lines, *(f"MISSED: {what}" for what in score.missed)])


def _is_as_planned(record: Record) -> bool:
    """Whether it was measured, and launched as it was predicted."""
    return record.measurement is not None and record.launch == record.case.launch


def _relative(
    records: Mapping[str, Record], mixtures: Mapping[str, Footprint] | None
) -> list[float]:
    """Logarithms of the cases' latencies over the reference operation of their rounds."""
    return [
        relative_latency(_measured(r), "whole" if mixtures is None else mixtures[key]).value
        for key, r in records.items()
    ]


def _measured(record: Record) -> Measurement:
    assert record.measurement is not None
    return record.measurement


def _error(logs: Sequence[float] | Floats) -> RunErrors:
    errors = np.expm1(logs)
    absolute = np.abs(errors)
    return RunErrors(
        len(errors),
        float(np.median(absolute)),
        float(np.quantile(absolute, 0.9)),
        float(np.median(errors)),
    )
