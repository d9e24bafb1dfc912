"""Rows of the tables of cases: of a run, and of a suite that was only predicted.

Measured, predicted and promised numbers have columns of their own; simulated ones have no place.
"""

from collections.abc import Iterable, Sequence

from moebench.compare.pairs import corrected
from moebench.compare.prediction_errors import prediction_error
from moebench.records.measurement import Measurement
from moebench.records.record import Failure, Record
from moebench.records.results import Caveat, Estimate, Ratio
from moebench.records.run import Run
from moebench.report.notation import DASH, percent, ratio_text, three_digits, time_text
from moebench.report.table import Column, Note, ReportTable, RowCells, TableCell, build_table
from moebench.units import text

LEGEND = (
    "mean k: routed experts a token ran; distinct experts: those that a step touched in one layer. "
    "latency: measured time of a step through the layers run, with the larger side of its 95 % "
    "interval; error: predicted over measured latency, less 1. speedup: the baseline's total time "
    "over the router's on the same steps, single delays left out, with its 95 % "
    "interval; verdict same: inside 1 ± 1 %; unclear: the interval holds 1, fewer than 8 rounds "
    "ran, or the row is not significant after correction for the number of rows "
    "(Benjamini-Hochberg, 5 %). FLOPs promise: the speedup if time were proportional to FLOPs. "
    "Quality: not measured."
)

COLUMNS = (
    Column("router", "router", is_text=True),
    Column("mean_k", "mean k"),
    Column("distinct", "distinct experts"),
    Column("flops", "GFLOP per token"),
    Column("latency", "latency"),
    Column("predicted", "predicted latency"),
    Column("error", "error"),
    Column("speedup", "speedup"),
    Column("verdict", "verdict", is_text=True),
    Column("predicted_speedup", "predicted speedup"),
    Column("promise", "FLOPs promise"),
    Column("energy", "energy per token"),
    Column("memory", "peak memory"),
)

PREDICTED_COLUMNS = (
    Column("router", "router", is_text=True),
    Column("mean_k", "mean k"),
    Column("distinct", "experts"),
    Column("flops", "GFLOP per token"),
    Column("predicted", "latency (90 %)"),
    Column("promise", "FLOPs say"),
    Column("predicted_speedup", "speedup"),
    Column("bound", "bound by", is_text=True),
    Column("memory", "peak memory"),
)


RATIOS = (
    ("speedup", "speedup", "no speedup: the baseline gave no number"),
    ("promise", "flops-promise", "no promise: the baseline has no FLOP count"),
    ("predicted_speedup", "predicted-speedup", "the baseline was not predicted"),
)
"""Column, kind of ratio, and why a record may lack it."""


def run_table(run: Run) -> ReportTable:
    """The table of all planned cases of a run; refuses simulated records."""
    records = {r.case.key: r for r in (*run.predictions, *corrected(run.records))}
    failures = {failure.case: failure for failure in run.failures}
    cases = (
        (cell.key, records[key], _cells(records[key], failures.get(key), run))
        for cell in run.manifest.cells
        for key in cell.cases
        if key in records
    )
    return build_table(COLUMNS, cases)


def predicted_table(records: Sequence[Record]) -> ReportTable:
    """The table of cases that were only predicted; the first case of a cell is its baseline."""
    baselines = {record.cell: record for record in reversed(records)}
    return build_table(
        PREDICTED_COLUMNS,
        ((r.cell, r, _forecast_cells(r, is_baseline=r is baselines[r.cell])) for r in records),
    )


def ratio(record: Record, kind: str) -> Ratio | None:
    """The ratio of this kind in a record; None if it has none."""
    return next((r for r in record.ratios if r.kind == kind), None)


def measured_only(records: Sequence[Record]) -> Sequence[Record]:
    """The records; refuses one that was simulated or only predicted."""
    for record in records:
        if record.provenance != "measured" or record.measurement is None:
            why = " (its NVML library is a simulator: measure again without it)"
            why *= record.provenance == "simulated"
            raise ValueError(
                f"{record.case.key}: its record is {record.provenance}, "
                f"and only measured records enter a table of measurements{why}"
            )
    return records


def measurement_of(record: Record) -> Measurement:
    """The measurement of a record that is known to have one."""
    assert record.measurement is not None
    return record.measurement


def levels_of(records: Sequence[Record]) -> list[str]:
    """Levels in order of appearance."""
    return list(dict.fromkeys(r.case.workload.level for r in records))


def titles_of(records: Sequence[Record]) -> list[str]:
    """Router titles in order of appearance."""
    return list(dict.fromkeys(r.case.router.title for r in records))


def labels_of(records: Sequence[Record]) -> list[str]:
    """Workload labels in order of appearance."""
    return list(dict.fromkeys(r.case.workload.label for r in records))


def _forecast_cells(record: Record, is_baseline: bool) -> RowCells:
    estimate, tokens = record.estimate, record.case.workload.num_tokens
    latency = text(estimate.latency, "time")
    if estimate.latency_low is not None and estimate.latency_high is not None:
        low, high = text(estimate.latency_low, "time"), text(estimate.latency_high, "time")
        latency = f"{latency} [{low}, {high}]"
    promise, speedup = TableCell(""), TableCell("baseline")
    if not is_baseline:
        promise = _ratio_cell(record, "flops-promise", "no baseline")
        speedup = _ratio_cell(record, "predicted-speedup", "no baseline")
    return {
        "router": TableCell(record.case.router.title),
        "mean_k": TableCell(f"{record.case.operating_point.mean_k:.2f}"),
        "distinct": TableCell(f"{estimate.distinct_experts:.2f}"),
        "flops": TableCell(three_digits(estimate.flops / tokens / 1e9)),
        "predicted": TableCell(latency, _caveat_notes(estimate.caveats)),
        "promise": promise,
        "predicted_speedup": speedup,
        "bound": TableCell(estimate.bound),
        "memory": TableCell(text(estimate.peak_memory, "size")),
    }


def _cells(record: Record, failure: Failure | None, run: Run) -> RowCells:
    estimate = record.estimate
    cells = {
        "router": TableCell(record.case.router.title),
        "predicted": TableCell(_predicted_latency(estimate), _caveat_notes(estimate.caveats)),
    }
    if record.measurement is not None or record.provenance != "predicted":
        measured_only([record])
        return cells | _measured_cells(record) | _ratio_cells(record, run.manifest.baseline)
    reason = f"not measured: the run is {run.manifest.status}"
    if failure is not None:
        reason = f"{failure.kind}: {failure.message}"
    empty = {column.key: TableCell(DASH) for column in COLUMNS}
    return empty | {"latency": _cell(None, reason), "verdict": TableCell("")} | cells


def _predicted_latency(estimate: Estimate) -> str:
    """The predicted latency, with its interval where that is wide enough to matter to everyone."""
    latency = text(estimate.latency, "time")
    is_poor = any(caveat.kind == "poor-calibration" for caveat in estimate.caveats)
    if not is_poor or estimate.latency_low is None or estimate.latency_high is None:
        return latency
    ends = (text(end, "time") for end in (estimate.latency_low, estimate.latency_high))
    return f"{latency} [{', '.join(ends)}]"


def _measured_cells(record: Record) -> RowCells:
    measurement, tokens = measurement_of(record), record.case.workload.num_tokens
    flops, memory, energy = measurement.flops, measurement.memory, measurement.energy
    names = ", ".join(flops.unsupported)
    why = (
        f"incomplete-count: a counter cannot count {names}; "
        "the number is the closed form from the observed routing"
    )
    incomplete = () if flops.complete else (Note(f"flops {names}", why),)
    error = prediction_error(record)
    assert error is not None
    doubts = _caveat_notes(measurement.caveats)
    if "optimizer" in measurement.by_stage:
        seconds = text(measurement.by_stage["optimizer"], "time")
        optimizer = f"a training step is forward and backward; plain SGD apart takes {seconds} more"
        doubts = (*doubts, Note("optimizer", optimizer))
    joules = None if energy.joules is None else text(energy.joules / tokens, "energy")
    peak = None if memory.peak is None else text(memory.peak, "size")
    return {
        "mean_k": TableCell(f"{measurement.measured_mean_k:.2f}"),
        "distinct": TableCell(f"{measurement.load.distinct_experts:.2f}"),
        "flops": TableCell(three_digits(flops.closed_form / tokens / 1e9), incomplete),
        "latency": TableCell(time_text(measurement.latency), doubts),
        "error": TableCell(percent(error, signed=True)),
        "energy": _cell(joules, f"no energy: {energy.missing}"),
        "memory": _cell(peak, f"no peak memory: {memory.missing}"),
    }


def _ratio_cells(record: Record, baseline: str) -> RowCells:
    if record.case.router.title == baseline:
        empty = {key: TableCell("") for key in ("promise", "predicted_speedup", "verdict")}
        return empty | {"speedup": TableCell("baseline")}
    speedup = ratio(record, "speedup")
    cells = {key: _ratio_cell(record, kind, reason) for key, kind, reason in RATIOS}
    return cells | {"verdict": TableCell(speedup.verdict or "" if speedup else "")}


def _ratio_cell(record: Record, kind: str, reason: str) -> TableCell:
    value = ratio(record, kind)
    return _cell(ratio_text(value) if value else None, reason)


def _cell(shown: str | None, reason: str) -> TableCell:
    """The text, or a dash whose footnote is the reason."""
    return TableCell(DASH, (Note(reason, reason),)) if shown is None else TableCell(shown)


def _caveat_notes(caveats: Iterable[Caveat]) -> tuple[Note, ...]:
    return tuple(Note(f"caveat {caveat.kind}", caveat.sentence) for caveat in caveats)
