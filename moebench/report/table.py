"""The table of a run: every case with what was measured, what was predicted, and footnotes.

A number that is missing is an en dash whose footnote says why; a doubtful one carries its
caveats. Equal notes share one mark, and a note that holds for a whole column stands at its head.
Measured, predicted and promised numbers have columns of their own; simulated ones have no place.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from moebench.compare.pairs import corrected, prediction_error
from moebench.records.results import Caveat, Estimate, Failure, Interval, Ratio, Record
from moebench.records.run import KeptRun
from moebench.units import Kind, printable, text

DASH = "–"
LEVELS = {"moe": "MoE layer", "decoder": "decoder layer"}
LEGEND = (
    "mean k: routed experts a token ran; distinct experts: those that a step touched in one layer. "
    "latency: measured time of a step through the layers run, with the larger side of its 95 % "
    "interval; error: predicted over measured latency, less 1. speedup: the baseline's total time "
    "over the router's on the same steps without the delays of single rounds, with its 95 % "
    "interval; verdict same: inside 1 ± 1 %; unclear: the interval holds 1, fewer than 8 rounds "
    "ran, or the row does not stand up to the correction for the number of rows "
    "(Benjamini-Hochberg, 5 %). FLOPs promise: the speedup if "
    "time followed FLOPs. Quality: not measured (random weights)."
)


@dataclass(frozen=True)
class Note:
    """A footnote: equal keys share a mark."""

    key: str
    text: str


@dataclass(frozen=True)
class Cell:
    """What a table shows at one place."""

    text: str
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Column:
    """A column with its title and the marks that hold for all of it."""

    key: str
    title: str
    is_text: bool = False
    marks: str = ""


@dataclass(frozen=True)
class Row:
    """A case; `cells` by column key, `marks` likewise."""

    router: str
    cells: Mapping[str, Cell]
    marks: Mapping[str, str]


@dataclass(frozen=True)
class Section:
    """The routers of one cell."""

    level: str
    workload: str
    detail: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A run's cases, grouped by level and workload in the order of the plan."""

    columns: tuple[Column, ...]
    sections: tuple[Section, ...]
    footnotes: tuple[tuple[str, str], ...]
    """Mark and text."""


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


def run_table(run: KeptRun) -> Table:
    """The table of all planned cases of a run.

    Raises:
        ValueError: a record is simulated, and so does not belong among measured ones.
    """
    records = {record.case.key: record for record in corrected(run.records)}
    predictions = {record.case.key: record for record in run.predictions}
    failures = {failure.case: failure for failure in run.failures}
    sections = []
    for cell in run.manifest.cells:
        known = [
            (key, records.get(key) or predictions[key])
            for key in cell.cases
            if key in records or key in predictions
        ]
        rows = [
            Row(record.case.router.title, _cells(record, failures.get(key), run), {})
            for key, record in known
        ]
        if rows:
            first = known[0][1]
            workload = first.case.workload
            sections.append(
                Section(workload.level, workload.label, workload_detail(first), tuple(rows))
            )
    # A stable sort: levels together, workloads as planned.
    levels = list(dict.fromkeys(section.level for section in sections))
    ordered = tuple(sorted(sections, key=lambda section: levels.index(section.level)))
    return _with_marks(ordered, COLUMNS)


def predicted_table(records: Sequence[Record]) -> Table:
    """The table of cases that were only predicted; the first case of a cell is its baseline."""
    by_cell: dict[str, list[Record]] = {}
    for record in records:
        by_cell.setdefault(record.cell, []).append(record)
    sections = [
        Section(
            cell[0].case.workload.level,
            cell[0].case.workload.label,
            workload_detail(cell[0]),
            tuple(Row(r.case.router.title, _forecast_cells(r, cell[0]), {}) for r in cell),
        )
        for cell in by_cell.values()
    ]
    levels = list(dict.fromkeys(section.level for section in sections))
    ordered = tuple(sorted(sections, key=lambda section: levels.index(section.level)))
    return _with_marks(ordered, PREDICTED_COLUMNS)


def _forecast_cells(record: Record, baseline: Record) -> dict[str, Cell]:
    estimate, tokens = record.estimate, record.case.workload.num_tokens
    latency = text(estimate.latency, "time")
    if estimate.latency_low is not None and estimate.latency_high is not None:
        low, high = text(estimate.latency_low, "time"), text(estimate.latency_high, "time")
        latency = f"{latency} [{low}, {high}]"
    promise, predicted = ratio(record, "flops-promise"), ratio(record, "predicted-speedup")
    is_baseline = record is baseline
    return {
        "router": Cell(record.case.router.title),
        "mean_k": Cell(f"{record.case.operating_point.mean_k:.2f}"),
        "distinct": Cell(f"{estimate.distinct_experts:.2f}"),
        "flops": Cell(_digits(estimate.flops / tokens / 1e9)),
        "predicted": Cell(latency, _caveat_notes(estimate.caveats)),
        "promise": Cell("") if is_baseline else _optional_ratio(promise, "no baseline"),
        "predicted_speedup": Cell("baseline")
        if is_baseline
        else _optional_ratio(predicted, "no baseline"),
        "bound": Cell(estimate.bound),
        "memory": Cell(text(estimate.peak_memory, "size")),
    }


def workload_detail(record: Record) -> str:
    """Tokens and context of a step in words, and whether it is launched as a graph."""
    workload = record.case.workload
    detail = f"{workload.num_tokens} token{'s' * (workload.num_tokens > 1)} a step"
    if workload.context_length:
        detail += f", context {workload.context_length}"
    return f"{detail}, one CUDA graph" if record.launch == "graph" else detail


def ratio(record: Record, kind: str) -> Ratio | None:
    """The ratio of a kind that a record holds."""
    return next((r for r in record.ratios if r.kind == kind), None)


def measured_only(records: Iterable[Record]) -> tuple[Record, ...]:
    """The records, if every one of them was measured.

    Raises:
        ValueError: one was simulated or only predicted.
    """
    kept = tuple(records)
    for record in kept:
        if record.provenance != "measured" or record.measurement is None:
            why = ""
            if record.provenance == "simulated":
                why = " (its NVML library is a simulator: measure again without it)"
            raise ValueError(
                f"{record.case.key}: its record is {record.provenance}, "
                f"and only measured records enter a table of measurements{why}"
            )
    return kept


def _cells(record: Record, failure: Failure | None, run: KeptRun) -> dict[str, Cell]:
    cells = {"router": Cell(record.case.router.title)}
    cells |= _predicted_cells(record.estimate)
    if record.measurement is None and record.provenance == "predicted":
        return cells | _unmeasured_cells(failure, run)
    measured_only([record])
    return cells | _measured_cells(record, run.manifest.baseline)


def _predicted_cells(estimate: Estimate) -> dict[str, Cell]:
    return {"predicted": Cell(text(estimate.latency, "time"), _caveat_notes(estimate.caveats))}


def _unmeasured_cells(failure: Failure | None, run: KeptRun) -> dict[str, Cell]:
    if failure is not None:
        reason = f"{failure.kind}: {failure.message}"
        why = Note(reason, reason)
    else:
        why = Note("not measured", f"not measured: the run is {run.manifest.status}")
    empty = {c.key: Cell(DASH) for c in COLUMNS if c.key not in ("router", "predicted")}
    return empty | {"latency": Cell(DASH, (why,)), "verdict": Cell("")}


def _measured_cells(record: Record, baseline: str) -> dict[str, Cell]:
    measurement, tokens = record.measurement, record.case.workload.num_tokens
    assert measurement is not None
    flops, memory, energy = measurement.flops, measurement.memory, measurement.energy
    incomplete: tuple[Note, ...] = ()
    if not flops.complete:
        names = ", ".join(flops.unsupported)
        incomplete = (
            Note(
                f"flops {names}",
                f"incomplete-count: a counter cannot count {names}; "
                "the number is the closed form from the observed routing",
            ),
        )
    error = prediction_error(record)
    assert error is not None
    doubts = _caveat_notes(measurement.caveats)
    if "optimizer" in measurement.by_stage:
        seconds = text(measurement.by_stage["optimizer"], "time")
        optimizer = f"a training step is forward and backward; plain SGD apart takes {seconds} more"
        doubts = (*doubts, Note("optimizer", optimizer))
    return {
        "mean_k": Cell(f"{measurement.measured_mean_k:.2f}"),
        "distinct": Cell(f"{measurement.load.distinct_experts:.2f}"),
        "flops": Cell(_digits(flops.closed_form / tokens / 1e9), incomplete),
        "latency": Cell(_with_spread(measurement.latency), doubts),
        "error": Cell(percent(error, signed=True)),
        "energy": _optional(
            None if energy.joules is None else energy.joules / tokens,
            "energy",
            f"no energy: {energy.missing}",
        ),
        "memory": _optional(memory.peak, "size", f"no peak memory: {memory.missing}"),
        **_ratio_cells(record, baseline),
    }


def _ratio_cells(record: Record, baseline: str) -> dict[str, Cell]:
    speedup, promise = ratio(record, "speedup"), ratio(record, "flops-promise")
    predicted = ratio(record, "predicted-speedup")
    if record.case.router.title == baseline:
        return {
            "speedup": Cell("baseline"),
            "promise": Cell(""),
            "predicted_speedup": Cell(""),
            "verdict": Cell(""),
        }
    return {
        "speedup": _optional_ratio(speedup, "no speedup: the baseline gave no number"),
        "promise": _optional_ratio(promise, "no promise: the baseline has no FLOP count"),
        "predicted_speedup": _optional_ratio(predicted, "the baseline was not predicted"),
        "verdict": Cell(speedup.verdict or "" if speedup else ""),
    }


def _optional(value: float | None, kind: Kind, reason: str) -> Cell:
    return Cell(DASH, (Note(reason, reason),)) if value is None else Cell(text(value, kind))


def _optional_ratio(value: Ratio | None, reason: str) -> Cell:
    return Cell(DASH, (Note(reason, reason),)) if value is None else Cell(ratio_text(value))


def ratio_text(value: Ratio) -> str:
    """A ratio with its interval, if it has one: "1.38× [1.34, 1.42]"."""
    if value.low is None or value.high is None:
        return f"{value.value:.2f}×"
    return f"{value.value:.2f}× [{value.low:.2f}, {value.high:.2f}]"


def _with_spread(interval: Interval) -> str:
    """A time with the larger side of its interval: "60.1 ms ±0.8 %"."""
    value = text(interval.value, "time")
    if interval.low is None or interval.high is None:
        return value
    side = max(interval.high - interval.value, interval.value - interval.low)
    return f"{value} ±{percent(side / interval.value)}"


def percent(value: float, signed: bool = False) -> str:
    """A share for people: 0.049 is "4.9 %", or "+4.9 %" where the sign matters."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f} %".replace("-", "−")


def _digits(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 1e-4 else f"{value:.2g}".replace("e-0", "e-")


def _caveat_notes(caveats: Iterable[Caveat]) -> tuple[Note, ...]:
    return tuple(
        Note(f"caveat {c.kind}", f"{c.kind}: {c.seen}; {c.meaning}; remedy: {c.remedy}")
        for c in caveats
    )


def _with_marks(sections: tuple[Section, ...], columns: Sequence[Column]) -> Table:
    """Number the notes in reading order; what a whole column shares goes to its head."""
    rows = [row for section in sections for row in section.rows]
    numbers: dict[str, int] = {}
    texts: dict[str, list[str]] = {}

    def marks(notes: Sequence[Note]) -> str:
        for note in notes:
            numbers.setdefault(note.key, len(numbers) + 1)
            seen = texts.setdefault(note.key, [])
            if note.text not in seen:
                seen.append(note.text)
        return superscript(sorted({numbers[note.key] for note in notes}))

    headed = []
    shared: dict[str, set[str]] = {}
    for column in columns:
        cells = [row.cells[column.key] for row in rows]
        common = (
            set.intersection(*({n.key for n in cell.notes} for cell in cells)) if rows else set()
        )
        shared[column.key] = common if len(rows) > 1 else set()
        notes = [n for cell in cells for n in cell.notes if n.key in shared[column.key]]
        headed.append(replace(column, marks=marks(notes)))
    marked = []
    for section in sections:
        new = [
            replace(
                row,
                marks={
                    key: marks([n for n in cell.notes if n.key not in shared[key]])
                    for key, cell in row.cells.items()
                },
            )
            for row in section.rows
        ]
        marked.append(replace(section, rows=tuple(new)))
    footnotes = tuple((superscript([n]), _joined(texts[key])) for key, n in numbers.items())
    return Table(tuple(headed), tuple(marked), footnotes)


def _joined(seen: Sequence[str]) -> str:
    more = len(seen) - 1
    return seen[0] + (f" (and {more} more with other figures, see the records)" if more else "")


def superscript(numbers: Iterable[int]) -> str:
    """Footnote marks: [1, 12] is "¹˒¹²"."""
    digits = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
    return "˒".join(str(number).translate(digits) for number in numbers)


def render_text(table: Table) -> str:
    """The table for a terminal; titles stand in two lines."""
    heads = {column.key: _two_lines(column.title + column.marks) for column in table.columns}
    rows = [row for section in table.sections for row in section.rows]

    def shown(row: Row, key: str) -> str:
        return printable(row.cells[key].text + row.marks[key])

    widths = {
        key: max(map(len, (*head, *(shown(row, key) for row in rows))))
        for key, head in heads.items()
    }

    def line(values: Mapping[str, str]) -> str:
        parts = (
            values[c.key].ljust(widths[c.key]) if c.is_text else values[c.key].rjust(widths[c.key])
            for c in table.columns
        )
        return "  ".join(parts).rstrip()

    lines = [line({key: head[i] for key, head in heads.items()}) for i in (0, 1)]
    for section in table.sections:
        lines += ["", f"{LEVELS[section.level]} · {section.workload} ({section.detail})"]
        lines += [line({key: shown(row, key) for key in row.cells}) for row in section.rows]
    if table.footnotes:
        notes = (fill(f"{mark} {note}", subsequent_indent="  ") for mark, note in table.footnotes)
        lines += ["", *notes]
    return "\n".join(lines)


def fill(paragraph: str, subsequent_indent: str = "") -> str:
    """Break a paragraph into lines that a terminal shows whole."""
    return textwrap.fill(printable(paragraph), 110, subsequent_indent=subsequent_indent)


def _two_lines(title: str) -> tuple[str, str]:
    """A title broken at its last space; one word goes to the lower line."""
    upper, _, lower = title.rpartition(" ")
    return upper, lower
